"""Checkpoints of a training: saved, verified, and restored."""

from __future__ import annotations

import logging
import os
import pickle
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from accelerate.utils import broadcast_object_list
from safetensors import SafetensorError
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR
from typing_extensions import TypedDict

from kdcli.distributed import wait_for_everyone
from kdcli.errors import ConfigError, KDError
from kdcli.files import read_json
from kdcli.model_files import require_unchanged
from kdcli.rundir import rewrite_metrics
from kdcli.tasks.base import Split
from kdcli.training.job import TrainJob
from kdcli.training.length import validations

logger = logging.getLogger(__name__)
WEIGHTS = "model.safetensors"
STATE = "trainer_state.json"
REMEDY = "remove it, and the same command goes on from the checkpoint before, or trains the stage anew"


def checkpoint_folder(job: TrainJob, step: int) -> Path:
    """Return the directory of the checkpoint after a step."""
    return job.folder / f"{PREFIX_CHECKPOINT_DIR}-{step}"


def last_checkpoint(job: TrainJob) -> Path | None:
    """Return the newest checkpoint from which training can continue: it is complete, and so is the checkpoint with the best score, if that one is
    kept. Checkpoints that are damaged or newer are removed with a warning."""
    newest: list[Path | None] = [None]
    if PartialState().is_main_process:
        complete: dict[int, TrainState] = {}
        damaged: dict[Path, str] = {}
        for path in job.folder.glob(f"{PREFIX_CHECKPOINT_DIR}-*"):
            try:
                state = read_state(path)
                complete[state["global_step"]] = state
            except KDError as error:
                damaged[path] = error.message
        for step in sorted(complete, reverse=True):
            best = complete[step]["best_global_step"]
            if job.cfg.keep != "best" or best is None or best in complete:
                newest = [checkpoint_folder(job, step)]
                break
            damaged[checkpoint_folder(job, step)] = (
                f"{checkpoint_folder(job, step)} needs {checkpoint_folder(job, best)}"
            )
        if damaged:
            logger.warning(
                "%s: %s. The stage %s",
                job.name,
                "; ".join(damaged.values()).replace(f"{job.folder}{os.sep}", ""),
                f"goes on from {newest[0]}" if newest[0] else "begins anew",
            )
        for path in damaged:
            shutil.rmtree(path, ignore_errors=True)
    wait_for_everyone(PartialState())  # the hashes of a large checkpoint take their time
    return broadcast_object_list(newest)[0]


class TrainState(TypedDict):
    """The keys of trainer_state.json that are read here."""

    global_step: int
    best_global_step: int | None
    log_history: list[dict[str, Any]]


def read_state(checkpoint: Path) -> TrainState:
    """Return the state of a checkpoint.

    Raises:
        ConfigError, ModelError: the checkpoint is incomplete or damaged.
    """
    if not require_unchanged(checkpoint, "it is not used"):
        raise ConfigError(
            f"{checkpoint} is incomplete: the process ended while it was written; it is not used"
        )
    state = read_json(checkpoint / STATE, TrainState, "it is not used")
    if checkpoint.name != f"{PREFIX_CHECKPOINT_DIR}-{state['global_step']}":
        raise ConfigError(f"{checkpoint} holds the state of step {state['global_step']}; it is not used")
    return state


def is_complete(job: TrainJob, checkpoint: Path) -> bool:
    """Return whether a checkpoint is the one after the last step."""
    state = read_json(checkpoint / STATE, TrainState, REMEDY)
    return state["global_step"] >= job.length.total(validations(state["log_history"]))


def rewind(job: TrainJob, checkpoint: Path | None) -> None:
    """Remove the lines of metrics.jsonl that the training will write again."""
    if job.metrics is None:
        return
    step = read_json(checkpoint / STATE, TrainState, REMEDY)["global_step"] if checkpoint else 0
    rewrite_metrics(job.metrics, lambda line: line["stage"] != job.name or line["step"] <= step)


def row_text(row: dict[str, Any]) -> str:
    """Return the text of a row, for messages."""
    return str(next(value for key, value in row.items() if key != "id"))


def raw_rows(split: Split, rows: torch.Tensor) -> list[dict[str, Any]]:
    """Return the rows of a batch before they were tokenized, which is what a teacher reads."""
    picked = split.rows[rows.tolist()]
    return [dict(zip(picked, values, strict=True)) for values in zip(*picked.values(), strict=True)]


@contextmanager
def restoring(checkpoint: str | None) -> Iterator[None]:
    """Turn the exceptions of loading a part of a checkpoint into one message: its files are unchanged, but another training wrote them."""
    try:
        yield
    except (
        OSError,
        RuntimeError,
        KeyError,
        TypeError,
        ValueError,
        pickle.UnpicklingError,
        SafetensorError,
    ) as error:
        first = next(iter(str(error).splitlines()), type(error).__name__)
        raise KDError(f"{checkpoint} cannot be loaded ({first}); {REMEDY}") from error
