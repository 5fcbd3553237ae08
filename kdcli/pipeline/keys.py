"""Makes the keys of everything that runs share through the cache folder.

A key is made from all that decides the bits of a result, and from nothing else: a result that another config would change is never read
for it, and one that the config leaves the same is never made again. `cache_path` makes every key; what goes into it is declared here, one
dataclass for each kind of result. Rows enter by their content, checkpoints by the hashes of their files.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, ClassVar, Self

import datasets
import torch

from kdcli.config.dataset import Augment
from kdcli.config.rollout import Rollout
from kdcli.config.schema import Distill as Config
from kdcli.config.types import Component
from kdcli.files import cache_dir, digest
from kdcli.models.checkpoint import Checkpoint, fast_bf16
from kdcli.pipeline.plan import Run

UNTRAINED = {
    "logging_steps",
    "report_to",
    "micro_batch_size",
    "gradient_checkpointing",
    "compile",
    "fsdp",
    "deepspeed",
    "ddp_timeout",
}
"""Keys of a trainer that do not change what is trained."""
UNWRITTEN = {
    "answers", "buffer", "engine", "expand", "filter", "gpu_memory_fraction", "keep_fraction", "on_policy_fraction",
}  # fmt: skip
"""Keys of a rollout that do not change a completion of the teacher: they set how many completions there are, which of them the student learns, and
when it writes its own."""


@dataclass(frozen=True)
class CacheKey:
    """Everything that decides the bits of a result.

    Attributes:
        folder: the folder of the cache with all results of this kind.
    """

    folder: ClassVar[str]


def cache_path(key: CacheKey) -> Path:
    """Return the folder of the cache that holds the result of a key."""
    return cache_dir(key.folder) / digest(type(key).__name__, torch.__version__, asdict(key))[:32]


@dataclass(frozen=True)
class CheckpointHashes:
    """A checkpoint."""

    weights: str
    tokenizer: str

    @classmethod
    def of(cls, source: Checkpoint) -> CheckpointHashes:
        return cls(source.weights_hash, source.tokenizer_hash)


@dataclass(frozen=True)
class TextFormat:
    """The settings by which a task makes tokens, labels and prompts of a row.

    Attributes:
        chat: how conversations are rendered: "turns", of which all count; false: there are none.
    """

    task: str
    labels: list[str]
    max_length: int
    chat: str | bool
    source_language: str | None
    target_language: str | None
    prefix: str | None

    @classmethod
    def of(cls, run: Run) -> TextFormat:
        cfg = run.cfg.dataset
        languages = cfg.source_language, cfg.target_language, cfg.prefix
        return cls(cfg.kind, run.data.labels, cfg.max_length, "turns" if run.task.chat else False, *languages)


@dataclass(frozen=True)
class TeacherInputs:
    """A teacher that is ready to be queried: its checkpoints, its class and arguments (with the dtypes of the checkpoints, unless all are
    fp32, and their quantization, if there is one), its precision. Of one that a server scores with: its tokenizer, and what it is called there."""

    checkpoints: list[CheckpointHashes]
    target: str
    arguments: dict[str, Any]
    bf16: bool
    classes: int | None
    """How many tokens of its vocabulary are left; None: all."""
    text: TextFormat

    @classmethod
    def of(cls, run: Run, teachers: Sequence[Checkpoint]) -> TeacherInputs:
        """Args:
        teachers: the checkpoints, tuned if they are to be tuned.
        """
        cfg = run.cfg.teacher
        if run.scorer is not None:
            hashes = [CheckpointHashes("", source.tokenizer_hash) for source in teachers]
            fingerprint = run.scorer.fingerprint
            return cls(hashes, cfg.target, fingerprint, False, run.classes, TextFormat.of(run))
        dtypes, arguments = [source.dtype for source in teachers], dict(cfg.arguments)
        if any(dtype != "fp32" for dtype in dtypes):
            arguments |= {"dtype": dtypes}
        if any(source.quantization for source in teachers):
            arguments |= {"quantization": [source.quantization for source in teachers]}
        return cls(
            list(map(CheckpointHashes.of, teachers)),
            cfg.target,
            arguments,
            fast_bf16(cfg.trainer.precision),
            run.classes,
            TextFormat.of(run),
        )


@dataclass(frozen=True)
class TunedTeacher(CacheKey):
    """A teacher's checkpoint that was fine-tuned on the gold labels.

    Attributes:
        outside: the tags that mean no entity, which change the score that selects a checkpoint.
        metric: of the scores that select a checkpoint.
        member: its index in an ensemble, which changes its seed.
    """

    folder: ClassVar[str] = "teachers"
    checkpoint: CheckpointHashes
    text: TextFormat
    train: str
    validation: str
    trainer: dict[str, Any]
    bf16: bool
    label_smoothing: float
    outside: list[str] | None
    metric: str
    seed: int
    member: int

    @classmethod
    def of(cls, run: Run, member: int) -> TunedTeacher:
        cfg = run.cfg.teacher
        return cls(
            CheckpointHashes.of(run.sources[member]),
            TextFormat.of(run),
            content_hash(run.data.gold),
            content_hash(run.data["validation"]),
            cfg.trainer.model_dump(exclude=UNTRAINED | {"precision"}),
            fast_bf16(cfg.trainer.precision),
            cfg.label_smoothing,
            run.cfg.dataset.outside,
            run.task.metric,
            run.cfg.seed,
            member,
        )


@dataclass(frozen=True)
class NewModel(CacheKey):
    """A model of random weights over a vocabulary that is learned from the training pairs."""

    folder: ClassVar[str] = "new_models"
    component: dict[str, Any]
    vocab_size: int
    train: str
    seed: int

    @classmethod
    def of(cls, cfg: Config, component: Component, train: datasets.Dataset) -> NewModel:
        arguments = {"_target_": component.target, **component.arguments}
        return cls(arguments, cfg.teacher.vocab_size, content_hash(train), cfg.seed)


@dataclass(frozen=True)
class AugmentedCopies(CacheKey):
    """Copies of the training texts with replaced words.

    Attributes:
        known: the ids of the rows that no copy may repeat.
    """

    folder: ClassVar[str] = "augmented"
    proposer: CheckpointHashes
    augment: dict[str, Any]
    max_length: int
    gold: str
    known: list[str]
    seed: int

    @classmethod
    def of(cls, run: Run, proposer: Checkpoint, cfg: Augment) -> AugmentedCopies:
        return cls(
            CheckpointHashes.of(proposer),
            cfg.model_dump(exclude={"path", "revision", "batch_size"}),
            run.max_length,
            content_hash(run.data.gold),
            sorted({row_id for rows in run.data.splits.values() for row_id in rows["id"][:]}),
            run.cfg.seed,
        )


@dataclass(frozen=True)
class Completions(CacheKey):
    """The completions that a teacher writes for prompts: one for each, part by part; `make_in_parts` adds the rows of a part.

    Attributes:
        rollout: how they are sampled or searched for.
        seed: of one completion of each prompt.
    """

    folder: ClassVar[str] = "rollouts"
    teacher: TeacherInputs
    rollout: dict[str, Any]
    seed: int

    @classmethod
    def of(cls, run: Run, teachers: Sequence[Checkpoint], rollout: Rollout, seed: int) -> Completions:
        return cls(TeacherInputs.of(run, teachers), rollout.model_dump(exclude=UNWRITTEN), seed)


@dataclass(frozen=True)
class TeacherKey(CacheKey):
    """A key that the teacher and what it reads decide; the rows are added where results are stored part by part."""

    teacher: TeacherInputs

    @classmethod
    def of(cls, run: Run, teachers: Sequence[Checkpoint]) -> Self:
        return cls(TeacherInputs.of(run, teachers))


@dataclass(frozen=True)
class FidelityOfRows(TeacherKey):
    """What a quantized teacher's outputs lose, row by row, part by part; `make_in_parts` adds the rows of a part."""

    folder: ClassVar[str] = "teacher_fidelity"


