"""A student that is born in several steps."""

from __future__ import annotations

import datasets
from transformers import PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

from kdcli.config import BirthStep, build, suggest
from kdcli.errors import ConfigError, listed, shown
from kdcli.models import Source
from kdcli.students.base import Birth
from kdcli.students.cut import Cut
from kdcli.tasks.base import Task


class Births(Birth):
    """Births one after the other: each one after the first takes something away from what was born before.

    Args:
        births: the names of the steps, in their order.
        steps: what each name means: a birth of its own, with its arguments. Names that `births` leaves out are not used.
    """

    def __init__(self, births: list[str], steps: dict[str, BirthStep]):
        if not births:
            raise ConfigError("student.births is empty: name at least one of student.steps")
        for name in births:
            if name not in steps:
                raise ConfigError(
                    f"student.births: there is no step {shown(name)}{suggest(name, steps)} (student.steps: {listed(steps)})"
                )
        self.steps = [build(BirthStep.model_validate(steps[name]), Birth) for name in births]
        self.of_teacher, self.adapts = self.steps[0].of_teacher, self.steps[0].adapts
        for name, step in zip(births[1:], self.steps[1:], strict=True):
            if not isinstance(step, Cut):
                raise ConfigError(
                    f"student.births: {name} makes a student anew, so it can only be the first; those after it take "
                    "something away (layers, width, vocabulary)"
                )

    def kind(self) -> type[PreTrainedConfig] | None:
        """That of the first step: the others leave it as it is."""
        self.steps[0].source = self.source
        return self.steps[0].kind()

    def require(self, task: Task, model: PreTrainedModel) -> None:
        """Each step can take away what it is to, if all of them do."""
        if isinstance(self.steps[0], Cut):
            for step in self.steps:
                step.require(task, model)

    def born(
        self, task: Task, teacher: Source, rows: datasets.Dataset
    ) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
        """What the last step leaves."""
        first, *cuts = self.steps
        first.source = self.source
        model, tokenizer = first.born(task, teacher, rows)
        for cut in cuts:
            model, tokenizer = cut.cut(model, tokenizer, task, rows)
        return model, tokenizer

    def dress(self, model: PreTrainedModel) -> None:
        """As the first step does."""
        self.steps[0].dress(model)

    def undress(self, model: PreTrainedModel) -> None:
        """As the first step does."""
        self.steps[0].undress(model)
