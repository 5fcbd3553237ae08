"""Intervals and p-values: how often they are right where the truth is known, with few rows and with many."""

from __future__ import annotations

import numpy as np
import pytest

from kdcli.evaluation.statistics import (
    LEVEL,
    Gain,
    bootstrap_gain,
    mean_interval,
    paired_gain,
    seeds_gain,
)


def discordant(rng: np.random.Generator, rows: int, better: float, worse: float) -> np.ndarray:
    """Differences of 0/1 scores: the shares of rows of which one model alone is right."""
    return rng.choice([1.0, -1.0, 0.0], rows, p=[better, worse, 1 - better - worse])


@pytest.mark.parametrize(("rows", "share"), [(12, 0.5), (60, 0.95), (400, 0.3)])
def test_an_interval_holds_the_mean_as_often_as_it_says(rows: int, share: float) -> None:
    """An interval of the values in place of their mean; one that is half as wide; or one that has no width with few rows."""
    rng = np.random.default_rng(0)
    bounds = [mean_interval((rng.random(rows) < share).astype(float)) for _ in range(500)]
    assert np.mean([low <= share <= high for low, high in bounds]) >= 0.92


def test_a_score_of_all_rows_right_is_uncertain() -> None:
    """Ten right answers of ten prove no accuracy of 100 %."""
    low, high = mean_interval(np.ones(10))
    assert 0.6 < low < 0.8
    assert high == pytest.approx(1)
    assert mean_interval(np.full(5, -2.5)) == (-2.5, -2.5)


@pytest.mark.parametrize(("rows", "share"), [(6, 0.5), (20, 0.3), (50, 0.06), (300, 0.02), (1000, 0.2)])
def test_models_that_are_equally_good_differ_as_rarely_as_promised(rows: int, share: float) -> None:
    """With few rows that differ, the asymptotic test of McNemar and the bootstrap call chance a gain too often."""
    rng = np.random.default_rng(1)
    gains = [paired_gain(discordant(rng, rows, share / 2, share / 2)) for _ in range(1500)]
    assert np.mean([gain.p < LEVEL for gain in gains]) < 0.065


@pytest.mark.parametrize("rows", [5, 12, 60])
@pytest.mark.parametrize("spread", ["normal", "ties"])
def test_scores_that_are_no_shares(rows: int, spread: str) -> None:
    """Log-probabilities and F1: few rows, and rows most of which do not differ at all."""
    rng = np.random.default_rng(2)
    wrong = 0
    for _ in range(300):
        values = rng.normal(size=rows)
        if spread == "ties":
            values *= rng.random(rows) < 0.2
        wrong += paired_gain(values).p < LEVEL
    assert wrong / 300 < 0.09


@pytest.mark.parametrize(
    "differences",
    [
        *(np.r_[np.ones(k), np.zeros(45)] for k in (0, 3, 4, 5, 9)),
        np.r_[np.ones(12), -np.ones(4), np.zeros(500)],
        np.linspace(-0.2, 0.9, 40),
        np.linspace(-0.5, 0.7, 6),
        np.full(7, 0.25),
        np.r_[np.full(5, 0.4), np.zeros(200)],
    ],
)
def test_interval_and_p_value_agree(differences: np.ndarray) -> None:
    """A gain whose interval excludes 0 is told with p = 0.06, or the other way round."""
    for values in (differences, -differences):
        gain = paired_gain(values)
        assert gain.interval is not None
        low, high = gain.interval
        assert (gain.p < LEVEL) == (low > 0 or high < 0)
        assert low <= gain.value <= high


def test_gains_of_few_rows() -> None:
    """Four rows of which one model alone is right are called a gain; or so few rows claim to show one."""
    assert paired_gain(np.r_[np.ones(4), np.zeros(46)]).p > LEVEL
    assert paired_gain(np.r_[np.ones(5), np.zeros(45)]).p < LEVEL
    assert paired_gain(np.ones(4)).smallest is None
    assert paired_gain(np.asarray([0.7])) == Gain(0.7, None, 1.0, None)


def test_the_smallest_gain_is_shown_in_four_of_five_samples() -> None:
    """A test split is called large enough for a gain that it would miss, or too small for one that it would show."""
    rng = np.random.default_rng(4)
    rows, both = 1000, 0.2
    smallest = paired_gain(discordant(rng, rows, both / 2, both / 2)).smallest
    assert smallest == pytest.approx(2.8 * (both / rows) ** 0.5, rel=0.1)
    better, worse = both / 2 + smallest / 2, both / 2 - smallest / 2
    shown = np.mean([paired_gain(discordant(rng, rows, better, worse)).p < LEVEL for _ in range(500)])
    assert 0.72 < shown < 0.88
    assert paired_gain(np.zeros(1000)).smallest == pytest.approx(0.005), (
        "rows that all agree prove nothing finer"
    )


def test_the_interval_of_resamples_is_wider_with_few_rows() -> None:
    """The bootstrap of ten rows is too narrow by a tenth or more."""
    draws = np.random.default_rng(0).normal(0.5, 0.2, 10_000)
    few, many = bootstrap_gain(0.5, draws, 10), bootstrap_gain(0.5, draws, 10_000)
    assert few.interval is not None
    assert many.interval is not None
    assert few.interval[1] - few.interval[0] > 1.15 * (many.interval[1] - many.interval[0])
    assert many.p == pytest.approx(0.0124, abs=0.004)
    assert few.p > many.p
    for shift in (0.35, 0.4, 0.45, -0.4):
        gain = bootstrap_gain(shift, draws - 0.5 + shift, 30)
        assert gain.interval is not None
        assert (gain.p < LEVEL) == (gain.interval[0] > 0 or gain.interval[1] < 0)


def test_identical_models_show_nothing() -> None:
    """Two models with the same texts divide by 0, or one is better."""
    gain = bootstrap_gain(0.0, np.zeros(10_000), 50)
    assert (gain.interval, gain.p, gain.smallest) == ((0, 0), 1, None)
    assert seeds_gain(np.zeros((3, 50))).p == 1


@pytest.mark.parametrize("seeds", [2, 3, 5])
@pytest.mark.parametrize("between", [0.0, 0.02, 0.1])
def test_an_interval_over_seeds_holds_the_mean_of_all_seeds(seeds: int, between: float) -> None:
    """The spread of seeds is ignored, so that a lucky pair of seeds is a gain; or the rows are, so that seeds make up for them."""
    rng, held = np.random.default_rng(5), 0
    for _ in range(400):
        gains = rng.normal(0, between, (seeds, 1)) + rng.normal(0, 0.3, 200)
        interval = seeds_gain(gains + rng.normal(0, 0.3, (seeds, 200))).interval
        assert interval is not None
        held += interval[0] <= 0 <= interval[1]
    assert held / 400 >= 0.92
