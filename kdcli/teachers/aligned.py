"""Maps the outputs of a teacher to the positions of a student that has another tokenizer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import datasets
import torch
from transformers import PreTrainedTokenizerBase

from kdcli.signals import AnySignal
from kdcli.tasks.base import Task
from kdcli.teachers.base import Compress, Teacher, identity


class AlignedTeacher(Teacher):
    """Maps a teacher's outputs to the student's positions, at characters of the text where both tokenizers begin a token.

    At such a position both models have read the same text and predict its continuation. At the student's other positions
    the teacher has no output (`matched` is False).

    Args:
        inner: gives outputs at its own positions.
        max_length: the maximum number of tokens of a row, for both tokenizers.
    """

    def __init__(
        self,
        inner: Teacher,
        task: Task,
        teacher_tokenizer: PreTrainedTokenizerBase,
        student_tokenizer: PreTrainedTokenizerBase,
        max_length: int,
    ):
        self.inner, self.task, self.max_length = inner, task, max_length
        self.teacher_tokenizer, self.student_tokenizer = teacher_tokenizer, student_tokenizer

    def outputs(
        self, examples: Sequence[Mapping[str, Any]], compress: Compress = identity
    ) -> list[AnySignal]:
        """Return the teacher's outputs at the student's counted positions."""
        table = datasets.Dataset.from_list([dict(example) for example in examples])
        teacher_rows, student_rows = (
            self.task.encode(tokenizer, table, self.max_length)
            for tokenizer in (self.teacher_tokenizer, self.student_tokenizer)
        )
        positions = self.task.aligned(teacher_rows, student_rows)
        return [
            replace(signal.at(torch.from_numpy(at)), matched=torch.from_numpy(matched))
            for signal, (at, matched) in zip(self.inner.outputs(examples, compress), positions, strict=True)
        ]
