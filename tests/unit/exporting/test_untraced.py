"""The lists of architectures that a target refuses, held against the exporters themselves (make test-devices)."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch
from onnxruntime.capi import onnxruntime_pybind11_state as errors
from support.decoders import tiny_classifier, tiny_model
from test_intel import student
from test_mobile import far

from kdcli.errors import ExportError
from kdcli.exporting.targets import apple, cuda, intel
from kdcli.exporting.targets.base import Target
from kdcli.exporting.targets.cpu import UNTRACED, UNTRACED_DECODERS, Cpu
from kdcli.exporting.targets.mobile import UNWRITTEN, Mobile

__all__ = ["student"]
pytestmark = pytest.mark.devices
FAILURES = (
    ExportError,
    *(
        getattr(errors, name)
        for name in ("Fail", "InvalidArgument", "InvalidGraph", "NotImplemented", "RuntimeException")
    ),
)
"""What the exporter raises, and the runtime that cannot load or run its file."""
CLOSE = 1e-3
"""The largest difference of logits, relative to the largest one."""
WRITTEN = (
    "albert", "bart", "bert", "deberta-v2", "distilbert", "electra", "gpt2", "llama", "mobilebert", "modernbert", "mpnet", "qwen3", "roberta", "t5",
    "xlm-roberta",
)  # fmt: skip
PHONES = ("bart", "deberta-v2", "llama", "modernbert")
"""Classifiers of a phone, beside those of `test_mobile.py`, and one that is refused for its two parts."""
WRITTEN_DECODERS = (
    "bloom", "gemma2", "gemma3_text", "gpt2", "gpt_neox", "granite", "llama", "mistral", "olmo2", "opt", "phi3", "qwen2", "qwen3",
)  # fmt: skip


def session(file: Path) -> onnxruntime.InferenceSession:
    return onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])


def difference(expected: list[torch.Tensor], logits: list[np.ndarray]) -> float:
    """How far logits are from those of torch."""
    truth = np.concatenate([each.numpy().ravel() for each in expected])
    return float(
        np.abs(np.concatenate([each.ravel() for each in logits]) - truth).max() / np.abs(truth).max()
    )


def classifier_difference(kind: str, folder: Path) -> float:
    """That of an ONNX file of a classifier, for batches of other shapes than the traced one."""
    model = tiny_classifier(kind)
    names = {"input_ids": None, "attention_mask": None}
    row = {name: torch.ones(1, 4, dtype=torch.long) for name in names}
    file = Cpu(["fp32"], opset=18).export(folder, folder, model, [row], 40)["fp32"]
    graph, expected, logits = session(file), [], []
    for rows, length in (1, 8), (2, 9), (3, 17):
        ids = torch.randint(5, 60, (rows, length), generator=torch.Generator().manual_seed(length))
        if model.config.is_encoder_decoder:
            ids[:, -1] = model.config.eos_token_id
        batch = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
        with torch.no_grad():
            expected.append(model(**batch).logits)
        used = {each.name for each in graph.get_inputs()}
        inputs = {name: tensor.numpy() for name, tensor in batch.items() if name in used}
        logits += graph.run(["logits"], inputs)
    return difference(expected, logits)


def decoder_difference(kind: str, folder: Path) -> float:
    """That of an ONNX file of a language model, for a prompt and for the token after it."""
    model = tiny_model(kind)
    model.save_pretrained(folder / "student")
    (folder / "out").mkdir()
    graph = session(Cpu(["fp32"]).export(folder / "student", folder / "out", model, [], 40)["fp32"])
    expected, logits = [], []
    for rows, length in (1, 4), (2, 9):
        ids = torch.randint(5, 60, (rows, length + 1), generator=torch.Generator().manual_seed(length))
        with torch.no_grad():
            whole = model(ids, use_cache=False).logits
        past = {
            each.name: np.zeros([rows, each.shape[1], 0, each.shape[3]], np.float32)
            for each in graph.get_inputs()
            if each.name.startswith("past")
        }
        for first, last in (0, length), (length, length + 1):
            inputs = past | {
                "input_ids": ids[:, first:last].numpy(),
                "attention_mask": np.ones((rows, last), np.int64),
                "position_ids": np.tile(np.arange(first, last), (rows, 1)),
            }
            used = {each.name for each in graph.get_inputs()}
            outputs = graph.run(None, {name: value for name, value in inputs.items() if name in used})
            named = dict(zip((each.name for each in graph.get_outputs()), outputs, strict=True))
            past = {name: named[name.replace("past_key_values", "present")] for name in past}
            expected.append(whole[:, first:last])
            logits.append(named["logits"])
    return difference(expected, logits)


def require_as_listed(
    is_written: bool, difference_of: Callable[[str, Path], float], kind: str, folder: Path
) -> None:
    """An architecture is written right, or not at all."""
    if is_written:
        assert difference_of(kind, folder) < CLOSE
        return
    with contextlib.suppress(*FAILURES):
        assert difference_of(kind, folder) > CLOSE, "it is written, and belongs on the list no more"


@pytest.mark.parametrize("kind", [*UNTRACED, *WRITTEN])
def test_classifiers_that_onnx_cannot_hold_are_those_of_the_list(kind: str, tmp_path: Path) -> None:
    """A student is refused that can be written, or is trained and then cannot."""
    require_as_listed(kind in WRITTEN, classifier_difference, kind, tmp_path)


@pytest.mark.parametrize("kind", [*UNTRACED_DECODERS, *WRITTEN_DECODERS])
def test_decoders_that_onnx_cannot_hold_are_those_of_the_list(kind: str, tmp_path: Path) -> None:
    """As above, with a key/value cache."""
    require_as_listed(kind in WRITTEN_DECODERS, decoder_difference, kind, tmp_path)


@pytest.mark.parametrize("each", ["litert_int8", "executorch_fp32"])
@pytest.mark.parametrize("kind", [*PHONES, *UNWRITTEN])
def test_classifiers_that_a_phone_cannot_run_are_those_of_the_list(
    kind: str, each: str, student: Path, tmp_path: Path
) -> None:
    """As above, with the converters of LiteRT and ExecuTorch."""
    model, target = tiny_classifier(kind), Mobile([each])
    model.save_pretrained(student)
    rows = [
        {name: torch.randint(5, 60, (1, length)) for name in ("input_ids", "attention_mask")}
        for length in (2, 5, 16, 33)
    ]
    for row in rows:
        row["attention_mask"] = torch.ones_like(row["input_ids"])
        if model.config.is_encoder_decoder:
            row["input_ids"][:, -1] = model.config.eos_token_id
    if target.refusal(type(model), model.config):
        # FNet is written for ExecuTorch, which has no kernel for it, and so is Qwen3.5 for LiteRT, whose error is a ValueError
        with pytest.raises((ExportError, RuntimeError, ValueError)):
            far(model, target.export(student, tmp_path / "out", model, rows, 40)[each], rows)
        return
    file = target.export(student, tmp_path / "out", model, rows, 40)[each]
    assert far(model, file, rows) < (1e-3 if each == "executorch_fp32" else 0.05)


COMPUTERS: dict[str, tuple[Target, tuple[str, ...], float]] = {
    "fp16": (intel.Intel(["fp16"]), intel.UNWRITTEN, 0.01),
    "pt2": (cuda.Cuda(["pt2"]), cuda.UNWRITTEN, 0.1),
    "mlpackage": (apple.Apple(["fp16"]), apple.UNWRITTEN, 0.0),
}
"""The other targets of classifiers, by their files: what each refuses, and how far its logits may be off (fp16, bf16; Core ML runs on Apple's devices alone)."""


def logits_of(file: Path, batch: dict[str, torch.Tensor]) -> np.ndarray | None:
    """The logits of a file for a batch; None: it cannot be run here."""
    if file.suffix == ".xml":
        import openvino

        graph = openvino.Core().compile_model(file, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
        used = {name for each in graph.inputs for name in each.get_names()}
        inputs = {name: tensor.numpy() for name, tensor in batch.items() if name in used}
        return np.asarray(graph(inputs)[graph.output(0)])
    if file.suffix == ".pt2":
        program: Any = torch.export.load(file).module()
        with torch.no_grad():
            return np.asarray(program(**batch).float().numpy())
    return None


@pytest.mark.parametrize(
    ("each", "kind"),
    [
        (each, kind)
        for each, (_, unwritten, _) in COMPUTERS.items()
        for kind in [*unwritten, "bert", "modernbert", "llama"]
    ],
)
def test_classifiers_that_a_computer_cannot_run_are_those_of_the_list(
    each: str, kind: str, student: Path, tmp_path: Path
) -> None:
    """As above, with OpenVINO, torch.export and coremltools."""
    model, (target, _, tolerance) = tiny_classifier(kind).eval(), COMPUTERS[each]
    model.save_pretrained(student)
    batches = []
    for rows, length in (1, 8), (2, 9), (3, 17):
        ids = torch.randint(5, 60, (rows, length), generator=torch.Generator().manual_seed(length))
        batches.append({"input_ids": ids, "attention_mask": torch.ones_like(ids)})
    one_row = [{name: tensor[:1] for name, tensor in batches[0].items()}]

    def difference_of(kind: str, folder: Path) -> float:
        (file,) = target.export(student, folder / "out", model, one_row, 40).values()
        logits = [logits_of(file, batch) for batch in batches]
        if any(part is None for part in logits):
            return 0.0
        with torch.no_grad():
            return difference(
                [model(**batch).logits for batch in batches], [part for part in logits if part is not None]
            )

    if not target.refusal(type(model), model.config):
        assert difference_of(kind, tmp_path) <= tolerance
        return
    with contextlib.suppress(*FAILURES, RuntimeError, ValueError):
        assert difference_of(kind, tmp_path) > tolerance, "it is written, and belongs on the list no more"
