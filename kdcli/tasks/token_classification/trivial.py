"""Implements a tagger without a neural network: the most frequent tag of each word."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import datasets
import numpy as np

from kdcli.tasks.encoded import Encoded
from kdcli.tasks.rows import IGNORE
from kdcli.tasks.trivial import TrivialModel


class WordTags(TrivialModel):
    """Gives each word the tag that it most often has in the training rows, and an unknown word the most frequent tag of all.

    Size and parameters are those of the words with the number of each of their tags.

    Args:
        tags: the number of tags.
    """

    method = "most frequent tag of each word"

    def __init__(self, tags: int):
        self._counts: dict[str, Counter[int]] = {}
        self._prior = np.ones(tags)

    def fit(self, rows: datasets.Dataset, encoded: Encoded) -> None:
        """Count the tags of each word."""
        for words, tags in zip(rows["words"][:], rows["label"][:], strict=True):
            for word, tag in zip(words, tags, strict=True):
                if tag != IGNORE:
                    self._counts.setdefault(word, Counter())[tag] += 1
                    self._prior[tag] += 1
        self._prior /= self._prior.sum()
        self.parameters = sum(map(len, self._counts.values())) + len(self._prior)
        self.nbytes = 8 * self.parameters + sum(len(word.encode()) + 1 for word in self._counts)

    def predict(self, rows: datasets.Dataset, encoded: Encoded) -> dict[str, np.ndarray]:
        """Return the log-probabilities of the tags as `logits`, fp32."""
        return {"logits": self.respond(self.inputs(rows))}

    def inputs(self, rows: datasets.Dataset) -> list[list[str]]:
        """Return the words of each row."""
        return list(rows["words"][:])

    def respond(self, inputs: Sequence[Sequence[str]]) -> np.ndarray:
        """Return the log-probabilities of the tags of all words, fp32 (N, C). The frequencies of all words count as one further occurrence of each, which
        changes no most frequent tag."""
        words = [word for row in inputs for word in row]
        shares = np.tile(self._prior, (len(words), 1))
        for index, word in enumerate(words):
            for tag, count in self._counts.get(word, {}).items():
                shares[index, tag] += count
        return np.log(shares / shares.sum(1, keepdims=True)).astype(np.float32)
