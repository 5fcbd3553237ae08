"""The headline metric that `metric=` chooses."""

from __future__ import annotations

import numpy as np
import pytest
from support.commands import naming

from kdcli.config.dataset import Dataset
from kdcli.errors import ConfigError
from kdcli.evaluation.compare import gain, score
from kdcli.report.metrics import imbalance_lines, metric_of
from kdcli.tasks import task_of
from kdcli.tasks.base import Predictions, Task

LABELS = ["common", "rare", "rarer"]
DATA = Dataset(path="a.csv")


def predictions(labels: list[int], predicted: list[int]) -> Predictions:
    logits = 3 * np.eye(len(LABELS), dtype=np.float32)[predicted]
    return Predictions({"logits": logits}, np.asarray(labels), np.ones(len(labels), np.int64))


GOLD = [0] * 90 + [1] * 8 + [2] * 2
CONSTANT, PARTLY = [0] * 100, [0] * 90 + [1] * 8 + [0] * 2


def macro_f1() -> Task:
    return task_of(DATA, LABELS, "macro_f1")


def test_macro_f1_is_the_headline() -> None:
    """metric=macro_f1 that shows accuracy, selects by it, or gives its interval."""
    task = macro_f1()
    constant, partly = (predictions(GOLD, each) for each in (CONSTANT, PARTLY))
    entry = score(task, partly)
    assert entry["score"] == entry["scores"]["macro_f1"] == pytest.approx((2 * 90 / 182 + 1 + 0) / 3)
    low, high = entry["scores"]["macro_f1_ci95"]
    assert low < entry["score"] <= high + 0.05
    assert task.score_from_statistics(task.sufficient_statistics(partly).sum(0)) == pytest.approx(
        entry["score"]
    )
    assert gain(task, partly, constant)["gain_ci95"][0] > 0
    assert metric_of({"task": "classification", "metric": "macro_f1"}).name == "macro F1"
    assert task_of(DATA, LABELS).metric == "accuracy"


def test_chance_is_that_of_the_metric() -> None:
    """A teacher is compared with the share of the most frequent class, which no macro F1 of an imbalanced set reaches."""
    task, constant = macro_f1(), predictions(GOLD, CONSTANT)
    assert task.chance(constant, 3) == pytest.approx(task.scores(constant)["macro_f1"])
    assert task_of(DATA, LABELS).chance(constant, 3) == 0.9


@pytest.mark.parametrize(("data", "names"), [
    (DATA, ("accuracy", "macro_f1")),
    (Dataset(path="a.jsonl", words="words", tags="tags"), ("f1",)),
    (Dataset(path="a.jsonl", source="en", target="de"), ("bleu",)),
    (Dataset(path="a.jsonl", prompt="p", completion="c"), ("log_prob",)),
])  # fmt: skip
def test_a_metric_that_the_task_has_not(data: Dataset, names: tuple[str, ...]) -> None:
    """An unknown metric is a KeyError after the teacher was tuned."""
    with pytest.raises(ConfigError, match=naming("metric", "'wer'", *names)):
        task_of(data, ["O", "B-X"], "wer")
    assert task_of(data, ["O", "B-X"], names[-1]).metric == names[-1]


def test_macro_f1_stands_beside_the_accuracy_of_imbalanced_rows() -> None:
    """90 % accuracy of a model that always predicts one class reads as a good one."""
    task = task_of(DATA, LABELS)
    models = {name: score(task, predictions(GOLD, each)) for name, each in
              (("teacher", GOLD), ("control", CONSTANT), ("student", PARTLY))}  # fmt: skip
    (line,) = imbalance_lines({"models": models})
    assert all(word in line for word in ("90.0 %", "macro F1", "control 31.6 %", "teacher 100.0 %"))
    balanced = {"student": score(task, predictions([0, 1] * 50, [0, 1] * 50))}
    assert imbalance_lines({"models": balanced}) == []
