"""Points of a sweep that fail, each in a way of its own: the others run, and the table tells of all."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import psutil
import pytest
from faults.harness import require_clean, run_here, run_process
from support.commands import require_words
from support.tiny import wait_for

from kdcli import rundir
from kdcli.launch.sweep import _table

LOSS = '''
import os, signal, sys, time
import torch
from kdcli.losses.forward_kl import ForwardKL


class Mishap(ForwardKL):
    """Fails in a way that is chosen."""

    def __init__(self, how: str = "none"):
        super().__init__()
        self.how = how

    def forward(self, student, teacher, labels):
        if self.how == "raises":
            raise RuntimeError("the tensors do not fit\\nwith a second line")
        if self.how == "exits":
            sys.exit(7)
        if self.how == "memory":
            torch.empty(2**50)
        if self.how == "python-memory":
            raise MemoryError
        if self.how == "terminated":
            os.kill(os.getpid(), signal.SIGTERM)
        if self.how == "stalls":
            time.sleep(3600)
        if self.how == "killed":
            os.kill(os.getpid(), signal.SIGKILL)
        return super().forward(student, teacher, labels)
'''


@pytest.fixture
def options(small: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """A sweep of a loss of the user's own."""
    folder = tmp_path / "own"
    (folder / "loss").mkdir(parents=True)
    (folder / "mishap.py").write_text(LOSS)
    (folder / "loss" / "mishap.yaml").write_text(
        "# Fails\nsoft_label:\n  _target_: mishap.Mishap\n  how: none\n"
    )
    monkeypatch.syspath_prepend(str(folder))
    few = ["measure=null", "control=false", "trainer.max_steps=2", "dataset.limit=64"]
    return [
        "distill",
        "-m",
        *small,
        *few,
        "loss=mishap",
        "--config-dir",
        str(folder),
        "hydra.sweep.dir=sweep",
    ]


def rows(folder: Path) -> list[dict]:
    """The error.json of each point, by its number; an empty one of a point that has none."""
    points = sorted(path for path in (folder / "sweep").iterdir() if path.is_dir())
    files = [path / "error.json" for path in points]
    return [json.loads(file.read_text()) if file.is_file() else {} for file in files]


@pytest.mark.parametrize(
    "ways",
    [
        pytest.param(["raises", "none"], id="quick"),
        pytest.param(
            ["exits", "memory", "python-memory", "none", "raises"], id="all", marks=pytest.mark.faults
        ),
    ],
)
def test_a_point_that_fails_takes_no_other_with_it(
    options: list[str], tmp_path: Path, ways: list[str]
) -> None:
    """A night's sweep that ends at its second point, in a traceback, without a table."""
    words = [*options, f"loss.soft_label.how={','.join(ways)}"]
    outcome = run_here(words, tmp_path)
    require_clean(outcome, codes=[1], own_class=True)
    found = dict(zip(ways, rows(tmp_path), strict=True))
    assert {way: row.get("exit_code", 0) for way, row in found.items()} == {
        way: int(way != "none") for way in ways
    }
    for way, row in found.items():
        assert "micro_batch_size" in row["message"] if "memory" in way else "memory" not in str(row)
    log = tmp_path / "sweep" / str(ways.index("raises")) / "error.log"
    assert str(log) in found["raises"]["message"]
    assert "Traceback" in log.read_text()
    assert outcome.out.count("failed:") == len(ways) - 1
    assert (tmp_path / "sweep" / str(ways.index("none")) / "report.json").is_file()


@pytest.mark.faults
def test_a_sweep_that_is_terminated_shows_its_table(options: list[str], tmp_path: Path) -> None:
    """The results of the points that were done are lost from sight, and a scheduler's signal is taken for a failure of the point."""
    outcome = run_here([*options, "loss.soft_label.how=none,terminated,raises"], tmp_path)
    require_clean(outcome, codes=[143])
    found = rows(tmp_path)
    assert [row.get("exit_code", 0) for row in found] == [0, 143]
    assert "SIGTERM" in found[1]["message"]
    assert "2 runs" in outcome.out


