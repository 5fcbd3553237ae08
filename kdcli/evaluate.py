"""Scores of models on a split, and their paired comparison."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import datasets
import numpy as np
import torch
from safetensors.numpy import load_file, save_file

from kdcli.files import replaced
from kdcli.models import Source, label_order, load_config, load_tokenizer, load_whole, parameters
from kdcli.tasks.base import Task

RESAMPLES = 10_000


def examine(
    source: Source, task: Task, rows: datasets.Dataset, max_length: int
) -> tuple[dict[str, Any], np.ndarray]:
    """A checkpoint's size, and its fp32 logits (N, C) on a split, in the order of the task's labels."""
    model = load_whole(source, task)
    order = label_order(model.config, task.labels, source.name)
    tokenizer = load_tokenizer(source, model, max_length)
    logits = task.predict(model, tokenizer, task.encode(tokenizer, rows, max_length))[:, order]
    return size(source, task), logits


def size(source: Source, task: Task) -> dict[str, int]:
    """Parameters, and bytes of the weight files."""
    with torch.device("meta"):
        empty = task.create(load_config(source))
    weights = sum(file.stat().st_size for file in source.path.glob("*.safetensors"))
    return {"parameters": parameters(empty), "bytes": weights}


def save_predictions(path: Path, logits: np.ndarray, labels: np.ndarray) -> None:
    """Logits (N, C) and gold labels (N,) of a split's rows, in their order."""
    with replaced(path) as temporary:
        save_file({"logits": np.ascontiguousarray(logits), "labels": labels.astype(np.int64)}, temporary)


def load_predictions(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """What `save_predictions` wrote."""
    tensors = load_file(path)
    return tensors["logits"], tensors["labels"]


def interval(values: np.ndarray, seed: int = 0) -> tuple[float, float]:
    """95 % percentile bootstrap interval of the mean of (N,) values.

    For the paired comparison of two models the values are the differences of their merits on the same
    examples (Koehn 2004, https://aclanthology.org/W04-3250). Resampling N examples is drawing how often
    each distinct value occurs, so it is done by counts.
    """
    distinct, counts = np.unique(values, return_counts=True)
    draws = np.random.default_rng(seed).multinomial(len(values), counts / len(values), size=RESAMPLES)
    low, high = np.percentile(draws @ distinct / len(values), [2.5, 97.5])
    return float(low), float(high)


def score(task: Task, logits: np.ndarray, labels: np.ndarray) -> dict[str, Any]:
    """One model's entry of report.json: score, scores with an interval, confusion matrix, calibration."""
    scores = task.scores(logits, labels)
    whole = {key: scores.pop(key) for key in ("confusion", "calibration") if key in scores}
    scores[f"{task.metric}_ci95"] = list(interval(task.merits(logits, labels)))
    return {"score": scores[task.metric], "scores": scores} | whole


def agreement(one: np.ndarray, other: np.ndarray) -> float:
    """The share of rows to which two models give the same label."""
    return float((one.argmax(1) == other.argmax(1)).mean())


def divergence(teacher: np.ndarray, student: np.ndarray) -> float:
    """Mean KL(teacher ‖ student) in nats a row, at temperature 1."""
    log_p, log_q = (
        logits - np.logaddexp.reduce(logits, axis=1, keepdims=True) for logits in (teacher, student)
    )
    return float((np.exp(log_p) * (log_p - log_q)).sum(1).mean())


def verdict(
    task: Task,
    models: dict[str, dict[str, Any]],
    logits: dict[str, np.ndarray],
    labels: np.ndarray,
) -> dict[str, Any]:
    """The comparison of student, control and teacher on the same rows (without its sentence)."""
    student, teacher, control = models["student"], models["teacher"], models.get("control")
    gain, ci = None, None
    fast, slow = student["throughput_per_s"], teacher["throughput_per_s"]
    if control is not None:
        difference = task.merits(logits["student"], labels) - task.merits(logits["control"], labels)
        gain, ci = float(difference.mean()), list(interval(difference))
    return {
        "retention": student["score"] / teacher["score"] if teacher["score"] else None,
        "gain_over_control": gain,
        "gain_ci95": ci,
        "agreement": agreement(logits["teacher"], logits["student"]),
        "kl_to_teacher": divergence(
            logits["teacher"].astype(np.float64), logits["student"].astype(np.float64)
        ),
        "compression": teacher["parameters"] / student["parameters"],
        "speedup": fast / slow if fast and slow else None,
    }
