"""The artifact that a user names: found in the folders of exports, and refused if it is not what was exported."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from support.commands import naming

from kdcli.errors import ConfigError, ModelError
from kdcli.evaluation.results import SCHEMA, ExportResult, read_export
from kdcli.exporting.artifacts import hashes_of
from kdcli.exporting.find import find_artifact

ENTRY: dict[str, Any] = {
    "precision": "fp32", "parameters": 5, "bytes": 20, "score": 0.9, "scores": {"accuracy": 0.9}, "latency_ms": {"p50": 1.0, "p95": 2.0},
    "parity": {"score_drop": 0.0, "agreement": 1.0, "within": True}, "retention": 0.97, "budget": {"met": True},
}  # fmt: skip
OLD: dict[str, Any] = {
    "task": "classification", "metric": "accuracy", "hardware": "cpu", "test_examples": 96, "smoke": False, "environment": {},
    "threads": 1, "batch_sizes": [1, 8], "torch": {"score": 0.9}, "artifacts": {"model.onnx": ENTRY}, "recommended": "model.onnx",
}  # fmt: skip
"""What the first version wrote: without hashes, and without the student's."""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder of an export, in a run."""
    folder = tmp_path / "run" / "export" / "cpu"
    folder.mkdir(parents=True)
    (folder / "model.onnx").write_bytes(b"a graph")
    (folder / "config.json").write_text("{}")
    (folder / "export.json").write_text(json.dumps(OLD))
    return folder


def test_an_export_is_read_as_it_was_written(tmp_path: Path) -> None:
    """A key of a later version, or a number, that is another one when a command writes the file again."""
    content = {"schema": SCHEMA, **OLD, "student": "f00d", "failed": {"model.pte": "no kernel"}, "more": [1]}
    ExportResult.of(**content).write(tmp_path / "export.json")
    assert json.loads((tmp_path / "export.json").read_text()) == content
    assert read_export(tmp_path).as_json() == content


def test_an_artifact_is_found_by_its_name(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A path that must be typed from the root, or a file of an older export that is refused for what it lacks."""
    run, file = folder.parents[1], folder / "model.onnx"
    for name in ("model.onnx", "export/cpu/model.onnx", "export/cpu", str(folder)):
        assert find_artifact(name, run) == file, name
    monkeypatch.chdir(folder)
    assert find_artifact("model.onnx", None) == file
    with pytest.raises(ModelError, match=naming("artifact", "other.onnx", "looked for")):
        find_artifact("other.onnx", run)


def test_what_was_not_exported_is_refused(folder: Path) -> None:
    """Figures of another file than the one that was checked."""
    content = json.loads(json.dumps(OLD))
    content["artifacts"]["model.onnx"]["sha256"] = hashes_of(folder / "model.onnx")
    (folder / "export.json").write_text(json.dumps(content))
    assert find_artifact(str(folder), None)
    (folder / "model.onnx").write_bytes(b"another graph")
    with pytest.raises(ModelError, match=naming("model.onnx", "exported", "hardware=cpu")):
        find_artifact(str(folder), None)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"schema": SCHEMA + 1}, ["export.json", f"schema {SCHEMA + 1}", "update kdcli"]),
        ({"recommended": 3}, ["export.json", "damaged", "recommended", "export again"]),
        ({"artifacts": []}, ["export.json", "damaged", "artifacts", "export again"]),
        ({"recommended": None}, ["none", "model.onnx"]),
        ({"recommended": "../../x"}, ["export.json", "recommended"]),
    ],
)
def test_a_record_that_cannot_be_used_is_named(
    change: dict[str, Any], words: list[str], folder: Path
) -> None:
    """A newer file read as far as it can be understood, a traceback, or a path that leads out of the folder."""
    (folder / "export.json").write_text(json.dumps(OLD | change))
    with pytest.raises(ConfigError, match=naming(*words)):
        find_artifact(str(folder), None)
