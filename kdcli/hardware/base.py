"""What a hardware target is."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import ClassVar, Literal

from torch import Tensor
from transformers import PreTrainedModel


class Target(ABC):
    """Makes the files that a device runs. What runs them, `kdcli.measure` knows by how their names end, and of a folder by
    what it holds."""

    serves: ClassVar[tuple[Literal["classification", "token_classification", "causal_lm", "seq2seq"], ...]]
    """The tasks whose students it can make files of."""

    @abstractmethod
    def export(
        self,
        student: Path,
        out: Path,
        model: PreTrainedModel,
        inputs: Sequence[Mapping[str, Tensor]],
        max_length: int,
    ) -> dict[str, Path]:
        """Write the artifacts, and beside them whatever their runtime needs (tokenizer, labels).

        Args:
            student: the student's directory.
            out: an empty directory.
            model: the student, fp32, in eval mode.
            inputs: what it reads of rows of the training split, at least one, (1, L) each.
            max_length: tokens that it will read, at most.

        Returns:
            The files, or folders, by precision.

        Raises:
            ExportError: a package is missing, or the exporter failed.
        """
