"""Reads rows of delimited text (csv, tsv), and detects how they are delimited and quoted."""

from __future__ import annotations

import contextlib
import csv
import dataclasses
import itertools
import logging
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from kdcli.data.headers import MOST_NAMED, FirstRow, is_first_row, looks_like_row, proposed_columns
from kdcli.data.raw_rows import BadRows
from kdcli.errors import ConfigError, DataError, shown
from kdcli.tasks.rows import RowSchema, place_of

logger = logging.getLogger(__name__)
LONGEST_FIELD = 2**24
"""The maximum number of characters of a csv field: a longer one has an unclosed quote."""
PREAMBLE = 20
"""The number of rows in which the header is searched."""
EXAMINED = 1000
"""The number of rows by which the column of the labels is proposed."""
SINGLE_COLUMN = "\x1f"
"""The delimiter of a file with one column: a control character that no text holds."""
DELIMITERS = (",", "\t", ";", "|", "\x01", "^", "~")
_SEP = re.compile(r'"?sep=(.)"?\s*', re.IGNORECASE)
_QUOTED = re.compile(r'"(?:[^"]|"")*"', re.DOTALL)
STRAY = 0.05
"""The maximum share of fields and of lines with a stray quote in a table between tabs whose other quotes are those of a writer of csv."""
_SHORT, _LONG = "lack their last fields", "end with fields that have no name"
_REPEATED = "repeat the header and are dropped"
_ESCAPED = re.compile(r'\\(["\\])')
_REPEATED_SIGN = re.compile(r"([|:;#@~^$&])\1+")
"""A delimiter of several characters, which the csv module does not read."""


@dataclass(frozen=True)
class Dialect:
    """Describes how rows are delimited.

    Attributes:
        quote: the character around fields; None: quotes are text.
        escape: the character before a quote within a quoted field, in place of doubling it; None: quotes are doubled.
        spaces: whether spaces after a delimiter are outside of the field.
        skip: the number of rows above the header; blank rows do not count.
        names: the names of the columns, which the header or dataset.columns gives.
        row_names: whether rows begin with a field that the header does not name.
        further: whether rows may end with fields that dataset.columns does not name.
        wrapped: whether fields lose the quotes around them, within which others stand undoubled ("a "so" b").
        line: the line on which the header begins.
        headless: whether the first row is no header, and the names are those of the file before.
    """

    delimiter: str
    quote: str | None
    escape: str | None = None
    spaces: bool = False
    skip: int = 0
    names: tuple[str, ...] = ()
    row_names: bool = False
    further: bool = False
    wrapped: bool = False
    line: int = 1
    headless: bool = False


def require_signs(delimiter: str | None, quote: str | None, escape: str | None) -> None:
    """Refuse configured characters that cannot delimit rows.

    Raises:
        ConfigError
    """
    signs = [sign for sign in (delimiter, quote, escape) if sign and sign != "none"]
    if len(set(signs)) < len(signs) or set(signs) & set("\r\n\0") or any(len(sign) != 1 for sign in signs):
        raise ConfigError(
            f"dataset.delimiter = {shown(delimiter)}, dataset.quote = {shown(quote)} and dataset.escape = {shown(escape)}: expected "
            "characters that differ, none of them a line break"
        )


