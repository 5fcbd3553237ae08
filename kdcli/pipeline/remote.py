"""Runs the stages of a remote teacher: the cost estimate, the queries, the rollouts and the bill."""

from __future__ import annotations

import itertools
import logging
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import datasets
import numpy as np

from kdcli import console
from kdcli.data.dataset import without
from kdcli.data.filters import filter_completions, own_function
from kdcli.data.splits import SPLITS
from kdcli.errors import TeacherError, listed
from kdcli.evaluation.predict import predictions_from_teacher
from kdcli.files import write_json, write_jsonl
from kdcli.models.checkpoint import load_tokenizer
from kdcli.numbers import format_items
from kdcli.pipeline.cache import exclusive, write_rows
from kdcli.pipeline.plan import Run, TeacherData
from kdcli.pipeline.rollouts import TRUNCATED, log_dropped
from kdcli.pipeline.stages import Stages, read_or_restart
from kdcli.pipeline.validate import require_rows
from kdcli.rundir import UNANSWERED
from kdcli.signals import Signal
from kdcli.teachers.base import Teacher
from kdcli.teachers.remote.limits import Estimate, Usage
from kdcli.teachers.remote.protocol import RemoteTeacher
from kdcli.text_metrics import text_scores
from kdcli.training.preflight import beats_chance

logger = logging.getLogger(__name__)
BILLED = 100
"""The number of answers between two writes of the bill."""


def estimated_queries(run: Run, remote: RemoteTeacher) -> dict[str, Estimate]:
    """Return the queries of a run and their cost, by their subject: a split, or new prompts. Nothing is sent."""
    rollout, train = run.cfg.rollout, run.data["train"]
    if run.scorer is not None and rollout.source == "dataset":
        return {split: run.scorer.estimate(run.data[split]) for split in SPLITS}
    tables: dict[str, Iterable[Mapping[str, Any]]] = {
        split: run.data[split] for split in (SPLITS[:1] if run.task.writes else SPLITS)
    }
    if rollout.expand:
        tables["new prompts"] = itertools.islice(itertools.cycle(train), rollout.expand)
    return {name: remote.estimate(rows, rollout) for name, rows in tables.items()}


def remote_teacher_data(
    run: Run, stages: Stages, remote: RemoteTeacher, rows: datasets.Dataset
) -> TeacherData:
    """Return the outputs or the completions of a remote teacher. Rows without an answer are dropped, also from the comparison.

    Each process reads all answers: the first one sends the queries, and the others find its answers in the ledger.
    """
    source = run.sources[0]

    def load_teacher() -> Teacher:
        return remote

    with exclusive(run, remote.client.ledger.path.with_suffix("")):
        pass  # the ledger is now known to be used by this run
    if run.task.writes:
        completed, dropped = remote_rollouts(run, stages, remote, rows)
        return TeacherData([source], load_teacher, completed, {}, dropped)
    queried = {"validation": run.data["validation"], "train": rows, "test": run.data["test"]}
    done = 0
    with (
        stages.stage(run.stage_name("teacher outputs"), sum(map(len, queried.values())), "rows") as progress,
        run.state.main_process_first(),
        _billed(run, remote) as bill,
    ):
        for split, table in queried.items():

            def show(finished: int, usage: Usage, before: int = done) -> None:
                bill()
                progress.update(before + finished, extra=_extra(usage))

            remote.fetch(list(table), show)
            done += len(table)
            if split == "validation":
                _require_better_than_chance(run, remote)
    write_unanswered(run, remote, queried.values())
    if remote.unanswered:
        logger.warning(
            "%s did not answer %d of %d rows; they are dropped from all splits (%s)",
            remote.name, len(remote.unanswered), done, run.folder / UNANSWERED,
        )  # fmt: skip
    unanswered = frozenset(remote.unanswered)
    rows = without(rows, unanswered)
    require_rows(run, rows)
    return TeacherData([source], load_teacher, rows, dict.fromkeys(SPLITS, remote), unanswered=unanswered)


def write_unanswered(run: Run, remote: RemoteTeacher, tables: Iterable[Iterable[Mapping[str, Any]]]) -> None:
    """Write the rows without an answer, each with its reason, into the run directory."""
    if run.state.is_main_process:
        rows = (row for table in tables for row in table if row["id"] in remote.unanswered)
        write_jsonl(run.folder / UNANSWERED, ({**row, **remote.unanswered[row["id"]]} for row in rows))


def _require_better_than_chance(run: Run, remote: RemoteTeacher) -> None:
    """Check the labels of the validation split before the other splits are paid for.

    Raises:
        TeacherError: they are no better than chance.
    """
    table = without(run.data["validation"], remote.unanswered)
    if not len(table):
        raise TeacherError(
            f"{remote.name} answers none of the {len(run.data['validation'])} validation rows with a label; {remote.remedy}"
        )
    predictions, classes = predictions_from_teacher(remote, run.sources[0], run.task, table, run.max_length)
    for finding in beats_chance(run.task, predictions, classes, remote.remedy):
        if not run.is_lenient(run.cfg.trainer):
            raise TeacherError(f"the pre-flight stopped the run:\n  {finding}")
        logger.warning("pre-flight: %s", finding)


