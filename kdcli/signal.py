"""What a model says about the counted positions of a batch: one type for teacher and student.

N is the number of counted positions (rows of a classifier, tokens of a language model), C the number of
classes (labels, or the vocabulary).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor, device


@dataclass(frozen=True)
class Signal:
    """Dense scores before the softmax, fp32, shape (N, C)."""

    logits: Tensor

    def to(self, where: device) -> Signal:
        """The same signal on another device."""
        return Signal(self.logits.to(where))
