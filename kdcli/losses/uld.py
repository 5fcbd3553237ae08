"""Universal logit distillation: between a teacher and a student that have different vocabularies."""

from __future__ import annotations

import torch
from torch import Tensor

from kdcli.config.types import Temperature, VocabularySize
from kdcli.losses.base import Loss
from kdcli.signals import Signal, TopKSignal


class ULD(Loss):
    """Σ_i |p_(i) - q_(i)|, the probabilities of teacher and student sorted from the largest down.

    Equation 4 of Boizard et al. 2024 (https://arxiv.org/abs/2402.12030): the Wasserstein distance where every token is as
    far from every other. It does not ask which tokens are likely, only how sure the teacher is; so it goes with a
    cross-entropy on the gold tokens. Beyond the `top_k` most likely tokens of either, all others are one bucket. It is taken
    where both tokenizers begin a token at the same place of the text. Range: [0, 2], 0 where both are equally sure.

    Args:
        temperature: above 1 softens both distributions; > 0.
        top_k: probabilities that are compared one by one (of a stored signal, as many as it holds).
    """

    by_class = False

    def __init__(self, temperature: Temperature = 1.0, top_k: VocabularySize = 64):
        super().__init__()
        self.temperature, self.top_k = temperature, top_k

    def forward(self, student: Signal, teacher: Signal | TopKSignal | None, labels: Tensor) -> Tensor:
        """(N, C), (N, D) or (N, k) -> (N,)."""
        if teacher is None:
            raise ValueError("this loss needs a teacher's signal")
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


def _largest(said: Signal, temperature: float, k: int) -> Tensor:
    """The k largest probabilities, the largest first."""
    logits = said.logits.float() / temperature
    top = logits.topk(min(k, logits.shape[-1]), dim=-1).values
    return (top - logits.logsumexp(-1, keepdim=True)).exp()
