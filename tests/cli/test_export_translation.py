"""`kdcli export hardware=cpu` and `kdcli eval artifact=…` of a translator as users type them, on a run that is made once."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from support.commands import require_one_message, require_words
from support.tiny import pairs, run_snippet, translator, write_pairs

from kdcli.evaluation.results import finished_report
from kdcli.exporting.targets import cpu
from kdcli.exporting.writers import seq2seq as translation
from kdcli.launch.inference import load
from kdcli.launch.run import launch

QUICK = [
    "measure.latency_runs=4",
    "measure.throughput_seconds=0.05",
    "measure.max_texts=8",
    "measure.load_seconds=0.05",
]
NAMES = ["onnx", "ctranslate2"]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run whose student has learnt most of its task before."""
    folder = tmp_path_factory.mktemp("translation")
    teacher = translator(folder / "teacher")
    file = write_pairs(folder / "pairs.csv", pairs(240, longest=4))
    options = [
        "teacher=local",
        f"teacher.path={teacher}",
        "teacher.tune=false",
        "teacher.trainer.precision=fp32",
        "student=local",
        f"student.path={teacher}",
        "dataset=csv",
        f"dataset.path={file}",
        "dataset.source=en",
        "dataset.target=es",
        "dataset.validation_size=20",
        "dataset.test_size=40",
        "dataset.max_length=32",
        "loss.hard_label.weight=1",
        "trainer.precision=fp32",
        "trainer.batch_size=16",
        "trainer.max_steps=3",
        "trainer.learning_rate=1e-4",
        "smoke=true",
        "control=false",
        "measure=null",
    ]
    assert launch("distill", [*options, f"hydra.run.dir={folder / 'run'}"]) == 0
    return folder / "run"


LOOSE = ["hardware.tolerances.ctranslate2.score_drop=5"]
"""A model of 64,000 weights in int8 loses more with the kernels of some processors than with those of others."""


@pytest.fixture(scope="module")
def exported(run: Path) -> Path:
    assert launch("export", [f"run={run}", "hardware=cpu", *LOOSE, *QUICK]) == 0
    return run / "export" / "cpu"


def result(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / "export.json").read_text())
    return found


def texts(file: Path) -> list[dict[str, str]]:
    return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]


def test_export_is_run_and_compared(run: Path, exported: Path) -> None:
    """A folder that its runtime never ran, figures of something else than it, or a score of the student's own texts."""
    assert not finished_report(run).model_extra, "docs/report.schema.json has all entries"
    found = result(exported)
    assert (found["task"], found["metric"], list(found["artifacts"])) == ("seq2seq", "bleu", NAMES)
    student = texts(run / "predictions" / "test.student.jsonl")
    for name, entry in found["artifacts"].items():
        weights = [file for file in (exported / name).iterdir() if file.suffix in (".onnx", ".data", ".bin")]
        assert entry["bytes"] == sum(file.stat().st_size for file in weights) > 0
        assert 0 < entry["latency_ms"]["p50"] <= entry["latency_ms"]["p95"]
        assert entry["throughput_per_s"] > 0
        assert 1e6 < entry["peak_memory_bytes"] < found["torch"]["peak_memory_bytes"]
        said = texts(exported / "predictions" / f"test.{name}.jsonl")
        assert [row["source"] for row in said] == [row["source"] for row in student]
        same = [one["text"] == other["text"] for one, other in zip(said, student, strict=True)]
        assert entry["parity"]["same_tokens"] == 1
        assert entry["parity"]["same_texts"] == pytest.approx(sum(same) / len(same))
        assert entry["scores"]["bleu"] == entry["score"] > 20
        assert entry["scores"]["chrf"] > 20
    onnx = found["artifacts"]["onnx"]["parity"]
    assert (onnx["agreement"], onnx["same_texts"], onnx["score_drop"]) == (1, 1, 0)
    assert found["recommended"] == "ctranslate2"


@pytest.mark.parametrize("name", NAMES)
def test_what_runs_the_folder_without_kdcli_writes_what_was_measured(name: str, exported: Path) -> None:
    """Lines that do not run, or that write otherwise than the folder that was checked."""
    said = texts(exported / "predictions" / f"test.{name}.jsonl")
    sources = [row["source"] for row in said[:2]]
    assert run_snippet(exported / name / f"run_{name}.py", *sources) == [row["text"] for row in said[:2]]
    assert result(exported)["artifacts"][name]["load"]["rates"][0]["latency_ms"]["p50"] > 0


def test_predict_translates_as_was_measured(run: Path, exported: Path) -> None:
    """A translation by the student, or by a folder in its own runtime, that is none of those that were scored."""
    for path, file in [(run, run / "predictions" / "test.student.jsonl")] + [
        (exported / name, exported / "predictions" / f"test.{name}.jsonl") for name in NAMES
    ]:
        rows = texts(file)[:3]
        answers = load(str(path)).predict([row["source"] for row in rows])
        assert answers == [{"source": row["source"], "target": row["text"]} for row in rows]


