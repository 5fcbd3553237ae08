"""Handles signals that end this process, and child processes, none of which outlives it."""

from __future__ import annotations

import contextlib
import os
import pickle
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence, Set
from typing import Any

from kdcli.errors import ExitCode

SIGNALS = [
    signal.Signals[name] for name in ("SIGINT", "SIGTERM", "SIGHUP") if name in signal.Signals.__members__
]
"""The signals that end this process: sent by a person, a scheduler, or a terminal that closes."""
GRACE = 20.0
"""Seconds that child processes have to end by themselves."""
POLL = 0.2
"""Seconds between two checks whether a signal came for a child process."""
_DIES_WITH_PARENT = (
    "import ctypes, os, sys\n"
    "ctypes.CDLL(None).prctl(1, int(sys.argv[2]))\n"  # PR_SET_PDEATHSIG
    "os.getppid() == int(sys.argv[1]) or os._exit(1)\n"
    "os.execvp(sys.argv[3], sys.argv[3:])\n"
)
_CALL = (
    "import pickle, sys\n"
    "sys.path[:] = pickle.load(sys.stdin.buffer)\n"
    "function, arguments = pickle.load(sys.stdin.buffer)\n"
    "from kdcli.processes import answer\n"
    "sys.exit(answer(function, arguments))\n"
)


class Interrupted(KeyboardInterrupt):
    """A signal came that ends this process."""

    def __init__(self, number: int):
        super().__init__(signal.Signals(number).name)
        self.exit_code = ExitCode(128 + number)


def exit_code(error: KeyboardInterrupt) -> ExitCode:
    """Return the exit code of the signal that interrupted this process."""
    return error.exit_code if isinstance(error, Interrupted) else ExitCode.INTERRUPTED


class _Signals:
    """The signal that came, and whether it interrupts at once.

    Attributes:
        watched: the handlers are installed.
        received: the number of the first signal.
        deferred: the running block ends by itself.
        has_child: a process of `call_in_child` runs, which handles the signal.
        is_child: this process is one.
    """

    def __init__(self) -> None:
        self.watched = False
        self.received: int | None = None
        self.deferred = False
        self.has_child = False
        self.is_child = False

    def handle(self, number: int, frame: object) -> None:
        """Raise `Interrupted`, now or at the end of the block of `deferred`. A second SIGINT ends the process at once."""
        if self.received is not None:
            if number == signal.SIGINT:
                text = "\nerror: interrupted; ended at once. The same command on the same directory goes on from the last checkpoint\n"
                if not self.is_child:
                    os.write(2, text.encode())
                end_at_once(ExitCode.INTERRUPTED)
            return
        self.received = number
        if self.has_child:
            return
        if not self.deferred:
            raise Interrupted(number)
        text = f"\n{signal.Signals(number).name}: a checkpoint is saved after this step; Ctrl-C ends at once without it\n"
        os.write(2, text.encode())  # the handler may interrupt a print, which must not be entered again


_signals = _Signals()


@contextlib.contextmanager
def watched() -> Iterator[None]:
    """Have the signals raise `Interrupted` until the block ends. Ignored signals stay ignored, as nohup requires."""
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
    """Have a signal not interrupt the block, which checks whether one came and ends by itself.

    Args:
        possible: if False, signals interrupt the block.

    Yields:
        A function that returns whether a signal came.

    Raises:
        Interrupted: a signal came; raised when the block ends.
    """
    if not _signals.watched or not possible:
        yield lambda: False
        return
    _signals.deferred = True
    try:
        yield lambda: _signals.received is not None
    finally:
        _signals.deferred = False
    if _signals.received is not None:
        raise Interrupted(_signals.received)


def obey() -> None:
    """End the block of `deferred` now if a signal came.

    Raises:
        Interrupted: a signal came.
    """
    if _signals.deferred and _signals.received is not None:
        raise Interrupted(_signals.received)


