"""The part of a remote teacher: cost, queries, rollouts and the bill."""

from __future__ import annotations

import dataclasses
import itertools
import json
import logging
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict
from typing import Any

import datasets
import numpy as np

from kdcli import console
from kdcli.data.dataset import without
from kdcli.data.filters import kept, own_function
from kdcli.data.splits import SPLITS
from kdcli.errors import TeacherError
from kdcli.evaluation.predict import predictions_from_teacher
from kdcli.files import digest, write_json, write_text
from kdcli.models.checkpoint import load_tokenizer
from kdcli.pipeline.cache import write_rows
from kdcli.pipeline.plan import Run, TeacherData, read_or_restart
from kdcli.pipeline.rollouts import CUT, log_dropped
from kdcli.pipeline.validate import is_lenient, require_rows
from kdcli.rundir import UNANSWERED
from kdcli.tasks.causal_lm.task import CausalLM
from kdcli.tasks.seq2seq.task import Seq2Seq
from kdcli.teachers.base import Teacher
from kdcli.teachers.remote.limits import Estimate, Usage
from kdcli.teachers.remote.openai import OpenAITeacher
from kdcli.text_metrics import text_scores
from kdcli.training.preflight import beats_chance

logger = logging.getLogger(__name__)
BETTER = "look at its prompt (teacher.prompt), show it examples (teacher.shots=6), or try another teacher.soft_labels"
"""What can be done about a teacher that one can only ask."""
BILLED = 100
"""Answers after which it is noted what they cost."""


def announce_cost(run: Run, remote: OpenAITeacher) -> None:
    """Say what asking it will take, before it is asked."""
    how, train = run.cfg.rollout, run.data["train"]
    splits = [train] if run.task.writes else [run.data[split] for split in SPLITS]
    more = itertools.islice(itertools.cycle(train), how.expand)
    found = remote.estimate(itertools.chain(*splits, more), how)
    text = _estimate_text(found, remote.name)
    if run.cfg.dry_run:
        console.say(text)
    else:
        logger.info("%s", text)


def _estimate_text(found: Estimate, name: str) -> str:
    before = f", of which {found.in_ledger:,} were answered before" if found.in_ledger else ""
    written = "any number of" if found.completion_tokens is None else f"at most {found.completion_tokens:,}"
    cost = "what they cost is not known (teacher.prices.prompt and .completion, of a million tokens)"
    if found.cost is not None:
        cost = f"they cost about {found.cost:.2f}" if found.cost >= 0.005 else "they cost less than 0.01"
    return (
        f"{name} will be asked {found.questions:,} questions{before}: about {found.prompt_tokens:,} prompt tokens and {written} completion "
        f"tokens; {cost}"
    )


def remote_teacher_data(
    run: Run, stages: console.ProgressStages, remote: OpenAITeacher, rows: datasets.Dataset
) -> TeacherData:
    """What a teacher says, or writes, that one can only ask. Rows that it does not answer are left out, also of the comparison.

    Every process hears everything: the first one asks, and the others find its answers in the ledger.
    """
    source, task = run.sources[0], run.task

    def ask() -> Teacher:
        return remote

    if task.writes:
        return TeacherData([source], ask, remote_rollouts(run, stages, remote, rows), {})
    asked = {"validation": run.data["validation"], "train": rows, "test": run.data["test"]}
    done = 0
    with (
        run.stage(stages, run.named("signals"), sum(map(len, asked.values()))) as progress,
        run.state.main_process_first(),
        _billed(run, remote) as bill,
    ):
        for split, table in asked.items():

            def tell(number: int, usage: Usage, before: int = done) -> None:
                bill()
                progress.update(before + number, extra=_extra(usage))

            remote.fetch(list(table), tell)
            done += len(table)
            if split == "validation":
                _require_better(run, remote)
    write_unanswered(run, remote, asked.values())
    if remote.unanswered:
        logger.warning(
            "%s did not answer %d of %d rows, which are left out everywhere (%s)",
            remote.name, len(remote.unanswered), done, run.folder / UNANSWERED,
        )  # fmt: skip
    splits = {split: without(table, remote.unanswered) for split, table in run.data.splits.items()}
    run.data, rows = dataclasses.replace(run.data, splits=splits), without(rows, remote.unanswered)
    require_rows(run, rows)
    return TeacherData([source], ask, rows, dict.fromkeys(SPLITS, remote))


def write_unanswered(run: Run, remote: OpenAITeacher, tables: Iterable[Iterable[Mapping[str, Any]]]) -> None:
    """The rows that were not answered, and why, in the run directory."""
    rows = (row for table in tables for row in table if row["id"] in remote.unanswered)
    if run.state.is_main_process:
        lines = [
            json.dumps({**row, **remote.unanswered[row["id"]]}, ensure_ascii=False) + "\n" for row in rows
        ]
        write_text(run.folder / UNANSWERED, "".join(lines))


def _require_better(run: Run, remote: OpenAITeacher) -> None:
    """A teacher that is no better than chance is found before most of it is paid for.

    Raises:
        TeacherError
    """
    table = without(run.data["validation"], remote.unanswered)
    if not len(table):
        raise TeacherError(
            f"{remote.name} answers none of the {len(run.data['validation'])} validation rows with a label; {BETTER}"
        )
    said, classes = predictions_from_teacher(
        remote, run.sources[0], run.task, table, run.cfg.dataset.max_length
    )
    for finding in beats_chance(run.task, said, classes, BETTER):
        if not is_lenient(run, run.cfg.trainer):
            raise TeacherError(f"the pre-flight stopped the run:\n  {finding}")
        logger.warning("pre-flight: %s", finding)


