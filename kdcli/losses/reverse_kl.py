"""Defines the reverse Kullback-Leibler divergence, the loss of MiniLLM (Gu, Dong, Wei and Huang 2024)."""

from __future__ import annotations

from torch import Tensor

from kdcli.losses.base import Divergence, kl


class ReverseKL(Divergence):
    """T² · KL(student ‖ teacher), both softened by the temperature T.

    T² · Σ_c q_c (log q_c - log p_c) with p = softmax(teacher / T), q = softmax(student / T): section 2.1 of
    https://arxiv.org/abs/2306.08543. It seeks modes: a student too small for all of p keeps to where the teacher is
    sure. T² keeps the gradient's size when T changes. Range: [0, ∞), 0 only where both agree.

    Args:
        temperature: above 1 softens both distributions; > 0.
    """

    def between(self, log_p: Tensor, log_q: Tensor) -> Tensor:
        """KL(student ‖ teacher)."""
        return kl(log_q, log_p)
