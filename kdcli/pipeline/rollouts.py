"""Completions that the teacher writes before the student is trained."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import datasets
import numpy as np

from kdcli import console
from kdcli.data.filters import kept, own_function
from kdcli.errors import ConfigError
from kdcli.evaluation.predict import likelihoods
from kdcli.files import cache_dir, digest
from kdcli.generation import seed_of
from kdcli.models.checkpoint import Checkpoint
from kdcli.pipeline.cache import PART, exclusive, make_in_parts, queried_by, write_rows
from kdcli.pipeline.plan import Run
from kdcli.pipeline.validate import require_rows
from kdcli.tasks.rows import log_level
from kdcli.teachers.base import Teacher

logger = logging.getLogger(__name__)
CUT = "cut off by rollout.max_new_tokens"
"""Why an answer is not learnt that did not come to its end."""


def rollouts(
    run: Run,
    stages: console.ProgressStages,
    sources: Sequence[Checkpoint],
    ask: Callable[[], Teacher],
    rows: datasets.Dataset,
) -> tuple[datasets.Dataset, Mapping[str, int]]:
    """The rows that the student learns from: as they are, or (rollout=teacher) their prompts with the teacher's answers.

    The answers are kept in the cache, a few at a time, and stand in the run directory for people to read.

    Returns:
        The rows, and how many answers are not among them, by reason.
    """
    how = run.cfg.rollout
    if how.source != "teacher":
        return rows, {}
    judge, dropped = own_function(how.filter), Counter[str]()
    made_by = (
        queried_by(run, sources),
        how.model_dump(exclude={"answers", "expand", "filter"}),
        "whole or none",
    )
    folder = cache_dir("rollouts") / digest(*made_by, run.cfg.seed)[:32]
    texts: list[list[str | None]] = []
    with run.stage(stages, run.named("rollouts"), how.answers * len(rows)) as progress:
        for number in range(how.answers):
            seed = seed_of(run.cfg.seed, number) if number else run.cfg.seed
            place = cache_dir("rollouts") / digest(*made_by, seed)[:32]

            def write(part: datasets.Dataset, _: int, seed: int = seed) -> list[str | None]:
                return ask().write(list(part), how, seed)

            with exclusive(run, place):
                texts.append(make_in_parts(run, progress, place, rows, PART, write, number * len(rows)))
    found: list[dict[str, Any]] = []
    for row, answers in zip(rows, zip(*texts, strict=True), strict=True):
        whole = [text for text in answers if text is not None]
        dropped[CUT] += len(answers) - len(whole)
        found += [
            run.task.with_completion(row, text) for text in kept(row, whole, how.filter, judge, dropped)
        ]
    log_dropped(+dropped, how.answers * len(rows))
    answered = datasets.Dataset.from_list(found) if found else rows.select([])
    try:
        require_rows(run, answered)
    except ConfigError as error:
        if not dropped[CUT]:
            raise
        raise ConfigError(
            f"rollout.max_new_tokens = {how.max_new_tokens}: {dropped[CUT]} of the teacher's {how.answers * len(rows)} answers do not come "
            f"to their end in so many tokens, and are left out; raise it ({error})"
        ) from None
    if how.keep_fraction < 1:
        answered = _likeliest(run, folder, ask, sources[0], answered, how.keep_fraction)
    write_rows(run, "rollouts", answered)
    return answered, +dropped


def log_dropped(dropped: Mapping[str, int], answers: int) -> None:
    """Tell how many of so many answers are not learnt; where a tenth and more were too long, that only short ones are."""
    for why, count in dropped.items():
        level = log_level(count, answers) if why == CUT else logging.INFO
        remedy = "; the student learns from the short ones alone: raise it" if level > logging.INFO else ""
        logger.log(level, "rollouts: %d of %d answers left out (%s%s)", count, answers, why, remedy)


def _likeliest(
    run: Run,
    folder: Path,
    ask: Callable[[], Teacher],
    source: Checkpoint,
    rows: datasets.Dataset,
    share: float,
) -> datasets.Dataset:
    """The rows, in their order, of which the teacher itself finds a token likeliest on average."""

    def judge(part: datasets.Dataset, _: int) -> list[float]:
        return likelihoods(ask(), source, run.task, part, run.cfg.dataset.max_length)

    with exclusive(run, folder):
        scores = np.asarray(make_in_parts(run, None, folder / "scores", rows, PART, judge))
    best = np.argsort(-scores, kind="stable")[: max(1, round(share * len(rows)))]
    logger.info(
        "rollouts: %d of %d answers are kept, those that the teacher finds likeliest", len(best), len(rows)
    )
    return rows.select(np.sort(best))