def remote_rollouts(
    run: Run, stages: console.ProgressStages, remote: OpenAITeacher, rows: datasets.Dataset
) -> datasets.Dataset:
    """The training prompts, and those that the teacher makes up, each with its answers that are worth learning."""
    how, dropped = run.cfg.rollout, Counter[str]()
    judge = own_function(how.filter)
    found: list[dict[str, Any]] = []
    total = how.expand + len(rows)
    with (
        run.stage(stages, run.named("rollouts"), total) as progress,
        run.state.main_process_first(),
        _billed(run, remote) as bill,
    ):

        def tell(number: int, usage: Usage) -> None:
            bill()
            progress.update(number, extra=_extra(usage))

        asked = list(rows)
        if how.expand:
            known = [_prompt(row) for split in SPLITS for row in run.data[split]]
            texts = remote.expand([_prompt(row) for row in rows], known, how.expand, run.cfg.seed, tell)
            asked += [_with_prompt(asked[0], text) for text in texts]
        for row, answers, cut in remote.answers(asked, how, tell):
            dropped[CUT] += cut
            found += [
                run.task.with_completion(row, text) for text in kept(row, answers, how.filter, judge, dropped)
            ]
    table = datasets.Dataset.from_list(found) if found else rows.select([])
    tokenizer, room = load_tokenizer(run.sources[0]), run.cfg.dataset.max_length
    if found:
        lengths = run.task.lengths(tokenizer, table)
        dropped["longer than dataset.max_length"] += int((lengths > room).sum())
        table = table.select(np.flatnonzero(lengths <= room))
    remote.dropped = +dropped
    log_dropped(remote.dropped, how.answers * len(asked))
    write_unanswered(run, remote, [asked])
    write_rows(run, "rollouts", table)
    require_rows(run, table)
    return table


def _prompt(row: Mapping[str, Any]) -> str:
    """What a row asks: what the user says first, the prompt, or the source."""
    if "messages" in row:
        return next((turn["content"] for turn in row["messages"] if turn["role"] == "user"), "")
    return str(row["prompt"] if "prompt" in row else row["source"])


def _with_prompt(row: Mapping[str, Any], text: str) -> dict[str, Any]:
    """A row of the same kind that asks something else, not answered yet."""
    if "messages" in row:
        own: dict[str, Any] = {
            "messages": [{"role": "user", "content": text}, {"role": "assistant", "content": ""}]
        }
    else:
        own = {"prompt": text, "completion": ""} if "prompt" in row else {"source": text, "target": None}
    return {**row, **own, "id": digest("expanded", text)[:32]}


def _extra(usage: Usage) -> str:
    cost = "" if usage.cost is None else f", {usage.cost:.2f} spent"
    return f"{usage.requests:,} requests{cost}"


@contextmanager
def _billed(run: Run, remote: OpenAITeacher) -> Iterator[Callable[[], None]]:
    """Note in asked.json what was asked and paid for, by all processes that the run has had: every `BILLED` calls, and at the end."""
    path = run.folder / "asked.json"
    before = read_or_restart(path, dict[str, float], {})
    calls = itertools.count(1)

    def note() -> None:
        if run.state.is_main_process:
            used = asdict(remote.endpoint.usage)
            keys = ("requests", "retries", "prompt_tokens", "completion_tokens", "cost")
            known = {key: used[key] for key in keys if used[key] is not None}
            write_json(path, {key: value + before.get(key, 0) for key, value in known.items()})

    def call() -> None:
        if next(calls) % BILLED == 0:
            note()

    try:
        yield call
    finally:
        note()


def endpoint_report(run: Run, remote: OpenAITeacher, teacher_data: TeacherData) -> dict[str, Any]:
    """What the report says of a teacher that was asked."""
    bill = read_or_restart(run.folder / "asked.json", dict[str, float], {})
    found = remote.about()
    gold = {row["id"]: row for row in run.data.gold}
    agreement: dict[str, Any] = {}
    if run.task.labels:
        right = [
            int(remote.said[key].argmax()) == row["label"]
            for key, row in gold.items()
            if key not in {example["id"] for example in remote.examples}
        ]
        agreement = {"gold": len(right), "accuracy": float(np.mean(right)) if right else None}
    elif isinstance(run.task, CausalLM | Seq2Seq):
        answers = [
            (remote.told[row["id"]], shown["reference"])
            for row, shown in zip(run.data.gold, run.task.shown(run.data.gold), strict=True)
            if row["id"] in remote.told
        ]
        scores = text_scores([own for own, _ in answers], [other for _, other in answers])
        agreement = {"gold": len(answers), "rouge_l": scores["rouge_l"] if answers else None}
    return found | {
        "requests": bill["requests"],
        "retries": bill["retries"],
        "from_ledger": max(0, found["questions"] - (bill["requests"] - bill["retries"])),
        "prompt_tokens": bill["prompt_tokens"],
        "completion_tokens": bill["completion_tokens"],
        "cost": bill.get("cost"),
        "dropped": dict(remote.dropped),
        "learnt": len(teacher_data.rows),
        "agreement": agreement,
        "answers": remote.shown(),
    }
