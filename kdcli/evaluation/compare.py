"""Scores with confidence intervals, and the comparison of teacher, control and student."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from kdcli.tasks.base import Predictions, Task

RESAMPLES = 10_000
BLOCK = 10_000_000
"""The number of counts that are in memory at once."""


def interval(values: np.ndarray, seed: int = 0) -> tuple[float, float]:
    """95 % percentile bootstrap interval of the mean of (N,) values.

    For the paired comparison of two models the values are the differences of their per_example_scores on the same
    examples (Koehn 2004, https://aclanthology.org/W04-3250). A resample of N examples is determined by the count of each
    distinct value, so the counts are drawn.
    """
    distinct, counts = np.unique(values, return_counts=True)
    draws = _resamples(counts / len(values), len(values), seed)
    means = np.concatenate([drawn @ distinct for drawn in draws]) / len(values)
    low, high = np.percentile(means, [2.5, 97.5])
    return float(low), float(high)


def resampled(task: Task, predictions: Predictions, seed: int = 0) -> np.ndarray:
    """The metric on `RESAMPLES` resamples of the rows, for a task whose metric is no mean over rows. The resamples are the same for every
    model, so that differences are paired (Koehn 2004)."""
    sufficient_statistics = task.sufficient_statistics(predictions)
    rows = len(sufficient_statistics)
    sums = np.concatenate(
        [drawn @ sufficient_statistics for drawn in _resamples(np.full(rows, 1 / rows), rows, seed)]
    )
    return np.asarray([task.score_from_statistics(each) for each in sums])


def _resamples(shares: np.ndarray, rows: int, seed: int) -> Iterator[np.ndarray]:
    """The counts of (K,) values among `rows` that are drawn: blocks of (n, K), `RESAMPLES` in all."""
    random = np.random.default_rng(seed)
    block = max(1, BLOCK // len(shares))
    for done in range(0, RESAMPLES, block):
        yield random.multinomial(rows, shares, size=min(block, RESAMPLES - done))


def gain(task: Task, student: Predictions, control: Predictions) -> dict[str, Any]:
    """The student's score less the control's, with its paired 95 % interval.

    If the metric is no mean over rows, also `gain_p`: the share of resamples in which the student is not better.
    """
    if not task.corpus:
        difference = task.per_example_scores(student) - task.per_example_scores(control)
        return {"gain_over_control": float(difference.mean()), "gain_ci95": list(interval(difference))}
    scores = [
        task.score_from_statistics(task.sufficient_statistics(predictions).sum(0))
        for predictions in (student, control)
    ]
    differences = resampled(task, student) - resampled(task, control)
    low, high = np.percentile(differences, [2.5, 97.5])
    return {
        "gain_over_control": scores[0] - scores[1],
        "gain_ci95": [float(low), float(high)],
        "gain_p": float((1 + (differences <= 0).sum()) / (1 + RESAMPLES)),
    }


def score(task: Task, predictions: Predictions) -> dict[str, Any]:
    """The scores of one model for report.json: `score`, `scores` with an interval, and further figures of the task."""
    scores = task.scores(predictions)
    figures = {key: scores.pop(key) for key in ("confusion", "calibration") if key in scores}
    if task.corpus:
        bounds: Sequence[float] = np.percentile(resampled(task, predictions), [2.5, 97.5]).tolist()
    else:
        bounds = interval(task.per_example_scores(predictions))
    scores[f"{task.metric}_ci95"] = list(bounds)
    return {"score": scores[task.metric], "scores": scores} | figures


def agreement(task: Task, first: Predictions, second: Predictions) -> float:
    """The share of positions at which two models predict the same."""
    return float(task.agreement(first, second).mean())


def verdict(
    task: Task, models: dict[str, dict[str, Any]], predictions: dict[str, Predictions], shared: bool = True
) -> dict[str, Any]:
    """The comparison of student, control and teacher on the same rows, without its sentence.

    `speedup` is the student's, measured interleaved with the teacher. For an ensemble, whose members are not loaded at the same time,
    it is the ratio of `throughput_per_s`.

    Args:
        shared: teacher and student have the same classes; otherwise their agreement and divergence are None.
    """
    student, teacher, control = models["student"], models["teacher"], models.get("control")
    fast, slow = student["throughput_per_s"], teacher["throughput_per_s"]
    result: dict[str, Any] = {"gain_over_control": None, "gain_ci95": None}
    if control is not None:
        result = gain(task, predictions["student"], predictions["control"])
    result |= {"agreement": None, "kl_to_teacher": None}
    if shared:
        divergence = task.divergence(predictions["teacher"], predictions["student"])
        result["agreement"] = agreement(task, predictions["teacher"], predictions["student"])
        result["kl_to_teacher"] = float(divergence.mean())
        if control is not None:
            gains = predictions["student"].means(
                task.divergence(predictions["teacher"], predictions["control"]) - divergence
            )
            result["kl_gain_over_control"] = float(gains.mean())
            result["kl_gain_ci95"] = list(interval(gains))
    has_score = teacher["score"] is not None
    return {
        "retention": task.retention(student["score"], teacher["score"]) if has_score else None,
        **result,
        "compression": teacher["parameters"] / student["parameters"] if teacher["parameters"] else None,
        "speedup": student["speedup"] or (fast / slow if fast and slow else None),
    }
