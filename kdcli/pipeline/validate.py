"""Everything that can be checked before anything is trained."""

from __future__ import annotations

import dataclasses
import itertools
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import torch
from accelerate import PartialState
from accelerate.utils import broadcast_object_list
from transformers import PreTrainedTokenizerBase

from kdcli.config.components import build, locate
from kdcli.config.schema import Distill as Config
from kdcli.config.schema import Trainer as TrainerConfig
from kdcli.data.augment import find_proposer
from kdcli.data.dataset import Data, load, require_batch
from kdcli.data.filters import own_function
from kdcli.environment import environment
from kdcli.errors import ConfigError, DataError, ModelError, TeacherError
from kdcli.evaluation.predict import prepared, require_device
from kdcli.exporting.targets.base import Target, require_task
from kdcli.files import read_json, write_json
from kdcli.generation import max_prompt_tokens, require_room
from kdcli.models.checkpoint import (
    Checkpoint,
    fast_bf16,
    find,
    has_head,
    label_order,
    load_config,
    load_tokenizer,
    require_loadable,
    same_vocabulary,
    shared_token_count,
    stage_seed,
)
from kdcli.pipeline.plan import (
    OWN,
    STUDENT,
    Phase,
    Run,
    assistant_checkpoint,
    build_initializer,
    config_of_part,
    plan_phases,
)
from kdcli.pipeline.sources import new_teacher, remote_student_source
from kdcli.rundir import METRICS, rewrite_metrics
from kdcli.students.base import StudentInitializer
from kdcli.tasks import task_of
from kdcli.tasks.base import Encoded, Task
from kdcli.tasks.causal_lm.task import CausalLM
from kdcli.tasks.rows import log_level
from kdcli.tasks.seq2seq.task import Seq2Seq
from kdcli.teachers.remote.protocol import RemoteTeacher
from kdcli.training.batches import micro_batches, planned_steps
from kdcli.training.trainer import require_trackers

logger = logging.getLogger(__name__)


def plan_run(cfg: Config, folder: Path, names: dict[str, str]) -> list[Run]:
    """Find and check everything that can be checked before anything is trained, and write env.json.

    Returns:
        The parts of the run in their order: steps of one teacher_key and one trainee, that follow one another. The last one trains the
        student on the run's data.

    Raises:
        ConfigError, DataError, ModelError, TeacherError
    """
    require_device(cfg.measure)
    state = PartialState(cpu=not torch.cuda.is_available())
    folder = Path(broadcast_object_list([str(folder)])[0])
    steps = plan_phases(cfg)
    remote = _remote_teacher(cfg, steps)
    loaded = {OWN: load(cfg.dataset)}
    for split in ("validation", "test"):
        if not cfg.smoke and (unseen_labels := loaded[OWN].unseen_labels(split)):
            logger.warning(
                "%s has labels that no training row has (%s), so they cannot be learnt from this data; are they misspelt, or too rare?",
                split,
                ", ".join(f"{label}: {count}" for label, count in unseen_labels.most_common(5)),
            )
    if remote is not None:
        names = names | {"teacher": remote.name}
        sources = [remote_student_source(cfg, loaded[OWN], state)]
    elif cfg.teacher.from_scratch is None:
        sources = [find(cfg.teacher, "teacher"), *(find(other, "teacher") for other in cfg.teacher.members)]
    else:
        sources = [new_teacher(cfg, cfg.teacher.from_scratch, loaded[OWN], state)]
    initializer: dict[str, StudentInitializer] = {}
    parts: list[Run] = []
    for (teacher_key, trainee), group in itertools.groupby(
        steps, lambda step: (step.teacher_key, step.trainee)
    ):
        chosen = list(group)
        own = cfg.model_copy(update=config_of_part(cfg, teacher_key, trainee))
        place = OWN if own.dataset == cfg.dataset else teacher_key
        if place not in loaded:
            loaded[place] = load(own.dataset)
        if trainee not in initializer:
            initializer[trainee] = build_initializer(own.student)
        taught = [step for step in steps if step.teacher_key == teacher_key]
        parts.append(
            _part(
                own,
                folder,
                names,
                state,
                loaded[place],
                sources,
                initializer[trainee],
                chosen,
                teacher_key,
                taught,
                remote,
            )
        )
    for trainer in (cfg.trainer, cfg.teacher.trainer, *(step.trainer for step in steps)):
        micro_batches(trainer, state.num_processes)
        require_trackers(trainer)
    require_task(build(cfg.hardware, Target), names["hardware"], cfg.dataset.spec.family)
    run = parts[-1]
    reading = any(step.uses_teacher for step in steps if step.trainee == STUDENT)
    if not reading and cfg.rollout.source != "teacher":
        raise ConfigError(
            "no loss term with a weight reads the teacher: there is nothing to distil; give one a weight"
        )
    if cfg.control:
        require_batch(
            len(run.data.gold),
            cfg.trainer.batch_size,
            "labelled training rows, for the control",
            "trainer.batch_size",
        )
    if remote is not None:
        own_function(cfg.rollout.filter)
        remote.begin(run.task, cfg.dataset, run.data.gold)
    if state.is_main_process:
        _write_environment(parts)
        rewrite_metrics(folder / METRICS)
    state.wait_for_everyone()
    return [
        dataclasses.replace(part, sources=assistant_checkpoint(part))
        if part.teacher_key in initializer
        else part
        for part in parts
    ]


