"""Locks between processes, and what those that were killed leave behind."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from kdcli import processes
from kdcli.files import abandonable, remove_abandoned, replaced

TERM = 2.0
"""Seconds of a lease."""
HOLD = f"""
import errno, fcntl, logging, os, sys, time
from pathlib import Path
from kdcli import locks

logging.basicConfig(format="%(message)s")
if sys.argv[2] != "flock":
    def flock(*_):
        raise OSError(getattr(errno, sys.argv[2]), "no locks here")

    fcntl.flock = flock
    locks.LEASE = {TERM}
lock = locks.Lock(Path(sys.argv[1]))
try:
    lock.acquire(wait=False)
except locks.Timeout:
    sys.exit(3)
locks.Lock(Path(sys.argv[1]).with_name("other.lock")).acquire()
print("held", flush=True)
time.sleep(float(sys.argv[3]))
lock.release()
"""


def hold(path: Path, how: str, seconds: float) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", HOLD, str(path), how, str(seconds)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


@pytest.mark.skipif(sys.platform == "win32", reason="flock")
@pytest.mark.parametrize("how", ["flock", "ENOLCK", "EOPNOTSUPP", "ENOSYS"])
def test_one_process_holds_a_lock_until_it_ends_or_is_killed(tmp_path: Path, how: str) -> None:
    """On NFS without its lock service every command ended in a traceback; a lease that outlives its owner keeps a run for ever."""
    path = tmp_path / "one" / ".lock"
    path.parent.mkdir()
    first = hold(path, how, 60)
    assert first.stdout
    assert first.stdout.readline() == "held\n"
    assert hold(path, how, 0).wait() == 3
    first.send_signal(signal.SIGKILL)
    _, said = first.communicate()
    assert said.count("has no locks") == (0 if how == "flock" else 1)
    second = hold(path, how, 0)
    out, err = second.communicate()
    assert (second.returncode, out) == (0, "held\n"), err


def test_a_lease_is_renewed_past_its_term(tmp_path: Path) -> None:
    """A run that takes longer than a lease is taken over by another process while it trains."""
    path = tmp_path / ".lock"
    first = hold(path, "ENOLCK", 60)
    try:
        assert first.stdout
        assert first.stdout.readline() == "held\n"
        time.sleep(3 * TERM)
        assert hold(path, "ENOLCK", 0).wait() == 3
    finally:
        first.kill()
        first.communicate()


def test_what_a_killed_process_left_is_removed_and_what_a_living_one_owns_stays(tmp_path: Path) -> None:
    """Folders of killed processes fill the cache for ever; or those of a process in another container are removed under it."""
    code = (
        "import sys, time\nfrom pathlib import Path\nfrom kdcli.files import replaced\n"
        f"with replaced(Path({str(tmp_path)!r}) / sys.argv[1]) as new:\n"
        "    new.mkdir()\n    (new / 'part').write_text('half')\n    print(flush=True)\n    time.sleep(60)\n"
    )
    started = [
        subprocess.Popen([sys.executable, "-c", code, name], stdout=subprocess.PIPE)
        for name in ("dead", "living")
    ]
    for process in started:
        assert process.stdout
        process.stdout.readline()
    started[0].kill()
    started[0].wait()
    (tmp_path / ".user").mkdir()
    remove_abandoned(tmp_path)
    assert sorted(path.name.split(".")[1] for path in tmp_path.iterdir()) == ["living", "user"]
    with abandonable("own", tmp_path) as own:
        remove_abandoned(tmp_path)
        assert own.is_dir()
    started[1].kill()
    started[1].wait()
    remove_abandoned(tmp_path.parent, deep=True)
    assert [path.name for path in tmp_path.iterdir()] == [".user"]


def test_what_was_killed_between_two_renames_is_as_it_was(tmp_path: Path) -> None:
    """An export that is to be replaced is moved away first: a kill at that moment would take it along."""
    place = tmp_path / "cpu"
    place.mkdir()
    (place / "model.onnx").write_text("old")
    code = (
        "import os\nfrom pathlib import Path\nfrom kdcli.files import replaced\n"
        "own = Path.rename\n"
        "def rename(self, target):\n"
        "    found = own(self, target)\n"
        "    os.kill(os.getpid(), 9) if Path(target).name == 'old' else None\n"
        "    return found\n"
        "Path.rename = rename\n"
        f"with replaced(Path({str(place)!r})) as new:\n    new.mkdir()\n"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == -signal.SIGKILL
    assert not place.exists()
    remove_abandoned(tmp_path)
    assert (place / "model.onnx").read_text() == "old"
    assert [path.name for path in tmp_path.iterdir()] == ["cpu"]
    with replaced(place) as new:
        new.mkdir()
    assert not list(place.iterdir())


@pytest.mark.skipif(sys.platform != "linux", reason="prctl")
@pytest.mark.parametrize("name", ["SIGKILL", "SIGTERM"])
def test_a_process_does_not_outlive_the_one_that_started_it(name: str, tmp_path: Path) -> None:
    """A converter that works for minutes, or a server whose own processes hold a GPU's memory, for a command that was killed."""
    inner = (
        "import os, pathlib, signal, sys, time\n"
        f"os.chdir({str(tmp_path)!r})\n"
        "signal.signal(signal.SIGTERM, lambda *_: sys.exit(pathlib.Path('ended').touch()))\n"
        "pathlib.Path('began').touch()\ntime.sleep(60)\n"
    )
    code = (
        "import signal, subprocess, sys, time\nfrom kdcli import processes\n"
        f"child = subprocess.Popen(processes.bound([sys.executable, '-c', {inner!r}], signal.{name}))\n"
        "print(child.pid, flush=True)\ntime.sleep(60)\n"
    )
    parent = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    assert parent.stdout
    child = psutil.Process(int(parent.stdout.readline()))
    until = time.monotonic() + 30
    while not (tmp_path / "began").exists():
        assert time.monotonic() < until
        time.sleep(0.05)
    parent.kill()
    parent.wait()
    psutil.wait_procs([child], timeout=10)
    assert not child.is_running() or child.status() == psutil.STATUS_ZOMBIE
    assert (tmp_path / "ended").exists() == (name == "SIGTERM")


def test_a_signal_waits_where_it_is_deferred(capfd: pytest.CaptureFixture[str]) -> None:
    """A checkpoint that is interrupted while it is written."""
    done = []

    def save() -> None:
        with processes.deferred() as asked:
            os.kill(os.getpid(), signal.SIGTERM)
            assert asked()
            done.append("after")

    with processes.watched(), pytest.raises(processes.Interrupted) as raised:
        save()
    assert processes.exit_code(raised.value) == 143
    assert done == ["after"]
    assert "SIGTERM" in capfd.readouterr().err
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL
