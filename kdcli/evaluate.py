"""Scores of models on a split, and their paired comparison."""

from __future__ import annotations

import json
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

from kdcli.checkpoint import SUMS, require_folder, require_unchanged
from kdcli.config import Measure
from kdcli.errors import ConfigError, ModelError
from kdcli.files import replaced, write_text
from kdcli.models import (
    Source,
    label_order,
    load_config,
    load_ready,
    load_tokenizer,
    parameters,
    same_vocabulary,
)
from kdcli.rundir import REPORT
from kdcli.signal import AnySignal
from kdcli.tasks.base import Predictions, Task
from kdcli.teachers.base import Teacher

logger = logging.getLogger(__name__)
RESAMPLES = 10_000
MOST = 10_000_000
"""Numbers of resamples that are in memory at once."""


def require_device(cfg: Measure | None) -> None:
    """Refuse to time models where they cannot run.

    Raises:
        ConfigError: there is no such device.
    """
    if cfg is not None and cfg.device == "cuda" and not torch.cuda.is_available():
        raise ConfigError(
            "measure.device=cuda: torch finds no GPU here; measure on the CPU, or not at all (measure=null)"
        )


def require_trained(source: Source, run: Path) -> None:
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


def opened(source: Source, task: Task, max_length: int) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
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
    source: Source,
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
    encoded = task.encode(tokenizer, rows, max_length)
    said = task.predict(model, tokenizer, encoded, order=order, teacher=teacher)
    return size(source, task, model), task.completed(said, model, tokenizer, encoded, max_length)


def same_tokens(
    task: Task, teacher: Source, student: Source, rows: datasets.Dataset, max_length: int
) -> bool:
    """Whether two models count the same positions, and mean the same class by the same number there."""
    if not task.vocabulary:
        return True
    theirs, ours = load_tokenizer(teacher), load_tokenizer(student)
    try:
        same_vocabulary(teacher.name, theirs, student.name, ours)
        task.require_same(rows, *(task.encode(each, rows, max_length) for each in (theirs, ours)))
    except ModelError:
        return False
    return True


def in_tokens_of(
    task: Task, said: Predictions, student: Source, rows: datasets.Dataset, max_length: int
) -> Predictions:
    """Log-probabilities for each token of another model: of the same text, so that the two can be compared."""
    tokens = len(task.targets(task.encode(load_tokenizer(student), rows, max_length))[0])
    return replace(said, answers=said.answers | {"log_prob": said["log_prob"] * (len(said.labels) / tokens)})


def by_number(teacher: Teacher, rows: datasets.Dataset) -> Callable[[Sequence[int]], AnySignal]:
    """What a teacher says of rows by their numbers."""
    return lambda numbers: teacher.signals([rows[int(number)] for number in numbers])


def told_by(
    teacher: Teacher, source: Source, task: Task, rows: datasets.Dataset, max_length: int
) -> tuple[Predictions, int]:
    """A teacher's answers on rows, at its own positions, and its number of classes.

    Args:
        source: the teacher's checkpoint, whose tokens they are.
    """
    signal = teacher.signals(list(rows))
    return task.told(signal, task.encode(load_tokenizer(source), rows, max_length)), signal.classes


def likelihoods(
    teacher: Teacher, source: Source, task: Task, rows: datasets.Dataset, max_length: int
) -> list[float]:
    """The mean log-probability that a language model gives a counted token of each row, in nats; arguments as for `told_by`."""
    said, _ = told_by(teacher, source, task, rows, max_length)
    places = np.repeat(np.arange(len(said.counts)), said.counts)
    sums = np.bincount(places, said["log_prob"].astype(np.float64), minlength=len(said.counts))
    return (sums / np.maximum(said.counts, 1)).tolist()


def size(source: Source, task: Task, model: PreTrainedModel | None = None) -> dict[str, int]:
    """Parameters, and bytes of the weight files.

    Args:
        model: what was loaded of it; None: parameters are those that its config tells of, which may leave an output matrix out.
    """
    if model is None:
        with torch.device("meta"):
            model = task.create(load_config(source))
    weights = sum(file.stat().st_size for file in source.path.glob("*.safetensors"))
    return {"parameters": parameters(model), "bytes": weights}


def together(entries: Sequence[dict[str, Any]]) -> dict[str, Any]:
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
    tensors = said.answers | {"labels": said.labels, "counts": said.counts}
    with replaced(path) as temporary:
        save_file({name: np.ascontiguousarray(array) for name, array in tensors.items()}, temporary)
    if said.texts:
        rows = zip(said.pairs, said.texts, strict=True)
        lines = [{"source": source, "reference": target, "text": text} for (source, target), text in rows]
        write_text(
            path.with_suffix(".jsonl"), "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)
        )