@pytest.mark.long
def test_a_checkpoint_for_servers(run: Path) -> None:
    """A folder whose texts nobody compared, or whose lines write others."""
    assert launch("export", [f"run={run}", "hardware=cuda", *QUICK]) == 0
    folder = run / "export" / "cuda"
    assert list(result(folder)["artifacts"]) == ["bf16"]
    rows = texts(folder / "predictions" / "test.bf16.jsonl")[:2]
    sources = [row["source"] for row in rows]
    assert run_snippet(folder / "bf16" / "run_torch.py", *sources) == [row["text"] for row in rows]


@pytest.mark.parametrize("name", NAMES)
def test_eval_scores_a_folder_against_the_runs_test_split(
    name: str, run: Path, exported: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A translator on a device must be scored as the export scored it, and timed beside the student that it was made of."""
    options = [f"run={run}", f"artifact={name}", *QUICK, f"hydra.run.dir={tmp_path / 'e'}"]
    assert launch("eval", options) == 0
    scored = json.loads((tmp_path / "e" / "eval.json").read_text())
    entry, expected = scored["models"][name], result(exported)["artifacts"][name]
    assert scored["examples"] == 40
    assert entry["bytes"] == expected["bytes"]
    assert min(entry["times_faster"], entry["speedup"]) > 0
    require_words(capsys.readouterr().out, name, "interleaved with the student")
    assert {key: entry["scores"][key] for key in ("bleu", "chrf")} == {
        key: expected["scores"][key] for key in ("bleu", "chrf")
    }


@pytest.mark.long
def test_a_wrong_start_of_text_fails_the_export(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An exporter that changes the text must fail a pipeline, not warn it: the files are there, and none is recommended."""
    own = shutil.copytree(run, tmp_path / "run")
    monkeypatch.setattr(translation, "start_of", lambda model: 40)
    assert launch("export", [f"run={own}", "hardware=cpu", *QUICK]) == 3
    found = result(own / "export" / "cpu")
    assert not any(entry["parity"]["within"] for entry in found["artifacts"].values())
    assert found["recommended"] is None
    assert (own / "export" / "cpu" / "onnx").is_dir()


@pytest.mark.long
def test_one_spoiled_artifact_fails_alone(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A bias that was lost on the way moves only some words: the shares and the score must tell, and the other folder stands."""
    write = cpu.write_ctranslate2

    def spoiled(model: Any, *others: Any) -> None:
        kept = model.final_logits_bias.clone()
        model.final_logits_bias += torch.linspace(0, 4, kept.shape[1])
        write(model, *others)
        model.final_logits_bias.copy_(kept)

    own = shutil.copytree(run, tmp_path / "run")
    monkeypatch.setattr(cpu, "write_ctranslate2", spoiled)
    assert launch("export", [f"run={own}", "hardware=cpu", *QUICK]) == 3
    found = result(own / "export" / "cpu")
    within = {name: entry["parity"]["within"] for name, entry in found["artifacts"].items()}
    assert within == {"onnx": True, "ctranslate2": False}
    assert found["recommended"] == "onnx"
    require_words(capsys.readouterr().out, "ctranslate2: out of tolerance")
    loose = ["hardware.precisions=[int8]", "hardware.tolerances.ctranslate2.agreement=0"]
    last = "hardware.tolerances.ctranslate2.score_drop=100"
    assert launch("export", [f"run={own}", "hardware=cpu", *QUICK, *loose, last]) == 0
    assert list(result(own / "export" / "cpu")["artifacts"]) == ["ctranslate2"]


def test_what_is_not_for_a_translator_is_refused_in_one_line(
    run: Path, exported: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A language model's exporter that fails somewhere within, or a folder or file that no runtime can read."""
    assert launch("export", [f"run={run}", "hardware=laptop"]) == 2
    require_words(require_one_message(capsys.readouterr().err), "hardware=laptop", "hardware=cpu")
    (tmp_path / "model.onnx").write_bytes(b"")
    (tmp_path / "folder").mkdir()
    into = f"hydra.run.dir={tmp_path / 'e'}"
    assert launch("eval", [f"run={run}", f"artifact={tmp_path / 'folder'}", into]) != 0
    message = require_one_message(capsys.readouterr().err)
    require_words(message, str(tmp_path / "folder"), "without a model")
    (exported.parent / "one").mkdir()
    for file in (exported / "onnx").glob("*.json"):
        (exported.parent / "one" / file.name).write_bytes(file.read_bytes())
    (lone := exported.parent / "one" / "model.onnx").write_bytes(b"")
    assert launch("eval", [f"run={run}", f"artifact={lone}", into]) == 2
    message = require_one_message(capsys.readouterr().err)
    require_words(message, "model.onnx", "folder", "model.bin", "encoder_model.onnx", "model.safetensors")
