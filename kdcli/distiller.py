"""The student and its losses as one module that returns one loss."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import linear
from transformers import PreTrainedModel

from kdcli.losses.base import Loss
from kdcli.signal import AnySignal, HiddenSignal, Signal, TopKSignal, chunks
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

    def masks(self, labels: Tensor, gold: Tensor | None = None, teacher: AnySignal | None = None) -> Tensor:
        """Which of the counted positions each term counts: bool (K, N) for K terms and the labels (N,).

        Args:
            gold: which positions have a gold label, bool (N,); None: those whose label is not -100.
            teacher: says nothing of some positions, where its tokens are others.
        """
        gold = labels != IGNORE if gold is None else gold
        matched = teacher.matched if teacher is not None else None
        rows = []
        for loss in self.losses.values():
            row = gold if loss.over == "gold" else torch.ones_like(gold)
            rows.append(row & matched if loss.needs_teacher and matched is not None else row)
        return torch.stack(rows)

    def forward(
        self,
        labels: Tensor,
        teacher: AnySignal | None = None,
        num_items_in_batch: Tensor | None = None,
        gold: Tensor | None = None,
        **inputs: Any,
    ) -> dict[str, Any]:
        """The weighted sum of all terms.

        Args:
            teacher: the teacher's signal at the counted positions.
            num_items_in_batch: how many positions each term counts in the whole accumulated batch, over all
                processes, (K,); None: in this batch alone.
            gold: as for `masks`.

        Returns:
            loss: a scalar; terms: each term unweighted, (K,), detached; in eval mode also answers: what the task keeps
            of the student's answer at each position.
        """
        pick, labels = self.task.positions(labels)
        student = self.task.signal(self.student, inputs, pick)
        shared = teacher is not None and teacher.matched is None
        if teacher is not None and shared:  # without rows of the embeddings that have no token
            student = student.first(teacher.classes)
        masks = self.masks(labels, gold, teacher)
        counts = masks.sum(1) if num_items_in_batch is None else num_items_in_batch
        scale = torch.tensor([self.weights[name] for name in self.names], device=counts.device)
        values: list[Tensor] = []
        answers: list[dict[str, Tensor]] = []

        def know(at: slice) -> Signal | TopKSignal | None:
            """What the teacher says of some of the positions."""
            known = teacher.rows(at) if teacher is not None else None
            assert not isinstance(known, HiddenSignal)
            return known

        def terms(said: Signal, known: Signal | TopKSignal | None, at: slice) -> tuple[Tensor, Tensor]:
            """The weighted loss of some of the positions, and each term's share, (K,)."""
            each = torch.stack([loss(said, known, labels[at]) for loss in self.losses.values()])
            raw = torch.where(masks[:, at], each, 0).sum(1) / counts.clamp(min=1)
            values.append(each.detach())
            if not self.training:
                answers.append(self.task.answers(said, labels[at], known if shared else None))
            return (scale * raw).sum(), raw.detach()

        if isinstance(student, Signal):
            whole = slice(0, len(labels))
            loss, raw = terms(student, know(whole), whole)
        else:
            loss, raw = by_chunks(student, know, terms, list(self.losses.parameters()))
        self.values = dict(zip(self.names, torch.cat(values, 1), strict=True))
        result: dict[str, Any] = {"loss": loss, "terms": raw}
        if not self.training:
            result["answers"] = {
                key: torch.cat([answer[key] for answer in answers]).detach() for key in answers[0]
            }
        return result


Know = Callable[[slice], Signal | TopKSignal | None]
Terms = Callable[[Signal, Signal | TopKSignal | None, slice], tuple[Tensor, Tensor]]
FINE = 2**19
"""Logits whose loss is taken at once on a CPU: 2 MB in fp32, so that what a loss computes from them stays in its cache."""


