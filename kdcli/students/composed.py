"""Initialises a student in several steps."""

from __future__ import annotations

import datasets
from transformers import PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

from kdcli.config.components import build
from kdcli.config.schema import InitializerStep
from kdcli.errors import ConfigError, listed, shown, suggest
from kdcli.models.checkpoint import Checkpoint
from kdcli.students.base import StudentInitializer
from kdcli.students.pruning.base import PruningInitializer
from kdcli.tasks.base import Task


class Composed(StudentInitializer):
    """Applies several initialisers in order. Each one after the first prunes the model of the one before.

    Args:
        initializers: the names of the steps, in their order.
        steps: what each name stands for: an initializer with its arguments. Names that are not in `initializers` are not used.
    """

    def __init__(self, initializers: list[str], steps: dict[str, InitializerStep]):
        if not initializers:
            raise ConfigError("student.initializers is empty: name at least one of student.steps")
        for name in initializers:
            if name not in steps:
                raise ConfigError(
                    f"student.initializers: there is no step {shown(name)}{suggest(name, steps)} (student.steps: {listed(steps)})"
                )
        self.steps = [
            build(InitializerStep.model_validate(steps[name]), StudentInitializer) for name in initializers
        ]
        self._train_as(self.steps[0])
        self.at_most = any(step.at_most for step in self.steps)
        for name, step in zip(initializers[1:], self.steps[1:], strict=True):
            if not isinstance(step, PruningInitializer):
                raise ConfigError(
                    f"student.initializers: {name} creates a new model, so it can only be the first; those after it "
                    "prune (layers, width, vocabulary)"
                )

    def _train_as(self, first: StudentInitializer) -> None:
        self.inherits_teacher, self.trains_adapters = first.inherits_teacher, first.trains_adapters
        self.quantization_base = first.quantization_base
        self.learning_rate, self.embedding_learning_rate_factor = (
            first.learning_rate,
            first.embedding_learning_rate_factor,
        )
        self.token_dropout, self.reads_teacher = first.token_dropout, first.reads_teacher

    def start_from(self, source: Checkpoint) -> None:
        """Take a checkpoint for the first step."""
        super().start_from(source)
        self.steps[0].start_from(source)
        self._train_as(self.steps[0])

    def architecture(self) -> type[PreTrainedConfig] | None:
        """Return the architecture of the first step, which the others do not change."""
        return self.steps[0].architecture()

    def skeleton(self, task: Task, teacher: Checkpoint, model: PreTrainedModel) -> PreTrainedModel | None:
        """Return the model of the last step."""
        cut: PreTrainedModel | None = model
        for step in self.steps:
            cut = None if cut is None else step.skeleton(task, teacher, cut)
        return cut

    def require(self, task: Task, model: PreTrainedModel) -> None:
        """Check all steps, if the first one prunes as well."""
        if isinstance(self.steps[0], PruningInitializer):
            for step in self.steps:
                step.require(task, model)

    def initialize(
        self, task: Task, teacher: Checkpoint, rows: datasets.Dataset
    ) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
        """Return the result of the last step."""
        first, *prunings = self.steps
        model, tokenizer = first.initialize(task, teacher, rows)
        for pruning in prunings:
            model, tokenizer = pruning.cut(model, tokenizer, task, rows)
        return model, tokenizer

    def prepare_for_training(self, model: PreTrainedModel) -> None:
        """Do what the first step does."""
        self.steps[0].prepare_for_training(model)

    def merge_and_unload(self, model: PreTrainedModel) -> None:
        """Do what the first step does."""
        self.steps[0].merge_and_unload(model)
