"""Implements `kdcli eval`, which scores a run's models, a checkpoint, or an artifact, on any split or data set."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from datasets import Dataset, concatenate_datasets

from kdcli import console
from kdcli.config.schema import Eval as Config
from kdcli.config.types import CheckpointConfig
from kdcli.data.dataset import Data, load, with_gold, without
from kdcli.data.sources import is_hub
from kdcli.data.splits import SPLITS
from kdcli.environment import environment
from kdcli.errors import ConfigError, ExitCode, ModelError
from kdcli.evaluation.compare import verdict
from kdcli.evaluation.models import Evaluator, recorded_models, recorded_readings
from kdcli.evaluation.predict import (
    in_student_tokens,
    open_checkpoint,
    open_teacher,
    outputs_by_row,
    prepared,
    require_device,
    same_tokens,
    save_predictions,
)
from kdcli.evaluation.results import SCHEMA, read_report
from kdcli.exporting.artifacts import Split, bytes_of, folder_of, run_artifact
from kdcli.exporting.find import find_artifact
from kdcli.exporting.packages import required_packages
from kdcli.files import user_path, write_json
from kdcli.models.checkpoint import (
    Checkpoint,
    find,
    has_head,
    load_config,
    load_tokenizer,
    model_labels,
)
from kdcli.report.outcome import outcome
from kdcli.report.tables import eval_table
from kdcli.report.verdict import verdict_text
from kdcli.rundir import EVALUATION, saved_config, unanswered
from kdcli.tasks import task_class, task_of
from kdcli.tasks.base import Task
from kdcli.tasks.labels import matcher


def evaluate(cfg: Config, folder: Path) -> int:
    """Score the models that the config names. A table or JSON goes to stdout, eval.json and the predictions to `folder`."""
    require_device(cfg.measure)
    run = user_path(cfg.run) if cfg.run else None
    artifact, sources = _subjects(cfg, run)
    code = cfg.trust_remote_code
    data = _data(
        cfg, [Checkpoint(folder_of(artifact), artifact.name, code=code)] if artifact else [*sources.values()]
    )
    task = task_of(cfg.dataset, data.labels, _metric(cfg, run))
    chosen = concatenate_datasets([data[split] for split in (SPLITS if cfg.split == "all" else [cfg.split])])
    # training rows beyond dataset.labelled have no label
    rows = with_gold(without(chosen, unanswered(run) if run else ()))
    shared = True
    does = "score and measure" if cfg.measure else "score"
    names = list(sources) or ["artifact"]
    with console.ProgressStages(names, labels={name: f"{does} {name}" for name in names}) as stages:
        if artifact is not None:
            with stages.stage("artifact"):
                evaluator = _evaluate_artifact(cfg, artifact, task, rows)
        else:
            evaluator, shared = _evaluate_checkpoints(cfg, sources, task, rows, stages)
    for name, predictions in evaluator.predictions.items():
        save_predictions(folder / "predictions" / f"{cfg.split}.{name}.safetensors", predictions)
    result: dict[str, Any] = {
        "schema": SCHEMA,
        "task": cfg.dataset.kind,
        "metric": task.metric,
        "split": cfg.split,
        "examples": len(next(iter(evaluator.predictions.values())).counts),
        "labels": data.labels,
        "dataset": {"name": _data_name(cfg), "fingerprint": data.fingerprint},
        "environment": environment(required_packages()),
        "models": evaluator.models,
    }
    if run is not None and {"teacher", "student"} <= evaluator.models.keys():
        result["verdict"] = verdict(task, evaluator.models, evaluator.predictions, shared)
        recorded = read_report(run).as_json()
        recorded_keys = {key: recorded[key] for key in ("smoke", "training", "endpoint") if key in recorded}
        result["verdict"] |= outcome(result | recorded_keys, "dataset.test")
        result["verdict"]["text"] = verdict_text(result | recorded_keys)
    write_json(folder / EVALUATION, result)
    if cfg.format == "json":
        console.say(json.dumps(result, indent=2, ensure_ascii=False))
    else:
        eval_table(result)
        console.say(f"{EVALUATION}: {folder / EVALUATION}")
    return ExitCode.DONE


def _metric(cfg: Config, run: Path | None) -> str | None:
    """Return the headline metric that a run was started with, if the rows are of a task that has it."""
    metric = saved_config(run).get("metric") if run is not None else None
    return metric if metric in task_class(cfg.dataset.kind).further_metrics else None


def _evaluate_checkpoints(
    cfg: Config, sources: Mapping[str, Checkpoint], task: Task, rows: Dataset, stages: console.ProgressStages
) -> tuple[Evaluator, bool]:
    """Score and measure checkpoints one after the other.

    Returns:
        The evaluation, and whether teacher and student have the same classes.
    """
    length = cfg.dataset.max_length
    rows = prepared(task, rows, [load_tokenizer(source) for source in sources.values()], length)
    teacher_outputs, shared = None, True
    with Evaluator(task, rows, length, cfg.measure) as evaluator:
        for name, source in sources.items():
            with stages.stage(name):
                if not has_head(source, task):
                    raise ModelError(
                        f"{source.name} has no head for this task: its predictions would be random; tune it first"
                    )
                model, tokenizer = open_checkpoint(source, task, length)
                compared = name != "teacher" and "teacher" in sources and task.writes and shared
                if compared and teacher_outputs is None:
                    teacher = open_teacher(sources["teacher"], tokenizer, task, length)
                    teacher_outputs = outputs_by_row(teacher, rows)
                convert = None
                if name == "teacher" and "student" in sources:
                    student = sources["student"]
                    shared = same_tokens(task, source, student, rows, length)
                    if not shared:
                        convert = partial(
                            in_student_tokens, task, student=student, rows=rows, max_length=length
                        )
                evaluator.predict(name, source, model, tokenizer, teacher_outputs, convert)
                del model  # before the next one is loaded
                evaluator.measure(name, [source], name == "teacher", name == "student")
    return evaluator, shared


def _evaluate_artifact(cfg: Config, artifact: Path, task: Task, rows: Dataset) -> Evaluator:
    """Score and measure an artifact, interleaved with the run's student if there is one."""
    code, length, name = cfg.trust_remote_code, cfg.dataset.max_length, artifact.name
    tokenizer = load_tokenizer(Checkpoint(folder_of(artifact), name, code=code))
    split = Split(task, task.prepare(rows, tokenizer, length), tokenizer, length)
    student = user_path(cfg.run or "") / "student"
    with Evaluator(task, split.rows, length, cfg.measure) as evaluator:
        if cfg.run and cfg.measure and student.is_dir():
            evaluator.keep_alive(Checkpoint(student, "student", code=code))
        run = run_artifact(cfg.measure, artifact, split, baseline=evaluator.process, trust_remote_code=code)
    evaluator.score(name, {"bytes": bytes_of(artifact)}, run.predictions)
    evaluator.models[name] |= run.needs | run.shares
    return evaluator


