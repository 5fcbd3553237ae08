"""Implements `kdcli check` and `dry_run=true`, which report all that is known of a run before it trains. Nothing is written or sent."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kdcli.config.schema import Distill as Config
from kdcli.data.dataset import Data, load
from kdcli.data.sources import is_hub
from kdcli.data.splits import SPLITS
from kdcli.data.suspicions import check_data, class_counts
from kdcli.errors import listed
from kdcli.evaluation.results import SCHEMA
from kdcli.hub import PACKAGE, origin_of
from kdcli.pipeline.cost_plan import CostPlan
from kdcli.pipeline.outline import ENDPOINT, is_remote, outline

MOST_LABELS = 12
"""The maximum number of labels that are shown with their rows."""


@dataclass(frozen=True)
class Loaded:
    """A checkpoint or data set that a run loads.

    Attributes:
        role: data, teacher, student …
        path: its path in the config; empty for a model with random weights.
        origin: where it comes from.
    """

    role: str
    path: str
    origin: str

    def __str__(self) -> str:
        return f"{self.role}: {self.path} ({self.origin})" if self.path else f"{self.role}: {self.origin}"


@dataclass(frozen=True)
class Check:
    """All that is known of a run before it trains.

    Attributes:
        loads: what is loaded, and from where.
        labels: the training rows of each label; empty for language models.
        dropped: the rows that are dropped, by reason.
        truncated: a sentence about each split with rows that are truncated.
        warnings: what makes its results doubtful.
        plan: rows, steps, time, memory, disk and queries.
    """

    loads: list[Loaded]
    labels: Mapping[str, int]
    dropped: Mapping[str, int]
    truncated: Mapping[str, str]
    warnings: list[str]
    plan: CostPlan

    def lines(self) -> list[str]:
        """Return the check as text."""
        head, *plan = self.plan.lines()
        lines = [*map(str, self.loads), head]
        if self.labels:
            shown = [f"{label} {rows:,}" for label, rows in self.labels.items()][:MOST_LABELS]
            more = len(self.labels) - len(shown)
            lines.append(f"labels of train: {', '.join(shown)}{f' and {more:,} more' if more else ''}")
        if self.dropped:
            lines.append(
                f"dropped: {listed(f'{rows:,} ({reason})' for reason, rows in self.dropped.items())}"
            )
        memory = self.plan.memory.lines() if self.plan.memory is not None else []
        return [*lines, *self.truncated.values(), *plan, *memory]

    def as_json(self) -> dict[str, Any]:
        """Return the check for machines."""
        return {
            "schema": SCHEMA,
            "loads": [
                {"role": each.role, "path": each.path or None, "origin": each.origin} for each in self.loads
            ],
            "labels": dict(self.labels),
            "dropped": dict(self.dropped),
            "truncated": dict(self.truncated),
            "warnings": self.warnings,
            **self.plan.as_json(),
        }


def check(
    cfg: Config, folder: Path, names: Mapping[str, str], chose_hardware: bool = True, with_models: bool = True
) -> Check | None:
    """Check a run as `kdcli distill` would before training.

    Args:
        folder: the run directory; it need not exist, and nothing is written into it.
        names: how the report calls teacher, student, data set and device.
        chose_hardware: whether the user chose the device.
        with_models: load the models, compute memory, measure time on a few batches, and count truncated rows. Without, no torch is imported.

    Returns:
        What is known; None in a process that is not the main one.

    Raises:
        ConfigError, DataError, ModelError, TeacherError: what would stop the run.
    """
    loads = _loads(cfg)
    if not with_models:
        data = load(cfg.dataset)
        check_data(cfg, data)
        return _checked(loads, data, {}, outline(cfg, data))
    from kdcli.models.checkpoint import load_tokenizer
    from kdcli.pipeline.build import plan_run
    from kdcli.pipeline.cost import plan_cost
    from kdcli.pipeline.validate import truncation

    parts = plan_run(cfg.model_copy(update={"dry_run": True}), folder, names, chose_hardware)
    run = parts[-1]
    if not run.state.is_main_process:
        return None
    truncated: dict[str, str] = {}
    if run.sources[0].path.is_dir() and not run.task.vocabulary:
        tokenizer = load_tokenizer(run.sources[0], max_length=run.max_length)
        sentences = {split: truncation(run, tokenizer, split)[1] for split in SPLITS}
        truncated = {split: sentence for split, sentence in sentences.items() if sentence}
    return _checked(loads, run.data, truncated, plan_cost(parts, True))


def _checked(loads: list[Loaded], data: Data, truncated: Mapping[str, str], plan: CostPlan) -> Check:
    read = [str(reading) for reading in data.readings]
    loads = [*loads[:1], *(Loaded("read as", "", text) for text in dict.fromkeys(read)), *loads[1:]]
    labels = dict(class_counts(data, "train").most_common())
    warnings = [suspicion["text"] for suspicion in data.suspicions]
    return Check(loads, labels, data.dropped, truncated, warnings, plan)


def _loads(cfg: Config) -> list[Loaded]:
    """Return what a run loads. Nothing is fetched."""
    data, teacher, student = cfg.dataset, cfg.teacher, cfg.student
    given = {
        "data": data.path,
        "validation": data.validation,
        "test": data.test,
        "unlabelled": data.unlabelled,
    }
    loads = [
        Loaded(
            role,
            path,
            origin_of(path, "dataset")
            if is_hub(data) or os.path.lexists(path) or path.startswith(PACKAGE)
            else "local files",
        )
        for role, path in given.items()
        if path and (role == "data" or os.path.lexists(path))
    ]
    if is_remote(cfg):
        loads.append(_endpoint(teacher.arguments))
    elif teacher.from_scratch is not None:
        loads.append(Loaded("teacher", "", "a new model over a vocabulary of the training pairs"))
    paths = [] if is_remote(cfg) else filter(None, [teacher.path, *teacher.others])
    loads += [Loaded("teacher", path, origin_of(path, "model")) for path in paths]
    if student.path:
        loads.append(Loaded("student", student.path, origin_of(student.path, "model")))
    elif is_remote(cfg) and student.init_from:
        loads.append(Loaded("student begins as", student.init_from, origin_of(student.init_from, "model")))
    else:
        loads.append(Loaded("student", "", "initialised from the teacher"))
    if data.augment is not None and data.augment.path:
        loads.append(Loaded("augmentation", data.augment.path, origin_of(data.augment.path, "model")))
    return loads


def _endpoint(arguments: Mapping[str, Any]) -> Loaded:
    """Return the endpoint of a remote teacher, and whether its key is there."""
    variable = arguments.get("api_key_env")
    key = "it needs no key"
    if variable:
        key = f"its key is read from {variable}, which is {'set' if os.environ.get(variable) else 'not set'}"
    return Loaded(
        "teacher", f"{arguments.get('model', 'a model')} at {arguments[ENDPOINT]}", f"an endpoint; {key}"
    )
