"""Makes the plan of a run: finds its data and its checkpoints, and checks everything that can be checked before anything is trained."""

from __future__ import annotations

import dataclasses
import itertools
import os
from collections.abc import Mapping, Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any

from accelerate import PartialState
from accelerate.utils import broadcast_object_list

from kdcli.config.components import build
from kdcli.config.schema import Distill as Config
from kdcli.data.augment import find_proposer
from kdcli.data.dataset import Data, load
from kdcli.data.filters import own_function
from kdcli.data.reading import Reading
from kdcli.data.suspicions import check_data
from kdcli.device import has_gpu
from kdcli.distributed import peers, require_shared, wait_for_everyone
from kdcli.evaluation.models import recorded_readings
from kdcli.evaluation.predict import prepared, require_device
from kdcli.exporting.targets.base import Target, require_fast_tokenizer, require_task, require_writable
from kdcli.files import cache_folder
from kdcli.models.checkpoint import (
    Checkpoint,
    has_fast_tokenizer,
    load_config,
    load_tokenizer,
    shared_token_count,
)
from kdcli.models.vocabulary import require_savable
from kdcli.pipeline.environment import record_environment
from kdcli.pipeline.memory import plan_memory, require_memory
from kdcli.pipeline.placement import is_streamed, require_streamable
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
from kdcli.pipeline.served import require_served
from kdcli.pipeline.sources import teacher_sources
from kdcli.pipeline.validate import (
    remote_teacher,
    require_architecture,
    require_checkpoints,
    require_control_rows,
    require_engine,
    require_features,
    require_machine,
    require_one_vocabulary,
    require_quantized,
    require_rows,
    require_teacher_term,
    require_trainable,
    require_trainers,
    require_tuning_rows,
    require_writer,
    shares_tokens,
    storing_temperature,
    student_config,
    warn_of_truncation,
)
from kdcli.rundir import METRICS, rewrite_metrics
from kdcli.students.base import StudentInitializer
from kdcli.tasks import task_of
from kdcli.teachers.remote.protocol import RemoteTeacher


def plan_run(cfg: Config, folder: Path, names: Mapping[str, str], chose_hardware: bool = True) -> list[Run]:
    """Return the plan of a run, checked; its environment is written to env.json, unless nothing is to be written (dry_run).

    Args:
        chose_hardware: whether the user chose the device, so that a student that cannot be written for it is refused.

    Returns:
        The parts of the run in their order: consecutive phases of one trainee with one teacher_key. The last one trains the student on the
        run's data.

    Raises:
        ConfigError, DataError, ModelError, TeacherError
    """
    require_device(cfg.measure)
    state = start_processes(cfg)
    peers.folder = folder = Path(broadcast_object_list([str(folder)])[0])
    if not cfg.dry_run:  # which writes nothing
        peers.watch(state)
        require_shared({"run directory": folder, "KDCLI_CACHE_DIR": cache_folder()}, state)
    require_machine(cfg, state)
    phases = plan_phases(cfg)
    remote = remote_teacher(cfg, phases)
    recorded = recorded_readings(folder)
    data = load(cfg.dataset, recorded)
    check_data(cfg, data)
    sources = teacher_sources(cfg, remote, data, state)
    names = names if remote is None else {**names, "teacher": remote.name}
    parts = _parts(cfg, folder, names, state, phases, data, sources, remote, recorded)
    require_trainers(cfg, phases, state)
    run = parts[-1]
    target: Target = build(cfg.hardware, Target)
    require_task(target, names["hardware"], run.task, cfg.dataset.kind)
    require_writable(target, names["hardware"], run.task.auto, student_config(run), chose_hardware)
    is_fast = has_fast_tokenizer(run.initializer.source or run.sources[0])
    require_fast_tokenizer(target, names["hardware"], run.task.auto, is_fast, chose_hardware)
    require_teacher_term(cfg, phases)
    require_control_rows(run)
    if remote is not None:
        own_function(cfg.rollout.filter)
        remote.client.ledger.since = run.fresh_since
        remote.begin(run.task, cfg.dataset, run.data.gold)
    memory = plan_memory(parts)
    require_memory(parts, memory)
    parts = [*parts[:-1], dataclasses.replace(parts[-1], memory=memory)]
    if state.is_main_process and not cfg.dry_run:
        record_environment(parts)
        rewrite_metrics(folder / METRICS)
    wait_for_everyone(state)
    assistants = {part.trainee for part in parts}
    return [
        dataclasses.replace(part, sources=[assistant_checkpoint(part)])
        if part.teacher_key in assistants
        else part
        for part in parts
    ]