def decide(schema: RowSchema, suffix: str, sample: Sequence[str], cut: bool) -> Dialect:
    """Return the dialect of a file: what the config says, and for the rest the one by which most rows have as many fields as the header.

    Args:
        suffix: the suffix of the file's name.
        sample: the first lines; of a file with tabs also later lines with quotes.
        cut: whether there are further lines.
    """
    cfg = schema.cfg
    require_signs(cfg.delimiter, cfg.quote, cfg.escape)
    csv.field_size_limit(LONGEST_FIELD)
    wanted = list(schema.columns)
    sep = _SEP.fullmatch(sample[0]) if sample and cfg.delimiter is None else None
    lines = sample[1:] if sep else sample
    given = cfg.delimiter or (sep[1] if sep else None)
    usual = "\t" if suffix in (".tsv", ".tab") else "|" if suffix == ".psv" else ","
    delimiters = [given] if given else sorted(DELIMITERS, key=lambda each: each != usual)
    if not given and not cfg.columns and len(wanted) == 1:
        delimiters.append(SINGLE_COLUMN)
    best, best_score = None, None
    for order, delimiter in enumerate(delimiters):
        for dialect in _dialects(cfg, delimiter, lines, cut):
            trial = Trial(dialect, lines, cut, wanted, cfg.columns)
            score = (*trial.score, -order)
            if best_score is None or score > best_score:
                best, best_score = trial, score
        if best is not None and best.is_plain:
            break
    assert best is not None
    dialect = best.settled()
    if (
        best.skip is None
        and not cfg.columns
        and best.rows
        and len(schema.header) == len(dialect.names)
        and is_first_row(best.rows[0], best.rows[1:EXAMINED])
    ):
        dialect = dataclasses.replace(dialect, names=schema.header, headless=True)
    return dataclasses.replace(
        dialect,
        skip=dialect.skip + bool(sep),
        wrapped=dialect.wrapped and cfg.quote is None,
        line=_line_of(lines, dialect) + bool(sep),
    )


def _dialects(cfg: Any, delimiter: str, lines: Sequence[str], cut: bool) -> Iterator[Dialect]:
    """Yield the dialects to try with a delimiter, the usual ones first."""
    if cfg.quote is not None:
        quotes: list[str | None] = [None if cfg.quote == "none" else cfg.quote]
    elif delimiter == SINGLE_COLUMN:
        quotes = ['"', None]
    elif delimiter == "\t":
        quotes = ['"'] if _is_quoted_table(lines, cut) else [None]
    else:
        quotes = ['"', *[None] * _has_quotes_as_text(lines, delimiter)]
        single = any(line.startswith("'") for line in lines)
        quotes = ["'", *quotes] if _are_in_single_quotes(lines, delimiter) else [*quotes, *["'"] * single]
    escapes: list[str | None] = [None, "\\"] if any('\\"' in line for line in lines) else [None]
    if cfg.escape is not None:
        escapes = [None if cfg.escape == "none" else cfg.escape]
    for quote in quotes:
        for escape in escapes if quote else [None]:
            yield Dialect(delimiter, quote, escape)


class Trial:
    """The rows of a sample by a dialect.

    Attributes:
        score: whether the header has the columns; whether there are several; the share of rows with as many fields as the header; whether no quote is
            stray. The lines of a row that cannot be parsed count as rows.
    """

    def __init__(
        self,
        dialect: Dialect,
        lines: Sequence[str],
        cut: bool,
        wanted: Sequence[str],
        columns: list[str] | None,
    ):
        self.columns = columns
        self.rows, lost = _parsed(lines, dialect, cut)
        if _has_spaces(self.rows, dialect):
            dialect = dataclasses.replace(dialect, spaces=True)
            self.rows, lost = _parsed(lines, dialect, cut)
        self.dialect = dialect
        self.skip = next(
            (index for index, row in enumerate(self.rows[:PREAMBLE]) if set(wanted) <= {*column_names(row)}),
            None,
        )
        if not wanted and not columns:
            self.skip = _table_begins(self.rows)
        self.names = columns or column_names(self.rows[self.skip or 0]) if self.rows else []
        self.body = self.rows if columns else self.rows[(self.skip or 0) + 1 :]
        self.consistent = _share_of_fitting(self.body, len(self.names), lost)
        named = columns is not None or (self.skip is not None and bool(wanted or not self.skip))
        many = len(self.names) > 1 or (named and len(wanted) == 1)
        self.score = (named and many, many, round(self.consistent, 2), not lost)

    @property
    def is_plain(self) -> bool:
        """Whether no property of the rows needs another dialect."""
        return all(self.score) and self.consistent == 1 and not self.dialect.escape

    def settled(self) -> Dialect:
        """Return the dialect with its header, and with fields that the header does not name."""
        width = len(self.names)
        longer = [row for row in self.body if len(row) == width + 1]
        row_names = (
            self.columns is None
            and len(longer) == len(self.body) > 1
            and len({row[0] for row in longer if row[0].isdecimal()}) == len(longer)
            and any(row[-1] for row in longer)
        )
        further = bool(self.columns) and any(len(row) == width for row in self.body)
        skip = 0 if self.columns else self.skip or 0
        return dataclasses.replace(
            self.dialect, skip=skip, names=tuple(self.names), row_names=row_names, further=further,
            wrapped=self.dialect.quote is None and self.dialect.delimiter not in ("\t", SINGLE_COLUMN) and _are_wrapped(self.body),
        )  # fmt: skip


