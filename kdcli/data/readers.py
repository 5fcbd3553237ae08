"""Reads data files, each by the format that is configured or found."""

from __future__ import annotations

import contextlib
import dataclasses
import io
import itertools
import logging
import os
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from kdcli.config.dataset import Dataset as DatasetConfig
from kdcli.data import delimited, json_files
from kdcli.data.gettext import catalogued
from kdcli.data.raw_rows import UNREADABLE, BadRows, check_rows
from kdcli.data.reading import LARGEST_SAMPLE, Reading, decide, other_encoding, start_of, with_dialect
from kdcli.data.sources import NO_CLASS
from kdcli.data.streams import HEAD, DataFile, line_of_error, lines
from kdcli.data.tagged import looks_tagged, tagged_sentences
from kdcli.errors import DataError, abbreviated, shown
from kdcli.tasks.rows import RawSplit, RowSchema, fold_white_space

logger = logging.getLogger(__name__)
TEXT_SUFFIXES = ("", ".txt", ".text")
"""The suffixes of texts, which may have columns."""
KEYS_OF_LINES = ("delimiter", "columns", "words", "tags", "sentence")
"""The keys of `dataset` that say how lines of words with tags are read."""
DOCUMENT = 1000
"""The minimum number of characters of a document of plain text."""
_STANDOFF = re.compile(rb"[TREAMN#*]\d*\t")
"""The beginning of a line of brat: the id of an annotation."""


@dataclass(frozen=True)
class Source:
    """A file, how it is read, and how its bad rows are handled.

    Attributes:
        schema: the schema of the columns that the file itself holds.
        errors: how undecodable bytes are handled: strict, or surrogateescape if their lines are dropped.
        most: the number of rows that are read at most; None: all.
        more: the values that the names of the folders around the file add to each row.
    """

    schema: RowSchema
    file: DataFile
    reading: Reading
    bad: BadRows
    errors: str = "strict"
    most: int | None = None
    more: tuple[Any, ...] = ()

    @property
    def path(self) -> Path:
        """The file."""
        return self.file.path

    def lines(self, newline: str = "") -> Iterator[str]:
        """Return the lines with their ends; those with bytes that cannot be decoded are bad rows."""
        decoded = lines(self.file, self.reading.encoding or "utf-8-sig", self.errors, newline, self.bad)
        return decoded if self.errors == "strict" else self._without_undecodable(decoded)

    def _without_undecodable(self, decoded: Iterable[str]) -> Iterator[str]:
        for number, line in enumerate(decoded, 1):
            if any("\udc80" <= character <= "\udcff" for character in line):
                self.bad.add(
                    f"{self.path}, line {number} is not {(self.reading.encoding or 'utf-8').removesuffix('-sig')} text"
                )
            else:
                yield line


def read_file(
    schema: RowSchema,
    path: Path,
    given: str,
    recorded: Iterable[Reading] = (),
    most: int | None = None,
    folders: Mapping[str, str | None] | None = None,
) -> tuple[RawSplit, Reading]:
    """Read a file.

    Args:
        given: the path as the config has it, for messages.
        recorded: how an earlier command of the run read its files.
        most: the number of rows to read at most; None: all.
        folders: the values of columns that the names of the folders around it give (label=good/part-0.csv).

    Raises:
        DataError: it is no file, is damaged, or lacks a column.
    """
    require_data_file(path, given)
    own, label = schema, schema.cfg.label
    more: tuple[Any, ...] = ()
    if folders and label and label in folders and schema.has_gold:
        own, more = schema.unlabelled(), (folders[label],)
    with _refusing(path, schema.cfg.encoding):
        file = DataFile.of(path)
        bad = BadRows(schema.cfg.bad_rows)
        source = Source(own, file, decide(own, file, recorded), bad, most=most, more=more)
        try:
            source, rows, split_of = _read(schema, source)
        except DataError as error:
            if (
                source.reading.format != "csv"
                or "dataset=conll" in error.message
                or not is_tagged(schema.cfg, file)
            ):
                raise
            raise DataError(
                f"{error.message}; give dataset=conll for words with tags, a word a line, which the file looks like"
            ) from None
    source.bad.warn(path.name, len(rows))
    if not rows:
        raise DataError(f"{path} has no rows; give another file as dataset.path or dataset.unlabelled")
    schema.header = source.reading.dialect.names if source.reading.dialect else ()
    dropped = Counter({UNREADABLE: source.bad.count})
    names = None
    if source.reading.format in ("parquet", "arrow") and own.has_gold:
        from kdcli.data import tables

        names = tables.declared(schema, path, source.reading.format)
    part = RawSplit(
        path.name, rows, names, dropped=+dropped, split_of=split_of, path=str(path), places=source.bad.places
    )
    return part, source.reading


