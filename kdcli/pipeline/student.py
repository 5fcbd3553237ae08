"""Trains the student, its assistants and the control."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import datasets
import numpy as np
import torch
from transformers import PreTrainedTokenizerBase

from kdcli.distributed import wait_for_everyone
from kdcli.errors import DataError, ModelError
from kdcli.files import replaced
from kdcli.losses.hard_label import HardLabel
from kdcli.model_files import write_sums
from kdcli.models.checkpoint import (
    Checkpoint,
    fast_bf16,
    has_head,
    load_config,
    load_model,
    load_tokenizer,
    parameters,
    seed_everything,
    stage_seed,
    with_new_head,
)
from kdcli.models.dtypes import TORCH
from kdcli.models.vocabulary import save_tokenizer
from kdcli.pipeline.cache import is_saved
from kdcli.pipeline.calibration import calibrate_trained
from kdcli.pipeline.plan import (
    INITIALIZATION,
    QUANTIZED,
    STUDENT,
    Phase,
    Run,
    TeacherData,
    quantization_trainer,
    seed_name,
)
from kdcli.pipeline.stages import Stages
from kdcli.pipeline.teacher import teacher_predictions
from kdcli.pipeline.validate import require_smaller, truncation
from kdcli.rundir import METRICS, UNQUANTIZED
from kdcli.tasks.rows import MANY
from kdcli.teachers.aligned import AlignedTeacher
from kdcli.teachers.base import Teacher
from kdcli.training.distiller import Distiller
from kdcli.training.job import TrainJob
from kdcli.training.length import Length, eval_steps
from kdcli.training.preflight import preflight
from kdcli.training.trainer import train

PREFLIGHT_ROWS = 1000
"""The number of training rows from which the pre-flight takes its batch."""


@dataclass(frozen=True)
class Trainee:
    """A model that has been trained in some phases.

    Attributes:
        checkpoint: its checkpoint after the last of them.
        lengths: the length of each phase, by its name.
    """

    checkpoint: Checkpoint
    lengths: Mapping[str, Length]


def train_trainee(run: Run, stages: Stages, teacher_data: TeacherData, before: Trainee | None) -> Trainee:
    """Train a part's model in all phases of the part.

    Args:
        before: the model after the phases of earlier parts; None: there are none, and it is initialised first.
    """
    checkpoint = initialize_student(run, teacher_data) if before is None else before.checkpoint
    outputs = _student_outputs(run, teacher_data, checkpoint)
    _require_max_length(run, checkpoint)
    _require_same_tokens(run, teacher_data, checkpoint)
    if run.further_seed is None:  # no finding depends on the seed
        _preflight_phases(run, teacher_data, checkpoint, outputs, untrained=before is None)
    lengths = dict(before.lengths if before is not None else {})
    for index, phase in enumerate(run.phases):
        rows = phase.select(teacher_data.rows)
        lengths[phase.name] = Length.of(phase.trainer, len(rows), run.cfg.dataset.spec)
        job = PhaseJob(
            phase,
            checkpoint,
            _output_folder(run, index),
            rows,
            lengths[phase.name],
            teacher_data.teacher,
            _training_teacher(phase, teacher_data, outputs),
            outputs.get("validation"),
            calibrated=phase.last and phase.trainee == STUDENT,
        )
        _train(run, stages, job)
        checkpoint = dataclasses.replace(checkpoint, path=job.out)
    return Trainee(checkpoint, lengths)


def _output_folder(run: Run, index: int) -> Path:
    """Return where the model is saved after a phase. The student before its quantization-aware phase is kept: it shows what the phase is worth."""
    phase, following = run.phases[index], run.phases[index + 1 : index + 2]
    if following and following[0].quantization:
        return run.models_folder / UNQUANTIZED
    return run.model_folder if phase.last else run.folder / "stages" / "after" / run.seeded_name(phase.name)


def initial_folder(run: Run, trainee: str) -> Path:
    """Return where an untrained model is saved."""
    return run.folder / "stages" / "initialized" / run.seeded_name(trainee)


def initialize_student(run: Run, teacher_data: TeacherData) -> Checkpoint:
    """Return the untrained student, the same one for student and control, saved as a directory."""
    folder = initial_folder(run, run.trainee)
    if run.state.is_main_process and not is_saved(folder):
        seed_everything(stage_seed(run.cfg.seed, INITIALIZATION))
        model, tokenizer = run.initializer.initialize(run.task, teacher_data.teacher, teacher_data.rows)
        require_smaller(run, parameters(model))
        with replaced(folder) as temporary:
            torch.nn.Module.to(model, TORCH[run.cfg.student.dtype])
            model.save_pretrained(temporary)
            save_tokenizer(tokenizer, temporary)
            write_sums(temporary)
    wait_for_everyone(run.state)
    cfg = run.cfg.student
    base = run.initializer.quantization_base
    return Checkpoint(
        folder, f"the {run.trainee}", code=cfg.trust_remote_code, dtype=cfg.dtype, quantization=base
    )


def _student_outputs(run: Run, teacher_data: TeacherData, student: Checkpoint) -> Mapping[str, Teacher]:
    """Return the teacher of each split at the student's positions. A translation model with another tokenizer has none: it learns from texts alone."""
    if not teacher_data.outputs or run.shared:
        return teacher_data.outputs
    if not run.task.aligns:
        return {}
    tokenizers = load_tokenizer(teacher_data.teacher), load_tokenizer(student)
    return {
        split: AlignedTeacher(teacher, run.task, *tokenizers, run.max_length)
        for split, teacher in teacher_data.outputs.items()
    }


