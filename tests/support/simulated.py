"""Predictions of models whose true gain is known, and what the verdict says about them."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from scipy.special import ndtri

from kdcli.evaluation.compare import compare_with_chance, gain, gain_over_seeds
from kdcli.report.outcome import outcome
from kdcli.tasks.base import Predictions, Task
from kdcli.tasks.causal_lm.task import CausalLM
from kdcli.tasks.classification.task import Classification

LEVEL, POWER = 0.05, 0.8
"""The largest share of wrong judgements, and the least share of right ones of gains that the rows can show."""


@dataclass(frozen=True)
class Case:
    """A run whose truth is known.

    Attributes:
        metric: accuracy or log_prob.
        rows: test rows.
        seeds: how many students and controls are trained.
        control, gain, teacher: expected scores; the student's is `control + gain`.
        correlation: of the answers of two models to the same row.
        spread: the standard deviation of the gain between seeds; 0 with one seed, which is judged as it is.
        classes, largest: the number of classes, and the share of the most frequent one.
    """

    metric: str
    rows: int
    seeds: int
    control: float
    gain: float
    teacher: float
    correlation: float
    spread: float
    classes: int
    largest: float


class Judged(NamedTuple):
    """A case, the verdict's outcome, and the smallest gain that its rows can show."""

    case: Case
    outcome: str
    smallest: float | None


def draw(rng: np.random.Generator, with_gain: bool) -> Case:
    """A case with its gain, rows, seeds and correlation drawn."""
    metric = rng.choice(["accuracy", "accuracy", "accuracy", "log_prob"])
    rows, seeds = round(math.exp(rng.uniform(math.log(40), math.log(4000)))), int(rng.choice([1, 1, 3, 5]))
    classes = int(rng.choice([2, 3, 10]))
    largest = rng.uniform(1 / classes, 0.6)
    correlation, spread = rng.uniform(0.2, 0.97), rng.uniform(0, 0.02) if seeds > 1 else 0.0
    if metric == "log_prob":
        control, deviation = rng.uniform(-3, -1), 0.8 * math.sqrt(2 - 2 * correlation)
    else:
        control = rng.uniform(min(0.85, largest + 0.1), 0.9)
        deviation = math.sqrt(2 * control * (1 - control) * (1 - correlation))
    true = 0.0
    if with_gain:
        shown = 2.8 * math.hypot(deviation / math.sqrt(rows), 2 * spread)
        true = rng.choice([-1, 1]) * rng.uniform(0.2, 5) * shown
        if metric == "accuracy":
            true = min(max(true, largest + 0.05 - control), 0.97 - control)
    teacher = control + rng.uniform(-0.1, 0.2) * (1 if metric == "log_prob" else min(1, 1 - control))
    return Case(
        str(metric), rows, seeds, control, float(true), teacher, correlation, spread, classes, largest
    )


def judge(case: Case, rng: np.random.Generator) -> Judged:
    """Simulate the predictions of one run, and judge them as a run does."""
    simulate = _language_models if case.metric == "log_prob" else _classifiers
    task, students, controls = simulate(case, rng)
    verdict = (
        gain(task, students[0], controls[0]) if case.seeds == 1 else gain_over_seeds(task, students, controls)
    )
    verdict["chance"] = compare_with_chance(task, {"student": students[0], "control": controls[0]})
    scores = {"teacher": case.teacher}
    for name, each in (("student", students[0]), ("control", controls[0])):
        scores[name] = float(task.per_example_scores(each).mean())
    ended = {"steps": 500, "stopped": "converged", "best_step": 400, "flat": True}
    report: dict[str, Any] = {
        "task": "classification" if case.metric == "accuracy" else "causal_lm",
        "metric": case.metric,
        "test_examples": case.rows,
        "models": {name: {"score": score} for name, score in scores.items()},
        "training": {"student": ended, "control": ended},
        "verdict": verdict,
    }
    return Judged(case, outcome(report)["outcome"], verdict["smallest_gain"])


