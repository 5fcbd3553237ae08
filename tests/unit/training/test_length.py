"""The length of a training: fixed, or by its validation curve."""

from __future__ import annotations

import math

import pytest

from kdcli.config.tasks import spec_of
from kdcli.config.trainer import Trainer
from kdcli.errors import ConfigError
from kdcli.training.length import Length, Validation, eval_steps, planned_steps, validations

LENGTH = Length(1000, fixed=False, min_steps=100, patience=3, warmup=10, decay=0.25)


def curve(losses: list[float], scores: list[float] | None = None, every: int = 50) -> list[Validation]:
    """Validations at equal distances."""
    return [
        Validation(every * (index + 1), loss, scores[index] if scores else 0.0)
        for index, loss in enumerate(losses)
    ]


FALLING = curve([0.9**index for index in range(19)])
FLAT = curve([1.0, 0.8, 0.6, *[0.5] * 10])


def test_a_curve_that_improves_is_trained_to_the_bound() -> None:
    """A training that ends while it still learns is the fault that `until=converged` mends."""
    assert LENGTH.stable_until(FALLING) is None
    assert LENGTH.total(FALLING) == 1000
    assert LENGTH.stopped(FALLING) == "bound"


def test_a_flat_curve_ends_the_training_after_its_patience() -> None:
    """Without an end, a small data set is trained for as long as a large one."""
    begin = LENGTH.stable_until(FLAT)
    assert begin is not None
    assert 300 <= begin <= 450  # the smoothed loss reaches its floor at step 300
    assert LENGTH.total(FLAT) == math.ceil(begin / 0.75)
    assert LENGTH.stopped(FLAT) == "converged"
    assert LENGTH.is_flat(FLAT)


def test_later_validations_move_no_decision() -> None:
    """A length that is decided again after each validation never ends, or ends elsewhere after a resumption."""
    begin = LENGTH.stable_until(FLAT)
    assert begin is not None
    better = [*[each for each in FLAT if each.step <= begin], Validation(begin + 50, 0.01, 1.0)]
    assert LENGTH.stable_until(better) == begin


def test_a_score_that_rises_keeps_an_overfitted_loss_in_training() -> None:
    """The cross-entropy of a classifier rises long before its accuracy stops rising."""
    scores = [0.5 + 0.02 * index for index in range(13)]
    assert LENGTH.stable_until(curve([1 + 0.1 * index for index in range(13)], scores)) is None
    assert LENGTH.stable_until(curve([1 + 0.1 * index for index in range(13)], [0.5] * 13)) is not None


def test_an_overfitted_training_goes_back() -> None:
    """A learning rate that falls from overfitted weights ends worse than the best validation, and one that falls for long ends late."""
    overfitted = curve(
        [1, 0.6, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0, 1.1], [0.5, 0.7, 0.8, 0.79, 0.78, 0.77, 0.76, 0.75, 0.74]
    )
    begin = LENGTH.stable_until(overfitted)
    assert begin is not None
    assert LENGTH.decays_from(overfitted) == 150 < begin
    assert LENGTH.total(overfitted) == begin + 50  # a quarter of all steps that lead to the weights
    flat = LENGTH.stable_until(FLAT)
    assert LENGTH.decays_from(FLAT) == flat, "a curve that is flat loses steps if it goes back"
    better = curve([1, 0.6, 0.5, *[0.499] * 9], [0.5, 0.7, 0.8, *[0.79] * 9])
    assert LENGTH.decays_from(better) == LENGTH.stable_until(better), "the loss is no worse"
    assert LENGTH.decays_from(FALLING) is None


def test_no_training_ends_before_its_fewest_steps() -> None:
    """A curve is flat during the warm-up too."""
    patient = Length(1000, fixed=False, min_steps=600, patience=1, decay=0.25)
    begin = patient.stable_until(curve([1.0] * 19))
    assert begin is not None
    assert begin >= 450
    assert patient.total(curve([1.0] * 19)) >= 600


