"""Predicts for any number of inputs, and writes the predictions."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterator, Sequence
from typing import Any

from kdcli.config.dataset import Dataset as DatasetConfig
from kdcli.errors import ConfigError
from kdcli.inference.subject import Loaded, Subject
from kdcli.tasks.inference import Prediction, Values

CHUNK = 1000
"""The number of inputs that are predicted at once."""


class Predictor:
    """A loaded model that predicts labels, entities, completions or translations.

    Attributes:
        fields: the names of an input's values.
        subject: which model it is.
        cfg: the data set of its run; None: there is no run.
    """

    def __init__(self, loaded: Loaded, subject: Subject, cfg: DatasetConfig | None):
        self.model, self.inference = loaded.model, loaded.inference
        self.subject, self.cfg = subject, cfg
        self.fields = tuple(self.inference.fields)

    def predict(self, inputs: Sequence[Any], max_new_tokens: int | None = None) -> list[Prediction]:
        """Return what the model predicts for each input.

        Args:
            inputs: texts; of a model of pairs, pairs of texts; of a tagger also lists of words; of a model of conversations also lists of
                turns, mappings with `role` and `content`. A string alone is one text.
            max_new_tokens: of models that generate text: the maximum length in tokens; None: 256, or half of the model's positions;
                of a translator that of the run's rows.

        Returns:
            For each input a mapping with the input and: `label`, `probability` and `probabilities`; or `entities`; or `completion` and
            `complete`; or `target`.

        Raises:
            ConfigError: an input is no pair.
            DataError: a text is empty, or is no text.
        """
        given = [inputs] if isinstance(inputs, str) else list(inputs)
        values = [self._values(each, number) for number, each in enumerate(given, 1)]
        return [
            prediction for predictions in self.chunks(values, max_new_tokens) for prediction in predictions
        ]

    def chunks(
        self, inputs: Sequence[Values], max_new_tokens: int | None = None
    ) -> Iterator[list[Prediction]]:
        """Return the predictions to checked inputs, `CHUNK` at a time."""
        for start in range(0, len(inputs), CHUNK):
            yield self.inference.predict(inputs[start : start + CHUNK], self.model, max_new_tokens)

    def _values(self, given: Any, number: int) -> Values:
        count = len(self.fields)
        is_group = count > 1 and isinstance(given, list | tuple) and len(given) == count
        if count > 1 and not is_group:
            raise ConfigError(
                f"input {number}: expected {count} texts ({', '.join(self.fields)}); give them as a tuple"
            )
        return self.inference.check(tuple(given) if is_group else (given,), f"input {number}")


def json_line(prediction: Prediction) -> str:
    """Return a prediction as a line of JSON, without its end."""
    return json.dumps(prediction, ensure_ascii=False)


def csv_lines(predictor: Predictor, predictions: Sequence[Prediction], header: bool) -> str:
    """Return predictions as rows of a csv file: the input, and the cells of the prediction. Values that are no text are JSON.

    Args:
        header: the names of the columns come first.
    """
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    for prediction in predictions:
        cells = predictor.inference.cells(prediction)
        inputs = {
            key: prediction[key] for key in prediction if key in (*predictor.fields, "prompt", "messages")
        }
        if header:
            writer.writerow([*predictor.fields, *cells])
            header = False
        texts = [value if isinstance(value, str) else json_line(value) for value in inputs.values()]
        writer.writerow([*texts, *cells.values()])
    return stream.getvalue()
