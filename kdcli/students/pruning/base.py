"""The interface of initialisers that prune the teacher."""

from __future__ import annotations

from abc import abstractmethod

import datasets
import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from kdcli.models.checkpoint import Checkpoint, label_order, load_complete, load_tokenizer, trainable
from kdcli.students.base import StudentInitializer
from kdcli.students.pretrained import from_checkpoint
from kdcli.tasks.base import Task


class PruningInitializer(StudentInitializer):
    """Prunes a model: the teacher, or the checkpoint of `student.path`.

    It can be a step of `student=composed`, also after an initialiser of another kind.
    """

    inherits_teacher = True
    reads_teacher = True
    learning_rate = 2e-4

    def initialize(
        self, task: Task, teacher: Checkpoint, rows: datasets.Dataset
    ) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
        """Prune the teacher, whose labels are put in the task's order first."""
        if self.source is not None:
            model, tokenizer = from_checkpoint(self.source, task)
        else:
            model = load_complete(trainable(teacher), task)
            if task.labels:
                in_order(model, label_order(model.config, task.labels, teacher.name))
                task.configure(model.config)
            tokenizer = load_tokenizer(teacher, model)
        return self.cut(model, tokenizer, task, rows)

    @abstractmethod
    def cut(
        self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, task: Task, rows: datasets.Dataset
    ) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
        """Create a smaller model that transformers can load, in eval mode, and its tokenizer.

        Args:
            model: the model in eval mode; it may be changed.
            rows: the training rows, for pruning that depends on the data.

        Raises:
            ModelError: the architecture is not supported.
            ConfigError: the model is smaller than the requested size.
        """


@torch.no_grad()
def in_order(model: PreTrainedModel, order: list[int]) -> None:
    """Reorder a classifier's labels: the new logits are the old ones[:, order]."""
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
