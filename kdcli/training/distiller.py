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
from kdcli.models.weight_only import is_quantized
from kdcli.signals import AnySignal, HiddenSignal, Part, Signal, TopKSignal, chunks
from kdcli.tasks.base import Task
from kdcli.tasks.rows import IGNORE


class Distiller(nn.Module):
    """The module that is trained. It does not contain the teacher, whose outputs and features come with the batch.

    Args:
        student: any model whose outputs the task understands.
        losses: the terms by name. Their parameters are trained with the student and are not saved with it.
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
        """The values of each term in the last batch, detached, for diagnosis."""

    @property
    def names(self) -> list[str]:
        """The names of the terms in their order."""
        return list(self.losses)

    @property
    def parts(self) -> frozenset[Part]:
        """The features of both models that the terms read."""
        return frozenset(part for loss in self.losses.values() for part in cast(Loss, loss).features)

    @property
    def _no_split_modules(self) -> list[str]:
        """The classes of the student's layers, which FSDP shards one by one. A module that holds the word embeddings is not among them, because they
        may be tied to the output head."""
        embeddings = self.student.get_input_embeddings()
        modules = list(self.student.modules())
        return [
            name
            for name in sorted(self.student._no_split_modules or ())
            if (layers := [module for module in modules if type(module).__name__ == name])
            and not any(part is embeddings for layer in layers for part in layer.modules())
        ]

    @property
    def layers(self) -> list[nn.Module]:
        """The student's layers."""
        names = self._no_split_modules
        return [module for module in self.student.modules() if type(module).__name__ in names]

    @property
    def has_quantized_weights(self) -> bool:
        """Whether weights of the student are quantized. Then its adapters are trained, and checkpoints hold the trained weights alone."""
        return bool(getattr(self.student, "is_quantized", False))

    @property
    def _ddp_params_and_buffers_to_ignore(self) -> list[str]:
        """The weights that processes do not send each other (`torch.nn.parallel.DistributedDataParallel`): packed ones, which each process reads from the
        same files."""
        layers = self.named_modules()
        return [f"{name}.weight" for name, layer in layers if is_quantized(layer)]

    @property
    def trained_weights(self) -> dict[str, Tensor]:
        """The parameters that are trained, by their names."""
        return {name: weight.detach() for name, weight in self.named_parameters() if weight.requires_grad}

    def load_trained(self, weights: Mapping[str, Tensor]) -> None:
        """Load parameters that `trained_weights` returned.

        Raises:
            KeyError: another training has others.
        """
        own = self.trained_weights
        if other := weights.keys() ^ own.keys():
            raise KeyError(f"the trained weights differ: {', '.join(sorted(other)[:3])}")
        for name, weight in own.items():
            weight.copy_(weights[name])

    def masks(
        self, labels: Tensor, gold: Tensor | None = None, teacher: AnySignal | None = None
    ) -> list[Tensor]:
        """Return which of its values each term counts: bool, (N,) for labels (N,). A term that reads features counts all its values.

        Args:
            gold: which positions have a gold label, bool (N,); None: those whose label is not -100.
            teacher: the teacher's outputs. They may lack positions where its tokens are not the student's (`matched`).
        """
        gold = labels != IGNORE if gold is None else gold
        matched = teacher.matched if teacher is not None else None
        features = teacher.features if teacher is not None else None
        rows = []
        for loss in self.losses.values():
            if loss.features:
                tokens = labels.new_zeros(0, 0) if features is None else features.tokens
                rows.append(
                    tokens.new_ones(int(tokens.sum()) if loss.over == "tokens" else len(tokens)).bool()
                )
                continue
            row = gold if loss.over == "gold" else torch.ones_like(gold)
            rows.append(row & matched if loss.needs_teacher and matched is not None else row)
        return rows

    def counts(self, labels: Tensor, gold: Tensor | None = None, teacher: AnySignal | None = None) -> Tensor:
        """Return the number of values that each term counts, (K,); arguments as for `masks`."""
        return torch.stack([mask.sum() for mask in self.masks(labels, gold, teacher)])

    def forward(
        self,
        labels: Tensor,
        teacher: AnySignal | None = None,
        num_items_in_batch: Tensor | None = None,
        gold: Tensor | None = None,
        votes: Tensor | None = None,
        **inputs: Any,
    ) -> dict[str, Any]:
        """Compute the weighted sum of all terms. Terms that read features are dropped if the teacher's outputs have none.

        Args:
            teacher: the teacher's outputs at the counted positions.
            num_items_in_batch: the number of values that each term counts in the accumulated batch of all processes, (K,); None: in this one.
            gold: as for `masks`.
            votes: the share of each label at the counted positions, (N, C), for losses with `soft_gold`.

        Returns:
            loss: a scalar; terms: each term unweighted, (K,), detached; in eval mode also predictions: what the task's metrics need of the outputs.
        """
        pick, labels = self.task.positions(labels)
        has_features = teacher is not None and teacher.features is not None
        with capture_features(self.student, inputs, self.parts if has_features else frozenset()) as features:
            student = self.task.signal(self.student, inputs, pick)
            student = replace(student, features=features())
        shared = teacher is not None and teacher.matched is None
        if teacher is not None and shared:  # drop the rows of the embeddings that have no token
            student = student.first(teacher.classes)
        masks = dict(zip(self.names, self.masks(labels, gold, teacher), strict=True))
        counts = torch.stack([mask.sum() for mask in masks.values()])
        counts = (counts if num_items_in_batch is None else num_items_in_batch).clamp(min=1)
        scale = torch.tensor([self.weights[name] for name in self.names], device=counts.device) / counts
        share = dict(zip(self.names, scale, strict=True))
        of_outputs = {name: loss for name, loss in self.losses.items() if not loss.features}
        values: dict[str, list[Tensor]] = {name: [] for name in self.names}
        reduced: list[dict[str, Tensor]] = []

        def teacher_outputs(at: slice) -> Signal | TopKSignal | None:
            """Return the teacher's outputs at some of the positions."""
            outputs = teacher.rows(at) if teacher is not None else None
            assert not isinstance(outputs, HiddenSignal)
            return outputs

        def terms(outputs: Signal, of_teacher: Signal | TopKSignal | None, at: slice) -> Tensor:
            """Return the weighted loss of some of the positions."""
            loss = outputs.logits.new_zeros(())
            for name, term in of_outputs.items():
                target = votes if votes is not None and term.soft_gold else labels
                each = term(outputs, of_teacher, target[at])
                values[name].append(each.detach())
                loss = loss + share[name] * torch.where(masks[name][at], each, 0).sum()
            if not self.training:
                reduced.append(self.task.reduce_outputs(outputs, labels[at], of_teacher if shared else None))
            return loss

        loss = labels.new_zeros((), dtype=torch.float32)
        if isinstance(student, Signal):
            everywhere = slice(0, len(labels))
            loss = terms(student, teacher_outputs(everywhere), everywhere)
        elif of_outputs or not self.training:
            learned = [weight for term in of_outputs.values() for weight in term.parameters()]
            loss = by_chunks(student, teacher_outputs, terms, learned)
        for name, term in self.losses.items():
            if term.features and has_features:
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
            result["predictions"] = {
                key: torch.cat([part[key] for part in reduced]).detach() for key in reduced[0]
            }
        return result


