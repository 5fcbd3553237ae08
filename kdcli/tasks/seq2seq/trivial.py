"""Implements a translator that copies its source."""

from __future__ import annotations

import datasets
import numpy as np

from kdcli.tasks.encoded import Encoded
from kdcli.tasks.trivial import TrivialModel


class Copy(TrivialModel):
    """Returns the source as it is."""

    method = "copy"

    def fit(self, rows: datasets.Dataset, encoded: Encoded) -> None:
        """Do nothing: there is nothing to learn."""

    def predict(self, rows: datasets.Dataset, encoded: Encoded) -> dict[str, np.ndarray]:
        """Return nothing: a copy has no probabilities."""
        return {}

    def texts(self, rows: datasets.Dataset) -> list[str]:
        """Return the sources."""
        return list(rows["source"][:])
