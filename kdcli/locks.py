"""Provides locks between processes, also on file systems that do not support them."""

from __future__ import annotations

import errno
import logging
import sys
import tempfile
from pathlib import Path
from types import TracebackType

import filelock
from filelock import SoftFileLease, Timeout

logger = logging.getLogger(__name__)
NO_LOCKS = {errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOTSUP}
"""The errors of flock on a file system without locks, such as NFS without its lock service."""
NETWORK = (
    "nfs", "cifs", "smb", "afs", "9p", "ceph", "lustre", "gpfs", "beegfs", "glusterfs", "fuse.sshfs", "fuse.glusterfs", "fuse.ceph",
)  # fmt: skip
"""How the names of network file systems begin."""
LEASE = 60.0
"""Seconds without a heartbeat after which a lease is taken over."""
_warned: set[int] = set()


class Lock:
    """An exclusive lock, which the operating system releases when its process ends.

    On a file system without locks it is a lease: the file `PATH.lease` names the owner, and a thread of the owner renews it. A lease
    is taken over if its owner has ended, or if it is not renewed for `LEASE` seconds.
    """

    def __init__(self, path: Path):
        self.path = path
        self._lock: filelock.BaseFileLock = filelock.FileLock(
            path, thread_local=False, fallback_to_soft=False
        )

    def acquire(self, wait: bool = True) -> None:
        """Take the lock.

        Args:
            wait: until another process releases it. If False, it is only tested whether the holder is alive, which is immediate on a file
                system with locks and takes up to `LEASE` seconds on one without.

        Raises:
            Timeout: another process holds it.
        """
        try:
            self._lock.acquire(timeout=-1 if wait else 0)
        except OSError as error:
            if isinstance(error, Timeout) or error.errno not in NO_LOCKS:
                raise
            self.path.unlink(missing_ok=True)
            self._lease(wait)

    def release(self) -> None:
        """Release the lock. Its file is not removed, because another process may wait for it."""
        self._lock.release()

    def _lease(self, wait: bool) -> None:
        device = self.path.parent.stat().st_dev
        if device not in _warned:
            _warned.add(device)
            logger.warning(
                "the file system of %s has no locks: leases of %.0f seconds are used instead",
                self.path.parent,
                LEASE,
            )
        file = self.path.with_name(f"{self.path.name}.lease")
        self._lock = SoftFileLease(file, lease_duration=LEASE, thread_local=False)
        if wait:
            self._lock.acquire()
            return
        seen = _renewed(file)
        self._lock.acquire(timeout=1.5 * LEASE, cancel_check=lambda: _renewed(file) not in (seen, None))

    def __enter__(self) -> Lock:
        self.acquire()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.release()


def supports_locks(folder: Path) -> bool:
    """Return whether processes can lock regions of the files in a folder, as SQLite does."""
    if sys.platform == "win32":
        return True
    import fcntl

    with tempfile.TemporaryFile(dir=folder) as file:
        try:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno in NO_LOCKS:
                return False
            raise
    return True


def is_network_file_system(folder: Path) -> bool:
    """Return whether a folder may be mounted by several machines, whose processes share no memory."""
    import psutil

    folder = folder.resolve()
    try:
        partitions = psutil.disk_partitions(all=True)
    except OSError:  # there is no /proc, so the mount is not known
        return True
    mounts = [
        (len(Path(mount.mountpoint).parts), mount.fstype.lower())
        for mount in partitions
        if folder.is_relative_to(mount.mountpoint)
    ]
    return max(mounts, default=(0, ""))[1].startswith(NETWORK)


def _renewed(file: Path) -> int | None:
    """Return the time at which a lease was last renewed; None if nobody holds it."""
    try:
        return file.stat().st_mtime_ns
    except OSError:
        return None
