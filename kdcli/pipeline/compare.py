"""Compares the models at the end of a run, and writes the report."""

from __future__ import annotations

import functools
import itertools
import logging
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict
from typing import Any

import kdcli
from kdcli import console
from kdcli.config.schema import Distill as Config
from kdcli.config.seeds import with_seed
from kdcli.errors import ExportError, KDError
from kdcli.evaluation.compare import chance_over_seeds, gain_over_seeds, row_scores, verdict
from kdcli.evaluation.models import Evaluator
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
from kdcli.evaluation.suspicions import teacher_suspicions
from kdcli.evaluation.trivial import score_trivial
from kdcli.files import write_text
from kdcli.measure.runtime import runtime_class
from kdcli.measure.spec import UNKNOWN
from kdcli.models.checkpoint import Checkpoint, load_tokenizer
from kdcli.pipeline.calibration import add_calibration
from kdcli.pipeline.plan import QUANTIZED, STUDENT, Run, TeacherData
from kdcli.pipeline.remote import endpoint_report
from kdcli.pipeline.stages import read_stage_times
from kdcli.pipeline.student import initial_folder
from kdcli.pipeline.teacher import teacher_predictions
from kdcli.report.cards import card_data, model_card
from kdcli.report.outcome import outcome
from kdcli.report.page import write_html
from kdcli.report.tables import final_table
from kdcli.report.verdict import verdict_text
from kdcli.rundir import BASELINES, METRICS, REPORT, SEEDS, UNQUANTIZED, UNTRAINED, read_metrics
from kdcli.training.length import Length, validations

logger = logging.getLogger(__name__)
MEASURED = 3
"""The time of measuring a model as a multiple of the time of running it on the test split, for the progress."""
UNKNOWN_MODEL: dict[str, Any] = {
    "parameters": None, "bytes": None, "score": None, "scores": {}, **asdict(UNKNOWN),
}  # fmt: skip
"""The entry of a teacher before it is scored."""


def evaluate(
    run: Run, teacher_data: TeacherData, lengths: Mapping[str, Length], stage: console.ProgressStage
) -> dict[str, Any]:
    """Score all models on the test split, measure them, and compare them.

    Args:
        teacher_data: the data of the run's own teacher.
        lengths: the lengths of the phases of student and control, by their names.

    Returns:
        The content of report.json without the sentence of its verdict.
    """
    checkpoints = _checkpoints(run, teacher_data)
    validation = _validation_scores(run, checkpoints)
    samples: dict[str, Sequence[str]] = {}
    with Evaluator(run.task, run.data["test"], run.max_length, run.cfg.measure) as evaluator:
        measured = 0 if run.cfg.measure is None else MEASURED * len(checkpoints)
        for done, (name, source) in enumerate(checkpoints.items()):
            stage.update(done, extra=name, total=len(checkpoints) + measured)
            if name == "teacher" and (run.streamed or run.scorer is not None or not run.task.writes):
                validation[name] = _score_stored_outputs(run, teacher_data, evaluator)
            else:
                texts, score = _score_checkpoint(run, teacher_data, evaluator, name, source)
                samples |= {name: texts} if texts else {}
                validation |= {name: score} if score is not None else {}
        add_calibration(run, evaluator)
        if run.cfg.trivial_baseline:
            _score_baselines(run, evaluator)
        for name, predictions in evaluator.predictions.items():
            save_predictions(run.folder / "predictions" / f"test.{name}.safetensors", predictions)
        row_scores(run.task, evaluator.rows, evaluator.predictions, STUDENT).write(run.folder)
        _measure(run, teacher_data, evaluator, checkpoints, stage)
    _complete_teacher(run, teacher_data, evaluator.models)
    results = _results(run, teacher_data, evaluator, validation, samples, stage.name)
    results["verdict"] |= _compare_seeds(run, [evaluator, *_score_seeds(run, teacher_data, stage)])
    of_teacher = _teacher_suspicions(run, teacher_data, evaluator)
    for suspicion in of_teacher:
        logger.warning("%s", suspicion["text"])
    suspicions = [*run.data.suspicions, *of_teacher]
    return results | {"training": _training(run, lengths), "suspicions": suspicions}


