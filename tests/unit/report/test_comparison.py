"""kdcli compare: what it says of several runs, and what it must not say."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
from support.commands import require_words
from support.runs import make_result, make_run
from typer.testing import CliRunner

from kdcli.cli import app
from kdcli.evaluation.compare import resampled, row_scores
from kdcli.evaluation.statistics import paired_gain
from kdcli.report.comparison import compare
from kdcli.tasks.base import Predictions
from kdcli.tasks.classification.task import Classification

GOOD, BAD = [1] * 90 + [0] * 10, [1] * 75 + [0] * 25


def kdcli(*words: object, code: int = 0) -> str:
    """What a command prints."""
    result = CliRunner().invoke(app, [str(word) for word in words])
    assert result.exit_code == code, result.output
    return result.output


def test_the_same_rows_are_compared_in_pairs(tmp_path: Path) -> None:
    """Two runs on the same rows get the wide interval of two samples, or that of the wrong sign."""
    first = make_run(tmp_path / "first", BAD)
    second = make_run(tmp_path / "second", GOOD, keys={"student": {"layers": 4}, "seed": 1})
    compared = json.loads(kdcli("compare", first, second, "--json"))
    run = compared["runs"][1]
    gain = paired_gain(np.asarray(GOOD, np.float64) - np.asarray(BAD, np.float64))
    assert run["paired"] is True
    assert run["difference"] == pytest.approx(0.15)
    assert run["difference_ci95"] == pytest.approx(gain.interval)
    assert compared["keys"] == ["seed", "student.layers"]
    assert run["keys"] == {"seed": 1, "student.layers": 4}
    assert compared["notes"] == []
    assert compared["runs"][0]["difference"] is None
    table = kdcli("compare", first, second)
    assert max(map(len, table.splitlines()[:-1])) <= 100, table  # the last line is a command with paths
    require_words(table, "seed=1", "student.layers=4", "+15.0", "against the first")
    require_words(table, f"next: kdcli compare {first} {second} --out compare.html")
    alone = kdcli("compare", first)
    require_words(alone, "second run", f"next: kdcli compare {first} OTHER")
    assert "against" not in alone


def test_other_rows_are_not_compared(tmp_path: Path) -> None:
    """A difference of scores on other test rows passes for one of the models."""
    runs = [make_run(tmp_path / "a", GOOD), make_run(tmp_path / "b", BAD, rows="others")]
    compared = compare(runs)
    assert compared["runs"][1]["difference"] is None
    assert compared["runs"][1]["paired"] is None
    assert any("other test rows" in note and note.endswith(": b") for note in compared["notes"])


def test_a_run_without_the_scores_of_rows_says_so(tmp_path: Path) -> None:
    """The interval of a run of an earlier version, which stored no scores of rows, passes for a paired one."""
    runs = [make_run(tmp_path / "a", BAD), make_run(tmp_path / "b", score=0.9, examples=100)]
    compared = compare(runs)
    run = compared["runs"][1]
    assert run["paired"] is False
    low, high = run["difference_ci95"]
    assert low < 0.15 < high
    assert any("not stored" in note for note in compared["notes"])
    assert "not paired" in kdcli("compare", *runs)


def test_a_page_is_one_file_and_never_overwritten_unasked(tmp_path: Path) -> None:
    """A page that somebody keeps is lost, or one that needs the network is shared."""
    runs = [make_run(tmp_path / "<b>", BAD), make_run(tmp_path / "c", GOOD, keys={"seed": 1})]
    page = tmp_path / "compare.html"
    kdcli("compare", *runs, "--out", page)
    html = page.read_text()
    assert not re.search(r"(src|href)=|https?:", html)
    assert "&lt;b&gt;" in html
    assert re.findall(r"<td>([01]|true|false)</td>", html) == ["0", "1"]
    assert "<b></th>" not in html
    page.write_text("mine")
    require_words(kdcli("compare", *runs, "--out", page, code=2), "--overwrite", "compare.html")
    assert page.read_text() == "mine"
    kdcli("compare", *runs, "--out", page, "--overwrite")
    assert page.read_text() == html


def test_the_cost_of_each_run_is_compared(tmp_path: Path) -> None:
    """Two students have the same score, and which of them is smaller or faster is not shown; or a screen reader reads a plot as nothing."""
    first = make_run(tmp_path / "first", BAD)
    second = make_run(tmp_path / "second", GOOD)
    report = json.loads((second / "report.json").read_text())
    report["models"]["student"] |= {"bytes": 4_000_000, "latency_ms": {"p50": 0.4, "p95": 0.6}}
    (second / "report.json").write_text(json.dumps(report))
    runs = json.loads(kdcli("compare", first, second, "--json"))["runs"]
    assert [(run["bytes"], run["latency_ms"]["p50"]) for run in runs] == [(16_000_000, 1.5), (4_000_000, 0.4)]
    page = tmp_path / "compare.html"
    table = kdcli("compare", first, second, "--out", page)
    costs = (("16.0 MB", "1.5 ms"), ("4.0 MB", "0.40 ms"))
    lines = [next(line for line in table.splitlines() if size in line) for size, _ in costs]
    assert ["first" in lines[0], "second" in lines[1]] == [True, True]
    assert all(latency in line for line, (_, latency) in zip(lines, costs, strict=True))
    html = page.read_text().replace("\N{NO-BREAK SPACE}", " ")
    head, *rows = re.findall(r"<tr>(.*?)</tr>", html, flags=re.DOTALL)
    assert {"size", "p50"} <= set(re.findall(r'<th scope="col">(.*?)</th>', head))
    for row, cost in zip(rows, costs, strict=False):
        assert set(cost) <= set(re.findall(r"<td>(.*?)</td>", row)), row
    regions = re.findall(r'role="region" aria-label="([^"]+)"', html)
    assert len(regions) == html.count('role="region"') == 1
    plots = re.findall(r'role="img" aria-label="([^"]+)"', html)
    assert len(plots) == html.count('role="img"') == 1
    require_words(plots[0], "second", "+15.0")


def test_a_sweep_is_its_runs_and_a_failed_one_says_why(tmp_path: Path) -> None:
    """A failed point of a sweep takes the comparison of the others with it."""
    sweep = tmp_path / "sweep"
    make_run(sweep / "0", BAD)
    make_run(sweep / "1", GOOD)
    (sweep / "1" / "report.json").unlink()
    (sweep / "1" / "error.json").write_text(json.dumps({"exit_code": 1, "message": "no memory"}))
    (sweep / "multirun.yaml").write_text("hydra:\n  job:\n    name: kdcli\n")
    out = kdcli("compare", sweep, "--out", tmp_path / "page.html")
    require_words(out, "no memory")
    assert "no memory" in (tmp_path / "page.html").read_text()


def write_export(folder: Path, run: Path, hardware: str = "cpu") -> None:
    """The export.json of a run's student."""
    model = json.loads((run / "report.json").read_text())["models"]["student"] | {
        "precision": "int8", "parity": None, "budget": {"met": True},
    }  # fmt: skip
    result: dict[str, Any] = {
        "schema": 1, "task": "classification", "metric": "accuracy", "hardware": hardware, "test_examples": 100, "smoke": False,
        "environment": {}, "threads": 1, "batch_sizes": [1], "torch": model, "artifacts": {"model.onnx": model}, "recommended": None,
    }  # fmt: skip
    (folder / "export.json").write_text(json.dumps(result))


