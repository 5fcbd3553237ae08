"""Defines the skew reverse Kullback-Leibler divergence, a loss of DistiLLM (Ko, Kim, Chen and Yun 2024)."""

from __future__ import annotations

from torch import Tensor

from kdcli.losses.base import Skewed


class SkewReverseKL(Skewed):
    """T² · KL(student ‖ α student + (1 - α) teacher), softened by the temperature T.

    T² · Σ_c q_c (log q_c - log(α q_c + (1 - α) p_c)) with p = softmax(teacher / T), q = softmax(student / T):
    section 3.1 of https://arxiv.org/abs/2402.03898. The student's share of the mixture bounds the loss where
    the teacher gives almost no mass. T² keeps the gradient's size when T changes. Range: [0, -T² · log α],
    0 only where both agree.

    Args:
        skew: α; 0 <= skew < 1, 0 is the reverse KL.
        temperature: above 1 softens both distributions; > 0.
    """

    def between(self, log_p: Tensor, log_q: Tensor) -> Tensor:
        """Return KL(student ‖ mixture), where the mixture is the teacher with some of the student."""
        return self.from_mixture(log_q, log_p)
