"""Computes confidence intervals and tests of means and of paired differences, over rows and over seeds, for any task."""

from __future__ import annotations

import math
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np

LEVEL = 0.05
"""The level of tests and intervals: intervals hold the true value in 1 - LEVEL of all samples, and a difference is significant if p < LEVEL."""
POWER = 0.8
"""The share of samples in which a gain of the size `Gain.smallest` is shown."""
SIGN_FLIPS = 10_000
MOST_FLIPPED = 500
"""The number of differing rows above which the t test is exact enough, and signs are not flipped."""
FEWEST_DISCORDANT = 5
"""The least number of rows that must differ, all in the same direction, for p < LEVEL (mid-p: 2 · 0.5^5 / 2 = 0.031)."""
ROUNDING = 1e-9
"""The relative difference below which sums count as equal."""
_Z = NormalDist().inv_cdf(1 - LEVEL / 2)


@dataclass(frozen=True)
class Gain:
    """A difference of two scores on the same rows.

    Interval and p-value agree: the interval excludes 0 if and only if `p` < LEVEL.

    Attributes:
        value: the difference.
        interval: its 95 % interval; None: one row shows no uncertainty.
        p: of the hypothesis that there is no difference, two-sided.
        smallest: the smallest difference that is shown in 80 % of samples like this one; None: such a sample can show none.
    """

    value: float
    interval: tuple[float, float] | None
    p: float
    smallest: float | None


def mean_interval(values: np.ndarray) -> tuple[float, float]:
    """95 % interval of the mean of (N,) values: Wilson's score interval for values that are 0 or 1 (Wilson 1927), else Student's t interval.

    One value that is neither 0 nor 1 has an interval without width.
    """
    rows, mean = len(values), float(values.mean())
    if np.isin(values, (0.0, 1.0)).all():
        centre, shrunk = mean + _Z**2 / (2 * rows), 1 + _Z**2 / rows
        reach = _Z * math.sqrt(mean * (1 - mean) / rows + _Z**2 / (4 * rows**2))
        return max(0.0, (centre - reach) / shrunk), min(1.0, (centre + reach) / shrunk)
    reach = _t(1 - LEVEL / 2, rows - 1) * _standard_error(values) if rows > 1 else 0.0
    return mean - reach, mean + reach


def paired_gain(differences: np.ndarray) -> Gain:
    """Return the mean of (N,) differences of two models' scores of the same rows.

    Differences of 0/1 scores: Tango's score interval (Tango 1998, https://doi.org/10.1002/(SICI)1097-0258(19980430)17:8<891::AID-SIM780>3.0.CO;2-B) and
    the mid-p McNemar test, which holds its level with few rows that differ (Fagerland et al. 2013, https://doi.org/10.1186/1471-2288-13-91).
    Other differences: the t interval, and the sign-flip permutation test (Fisher 1935). The larger of the p-values of interval and test
    counts; where the test shows no difference, the interval is extended to 0.
    """
    rows, mean = len(differences), float(differences.mean())
    if np.isin(differences, (-1.0, 0.0, 1.0)).all():
        better, worse = int((differences > 0).sum()), int((differences < 0).sum())
        smallest = None
        if rows >= FEWEST_DISCORDANT:
            error = _standard_error(differences)
            smallest = max(FEWEST_DISCORDANT / rows, (_Z + NormalDist().inv_cdf(POWER)) * error)
        interval, p = _tango(better, worse, rows), _mcnemar(better, worse)
        return _agreeing(mean, interval, p, smallest)
    if rows < 2:
        return Gain(mean, None, 1.0, None)
    return _t_gain(mean, _standard_error(differences), rows - 1, _sign_flip(differences))


def bootstrap_gain(value: float, resampled: np.ndarray, rows: int) -> Gain:
    """Return the difference of two scores that are no means over rows.

    The percentile interval is expanded for few rows (Hesterberg 2015, section 4.3, https://doi.org/10.1080/00031305.2015.1089789).

    Args:
        resampled: the difference on each resample of the rows, (R,) (Koehn 2004, https://aclanthology.org/W04-3250).
        rows: the number of rows.
    """
    if rows < 2:
        return Gain(value, None, 1.0, None)
    widen = math.sqrt(rows / (rows - 1))
    tail = _normal_tail(widen * _t(1 - LEVEL / 2, rows - 1))
    low, high = np.quantile(resampled, [tail, 1 - tail])
    side = min((resampled <= 0).sum(), (resampled >= 0).sum())
    share = min(0.5, (1 + float(side)) / (1 + len(resampled)))
    p = 2 * _t_tail(-NormalDist().inv_cdf(share) / widen, rows - 1)
    error = float(resampled.std(ddof=1))
    return _agreeing(value, (float(low), float(high)), p, _smallest(error, rows - 1))


def seeds_gain(differences: np.ndarray) -> Gain:
    """Return the mean difference of two models that were trained under several seeds and scored on the same rows, over seeds and rows.

    Args:
        differences: of seed and row, (S, N), S > 1.
    """
    seeds, rows = differences.shape
    mean = float(differences.mean())
    by_seed, by_row = differences.mean(1), differences.mean(0)
    residuals = differences - by_seed[:, None] - by_row + mean
    between_seeds = float(by_seed.var(ddof=1)) / seeds
    if rows < 2:
        return _t_gain(mean, math.sqrt(between_seeds), seeds - 1)
    both = float((residuals**2).sum()) / ((seeds - 1) * (rows - 1)) / (seeds * rows)
    return combined_gain(mean, between_seeds, float(by_row.var(ddof=1)) / rows, both, seeds, rows)


