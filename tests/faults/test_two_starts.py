"""Several processes that start at once: in one new run directory, one of them wins and the others leave it alone; in one empty cache, all end."""

from __future__ import annotations

import multiprocessing
import os
import re
import signal
import subprocess
import sys
from collections.abc import Sequence
from multiprocessing.synchronize import Barrier
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from support.commands import naming, require_words

from kdcli import rundir
from kdcli.errors import ConfigError

SHORT = ["measure=null", "control=false", "trainer.max_steps=2"]


def begin(options: Sequence[str], folder: Path, **environment: str) -> subprocess.Popen[str]:
    """`kdcli distill` in a process of its own."""
    return subprocess.Popen(
        [sys.executable, "-m", "kdcli", "distill", *options],
        cwd=folder,
        env=os.environ | environment,
        text=True,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
    )


def seed_of(run: Path) -> int:
    """The seed that is recorded in a run directory."""
    found = re.search(r"^seed: (\d+)$", (run / ".hydra" / "config.yaml").read_text(), re.MULTILINE)
    assert found is not None
    return int(found[1])


@pytest.mark.faults
def test_one_of_several_starts_wins(small: list[str], tmp_path: Path) -> None:
    """The config of a process that was refused is recorded as the one that the run was trained with."""
    for number in range(6):
        run = tmp_path / f"run{number}"
        processes = {
            seed: begin([*small, *SHORT, f"hydra.run.dir={run}", f"seed={seed}"], tmp_path)
            for seed in (1, 2, 3)
        }
        errors = {seed: process.communicate(timeout=240)[1] for seed, process in processes.items()}
        winners = [seed for seed, process in processes.items() if process.returncode == 0]
        assert len(winners) == 1, errors
        for seed in errors.keys() - set(winners):
            assert processes[seed].returncode == 2, errors[seed]
            assert errors[seed].count("error:") == 1, errors[seed]
            require_words(errors[seed], str(run))
            assert naming("in use").search(errors[seed]) or naming("another config").search(errors[seed])
        assert seed_of(run) == winners[0]
        assert (run / "report.json").is_file()


def _take(run: Path, seed: int, barrier: Barrier, end: Barrier) -> None:
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
    barrier.wait()
    try:
        rundir.make(run)
        rundir.examine(run, {"seed": seed})
        rundir.take(run, {"seed": seed})
    except ConfigError:
        end.wait()
        os._exit(2)
    rundir.record(run, {"config.yaml": f"seed: {seed}\n", "hydra.yaml": "hydra: {job: {name: kdcli}}\n"})
    end.wait()  # all others were refused
    rundir.release(run, remove=seed % 2 == 0)
    os._exit(0)


@pytest.mark.parametrize(
    "rounds", [pytest.param(5, id="quick"), pytest.param(25, id="all", marks=pytest.mark.faults)]
)
def test_a_directory_has_one_holder(tmp_path: Path, rounds: int) -> None:
    """Between the look at a directory and the lock another process takes it, or removes the file of the lock under a third one."""
    context = multiprocessing.get_context("fork")
    for number in range(rounds):
        # of some rounds the directory of the round before, whose lock was removed
        run = tmp_path / f"run{number % 3}"
        barrier, end = context.Barrier(4), context.Barrier(4)
        processes = [
            context.Process(target=_take, args=(run, seed, barrier, end))
            for seed in range(4 * number, 4 * number + 4)
        ]
        for process in processes:
            process.start()
        for process in processes:
            process.join(60)
        codes = sorted(process.exitcode if process.exitcode is not None else -1 for process in processes)
        assert codes in ([0, 2, 2, 2], [2, 2, 2, 2] if (run / ".hydra").is_dir() else None), codes


@pytest.mark.faults
def test_an_empty_cache_is_filled_by_several_at_once(small: list[str], body: Path, tmp_path: Path) -> None:
    """Two runs that tune the same teacher write into each other's files, or one waits for ever."""
    tuned = [
        f"teacher.path={body}",
        "teacher.trainer.epochs=4",
        "teacher.trainer.learning_rate=0.003",
        "debug=smoke",
    ]
    processes = [
        begin(
            [*small, *tuned, *SHORT, f"hydra.run.dir={tmp_path / name}"],
            tmp_path,
            KDCLI_CACHE_DIR=str(tmp_path / "cache"),
        )
        for name in ("one", "two", "three")
    ]
    for process in processes:
        said = process.communicate(timeout=300)[1]
        assert process.returncode == 0, said
    assert len([path for path in (tmp_path / "cache" / "teachers").iterdir() if path.is_dir()]) == 1
    one, *others = (
        load_file(tmp_path / name / "student" / "model.safetensors") for name in ("one", "two", "three")
    )
    assert all(torch.equal(one[key], other[key]) for other in others for key in one)


def test_a_killed_owner_is_followed(small: list[str], tmp_path: Path) -> None:
    """The lock of a process that was killed keeps everyone out."""
    run = tmp_path / "run"
    run.mkdir()
    code = "import sys, time; from pathlib import Path; from kdcli import rundir; rundir.take(Path(sys.argv[1]), {}); print(1, flush=True); time.sleep(60)"
    holder = subprocess.Popen([sys.executable, "-c", code, str(run)], stdout=subprocess.PIPE)
    assert holder.stdout is not None
    holder.stdout.readline()
    with pytest.raises(ConfigError, match=naming(str(run), "in use")):
        rundir.take(run, {})
    holder.send_signal(signal.SIGKILL)
    holder.communicate()
    assert rundir.take(run, {}) == "new"
    rundir.release(run)


def test_a_refused_run_leaves_no_folder(tmp_path: Path) -> None:
    """The empty folders runs/distill stay in the working directory after exit code 2, or a folder that others use is removed."""
    runs = tmp_path / "runs" / "distill"
    for name in ("one", "two"):
        rundir.make(runs / name)
        assert rundir.take(runs / name, {}) == "new"
    rundir.release(runs / "one", remove=True)
    assert [path.name for path in runs.iterdir()] == ["two"]
    rundir.release(runs / "two", remove=True)
    assert runs.is_dir(), "the one that made it was let go of before"
    rundir.make(tmp_path / "new" / "distill" / "run")
    rundir.take(tmp_path / "new" / "distill" / "run", {})
    rundir.release(tmp_path / "new" / "distill" / "run", remove=True)
    assert not (tmp_path / "new").exists()
