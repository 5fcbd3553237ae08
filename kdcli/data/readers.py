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
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import yaml

from kdcli.data.gettext import catalogued
from kdcli.errors import ConfigError, DataError, abbreviated, listed, shown, suggest
from kdcli.tasks.rows import RawSplit, RowSchema, decode_json, fold_white_space

logger = logging.getLogger(__name__)
DOCUMENT = 1000
"""Characters from which on a document of plain text is long enough."""
NULS = 64
"""So many NULs in a row are the hole of a sparse file, in every encoding."""
LONGEST_FIELD = 2**24
"""Characters of a csv field: a longer one is a quote that does not close."""
BOMB = 200
"""How many times larger than its file a table may be, from `BOMB_FROM` bytes on."""
BOMB_FROM = 2**28
BATCH = 1000
"""Rows of a parquet file that are decoded at once."""


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
    return [schema.check(values, f"{name}, row {number}") for number, values in enumerate(table, 1)]


def _line_of(path: Path, encoding: str) -> str:
    """`, line N` for the first bytes that cannot be decoded: the error itself counts from where a block began."""
    decoder = codecs.getincrementaldecoder(encoding)()
    number = 1
    with contextlib.suppress(OSError, UnicodeError), path.open("rb") as stream:
        for piece in iter(functools.partial(stream.readline, 2**20), b""):
            decoder.decode(piece)
            number += piece.endswith(b"\n")
    return f", line {number}"


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
        given = "dataset.columns names" if cfg.columns else "the header has"
        picked = [header.index(column) for (column,) in schema.column_paths(header, path.name)]
        for row in reader:
            if not row:
                continue
            if len(row) != len(header):
                raise DataError(
                    f"{path}, line {reader.line_num}: {len(row)} fields where {given} {len(header)} "
                    "(a truncated file, another delimiter, or a quote that does not close?)"
                )
            if row == cfg.columns:
                raise DataError(
                    f"{path}, line {reader.line_num} is the header; leave dataset.columns out, it is for files without one"
                )
            yield tuple(row[column] for column in picked)
    except csv.Error as error:
        raise DataError(
            f"{path}, line {reader.line_num}: {error} (a truncated file, or a stray quote?)"
        ) from None


class _UntilNul(io.BufferedReader):
    """A file that ends at the first run of NUL: sparse files have gigabytes of it, which would be read as one line."""

    ended = False

    def read1(self, size: int = -1, /) -> bytes:
        """Bytes of the next block, the first NULs included."""
        place = self.tell()
        block = b"" if self.ended else super().read1(size)
        if (run := block.find(bytes(NULS))) >= 0:
            self.ended = True
            block = block[: run + NULS - (place + run) % 4]  # whole characters, also of UTF-32
        return block


def _lines(schema: RowSchema, path: Path) -> Iterator[str]:
    """The lines of a text file, with their ends, and without the mark that Windows begins UTF-8 with."""
    if "\0" in schema.cfg.encoding:
        raise LookupError("unknown encoding")
    encoding = "utf-8-sig" if schema.cfg.encoding == "utf-8" else schema.cfg.encoding
    with io.TextIOWrapper(_UntilNul(io.FileIO(path)), encoding, newline="") as stream:
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
        if list(row) != keys:  # most often they are those of the line before
            keys = list(row)
            ways = schema.column_paths(keys, where, nested=True)
        yield tuple(_inside(row, way, where) for way in ways)


def _read_parquet(schema: RowSchema, path: Path) -> Iterator[tuple[Any, ...]]:
    import pyarrow
    import pyarrow.parquet

    try:
        with pyarrow.parquet.ParquetFile(path) as file:
            ways = schema.column_paths(file.schema_arrow.names, path.name, nested=True)
            names = list({way[0]: None for way in ways})
            _require_rows(file, path)
            size, first = 0, 1
            for batch in file.iter_batches(BATCH, columns=names):
                columns = {name: _plain(batch.column(name)) for name in names}
                size += sum(column.nbytes for column in columns.values())
                if size > max(BOMB_FROM, BOMB * os.path.getsize(path)):
                    raise _bomb(path)
                table = {name: column.to_pylist() for name, column in columns.items()}
                yield from table_rows(table, ways, path.name, first)
                first += len(batch)
    except (pyarrow.ArrowException, OSError, ValueError, OverflowError, NotImplementedError) as error:
        raise DataError(
            f"{path} is not a whole parquet file, or a column of it cannot be read ({str(error).strip()}); write it anew"
        ) from None


