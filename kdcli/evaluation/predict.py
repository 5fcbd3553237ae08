"""Loads models and runs them on a split."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import torch
from safetensors.numpy import save_file
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from kdcli.config.schema import Measure
from kdcli.errors import ConfigError, ModelError
from kdcli.files import replaced, write_text
from kdcli.model_files import SUMS, require_folder, require_unchanged
from kdcli.models.checkpoint import (
    Checkpoint,
    label_order,
    load_config,
    load_ready,
    load_tokenizer,
    parameters,
    same_vocabulary,
)
from kdcli.rundir import REPORT
from kdcli.signals import AnySignal
from kdcli.tasks.base import Predictions, Task
from kdcli.teachers.base import Teacher

logger = logging.getLogger(__name__)


def require_device(cfg: Measure | None) -> None:
    """Refuse to time models where they cannot run.

    Raises:
        ConfigError: there is no such device.
    """
    if cfg is not None and cfg.device == "cuda" and not torch.cuda.is_available():
        raise ConfigError(
            "measure.device=cuda: torch finds no GPU here; measure on the CPU, or not at all (measure=null)"
        )


def require_trained(source: Checkpoint, run: Path) -> None:
    """Refuse a model of a run that cannot be read, or is not what was saved when it was trained.

    Raises:
        ModelError
    """
    remedy = (
        f"score it as it is with kdcli eval model={source.path}, or remove {source.path} and {run / REPORT}, and the same kdcli distill trains it "
        "again"
    )
    if not require_unchanged(source.path, remedy) and source.name == "student":
        logger.info(
            "%s has no %s: whether its files are those that were trained is not known", source.path, SUMS
        )
    require_folder(source.path, source.name)


def open_checkpoint(
    source: Checkpoint, task: Task, max_length: int
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """A checkpoint that is to be used as it is, and its tokenizer."""
    model = load_ready(source, task)
    return model, load_tokenizer(source, model, max_length)


def prepared(
    task: Task, rows: datasets.Dataset, tokenizers: Sequence[PreTrainedTokenizerBase], max_length: int
) -> datasets.Dataset:
    """A split's rows as they are trained on and scored, which each of the models reads whole."""
    known: list[dict[str, int]] = []
    for tokenizer in tokenizers:
        vocabulary = tokenizer.get_vocab()
        if vocabulary not in known:
            rows = task.prepare(rows, tokenizer, max_length)
            known.append(vocabulary)
    return rows


def examine(
    source: Checkpoint,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    task: Task,
    rows: datasets.Dataset,
    max_length: int,
    teacher: Callable[[Sequence[int]], AnySignal] | None = None,
) -> tuple[dict[str, Any], Predictions]:
    """A checkpoint's size, and its answers (fp32) on a split's rows.

    Args:
        model, tokenizer: the checkpoint, opened.
        teacher: what the teacher says of rows by their numbers.
    """
    order = label_order(model.config, task.labels, source.name) if task.labels else None
    encoded = task.encode_split(tokenizer, rows, max_length)
    said = task.predict(model, tokenizer, encoded, order=order, teacher=teacher)
    return size(source, task, model), task.add_texts(said, model, tokenizer, encoded, max_length)


def same_tokens(
    task: Task, teacher: Checkpoint, student: Checkpoint, rows: datasets.Dataset, max_length: int
) -> bool:
    """Whether two models count the same positions, and mean the same class by the same number there."""
    if not task.vocabulary:
        return True
    theirs, ours = load_tokenizer(teacher), load_tokenizer(student)
    try:
        same_vocabulary(teacher.name, theirs, student.name, ours)
        task.require_same(rows, *(task.encode_split(each, rows, max_length) for each in (theirs, ours)))
    except ModelError:
        return False
    return True


