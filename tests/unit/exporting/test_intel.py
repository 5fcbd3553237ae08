"""OpenVINO files: they answer as the student does, whatever the shape of the batch."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers
from support.commands import naming, some
from support.exporting import ENCODER_SIZES, hide_packages, run_worker
from support.tiny import bert, full_disk, sentences

from kdcli.errors import ExportError, StorageError
from kdcli.exporting.runtimes.openvino import OpenVINOEncoder
from kdcli.exporting.targets.intel import Intel
from kdcli.files import size_of
from kdcli.measure.models import measure
from kdcli.measure.spec import MeasureSpec

CONFIGS = {
    "Bert": transformers.BertConfig(**ENCODER_SIZES),
    "Roberta": transformers.RobertaConfig(**ENCODER_SIZES, type_vocab_size=1, pad_token_id=1),
    "DistilBert": transformers.DistilBertConfig(
        vocab_size=200, dim=32, n_layers=2, n_heads=2, hidden_dim=64, max_position_embeddings=66, num_labels=3
    ),
}
ALL = ["fp16", "int8_weights", "int8"]
SEGMENTS = {"Bert"}
SHAPES = [(1, 1), (1, 7), (2, 5), (3, 64), (33, 2), (1, 16), (1, 17), (1, 64)]
TEXTS = [[text] for text, _ in sentences(40)]


def create(config: transformers.PreTrainedConfig) -> transformers.PreTrainedModel:
    """A random classifier whose weights are large enough to tell inputs apart."""
    torch.manual_seed(0)
    model = transformers.AutoModelForSequenceClassification.from_config(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.1 * torch.randn_like(parameter)
    return model


def inputs(rows: int, length: int, pad: int, segments: bool) -> dict[str, torch.Tensor]:
    """Random ids; the second row ends in padding."""
    batch = {
        "input_ids": torch.randint(5, 200, (rows, length)),
        "attention_mask": torch.ones(rows, length).long(),
    }
    if segments:
        batch["token_type_ids"] = torch.randint(0, 2, (rows, length))
    if rows > 1:
        batch["attention_mask"][1, max(1, length // 2) :] = 0
        batch["input_ids"][1, max(1, length // 2) :] = pad
    return batch


@pytest.fixture
def student(tokenizer, tmp_path: Path) -> Path:
    """A directory whose tokenizer the artifacts get."""
    tokenizer.save_pretrained(tmp_path / "student")
    (tmp_path / "student" / "config.json").write_text("{}")
    (tmp_path / "out").mkdir()
    return tmp_path / "student"


def load(file: Path, max_length: int = 64) -> OpenVINOEncoder:
    return OpenVINOEncoder(MeasureSpec("openvino", str(file), str(file.parent), max_length))


def ask(model: OpenVINOEncoder, batch: dict[str, torch.Tensor]) -> np.ndarray:
    return model({name: tensor.numpy() for name, tensor in batch.items()})


@pytest.mark.parametrize("name", some(CONFIGS, "Bert"))
def test_any_batch_and_any_length_give_the_logits_of_torch(name: str, student: Path, tmp_path: Path) -> None:
    """A shape, a mask or a position of the sample that is baked into the graph is right for that sample alone."""
    model, pad, segments = create(CONFIGS[name]), CONFIGS[name].pad_token_id, name in SEGMENTS
    rows = [inputs(1, length, pad, segments) for length in range(3, 43)]
    files = Intel(ALL).export(student, tmp_path / "out", model, rows, 64)
    assert [file.name for file in files.values()] == [
        "model.fp16.xml",
        "model.int8_weights.xml",
        "model.int8.xml",
    ]
    far = {}
    for precision, file in files.items():
        loaded = load(file)
        assert set(loaded.pad_values) == set(rows[0])
        expected, found = [], []
        for shape in SHAPES:
            batch = inputs(*shape, pad, segments)
            with torch.inference_mode():
                expected.append(model(**batch).logits.numpy())
            found.append(ask(loaded, batch))
        truth = np.concatenate(expected)
        far[precision] = np.linalg.norm(np.concatenate(found) - truth) / np.linalg.norm(truth)
    assert far["fp16"] < 0.02, "bf16 where the processor has it"
    assert far["int8_weights"] < 0.05
    assert far["int8"] < 0.2
    weights = {precision: file.with_suffix(".bin").stat().st_size for precision, file in files.items()}
    assert weights["int8"] < 0.8 * weights["fp16"]
    assert size_of(files["int8"]) == weights["int8"] + files["int8"].stat().st_size


@pytest.mark.parametrize("auto", ["SequenceClassification", "TokenClassification"])
def test_a_single_row_is_padded_to_a_shape_that_was_compiled(
    auto: str, student: Path, tmp_path: Path
) -> None:
    """A padded token that is attended to or answered, a row that is longer than the longest shape, a shape beyond the model's positions,
    or a graph that takes all processors."""
    torch.manual_seed(0)
    model = getattr(transformers, f"AutoModelFor{auto}").from_config(CONFIGS["Bert"]).eval()
    file = Intel(["fp16"]).export(student, tmp_path / "out", model, [inputs(1, 9, 0, True)], 64)["fp16"]
    assert list(load(file).fixed) == [16, 24, 32, 48, 64]
    loaded = load(file, 20)
    assert list(loaded.fixed) == [16, 20]
    graphs = [loaded.model, *loaded.fixed.values()]
    assert {graph.get_property("INFERENCE_NUM_THREADS") for graph in graphs} == {1}
    loaded.model, free = None, loaded.model
    for length in (1, 15, 16, 18, 20, 40):
        if length > 20:
            loaded.model = free
        batch = inputs(1, length, 0, True)
        with torch.inference_mode():
            truth = model(**batch).logits.numpy()
        assert ask(loaded, batch).shape == truth.shape
        np.testing.assert_allclose(ask(loaded, batch), truth, atol=0.02)


def test_a_call_leaves_the_inputs_of_the_one_before(student: Path, tmp_path: Path) -> None:
    """share_inputs=True hands over the arrays themselves, and a later call writes into them."""
    model = create(CONFIGS["Bert"])
    one, other = inputs(1, 9, 0, True), inputs(1, 9, 0, True)
    loaded = load(Intel(["fp16"]).export(student, tmp_path / "out", model, [one], 64)["fp16"])
    kept = {name: tensor.clone() for name, tensor in one.items()}
    first = ask(loaded, one).copy()
    assert not np.array_equal(ask(loaded, other), first)
    assert all(torch.equal(kept[name], tensor) for name, tensor in one.items())
    np.testing.assert_array_equal(ask(loaded, one), first)


def test_a_rows_answer_is_its_own(student: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ranges that are fixed by calibration do not depend on the batch, as those of dynamic int8 do."""
    import openvino

    model = create(CONFIGS["Bert"])
    rows = [inputs(1, 12, 0, True) for _ in range(20)]
    file = Intel(["int8"]).export(student, tmp_path / "out", model, rows, 64)["int8"]
    compiled = openvino.Core.compile_model

    def compile_in_fp32(
        core: openvino.Core, graph: object, device: str, options: dict[str, object]
    ) -> object:
        """Without bf16, which processors with AMX compute in: its rounding, which depends on the batch, moves values to the next integer."""
        return compiled(core, graph, device, options | {"INFERENCE_PRECISION_HINT": "f32"})

    monkeypatch.setattr(openvino.Core, "compile_model", compile_in_fp32)
    loaded = load(file)
    alone = np.concatenate([ask(loaded, row) for row in rows])
    together = ask(loaded, {name: torch.cat([row[name] for row in rows]) for name in rows[0]})
    np.testing.assert_allclose(together, alone, atol=0.02 * np.abs(alone).max())


