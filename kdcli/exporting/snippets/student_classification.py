"""Turns a text, or a text and its pair, into the student's inputs, and its logits into labels. Every runtime's script imports this."""

import sys

import numpy as np
from row import HERE, LABELS, Row

__all__ = ["HERE", "Example"]

TEXTS = 2  # of a row: a text, or a text and its pair


class Example(Row):
    """A text, or a text and its pair."""

    def __init__(self, *texts: str):
        len(texts) <= TEXTS or sys.exit(f"expected {TEXTS} text(s), got {len(texts)}; put quotes around each")
        super().__init__(*texts)

    def predictions(self, logits: np.ndarray) -> list[tuple[float, str]]:
        """Return the probability of each label, the most likely first. `logits`: [labels]."""
        powers = np.exp(logits - logits.max())
        probabilities = powers / powers.sum()
        order = np.argsort(-probabilities)
        return [(round(float(probabilities[label]), 4), LABELS[str(label)]) for label in order]
