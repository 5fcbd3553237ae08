"""Computes scores of generated texts."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from itertools import pairwise

import numpy as np


def text_scores(texts: Sequence[str], references: Sequence[str]) -> dict[str, float]:
    """Compute ROUGE-L against the references, and the diversity of the texts.

    Returns:
        rouge_l: mean F1 of the longest common subsequence of words (Lin 2004, https://aclanthology.org/W04-1013), without
            stemming; distinct_2: the share of distinct pairs of words among all pairs (Li et al. 2016, https://arxiv.org/abs/1510.03055);
            repetition: the share of groups of four words that occur earlier in the same text. All in [0, 1].
    """
    words = [_words(text) for text in texts]
    f1 = [_rouge_l(own, _words(reference)) for own, reference in zip(words, references, strict=False)]
    pairs = [pair for own in words for pair in pairwise(own)]
    fours = [Counter(zip(own, own[1:], own[2:], own[3:], strict=False)) for own in words]
    total = sum(sum(counts.values()) for counts in fours)
    return {
        "rouge_l": float(np.mean(f1)) if f1 else 0.0,
        "distinct_2": len(set(pairs)) / len(pairs) if pairs else 0.0,
        "repetition": 1 - sum(map(len, fours)) / total if total else 0.0,
    }


def _words(text: str) -> list[str]:
    return re.findall(r"\w+", text.casefold())


def _rouge_l(text: Sequence[str], reference: Sequence[str]) -> float:
    if not text or not reference:
        return 0.0
    row = [0] * (len(reference) + 1)
    for word in text:
        before = 0
        for column, expected in enumerate(reference, 1):
            before, row[column] = (
                row[column],
                before + 1 if word == expected else max(row[column], row[column - 1]),
            )
    return 2 * row[-1] / (len(text) + len(reference))
