"""Runs a teacher on this machine."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import datasets
import numpy as np
import torch
from torch import Tensor

from kdcli.config.rollout import Rollout
from kdcli.config.types import BatchSize
from kdcli.generation import Reply, seed_of
from kdcli.models.checkpoint import Checkpoint, fast_bf16, label_order, load_ready, load_tokenizer
from kdcli.models.vocabulary import count_ids, target_vocabulary
from kdcli.signals import AnySignal, Part
from kdcli.tasks.base import Task
from kdcli.teachers.base import Compress, Teacher, identity


class LocalTeacher(Teacher):
    """A checkpoint with a head for the task, in eval mode and without gradients.

    Args:
        batch_size: the number of rows in one forward pass.
    """

    def __init__(self, batch_size: BatchSize = 64):
        self.batch_size = batch_size

    def open(self, source: Checkpoint, task: Task, max_length: int, precision: str) -> None:
        """Load the model.

        Raises:
            ModelError, TeacherError: it cannot be loaded, it lacks a head for the task, or its labels are not the data's.
        """
        self.model = load_ready(source, task).requires_grad_(False)
        self.tokenizer = load_tokenizer(source, self.model)
        self.order = label_order(self.model.config, task.labels, source.name) if task.labels else None
        self.classes = len(task.labels) or count_ids(target_vocabulary(self.tokenizer))
        self.task, self.max_length = task, max_length
        is_plain = source.dtype == "fp32" and source.quantization is None
        self.bf16 = is_plain and fast_bf16(precision)  # else it computes in its dtype

    def truncate_vocabulary(self, classes: int) -> None:
        """Drop the logits of the other classes before the softmax, so that the remaining probabilities sum to 1."""
        self.classes = min(self.classes, classes)

    def outputs(
        self, examples: Sequence[Mapping[str, Any]], compress: Compress = identity
    ) -> list[AnySignal]:
        """Return the outputs in the teacher's own tokenization, without the classes beyond the tokenizer's last token, which pad the
        embeddings."""
        table = datasets.Dataset.from_list(list(examples))
        encoded = self.task.encode(self.tokenizer, table, self.max_length)
        by_row: dict[int, AnySignal] = {}
        for indices, signal, labels in self.task.batches(
            self.model, self.tokenizer, encoded, self.batch_size, self.bf16, self.order
        ):
            by_row |= split_rows(indices, compress(signal.first(self.classes)), labels)
        return [by_row[index] for index in range(len(table))]

    def outputs_with_features(
        self, examples: Sequence[Mapping[str, Any]], parts: frozenset[Part]
    ) -> AnySignal:
        """Run one forward pass over all rows in the given order, so that they are padded as the student's rows are."""
        if not parts:
            return self.signals(examples)
        encoded = self.task.encode(
            self.tokenizer, datasets.Dataset.from_list(list(examples)), self.max_length
        )
        features = [encoded[row] for row in range(len(encoded))]
        signal, _ = self.task.forward_rows(self.model, self.tokenizer, features, self.bf16, self.order, parts)
        return signal.first(self.classes)

    def write(self, examples: Sequence[Mapping[str, Any]], rollout: Rollout, seed: int) -> list[str | None]:
        """Return the completions of the task's prompts, in the precision of the teacher's outputs."""
        replies = self._generate(examples, rollout, seed)
        if rollout.candidates == 1:
            return [text if complete else None for text, complete in replies]
        texts = [text for text, _ in replies]
        groups = [
            texts[start : start + rollout.candidates] for start in range(0, len(texts), rollout.candidates)
        ]
        return [
            self.task.nearest(candidates, row["target"]) if row["target"] is not None else candidates[0]
            for candidates, row in zip(groups, examples, strict=True)
        ]

    def replies(self, examples: Sequence[Mapping[str, Any]], rollout: Rollout, seed: int) -> list[Reply]:
        """Return the same as `write`, with the truncated texts; each prompt has `rollout.candidates` consecutive texts."""
        if type(self).write is not LocalTeacher.write:  # a subclass writes otherwise
            return super().replies(examples, rollout, seed)
        return self._generate(examples, rollout, seed)

    def _generate(self, examples: Sequence[Mapping[str, Any]], rollout: Rollout, seed: int) -> list[Reply]:
        table = datasets.Dataset.from_list(list(examples))
        options: dict[str, Any] = {
            "max_new_tokens": rollout.max_new_tokens,
            "batch_size": rollout.batch_size,
            "temperature": rollout.sampling_temperature,
            "seeds": [seed_of(seed, row["id"]) for row in examples],
        }
        if self.task.searches:
            options |= rollout.model_dump(include={"num_beams", "length_penalty", "candidates"})
        with torch.autocast(self.model.device.type, torch.bfloat16, enabled=self.bf16):
            return self.task.replies(self.model, self.tokenizer, table, self.max_length, **options)


def split_rows(rows: np.ndarray, signal: AnySignal, labels: Sequence[Tensor]) -> dict[int, AnySignal]:
    """Return the outputs of each row of a batch, by its index.

    Args:
        signal: of all rows, concatenated.
        labels: of each row.
    """
    by_row, start = {}, 0
    for row, own in zip(rows.tolist(), labels, strict=True):
        by_row[row] = signal.at(slice(start, start + len(own)))
        start += len(own)
    return by_row
