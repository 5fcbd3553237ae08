"""The student and its losses as one module that returns one loss."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn.functional import linear
from transformers import PreTrainedModel

from kdcli.features import capture_features
from kdcli.losses.base import Loss
from kdcli.signals import AnySignal, HiddenSignal, Part, Signal, TopKSignal, chunks
from kdcli.tasks.base import Task
from kdcli.tasks.rows import IGNORE


class Distiller(nn.Module):
    """What is trained. The teacher is not in it: its answers, and what is asked of its inside, arrive with the batch.

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
        """Each term's values in the last batch, detached: what a diagnosis looks at."""

    @property
    def names(self) -> list[str]:
        """The terms in order."""
        return list(self.losses)

    @property
    def parts(self) -> frozenset[Part]:
        """What the terms read of both models' inside."""
        return frozenset(part for loss in self.losses.values() for part in cast(Loss, loss).features)

    def masks(
        self, labels: Tensor, gold: Tensor | None = None, teacher: AnySignal | None = None
    ) -> list[Tensor]:
        """Which of its values each term counts: bool, (N,) for the labels (N,); of what reads the inside, all its values.

        Args:
            gold: which positions have a gold label, bool (N,); None: those whose label is not -100.
            teacher: says nothing of some positions, where its tokens are others.
        """
        gold = labels != IGNORE if gold is None else gold
        matched = teacher.matched if teacher is not None else None
        inside = teacher.features if teacher is not None else None
        rows = []
        for loss in self.losses.values():
            if loss.features:
                tokens = labels.new_zeros(0, 0) if inside is None else inside.tokens
                rows.append(
                    tokens.new_ones(int(tokens.sum()) if loss.over == "tokens" else len(tokens)).bool()
                )
                continue
            row = gold if loss.over == "gold" else torch.ones_like(gold)
            rows.append(row & matched if loss.needs_teacher and matched is not None else row)
        return rows

    def counts(self, labels: Tensor, gold: Tensor | None = None, teacher: AnySignal | None = None) -> Tensor:
        """How many values each term counts, (K,); arguments as for `masks`."""
        return torch.stack([mask.sum() for mask in self.masks(labels, gold, teacher)])

    def forward(
        self,
        labels: Tensor,
        teacher: AnySignal | None = None,
        num_items_in_batch: Tensor | None = None,
        gold: Tensor | None = None,
        **inputs: Any,
    ) -> dict[str, Any]:
        """The weighted sum of all terms. Terms that read the inside are left out if the teacher's signal does not have it.

        Args:
            teacher: the teacher's signal at the counted positions.
            num_items_in_batch: how many values each term counts in the whole accumulated batch, over all
                processes, (K,); None: in this batch alone.
            gold: as for `masks`.

        Returns:
            loss: a scalar; terms: each term unweighted, (K,), detached; in eval mode also answers: what the task keeps
            of the student's answer at each position.
        """
        pick, labels = self.task.positions(labels)
        told = teacher is not None and teacher.features is not None
        with capture_features(self.student, inputs, self.parts if told else frozenset()) as inside:
            student = self.task.signal(self.student, inputs, pick)
            student = replace(student, features=inside())
        shared = teacher is not None and teacher.matched is None
        if teacher is not None and shared:  # without rows of the embeddings that have no token
            student = student.first(teacher.classes)
        masks = dict(zip(self.names, self.masks(labels, gold, teacher), strict=True))
        counts = torch.stack([mask.sum() for mask in masks.values()])
        counts = (counts if num_items_in_batch is None else num_items_in_batch).clamp(min=1)
        scale = torch.tensor([self.weights[name] for name in self.names], device=counts.device) / counts
        share = dict(zip(self.names, scale, strict=True))
        of_answers = {name: loss for name, loss in self.losses.items() if not loss.features}
        values: dict[str, list[Tensor]] = {name: [] for name in self.names}
        answers: list[dict[str, Tensor]] = []

        def know(at: slice) -> Signal | TopKSignal | None:
            """What the teacher says of some of the positions."""
            known = teacher.rows(at) if teacher is not None else None
            assert not isinstance(known, HiddenSignal)
            return known

        def terms(said: Signal, known: Signal | TopKSignal | None, at: slice) -> Tensor:
            """The weighted loss of some of the positions."""
            loss = said.logits.new_zeros(())
            for name, term in of_answers.items():
                each = term(said, known, labels[at])
                values[name].append(each.detach())
                loss = loss + share[name] * torch.where(masks[name][at], each, 0).sum()
            if not self.training:
                answers.append(self.task.answers(said, labels[at], known if shared else None))
            return loss

        loss = labels.new_zeros((), dtype=torch.float32)
        if isinstance(student, Signal):
            whole = slice(0, len(labels))
            loss = terms(student, know(whole), whole)
        elif of_answers or not self.training:
            learned = [weight for term in of_answers.values() for weight in term.parameters()]
            loss = by_chunks(student, know, terms, learned)
        for name, term in self.losses.items():
            if term.features and told:
                each = term(student, teacher, labels)
                values[name].append(each.detach())
                loss = loss + share[name] * each.sum()
        self.values = {name: torch.cat(parts) for name, parts in values.items() if parts}
        raw = [
            torch.where(masks[name], self.values[name], 0).sum()
            if name in self.values
            else counts.new_zeros(())
            for name in self.names
        ]
        result: dict[str, Any] = {"loss": loss, "terms": torch.stack(raw) / counts}
        if not self.training:
            result["answers"] = {
                key: torch.cat([answer[key] for answer in answers]).detach() for key in answers[0]
            }
        return result


