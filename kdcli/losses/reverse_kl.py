"""Reverse Kullback-Leibler divergence: the loss of MiniLLM (Gu, Dong, Wei and Huang 2024)."""

from __future__ import annotations

from torch import Tensor
from torch.nn.functional import kl_div

from kdcli.config import Positive
from kdcli.losses.base import Loss, log_probs
from kdcli.signal import Signal, TopKSignal


class ReverseKL(Loss):
    """T² · KL(student ‖ teacher), both softened by the temperature T.

    T² · Σ_c q_c (log q_c - log p_c) with p = softmax(teacher / T), q = softmax(student / T): section 2.1 of
    https://arxiv.org/abs/2306.08543. It seeks modes: a student too small for all of p keeps to where the teacher is
    sure. T² keeps the gradient's size when T changes. Range: [0, ∞), 0 only where both agree.

    Args:
        temperature: above 1 softens both distributions; > 0.
    """

    def __init__(self, temperature: Positive = 1.0):
        super().__init__()
        self.temperature = temperature

    def forward(self, student: Signal, teacher: Signal | TopKSignal | None, labels: Tensor) -> Tensor:
        """(N, C), (N, C) or (N, k) -> (N,)."""
        log_q, log_p = log_probs(student, teacher, self.temperature)
        return kl_div(log_p, log_q, reduction="none", log_target=True).sum(-1) * self.temperature**2
