"""The interface of teachers."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from kdcli.config.rollout import Rollout
from kdcli.errors import TeacherError
from kdcli.generation import Reply
from kdcli.models.checkpoint import Checkpoint
from kdcli.signals import AnySignal, Part, concatenate
from kdcli.tasks.base import Task

Compress = Callable[[AnySignal], AnySignal]


def identity(signal: AnySignal) -> AnySignal:
    """Return the signal itself."""
    return signal


class Teacher(ABC):
    """Computes outputs for raw rows. How it tokenizes them, and where it runs, is visible nowhere else."""

    def open(self, source: Checkpoint, task: Task, max_length: int, precision: str) -> None:  # noqa: B027
        """Load the model. Called once, before the first rows, with the checkpoint and the run's task.

        The constructor's arguments come from the config; the constructor loads nothing.

        Args:
            max_length: the maximum number of tokens of a row.
            precision: auto, fp32 or bf16 (autocast; logits are fp32 in any case).
        """

    def truncate_vocabulary(self, classes: int) -> None:
        """Restrict the outputs to the first `classes` classes, which are those of the student. Called after `open`, if the
        teacher's vocabulary is larger than the student's.

        Raises:
            TeacherError: this kind of teacher does not support it.
        """
        raise TeacherError(
            f"{type(self).__name__} has more tokens than the student and cannot leave them out; use a student with the teacher's tokenizer"
        )

    @abstractmethod
    def outputs(
        self, examples: Sequence[Mapping[str, Any]], compress: Compress = identity
    ) -> list[AnySignal]:
        """Return the teacher's outputs for each row (`id`, `text`, …) at its counted positions, in the order of the rows.

        A classifier gives logits (1, C) in the order of the data's labels; a language model gives an output for each counted
        token.

        Args:
            compress: makes the signal of each batch smaller, so that all dense outputs are never in memory at once.
        """

    def write(self, examples: Sequence[Mapping[str, Any]], rollout: Rollout, seed: int) -> list[str | None]:
        """Return the teacher's completion of each row's prompt; None if it was truncated at `rollout.max_new_tokens`.

        Args:
            seed: the seed of sampling, together with a row's id.

        Raises:
            TeacherError: this kind of teacher writes no text.
        """
        raise TeacherError(f"{type(self).__name__} writes no text; give rollout=dataset, or another teacher")

    @property
    def can_write(self) -> bool:
        """Whether this kind of teacher writes text."""
        return type(self).write is not Teacher.write

    def replies(self, examples: Sequence[Mapping[str, Any]], rollout: Rollout, seed: int) -> list[Reply]:
        """Return the same as `write`, with the texts of truncated completions if this kind of teacher gives them."""
        return [Reply(text or "", text is not None) for text in self.write(examples, rollout, seed)]

    def signals(self, examples: Sequence[Mapping[str, Any]]) -> AnySignal:
        """Return the outputs for a batch of rows, concatenated."""
        return concatenate(self.outputs(examples))

    def outputs_with_features(
        self, examples: Sequence[Mapping[str, Any]], parts: frozenset[Part]
    ) -> AnySignal:
        """Return the outputs for a batch of rows, concatenated, with features of the teacher's layers.

        Args:
            parts: the features to capture; with none this is `signals`.

        Raises:
            TeacherError: this kind of teacher gives no features.
        """
        if parts:
            raise TeacherError(
                f"{type(self).__name__} gives no features ({', '.join(sorted(parts))}); leave out the loss terms that "
                "read them, or use a teacher that runs here (kdcli.teachers.local.LocalTeacher)"
            )
        return self.signals(examples)
