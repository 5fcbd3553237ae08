"""The input of the Trainer: one model, its data and its settings."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from kdcli.config.rollout import Rollout
from kdcli.config.trainer import Trainer as TrainerConfig
from kdcli.tasks.base import Split
from kdcli.teachers.base import Teacher
from kdcli.training.distiller import Distiller
from kdcli.training.length import Length


class TrainProgress(Protocol):
    """Shows how far a stage is."""

    def update(
        self, step: int, terms: dict[str, float], extra: str = "", total: int | None = None
    ) -> None: ...


@dataclass
class TrainJob:
    """The training of one model in one phase.

    Attributes:
        name: of the phase, in the progress and in metrics.jsonl.
        folder: holds the checkpoints during training.
        out: the Hugging Face directory of the trained model.
        distiller: the model with its losses.
        length: how many optimizer steps, and their learning rates.
        learning_rate: after the warm-up.
        embedding_learning_rate_factor: that of the word embeddings, as a share of it.
        token_dropout: the probability with which a token of a training text is replaced by the mask token.
        eval_steps: optimizer steps between two validations, each with a checkpoint.
        seed: of the data order and of dropout.
        max_length: tokens a row, at most.
        teacher, validation_teacher: the teacher of the training and of the validation rows; None: no loss reads it.
        rollout: how the student writes the completions of some rows itself (on-policy); None: it does not.
        metrics: the file to which each logging step appends a line.
        saved: called after each checkpoint.
        finish: called with the trained model before it is saved.
        calibrate: called after that, also before it is saved.
    """

    name: str
    folder: Path
    out: Path
    distiller: Distiller
    tokenizer: PreTrainedTokenizerBase
    train: Split
    validation: Split
    cfg: TrainerConfig
    length: Length
    learning_rate: float
    eval_steps: int
    seed: int
    progress: TrainProgress
    max_length: int
    teacher: Teacher | None = None
    embedding_learning_rate_factor: float = 1.0
    token_dropout: float = 0.0
    rollout: Rollout | None = None
    validation_teacher: Teacher | None = None
    metrics: Path | None = None
    saved: Callable[[], None] = lambda: None
    finish: Callable[[PreTrainedModel], None] = lambda model: None
    calibrate: Callable[[PreTrainedModel], None] = lambda model: None
