"""Reports what makes the results of a teacher doubtful: scores of rows that it may have seen."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from kdcli.tasks.base import Predictions, Task

ENOUGH = 50
"""The least number of rows of a split whose perfect score, or whose difference from another split, is evidence."""
DEVIATIONS = 3.0
"""The number of standard errors beyond which the difference of two splits is not chance."""
CONSIDERABLE = 0.02
"""The least difference that counts."""
REMEDY = "give rows that it has not seen (dataset.test=)"


def teacher_suspicions(task: Task, test: Predictions, validation: Predictions | None) -> list[dict[str, Any]]:
    """Return signs that a teacher, which was not trained in this run, has been trained on the test rows.

    Args:
        test, validation: its predictions on the splits; None: they are not known.

    Returns:
        Each with `kind`, `text`, `key` and figures; empty for tasks whose score is no share of rows with the right label.
    """
    if not task.labels or task.corpus:
        return []
    right = task.per_example_scores(test)
    score = float(right.mean()) if len(right) else 0.0
    if len(right) >= ENOUGH and score > 1 - 1e-9:
        text = f"the teacher, which this run did not train, scores 100 % on all {len(right):,} test rows: it may have been trained on them; {REMEDY}"
        return [{"kind": "teacher_perfect", "text": text, "key": "dataset.test", "score": score}]
    if validation is None:
        return []
    other = task.per_example_scores(validation)
    if min(len(right), len(other)) < ENOUGH:
        return []
    difference = score - float(other.mean())
    error = math.sqrt(sum(float(np.var(each)) / len(each) for each in (right, other)))
    if difference < max(CONSIDERABLE, DEVIATIONS * error):
        return []
    text = (
        f"the teacher, which this run did not train, scores {score:.3f} on the test split and {other.mean():.3f} on the validation split, "
        f"more than chance explains: it may have been trained on the test rows; {REMEDY}"
    )
    figures = {"score": score, "validation_score": float(other.mean())}
    return [{"kind": "teacher_better_on_test", "text": text, "key": "dataset.test", **figures}]
