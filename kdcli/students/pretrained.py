"""A student that is a checkpoint already."""

from __future__ import annotations

import datasets
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from kdcli.errors import ModelError, TeacherError
from kdcli.models.checkpoint import (
    Checkpoint,
    has_head,
    label_order,
    load_model,
    load_tokenizer,
    with_new_head,
)
from kdcli.students.base import StudentInitializer
from kdcli.tasks.base import Task


class Pretrained(StudentInitializer):
    """The checkpoint of `student.path`: its own tokenizer, and a new head where its own does not fit the task."""

    def initialize(
        self, task: Task, teacher: Checkpoint, rows: datasets.Dataset
    ) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
        """The checkpoint itself if its labels are the task's in their order; else its body with a new head."""
        if self.source is None:
            raise ModelError("student.path is not set: give a local directory or a Hugging Face hub id")
        return from_checkpoint(self.source, task)


def from_checkpoint(source: Checkpoint, task: Task) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """A checkpoint as a student: as it is if its labels are the task's in their order; else its body with a new head."""
    model = None
    if has_head(source, task):
        trained, new = load_model(source, task)
        try:
            same = label_order(trained.config, task.labels, source.name) == list(range(len(task.labels)))
        except TeacherError:
            same = False
        if same and not new:
            task.configure(trained.config)
            model = trained
    model = model or with_new_head(source, task)
    return model, load_tokenizer(source, model)