def _table_begins(rows: Sequence[list[str]]) -> int:
    """Return the index of the first row below titles and comments: from it on all rows have several fields, and equally many; 0: there is none.

    A title may be padded with empty fields up to the width of the table; the row below such titles is a header if it names all columns.
    """
    comments = len([*itertools.takewhile(lambda row: row[0].startswith("#"), rows[:PREAMBLE])])
    begin = comments if comments > 1 else 0  # a single one may be the header
    if rows and len(rows[0]) > 1 and not begin:
        titles = len([*itertools.takewhile(lambda row: row[0] and not any(row[1:]), rows[:PREAMBLE])])
        header, *body = rows[titles:] or [[]]
        return titles if all(header) and body and not is_first_row(header, body[:EXAMINED]) else 0
    for index, row in enumerate(rows[begin:PREAMBLE], begin):
        if len(row) > 1 and all(len(other) == len(row) for other in rows[index:]):
            return index
    return begin


def _line_of(lines: Iterable[str], dialect: Dialect) -> int:
    """Return the line on which the header begins."""
    reader, left = _reader(lines, dialect), dialect.skip
    begin = 1
    with contextlib.suppress(csv.Error):
        for row in reader:
            if any(row) and not left:
                break
            left -= any(row)
            begin = reader.line_num + 1
    return begin


def _share_of_fitting(rows: Sequence[list[str]], width: int, lost: int) -> float:
    """Return the share of rows that fit a header; `lost` is the number of lines of further rows, which cannot be parsed."""
    return sum(_fit(row, width) for row in rows) / (len(rows) + lost) if rows or lost else 1.0


def _fit(row: list[str], width: int) -> float:
    """Return how well a row fits a header: 1 if it has as many fields, less if it lacks the last ones, still less if it has more, and 0 if it is a
    single field."""
    if len(row) == width or (len(row) > width and not any(row[width:])):
        return 1.0
    return 0.1 if len(row) > width else 0.5 * (len(row) > 1)


def column_names(fields: Sequence[str]) -> list[str]:
    """Return the names of columns: what the header holds, without white space around it, or the number sign that begins some headers."""
    names = [field.strip() for field in fields]
    return [names[0].removeprefix("#").strip(), *names[1:]] if names else []


def _parsed(lines: Iterable[str], dialect: Dialect, cut: bool) -> tuple[list[list[str]], int]:
    """Return the rows of lines without blank ones, and the number of the lines whose rows cannot be parsed.

    Args:
        cut: whether the lines may end within a quoted field.
    """
    rows: list[list[str]] = []
    reader, lost = _reader(lines, dialect), 0
    while True:
        before = reader.line_num
        try:
            row = next(reader, None)
        except csv.Error as error:
            lost += 0 if cut and "unexpected end of data" in str(error) else reader.line_num - before
            continue
        if row is None:
            return rows, lost
        if any(row):
            rows.append(row)


def _reader(lines: Iterable[str], dialect: Dialect) -> Any:
    if dialect.escape and dialect.quote:
        # the csv module would also take the backslash off before other characters: \n becomes n
        lines = (
            _ESCAPED.sub(lambda match: match[1] * 2 if match[1] == '"' else match[1], line) for line in lines
        )
    return csv.reader(
        lines,
        delimiter=dialect.delimiter,
        quotechar=dialect.quote,
        quoting=csv.QUOTE_MINIMAL if dialect.quote else csv.QUOTE_NONE,
        skipinitialspace=dialect.spaces,
        strict=True,
    )