def require_data_file(path: Path, given: str) -> None:
    """Refuse what is no regular file with content.

    Raises:
        DataError
    """
    if not os.path.isfile(path):  # nor a pipe, a socket or a device
        what = "is no file" if os.path.lexists(path) else "does not exist"
        raise DataError(
            f"the data file {abbreviated(given)} {what} (looked for {abbreviated(str(path.absolute()))}); correct the path"
        )
    if os.path.getsize(path) == 0:
        raise DataError(f"the data file {path} is empty; write it again, or give another one")
    if path.suffix == ".ann" and _STANDOFF.match(DataFile.of(path).head()):
        raise DataError(
            f"{path} holds annotations of brat, whose texts are in other files; write both as CoNLL (brat's tools/anntoconll.py), and give that file with "
            "dataset=conll dataset.path="
        )


def is_tagged(cfg: DatasetConfig, file: DataFile) -> bool:
    """Return whether a file holds words with tags, a word a line, by its first lines.

    Args:
        cfg: keys that say how it is read.
    """
    head = file.head()
    complete = start_of(head).splitlines(keepends=True)[: -1 if len(head) == HEAD else None]
    keys = {key: value for key in KEYS_OF_LINES if (value := getattr(cfg, key)) is not None}
    try:
        conll = DatasetConfig.model_validate({"path": str(file.path), "format": "conll", **keys})
        with without_messages():
            return looks_tagged(conll, file.path, complete, file.suffix in TEXT_SUFFIXES)
    except ValueError:  # keys that words with tags do not have
        return False


@contextlib.contextmanager
def without_messages() -> Iterator[None]:
    """Hold back what a first reading logs: the file is read again, and logs it then."""
    readers = logging.getLogger("kdcli.data")
    level = readers.level
    readers.setLevel(logging.ERROR)
    try:
        yield
    finally:
        readers.setLevel(level)


@contextlib.contextmanager
def _refusing(path: Path, encoding: str | None) -> Iterator[None]:
    """Turn errors of decoding and of the file system into refusals; also refuse an encoding that does not exist.

    Raises:
        DataError
    """
    try:
        if encoding is not None:  # codecs.lookup also finds codecs of bytes, such as base64
            io.TextIOWrapper(io.BytesIO(), encoding if encoding and "\0" not in encoding else "none")
    except LookupError as error:
        raise DataError(
            f"dataset.encoding = {abbreviated(encoding or '')}: {abbreviated(str(error).partition(';')[0])}; give the name of a text encoding (utf-8, latin-1, cp1252, utf-16 …)"
        ) from None
    try:
        yield
    except UnicodeError as error:
        raise DataError(
            f"{path}{line_of_error(DataFile.of(path), encoding or 'utf-8')} is not {encoding or 'utf-8'} text ({error}); save it as UTF-8, give "
            "dataset.encoding= (latin-1, cp1252, utf-16 …), or leave such lines out (dataset.bad_rows=drop)"
        ) from None
    except OSError as error:
        raise DataError(f"{path} cannot be read ({error}); check its permissions") from None


