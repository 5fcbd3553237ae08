"""Forward Kullback-Leibler divergence: the soft-label loss of Hinton, Vinyals and Dean (2015)."""

from __future__ import annotations

from torch import Tensor
from torch.nn.functional import kl_div

from kdcli.config import Positive
from kdcli.losses.base import Loss, log_probs
from kdcli.signal import Signal, TopKSignal


class ForwardKL(Loss):
    """T² · KL(teacher ‖ student), both softened by the temperature T.

    T² · Σ_c p_c (log p_c - log q_c) with p = softmax(teacher / T), q = softmax(student / T): section 2 of
    https://arxiv.org/abs/1503.02531. T² keeps the gradient's size when T changes. Range: [0, ∞), 0 only
    where both agree.

    Args:
        temperature: above 1 softens both distributions; > 0.
    """

    def __init__(self, temperature: Positive = 1.0):
        super().__init__()
        self.temperature = temperature

    def forward(self, student: Signal, teacher: Signal | TopKSignal | None, labels: Tensor) -> Tensor:
        """(N, C), (N, C) -> (N,)."""
        log_q, log_p = log_probs(student, teacher, self.temperature)
        return kl_div(log_q, log_p, reduction="none", log_target=True).sum(-1) * self.temperature**2
