"""Computes scores with confidence intervals, and compares teacher, control and student."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from datasets import Dataset

from kdcli.evaluation.row_scores import RowScores
from kdcli.evaluation.statistics import (
    Gain,
    bootstrap_gain,
    combined_gain,
    mean_interval,
    paired_gain,
    seeds_gain,
)
from kdcli.files import digest
from kdcli.tasks.base import Predictions, Task

RESAMPLES = 10_000
BLOCK = 10_000_000
"""The number of counts that are in memory at once."""


def resampled(task: Task, *models: Predictions, seed: int = 0) -> np.ndarray:
    """Return the metric of (M,) models on `RESAMPLES` resamples of the rows, (M, R), for a task whose metric is no mean over rows.

    The resamples are the same for all models, so that differences are paired (Koehn 2004, https://aclanthology.org/W04-3250). A resample
    of rows is determined by the count of each distinct row of sums, so the counts are drawn.
    """
    statistics = np.stack([task.sufficient_statistics(each) for each in models], axis=1)
    flat = statistics.reshape(len(statistics), -1)
    distinct, counts = np.unique(flat, axis=0, return_counts=True)
    random = np.random.default_rng(seed)
    block = max(1, BLOCK // len(distinct))
    sums = []
    for done in range(0, RESAMPLES, block):
        size = min(block, RESAMPLES - done)
        sums.append(random.multinomial(len(flat), counts / len(flat), size=size) @ distinct)
    drawn = np.concatenate(sums).reshape(RESAMPLES, len(models), -1)
    return np.asarray(
        [[task.score_from_statistics(each) for each in drawn[:, i]] for i in range(len(models))]
    )


def gain(task: Task, student: Predictions, control: Predictions) -> dict[str, Any]:
    """Return the student's score less the control's, on the same rows.

    Returns:
        `gain_over_control`, its 95 % interval `gain_ci95` and its p-value `gain_p`, which agree, and `smallest_gain`, the smallest gain
        that these rows show in 80 % of samples; None: they show none.
    """
    return _as_json(_paired(task, student, control))


def gain_over_seeds(
    task: Task, students: Sequence[Predictions], controls: Sequence[Predictions]
) -> dict[str, Any]:
    """Return the mean gain of students over the controls of the same seeds, with its interval over seeds and rows (`combined_gain`), which holds
    for further seeds and rows, not for these alone.

    Args:
        students, controls: their predictions on the same rows, in the order of the seeds.

    Returns:
        The keys of `gain`.
    """
    pairs = list(zip(students, controls, strict=True))
    if len(pairs) == 1:
        return gain(task, *pairs[0])
    if not task.corpus:
        differences = [
            task.per_example_scores(student) - task.per_example_scores(control) for student, control in pairs
        ]
        return _as_json(seeds_gain(np.stack(differences)))
    gains = np.asarray([_score(task, student) - _score(task, control) for student, control in pairs])
    scores = resampled(task, *students, *controls)
    draws = scores[: len(pairs)] - scores[len(pairs) :]
    seeds, rows = len(pairs), len(students[0].counts)
    residual = float((draws - draws.mean(0)).var(axis=1, ddof=1).mean()) / (seeds - 1)
    return _as_json(
        combined_gain(
            float(gains.mean()),
            float(gains.var(ddof=1)) / seeds,
            float(draws.mean(0).var(ddof=1)),
            residual,
            seeds,
            rows,
        )
    )


def _paired(task: Task, first: Predictions, second: Predictions) -> Gain:
    if not task.corpus:
        return paired_gain(task.per_example_scores(first) - task.per_example_scores(second))
    scores = resampled(task, first, second)
    differences = scores[0] - scores[1]
    return bootstrap_gain(_score(task, first) - _score(task, second), differences, len(first.counts))


def _score(task: Task, predictions: Predictions) -> float:
    """Return the headline metric alone."""
    if task.corpus:
        return task.score_from_statistics(task.sufficient_statistics(predictions).sum(0))
    return float(task.per_example_scores(predictions).mean())


def _as_json(gain: Gain) -> dict[str, Any]:
    return {
        "gain_over_control": gain.value,
        "gain_ci95": None if gain.interval is None else list(gain.interval),
        "gain_p": gain.p,
        "smallest_gain": gain.smallest,
    }


def compare_with_chance(task: Task, predictions: Mapping[str, Predictions]) -> dict[str, Any] | None:
    """Compare student and control with chance on the same rows (`Task.chance_predictions`).

    If accuracy does not show that both are better, and nearly all rows are of one class, macro F1 is compared.

    Returns:
        `metric`, the `score` of chance, and the 95 % intervals of what the `student` and the `control` score more; None: the task has
        no such model.
    """
    baseline = task.chance_predictions(predictions["student"])
    if baseline is None:
        return None
    names = [name for name in ("student", "control") if name in predictions]
    result: dict[str, Any] = {}
    for metric in filter(None, (task, task.balanced(baseline))):
        margins = {name: _paired(metric, predictions[name], baseline).interval for name in names}
        result = {"metric": metric.metric, "score": _score(metric, baseline), **margins}
        if all(margin is not None and margin[0] > 0 for margin in margins.values()):
            break
    return {key: list(value) if isinstance(value, tuple) else value for key, value in result.items()}


def chance_over_seeds(
    task: Task, students: Sequence[Predictions], controls: Sequence[Predictions]
) -> dict[str, Any] | None:
    """`compare_with_chance` of several seeds: of student and of control the interval of the seed with the lowest one. A mean over seeds that is
    better than chance may be that of one seed.

    Args:
        students, controls: their predictions on the same rows, in the order of the seeds. There may be no controls.
    """
    pairs = [{"student": student} for student in students]
    for pair, control in zip(pairs, controls, strict=False):
        pair["control"] = control
    compared = [each for each in (compare_with_chance(task, pair) for pair in pairs) if each is not None]
    if not compared:
        return None
    metric = next((each for each in compared if each["metric"] != task.metric), compared[0])
    alike = [each for each in compared if each["metric"] == metric["metric"]]
    lowest = {
        name: min(
            (each[name] for each in alike),
            key=lambda interval: -math.inf if interval is None else interval[0],
        )
        for name in pairs[0]
    }
    return metric | lowest


def score(task: Task, predictions: Predictions) -> dict[str, Any]:
    """Return the scores of one model for report.json: `score`, `scores` with an interval, and further figures of the task."""
    scores = task.scores(predictions)
    figures = {key: scores.pop(key) for key in ("confusion", "calibration") if key in scores}
    if task.corpus:
        bounds: Sequence[float] = np.percentile(resampled(task, predictions)[0], [2.5, 97.5]).tolist()
    else:
        bounds = mean_interval(task.per_example_scores(predictions))
    scores[f"{task.metric}_ci95"] = list(bounds)
    return {"score": scores[task.metric], "scores": scores} | figures


def row_scores(task: Task, rows: Dataset, predictions: Mapping[str, Predictions], student: str) -> RowScores:
    """Return the share of each test row in the headline metric, for several models.

    A metric that is no mean over rows has the jackknife's pseudo-values (Tukey 1958; Efron 1982, chapter 3,
    https://doi.org/10.1137/1.9781611970319), shifted so that their mean is the metric.

    Args:
        rows: the test split, as the models were scored on it.
        student: the model whose targets are recorded; those of a teacher may be other tokens.
    """
    own = predictions[student]
    targets = [own.counts.tolist(), own.labels.tolist(), list(own.pairs)]
    return RowScores(
        task.metric,
        digest(rows["id"][:] if "id" in rows.column_names else [*map(repr, rows)]),
        digest(targets),
        {name: _shares(task, each) for name, each in predictions.items()},
    )


def _shares(task: Task, predictions: Predictions) -> np.ndarray:
    if not task.corpus:
        return np.ascontiguousarray(task.per_example_scores(predictions), np.float64)
    statistics = task.sufficient_statistics(predictions)
    total, count = statistics.sum(0), len(statistics)
    score = task.score_from_statistics(total)
    if count < 2:
        return np.full(count, score)
    without = np.asarray([task.score_from_statistics(total - own) for own in statistics])
    return score + (count - 1) * (without.mean() - without)


def agreement(task: Task, first: Predictions, second: Predictions) -> float:
    """Return the share of positions at which two models predict the same."""
    return float(task.agreement(first, second).mean())


def verdict(
    task: Task, models: dict[str, dict[str, Any]], predictions: dict[str, Predictions], shared: bool = True
) -> dict[str, Any]:
    """Return the comparison of student, control and teacher on the same rows, without its sentence.

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
    result["chance"] = compare_with_chance(task, predictions)
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
            result["kl_gain_ci95"] = list(mean_interval(gains))
    has_score = teacher["score"] is not None
    return {
        "retention": task.retention(student["score"], teacher["score"]) if has_score else None,
        **result,
        "compression": teacher["parameters"] / student["parameters"] if teacher["parameters"] else None,
        "speedup": student["speedup"] or (fast / slow if fast and slow else None),
    }
