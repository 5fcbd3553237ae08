"""Predicts the labels of texts without gold labels, with the probabilities of all labels."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import datasets
import numpy as np

from kdcli.tasks.classification.task import log_softmax
from kdcli.tasks.inference import Inference, Model, Prediction, Values, warn_of_long


class ClassificationInference(Inference):
    """A text, or a text and its pair -> `label`, `probability` and `probabilities` (those of all labels, the highest first)."""

    @property
    def fields(self) -> Mapping[str, str]:
        """`text`, and `text_pair` if the run has pairs."""
        pair = {"text_pair": self.cfg.text_pair} if self.cfg.text_pair else {}
        return {"text": self.cfg.text, **pair}

    def predict(
        self, inputs: Sequence[Values], model: Model, max_new_tokens: int | None = None
    ) -> list[Prediction]:
        """Run one forward pass over all texts, which are cleaned as those of the run were."""
        schema, predictions = self.schema, [self.echo(values) for values in inputs]
        made = [schema.row(schema.check(values, "the input"), "the input") for values in inputs]
        if not (rows := [row for row in made if row is not None]):
            return predictions
        table = datasets.Dataset.from_list(rows)
        warn_of_long(self.task.lengths(model.tokenizer, table).tolist(), model.max_length)
        logits = model.predictions(table)["logits"]
        probabilities = iter(np.exp(log_softmax(logits)).tolist())
        for prediction, row in zip(predictions, made, strict=True):
            if row is not None:
                prediction |= self._label(next(probabilities))
        return predictions

    def _label(self, probabilities: Sequence[float]) -> Prediction:
        order = sorted(range(len(probabilities)), key=lambda label: -probabilities[label])
        by_label = {self.task.labels[label]: round(probabilities[label], 6) for label in order}
        best = self.task.labels[order[0]]
        return {"label": best, "probability": by_label[best], "probabilities": by_label}

    def cells(self, prediction: Prediction) -> dict[str, str]:
        """Return the label and its probability."""
        if "label" not in prediction:
            return {"label": "", "probability": ""}
        return {"label": prediction["label"], "probability": f"{prediction['probability']:.4f}"}

    def details(self, prediction: Prediction) -> tuple[list[str], list[list[str]]]:
        """Return the probability of each label, the highest first."""
        rows = [[label, f"{value:.4f}"] for label, value in prediction.get("probabilities", {}).items()]
        return ["label", "probability"], rows
