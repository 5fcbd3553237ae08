"""The training of the student, its assistants and the control."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import numpy as np

from kdcli import console
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
    seed_everything,
    stage_seed,
    with_new_head,
)
from kdcli.pipeline.cache import is_saved
from kdcli.pipeline.plan import (
    QUANTIZED,
    STUDENT,
    Phase,
    Run,
    TeacherData,
    encode_split,
    eval_steps,
    quantization_trainer,
    seed_name,
)
from kdcli.pipeline.remote import BETTER
from kdcli.pipeline.teacher import teacher_predictions
from kdcli.pipeline.validate import is_lenient
from kdcli.rundir import METRICS, UNQUANTIZED
from kdcli.tasks.causal_lm.task import CausalLM
from kdcli.tasks.token_classification.task import TokenClassification
from kdcli.teachers.aligned import AlignedTeacher
from kdcli.teachers.base import Teacher
from kdcli.training.batches import planned_steps
from kdcli.training.distiller import Distiller
from kdcli.training.job import TrainJob
from kdcli.training.preflight import preflight
from kdcli.training.trainer import train


def initialize_student(run: Run, teacher_data: TeacherData) -> Checkpoint:
    """The untrained student, the same for student and control, as a directory."""
    folder = run.folder / "stages" / "born" / run.trainee
    if run.state.is_main_process and not is_saved(folder):
        seed_everything(stage_seed(run.cfg.seed, "birth"))
        model, tokenizer = run.initializer.initialize(run.task, teacher_data.teacher, teacher_data.rows)
        with replaced(folder) as temporary:
            model.save_pretrained(temporary)
            tokenizer.save_pretrained(temporary)
            write_sums(temporary)
    run.state.wait_for_everyone()
    return Checkpoint(folder, f"the {run.trainee}", code=run.cfg.student.trust_remote_code)


def train_trainee(
    run: Run, stages: console.ProgressStages, teacher_data: TeacherData, born: Checkpoint, fresh: bool
) -> tuple[Checkpoint, dict[str, int]]:
    """A model trained in the steps of a part, and how many optimizer steps each was.

    Args:
        born: the model as it is before.
        fresh: it has learnt nothing yet.
    """
    all_teacher_data = teacher_data.outputs
    if all_teacher_data and not run.shared:  # a translator learns from the texts alone
        all_teacher_data = (
            aligned(run, teacher_data.teacher, born, all_teacher_data)
            if isinstance(run.task, CausalLM)
            else {}
        )
    require_fit(run, born)
    require_same_pieces(run, teacher_data.teacher, born, teacher_data.rows)
    run_preflight(run, teacher_data, born, all_teacher_data, fresh)
    return train_phases(run, stages, teacher_data, born, all_teacher_data)


def aligned(
    run: Run, teacher: Checkpoint, born: Checkpoint, signals: dict[str, Teacher]
) -> dict[str, Teacher]:
    """The teacher at the student's positions, where their tokens are not the same."""
    assert isinstance(run.task, CausalLM)
    theirs, ours = load_tokenizer(teacher), load_tokenizer(born)
    max_length = run.cfg.dataset.max_length
    return {
        split: AlignedTeacher(inner, run.task, theirs, ours, max_length) for split, inner in signals.items()
    }


def require_fit(run: Run, born: Checkpoint) -> None:
    """The born student's tokenizer cuts no row into more tokens than a row may have: one that was trimmed spells words, and the
    teacher answers for each of them.

    Raises:
        DataError
    """
    if not isinstance(run.task, TokenClassification):
        return
    tokenizer = load_tokenizer(born)
    if tokenizer.get_vocab() == load_tokenizer(run.initializer.source or run.sources[0]).get_vocab():
        return  # the rows were cut for it
    for name, rows in run.data.splits.items():
        try:
            run.task.encode(tokenizer, rows, run.cfg.dataset.max_length)
        except DataError as error:
            raise DataError(
                f"{name}: {error.message}. A student whose vocabulary was trimmed spells the words that its tokens lack: it can also keep more "
                "of them (a smaller min_count or a larger max_tokens of its vocabulary), or all (student=tiny, layers, pruned)"
            ) from None


def require_same_pieces(run: Run, teacher: Checkpoint, born: Checkpoint, rows: datasets.Dataset) -> None:
    """Where a loss compares the models' inside token by token, both must cut every row into the same tokens.

    Raises:
        ModelError: they do not.
    """
    if not any(step.uses_features for step in run.phases):
        return
    tokenizers = load_tokenizer(teacher), load_tokenizer(born)
    theirs, ours = (run.task.encode(each, rows, run.cfg.dataset.max_length) for each in tokenizers)
    pieces = [
        each.convert_ids_to_tokens(encoded.columns["input_ids"].tolist())
        for each, encoded in zip(tokenizers, (theirs, ours), strict=True)
    ]
    if not np.array_equal(theirs.offsets, ours.offsets) or pieces[0] != pieces[1]:
        raise ModelError(
            "the student and the teacher cut the training rows into different tokens, so what goes on inside them cannot be compared "
            "token by token; use a student over the teacher's vocabulary (student=layers, student=tiny …), or leave out the loss "
            "terms that read the inside (hidden states, attention, relations)"
        )