def _require_max_length(run: Run, student: Checkpoint) -> None:
    """Check that the student's tokenizer splits no row into more than dataset.max_length tokens. One with a trimmed vocabulary spells words,
    and the teacher has outputs for each of them.

    Raises:
        DataError
    """
    if not run.task.fits_rows:
        return
    tokenizer = load_tokenizer(student)
    if tokenizer.get_vocab() == load_tokenizer(run.initializer.source or run.sources[0]).get_vocab():
        return  # the rows were prepared for it
    for split, rows in run.data.splits.items():
        try:
            run.encode(tokenizer, rows)
        except DataError as error:
            raise DataError(
                f"{split}: {error.message}. A student whose vocabulary was trimmed spells the words that its tokens lack; keep more "
                "of them (a smaller min_count or a larger max_tokens of its vocabulary), or all (student=tiny, layers, pruned)"
            ) from None


def _require_same_tokens(run: Run, teacher_data: TeacherData, student: Checkpoint) -> None:
    """Check that teacher and student split every row into the same tokens, if a loss compares features token by token.

    Raises:
        ModelError: they do not.
    """
    if not any(phase.uses_features for phase in run.phases):
        return
    tokenizers = load_tokenizer(teacher_data.teacher), load_tokenizer(student)
    of_teacher, of_student = (run.encode(tokenizer, teacher_data.rows) for tokenizer in tokenizers)
    tokens = [
        tokenizer.convert_ids_to_tokens(encoded.columns["input_ids"].tolist())
        for tokenizer, encoded in zip(tokenizers, (of_teacher, of_student), strict=True)
    ]
    if not np.array_equal(of_teacher.offsets, of_student.offsets) or tokens[0] != tokens[1]:
        raise ModelError(
            "the student and the teacher cut the training rows into different tokens, so their features cannot be compared "
            "token by token; use a student over the teacher's vocabulary (student=layers, student=tiny …), or leave out the loss "
            "terms that read features (hidden states, attention, relations)"
        )


