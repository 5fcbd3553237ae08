"""Checks the gates of an export: how far an artifact may be from the torch student, and what it may cost on the device."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from kdcli.config.schema import Budget, Hardware, Tolerance
from kdcli.evaluation.compare import agreement
from kdcli.exporting.artifacts import ArtifactRun
from kdcli.tasks.base import Predictions, Task

LEAST = ("agreement", "generated", "same_tokens", "same_texts")
"""The shares of `parity` that a tolerance bounds from below."""


def parity(
    task: Task, student: Predictions, student_score: float, run: ArtifactRun, score: float
) -> dict[str, float]:
    """Return how far an artifact is from the torch student: `score_drop`, `agreement`, the largest difference of an output, and the shares of the
    run."""
    result = {"score_drop": student_score - score}
    outputs = run.predictions.arrays
    if outputs:
        key = "logits" if task.labels else "log_prob"
        result["agreement"] = agreement(task, student, run.predictions)
        result["max_abs_difference"] = float(np.abs(student[key] - outputs[key]).max())
        if task.labels:
            apart = _softmax(student[key]) - _softmax(outputs[key])
            result["max_abs_difference_of_probabilities"] = float(np.abs(apart).max())
    return result | run.shares


def tolerance_of(hardware: Hardware, name: str, precision: str, task: str) -> Tolerance:
    """Return the tolerance of a file: that of its name, of its precision, of its precision for a task, or of the device."""
    names = (name, precision, f"{task}_{precision}")
    own = (hardware.tolerances[each] for each in names if each in hardware.tolerances)
    return next(own, hardware.tolerance)


def within(tolerance: Tolerance, parity: Mapping[str, float]) -> bool:
    return parity["score_drop"] <= tolerance.score_drop and all(
        parity[key] >= getattr(tolerance, key) for key in LEAST if key in parity
    )


def check_budget(budget: Budget, entry: Mapping[str, Any]) -> dict[str, Any]:
    """Return the limits that are set, each with the value of an artifact and whether it is met, and `met` for all of them. A value that is not known
    is None and misses its limit."""
    most = {
        "max_bytes": entry["bytes"],
        "max_latency_ms_p95": entry["latency_ms"]["p95"],
        "max_memory_bytes": entry["peak_memory_bytes"],
    }
    least = {
        "min_retention": entry["retention"],
        "min_agreement": (entry["parity"] or {}).get("agreement"),
    }
    limits = {key: limit for key, limit in budget.model_dump().items() if limit is not None}
    checked = {}
    for key, limit in limits.items():
        value = (most | least)[key]
        met = value is not None and (value <= limit if key in most else value >= limit)
        checked[key] = {"limit": limit, "value": value, "met": met}
    return checked | {"met": all(entry["met"] for entry in checked.values())}


def _softmax(logits: np.ndarray) -> np.ndarray:
    """Return probabilities (N, C), float64."""
    logits = logits.astype(np.float64)
    probabilities: np.ndarray = np.exp(logits - np.logaddexp.reduce(logits, axis=1, keepdims=True))
    return probabilities
