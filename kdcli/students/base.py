"""What a birth is."""

from __future__ import annotations

from abc import ABC, abstractmethod

import datasets
from transformers import PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

from kdcli.models import Source, load_config
from kdcli.tasks.base import Task


class Birth(ABC):
    """Makes the student that is then trained; the same one for the student and for its control.

    The constructor's arguments are config.
    """

    of_teacher: bool = False
    """Whether what is born answers much as the teacher does before it has learnt anything."""
    adapts: bool = False
    """Whether what `dress` puts in is trained alone, and the rest of the model stays as it is."""
    source: Source | None = None
    """The checkpoint that `student.path` names, set before `born`; None if there is no path."""

    def kind(self) -> type[PreTrainedConfig] | None:
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
    def born(
        self, task: Task, teacher: Source, rows: datasets.Dataset
    ) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
        """A plain Hugging Face model with a head for the task, and its tokenizer.

        Args:
            teacher: the teacher's checkpoint, tuned if it was tuned.
            rows: the training rows, for births that look at the data.
        """

    def dress(self, model: PreTrainedModel) -> None:  # noqa: B027
        """Put into a born model what is trained in its stead; before each training, of the student and of the control."""

    def undress(self, model: PreTrainedModel) -> None:  # noqa: B027
        """Make the trained model a plain one again."""