def _teacher_suspicions(run: Run, teacher_data: TeacherData, evaluator: Evaluator) -> list[dict[str, Any]]:
    """Return signs that a local teacher that was not tuned in this run has seen the test rows."""
    if run.remote is not None or run.task.writes or any(map(run.tunes, run.sources)):
        return []
    validation, _ = teacher_predictions(run, teacher_data, "validation")
    return teacher_suspicions(run.task, evaluator.predictions["teacher"], validation)


def _checkpoints(run: Run, teacher_data: TeacherData) -> dict[str, Checkpoint]:
    """Return the models that are compared, by name. A remote teacher that wrote texts is not among them, nor a streamed one whose score needs texts."""
    assistants = {name: stage.student for name, stage in run.cfg.stages.items() if stage.student}
    trusted = any(student.trust_remote_code for student in (run.cfg.student, *assistants.values()))
    trained = (UNQUANTIZED, "control", STUDENT)
    is_scored = teacher_data.outputs and not (run.streamed and run.task.metric_of_outputs)
    folders = {"teacher": teacher_data.teacher.path} if is_scored else {}
    folders |= {name: run.folder / name for name in trained if (run.folder / name).is_dir()}
    folders |= {name: run.folder / "assistants" / name for name in assistants}
    code = teacher_data.teacher.code or trusted
    loaded: dict[str, Any] = {
        "dtype": teacher_data.teacher.dtype,
        "quantization": teacher_data.teacher.quantization,
        "divided": teacher_data.teacher.divided,
    }
    return {
        name: Checkpoint(folder, name, code=code, **(loaded if name == "teacher" else {}))
        for name, folder in folders.items()
    }


def _validation_scores(run: Run, names: Iterable[str]) -> dict[str, float | None]:
    """Return the best validation score in metrics.jsonl of each model's last phase."""
    phases = {STUDENT: run.phases[-1].name}
    if run.quantization is not None:
        phases |= {UNQUANTIZED: run.phases[-2].name, "control": "control/quantized"}
    best: dict[str, float] = {}
    for line in read_metrics(run.folder / METRICS):
        if "eval/score" in line:
            best[line["stage"]] = max(line["eval/score"], best.get(line["stage"], -math.inf))
    return {name: best.get(phases.get(name, name)) for name in names}


def _score_stored_outputs(run: Run, teacher_data: TeacherData, evaluator: Evaluator) -> float:
    """Score the teacher by its stored outputs, without running it.

    Returns:
        Its score on the validation split.
    """
    entry: dict[str, Any] = {"parameters": None, "bytes": None}
    if run.remote is None:
        entry = combine_members([size(teacher, run.task) for teacher in teacher_data.teachers])
    of_test = teacher_predictions(run, teacher_data, "test")[0]
    if (run.remote is None or run.scorer is not None) and not run.shared:
        student = Checkpoint(run.folder / STUDENT, STUDENT, code=run.cfg.student.trust_remote_code)
        of_test = in_student_tokens(run.task, of_test, student, run.data["test"], run.max_length)
    evaluator.score("teacher", entry | (asdict(UNKNOWN) if run.streamed else {}), of_test)
    predictions, _ = teacher_predictions(run, teacher_data, "validation")
    return float(run.task.scores(predictions)[run.task.metric])


