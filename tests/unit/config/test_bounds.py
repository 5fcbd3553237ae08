"""Every number that a config can hold has both bounds, and no boolean, NaN or infinity passes for one."""

from __future__ import annotations

import importlib
import inspect
import pkgutil
import typing
from collections.abc import Iterator
from typing import Any

import pytest
from pydantic import BaseModel, TypeAdapter, ValidationError

import kdcli
from kdcli.config.schema import COMMANDS
from kdcli.config.types import Component
from kdcli.exporting.targets.base import Target
from kdcli.losses.base import Loss
from kdcli.students.base import StudentInitializer
from kdcli.teachers.base import Teacher

ODD: list[Any] = [
    True, False, float("nan"), float("inf"), float("-inf"), 1e300, -1e300, 10**400, -(10**400), "1e300", "-1e300", "nan", "inf", "9" * 5000,
]  # fmt: skip


def numbers(annotation: Any, where: str) -> Iterator[tuple[str, Any]]:
    """Each annotation of a number inside `annotation`, with the constraints that stand around it."""
    origin = typing.get_origin(annotation)
    if origin is typing.Annotated:
        inner, *constraints = typing.get_args(annotation)
        for name, found in numbers(inner, where):
            yield name, typing.Annotated[found, *constraints] if found is inner else found
    elif annotation in (int, float):
        yield where, annotation
    elif inspect.isclass(annotation) and issubclass(annotation, BaseModel):
        yield from fields(annotation, where)
    elif origin is not typing.Literal:
        for argument in typing.get_args(annotation):
            yield from numbers(argument, where)


def fields(model: type[BaseModel], where: str) -> Iterator[tuple[str, Any]]:
    hints = typing.get_type_hints(model, include_extras=True)
    for name in model.model_fields:
        yield from numbers(hints[name], f"{where}.{name}".lstrip("."))


KINDS = (StudentInitializer, Target, Teacher, Loss)


def constructors() -> Iterator[type]:
    """The classes under kdcli/ that a config can name."""
    for part in ("students", "exporting.targets", "teachers", "losses"):
        package = importlib.import_module(f"{kdcli.__name__}.{part}")
        for each in pkgutil.walk_packages(package.__path__, package.__name__ + "."):
            module = importlib.import_module(each.name)
            yield from (
                found
                for found in vars(module).values()
                if inspect.isclass(found) and issubclass(found, KINDS) and found.__module__ == each.name
            )


def arguments(component: type) -> Iterator[tuple[str, Any]]:
    hints = typing.get_type_hints(component.__init__, include_extras=True)
    for name in inspect.signature(component).parameters:
        if name in hints:
            yield from numbers(hints[name], f"{component.__module__}.{component.__name__}.{name}")


def configured() -> list[type]:
    """Classes whose arguments are plain data: others are made by kdcli itself, of objects that no config can hold."""
    return [each for each in constructors() if all(map(plain, typing.get_type_hints(each.__init__).values()))]


def plain(annotation: Any) -> bool:
    if annotation is Any or typing.get_origin(annotation) is typing.Literal:
        return True
    if inspect.isclass(annotation) and typing.get_origin(annotation) is None:
        return annotation.__module__ == "builtins" or issubclass(annotation, BaseModel)
    return all(plain(each) for each in typing.get_args(annotation) if each is not Ellipsis)


FOUND = dict(
    [
        *(pair for model in COMMANDS.values() for pair in fields(model, model.__name__.lower())),
        *(pair for each in configured() for pair in arguments(each)),
    ]
)


def test_the_walk_finds_the_numbers() -> None:
    """A walk that finds nothing passes for every schema."""
    expected = {
        "distill.trainer.epochs", "distill.stages.trainer.learning_rate", "distill.measure.batch_sizes", "distill.measure.request_rates",
        "distill.loss.weight", "distill.hardware.tolerances.agreement", "distill.seed", "export.hardware.budget.max_bytes",
        "kdcli.students.from_config.FromConfig.hidden_size", "kdcli.students.pruning.layers.Layers.layers",
        "kdcli.losses.attention.Attention.layer_mapping", "kdcli.exporting.targets.cpu.Cpu.opset", "kdcli.teachers.remote.openai.OpenAITeacher.budget.tokens",
    }  # fmt: skip
    assert expected <= FOUND.keys()
    assert len(FOUND) > 200
    assert issubclass(COMMANDS["distill"].model_fields["student"].annotation, Component)  # type: ignore[arg-type]


@pytest.mark.parametrize("value", ODD, ids=lambda value: f"{type(value).__name__}-{str(value)[:9]}")
def test_every_number_has_both_bounds(value: Any) -> None:
    """A number without an upper bound overflows, allocates without end, or names a run that takes years."""
    accepted = []
    for name, annotation in FOUND.items():
        try:
            TypeAdapter(annotation).validate_python(value)
        except ValidationError:
            continue
        accepted.append(name)
    assert not accepted
