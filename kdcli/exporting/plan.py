"""Plans an export and checks it, before anything is computed."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import datasets
import numpy as np
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from kdcli.config.check import check
from kdcli.config.components import build
from kdcli.config.dataset import Dataset
from kdcli.config.measure import Measure, require_length
from kdcli.config.schema import Export
from kdcli.data.dataset import load, without
from kdcli.errors import ConfigError, DataError, ModelError
from kdcli.evaluation.models import recorded_readings
from kdcli.evaluation.predict import require_trained
from kdcli.evaluation.results import Report, read_report
from kdcli.exporting.targets.base import Target, require_fast_tokenizer, require_task, require_writable
from kdcli.files import named_path, user_path
from kdcli.models.checkpoint import Checkpoint, load_config
from kdcli.rundir import REPORT, UNQUANTIZED, saved_config, unanswered
from kdcli.tasks import task_class, task_of
from kdcli.tasks.base import Task

TEACHER_PREDICTIONS = Path("predictions", "test.teacher.safetensors")
"""The teacher's predictions on the test split, in a run directory."""


@dataclass(frozen=True)
class ExportPlan:
    """An export of a run's student.

    Attributes:
        hardware: the name of the device, as it was typed.
        out: the folder of its files.
        report: report.json of the run.
        family: the packaged task whose models the task has, by which tolerances and scripts are found.
        labels: names of the classes.
        train, test: splits, without rows that the teacher did not answer.
        student: the student.
        unrounded: the student before its weights were rounded in training.
        quantization: the precision in which they were rounded; None: they were not.
        own: the device's own settings of the measurement: `threads`, `batch_sizes`, `sequence_length`.
        measure: the measurement with these settings.
    """

    config: Export
    run: Path
    hardware: str
    out: Path
    report: Report
    target: Target
    task: Task
    family: str
    labels: list[str]
    train: datasets.Dataset
    test: datasets.Dataset
    student: Checkpoint
    unrounded: Checkpoint
    quantization: str | None
    max_length: int
    own: dict[str, Any]
    measure: Measure

    @property
    def teacher_score(self) -> float | None:
        """The teacher's score; None: it is not known, as of an API teacher that gave texts alone."""
        return self.report.models["teacher"].score

    def retention(self, score: float) -> float | None:
        """Return the share of the teacher's score that a score is; None: that is not known."""
        return None if self.teacher_score is None else self.task.retention(score, self.teacher_score)

    def sample_inputs(self, tokenizer: PreTrainedTokenizerBase) -> list[dict[str, Tensor]]:
        """Return the student's inputs for rows of the training split, evenly spaced, (1, L) each."""
        count = min(self.config.hardware.calibration_rows, len(self.train))
        rows = self.train.select(np.linspace(0, len(self.train) - 1, count).astype(int))
        encoded = self.task.encode(
            tokenizer, self.task.prepare(rows, tokenizer, self.max_length), self.max_length
        )
        batches = (self.task.collate([encoded[index]], tokenizer) for index in range(len(encoded)))
        return [
            {name: tensor for name, tensor in batch.items() if name not in ("labels", "rows")}
            for batch in batches
        ]


def plan_export(cfg: Export, hardware: str) -> ExportPlan:
    """Check an export.

    Raises:
        ConfigError: the run is not finished, the target does not export such models, or the measurement does not fit them.
        DataError: the data set is not the run's.
        ModelError: a file of the run is missing, or was changed.
    """
    run = user_path(cfg.run).absolute()
    report = read_report(run)
    saved = saved_config(run)
    moved = cfg.dataset.model_dump(exclude_none=True)
    dataset, quantization = check(Dataset, saved["dataset"] | moved), saved["student"].get("quantization")
    target: Target = build(cfg.hardware, Target)
    auto = task_class(dataset.kind).auto
    require_task(target, hardware, task_class(dataset.kind), dataset.kind)
    is_fast = (run / "student" / "tokenizer.json").is_file()
    require_fast_tokenizer(target, hardware, auto, is_fast, is_chosen=True)
    if target.shows and not (run / TEACHER_PREDICTIONS).is_file():
        raise ModelError(
            f"hardware={hardware} shows the teacher's predictions, and {run / TEACHER_PREDICTIONS} is gone; remove {run / REPORT}, and the same "
            "kdcli distill writes both again"
        )
    data = load(dataset, recorded_readings(run))
    if data.fingerprint != report.dataset.fingerprint:
        raise DataError(
            f"the data set is not the one that {run} was trained on: its test rows may have been seen; give dataset.path of the same data"
        )
    dropped = unanswered(run)
    student = Checkpoint(run / "student", "student", code=cfg.trust_remote_code)
    unrounded = Checkpoint(
        run / UNQUANTIZED, "the student before its weights were rounded", code=student.code
    )
    for source in [student] if quantization is None else [student, unrounded]:
        require_trained(source, run)
    require_writable(target, hardware, auto, load_config(student), is_chosen=True)
    settings = cfg.measure.settings
    own = {
        key: getattr(cfg.hardware, key) or settings[key]
        for key in ("threads", "batch_sizes", "sequence_length")
    }
    measure = cfg.measure.model_copy(update=own | {"device": target.device})
    try:
        require_length(measure, dataset.max_length)
    except ValueError as error:
        raise ConfigError(str(error)) from None
    return ExportPlan(
        config=cfg,
        run=run,
        hardware=hardware,
        out=named_path(run, "export", hardware, what="hardware"),
        report=report,
        target=target,
        task=task_of(dataset, data.labels, report.metric),
        family=dataset.spec.family,
        labels=data.labels,
        train=without(data["train"], dropped),
        test=without(data["test"], dropped),
        student=student,
        unrounded=unrounded,
        quantization=quantization,
        max_length=dataset.max_length,
        own=own,
        measure=measure,
    )