def test_the_learning_rate_rises_stays_and_falls() -> None:
    """A rate that jumps, or that is not 0 at the end, loses what the decay is for."""
    end = LENGTH.total(FLAT)
    begin = LENGTH.stable_until(FLAT)
    assert begin is not None
    factors = [LENGTH.factor(step, FLAT) for step in range(end + 1)]
    assert factors[0] == 0
    assert factors[5] == 0.5
    assert set(factors[10:begin]) == {1.0}
    assert all(later < earlier for earlier, later in zip(factors[begin:], factors[begin + 1 :], strict=False))
    assert factors[-1] == 0
    assert LENGTH.factor(750, []) == 1.0  # nothing is decided: it falls over the last part of the bound
    assert LENGTH.factor(875, []) == 0.5


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_loss_that_is_not_finite_ends_the_training(value: float) -> None:
    """A comparison with nan is false: no step would ever be the last but the bound."""
    assert LENGTH.stable_until(curve([value] * 13)) is not None


def test_a_fixed_length_is_flat_only_if_its_curve_is() -> None:
    """A run of 20 steps has no curve, and one that is cut short has a steep one: neither may be judged."""
    fixed = Length(950)
    assert fixed.stopped(FALLING) == "steps"
    assert not fixed.is_flat(
        curve([0.9**index for index in range(19)], [0.02 * index for index in range(19)])
    )
    assert not fixed.is_flat(FLAT[:2])
    assert fixed.is_flat(FLAT)
    overfitted = curve([1, 0.6, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0], [0.5, 0.7, 0.8, 0.8, 0.8, 0.79, 0.79, 0.79])
    assert fixed.is_flat(overfitted)


def test_of_equal_scores_the_lower_loss_is_the_best() -> None:
    """The first of two equal scores is that of a learning rate that has not fallen."""
    early, late, better = Validation(50, 0.3, 0.9), Validation(500, 0.2, 0.9), Validation(100, 9.0, 0.901)
    assert max([early, late], key=lambda each: each.rank) is late
    assert max([early, late, better], key=lambda each: each.rank) is better


def test_typed_lengths_are_fixed() -> None:
    """`trainer.epochs=2` that trains for 30 is no override."""
    assert not Trainer().is_fixed
    assert Trainer(epochs=2).is_fixed
    assert Trainer(max_steps=7).is_fixed
    assert not Trainer(epochs=2, until="converged").is_fixed
    assert planned_steps(Trainer(epochs=2), 320, spec_of("classification")) == 20
    assert planned_steps(Trainer(epochs=2, max_steps=7), 320, spec_of("classification")) == 7
    assert planned_steps(Trainer(until="converged", epochs=100), 320, spec_of("classification")) == 1000
    assert planned_steps(Trainer(), 32, spec_of("classification")) == Trainer().min_steps
    assert planned_steps(Trainer(), 32_000, spec_of("causal_lm")) == 5000
    assert planned_steps(Trainer(max_epochs=2), 32_000, spec_of("causal_lm")) == 2000
    with pytest.raises(ValueError, match="epochs or max_steps"):
        Trainer(until="steps")
    with pytest.raises(ConfigError, match=r"trainer\.max_epochs"):
        planned_steps(Trainer(max_epochs=10**6), 10**6, spec_of("classification"))


def test_validations_are_neither_rare_nor_frequent() -> None:
    """One validation an epoch sees the end of 60 rows every two steps, and of a million rows never."""
    assert [eval_steps(Trainer(), rows) for rows in (60, 3200, 10**6)] == [50, 100, 250]
    assert eval_steps(Trainer(epochs=1), 60) == 1
    assert eval_steps(Trainer(eval_steps=7), 60) == 7


def test_the_curve_is_read_from_either_log() -> None:
    """The Trainer's log and metrics.jsonl have other keys: one that is not found is a curve that never improves."""
    lines = [{"step": 5, "loss": 1.0}, {"step": 10, "eval_loss": 0.5, "eval_score": 0.7}]
    assert validations(lines) == [Validation(10, 0.5, 0.7)]
    assert validations([{"step": 10, "eval/loss": 0.5, "eval/score": 0.7}], "eval/") == [
        Validation(10, 0.5, 0.7)
    ]
