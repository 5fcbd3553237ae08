"""Predicts entities in texts without gold tags."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import datasets
import numpy as np

from kdcli.errors import DataError, shown
from kdcli.tasks.classification.task import log_softmax
from kdcli.tasks.inference import Inference, Model, Prediction, Values
from kdcli.tasks.rows import IGNORE, fold_white_space, require_text
from kdcli.tasks.token_classification.scheme import entities
from kdcli.tasks.token_classification.spans import literal, words_of
from kdcli.tasks.token_classification.task import TokenClassification, readable_words

logger = logging.getLogger(__name__)


class _Words(NamedTuple):
    """The words of a text that a model reads, and where they stand in it."""

    text: str
    words: list[str]
    places: list[tuple[int, int]]


class TokenClassificationInference(Inference):
    """A text, or a list of words -> `entities`, each with its `text`, `type`, `start`, `end` (offsets of characters) and `probability`.

    A list of words is one text, with a space between two words. The probability is the mean over the words of an entity.
    """

    task: TokenClassification

    @property
    def fields(self) -> Mapping[str, str]:
        """`text`, whose column is that of the words."""
        return {"text": self.cfg.words or "text"}

    def check(self, values: Values, where: str) -> Values:
        """Join a list of words."""
        (value,) = values
        words = literal(value)
        if isinstance(words, list):
            if not words or not all(isinstance(word, str) and word.strip() for word in words):
                raise DataError(
                    f"{where}: expected a text, or a list of words, got {shown(value, 80)}; correct it"
                )
            value = " ".join(words)
        return (require_text(value, "the text", where),)

    def predict(
        self, inputs: Sequence[Values], model: Model, max_new_tokens: int | None = None
    ) -> list[Prediction]:
        """Run one forward pass over all texts. Words beyond `max_length` tokens are in no entity."""
        split = [self._words(text) for (text,) in inputs]
        rows = _rows(split)
        read = readable_words(model.tokenizer, rows, model.max_length) if split else []
        if dropped := sum(len(each.words) for each in split) - sum(map(len, read)):
            logger.warning(
                "%d words are not tagged: they are beyond %d tokens, or have no token; shorten the texts, or split them",
                dropped,
                model.max_length,
            )
        split = [
            _Words(each.text, [each.words[at] for at in chosen], [each.places[at] for at in chosen])
            for each, chosen in zip(split, read, strict=True)
        ]
        spans_of_texts = iter(self._entities([each for each in split if each.words], model))
        return [
            {"text": text, "entities": next(spans_of_texts) if each.words else []}
            for (text,), each in zip(inputs, split, strict=True)
        ]

    def _words(self, text: str) -> _Words:
        """Return the words of a text, each cleaned as the run's were."""
        places = words_of(text)
        clean = [fold_white_space(self.schema.replaced(text[start:end])) for start, end in places]
        left = [at for at, word in enumerate(clean) if word]
        return _Words(text, [clean[at] for at in left], [places[at] for at in left])

    def _entities(self, texts: Sequence[_Words], model: Model) -> list[list[dict[str, Any]]]:
        if not texts:
            return []
        predictions = model.predictions(_rows(texts))
        log_p = log_softmax(predictions["logits"])
        types, scheme = self.task.scheme.types, self.task.scheme
        starts, ends = entities(scheme, log_p.argmax(1), predictions.counts)
        sure = np.exp(log_p.max(1))
        spans: list[list[dict[str, Any]]] = []
        first = 0
        for text, count in zip(texts, predictions.counts.tolist(), strict=True):
            of_text = []
            for at in range(first, first + count):
                if starts[at] >= 0:
                    begin, end = text.places[at - first][0], text.places[ends[at] - first][1]
                    probability = round(float(sure[at : ends[at] + 1].mean()), 6)
                    of_text.append(
                        {
                            "text": text.text[begin:end],
                            "type": types[starts[at]],
                            "start": begin,
                            "end": end,
                            "probability": probability,
                        }
                    )
            spans.append(of_text)
            first += count
        return spans

    def cells(self, prediction: Prediction) -> dict[str, str]:
        """Return the entities, each with its type."""
        return {"entities": "; ".join(f"{each['text']} ({each['type']})" for each in prediction["entities"])}

    def details(self, prediction: Prediction) -> tuple[list[str], list[list[str]]]:
        """Return the entities, a row each."""
        columns = ["text", "type", "start", "end", "probability"]
        return columns, [[str(entity[key]) for key in columns] for entity in prediction["entities"]]


def _rows(texts: Sequence[_Words]) -> datasets.Dataset:
    rows = [
        {"id": str(index), "words": each.words, "label": [IGNORE] * len(each.words)}
        for index, each in enumerate(texts)
    ]
    return datasets.Dataset.from_list(rows)
