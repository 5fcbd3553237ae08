"""The script of the figures that need a GPU, at tiny sizes on a CPU."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import gpu
import pytest

SIZES = replace(gpu.TINY, positions=64, vocabulary=512, steps=2, warm=0)


def test_the_benchmark_of_a_gpu_runs_on_a_cpu(tmp_path: Path) -> None:
    """A script that fails on the one machine with a GPU, because a function that it calls has changed since."""
    gpu.prepare("", "cpu", SIZES, str(tmp_path))
    rows = gpu.head(gpu.KDCLI, "cpu", SIZES, "")
    assert list(rows) == list(gpu.PRECISIONS)
    assert rows[gpu.PRECISIONS[0]]["loss"] == pytest.approx(rows[gpu.PRECISIONS[1]]["loss"], rel=0.01)
    for part in (gpu.offline, gpu.on_policy):
        (result,) = part(gpu.KDCLI, "cpu", SIZES, str(tmp_path)).values()
        assert result["seconds"] > 0
        assert result["memory"] > 0


def test_a_result_that_differs_is_named() -> None:
    """A method that is twice as fast because it computes something else; a ratio upside down; a method that is missing and breaks the table."""
    own = [{"seconds": 1.0, "memory": 2.0, "loss": 0.5}]
    same, other = {"seconds": 4.0, "memory": 4.0, "loss": 0.501}, {"seconds": 0.5, "memory": 1.0, "loss": 0.7}
    assert gpu.result_cells([same], own) == ["4 s", "0.25", "4.00 GB", "0.50", "loss 0.501"]
    assert "another result" in gpu.result_cells([other], own)[-1]
    assert gpu.result_cells([{"failed": "not installed"}], own) == ["not installed", "", "", "", ""]
