"""Processes that train together (torchrun): barriers without a time-out, and one message when one of the processes ends.

Everything goes through the key-value store that torch.distributed opens for its process groups.
"""

from __future__ import annotations

import itertools
import json
import os
import socket
import threading
import time
import uuid
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kdcli import console, processes
from kdcli.errors import ConfigError, ExitCode, KDError, bounded
from kdcli.files import write_json

if TYPE_CHECKING:
    import psutil
    from accelerate import PartialState

POLL = 0.2
"""Seconds between two reads of the store."""
GRACE = 3.0
"""Seconds that this process has to end with its own message when another one has failed, which is often for the same reason."""
_barriers = itertools.count()


def wait_for_everyone(state: PartialState) -> None:
    """Wait until all processes are here, however long one of them works. A barrier of torch.distributed would end with an error after the
    time-out of its process group."""
    if state.num_processes == 1:
        return
    store, key = _store(), f"kdcli/barrier/{next(_barriers)}"
    store.add(key, 1)
    while store.add(key, 0) < state.num_processes:
        time.sleep(POLL)
    state.wait_for_everyone()  # none ends, and with it perhaps the store, before the others have read it


def require_shared(folders: Mapping[str, Path], state: PartialState) -> None:
    """Refuse processes that do not see the same folders, such as those of two machines without a shared disk.

    Args:
        folders: of this process, by the key that chooses each.

    Raises:
        ConfigError
    """
    if state.num_processes == 1:
        return
    store, key = _store(), f"kdcli/shared/{next(_barriers)}"
    if state.is_main_process:
        store.set(key, f".shared-{uuid.uuid4().hex}")
    marker = store.get(key).decode()
    if state.is_main_process:
        for folder in folders.values():
            folder.mkdir(parents=True, exist_ok=True)
            (folder / marker).touch()
        store.set(f"{key}/written", "")
    store.wait([f"{key}/written"])
    unseen = {name: str(folder) for name, folder in folders.items() if not _appears(folder / marker)}
    store.set(f"{key}/{state.process_index}", json.dumps([socket.gethostname(), unseen]))
    results = [json.loads(store.get(f"{key}/{rank}")) for rank in range(state.num_processes)]
    if state.is_main_process:
        for folder in folders.values():
            (folder / marker).unlink()
    for rank, (host, missing) in enumerate(results):
        for name, folder in missing.items():
            raise ConfigError(
                f"process {rank} (on {host}) does not see the folder of process 0 as its {name} ({folder}): all processes of a run read and write "
                "its directory and the cache. Give --out and KDCLI_CACHE_DIR on a disk that all machines share, the same for all "
                "processes, or start the processes on one machine"
            )


def _appears(path: Path) -> bool:
    """Return whether a file is there, also on a network file system that shows it late."""
    until = time.monotonic() + GRACE
    while not (there := path.exists()) and time.monotonic() < until:
        time.sleep(POLL)
    return there


def record_failure(message: str, code: int) -> None:
    """Write how this process ended into the file in which torchrun looks for it, in torchrun's own format. torchrun itself exits with 1 whatever the exit
    codes of its processes are; it shows the message, and copies the first failure into the file that its own TORCHELASTIC_ERROR_FILE names."""
    if (file := os.environ.get("TORCHELASTIC_ERROR_FILE")) and message:
        extra = {"py_callstack": "", "timestamp": str(int(time.time()))}
        error = {"message": {"message": bounded(message), "errorCode": int(code), "extraInfo": extra}}
        with suppress(OSError):  # the message is printed
            write_json(Path(file), error)


def _store() -> Any:
    from torch.distributed.distributed_c10d import _get_default_store

    return _get_default_store()


def _namespace() -> str:
    """Return what is equal for two processes that see each other's process ids."""
    with suppress(OSError):
        return f"{socket.gethostname()} {os.readlink('/proc/self/ns/pid')}"
    return socket.gethostname()