def _has_spaces(rows: list[list[str]], dialect: Dialect) -> bool:
    """Return whether a space follows each delimiter: in the header, or before quotes."""
    if not rows or dialect.delimiter in ("\t", SINGLE_COLUMN):
        return False
    header = rows[0][1:]
    return bool(header) and (
        all(name.startswith(" ") for name in header)
        or any(
            field.startswith(" ") and field.lstrip().startswith(dialect.quote or "\0")
            for row in rows
            for field in row[1:]
        )
    )


def _is_quoted_table(lines: Sequence[str], cut: bool) -> bool:
    """Return whether the quotes around fields between tabs are those of a writer of csv (pandas, Excel), and not text.

    A writer quotes the fields that need it, or all of a column, and leaves no quote in a field without quotes around it. A small share of stray quotes
    is damage.
    """
    rows, _ = _parsed(lines, Dialect("\t", None), cut)
    quoted_rows, lost = _parsed(lines, Dialect("\t", '"'), cut)
    if len(rows) < 2 or not quoted_rows:
        return False
    header, *rows = rows
    share = _share_of_fitting(quoted_rows[1:], len(quoted_rows[0]), lost)
    if share < 1 - STRAY:
        return False
    if share > _share_of_fitting(rows, len(header), 0):
        return True  # line breaks or tabs within quotes
    fields = [field for row in rows for field in row]
    quoted = [field for field in fields if _QUOTED.fullmatch(field)]
    others = [field for field in fields if not field.startswith('"')]
    stray = len(fields) - len(others) - len(quoted) + sum('"' in field for field in others)
    if not quoted or stray > STRAY * len(quoted):
        return False
    commas = not any("," in field for field in others)  # which Excel quotes
    if all('""' in field[1:-1] or (commas and "," in field) for field in quoted):
        return True
    return all(name.startswith('"') for name in header)


def _are_in_single_quotes(lines: Sequence[str], delimiter: str) -> bool:
    """Return whether the fields of the first rows are between single quotes."""
    rows = [line.strip() for line in lines[:PREAMBLE] if line.strip()]
    field = re.compile(r"'(?:[^']|'')*'")
    return bool(rows) and all(
        row[0] == row[-1] == "'" and all(map(field.fullmatch, re.split(rf"{re.escape(delimiter)}(?=')", row)))
        for row in rows
    )


def _has_quotes_as_text(lines: Sequence[str], delimiter: str) -> bool:
    """Return whether fields begin with quotes that belong to the text, as in `"Well" said, good`: no field of a line ends with the quote that closes it."""
    sign = re.escape(delimiter)
    begun = re.compile(rf'(?:^|{sign})"')
    complete = re.compile(rf"(?:^|{sign}){_QUOTED.pattern}(?=$|{sign}|[\r\n])")
    return any(map(begun.search, lines)) and not any(map(complete.search, lines))


def _are_wrapped(rows: Sequence[Sequence[str]]) -> bool:
    """Return whether all fields of a column, and no others, are between quotes."""
    begun = {index: 0 for row in rows for index, field in enumerate(row) if field.startswith('"')}
    for row in rows:
        for index, field in enumerate(row):
            if (field[:1] == '"') != (len(field) > 1 and field[-1] == '"'):
                return False
            if field[:1] == '"':
                begun[index] += 1
    return bool(begun) and all(count == len(rows) for count in begun.values())


def _unwrapped(row: list[str]) -> list[str]:
    return [field[1:-1] if len(field) > 1 and field[0] == field[-1] == '"' else field for field in row]


