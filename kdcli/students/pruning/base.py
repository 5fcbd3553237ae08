"""A student that is made out of the teacher itself."""

from __future__ import annotations

from abc import abstractmethod

import datasets
import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from kdcli.models.checkpoint import Checkpoint, label_order, load_tokenizer, load_whole
from kdcli.students.base import StudentInitializer
from kdcli.students.pretrained import from_checkpoint
from kdcli.tasks.base import Task


class PruningInitializer(StudentInitializer):
    """A birth that takes something away from a model: from the teacher, or from the checkpoint of `student.path`.

    Cuts can follow one another, and other births (student=births).
    """

    inherits_teacher = True

    def initialize(
        self, task: Task, teacher: Checkpoint, rows: datasets.Dataset
    ) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
        """What is left of the teacher, whose labels are put in the task's order first."""
        if self.source is not None:
            model, tokenizer = from_checkpoint(self.source, task)
        else:
            model = load_whole(teacher, task)
            if task.labels:
                in_order(model, label_order(model.config, task.labels, teacher.name))
                task.configure(model.config)
            tokenizer = load_tokenizer(teacher, model)
        return self.cut(model, tokenizer, task, rows)

    @abstractmethod
    def cut(
        self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, task: Task, rows: datasets.Dataset
    ) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
        """A smaller model that transformers alone can load, in eval mode, and its tokenizer.

        Args:
            model: whole, in eval mode; it may be changed.
            rows: the training rows, for cuts that look at the data.

        Raises:
            ModelError: of an architecture that is not known.
            ConfigError: there is not so much to take away.
        """


@torch.no_grad()
def in_order(model: PreTrainedModel, order: list[int]) -> None:
    """Put a classifier's labels in another order: its new logits are the old ones[:, order]."""
    if order == list(range(len(order))):
        return
    *_, last = (
        layer
        for name, part in model.named_children()
        if name != model.base_model_prefix
        for layer in part.modules()
        if isinstance(layer, torch.nn.Linear) and layer.out_features == len(order)
    )
    last.weight.copy_(last.weight[order])
    if last.bias is not None:
        last.bias.copy_(last.bias[order])
