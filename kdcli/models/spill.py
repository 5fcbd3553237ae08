"""Stores the hidden states of blocks of rows on disk, between two layers of a model."""

from __future__ import annotations

import json
import logging
import os
import zlib
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from kdcli.models.weights import read_into

logger = logging.getLogger(__name__)
UNKNOWN = -1
"""The state of a block whose hidden states are not stored."""
FINISHED = ".states"


class Spill:
    """Keeps one file for each block, BLOCK.DEPTH.states: its hidden states after DEPTH layers, where depth 0 is the embeddings. The file of a
    block replaces the one before it, so that a killed process loses one block of one layer.

    Args:
        folder: where the files are. No other process uses it. It is created.
    """

    def __init__(self, folder: Path):
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        self._depths: dict[str, int] = {}
        for path in folder.glob(f"*{FINISHED}"):
            block, depth = path.name.removesuffix(FINISHED).rsplit(".", 1)
            self._depths[block] = max(int(depth), self.depth(block))

    def depth(self, block: str) -> int:
        """Return the number of layers after which the states of a block are stored; `UNKNOWN`: none are stored."""
        return self._depths.get(block, UNKNOWN)

    @property
    def nbytes(self) -> int:
        """The bytes that are stored."""
        return sum(path.stat().st_size for path in self.folder.iterdir())

    def write(self, block: str, depth: int, states: Tensor) -> None:
        """Store the states of a block after `depth` layers, in their dtype, and remove the earlier ones."""
        data = states.detach().cpu().contiguous()
        view = _bytes(data)
        about = {"dtype": str(data.dtype), "shape": list(data.shape), "checksum": zlib.crc32(view)}
        partial = self.folder / f"{block}.partial"
        with partial.open("wb", buffering=0) as file:
            file.write(json.dumps(about).encode() + b"\n")
            done = 0
            while done < len(view):
                done += file.write(view[done:])
        os.replace(partial, self._path(block, depth))
        if (before := self.depth(block)) not in (UNKNOWN, depth):
            self._path(block, before).unlink(missing_ok=True)
        self._depths[block] = depth

    def read(self, block: str) -> Tensor | None:
        """Return the states of a block. None: the file was damaged; it is removed with a warning, and the block starts from the embeddings again."""
        path = self._path(block, self.depth(block))
        try:
            with path.open("rb", buffering=0) as file:
                about = json.loads(file.readline())
                dtype = getattr(torch, about["dtype"].removeprefix("torch."))
                states = torch.empty(about["shape"], dtype=dtype)
                read_into(file, states.view(torch.uint8).reshape(-1))
            if zlib.crc32(_bytes(states)) != about["checksum"]:
                raise ValueError("its checksum does not match")
            return states
        except (OSError, ValueError, KeyError, AttributeError) as error:
            logger.warning("the hidden states in %s cannot be used (%s) and are computed again", path, error)
            self.remove(block)
            return None

    def remove(self, block: str) -> None:
        """Remove the states of a block, which starts from the embeddings again."""
        self._path(block, self._depths.pop(block, UNKNOWN)).unlink(missing_ok=True)

    def _path(self, block: str, depth: int) -> Path:
        return self.folder / f"{block}.{depth}{FINISHED}"


def _bytes(tensor: Tensor) -> memoryview:
    array: Any = tensor.view(torch.uint8).reshape(-1).numpy()
    return memoryview(array)
