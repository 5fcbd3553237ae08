"""Reads data files: csv, jsonl, parquet, txt, YAML conversations, CoNLL, gettext catalogues."""

from __future__ import annotations

import codecs
import contextlib
import csv
import functools
import io
import itertools
import logging
import os
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import yaml

from kdcli.data.gettext import catalogued
from kdcli.data.tagged import tagged_sentences
from kdcli.errors import ConfigError, DataError, abbreviated, listed, shown, suggest
from kdcli.tasks.rows import RawSplit, RowSchema, decode_json, fold_white_space

logger = logging.getLogger(__name__)
DOCUMENT = 1000
"""The minimum number of characters of a document of plain text."""
NULS = 64
"""The number of consecutive NULs that mark the hole of a sparse file, in every encoding."""
LONGEST_FIELD = 2**24
"""The maximum number of characters of a csv field: a longer one has an unclosed quote."""
BOMB = 200
"""The largest ratio of a table to its file, for tables of `BOMB_FROM` bytes and more."""
BOMB_FROM = 2**28
BATCH = 1000
"""Rows of a parquet file that are decoded at a time."""


def read_file(schema: RowSchema, path: Path, given: str) -> RawSplit:
    encoding = schema.cfg.encoding
    if not os.path.isfile(path):  # nor a pipe, a socket or a device
        what = "is no file" if os.path.lexists(path) else "does not exist"
        raise DataError(
            f"the data file {abbreviated(given)} {what} (looked for {abbreviated(str(path.absolute()))})"
        )
    if os.path.getsize(path) == 0:
        raise DataError(f"the data file {path} is empty")
    if schema.cfg.format != (named := path.suffix[1:].lower()) and named in ("parquet", "jsonl"):
        raise DataError(
            f"{path} is {named} by its name, and would be read as {schema.cfg.format}: give dataset={named}, and all files of a data set in one format"
        )
    try:
        rows = check_rows(schema, path.name, _READERS[schema.cfg.format](schema, path))
    except UnicodeError as error:
        raise DataError(
            f"{path}{_line_of(path, encoding)} is not {encoding} text ({error}); save it as UTF-8, or "
            "give dataset.encoding= (latin-1, cp1252, utf-16 …)"
        ) from None
    except LookupError as error:
        raise DataError(
            f"dataset.encoding = {abbreviated(encoding)}: {abbreviated(str(error).partition(';')[0])}; give the name of a text encoding (utf-8, latin-1, cp1252, utf-16 …)"
        ) from None
    except OSError as error:
        raise DataError(f"{path} cannot be read ({error})") from None
    if not rows:
        raise DataError(f"{path} has no rows")
    return RawSplit(path.name, rows)


def check_rows(schema: RowSchema, name: str, table: Iterable[tuple[Any, ...]]) -> list[tuple[Any, ...]]:
    rows = enumerate(schema.assembled(table), 1)
    return [schema.check(values, f"{name}, row {number}") for number, values in rows]


def _line_of(path: Path, encoding: str) -> str:
    """`, line N` for the first bytes that cannot be decoded. (The error itself counts from the start of a block.)"""
    decoder = codecs.getincrementaldecoder(encoding)()
    line = 1
    with contextlib.suppress(OSError, UnicodeError), path.open("rb") as stream:
        for piece in iter(functools.partial(stream.readline, 2**20), b""):
            decoder.decode(piece)
            line += piece.endswith(b"\n")
    return f", line {line}"


def _read_csv(schema: RowSchema, path: Path) -> Iterator[tuple[Any, ...]]:
    cfg = schema.cfg
    tabs = path.suffix in (".tsv", ".tab") if cfg.delimiter is None else cfg.delimiter == "\t"
    quote = cfg.quote if cfg.quote is not None else None if tabs else '"'
    delimiter = cfg.delimiter or ("\t" if tabs else ",")
    if delimiter == quote or {delimiter, quote} & set("\r\n\0"):
        raise ConfigError(
            f"dataset.delimiter = {shown(delimiter)} and dataset.quote = {shown(quote)}: expected two characters, none of them a line break"
        )
    csv.field_size_limit(LONGEST_FIELD)
    reader = csv.reader(
        _lines(schema, path),
        delimiter=delimiter,
        quotechar=quote,
        quoting=csv.QUOTE_MINIMAL if quote else csv.QUOTE_NONE,
        strict=True,
    )
    try:
        header = cfg.columns or next(reader, [])
        declared = "dataset.columns names" if cfg.columns else "the header has"
        indices = [header.index(column) for (column,) in schema.column_paths(header, path.name)]
        for row in reader:
            if not row:
                continue
            if len(row) != len(header):
                raise DataError(
                    f"{path}, line {reader.line_num}: {len(row)} fields where {declared} {len(header)} "
                    "(a truncated file, another delimiter, or a quote that does not close?)"
                )
            if row == cfg.columns:
                raise DataError(
                    f"{path}, line {reader.line_num} is the header; remove dataset.columns, which is for files without one"
                )
            yield tuple(row[column] for column in indices)
    except csv.Error as error:
        raise DataError(
            f"{path}, line {reader.line_num}: {error} (a truncated file, or a stray quote?)"
        ) from None