def read_parallel(
    schema: RowSchema, source: Path, target: Path, recorded: Iterable[Reading] = ()
) -> tuple[RawSplit, list[Reading]]:
    """Read two text files whose lines belong to each other; without gold targets the first one alone.

    Raises:
        DataError: they have different numbers of lines, or cannot be read.
    """
    texts, readings, bad = [], [], BadRows(schema.cfg.bad_rows)
    for path in [source, target] if schema.has_gold else [source]:
        require_data_file(path, str(path))
        with _refusing(path, schema.cfg.encoding):
            file = DataFile.of(path)
            lines_read, reading = _text_lines(
                Source(schema, file, decide(schema, file, recorded, "parallel"), BadRows("error"))
            )
        texts.append(lines_read)
        readings.append(reading)
    if len({len(each) for each in texts}) > 1:
        raise DataError(
            f"{source} has {len(texts[0]):,} lines and {target} {len(texts[1]):,}: expected the translation of line N of one as line N of the other"
        )
    name = " and ".join(reading.file for reading in readings)
    rows = check_rows(schema, name, _pairs(texts, bad), bad)
    bad.warn(name, len(rows))
    if not rows:
        raise DataError(f"{name}: no rows; give other files as dataset.path")
    return RawSplit(name, rows, dropped=+Counter({UNREADABLE: bad.count}), places=bad.places), readings


def read_class_folders(
    schema: RowSchema, files: Sequence[Path], given: str
) -> tuple[RawSplit, list[Reading]]:
    """Read a text in each file, whose folder is called like its class.

    Args:
        given: the path as the config has it, for messages.

    Returns:
        The texts, and the reading of each file: of those with the same encoding that of the first one.

    Raises:
        DataError: a file is empty or cannot be read, and such rows are not dropped.
    """
    bad, readings = BadRows(schema.cfg.bad_rows), list[Reading]()
    same = dict[tuple[str | None, str | None], Reading]()

    def table() -> Iterator[tuple[Any, ...]]:
        for number, path in enumerate(files, 1):
            with _refusing(path, schema.cfg.encoding):
                file = DataFile.of(path)
                source = Source(schema, file, decide(schema, file, (), "document"), BadRows("error"))
                lines_read, reading = _text_lines(source)
            readings.append(same.setdefault((reading.encoding, reading.compression), reading))
            label = None if path.parent.name.lower() in NO_CLASS else path.parent.name
            if text := "\n".join(lines_read).strip():
                bad.at(number)
                yield (text, label)[: len(schema.columns)]
            else:
                bad.add(f"{path}: the text is empty; remove the file, or fill it")

    rows = check_rows(schema, given, table(), bad)
    bad.warn(given, len(rows))
    if not rows:
        raise DataError(f"{given} has no rows; give another folder as dataset.path")
    part = RawSplit(given, rows, dropped=+Counter({UNREADABLE: bad.count}), path=given, places=bad.places)
    return part, readings


def _pairs(texts: Sequence[list[str]], bad: BadRows) -> Iterator[tuple[str, ...]]:
    """Yield the lines of texts that belong to each other, without those that are empty in all."""
    for number, row in enumerate(zip(*texts, strict=True), 1):
        if any(row):
            bad.at(number, number)
            yield row


def _text_lines(source: Source) -> tuple[list[str], Reading]:
    """Return all lines of a file, without their ends, which are no other characters than LF and CR LF."""
    while True:
        try:
            return [line.rstrip("\r\n") for line in source.lines("\n")], source.reading
        except UnicodeError:
            again = _in_other_encoding(source)
            if again is None:
                raise
            source = again