def _remote_teacher(cfg: Config, steps: Sequence[Phase]) -> RemoteTeacher | None:
    """The teacher if it is a remote one: it has its API key, and the run needs nothing that it cannot do.

    Raises:
        ConfigError
    """
    if not issubclass(locate(cfg.teacher.target), RemoteTeacher):
        for given, key in ((cfg.dry_run, "dry_run"), (cfg.rollout.expand, "rollout.expand")):
            if given:
                raise ConfigError(f"{key}: only a remote teacher supports it (teacher=openai); leave it out")
        return None
    remote: RemoteTeacher = build(cfg.teacher, RemoteTeacher)
    remote.require_supported(
        cfg,
        writes=cfg.dataset.kind in ("causal_lm", "seq2seq"),
        outputs=any(step.uses_teacher for step in steps),
        features=any(step.uses_features for step in steps),
    )
    return remote


def _part(
    cfg: Config,
    folder: Path,
    names: dict[str, str],
    state: PartialState,
    data: Data,
    sources: list[Checkpoint],
    by: StudentInitializer,
    phases: list[Phase],
    teacher_key: str,
    taught_phases: list[Phase],
    remote: RemoteTeacher | None,
) -> Run:
    """A part of a run, its data made ready and checked for its teacher and its student. An assistant's is checked as the run's teacher."""
    task = task_of(cfg.dataset, data.labels)
    max_length = cfg.dataset.max_length
    run = Run(
        cfg, folder, names, state, data, task, sources, by, phases, teacher_key, taught_phases, True, remote
    )
    _require_model(run)
    inside = [name for step in phases for name, loss in step.losses.items() if loss.features]
    if inside and isinstance(task, Seq2Seq):
        raise ConfigError(
            f"loss: the inside of a model with an encoder and a decoder is not looked at, and {', '.join(dict.fromkeys(inside))} reads it; leave "
            "out what reads hidden states, attention or relations (translators learn from what the teacher says: loss=forward_kl, "
            "reverse_kl, jsd …)"
        )
    for source in sources if remote is None else ():
        _require_head(run, source)
    for source in dict.fromkeys([*sources, *filter(None, [by.source])]):
        if task.supports_architecture(type(load_config(source))):
            require_loadable(source, task)
    _require_initialization(run)
    tokenizer = load_tokenizer(sources[0], max_length=max_length)
    own = load_tokenizer(by.source, max_length=max_length) if by.source is not None else tokenizer
    splits = {name: prepared(task, rows, (tokenizer, own), max_length) for name, rows in data.splits.items()}
    run.data = dataclasses.replace(data, splits=splits)
    losses = [loss for step in phases for loss in step.losses.values()]
    reading = [loss for loss in losses if loss.needs_teacher]
    if task.vocabulary:
        by_class = any(loss.by_class for loss in reading)
        run.shared = _share_tokens(run, tokenizer, own, by_class, bool(reading)) and remote is None
        run.classes = shared_token_count(tokenizer, own) if run.shared else None
        if len(sources) > 1:
            raise ConfigError(
                f"teacher.others: the answers of several teachers are averaged over labels, and models of the task {cfg.dataset.kind} have a "
                "vocabulary; leave it empty"
            )
        if not run.shared and run.trainee != STUDENT and remote is None:
            raise ConfigError(
                f"stages.{run.trainee}.student: an assistant must have the teacher's vocabulary; choose one of the teacher's family"
            )
    if isinstance(task, Seq2Seq) and cfg.rollout.source != "teacher" and len(data.gold) < len(data["train"]):
        raise ConfigError(
            f"{len(data['train']) - len(data.gold)} training rows have no target (dataset.labelled, dataset.unlabelled): let the teacher "
            "translate them (rollout=beam), or leave those keys out"
        )
    if (
        isinstance(task, Seq2Seq)
        and cfg.rollout.source != "dataset"
        and cfg.rollout.max_new_tokens < max_length
    ):
        raise ConfigError(
            f"rollout.max_new_tokens = {cfg.rollout.max_new_tokens} is below dataset.max_length = {max_length}: translations would be cut off, and "
            f"the student learn to stop in the middle; give rollout.max_new_tokens={max_length}"
        )
    if cfg.rollout.source != "dataset":
        _require_prompts(cfg, task, run.data)
    if isinstance(task, CausalLM):
        _require_positions(cfg, [*sources, *filter(None, [by.source])], remote is None)
    if (cfg.teacher.cache and task.vocabulary) or len(sources) > 1:
        storing_temperature(run)
    if cfg.dataset.augment is None:
        require_rows(run, run.data["train"])
    else:
        find_proposer(cfg.dataset.augment, cfg.teacher)
    if any(map(run.tunes, sources)):
        require_batch(
            len(run.data.gold),
            cfg.teacher.trainer.batch_size,
            "labelled training rows",
            "teacher.trainer.batch_size",
        )
        planned_steps(cfg.teacher.trainer, len(run.data.gold))
    return run


