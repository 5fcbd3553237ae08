"""Checks rows as files hold them: values at paths of keys, by the task's row schema; and counts rows that cannot be read."""

from __future__ import annotations

import logging
import re
from array import array
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Literal

from kdcli.errors import DataError, listed, shown, suggest
from kdcli.tasks.rows import RowSchema, place_of

logger = logging.getLogger(__name__)
REMEDY = "; dataset.bad_rows=drop leaves such rows out"
UNREADABLE = "cannot be read"
"""The reason for which rows are dropped, for counts."""
COLUMN_NAME = re.compile(r"#?\s*[^\W\d][\w.-]*( [\w.-]+){0,2}")
"""A field that a column may be called by: one to three words."""
EXAMPLES = 3
"""The number of dropped rows that a message names."""


def holds_names(names: Sequence[str], row: Sequence[Any]) -> bool:
    """Return whether a row holds the names of its columns, up to case and white space: all of them, or some among other words such as columns are
    called by."""
    if len(row) != len(names) or not all(isinstance(field, str) for field in row):
        return False
    same = [_folded(name) == _folded(field) for name, field in zip(names, row, strict=True)]
    return all(same) or (any(same) and all(map(COLUMN_NAME.fullmatch, row)))


def _folded(name: str) -> str:
    return re.sub(r"[\s_-]+", " ", name.strip().removeprefix("#")).strip().casefold()


class BadRows:
    """The rows of a source that cannot be read: the first one is an error, or all are dropped and counted (dataset.bad_rows).

    Attributes:
        count: the number of dropped rows.
        places: where each row stands that was read, as two numbers (`RawSplit.places`).
    """

    def __init__(self, policy: Literal["error", "drop"]):
        self.drop = policy == "drop"
        self.count = 0
        self.places = array("Q")
        self._yielded = 0
        self._last = 0, 0
        self._examples: list[str] = []

    def add(self, message: str) -> None:
        """Record a row.

        Raises:
            DataError: such rows are not dropped.
        """
        if not self.drop:
            raise DataError(message + REMEDY)
        self.count += 1
        if len(self._examples) < EXAMPLES:
            self._examples.append(message)

    def at(self, first: int, last: int = 0) -> None:
        """Record the lines of the row that a reader yields next, or its number in the file."""
        self._yielded += 1
        self._last = first, last

    def place(self, row: int) -> tuple[int, int]:
        """Return where a row stands: as it was recorded, if it is the row that was yielded last, or else by its number among the yielded rows."""
        return self._last if self._yielded == row else (row, 0)

    def warn(self, name: str, rows: int) -> None:
        """Warn of the dropped rows; `rows` is the number of the others.

        Raises:
            DataError: there are no others.
        """
        if not self.count:
            return
        if not rows:
            raise DataError(
                f"{name}: none of its {self.count:,} rows can be read ({self._examples[0]}); name other columns, or give another dataset.format"
            )
        logger.warning(
            "%s: %d of %d rows cannot be read and are dropped (%s%s)",
            name,
            self.count,
            self.count + rows,
            "; ".join(self._examples),
            " …" if self.count > EXAMPLES else "",
        )


def check_rows(
    schema: RowSchema, name: str, table: Iterable[tuple[Any, ...]], bad: BadRows, first: int = 1
) -> list[tuple[Any, ...]]:
    """Return the checked values of rows; `first` is the number of the first row, for messages."""
    rows = []
    for number, values in enumerate(schema.assembled(table), first):
        place = bad.place(number)
        try:
            rows.append(schema.check(values, place_of(name, *place)))
        except DataError as error:
            bad.add(error.message)
        else:
            bad.places.extend(place)
    return rows


def table_rows(
    table: dict[str, list[Any]], paths: list[list[str]], name: str, bad: BadRows, first: int = 1
) -> Iterator[tuple[Any, ...]]:
    """Yield the rows of a table as the values at the paths of its columns; `first` is the number of the first row, for messages."""
    for number, values in enumerate(zip(*(table[path[0]] for path in paths), strict=True), first):
        where = place_of(name, number, 0)
        try:
            row = tuple([value_at(value, path[1:], where) for value, path in zip(values, paths, strict=True)])
        except DataError as error:
            bad.add(error.message)
            continue
        bad.at(number)
        yield row


def value_at(value: Any, path: list[str], where: str) -> Any:
    """Return the value at the end of a path of keys; an index is the key of an item of a list, or of each item of a list of lists, and
    another key of a list that of each of its mappings.

    Raises:
        DataError: with a message that begins with `where`.
    """
    for key in path:
        if (
            isinstance(value, list)
            and value
            and key.isdecimal()
            and all(isinstance(item, list) for item in value)
        ):
            value = [value_at(item, [key], where) for item in value]  # pairs of a word and its tag
            continue
        if isinstance(value, list) and key.isdecimal():
            if int(key) >= len(value):
                raise DataError(f"{where}: expected a list with an item {key}, got {shown(value)}")
            value = value[int(key)]
            continue
        if isinstance(value, list) and value and all(isinstance(item, dict) for item in value):
            value = [value_at(item, [key], where) for item in value]
            continue
        if not isinstance(value, dict):
            raise DataError(f"{where}: expected a mapping that holds {key!r}, got {shown(value)}")
        if key not in value:
            raise DataError(f"{where}: there is no {key!r}{suggest(key, value)} (there are: {listed(value)})")
        value = value[key]
    return value
