"""Intervals and gains: coverage on data whose truth is known, and pairs that are pairs."""

from __future__ import annotations

import numpy as np
import pytest

from kdcli.evaluation.compare import agreement, gain, interval, score, verdict
from kdcli.tasks.base import Predictions
from kdcli.tasks.classification.task import Classification

TASK = Classification(["bad", "good"])


def predictions(labels: np.ndarray, predicted: np.ndarray, sureness: float = 2.0) -> Predictions:
    logits = np.where(np.arange(2) == predicted[:, None], sureness, 0.0).astype(np.float32)
    return Predictions({"logits": logits}, labels, np.ones(len(labels), np.int64))


def flipped(labels: np.ndarray, share: float, seed: int) -> np.ndarray:
    """Labels of which a share is wrong."""
    wrong = np.random.default_rng(seed).random(len(labels)) < share
    return np.where(wrong, 1 - labels, labels)


LABELS = np.random.default_rng(0).integers(0, 2, 2000)


def test_an_interval_holds_the_mean_as_often_as_it_says() -> None:
    """An interval of the values in place of their mean; or one that is half as wide."""
    held = 0
    for seed in range(200):
        values = (np.random.default_rng(seed).random(400) < 0.3).astype(float)
        low, high = interval(values)
        held += low <= 0.3 <= high
    assert 0.90 <= held / 200 <= 0.985


def test_an_interval_of_equal_values_has_no_width() -> None:
    """A model that is right on every row has no uncertainty that these rows could show."""
    assert interval(np.ones(10)) == (1.0, 1.0)


def test_a_gain_is_paired() -> None:
    """Two models with the same mistakes differ by nothing, however many they are."""
    predicted = flipped(LABELS, 0.3, 1)
    same = gain(TASK, predictions(LABELS, predicted), predictions(LABELS, predicted))
    assert same == {"gain_over_control": 0.0, "gain_ci95": [0.0, 0.0]}
    one_better = predicted.copy()
    one_better[np.flatnonzero(predicted != LABELS)[:60]] = LABELS[np.flatnonzero(predicted != LABELS)[:60]]
    better = gain(TASK, predictions(LABELS, one_better), predictions(LABELS, predicted))
    assert better["gain_over_control"] == pytest.approx(60 / 2000)
    low, high = better["gain_ci95"]
    assert 0.02 < low < 0.03 < high < 0.04  # unpaired it would reach below 0.005


def test_the_verdict_compares_what_it_says() -> None:
    """Retention, agreement, divergence and ratios by the wrong model, or upside down."""
    teacher, student, control = (
        predictions(LABELS, flipped(LABELS, share, seed)) for share, seed in ((0.1, 1), (0.2, 2), (0.3, 3))
    )
    outputs = {"teacher": teacher, "student": student, "control": control}
    models = {name: score(TASK, each) for name, each in outputs.items()}
    for name, parameters, rows_per_second in (
        ("teacher", 100, 10.0),
        ("student", 20, 50.0),
        ("control", 20, 50.0),
    ):
        models[name] |= {"parameters": parameters, "throughput_per_s": rows_per_second, "speedup": None}
    result = verdict(TASK, models, outputs)
    right = {
        name: float((each.arrays["logits"].argmax(1) == LABELS).mean()) for name, each in outputs.items()
    }
    assert models["student"]["score"] == pytest.approx(right["student"])
    assert result["retention"] == pytest.approx(right["student"] / right["teacher"])
    assert result["gain_over_control"] == pytest.approx(right["student"] - right["control"])
    assert result["agreement"] == agreement(TASK, teacher, student)
    assert (result["compression"], result["speedup"]) == (5.0, 5.0)
    assert result["kl_to_teacher"] > 0
    assert result["kl_gain_over_control"] > 0
    assert verdict(TASK, models, outputs, shared=False)["agreement"] is None