def _preflight_phases(
    run: Run,
    teacher_data: TeacherData,
    student: Checkpoint,
    outputs: Mapping[str, Teacher],
    untrained: bool,
) -> None:
    """Run the pre-flight with the losses of each phase; the teacher itself is checked once."""
    comparable = untrained and run.shared and not run.initializer.inherits_teacher
    for phase in run.phases:
        predictions, classes, validation = None, 0, None
        distiller, tokenizer = _distiller(run, student, phase, teacher_data.teacher)
        rows = phase.select(teacher_data.rows)
        if len(rows) > PREFLIGHT_ROWS:
            rows = rows.select(range(PREFLIGHT_ROWS))
        if phase is run.phases[0]:
            if teacher_data.outputs:
                predictions, classes = teacher_predictions(run, teacher_data, "validation")
            validation = run.split(tokenizer, run.data["validation"]) if comparable else None
        preflight(
            distiller,
            tokenizer,
            predictions,
            classes,
            _training_teacher(phase, teacher_data, outputs),
            run.split(tokenizer, rows),
            validation,
            bf16=fast_bf16(phase.trainer.precision),
            lenient=run.is_lenient(phase.trainer),
            remedy=_remedy(run, teacher_data) if run.remote is None else run.remote.remedy,
        )


def _remedy(run: Run, teacher_data: TeacherData) -> str:
    """Return what improves a teacher that is not good enough; empty: it can be tuned."""
    share, message = truncation(run, load_tokenizer(teacher_data.teacher), "validation")
    return message if share > MANY else ""


def _training_teacher(
    phase: Phase, teacher_data: TeacherData, outputs: Mapping[str, Teacher]
) -> Teacher | None:
    """Return the teacher of a phase's training rows: the model itself if a term reads features, which are not stored."""
    if phase.uses_features:
        return teacher_data.load_teacher()
    return outputs.get("train") if phase.uses_teacher else None


def train_control(run: Run, stages: Stages, student_lengths: Mapping[str, Length]) -> Length:
    """Train the same student on the gold labels alone: the same initialisation, seed and maximum of steps. Rows without a gold label are
    dropped. Where a phase of the student follows its validation curve, the control follows its own.

    Args:
        student_lengths: of the student's phases, by their names. The control has a quantization-aware phase if the student has one.

    Returns:
        The length before that phase.
    """
    losses = run.phases[-1].losses.values()
    hard_label = next((loss for loss in losses if isinstance(loss, HardLabel)), HardLabel())
    lengths = dict(student_lengths)
    quantized = lengths.pop(QUANTIZED, None)
    bound = sum(length.bound for length in lengths.values())
    is_fixed = all(length.fixed for length in lengths.values())
    cfg = run.cfg.trainer.model_copy(update={"until": "steps" if is_fixed else "converged"})
    length = Length.of(cfg, len(run.data.gold), run.cfg.dataset.spec, bound)
    out = run.models_folder / "control"
    before = run.folder / "stages" / "after" / run.seeded_name("control")
    own, base = run.cfg.student, run.initializer.quantization_base
    folder = initial_folder(run, STUDENT)
    initial = Checkpoint(
        folder, "the control", code=own.trust_remote_code, dtype=own.dtype, quantization=base
    )
    phase = Phase("control", {"hard_label": hard_label}, {"hard_label": 1.0}, cfg)
    gold, teacher = run.data.gold, run.sources[0]
    job = PhaseJob(
        phase,
        initial,
        out if quantized is None else before,
        gold,
        length,
        teacher,
        calibrated=quantized is None,
    )
    _train(run, stages, job)
    if quantized is not None:
        trainer = quantization_trainer(run.cfg, run.cfg.trainer)
        rounding = dataclasses.replace(
            phase, name="control/quantized", trainer=trainer, quantization=run.quantization
        )
        trained = dataclasses.replace(initial, path=before)
        _train(run, stages, PhaseJob(rounding, trained, out, gold, quantized, teacher, calibrated=True))
    return length


@dataclass(frozen=True)
class PhaseJob:
    """The arguments of training a model in one phase.

    Attributes:
        checkpoint: the model before the phase.
        out: the folder in which it is saved after the phase.
        rows: the training rows.
        length: the number of optimizer steps.
        teacher_checkpoint: the teacher's, whose config the losses read.
        teacher, validation_teacher: the teacher of the training and of the validation rows; None: no loss reads it.
        calibrated: whether a temperature is fitted after the phase, if the task and the config allow it.
    """

    phase: Phase
    checkpoint: Checkpoint
    out: Path
    rows: datasets.Dataset
    length: Length
    teacher_checkpoint: Checkpoint
    teacher: Teacher | None = None
    validation_teacher: Teacher | None = None
    calibrated: bool = False


