"""Decides how a data file is read: by the config, else as an earlier command of the run did, else by its name and content."""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from pydantic import TypeAdapter

from kdcli.config.dataset import Dataset as DatasetConfig
from kdcli.data import delimited
from kdcli.data.delimited import Dialect
from kdcli.data.encodings import SAMPLE, Guess, guessed, is_damaged_utf8, mark_of, without_mark
from kdcli.data.raw_rows import BadRows
from kdcli.data.sources import JSON_SUFFIXES, TABLE_SUFFIXES
from kdcli.data.streams import ARROW_FILE, ARROW_STREAM, HEAD, PARQUET, DataFile, line_of_error, lines
from kdcli.errors import DataError, abbreviated
from kdcli.tasks.rows import RowSchema

SAMPLE_LINES = 2**18
"""The number of characters of the lines that show how rows are delimited."""
LARGEST_SAMPLE = 2**26
"""The maximum number of characters that are examined if the first ones are not enough."""
_PICKLE = "a pickle, which may run code when it is read; write the rows into a jsonl or parquet file"
_PRINTED = "a printed table (of Markdown or of a database's shell); write its rows into a csv or jsonl file"
_XML = "XML; write the rows into a csv or jsonl file"
_ARCHIVE = "an archive; unpack it, and give its file or folder as dataset.path"
_TAR_SUFFIXES = (".tar", ".tgz")
_FASTTEXT = re.compile(r"__label__\S")
_JSON = re.compile(r"""\{\s*("|\})|\[\s*[\[{]""")
"""The beginning of JSON with rows in it."""
_OTHER = {
    b"\xd0\xcf\x11\xe0": "an Excel workbook; save its table as CSV (UTF-8), and give that file",
    b"SQLite format 3": "an SQLite database; write the table into a csv or jsonl file",
    b"\x89HDF": "an HDF5 file; write the table into a parquet file",
    b"\x93NUMPY": "an array of numpy; write the rows into a jsonl or parquet file",
    **dict.fromkeys((b"\x80\x02", b"\x80\x03", b"\x80\x04\x95", b"\x80\x05\x95"), _PICKLE),
    b"FEA1": "a feather file of version 1; write it anew (version 2), or as parquet",
    b"%PDF": "a PDF document; write its text into a file",
    b"Obj\x01": "an Avro file; write the rows into a parquet file",
    b"ORC": "an ORC file; write the rows into a parquet file",
    b"version https://git-lfs.github.com": "a pointer of Git LFS and not the file itself; fetch it with: git lfs pull",
    b"<!doctype html": "a web page; download the file itself",
    b"<html": "a web page; download the file itself",
    b"<?xml": _XML,
    b"@relation": "an ARFF file of Weka; write the rows into a csv file",
    b"Rar!": _ARCHIVE,
    b"7z\xbc\xaf": _ARCHIVE,
}
"""The beginnings of files without rows that kdcli reads, with the kind of each file."""
_TEXTS = {
    re.compile(
        r"#FORMAT=WebAnno"
    ): "a TSV of WebAnno or INCEpTION; export the project as CoNLL 2002, and give that file with dataset=conll",
    re.compile(
        r"[^\n]*\n[ \t]*[|+]?[ \t]*:?-{2,}:?[ \t]*([|+][ \t]*:?-{2,}:?[ \t]*)*[|+][ \t:|+-]*(\n|$)"
    ): _PRINTED,
    re.compile(r"[ \t]*\+[-=]{2,}[-=+]*\+[ \t]*\n"): _PRINTED,
    re.compile(r"<(\w+)>\s*<\w+[ >]"): _XML,
}
"""The beginnings of texts whose rows kdcli does not read, with the remedy for each."""


