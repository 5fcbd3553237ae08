"""The tasks: what a row is, which positions count, and how a model is scored."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

from kdcli.errors import ConfigError

if TYPE_CHECKING:
    from kdcli.tasks.base import Task


def task_of(name: str | None) -> type[Task]:
    """The one task class of `kdcli/tasks/<name>.py`; None: classification, which text + label columns mean.

    Raises:
        ConfigError: there is no such task.
    """
    from kdcli.tasks.base import Task

    name = name or "classification"
    try:
        module = importlib.import_module(f"kdcli.tasks.{name}")
    except ModuleNotFoundError:
        raise ConfigError(f"dataset.task = {name}: there is no such task; known: classification") from None
    own = [
        value
        for value in vars(module).values()
        if isinstance(value, type) and value.__module__ == module.__name__
    ]
    return next(value for value in own if issubclass(value, Task))
