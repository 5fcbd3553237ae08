"""Forward Kullback-Leibler divergence: the soft-label loss of Hinton, Vinyals and Dean (2015)."""

from __future__ import annotations

from torch import Tensor
from torch.nn.functional import kl_div, log_softmax

from kdcli.config import Positive
from kdcli.losses.base import Loss
from kdcli.signal import Signal


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

    def forward(self, student: Signal, teacher: Signal | None, labels: Tensor) -> Tensor:
        """(N, C), (N, C) -> (N,)."""
        if teacher is None:
            raise ValueError("ForwardKL needs a teacher's signal")
        log_q = log_softmax(student.logits.float() / self.temperature, dim=-1)
        log_p = log_softmax(teacher.logits.float() / self.temperature, dim=-1)
        return kl_div(log_q, log_p, reduction="none", log_target=True).sum(-1) * self.temperature**2