class _Peers:
    """The other processes of this run.

    Attributes:
        phase: what this process does, for the message about the end of another one.
        folder: the run directory, once it is known.
    """

    def __init__(self) -> None:
        self.phase = "start"
        self.folder: Path | None = None
        self._rank = self._count = self._run = 0
        self._watched: dict[int, psutil.Process] = {}
        self._ends = threading.Event()

    def watch(self, state: PartialState) -> None:
        """Have a thread end this process, with one message, when another one has ended."""
        self._rank, self._count = state.process_index, state.num_processes
        self._watched.clear()
        if self._count == 1:
            return
        import psutil

        self._run = next(_barriers)
        store, namespace = _store(), _namespace()
        store.set(self._key("process", self._rank), json.dumps([namespace, os.getpid()]))
        for rank in range(self._count):
            other, pid = json.loads(store.get(self._key("process", rank)))
            if other == namespace and rank != self._rank:
                with suppress(psutil.NoSuchProcess):
                    self._watched[rank] = psutil.Process(pid)
        self._ends = threading.Event()
        threading.Thread(target=self._end_with_others, args=(self._ends,), daemon=True).start()

    def finish(self, state: PartialState) -> None:
        """Wait until all processes are done; from now on each may end."""
        wait_for_everyone(state)
        self._ends.set()

    def fail(self, message: str, code: int) -> bool:
        """This process ends, with a message, which the main process prints. It prints one of several.

        Args:
            message: empty: that of the main process is enough.

        Returns:
            Whether the main process does so, and this one is silent.
        """
        self._ends.set()
        if not self._count:  # each machine prints what is wrong before its processes have met
            return int(os.environ.get("RANK", "0")) > 0 and os.environ.get("LOCAL_RANK") != "0"
        if not self._rank:
            return False
        with suppress(Exception):  # the store ends with the main process
            _store().set(self._key("failed", self._rank), json.dumps([message, code]))
            return 0 not in self._watched or _is_alive(self._watched[0])
        return False

    def failure(self, wait: float = 0.0) -> KDError | None:
        """Return how another process ended; None: all are running.

        Args:
            wait: seconds in which one may become known.
        """
        until = time.monotonic() + wait
        while self._watched:
            for rank, process in self._watched.items():
                if (failed := self._failed(rank, process)) is not None:
                    return failed
            if time.monotonic() >= until:
                break
            time.sleep(POLL)
        return None

    def _failed(self, rank: int, process: psutil.Process) -> KDError | None:
        which = f"process {rank} of {self._count}"
        with suppress(Exception):
            if _store().check([self._key("failed", rank)]):
                message, code = json.loads(_store().get(self._key("failed", rank)))
                return PeerError(f"{which}: {message}", code) if message else None
        if _is_alive(process):
            return None
        return PeerError(
            f"{which} (pid {process.pid}) ended in the phase {self.phase} without a message, as one does that is killed or runs out of memory; the "
            "same command on the same directory continues from the last checkpoint",
            ExitCode.FAILED,
        )

    def _key(self, kind: str, rank: int) -> str:
        return f"kdcli/{kind}/{self._run}/{rank}"

    def _end_with_others(self, ends: threading.Event) -> None:
        """Watch the other processes until this one ends by itself."""
        while not ends.wait(POLL):
            if self.failure() is None or ends.wait(GRACE) or (failure := self.failure()) is None:
                continue
            if self._rank < min(
                (rank for rank, other in self._watched.items() if _is_alive(other)), default=self._count
            ):
                console.error(failure.message)
            processes.end_at_once(failure.exit_code)


class PeerError(KDError):
    """Another process has ended, with this exit code."""

    def __init__(self, message: str, code: int):
        super().__init__(message)
        self.exit_code = ExitCode(code)


def _is_alive(process: psutil.Process) -> bool:
    import psutil

    with suppress(psutil.NoSuchProcess):
        return bool(process.is_running() and process.status() != psutil.STATUS_ZOMBIE)
    return False


peers = _Peers()
