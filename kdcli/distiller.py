"""The student and its losses as one module that returns one loss."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from kdcli.losses.base import Loss
from kdcli.signal import Signal
from kdcli.tasks.base import IGNORE, Task


class Distiller(nn.Module):
    """What is trained. The teacher is not in it: its answers arrive with the batch.

    Args:
        student: any model whose outputs the task understands.
        losses: the terms by name; those with learned parts train with the student and are not saved with it.
        weights: each term's weight.
    """

    def __init__(
        self, student: PreTrainedModel, task: Task, losses: Mapping[str, Loss], weights: Mapping[str, float]
    ):
        super().__init__()
        self.student = student
        self.losses = nn.ModuleDict(losses)
        self.task = task
        self.weights = dict(weights)
        self.values: dict[str, Tensor] = {}
        """Each term's values at the positions of the last batch, (N,), detached: what a diagnosis looks at."""

    @property
    def names(self) -> list[str]:
        """The terms in order."""
        return list(self.losses)

    def masks(self, labels: Tensor) -> Tensor:
        """Which of the counted positions each term counts: bool (K, N) for K terms and the labels (N,)."""
        gold = labels != IGNORE
        rows = [gold if loss.over == "gold" else torch.ones_like(gold) for loss in self.losses.values()]
        return torch.stack(rows)

    def forward(
        self,
        labels: Tensor,
        teacher: Signal | None = None,
        num_items_in_batch: Tensor | None = None,
        **inputs: Any,
    ) -> dict[str, Tensor]:
        """The weighted sum of all terms.

        Args:
            teacher: the teacher's signal at the counted positions.
            num_items_in_batch: how many positions each term counts in the whole accumulated batch, over all
                processes, (K,); None: in this batch alone.

        Returns:
            loss: a scalar; terms: each term unweighted, (K,), detached; logits: the student's at the
            counted positions, detached.
        """
        pick, labels = self.task.positions(labels)
        student = self.task.signal(self.student(**inputs), pick)
        masks = self.masks(labels)
        counts = masks.sum(1) if num_items_in_batch is None else num_items_in_batch
        terms = []
        for (name, loss), mask, count in zip(self.losses.items(), masks, counts, strict=True):
            values = loss(student, teacher, labels)
            self.values[name] = values.detach()
            terms.append(torch.where(mask, values, 0).sum() / count.clamp(min=1))
        raw = torch.stack(terms)
        weights = torch.tensor([self.weights[name] for name in self.names], device=raw.device)
        return {"loss": (weights * raw).sum(), "terms": raw.detach(), "logits": student.logits.detach()}
