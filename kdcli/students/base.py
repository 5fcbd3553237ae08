"""What a birth is."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any

import datasets
from transformers import PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

from kdcli.config.renamed import attribute
from kdcli.models.checkpoint import Checkpoint, load_config
from kdcli.tasks.base import Task


class StudentInitializer(ABC):
    """Makes the student that is then trained; the same one for the student and for its control.

    The constructor's arguments are config.
    """

    inherits_teacher: bool = False
    """Whether what is born answers much as the teacher does before it has learnt anything."""
    trains_adapters: bool = False
    """Whether what `prepare_for_training` puts in is trained alone, and the rest of the model stays as it is."""
    source: Checkpoint | None = None
    """The checkpoint that `student.path` names, set before `born`; None if there is no path."""

    def architecture(self) -> type[PreTrainedConfig] | None:
        """The architecture of what will be born, by its config; None: the teacher's."""
        return None if self.source is None else type(load_config(self.source))

    def require(self, task: Task, model: PreTrainedModel) -> None:  # noqa: B027
        """Refuse, before anything is trained, what cannot be made of a model.

        Args:
            model: what it is made of, without its weights (on the device "meta").

        Raises:
            ConfigError, ModelError
        """

    @abstractmethod
    def initialize(
        self, task: Task, teacher: Checkpoint, rows: datasets.Dataset
    ) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
        """A plain Hugging Face model with a head for the task, and its tokenizer.

        Args:
            teacher: the teacher's checkpoint, tuned if it was tuned.
            rows: the training rows, for births that look at the data.
        """

    def prepare_for_training(self, model: PreTrainedModel) -> None:  # noqa: B027
        """Put into a born model what is trained in its stead; before each training, of the student and of the control."""

    def merge_and_unload(self, model: PreTrainedModel) -> None:  # noqa: B027
        """Make the trained model a plain one again."""


def __getattr__(name: str) -> Any:
    """`Birth`, the old name of `StudentInitializer`."""
    return attribute(__name__, name)
