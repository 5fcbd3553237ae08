"""Computes the checksum of a file of teacher outputs while it is written, and checks it without torch."""

from __future__ import annotations

import hashlib
import json
import mmap
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from kdcli.files import digest

DTYPES = {
    "F64": "torch.float64",
    "F32": "torch.float32",
    "F16": "torch.float16",
    "BF16": "torch.bfloat16",
    "I64": "torch.int64",
    "I32": "torch.int32",
    "U16": "torch.uint16",
    "U8": "torch.uint8",
}
"""The names of dtypes in safetensors, and those that enter the checksum."""
CHECKSUM = "checksum"
"""The key of the metadata that holds it."""


def checksum(tensors: Iterable[tuple[str, tuple[int, ...], str, Any]], about: Mapping[str, str]) -> str:
    """Return the sha256 of tensors and of the metadata.

    Args:
        tensors: of each one its name, its shape, the name of its dtype in torch, and its bytes; in any order.
        about: the metadata, without the checksum.
    """
    total = hashlib.sha256(digest(about).encode())
    for name, shape, dtype, data in sorted(tensors, key=lambda each: each[0]):
        total.update(f"{name} {tuple(shape)} {dtype}".encode())
        total.update(data)
    return total.hexdigest()


def is_unchanged(path: Path) -> bool:
    """Return whether the content of a file has the checksum that it records."""
    with path.open("rb") as stream, mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as data:
        start = 8 + int.from_bytes(data[:8], "little")
        header = json.loads(data[8:start])
        about = dict(header.pop("__metadata__", {}))
        recorded = about.pop(CHECKSUM, None)
        with memoryview(data) as view:
            tensors = []
            for name, entry in header.items():
                first, last = entry["data_offsets"]
                part = view[start + first : start + last]
                tensors.append((name, tuple(entry["shape"]), DTYPES[entry["dtype"]], part))
            computed = checksum(tensors, about)
            for *_, part in tensors:
                part.release()
    return recorded == computed
