"""Defines a loss on attention: the student imitates the attention of the teacher."""

from __future__ import annotations

from typing import ClassVar, Literal

from torch import Tensor

from kdcli.errors import ConfigError
from kdcli.losses.features import SMALL, FeatureLoss, LayerMapping
from kdcli.signals import Features, Part


class Attention(FeatureLoss):
    """The distance between the attention of student and teacher, averaged over heads and over the mapped layers.

    For each token that attends, over the n tokens j that it may attend to, with probabilities a:
    kl: Σ_j a_t (log a_t - log a_s) (Wang et al. 2020, equation 7, https://arxiv.org/abs/2002.10957);
    mse: (1 / n) Σ_j (a_s - a_t)², of probabilities, or of scores (Jiao et al. 2020, equation 7,
    https://arxiv.org/abs/1909.10351), taken as log a less its mean over j, because the softmax is invariant to a constant.
    Range: [0, ∞). Models with different numbers of heads are compared by the mean over their heads. While the student's
    attention is captured, it has no dropout.

    Args:
        layer_mapping: the pairs of student and teacher layers.
        of: what is compared: attention probabilities, or the scores before the softmax.
        distance: mse, or kl (of probabilities).
    """

    features: ClassVar[frozenset[Part]] = frozenset({"attentions"})

    def __init__(
        self,
        layer_mapping: LayerMapping = "uniform",
        of: Literal["probabilities", "scores"] = "scores",
        distance: Literal["mse", "kl"] = "mse",
    ):
        super().__init__(layer_mapping)
        if distance == "kl" and of == "scores":
            raise ConfigError(
                "distance = kl: it compares probabilities; give of=probabilities, or distance=mse"
            )
        self.of, self.distance = of, distance

    def between(self, student: Features, teacher: Features, pair: int) -> Tensor:
        """Compare attention (B, A, L, L) with (B, A', L, L); return (B, L)."""
        student_layer, teacher_layer = self.pairs[pair]
        q, p = student.attentions[student_layer - 1].float(), teacher.attentions[teacher_layer - 1].float()
        if q.shape[1] != p.shape[1]:
            q, p = q.mean(1, keepdim=True), p.mean(1, keepdim=True)
        allowed = student.pairs[:, None]
        count = allowed.sum(-1).clamp(min=1)
        log_q, log_p = (x.clamp(min=SMALL).log().masked_fill(~allowed, 0) for x in (q, p))
        if self.distance == "kl":
            distance = (p * (log_p - log_q)).masked_fill(~allowed, 0).sum(-1)
        elif self.of == "probabilities":
            distance = (q - p).square().masked_fill(~allowed, 0).sum(-1) / count
        else:
            difference = log_q - log_p
            centre = difference.sum(-1, keepdim=True) / count[..., None]
            distance = (difference - centre).square().masked_fill(~allowed, 0).sum(-1) / count
        return distance.mean(1)
