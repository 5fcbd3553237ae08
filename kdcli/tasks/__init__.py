"""The tasks: what a row is, which positions count, and how a model is scored."""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Sequence
from typing import TYPE_CHECKING

from kdcli.config.dataset import Dataset
from kdcli.errors import ConfigError, suggest

if TYPE_CHECKING:
    from kdcli.tasks.base import Task


def task_of(cfg: Dataset, labels: Sequence[str]) -> Task:
    """The one task class of `kdcli/tasks/<kind>.py`, for a data set's labels.

    Raises:
        ConfigError: there is no such task.
    """
    from kdcli.tasks.base import Task

    known = sorted(
        {module.name for module in pkgutil.iter_modules(__path__)} - {"base", "language_model", "rows"}
    )
    if cfg.kind not in known:
        raise ConfigError(
            f"dataset.task = {cfg.kind}: there is no such task{suggest(cfg.kind, known)} (known: {', '.join(known)})"
        )
    module = importlib.import_module(f"kdcli.tasks.{cfg.kind}.task")
    own = [
        value
        for value in vars(module).values()
        if isinstance(value, type) and value.__module__ == module.__name__
    ]
    return next(value for value in own if issubclass(value, Task)).of(cfg, labels)
