"""Signals that end this process, and the processes that it starts: none of them outlives it."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from kdcli.errors import ExitCode

SIGNALS = [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)]
"""What asks this process to end: a person, a scheduler, a terminal that closes."""
GRACE = 20.0
"""Seconds that processes have to end by themselves."""
_DIES_WITH_PARENT = (
    "import ctypes, os, sys\n"
    "ctypes.CDLL(None).prctl(1, 9)\n"  # PR_SET_PDEATHSIG, SIGKILL
    "os.getppid() == int(sys.argv[1]) or os._exit(1)\n"
    "os.execvp(sys.argv[2], sys.argv[2:])\n"
)


class Interrupted(KeyboardInterrupt):
    """A signal asked this process to end."""

    def __init__(self, number: int):
        super().__init__(signal.Signals(number).name)
        self.exit_code = ExitCode(128 + number)


def exit_code(error: KeyboardInterrupt) -> ExitCode:
    """The exit code of the signal that interrupted this process."""
    return error.exit_code if isinstance(error, Interrupted) else ExitCode.INTERRUPTED


class _Signals:
    """What was asked for by signals, and when it is obeyed."""

    def __init__(self) -> None:
        self.watched = False
        self.asked: int | None = None
        self.deferred = False

    def handle(self, number: int, frame: object) -> None:
        """Raise `Interrupted`, now or when the block of `deferred` ends. A second SIGINT ends the process at once."""
        if self.asked is not None:
            if number == signal.SIGINT:
                _end_at_once(ExitCode.INTERRUPTED)
            return
        self.asked = number
        if not self.deferred:
            raise Interrupted(number)
        text = f"\n{signal.Signals(number).name}: a checkpoint is saved after this step; Ctrl-C ends at once without it\n"
        os.write(2, text.encode())  # the handler may interrupt a print, which must not be entered again


_signals = _Signals()


@contextlib.contextmanager
def watched() -> Iterator[None]:
    """Until the block ends, the signals raise `Interrupted`. Those that are ignored stay ignored, as nohup wants it."""
    if _signals.watched or threading.current_thread() is not threading.main_thread():
        yield
        return
    handlers = {number: signal.getsignal(number) for number in SIGNALS}
    handlers = {
        number: handler for number, handler in handlers.items() if handler not in (signal.SIG_IGN, None)
    }
    _signals.__init__()  # type: ignore[misc]
    _signals.watched = True
    try:
        for number in handlers:
            signal.signal(number, _signals.handle)
        yield
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
        _signals.watched = False


@contextlib.contextmanager
def deferred(possible: bool = True) -> Iterator[Callable[[], bool]]:
    """Until the block ends, a signal does not interrupt it: it asks whether one came, and brings itself to a good end.

    Args:
        possible: otherwise signals interrupt it as ever.

    Raises:
        Interrupted: one came.
    """
    if not _signals.watched or not possible:
        yield lambda: False
        return
    _signals.deferred = True
    try:
        yield lambda: _signals.asked is not None
    finally:
        _signals.deferred = False
    if _signals.asked is not None:
        raise Interrupted(_signals.asked)


def obey() -> None:
    """End the block of `deferred` now, if a signal came.

    Raises:
        Interrupted: one came.
    """
    if _signals.deferred and _signals.asked is not None:
        raise Interrupted(_signals.asked)


def bound(command: Sequence[str]) -> list[str]:
    """A command for `subprocess` that the system kills as soon as this process ends in whatever way (on Linux)."""
    if sys.platform != "linux":
        return list(command)
    return [sys.executable, "-I", "-S", "-c", _DIES_WITH_PARENT, str(os.getpid()), *command]


def run(command: Sequence[str], env: Mapping[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    """`subprocess.run` of a process that does not outlive this one; what it prints is captured."""
    return subprocess.run(
        bound(command),
        env=env,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        encoding="utf-8",
        errors="replace",
        check=False,
    )


def _descendants() -> list[Any]:
    import psutil

    return psutil.Process().children(recursive=True)


def children() -> set[int]:
    """The processes that this one has started, and those that they have started."""
    return {child.pid for child in _descendants()}


def end_children(but: set[int]) -> None:
    """End the processes that this one has started, and those that they have started: first by SIGTERM, after `GRACE` by SIGKILL.

    Args:
        but: those that stay.
    """
    import psutil

    ended = [child for child in _descendants() if child.pid not in but]
    for how in ("terminate", "kill"):
        for child in ended:
            with contextlib.suppress(psutil.NoSuchProcess):
                getattr(child, how)()
        _, ended = psutil.wait_procs(ended, timeout=GRACE)


def _end_at_once(code: int) -> None:
    """End this process and all that it has started, whatever they are doing."""
    import psutil

    for child in _descendants():
        with contextlib.suppress(psutil.NoSuchProcess):
            child.kill()
    os.write(
        2,
        b"\nerror: interrupted; ended at once. The same command on the same directory goes on from the last checkpoint\n",
    )
    os._exit(code)