@dataclass(frozen=True)
class CompletionScores(TeacherKey):
    """The log-probabilities that a teacher gives to completions, part by part; `make_in_parts` adds the rows of a part."""

    folder: ClassVar[str] = "rollout_scores"


@dataclass(frozen=True)
class CheckedTexts(CacheKey):
    """The texts of a teacher that the pre-flight checks, part by part, with those that were truncated; `make_in_parts` adds the rows of a
    part."""

    folder: ClassVar[str] = "checked_texts"
    teacher: TeacherInputs
    rollout: dict[str, Any]

    @classmethod
    def of(cls, run: Run, teachers: Sequence[Checkpoint], rollout: Rollout) -> CheckedTexts:
        return cls(TeacherInputs.of(run, teachers), rollout.model_dump(exclude=UNWRITTEN))


@dataclass(frozen=True)
class StreamedStates(TeacherKey):
    """The hidden states of a teacher during a streamed pass; each block of rows is named by its content."""

    folder: ClassVar[str] = "streamed"


@dataclass(frozen=True)
class TeacherOutputs(CacheKey):
    """The stored outputs of a teacher on a split.

    Attributes:
        rows: the split, without its labels.
        top_k: how many tokens of each position are stored; None: all classes.
        temperature: at which the top k, or the mean of an ensemble, is taken; None: it is neither.
    """

    folder: ClassVar[str] = "teacher_outputs"
    teacher: TeacherInputs
    rows: str
    top_k: int | None
    temperature: float | None

    @classmethod
    def of(
        cls, run: Run, teachers: Sequence[Checkpoint], rows: datasets.Dataset, temperature: float
    ) -> TeacherOutputs:
        mean, top = len(teachers) > 1, run.task.vocabulary
        return cls(
            TeacherInputs.of(run, teachers),
            content_hash(rows, labels=False),
            run.cfg.teacher.top_k if top else None,
            temperature if top or mean else None,
        )


def content_hash(rows: datasets.Dataset, labels: bool = True) -> str:
    """Return a digest of a split's rows. Ids alone are the same for texts that differ in case.

    Args:
        labels: whether the labels are part of it.
    """
    names = [name for name in rows.column_names if labels or name not in ("label", "votes")]
    return digest({name: rows[name][:] for name in names})
