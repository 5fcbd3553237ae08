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
    """Columns words and label: of each word an index into the tags' names, -100 where there is no gold tag.

    Rows are the same if every character of their words is; those that differ in case alone stay in one split. Words of
    which `dataset.replace` left nothing are left out with their tags.
    """

    keys = "dataset.words= and dataset.tags="

    def __init__(self, cfg: DatasetConfig):
        super().__init__(cfg)
        folder = cfg.spec.formats.get(cfg.format)
        self.columns = list(folder.columns) if folder else [str(cfg.words), str(cfg.tags)]

    def check(self, values: tuple[Any, ...], where: str) -> tuple[Any, ...]:
        """Words, and their tags as strings or None."""
        words = [
            require_text(word, f"word {number}", where)
            for number, word in enumerate(require_list(values[0], "words", where), 1)
        ]
        tags = require_list(values[1], "tags", where) if self.has_gold else [None] * len(words)
        if len(tags) != len(words):
            raise DataError(f"{where}: {len(words)} words and {len(tags)} tags; each word needs one")
        return words, [label_name(tag, where) for tag in tags]

    def declare(self, sources: RawSplits) -> None:
        """Spans of words are told by the tags' names: integers need them."""
        super().declare(sources)
        if all(map(INTEGER.fullmatch, self.labels)):
            raise DataError(
                f"{self.cfg.path}: the tags are integers ({listed(self.labels)}), and only names tell where an "
                "entity begins; name them in their order: dataset.labels=[O,B-PER,I-PER,…]"
            )

    def row(self, values: tuple[Any, ...], where: str) -> Row | None:
        """Its id is a hash of the words."""
        tagged = [
            (fold_white_space(self.replaced(word)), self.index_of(tag, where))
            for word, tag in zip(*values, strict=True)
        ]
        kept = [(word, number) for word, number in tagged if word]
        words, label = [word for word, _ in kept], [number for _, number in kept]
        return {"id": row_hash(words), "words": words, "label": label} if words else None

    def group(self, row: Row) -> str:
        """The words without case."""
        return row_hash([word.casefold() for word in row["words"]])