def _data(cfg: Config, models: Sequence[Checkpoint]) -> Data:
    """Return the data set: without limits with `split=all`, and with the labels of the models if it has only some of them."""
    unlimited = {"limit": None, "eval_limit": None, "labelled": None, "unlabelled": None}
    dataset = cfg.dataset.model_copy(update=unlimited if cfg.split == "all" else {})
    recorded = recorded_readings(user_path(cfg.run)) if cfg.run else []
    data = load(dataset, recorded)
    if not data.labels or dataset.labels or not models:
        return data
    labels = model_labels(load_config(models[-1]))
    is_part = len(data.labels) < len(labels) and None not in map(matcher(labels), data.labels)
    return load(dataset.model_copy(update={"labels": labels}), recorded) if is_part else data


def _data_name(cfg: Config) -> str:
    """Return the file that the rows come from, or the data set."""
    given = {"validation": cfg.dataset.validation, "test": cfg.dataset.test}.get(cfg.split)
    return given if given and not is_hub(cfg.dataset) else cfg.dataset.path


def _subjects(cfg: Config, run: Path | None) -> tuple[Path | None, dict[str, Checkpoint]]:
    """Return the artifact, or the checkpoints by name.

    Raises:
        ConfigError: nothing is named, or too much.
    """
    if cfg.model and (cfg.run or cfg.artifact):
        raise ConfigError(
            "model= stands alone: give either a checkpoint (model=), or a run (RUN) or file of it (artifact=)"
        )
    if cfg.artifact:
        return find_artifact(cfg.artifact, run), {}
    if cfg.model:
        given = {"_target_": "model", "path": cfg.model, "trust_remote_code": cfg.trust_remote_code}
        given["merge_adapter"] = cfg.merge_adapter
        return None, {"model": find(CheckpointConfig.model_validate(given), "model")}
    assert run is not None  # the schema asks for one of the three
    return None, recorded_models(run, cfg.trust_remote_code)