def _read(schema: RowSchema, source: Source) -> tuple[Source, list[tuple[Any, ...]], list[Any] | None]:
    """Return the rows, checked by their schema, and their values in the column of splits. If what was decided by the first bytes does not hold for all of the
    file, it is decided again by more of them.

    Raises:
        UnicodeError: the file cannot be decoded, and lines are not dropped.
    """
    while True:
        try:
            table: Iterable[tuple[Any, ...]] = itertools.islice(
                _READERS[source.reading.format](source), source.most
            )
            if source.more:
                table = ((*values, *source.more) for values in table)
            rows, split_of = _checked(schema, source, table)
            again = _by_more(source) if source.bad.count else None
        except UnicodeError:
            again = _in_other_encoding(source)
            if again is None:
                raise
        except DataError:
            again = _by_more(source)
            if again is None:
                raise
        if again is None:
            return source, rows, split_of
        source = again


def _checked(
    schema: RowSchema, source: Source, table: Iterable[tuple[Any, ...]]
) -> tuple[list[tuple[Any, ...]], list[Any] | None]:
    """Return the checked rows, and their values in the column of splits, which come before all others."""
    source.schema.split_column = None
    table = iter(table)
    first = next(table, None)  # the columns are known when the first row is read
    table = itertools.chain([first] if first is not None else [], table)
    name = str(source.path)
    schema.split_column = source.schema.split_column
    if schema.split_column is None:
        return check_rows(schema, name, table, source.bad), None
    rows: list[tuple[Any, ...]] = []
    split_of: list[Any] = []
    number = 1
    for value, run in itertools.groupby(table, key=lambda values: values[0]):
        counter = itertools.count()
        others = (values[1:] for values, _ in zip(run, counter, strict=False))
        checked = check_rows(schema, name, others, source.bad, number)
        rows += checked
        split_of += [value] * len(checked)
        number += next(counter)
    return rows, split_of


def _in_other_encoding(source: Source) -> Source | None:
    """Return the source with the encoding that its bytes look like, or without the lines that cannot be decoded; None: neither is possible."""
    reading, schema = source.reading, source.schema
    bad = BadRows(schema.cfg.bad_rows)
    if reading.guess and reading.guess.encoding == "utf-8-sig":
        other = other_encoding(source.file, reading)
        if other is not None:
            other = with_dialect(schema, source.file, other) if reading.dialect else other
            return dataclasses.replace(source, reading=other, bad=bad)
    if bad.drop and source.errors == "strict":
        return dataclasses.replace(source, errors="surrogateescape", bad=bad)
    return None


def _by_more(source: Source) -> Source | None:
    """Return the source with another dialect, by all of the file; None: there is none."""
    reading = source.reading
    if reading.dialect is None or reading.complete:
        return None
    more = with_dialect(source.schema, source.file, reading, LARGEST_SAMPLE)
    if more.dialect == reading.dialect:
        return None
    return dataclasses.replace(source, reading=more, bad=BadRows(source.schema.cfg.bad_rows))


def _read_csv(source: Source) -> Iterator[tuple[Any, ...]]:
    dialect = source.reading.dialect
    assert dialect is not None
    yield from delimited.read(
        source.schema, str(source.path), source.path.name, source.lines(), dialect, source.bad
    )


def _read_json(source: Source) -> Iterator[tuple[Any, ...]]:
    return json_files.read(source.schema, str(source.path), source.file.name, source.lines(), source.bad)


def _read_table(source: Source) -> Iterator[tuple[Any, ...]]:
    from kdcli.data import tables  # pyarrow takes a moment

    return tables.read(source.schema, source.path, source.reading.format, source.bad)


def _read_txt(source: Source) -> Iterator[tuple[Any, ...]]:
    """Yield documents: paragraphs in their order, as many as make at least `DOCUMENT` characters."""
    document = ""
    stripped = (line.rstrip("\r\n") for line in source.lines())
    for blank, paragraph in itertools.groupby(stripped, lambda line: not line.strip()):
        if not blank:
            document += "\n\n" * bool(document) + "\n".join(paragraph)
        if len(document) >= DOCUMENT:
            yield (document,)
            document = ""
    if document:
        yield (document,)


