"""Reads single tensors of safetensors files into memory of their own: a mapped file would count as memory of this process."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from kdcli.errors import ModelError
from kdcli.model_files import weight_files

KINDS = {
    "F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16,
    "I64": torch.int64, "I32": torch.int32, "I16": torch.int16, "I8": torch.int8, "U8": torch.uint8, "BOOL": torch.bool,
}  # fmt: skip
"""The dtypes of tensors by their names in safetensors files."""
ALIGNMENT = 64
"""The alignment of a weight in memory changes the last bits of matrix products, up to this many bytes. transformers leaves a weight in the
mapped file, where its alignment is that of its offset."""
LENGTH = 8
"""The number of bytes at the beginning of a file that hold the length of its header."""


@dataclass(frozen=True)
class StoredTensor:
    """A tensor in a safetensors file, which is read when it is indexed.

    Attributes:
        start: the offset of its first byte in the file.
    """

    path: Path
    dtype: torch.dtype
    shape: tuple[int, ...]
    start: int

    @property
    def nbytes(self) -> int:
        """Its bytes in the file."""
        return math.prod(self.shape) * self.dtype.itemsize

    def __getitem__(self, index: Any) -> Tensor:
        return self.read()[index]

    def read(self, rows: int | None = None) -> Tensor:
        """Return the tensor, or its first rows, aligned as in the file.

        Raises:
            OSError: the file cannot be read, or ends before the tensor does.
        """
        shape = self.shape if rows is None else (min(rows, self.shape[0]), *self.shape[1:])
        count = math.prod(shape) * self.dtype.itemsize
        buffer = torch.empty(count + 2 * ALIGNMENT, dtype=torch.uint8)
        begin = (self.start - buffer.data_ptr()) % ALIGNMENT
        data = buffer[begin : begin + count]
        with self.path.open("rb", buffering=0) as file:
            file.seek(self.start)
            read_into(file, data)
        return data.view(self.dtype).reshape(shape)


def read_into(file: Any, data: Tensor) -> None:
    """Fill a tensor of bytes from an unbuffered file.

    Raises:
        OSError: the file ends before the tensor is full.
    """
    array: Any = data.numpy()
    view, done = memoryview(array), 0
    while done < len(view):
        count = file.readinto(view[done:])
        if not count:
            raise OSError(f"{file.name} ends after {done} of {len(view)} bytes")
        done += count


def stored_tensors(folder: Path, name: str) -> dict[str, StoredTensor]:
    """Return all tensors of a checkpoint's files, by their names there. Only the headers are read.

    Args:
        name: of the checkpoint, for messages.

    Raises:
        ModelError: one has a dtype of quantized weights.
    """
    tensors = {}
    for path in weight_files(folder):
        with path.open("rb") as file:
            length = int.from_bytes(file.read(LENGTH), "little")
            header = json.loads(file.read(length))
        for key, entry in header.items():
            if key == "__metadata__":
                continue
            if entry["dtype"] not in KINDS:
                raise ModelError(
                    f"{name}: {path.name}: {key} is stored as {entry['dtype']}, and quantized weights cannot be read layer by layer; use "
                    "the checkpoint that was quantized, or teacher.placement=resident"
                )
            start = LENGTH + length + entry["data_offsets"][0]
            tensors[key] = StoredTensor(path, KINDS[entry["dtype"]], tuple(entry["shape"]), start)
    return tensors
