"""A checkpoint in bf16 and a program of torch.export: they answer as the student does, whatever the shape of the batch."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from support.commands import naming, require_words
from support.tiny import speaker
from test_intel import CONFIGS, SEGMENTS, SHAPES, ask, create, inputs, student

from kdcli.errors import ExportError, ModelError
from kdcli.exporting.runtimes.exported import ExportedEncoder
from kdcli.exporting.targets.cuda import Cuda
from kdcli.measure.models import measure
from kdcli.measure.spec import MeasureSpec

__all__ = ["student"]


@pytest.mark.parametrize("name", CONFIGS)
def test_any_batch_and_any_length_give_the_logits_of_torch(name: str, student: Path, tmp_path: Path) -> None:
    """A shape, a mask or a position of the sample that is baked into the program is right for that sample alone."""
    model, pad, segments = create(CONFIGS[name]), CONFIGS[name].pad_token_id, name in SEGMENTS
    before = {key: tensor.clone() for key, tensor in model.state_dict().items()}
    files = Cuda().export(student, tmp_path / "out", model, [inputs(1, 7, pad, segments)], 64)
    assert [file.name for file in files.values()] == ["bf16", "model.pt2"]
    assert all(torch.equal(before[key], tensor) for key, tensor in model.state_dict().items())
    with pytest.MonkeyPatch.context() as patch:
        threads: list[int] = []
        patch.setattr(torch, "set_num_threads", threads.append)
        loaded = ExportedEncoder(
            MeasureSpec("exported", str(files["pt2"]), str(tmp_path / "out"), 64, threads=3)
        )
    assert threads == [3]
    for shape in SHAPES:
        batch = inputs(*shape, pad, segments)
        with torch.inference_mode():
            expected = model(**batch).logits.numpy()
        far = np.linalg.norm(ask(loaded, batch) - expected) / np.linalg.norm(expected)
        assert 0 < far < 0.05
    assert {tensor.dtype for tensor in load_file(files["bf16"] / "model.safetensors").values()} == {
        torch.bfloat16
    }


def test_a_program_that_is_cut_off_is_told(student: Path, tmp_path: Path) -> None:
    """A number for a model that never ran."""
    file = Cuda(["pt2"]).export(
        student, tmp_path / "out", create(CONFIGS["Bert"]), [inputs(1, 3, 0, True)], 64
    )["pt2"]
    file.write_bytes(file.read_bytes()[:5000])
    with pytest.raises(ModelError, match=naming("model.pt2", "complete", "torch.export")):
        measure(MeasureSpec("exported", str(file), str(file.parent), 64), [["a film"]])


def test_a_program_is_for_classifiers(tmp_path: Path) -> None:
    """A program without a cache, whose every token costs as much as the whole text."""
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(speaker(tmp_path / "student"))
    refusal = Cuda(["pt2"]).refusal(type(model), model.config)
    require_words(refusal or "", "pt2", "classifiers", "hardware.precisions=[bf16]")
    assert Cuda().refusal(type(model), model.config) is None


def test_what_cannot_be_exported_is_told(
    student: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A page of the exporter's frames does not say which model it was."""
    from transformers import BertForSequenceClassification

    def forward(self: object, **batch: torch.Tensor) -> None:
        raise RuntimeError("a kernel of my own\nand a page of frames")

    model = create(CONFIGS["Bert"])
    monkeypatch.setattr(BertForSequenceClassification, "forward", forward)
    with pytest.raises(ExportError, match=naming("BertForSequenceClassification", "torch.export")):
        Cuda(["pt2"]).export(student, tmp_path / "out", model, [inputs(1, 3, 0, True)], 64)
