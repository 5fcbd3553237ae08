"""Finds and loads the model that a path means: the student of a run, an exported file, or a model directory."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kdcli import rundir
from kdcli.config.check import check_values
from kdcli.config.dataset import Dataset as DatasetConfig
from kdcli.config.tasks import packaged_specs
from kdcli.config.types import CheckpointConfig
from kdcli.errors import ConfigError, ModelError, listed
from kdcli.evaluation.models import recorded_models
from kdcli.evaluation.predict import require_trained
from kdcli.evaluation.results import read_report
from kdcli.exporting.artifacts import folder_of
from kdcli.exporting.find import find_artifact
from kdcli.exporting.runtimes import matching
from kdcli.files import named_path
from kdcli.inference.models import RuntimeModel, TorchModel
from kdcli.inference.paths import locate
from kdcli.models.checkpoint import (
    Checkpoint,
    find,
    load_config,
    load_tokenizer,
    max_input_tokens,
    model_labels,
)
from kdcli.tasks import task_class, task_of
from kdcli.tasks.base import Task
from kdcli.tasks.inference import Inference, Model, inference_of

LONGEST = 512
"""The maximum number of tokens of an input of a model that no run describes."""


@dataclass(frozen=True)
class Subject:
    """The model that a path means.

    Attributes:
        name: what the user gave.
        path: a model directory, or the file or folder of an export.
        run: the run that it belongs to; None: there is none.
        exported: whether its own runtime runs it; otherwise torch does.
        code: whether its Python files may run.
    """

    name: str
    path: Path
    run: Path | None
    exported: bool
    code: bool = False

    @property
    def source(self) -> Checkpoint:
        """Its config and its tokenizer, and of a model directory its weights."""
        return Checkpoint(folder_of(self.path) if self.exported else self.path, self.name, code=self.code)


@dataclass(frozen=True)
class Loaded:
    """A loaded model, and how its inputs and predictions are written."""

    model: Model
    inference: Inference


def find_subject(given: str, code: bool = False, merge_adapter: bool = False) -> Subject:
    """Return the model that a path or a hub id means.

    Args:
        code: its Python files may run.
        merge_adapter: an adapter of PEFT may be merged into its base model.

    Raises:
        ConfigError: it is a run that is not finished, the directory of a sweep, a control, or a training directory, or nothing here runs it.
        ModelError: it does not exist, or is not what was trained or exported.
    """
    path, run = locate(given)
    if run == path:
        return _of_run(given, path, code)
    if path.is_file() or _is_export(path):
        return _of_export(given, path, run, code)
    if run is not None:
        require_trained(Checkpoint(path, given), run)
        return Subject(given, path, run, False, code)
    config = CheckpointConfig.model_validate(
        {"_target_": "model", "path": given, "trust_remote_code": code, "merge_adapter": merge_adapter}
    )
    return Subject(given, find(config, "model").path, None, False, code)


def _of_run(given: str, run: Path, code: bool) -> Subject:
    report = read_report(run)
    if "student" not in report.models:
        raise ModelError(f"{run} has no student; repeat the run: kdcli distill --rerun {run}")
    path = named_path(run, "student", what=str(run / rundir.REPORT))
    if not path.is_dir():
        raise ModelError(f"the student of {run} is gone; restore {path}, or give an exported file")
    require_trained(Checkpoint(path, "student"), run)
    return Subject(given, path, run, False, code)


def _of_export(given: str, path: Path, run: Path | None, code: bool) -> Subject:
    if path.is_file() and not matching(path):
        raise ConfigError(
            f"{given} is no model that can be run; give the directory of a run, a model directory, or a file that kdcli export wrote"
        )
    path = find_artifact(str(path), run)
    if not (folder_of(path) / "config.json").is_file():
        raise ModelError(
            f"{path} has no config.json beside it, which names its task and its labels; keep it in the folder that kdcli export wrote"
        )
    return Subject(given, path, run, True, code)


def _is_export(path: Path) -> bool:
    """Return whether a folder is one that `kdcli export` wrote, or a model that torch does not run."""
    if not path.is_dir():
        return False
    if any((each / rundir.EXPORT).is_file() for each in [path, *path.parents[:2]]):
        return True
    return any(name != "torch" for name in matching(path))


def open_model(subject: Subject, cfg: DatasetConfig | None, chats: bool = False) -> Loaded:
    """Load a model.

    Args:
        cfg: the data set of its run; None: there is no run.
        chats: it must be a language model that continues texts.

    Raises:
        ConfigError, ModelError, ExportError: it cannot be loaded.
    """
    if subject.run is not None and cfg is not None:
        report = read_report(subject.run)
        task, max_length = task_of(cfg, report.labels), cfg.max_length
    else:
        cfg, task, max_length = _by_config(subject)
    inference = inference_of(task, cfg)
    if chats and not inference.chats:
        raise ConfigError(
            f"{subject.name} is no language model that one can talk to ({cfg.kind}); use kdcli predict {subject.name} TEXT"
        )
    model: Model
    if subject.exported:
        model = RuntimeModel(subject.path, task, max_length, subject.code)
    else:
        model = TorchModel(subject.source, task, max_length)
    return Loaded(model, inference)


def open_teacher(subject: Subject, cfg: DatasetConfig | None) -> TorchModel:
    """Load the teacher of a run.

    Raises:
        ConfigError: there is no run, or its teacher is not on this machine.
    """
    if subject.run is None or cfg is None:
        raise ConfigError(
            f"--teacher: {subject.name} is no run, and its teacher is not known; give the directory of a run"
        )
    sources = recorded_models(subject.run, subject.code)
    if "teacher" not in sources:
        raise ConfigError(
            f"--teacher: the teacher of {subject.run} is no checkpoint on this machine; leave --teacher out"
        )
    task = task_of(cfg, read_report(subject.run).labels)
    return TorchModel(sources["teacher"], task, cfg.max_length)


def _by_config(subject: Subject) -> tuple[DatasetConfig, Task, int]:
    """Return the task of a model that no run describes, by its config.json and its tokenizer, with a data set that names the usual columns."""
    source = subject.source
    config = load_config(source)
    architectures = config.architectures or []
    specs = {
        name: spec
        for name, spec in packaged_specs()
        if not spec.general and any(each.endswith(task_class(name).head) for each in architectures)
    }
    if not specs:
        raise ModelError(
            f"{subject.name} has no head that predicts labels, tags or texts (its architecture: {listed(architectures) or 'not named'}); give a model "
            "that was trained for one of these"
        )
    name, spec = next(iter(specs.items()))
    tokenizer: Any = load_tokenizer(source)
    keys = {"task": name, "path": subject.name, "format": "jsonl", **spec.usual_keys(tokenizer)}
    cfg: DatasetConfig = check_values(DatasetConfig, keys)
    return cfg, task_of(cfg, model_labels(config)), _length(tokenizer, config)


def _length(tokenizer: Any, config: Any) -> int:
    """Return the maximum number of tokens of an input: that to which the tokenizer truncates, or `LONGEST`."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    truncation = backend.truncation if backend is not None else None
    most = max_input_tokens(tokenizer, config)
    return min(most, truncation["max_length"] if truncation else LONGEST)
