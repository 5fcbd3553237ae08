"""The student and its losses as one module that returns one loss."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import linear
from transformers import PreTrainedModel

from kdcli.losses.base import Loss
from kdcli.signal import AnySignal, HiddenSignal, Signal, chunks
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

    def masks(self, labels: Tensor, gold: Tensor | None = None) -> Tensor:
        """Which of the counted positions each term counts: bool (K, N) for K terms and the labels (N,).

        Args:
            gold: which positions have a gold label, bool (N,); None: those whose label is not -100.
        """
        gold = labels != IGNORE if gold is None else gold
        rows = [gold if loss.over == "gold" else torch.ones_like(gold) for loss in self.losses.values()]
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
        if teacher is not None:  # without rows of the embeddings that have no token
            student = student.first(teacher.classes)
        masks = self.masks(labels, gold)
        counts = masks.sum(1) if num_items_in_batch is None else num_items_in_batch
        scale = torch.tensor([self.weights[name] for name in self.names], device=counts.device)
        values: list[Tensor] = []
        answers: list[dict[str, Tensor]] = []

        def terms(said: Signal, at: slice) -> tuple[Tensor, Tensor]:
            """The weighted loss of some of the positions, and each term's share, (K,)."""
            known = teacher.rows(at) if teacher is not None else None
            assert not isinstance(known, HiddenSignal)
            each = torch.stack([loss(said, known, labels[at]) for loss in self.losses.values()])
            raw = torch.where(masks[:, at], each, 0).sum(1) / counts.clamp(min=1)
            values.append(each.detach())
            if not self.training:
                answers.append(self.task.answers(said, labels[at], known))
            return (scale * raw).sum(), raw.detach()

        if isinstance(student, Signal):
            loss, raw = terms(student, slice(0, len(labels)))
        else:
            loss, raw = by_chunks(student, terms, list(self.losses.parameters()))
        self.values = dict(zip(self.names, torch.cat(values, 1), strict=True))
        result: dict[str, Any] = {"loss": loss, "terms": raw}
        if not self.training:
            result["answers"] = {
                key: torch.cat([answer[key] for answer in answers]).detach() for key in answers[0]
            }
        return result


Terms = Callable[[Signal, slice], tuple[Tensor, Tensor]]


def by_chunks(student: HiddenSignal, terms: Terms, learned: list[nn.Parameter]) -> tuple[Tensor, Tensor]:
    """Sum a loss over chunks of positions; each chunk's gradient is taken at once, so that its logits can go.

    Memory for logits does not grow with the number of positions or with the vocabulary.

    Args:
        terms: the loss of a chunk's logits and what else is summed; called once for each chunk.
        learned: parameters of the losses.
    """
    head = student.head
    bias = [] if head.bias is None else [head.bias]
    wanted = torch.is_grad_enabled()
    loss, raw = _ByChunks.apply(
        student, terms, student.hidden, head.weight, (len(bias), wanted), *bias, *learned
    )
    return loss, raw


class _ByChunks(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, student: HiddenSignal, terms: Terms, hidden: Tensor, weight: Tensor,
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
        whole: Tensor | None = None
        raw: Tensor | None = None
        for at in chunks(len(hidden), len(weight)):
            part = hidden[at].to(dtype)
            with torch.autocast(kind, enabled=False), torch.set_grad_enabled(wanted):
                logits = linear(part, matrix, shift).detach().requires_grad_(wanted)
                loss, sums = terms(Signal(student.head.shaped(logits)), at)
                if wanted and loss.requires_grad:
                    gradient, *others = torch.autograd.grad(loss, [logits, *learned], allow_unused=True)
                    for into, found in zip(d_learned, others, strict=True):
                        if found is not None:
                            into += found
                    if d_hidden is not None:
                        d_hidden[at] = gradient @ matrix
                    if d_weight is not None:
                        if dtype == weight.dtype:
                            d_weight.addmm_(gradient.T, part)
                        else:
                            d_weight += gradient.T @ part
                    if d_bias is not None:
                        d_bias += gradient.sum(0)
            whole = loss.detach() if whole is None else whole + loss.detach()
            raw = sums if raw is None else raw + sums
        assert whole is not None
        assert raw is not None
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
