"""The test rows that a report shows: which ones, and with which answers."""

from __future__ import annotations

import datasets
import numpy as np
import pytest

from kdcli.tasks import mistakes
from kdcli.tasks.base import Predictions, Task
from kdcli.tasks.classification.task import Classification
from kdcli.tasks.token_classification.task import TokenClassification


def predictions(gold: list[int], predicted: list[int], sure: list[float], counts: list[int]) -> Predictions:
    """Predictions of three classes, each with its probability."""
    probabilities = np.full((len(gold), 3), 0.0)
    for row, (name, share) in enumerate(zip(predicted, sure, strict=True)):
        probabilities[row] = (1 - share) / 2
        probabilities[row, name] = share
    return Predictions({"logits": np.log(probabilities)}, np.asarray(gold), np.asarray(counts))


def sections(task: Task, rows: datasets.Dataset, **models: Predictions) -> dict:
    found = task.report_sections(rows, models, {}, None)["mistakes"]
    assert isinstance(found, dict)
    return found


def test_rows_of_a_classifier(monkeypatch: pytest.MonkeyPatch) -> None:
    """A row stands in the wrong group, or with another model's answer; or a long text makes the page heavy."""
    monkeypatch.setattr(mistakes, "LONGEST", 8)
    task = Classification(["a", "b", "c"])
    rows = datasets.Dataset.from_dict({"text": ["right", "taught", "surer", "nobody " * 9]})
    gold, ones = [0, 1, 2, 2], [1, 1, 1, 1]
    found = sections(
        task,
        rows,
        teacher=predictions(gold, [0, 1, 2, 1], [0.9, 0.8, 0.9, 0.7], ones),
        student=predictions(gold, [0, 0, 0, 0], [0.9, 0.6, 0.8, 0.9], ones),
    )
    assert [row["text"] for row in found["teacher_right"]["rows"]] == ["surer", "taught"]
    assert found["teacher_right"]["rows"][0] == {
        "text": "surer", "gold": "c", "teacher": ["c", 0.9], "student": ["a", 0.8],
    }  # fmt: skip
    assert [row["text"] for row in found["both_wrong"]["rows"]] == ["nobody n …"]
    assert found["differ"]["total"] == 3
    assert found["differ"]["rows"][0]["text"] in ("surer", "nobody n …")


def test_rows_of_a_tagger() -> None:
    """A sentence whose entities are right by chance of one word passes for a mistake, or entities are cut from the wrong sentence."""
    task = TokenClassification(["B-PER", "I-PER", "O"])
    rows = datasets.Dataset.from_dict({"words": [["Ada", "Byron", "wrote"], ["no", "name"]]})
    gold, counts = [0, 1, 2, 2, 2], [3, 2]
    right = predictions(gold, gold, [0.9] * 5, counts)
    found = sections(task, rows, teacher=right, student=predictions(gold, [0, 2, 2, 2, 2], [0.8] * 5, counts))
    [row] = found["teacher_right"]["rows"]
    assert row == {
        "text": "Ada Byron wrote", "gold": "PER: Ada Byron", "teacher": ["PER: Ada Byron", 0.9], "student": ["PER: Ada", 0.8],
    }  # fmt: skip
    assert found["both_wrong"]["total"] == 0
    scores = task.scores(right)
    assert scores["per_type_precision"] == scores["per_type_recall"] == {"PER": 1.0}
