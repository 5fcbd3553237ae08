"""Checks the path of a model that is to predict, as far as this needs neither torch nor a model."""

from __future__ import annotations

import os
from pathlib import Path

from kdcli import rundir
from kdcli.errors import ConfigError, ModelError, listed
from kdcli.evaluation.results import read_report
from kdcli.files import user_path

DEEPEST = 6
"""The number of folders above a file in which its run is searched."""
TRAINING_FILES = ("trainer_state.json", "optimizer.pt", "optimizer.bin", "scheduler.pt")
"""The files that the Trainer writes into the folder of a model while it is trained."""
JSON_SUFFIXES, CSV_SUFFIXES = (".jsonl", ".ndjson"), (".csv",)
"""The suffixes of files into which predictions are written."""


def locate(given: str) -> tuple[Path, Path | None]:
    """Return the absolute path, which need not exist, and the finished run that it is or belongs to; None: there is none.

    Raises:
        ConfigError: it is a run that is not finished, the directory of an evaluation or of a sweep, a control, or a training directory.
        ModelError: it does not exist, and is no id of the hub.
    """
    path = user_path(given).absolute()
    if not os.path.lexists(path):
        if given.startswith((".", "/", "~")) or given.count("/") > 1:  # no id of the hub
            raise ModelError(
                f"{given} does not exist (looked for {path}); give the directory of a run, an exported file, or a model directory"
            )
        return path, None
    if (path / rundir.SWEEP).is_file():
        raise ConfigError(f"{given} is the directory of a sweep; give the directory of one of its runs")
    run = next((each for each in [path, *path.parents][:DEEPEST] if (each / rundir.HYDRA).is_file()), None)
    if run is not None:
        read_report(run)
        _require_student(path, run)
    if path.is_dir() and run != path:
        if exports := sorted(str(each.parent) for each in path.glob(f"*/{rundir.EXPORT}")):
            raise ConfigError(f"{given} holds exports; give one of them: {listed(exports)}")
        _require_whole(path)
    return path, run


def _require_student(path: Path, run: Path) -> None:
    """Refuse the models of a run that are no result of it."""
    parts = path.relative_to(run).parts
    if "control" in parts:
        raise ConfigError(
            f"{path} is the control of {run}, which was trained without the teacher for comparison; give the run, whose student predicts: {run}"
        )
    if parts[:1] == ("stages",):
        raise ConfigError(
            f"{path} is a training directory of {run}; give the run, whose student predicts: {run}"
        )


def _require_whole(path: Path) -> None:
    """Refuse the directory of a training."""
    unfinished = [name for name in TRAINING_FILES if (path / name).is_file()]
    if unfinished or any(path.glob("checkpoint-*")):
        what = unfinished[0] if unfinished else next(path.glob("checkpoint-*")).name
        raise ConfigError(
            f"{path} is a training directory (it holds {what}); give the model that was saved after the training, or the directory of a run"
        )


def require_out(out: Path | None, overwrite: bool) -> None:
    """Refuse an output file that is there, or whose format is not known by its name.

    Raises:
        ConfigError
    """
    if out is None:
        return
    if out.suffix.lower() not in (*JSON_SUFFIXES, *CSV_SUFFIXES):
        raise ConfigError(f"--out {out}: expected a name that ends with .jsonl or .csv; rename it")
    if os.path.lexists(out) and not overwrite:
        raise ConfigError(f"--out {out} is there already; give another name, or --overwrite")
