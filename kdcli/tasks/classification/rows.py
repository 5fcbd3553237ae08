"""Rows of text classification."""

from __future__ import annotations

from typing import Any

from kdcli.config.dataset import Dataset as DatasetConfig
from kdcli.tasks.rows import LabelledRows, Row, fold_white_space, label_name, require_text, row_hash


class ClassificationRows(LabelledRows):
    """Columns text, (text_pair) and label: an index into the label names, -100 where there is no gold label.

    Rows whose texts differ only in case and white space are duplicates. White space is folded.
    """

    keys = "dataset.text= and dataset.label="

    def __init__(self, cfg: DatasetConfig):
        super().__init__(cfg)
        self.columns = [column for column in (cfg.text, cfg.text_pair, cfg.label) if column]

    def check(self, values: tuple[Any, ...], where: str) -> tuple[Any, ...]:
        """Check that the texts are texts, and return them with the label as a string or None."""
        texts = values[:-1] if self.has_gold else values
        label = label_name(values[-1], where) if self.has_gold else None
        return *(require_text(value, "the text", where) for value in texts), label

    def row(self, values: tuple[Any, ...], where: str) -> Row | None:
        """The id is a hash of the case-folded texts."""
        *texts, label = values
        index = self.index_of(label, where)
        texts = [fold_white_space(self.replaced(text)) for text in texts]
        if not all(texts):
            return None
        columns = zip(("text", "text_pair"), texts, strict=False)
        return {"id": row_hash([text.casefold() for text in texts]), **dict(columns), "label": index}

    def group(self, row: Row) -> str:
        """Each row is a group of its own."""
        return row["id"]