class _UntilNul(io.BufferedReader):
    """A file that ends at the first run of NULs: the holes of sparse files are gigabytes, which would be read as one line."""

    ended = False

    def read1(self, size: int = -1, /) -> bytes:
        """The bytes of the next block, with the first NULs."""
        offset = self.tell()
        block = b"" if self.ended else super().read1(size)
        if (run := block.find(bytes(NULS))) >= 0:
            self.ended = True
            block = block[: run + NULS - (offset + run) % 4]  # complete characters, also of UTF-32
        return block


def _lines(schema: RowSchema, path: Path) -> Iterator[str]:
    """The lines of a text file, with their ends, and without the byte order mark of UTF-8."""
    if "\0" in schema.cfg.encoding:
        raise LookupError("unknown encoding")
    encoding = "utf-8-sig" if schema.cfg.encoding == "utf-8" else schema.cfg.encoding
    with _UntilNul(io.FileIO(path)) as binary, io.TextIOWrapper(binary, encoding, newline="") as stream:
        for number, line in enumerate(stream, 1):
            if "\0" in line:
                raise DataError(
                    f"{path}, line {number} holds NUL: is it no text, or UTF-16 (dataset.encoding=utf-16)?"
                )
            yield line


def _read_jsonl(schema: RowSchema, path: Path) -> Iterator[tuple[Any, ...]]:
    keys: list[str] = []
    for number, line in enumerate(_lines(schema, path), 1):
        if not line.strip():
            continue
        where = f"{path}, line {number}"
        try:
            row = decode_json(line)
        except ValueError as error:
            raise DataError(f"{where} is not JSON: {error}") from None
        if not isinstance(row, dict):
            raise DataError(f"{where}: expected an object, got {type(row).__name__}; write one object a line")
        if list(row) != keys:  # most lines have the keys of the line before
            keys = list(row)
            paths = schema.column_paths(keys, where, nested=True)
        yield tuple(_value_at(row, path, where) for path in paths)


def _read_parquet(schema: RowSchema, path: Path) -> Iterator[tuple[Any, ...]]:
    import pyarrow
    import pyarrow.parquet

    try:
        with pyarrow.parquet.ParquetFile(path) as file:
            paths = schema.column_paths(file.schema_arrow.names, path.name, nested=True)
            names = list({path[0]: None for path in paths})
            _require_rows(file, path)
            size, first = 0, 1
            for batch in file.iter_batches(BATCH, columns=names):
                columns = {name: _plain(batch.column(name)) for name in names}
                size += sum(column.nbytes for column in columns.values())
                if size > max(BOMB_FROM, BOMB * os.path.getsize(path)):
                    raise _bomb(path)
                table = {name: column.to_pylist() for name, column in columns.items()}
                yield from table_rows(table, paths, path.name, first)
                first += len(batch)
    except (pyarrow.ArrowException, OSError, ValueError, OverflowError, NotImplementedError) as error:
        raise DataError(
            f"{path} is not a complete parquet file, or a column of it cannot be read ({str(error).strip()}); write it anew"
        ) from None


def _plain(column: Any) -> Any:
    """A column of a table, decoded from a dictionary, which would hide its size."""
    import pyarrow

    return column.dictionary_decode() if pyarrow.types.is_dictionary(column.type) else column


def _bomb(path: Path) -> DataError:
    return DataError(
        f"{path} holds more than {BOMB:,} times what it has in bytes, which no text does; write its table anew"
    )


def _require_rows(file: Any, path: Path) -> None:
    """Refuse a table that is too large by what it says of itself, before anything is decoded."""
    groups = [file.metadata.row_group(number) for number in range(file.metadata.num_row_groups)]
    claimed = max(file.metadata.num_rows, sum(group.total_byte_size for group in groups))
    if claimed > max(BOMB_FROM, BOMB * os.path.getsize(path)):
        raise _bomb(path)


