"""A teacher that runs on this machine."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import datasets
import torch

from kdcli.config import Count
from kdcli.models import Source, fast_bf16, label_order, load_tokenizer, load_whole
from kdcli.signal import Signal
from kdcli.tasks.base import Task
from kdcli.teachers.base import Teacher


class LocalTeacher(Teacher):
    """A checkpoint with a head for the task, in eval mode and without gradients.

    Args:
        batch_size: rows in one forward pass.
    """

    def __init__(self, batch_size: Count = 64):
        self.batch_size = batch_size

    def open(self, source: Source, task: Task, max_length: int, precision: str) -> None:
        """Load the model.

        Raises:
            ModelError, TeacherError: it cannot be loaded, its head is missing, or its labels are not the data's.
        """
        self.model = load_whole(source, task)
        self.tokenizer = load_tokenizer(source, self.model)
        self.order = label_order(self.model.config, task.labels, source.name)
        self.model.requires_grad_(False).eval()
        if torch.cuda.is_available():
            torch.nn.Module.cuda(self.model)
        self.task, self.max_length, self.bf16 = task, max_length, fast_bf16(precision)

    def signals(self, examples: Sequence[Mapping[str, Any]]) -> Signal:
        """The logits of each row, in its own tokenization: (N, C)."""
        rows = datasets.Dataset.from_list(list(examples))
        encoded = self.task.encode(self.tokenizer, rows, self.max_length)
        logits = self.task.predict(self.model, self.tokenizer, encoded, self.batch_size, self.bf16)
        return Signal(torch.from_numpy(logits[:, self.order]))
