"""Defines the total variation distance, a loss of f-DISTILL (Wen, Li, Du and Mou 2023)."""

from __future__ import annotations

from torch import Tensor

from kdcli.losses.base import Divergence


class TVD(Divergence):
    """T · ½ Σ_c |p_c - q_c|, both softened by the temperature T.

    p = softmax(teacher / T), q = softmax(student / T): https://arxiv.org/abs/2307.15190. Its gradient,
    (q_c / T) · (s_c - Σ_d q_d s_d) / 2 with s = sign(q - p), depends on the signs of the differences, not on
    their sizes, so it shrinks by 1/T where that of the KLs shrinks by 1/T²: T, and not T², keeps its size
    when T changes. Range: [0, T], 0 only where both agree.

    Args:
        temperature: above 1 softens both distributions; > 0.
    """

    power = 1

    def between(self, log_p: Tensor, log_q: Tensor) -> Tensor:
        """Return half the sum of the absolute differences."""
        return (log_p.exp() - log_q.exp()).abs().sum(-1) / 2
