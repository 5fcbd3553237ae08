"""Defines the forward Kullback-Leibler divergence, the soft-label loss of Hinton, Vinyals and Dean (2015)."""

from __future__ import annotations

from torch import Tensor

from kdcli.losses.base import Divergence, kl


class ForwardKL(Divergence):
    """T² · KL(teacher ‖ student), both softened by the temperature T.

    T² · Σ_c p_c (log p_c - log q_c) with p = softmax(teacher / T), q = softmax(student / T): section 2 of
    https://arxiv.org/abs/1503.02531. T² keeps the gradient's size when T changes. Range: [0, ∞), 0 only
    where both agree.

    Args:
        temperature: above 1 softens both distributions; > 0.
    """

    def between(self, log_p: Tensor, log_q: Tensor) -> Tensor:
        """KL(teacher ‖ student)."""
        return kl(log_p, log_q)
