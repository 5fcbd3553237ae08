"""Cross-entropy on the gold labels."""

from __future__ import annotations

from torch import Tensor
from torch.nn.functional import cross_entropy

from kdcli.losses.base import Loss
from kdcli.signal import Signal, TopKSignal


class HardLabel(Loss):
    """-log q[label], at the positions that have a gold label; 0 elsewhere (they are not counted).

    Range: [0, ∞).
    """

    needs_teacher = False
    divergence = False
    over = "gold"

    def forward(self, student: Signal, teacher: Signal | TopKSignal | None, labels: Tensor) -> Tensor:
        """(N, C), -, (N,) -> (N,)."""
        return cross_entropy(student.logits.float(), labels, ignore_index=-100, reduction="none")
