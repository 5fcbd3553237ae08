"""What a loss is, and the distributions that divergences are taken of."""

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
"""The share of a distribution in its mixture with the other: 0 <= skew < 1."""
EXACT = 1e-3
"""Below this the mass outside the top k is summed up, not taken as 1 minus the top k, which cancels."""


class Loss(nn.Module, ABC):
    """One value per counted position; it never reduces.

    `kdcli.training.distiller` divides each term by its own count over the whole accumulated batch and all processes.
    A subclass is one public class in one file, chosen by `_target_`; its constructor's arguments are config.
    """

    needs_teacher: ClassVar[bool] = True
    """Whether it reads the teacher's signal. The control keeps only losses that do not."""
    divergence: ClassVar[bool] = True
    """Whether loss(x, x) = 0; the pre-flight holds a loss to it. False for, say, a cross-entropy with soft labels."""
    by_class: ClassVar[bool] = True
    """Whether it compares what student and teacher say of the same class: then they must share a vocabulary."""
    features: ClassVar[frozenset[Part]] = frozenset()
    """What it reads of both models' inside, if it does: the teacher is then asked in every step."""
    over: Literal["targets", "gold", "tokens", "rows"] = "targets"
    """What it has a value of: all counted positions, and it counts them all, or (gold) those that have a gold label; if it
    reads the inside, all tokens of the batch that are no padding, row by row, or all rows."""

    def attach(self, student: PreTrainedConfig, teacher: PreTrainedConfig) -> None:
        """Make what depends on the two models' shapes: a mapping of layers, projections. Called before any training.

        Raises:
            ConfigError: the models do not fit its arguments.
        """

    @abstractmethod
    def forward(self, student: Signal, teacher: Signal | TopKSignal | None, labels: Tensor) -> Tensor:
        """The loss of each position, fp32.

        Args:
            student: what the student says, (N, C), and its `inside` if this loss reads it.
            teacher: what the teacher says of the same positions: dense (N, C), or its top k; None if
                `needs_teacher` is False. `log_probs` turns both into distributions over the same classes.
            labels: the gold labels, int64 (N,); -100 where there is none.

        Returns:
            (N,); a loss that reads the inside: one value for each token or row.
        """


class Divergence(Loss):
    """A loss between the softened distributions of teacher and student, over the same classes.

    Args:
        temperature: above 1 softens both distributions; > 0.
    """

    power: ClassVar[int] = 2
    """T to this power keeps the gradient's size when T changes."""

    def __init__(self, temperature: Temperature = 1.0):
        super().__init__()
        self.temperature = temperature

    @abstractmethod
    def between(self, log_p: Tensor, log_q: Tensor) -> Tensor:
        """The divergence at each position, (N,), of the teacher's log p and the student's log q, (N, C) or (N, k + 1)."""

    def forward(self, student: Signal, teacher: Signal | TopKSignal | None, labels: Tensor) -> Tensor:
        """(N, C), (N, C) or (N, k) -> (N,)."""
        log_q, log_p = log_probs(student, teacher, self.temperature)
        return self.between(log_p, log_q) * self.temperature**self.power


class Skewed(Divergence):
    """A divergence from a mixture.

    Args:
        skew: the share, in the mixture, of the distribution that is compared with it; 0 <= skew < 1.
        temperature: above 1 softens both distributions; > 0.
    """

    def __init__(self, skew: Skew = 0.1, temperature: Temperature = 1.0):
        super().__init__(temperature)
        self.skew = skew

    def from_mixture(self, one: Tensor, other: Tensor) -> Tensor:
        """KL(one ‖ skew · one + (1 - skew) · other), of logarithms."""
        return kl(one, mixture(self.skew, one, other))


def kl(log_p: Tensor, log_q: Tensor) -> Tensor:
    """Σ_c p_c (log p_c - log q_c), (N, C), (N, C) -> (N,)."""
    return kl_div(log_q, log_p, reduction="none", log_target=True).sum(-1)


def mixture(share: float, one: Tensor, other: Tensor) -> Tensor:
    """log(share · a + (1 - share) · b) of the logarithms of a and b; 0 <= share < 1."""
    if share == 0:
        return other
    return torch.logaddexp(one + math.log(share), other + math.log1p(-share))


def log_probs(
    student: Signal, teacher: Signal | TopKSignal | None, temperature: float
) -> tuple[Tensor, Tensor]:
    """log q of the student and log p of the teacher, both softened, over the same classes.

    Returns:
        (N, C) each for a dense teacher; (N, k + 1) for a top-k one, the last column being all other classes.

    Raises:
        ValueError: there is no teacher, or its top k was stored for another temperature.
    """
    if teacher is None:
        raise ValueError("this loss needs a teacher's signal")
    if isinstance(teacher, TopKSignal):
        return bucketed(student.logits, teacher.indices, temperature), teacher.softened(temperature)
    both = student.logits.float(), teacher.logits.float()
    log_q, log_p = (log_softmax(x if temperature == 1.0 else x / temperature, -1) for x in both)
    return log_q, log_p


def bucketed(logits: Tensor, indices: Tensor, temperature: float = 1.0) -> Tensor:
    """log softmax(logits / T) at the indices, and the logarithm of all other classes' mass.

    Args:
        logits: (N, C). indices: (N, k), distinct in each row.

    Returns:
        (N, k + 1), fp32; the exponentials of each row sum to 1.
    """
    return _Bucketed.apply(logits.float(), indices, temperature)


class _Bucketed(torch.autograd.Function):
    """By hand, since autograd would hold several more matrices of (N, C).

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
        whole = gradient.sum(-1, keepdim=True)
        outside = gradient[:, -1:] * torch.exp(-rest[:, None]) - whole
        out = logits / ctx.temperature
        out.sub_(normaliser).exp_().mul_(outside / ctx.temperature)
        out.scatter_(-1, indices, (gradient[:, :-1] - whole * top.exp()) / ctx.temperature)
        return out, None, None