def _train(run: Run, stages: Stages, job: PhaseJob) -> None:
    """Train a model in one phase, unless it was trained before."""
    phase, name = job.phase, run.seeded_name(job.phase.name)
    if is_saved(job.out):
        stages.skip(name, "trained before")
        return
    on_policy = phase.uses_teacher and run.cfg.rollout.source == "student"
    calibrated = job.calibrated and run.cfg.student.calibrate and run.task.calibrates
    with stages.stage(name, job.length.bound, "steps") as progress:
        distiller, tokenizer = _distiller(run, job.checkpoint, phase, job.teacher_checkpoint)
        seed = stage_seed(run.cfg.seed, seed_name(phase.name))
        seed_everything(seed)
        train(
            TrainJob(
                name=name,
                folder=run.folder / "stages" / name,
                out=job.out,
                distiller=distiller,
                tokenizer=tokenizer,
                train=run.split(tokenizer, job.rows),
                validation=run.split(tokenizer, run.data["validation"]),
                cfg=phase.trainer,
                length=job.length,
                learning_rate=phase.trainer.learning_rate or run.initializer.learning_rate,
                eval_steps=eval_steps(phase.trainer, len(job.rows)),
                seed=seed,
                progress=progress,
                max_length=run.max_length,
                saved=functools.partial(stages.record, progress),
                teacher=job.teacher,
                embedding_learning_rate_factor=_embedding_learning_rate_factor(run, phase),
                token_dropout=_token_dropout(run, phase),
                rollout=run.cfg.rollout if on_policy else None,
                validation_teacher=job.validation_teacher if phase.uses_teacher else None,
                metrics=run.folder / METRICS,
                finish=(phase.quantization or run.initializer).merge_and_unload,
                calibrate=functools.partial(calibrate_trained, run, tokenizer, job.out)
                if calibrated
                else lambda model: None,
            )
        )
        wait_for_everyone(run.state)


def _embedding_learning_rate_factor(run: Run, phase: Phase) -> float:
    if phase.trainer.embedding_learning_rate_factor is not None:
        return phase.trainer.embedding_learning_rate_factor
    return run.initializer.embedding_learning_rate_factor if _is_regularized(run) else 1.0


def _token_dropout(run: Run, phase: Phase) -> float:
    if phase.trainer.token_dropout is not None:
        return phase.trainer.token_dropout
    return run.initializer.token_dropout if _is_regularized(run) else 0.0


def _is_regularized(run: Run) -> bool:
    """Return whether student and control are regularized where the config does not say it. A student with stages has a recipe of its own, and
    features are compared token by token."""
    phases = [phase for phase in run.phases if phase.quantization is None]
    return run.task.regularized and len(phases) == 1 and not phases[0].uses_features


def _distiller(
    run: Run, student: Checkpoint, phase: Phase, teacher: Checkpoint
) -> tuple[Distiller, PreTrainedTokenizerBase]:
    """Return the model of a checkpoint with the losses of a phase, and its tokenizer."""
    # the name is part of the seed
    seed_everything(stage_seed(run.cfg.seed, f"{seed_name(phase.name)}: what is new"))
    # an earlier stage may have trained it on another task
    model = (
        load_model(student, run.task)[0] if has_head(student, run.task) else with_new_head(student, run.task)
    )
    if run.cfg.student.attn_implementation is not None:
        model.set_attn_implementation(run.cfg.student.attn_implementation)
    (phase.quantization or run.initializer).prepare_for_training(model)
    for loss in phase.losses.values():
        loss.attach(model.config, load_config(teacher))
    distiller = Distiller(model, run.task, phase.losses, phase.weights)
    return distiller, load_tokenizer(student, model, run.max_length)
