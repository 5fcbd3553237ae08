"""Ordinal regression: texts with 1 to 5 stars. To predict 4 stars where 5 were given is a smaller mistake than to predict 1."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np

from kdcli.errors import DataError
from kdcli.tasks.classification.presentation import PRESENTATION
from kdcli.tasks.classification.rows import ClassificationRows
from kdcli.tasks.classification.task import Classification, log_softmax
from kdcli.tasks.presentation import PERCENT, Percentage, format_figure


class StarRows(ClassificationRows):
    """Texts and whole numbers of stars."""

    def declare(self, sources: Any) -> None:
        """The labels are 1, 2, 3 … in this order, so that the index of a label is its number of stars less 1."""
        super().declare(sources)
        if list(self.labels) != [str(stars) for stars in range(1, len(self.labels) + 1)]:
            raise DataError(
                f"{self.cfg.path}: the labels are {', '.join(self.labels)}; expected 1, 2, 3 … stars"
            )


class Closeness(Percentage):
    """1 minus the mean absolute error, as a share of the largest error that is possible."""

    note = "Closeness is 100 % if every prediction is right and 0 % if each is as wrong as it can be."
    details = (
        ("mean absolute error, stars", "MAE", lambda scores: format_figure(scores.get("mae"))),
        ("accuracy", "accuracy", lambda scores: PERCENT.format_score(scores.get("accuracy"))),
    )


class Ordinal(Classification):
    """The prediction is the expected number of stars; the headline metric is its closeness to the gold one, in [0, 1]."""

    metric = "closeness"
    chance_is = "the closeness of the best constant prediction"
    row_schema = StarRows
    presentation = replace(
        PRESENTATION,
        metric=Closeness("closeness"),
        card=replace(
            PRESENTATION.card,
            model="star rating model",
            figures="Closeness\nis 1 minus the mean absolute error (MAE, in stars) over the largest possible one: 100 % is best.",
            limits="Scores are averages: a text of 1 star can be rated with 5.",
        ),
    )

    def expected(self, predictions: Any) -> np.ndarray:
        """The expected label index of each row under the model's probabilities, (N,)."""
        return np.exp(log_softmax(predictions["logits"])) @ np.arange(len(self.labels))

    def per_example_scores(self, predictions: Any) -> np.ndarray:
        """The closeness of each row, (N,)."""
        return 1 - np.abs(self.expected(predictions) - predictions.labels) / (len(self.labels) - 1)

    def scores(self, predictions: Any) -> dict[str, Any]:
        """What classification knows, the closeness, and the mean absolute error in stars."""
        closeness = float(self.per_example_scores(predictions).mean())
        return super().scores(predictions) | {
            "closeness": closeness,
            "mae": (1 - closeness) * (len(self.labels) - 1),
        }

    def agreement(self, first: Any, second: Any) -> np.ndarray:
        """Where two models predict the same whole number of stars, bool (N,)."""
        return np.rint(self.expected(first)) == np.rint(self.expected(second))

    def chance(self, predictions: Any, classes: int) -> float:
        """The closeness of the median, which is the best constant prediction."""
        return float(1 - np.abs(predictions.labels - np.median(predictions.labels)).mean() / (classes - 1))
