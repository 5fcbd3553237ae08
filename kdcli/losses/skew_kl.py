"""Defines the skew Kullback-Leibler divergence, a loss of DistiLLM (Ko, Kim, Chen and Yun 2024)."""

from __future__ import annotations

from torch import Tensor

from kdcli.losses.base import Skewed


class SkewKL(Skewed):
    """T² · KL(teacher ‖ α teacher + (1 - α) student), softened by the temperature T.

    T² · Σ_c p_c (log p_c - log(α p_c + (1 - α) q_c)) with p = softmax(teacher / T), q = softmax(student / T):
    section 3.1 of https://arxiv.org/abs/2402.03898. The teacher's share of the mixture bounds the gradient
    where the student gives almost no mass. T² keeps the gradient's size when T changes. Range:
    [0, -T² · log α], 0 only where both agree.

    Args:
        skew: α; 0 <= skew < 1, 0 is the forward KL.
        temperature: above 1 softens both distributions; > 0.
    """

    def between(self, log_p: Tensor, log_q: Tensor) -> Tensor:
        """Return KL(teacher ‖ mixture), where the mixture is the student with some of the teacher."""
        return self.from_mixture(log_p, log_q)
