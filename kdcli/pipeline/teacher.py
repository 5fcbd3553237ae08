"""Runs the teacher's stages: augmentation, tuning, rollouts and teacher outputs."""

from __future__ import annotations

import dataclasses
import functools
import itertools
import logging
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import datasets
import numpy as np

from kdcli.config.components import build
from kdcli.config.rollout import Rollout
from kdcli.data.augment import augmented, find_proposer, load_proposer
from kdcli.data.splits import SPLITS
from kdcli.distributed import wait_for_everyone
from kdcli.errors import TeacherError
from kdcli.evaluation.predict import likelihoods, predictions_from_teacher
from kdcli.files import PARTIAL, write_json
from kdcli.generation import Reply, positions_of
from kdcli.losses.hard_label import HardLabel
from kdcli.model_files import NOTE
from kdcli.models.checkpoint import (
    Checkpoint,
    load_config,
    load_tokenizer,
    seed_everything,
    stage_seed,
    trainable,
    with_new_head,
)
from kdcli.numbers import format_age
from kdcli.pipeline.cache import PART, exclusive, is_saved, make_in_parts, progress_from, write_rows
from kdcli.pipeline.fidelity import teacher_fidelity
from kdcli.pipeline.keys import (
    AugmentedCopies,
    CheckedTexts,
    CompletionScores,
    TeacherOutputs,
    TunedTeacher,
    cache_path,
)
from kdcli.pipeline.placement import stream_outputs
from kdcli.pipeline.plan import OWN, Run, TeacherData, is_online
from kdcli.pipeline.remote import remote_rollouts, remote_teacher_data, scores_shown
from kdcli.pipeline.rollouts import teacher_rollouts
from kdcli.pipeline.sources import with_dtype
from kdcli.pipeline.stages import Stages
from kdcli.pipeline.validate import require_rows, storing_temperature
from kdcli.rundir import METRICS
from kdcli.tasks.base import Predictions
from kdcli.teachers.base import Teacher
from kdcli.teachers.cached import CachedTeacher
from kdcli.teachers.ensemble import Ensemble
from kdcli.teachers.remote.protocol import RemoteTeacher
from kdcli.teachers.remote.scorer import TokenScorer
from kdcli.training.distiller import Distiller
from kdcli.training.job import TrainJob
from kdcli.training.length import Length, eval_steps
from kdcli.training.preflight import check_texts
from kdcli.training.trainer import train

logger = logging.getLogger(__name__)
LEARNING_RATE = 1e-4
"""The learning rate of a teacher that is tuned, if the config has none."""
AUGMENTED = 1024
"""The number of rows whose copies are written to the disk at once."""


def prepare_teacher_data(run: Run, stages: Stages) -> TeacherData:
    """Augment the text, tune the teacher, let it write completions, and store its outputs, each where the config says so."""
    rows = with_copies(run, stages) if run.cfg.dataset.augment else run.data["train"]
    if run.remote is not None and run.teacher_key == OWN:
        if run.scorer is None:
            return remote_teacher_data(run, stages, run.remote, rows)
        return served_teacher_data(run, stages, run.remote, run.scorer, rows)
    teachers = [tuned_teacher(run, stages, member) for member in range(len(run.sources))]
    load_teacher = functools.cache(lambda: open_teacher(run, teachers))
    if run.task.writes and not run.streamed:
        check_teacher_texts(run, teachers, load_teacher)
    rows, dropped = teacher_rollouts(run, stages, teachers, load_teacher, rows)
    outputs = teacher_outputs(run, stages, teachers, load_teacher, rows)
    fidelity = None
    if run.measures_fidelity:
        plain = [dataclasses.replace(source, quantization=None) for source in teachers]
        fidelity = teacher_fidelity(run, stages, teachers, load_teacher, plain, open_teacher)
    if not any(is_online(run, phase) for phase in run.taught_phases):
        load_teacher.cache_clear()  # its memory is free while the student is trained
    return TeacherData(teachers, load_teacher, rows, outputs, dropped, fidelity)


def served_teacher_data(
    run: Run, stages: Stages, remote: RemoteTeacher, scorer: TokenScorer, rows: datasets.Dataset
) -> TeacherData:
    """The texts and the stored outputs of a teacher whose server scores given tokens."""

    def load_teacher() -> Teacher:
        return scorer

    with exclusive(run, scorer.client.ledger.path.with_suffix("")):
        pass  # the ledger is now known to be used by this run
    dropped: Mapping[str, int] = {}
    if run.cfg.rollout.source == "teacher":
        rows, dropped = remote_rollouts(run, stages, remote, rows)
    outputs = teacher_outputs(run, stages, run.sources, load_teacher, rows)
    return TeacherData(run.sources, load_teacher, rows, outputs, dropped)


