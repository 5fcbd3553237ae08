"""Processes of kdcli that begin with everything imported: a run of a second costs a second, so that a hundred of them can be killed.

`python zygote.py` imports all and waits for requests, a JSON line each. Of each it forks a process that runs the real entry point, with
real signals and a real exit code, and that may kill itself by SIGKILL at a crash point: before the n-th time that it changes a name or
opens a file for writing below given folders. `Zygote` is the other side of the pipe.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

CHANGES = {"os.rename", "os.mkdir", "os.rmdir", "os.remove", "os.truncate", "os.symlink", "os.link"}
"""Audit events of Python that change a name in a folder; os.replace is os.rename."""


class Run:
    """A process that the zygote forked."""

    def __init__(self, zygote: Zygote, pid: int, log: Path):
        self._zygote, self.pid, self._log = zygote, pid, log
        self.points = 0
        """How many crash points it passed, if it was to count them."""

    def kill(self, number: int) -> None:
        """Send a signal, unless it has ended."""
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.pid, number)

    def wait(self) -> int:
        """Its exit code, negative for a signal."""
        told = self._zygote.read()
        self.points = told["points"]
        return int(told["code"])

    @property
    def said(self) -> str:
        """What it printed."""
        return self._log.read_text(encoding="utf-8", errors="replace")


class Zygote:
    """Starts runs, one at a time; a context manager."""

    def __enter__(self) -> Zygote:
        self._process = subprocess.Popen(
            [sys.executable, __file__], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        return self

    def __exit__(self, *raised: object) -> None:
        assert self._process.stdin
        self._process.stdin.close()
        if raised[0] is not None:
            self._process.kill()
        self._process.wait(60)

    def start(
        self,
        arguments: Sequence[str],
        folder: Path,
        at: int = 0,
        below: Sequence[Path] = (),
        **environment: str,
    ) -> Run:
        """Start `kdcli` in a folder.

        Args:
            at: it kills itself at this crash point; 0: it counts them.
            below: the folders in which changes are crash points.
        """
        log = folder / "log.txt"
        log.write_text("")
        request = {
            "arguments": list(arguments),
            "folder": str(folder),
            "log": str(log),
            "at": at,
            "below": [str(path) for path in below],
            "environment": environment,
        }
        assert self._process.stdin
        self._process.stdin.write(json.dumps(request) + "\n")
        self._process.stdin.flush()
        return Run(self, self.read()["pid"], log)

    def read(self) -> Any:
        """The next answer."""
        assert self._process.stdout
        line = self._process.stdout.readline()
        assert line, "the zygote ended"
        return json.loads(line)


# ---- in the process ----------------------------------------------------------------------------------


def crash_at(point: int, below: Sequence[str], told: int) -> None:
    """Kill this process at a crash point, or write to a pipe how many it has passed."""
    passed = 0
    owner = os.getpid()

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        nonlocal passed
        if event == "open":
            path, _, flags = arguments
            if not isinstance(flags, int) or not flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT):
                return
        elif event in CHANGES:
            path = arguments[0]
        else:
            return
        if not isinstance(path, str | bytes | os.PathLike) or os.getpid() != owner:
            return
        if not os.path.abspath(os.fsdecode(path)).startswith(tuple(below)):
            return
        passed += 1
        if passed == point:
            os.kill(owner, signal.SIGKILL)
        elif point == 0:
            os.pwrite(told, passed.to_bytes(4, "big"), 0)

    sys.addaudithook(hook)


def run(request: dict[str, Any]) -> None:
    """The forked process: the entry point, until it ends."""
    with open(request["log"], "wb") as log:
        for descriptor in (1, 2):
            os.dup2(log.fileno(), descriptor)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    os.chdir(request["folder"])
    os.environ.update(request["environment"])
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a job in the background of a shell ignores it
    import tempfile

    tempfile.tempdir = None
    crash_at(request["at"], request["below"], request["told"])
    from kdcli.cli import app

    try:
        app(request["arguments"])
        code = 0
    except SystemExit as error:
        code = error.code if isinstance(error.code, int) else 1
    except BaseException:
        import traceback

        traceback.print_exc()
        code = 99
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def main() -> None:
    """Import all, then fork."""
    import ctypes

    import torch

    torch.set_num_threads(1)
    import transformers.models.bert.modeling_bert
    import transformers.models.llama.modeling_llama  # noqa: F401

    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(
            36, 1
        )  # PR_SET_CHILD_SUBREAPER: orphans of a run become children of this process
    out = os.dup(1)
    for line in sys.stdin:
        request = json.loads(line)
        request["told"] = told = os.memfd_create("points")
        os.ftruncate(told, 4)
        pid = os.fork()
        if pid == 0:
            run(request)
        os.write(out, json.dumps({"pid": pid}).encode() + b"\n")
        _, status = os.waitpid(pid, 0)
        points = int.from_bytes(os.pread(told, 4, 0), "big")
        os.close(told)
        answer = {"code": os.waitstatus_to_exitcode(status), "points": points}
        os.write(out, json.dumps(answer).encode() + b"\n")


if __name__ == "__main__":
    main()