@pytest.mark.faults
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_of_the_sweep_ends_its_point_with_a_checkpoint(
    options: list[str], tmp_path: Path, number: signal.Signals
) -> None:
    """A point in a process of its own is not told, and trains on or loses what it has learnt."""
    words = [word for word in options if not word.startswith(("trainer.max_steps", "trainer.epochs"))]
    line = [
        sys.executable,
        "-m",
        "kdcli",
        *words,
        "seed=1,2",
        "trainer.max_steps=100000",
        "trainer.eval_steps=50000",
    ]
    process = subprocess.Popen(
        line, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    wait_for(lambda: (tmp_path / "sweep" / "0" / "metrics.jsonl").is_file(), process)
    os.killpg(process.pid, number) if number == signal.SIGINT else process.send_signal(number)
    out, err = process.communicate(timeout=120)
    assert process.returncode == 128 + number, err
    assert rows(tmp_path)[0]["exit_code"] == 128 + number
    assert "1 run" in out
    assert list((tmp_path / "sweep" / "0" / "stages").glob("*/checkpoint-*/SHA256SUMS")), err
    assert not [each for each in psutil.process_iter(["cwd"]) if each.info["cwd"] == str(tmp_path)]


@pytest.mark.faults
@pytest.mark.parametrize("launcher", [[], ["hydra/launcher=joblib", "hydra.launcher.n_jobs=2"]])
def test_a_point_that_is_killed_takes_no_other_with_it(
    options: list[str], tmp_path: Path, launcher: list[str]
) -> None:
    """The system kills the largest process where memory runs out, and the sweep ends without a table."""
    if launcher:
        pytest.importorskip("hydra_plugins.hydra_joblib_launcher")
    words = [*launcher, "loss.soft_label.how=none,killed,raises"]
    outcome = run_process([*options, *words, "trainer.epochs=1"], tmp_path, timeout=400)
    require_clean(replace(outcome, seconds=0), codes=[1], own_class=True)  # of several processes
    found = rows(tmp_path)
    assert [row.get("exit_code", 0) for row in found] == [0, 1, 1], outcome.err
    require_words(found[1]["message"], "SIGKILL", "memory")
    assert (tmp_path / "sweep" / "0" / "report.json").is_file()
    assert outcome.out.count("failed:") == 2


@pytest.mark.faults
def test_a_point_that_stalls_ends_with_the_timeout_of_the_launcher(
    options: list[str], tmp_path: Path
) -> None:
    """The launcher's exception is taken for a defect of kdcli, and the process that stalls runs on for ever."""
    pytest.importorskip("hydra_plugins.hydra_joblib_launcher")
    words = ["hydra/launcher=joblib", "hydra.launcher.n_jobs=2", "hydra.launcher.timeout=100"]
    outcome = run_process([*options, *words, "loss.soft_label.how=none,stalls"], tmp_path, timeout=400)
    require_clean(replace(outcome, seconds=0), codes=[1])
    require_words(outcome.err, "hydra.launcher.timeout", "sweep/1", "hydra.sweep.dir=")
    assert (tmp_path / "sweep" / "0" / "report.json").is_file()
    assert outcome.out.count("failed:") == 1
    assert not [each for each in psutil.process_iter(["cwd"]) if each.info["cwd"] == str(tmp_path)]


def test_an_unexpected_exception_is_one_message(options: list[str], tmp_path: Path) -> None:
    """A user who meets a traceback does not know whether it is the input, the disk or the program."""
    options.remove("-m")
    options.remove("hydra.sweep.dir=sweep")
    words = [*options, "loss.soft_label.how=raises", "hydra.run.dir=run"]
    outcome = run_here(words, tmp_path)
    require_clean(outcome, codes=[1], own_class=True)
    assert "RuntimeError: the tensors do not fit" in outcome.err
    assert str(tmp_path / "run" / "error.log") in outcome.err
    os.environ["KDCLI_DEBUG"] = "1"
    try:
        shown = run_here(words, tmp_path)
    finally:
        del os.environ["KDCLI_DEBUG"]
    assert shown.code == 1
    assert "Traceback (most recent call last)" in shown.err


def test_words_with_interpolations_are_shown_as_they_were_typed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The table resolves `trainer.logging_steps=${trainer.batch_size}` in the list of words, where there is no such key, and ends in its error."""
    job = tmp_path / "0"
    (job / ".hydra").mkdir(parents=True)
    (job / ".hydra" / "overrides.yaml").write_text("- trainer.logging_steps=${trainer.batch_size}\n")
    (job / rundir.ERROR).write_text('{"exit_code": 2, "message": "no data", "overrides": "-"}')
    assert _table("distill", tmp_path) == 2
    (job / rundir.ERROR).unlink()
    assert _table("distill", tmp_path) == 1
    assert "trainer.logging_steps=${trainer.batch_size}" in capsys.readouterr().out
