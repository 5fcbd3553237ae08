"""What a result says of the machine that it was measured on."""

from __future__ import annotations

import os
import platform
from pathlib import Path

import pytest

from kdcli.environment import FLAGS, environment


def test_the_machine_is_told_by_what_makes_it_quick_and_by_its_load() -> None:
    """Times of another machine, or of a busy one, that nobody can tell from this one's: a flag that torch calls otherwise is never told."""
    found = environment()
    assert found["load"] == pytest.approx(os.getloadavg()[0], abs=0.5)
    if platform.machine() == "x86_64":
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        has = set(next(line for line in lines if line.startswith("flags")).split())
        known = {
            flag: flag.replace("avx512_f", "avx512f") for flag in FLAGS if flag.startswith(("avx", "amx"))
        }
        assert found["processor_flags"] == [flag for flag, name in known.items() if name in has]
        assert found["processor"]
