"""Defines the generalised Jensen-Shannon divergence, the loss of GKD (Agarwal et al. 2024)."""

from __future__ import annotations

from typing import Annotated, Any

import torch
from pydantic import Field
from torch import Tensor

from kdcli.config.types import Fraction, Temperature
from kdcli.losses.base import Divergence

Open = Annotated[Fraction, Field(gt=0, lt=1)]


class JSD(Divergence):
    """T² · (β KL(teacher ‖ M) + (1 - β) KL(student ‖ M)), M = β teacher + (1 - β) student, softened by T.

    T² · Σ_c (β p_c (log p_c - log m_c) + (1 - β) q_c (log q_c - log m_c)) with p = softmax(teacher / T),
    q = softmax(student / T), m = β p + (1 - β) q: section 2 of https://arxiv.org/abs/2306.13649. Divided by
    β it tends to the forward KL as β → 0, divided by 1 - β to the reverse KL as β → 1; so its gradient
    shrinks towards both ends. T² keeps the gradient's size when T changes. Range: [0, T² · H(β)] with
    H(β) = -β log β - (1 - β) log(1 - β) ≤ log 2, 0 only where both agree.

    Args:
        beta: the teacher's share of the mixture; 0 < beta < 1. At 0.5 it is symmetric.
        temperature: above 1 softens both distributions; > 0.
    """

    def __init__(self, beta: Open = 0.5, temperature: Temperature = 1.0):
        super().__init__(temperature)
        self.beta = beta

    def between(self, log_p: Tensor, log_q: Tensor) -> Tensor:
        """Return the divergences of both from their mixture."""
        return _Between.apply(log_p, log_q, self.beta)


class _Between(torch.autograd.Function):
    """The divergence with its own backward pass: autograd would read (N, C) four times as often, a fifth of the step time of a language model.

    d/dq_c = (1 - β) (log q_c - log m_c): what m contributes to both terms cancels.
    """

    @staticmethod
    def forward(ctx: Any, log_p: Tensor, log_q: Tensor, beta: float) -> Tensor:
        p, q = log_p.exp(), log_q.exp()
        log_m = q.lerp(p, beta).clamp_(min=torch.finfo(q.dtype).tiny).log_()
        of_teacher = p.mul_(log_p - log_m).sum(-1)
        of_student = q.mul_(log_m.neg_().add_(log_q))
        ctx.save_for_backward(of_student)
        ctx.share = 1 - beta
        return beta * of_teacher + (1 - beta) * of_student.sum(-1)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[None, Tensor, None]:
        (of_student,) = ctx.saved_tensors
        return None, of_student * (ctx.share * gradients[0])[:, None], None
