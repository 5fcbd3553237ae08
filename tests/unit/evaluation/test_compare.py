"""Intervals and gains: coverage on data whose truth is known, and pairs that are pairs."""

from __future__ import annotations

import numpy as np
import pytest

from kdcli.evaluation.compare import (
    agreement,
    chance_over_seeds,
    compare_with_chance,
    gain,
    gain_over_seeds,
    score,
    verdict,
)
from kdcli.tasks.base import Predictions
from kdcli.tasks.causal_lm.task import CausalLM
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


def test_a_gain_is_paired() -> None:
    """Two models with the same mistakes differ by nothing, however many they are."""
    predicted = flipped(LABELS, 0.3, 1)
    same = gain(TASK, predictions(LABELS, predicted), predictions(LABELS, predicted))
    assert (same["gain_over_control"], same["gain_p"]) == (0.0, 1.0)
    assert same["gain_ci95"] == pytest.approx([-0.0019, 0.0019], abs=1e-4)
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


def test_a_model_is_compared_with_chance_on_the_same_rows() -> None:
    """A student that gives everything the same label counts as one that has learnt; or one that has learnt does not."""
    labels = (np.random.default_rng(3).random(400) < 0.4).astype(int)
    outputs = {
        "student": predictions(labels, flipped(labels, 0.2, 1)),
        "control": predictions(labels, np.zeros(400, int)),
    }
    chance = compare_with_chance(TASK, outputs)
    assert chance is not None
    assert (chance["metric"], chance["score"]) == ("accuracy", pytest.approx(1 - labels.mean()))
    assert chance["student"][0] > 0.1
    assert chance["control"][0] <= 0 <= chance["control"][1]


def test_a_rare_class_that_is_found_is_better_than_chance() -> None:
    """With 3 % of one class a good model has hardly more accuracy than one that never predicts the class, and passes for useless."""
    labels = np.zeros(600, int)
    labels[:18] = 1
    found = labels.copy()
    found[14:24] = 1 - found[14:24]
    useless = np.zeros(600, int)
    chance = compare_with_chance(
        TASK, {"student": predictions(labels, found), "control": predictions(labels, found)}
    )
    assert chance is not None
    assert chance["metric"] == "macro_f1"
    assert chance["score"] == pytest.approx(TASK.scores(predictions(labels, useless))["macro_f1"])
    assert chance["student"][0] > 0.1
    same = compare_with_chance(
        TASK, {"student": predictions(labels, useless), "control": predictions(labels, found)}
    )
    assert same is not None
    assert same["student"][0] <= 0 < same["control"][0]


def test_one_seed_is_a_gain_and_several_are_their_mean() -> None:
    """The gain over seeds is that of the first seed, or of students against the controls of other seeds."""
    students = [predictions(LABELS, flipped(LABELS, 0.2, seed)) for seed in (1, 2, 3)]
    controls = [predictions(LABELS, flipped(LABELS, share, 9)) for share in (0.25, 0.3, 0.28)]
    assert gain_over_seeds(TASK, students[:1], controls[:1]) == gain(TASK, students[0], controls[0])
    over = gain_over_seeds(TASK, students, controls)
    gains = [gain(TASK, *pair)["gain_over_control"] for pair in zip(students, controls, strict=True)]
    assert over["gain_over_control"] == pytest.approx(np.mean(gains))
    low, high = over["gain_ci95"]
    assert low < over["gain_over_control"] < high
    assert over["smallest_gain"] > 0


def test_the_worst_seed_is_compared_with_chance() -> None:
    """One seed that learnt nothing is judged by the seeds that did."""
    constant = predictions(LABELS, np.zeros(2000, int))
    students = [predictions(LABELS, flipped(LABELS, 0.2, seed)) for seed in (1, 2)]
    controls = [predictions(LABELS, flipped(LABELS, 0.3, 9)), constant]
    chance = chance_over_seeds(TASK, students, controls)
    pairs = [
        compare_with_chance(TASK, {"student": student, "control": control})
        for student, control in zip(students, controls, strict=True)
    ]
    assert chance is not None
    assert all(pair is not None for pair in pairs)
    assert chance["control"] == pairs[1]["control"]
    assert chance["control"][0] <= 0 < chance["student"][0] == min(pair["student"][0] for pair in pairs)
    assert "control" not in chance_over_seeds(TASK, students, [])


def test_a_language_model_must_beat_the_frequencies_of_tokens() -> None:
    """A student that gives each token its frequency, whatever stands before it, counts as one that has learnt the language."""
    rng = np.random.default_rng(5)
    frequencies = np.r_[np.full(5, 0.1), np.full(500, 0.001)]
    labels = rng.choice(len(frequencies), 3000, p=frequencies)

    def model(gain: float) -> Predictions:
        log_prob = np.log(frequencies[labels]) + gain + rng.normal(0, 0.1, 3000)
        return Predictions({"log_prob": log_prob.astype(np.float32), "top": labels}, labels, np.full(300, 10))

    chance = compare_with_chance(CausalLM(), {"student": model(0.5), "control": model(-0.3)})
    assert chance is not None
    assert chance["score"] == pytest.approx(float(np.log(frequencies[labels]).mean()), abs=0.25)
    assert chance["student"][0] > 0 > chance["control"][1]
