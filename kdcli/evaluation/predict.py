"""Loads checkpoints and runs them on a split."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import torch
from safetensors.numpy import save_file
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from kdcli.config.measure import Measure
from kdcli.device import has_gpu
from kdcli.errors import ConfigError, KDError, ModelError
from kdcli.files import replaced, write_jsonl
from kdcli.model_files import SUMS, require_folder, require_unchanged, weight_files
from kdcli.models.checkpoint import (
    Checkpoint,
    label_order,
    load_config,
    load_ready,
    load_tokenizer,
    parameters,
    same_vocabulary,
    shared_token_count,
    skeleton,
)
from kdcli.rundir import REPORT
from kdcli.signals import AnySignal
from kdcli.tasks.base import Predictions, Task
from kdcli.teachers.base import Teacher
from kdcli.teachers.local import LocalTeacher

logger = logging.getLogger(__name__)
LARGEST = 1e30
"""The largest output of a model that is not damaged: sums and differences of smaller ones do not overflow."""
BLOCK = 256
"""Rows whose teacher outputs are held at once: those of a language model take 772 bytes a token with 64 stored tokens."""


def require_device(cfg: Measure | None) -> None:
    """Refuse to measure models on a device that is not there.

    Raises:
        ConfigError
    """
    if cfg is not None and cfg.device == "cuda" and not has_gpu():
        raise ConfigError(
            "measure.device=cuda: torch finds no GPU here; measure on the CPU, or not at all (measure=null)"
        )


def require_trained(source: Checkpoint, run: Path) -> None:
    """Refuse a model of a run that cannot be read, or was changed since it was trained.

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
    """Load a checkpoint that has a head for the task, and its tokenizer."""
    model = load_ready(source, task)
    return model, load_tokenizer(source, model, max_length)


def open_teacher(
    source: Checkpoint, student: PreTrainedTokenizerBase, task: Task, max_length: int
) -> Teacher:
    """Load a language model whose outputs are truncated to the vocabulary that it shares with a student."""
    teacher = LocalTeacher(task.batch)
    teacher.open(source, task, max_length, "fp32")
    if (count := shared_token_count(teacher.tokenizer, student)) is not None:
        teacher.truncate_vocabulary(count)
    return teacher


def prepared(
    task: Task, rows: datasets.Dataset, tokenizers: Sequence[PreTrainedTokenizerBase], max_length: int
) -> datasets.Dataset:
    """Return the rows of a split that none of the models truncates, as `Task.prepare` returns them."""
    prepared_for: list[dict[str, int]] = []
    for tokenizer in tokenizers:
        vocabulary = tokenizer.get_vocab()
        if vocabulary not in prepared_for:
            rows = task.prepare(rows, tokenizer, max_length)
            prepared_for.append(vocabulary)
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
    """Return the size of a checkpoint, and its predictions on a split, in fp32.

    Args:
        model, tokenizer: the loaded checkpoint.
        teacher: returns the teacher outputs of rows by their indices.
    """
    order = label_order(model.config, task.labels, source.name) if task.labels else None
    encoded = task.encode_split(tokenizer, rows, max_length)
    predictions = task.predict(model, tokenizer, encoded, order=order, teacher=teacher)
    return size(source, task, model), task.add_texts(predictions, model, tokenizer, encoded, max_length)


def same_tokens(
    task: Task, teacher: Checkpoint, student: Checkpoint, rows: datasets.Dataset, max_length: int
) -> bool:
    """Return whether two models predict at the same positions, and have the same classes there."""
    if not task.vocabulary:
        return True
    tokenizers = load_tokenizer(teacher), load_tokenizer(student)
    try:
        same_vocabulary(teacher.name, tokenizers[0], student.name, tokenizers[1])
        task.require_same(rows, *(task.encode_split(each, rows, max_length) for each in tokenizers))
    except ModelError:
        return False
    return True


def in_student_tokens(
    task: Task, predictions: Predictions, student: Checkpoint, rows: datasets.Dataset, max_length: int
) -> Predictions:
    """Return predictions whose log-probabilities are rescaled to the number of the student's tokens in the same text, so that both models can be compared."""
    tokens = len(task.targets(task.encode_split(load_tokenizer(student), rows, max_length))[0])
    log_prob = predictions["log_prob"] * (len(predictions.labels) / tokens)
    return replace(predictions, arrays=predictions.arrays | {"log_prob": log_prob})


def outputs_by_row(teacher: Teacher, rows: datasets.Dataset) -> Callable[[Sequence[int]], AnySignal]:
    """Return a function that returns the teacher outputs of rows by their indices."""
    return lambda indices: teacher.signals([rows[int(index)] for index in indices])