def _plain(column: Any) -> Any:
    """A column of a table without dictionaries, which hide how much it holds."""
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
    table: dict[str, list[Any]], ways: list[list[str]], name: str, first: int = 1
) -> Iterator[tuple[Any, ...]]:
    """The rows of a table's columns, each with what it holds at the end of its way; `first` is the number of the first row."""
    for number, values in enumerate(zip(*(table[way[0]] for way in ways), strict=True), first):
        yield tuple(
            _inside(value, way[1:], f"{name}, row {number}") for value, way in zip(values, ways, strict=True)
        )


def _inside(value: Any, way: list[str], where: str) -> Any:
    """What mappings hold at the end of a way of keys."""
    for key in way:
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
    """YAML whose scalars stay as written (yes, 1.10), without aliases, which can multiply, and without doubled keys."""

    def compose_node(self, parent: Any, index: Any) -> Any:
        """Raises yaml.YAMLError at an alias."""
        if self.check_event(yaml.AliasEvent):
            event = self.peek_event()
            raise yaml.MarkedYAMLError(
                problem=f"an alias (*{event.anchor}); write its text out", problem_mark=event.start_mark
            )
        return super().compose_node(parent, index)

    def construct_mapping(self, node: Any, deep: bool = False) -> Any:
        """Raises yaml.YAMLError at a key that stands there twice."""
        mapping = super().construct_mapping(node, deep)
        if len(mapping) < len(node.value):
            keys = Counter(key.value for key, _ in node.value if isinstance(key.value, str))
            twice = keys.most_common(1)[0][0]
            raise yaml.MarkedYAMLError(
                problem=f"the key {shown(twice)} stands there twice", problem_mark=node.start_mark
            )
        return mapping


def _read_conversations(schema: RowSchema, path: Path) -> Iterator[tuple[Any, ...]]:
    """The first turn of each conversation and the second.

    Those after it are a dialogue in some files, and more answers to the first in others; nothing says which.
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
        logger.info("%s: %d turns after the second one of a conversation left out", path.name, later)


def _read_conll(schema: RowSchema, path: Path) -> Iterator[tuple[Any, ...]]:
    """Sentences: a word and its tag a line, in the first and the last column, and a blank line between two."""
    words: list[str] = []
    tags: list[str] = []
    for number, line in enumerate(itertools.chain(_lines(schema, path), ["\n"]), 1):
        columns = re.split(r"[ \t]+", line.strip(" \t\r\n"))
        if columns[0] and columns[0] != "-DOCSTART-":
            if len(columns) < len(schema.columns):
                raise DataError(
                    f"{path}, line {number}: expected a word and its tag, got {shown(line.strip())}"
                )
            words.append(columns[0])
            tags.append(columns[-1])
        elif words:
            yield (words, tags)[: len(schema.columns)]
            words, tags = [], []


def read_gettext(schema: RowSchema, path: Path, given: str) -> list[RawSplit]:
    """The catalogues of two locales under a folder."""
    found = catalogued(path, given, schema.cfg.source_language, schema.cfg.target_language or "")
    return [
        RawSplit(place, check_rows(schema, place, table), dropped=dropped) for place, table, dropped in found
    ]


_READERS: dict[str, Callable[[RowSchema, Path], Iterator[tuple[Any, ...]]]] = {
    "csv": _read_csv,
    "jsonl": _read_jsonl,
    "parquet": _read_parquet,
    "txt": _read_txt,
    "conversations": _read_conversations,
    "conll": _read_conll,
}
