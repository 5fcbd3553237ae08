"""Checkpoints that a run begins with where the teacher has none."""

from __future__ import annotations

import torch
from accelerate import PartialState

from kdcli.config.components import build
from kdcli.config.schema import Distill as Config
from kdcli.config.types import Component
from kdcli.data.dataset import Data
from kdcli.errors import ConfigError
from kdcli.files import cache_dir, digest, replaced
from kdcli.locks import Lock
from kdcli.model_files import write_sums
from kdcli.models.checkpoint import Checkpoint, find, has_head, seed_everything, stage_seed
from kdcli.pipeline.cache import is_saved
from kdcli.students.encoder_decoder import EncoderDecoder, learn_vocabulary
from kdcli.tasks import task_of
from kdcli.tasks.seq2seq.task import Seq2Seq


def remote_student_source(cfg: Config, data: Data, state: PartialState) -> Checkpoint:
    """The checkpoint that a student begins with whose teacher has none: its own, or student.init_from. A translator for which neither
    serves begins over a vocabulary that is learnt from the pairs.

    Raises:
        ConfigError, ModelError: there is none.
    """
    if cfg.student.path:
        return find(cfg.student, "student")
    task = task_of(cfg.dataset, data.labels)
    if cfg.student.init_from:
        path = {"path": cfg.student.init_from, "revision": None}
        found = find(cfg.student.model_copy(update=path), "student.init_from")
        if not task.vocabulary or has_head(found, task):
            return found
    if isinstance(task, Seq2Seq):
        return new_teacher(cfg, cfg.student, data, state)
    raise ConfigError(
        f"a student for {cfg.dataset.kind} needs a checkpoint of the kind to begin with, and the teacher has none here; give student.path "
        "(student=local), or student.init_from"
    )


def new_teacher(cfg: Config, born: Component, data: Data, state: PartialState) -> Checkpoint:
    """A translator of random weights over a vocabulary learnt from the training pairs, which is to be trained on them."""
    if cfg.dataset.kind != "seq2seq":
        raise ConfigError(
            f"teacher.from_scratch: a new model is trained on pairs (seq2seq), not for {cfg.dataset.kind}; give teacher.path"
        )
    by: EncoderDecoder = build(born, EncoderDecoder)
    made_of = (
        born.model_dump(by_alias=True),
        cfg.teacher.vocab_size,
        list(data["train"]["id"]),
        cfg.seed,
    )
    folder = cache_dir("born") / digest(made_of, torch.__version__)[:32]
    if state.is_main_process:
        with Lock(folder.with_suffix(".lock")):
            if not is_saved(folder):
                tokenizer = learn_vocabulary(data["train"], cfg.teacher.vocab_size)
                seed_everything(stage_seed(cfg.seed, "teacher: birth"))
                with replaced(folder) as temporary:
                    by.over(tokenizer).save_pretrained(temporary)
                    tokenizer.save_pretrained(temporary)
                    write_sums(temporary)
    state.wait_for_everyone()
    return Checkpoint(folder, "the new teacher")