def predictions_from_teacher(
    teacher: Teacher, source: Checkpoint, task: Task, rows: datasets.Dataset, max_length: int
) -> tuple[Predictions, int]:
    """Return the predictions of a teacher on rows, at its own positions, and its number of classes.

    Args:
        source: the teacher's checkpoint, whose tokenizer is used.
    """
    classes = 0

    def signals() -> Iterator[AnySignal]:
        nonlocal classes
        for start in range(0, max(1, len(rows)), BLOCK):
            signal = teacher.signals(list(rows.select(range(start, min(start + BLOCK, len(rows))))))
            classes = signal.classes
            yield signal

    encoded = task.encode_split(load_tokenizer(source), rows, max_length)
    return task.predictions_from_outputs(signals(), encoded), classes


def likelihoods(
    teacher: Teacher, source: Checkpoint, task: Task, rows: datasets.Dataset, max_length: int
) -> list[float]:
    """Return the mean log-probability of the counted tokens of each row under a language model, in nats; arguments as for `predictions_from_teacher`."""
    predictions, _ = predictions_from_teacher(teacher, source, task, rows, max_length)
    row_of = np.repeat(np.arange(len(predictions.counts)), predictions.counts)
    sums = np.bincount(row_of, predictions["log_prob"].astype(np.float64), minlength=len(predictions.counts))
    return (sums / np.maximum(predictions.counts, 1)).tolist()


def size(source: Checkpoint, task: Task, model: PreTrainedModel | None = None) -> dict[str, int]:
    """Return the number of parameters, and the bytes of the weight files.

    Args:
        model: the loaded checkpoint; None: its parameters are counted without loading its weights.
    """
    if model is None and getattr(config := load_config(source), "quantization_config", None) is not None:
        with torch.device("meta"):  # packed weights are fewer numbers
            model = task.create(config)
    model = model or skeleton(source, task)
    weights = sum(file.stat().st_size for file in weight_files(source.path))
    return {"parameters": parameters(model), "bytes": weights}


def combine_members(entries: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Return size and speed of an ensemble, whose members run one after the other on every row: sizes and times add up. The memory of all
    members together is not measured."""
    if len(entries) == 1:
        return entries[0]
    result: dict[str, Any] = {
        key: sum(entry[key] for entry in entries) for key in ("parameters", "bytes") if key in entries[0]
    }
    if "latency_ms" in entries[0]:
        latencies = [entry["latency_ms"] for entry in entries]
        speeds = [entry["throughput_per_s"] for entry in entries]
        result |= {
            "latency_ms": {
                name: sum(ms) if all(ms) else None
                for name in ("p50", "p95", "p99")
                if (ms := [each[name] for each in latencies])
            },
            "throughput_per_s": 1 / sum(1 / speed for speed in speeds) if all(speeds) else None,
            **dict.fromkeys(("batch_size", "first_token_ms", "between_tokens_ms", "times_faster", "speedup")),
            **dict.fromkeys(
                (
                    "latency_runs",
                    "latency_p50_ci95_ms",
                    "cpu_share",
                    "peak_memory_bytes",
                    "import_memory_bytes",
                    "load",
                )
            ),
            "load_seconds": sum(seconds)
            if all(seconds := [entry["load_seconds"] for entry in entries])
            else None,
        }
    return result


def require_finite(predictions: Predictions, name: str, error: type[KDError] = ModelError) -> None:
    """Check that the outputs of a model are finite at every position, and no larger than `LARGEST`.

    Args:
        name: the model or the file, for the message.
        error: the class of the exception.

    Raises:
        KDError
    """
    for array in predictions.arrays.values():
        bad = ~(np.abs(array) <= LARGEST)
        if bad.any():
            raise error(
                f"{name}: its outputs are not finite at {int(bad.reshape(len(bad), -1).any(axis=1).sum()):,} of {len(bad):,} positions: "
                "the file is damaged, or its numbers overflow in its precision; write it again, or use fp32"
            )


def save_predictions(path: Path, predictions: Predictions) -> None:
    """Write the predictions of a model on a split, in the order of its rows."""
    tensors = predictions.arrays | {"labels": predictions.labels, "counts": predictions.counts}
    with replaced(path) as temporary:
        save_file({name: np.ascontiguousarray(array) for name, array in tensors.items()}, temporary)
    if predictions.texts:
        rows = zip(predictions.pairs, predictions.texts, strict=True)
        lines = [{"source": source, "reference": target, "text": text} for (source, target), text in rows]
        write_jsonl(path.with_suffix(".jsonl"), lines)
