"""The comparison at the end of a run, and its report."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict
from typing import Any

import datasets

import kdcli
from kdcli import console
from kdcli.config.schema import Distill as Config
from kdcli.errors import ExportError, KDError
from kdcli.evaluation.compare import score, verdict
from kdcli.evaluation.predict import (
    combine_members,
    examine,
    in_student_tokens,
    open_checkpoint,
    outputs_by_row,
    save_predictions,
    size,
)
from kdcli.evaluation.results import Report
from kdcli.files import write_text
from kdcli.measure.models import measure_checkpoint
from kdcli.measure.process import Process
from kdcli.measure.spec import UNKNOWN
from kdcli.models.checkpoint import Checkpoint, load_tokenizer
from kdcli.pipeline.plan import STUDENT, Run, TeacherData
from kdcli.pipeline.remote import endpoint_report
from kdcli.pipeline.stages import read_stage_times
from kdcli.pipeline.teacher import teacher_predictions
from kdcli.report.cards import model_card
from kdcli.report.page import write_html
from kdcli.report.tables import final_table
from kdcli.report.verdict import verdict_text
from kdcli.rundir import METRICS, REPORT, UNQUANTIZED, read_metrics
from kdcli.tasks.base import Predictions

UNSEEN: dict[str, Any] = {"parameters": None, "bytes": None, "score": None, "scores": {}, **asdict(UNKNOWN)}
"""What can be said of a model that one can only ask, before it was asked."""


def evaluate(run: Run, teacher_data: TeacherData, stage: console.ProgressStage) -> dict[str, Any]:
    """Score all models on the test split, measure them, and compare: report.json without its sentence.

    Args:
        teacher_data: of the run's own teacher.
    """
    task, max_length, teacher, signals = (
        run.task,
        run.cfg.dataset.max_length,
        teacher_data.teacher,
        teacher_data.outputs,
    )
    test = run.data["test"]
    folders = {"teacher": teacher.path} if signals else {}
    own = (UNQUANTIZED, "control", STUDENT)
    folders |= {name: run.folder / name for name in own if (run.folder / name).is_dir()}
    models: dict[str, dict[str, Any]] = {}
    loaded: dict[str, Sequence[Checkpoint]] = {}
    said: dict[str, Predictions] = {}
    samples: dict[str, list[str]] = {}
    assistants = {
        name: run.folder / "assistants" / name for name, stage in run.cfg.stages.items() if stage.student
    }
    folders |= assistants
    trainees = (run.cfg.student, *(stage.student for stage in run.cfg.stages.values() if stage.student))
    code = teacher.code or any(each.trust_remote_code for each in trainees)
    trained = {STUDENT: run.phases[-1].name}
    if run.quantization is not None:
        trained |= {UNQUANTIZED: run.phases[-2].name, "control": "control/quantized"}
    validation = {name: _best_validation(run, trained.get(name, name)) for name in folders}
    for done, (name, folder) in enumerate(folders.items()):
        stage.update(done, extra=name, total=len(folders))
        source = Checkpoint(folder, name, code=code)
        if name == "teacher" and not task.writes:  # its answers are there already
            said[name], _ = teacher_predictions(run, teacher_data, "test")
            before, _ = teacher_predictions(run, teacher_data, "validation")
            known = {"parameters": None, "bytes": None}
            models[name] = (
                known
                if run.remote is not None
                else combine_members([size(each, task) for each in teacher_data.teachers])
            )
        else:
            model, tokenizer = open_checkpoint(source, task, max_length)
            told = outputs_by_row(signals["test"], test) if name != "teacher" and run.shared else None
            models[name], said[name] = examine(source, model, tokenizer, task, test, max_length, told)
            if name == "teacher":  # it is run, as what was stored of it lacks rare tokens
                _, before = examine(source, model, tokenizer, task, run.data["validation"], max_length)
            if texts := task.generate_samples(model, tokenizer, test, max_length, run.cfg.measure):
                samples[name] = texts
            if not run.shared and name == "teacher":
                student = Checkpoint(run.folder / "student", "student")
                said[name] = in_student_tokens(task, said[name], student, test, max_length)
            del model  # before the next one is loaded
        if name == "teacher":
            validation[name] = float(task.scores(before)[task.metric])
        save_predictions(run.folder / "predictions" / f"test.{name}.safetensors", said[name])
        models[name] |= score(task, said[name])
        if name in samples:
            models[name]["scores"] |= task.sample_scores(samples[name], said[name], test)
        if name != "teacher" or run.remote is None:
            loaded[name] = teacher_data.teachers if name == "teacher" else [source]
    for name, needs in _resources(run, loaded, test).items():
        models[name] |= needs
    if run.remote is not None:
        models["teacher"] = UNSEEN | models.get("teacher", {})
    models["teacher"]["path"] = None if run.remote is not None else str(teacher.path)
    if teacher_data.teachers[1:]:
        models["teacher"] |= {"path": None, "members": [str(each.path) for each in teacher_data.teachers]}
    shown: dict[str, Any] = {}
    if run.remote is not None:
        shown = {"endpoint": endpoint_report(run, run.remote, teacher_data)}
    shown |= task.report_sections(test, said, samples, run.cfg.measure)
    return shown | {
        "task": run.cfg.dataset.kind,
        "metric": run.task.metric,
        "test_examples": len(test),
        "smoke": run.cfg.smoke,
        "seed": run.cfg.seed,
        "labels": run.data.labels,
        "dataset": {
            "name": run.names["dataset"],
            "train": len(run.data["train"]),
            "labelled": len(run.data.gold),
            "augmented": len(teacher_data.rows) - len(run.data["train"]) if run.cfg.dataset.augment else 0,
            "validation": len(run.data["validation"]),
            "test": len(test),
            "fingerprint": run.data.fingerprint,
        }
        | (  # those of a remote teacher stand in the section "endpoint"
            {"answers_left_out": dict(teacher_data.dropped)}
            if teacher_data.dropped and run.remote is None
            else {}
        )
        | task.dataset_summary(run.cfg.dataset, run.data.dropped),
        "loss": _terms(run.cfg),
        "stages": [
            each for each in read_stage_times(run.folder) if each["name"] != stage.name
        ],  # this one has not ended
        "validation_score": validation,
        "models": {name: entry for name, entry in models.items() if name not in assistants},
        "assistants": {name: models[name] for name in assistants},
        "verdict": verdict(run.task, models, said, run.shared),
    }


def _resources(
    run: Run, models: Mapping[str, Sequence[Checkpoint]], rows: datasets.Dataset
) -> dict[str, dict[str, Any]]:
    """Speed and memory of models, of several checkpoints each if they are ensembles; the student in turns with the teacher, if it is one."""
    found: dict[str, dict[str, Any]] = {}
    teacher: Process | None = None
    try:
        with ExitStack() as stack:
            for name, members in models.items():
                entries = []
                for source in members:
                    inputs = run.task.inputs(rows, load_tokenizer(source))
                    stays = stack if name == "teacher" and len(members) == 1 else None
                    beside = teacher if name == "student" else None
                    process, needs = measure_checkpoint(
                        run.cfg.measure, source, run.task, inputs, run.cfg.dataset.max_length, beside, stays
                    )
                    teacher = process or teacher
                    entries.append(needs)
                found[name] = combine_members(entries)
    except ExportError as error:  # the run was trained: it failed, and is kept
        raise KDError(error.message) from error
    return found


def _terms(cfg: Config) -> dict[str, dict[str, Any]]:
    """The loss terms and their arguments; of stages as stage/term."""
    sets = {f"{name}/": stage.loss or cfg.loss for name, stage in cfg.stages.items()} or {"": cfg.loss}
    return {
        f"{stage}{name}": {"weight": term.weight} | term.arguments
        for stage, terms in sets.items()
        for name, term in terms.items()
    }


def write_results(run: Run, result: dict[str, Any]) -> None:
    """Write the model card, report.html and report.json, and print the table. report.json is written last: a run that has it is finished."""
    result["verdict"]["text"] = verdict_text(result)
    begun = run.initializer.source
    base = begun.name if begun and begun.commit else None
    extra = {**run.names} | {"base_model": base, "kdcli_version": kdcli.__version__, "chat": run.task.chat}
    write_text(run.folder / "student" / "README.md", model_card(result, extra))
    write_html(run.folder, result)
    Report.of(**result).write(run.folder / REPORT)
    final_table(result)
    console.say(f"report: {run.folder / 'report.html'}   student: {run.folder / 'student'}")


def _best_validation(run: Run, name: str) -> float | None:
    """The best validation score that metrics.jsonl holds of a stage."""
    lines = read_metrics(run.folder / METRICS)
    return max(
        (line["eval/score"] for line in lines if line["stage"] == name and "eval/score" in line), default=None
    )