Know = Callable[[slice], Signal | TopKSignal | None]
Terms = Callable[[Signal, Signal | TopKSignal | None, slice], Tensor]
FINE = 2**19
"""Logits whose loss is taken at once on a CPU: 2 MB in fp32, so that what a loss computes from them stays in its cache."""


def by_chunks(student: HiddenSignal, know: Know, terms: Terms, learned: list[nn.Parameter]) -> Tensor:
    """Sum a loss over chunks of positions; each chunk's gradient is taken at once, so that its logits can go.

    Memory for logits does not grow with the number of positions or with the vocabulary.

    Args:
        know: what the teacher says of a chunk; called once for each.
        terms: the loss of a chunk's logits, or on a CPU of a part of them, beside what the teacher says there.
        learned: parameters of the losses.
    """
    head = student.head
    bias = [] if head.bias is None else [head.bias]
    wanted = torch.is_grad_enabled()
    return _ByChunks.apply(
        student, (know, terms), student.hidden, head.weight, (len(bias), wanted), *bias, *learned
    )


class _ByChunks(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, student: HiddenSignal, asked: tuple[Know, Terms], hidden: Tensor, weight: Tensor,
                how: tuple[int, bool], *more: Tensor) -> Tensor:  # fmt: skip
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

        def chunk(at: slice) -> Tensor:
            """A chunk's loss; the logits become their own gradient, part by part."""
            part = hidden[at].to(dtype)
            logits = linear(part, matrix, shift)
            known = know(at)
            size = max(1, FINE // len(weight)) if kind == "cpu" else len(part)
            losses = []
            for start in range(0, max(1, len(part)), max(1, size)):
                here = slice(start, min(start + size, len(part)))
                leaf = logits[here].detach().requires_grad_(wanted)
                with torch.set_grad_enabled(wanted):
                    loss = terms(
                        Signal(student.head.shaped(leaf)),
                        None if known is None else known.at(here),
                        slice(at.start + here.start, at.start + here.stop),
                    )
                losses.append(loss.detach())
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
            return torch.stack(losses).sum(0)

        with torch.autocast(kind, enabled=False):
            whole = torch.stack([chunk(at) for at in chunks(len(hidden), len(weight))]).sum(0)
        ctx.biased = biased
        ctx.places = [place for place, parameter in enumerate(more[biased:]) if parameter.requires_grad]
        ctx.more = len(more)
        ctx.gradients = d_hidden, d_weight, d_bias, d_learned
        return whole

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