def _read_fasttext(source: Source) -> Iterator[tuple[Any, ...]]:
    """Yield lines that begin with their labels: `__label__LABEL text`."""
    paths = source.schema.column_paths(["text", "label"], source.path.name)
    for number, line in enumerate(source.lines(), 1):
        labels, text = re.fullmatch(r"((?:__label__\S*\s*)*)(.*)", line.strip(), re.DOTALL).groups()  # type: ignore[union-attr]
        if not labels and text:
            source.bad.add(
                f"{source.path}, line {number} does not begin with __label__; write the label before the text"
            )
            continue
        row = {"text": text, "label": [label.removeprefix("__label__") for label in labels.split()]}
        if text:
            source.bad.at(number, number)
            yield tuple([row[path[0]] for path in paths])


class PlainLoader(yaml.BaseLoader):
    """YAML whose scalars stay strings as they are written (yes, 1.10). Aliases, which can multiply, and duplicate keys are errors."""

    def compose_node(self, parent: Any, index: Any) -> Any:
        """Raise yaml.YAMLError at an alias."""
        if self.check_event(yaml.AliasEvent):
            event = self.peek_event()
            raise yaml.MarkedYAMLError(
                problem=f"an alias (*{event.anchor}); write its text out", problem_mark=event.start_mark
            )
        return super().compose_node(parent, index)

    def construct_mapping(self, node: Any, deep: bool = False) -> Any:
        """Raise yaml.YAMLError at a duplicate key."""
        mapping = super().construct_mapping(node, deep)
        if len(mapping) < len(node.value):
            keys = Counter(key.value for key, _ in node.value if isinstance(key.value, str))
            twice = keys.most_common(1)[0][0]
            raise yaml.MarkedYAMLError(
                problem=f"the key {shown(twice)} stands there twice", problem_mark=node.start_mark
            )
        return mapping


def _read_conversations(source: Source) -> Iterator[tuple[Any, ...]]:
    """Yield the first two turns of each conversation.

    Later turns continue the dialogue in some files, and are further answers to the first turn in others; the files do not say which.
    """
    try:
        tree = yaml.load("".join(source.lines()), PlainLoader)
    except (yaml.YAMLError, OverflowError, RecursionError) as error:
        why = "it is nested too deeply" if isinstance(error, RecursionError) else fold_white_space(str(error))
        raise DataError(f"{source.path} is not YAML ({why}); correct it") from None
    conversations = tree.get("conversations") if isinstance(tree, dict) else None
    if not isinstance(conversations, list):
        raise DataError(
            f"{source.path}: expected `conversations`, a list of lists of turns; write other rows into a csv or jsonl file"
        )
    later = 0
    for number, conversation in enumerate(conversations, 1):
        turns = [turn for turn in conversation if turn] if isinstance(conversation, list) else []
        for turn in turns:
            if not isinstance(turn, str):
                raise DataError(
                    f"{source.path}, conversation {number}: expected turns that are text, got {shown(turn)}; put quotes around it"
                )
        if len(turns) > 1:
            yield turns[0], turns[1]
            later += len(turns) - 2
    if later:
        logger.info("%s: %d turns after the second one of a conversation dropped", source.path.name, later)


def _read_conll(source: Source) -> Iterator[tuple[Any, ...]]:
    return tagged_sentences(source.schema, source.path, source.lines(), source.bad)


def read_gettext(schema: RowSchema, path: Path, given: str) -> list[RawSplit]:
    """Return the catalogues of two locales under a folder."""
    catalogues = catalogued(path, given, schema.cfg.source_language, schema.cfg.target_language or "")
    return [
        RawSplit(name, check_rows(schema, name, table, BadRows(schema.cfg.bad_rows)), dropped=dropped)
        for name, table, dropped in catalogues
    ]


_READERS: dict[str, Callable[[Source], Iterator[tuple[Any, ...]]]] = {
    "csv": _read_csv,
    "json": _read_json,
    "jsonl": _read_json,
    "parquet": _read_table,
    "arrow": _read_table,
    "txt": _read_txt,
    "conversations": _read_conversations,
    "conll": _read_conll,
    "fasttext": _read_fasttext,
}