def raise_if_interrupted() -> None:
    """Raise `Interrupted` again if a signal came and its exception was lost. Python discards an exception that a signal handler raises while
    the garbage collector finalises an object, so a loop that may take hours calls this between two steps.

    Raises:
        Interrupted: a signal came.
    """
    if _signals.watched and not _signals.deferred and _signals.received is not None:
        raise Interrupted(_signals.received)


def bound(command: Sequence[str], number: signal.Signals = signal.SIGKILL) -> list[str]:
    """Return a command for `subprocess` to which the operating system sends a signal as soon as this process ends in any way (on Linux).

    Args:
        number: the signal; SIGTERM for a process that ends processes of its own.
    """
    if sys.platform != "linux":
        return list(command)
    return [sys.executable, "-I", "-S", "-c", _DIES_WITH_PARENT, str(os.getpid()), str(int(number)), *command]


def call_in_child(function: Callable[..., int], *arguments: Any) -> int:
    """Call a function in a new process that does not outlive this one.

    Args:
        function: returns the exit code of the process; it and its arguments are pickled.

    Returns:
        The exit code, or the negative number of the signal that killed the process.

    Raises:
        Interrupted: a signal came. It was passed on to the process, which has ended.
    """
    sent = pickle.dumps(sys.path) + pickle.dumps((function, arguments))
    with watched():
        _signals.has_child, terminated = True, False
        try:
            mask = _block()  # the child inherits it, and handles signals once it has imported what it needs
            try:
                child = subprocess.Popen(bound([sys.executable, "-P", "-c", _CALL]), stdin=subprocess.PIPE)
            finally:
                _unblock(mask)
            assert child.stdin is not None
            with contextlib.suppress(BrokenPipeError), child.stdin:  # it was killed at once
                child.stdin.write(sent)
            while child.poll() is None:
                with contextlib.suppress(subprocess.TimeoutExpired):
                    child.wait(POLL)
                if _signals.received is not None and not terminated:
                    child.terminate()  # a terminal has sent it the signal itself, and the second one changes nothing
                    terminated = True
        finally:
            _signals.has_child = False
        raise_if_interrupted()
    if child.returncode - 128 in SIGNALS:
        raise Interrupted(child.returncode - 128)
    return child.returncode


def answer(function: Callable[..., int], arguments: Sequence[Any]) -> int:
    """Call the function of `call_in_child`, in the child; returns the exit code of the process."""
    with watched():
        _signals.is_child = True
        try:
            _unblock()
            return function(*arguments)
        except KeyboardInterrupt as error:
            return exit_code(error)


def _block() -> set[Any]:
    """Block the signals; returns those that were blocked before."""
    return signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS) if hasattr(signal, "pthread_sigmask") else set()


def _unblock(but: Set[Any] = frozenset()) -> None:
    """Unblock the signals.

    Args:
        but: those that stay blocked.
    """
    if hasattr(signal, "pthread_sigmask"):
        signal.pthread_sigmask(signal.SIG_UNBLOCK, set(SIGNALS) - but)


def run(command: Sequence[str], env: Mapping[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    """`subprocess.run` of a process that does not outlive this one, with captured output."""
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
    """Return the ids of all descendants of this process."""
    return {child.pid for child in _descendants()}


def end_children(but: set[int]) -> None:
    """End all descendants of this process: first by SIGTERM, after `GRACE` by SIGKILL.

    Args:
        but: the ids of those that are left alone.
    """
    import psutil

    alive = [child for child in _descendants() if child.pid not in but]
    for end in (psutil.Process.terminate, psutil.Process.kill):
        for child in alive:
            with contextlib.suppress(psutil.NoSuchProcess):
                end(child)
        _, alive = psutil.wait_procs(alive, timeout=GRACE)


def end_at_once(code: int) -> None:
    """End this process and its descendants without waiting for them."""
    import psutil

    for child in _descendants():
        with contextlib.suppress(psutil.NoSuchProcess):
            child.kill()
    os._exit(code)
