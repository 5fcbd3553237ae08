"""Finds the checkpoints that a run starts with: those of the teacher, or their replacement if the teacher has none."""

from __future__ import annotations

import dataclasses

from accelerate import PartialState

from kdcli.config.components import build
from kdcli.config.schema import Distill as Config
from kdcli.config.tasks import packaged_specs
from kdcli.config.types import Component
from kdcli.data.dataset import Data
from kdcli.distributed import wait_for_everyone
from kdcli.errors import ConfigError
from kdcli.files import replaced
from kdcli.locks import Lock
from kdcli.model_files import write_sums
from kdcli.models.checkpoint import Checkpoint, find, find_tokenizer, has_head, seed_everything, stage_seed
from kdcli.models.dtypes import chosen_dtype
from kdcli.pipeline.cache import is_saved
from kdcli.pipeline.keys import NewModel, cache_path
from kdcli.pipeline.plan import INITIALIZATION, build_initializer
from kdcli.students.encoder_decoder import EncoderDecoder, learn_vocabulary
from kdcli.tasks import task_of
from kdcli.teachers.remote.protocol import RemoteTeacher


def teacher_sources(
    cfg: Config, remote: RemoteTeacher | None, data: Data, state: PartialState
) -> list[Checkpoint]:
    """Return the teacher's checkpoints: one, or an ensemble's. With a remote teacher: the one that has its tokenizer, or else the one from which its
    students are initialised.

    Raises:
        ConfigError, ModelError
    """
    if remote is not None and remote.scorer is not None and remote.scorer.tokenizer_path:
        return [_served_tokenizer(cfg, remote.scorer.tokenizer_path)]
    if remote is not None:
        return [_remote_student_source(cfg, data, state)]
    if cfg.teacher.from_scratch is not None:
        return [_new_model(cfg, cfg.teacher.from_scratch, data, state)]
    members = (cfg.teacher, *cfg.teacher.members)
    return [with_dtype(cfg, find(member, "teacher")) for member in members]


def with_dtype(cfg: Config, source: Checkpoint) -> Checkpoint:
    """Return a checkpoint of the teacher with the dtype in which it computes its outputs, the quantization of its weights, and their placement.

    Raises:
        ConfigError: this device cannot compute in it.
    """
    given, precision = cfg.teacher.dtype, cfg.teacher.trainer.precision
    dtype = chosen_dtype(given, source.path, precision, "teacher.dtype")
    divided = cfg.teacher.placement == "device_map"
    return dataclasses.replace(source, dtype=dtype, quantization=cfg.teacher.quantization, divided=divided)


def _served_tokenizer(cfg: Config, path: str) -> Checkpoint:
    """The tokenizer of a served teacher.

    Raises:
        ConfigError, ModelError: there is none, or the student is to be initialised from weights that are not there.
    """
    source = find_tokenizer(
        cfg.student.model_copy(update={"path": path, "revision": None}), "teacher.tokenizer"
    )
    reads_weights = build_initializer(cfg.student).reads_teacher and not cfg.student.path
    if reads_weights and not any(source.path.glob("*.safetensors")):
        raise ConfigError(
            "the teacher has no weights here, and the student is initialised from them; give the student a checkpoint of its own "
            "(student.path=), or random weights (student=tiny)"
        )
    return source


def _remote_student_source(cfg: Config, data: Data, state: PartialState) -> Checkpoint:
    """Return the student's own checkpoint, or student.init_from, or for pairs a new model over a vocabulary that is learned from them.

    Raises:
        ConfigError, ModelError: there is none.
    """
    if cfg.student.path:
        return find(cfg.student, "student")
    task = task_of(cfg.dataset, data.labels)
    if cfg.student.init_from:
        path = {"path": cfg.student.init_from, "revision": None}
        source = find(cfg.student.model_copy(update=path), "student.init_from")
        if not task.vocabulary or has_head(source, task):
            return source
    if task.spec.from_scratch:
        return _new_model(cfg, cfg.student, data, state)
    raise ConfigError(
        f"a student for {cfg.dataset.kind} needs a checkpoint of the kind to begin with, and the teacher has none here; give student.path "
        "(student=local), or student.init_from"
    )


def _new_model(cfg: Config, component: Component, data: Data, state: PartialState) -> Checkpoint:
    """Return a translation model of random weights over a vocabulary that is learned from the training pairs.

    Raises:
        ConfigError: the data are not pairs.
    """
    if not cfg.dataset.spec.from_scratch:
        tasks = " or ".join(name for name, spec in packaged_specs() if spec.from_scratch)
        raise ConfigError(
            f"teacher.from_scratch: a new model is trained for {tasks}, not for {cfg.dataset.kind}; give teacher.path"
        )
    initializer: EncoderDecoder = build(component, EncoderDecoder)
    folder = cache_path(NewModel.of(cfg, component, data["train"]))
    if state.is_main_process:
        with Lock(folder.with_suffix(".lock")):
            if not is_saved(folder):
                tokenizer = learn_vocabulary(data["train"], cfg.teacher.vocab_size)
                seed_everything(stage_seed(cfg.seed, f"teacher: {INITIALIZATION}"))
                with replaced(folder) as temporary:
                    initializer.over(tokenizer).save_pretrained(temporary)
                    tokenizer.save_pretrained(temporary)
                    write_sums(temporary)
    wait_for_everyone(state)
    return Checkpoint(folder, "the new teacher")
