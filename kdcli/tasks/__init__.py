"""Finds tasks by name. Each has a folder."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator, Sequence
from types import ModuleType
from typing import TYPE_CHECKING, Any

from kdcli.config.tasks import known_tasks, spec_of

if TYPE_CHECKING:
    from kdcli.config.dataset import Dataset
    from kdcli.tasks.base import Task
    from kdcli.tasks.presentation import Presentation
    from kdcli.tasks.rows import RowSchema


def task_class(name: str) -> type[Task]:
    """Return the class of a packaged task (`seq2seq`), which is the one of `kdcli/tasks/<name>/task.py`, or of the user's own (`MODULE.CLASS`).

    Raises:
        ConfigError: there is no such task.
    """
    from kdcli.config.components import locate
    from kdcli.tasks.base import Task

    spec_of(name)
    if "." in name:
        return locate(name)
    task: type[Task] = _own_class(importlib.import_module(f"{__name__}.{name}.task"), Task)
    return task


def row_schema_of(cfg: Dataset) -> RowSchema:
    """Return the schema of a data set's rows. That of a packaged task, which is the one of `kdcli/tasks/<name>/rows.py`, imports no torch.

    Raises:
        ConfigError: there is no such task.
    """
    from kdcli.tasks.rows import RowSchema

    if "." in cfg.kind:
        return task_class(cfg.kind).row_schema(cfg)
    spec_of(cfg.kind)
    module = importlib.import_module(f"{__name__}.{cfg.kind}.rows")
    schema: type[RowSchema] = _own_class(module, RowSchema)
    return schema(cfg)


def _own_class(module: ModuleType, base: type) -> Any:
    """Return the first class of a module that inherits from another one."""
    own = [
        value
        for value in vars(module).values()
        if isinstance(value, type) and value.__module__ == module.__name__
    ]
    return next(value for value in own if issubclass(value, base))


def task_of(cfg: Dataset, labels: Sequence[str], metric: str | None = None) -> Task:
    """Return the task of a data set, for its labels.

    Args:
        metric: the headline metric; None: that of the task.

    Raises:
        ConfigError: there is no such task, or it has no such metric.
    """
    return task_class(cfg.kind).from_config(cfg, labels).choose_metric(metric)


def presentation_of(name: str) -> Presentation | None:
    """Return how the results of a task are shown; None: it is unknown. It imports no torch.

    A name in a report never imports a user's code: a user's own task is known if the config has imported it in this process.
    """
    module, _, own = name.rpartition(".")
    if module:
        own_class: Any = getattr(sys.modules.get(module), own, None)
        base = sys.modules.get(f"{__name__}.base")
        if base is None or base.Task not in getattr(own_class, "__mro__", ()):
            return None
        own_presentation: Presentation = own_class.presentation
        return own_presentation
    if name not in known_tasks():
        return None
    presentation: Presentation = importlib.import_module(f"{__name__}.{name}.presentation").PRESENTATION
    return presentation


def packaged_presentations() -> Iterator[Presentation]:
    """Return how the results of the packaged tasks are shown."""
    return (presentation for name in known_tasks() if (presentation := presentation_of(name)) is not None)
