"""Initialises a student from a checkpoint."""

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
    """Loads the checkpoint of `student.path` with its tokenizer, and adds a new head if its own does not match the task."""

    def skeleton(self, task: Task, teacher: Checkpoint, model: PreTrainedModel) -> PreTrainedModel | None:
        """Return the checkpoint's model; None: there is no checkpoint."""
        return None if self.source is None else model

    def initialize(
        self, task: Task, teacher: Checkpoint, rows: datasets.Dataset
    ) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
        """Load the checkpoint; its head is kept if its labels are those of the task in their order."""
        if self.source is None:
            raise ModelError("student.path is not set: give a local directory or a Hugging Face hub id")
        return from_checkpoint(self.source, task)


def from_checkpoint(source: Checkpoint, task: Task) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Load a checkpoint as a student. Its head is kept if its labels are those of the task in their order, and replaced otherwise."""
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