def _classifiers(case: Case, rng: np.random.Generator) -> tuple[Task, list[Predictions], list[Predictions]]:
    """Answers are right where a normal variable of (model, row) is below the quantile of the accuracy; its row part is shared."""
    rest = (1 - case.largest) / (case.classes - 1)
    labels = rng.choice(case.classes, case.rows, p=[case.largest, *[rest] * (case.classes - 1)])
    difficulty = rng.normal(size=case.rows)

    def answers(accuracy: float) -> Predictions:
        own = rng.normal(size=case.rows)
        latent = math.sqrt(case.correlation) * difficulty + math.sqrt(1 - case.correlation) * own
        right = latent < ndtri(min(max(accuracy, 0.001), 0.999))
        wrong = (labels + rng.integers(1, case.classes, case.rows)) % case.classes
        logits = np.eye(case.classes, dtype=np.float32)[np.where(right, labels, wrong)]
        return Predictions({"logits": logits}, labels, np.ones(case.rows, np.int64))

    students = [answers(case.control + case.gain + each) for each in _of_seeds(case, rng)]
    controls = [answers(case.control) for _ in range(case.seeds)]
    return Classification([str(label) for label in range(case.classes)]), students, controls


def _language_models(
    case: Case, rng: np.random.Generator
) -> tuple[Task, list[Predictions], list[Predictions]]:
    """Log-probabilities of rows of 2 to 12 tokens of 400."""
    counts = rng.integers(2, 13, case.rows)
    labels = rng.integers(0, 400, counts.sum())
    difficulty = rng.standard_t(6, case.rows)

    def answers(log_prob: float) -> Predictions:
        own = rng.standard_t(6, case.rows)
        latent = math.sqrt(case.correlation) * difficulty + math.sqrt(1 - case.correlation) * own
        tokens = log_prob + np.repeat(0.65 * latent, counts) + rng.normal(0, 0.3, len(labels))
        return Predictions({"log_prob": tokens.astype(np.float32), "top": labels}, labels, counts)

    students = [answers(case.control + case.gain + each) for each in _of_seeds(case, rng)]
    return CausalLM(), students, [answers(case.control) for _ in range(case.seeds)]


def _of_seeds(case: Case, rng: np.random.Generator) -> np.ndarray:
    """How far the gain of each seed is from that of all seeds."""
    return rng.normal(0, case.spread, case.seeds) if case.spread else np.zeros(case.seeds)


def simulate(count: int, seed: int = 0) -> list[Judged]:
    """`count` cases, half of them without a gain."""
    rng = np.random.default_rng(seed)
    return [judge(draw(rng, with_gain=bool(each % 2)), rng) for each in range(count)]


def rates(judged: Iterable[Judged]) -> dict[str, tuple[int, int]]:
    """How often the verdict is wrong where there is no gain, and right where there is one that the rows can show: (cases, of how many)."""
    judged = list(judged)
    none = Counter(each.outcome for each in judged if not each.case.gain)
    result = {f"wrong {name}": (none[name], none.total()) for name in ("helped", "hurt")}
    for name, wrong, sign in (("helped", "hurt", 1), ("hurt", "helped", -1)):
        clear = [
            each
            for each in judged
            if each.smallest is not None and sign * each.case.gain >= 2 * each.smallest > 0
        ]
        result[f"right {name}"] = sum(each.outcome == name for each in clear), len(clear)
        signed = [each for each in judged if sign * each.case.gain > 0]
        result[f"{wrong} in place of {name}"] = sum(each.outcome == wrong for each in signed), len(signed)
    return result


def failures(judged: Iterable[Judged]) -> list[str]:
    """The rates that are not as they must be."""
    found = rates(judged)
    return [
        f"{name}: {count} of {total}"
        for name, (count, total) in found.items()
        if (count < POWER * total if name.startswith("right") else count > LEVEL * total)
    ]
