"""Implements a text classifier without a neural network: TF-IDF features and logistic regression."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from typing import Any

import datasets
import numpy as np

from kdcli.tasks.encoded import Encoded
from kdcli.tasks.trivial import TrivialModel

MOST_ROWS = 50_000
"""The maximum number of training rows: a larger set is sampled."""
MOST_FEATURES = 20_000
"""The maximum number of features of each kind, of which the most frequent are kept."""
MOST_CHARACTERS = 5_000_000
"""The number of characters of the training rows up to which character n-grams are features too. Longer texts have enough words."""
LONGEST = 5_000
"""The maximum number of characters of a text that are read."""
PRUNED_FROM = 1_000
"""The number of training rows from which a feature must occur in two rows."""
WORK = 1.5e9
"""The approximate number of multiplications of all iterations of the solver, which take a few seconds."""
ITERATIONS = (10, 100)
"""The minimum and the maximum number of iterations of the solver."""
INVERSE_REGULARIZATION = 10.0
"""`C` of scikit-learn's LogisticRegression."""
UNSEEN = -20.0
"""The log-probability of a class that no training row has."""


class TfidfClassifier(TrivialModel):
    """Logistic regression over the TF-IDF of words, pairs of words, and character n-grams of lengths 3 and 4.

    Size and parameters are those of the terms with their document weights, and of the coefficients, in fp32.

    Args:
        classes: the number of labels.
        read: returns the text of each row.
        seed: of the sample of the training rows.
    """

    method = "TF-IDF + logistic regression"

    def __init__(self, classes: int, read: Callable[[datasets.Dataset], list[str]], seed: int = 0):
        self.classes, self.read, self.seed = classes, read, seed
        self._vectorizers: list[Any] = []
        self._regression: Any = None
        self._present = np.empty(0, np.int64)

    def fit(self, rows: datasets.Dataset, encoded: Encoded) -> None:
        """Train on at most `MOST_ROWS` rows. The same rows and seed give the same model."""
        assert encoded.labels is not None
        labels, texts = encoded.labels, self.inputs(rows)
        if len(texts) > MOST_ROWS:
            sample = np.sort(
                np.random.default_rng(self.seed).choice(len(texts), MOST_ROWS, replace=False)
            ).tolist()
            labels, texts = labels[sample], [texts[row] for row in sample]
        self._present = np.unique(labels)
        features = self._fit_features(texts)
        if features is None or len(self._present) < 2:
            self._present = np.asarray([np.bincount(labels).argmax()])
            self.parameters, self.nbytes = 1, 4
            return
        from sklearn.exceptions import ConvergenceWarning
        from sklearn.linear_model import LogisticRegression

        fewest, most = ITERATIONS
        iterations = int(np.clip(WORK / (features.nnz * len(self._present)), fewest, most))
        self._regression = LogisticRegression(C=INVERSE_REGULARIZATION, max_iter=iterations, tol=1e-3)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)  # the iterations are limited on purpose
            self._regression.fit(features, labels)
        terms = [term for vectorizer in self._vectorizers for term in vectorizer.vocabulary_]
        self.parameters = len(terms) + self._regression.coef_.size + self._regression.intercept_.size
        self.nbytes = 4 * self.parameters + sum(len(term.encode()) + 1 for term in terms)

    def predict(self, rows: datasets.Dataset, encoded: Encoded) -> dict[str, np.ndarray]:
        """Return the log-probabilities of the classes as `logits`, fp32."""
        return {"logits": self.respond(self.inputs(rows))}

    def inputs(self, rows: datasets.Dataset) -> list[str]:
        """Return the beginning of each text."""
        return [text[:LONGEST] for text in self.read(rows)]

    def respond(self, inputs: Sequence[str]) -> np.ndarray:
        """Return the log-probabilities of the classes, fp32 (N, C)."""
        logits = np.full((len(inputs), self.classes), UNSEEN, np.float32)
        if self._regression is None:
            logits[:, self._present] = 0
        else:
            logits[:, self._present] = self._regression.predict_log_proba(self._features(inputs))
        return logits

    def _fit_features(self, texts: Sequence[str]) -> Any:
        """Return the TF-IDF of the training texts, sparse (N, F); None: there is no term."""
        from sklearn.feature_extraction.text import TfidfVectorizer

        settings = {
            "sublinear_tf": True,
            "min_df": 2 if len(texts) >= PRUNED_FROM else 1,
            "max_features": MOST_FEATURES,
            "dtype": np.float32,
        }
        kinds: list[dict[str, Any]] = [{"ngram_range": (1, 2), "token_pattern": r"\w+|[^\w\s]"}]
        if sum(map(len, texts)) <= MOST_CHARACTERS:
            kinds.append({"ngram_range": (3, 4), "analyzer": "char_wb"})
        for kind in kinds:
            vectorizer = TfidfVectorizer(**settings, **kind)
            try:
                vectorizer.fit(texts)
            except ValueError:  # no term is in two texts: a script without spaces has no words
                continue
            self._vectorizers.append(vectorizer)
        return self._features(texts) if self._vectorizers else None

    def _features(self, texts: Sequence[str]) -> Any:
        from scipy.sparse import hstack

        return hstack([vectorizer.transform(texts) for vectorizer in self._vectorizers]).tocsr()
