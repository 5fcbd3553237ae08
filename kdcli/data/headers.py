"""Tells headers from first rows: the names of columns, in files that may lack them."""

from __future__ import annotations

import logging
import re
from collections import Counter
from collections.abc import Sequence
from typing import Any

from kdcli.data.raw_rows import COLUMN_NAME, holds_names
from kdcli.errors import DataError, listed
from kdcli.tasks.rows import RowSchema

logger = logging.getLogger(__name__)
ROWS_PER_LABEL = 5
"""The mean number of rows of a label from which on a label of a single row, the first one, is taken for the name of the column."""
MOST_NAMED = 30
"""The number of columns up to which a message proposes names for all."""
_NUMBER = re.compile(r"[-+]?\d+([.,]\d+)?")
_CODE = re.compile(r"|[a-z]{2,3}([-_]\w+)?|\S*\d\S*")
"""A field that is no text: an empty one, the code of a language, a number or an identifier."""


class FirstRow:
    """The first row of a file to which `dataset.columns` gives the names of the columns: a header is refused."""

    def __init__(self, schema: RowSchema, path: str, names: Sequence[str]):
        self.path, self.names = path, names
        self.label = None
        if "label" in schema.cfg.spec.reads and schema.has_gold and schema.cfg.label in names:
            self.label = names.index(schema.cfg.label)
        self.row: list[str] = []
        self.line = 0
        self.others: Counter[str] = Counter()

    def compare(self, row: list[str], line: int) -> None:
        """Record a row.

        Args:
            line: its last line, for messages.

        Raises:
            DataError: it is the first one, and holds the names of its columns.
        """
        if not self.line:
            self.row, self.line = row[: len(self.names)], line
            if holds_names(self.names, self.row):
                raise self._refusal("is the header")
        elif self.label is not None and len(self.others) <= MOST_NAMED:
            self.others[row[self.label]] += 1

    def require_row(self) -> None:
        """Refuse a first row of words such as columns are called by, whose label no other row has while the other labels repeat. Warn of it where a
        field has several words, as a text may.

        Raises:
            DataError
        """
        if (
            self.label is None
            or len(self.row) != len(self.names)
            or not 0 < len(self.others) <= min(MOST_NAMED, self.others.total() // ROWS_PER_LABEL)
            or self.row[self.label] in self.others
            or not all(map(COLUMN_NAME.fullmatch, self.row))
        ):
            return
        error = self._refusal("looks like a header, because no other row has its label")
        if not any(" " in field.strip() for field in self.row):
            raise error
        logger.warning("%s", error.message)

    def _refusal(self, what: str) -> DataError:
        return DataError(
            f"{self.path}, line {self.line} ({listed(self.row)}) {what}; remove dataset.columns, which is for files without one, and name the columns by "
            "the header"
        )


def looks_like_row(header: Sequence[str], body: Sequence[Sequence[Any]] = ()) -> bool:
    """Return whether a first line holds what no column is called: a number, a sentence, or the same twice. Single words are names, also beside empty or
    repeated ones, which spreadsheets write.

    Args:
        body: rows below it. A sentence, such as a question of a survey, is a name if a column below holds numbers or repeated values, and the first
            line none of them there.
    """
    filled = [name for name in header if name]
    if not filled or any(map(_NUMBER.fullmatch, filled)):
        return True
    if all(COLUMN_NAME.fullmatch(name) and " " not in name for name in filled):
        return False
    has_sentence = any(len(name) > 40 or len(name.split()) > 4 for name in filled)
    return (has_sentence or len(set(header)) < len(header) or "" in header) and not _is_above(header, body)


def is_first_row(line: Sequence[str], body: Sequence[Sequence[Any]]) -> bool:
    """Return whether a first line is a row like those below it: no column is called so, or one of its values is repeated below."""
    others = [row for row in body if row != line]
    return looks_like_row(line, others) or any(
        name and name in values for name, *values in zip(line, *others, strict=False)
    )


def _is_above(header: Sequence[str], body: Sequence[Sequence[Any]]) -> bool:
    """Return whether a line differs from the rows below it in a column of numbers or of repeated values."""
    for name, *values in zip(header, *body, strict=False):
        filled = [str(value) for value in values if value not in (None, "")]
        repeated = len(set(filled)) <= len(filled) / 5
        if filled and name not in filled and (repeated or all(map(_NUMBER.fullmatch, filled))):
            return True
    return False


def proposed_columns(schema: RowSchema, row: list[str], body: Sequence[Sequence[str]]) -> str:
    """Return names for the fields of a row: the longest ones are taken for the texts, and for the label the first other one that repeats two or more
    values in the rows below it, or else the first other one. Of several texts without a label the first ones are taken, because a licence or a comment
    may follow them."""
    texts = list(schema.columns)
    label = texts.pop() if "label" in schema.cfg.spec.reads and schema.has_gold else None
    names = [f"column{number}" for number in range(1, len(row) + 1)]
    written = [index for index, field in enumerate(row) if not _CODE.fullmatch(field)]
    if not label and len(texts) > 1 and len(written) >= len(texts):
        longest = written[: len(texts)]
    else:
        longest = sorted(sorted(range(len(row)), key=lambda index: -len(row[index]))[: len(texts)])
    for index, text in zip(longest, texts, strict=False):
        names[index] = text
    others = [index for index in range(len(row)) if index not in longest]
    if label and others:
        rows = [row, *(each for each in body if len(each) == len(row))]
        values = {index: {each[index] for each in rows} for index in others}
        repeated = [index for index in others if 1 < len(values[index]) <= len(rows) / 2]
        names[(repeated or others)[0]] = label
    return f"[{','.join(names)}]"
