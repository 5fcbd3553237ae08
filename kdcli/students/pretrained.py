"""A student that is a checkpoint already."""

from __future__ import annotations

import datasets
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from kdcli.models import Source, label_order, has_head, load_model, load_tokenizer, with_new_head
from kdcli.errors import TeacherError
from kdcli.students.base import Birth
from kdcli.tasks.base import Task


class Pretrained(Birth):
    """`student.path`: its own tokenizer, and a new head where its own does not fit the task."""

    def __init__(self, source: Source):
        self.source = source

    def born(
        self, task: Task, teacher: Source, rows: datasets.Dataset
    ) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
        """The checkpoint itself if its labels are the task's in their order; else its body with a new head."""
        model = with_new_head(self.source, task)
        if has_head(self.source, task):
            trained, new = load_model(self.source, task)
            try:
                same = label_order(trained.config, task.labels, self.source.name) == list(range(len(task.labels)))
            except TeacherError:
                same = False
            if same and not new:
                task.configure(trained.config)
                model = trained
        return model, load_tokenizer(self.source, model)