def _score_checkpoint(
    run: Run, teacher_data: TeacherData, evaluator: Evaluator, name: str, source: Checkpoint
) -> tuple[Sequence[str], float | None]:
    """Run a model on the test split, and score it.

    Args:
        evaluator: scores the model. One that measures nothing generates no texts to show.

    Returns:
        The texts that it generates, and the teacher's score on the validation split (None: it is not the teacher).
    """
    task, rows, max_length = run.task, evaluator.rows, run.max_length
    model, tokenizer = open_checkpoint(source, task, max_length)
    outputs, convert, validation = None, None, None
    if name != "teacher" and run.shared:
        outputs = outputs_by_row(teacher_data.outputs["test"], rows)
    elif name == "teacher" and not run.shared:
        student = Checkpoint(run.folder / STUDENT, STUDENT, code=run.cfg.student.trust_remote_code)
        convert = functools.partial(
            in_student_tokens, task, student=student, rows=rows, max_length=max_length
        )
    predictions = evaluator.predict(name, source, model, tokenizer, outputs, convert)
    if name == "teacher":  # its stored outputs lack unlikely tokens
        _, own = examine(source, model, tokenizer, task, run.data["validation"], max_length)
        validation = float(task.scores(own)[task.metric])
    samples = task.generate_samples(model, tokenizer, rows, max_length, evaluator.config)
    if samples:
        evaluator.models[name]["scores"] |= task.sample_scores(samples, predictions, rows)
    return samples, validation


def _score_baselines(run: Run, evaluator: Evaluator) -> None:
    """Score the models that took no training of a network: the trivial one of the task, and the student's initialisation."""
    task, code = run.task, run.cfg.student.trust_remote_code
    student = Checkpoint(run.folder / STUDENT, STUDENT, code=code)
    if task.scores_untrained:
        source = Checkpoint(initial_folder(run, STUDENT), UNTRAINED, code=code)
        evaluator.predict(UNTRAINED, source, *open_checkpoint(source, task, run.max_length))
        evaluator.models[UNTRAINED] |= {"method": "the student before training", **asdict(UNKNOWN)}
    score_trivial(evaluator, load_tokenizer(student), run.data.gold, run.cfg.seed)


def _measure(
    run: Run,
    teacher_data: TeacherData,
    evaluator: Evaluator,
    checkpoints: Mapping[str, Checkpoint],
    stage: console.ProgressStage,
) -> None:
    """Measure speed and memory of the models, the student interleaved with a teacher that is a single model. With `measure.mode=quick`
    each of the two is timed once, and models of the student's architecture get its figures."""
    here = run.remote is None and not run.streamed and "teacher" in checkpoints
    teachers = teacher_data.teachers if here else []
    quick = evaluator.is_quick
    both = quick and len(teachers) == 1 and not teachers[0].divided
    same_work = runtime_class("torch", run.task.auto).same_work
    alike = {"control", UNQUANTIZED} & checkpoints.keys() if quick and same_work else set()
    try:
        if teachers and not both:
            evaluator.measure("teacher", teachers, keep_alive=True)
        for done, (name, source) in enumerate(checkpoints.items()):
            stage.update(len(checkpoints) + MEASURED * done, extra=f"speed of {name}")
            if name == STUDENT and both:
                evaluator.measure_both(name, source, "teacher", teachers[0])
            elif name != "teacher" and name not in alike:
                evaluator.measure(name, [source], interleaved=name == STUDENT)
        for name in sorted(alike):
            evaluator.copy_measurement(name, STUDENT)
    except ExportError as error:  # the training is done and stays: the run failed, and can be continued
        raise KDError(error.message) from error


def _score_seeds(run: Run, teacher_data: TeacherData, stage: console.ProgressStage) -> Iterator[Evaluator]:
    """Score student and control of each further seed on the test split, and save their predictions. They are not measured: they have the
    shape of the first ones."""
    code = teacher_data.teacher.code or run.cfg.student.trust_remote_code
    for seed in run.cfg.all_seeds[1:]:
        evaluator = Evaluator(run.task, run.data["test"], run.max_length, measure=None)
        for name in ("control", STUDENT) if run.cfg.control else (STUDENT,):
            full = with_seed(name, seed)
            stage.update(stage.step, extra=full)
            source = Checkpoint(run.folder / SEEDS / str(seed) / name, name, code=code)
            _score_checkpoint(run, teacher_data, evaluator, name, source)
            path = run.folder / "predictions" / f"test.{full}.safetensors"
            save_predictions(path, evaluator.predictions[name])
        yield evaluator


