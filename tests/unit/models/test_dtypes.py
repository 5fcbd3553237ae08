"""The precision of loaded weights: auto chooses what the checkpoint stores, and outputs are fp32 in each."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import datasets
import pytest
import torch
from support.commands import naming
from support.tiny import decoder, exchanges, speller

from kdcli.config.check import check
from kdcli.config.schema import Distill
from kdcli.config.types import Dtype
from kdcli.errors import ConfigError
from kdcli.models import dtypes
from kdcli.models.checkpoint import Checkpoint, fast_bf16, load_model
from kdcli.models.dtypes import TORCH, chosen_dtype, is_supported, stored_dtype, weight_count
from kdcli.pipeline.keys import TeacherInputs
from kdcli.pipeline.sources import with_dtype
from kdcli.signals import HiddenSignal
from kdcli.tasks.causal_lm.task import CausalLM
from kdcli.teachers.local import LocalTeacher

FAST = {"amx_bf16": {"amx_bf16": True}, "avx512_bf16": {"avx512_bf16": True}, "none": {"avx2": True}}
ROWS = datasets.Dataset.from_list(
    [
        {"id": str(index), "prompt": prompt, "completion": answer}
        for index, (prompt, answer) in enumerate(exchanges(6))
    ]
)


@pytest.fixture
def stored(tmp_path: Path, request: pytest.FixtureRequest) -> Path:
    """A decoder whose weights are stored in a dtype."""
    tokenizer = speller()
    decoder(tokenizer).to(TORCH[request.param]).save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    return tmp_path


@pytest.mark.parametrize("stored", ["fp32", "bf16", "fp16"], indirect=True)
def test_the_stored_dtype_is_read_from_the_files(stored: Path, request: pytest.FixtureRequest) -> None:
    """A checkpoint whose config.json names no dtype, or another one, would be loaded in a dtype that it does not have."""
    (stored / "config.json").write_text((stored / "config.json").read_text().replace('"dtype"', '"other"'))
    assert stored_dtype(stored) == request.node.callspec.params["stored"]
    assert weight_count(stored) == sum(weight.numel() for weight in decoder(speller()).parameters())


@pytest.mark.parametrize("stored", ["bf16"], indirect=True)
@pytest.mark.parametrize("features", FAST)
def test_auto_is_bf16_where_the_processor_is_fast_at_it_and_the_checkpoint_stores_it(
    stored: Path, features: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A bf16 teacher takes twice the memory in fp32; on a processor that emulates bf16 it is slower, and rounds without need."""
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: FAST[features])
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    expected = "fp32" if features == "none" else "bf16"
    assert chosen_dtype("auto", stored, "auto", "teacher.dtype") == expected
    assert chosen_dtype("auto", stored, "fp32", "teacher.dtype") == "fp32"
    assert fast_bf16() == (expected == "bf16")


@pytest.mark.parametrize("stored", ["fp32"], indirect=True)
def test_auto_is_fp32_for_weights_in_fp32(stored: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A checkpoint in fp32 would lose bits because the processor happens to be fast at bf16."""
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: FAST["amx_bf16"])
    assert chosen_dtype("auto", stored, "auto", "teacher.dtype") == "fp32"


def test_a_dtype_that_the_device_cannot_compute_is_refused(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """The run would fail in the teacher's first batch, after the data were read and checked."""
    monkeypatch.setattr(dtypes, "is_supported", lambda dtype: dtype == "fp32")
    with pytest.raises(ConfigError, match=naming("teacher.dtype", "fp16", "fp32")):
        chosen_dtype("fp16", tmp_path, "auto", "teacher.dtype")


@pytest.mark.parametrize("stored", ["fp32"], indirect=True)
@pytest.mark.parametrize("dtype", ["fp32", "bf16", "fp16"])
def test_a_teacher_computes_in_its_dtype_and_its_logits_are_fp32(stored: Path, dtype: Dtype) -> None:
    """Losses and scores of half precision would be wrong by a percent; a model loaded in fp32 in spite of its dtype takes twice the memory."""
    assert is_supported(dtype)
    source, task = Checkpoint(stored, "teacher", dtype=dtype), CausalLM()
    model, _ = load_model(source, task)
    assert {weight.dtype for weight in model.parameters()} == {TORCH[dtype]}
    signals = {}
    for name in ("fp32", dtype):
        teacher = LocalTeacher()
        teacher.open(dataclasses.replace(source, dtype=name), task, 64, "auto")
        signal = teacher.signals(list(ROWS))
        assert isinstance(signal, HiddenSignal)
        signals[name] = signal.rows(slice(0, len(signal))).logits
    assert signals[dtype].dtype == torch.float32
    difference = (signals[dtype] - signals["fp32"]).abs().max()
    assert difference <= 16 * torch.finfo(TORCH[dtype]).eps * signals["fp32"].abs().max()
    assert (difference == 0) == (dtype == "fp32")


@pytest.mark.parametrize("stored", ["fp32"], indirect=True)
def test_features_of_a_teacher_in_bf16_are_fp32(stored: Path) -> None:
    """A loss on hidden states would compare bf16 with fp32, and torch refuses to multiply the two."""
    teacher = LocalTeacher()
    teacher.open(Checkpoint(stored, "teacher", dtype="bf16"), CausalLM(), 64, "auto")
    features = teacher.outputs_with_features(list(ROWS), frozenset({"hidden_states"})).features
    assert features is not None
    assert {layer.dtype for layer in features.hidden_states} == {torch.float32}


def config(teacher: Path, dtype: str) -> Distill:
    return check(
        Distill,
        {
            "teacher": {
                "_target_": "kdcli.teachers.local.LocalTeacher",
                "path": str(teacher),
                "dtype": dtype,
            },
            "student": {"_target_": "kdcli.students.pretrained.Pretrained", "path": str(teacher)},
            "dataset": {"task": "causal_lm", "path": "rows.jsonl"},
            "loss": {"soft_label": {"_target_": "kdcli.losses.forward_kl.ForwardKL"}},
            "hardware": {"_target_": "kdcli.exporting.targets.cpu.Cpu"},
        },
    )


@pytest.mark.parametrize("stored", ["fp32"], indirect=True)
def test_dtype_and_quantization_are_in_the_key_of_stored_outputs_unless_it_is_fp32(
    stored: Path, make_run
) -> None:
    """Outputs of a bf16 teacher would be read for those of the same one in fp32; outputs that were stored before would be computed again."""
    inputs = {}
    for dtype in ("fp32", "bf16"):
        cfg = config(stored, dtype)
        source = with_dtype(cfg, Checkpoint(stored, "teacher"))
        assert source.dtype == dtype
        inputs[dtype] = TeacherInputs.of(make_run(cfg, source), [source])
        quantized = dataclasses.replace(source, quantization="nf4")
        inputs[f"{dtype} nf4"] = TeacherInputs.of(make_run(cfg, quantized), [quantized])
    assert inputs["fp32"].arguments == config(stored, "auto").teacher.arguments
    assert len({repr(each) for each in inputs.values()}) == 4


@pytest.fixture
def make_run(tmp_path: Path):
    """Returns a part of a run over the rows."""
    from accelerate import PartialState

    from kdcli.data.dataset import Data
    from kdcli.pipeline.plan import Run
    from kdcli.students.pretrained import Pretrained

    def make(cfg: Distill, source: Checkpoint) -> Run:
        data = Data(dict.fromkeys(("train", "validation", "test"), ROWS), [], "fingerprint")
        state = PartialState(cpu=True)
        return Run(cfg, tmp_path, {}, state, data, CausalLM(), [source], Pretrained(), [], [])

    return make