def in_student_tokens(
    task: Task, said: Predictions, student: Checkpoint, rows: datasets.Dataset, max_length: int
) -> Predictions:
    """Log-probabilities for each token of another model: of the same text, so that the two can be compared."""
    tokens = len(task.targets(task.encode_split(load_tokenizer(student), rows, max_length))[0])
    return replace(said, arrays=said.arrays | {"log_prob": said["log_prob"] * (len(said.labels) / tokens)})


def outputs_by_row(teacher: Teacher, rows: datasets.Dataset) -> Callable[[Sequence[int]], AnySignal]:
    """What a teacher says of rows by their numbers."""
    return lambda numbers: teacher.signals([rows[int(number)] for number in numbers])


def predictions_from_teacher(
    teacher: Teacher, source: Checkpoint, task: Task, rows: datasets.Dataset, max_length: int
) -> tuple[Predictions, int]:
    """A teacher's answers on rows, at its own positions, and its number of classes.

    Args:
        source: the teacher's checkpoint, whose tokens they are.
    """
    signal = teacher.signals(list(rows))
    return task.predictions_from_outputs(
        signal, task.encode_split(load_tokenizer(source), rows, max_length)
    ), signal.classes


def likelihoods(
    teacher: Teacher, source: Checkpoint, task: Task, rows: datasets.Dataset, max_length: int
) -> list[float]:
    """The mean log-probability that a language model gives a counted token of each row, in nats; arguments as for `predictions_from_teacher`."""
    said, _ = predictions_from_teacher(teacher, source, task, rows, max_length)
    places = np.repeat(np.arange(len(said.counts)), said.counts)
    sums = np.bincount(places, said["log_prob"].astype(np.float64), minlength=len(said.counts))
    return (sums / np.maximum(said.counts, 1)).tolist()


def size(source: Checkpoint, task: Task, model: PreTrainedModel | None = None) -> dict[str, int]:
    """Parameters, and bytes of the weight files.

    Args:
        model: what was loaded of it; None: parameters are those that its config tells of, which may leave an output matrix out.
    """
    if model is None:
        with torch.device("meta"):
            model = task.create(load_config(source))
    weights = sum(file.stat().st_size for file in source.path.glob("*.safetensors"))
    return {"parameters": parameters(model), "bytes": weights}


def combine_members(entries: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """What models need that answer one after the other, each asked about every row (an ensemble): sizes and times add up.

    How much memory they need at once nobody has measured.
    """
    if len(entries) == 1:
        return entries[0]
    found: dict[str, Any] = {
        key: sum(entry[key] for entry in entries) for key in ("parameters", "bytes") if key in entries[0]
    }
    if "latency_ms" in entries[0]:
        latencies = [entry["latency_ms"] for entry in entries]
        speeds = [entry["throughput_per_s"] for entry in entries]
        found |= {
            "latency_ms": {
                name: sum(ms) if all(ms) else None
                for name in ("p50", "p95", "p99")
                if (ms := [each[name] for each in latencies])
            },
            "throughput_per_s": 1 / sum(1 / speed for speed in speeds) if all(speeds) else None,
            **dict.fromkeys(("batch_size", "first_token_ms", "between_tokens_ms", "times_faster", "speedup")),
            **dict.fromkeys(("cpu_share", "peak_memory_bytes", "import_memory_bytes", "load")),
            "load_seconds": sum(seconds)
            if all(seconds := [entry["load_seconds"] for entry in entries])
            else None,
        }
    return found


def save_predictions(path: Path, said: Predictions) -> None:
    """A model's answers on a split's rows, in their order."""
    tensors = said.arrays | {"labels": said.labels, "counts": said.counts}
    with replaced(path) as temporary:
        save_file({name: np.ascontiguousarray(array) for name, array in tensors.items()}, temporary)
    if said.texts:
        rows = zip(said.pairs, said.texts, strict=True)
        lines = [{"source": source, "reference": target, "text": text} for (source, target), text in rows]
        write_text(
            path.with_suffix(".jsonl"), "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)
        )