def require_rows(run: Run, rows: datasets.Dataset) -> None:
    """Every step has a loss, and rows for a batch.

    Args:
        rows: what is learnt from.

    Raises:
        ConfigError
    """
    for step in run.phases:
        place = f"stages.{step.name.removeprefix('student/')}." if run.cfg.stages else ""
        if not step.losses:
            raise ConfigError(f"{place}loss: every term has the weight 0; give one a weight")
        kind = "" if step.rows == "all" else f"{step.rows} "
        require_batch(
            len(step.select(rows)),
            step.trainer.batch_size,
            f"{kind}training rows",
            f"{place}trainer.batch_size",
        )
        planned_steps(step.trainer, len(step.select(rows)))


def _require_model(run: Run) -> None:
    """What will be born can be a model for the task.

    Raises:
        ConfigError
    """
    by, task = run.initializer, run.task
    kind = by.architecture()
    if kind is None or task.supports_architecture(kind) or (by.source is not None and by.source.code):
        return
    new = {"seq2seq": "translator-tiny or translator-small", "causal_lm": "smollm2-30m or smollm2-60m"}.get(
        run.cfg.dataset.kind
    )
    raise ConfigError(
        f"student: {kind.model_type} has no model for the task {run.cfg.dataset.kind}; take {f'student={new}, ' if new else ''}"
        "student=layers or pruned (the teacher with less of it), or student=local with student.path (a checkpoint of the task)"
    )


def _require_initialization(run: Run) -> None:
    """What is to be taken away of the teacher, or of the student's checkpoint, is there. Of an assistant it is not known yet.

    Raises:
        ConfigError, ModelError
    """
    by, assistants = run.initializer, {stage.teacher for stage in run.cfg.stages.values()}
    source = by.source or run.sources[0]
    if not by.inherits_teacher or source.code or (by.source is None and run.teacher_key in assistants):
        return
    config = load_config(source)
    if run.task.supports_architecture(type(config)):
        with torch.device("meta"):
            model = run.task.create(run.task.configure(config))
        by.require(run.task, model)


def _require_head(run: Run, source: Checkpoint) -> None:
    """A teacher that is not tuned first must have what the task needs.

    Raises:
        TeacherError
    """
    if not has_head(source, run.task):
        if run.task.vocabulary:
            raise TeacherError(
                f"{source.name} has no head for the task {run.cfg.dataset.kind} (its config.json names no …{run.task.head[0]}), and one over a "
                "vocabulary is not made anew; use a checkpoint as it was pretrained"
            )
        if not run.tunes(source):
            raise TeacherError(
                f"{source.name} has no head for this task, and teacher.tune=false would leave it untrained; leave "
                "teacher.tune out (it is tuned first), or use a checkpoint of the task"
            )
    if run.task.labels and not run.tunes(source):
        label_order(load_config(source), run.task.labels, source.name)


def _share_tokens(
    run: Run, theirs: PreTrainedTokenizerBase, ours: PreTrainedTokenizerBase, needed: bool, reading: bool
) -> bool:
    """Whether teacher and student count the same tokens; and whatever is wrong with a row is found now.

    Args:
        theirs, ours: the teacher's and the student's tokenizer; one and the same if the student is born from the teacher.
        needed: a loss compares what they say of the same token.
        reading: a loss reads what the teacher says.

    Raises:
        DataError: of a row nothing counts.
        ModelError: they do not, and that is needed.
    """
    task, max_length = run.task, run.cfg.dataset.max_length
    encoded = {name: task.encode(theirs, rows, max_length) for name, rows in run.data.splits.items()}
    if isinstance(task, CausalLM) and not task.packs and (run.trainee, run.teacher_key) == (STUDENT, OWN):
        _tell_cut(encoded["train"], max_length)
    if ours is theirs:
        return True
    own = {name: task.encode(ours, rows, max_length) for name, rows in run.data.splits.items()}
    assert run.initializer.source is not None
    try:
        same_vocabulary(run.sources[0].name, theirs, run.initializer.source.name, ours)
        for name, rows in run.data.splits.items():
            task.require_same(rows, encoded[name], own[name])
    except ModelError as error:
        if needed or (not isinstance(task, CausalLM) and (reading or not task.writes)):
            remedy = "; or let it learn what the teacher writes (rollout=teacher loss.soft_label.weight=0)"
            remedy += ", or how sure the teacher is (loss=uld)" if isinstance(task, CausalLM) else ""
            raise ModelError(error.message + (remedy if task.writes else "")) from None
        return False
    return True