Outputs = Callable[[slice], Signal | TopKSignal | None]
Terms = Callable[[Signal, Signal | TopKSignal | None, slice], Tensor]
FINE = 2**19
"""Logits of which a loss is computed at once on a CPU: 2 MB in fp32, so that its intermediate results stay in the processor's cache."""


def by_chunks(
    student: HiddenSignal, teacher_outputs: Outputs, terms: Terms, learned: list[nn.Parameter]
) -> Tensor:
    """Sum a loss over chunks of positions. The gradient of each chunk is computed with its loss, and its logits are freed.

    Memory for logits grows neither with the number of positions nor with the vocabulary.

    Args:
        teacher_outputs: returns the teacher's outputs of a chunk; called once for each.
        terms: returns the loss of a chunk's logits, or on a CPU of a part of them, given the teacher's outputs there.
        learned: the parameters of the losses.
    """
    head = student.head
    bias = [] if head.bias is None else [head.bias]
    wanted = torch.is_grad_enabled()
    return _ByChunks.apply(
        student, (teacher_outputs, terms), student.hidden, head.weight, (len(bias), wanted), *bias, *learned
    )


class _ByChunks(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, student: HiddenSignal, functions: tuple[Outputs, Terms], hidden: Tensor, weight: Tensor,
                flags: tuple[int, bool], *more: Tensor) -> Tensor:  # fmt: skip
        biased, wanted = flags
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
        teacher_outputs, terms = functions

        def chunk(at: slice) -> Tensor:
            """Return the loss of a chunk. Its logits are overwritten by their gradient, part by part."""
            part = hidden[at].to(dtype)
            logits = linear(part, matrix, shift)
            of_teacher = teacher_outputs(at)
            size = max(1, FINE // len(weight)) if kind == "cpu" else len(part)
            losses = []
            for start in range(0, max(1, len(part)), max(1, size)):
                here = slice(start, min(start + size, len(part)))
                leaf = logits[here].detach().requires_grad_(wanted)
                with torch.set_grad_enabled(wanted):
                    loss = terms(
                        Signal(student.head.shaped(leaf)),
                        None if of_teacher is None else of_teacher.at(here),
                        slice(at.start + here.start, at.start + here.stop),
                    )
                losses.append(loss.detach())
                if not wanted:
                    continue
                gradient: Tensor | None = None
                if loss.requires_grad:
                    gradient, *more = torch.autograd.grad(loss, [leaf, *learned], allow_unused=True)
                    for total, part_gradient in zip(d_learned, more, strict=True):
                        if part_gradient is not None:
                            total += part_gradient
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
            loss = torch.stack([chunk(at) for at in chunks(len(hidden), len(weight))]).sum(0)
        ctx.biased = biased
        ctx.indices = [index for index, parameter in enumerate(more[biased:]) if parameter.requires_grad]
        ctx.more = len(more)
        ctx.gradients = d_hidden, d_weight, d_bias, d_learned
        return loss

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Any, ...]:
        outer = gradients[0]
        d_hidden, d_weight, d_bias, d_learned = ctx.gradients
        ctx.gradients = None  # there is one backward pass
        for gradient in (d_hidden, d_weight, d_bias, *d_learned):
            if gradient is not None and outer != 1:
                gradient *= outer
        more: list[Tensor | None] = [None] * ctx.more
        if ctx.biased:
            more[0] = d_bias
        for index, gradient in zip(ctx.indices, d_learned, strict=True):
            more[ctx.biased + index] = gradient
        return None, None, d_hidden, d_weight, None, *more
