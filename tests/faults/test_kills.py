"""Kills at any moment: what follows goes on to the same bits, and nothing temporary stays."""

from __future__ import annotations

import contextlib
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import pytest
from faults.harness import SEEDS, Batch, batches
from faults.zygote import Zygote
from support.commands import naming
from support.tiny import language_model_options, speaker, talk
from transformers import AutoTokenizer, BertForMaskedLM, BertModel

KINDS = ["classifier", "rollouts of the teacher", "rollouts of the student", "stages", "augmented"]
FEW = [
    "dataset.limit=48",
    "dataset.validation_size=16",
    "dataset.test_size=16",
    "measure=null",
    "trainer.batch_size=8",
    "trainer.eval_steps=2",
    "trainer.logging_steps=1",
]
MARK = "KDCLI_TEST_OF_KILLS"
"""A variable of the environment that a run and all processes that it starts inherit."""

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="forks, /proc and memfd")


@pytest.fixture(scope="module")
def zygote() -> Iterator[Zygote]:
    with Zygote() as started:
        yield started


@dataclass
class Case:
    """A run, what it ends with if nothing happens to it, and how many crash points it passes."""

    options: list[str]
    state: dict[str, Any]
    points: int
    seconds: float


Cases = Callable[[str], Case]


@pytest.fixture(scope="module")
def cases(zygote: Zygote, body: Path, small: list[str], tmp_path_factory: pytest.TempPathFactory) -> Cases:
    """The cases, each made when it is first asked for."""
    made: dict[str, Case] = {}
    speaks: list[Path] = []

    def options(kind: str) -> list[str]:
        folder = tmp_path_factory.mktemp("data")
        if kind.startswith("rollouts"):
            speaks[:] = speaks or [speaker(folder / "teacher")]
            by = kind.rpartition(" ")[2]
            ahead = ["rollout.buffer=3"] if by == "student" else []
            return [
                *language_model_options(speaks[0]), *talk(folder, "pairs", 80), *FEW, f"rollout={by}", "rollout.max_new_tokens=24",
                "dataset.chat=true", "rollout.sampling_temperature=0.5", "teacher.top_k=8", "trainer.max_steps=4", *ahead,
            ]  # fmt: skip
        own = [*small, *FEW, "trainer.max_steps=4", f"teacher.path={body}"]
        own += ["teacher.trainer.max_steps=4", "teacher.trainer.eval_steps=2", "teacher.trainer.batch_size=8"]
        if kind == "augmented":
            fills = BertForMaskedLM(BertModel.from_pretrained(body).config)
            fills.save_pretrained(folder / "fills")
            AutoTokenizer.from_pretrained(body).save_pretrained(folder / "fills")
            own += [f"+dataset.augment.path={folder / 'fills'}", "+dataset.augment.copies=2"]
        if kind == "stages":
            own += [
                "+student@stages.assistant.student=tiny",
                "stages.assistant.student.hidden_size=24",
                "stages.assistant.student.num_hidden_layers=1",
                "stages.assistant.student.intermediate_size=48",
                "+stages.answers.teacher=assistant",
            ]
        return own

    def case(kind: str) -> Case:
        if kind not in made:
            words, folder = options(kind), tmp_path_factory.mktemp("whole")
            began = time.monotonic()
            places = folder / "run", folder / "cache"
            process = zygote.start(command(words), folder, below=places, **environment(folder))
            assert process.wait() == 0, process.said
            made[kind] = Case(words, state(folder), process.points, time.monotonic() - began)
            assert made[kind].points > 100
        return made[kind]

    return case


def command(options: list[str]) -> list[str]:
    return ["distill", *options, "hydra.run.dir=run"]


def environment(folder: Path) -> dict[str, str]:
    """A cache and a folder for temporary files of the case's own."""
    (folder / "tmp").mkdir(exist_ok=True)
    return {"KDCLI_CACHE_DIR": str(folder / "cache"), "TMPDIR": str(folder / "tmp"), MARK: folder.name}


