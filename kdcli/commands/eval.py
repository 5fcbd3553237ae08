"""`kdcli eval`: score a run's models, a checkpoint, or an exported file, on any split or data set."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from datasets import concatenate_datasets
from transformers import PreTrainedTokenizerBase

from kdcli import console
from kdcli.config.schema import Eval as Config
from kdcli.config.types import CheckpointConfig
from kdcli.data.dataset import Data, load, with_gold, without
from kdcli.data.splits import SPLITS
from kdcli.environment import environment
from kdcli.errors import ConfigError, ExitCode, ModelError
from kdcli.evaluation.compare import score, verdict
from kdcli.evaluation.predict import (
    examine,
    in_student_tokens,
    open_checkpoint,
    outputs_by_row,
    prepared,
    require_device,
    require_trained,
    same_tokens,
    save_predictions,
)
from kdcli.exporting.artifacts import ask, bytes_of, folder_of, require_whole
from kdcli.files import named_path, require_inside, require_name, user_path, write_json
from kdcli.measure.process import Process, measured
from kdcli.measure.spec import runtime_of, specified
from kdcli.model_files import require_folder
from kdcli.models.checkpoint import (
    Checkpoint,
    find,
    has_head,
    load_config,
    load_tokenizer,
    shared_token_count,
)
from kdcli.report.tables import eval_table
from kdcli.report.verdict import verdict_text
from kdcli.rundir import EXPORT, REPORT, read_export, read_report, unanswered
from kdcli.signals import AnySignal
from kdcli.tasks import task_of
from kdcli.tasks.base import Predictions, Task
from kdcli.teachers.base import Teacher
from kdcli.teachers.local import LocalTeacher

logger = logging.getLogger(__name__)


def evaluate(cfg: Config, folder: Path) -> int:
    """Score what the config names; a table or JSON goes to stdout, eval.json and the predictions to `folder`."""
    require_device(cfg.measure)
    artifact, sources = _subjects(cfg)
    code = cfg.trust_remote_code
    data = _data(
        cfg, [Checkpoint(folder_of(artifact), artifact.name, code=code)] if artifact else [*sources.values()]
    )
    task = task_of(cfg.dataset, data.labels)
    left_out = unanswered(user_path(cfg.run)) if cfg.run else ()
    # training rows beyond dataset.labelled have no label
    chosen = concatenate_datasets([data[split] for split in (SPLITS if cfg.split == "all" else [cfg.split])])
    rows = with_gold(without(chosen, left_out))
    max_length = cfg.dataset.max_length
    models: dict[str, dict[str, Any]] = {}
    said: dict[str, Predictions] = {}
    told: Callable[[Sequence[int]], AnySignal] | None = None
    shared = True
    rows = prepared(task, rows, [load_tokenizer(source) for source in sources.values()], max_length)
    teacher: Process | None = None
    with ExitStack() as stack, console.ProgressStages(list(sources) or ["artifact"]) as stages:
        for name, source in sources.items():
            with stages.stage(name):
                _require_head(source, task)
                model, tokenizer = open_checkpoint(source, task, max_length)
                if name != "teacher" and "teacher" in sources and task.writes and shared:
                    told = told or outputs_by_row(
                        _teacher(sources["teacher"], tokenizer, task, max_length), rows
                    )
                if name == "teacher" and "student" in sources:
                    shared = same_tokens(task, source, sources["student"], rows, max_length)
                models[name], said[name] = examine(source, model, tokenizer, task, rows, max_length, told)
                del model  # before the next one is loaded
                if not shared and name == "teacher":
                    said[name] = in_student_tokens(task, said[name], sources["student"], rows, max_length)
                models[name] |= score(task, said[name])
                inputs = task.inputs(rows, tokenizer)
                stays = stack if name == "teacher" else None
                beside = teacher if name == "student" else None
                process, found = measured(cfg.measure, source, task, inputs, max_length, beside, stays)
                teacher = process or teacher
                models[name] |= found
        if artifact is not None:
            name, beside = artifact.name, None
            with stages.stage("artifact"):
                tokenizer = load_tokenizer(Checkpoint(folder_of(artifact), name, code=code))
                rows = task.prepare(rows, tokenizer, max_length)
                path = user_path(cfg.run or "") / "student"
                if cfg.run and cfg.measure and path.is_dir():
                    inputs = task.inputs(rows, tokenizer)
                    asked = specified(cfg.measure, "torch", path, path, task, inputs, max_length, code)
                    beside = stack.enter_context(Process(*asked))
                found, said[name], shares = ask(
                    cfg.measure, artifact, task, rows, tokenizer, max_length, beside=beside, code=code
                )
                models[name] = {"bytes": bytes_of(artifact)} | score(task, said[name]) | found | shares
    for name, answers in said.items():
        save_predictions(folder / "predictions" / f"{cfg.split}.{name}.safetensors", answers)
    result: dict[str, Any] = {
        "schema": 1,
        "task": cfg.dataset.kind,
        "metric": task.metric,
        "split": cfg.split,
        "examples": len(next(iter(said.values())).counts),
        "labels": data.labels,
        "dataset": {"name": _named(cfg), "fingerprint": data.fingerprint},
        "environment": environment(),
        "models": models,
    }
    if {"teacher", "student"} <= models.keys():
        result["verdict"] = verdict(task, models, said, shared)
        smoke = read_report(user_path(cfg.run or ""))["smoke"]
        result["verdict"]["text"] = verdict_text(result | {"smoke": smoke})
    write_json(folder / "eval.json", result)
    if cfg.format == "json":
        console.say(json.dumps(result, indent=2, ensure_ascii=False))
    else:
        eval_table(result)
        console.say(f"eval.json: {folder / 'eval.json'}")
    return ExitCode.DONE


def _data(cfg: Config, models: Sequence[Checkpoint]) -> Data:
    """The data set: whole where all of it is asked for, and with the labels that the models know where it has only some of them."""
    whole = {"limit": None, "eval_limit": None, "labelled": None, "unlabelled": None}
    dataset = cfg.dataset.model_copy(update=whole if cfg.split == "all" else {})
    data = load(dataset)
    if not data.labels or dataset.labels or not models:
        return data
    known = [str(label) for _, label in sorted((load_config(models[-1]).id2label or {}).items())]
    return load(dataset.model_copy(update={"labels": known})) if set(data.labels) < set(known) else data


def _named(cfg: Config) -> str:
    """The file that the rows are from, or the data set."""
    given = {"validation": cfg.dataset.validation, "test": cfg.dataset.test}.get(cfg.split)
    return given if given and cfg.dataset.format != "hub" else cfg.dataset.path


def _subjects(cfg: Config) -> tuple[Path | None, dict[str, Checkpoint]]:
    """The exported file or folder, or the checkpoints by name.

    Raises:
        ConfigError: nothing is named, or too much.
    """
    if cfg.model and (cfg.run or cfg.artifact):
        raise ConfigError(
            "model= stands alone: give either a checkpoint (model=), or a run (run=) or file of it (artifact=)"
        )
    if cfg.artifact:
        places = [user_path(cfg.artifact)]
        if cfg.run:
            run = user_path(cfg.run)
            places += [run / cfg.artifact, *sorted(run.glob(f"export/*/{cfg.artifact}"))]
        for place in map(_recommended, places):
            if place.is_file() or (place.is_dir() and runtime_of(place)):
                place = place.absolute()
                _require_exported(place, user_path(cfg.run) if cfg.run else None)
                require_folder(folder_of(place), place.name)
                return place, {}
        raise ModelError(
            f"the artifact {cfg.artifact} does not exist, or is a folder without a model (looked for "
            f"{', '.join(map(str, places))})"
        )
    if cfg.model:
        given = {"_target_": "model", "path": cfg.model, "trust_remote_code": cfg.trust_remote_code}
        return None, {"model": find(CheckpointConfig.model_validate(given), "model")}
    assert cfg.run  # the schema asks for one of the three
    run = user_path(cfg.run)
    recorded = read_report(run)["models"]
    sources = {}
    for name in recorded:
        if "members" in recorded[name]:
            console.warn(f"the {name} of {run} is an ensemble, which eval does not run, and is left out")
            continue
        if name == "teacher" and not recorded[name].get("path"):
            console.warn(f"the teacher of {run} can only be asked, which eval does not do, and is left out")
            continue
        elsewhere = recorded[name].get("path") if name == "teacher" else None
        path = Path(elsewhere) if elsewhere else named_path(run, name, what=f"{run / REPORT}: models")
        if path.is_dir():
            if elsewhere and not path.is_relative_to(run.absolute()):
                logger.info("the teacher is read from %s, which %s names", path, run / REPORT)
            sources[name] = Checkpoint(path.absolute(), name, code=cfg.trust_remote_code)
            require_trained(sources[name], run)
        else:
            console.warn(f"the {name} of {run} is no longer in {path} and is left out")
    return None, sources


def _recommended(place: Path) -> Path:
    """Of a folder that `kdcli export` wrote, the file (of a translator the folder) that it recommends; else the place itself."""
    if not (place / EXPORT).is_file():
        return place
    told = read_export(place)
    if told["recommended"] is None:
        raise ConfigError(
            f"none of the files in {place} is within its tolerance and budget; name one: {', '.join(told['artifacts'])}"
        )
    found = sorted(place.rglob(require_name(str(told["recommended"]), f"{place / EXPORT}: recommended")))
    if not found:
        raise ModelError(
            f"{told['recommended']}, which {place / EXPORT} recommends, is gone; export again: "
            f"kdcli export run=RUN hardware={told['hardware']}"
        )
    return require_inside(place, found[0], f"{place / EXPORT}: recommended")


def _require_exported(artifact: Path, run: Path | None) -> None:
    """Refuse an artifact that is not what `kdcli export` wrote, or that it made of another student than the run's."""
    beside = next((found for each in artifact.parents[:3] if (found := each / EXPORT).is_file()), None)
    if beside is None:
        return
    told = read_export(beside.parent)
    student = told.get("student")
    if run is not None and student and student != Checkpoint(run / "student", "student").weights_hash:
        raise ModelError(
            f"{artifact} was made from another student than {run / 'student'}; export that one anew, or leave run= away "
            "and name the data set (dataset=…)"
        )
    require_whole(artifact, told)


def _teacher(source: Checkpoint, student: PreTrainedTokenizerBase, task: Task, max_length: int) -> Teacher:
    """A language model that says something of the student's tokens alone."""
    teacher = LocalTeacher(task.batch)
    teacher.open(source, task, max_length, "fp32")
    if (fewer := shared_token_count(teacher.tokenizer, student)) is not None:
        teacher.truncate_vocabulary(fewer)
    return teacher


def _require_head(source: Checkpoint, task: Task) -> None:
    if not has_head(source, task):
        raise ModelError(
            f"{source.name} has no head for this task: its answers would be random; tune it first"
        )
