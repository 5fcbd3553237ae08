"""Rows of text classification."""

from __future__ import annotations

from typing import Any

from kdcli.config.dataset import Dataset as DatasetConfig
from kdcli.tasks.rows import LabelledRows, Row, fold_white_space, label_name, require_text, row_hash


class ClassificationRows(LabelledRows):
    """Columns text, (text_pair) and label: an index into the label names, -100 where there is no gold label.

    Rows whose text is the same but for case and white space count as one. White space is folded.
    """

    keys = "dataset.text= and dataset.label="

    def __init__(self, cfg: DatasetConfig):
        super().__init__(cfg)
        self.columns = [column for column in (cfg.text, cfg.text_pair, cfg.label) if column]

    def check(self, values: tuple[Any, ...], where: str) -> tuple[Any, ...]:
        """Texts, and the label as a string or None."""
        texts = values[:-1] if self.asked else values
        label = label_name(values[-1], where) if self.asked else None
        return *(require_text(value, "the text", where) for value in texts), label

    def row(self, values: tuple[Any, ...], where: str) -> Row | None:
        """Its id is a hash of the texts without case."""
        *texts, label = values
        number = self.place(label, where)
        texts = [fold_white_space(self.replaced(text)) for text in texts]
        if not all(texts):
            return None
        columns = zip(("text", "text_pair"), texts, strict=False)
        return {"id": row_hash([text.casefold() for text in texts]), **dict(columns), "label": number}

    def group(self, row: Row) -> str:
        """Each row by itself."""
        return row["id"]