def state(folder: Path) -> dict[str, Any]:
    """What a finished run has come to: its scores, its stages, the bits of its models, and the names of all files of run and cache."""
    run, cache = folder / "run", folder / "cache"
    report = json.loads((run / "report.json").read_text())
    names = {str(path.relative_to(folder)) for path in [*run.rglob("*"), *cache.rglob("*")]}
    return {
        "models": {name: [entry["score"], entry["scores"]] for name, entry in report["models"].items()},
        "verdict": report["verdict"],
        "validation": report["validation_score"],
        "stages": [(stage["name"], stage["steps"]) for stage in report["stages"]],
        "weights": {
            str(path.relative_to(run)): path.read_bytes() for path in sorted(run.rglob("*.safetensors"))
        },
        "files": {name for name in names if not name.endswith(".lock")},
        "temporary": sorted(path.name for path in (folder / "tmp").iterdir()),
    }


def alive(folder: Path) -> list[psutil.Process]:
    """The processes that belong to a case."""
    found = []
    for process in psutil.process_iter():
        try:
            if process.environ().get(MARK) == folder.name and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
        except (psutil.NoSuchProcess, psutil.AccessDenied):
            continue
    return found


def require_no_orphans(folder: Path) -> None:
    """All processes that a run started end within two seconds of it."""
    until = time.monotonic() + 2
    while (left := alive(folder)) and time.monotonic() < until:
        time.sleep(0.02)
    assert not left, [process.cmdline() for process in left]


def require_same(folder: Path, case: Case, why: str) -> None:
    """A run that was killed and continued has come to what the other one has."""
    found = state(folder)
    for key, expected in case.state.items():
        if isinstance(expected, set):
            assert found[key] == expected, f"{why}: {key}: {sorted(found[key] ^ expected)}"
        else:
            assert found[key] == expected, f"{why}: {key}: {'differ' if key == 'weights' else found[key]}"


def struck(zygote: Zygote, case: Case, folder: Path, chance: random.Random) -> str:
    """Kill a run once or twice, at crash points or at random moments; returns how."""
    told = []
    for _ in range(chance.choice([1, 1, 1, 2])):
        places, own = (folder / "run", folder / "cache"), environment(folder)
        if chance.random() < 0.7:
            at = chance.randint(1, case.points)
            told.append(f"crash point {at} of {case.points}")
            process = zygote.start(command(case.options), folder, at, places, **own)
        else:
            after = chance.uniform(0, case.seconds)
            told.append(f"after {after:.3f} s")
            process = zygote.start(command(case.options), folder, 10**9, places, **own)
            time.sleep(after)
            process.kill(signal.SIGKILL)
        code = process.wait()
        assert code in (0, -signal.SIGKILL), f"{told}: exit code {code}: {process.said}"
        require_no_orphans(folder)
    return ", then ".join(told)


@pytest.mark.parametrize("batch", batches(90, quick=0, size=15))
def test_a_killed_run_goes_on_to_the_same_bits(
    batch: Batch, cases: Cases, zygote: Zygote, tmp_path: Path
) -> None:
    """A kill between two files, or in the middle of one, whose rest is taken for whole, is done twice, or stays for ever."""
    for name, chance in batch:
        number = int(name.rpartition("/")[2])
        kind = KINDS[number % len(KINDS)]
        case = cases(kind)
        folder = tmp_path / name.replace("/", "-")
        folder.mkdir()
        how = f"{name}: {kind}: {struck(zygote, case, folder, chance)}"
        process = zygote.start(command(case.options), folder, **environment(folder))
        code = process.wait()
        assert code == 0, f"{how}: exit code {code}: {process.said}"
        if "is finished" in process.said:  # the kill came after report.json, and what it left is removed
            process = zygote.start(command(case.options), folder, **environment(folder))
            assert process.wait() == 0
        require_same(folder, case, how)
        require_no_orphans(folder)


