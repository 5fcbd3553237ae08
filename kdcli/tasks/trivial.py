"""Defines the base class of models without a neural network, with which a report compares the student."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, ClassVar

import datasets
import numpy as np

from kdcli.tasks.encoded import Encoded


class TrivialModel(ABC):
    """A model that trains in seconds on the rows with gold labels, or needs no training.

    Attributes:
        method: what it is, for the report.
        parameters: the numbers that it stores.
        nbytes: its size on disk.
    """

    method: ClassVar[str]
    parameters: int = 0
    nbytes: int = 0

    @abstractmethod
    def fit(self, rows: datasets.Dataset, encoded: Encoded) -> None:
        """Train on rows.

        Args:
            encoded: the rows in the student's tokens.
        """

    @abstractmethod
    def predict(self, rows: datasets.Dataset, encoded: Encoded) -> dict[str, np.ndarray]:
        """Return the arrays of `Predictions` at the counted positions of rows; arguments as for `fit`."""

    def texts(self, rows: datasets.Dataset) -> list[str]:
        """Return the text that it generates for each row; [] where the score needs none."""
        return []

    def inputs(self, rows: datasets.Dataset) -> list[Any]:
        """Return the input of `respond` for each row; [] where its speed says nothing."""
        return []

    def respond(self, inputs: Sequence[Any]) -> Any:
        """Return the outputs for a batch of `inputs`. Its time is measured."""
        raise NotImplementedError
