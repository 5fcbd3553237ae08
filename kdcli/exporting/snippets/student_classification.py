"""What the student's numbers say of a text, or of a text and the one that belongs to it: beside each runtime's own lines."""

import numpy as np
from row import HERE, LABELS, Row

__all__ = ["HERE", "Asked"]


class Asked(Row):
    """A text, or a text and the one that belongs to it."""

    def answers(self, logits: np.ndarray) -> list[tuple[float, str]]:
        """The probability of each label, the likeliest first. `logits`: [labels]."""
        powers = np.exp(logits - logits.max())
        shares = powers / powers.sum()
        return [(round(float(shares[label]), 4), LABELS[str(label)]) for label in np.argsort(-shares)]
