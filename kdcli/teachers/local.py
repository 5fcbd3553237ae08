"""A teacher that runs on this machine."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import datasets
import torch

from kdcli.config.schema import Rollout
from kdcli.config.types import BatchSize
from kdcli.generation import seed_of
from kdcli.models.checkpoint import Checkpoint, fast_bf16, label_order, load_ready, load_tokenizer
from kdcli.signals import AnySignal, Part
from kdcli.tasks.base import Task
from kdcli.teachers.base import Keep, Teacher, identity


class LocalTeacher(Teacher):
    """A checkpoint with a head for the task, in eval mode and without gradients.

    Args:
        batch_size: rows in one forward pass.
    """

    def __init__(self, batch_size: BatchSize = 64):
        self.batch_size = batch_size

    def open(self, source: Checkpoint, task: Task, max_length: int, precision: str) -> None:
        """Load the model.

        Raises:
            ModelError, TeacherError: it cannot be loaded, its head is missing, or its labels are not the data's.
        """
        self.model = load_ready(source, task).requires_grad_(False)
        self.tokenizer = load_tokenizer(source, self.model)
        self.order = label_order(self.model.config, task.labels, source.name) if task.labels else None
        self.classes = len(task.labels) or max(self.tokenizer.get_vocab().values()) + 1
        self.task, self.max_length, self.bf16 = task, max_length, fast_bf16(precision)

    def truncate_vocabulary(self, classes: int) -> None:
        """Logits of the further classes are left out before their softmax, so that the others' probabilities sum to 1."""
        self.classes = min(self.classes, classes)

    def rows(self, examples: Sequence[Mapping[str, Any]], keep: Keep = identity) -> list[AnySignal]:
        """In the teacher's own tokenization. Classes beyond the tokenizer's last token, which pad embeddings, are left out."""
        table = datasets.Dataset.from_list(list(examples))
        encoded = self.task.encode(self.tokenizer, table, self.max_length)
        found: dict[int, AnySignal] = {}
        for numbers, said, labels in self.task.batches(
            self.model, self.tokenizer, encoded, self.batch_size, self.bf16, self.order
        ):
            kept = keep(said.first(self.classes))
            start = 0
            for number, part in zip(numbers.tolist(), labels, strict=True):
                found[number] = kept.at(slice(start, start + len(part)))
                start += len(part)
        return [found[number] for number in range(len(table))]

    def outputs_with_features(
        self, examples: Sequence[Mapping[str, Any]], parts: frozenset[Part]
    ) -> AnySignal:
        """One forward pass over all rows as they come, so that they are padded as the student's are."""
        if not parts:
            return self.signals(examples)
        encoded = self.task.encode(
            self.tokenizer, datasets.Dataset.from_list(list(examples)), self.max_length
        )
        features = [encoded[row] for row in range(len(encoded))]
        said, _ = self.task.forward_rows(self.model, self.tokenizer, features, self.bf16, self.order, parts)
        return said.first(self.classes)

    def write(self, examples: Sequence[Mapping[str, Any]], how: Rollout, seed: int) -> list[str | None]:
        """Answers by the task's prompts, in the precision of the teacher's signals."""
        table = datasets.Dataset.from_list(list(examples))
        options: dict[str, Any] = {
            "max_new_tokens": how.max_new_tokens,
            "batch_size": how.batch_size,
            "temperature": how.sampling_temperature,
            "seeds": [seed_of(seed, row["id"]) for row in examples],
        }
        if self.task.searches:
            options |= how.model_dump(include={"num_beams", "length_penalty", "candidates"})
        with torch.autocast(self.model.device.type, torch.bfloat16, enabled=self.bf16):
            replies = self.task.replies(self.model, self.tokenizer, table, self.max_length, **options)
        if how.candidates == 1:
            return [text if whole else None for text, whole in replies]
        texts = [text for text, _ in replies]
        each = [texts[start : start + how.candidates] for start in range(0, len(texts), how.candidates)]
        return [
            self.task.nearest(some, row["target"]) if row["target"] is not None else some[0]
            for some, row in zip(each, examples, strict=True)
        ]