def test_calibration_is_read(student: Path, tmp_path: Path) -> None:
    """Ranges from other rows than those given, or from none."""
    model = create(CONFIGS["Bert"])
    short = [inputs(1, 2, 0, True) for _ in range(5)]
    long = [inputs(1, 60, 0, True) for _ in range(5)]
    said = []
    for number, rows in enumerate((short, long)):
        (out := tmp_path / str(number)).mkdir()
        file = Intel(["int8"]).export(student, out, model, rows, 64)["int8"]
        said.append(file.read_text())
    assert said[0] != said[1]


def test_its_process_imports_no_torch(tokenizer, student: Path, tmp_path: Path) -> None:
    """Torch alone takes more memory than a small student: the artifact's peak would be torch's."""
    model = bert(tokenizer, ["bad", "good"]).eval()
    row = dict(tokenizer("a film", return_tensors="pt"))
    file = Intel(["fp16"]).export(student, tmp_path / "out", model, [row], 64)["fp16"]
    spec = MeasureSpec("openvino", str(file), str(file.parent), 64)
    _, loaded = run_worker(spec, TEXTS, {"method": "throughput", "size": 1}, {"method": "memory"})
    assert {"openvino", "tokenizers"} <= loaded
    assert not loaded & {"torch", "transformers", "datasets", "pydantic", "nncf"}


