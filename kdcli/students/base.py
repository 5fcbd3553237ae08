"""The interface of student initialisers."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any

import datasets
from transformers import PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

from kdcli.config.renamed import attribute
from kdcli.config.types import Quantization
from kdcli.models.checkpoint import Checkpoint, load_config
from kdcli.tasks.base import Task

LEARNING_RATE = 1e-4
"""The learning rate of a student whose weights were all trained before."""


class StudentInitializer(ABC):
    """Creates the initial model of the student, which is also that of the control.

    The constructor's arguments come from the config.

    Attributes:
        at_most: whether its size depends on the training rows, and `skeleton` is the largest that it may have.
        inherits_teacher: whether the initial model has weights of the teacher, and therefore similar outputs.
        reads_teacher: whether it loads the teacher's weights.
        trains_adapters: whether only the modules that `prepare_for_training` inserts are trained.
        quantization_base: in which the weights are held that the adapters are trained on; None: they are not quantized.
        learning_rate: the learning rate that suits its initial weights, if `trainer.learning_rate` is null.
        embedding_learning_rate_factor: the factor that suits it, if that of the trainer is null (`Task.regularized`).
        token_dropout: the probability that suits it, if `trainer.token_dropout` is null (`Task.regularized`).
        source: the checkpoint of `student.path`, set by `start_from` before anything else is called; None if there is no path.
    """

    at_most: bool = False
    inherits_teacher: bool = False
    reads_teacher: bool = False
    trains_adapters: bool = False
    quantization_base: Quantization | None = None
    learning_rate: float = LEARNING_RATE
    embedding_learning_rate_factor: float = 1.0
    token_dropout: float = 0.0
    source: Checkpoint | None = None

    def start_from(self, source: Checkpoint) -> None:
        """Take the checkpoint of `student.path`."""
        self.source = source

    def architecture(self) -> type[PreTrainedConfig] | None:
        """Return the config class of the student's architecture; None if it is the teacher's."""
        return None if self.source is None else type(load_config(self.source))

    def require(self, task: Task, model: PreTrainedModel) -> None:  # noqa: B027
        """Check, before anything is trained, that the student can be created from a model.

        Args:
            model: the model whose weights it inherits, on the device "meta".

        Raises:
            ConfigError, ModelError
        """

    def skeleton(self, task: Task, teacher: Checkpoint, model: PreTrainedModel) -> PreTrainedModel | None:
        """Return the student without weights, on the device "meta", before anything is trained; None: its size is not known yet.

        Args:
            teacher: the checkpoint whose tokenizer the student takes.
            model: the model whose weights it inherits, on the device "meta".
        """
        return None

    @abstractmethod
    def initialize(
        self, task: Task, teacher: Checkpoint, rows: datasets.Dataset
    ) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
        """Create a plain Hugging Face model with a head for the task, and its tokenizer.

        Args:
            teacher: the teacher's checkpoint, after tuning.
            rows: the training rows, for initialisers that depend on the data.
        """

    def prepare_for_training(self, model: PreTrainedModel) -> None:  # noqa: B027
        """Insert the modules that are trained in place of the model's own; called before each training, of the student and of the control."""

    def merge_and_unload(self, model: PreTrainedModel) -> None:  # noqa: B027
        """Merge the inserted modules into a plain model; called after each training."""


def __getattr__(name: str) -> Any:
    """Return the old name of `StudentInitializer`."""
    return attribute(__name__, name)
