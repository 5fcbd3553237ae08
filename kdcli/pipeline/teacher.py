"""The teacher's part of a run: tuning, augmentation, rollouts and teacher outputs."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import datasets
import torch

from kdcli import console
from kdcli.config.components import build
from kdcli.data.augment import Proposer, augmented, find_proposer
from kdcli.data.splits import SPLITS
from kdcli.evaluation.predict import predictions_from_teacher
from kdcli.files import PARTIAL, cache_dir, digest, write_json
from kdcli.losses.hard_label import HardLabel
from kdcli.model_files import NOTE
from kdcli.models.checkpoint import (
    Checkpoint,
    fast_bf16,
    load_tokenizer,
    seed_everything,
    stage_seed,
    with_new_head,
)
from kdcli.pipeline.cache import (
    advance,
    content_hash,
    exclusive,
    is_saved,
    make_in_parts,
    queried_by,
    write_rows,
)
from kdcli.pipeline.plan import OWN, Run, TeacherData, encode_split, eval_steps, tuning_stage
from kdcli.pipeline.remote import remote_teacher_data
from kdcli.pipeline.rollouts import rollouts
from kdcli.pipeline.validate import is_lenient, require_rows, storing_temperature
from kdcli.rundir import METRICS
from kdcli.tasks.base import Predictions
from kdcli.tasks.seq2seq.task import Seq2Seq
from kdcli.teachers.base import Teacher
from kdcli.teachers.cached import CachedTeacher
from kdcli.teachers.ensemble import Ensemble
from kdcli.training.batches import planned_steps
from kdcli.training.distiller import Distiller
from kdcli.training.job import TrainJob
from kdcli.training.preflight import translates
from kdcli.training.trainer import train

AUGMENTED = 1024
"""Rows of which the copies are written to the disk at once."""


def prepare_teacher_data(run: Run, stages: console.ProgressStages) -> TeacherData:
    """Add text if it shall be added, tune the teacher, let it write if it shall, and fetch its answers."""
    rows = with_copies(run, stages) if run.cfg.dataset.augment else run.data["train"]
    if run.remote is not None and run.teacher_key == OWN:
        return remote_teacher_data(run, stages, run.remote, rows)
    teachers = [tuned_teacher(run, stages, number) for number in range(len(run.sources))]
    ask = functools.cache(lambda: open_teacher(run, teachers))
    if isinstance(run.task, Seq2Seq):
        lenient = is_lenient(run, run.cfg.teacher.trainer)
        translates(ask(), teachers[0], run.task, run.data["validation"], run.cfg.dataset.max_length, lenient)
    rows, left_out = rollouts(run, stages, teachers, ask, rows)
    return TeacherData(teachers, ask, rows, teacher_outputs(run, stages, teachers, ask, rows), left_out)


def with_copies(run: Run, stages: console.ProgressStages) -> datasets.Dataset:
    """The training rows, and copies of those with a gold label in which a masked language model has replaced words.

    The copies are kept in the cache, those of some rows at a time, and stand in the run directory for people to read.
    """
    cfg, gold = run.cfg.dataset, run.data.gold
    assert cfg.augment is not None
    source = find_proposer(cfg.augment, run.cfg.teacher)
    known = {key for split in SPLITS for key in run.data[split]["id"]}
    made_of = (
        source.weights_hash,
        source.tokenizer_hash,
        cfg.augment.model_dump(exclude={"batch_size"}),
        cfg.max_length,
        run.cfg.seed,
    )
    folder = cache_dir("augmented") / digest(made_of, sorted(known), content_hash(gold))[:32]
    proposer = functools.cache(lambda: Proposer(source, cfg.max_length))
    with run.stage(stages, run.named("augment"), len(gold)) as progress, exclusive(run, folder):

        def make(part: datasets.Dataset, before: int) -> list[dict[str, Any]]:
            tell = functools.partial(advance, progress, before)
            return list(augmented(part, proposer(), cfg, run.cfg.seed, known, tell))

        copies = {row["id"]: row for row in make_in_parts(run, progress, folder, gold, AUGMENTED, make)}
    made = [copies[key] for key in sorted(copies)]
    write_rows(run, "augmented", made)
    own = run.data["train"]
    rows = datasets.concatenate_datasets([own, datasets.Dataset.from_list(made, features=own.features)])
    require_rows(run, rows)
    return rows


def tuned_teacher(run: Run, stages: console.ProgressStages, number: int) -> Checkpoint:
    """The teacher, or one of an ensemble, with a head for the task, fine-tuned on the gold labels if it needs to be, and then cached."""
    name, found = tuning_stage(run, number), run.sources[number]
    if run.teacher_key in run.cfg.stages and run.cfg.stages[run.teacher_key].student is not None:
        stages.skip(name, "trained before, as an assistant")
        return found
    if not run.tunes(found):
        stages.skip(name, "used as it is")
        return found
    cfg = run.cfg.teacher.trainer
    gold = run.data.gold
    made_of = {
        "what": "teacher tuned on gold labels",
        "task": run.cfg.dataset.kind,
        "weights": found.weights_hash,
        "tokenizer": found.tokenizer_hash,
        "labels": run.data.labels,
        "train": content_hash(gold),
        "validation": content_hash(run.data["validation"]),
        "max_length": run.cfg.dataset.max_length,
        "chat": run.task.chat,
        "languages": [
            run.cfg.dataset.source_language,
            run.cfg.dataset.target_language,
            run.cfg.dataset.prefix,
        ],
        "trainer": cfg.model_dump(exclude={"logging_steps", "report_to", "micro_batch_size"}),
        "label_smoothing": run.cfg.teacher.label_smoothing,
        "bf16": fast_bf16(cfg.precision),
        "seed": [run.cfg.seed, number] if number else run.cfg.seed,
        "torch": torch.__version__,
    }
    folder = cache_dir("teachers") / digest(made_of)[:32]
    source = Checkpoint(folder, found.name, found.commit, found.code)
    steps = planned_steps(cfg, len(gold))
    seed = stage_seed(run.cfg.seed, f"teacher {number + 1}" if number else "teacher")
    with exclusive(run, folder):
        if is_saved(folder):
            stages.skip(name, "tuned before, from the cache")
            return source
        with run.stage(stages, name, steps) as progress:
            seed_everything(seed)
            model = with_new_head(found, run.task)
            tokenizer = load_tokenizer(found, model)
            gold_loss = HardLabel(run.cfg.teacher.label_smoothing)
            train(
                TrainJob(
                    name=name,
                    folder=folder.with_suffix(PARTIAL),
                    out=folder,
                    distiller=Distiller(model, run.task, {"hard_label": gold_loss}, {"hard_label": 1.0}),
                    tokenizer=tokenizer,
                    train=encode_split(run, gold, tokenizer),
                    validation=encode_split(run, run.data["validation"], tokenizer),
                    cfg=cfg,
                    steps=steps,
                    eval_steps=eval_steps(cfg, len(gold)),
                    seed=seed,
                    progress=progress,
                    max_length=run.cfg.dataset.max_length,
                    saved=functools.partial(run.note, progress),
                    metrics=run.folder / METRICS,
                )
            )
            if run.state.is_main_process:
                write_json(folder / NOTE, made_of)
            run.state.wait_for_everyone()
    return source


def open_teacher(run: Run, sources: Sequence[Checkpoint]) -> Teacher:
    """The teacher, ready to answer."""
    opened = []
    for source in sources:
        teacher: Teacher = build(run.cfg.teacher, Teacher)
        teacher.open(source, run.task, run.cfg.dataset.max_length, run.cfg.teacher.trainer.precision)
        if run.classes is not None:
            teacher.truncate_vocabulary(run.classes)
        opened.append(teacher)
    return Ensemble(opened, storing_temperature(run)) if len(opened) > 1 else opened[0]


def teacher_outputs(
    run: Run,
    stages: console.ProgressStages,
    sources: Sequence[Checkpoint],
    ask: Callable[[], Teacher],
    train: datasets.Dataset,
) -> dict[str, Teacher]:
    """Who answers for each split: the teacher's stored answers, fetched here, or (teacher.cache=false) itself.

    What the student writes while it is trained nobody can have asked about before: then the teacher itself answers for
    the training rows.

    Args:
        train: the rows that the student learns from.

    Returns:
        By split; of train nobody, if no loss term reads it, or only such that read the teacher's inside as well.
    """
    cfg = run.cfg.teacher
    taught = any(step.uses_teacher and not step.uses_features for step in run.taught_phases)
    if not cfg.cache:
        stages.skip(run.named("signals"), "asked for in every step")
        return dict.fromkeys(SPLITS if taught else SPLITS[1:], ask())
    mean = len(sources) > 1
    temperature = storing_temperature(run) if run.task.vocabulary or mean else 1.0
    kept = (cfg.top_k, temperature) if run.task.vocabulary else (temperature,) if mean else ()
    made_by = queried_by(run, sources), kept
    splits = run.data.splits | {"train": train}
    if run.teacher_key != OWN:  # the run is judged by its own teacher
        del splits["test"]
    teachers: dict[str, Teacher] = {}
    if run.cfg.rollout.source == "student":
        teachers["train"] = ask()
    if not taught or run.cfg.rollout.source == "student":
        del splits["train"]
    before = 0
    with run.stage(stages, run.named("signals"), sum(map(len, splits.values()))) as progress:
        for split, rows in splits.items():
            folder = cache_dir("signals") / digest(made_by, content_hash(rows, labels=False))[:32]
            teachers[split] = cached = CachedTeacher(folder, cfg.top_k, temperature)
            with exclusive(run, folder):
                cached.fetch(rows, ask, functools.partial(advance, progress, before), run.state)
            before += len(rows)
    return teachers


def teacher_predictions(run: Run, teacher_data: TeacherData, split: str) -> tuple[Predictions, int]:
    """The teacher's answers on a split, at its own positions, and its number of classes."""
    return predictions_from_teacher(
        teacher_data.outputs[split],
        teacher_data.teacher,
        run.task,
        run.data[split],
        run.cfg.dataset.max_length,
    )
