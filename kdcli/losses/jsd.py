"""Generalised Jensen-Shannon divergence: the loss of GKD (Agarwal et al. 2024)."""

from __future__ import annotations

import math
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor
from torch.nn.functional import kl_div

from kdcli.config import Fraction, Positive
from kdcli.losses.base import Loss, log_probs
from kdcli.signal import Signal, TopKSignal

Open = Annotated[Fraction, Field(gt=0, lt=1)]


class JSD(Loss):
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

    def __init__(self, beta: Open = 0.5, temperature: Positive = 1.0):
        super().__init__()
        self.beta = beta
        self.temperature = temperature

    def forward(self, student: Signal, teacher: Signal | TopKSignal | None, labels: Tensor) -> Tensor:
        """(N, C), (N, C) or (N, k) -> (N,)."""
        log_q, log_p = log_probs(student, teacher, self.temperature)
        log_m = torch.logaddexp(log_p + math.log(self.beta), log_q + math.log1p(-self.beta))
        of_p = kl_div(log_m, log_p, reduction="none", log_target=True).sum(-1)
        of_q = kl_div(log_m, log_q, reduction="none", log_target=True).sum(-1)
        return (self.beta * of_p + (1 - self.beta) * of_q) * self.temperature**2
