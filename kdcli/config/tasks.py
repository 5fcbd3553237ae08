"""Finds the declarations of tasks: which keys a task reads, and what it refuses. Those of a packaged task import no torch."""

from __future__ import annotations

import functools
import importlib
import inspect
import pkgutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from kdcli.config.components import locate
from kdcli.errors import ConfigError, suggest

TASKS = "kdcli.tasks"
"""The package of the packaged tasks: each is a folder with `spec.py` and `task.py`."""
BASE = "kdcli.tasks.base.Task"
"""The class that a user's own task inherits from."""


@dataclass(frozen=True)
class FolderFormat:
    """A file format that also comes as a folder of files.

    Attributes:
        suffixes: the endings of the names of its files.
        columns: the columns that it always has.
    """

    suffixes: tuple[str, ...]
    columns: tuple[str, ...]


class TaskSpec:
    """The declarations of a task; its methods get the config's data set (`kdcli.config.dataset.Dataset`). A packaged task has one in `kdcli/tasks/<name>/spec.py`; a user's own task inherits that of its base class,
    or sets `spec` to a subclass's instance."""

    family: ClassVar[str]
    """The packaged task whose kind of model it has: targets, runtimes, scripts and prompts that serve that one serve this one."""
    reads: ClassVar[frozenset[str]] = frozenset()
    """The keys of the data set that it reads, in addition to those that every task reads."""
    reads_of_run: ClassVar[frozenset[str]] = frozenset()
    """The dotted keys outside of the data set that it reads, but not every task; the name of a mapping stands for all of its keys."""
    only_here: ClassVar[Mapping[str, str]] = {}
    """The keys of the data set that other tasks refuse, with their purpose, for messages."""
    formats: ClassVar[Mapping[str, FolderFormat]] = {}
    """The values of `dataset.format` that only tasks which list them can read."""
    inference_order: ClassVar[int | None] = None
    """The order in which tasks are tested for being implied by the configured columns; None: this task is never implied."""
    writes: ClassVar[bool] = False
    """Its models generate text."""
    quantizable: ClassVar[bool] = False
    """Its students can be trained with quantized weights (student.quantization)."""
    max_epochs: ClassVar[float] = 30.0
    """The most passes over the training rows until convergence, where `trainer.max_epochs` is null. Models that generate text need fewer: each
    row has many positions."""
    general: ClassVar[bool] = False
    """It trains a general student in a stage before the task of the run, and cannot be the task of a run."""
    selects_by_gold: ClassVar[bool] = True
    """A stage can train on the labelled or on the unlabelled rows alone."""
    refuses_short: ClassVar[bool] = False
    """Its preprocessing refuses a `max_length` that leaves no room for other than special tokens."""
    from_scratch: ClassVar[bool] = False
    """A model with random weights over a learned vocabulary can be its teacher, or its student."""
    script_arguments: ClassVar[str] = ""
    """The arguments of the scripts that run its exported classifiers without kdcli; empty: its models generate text."""
    longest_proposed: ClassVar[int] = 512
    """The most tokens of a row that `kdcli init` proposes: what its proposed teacher reads."""
    column_keys: ClassVar[str] = ""
    """The keys that name its columns, or that choose it, for messages."""
    new_students: ClassVar[str] = ""
    """Packaged students with random weights for it, for messages."""

    def implied_by(self, cfg: Any) -> bool:
        """Return whether the configured columns, or the format, imply this task."""
        return False

    def usual_keys(self, tokenizer: Any) -> dict[str, Any]:
        """Return the keys of a data set with the usual columns of the task, for a model that no run describes.

        Args:
            tokenizer: the model's.
        """
        return {}

    def fits(self, columns: Sequence[Any], given: Mapping[str, Any]) -> Iterator[Any]:
        """Yield the ways in which the task could read a file (`kdcli.tasks.columns.Fit`), for `kdcli init`.

        Args:
            columns: of the file (`kdcli.tasks.columns.Column`).
            given: the keys of the data set that the user gave.
        """
        yield from ()

    def proposed_data(self, keys: Mapping[str, Any]) -> Iterator[str]:
        """Yield the lines that `kdcli init` adds to the data set of a new config."""
        yield from ()

    def proposed_models(self, keys: Mapping[str, Any]) -> Iterator[str]:
        """Yield the lines of a new config that choose teacher, student and device."""
        yield "teacher: minilm  # kdcli list teacher; your own: teacher.path: FOLDER_OR_HUB_ID"
        yield "student: tiny  # kdcli list student; mini and small are larger"
        yield "hardware: cpu  # ONNX; kdcli list hardware"

    def check(self, cfg: Any) -> None:
        """Refuse a data set that this task cannot read.

        Raises:
            ValueError: with a message that begins with the key.
        """


def known_tasks() -> list[str]:
    """Return the names of the packaged tasks."""
    folder = importlib.import_module(TASKS).__path__
    return sorted(module.name for module in pkgutil.iter_modules(folder) if module.ispkg)


@functools.cache
def spec_of(task: str) -> TaskSpec:
    """Return the declarations of a task, packaged (`seq2seq`) or the user's own (`my_tasks.ordinal.Ordinal`).

    Raises:
        ConfigError: there is no such task.
    """
    if "." in task:
        return _own_spec(task)
    if task not in known_tasks():
        raise ConfigError(
            f"there is no such task{suggest(task, known_tasks())} (expected one of {', '.join(known_tasks())}, or your own: MODULE.CLASS)"
        )
    spec: TaskSpec = importlib.import_module(f"{TASKS}.{task}.spec").SPEC
    return spec


def _own_spec(task: str) -> TaskSpec:
    """Return the declarations of a user's own task, after a check that its class has all hooks."""
    own_class, base = locate(task), locate(BASE)
    if base not in own_class.__mro__:
        raise ConfigError(f"expected a subclass of {BASE}")
    hooks: frozenset[str] = getattr(own_class, "__abstractmethods__", frozenset())
    lacks = [f"the method {name} ({inspect.getdoc(getattr(base, name))})" for name in sorted(hooks)]
    lacks += [
        f"the attribute {name}, {getattr(kind, '__name__', kind)}"
        for name, kind in base.__annotations__.items()
        if getattr(own_class, name, None) is None
    ]
    if lacks:
        raise ConfigError(f"the class lacks {'; '.join(lacks)}; add them")
    spec: TaskSpec = own_class.spec  # type: ignore[attr-defined]
    if spec.family not in known_tasks():
        raise ConfigError(f"spec.family = {spec.family}: expected one of {', '.join(known_tasks())}")
    return spec


def packaged_specs() -> Iterator[tuple[str, TaskSpec]]:
    """Return the packaged tasks by name, with their declarations."""
    return ((name, spec_of(name)) for name in known_tasks())


def inferred_task(cfg: Any) -> str:
    """Return the task that the configured columns imply."""
    candidates = [
        (spec.inference_order, name, spec)
        for name, spec in packaged_specs()
        if spec.inference_order is not None
    ]
    return next(
        name for _, name, spec in sorted(candidates, key=lambda each: each[0]) if spec.implied_by(cfg)
    )