def test_nothing_is_told_to_its_makers(
    student: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Converter and quantizer report each use by the network, unless they are told not to."""
    import openvino_telemetry.main as telemetry

    for name in ("CI", "TF_BUILD", "JENKINS_URL"):
        monkeypatch.delenv(name, raising=False)
    sent: list[object] = []
    monkeypatch.setattr(telemetry.TelemetrySender, "send", lambda *what: sent.append(what))
    rows = [inputs(1, 9, 0, True)]
    Intel(["int8"]).export(student, tmp_path / "out", create(CONFIGS["Bert"]), rows, 64)
    assert sent == []
    assert "CI" not in os.environ


def test_a_file_whose_weights_are_cut_off_is_told(tokenizer, student: Path, tmp_path: Path) -> None:
    """A number for a model that never ran."""
    model = bert(tokenizer, ["bad", "good"]).eval()
    row = dict(tokenizer("a film", return_tensors="pt"))
    file = Intel(["fp16"]).export(student, tmp_path / "out", model, [row], 64)["fp16"]
    weights = file.with_suffix(".bin")
    weights.write_bytes(weights.read_bytes()[:1000])
    with pytest.raises(ExportError, match=naming("model.fp16.xml", "run by openvino")):
        measure(MeasureSpec("openvino", str(file), str(file.parent), 64), TEXTS)


def test_a_full_disk_is_told_and_leaves_no_half_file(student: Path, tmp_path: Path) -> None:
    """A graph whose weights end early, which is called done."""
    model, row = create(CONFIGS["Bert"]), inputs(1, 9, 0, True)
    with full_disk(5000), pytest.raises(StorageError, match=naming(f"{tmp_path}/")):
        Intel(["fp16"]).export(student, tmp_path / "out", model, [row], 64)
    assert not list((tmp_path / "out").glob("*.bin"))


def test_a_package_that_is_missing_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A traceback of an import says nothing of what to install."""
    hide_packages(monkeypatch, "nncf")
    with pytest.raises(ExportError, match=naming("nncf", "pip install 'kdcli[intel]'")):
        Intel(ALL).export(tmp_path, tmp_path, create(CONFIGS["Bert"]), [inputs(1, 3, 0, True)], 64)


def test_what_cannot_be_converted_is_told(
    student: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A page of the exporter's frames does not say which model it was."""
    model = create(CONFIGS["Bert"])

    def forward(**batch: torch.Tensor) -> None:
        raise RuntimeError("a kernel of my own\nand a page of frames")

    monkeypatch.setattr(model, "forward", forward)
    with pytest.raises(ExportError, match=naming("BertForSequenceClassification", "OpenVINO")):
        Intel(ALL).export(student, tmp_path / "out", model, [inputs(1, 3, 0, True)], 64)
    assert not list((tmp_path / "out").glob("*.xml"))
