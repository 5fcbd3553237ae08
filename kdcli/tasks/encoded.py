"""Stores tokenized rows in memory, caches them, and pads them to batches."""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from typing import Any

import datasets
import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset as TorchDataset
from transformers import PreTrainedTokenizerBase

from kdcli.tasks.rows import IGNORE

TARGETS = ("target", "labels")
"""Columns of the second sequence of a row, if it has two."""
MOST_BYTES = 2**30
"""The maximum number of bytes that the tokenized splits of a task may take."""


class Encoded(TorchDataset[dict[str, Any]]):
    """Tokenized rows, flat in memory: an array for each key, and the offsets of the rows.

    An item is the mapping that the collator gets: the arrays of the row, its label if rows have one, and its index.

    Attributes:
        columns: per token, concatenated over the rows.
        labels: one for each row, int64; None if there are labels in `columns`.
        target_offsets: the offsets of the columns `TARGETS`, if rows have a second sequence that is generated.
        pairs: the source and the target of each row as text, if generated texts are compared with them.
        notes: counts of what is learned from the rows and what is omitted, by name.
        votes: the labels that several annotators gave each row, if a loss takes their shares.
    """

    def __init__(
        self,
        columns: Mapping[str, np.ndarray],
        offsets: np.ndarray,
        labels: np.ndarray | None = None,
        target_offsets: np.ndarray | None = None,
        pairs: Sequence[tuple[str, str]] = (),
        notes: Mapping[str, int] | None = None,
        votes: Sequence[Sequence[int]] | None = None,
    ):
        self.columns = dict(columns)
        self.offsets = offsets
        self.labels = labels
        self.target_offsets = target_offsets
        self.pairs = pairs
        self.notes = dict(notes or {})
        self.votes = votes

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def __getitem__(self, row: int) -> dict[str, Any]:
        item: dict[str, Any] = {}
        for name, flat in self.columns.items():
            offsets = self._offsets(name)
            item[name] = flat[offsets[row] : offsets[row + 1]]
        if self.labels is not None:
            item["label"] = self.labels[row]
        if self.votes is not None:
            item["votes"] = self.votes[row]
        return item | {"row": row}

    @property
    def gold(self) -> np.ndarray:
        """Which rows have a gold label, bool (N,)."""
        if self.labels is not None:
            return self.labels != IGNORE
        return np.maximum.reduceat(self.columns["labels"], self._offsets("labels")[:-1]) >= 0

    @property
    def lengths(self) -> np.ndarray:
        """The number of tokens of each row, (N,), in both sequences if there are two."""
        own = np.diff(self.offsets)
        return own if self.target_offsets is None else own + np.diff(self.target_offsets)

    @property
    def nbytes(self) -> int:
        """The memory that the arrays take."""
        return sum(column.nbytes for column in self.columns.values()) + self.offsets.nbytes

    def counted(self) -> tuple[np.ndarray, np.ndarray]:
        """Return the labels in `columns` that count, int64 (N,), and the number of them in each row."""
        labels = self.columns["labels"].astype(np.int64)
        counted = labels != IGNORE
        return labels[counted], np.add.reduceat(counted.astype(np.int64), self._offsets("labels")[:-1])

    def _offsets(self, name: str) -> np.ndarray:
        return self.offsets if self.target_offsets is None or name not in TARGETS else self.target_offsets


def padded(
    features: Sequence[dict[str, Any]], keys: Iterable[str], tokenizer: PreTrainedTokenizerBase
) -> dict[str, Tensor]:
    """Return columns of rows, padded to the longest row, (B, L), and the indices of the rows, `rows` (B,).

    The padding is on the right, or on the left of rows that end with the class token (XLNet's), which models read at the end.
    """
    left = list(features[0]["input_ids"][-1:]) == [tokenizer.cls_token_id]
    fill = {
        "input_ids": tokenizer.pad_token_id or 0,
        "target": tokenizer.pad_token_id or 0,
        "token_type_ids": tokenizer.pad_token_type_id,
        "labels": IGNORE,
    }
    batch: dict[str, Tensor] = {}
    for key in keys:
        lines = [feature["input_ids" if key == "attention_mask" else key] for feature in features]
        array = np.full((len(lines), max(map(len, lines))), fill.get(key, 0), np.int64)
        for target, line in zip(array, lines, strict=True):
            own = target[len(target) - len(line) :] if left else target[: len(line)]
            own[:] = 1 if key == "attention_mask" else line
        batch[key] = torch.from_numpy(array)
    batch["rows"] = torch.tensor([int(feature["row"]) for feature in features])
    return batch


class SplitCache:
    """Caches tokenized splits by their rows, their tokenizer and the maximum length. Beyond `MOST_BYTES` the least recently used are dropped.

    A run reads the same split for its checks, for each of its phases and for its evaluation, with tokenizers that are loaded again from the
    teacher, the initialised student and the trained one, and give the same tokens.
    """

    def __init__(self) -> None:
        self._splits: OrderedDict[Hashable, tuple[Encoded, PreTrainedTokenizerBase]] = OrderedDict()

    def get(
        self,
        tokenizer: PreTrainedTokenizerBase,
        rows: datasets.Dataset,
        max_length: int,
        encode: Callable[[PreTrainedTokenizerBase, datasets.Dataset, int], Encoded],
    ) -> Encoded:
        """Return the rows as `encode(tokenizer, rows, max_length)` returns them."""
        key = rows._fingerprint, max_length, tokenizer_key(tokenizer)
        if key not in self._splits:
            # the entry holds the tokenizer too, so that no other one can get its id
            self._splits[key] = encode(tokenizer, rows, max_length), tokenizer
            while (
                len(self._splits) > 1 and sum(split.nbytes for split, _ in self._splits.values()) > MOST_BYTES
            ):
                self._splits.popitem(last=False)
        self._splits.move_to_end(key)
        return self._splits[key][0]


def tokenizer_key(tokenizer: PreTrainedTokenizerBase) -> Hashable:
    """Return a value that two tokenizers share only if they cut every text into the same tokens. A tokenizer without a fast backend shares it
    with no other."""
    settings = (
        type(tokenizer).__name__,
        tuple(tokenizer.model_input_names),
        repr(tokenizer.special_tokens_map),
        repr(tokenizer.chat_template),
        tokenizer.truncation_side,
    )
    if not tokenizer.is_fast:
        return *settings, id(tokenizer)
    backend = tokenizer.backend_tokenizer
    backend.no_truncation()  # each call sets truncation and padding again
    backend.no_padding()
    return *settings, hashlib.sha256(backend.to_str().encode()).hexdigest()