def _compare_seeds(run: Run, evaluators: Iterable[Evaluator]) -> dict[str, Any]:
    """Return the keys of the verdict on several seeds: the scores of each, and the gain over all with an interval over seeds and rows.

    Args:
        evaluators: one for each seed, in their order.
    """
    seeds: list[dict[str, Any]] = []
    students, controls = [], []
    for seed, evaluator in zip(run.cfg.all_seeds, evaluators, strict=True):
        scores = {name: evaluator.models[name]["score"] for name in evaluator.models}
        student, control = scores[STUDENT], scores.get("control")
        gain = None if control is None else student - control
        seeds.append({"seed": seed, "student": student, "control": control, "gain": gain})
        students.append(evaluator.predictions[STUDENT])
        controls += [evaluator.predictions["control"]] if control is not None else []
    if len(seeds) < 2:
        return {"seeds": []}
    over_seeds = gain_over_seeds(run.task, students, controls) if controls else {}
    return {"seeds": seeds, "chance": chance_over_seeds(run.task, students, controls)} | over_seeds


def _complete_teacher(run: Run, teacher_data: TeacherData, models: dict[str, dict[str, Any]]) -> None:
    """Add the paths of its checkpoints to the teacher's entry."""
    paths = [str(teacher.path) for teacher in teacher_data.teachers]
    if run.remote is None and "teacher" not in models:  # `_checkpoints` left it out
        models["teacher"] = UNKNOWN_MODEL | size(teacher_data.teacher, run.task)
    if run.remote is not None:
        models["teacher"] = UNKNOWN_MODEL | models.get("teacher", {}) | {"path": None}
    elif len(paths) == 1:
        models["teacher"]["path"] = paths[0]
    else:
        models["teacher"] |= {"path": None, "members": paths}


def _results(
    run: Run,
    teacher_data: TeacherData,
    evaluator: Evaluator,
    validation: Mapping[str, float | None],
    samples: Mapping[str, Sequence[str]],
    current_stage: str,
) -> dict[str, Any]:
    task, models = run.task, evaluator.models
    predictions = {name: each for name, each in evaluator.predictions.items() if name not in BASELINES}
    assistants = [name for name, stage in run.cfg.stages.items() if stage.student]
    of_teacher: dict[str, Any] = {}
    if teacher_data.fidelity is not None:
        of_teacher["fidelity"] = teacher_data.fidelity
    if run.remote is not None:
        of_teacher["endpoint"] = endpoint_report(run, run.remote, teacher_data)
    return {
        **of_teacher,
        **task.report_sections(evaluator.rows, predictions, samples, run.cfg.measure),
        "task": run.cfg.dataset.kind,
        "metric": task.metric,
        "test_examples": len(evaluator.rows),
        "smoke": run.cfg.smoke,
        "seed": run.cfg.seed,
        "measure": None
        if run.cfg.measure is None
        else {"mode": run.cfg.measure.mode, **run.cfg.measure.settings},
        "labels": run.data.labels,
        "dataset": _dataset(run, teacher_data),
        "loss": _terms(run.cfg),
        "stages": [time for time in read_stage_times(run.folder) if time["name"] != current_stage],
        "validation_score": validation,
        "models": {name: entry for name, entry in models.items() if name not in assistants},
        "assistants": {name: models[name] for name in assistants},
        "verdict": verdict(task, models, predictions, run.shared and "teacher" in predictions),
    }


