"""What a teacher is."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar

from kdcli.config.schema import Rollout
from kdcli.errors import TeacherError
from kdcli.models.checkpoint import Checkpoint
from kdcli.signals import AnySignal, Part, concatenate
from kdcli.tasks.base import Task

Keep = Callable[[AnySignal], AnySignal]


def identity(signal: AnySignal) -> AnySignal:
    """Nothing smaller."""
    return signal


class Teacher(ABC):
    """Answers raw rows; how it tokenizes them, and where it runs, nobody else sees."""

    remote: ClassVar[bool] = False
    """It has no checkpoint: one can only ask it."""

    def open(self, source: Checkpoint, task: Task, max_length: int, precision: str) -> None:  # noqa: B027
        """Get ready to answer: called once, before the first question, with the checkpoint and the run's task.

        The constructor's arguments are config and cost nothing; what is loaded is loaded here.

        Args:
            max_length: tokens a row.
            precision: auto, fp32 or bf16 (autocast; logits are fp32 in any case).
        """

    def truncate_vocabulary(self, classes: int) -> None:
        """Answer with the first so many classes alone, as if there were no others: those that the student has. Called after `open`, if
        the teacher's vocabulary has more.

        Raises:
            TeacherError: this kind of teacher does not.
        """
        raise TeacherError(
            f"{type(self).__name__} knows more tokens than the student, and cannot leave them out; use a student with the teacher's tokenizer"
        )

    @abstractmethod
    def rows(self, examples: Sequence[Mapping[str, Any]], keep: Keep = identity) -> list[AnySignal]:
        """What the teacher says of each row (`id`, `text`, …), at its counted positions, in their order.

        A classifier says logits (1, C) in the order of the data's labels; a language model says something about each
        token that counts.

        Args:
            keep: makes something smaller of each batch's signal, so that the whole is never in memory.
        """

    def write(self, examples: Sequence[Mapping[str, Any]], how: Rollout, seed: int) -> list[str | None]:
        """The teacher's own answer to each row's prompt; None: it was cut off at `how.max_new_tokens`.

        Args:
            seed: of what is drawn, together with a row's id.

        Raises:
            TeacherError: this kind of teacher does not write.
        """
        raise TeacherError(f"{type(self).__name__} does not write: rollout=teacher needs a teacher that does")

    def signals(self, examples: Sequence[Mapping[str, Any]]) -> AnySignal:
        """What the teacher says of a batch of rows, one row after the other."""
        return concatenate(self.rows(examples))

    def outputs_with_features(
        self, examples: Sequence[Mapping[str, Any]], parts: frozenset[Part]
    ) -> AnySignal:
        """What the teacher says of a batch of rows, with what goes on inside it meanwhile.

        Args:
            parts: what is wanted of its inside; nothing: this is `signals`.

        Raises:
            TeacherError: this kind of teacher cannot be looked into.
        """
        if parts:
            raise TeacherError(
                f"{type(self).__name__} says nothing of its inside ({', '.join(sorted(parts))}); leave the loss terms out that "
                "read it, or use a teacher that runs here (kdcli.teachers.local.LocalTeacher)"
            )
        return self.signals(examples)
