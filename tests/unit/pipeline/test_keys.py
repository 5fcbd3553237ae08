"""The keys of the cache: every config field either is in the key of a result, or changes nothing there."""

from __future__ import annotations

import typing
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import datasets
import pytest
from accelerate import PartialState
from pydantic import BaseModel

from kdcli.config.check import check
from kdcli.config.rollout import Rollout
from kdcli.config.schema import Distill, NewTranslator
from kdcli.config.types import Section
from kdcli.data.dataset import Data
from kdcli.models.checkpoint import Checkpoint
from kdcli.pipeline.keys import (
    AugmentedCopies,
    CacheKey,
    CheckedTexts,
    Completions,
    CompletionScores,
    NewModel,
    TeacherOutputs,
    TunedTeacher,
    cache_path,
    content_hash,
)
from kdcli.pipeline.plan import Run
from kdcli.students.pretrained import Pretrained
from kdcli.tasks import task_of

TEACHER = {TeacherOutputs, Completions, CompletionScores, CheckedTexts}
ALL_OF_TEXT = {TunedTeacher, *TEACHER}
IN_KEY: dict[str, set[type[CacheKey]]] = {
    "seed": {TunedTeacher, NewModel, AugmentedCopies, Completions},
    "teacher.target": TEACHER,
    "teacher.top_k": {TeacherOutputs},
    "teacher.label_smoothing": {TunedTeacher},
    "teacher.vocab_size": {NewModel},
    "teacher.from_scratch": {NewModel},
    "student.target": {NewModel},
    **{
        f"teacher.trainer.{name}": {TunedTeacher}
        for name in (
            "until", "epochs", "max_steps", "max_epochs", "min_steps", "patience", "decay", "batch_size", "learning_rate", "schedule", "warmup", "weight_decay", "dropout", "freeze", "max_grad_norm",
            "token_dropout", "embedding_learning_rate_factor", "optimizer",
            "keep", "eval_steps",
        )
    },
    "teacher.trainer.precision": ALL_OF_TEXT,
    "dataset.task": ALL_OF_TEXT,
    "dataset.outside": {TunedTeacher},
    "metric": {TunedTeacher},
    "dataset.max_length": {*ALL_OF_TEXT, AugmentedCopies},
    "dataset.chat": ALL_OF_TEXT,
    "dataset.messages": ALL_OF_TEXT,
    "dataset.source_language": ALL_OF_TEXT,
    "dataset.target_language": ALL_OF_TEXT,
    "dataset.prefix": ALL_OF_TEXT,
    **{f"dataset.augment.{name}": {AugmentedCopies} for name in ("method", "copies", "probability", "candidates")},
    **{
        f"rollout.{name}": {Completions}
        for name in (
            "source", "max_new_tokens", "sampling_temperature", "batch_size", "num_beams", "length_penalty", "candidates",
        )
    },
}  # fmt: skip
"""Fields whose value is in a key."""
CHECKPOINT = "the hashes of the checkpoint's files are in the key"
ROWS = "the content of the rows is in the key"
TRAINED = "the student and the control are not shared between runs"
ELSEWHERE: dict[str, str] = {
    **dict.fromkeys(
        (
            "teacher.path", "teacher.revision", "teacher.trust_remote_code", "teacher.merge_adapter", "teacher.others", "student.init_from",
            "dataset.augment.path", "dataset.augment.revision",
        ),
        CHECKPOINT,
    ),
    **dict.fromkeys(
        (
            "dataset.format", "dataset.path", "dataset.name", "dataset.revision", "dataset.train", "dataset.validation", "dataset.test",
            "dataset.split", "dataset.validation_size", "dataset.test_size", "dataset.text", "dataset.text_pair", "dataset.label", "dataset.labels",
            "dataset.words", "dataset.tags", "dataset.sentence", "dataset.prompt", "dataset.completion", "dataset.source", "dataset.target",
            "dataset.encoding", "dataset.delimiter", "dataset.quote", "dataset.escape", "dataset.columns", "dataset.field",
            "dataset.bad_rows", "dataset.replace", "dataset.limit",
            "dataset.eval_limit", "dataset.labelled", "dataset.unlabelled", "dataset.unlabelled_limit", "dataset.mask_copies",
            "dataset.clean.identical", "dataset.clean.max_ratio", "dataset.clean.ratio_from", "dataset.clean.script",
            "dataset.truncation", "dataset.context", "dataset.thoughts",
            "dataset.truncation", "dataset.no_label", "dataset.as_classes", "dataset.duplicates", "dataset.near_duplicates", "dataset.bad_rows",
        ),
        ROWS,
    ),
    **dict.fromkeys(
        (
            "student.path", "student.revision", "student.trust_remote_code", "student.merge_adapter", "student.quantization",
            "student.quantization_epochs", "student.quantization_learning_rate", "student.calibrate", "student.dtype", "student.attn_implementation",
            "trainer", "loss", "control", "hardware",
            "measure",
        ),
        TRAINED,
    ),
    "teacher.tune": "it decides whether a teacher is tuned, not how",
    "teacher.dtype": "the dtype that it chooses is the checkpoint's, which is in the key unless it is fp32",
    "teacher.quantization": "it is the checkpoint's, which is in the key unless there is none",
    "teacher.placement": "streamed outputs are the same bits",
    "teacher.memory_bound": "it decides what is refused",
    "teacher.fresh": "it decides whether stored answers are taken, not which",
    "teacher.cache": "it decides whether outputs are stored, not which",
    "teacher.trainer.micro_batch_size": "it changes memory, not the result",
    "teacher.trainer.gradient_checkpointing": "it changes memory, not the result",
    "teacher.trainer.compile": "it changes the speed, not the result",
    "teacher.trainer.ddp_timeout": "it decides when a run ends with an error",
    "teacher.trainer.fsdp": "it changes memory, not the result",
    "teacher.trainer.deepspeed": "it changes memory, not the result",
    "teacher.trainer.logging_steps": "it changes what is logged",
    "teacher.trainer.report_to": "it changes where it is logged",
    "dataset.augment.batch_size": "it changes memory, not the result",
    **dict.fromkeys(
        ("rollout.on_policy_fraction", "rollout.buffer", "rollout.engine", "rollout.gpu_memory_fraction"), "it is for completions of the student, which are not shared between runs"
    ),
    "rollout.keep_fraction": "it selects from the stored completions",
    "rollout.answers": "each completion of a prompt has its own seed, which is in the key",
    "rollout.expand": "it is for remote teachers, whose ledger has the queries themselves as keys",
    **dict.fromkeys(
        (f"rollout.filter.{name}" for name in ("min_length", "max_length", "refusals", "duplicates", "function")),
        "it selects from the stored completions",
    ),
    "hub": "it is published when everything is trained",
    "stages": "a stage's data set, student and teacher are those of its own part of the run",
    "smoke": "it changes what is refused",
    "seeds": "the teacher and its outputs are those of the first seed",
    "dry_run": "nothing is computed",
    "student.allow_same_size": "it decides whether a student is refused, not which one it is",
    "trivial_baseline": "no other model is derived from it",
}  # fmt: skip
"""Fields that change nothing in a key, and why."""
GROUPS = {"trainer", "loss", "stages", "hardware", "measure", "hub"}
"""Fields that are listed without the fields in them."""
OTHER: dict[str, Any] = {
    "metric": "macro_f1",
    "dataset.task": "masked_lm",
    "dataset.messages": "messages",
    "dataset.augment.path": "elsewhere",
    "dataset.augment.method": "embeddings",
    "rollout.source": "student",
    "teacher.trainer.precision": "bf16",
    "teacher.from_scratch": NewTranslator.model_validate(
        {"_target_": "kdcli.students.encoder_decoder.EncoderDecoder"}
    ),
    "measure": None,
    "hardware": None,
    "loss": {},
    "trainer": None,
    "stages": {},
}
"""Other values of fields whose type does not suggest one."""


