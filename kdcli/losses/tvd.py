"""Total variation distance: a loss of f-DISTILL (Wen, Li, Du and Mou 2023)."""

from __future__ import annotations

from torch import Tensor

from kdcli.config import Positive
from kdcli.losses.base import Loss, log_probs
from kdcli.signal import Signal, TopKSignal


class TVD(Loss):
    """T · ½ Σ_c |p_c - q_c|, both softened by the temperature T.

    p = softmax(teacher / T), q = softmax(student / T): https://arxiv.org/abs/2307.15190. Its gradient,
    (q_c / T) · (s_c - Σ_d q_d s_d) / 2 with s = sign(q - p), depends on the signs of the differences, not on
    their sizes, so it shrinks by 1/T where that of the KLs shrinks by 1/T²: T, and not T², keeps its size
    when T changes. Range: [0, T], 0 only where both agree.

    Args:
        temperature: above 1 softens both distributions; > 0.
    """

    def __init__(self, temperature: Positive = 1.0):
        super().__init__()
        self.temperature = temperature

    def forward(self, student: Signal, teacher: Signal | TopKSignal | None, labels: Tensor) -> Tensor:
        """(N, C), (N, C) or (N, k) -> (N,)."""
        log_q, log_p = log_probs(student, teacher, self.temperature)
        return (log_p.exp() - log_q.exp()).abs().sum(-1) * (self.temperature / 2)
