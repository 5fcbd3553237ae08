"""What a task is: preprocessing, the collator, which positions count, and the scores."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import datasets
import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset as TorchDataset
from transformers import PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

from kdcli.signal import Signal

IGNORE = -100
"""The label of a position that has no gold label (`ignore_index`)."""


class Encoded(TorchDataset[dict[str, Any]]):
    """Tokenized rows, flat in memory: one int32 array a key and the offsets of the rows.

    An item is the mapping that the collator gets: the row's arrays, its label, and its number in the split.
    """

    def __init__(self, columns: Mapping[str, np.ndarray], offsets: np.ndarray, labels: np.ndarray):
        self.columns = dict(columns)
        self.offsets = offsets
        self.labels = labels

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def __getitem__(self, row: int) -> dict[str, Any]:
        at = slice(self.offsets[row], self.offsets[row + 1])
        return {name: flat[at] for name, flat in self.columns.items()} | {
            "label": self.labels[row],
            "row": row,
        }

    @property
    def lengths(self) -> np.ndarray:
        """Tokens of each row, (N,)."""
        return np.diff(self.offsets)


@dataclass(frozen=True)
class Split:
    """Rows in their raw form, and tokenized for the student; the row numbers are the same."""

    rows: datasets.Dataset
    encoded: Encoded


class Task(ABC):
    """One kind of work. A subclass is the one public class of `kdcli/tasks/<name>.py`.

    Args:
        labels: the names of the classes, in the order of the logits.
    """

    metric: ClassVar[str]
    """The headline metric: higher is better."""
    head: ClassVar[str]
    """How the class names of models with a head for this task end (`architectures` in config.json)."""

    def __init__(self, labels: Sequence[str]):
        self.labels = list(labels)

    @abstractmethod
    def configure(self, config: PreTrainedConfig) -> PreTrainedConfig:
        """Write what the task needs (number and names of labels) into a model's config."""

    @abstractmethod
    def create(self, config: PreTrainedConfig) -> PreTrainedModel:
        """A model with random weights."""

    @abstractmethod
    def load(self, path: Path, **kwargs: Any) -> tuple[PreTrainedModel, bool]:
        """The checkpoint as a model for this task, and whether its head is new (random)."""

    @abstractmethod
    def encode(self, tokenizer: PreTrainedTokenizerBase, rows: Any, max_length: int) -> Encoded:
        """Tokenize a split's rows."""

    @abstractmethod
    def collate(
        self, features: Sequence[dict[str, Any]], tokenizer: PreTrainedTokenizerBase
    ) -> dict[str, Tensor]:
        """Pad a batch to its longest row: the model's inputs, and `labels`."""

    @abstractmethod
    def positions(self, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Which positions count.

        Returns:
            `pick`, an index into the model's positions, and the labels there, (N,).
        """

    @abstractmethod
    def signal(self, outputs: Any, pick: Tensor) -> Signal:
        """What a model's outputs say at the picked positions, (N, C), fp32."""

    @abstractmethod
    def scores(self, logits: np.ndarray, labels: np.ndarray) -> dict[str, Any]:
        """All metrics of (N, C) logits against (N,) labels; `scores[self.metric]` is the headline."""

    @abstractmethod
    def merits(self, logits: np.ndarray, labels: np.ndarray) -> np.ndarray:
        """Each example's share of the headline metric, (N,): its mean is the metric."""

    @torch.inference_mode()
    def predict(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        encoded: Encoded,
        batch_size: int = 64,
        bf16: bool = False,
    ) -> np.ndarray:
        """Logits of every row, fp32 (N, C) in the rows' order. Batches are made of rows of like length."""
        model.eval()
        order = np.argsort(encoded.lengths, kind="stable")
        out: np.ndarray | None = None
        for start in range(0, len(order), batch_size):
            rows = order[start : start + batch_size]
            batch = self.collate([encoded[int(row)] for row in rows], tokenizer)
            pick, _ = self.positions(batch.pop("labels"))
            inputs = {name: tensor.to(model.device) for name, tensor in batch.items() if name != "rows"}
            with torch.autocast(model.device.type, torch.bfloat16, enabled=bf16):
                outputs = model(**inputs)
            logits = self.signal(outputs, pick.to(model.device)).logits.cpu().numpy()
            if out is None:
                out = np.empty((len(encoded), logits.shape[1]), np.float32)
            out[rows] = logits
        return out if out is not None else np.empty((0, len(self.labels)), np.float32)