def test_the_files_of_an_export_stand_beside_their_run(tmp_path: Path) -> None:
    """An exported file cannot be compared with the run that it comes from."""
    run = make_run(tmp_path / "run", GOOD)
    folder = run / "export" / "cpu"
    folder.mkdir(parents=True)
    write_export(folder, run)
    compared = compare([run, folder])
    assert [entry["name"] for entry in compared["runs"]] == ["run", "run/export/cpu: model.onnx"]
    assert compared["runs"][1]["paired"] is False
    assert compared["runs"][1]["keys"] == {"hardware": "cpu", "precision": "int8"}


def test_a_folder_that_is_no_run_is_refused(tmp_path: Path) -> None:
    """A wrong path ends with a traceback, or is left out without a word."""
    require_words(kdcli("compare", tmp_path, code=2), str(tmp_path))
    run = make_run(tmp_path / "run", GOOD)
    (run / "predictions" / "scores.safetensors").write_bytes(b"torn")
    require_words(kdcli("compare", run, code=2), "scores.safetensors", "damaged")


def test_shares_of_a_metric_that_is_no_mean() -> None:
    """Macro F1 of two runs is compared by shares whose mean is another number, or whose spread is."""
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 4, 300)
    task = Classification(["a", "b", "c", "d"]).choose_metric("macro_f1")
    ids = datasets.Dataset.from_dict({"id": [str(row) for row in range(300)]})

    def predicted(share: float) -> Predictions:
        wrong = np.where(rng.random(300) < share, rng.integers(0, 4, 300), labels)
        return Predictions({"logits": np.eye(4)[wrong]}, labels, np.ones(300, np.int64))

    models = {"student": predicted(0.3), "control": predicted(0.5)}
    stored = row_scores(task, ids, models, "student")
    for name, predictions in models.items():
        assert stored.values[name].mean() == pytest.approx(task.scores(predictions)["macro_f1"])
    gain = stored.gain("student", stored, "control")
    scores = resampled(task, models["student"], models["control"])
    low, high = np.percentile(scores[0] - scores[1], [2.5, 97.5])
    assert gain.interval == pytest.approx((low, high), abs=0.02)


def test_a_sweep_of_exports_is_compared_by_its_files(tmp_path: Path) -> None:
    """Each job passes for a run that did not finish, since its directory holds a config and no report."""
    run = make_run(tmp_path / "run")
    for hardware in ("cpu", "intel"):
        write_export(make_result(tmp_path / "sweep" / hardware, "export", run), run, hardware)
    (tmp_path / "sweep" / "multirun.yaml").write_text("hydra:\n  job:\n    name: kdcli\n")
    for paths in ([tmp_path / "sweep"], [tmp_path / "sweep" / "cpu", tmp_path / "sweep" / "intel"]):
        runs = compare(paths)["runs"]
        assert [(each["kind"], each["keys"]["hardware"]) for each in runs] == [
            ("export", "cpu"),
            ("export", "intel"),
        ]
