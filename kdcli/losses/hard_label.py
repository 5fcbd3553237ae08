"""Defines the cross-entropy on the gold labels."""

from __future__ import annotations

from torch import Tensor
from torch.nn.functional import cross_entropy

from kdcli.losses.base import Loss, Skew
from kdcli.signals import Signal, TopKSignal


class HardLabel(Loss):
    """-log q[label], at the positions that have a gold label; 0 elsewhere (they are not counted).

    With a smoothing ε the label is (1 - ε) of the label and ε of all classes alike (Szegedy et al. 2016,
    https://arxiv.org/abs/1512.00567, section 7). Labels of several annotators (dataset.duplicates=soft) are a distribution p:
    -Σ_c p_c log q_c. Range: [0, ∞).

    Args:
        label_smoothing: the probability ε that all labels share, 0 to below 1.
    """

    needs_teacher = False
    divergence = False
    soft_gold = True
    over = "gold"

    def __init__(self, label_smoothing: Skew = 0.0):
        super().__init__()
        self.label_smoothing = label_smoothing

    def forward(self, student: Signal, teacher: Signal | TopKSignal | None, labels: Tensor) -> Tensor:
        """Compare outputs (N, C) with labels (N,) or (N, C); return (N,)."""
        return cross_entropy(
            student.logits.float(),
            labels,
            ignore_index=-100,
            reduction="none",
            label_smoothing=self.label_smoothing,
        )
