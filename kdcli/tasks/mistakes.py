"""Selects the test rows that show where a student fails: those that its teacher gets right, those that both get wrong, and those on which they differ most."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

COMPARED = "teacher", "control", "student"
"""The models whose predictions are shown."""
SHOWN = 50
"""The maximum number of rows of each group."""
LONGEST = 600
"""The maximum number of characters of a text that the report shows."""


@dataclass(frozen=True)
class RowPredictions:
    """The predictions of a model for each row.

    Attributes:
        names: the prediction of a row as people read it.
        confidence: its probability, (rows,).
        right: whether it is the gold one, bool (rows,).
    """

    names: Callable[[int], str]
    confidence: np.ndarray
    right: np.ndarray


def mistakes(
    text: Callable[[int], str],
    gold: Callable[[int], str],
    models: Mapping[str, RowPredictions],
    apart: np.ndarray,
) -> dict[str, Any]:
    """Return the rows for the report, of which each group is sorted: the student's most confident mistakes first.

    Args:
        text, gold: of a row, by its index.
        models: by name; the student, and the teacher if it predicted.
        apart: how far student and teacher differ on a row, (rows,).

    Returns:
        `teacher_right`, `both_wrong` and `differ`, each with `total` and `rows`; a row has `text`, `gold`, and of each model its prediction and its
        confidence. Empty without a teacher.
    """
    if not {"teacher", "student"} <= models.keys():
        return {}
    student, teacher = models["student"], models["teacher"]
    sure = np.argsort(-student.confidence, kind="stable")
    far = np.argsort(-apart, kind="stable")
    groups: dict[str, Sequence[int]] = {
        "teacher_right": sure[(teacher.right & ~student.right)[sure]].tolist(),
        "both_wrong": sure[(~teacher.right & ~student.right)[sure]].tolist(),
        "differ": far[apart[far] > 0].tolist(),
    }

    def shown(row: int) -> dict[str, Any]:
        own = {
            name: [each.names(row), round(float(each.confidence[row]), 4)] for name, each in models.items()
        }
        complete = text(row)
        shortened = complete if len(complete) <= LONGEST else complete[:LONGEST] + " …"
        return {"text": shortened, "gold": gold(row), **own}

    return {
        name: {"total": len(rows), "rows": [shown(row) for row in rows[:SHOWN]]}
        for name, rows in groups.items()
    }
