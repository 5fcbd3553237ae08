"""What an export says of its files, and what `kdcli eval` finds of them later."""

from __future__ import annotations

from pathlib import Path

import pytest
from support.commands import naming

from kdcli.config.schema import Budget
from kdcli.errors import ModelError
from kdcli.exporting.artifacts import hashes_of, require_unchanged
from kdcli.exporting.gates import check_budget

KINDS = {
    "model.onnx": ["model.onnx", "model.onnx.data"],
    "model.int8.xml": ["model.int8.xml", "model.int8.bin"],
    "model.q8_0.gguf": ["model.q8_0.gguf"],
    "ctranslate2": ["ctranslate2/config.json", "ctranslate2/model.bin"],
    "bf16": ["bf16/config.json", "bf16/model.safetensors"],
    "model.fp16.mlpackage": ["model.fp16.mlpackage/Data/weights/weight.bin", "model.fp16.mlpackage/Manifest.json"],
}  # fmt: skip


@pytest.mark.parametrize("name", KINDS)
def test_a_file_that_is_not_the_exported_one_is_found_out(name: str, tmp_path: Path) -> None:
    """Weights beside a graph, or in a folder, that were cut off or come from another student: the runtime may well run them."""
    for file in [*KINDS[name], "config.json", "model.fp32.pte", "notes.txt"]:
        (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / file).write_bytes(file.encode() * 100)
    artifact = tmp_path / name
    hashes = hashes_of(artifact)
    assert list(hashes) == KINDS[name]
    require_unchanged(artifact, "cpu", hashes)
    for file in KINDS[name]:
        whole = (tmp_path / file).read_bytes()
        for other, word in ((whole[:-1], "truncated"), (whole[::-1], "another"), (None, "gone")):
            (tmp_path / file).unlink()
            if other is not None:
                (tmp_path / file).write_bytes(other)
            with pytest.raises(ModelError, match=naming(file, "exported", word, "export again")):
                require_unchanged(artifact, "cpu", hashes)
            (tmp_path / file).write_bytes(whole)
    require_unchanged(artifact, "cpu", {})  # of an export that recorded no hashes


NEEDS = {
    "bytes": 4_000_000,
    "latency_ms": {"p50": 1.0, "p95": 3.0, "p99": 9.0},
    "peak_memory_bytes": 50_000_000,
    "retention": 0.97,
    "parity": {"agreement": 0.98},
}


@pytest.mark.parametrize(
    ("limit", "kept", "missed", "value"),
    [
        ("max_bytes", 4_000_000, 3_999_999, 4_000_000),
        ("max_latency_ms_p95", 3.0, 2.9, 3.0),
        ("max_memory_bytes", 50_000_000, 49_999_999, 50_000_000),
        ("min_retention", 0.97, 0.98, 0.97),
        ("min_agreement", 0.98, 0.99, 0.98),
    ],
)
def test_each_limit_is_held_against_its_own_figure(
    limit: str, kept: float, missed: float, value: float
) -> None:
    """A limit that is read nowhere, is held against the p50, or is kept from the wrong side; or a figure that nobody knows and that passes."""
    assert check_budget(Budget(), NEEDS) == {"met": True}
    assert check_budget(Budget(**{limit: kept}), NEEDS) == {
        limit: {"limit": kept, "value": value, "met": True},
        "met": True,
    }
    assert check_budget(Budget(**{limit: missed}), NEEDS) == {
        limit: {"limit": missed, "value": value, "met": False},
        "met": False,
    }
    both = Budget(**{"max_bytes": 4e6, "min_agreement": 0.98, limit: missed})
    assert not check_budget(both, NEEDS)["met"]
    unknown = {
        "bytes": None,
        "latency_ms": {"p95": None},
        "peak_memory_bytes": None,
        "retention": None,
        "parity": None,
    }
    assert check_budget(Budget(**{limit: kept}), unknown) == {
        limit: {"limit": kept, "value": None, "met": False},
        "met": False,
    }
