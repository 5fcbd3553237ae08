"""Reads rows of JSON: one object per line, an array of objects, objects under a key, or columns."""

from __future__ import annotations

import contextlib
import itertools
import json
import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from kdcli.data.raw_rows import BadRows, holds_names, value_at
from kdcli.errors import DataError, listed, shown
from kdcli.tasks.notation import decode_json
from kdcli.tasks.rows import RowSchema, place_of

DEEPEST_FIELD = 3
"""The depth of keys to which a document is searched for rows."""
PREAMBLE = 20
"""The number of lines in which the beginning of a document is searched."""
_NEXT = re.compile(r"[\s,\x1e]*")
_LAST_COMMA = re.compile(r",\s*\]\s*\Z")
"""A comma after the last item of an array, which JSON does not allow."""
_COMMENT = re.compile(r"\s*(//|/\*|#)")
_PYTHON = re.compile(r"""\s*\[?\s*\{\s*'""")
"""The beginning of dictionaries that Python printed."""


class SeveralKeysError(DataError):
    """A document has rows under several keys.

    Attributes:
        fields: the dotted keys.
    """

    def __init__(self, path: str, fields: Mapping[str, list[Any]]):
        self.fields = list(fields)
        most = max(fields, key=lambda key: len(fields[key]))
        super().__init__(
            f"{path} has rows under several keys ({listed(fields)}); name one with dataset.field={most}"
        )


def read(
    schema: RowSchema, path: str, name: str, lines: Iterable[str], bad: BadRows
) -> Iterator[tuple[Any, ...]]:
    """Yield the values of the wanted columns of each row.

    Args:
        path: of the file, for messages.
        name: of the file; a single line of a .jsonl or .ndjson file is a row, of other files a document.

    Raises:
        DataError: a column is missing, or a row cannot be read and is not dropped.
    """
    rows = _rows(schema, path, name, iter(lines), bad)
    keys: list[str] | None = None
    """Those of the row before; None: it was refused, or there is none."""
    paths: list[list[str]] = []
    split: list[str] | None = None
    """The path to the column of splits, which is found in the first row; empty: there is none."""
    for where, place, row in rows:
        if not isinstance(row, dict):
            remedy = "write one object a line"
            if _holds_objects(row):
                remedy += ", or give dataset.messages=messages for a conversation a line"
            elif isinstance(row, list):
                remedy = (
                    f"name its {len(row)} items in their order with dataset.columns=[…], or write objects"
                )
            bad.add(f"{where}: expected an object, got {type(row).__name__}; {remedy}")
            continue
        if split and split[0] not in row:
            row = {split[0]: None, **row}
        try:
            if list(row) != keys:  # most rows have the keys of the row before
                keys = None
                if split is None:
                    paths = schema.value_paths(list(row), where, nested=True)
                    split = [schema.split_column] if schema.split_column is not None else []
                else:
                    own = schema.column_paths(list(row), where, nested=True)
                    paths = [split, *own] if split else own
                keys = list(row)
            values = tuple([value_at(row, each, where) if len(each) > 1 else row[each[0]] for each in paths])
        except DataError as error:
            bad.add(error.message + _null_remedy(schema, row))
            continue
        bad.at(*place)
        yield values


def _null_remedy(schema: RowSchema, row: Mapping[str, Any]) -> str:
    """Return the remedy for a row that has all columns but that of its label."""
    missing = [column for column in schema.columns if not _has_column(row, column)]
    is_label = schema.has_gold and missing == [schema.cfg.label] == schema.columns[-1:]
    return f"; write {shown(missing[0])}: null for a text without a label" if is_label else ""


def _rows(
    schema: RowSchema, path: str, name: str, lines: Iterator[str], bad: BadRows
) -> Iterator[tuple[str, tuple[int, int], Any]]:
    """Yield the rows, each with its place for messages, also as two numbers (`BadRows.at`). A file whose first line of JSON is complete has a row, or an
    array of rows, a line; another one is a document."""
    numbered = ((number, line) for number, line in enumerate(lines, 1) if line.strip())
    head = list(itertools.islice(numbered, PREAMBLE))
    if not head:
        return
    start = next((index for index, (_, line) in enumerate(head) if _begins(line)), 0)
    by_name = name.lower().endswith((".jsonl", ".ndjson"))
    row_alone = by_name and head[start][1].lstrip().startswith("{")
    if not _is_complete(head[start][1]) or (len(head) == start + 1 and not row_alone):
        head += numbered
        body = head[start:]
        if (document := _document(schema, path, "".join(line for _, line in body), body)) is not None:
            for number, line in head[:start]:
                bad.add(f"{path}, line {number} is not JSON; {_remedy(line)}")
            for number, row in enumerate(_records(schema, path, document), 1):
                yield place_of(path, number, 0), (number, 0), _named(schema, row)
            return
    for number, line in itertools.chain(head, numbered):
        where = f"{path}, line {number}"
        try:
            row = decode_json(line)
        except ValueError as error:
            bad.add(f"{where} is not JSON: {error}; {_remedy(line)}")
            continue
        if number == head[0][0]:
            _require_no_names(schema, path, row)
        row = _named(schema, row)
        if _holds_objects(row) and _has_columns(schema, row[0]) and (schema.columns or not by_name):
            yield from ((where, (number, number), each) for each in row)
        else:
            yield where, (number, number), row


