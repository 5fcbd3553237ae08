"""Seeded fault injection: batches of cases, runs of the real entry point, and what must hold after each of them.

A case is made from `random.Random("SEED/NUMBER")` alone, so that a failing one can be repeated by its seed and number. `make test` runs a
few cases of each kind, `make test-faults` (the marker `faults`) all of them, with the seeds of KDCLI_SEEDS.
"""

from __future__ import annotations

import contextlib
import io
import os
import random
import re
import resource
import shlex
import signal
import subprocess
import sys
import time
import warnings
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

SEEDS = [int(seed) for seed in os.environ.get("KDCLI_SEEDS", "1,2,3").split(",")]
"""Two fixed seeds and one that `make test-faults` draws and prints."""
CPU_SECONDS = 60
"""A case that computes for longer hangs."""
WALL_SECONDS = 5 * CPU_SECONDS
"""A case that takes longer waits for something, such as a FIFO that nobody writes to."""
LONGEST_MESSAGE = 6000
"""Characters that an error message may have: several values, each of at most about 1,000."""


class Hang(BaseException):
    """A case computed for `CPU_SECONDS`; no handler of `Exception` may swallow this."""


@dataclass(frozen=True)
class Batch:
    """Cases of one seed, from `first` on."""

    seed: int
    first: int
    count: int

    def __iter__(self) -> Iterator[tuple[str, random.Random]]:
        """The name of each case and its source of randomness."""
        for number in range(self.first, self.first + self.count):
            name = f"{self.seed}/{number}"
            yield name, random.Random(name)


def batches(total: int, quick: int, size: int = 100) -> list[Any]:
    """Parameters of a test: one small batch for `make test` (none if `quick` is 0), and `total` cases over all seeds for `make test-faults`.

    Args:
        total: cases over all seeds together.
        quick: cases of the small batch (of the first fixed seed).
        size: cases of a batch at most.
    """
    found: list[Any] = [pytest.param(Batch(1, 0, quick), id="quick")] if quick else []
    share = -(-total // len(SEEDS))
    for seed in SEEDS:
        for first in range(0, share, size):
            batch = Batch(seed, first, min(size, share - first))
            found.append(pytest.param(batch, id=f"{seed}-{first}", marks=pytest.mark.faults))
    return found


@dataclass(frozen=True)
class Outcome:
    """What a command ended with.

    Attributes:
        seconds: that it computed, and the processes that it started.
    """

    command: str
    code: int
    out: str
    err: str
    seconds: float


def shown(arguments: Sequence[str], folder: Path) -> str:
    """The command line that repeats a case."""
    return f"cd {shlex.quote(str(folder))} && kdcli {shlex.join(arguments)}"


def run_here(arguments: Sequence[str], folder: Path) -> Outcome:
    """Run the real entry point in this process, in `folder`, with everything that it changes put back afterwards.

    Raises:
        AssertionError: an exception reached the top, which a user would see as a traceback; or the case hangs.
    """
    from kdcli.cli import app

    def hang(*_: object) -> None:
        raise Hang

    command = shown(arguments, folder)
    out, err = io.StringIO(), io.StringIO()
    environment, path, before = dict(os.environ), list(sys.path), Path.cwd()
    limits = (
        (signal.SIGPROF, signal.ITIMER_PROF, CPU_SECONDS),
        (signal.SIGALRM, signal.ITIMER_REAL, WALL_SECONDS),
    )
    previous = [signal.signal(number, hang) for number, _, _ in limits]
    for _, timer, seconds in limits:
        signal.setitimer(timer, seconds)
    began = time.process_time()
    os.chdir(folder)
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err), warnings.catch_warnings():
            warnings.simplefilter("default")  # as for a user, to whom a warning of a library is no error
            app([*arguments])
        code = 0
    except SystemExit as error:
        code = error.code if isinstance(error.code, int) else 1
    except Hang:
        raise AssertionError(f"hangs: {command}") from None
    except BaseException as error:
        raise AssertionError(f"{type(error).__name__} reaches the user as a traceback: {command}") from error
    finally:
        for (number, timer, _), handler in zip(limits, previous, strict=True):
            signal.setitimer(timer, 0)
            signal.signal(number, handler)
        os.chdir(before)
        sys.path[:] = path
        os.environ.clear()
        os.environ.update(environment)
    return Outcome(command, code, out.getvalue(), err.getvalue(), time.process_time() - began)


def run_process(arguments: Sequence[str], folder: Path, timeout: float = 120, **environment: str) -> Outcome:
    """Run the real entry point in a process of its own, as a user does.

    Raises:
        AssertionError: it did not end in time.
    """
    command, before = shown(arguments, folder), _seconds_of_children()
    try:
        done = subprocess.run(
            [sys.executable, "-m", "kdcli", *arguments],
            cwd=folder,
            env=os.environ | environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=timeout,
            check=False,
        )
    except subprocess.TimeoutExpired:
        raise AssertionError(f"did not end within {timeout:.0f} s: {command}") from None
    return Outcome(command, done.returncode, done.stdout, done.stderr, _seconds_of_children() - before)


def _seconds_of_children() -> float:
    """The seconds that the processes which were started here, and have ended, have computed."""
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def require_clean(outcome: Outcome, codes: Collection[int] = (0, 2, 3), own_class: bool = False) -> None:
    """The outcome is one that a user can act on: an expected exit code, and one bounded message if it is an error.

    Args:
        own_class: a class of the user's own raises, so that the message of an unexpected exception is right.

    Raises:
        AssertionError
    """
    said = f"{outcome.command}\nexit code {outcome.code}\n{outcome.err[-4000:]}"
    assert "Traceback (most recent call last)" not in outcome.err + outcome.out, f"a traceback: {said}"
    assert outcome.code in codes, f"an unexpected exit code: {said}"
    assert own_class or "defect of kdcli" not in outcome.err + outcome.out, f"an unexpected exception: {said}"
    messages = re.findall(r"^(?:error:|Usage: )", outcome.err, re.MULTILINE)
    if outcome.code == 2:
        sweep = re.search(r" (-m|--multirun)\b", outcome.command)  # each of its points has a message
        assert messages if sweep else len(messages) == 1, f"{len(messages)} messages: {said}"
        assert len(outcome.err) <= LONGEST_MESSAGE, f"a message of {len(outcome.err)} characters: {said}"
    assert outcome.seconds < CPU_SECONDS, f"{outcome.seconds:.0f} s: {said}"


class Fence:
    """Everything below `root` is watched: what appears, vanishes or changes outside the allowed folders is a failure."""

    def __init__(self, root: Path, *allowed: Path):
        self.root, self.allowed = root, [path.resolve() for path in allowed]
        self.before = self._state()

    def _state(self) -> dict[Path, tuple[int, int]]:
        found = {}
        for path in self.root.rglob("*"):
            if any(Path(os.path.realpath(path)).is_relative_to(place) for place in self.allowed):
                continue
            with contextlib.suppress(OSError):
                status = path.lstat()
                found[path] = (0, 0) if path.is_dir() else (status.st_size, status.st_mtime_ns)
        return found

    def require_untouched(self, why: str = "") -> None:
        """Raises AssertionError if anything outside the allowed folders is not as it was."""
        now = self._state()
        changed = [path for path in self.before.keys() | now.keys() if self.before.get(path) != now.get(path)]
        assert not changed, f"touched outside: {', '.join(map(str, sorted(changed)[:5]))} {why}"
