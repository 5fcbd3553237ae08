"""What a teacher is."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any

from kdcli.models import Source
from kdcli.signal import Signal
from kdcli.tasks.base import Task


class Teacher(ABC):
    """Answers raw rows; how it tokenizes them, and where it runs, nobody else sees."""

    def open(self, source: Source, task: Task, max_length: int, precision: str) -> None:  # noqa: B027
        """Get ready to answer: called once, before the first question, with the checkpoint and the run's task.

        The constructor's arguments are config and cost nothing; what is loaded is loaded here.

        Args:
            max_length: tokens a row.
            precision: auto, fp32 or bf16 (autocast; logits are fp32 in any case).
        """

    @abstractmethod
    def signals(self, examples: Sequence[Mapping[str, Any]]) -> Signal:
        """What the teacher says of each row (`id`, `text`, …): logits (N, C), in the order of the data's labels."""