def start_processes(cfg: Config) -> PartialState:
    """Return the processes of the run, which wait `trainer.ddp_timeout` for each other in a step. What is offloaded from GPUs is reduced on the CPU."""
    cuda = has_gpu()
    options: dict[str, Any] = {}
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        options["timeout"] = timedelta(seconds=cfg.trainer.ddp_timeout)
        if cuda and any(trainer.fsdp == "offload" for trainer in (cfg.trainer, cfg.teacher.trainer)):
            options["backend"] = "cuda:nccl,cpu:gloo"
    return PartialState(cpu=not cuda, **options)


def _parts(
    cfg: Config,
    folder: Path,
    names: Mapping[str, str],
    state: PartialState,
    phases: list[Phase],
    data: Data,
    sources: list[Checkpoint],
    remote: RemoteTeacher | None,
    recorded: Sequence[Reading],
) -> list[Run]:
    """Return the parts, each with its own data set and initialiser."""
    loaded = {OWN: data}
    initializers: dict[str, StudentInitializer] = {}
    parts: list[Run] = []
    for (teacher_key, trainee), group in itertools.groupby(
        phases, lambda phase: (phase.teacher_key, phase.trainee)
    ):
        own = config_of_part(cfg, teacher_key, trainee)
        source = OWN if own.dataset == cfg.dataset else teacher_key
        if source not in loaded:
            loaded[source] = load(own.dataset, recorded)
        if trainee not in initializers:
            initializers[trainee] = build_initializer(own.student)
        metric = cfg.metric if own.dataset.kind == cfg.dataset.kind else None
        part = Run(
            cfg=own,
            folder=folder,
            names=names,
            state=state,
            data=loaded[source],
            task=task_of(own.dataset, loaded[source].labels, metric),
            sources=sources,
            initializer=initializers[trainee],
            phases=list(group),
            taught_phases=[phase for phase in phases if phase.teacher_key == teacher_key],
            remote=remote,
        )
        parts.append(_checked(part))
    return parts


def _checked(part: Run) -> Run:
    """Return a part with its data prepared, and with what its teacher and its student share. An assistant's part is checked with the run's teacher.

    Raises:
        ConfigError, DataError, ModelError, TeacherError
    """
    cfg, task, remote = part.cfg, part.task, part.remote
    require_architecture(part)
    require_trainable(part)
    require_quantized(part)
    require_features(part)
    require_checkpoints(part)
    own = part.initializer.source
    teacher_tokenizer = load_tokenizer(part.sources[0], max_length=part.max_length)
    student_tokenizer = teacher_tokenizer if own is None else load_tokenizer(own, max_length=part.max_length)
    tokenizers = teacher_tokenizer, student_tokenizer
    if own is None or part.tunes(part.sources[0]):
        require_savable(teacher_tokenizer, part.sources[0].name)
    if own is not None:
        require_savable(student_tokenizer, own.name)
    splits = {
        name: prepared(task, rows, tokenizers, part.max_length) for name, rows in part.data.splits.items()
    }
    part = dataclasses.replace(part, data=dataclasses.replace(part.data, splits=splits))
    if task.vocabulary:
        has_tokens = remote is None or part.scorer is not None
        shared = shares_tokens(part, teacher_tokenizer, student_tokenizer) and has_tokens
        classes = shared_token_count(teacher_tokenizer, student_tokenizer) if shared else None
        part = dataclasses.replace(part, shared=shared, classes=classes)
        require_one_vocabulary(part)
    elif part.trainee == STUDENT and remote is None:
        warn_of_truncation(part, teacher_tokenizer)
    if cfg.rollout.source != "dataset":
        require_writer(part)
        require_engine(part)
    task.check_rows(cfg, len(part.data["train"]), len(part.data.gold))
    task.check_models(cfg, map(load_config, [*part.sources, *filter(None, [own])]), generate=remote is None)
    if (cfg.teacher.cache and task.vocabulary) or len(part.sources) > 1:
        storing_temperature(part)
    if cfg.dataset.augment is None:
        require_rows(part, part.data["train"])
    else:
        find_proposer(cfg.dataset.augment, cfg.teacher)
    require_tuning_rows(part)
    if part.scorer is not None:
        require_served(part, part.scorer)
    if is_streamed(part):
        require_streamable(part)
        part = dataclasses.replace(part, streamed=True)
    return part
