"""Defines the base classes of losses, and the distributions that divergences compare."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from typing import Annotated, Any, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn.functional import kl_div, log_softmax
from transformers import PreTrainedConfig

from kdcli.config.types import Fraction, Temperature
from kdcli.signals import FLOOR, Part, Signal, TopKSignal

Skew = Annotated[Fraction, Field(lt=1)]
"""The share of the first distribution in a mixture with a second one: 0 <= skew < 1."""
EXACT = 1e-3
"""Below this value the mass outside the top k is summed directly, because 1 minus the top k loses precision."""


class Loss(nn.Module, ABC):
    """A loss with one value per counted position. It never reduces.

    `kdcli.training.distiller` divides each term by its own count over the whole accumulated batch and all processes.
    A subclass is the one public class of a file, chosen by `_target_`; the arguments of its constructor are config keys.
    """

    needs_teacher: ClassVar[bool] = True
    """Whether it reads the teacher's outputs. The control keeps only losses that do not."""
    divergence: ClassVar[bool] = True
    """Whether loss(x, x) = 0, which the pre-flight checks. False for a cross-entropy with soft labels, for example."""
    by_class: ClassVar[bool] = True
    """Whether it compares the outputs of student and teacher class by class; then they must share a vocabulary."""
    features: ClassVar[frozenset[Part]] = frozenset()
    """The features that it reads of both models. With features the teacher runs in every step."""
    soft_gold: ClassVar[bool] = False
    """Whether `labels` may also be the share of each label among several annotators, fp32 (N, C)."""
    over: Literal["targets", "gold", "tokens", "rows"] = "targets"
    """The positions over which it is averaged: all counted positions (targets), those with a gold label (gold), or for a loss on features all
    tokens without padding, row by row (tokens), or all rows (rows)."""

    def attach(self, student: PreTrainedConfig, teacher: PreTrainedConfig) -> None:
        """Create what depends on the shapes of the two models: a mapping of layers, projections. Called before training.

        Raises:
            ConfigError: the models do not fit its arguments.
        """

    @abstractmethod
    def forward(self, student: Signal, teacher: Signal | TopKSignal | None, labels: Tensor) -> Tensor:
        """Return the loss of each position, fp32.

        Args:
            student: the student's outputs, (N, C), with its features if this loss reads them.
            teacher: the teacher's outputs at the same positions: dense (N, C), or its top k; None if
                `needs_teacher` is False. `log_probs` turns both into distributions over the same classes.
            labels: the gold labels, int64 (N,); -100 for a position without one.

        Returns:
            (N,); for a loss on features one value for each token or row.
        """


class Divergence(Loss):
    """A loss between the softened distributions of teacher and student, over the same classes.

    Args:
        temperature: above 1 softens both distributions; > 0.
    """

    power: ClassVar[int] = 2
    """The power of T that keeps the size of the gradient when T changes."""

    def __init__(self, temperature: Temperature = 1.0):
        super().__init__()
        self.temperature = temperature

    @abstractmethod
    def between(self, log_p: Tensor, log_q: Tensor) -> Tensor:
        """Return the divergence at each position, (N,), between the teacher's log p and the student's log q, (N, C) or (N, k + 1) each."""

    def forward(self, student: Signal, teacher: Signal | TopKSignal | None, labels: Tensor) -> Tensor:
        """Compare outputs (N, C) with (N, C) or the top k (N, k); return (N,)."""
        log_q, log_p = log_probs(student, teacher, self.temperature)
        return self.between(log_p, log_q) * self.temperature**self.power


class Skewed(Divergence):
    """A divergence from a mixture.

    Args:
        skew: the share of the compared distribution in the mixture; 0 <= skew < 1.
        temperature: above 1 softens both distributions; > 0.
    """

    def __init__(self, skew: Skew = 0.1, temperature: Temperature = 1.0):
        super().__init__(temperature)
        self.skew = skew

    def from_mixture(self, log_a: Tensor, log_b: Tensor) -> Tensor:
        """KL(a ‖ skew · a + (1 - skew) · b), of the logarithms of a and b."""
        return kl(log_a, mixture(self.skew, log_a, log_b))


def kl(log_p: Tensor, log_q: Tensor) -> Tensor:
    """Σ_c p_c (log p_c - log q_c), (N, C), (N, C) -> (N,)."""
    return kl_div(log_q, log_p, reduction="none", log_target=True).sum(-1)


def mixture(share: float, log_a: Tensor, log_b: Tensor) -> Tensor:
    """log(share · a + (1 - share) · b) of the logarithms of a and b; 0 <= share < 1."""
    if share == 0:
        return log_b
    return torch.logaddexp(log_a + math.log(share), log_b + math.log1p(-share))


def log_probs(
    student: Signal, teacher: Signal | TopKSignal | None, temperature: float
) -> tuple[Tensor, Tensor]:
    """Return log q of the student and log p of the teacher at the temperature, over the same classes.

    Returns:
        (N, C) each for dense teacher outputs; (N, k + 1) for top-k ones, whose last column stands for all other classes.

    Raises:
        ValueError: there is no teacher, or its top k was stored for another temperature.
    """
    if teacher is None:
        raise ValueError("this loss needs the teacher's outputs")
    if isinstance(teacher, TopKSignal):
        return bucketed(student.logits, teacher.indices, temperature), teacher.softened(temperature)
    both = student.logits.float(), teacher.logits.float()
    log_q, log_p = (log_softmax(x if temperature == 1.0 else x / temperature, -1) for x in both)
    return log_q, log_p


def bucketed(logits: Tensor, indices: Tensor, temperature: float = 1.0) -> Tensor:
    """Return log softmax(logits / T) at the indices, and the logarithm of the mass of all other classes.

    Args:
        logits: (N, C). indices: (N, k), distinct in each row.

    Returns:
        (N, k + 1), fp32; the exponentials of each row sum to 1.
    """
    return _Bucketed.apply(logits.float(), indices, temperature)


class _Bucketed(torch.autograd.Function):
    """`bucketed` with its own backward pass, because autograd would store several more matrices (N, C).

    With q = softmax(x / T), top buckets t with incoming gradients g_t, the rest r with g_r, and G = g_r + Σ g_t:
    dx_c = (g_c - G q_c) / T for c in the top k, and q_c (g_r / q_r - G) / T elsewhere.
    """

    @staticmethod
    def forward(ctx: Any, logits: Tensor, indices: Tensor, temperature: float) -> Tensor:
        scaled = logits if temperature == 1.0 else logits / temperature
        normaliser = scaled.logsumexp(-1, keepdim=True)
        top = scaled.gather(-1, indices) - normaliser
        mass = top.exp().sum(-1)
        rest = torch.log1p(-mass.clamp(max=1 - EXACT / 2))
        if (small := mass > 1 - EXACT).any():
            others = scaled[small].scatter(-1, indices[small], -torch.inf)
            rest[small] = (others.logsumexp(-1) - normaliser[small, 0]).clamp(min=FLOOR)
        ctx.save_for_backward(logits, indices, normaliser, top, rest)
        ctx.temperature = temperature
        return torch.cat([top, rest[:, None]], -1)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        logits, indices, normaliser, top, rest = ctx.saved_tensors
        (gradient,) = gradients
        total = gradient.sum(-1, keepdim=True)
        outside = gradient[:, -1:] * torch.exp(-rest[:, None]) - total
        out = logits / ctx.temperature
        out.sub_(normaliser).exp_().mul_(outside / ctx.temperature)
        out.scatter_(-1, indices, (gradient[:, :-1] - total * top.exp()) / ctx.temperature)
        return out, None, None