def by_chunks(
    student: HiddenSignal, know: Know, terms: Terms, learned: list[nn.Parameter]
) -> tuple[Tensor, Tensor]:
    """Sum a loss over chunks of positions; each chunk's gradient is taken at once, so that its logits can go.

    Memory for logits does not grow with the number of positions or with the vocabulary.

    Args:
        know: what the teacher says of a chunk; called once for each.
        terms: the loss of a chunk's logits, or on a CPU of a part of them, beside what the teacher says there, and what
            else is summed.
        learned: parameters of the losses.
    """
    head = student.head
    bias = [] if head.bias is None else [head.bias]
    wanted = torch.is_grad_enabled()
    loss, raw = _ByChunks.apply(
        student, (know, terms), student.hidden, head.weight, (len(bias), wanted), *bias, *learned
    )
    return loss, raw


class _ByChunks(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, student: HiddenSignal, asked: tuple[Know, Terms], hidden: Tensor, weight: Tensor,
                how: tuple[int, bool], *more: Tensor) -> tuple[Tensor, Tensor]:  # fmt: skip
        biased, wanted = how
        needed = [wanted and need for need in ctx.needs_input_grad]
        bias = more[0] if biased else None
        learned = [parameter for parameter in more[biased:] if parameter.requires_grad]
        kind = hidden.device.type
        dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else weight.dtype
        matrix, shift = weight.to(dtype), None if bias is None else bias.to(dtype)
        d_hidden = torch.empty_like(hidden) if needed[2] else None
        d_weight = torch.zeros_like(weight) if needed[3] else None
        d_bias = torch.zeros_like(bias) if bias is not None and needed[5] else None
        d_learned = [torch.zeros_like(parameter) for parameter in learned]
        know, terms = asked

        def chunk(at: slice) -> tuple[Tensor, Tensor]:
            """A chunk's loss; the logits become their own gradient, part by part."""
            part = hidden[at].to(dtype)
            logits = linear(part, matrix, shift)
            known = know(at)
            size = max(1, FINE // len(weight)) if kind == "cpu" else len(part)
            losses, others = [], []
            for start in range(0, max(1, len(part)), max(1, size)):
                here = slice(start, min(start + size, len(part)))
                leaf = logits[here].detach().requires_grad_(wanted)
                with torch.set_grad_enabled(wanted):
                    loss, raw = terms(
                        Signal(student.head.shaped(leaf)),
                        None if known is None else known.at(here),
                        slice(at.start + here.start, at.start + here.stop),
                    )
                losses.append(loss.detach())
                others.append(raw)
                if not wanted:
                    continue
                gradient: Tensor | None = None
                if loss.requires_grad:
                    gradient, *more = torch.autograd.grad(loss, [leaf, *learned], allow_unused=True)
                    for into, found in zip(d_learned, more, strict=True):
                        if found is not None:
                            into += found
                logits[here] = 0 if gradient is None else gradient
            if d_hidden is not None:
                d_hidden[at] = logits @ matrix
            if d_weight is not None:
                if dtype == weight.dtype:
                    d_weight.addmm_(logits.T, part)
                else:
                    for rows in chunks(len(weight), part.shape[-1]):
                        d_weight[rows].add_(logits[:, rows].T @ part)
            if d_bias is not None:
                d_bias.add_(logits.sum(0))
            return torch.stack(losses).sum(0), torch.stack(others).sum(0)

        with torch.autocast(kind, enabled=False):
            parts = [chunk(at) for at in chunks(len(hidden), len(weight))]
        whole, raw = (torch.stack(column).sum(0) for column in zip(*parts, strict=True))
        ctx.biased = biased
        ctx.places = [place for place, parameter in enumerate(more[biased:]) if parameter.requires_grad]
        ctx.more = len(more)
        ctx.gradients = d_hidden, d_weight, d_bias, d_learned
        ctx.mark_non_differentiable(raw)
        return whole, raw

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Any, ...]:
        outer = gradients[0]
        d_hidden, d_weight, d_bias, d_learned = ctx.gradients
        ctx.gradients = None  # one backward pass, as for any loss
        for gradient in (d_hidden, d_weight, d_bias, *d_learned):
            if gradient is not None and outer != 1:
                gradient *= outer
        more: list[Tensor | None] = [None] * ctx.more
        if ctx.biased:
            more[0] = d_bias
        for place, gradient in zip(ctx.places, d_learned, strict=True):
            more[ctx.biased + place] = gradient
        return None, None, d_hidden, d_weight, None, *more