def _is_complete(line: str) -> bool:
    """Return whether a line is a complete JSON object or array, or cannot begin one."""
    try:
        return isinstance(decode_json(line), dict | list)
    except ValueError:
        return not _begins(line)


def _begins(line: str) -> bool:
    """Return whether a line may begin an object or an array."""
    return line.lstrip()[:1] in ("{", "[")


def _document(schema: RowSchema, path: str, text: str, numbered: list[tuple[int, str]]) -> Any:
    """Return the value of a whole file, or a list of the objects that follow each other in it; None: its lines are rows, and the first is damaged.

    Raises:
        DataError: it is not JSON.
    """
    try:
        return decode_json(text)
    except ValueError as error:
        with contextlib.suppress(ValueError):
            return decode_json(_LAST_COMMA.sub("]", text))
        rows = _sequence(text, schema.cfg.messages is None)
        if rows is None and (len(numbered) < 2 or not _is_complete(numbered[1][1])):
            raise DataError(
                f"{path} is not JSON: {error}; {_remedy(text)}, or give another dataset.format"
            ) from None
        return rows


def _remedy(text: str) -> str:
    if _COMMENT.match(text):
        return "JSON has no comments: remove it"
    return "Python printed it: write it with json.dumps" if _PYTHON.match(text) else "correct it"


def _named(schema: RowSchema, row: Any) -> Any:
    """Return a row with the names of its columns, which dataset.columns gives to an array; an array of turns is a conversation."""
    columns, messages = schema.cfg.columns, schema.cfg.messages
    if messages and _holds_objects(row):
        return {messages: row}
    if columns and isinstance(row, list) and len(row) == len(columns):
        return dict(zip(columns, row, strict=True))
    return row


def _holds_objects(row: Any) -> bool:
    """Return whether a value is an array of objects."""
    return isinstance(row, list) and bool(row) and all(isinstance(each, dict) for each in row)


def _sequence(text: str, joins: bool) -> list[Any] | None:
    """Return objects that follow each other with white space or commas between them; None: the text is something else.

    Args:
        joins: also return the objects of arrays that follow each other.
    """
    values, place = [], _NEXT.match(text).end()  # type: ignore[union-attr]
    decoder = json.JSONDecoder()
    while place < len(text):
        try:
            _, end = decoder.raw_decode(text, place)
            value = decode_json(text[place:end])
        except (ValueError, RecursionError):
            return None
        if not isinstance(value, dict) and not (joins and _holds_objects(value)):
            return None
        values += value if isinstance(value, list) else [value]
        place = _NEXT.match(text, end).end()  # type: ignore[union-attr]
    return values


def _records(schema: RowSchema, path: str, document: Any) -> list[Any]:
    """Return the rows in a document."""
    field = schema.cfg.field
    if field is not None:
        document = value_at(document, field.split("."), f"{path}, dataset.field = {field}")
    if isinstance(document, dict):
        if (rows := _of_columns(schema, document)) is not None:
            return rows
        if field is None:
            document = _under_a_key(schema, path, document)
    if isinstance(document, dict):
        document = list(document.values())
    if not isinstance(document, list):
        raise DataError(
            f"{path}: expected an array of objects, got {shown(document)}; name the key that holds it with dataset.field="
        )
    return _with_header(schema, path, document)


def _of_columns(schema: RowSchema, document: Mapping[str, Any]) -> list[Any] | None:
    """Return the rows of an object that holds columns, as lists or with indices (pandas), or that is itself a row; None: it is none of these."""
    names, data = document.get("columns"), document.get("data")
    if isinstance(names, list) and isinstance(data, list) and all(isinstance(row, list) for row in data):
        return [dict(zip(map(str, names), row, strict=False)) for row in data]
    if not document or not _has_columns(schema, document) or (not schema.columns and _holds_rows(document)):
        return None
    values = list(document.values())
    if all(isinstance(value, list) for value in values) and len({len(value) for value in values}) == 1:
        return [dict(zip(document, row, strict=True)) for row in zip(*values, strict=True)]
    indices = values[0].keys() if isinstance(values[0], dict) else ()
    if all(isinstance(value, dict) and value.keys() == indices for value in values):
        return [{key: document[key][index] for key in document} for index in indices]
    return [document]


def _holds_rows(document: Mapping[str, Any]) -> bool:
    """Return whether an object of unknown columns holds rows (arrays of objects, arrays of arrays, or objects under more keys than they have columns), or
    has no keys of columns: its values are no arrays or objects, or arrays of several lengths."""
    values = list(document.values())
    if all(isinstance(value, list) for value in values) and len(set(map(len, values))) == 1:
        return all(isinstance(each, dict) for value in values for each in value)
    if values and all(isinstance(value, dict) for value in values):
        if all(key.isdecimal() for value in values for key in value):
            return False  # columns with the numbers of the rows
        if len(values) > max(map(len, values)):
            return True
    is_mapping = all(not isinstance(value, dict | list) for value in values) or (
        all(isinstance(value, list) for value in values) and len(set(map(len, values))) > 1
    )
    return is_mapping or any(_arrays(document, "")) or any(_width(value) > 1 for value in values)


