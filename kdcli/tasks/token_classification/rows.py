"""Rows of token classification."""

from __future__ import annotations

from typing import Any

from kdcli.config.dataset import Dataset as DatasetConfig
from kdcli.errors import DataError, listed
from kdcli.tasks.rows import (
    INTEGER,
    LabelledRows,
    RawSplits,
    Row,
    fold_white_space,
    label_name,
    require_list,
    require_text,
    row_hash,
)


class TokenClassificationRows(LabelledRows):
    """Columns words and label: for each word the index of its tag, -100 for a word without a gold tag.

    Rows are duplicates if all characters of their words are equal; rows that differ in case alone stay in one split. Words of
    which `dataset.replace` leaves nothing are dropped with their tags.
    """

    keys = "dataset.words= and dataset.tags="

    def __init__(self, cfg: DatasetConfig):
        super().__init__(cfg)
        folder = cfg.spec.formats.get(cfg.format)
        self.columns = list(folder.columns) if folder else [str(cfg.words), str(cfg.tags)]

    def check(self, values: tuple[Any, ...], where: str) -> tuple[Any, ...]:
        """Check words and tags, and return the tags as strings or None."""
        words = [
            require_text(word, f"word {number}", where)
            for number, word in enumerate(require_list(values[0], "words", where), 1)
        ]
        tags = require_list(values[1], "tags", where) if self.has_gold else [None] * len(words)
        if len(tags) != len(words):
            raise DataError(f"{where}: {len(words)} words and {len(tags)} tags; each word needs one")
        return words, [label_name(tag, where) for tag in tags]

    def declare(self, sources: RawSplits) -> None:
        """Refuse integer tags without names, which entities are read from."""
        super().declare(sources)
        if all(map(INTEGER.fullmatch, self.labels)):
            raise DataError(
                f"{self.cfg.path}: the tags are integers ({listed(self.labels)}), and only names tell where an "
                "entity begins; name them in their order: dataset.labels=[O,B-PER,I-PER,…]"
            )

    def row(self, values: tuple[Any, ...], where: str) -> Row | None:
        """The id is a hash of the words."""
        tagged = [
            (fold_white_space(self.replaced(word)), self.index_of(tag, where))
            for word, tag in zip(*values, strict=True)
        ]
        remaining = [(word, index) for word, index in tagged if word]
        words, label = [word for word, _ in remaining], [index for _, index in remaining]
        return {"id": row_hash(words), "words": words, "label": label} if words else None

    def group(self, row: Row) -> str:
        """A hash of the case-folded words."""
        return row_hash([word.casefold() for word in row["words"]])
