"""What the Trainer is given: one model, its data and its settings."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from kdcli.config.schema import Rollout
from kdcli.config.schema import Trainer as TrainerConfig
from kdcli.tasks.base import Split
from kdcli.teachers.base import Teacher
from kdcli.training.distiller import Distiller


class TrainProgress(Protocol):
    """Who is told how far a stage is."""

    def update(self, step: int, terms: dict[str, float], extra: str = "") -> None: ...


@dataclass
class TrainJob:
    """One model's training.

    Attributes:
        name: student, control or teacher.
        folder: where its checkpoints live until it ends.
        out: the Hugging Face directory that it ends with.
        steps: optimizer steps in all.
        eval_steps: validate and save every so many.
        seed: of the data's order and of dropout.
        max_length: tokens a row.
        teacher, validation_teacher: who answers for the training and the validation rows; None for hard
            labels alone.
        rollout: how the student answers some of the rows itself; None: it does not.
        metrics: the file that gets one line a logging step.
        saved: called after each checkpoint.
        finish: called with the trained model before it is saved.
    """

    name: str
    folder: Path
    out: Path
    distiller: Distiller
    tokenizer: PreTrainedTokenizerBase
    train: Split
    validation: Split
    cfg: TrainerConfig
    steps: int
    eval_steps: int
    seed: int
    progress: TrainProgress
    max_length: int
    teacher: Teacher | None = None
    rollout: Rollout | None = None
    validation_teacher: Teacher | None = None
    metrics: Path | None = None
    saved: Callable[[], None] = lambda: None
    finish: Callable[[PreTrainedModel], None] = lambda model: None
