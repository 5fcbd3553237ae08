"""Core ML packages: made here and run elsewhere, so what can be held to something is what they say of themselves."""

from __future__ import annotations

import contextlib
import io
from pathlib import Path
from typing import Any

import pytest
import torch
from support.commands import naming, some
from support.exporting import hide_packages
from test_intel import CONFIGS, SEGMENTS, create, inputs, student

from kdcli.errors import ExportError
from kdcli.exporting.artifacts import runs_here
from kdcli.exporting.runtimes import runtime_of
from kdcli.exporting.targets.apple import Apple

__all__ = ["student"]
ALL = ["fp16", "int8"]


def spec(file: Path) -> Any:
    with contextlib.redirect_stderr(io.StringIO()):
        import coremltools

        return coremltools.models.MLModel(str(file), skip_model_load=True).get_spec()


@pytest.mark.parametrize("name", some(CONFIGS, "Bert"))
def test_packages_have_the_names_and_lengths_that_an_app_gives(
    name: str, student: Path, tmp_path: Path
) -> None:
    """An app that looks for input_ids finds inputs_0, or one length alone, or a model as large as the one that it came from."""
    model, pad, segments = create(CONFIGS[name]), CONFIGS[name].pad_token_id, name in SEGMENTS
    rows = [inputs(1, 7, pad, segments)]
    with torch.inference_mode():
        before = model(**rows[0]).logits
    files = Apple(ALL).export(student, tmp_path / "out", model, rows, 64)
    with torch.inference_mode():
        torch.testing.assert_close(model(**rows[0]).logits, before)
    assert [file.name for file in files.values()] == ["model.fp16.mlpackage", "model.int8.mlpackage"]
    sizes = {}
    for precision, file in files.items():
        told = spec(file).description
        assert {entry.name for entry in told.input} == set(rows[0])
        (length,) = {entry.type.multiArrayType.shapeRange.sizeRanges[1].upperBound for entry in told.input}
        assert length == 64
        assert [entry.name for entry in told.output] == ["logits"]
        assert runtime_of(file) == "coreml"
        assert not runs_here(file)
        sizes[precision] = (file / "Data" / "com.apple.CoreML" / "weights" / "weight.bin").stat().st_size
    whole = sum(parameter.nbytes for parameter in model.parameters())
    assert sizes["int8"] < 0.75 * sizes["fp16"] < 0.5 * whole


def test_a_package_that_is_missing_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A traceback of an import says nothing of what to install."""
    hide_packages(monkeypatch, "coremltools")
    with pytest.raises(ExportError, match=naming("coremltools", "pip install 'kdcli[apple]'")):
        Apple(ALL).export(tmp_path, tmp_path, create(CONFIGS["Bert"]), [inputs(1, 3, 0, True)], 64)


def test_what_cannot_be_converted_is_told(
    student: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A page of the converter's frames does not say which model it was."""
    from transformers import BertForSequenceClassification

    def forward(self: object, **batch: torch.Tensor) -> None:
        raise RuntimeError("a kernel of my own\nand a page of frames")

    model = create(CONFIGS["Bert"])
    monkeypatch.setattr(BertForSequenceClassification, "forward", forward)
    with pytest.raises(ExportError, match=naming("BertForSequenceClassification", "Core ML")):
        Apple(ALL).export(student, tmp_path / "out", model, [inputs(1, 3, 0, True)], 64)
    assert not list((tmp_path / "out").glob("*.mlpackage"))
