"""Decides whether a teacher's weights are all in memory, or are read layer by layer."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence

import datasets
import torch

from kdcli import console
from kdcli.config.components import build, locate
from kdcli.device import device_free_memory
from kdcli.errors import ConfigError
from kdcli.files import PARTIAL
from kdcli.models import device_map
from kdcli.models.checkpoint import Checkpoint, skeleton
from kdcli.models.dtypes import TORCH, weight_count
from kdcli.numbers import format_bytes
from kdcli.pipeline.cache import exclusive
from kdcli.pipeline.keys import StreamedStates, cache_path
from kdcli.pipeline.plan import Run
from kdcli.tasks.base import batch_rows
from kdcli.teachers.base import Teacher
from kdcli.teachers.cached import CachedTeacher
from kdcli.teachers.local import LocalTeacher
from kdcli.teachers.streamed import StreamedTeacher, Work

logger = logging.getLogger(__name__)
MARGIN = 1.1
"""The least memory that a teacher takes, as a multiple of the bytes of its weights."""
FLOPS = 1.5e10
"""The floating-point operations per second and thread of a slow processor, for estimates of time."""
READING = 1e8
"""The bytes per second of a slow disk."""


def is_streamed(run: Run) -> bool:
    """Return whether the outputs of a part's teacher are computed layer by layer: by teacher.placement, or (auto) if its weights do not fit into
    the memory that is free.

    Raises:
        ConfigError: teacher.placement=streamed, and the run needs the whole teacher, or a quantized one; device_map, and it cannot be divided.
        ModelError: as `divide`.
    """
    placement = run.cfg.teacher.placement
    stage = run.cfg.stages.get(run.teacher_key)
    is_assistant = stage is not None and stage.student is not None
    if run.remote is not None or placement == "resident" or is_assistant:
        return False
    if placement == "device_map":
        if reason := obstacle_to_dividing(run):
            raise ConfigError(f"teacher.placement = device_map: {reason}")
        for source in run.sources:
            device_map.divide(skeleton(source, run.task), source.name)
        return False
    if run.cfg.teacher.quantization is not None:
        if placement == "streamed":
            raise ConfigError(
                f"teacher.placement = streamed: it computes with the stored weights, and teacher.quantization={run.cfg.teacher.quantization} changes them; leave "
                "one of the two out"
            )
        return False
    needed, free = memory_of(run.sources)
    fits = free is None or needed * MARGIN <= free
    if placement == "auto" and fits:
        return False
    sizes = f"its weights take {format_bytes(needed)}, and {format_bytes(free or 0)} of memory are free"
    if reason := obstacle(run):
        if placement == "streamed":
            raise ConfigError(f"teacher.placement = streamed: {reason}")
        logger.warning(
            "the teacher may not fit: %s. It is not read layer by layer: %s. teacher.placement=device_map leaves layers on the disk until they are "
            "computed",
            sizes,
            reason,
        )
        return False
    if not fits and run.initializer.reads_teacher and run.initializer.source is None:
        raise ConfigError(
            f"the teacher does not fit ({sizes}), and the student is initialised from its weights; give the student a checkpoint of its own "
            "(student.path=), or random weights (student=tiny)"
        )
    if placement == "auto":
        logger.warning(
            "the teacher does not fit: %s. Its outputs are computed layer by layer (teacher.placement=streamed)",
            sizes,
        )
    return True


def obstacle_to_dividing(run: Run) -> str:
    """Return why Accelerate cannot divide the teacher's weights (teacher.placement=device_map); empty: it can."""
    teacher = run.cfg.teacher
    if teacher.quantization is not None:
        return f"teacher.quantization={teacher.quantization} changes the weights that are read from the disk; leave one of the two out"
    if not issubclass(locate(teacher.target), LocalTeacher):
        return f"teacher._target_ = {teacher.target} loads its models itself; use {LocalTeacher.__module__}.{LocalTeacher.__name__}"
    if run.state.num_processes > 1:
        return (
            f"it fills the memory of this machine, which {run.state.num_processes} processes share; use teacher.placement=streamed, or one "
            "process"
        )
    return ""


def memory_of(sources: Sequence[Checkpoint]) -> tuple[int, int | None]:
    """Return the bytes of the weights of checkpoints without quantization, and of the memory that is free (None: not known)."""
    needed = sum(weight_count(source.path) * TORCH[source.dtype].itemsize for source in sources)
    return needed, device_free_memory()