@dataclass(frozen=True)
class Reading:
    """Describes how a file is read.

    Attributes:
        file: its name.
        bytes: its size on disk. A recorded decision holds for a file of the same name and size.
        format: as dataset.format.
        guess: how the encoding was found; None: the config or a record gives it, or the format has none.
        complete: whether the complete file was examined, not its beginning alone.
    """

    file: str
    bytes: int
    format: str
    compression: str | None = None
    encoding: str | None = None
    dialect: Dialect | None = None
    guess: Guess | None = None
    complete: bool = False

    def as_record(self) -> dict[str, Any]:
        """Return the part of it that env.json keeps."""
        dialect = dataclasses.asdict(self.dialect) if self.dialect else None
        record = {
            "file": self.file, "bytes": self.bytes, "format": self.format, "compression": self.compression,
            "encoding": self.encoding, "dialect": dialect,
        }  # fmt: skip
        return {key: value for key, value in record.items() if value is not None}

    @classmethod
    def of_record(cls, record: dict[str, Any]) -> Reading:
        """Read a record. Raise ValueError or ConfigError for a record that is damaged, or of another version."""
        reading: Reading = TypeAdapter(cls).validate_python(record)
        if dialect := reading.dialect:
            delimited.require_signs(dialect.delimiter, dialect.quote, dialect.escape)
        return reading

    def __str__(self) -> str:
        words = [self.encoding.removesuffix("-sig")] if self.encoding else []
        if self.guess and self.guess.example:
            words[0] += f" ({abbreviated(self.guess.example, 40)})"
        if dialect := self.dialect:
            one = dialect.delimiter == delimited.SINGLE_COLUMN
            words += [] if one else [f"{dialect.delimiter!r}"]
            words += (
                [f"{dialect.quote} around fields" if dialect.quote != '"' else "quoted"]
                if dialect.quote
                else ["quotes around fields and undoubled within"]
                if dialect.wrapped
                else ["quotes are text"]
            )
            words += ["escaped by backslash"] * (dialect.escape is not None)
            words += [f"header in line {dialect.line}"] * (dialect.skip > 0)
            words += ["no header: the names of the file before"] * dialect.headless
            words += ["row names"] * dialect.row_names
            words += [f"{len(dialect.names)} column{'s' * (len(dialect.names) != 1)}"]
        format_name = f"{self.format} in {self.compression}" if self.compression else self.format
        return f"{format_name} ({', '.join(words)})" if words else format_name


def decide(
    schema: RowSchema, file: DataFile, recorded: Iterable[Reading], format_name: str | None = None
) -> Reading:
    """Return how a file is read.

    Args:
        format_name: the format, if it is known.

    Raises:
        DataError: it is of a kind that kdcli does not read, or of another format than the config says.
    """
    cfg = schema.cfg
    name, size = file.path.name, file.size
    before = next((each for each in recorded if (each.file, each.bytes) == (name, size)), None)
    head = file.head()
    if format_name is None:
        format_name = before.format if before and not cfg.forces_format else None
        format_name = format_name or (cfg.format if cfg.forces_format else _format(file, head))
    _require_format(cfg, file, format_name)
    if format_name in ("csv", "conll"):
        start = start_of(head)
        for pattern, what in _TEXTS.items():
            if pattern.match(start):
                raise DataError(f"{file.path} is {what}")
    if format_name in ("parquet", "arrow"):
        return Reading(name, size, format_name)
    guess = None
    encoding = cfg.encoding or (before.encoding if before else None)
    if encoding is None:
        guess = _encoding(head)
        encoding = guess.encoding
    elif encoding.lower().replace("_", "-") in ("utf-8", "utf8"):
        encoding = "utf-8-sig"
    reading = Reading(name, size, format_name, file.compression, encoding, None, guess)
    if format_name != "csv":
        return reading
    if before and before.dialect and _allows(cfg, before.dialect):
        return dataclasses.replace(reading, dialect=before.dialect, complete=True)
    return with_dialect(schema, file, reading)


def _allows(cfg: DatasetConfig, dialect: Dialect) -> bool:
    """Return whether a recorded dialect is what the config says."""
    given = [
        (cfg.delimiter, dialect.delimiter),
        (cfg.quote, dialect.quote or "none"),
        (cfg.escape, dialect.escape or "none"),
    ]
    columns = cfg.columns is None or tuple(cfg.columns) == dialect.names
    return columns and all(key is None or key == value for key, value in given)


