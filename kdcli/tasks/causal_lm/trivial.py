"""Implements a language model without a neural network: bigrams of the student's tokens."""

from __future__ import annotations

import datasets
import numpy as np

from kdcli.tasks.encoded import Encoded
from kdcli.tasks.rows import IGNORE
from kdcli.tasks.trivial import TrivialModel

LARGEST = 2**31
"""The exclusive upper bound of a token id."""


class BigramModel(TrivialModel):
    """Interpolated Kneser-Ney bigrams (Chen and Goodman 1999, https://doi.org/10.1006/csla.1999.0128, equation 19): the next token depends on
    the token before it alone.

    The discount is n1 / (n1 + 2 n2), where n1 and n2 are the numbers of bigrams that occur once and twice. The lower order has one
    added to each count, so that no token has the probability 0. Parameters are the counts of the bigrams and of the tokens.

    Args:
        vocabulary: the number of tokens.
    """

    method = "Kneser-Ney bigrams"

    def __init__(self, vocabulary: int):
        self.vocabulary = vocabulary

    def fit(self, rows: datasets.Dataset, encoded: Encoded) -> None:
        """Count the pairs of a counted token and the token before it."""
        before, token = _pairs(encoded)
        self.vocabulary = max(self.vocabulary, *(int(ids.max(initial=0)) + 1 for ids in (before, token)))
        keys, self._counts = np.unique(before * LARGEST + token, return_counts=True)
        self._keys, contexts, tokens = keys, keys // LARGEST, keys % LARGEST
        once, twice = ((self._counts == number).sum() for number in (1, 2))
        self._discount = float(once / (once + 2 * twice)) if once and twice else 0.75
        continuations = np.bincount(tokens, minlength=self.vocabulary) + 1.0
        self._lower = continuations / continuations.sum()
        self._totals = np.bincount(contexts, self._counts, minlength=self.vocabulary)
        self._followers = np.bincount(contexts, minlength=self.vocabulary)
        self._top = np.full(self.vocabulary, self._lower.argmax())
        probabilities = self._probability(contexts, tokens)
        order = np.lexsort((-tokens, probabilities))  # the last assignment wins: the most probable token
        unseen = self._weight(contexts) * self._lower.max()
        better = order[probabilities[order] >= unseen[order]]
        self._top[contexts[better]] = tokens[better]
        self.parameters = len(keys) + self.vocabulary
        self.nbytes = 12 * len(keys) + 4 * self.vocabulary

    def predict(self, rows: datasets.Dataset, encoded: Encoded) -> dict[str, np.ndarray]:
        """Return the log-probability of each counted token, and the most probable token with its probability."""
        before, token = _pairs(encoded)
        seen = np.minimum(before, self.vocabulary - 1)
        log_prob = np.log(self._probability(seen, np.minimum(token, self.vocabulary - 1)))
        top = self._top[seen]
        confidence = self._probability(seen, top).astype(np.float32)
        return {"log_prob": log_prob.astype(np.float32), "top": top, "confidence": confidence}

    def _weight(self, before: np.ndarray) -> np.ndarray:
        """Return the weight of the lower order after each token; 1 after a token that has never been followed by another."""
        totals = self._totals[before]
        return np.where(totals > 0, self._discount * self._followers[before] / np.maximum(totals, 1), 1.0)

    def _probability(self, before: np.ndarray, token: np.ndarray) -> np.ndarray:
        wanted = before * LARGEST + token
        at = np.minimum(np.searchsorted(self._keys, wanted), len(self._keys) - 1)
        counts = np.where(self._keys[at] == wanted, self._counts[at], 0)
        own = np.maximum(counts - self._discount, 0) / np.maximum(self._totals[before], 1)
        return own + self._weight(before) * self._lower[token]


def _pairs(encoded: Encoded) -> tuple[np.ndarray, np.ndarray]:
    """Return the token before each counted token, and the counted token, int64 (N,)."""
    ids, labels = (encoded.columns[name].astype(np.int64) for name in ("input_ids", "labels"))
    counted = labels != IGNORE
    counted[encoded.offsets[:-1]] = False  # no token precedes the first one of a row
    at = np.flatnonzero(counted)
    return ids[at - 1], labels[at]