def fields(model: type[BaseModel], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """The names and the types of all fields, at any depth."""
    for name, annotation in typing.get_type_hints(model).items():
        if name not in model.model_fields:
            continue
        options = [
            option for option in (annotation, *typing.get_args(annotation)) if isinstance(option, type)
        ]
        inner = [option for option in options if issubclass(option, Section)]
        if f"{prefix}{name}" in ("teacher", "student"):
            inner = options
        if inner and f"{prefix}{name}" not in GROUPS:
            yield from fields(inner[0], f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", annotation


FIELDS = dict(fields(Distill))


def changed(tree: BaseModel, path: str, value: Callable[[Any], Any]) -> Any:
    """A config with one other value, unchecked."""
    name, _, rest = path.partition(".")
    before = getattr(tree, name)
    return tree.model_copy(update={name: changed(before, rest, value) if rest else value(before)})


def another(path: str) -> Callable[[Any], Any]:
    """Gives another value of a field."""

    def value(before: Any) -> Any:
        if path in OTHER:
            return OTHER[path]
        if isinstance(before, bool):
            return not before
        if isinstance(before, int | float):
            return before + 1
        if isinstance(before, str):
            return f"{before}x"
        if isinstance(before, list):
            return [*before, "x"]
        if isinstance(before, dict):
            return {**before, "x": "y"}
        numbers = any(kind in str(FIELDS[path]) for kind in ("int", "float"))
        return 7 if numbers else "other"

    return value


@pytest.fixture
def config(teacher: Path) -> Distill:
    """A config with every optional section."""
    return check(
        Distill,
        {
            "teacher": {
                "_target_": "kdcli.teachers.local.LocalTeacher",
                "path": str(teacher),
                "trainer": {"precision": "fp32", "epochs": 2},
            },
            "student": {"_target_": "kdcli.students.pretrained.Pretrained", "path": str(teacher)},
            "dataset": {"task": "classification", "path": "reviews.csv", "augment": {"copies": 2}},
            "loss": {"soft_label": {"_target_": "kdcli.losses.forward_kl.ForwardKL"}},
            "hardware": {"_target_": "kdcli.exporting.targets.cpu.Cpu"},
        },
    )


def keys(cfg: Distill, teacher: Path, folder: Path, kind: str) -> dict[type[CacheKey], Path]:
    """The folder of each result, for a classifier or a language model."""
    labels = ["bad", "good"] if kind == "classification" else []
    own = {"text": "a good film", "label": 1} if labels else {"prompt": "a", "completion": "b"}
    rows = datasets.Dataset.from_list([{"id": "1", **own}])
    data = Data(dict.fromkeys(("train", "validation", "test"), rows), labels, "fingerprint")
    if kind == "causal_lm" and cfg.dataset.task == "classification":
        cfg = cfg.model_copy(update={"dataset": cfg.dataset.model_copy(update={"task": kind})})
    task = task_of(cfg.dataset, labels, cfg.metric if cfg.dataset.kind == "classification" else None)
    if kind == "causal_lm":
        task.vocabulary = True
    sources = [Checkpoint(teacher, "teacher")]
    run = Run(cfg, folder, {}, PartialState(cpu=True), data, task, sources, Pretrained(), [], [])
    made = [
        TunedTeacher.of(run, 0),
        TeacherOutputs.of(run, sources, rows, 2.0),
        Completions.of(run, sources, cfg.rollout, cfg.seed),
        CompletionScores.of(run, sources),
        CheckedTexts.of(run, sources, Rollout(max_new_tokens=64)),
        NewModel.of(cfg, cfg.teacher.from_scratch or cfg.student, rows),
    ]
    if cfg.dataset.augment is not None:
        made.append(AugmentedCopies.of(run, sources[0], cfg.dataset.augment))
    return {type(key): cache_path(key) for key in made}


def test_every_field_is_listed_once() -> None:
    """A new field that changes a result and is in no key: the cache gives the result of another config."""
    assert not IN_KEY.keys() & ELSEWHERE.keys()
    assert sorted(FIELDS) == sorted([*IN_KEY, *ELSEWHERE])


@pytest.mark.parametrize("path", sorted(FIELDS))
def test_a_field_changes_the_keys_that_name_it(
    path: str, config: Distill, teacher: Path, tmp_path: Path
) -> None:
    """A field that is listed in a key, and has no part in it, gives stale results; one that is needlessly in it makes them anew."""
    other = changed(config, path, another(path))
    differ = set()
    for kind in ("classification", "causal_lm"):
        before, after = (keys(cfg, teacher, tmp_path, kind) for cfg in (config, other))
        differ |= {key for key in after if after[key] != before[key]}
    assert differ == IN_KEY.get(path, set())


def test_rows_are_in_keys_by_their_content() -> None:
    """Two texts that differ in case have one id: the teacher's outputs of the one would be read for the other."""
    one, other = (
        datasets.Dataset.from_list([{"id": "1", "text": text, "label": 0}]) for text in ("Us", "us")
    )
    relabelled = datasets.Dataset.from_list([{"id": "1", "text": "us", "label": 1}])
    assert content_hash(one) != content_hash(other) != content_hash(relabelled)
    assert content_hash(other, labels=False) == content_hash(relabelled, labels=False)
