"""A teacher that may have seen the test rows."""

from __future__ import annotations

import numpy as np
import pytest

from kdcli.evaluation.suspicions import teacher_suspicions
from kdcli.tasks.base import Predictions
from kdcli.tasks.classification.task import Classification

TASK = Classification(["bad", "good"])


def predictions(right: int, rows: int) -> Predictions:
    """Predictions of which so many are right."""
    labels = np.arange(rows) % 2
    given = np.where(np.arange(rows) < right, labels, 1 - labels)
    return Predictions({"logits": np.eye(2, dtype=np.float32)[given]}, labels, np.ones(rows, np.int64))


@pytest.mark.parametrize(
    ("test", "validation", "kind"),
    [
        ((200, 200), (200, 200), "teacher_perfect"),
        ((200, 200), (190, 200), "teacher_perfect"),
        ((196, 200), (160, 200), "teacher_better_on_test"),
        ((196, 200), (190, 200), None),
        ((160, 200), (196, 200), None),
        ((30, 30), (20, 30), None),
        ((49, 50), (45, 50), None),
    ],
)
def test_a_teacher_that_may_have_seen_the_test_rows(
    test: tuple[int, int], validation: tuple[int, int], kind: str | None
) -> None:
    """A teacher that was trained on the test rows flatters nobody but itself; a few rows that are all right by chance accuse it."""
    found = teacher_suspicions(TASK, predictions(*test), predictions(*validation))
    assert [each["kind"] for each in found] == ([kind] if kind else [])
    for each in found:
        assert each["key"] == "dataset.test"
        assert "dataset.test=" in each["text"]
