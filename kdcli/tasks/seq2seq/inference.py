"""Generates targets of sources without references."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import datasets

from kdcli.tasks.inference import Inference, Model, Prediction, Values, warn_of_long


class Seq2SeqInference(Inference):
    """A source -> `target`, generated greedily."""

    writes = True

    @property
    def fields(self) -> Mapping[str, str]:
        """`source`."""
        return {"source": self.cfg.source or "source"}

    def predict(
        self, inputs: Sequence[Values], model: Model, max_new_tokens: int | None = None
    ) -> list[Prediction]:
        """Return the target of each source, which is cleaned as the run's were. A source of which nothing is left has an empty one."""
        made = [self.schema.row(self.schema.check(values, "the input"), "the input") for values in inputs]
        rows = [row for row in made if row is not None]
        table = datasets.Dataset.from_list(rows)
        if rows:
            warn_of_long(self.task.lengths(model.tokenizer, table).tolist(), model.max_length)
        replies = iter(model.replies(table, max_new_tokens) if rows else [])
        texts = [next(replies).text if row is not None else "" for row in made]
        return [self.echo(values) | {"target": text} for values, text in zip(inputs, texts, strict=True)]

    def cells(self, prediction: Prediction) -> dict[str, str]:
        """Return the target."""
        return {"target": prediction["target"]}

    def details(self, prediction: Prediction) -> tuple[list[str], list[list[str]]]:
        """Return the target."""
        return [], [[prediction["target"]]]
