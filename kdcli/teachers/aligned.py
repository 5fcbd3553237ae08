"""A teacher that cuts the text into other tokens than the student."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import datasets
import torch
from transformers import PreTrainedTokenizerBase

from kdcli.signals import AnySignal
from kdcli.tasks.causal_lm.task import CausalLM
from kdcli.teachers.base import Keep, Teacher, identity


class AlignedTeacher(Teacher):
    """What a teacher says at the student's positions, where both begin a token at the same place of the text.

    There both have read the same, and say how the same text goes on. Elsewhere the teacher says nothing (`matched`).

    Args:
        inner: answers at its own positions.
        theirs, ours: the teacher's and the student's tokenizer.
        max_length: tokens a row, for either.
    """

    def __init__(
        self,
        inner: Teacher,
        task: CausalLM,
        theirs: PreTrainedTokenizerBase,
        ours: PreTrainedTokenizerBase,
        max_length: int,
    ):
        self.inner, self.task, self.max_length = inner, task, max_length
        self.theirs, self.ours = theirs, ours

    def rows(self, examples: Sequence[Mapping[str, Any]], keep: Keep = identity) -> list[AnySignal]:
        """The teacher's answers at the student's counted positions."""
        table = datasets.Dataset.from_list([dict(example) for example in examples])
        theirs, ours = (self.task.encode(own, table, self.max_length) for own in (self.theirs, self.ours))
        places = self.task.aligned(theirs, ours)
        return [
            replace(signal.at(torch.from_numpy(at)), matched=torch.from_numpy(matched))
            for signal, (at, matched) in zip(self.inner.rows(examples, keep), places, strict=True)
        ]