def interval(values: np.ndarray, seed: int = 0) -> tuple[float, float]:
    """95 % percentile bootstrap interval of the mean of (N,) values.

    For the paired comparison of two models the values are the differences of their merits on the same
    examples (Koehn 2004, https://aclanthology.org/W04-3250). Resampling N examples is drawing how often
    each distinct value occurs, so it is done by counts.
    """
    distinct, counts = np.unique(values, return_counts=True)
    draws = _resamples(counts / len(values), len(values), seed)
    means = np.concatenate([drawn @ distinct for drawn in draws]) / len(values)
    low, high = np.percentile(means, [2.5, 97.5])
    return float(low), float(high)


def resampled(task: Task, said: Predictions, seed: int = 0) -> np.ndarray:
    """The metric of a task whose metric is no mean over rows, on `RESAMPLES` resamples of the rows: the same ones for every
    model, so that differences are paired (Koehn 2004)."""
    tally = task.tally(said)
    rows = len(tally)
    sums = np.concatenate([drawn @ tally for drawn in _resamples(np.full(rows, 1 / rows), rows, seed)])
    return np.asarray([task.from_tally(each) for each in sums])


def _resamples(shares: np.ndarray, rows: int, seed: int) -> Iterator[np.ndarray]:
    """How often each of (K,) values is among `rows` that are drawn: (some, K), `RESAMPLES` in all."""
    random = np.random.default_rng(seed)
    block = max(1, MOST // len(shares))
    for done in range(0, RESAMPLES, block):
        yield random.multinomial(rows, shares, size=min(block, RESAMPLES - done))


def gain(task: Task, student: Predictions, control: Predictions) -> dict[str, Any]:
    """By how much a student's score is above its control's, with its paired 95 % interval.

    Where the metric is no mean over rows also `gain_p`: the share of resamples in which the student is not better.
    """
    if not task.corpus:
        difference = task.merits(student) - task.merits(control)
        return {"gain_over_control": float(difference.mean()), "gain_ci95": list(interval(difference))}
    whole = [task.from_tally(task.tally(said).sum(0)) for said in (student, control)]
    differences = resampled(task, student) - resampled(task, control)
    low, high = np.percentile(differences, [2.5, 97.5])
    return {
        "gain_over_control": whole[0] - whole[1],
        "gain_ci95": [float(low), float(high)],
        "gain_p": float((1 + (differences <= 0).sum()) / (1 + RESAMPLES)),
    }


def score(task: Task, said: Predictions) -> dict[str, Any]:
    """One model's entry of report.json: score, scores with an interval, and what else the task knows."""
    scores = task.scores(said)
    whole = {key: scores.pop(key) for key in ("confusion", "calibration") if key in scores}
    if task.corpus:
        bounds: Sequence[float] = np.percentile(resampled(task, said), [2.5, 97.5]).tolist()
    else:
        bounds = interval(task.merits(said))
    scores[f"{task.metric}_ci95"] = list(bounds)
    return {"score": scores[task.metric], "scores": scores} | whole


def agreement(task: Task, one: Predictions, other: Predictions) -> float:
    """The share of positions at which two models answer the same."""
    return float(task.same(one, other).mean())


def verdict(
    task: Task, models: dict[str, dict[str, Any]], said: dict[str, Predictions], shared: bool = True
) -> dict[str, Any]:
    """The comparison of student, control and teacher on the same rows (without its sentence).

    Its `speedup` is that of the student, measured in turns with the teacher; of an ensemble, whose members are not all loaded at once,
    the ratio of `throughput_per_s`.

    Args:
        shared: teacher and student have the same classes; else how near they are cannot be known.
    """
    student, teacher, control = models["student"], models["teacher"], models.get("control")
    fast, slow = student["throughput_per_s"], teacher["throughput_per_s"]
    found: dict[str, Any] = {"gain_over_control": None, "gain_ci95": None}
    if control is not None:
        found = gain(task, said["student"], said["control"])
    found |= {"agreement": None, "kl_to_teacher": None}
    if shared:
        away = task.divergence(said["teacher"], said["student"])
        found["agreement"] = agreement(task, said["teacher"], said["student"])
        found["kl_to_teacher"] = float(away.mean())
        if control is not None:
            nearer = said["student"].means(task.divergence(said["teacher"], said["control"]) - away)
            found["kl_gain_over_control"] = float(nearer.mean())
            found["kl_gain_ci95"] = list(interval(nearer))
    known = teacher["score"] is not None
    return {
        "retention": task.retention(student["score"], teacher["score"]) if known else None,
        **found,
        "compression": teacher["parameters"] / student["parameters"] if teacher["parameters"] else None,
        "speedup": student["speedup"] or (fast / slow if fast and slow else None),
    }