@pytest.mark.faults
@pytest.mark.parametrize("kind", KINDS)
def test_commands_that_are_killed_go_on_to_the_same_bits(kind: str, cases: Cases, tmp_path: Path) -> None:
    """What only goes on in a process that was forked from one where all was imported before."""
    case = cases(kind)
    chance = random.Random(f"{SEEDS[-1]}/{kind}")
    for number in range(3):
        folder = tmp_path / str(number)
        folder.mkdir()
        line = [sys.executable, "-m", "kdcli", *command(case.options)]
        own = os.environ | environment(folder)
        after = chance.uniform(0, 15)
        with (folder / "log.txt").open("w") as log:
            process = subprocess.Popen(line, cwd=folder, env=own, stdout=log, stderr=log)
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(after)
            process.kill()
            process.wait()
        require_no_orphans(folder)
        done = subprocess.run(line, cwd=folder, env=own, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        require_same(folder, case, f"{kind}: killed after {after:.1f} s")


SIGNALS = [
    ([signal.SIGTERM], 143),
    ([signal.SIGINT, signal.SIGINT], 130),
    ([signal.SIGINT], 130),
    ([signal.SIGHUP], 129),
    ([signal.SIGTERM, signal.SIGINT], 130),
]
"""Signals, 50 ms apart, and the exit code. The second signal may arrive while the run already exits after the first."""


@pytest.mark.parametrize("batch", batches(24, quick=0, size=8))
def test_a_signal_ends_a_run_and_all_that_it_started(
    batch: Batch, cases: Cases, zygote: Zygote, tmp_path: Path
) -> None:
    """A scheduler's SIGTERM that loses the steps since the last checkpoint; processes that go on measuring for nobody; a second Ctrl-C that
    waits for a checkpoint, or ends in a traceback."""
    case = cases(KINDS[0])
    for name, chance in batch:
        numbers, expected = SIGNALS[int(name.rpartition("/")[2]) % len(SIGNALS)]
        folder = tmp_path / name.replace("/", "-")
        folder.mkdir()
        words = [word for word in case.options if word != "measure=null"]
        words += ["measure.latency_runs=100", "measure.throughput_seconds=1"]
        process = zygote.start(command(words), folder, **environment(folder))
        moment = chance.choice(["start", "training", "measuring"])
        until = time.monotonic() + 60
        while not {
            "start": "[1/" in process.said,
            "training": "student: start" in process.said,
            "measuring": len(alive(folder)) > 1,
        }[moment]:
            assert time.monotonic() < until, process.said
            time.sleep(0.01)
        time.sleep(chance.uniform(0, 0.5))
        for number in numbers:
            ended = {128 + numbers[0]} if "same directory" in process.said else set()
            process.kill(number)
            signalled = time.monotonic()
            time.sleep(0.05)
        code = process.wait()
        if numbers[1:] == [signal.SIGINT]:  # it saves no checkpoint, and waits for nothing
            assert time.monotonic() - signalled < 5, process.said
        why = f"{name}: {numbers} while {moment}: {process.said}"
        assert code in {expected, 0} | ended, why
        assert "Traceback" not in process.said, why
        require_no_orphans(folder)
        if not code:  # it ended before the signal came, and has measured
            continue
        assert naming("same command", "same directory").search(process.said), why
        process = zygote.start(command([*words, "measure=null"]), folder, **environment(folder))
        assert process.wait() == 0, f"{why}, then {process.said}"
        require_same(folder, case, why)


def test_a_signal_saves_the_step_that_it_came_in(cases: Cases, zygote: Zygote, tmp_path: Path) -> None:
    """The hours since the last validation are trained again after each end of a scheduler's time."""
    case = cases(KINDS[0])
    options = ["trainer.max_steps=400", "trainer.eval_steps=400", "control=false"]
    process = zygote.start(command([*case.options, *options]), tmp_path, **environment(tmp_path))
    until = time.monotonic() + 60
    while "student: start" not in process.said:
        assert time.monotonic() < until, process.said
        time.sleep(0.01)
    time.sleep(0.2)
    process.kill(signal.SIGTERM)
    assert process.wait() == 143, process.said
    saved = [path.parent.name for path in (tmp_path / "run").glob("stages/student/*/trainer_state.json")]
    assert len(saved) == 1, process.said
    assert 0 < int(saved[0].rpartition("-")[2]) < 400