def table_rows(
    table: dict[str, list[Any]], paths: list[list[str]], name: str, first: int = 1
) -> Iterator[tuple[Any, ...]]:
    """The rows of a table as the values at the paths of its columns; `first` is the number of the first row, for messages."""
    for number, values in enumerate(zip(*(table[path[0]] for path in paths), strict=True), first):
        where = f"{name}, row {number}"
        yield tuple(_value_at(value, path[1:], where) for value, path in zip(values, paths, strict=True))


def _value_at(value: Any, path: list[str], where: str) -> Any:
    """The value at the end of a path of keys.

    Raises:
        DataError: with a message that begins with `where`.
    """
    for key in path:
        if not isinstance(value, dict):
            raise DataError(f"{where}: expected a mapping that holds {key!r}, got {shown(value)}")
        if key not in value:
            raise DataError(f"{where}: there is no {key!r}{suggest(key, value)} (there are: {listed(value)})")
        value = value[key]
    return value


def _read_txt(schema: RowSchema, path: Path) -> Iterator[tuple[Any, ...]]:
    """Documents: paragraphs in their order, as many as make at least `DOCUMENT` characters."""
    document = ""
    lines = (line.rstrip("\r\n") for line in _lines(schema, path))
    for blank, paragraph in itertools.groupby(lines, lambda line: not line.strip()):
        if not blank:
            document += "\n\n" * bool(document) + "\n".join(paragraph)
        if len(document) >= DOCUMENT:
            yield (document,)
            document = ""
    if document:
        yield (document,)


class PlainLoader(yaml.BaseLoader):
    """YAML whose scalars stay strings as they are written (yes, 1.10). Aliases, which can multiply, and duplicate keys are errors."""

    def compose_node(self, parent: Any, index: Any) -> Any:
        """Raises yaml.YAMLError at an alias."""
        if self.check_event(yaml.AliasEvent):
            event = self.peek_event()
            raise yaml.MarkedYAMLError(
                problem=f"an alias (*{event.anchor}); write its text out", problem_mark=event.start_mark
            )
        return super().compose_node(parent, index)

    def construct_mapping(self, node: Any, deep: bool = False) -> Any:
        """Raises yaml.YAMLError at a duplicate key."""
        mapping = super().construct_mapping(node, deep)
        if len(mapping) < len(node.value):
            keys = Counter(key.value for key, _ in node.value if isinstance(key.value, str))
            twice = keys.most_common(1)[0][0]
            raise yaml.MarkedYAMLError(
                problem=f"the key {shown(twice)} stands there twice", problem_mark=node.start_mark
            )
        return mapping


def _read_conversations(schema: RowSchema, path: Path) -> Iterator[tuple[Any, ...]]:
    """The first two turns of each conversation.

    Later turns continue the dialogue in some files, and are further answers to the first turn in others; the files do not say which.
    """
    try:
        tree = yaml.load("".join(_lines(schema, path)), PlainLoader)
    except (yaml.YAMLError, OverflowError, RecursionError) as error:
        why = "it is nested too deeply" if isinstance(error, RecursionError) else fold_white_space(str(error))
        raise DataError(f"{path} is not YAML ({why})") from None
    conversations = tree.get("conversations") if isinstance(tree, dict) else None
    if not isinstance(conversations, list):
        raise DataError(f"{path}: expected `conversations`, a list of lists of turns")
    later = 0
    for number, conversation in enumerate(conversations, 1):
        turns = [turn for turn in conversation if turn] if isinstance(conversation, list) else []
        for turn in turns:
            if not isinstance(turn, str):
                raise DataError(
                    f"{path}, conversation {number}: expected turns that are text, got {shown(turn)}; put quotes around it"
                )
        if len(turns) > 1:
            yield turns[0], turns[1]
            later += len(turns) - 2
    if later:
        logger.info("%s: %d turns after the second one of a conversation dropped", path.name, later)


def _read_conll(schema: RowSchema, path: Path) -> Iterator[tuple[Any, ...]]:
    return tagged_sentences(schema, path, _lines(schema, path))


def read_gettext(schema: RowSchema, path: Path, given: str) -> list[RawSplit]:
    """The catalogues of two locales under a folder."""
    catalogues = catalogued(path, given, schema.cfg.source_language, schema.cfg.target_language or "")
    return [
        RawSplit(name, check_rows(schema, name, table), dropped=dropped)
        for name, table, dropped in catalogues
    ]


_READERS: dict[str, Callable[[RowSchema, Path], Iterator[tuple[Any, ...]]]] = {
    "csv": _read_csv,
    "jsonl": _read_jsonl,
    "parquet": _read_parquet,
    "txt": _read_txt,
    "conversations": _read_conversations,
    "conll": _read_conll,
}
