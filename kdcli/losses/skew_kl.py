"""Skew Kullback-Leibler divergence: a loss of DistiLLM (Ko, Kim, Chen and Yun 2024)."""

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

Skew = Annotated[Fraction, Field(lt=1)]


class SkewKL(Loss):
    """T² · KL(teacher ‖ α teacher + (1 - α) student), softened by the temperature T.

    T² · Σ_c p_c (log p_c - log(α p_c + (1 - α) q_c)) with p = softmax(teacher / T), q = softmax(student / T):
    section 3.1 of https://arxiv.org/abs/2402.03898. The teacher's share of the mixture bounds the gradient
    where the student gives almost no mass. T² keeps the gradient's size when T changes. Range:
    [0, -T² · log α], 0 only where both agree.

    Args:
        skew: α; 0 <= skew < 1, 0 is the forward KL.
        temperature: above 1 softens both distributions; > 0.
    """

    def __init__(self, skew: Skew = 0.1, temperature: Positive = 1.0):
        super().__init__()
        self.skew = skew
        self.temperature = temperature

    def forward(self, student: Signal, teacher: Signal | TopKSignal | None, labels: Tensor) -> Tensor:
        """(N, C), (N, C) or (N, k) -> (N,)."""
        log_q, log_p = log_probs(student, teacher, self.temperature)
        log_m = log_q
        if self.skew > 0:
            log_m = torch.logaddexp(log_p + math.log(self.skew), log_q + math.log1p(-self.skew))
        return kl_div(log_m, log_p, reduction="none", log_target=True).sum(-1) * self.temperature**2
