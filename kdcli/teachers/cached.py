"""A teacher's answers on disk: asked once, read in every epoch and in later runs."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import datasets
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from kdcli.files import digest, replaced
from kdcli.signal import Signal
from kdcli.teachers.base import Teacher

logger = logging.getLogger(__name__)
SHARD = 4096
"""Rows in a shard: what is lost when the fetching is killed."""


class CachedTeacher(Teacher):
    """Answers looked up by the row's id, which is a hash of its content.

    The folder belongs to one teacher, tokenizer, maximum length, precision and list of rows (the caller's
    key): its shards are always made of the same rows in the same batches, so that a cold and a warm cache
    hold the same bits. A shard that cannot be read, or is of other rows, is named and made again.
    """

    def __init__(self, folder: Path):
        self.folder = folder
        self.index: dict[str, int] = {}
        self.logits = torch.empty(0)

    def fetch(
        self, rows: datasets.Dataset, ask: Callable[[], Teacher], progress: Callable[[int], None]
    ) -> None:
        """Read what is there, and ask the teacher for the rest.

        Args:
            ask: gives the teacher; called only if a shard is missing.
            progress: called with the number of rows that are answered so far.
        """
        parts = []
        for start in range(0, len(rows), SHARD):
            chunk = rows.select(range(start, min(start + SHARD, len(rows))))
            path = self.folder / f"{digest(list(chunk['id']))[:32]}.safetensors"
            logits = _read(path, len(chunk))
            if logits is None:
                logits = ask().signals(list(chunk)).logits.contiguous()
                with replaced(path) as temporary:
                    save_file({"logits": logits}, temporary)
            parts.append(logits)
            progress(start + len(chunk))
        self.logits = torch.cat(parts)
        self.index = {key: row for row, key in enumerate(rows["id"])}

    def signals(self, examples: Sequence[Mapping[str, Any]]) -> Signal:
        """The stored logits of rows that were fetched, (N, C)."""
        return Signal(self.logits[[self.index[example["id"]] for example in examples]])


def _read(path: Path, rows: int) -> torch.Tensor | None:
    if not path.is_file():
        return None
    try:
        logits = load_file(path)["logits"]
    except (SafetensorError, KeyError, OSError) as error:
        logger.warning("the teacher's answers in %s cannot be read (%s) and are made again", path, error)
        return None
    return logits if len(logits) == rows else None