def check_teacher_texts(
    run: Run, teachers: Sequence[Checkpoint], load_teacher: Callable[[], Teacher]
) -> None:
    """Check some texts of a teacher, and how likely it finds the references. Both are stored in the cache: a later run does not load the
    teacher for them.

    Raises:
        TeacherError: it does not write as it was trained.
    """
    positions = positions_of(load_config(teachers[0]))
    most = min(run.task.checked_tokens, positions // 2 if positions else run.task.checked_tokens)
    greedy = Rollout(sampling_temperature=0.0, max_new_tokens=max(1, most))

    def write(part: datasets.Dataset, _: int) -> list[Reply]:
        teacher = load_teacher()
        return teacher.replies(list(part), greedy, 0) if teacher.can_write else []

    def score(part: datasets.Dataset, _: int) -> list[float]:
        scores = likelihoods(load_teacher(), teachers[0], run.task, part, run.max_length)
        if not np.isfinite(scores).all():
            raise TeacherError(
                f"{teachers[0].name}: the log-probabilities that it gives the completions of the data are not finite: its config.json is not that of its "
                "weights, or its numbers overflow; put the model's own config.json beside the weights, or use another checkpoint"
            )
        return scores

    def generate(rows: datasets.Dataset) -> list[Reply]:
        folder = cache_path(CheckedTexts.of(run, teachers, greedy))
        with exclusive(run, folder):
            return list(itertools.starmap(Reply, make_in_parts(run, folder, rows, PART, write)))

    def log_prob(rows: datasets.Dataset) -> float:
        folder = cache_path(CompletionScores.of(run, teachers))
        with exclusive(run, folder):
            return float(np.mean(make_in_parts(run, folder, rows, PART, score)))

    lenient = run.is_lenient(run.cfg.teacher.trainer)
    check_texts(run.task, run.data["validation"], generate, log_prob, lenient)


def with_copies(run: Run, stages: Stages) -> datasets.Dataset:
    """Return the training rows, and copies of those with a gold label in which words are replaced.

    The copies are stored in the cache part by part, and written into the run directory for people to read.
    """
    cfg, gold = run.cfg.dataset, run.data.gold
    augment = cfg.augment
    assert augment is not None
    source = find_proposer(augment, run.cfg.teacher)
    key = AugmentedCopies.of(run, source, augment)
    folder, excluded = cache_path(key), set(key.known)
    proposer = functools.cache(lambda: load_proposer(source, run.task, augment, cfg.max_length))
    with stages.stage(run.stage_name("augment"), len(gold), "rows") as progress, exclusive(run, folder):

        def make(part: datasets.Dataset, before: int) -> list[dict[str, Any]]:
            update = progress_from(progress, before)
            return list(augmented(part, proposer(), cfg, run.cfg.seed, excluded, update))

        made = make_in_parts(run, folder, gold, AUGMENTED, make, progress_from(progress, 0))
    copies = {row["id"]: row for row in made}  # a later part may have made the same copy
    distinct = [copies[row_id] for row_id in sorted(copies)]
    write_rows(run, "augmented", distinct)
    train = run.data["train"]
    rows = datasets.concatenate_datasets(
        [train, datasets.Dataset.from_list(distinct, features=train.features)]
    )
    require_rows(run, rows)
    return rows


def tuned_teacher(run: Run, stages: Stages, member: int) -> Checkpoint:
    """Return the teacher, or a member of an ensemble, with a head for the task: fine-tuned on the gold labels where it has none, and stored in the
    cache."""
    name, source = run.tuning_stage(member), run.sources[member]
    if run.teacher_key in run.cfg.stages and run.cfg.stages[run.teacher_key].student is not None:
        stages.skip(name, "trained before, as an assistant")
        return source
    if not run.tunes(source):
        stages.skip(name, "used as it is")
        return source
    key = TunedTeacher.of(run, member)
    folder = cache_path(key)
    with exclusive(run, folder):
        if is_saved(folder):
            stages.skip(name, "tuned before, from the cache")
        else:
            _tune(run, stages, member, folder)
        if run.state.is_main_process and not (folder / NOTE).exists():  # also after a kill between the two
            write_json(folder / NOTE, dataclasses.asdict(key))
        wait_for_everyone(run.state)
    return with_dtype(run.cfg, Checkpoint(folder, source.name, source.commit, source.code))


def _tune(run: Run, stages: Stages, member: int, folder: Path) -> None:
    cfg, gold, validation = run.cfg.teacher.trainer, run.data.gold, run.data["validation"]
    name, source = run.tuning_stage(member), run.sources[member]
    length = Length.of(cfg, len(gold), run.cfg.dataset.spec)
    seed = stage_seed(run.cfg.seed, f"teacher {member + 1}" if member else "teacher")
    with stages.stage(name, length.bound, "steps") as progress:
        seed_everything(seed)
        model = with_new_head(trainable(source), run.task)
        tokenizer = load_tokenizer(source, model)
        loss = HardLabel(run.cfg.teacher.label_smoothing)
        train(
            TrainJob(
                name=name,
                folder=folder.with_suffix(PARTIAL),
                out=folder,
                distiller=Distiller(model, run.task, {"hard_label": loss}, {"hard_label": 1.0}),
                tokenizer=tokenizer,
                train=run.split(tokenizer, gold),
                validation=run.split(tokenizer, validation),
                cfg=cfg,
                length=length,
                learning_rate=cfg.learning_rate or LEARNING_RATE,
                embedding_learning_rate_factor=1.0
                if cfg.embedding_learning_rate_factor is None
                else cfg.embedding_learning_rate_factor,
                token_dropout=cfg.token_dropout or 0.0,
                eval_steps=eval_steps(cfg, len(gold)),
                seed=seed,
                progress=progress,
                max_length=run.max_length,
                saved=functools.partial(stages.record, progress),
                metrics=run.folder / METRICS,
            )
        )


def open_teacher(run: Run, sources: Sequence[Checkpoint]) -> Teacher:
    """Load the teacher: one model, or an ensemble."""
    members = []
    for source in sources:
        member: Teacher = build(run.cfg.teacher, Teacher)
        member.open(source, run.task, run.max_length, run.cfg.teacher.trainer.precision)
        if run.classes is not None:
            member.truncate_vocabulary(run.classes)
        members.append(member)
    return Ensemble(members, storing_temperature(run)) if len(members) > 1 else members[0]


def teacher_outputs(
    run: Run,
    stages: Stages,
    teachers: Sequence[Checkpoint],
    load_teacher: Callable[[], Teacher],
    train_rows: datasets.Dataset,
) -> dict[str, Teacher]:
    """Return the teacher of each split: its stored outputs, which are computed here if the cache lacks them; or (teacher.cache=false) the model
    itself.

    On-policy completions are written during training, so their outputs cannot be stored: the model itself answers for the training rows.

    Args:
        train_rows: the rows that the student is trained on.

    Returns:
        By split. The training split has none if no loss term reads the outputs, or if all that do also read features.
    """
    cfg = run.cfg.teacher
    reads_outputs = any(phase.uses_teacher and not phase.uses_features for phase in run.taught_phases)
    stage = run.stage_name("teacher outputs")
    if not cfg.cache:
        stages.skip(stage, "computed in every step")
        return dict.fromkeys(SPLITS if reads_outputs else SPLITS[1:], load_teacher())
    splits = run.data.splits | {"train": train_rows}
    on_policy = run.cfg.rollout.source == "student"
    if run.teacher_key != OWN:  # the run is evaluated against its own teacher
        del splits["test"]
    if on_policy or not reads_outputs:
        del splits["train"]
    stored = run.task.vocabulary or len(teachers) > 1
    temperature = storing_temperature(run) if stored else 1.0
    outputs: dict[str, Teacher] = {"train": load_teacher()} if on_policy else {}
    done = 0
    folders = {
        split: cache_path(TeacherOutputs.of(run, teachers, rows, temperature))
        for split, rows in splits.items()
    }
    stores = {
        split: CachedTeacher(folder, cfg.top_k, temperature, run.fresh_since)
        for split, folder in folders.items()
    }
    total = sum(map(len, splits.values()))
    with stages.stage(stage, total, "rows") as progress, scores_shown(run, progress):
        if run.streamed:
            stream_outputs(
                run, teachers[0], {split: (stores[split], splits[split]) for split in splits}, progress
            )
            progress.update(0, total=total)
        for split, rows in splits.items():
            with exclusive(run, folders[split]):
                stores[split].fetch(rows, load_teacher, progress_from(progress, done), run.state)
            done += len(rows)
    reused = sum(store.reused for store in stores.values())
    if reused and run.state.is_main_process:
        age = format_age(time.time() - min(store.oldest for store in stores.values()))
        logger.info(
            "%s: the outputs of %d of %d rows were stored before (the oldest: %s); teacher.fresh=true computes them again",
            stage, reused, total, age,
        )  # fmt: skip
    outputs |= stores
    return outputs


def teacher_predictions(run: Run, teacher_data: TeacherData, split: str) -> tuple[Predictions, int]:
    """Return the teacher's predictions on a split, at its own positions, and its number of classes."""
    outputs, teacher = teacher_data.outputs[split], teacher_data.teacher
    return predictions_from_teacher(outputs, teacher, run.task, run.data[split], run.max_length)
