"""Lets the teacher write completions before the student is trained."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import datasets
import numpy as np

from kdcli.data.filters import filter_completions, own_function
from kdcli.errors import ConfigError
from kdcli.evaluation.predict import likelihoods
from kdcli.generation import seed_of
from kdcli.models.checkpoint import Checkpoint
from kdcli.pipeline.cache import PART, exclusive, make_in_parts, progress_from, write_rows
from kdcli.pipeline.keys import Completions, CompletionScores, cache_path
from kdcli.pipeline.plan import Run
from kdcli.pipeline.stages import Stages
from kdcli.pipeline.validate import require_rows
from kdcli.tasks.rows import log_level
from kdcli.teachers.base import Teacher

logger = logging.getLogger(__name__)
TRUNCATED = "truncated by rollout.max_new_tokens"
"""The reason why a completion without an end is dropped."""


def teacher_rollouts(
    run: Run,
    stages: Stages,
    teachers: Sequence[Checkpoint],
    load_teacher: Callable[[], Teacher],
    rows: datasets.Dataset,
) -> tuple[datasets.Dataset, Mapping[str, int]]:
    """Return the training rows: unchanged, or (rollout=teacher) their prompts with the teacher's completions.

    The completions are stored in the cache part by part, and written into the run directory for people to read.

    Returns:
        The rows, and how many completions were dropped, by reason.
    """
    cfg = run.cfg.rollout
    if cfg.source != "teacher":
        return rows, {}
    function, dropped = own_function(cfg.filter), Counter[str]()
    completed: list[dict[str, Any]] = []
    for row, texts in zip(rows, _completions(run, stages, teachers, load_teacher, rows), strict=True):
        ended = [text for text in texts if text is not None]
        dropped[TRUNCATED] += len(texts) - len(ended)
        completed += [
            run.task.with_completion(row, text)
            for text in filter_completions(row, ended, cfg.filter, function, dropped)
        ]
    log_dropped(+dropped, cfg.answers * len(rows))
    table = datasets.Dataset.from_list(completed) if completed else rows.select([])
    _require_completions(run, table, dropped[TRUNCATED], cfg.answers * len(rows))
    if cfg.keep_fraction < 1:
        table = _likeliest(run, teachers, load_teacher, table, cfg.keep_fraction)
    write_rows(run, "rollouts", table)
    return table, +dropped


def _completions(
    run: Run,
    stages: Stages,
    teachers: Sequence[Checkpoint],
    load_teacher: Callable[[], Teacher],
    rows: datasets.Dataset,
) -> list[tuple[str | None, ...]]:
    """Return the teacher's completions of each prompt, rollout.answers of them; None for one without an end."""
    cfg = run.cfg.rollout
    columns: list[list[str | None]] = []
    with stages.stage(run.stage_name("rollouts"), cfg.answers * len(rows), "completions") as progress:
        for index in range(cfg.answers):
            seed = seed_of(run.cfg.seed, index) if index else run.cfg.seed
            folder = cache_path(Completions.of(run, teachers, cfg, seed))

            def write(part: datasets.Dataset, _: int, seed: int = seed) -> list[str | None]:
                return load_teacher().write(list(part), cfg, seed)

            with exclusive(run, folder):
                update = progress_from(progress, index * len(rows))
                columns.append(make_in_parts(run, folder, rows, PART, write, update))
    return list(zip(*columns, strict=True))


def _require_completions(run: Run, rows: datasets.Dataset, truncated: int, total: int) -> None:
    """Refuse too few rows for a batch.

    Raises:
        ConfigError: with rollout.max_new_tokens as the remedy, if completions were dropped because of it.
    """
    try:
        require_rows(run, rows)
    except ConfigError as error:
        if not truncated:
            raise
        raise ConfigError(
            f"rollout.max_new_tokens = {run.cfg.rollout.max_new_tokens}: {truncated} of the teacher's {total} completions are "
            f"truncated at that length and dropped; raise it ({error})"
        ) from None


def log_dropped(dropped: Mapping[str, int], total: int) -> None:
    """Log how many completions were dropped, by reason. If a tenth or more had no end, it warns, because only short completions remain."""
    for reason, count in dropped.items():
        level = log_level(count, total) if reason == TRUNCATED else logging.INFO
        remedy = "; the student learns from short completions only: raise it" if level > logging.INFO else ""
        logger.log(level, "rollouts: %d of %d completions dropped (%s%s)", count, total, reason, remedy)


def _likeliest(
    run: Run,
    teachers: Sequence[Checkpoint],
    load_teacher: Callable[[], Teacher],
    rows: datasets.Dataset,
    share: float,
) -> datasets.Dataset:
    """Return the share of the rows, in their order, whose completions have the highest mean log-probability under the teacher itself."""

    def score(part: datasets.Dataset, _: int) -> list[float]:
        return likelihoods(load_teacher(), teachers[0], run.task, part, run.max_length)

    folder = cache_path(CompletionScores.of(run, teachers))
    with exclusive(run, folder):
        scores = np.asarray(make_in_parts(run, folder, rows, PART, score))
    best = np.argsort(-scores, kind="stable")[: max(1, round(share * len(rows)))]
    logger.info(
        "rollouts: %d of %d completions kept: those with the highest likelihood under the teacher",
        len(best),
        len(rows),
    )
    return rows.select(np.sort(best))
