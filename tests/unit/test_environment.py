"""What a result says of the machine that it was measured on."""

from __future__ import annotations

import importlib.metadata
import os
import platform
from pathlib import Path
from typing import Any

import pytest

from kdcli.environment import FLAGS, environment
from kdcli.exporting.packages import required_packages
from kdcli.exporting.targets.base import Target


class Own(Target):
    """A user's own target."""

    packages = ("my_package.sub",)

    def export(self, *given: Any) -> dict[str, Path]:
        return {}


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


def test_the_packages_that_make_and_run_files_are_named() -> None:
    """A file whose figures nobody can repeat, because the version of its runtime is not known; or a package that is not installed."""
    found = environment(["onnxruntime", "ai_edge_litert", "nowhere_at_all"])
    assert found["onnxruntime"] == importlib.metadata.version("onnxruntime")
    assert "nowhere_at_all" not in found
    names = required_packages()
    assert {
        "onnx",
        "onnxruntime",
        "ctranslate2",
        "openvino",
        "nncf",
        "xllamacpp",
        "ai_edge_litert",
        "executorch",
        "torchao",
    } <= {*names}
    assert len(names) == len({*names})
    assert "my_package" in required_packages(Own())
