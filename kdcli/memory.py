"""Reads the memory of this process from the system. Imports nothing that takes memory itself."""

from __future__ import annotations

import contextlib
import ctypes
import sys
from pathlib import Path


def restart_peak() -> int | None:
    """Reset the peak memory of this process, if the system allows it, and return its memory in bytes; None if the system does not report it."""
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")
    return _status("VmRSS") or peak_memory()


def peak_memory() -> int | None:
    """Return the peak memory of this process in bytes; None if the system does not report it.

    On Linux it is VmHWM, because the value of getrusage begins at the parent's peak after fork and exec.
    """
    if (peak := _status("VmHWM")) is not None:
        return peak
    try:
        import resource
    except ImportError:  # Windows
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def free_memory() -> int | None:
    """Return the bytes of memory that this process can still take, of the system and of its control group; None if the system does not report it."""
    limits = []
    with contextlib.suppress(OSError, ValueError, StopIteration):
        lines = Path("/proc/meminfo").read_text().splitlines()
        available = next(line for line in lines if line.startswith("MemAvailable:"))
        limits.append(int(available.split()[1]) * 1024)
    with contextlib.suppress(OSError, ValueError):  # "max": there is no limit
        group = Path("/sys/fs/cgroup")
        most, used = (int((group / f"memory.{name}").read_text()) for name in ("max", "current"))
        cached = dict(line.split() for line in (group / "memory.stat").read_text().splitlines())
        limits.append(most - used + int(cached.get("inactive_file", 0)))
    return min(limits, default=None)


def trim() -> None:
    """Return freed memory to the system, where the C library can: glibc keeps what a thread has freed for this thread."""
    with contextlib.suppress(AttributeError, OSError, TypeError):
        ctypes.CDLL(None).malloc_trim(0)


def free_swap() -> int:
    """Return the bytes of swap space that the system, and the control group of this process, can still take; 0 if it does not report it."""
    limits = []
    with contextlib.suppress(OSError, ValueError, StopIteration):
        lines = Path("/proc/meminfo").read_text().splitlines()
        limits.append(int(next(line for line in lines if line.startswith("SwapFree:")).split()[1]) * 1024)
    with contextlib.suppress(OSError, ValueError):  # "max": there is no limit
        group = Path("/sys/fs/cgroup")
        most, used = (int((group / f"memory.swap.{name}").read_text()) for name in ("max", "current"))
        limits.append(most - used)
    return min(limits, default=0)


def _status(field: str) -> int | None:
    with contextlib.suppress(OSError):
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith(f"{field}:"):
                return int(line.split()[1]) * 1024
    return None