def obstacle(run: Run) -> str:
    """Return why the run needs the whole teacher; empty: it does not."""
    cfg = run.cfg
    if locate(cfg.teacher.target) is not LocalTeacher:
        return f"teacher._target_ = {cfg.teacher.target} loads its models itself; use {LocalTeacher.__module__}.{LocalTeacher.__name__}"
    if not cfg.teacher.cache:
        return "with teacher.cache=false it answers in every training step; set teacher.cache=true"
    if any(map(run.tunes, run.sources)):
        return "it is fine-tuned first, which needs all of it in memory; use a checkpoint with a head for the task (teacher.tune=false)"
    if len(run.sources) > 1:
        return "it is an ensemble; leave teacher.others empty"
    if cfg.rollout.source != "dataset":
        return f"with rollout.source={cfg.rollout.source} it writes or scores texts that are not there yet; use rollout=dataset"
    if any(phase.uses_features for phase in run.taught_phases):
        return "a loss term reads its layers (hidden states, attention, relations) in every step; leave that term out"
    return ""


def open_streamed(run: Run, source: Checkpoint) -> StreamedTeacher:
    """Return the teacher of a part, without its weights.

    Raises:
        ModelError, TeacherError: it cannot be read layer by layer, or cannot be used for the task.
    """
    local: LocalTeacher = build(run.cfg.teacher, Teacher)
    folder = cache_path(StreamedStates.of(run, [source])).with_suffix(PARTIAL) / str(run.state.process_index)
    teacher = StreamedTeacher(local.batch_size, folder, run.cfg.teacher.memory_bound)
    teacher.open(source, run.task, run.max_length, run.cfg.teacher.trainer.precision)
    if run.classes is not None:
        teacher.truncate_vocabulary(run.classes)
    return teacher


def require_streamable(run: Run) -> None:
    """Refuse a teacher that cannot be read layer by layer, or whose pass takes more memory or disk than it may.

    Raises:
        ConfigError, ModelError, TeacherError
    """
    teacher = open_streamed(run, run.sources[0])
    encoded = [run.encode(teacher.tokenizer, rows) for rows in run.data.splits.values()]
    sizes = [
        (len(rows), int(split.lengths[rows].max()))
        for split in encoded
        for rows in batch_rows(split, teacher.batch_size)
    ]
    try:
        teacher.require(teacher.work(sizes))
    finally:
        teacher.remove_if_empty()


def stream_outputs(
    run: Run,
    source: Checkpoint,
    stores: Mapping[str, tuple[CachedTeacher, datasets.Dataset]],
    stage: console.ProgressStage,
) -> None:
    """Compute the outputs that the stores lack, of all splits in one pass, and store them.

    Args:
        stores: the store and the rows of each split.
    """
    folder = cache_path(StreamedStates.of(run, [source]))
    with exclusive(run, folder):
        shards = [
            (store, shard) for store, rows in stores.values() for shard in store.missing(rows, run.state)
        ]
        if not shards:
            return
        teacher = open_streamed(run, source)
        groups = [list(shard.rows) for _, shard in shards]
        compress = shards[0][0].compress

        def update(done: int, total: int, note: str) -> None:
            stage.update(done, extra=note, total=total)

        def announce(work: Work) -> None:
            if run.state.is_main_process:
                _announce(work, sum(map(len, groups)), teacher)

        outputs = teacher.stream(groups, compress, update, announce)
        for (store, shard), signals in zip(shards, outputs, strict=True):
            store.store(shard, signals)


def _announce(work: Work, rows: int, teacher: StreamedTeacher) -> None:
    """Log what a pass takes, before it begins."""
    seconds = pass_seconds(work.weights // teacher.model.dtype.itemsize, work.tokens, work.weights)
    logger.info(
        "the teacher is read layer by layer: %s rows in %s blocks, %s of weights are read, up to %s of memory, up to %s of scratch space in "
        "%s, up to %s",
        f"{rows:,}", f"{work.blocks:,}", format_bytes(work.weights), format_bytes(max(work.memory.values())), format_bytes(work.scratch),
        teacher.folder, console.duration(seconds),
    )  # fmt: skip


def pass_seconds(weights: int, tokens: int, stored: int) -> float:
    """Return a cautious estimate of the time of a forward pass: two operations a weight and token.

    Args:
        weights: the number of weights.
        stored: the bytes of the weights on disk.
    """
    return 2 * weights * tokens / (FLOPS * torch.get_num_threads()) + stored / READING
