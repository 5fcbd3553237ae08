"""Shows the memory that a run takes, as a table for people and as JSON. It imports no torch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from kdcli.errors import listed
from kdcli.numbers import format_bytes

COLUMNS = ("weights", "gradients", "optimizer", "activations", "teacher", "peak")
"""The columns of the table."""


@dataclass(frozen=True)
class PhaseMemory:
    """The memory that one phase takes in one process, in bytes, beyond what the process has before.

    Attributes:
        name: of the phase in the progress.
        peak: the most at one time. Gradients come as activations go, so that it is less than the sum of the others.
        least: what is held at one time in any case: weights, gradients, optimizer state and the teacher's weights.
        weights: of the model that is trained, or that is initialised.
        teacher: the weights of a teacher that is in memory.
        parameters: of the model that is trained.
    """

    name: str
    peak: int
    least: int = 0
    weights: int = 0
    gradients: int = 0
    optimizer: int = 0
    activations: int = 0
    teacher: int = 0
    parameters: int = 0

    @property
    def composition(self) -> str:
        """What the least memory consists of, for messages."""
        parts = {name: getattr(self, name) for name in ("weights", "gradients", "optimizer", "teacher")}
        return listed(f"{name} {format_bytes(size)}" for name, size in parts.items() if size)


@dataclass(frozen=True)
class Remedy:
    """A key that lowers the memory.

    Attributes:
        setting: the key and its value.
        saves: by so many bytes, with the remedies before it.
    """

    setting: str
    saves: int

    def __str__(self) -> str:
        return f"{self.setting} (saves {format_bytes(self.saves)})"


@dataclass(frozen=True)
class MemoryPlan:
    """The memory that a run takes. Its phases come one after the other, so that the peak is that of one of them.

    Attributes:
        phases: in their order. Those that load no model are not among them.
        free: the bytes that a process can take; None: the system does not report it.
        on_gpu: whether it is the memory of a GPU.
        processes: the processes that each take as much.
    """

    phases: Sequence[PhaseMemory]
    free: int | None = None
    on_gpu: bool = False
    processes: int = 1

    @property
    def peak(self) -> int:
        """The most memory that a process takes."""
        return max((phase.peak for phase in self.phases), default=0)

    @property
    def kind(self) -> str:
        """Which memory it is."""
        return "GPU memory" if self.on_gpu else "memory"

    @property
    def summary(self) -> str:
        """The peak, and what is free."""
        free = "" if self.free is None else f" ({format_bytes(self.free)} free)"
        each = " per process" if self.processes > 1 else ""
        return f"about {format_bytes(self.peak)} of {self.kind}{each}{free}"

    def exceeding(self, free: int) -> list[PhaseMemory]:
        """Return the phases whose peak is more than what is free."""
        return [phase for phase in self.phases if phase.peak > free]

    def lines(self) -> list[str]:
        """Return the plan as a table of at most 80 columns, names of phases aside."""
        if not self.phases:
            return []
        cells = [(self.kind, *COLUMNS), *map(_cells, self.phases)]
        widths = [max(len(line[column]) for line in cells) for column in range(len(cells[0]))]
        return [
            "  ".join([line[0].ljust(widths[0]), *map(str.rjust, line[1:], widths[1:])]).rstrip()
            for line in cells
        ]

    def as_json(self) -> dict[str, Any]:
        """Return the plan for machines, in bytes."""
        return {
            "free_bytes": self.free,
            "peak_bytes": self.peak,
            "on_gpu": self.on_gpu,
            "processes": self.processes,
            "phases": [asdict(phase) for phase in self.phases],
        }


def _cells(phase: PhaseMemory) -> tuple[str, ...]:
    sizes = [getattr(phase, column) for column in COLUMNS]
    return phase.name, *(format_bytes(size) if size else "-" for size in sizes)