def _has_columns(schema: RowSchema, row: Mapping[str, Any]) -> bool:
    return all(_has_column(row, column) for column in schema.columns)


def _has_column(row: Mapping[str, Any], column: str) -> bool:
    return column in row or column.split(".")[0] in row


def _under_a_key(schema: RowSchema, path: str, document: Mapping[str, Any]) -> Any:
    """Return what holds the rows in a document: the one key with an array of objects that have the columns, or else of any objects; or the
    document itself if all of its values are objects.

    Raises:
        DataError: several keys have one, or none has. Where the columns are not known, one key is refused as well, with its name.
    """
    arrays = dict(_arrays(document, ""))
    fields = {key: rows for key, rows in arrays.items() if _has_columns(schema, rows[0])} or arrays
    if len(fields) > 1 or (fields and not schema.columns):
        raise SeveralKeysError(path, fields)
    if fields:
        return next(iter(fields.values()))
    if document and all(isinstance(value, dict) for value in document.values()):
        return document
    lists = {key: rows for key, rows in document.items() if _width(rows) >= max(len(schema.columns), 1)}
    if lists and not (len(lists) > 1 and schema.cfg.columns):
        key, rows = max(lists.items(), key=lambda item: len(item[1]))
        if schema.cfg.columns:
            return rows
        names = [
            *schema.columns,
            *(f"column{number}" for number in range(len(schema.columns) + 1, _width(rows) + 1)),
        ]
        what = (
            f"its key {shown(key)} holds" if len(lists) == 1 else f"its keys {listed(map(shown, lists))} hold"
        )
        raise DataError(
            f"{path}: {what} arrays of {_width(rows)} items; name these in their order, as in dataset.field={key} "
            f"dataset.columns=[{','.join(names)}]"
        )
    if lists:
        raise SeveralKeysError(path, lists)
    if not document:
        raise DataError(f"{path} holds an empty object; write one object per row")
    _require_rows(schema, path, document)
    raise DataError(
        f"{path}: no key of the document holds an array of objects (keys: {listed(document)}); name it with dataset.field="
    )


def _require_rows(schema: RowSchema, path: str, document: Mapping[str, Any]) -> None:
    """Refuse a mapping of texts to labels, or of labels to their texts, which has no keys of columns.

    Raises:
        DataError
    """
    values = list(document.values())
    if all(not isinstance(value, dict | list) for value in values):
        what = "a value"
    elif all(isinstance(value, list) and all(map(_is_text, value)) for value in values):
        what = "a list of texts"
    else:
        return
    columns = schema.columns or ["text", "label"]
    example = ", ".join(f"{json.dumps(column)}: …" for column in columns)
    raise DataError(
        f"{path} holds one object with {what} for each of {len(values):,} keys ({listed(document, 80)}); write an object a row: {{{example}}}"
    )


def _arrays(value: Mapping[str, Any], above: str) -> Iterator[tuple[str, list[Any]]]:
    """Yield the arrays of objects in a document, by their dotted keys."""
    for key, inner in value.items():
        name = f"{above}{key}"
        if _holds_objects(inner):
            yield name, inner
        elif isinstance(inner, dict) and name.count(".") + 1 < DEEPEST_FIELD:
            yield from _arrays(inner, f"{name}.")


def _width(rows: Any) -> int:
    """Return the number of items of each row, if rows are arrays; 0: they are not. Tools for annotation write null for a row that was skipped."""
    sizes = {
        len(row) if isinstance(row, list) else 0
        for row in (rows if isinstance(rows, list) else [])
        if row is not None
    }
    return sizes.pop() if len(sizes) == 1 else 0


def _require_no_names(schema: RowSchema, path: str, first: Any) -> None:
    """Refuse `dataset.columns` for arrays whose first one names the columns."""
    if schema.cfg.columns and isinstance(first, list) and holds_names(schema.cfg.columns, first):
        raise DataError(
            f"{path}: its first array ({listed(first)}) is the header; remove dataset.columns, which is for arrays without one, and name the columns by the "
            "header"
        )


def _with_header(schema: RowSchema, path: str, rows: list[Any]) -> list[Any]:
    """Return the rows as objects, if they are arrays below a first array that names the columns; other rows are unchanged."""
    first = rows[0] if rows else None
    _require_no_names(schema, path, first)
    if (
        schema.cfg.columns
        or not isinstance(first, list)
        or not any(names := [*filter(_is_text, first)])
        or not set(schema.columns) <= {*names}
    ):
        return rows
    return [
        {name: value for name, value in zip(first, row, strict=False) if _is_text(name)}
        if isinstance(row, list)
        else row
        for row in rows[1:]
    ]


def _is_text(value: Any) -> bool:
    return isinstance(value, str)