def remote_rollouts(
    run: Run, stages: Stages, remote: RemoteTeacher, rows: datasets.Dataset
) -> tuple[datasets.Dataset, Mapping[str, int]]:
    """Return the training prompts and the teacher's new prompts, each with those of its completions that pass the filter.

    Returns:
        The rows, and the number of completions that were dropped by reason.
    """
    rollout, dropped = run.cfg.rollout, Counter[str]()
    judge = own_function(rollout.filter)
    completed: list[dict[str, Any]] = []
    with (
        stages.stage(run.stage_name("rollouts"), rollout.expand + len(rows), "prompts") as progress,
        run.state.main_process_first(),
        _billed(run, remote) as bill,
    ):

        def show(finished: int, usage: Usage) -> None:
            bill()
            progress.update(finished, extra=_extra(usage))

        prompts = list(rows)
        if rollout.expand:
            existing = [run.task.prompt(row) for split in SPLITS for row in run.data[split]]
            texts = remote.expand(
                [run.task.prompt(row) for row in rows], existing, rollout.expand, run.cfg.seed, show
            )
            prompts += [run.task.with_prompt(prompts[0], text) for text in texts]
        for row, completions, truncated in remote.completions(prompts, rollout, show):
            dropped[TRUNCATED] += truncated
            completed += [
                run.task.with_completion(row, text)
                for text in filter_completions(row, completions, rollout.filter, judge, dropped)
            ]
    table = datasets.Dataset.from_list(completed) if completed else rows.select([])
    if completed:
        lengths = run.task.lengths(load_tokenizer(run.sources[0]), table)
        too_long = lengths > run.max_length
        dropped["longer than dataset.max_length"] += int(too_long.sum())
        table = table.select(np.flatnonzero(~too_long))
    dropped = +dropped
    log_dropped(dropped, rollout.answers * len(prompts))
    write_unanswered(run, remote, [prompts])
    if not len(table):
        reasons = listed(f"{count} {reason}" for reason, count in dropped.items()) or "none was written"
        raise TeacherError(
            f"{remote.name}: no completion is left to learn from ({reasons}); raise rollout.max_new_tokens or dataset.max_length where they are "
            "cut or too long, loosen rollout.filter, or try another teacher"
        )
    write_rows(run, "rollouts", table)
    require_rows(run, table)
    return table, dropped


def _extra(usage: Usage) -> str:
    cost = "" if usage.cost is None or usage.uncounted else f", {usage.cost:.2f} spent"
    return f"{format_items(usage.requests, 'request')}{cost}"


def _usage_file(run: Run) -> Path:
    """Return the file that sums the usage; a run that an earlier version began has it by its former name."""
    path, former = run.folder / "usage.json", run.folder / "asked.json"
    if run.state.is_main_process and former.exists() and not path.exists():
        former.replace(path)
    return path


@contextmanager
def _billed(run: Run, remote: RemoteTeacher) -> Iterator[Callable[[], None]]:
    """Add the usage of this process to usage.json, which sums it over all processes of the run: every `BILLED` calls of what is
    yielded, and at the end."""
    path = _usage_file(run)
    earlier = read_or_restart(path, dict[str, float], {})
    before = {key: value - remote.billed.get(key, 0) for key, value in earlier.items()}
    calls = itertools.count(1)

    def write() -> None:
        if run.state.is_main_process:
            used = asdict(remote.usage)
            keys = ("requests", "retries", "prompt_tokens", "completion_tokens", "uncounted", "cost")
            reported = {key: used[key] for key in keys if used[key] is not None}
            write_json(path, {key: value + before.get(key, 0) for key, value in reported.items()})
            remote.billed = reported

    def count() -> None:
        if next(calls) % BILLED == 0:
            write()

    try:
        yield count
    finally:
        write()


@contextmanager
def scores_shown(run: Run, stage: console.ProgressStage) -> Iterator[None]:
    """Show and bill the rows that a server scores in a stage. Other teachers are not affected."""
    remote = run.remote
    if remote is None or run.scorer is None:
        yield
        return
    with _billed(run, remote) as bill:

        def show(usage: Usage) -> None:
            bill()
            remote.questions += 1
            stage.update(stage.step + 1, extra=_extra(usage))

        run.scorer.answered = show
        yield


def endpoint_report(run: Run, remote: RemoteTeacher, teacher_data: TeacherData) -> dict[str, Any]:
    """Return the report's section on a remote teacher."""
    bill = read_or_restart(_usage_file(run), dict[str, float], {})
    described = remote.describe()
    return described | {
        "requests": bill["requests"],
        "retries": bill["retries"],
        "from_ledger": max(0, described["questions"] - (bill["requests"] - bill["retries"])),
        "prompt_tokens": bill["prompt_tokens"],
        "completion_tokens": bill["completion_tokens"],
        "uncounted": bill.get("uncounted", 0),
        "cost": None if bill.get("uncounted") else bill.get("cost"),
        "dropped": dict(teacher_data.dropped),
        "training_rows": len(teacher_data.rows),
        "agreement": _agreement(run, remote),
        "answers": remote.sampled_answers(),
    }


def _agreement(run: Run, remote: RemoteTeacher) -> dict[str, Any]:
    """Return how well the teacher's answers agree with the gold labels or the references of the training rows."""
    gold = run.data.gold
    if run.task.labels:
        shown = {example["id"] for example in remote.examples}
        rows = [row for row in gold if row["id"] not in shown]
        right = []
        for row, output in zip(rows, remote.outputs(rows), strict=True):
            assert isinstance(output, Signal)
            right.append(int(output.logits.argmax()) == row["label"])
        return {"gold": len(right), "accuracy": float(np.mean(right)) if right else None}
    pairs = [
        (remote.texts[row["id"]], shown["reference"])
        for row, shown in zip(gold, run.task.prompts_and_references(gold), strict=True)
        if row["id"] in remote.texts
    ]
    scores = text_scores([text for text, _ in pairs], [reference for _, reference in pairs])
    return {"gold": len(pairs), "rouge_l": scores["rouge_l"] if pairs else None}
