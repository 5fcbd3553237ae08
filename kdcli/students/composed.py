"""A student that is born in several steps."""

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
    """Births one after the other: each one after the first takes something away from what was born before.

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
        self.inherits_teacher, self.trains_adapters = (
            self.steps[0].inherits_teacher,
            self.steps[0].trains_adapters,
        )
        for name, step in zip(initializers[1:], self.steps[1:], strict=True):
            if not isinstance(step, PruningInitializer):
                raise ConfigError(
                    f"student.initializers: {name} makes a student anew, so it can only be the first; those after it take "
                    "something away (layers, width, vocabulary)"
                )

    def architecture(self) -> type[PreTrainedConfig] | None:
        """That of the first step: the others leave it as it is."""
        self.steps[0].source = self.source
        return self.steps[0].architecture()

    def require(self, task: Task, model: PreTrainedModel) -> None:
        """Each step can take away what it is to, if all of them do."""
        if isinstance(self.steps[0], PruningInitializer):
            for step in self.steps:
                step.require(task, model)

    def initialize(
        self, task: Task, teacher: Checkpoint, rows: datasets.Dataset
    ) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
        """What the last step leaves."""
        first, *cuts = self.steps
        first.source = self.source
        model, tokenizer = first.initialize(task, teacher, rows)
        for cut in cuts:
            model, tokenizer = cut.cut(model, tokenizer, task, rows)
        return model, tokenizer

    def prepare_for_training(self, model: PreTrainedModel) -> None:
        """As the first step does."""
        self.steps[0].prepare_for_training(model)

    def merge_and_unload(self, model: PreTrainedModel) -> None:
        """As the first step does."""
        self.steps[0].merge_and_unload(model)
