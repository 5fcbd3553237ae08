"""What a loss is."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import ClassVar, Literal

from torch import Tensor, nn

from kdcli.signal import Signal


class Loss(nn.Module, ABC):
    """One value per counted position; it never reduces.

    `kdcli.distiller` divides each term by its own count over the whole accumulated batch and all processes.
    A subclass is one public class in one file, chosen by `_target_`; its constructor's arguments are config.
    """

    needs_teacher: ClassVar[bool] = True
    """Whether it reads the teacher's signal. The control keeps only losses that do not."""
    divergence: ClassVar[bool] = True
    """Whether loss(x, x) = 0; the pre-flight holds a loss to it. False for, say, a cross-entropy with soft labels."""
    over: ClassVar[Literal["targets", "gold"]] = "targets"
    """The positions that it counts: all counted ones, or those that have a gold label."""

    @abstractmethod
    def forward(self, student: Signal, teacher: Signal | None, labels: Tensor) -> Tensor:
        """The loss of each position, fp32.

        Args:
            student: what the student says, (N, C).
            teacher: what the teacher says of the same positions, (N, C); None if `needs_teacher` is False.
            labels: the gold labels, int64 (N,); -100 where there is none.

        Returns:
            (N,)
        """