def with_dialect(schema: RowSchema, file: DataFile, reading: Reading, limit: int = SAMPLE_LINES) -> Reading:
    """Return a reading with the dialect of the first `limit` characters; of tables between tabs also of later lines with quotes."""
    assert reading.encoding is not None
    sample: list[str] = []
    left, complete = limit, False
    undecodable = BadRows(schema.cfg.bad_rows)
    with contextlib.closing(lines(file, reading.encoding, "replace", bad=undecodable)) as stream:
        for line in stream:
            sample.append(line)
            if (left := left - len(line)) < 0:
                break
        else:
            complete = True
        if sample and not complete and (file.suffix in (".tsv", ".tab") or "\t" in sample[0]):
            quoted = itertools.islice((line for line in stream if '"' in line), 1000)
            sample += quoted
    dialect = delimited.decide(schema, file.suffix, sample, not complete)
    return dataclasses.replace(reading, dialect=dialect, complete=complete or limit == LARGEST_SAMPLE)


def _require_format(cfg: DatasetConfig, file: DataFile, format_name: str) -> None:
    """Refuse a file that is of another format by its name, or whose format cannot be compressed or has no columns to name."""
    named = {".parquet": "parquet", ".jsonl": "jsonl"}.get(file.suffix)
    alike = {format_name, "json" if format_name == "jsonl" else "jsonl" if format_name == "json" else ""}
    if cfg.forces_format and named and named not in alike:
        raise DataError(
            f"{file.path} is {named} by its name, and would be read as {cfg.format}: give dataset.format=auto or dataset.format={named}, and all "
            "files of a data set in one format"
        )
    if format_name in ("parquet", "arrow") and file.compression:
        raise DataError(f"{file.path} is a compressed table; unpack it")
    if format_name in ("parquet", "arrow") and cfg.columns:
        raise DataError(f"{file.path} is {format_name} and names its own columns; leave dataset.columns out")


def _format(file: DataFile, head: bytes) -> str:
    """Return the format by the first bytes, or else by the name.

    Raises:
        DataError: kdcli does not read such files.
    """
    if head.startswith(PARQUET):
        return "parquet"
    if head.startswith((ARROW_FILE, ARROW_STREAM)):
        return "arrow"
    for magic, what in _OTHER.items():
        if head.lstrip(b"\xef\xbb\xbf \r\n").lower().startswith(magic.lower()):
            raise DataError(f"{file.path} is {what}")
    if file.suffix in _TAR_SUFFIXES:
        raise DataError(f"{file.path} is {_ARCHIVE}")
    if file.suffix in TABLE_SUFFIXES:
        return "parquet" if file.suffix == ".parquet" else "arrow"
    text = start_of(head)
    if _FASTTEXT.match(text):
        return "fasttext"
    if file.suffix in JSON_SUFFIXES and re.search(r"^\s*[\[{]", text, re.MULTILINE):
        return "jsonl" if file.suffix != ".json" else "json"
    return "json" if _JSON.match(text) else "csv"


def start_of(head: bytes) -> str:
    """Return the first characters of a text."""
    encoding = mark_of(head) or without_mark(head) or "utf-8"
    return head.decode(encoding, "ignore").lstrip("\ufeff \t\r\n\x1e").replace("\r\n", "\n")


def _encoding(head: bytes) -> Guess:
    """Return the encoding by a byte order mark or by zero bytes; else UTF-8, and another one is looked for if that fails."""
    if mark := mark_of(head):
        return Guess(mark)
    return Guess(without_mark(head) or "utf-8-sig")


def other_encoding(file: DataFile, reading: Reading) -> Reading | None:
    """Return the reading of a file that is not UTF-8, as it was thought to be; None: it is damaged UTF-8.

    Raises:
        DataError: no encoding is likely.
    """
    sample, rest = bytearray(), b""
    with file.open() as stream:
        while len(sample) < SAMPLE and (block := stream.read1(HEAD)):
            *complete_lines, rest = (rest + block).split(b"\n")
            rest = rest[-SAMPLE:]  # of a line without end
            sample += b"".join(line + b"\n" for line in complete_lines if not line.isascii())
    text = bytes(sample[: 2 * SAMPLE] if rest.isascii() else sample[: 2 * SAMPLE] + rest)
    if is_damaged_utf8(text):
        return None
    guess = guessed(text)
    if guess is None:
        where = line_of_error(file, "utf-8")
        raise DataError(
            f"{file.path}{where} is not utf-8 text, and looks like no other encoding; save it as UTF-8, or give dataset.encoding= (latin-1, cp1252, "
            "cp1251, gb18030, shift_jis …)"
        )
    return dataclasses.replace(reading, encoding=guess.encoding, guess=guess)
