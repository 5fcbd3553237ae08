"""Filters the completions of a teacher."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from kdcli.config.components import import_named
from kdcli.config.rollout import Filter
from kdcli.errors import ConfigError, shown

Judge = Callable[[Mapping[str, Any], str], Any]


def own_function(cfg: Filter) -> Judge | None:
    """Return the filter function of the user.

    Raises:
        ConfigError: there is no such function.
    """
    if cfg.function is None:
        return None
    module, _, name = cfg.function.rpartition(".")
    try:
        function = getattr(import_named(module), name)
    except (Exception, SystemExit) as error:  # the user's own module may fail in any way
        raise ConfigError(
            f"rollout.filter.function = {cfg.function}: cannot be imported ({type(error).__name__}: {error}); it is looked for in "
            "--config-dir, beside it, and among the installed packages"
        ) from None
    if not callable(function):
        raise ConfigError(
            f"rollout.filter.function = {cfg.function}: expected a function, got {shown(function)}"
        )
    return function


def filter_completions(
    row: Mapping[str, Any], answers: Iterable[str], cfg: Filter, judge: Judge | None, dropped: Counter[str]
) -> list[str]:
    """Return the completions of a row that the student learns from.

    Args:
        judge: the filter function of the user.
        dropped: counts the other completions by reason.
    """
    refusals = [re.compile(rf"\s*(?:{_typed(pattern)})", re.IGNORECASE) for pattern in cfg.refusals]
    seen: set[str] = set()
    accepted = []
    for answer in answers:
        plain = " ".join(answer.split()).casefold()
        if not plain:  # an empty completion teaches nothing
            dropped["empty"] += 1
        elif len(answer) < cfg.min_length:
            dropped["too short"] += 1
        elif cfg.max_length is not None and len(answer) > cfg.max_length:
            dropped["too long"] += 1
        elif any(pattern.match(_typed(answer)) for pattern in refusals):
            dropped["a refusal"] += 1
        elif cfg.duplicates and plain in seen:
            dropped["duplicate"] += 1
        elif judge is not None and not judge(row, answer):
            dropped["rollout.filter.function"] += 1
        else:
            accepted.append(answer)
        seen.add(plain)
    return accepted


def _typed(text: str) -> str:
    """Return a text with ASCII apostrophes, because models write either kind."""
    return text.replace("\u2019", "'")
