"""The pre-flight: each fault of a teacher or a loss is found before training, with the key to change."""

from __future__ import annotations

import logging
from collections.abc import Callable

import datasets
import pytest
import torch
from support.commands import naming, require_words
from support.tiny import bert, sentences
from torch import Tensor

from kdcli.errors import TeacherError
from kdcli.losses.base import Loss
from kdcli.losses.forward_kl import ForwardKL
from kdcli.losses.hard_label import HardLabel
from kdcli.signals import AnySignal, Signal
from kdcli.tasks.base import Predictions, Split
from kdcli.tasks.classification.task import Classification
from kdcli.teachers.base import Teacher
from kdcli.training.distiller import Distiller
from kdcli.training.preflight import beats_chance, preflight

LABELS = ["bad", "good"]


class Scripted(Teacher):
    """A teacher whose logits are a function of a row."""

    def __init__(self, logits: Callable[[dict], list[float]]):
        self.logits = logits

    def outputs(self, examples, keep=lambda signal: signal) -> list[AnySignal]:
        return [Signal(torch.tensor([self.logits(dict(example))])) for example in examples]


class Wrong(Loss):
    """A loss that is not zero for a perfect student."""

    def forward(self, student: Signal, teacher: Signal, labels: Tensor) -> Tensor:
        return (student.logits - teacher.logits).square().sum(-1) + 1


def right(row: dict) -> list[float]:
    """Logits that prefer the gold label."""
    return [2.0, -2.0] if row["label"] == 0 else [-2.0, 2.0]


@pytest.fixture(scope="module")
def split(tokenizer) -> Split:
    rows = datasets.Dataset.from_list(
        [
            {"id": str(index), "text": text, "label": LABELS.index(label)}
            for index, (text, label) in enumerate(sentences(64))
        ]
    )
    return Split(rows, Classification(LABELS).encode(tokenizer, rows, 32))


@pytest.fixture
def check(tokenizer, split: Split) -> Callable[..., None]:
    """Runs the pre-flight with a teacher and losses."""

    def run(
        logits: Callable[[dict], list[float]] = right,
        losses: dict[str, Loss] | None = None,
        weights: dict[str, float] | None = None,
        lenient: bool = False,
        train: Split = split,
    ) -> None:
        task = Classification(LABELS)
        losses = losses or {"soft_label": ForwardKL(2.0), "hard_label": HardLabel()}
        distiller = Distiller(
            bert(tokenizer, LABELS), task, losses, {name: (weights or {}).get(name, 1.0) for name in losses}
        )
        teacher = Scripted(logits)
        predictions = task.predictions_from_outputs([teacher.signals(list(split.rows))], split.encoded)
        preflight(distiller, tokenizer, predictions, 2, teacher, train, split, bf16=False, lenient=lenient)

    return run


def test_a_good_teacher_and_its_losses_pass(check, caplog: pytest.LogCaptureFixture) -> None:
    """Findings on a sound run would teach users to ignore them."""
    with caplog.at_level(logging.WARNING):
        check()
    assert not caplog.records


def test_a_teacher_that_is_no_better_than_chance_is_refused(check) -> None:
    """A student of a teacher with swapped labels learns the opposite."""
    with pytest.raises(TeacherError, match=naming("teacher.tune=true")) as refused:
        check(lambda row: right({"label": 1 - row["label"]}))
    assert refused.value.exit_code == 2


def test_a_loss_that_is_not_zero_for_a_perfect_student_is_refused(check) -> None:
    """A loss with swapped arguments or a constant trains towards something else than the teacher."""
    with pytest.raises(TeacherError, match=naming("loss", "wrong", "1", "divergence = False")):
        check(losses={"wrong": Wrong()})


def test_a_rehearsal_warns(check, caplog: pytest.LogCaptureFixture) -> None:
    """In a smoke run a barely tuned teacher is expected."""
    with caplog.at_level(logging.WARNING):
        check(losses={"wrong": Wrong()}, lenient=True)
    require_words(caplog.text, "loss", "wrong", "divergence = False")


def test_values_that_are_not_finite_are_refused_in_a_rehearsal_too(check) -> None:
    """Nothing can be learnt from NaN, and the message must not come from the optimizer."""
    with pytest.raises(TeacherError, match=naming("not finite", "teacher.trainer.precision=fp32")):
        check(lambda row: [float("nan"), 0.0], lenient=True)


def test_a_term_without_effect_is_named(check, caplog: pytest.LogCaptureFixture) -> None:
    """A weight that is a thousand times too small switches a term off unseen."""
    with caplog.at_level(logging.WARNING):
        check(weights={"soft_label": 1e-6})
    assert "loss.soft_label.weight" in caplog.text


def test_a_term_that_counts_nothing_is_refused(check, split: Split, tokenizer) -> None:
    """Hard labels without a labelled row train nothing."""
    rows = split.rows.remove_columns("label").add_column("label", [-100] * len(split.rows))
    unlabelled = Split(rows, Classification(LABELS).encode(tokenizer, rows, 32))
    with pytest.raises(TeacherError, match=naming("hard_label", "no position")):
        check(train=unlabelled)


def test_one_label_alone_is_no_comparison(caplog: pytest.LogCaptureFixture) -> None:
    """A teacher that is right about every row is refused, because a guess is right about every row as well."""
    task = Classification(LABELS)
    always = torch.tensor([[1.0, 0.0]]).repeat(10, 1).numpy()
    labels, counts = torch.tensor([0] * 10).numpy(), torch.ones(10, dtype=torch.int64).numpy()
    assert beats_chance(task, Predictions({"logits": always}, labels, counts), 2) == []
    assert "dataset.validation_size" in caplog.text


def test_chance_is_the_most_frequent_label() -> None:
    """Against 1 / classes, a teacher that always says the same label would pass on skewed data."""
    task = Classification(LABELS)
    always = torch.tensor([[1.0, 0.0]]).repeat(10, 1).numpy()
    labels, counts = torch.tensor([0] * 9 + [1]).numpy(), torch.ones(10, dtype=torch.int64).numpy()
    assert beats_chance(task, Predictions({"logits": always}, labels, counts), 2)