def _tell_cut(rows: Encoded, max_length: int) -> None:
    """Of an answer that is cut off the end is not learnt."""
    if full := int((np.diff(rows.offsets) >= max_length).sum()):
        logger.log(
            log_level(full, len(rows)),
            "%d of %d training rows fill dataset.max_length = %d tokens: what is longer is cut off, and the end of its answer is not "
            "learnt; raise it, or leave such rows out (dataset.truncation=drop)",
            full, len(rows), max_length,
        )  # fmt: skip


def _require_prompts(cfg: Config, task: Task, data: Data) -> None:
    if not task.writes:
        raise ConfigError(
            f"rollout.source = {cfg.rollout.source}: models of the task {cfg.dataset.kind} write nothing; leave rollout out"
        )
    if "texts" in data["train"].column_names:
        raise ConfigError(
            f"rollout.source = {cfg.rollout.source}: plain text has no prompts to answer; name dataset.prompt and "
            "dataset.completion, or dataset.messages"
        )


def _require_positions(cfg: Config, sources: Sequence[Checkpoint], here: bool) -> None:
    """The models have positions for what they are to write in the run.

    Args:
        here: they write the completions.

    Raises:
        ConfigError
    """
    for config in map(load_config, sources):
        if here and cfg.rollout.source != "dataset":
            max_prompt_tokens(config, cfg.rollout.max_new_tokens, "rollout.max_new_tokens")
        if cfg.measure is not None:
            require_room(cfg.measure, config)


def storing_temperature(run: Run) -> float:
    """The temperature at which a teacher's top k, or the mean of several teachers, is taken.

    Raises:
        ConfigError: the terms have several. (Of a top k also 1 can be had.)
    """
    mean = len(run.sources) > 1
    found = {
        getattr(loss, "temperature", 1.0) for loss in run.losses if loss.needs_teacher and not loss.features
    }
    found = found if mean else found - {1.0}
    if len(found) > 1:
        kept, remedy = ("averaged", "") if mean else ("kept", ", or teacher.cache=false")
        raise ConfigError(
            f"the teacher's answers are {kept} at one temperature, the loss terms have {sorted(found)}; give them one{remedy}"
        )
    return found.pop() if found else 1.0


def _write_environment(parts: Sequence[Run]) -> None:
    """env.json. A run that is continued must find the data and the models that it was begun with."""
    run = parts[-1]
    cfg, path = run.cfg, run.folder / "env.json"
    made_with = environment() | {
        "processes": run.state.num_processes,
        "seeds": {"run": cfg.seed}
        | {name: stage_seed(cfg.seed, name) for name in ("teacher", "birth", "student")},
        "bf16": {
            "teacher": fast_bf16(cfg.teacher.trainer.precision),
            "student": fast_bf16(cfg.trainer.precision),
        },
        "dataset": {"path": cfg.dataset.path, "commit": run.data.commit, "fingerprint": run.data.fingerprint},
        "teacher": _fingerprints(run.sources[0]) if run.remote is None else run.remote.fingerprint,
        "stand_in": None if run.remote is None else _fingerprints(run.sources[0]),
        "student": _fingerprints(run.initializer.source) if run.initializer.source else None,
        "others": [_fingerprints(source) for source in run.sources[1:]],
        "stages": {
            part.teacher_key: part.data.fingerprint for part in parts if part.cfg.dataset != cfg.dataset
        },
    }
    if not path.is_file():
        write_json(path, made_with)
        return
    before = read_json(
        path,
        dict,
        "restore it; or remove it, and the run goes on without the check that its data and models are the ones it was begun with",
    )
    for key, what in (
        ("dataset", "dataset"),
        ("stages", "dataset of a stage"),
        ("teacher", "teacher"),
        ("others", "ensemble of teachers"),
        ("student", "student"),
    ):
        if before.get(key) != made_with[key]:
            raise DataError(f"the {what} is not the one that {run.folder} was begun with; start a new run")


def _fingerprints(source: Checkpoint) -> dict[str, Any]:
    return {
        "path": source.name,
        "commit": source.commit,
        "weights": source.weights_hash,
        "tokenizer": source.tokenizer_hash,
    }


def is_lenient(run: Run, trainer: TrainerConfig) -> bool:
    """What the pre-flight finds is a warning: a rehearsal."""
    return run.cfg.smoke or trainer.max_steps is not None