def combined_gain(
    value: float, between_seeds: float, between_rows: float, residual: float, seeds: int, rows: int
) -> Gain:
    """Return a gain over seeds and rows, both of which are samples: the two-way random effects model of studies with several readers and cases, with
    its degrees of freedom (Hillis 2007, https://doi.org/10.1002/sim.2532).

    Args:
        value: the mean gain.
        between_seeds: the variance of the mean of the seeds, from the spread of their gains.
        between_rows: the variance of the mean over rows, from the spread of rows.
        residual: what both hold of the interaction of seeds and rows.
    """
    variance = between_seeds + max(0.0, between_rows - residual)
    freedom = float(rows - 1)
    if between_seeds > 0:
        freedom = min(freedom, (seeds - 1) * (variance / between_seeds) ** 2)
    if variance < between_rows:  # seeds that agree by chance make no row more certain
        variance, freedom = between_rows, float(rows - 1)
    freedom = min(freedom, seeds * (seeds - 1))  # two seeds hardly show how much seeds differ
    return _t_gain(value, math.sqrt(variance), freedom)


def _t_gain(value: float, error: float, freedom: float, p: float = 0.0) -> Gain:
    """Return a gain by Student's t; its p-value is at least `p`."""
    if error <= 0:
        return _agreeing(value, (value, value), p if value else 1.0, None)
    reach = _t(1 - LEVEL / 2, freedom) * error
    by_t = 2 * _t_tail(abs(value) / error, freedom)
    return _agreeing(value, (value - reach, value + reach), max(p, by_t), _smallest(error, freedom))


def _agreeing(value: float, interval: tuple[float, float], p: float, smallest: float | None) -> Gain:
    """Return an interval and a p-value that agree: the more cautious of the two counts."""
    low, high = interval
    if p >= LEVEL:
        low, high = min(low, 0.0), max(high, 0.0)
    elif low <= 0 <= high:
        p = LEVEL
    return Gain(value, (low, high), min(p, 1.0), smallest)


def _smallest(error: float, freedom: float) -> float | None:
    return (_t(1 - LEVEL / 2, freedom) + _t(POWER, freedom)) * error or None


def _standard_error(values: np.ndarray) -> float:
    return float(values.std(ddof=1)) / math.sqrt(len(values)) if len(values) > 1 else 0.0


def _t(share: float, freedom: float) -> float:
    """Return the quantile of Student's t distribution."""
    # scipy takes 0.3 s to import, and a comparison of classifiers does not need it
    from scipy.special import stdtrit

    return float(stdtrit(freedom, share))


def _t_tail(quantile: float, freedom: float) -> float:
    """Return the probability of a larger value than `quantile` by Student's t distribution."""
    from scipy.special import stdtr

    return float(stdtr(freedom, -quantile))


def _normal_tail(quantile: float) -> float:
    return math.erfc(quantile / math.sqrt(2)) / 2


def _mcnemar(better: int, worse: int) -> float:
    """Return the mid-p of the exact test of McNemar, two-sided."""
    discordant, fewer = better + worse, min(better, worse)
    if better == worse:
        return 1.0
    all_ways = math.lgamma(discordant + 1) - discordant * math.log(2)
    shares = [
        math.exp(all_ways - math.lgamma(count + 1) - math.lgamma(discordant - count + 1))
        for count in range(fewer + 1)
    ]  # of the binomial distribution
    return 2 * (math.fsum(shares) - shares[-1] / 2)


def _tango(better: int, worse: int, rows: int) -> tuple[float, float]:
    """Return the difference of paired proportions that the score test does not reject, found by bisection."""
    gain = (better - worse) / rows

    def rejected(difference: float) -> bool:
        # the maximum likelihood estimate of the share of rows of which the second model alone is right
        linear = -better - worse + (2 * rows - better + worse) * difference
        constant = -worse * difference * (1 - difference)
        share = (math.sqrt(max(0.0, linear**2 - 8 * rows * constant)) - linear) / (4 * rows)
        variance = rows * (2 * share + difference * (1 - difference))
        distance = better - worse - rows * difference
        return variance <= 0 or distance**2 > _Z**2 * variance

    bounds = []
    for inside, outside in ((gain, -1.0), (gain, 1.0)):
        if not rejected(outside * (1 - 1e-12)):
            bounds.append(outside)
            continue
        for _ in range(50):
            middle = (inside + outside) / 2
            inside, outside = (inside, middle) if rejected(middle) else (middle, outside)
        bounds.append(inside)
    return bounds[0], bounds[1]


def _sign_flip(differences: np.ndarray) -> float:
    """Return the share of assignments of signs whose mean is as far from 0 as that of the differences; 0: there are so many differences that the
    t test suffices. All assignments are taken if they are few, else `SIGN_FLIPS` random ones."""
    values = differences[differences != 0]
    if len(values) > MOST_FLIPPED:
        return 0.0
    if not len(values):
        return 1.0
    reached = abs(float(values.sum())) - ROUNDING * float(np.abs(values).sum())
    if 2 ** len(values) <= SIGN_FLIPS:
        bits = np.arange(2 ** len(values))[:, None] >> np.arange(len(values)) & 1
        return float((np.abs((2 * bits - 1) @ values) >= reached).mean())
    signs = np.random.default_rng(0).integers(0, 2, (SIGN_FLIPS, len(values)), np.int8)
    further = (np.abs(2 * (signs @ values) - values.sum()) >= reached).sum()
    return (1 + float(further)) / (1 + SIGN_FLIPS)
