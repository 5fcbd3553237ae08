"""Scores with confidence intervals, and the comparison of teacher, control and student."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from kdcli.tasks.base import Predictions, Task

RESAMPLES = 10_000
MOST = 10_000_000
"""Numbers of resamples that are in memory at once."""


def interval(values: np.ndarray, seed: int = 0) -> tuple[float, float]:
    """95 % percentile bootstrap interval of the mean of (N,) values.

    For the paired comparison of two models the values are the differences of their per_example_scores on the same
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
    sufficient_statistics = task.sufficient_statistics(said)
    rows = len(sufficient_statistics)
    sums = np.concatenate(
        [drawn @ sufficient_statistics for drawn in _resamples(np.full(rows, 1 / rows), rows, seed)]
    )
    return np.asarray([task.score_from_statistics(each) for each in sums])


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
        difference = task.per_example_scores(student) - task.per_example_scores(control)
        return {"gain_over_control": float(difference.mean()), "gain_ci95": list(interval(difference))}
    whole = [
        task.score_from_statistics(task.sufficient_statistics(said).sum(0)) for said in (student, control)
    ]
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
        bounds = interval(task.per_example_scores(said))
    scores[f"{task.metric}_ci95"] = list(bounds)
    return {"score": scores[task.metric], "scores": scores} | whole


def agreement(task: Task, one: Predictions, other: Predictions) -> float:
    """The share of positions at which two models answer the same."""
    return float(task.agreement(one, other).mean())


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
