"""Measures calibration: whether a model is right as often as its confidence states."""

from __future__ import annotations

from typing import Any

import numpy as np

BINS = 10
"""Bins of the calibration curve: ten equal steps of confidence (Guo et al. 2017, https://arxiv.org/abs/1706.04599)."""


def calibration(confidence: np.ndarray, correct: np.ndarray) -> dict[str, Any]:
    """Return the expected calibration error `ece`, and for each bin the mean `confidence` and the `accuracy` (None: it is empty), and the `count`.

    Args:
        confidence: the probability of each predicted class, (N,).
        correct: whether it is right, bool (N,).
    """
    bins = np.minimum((confidence * BINS).astype(int), BINS - 1)
    count = np.bincount(bins, minlength=BINS)
    safe = np.maximum(count, 1)
    mean = np.bincount(bins, confidence, BINS) / safe
    accuracy = np.bincount(bins, correct, BINS) / safe
    return {
        "ece": float((np.abs(mean - accuracy) * count).sum() / count.sum()),
        "confidence": [float(m) if n else None for m, n in zip(mean, count, strict=True)],
        "accuracy": [float(a) if n else None for a, n in zip(accuracy, count, strict=True)],
        "count": count.tolist(),
    }