def read(
    schema: RowSchema, path: str, name: str, lines: Iterable[str], dialect: Dialect, bad: BadRows
) -> Iterator[tuple[Any, ...]]:
    """Yield the values of the wanted columns of each row.

    Args:
        path, name: the file, for messages.

    Raises:
        DataError: a column is missing, or a row cannot be read and is not dropped.
    """
    columns, header = schema.cfg.columns, list(dialect.names)
    reader = _reader(lines, dialect)
    _skip(path, reader, dialect.skip + (columns is None and not dialect.headless))
    indices = [index + dialect.row_names for index in _indices(schema, name, header, reader)]
    width, needed = len(header) + dialect.row_names, max(indices) + 1
    notes: Counter[str] = Counter()
    first = FirstRow(schema, path, header) if columns else None
    while True:
        begin = reader.line_num + 1
        try:
            row = next(reader, None)
        except csv.Error as error:
            bad.add(
                f"{place_of(path, begin, reader.line_num)}: {error} (a truncated file, a stray quote, or quotes that are text: dataset.quote=none?)"
            )
            continue
        if row is None:
            break
        row = _unwrapped(row) if dialect.wrapped else row
        if len(row) != width:
            if not any(row):
                continue
            if len(row) < needed or (any(row[width:]) and not dialect.further):
                declared = "dataset.columns names" if columns else "the header has"
                bad.add(
                    f"{place_of(path, begin, reader.line_num)}: {len(row)} fields where {declared} {width} "
                    f"({_why_misfit(dialect.delimiter.join(row), width)})"
                )
                continue
            notes[_SHORT if len(row) < width else _LONG] += len(row) < width or any(row[width:])
        elif row == header:
            if columns:
                raise DataError(
                    f"{path}, line {reader.line_num} is the header; remove dataset.columns, which is for files without one"
                )
            notes[_REPEATED] += 1
            continue
        elif not row[0] and not any(row):
            continue
        if first is not None:
            first.compare(row, reader.line_num)
        bad.at(begin, reader.line_num)
        yield tuple([row[column] for column in indices])
    if first is not None:
        first.require_row()
    for note, count in (+notes).items():
        logger.info("%s: %d rows %s", name, count, note)


def _why_misfit(line: str, width: int) -> str:
    """Return why a row may have fewer or more fields than the header, with the keys that help.

    Args:
        line: the fields with the delimiters between them.
    """
    for sign in dict.fromkeys(match[0] for match in _REPEATED_SIGN.finditer(line)):
        if line.count(sign) == width - 1:
            return f"{shown(sign)} divides it into {width} fields, and a delimiter is one character: write tabs in place of {shown(sign)}"
    return "a truncated file, another delimiter (dataset.delimiter=), or another quote or one that does not close (dataset.quote=)?"


def _skip(path: str, reader: Any, rows: int) -> None:
    """Skip a number of rows; blank rows do not count."""
    try:
        while rows and (row := next(reader, None)) is not None:
            rows -= any(row)
    except csv.Error as error:
        raise DataError(
            f"{path}, line {reader.line_num}: {error} (a truncated file, or a stray quote?); give dataset.quote, or dataset.bad_rows=drop"
        ) from None


def _indices(schema: RowSchema, name: str, header: list[str], reader: Any) -> list[int]:
    """Return the places of the wanted columns.

    Args:
        reader: of the rows below the header, for messages.

    Raises:
        DataError: one is missing.
    """
    try:
        return [header.index(column) for (column,) in schema.value_paths(header, name)]
    except DataError as error:
        if len(header) == 1 and set(schema.columns) <= set(header[0].split()):
            raise DataError(
                f"{error.message}; its header has these names with spaces between them, which also stand in texts; write tabs or commas with quotes "
                "between the fields, or give dataset.delimiter=' ' if the texts are in quotes"
            ) from None
        if not header or schema.cfg.columns or len(header) > MOST_NAMED or not looks_like_row(header):
            raise
        if len(header) < len(schema.columns):
            raise DataError(
                f"{error.message}; its first line looks like a row without a header: write tabs between the fields, or give dataset.delimiter with the character "
                f"that stands there, and name all columns with dataset.columns=[{','.join(schema.columns)}]"
            ) from None
        raise DataError(
            f"{error.message}; its first line looks like a row: if the file has no header, name its {len(header)} columns in their order, "
            f"as in dataset.columns={proposed_columns(schema, header, _rows_of(reader))}"
        ) from None


def _rows_of(reader: Any) -> list[list[str]]:
    """Return the first rows of those that can be read."""
    rows: list[list[str]] = []
    with contextlib.suppress(csv.Error, DataError, UnicodeError):
        rows += itertools.islice(reader, EXAMINED)
    return rows
