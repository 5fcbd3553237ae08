"""Defines universal logit distillation, a loss between a teacher and a student with different vocabularies."""

from __future__ import annotations

import torch
from torch import Tensor

from kdcli.config.types import Temperature, VocabularySize
from kdcli.losses.base import Loss
from kdcli.signals import Signal, TopKSignal


class ULD(Loss):
    """Σ_i |p_(i) - q_(i)|, with the probabilities of teacher and student in descending order.

    Equation 4 of Boizard et al. 2024 (https://arxiv.org/abs/2402.12030): the Wasserstein distance if all tokens are
    equally far apart. It compares how peaked the distributions are, not which tokens are likely, so it is combined with a
    cross-entropy on the gold tokens. Beyond the `top_k` most likely tokens of each, all others are one bucket. It is computed
    where both tokenizers begin a token at the same character. Range: [0, 2], 0 where the sorted probabilities are equal.

    Args:
        temperature: above 1 softens both distributions; > 0.
        top_k: the number of probabilities that are compared one by one (for stored outputs at most as many as are stored).
    """

    by_class = False

    def __init__(self, temperature: Temperature = 1.0, top_k: VocabularySize = 64):
        super().__init__()
        self.temperature, self.top_k = temperature, top_k

    def forward(self, student: Signal, teacher: Signal | TopKSignal | None, labels: Tensor) -> Tensor:
        """Compare outputs (N, C) with (N, D) or the top k (N, k); return (N,)."""
        if teacher is None:
            raise ValueError("this loss needs the teacher's outputs")
        if isinstance(teacher, TopKSignal):
            p = teacher.softened(self.temperature)[:, :-1].exp()
            p = p.sort(-1, descending=True).values[:, : self.top_k]
            k = p.shape[-1]
        else:
            k = self.top_k
            p = _largest(teacher, self.temperature, k)
        q = _largest(student, self.temperature, k)
        width = max(p.shape[-1], q.shape[-1])
        p, q = (torch.nn.functional.pad(part, (0, width - part.shape[-1])) for part in (p, q))
        return (p - q).abs().sum(-1) + (p.sum(-1) - q.sum(-1)).abs()


def _largest(outputs: Signal, temperature: float, k: int) -> Tensor:
    """Return the k largest probabilities in descending order."""
    logits = outputs.logits.float() / temperature
    top = logits.topk(min(k, logits.shape[-1]), dim=-1).values
    return (top - logits.logsumexp(-1, keepdim=True)).exp()