def _training(run: Run, lengths: Mapping[str, Length]) -> dict[str, dict[str, Any]]:
    """Return how long the student, the control and a teacher that this run tuned were trained, by their names (of a further seed: student@5)."""
    phases = {STUDENT: [phase.name for phase in run.phases], "control": ["control"], "teacher": ["teacher"]}
    lengths = {
        **lengths,
        "teacher": Length.of(run.cfg.teacher.trainer, len(run.data.gold), run.cfg.dataset.spec),
    }
    lines = read_metrics(run.folder / METRICS)
    result = {}
    for seed, (name, of_model) in itertools.product((None, *run.cfg.all_seeds[1:]), phases.items()):
        stages = [with_seed(phase, seed) for phase in of_model]
        own = [line for line in lines if line["stage"] in stages]
        if not own:
            continue
        judged = next(phase for phase in reversed(of_model) if phase != QUANTIZED)
        curve = validations((line for line in own if line["stage"] == with_seed(judged, seed)), "eval/")
        steps = {line["stage"]: line["step"] for line in own}
        result[with_seed(name, seed)] = {
            "steps": sum(steps.values()),
            "stopped": lengths[judged].stopped(curve),
            "best_step": max(curve, key=lambda each: each.rank).step if curve else None,
            "flat": lengths[judged].is_flat(curve),
        }
        if name == STUDENT and run.cfg.rollout.source == "student":
            result[with_seed(name, seed)]["rollout_buffer"] = run.cfg.rollout.buffer
    return result


def _dataset(run: Run, teacher_data: TeacherData) -> dict[str, Any]:
    """Return the data set in numbers."""
    data = run.data
    return {
        "name": run.names["dataset"],
        "train": len(data["train"]),
        "labelled": len(data.gold),
        "augmented": len(teacher_data.rows) - len(data["train"]) if run.cfg.dataset.augment else 0,
        "validation": len(data["validation"]),
        "test": len(data["test"]),
        "fingerprint": data.fingerprint,
        **({"dropped_completions": dict(teacher_data.dropped)} if teacher_data.dropped else {}),
        **run.task.dataset_summary(run.cfg.dataset, data.dropped),
    }


def _terms(cfg: Config) -> dict[str, dict[str, Any]]:
    """Return the loss terms with their weights and arguments; with stages as stage/term."""
    sets = {f"{name}/": stage.loss or cfg.loss for name, stage in cfg.stages.items()} or {"": cfg.loss}
    return {
        f"{stage}{name}": {"weight": term.weight} | term.arguments
        for stage, terms in sets.items()
        for name, term in terms.items()
    }


def _test_rows_key(run: Run) -> str:
    """Return the config key that gives more test rows."""
    dataset = run.cfg.dataset
    if dataset.eval_limit is not None and len(run.data["test"]) >= dataset.eval_limit:
        return "dataset.eval_limit"
    return "dataset.test" if dataset.test else "dataset.test_size"


def write_results(run: Run, result: dict[str, Any]) -> None:
    """Write the model card, report.html and report.json, and print the table. report.json is written last: a run that has it is finished."""
    result["verdict"] |= outcome(result, _test_rows_key(run))
    result["verdict"]["text"] = verdict_text(result)
    begun = run.initializer.source
    base = begun.name if begun and begun.commit else None
    metadata = card_data(begun.path) if begun else {}
    extra: dict[str, Any] = {
        **run.names,
        "base_model": base,
        "kdcli_version": kdcli.__version__,
        "chat": run.task.chat,
        "hub_dataset": run.cfg.dataset.path if run.data.commit is not None else None,
        "license": run.cfg.hub.license or metadata.get("license"),
        "language": run.cfg.hub.language or metadata.get("language"),
    }
    write_text(run.folder / "student" / "README.md", model_card(result, extra))
    write_html(run.folder, result)
    Report.of(**result).write(run.folder / REPORT)
    final_table(result)
    console.say(f"report:  {run.folder / 'report.html'}")
    console.say(f"student: {run.folder / 'student'}")