def run_preflight(
    run: Run, teacher_data: TeacherData, born: Checkpoint, all_teacher_data: dict[str, Teacher], fresh: bool
) -> None:
    """The pre-flight, with the losses of every step."""
    validation = run.data["validation"]
    said, classes = (
        teacher_predictions(run, teacher_data, "validation") if teacher_data.outputs else (None, 0)
    )
    for step in run.phases:
        distiller, tokenizer = _distiller(run, born, step, teacher_data.teacher)
        chosen = step.select(teacher_data.rows)
        first = step is run.phases[0]
        comparable = first and fresh and run.shared and not run.initializer.inherits_teacher
        preflight(
            distiller,
            tokenizer,
            said if first else None,
            classes,
            _teacher_of_phase(step, all_teacher_data, teacher_data.load_teacher),
            encode_split(run, chosen.select(range(min(1000, len(chosen)))), tokenizer),
            encode_split(run, validation, tokenizer) if comparable else None,
            bf16=fast_bf16(step.trainer.precision),
            lenient=is_lenient(run, step.trainer),
            remedy="" if run.remote is None else BETTER,
        )


def _teacher_of_phase(
    step: Phase, all_teacher_data: dict[str, Teacher], ask: Callable[[], Teacher]
) -> Teacher | None:
    """Who answers for the training rows of a step: what is stored says nothing of the inside."""
    if step.uses_features:
        return ask()
    return all_teacher_data.get("train") if step.uses_teacher else None


def train_phases(
    run: Run,
    stages: console.ProgressStages,
    teacher_data: TeacherData,
    born: Checkpoint,
    all_teacher_data: dict[str, Teacher],
) -> tuple[Checkpoint, dict[str, int]]:
    """A model, taught by the teacher, step after step, and the number of optimizer steps of each."""
    taken: dict[str, int] = {}
    for number, step in enumerate(run.phases, start=1):
        chosen = step.select(teacher_data.rows)
        steps = planned_steps(step.trainer, len(chosen))
        out = run.out if step.last else run.folder / "stages" / "after" / step.name
        if number < len(run.phases) and run.phases[number].quantization:
            out = run.folder / UNQUANTIZED  # it is kept: what the last step is worth is told by it
        _train(
            run,
            stages,
            step,
            born,
            out,
            chosen,
            steps,
            teacher_data.teacher,
            _teacher_of_phase(step, all_teacher_data, teacher_data.load_teacher),
            all_teacher_data.get("validation"),
        )
        born = Checkpoint(out, born.name, code=born.code)
        taken[step.name] = steps
    return born, taken


def train_control(run: Run, stages: console.ProgressStages, steps: dict[str, int]) -> None:
    """The same student with the gold labels alone: the same birth, seed and steps; rows without gold are left out.

    Args:
        steps: the student's optimizer steps, by the names of its steps; those with rounded weights the control takes so too.
    """
    own = next((loss for loss in run.phases[-1].losses.values() if isinstance(loss, HardLabel)), HardLabel())
    step = Phase("control", {"hard_label": own}, {"hard_label": 1.0}, run.cfg.trainer)
    out, source = run.folder / "control", run.sources[0]
    last = steps.pop(QUANTIZED, 0)
    before = run.folder / "stages" / "after" / "control" if last else out
    born = Checkpoint(
        run.folder / "stages" / "born" / STUDENT, "the control", code=run.cfg.student.trust_remote_code
    )
    _train(run, stages, step, born, before, run.data.gold, sum(steps.values()), source)
    if last:
        trainer = quantization_trainer(run.cfg, run.cfg.trainer)
        step = dataclasses.replace(
            step, name="control/quantized", trainer=trainer, quantization=run.quantized
        )
        born = Checkpoint(before, born.name, code=born.code)
        _train(run, stages, step, born, out, run.data.gold, last, source)


def _train(
    run: Run,
    stages: console.ProgressStages,
    step: Phase,
    born: Checkpoint,
    out: Path,
    rows: datasets.Dataset,
    steps: int,
    source: Checkpoint,
    teacher: Teacher | None = None,
    validation_teacher: Teacher | None = None,
) -> None:
    if is_saved(out):
        stages.skip(step.name, "trained before")
        return
    with run.stage(stages, step.name, steps) as progress:
        distiller, tokenizer = _distiller(run, born, step, source)
        seed = stage_seed(run.cfg.seed, seed_name(step.name))
        seed_everything(seed)
        train(
            TrainJob(
                name=step.name,
                folder=run.folder / "stages" / step.name,
                out=out,
                distiller=distiller,
                tokenizer=tokenizer,
                train=encode_split(run, rows, tokenizer),
                validation=encode_split(run, run.data["validation"], tokenizer),
                cfg=step.trainer,
                steps=steps,
                eval_steps=eval_steps(step.trainer, len(rows)),
                seed=seed,
                progress=progress,
                max_length=run.cfg.dataset.max_length,
                saved=functools.partial(run.note, progress),
                teacher=teacher,
                rollout=run.cfg.rollout
                if step.uses_teacher and run.cfg.rollout.source == "student"
                else None,
                validation_teacher=validation_teacher if step.uses_teacher else None,
                metrics=run.folder / METRICS,
                finish=(step.quantization or run.initializer).merge_and_unload,
            )
        )
        run.state.wait_for_everyone()


def _distiller(run: Run, born: Checkpoint, step: Phase, teacher: Checkpoint) -> tuple[Distiller, Any]:
    seed_everything(stage_seed(run.cfg.seed, f"{seed_name(step.name)}: what is new"))
    # a stage before may have been of another task
    model = load_model(born, run.task)[0] if has_head(born, run.task) else with_new_head(born, run.task)
    (step.quantization or run.initializer).prepare_for_training(model)
    for loss in step.losses.values():
        loss.attach(model.config, load_config(teacher))
    return Distiller(model, run.task, step.losses, step.weights), load_tokenizer(
        born, model, run.cfg.dataset.max_length
    )
