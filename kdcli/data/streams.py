"""Opens data files, plain or compressed, within bounds: holes of sparse files and decompression bombs are not read to their end."""

from __future__ import annotations

import bz2
import codecs
import contextlib
import functools
import gzip
import io
import itertools
import lzma
import os
import re
import zipfile
import zlib
from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import zstandard

from kdcli.data.raw_rows import BadRows
from kdcli.data.sources import COMPRESSIONS
from kdcli.errors import DataError, listed

NULS = 64
"""The number of consecutive NULs that mark the hole of a sparse file, in every encoding."""
BOMB = 200
"""The largest ratio of what a file holds to its size, for contents of `BOMB_FROM` bytes and more."""
BOMB_FROM = 2**28
TEXT_BOMB_FROM = 2**26
"""The size from which `BOMB` applies to compressed text, whose rows need many times its bytes in memory."""
PADDING = 2**16
"""The number of NULs in a compressed file after which it has ended."""
PARQUET = b"PAR1"
ARROW_FILE = b"ARROW1"
ARROW_STREAM = b"\xff\xff\xff\xff"
HEAD = 2**16
"""The number of bytes at the beginning of a file that identify its format."""
_MAGIC = {
    b"\x1f\x8b\x08": "gz",
    b"BZh": "bz2",
    b"\xfd7zXZ\0": "xz",
    b"\x28\xb5\x2f\xfd": "zst",
    b"PK\x03\x04": "zip",
}
_BROKEN = (EOFError, zlib.error, lzma.LZMAError, zstandard.ZstdError, zipfile.BadZipFile, gzip.BadGzipFile)
_JUNK = re.compile(r"(^|.*/)(__MACOSX/|\.|Thumbs\.db$|desktop\.ini$).*")
"""The paths of files in a zip archive that are not data, but of the system that wrote it."""


@dataclass(frozen=True)
class DataFile:
    """A regular file with data.

    Attributes:
        path: where it is.
        compression: gz, bz2, xz, zst or zip; None: it is not compressed.
        name: its name without the suffix of the compression; of a zip archive the name of the file in it.
    """

    path: Path
    compression: str | None
    name: str

    @classmethod
    def of(cls, path: Path) -> DataFile:
        """Read the first bytes of a file, and identify its compression.

        Raises:
            DataError: it is a zip archive that does not hold one file.
            OSError
        """
        with path.open("rb") as stream:
            head = stream.read(10)
        compression = next((kind for magic, kind in _MAGIC.items() if head.startswith(magic)), None)
        if compression == "bz2" and head[4:10] != b"1AY&SY":
            compression = None
        name = path.name
        if compression == "zip":
            name = Path(_only_member(path)).name
        elif compression and path.suffix.lower() in COMPRESSIONS[compression]:
            name = path.stem
        return cls(path, compression, name)

    @property
    def suffix(self) -> str:
        """The suffix of the data, in small letters."""
        return Path(self.name).suffix.lower()

    @property
    def size(self) -> int:
        """Its bytes on disk."""
        return os.path.getsize(self.path)

    @contextlib.contextmanager
    def open(self) -> Iterator[io.BufferedReader]:
        """Open its bytes, decompressed, up to the first hole.

        Raises:
            DataError: it is damaged, or a bomb.
        """
        try:
            with contextlib.ExitStack() as stack:
                raw = _DECOMPRESSORS[self.compression](self.path, stack)
                limit = max(TEXT_BOMB_FROM, BOMB * self.size) if self.compression else None
                yield stack.enter_context(_Bounded(raw, self.path, limit))
        except _BROKEN as error:
            raise DataError(
                f"{self.path} is not a complete {self.compression} file ({str(error).strip() or type(error).__name__}); write it anew"
            ) from None

    def head(self, size: int = HEAD) -> bytes:
        """Read its first bytes."""
        with self.open() as stream:
            pieces, left = [], size
            while left > 0 and (piece := stream.read1(left)):
                pieces.append(piece)
                left -= len(piece)
        return b"".join(pieces)[:size]


def _only_member(path: Path) -> str:
    """Return the name of the file in a zip archive."""
    try:
        with zipfile.ZipFile(path) as archive:
            names = [info.filename for info in archive.infolist() if not info.is_dir()]
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError) as error:
        raise DataError(f"{path} is not a complete zip file ({error}); write it anew") from None
    if {"[Content_Types].xml", "mimetype"} & {*names}:  # Office Open XML, OpenDocument
        raise DataError(
            f"{path} is a document of an office program; save its table as CSV (UTF-8), and give that file"
        )
    names = [name for name in names if not _JUNK.match(name)]
    if len(names) != 1:
        raise DataError(
            f"{path} holds {len(names)} files ({listed(names)}); unpack it, and give one of them, or the folder, as dataset.path="
        )
    return names[0]


def _member(path: Path, stack: contextlib.ExitStack) -> Any:
    archive = stack.enter_context(zipfile.ZipFile(path))
    try:
        return stack.enter_context(archive.open(_only_member(path)))
    except (RuntimeError, NotImplementedError) as error:  # it is encrypted, or compressed in a rare way
        raise DataError(f"{path} cannot be read ({error}); unpack it") from None


class _Unpadded(io.FileIO):
    """A compressed file that ends at its first block of NULs: no compressed text holds one, and gzip skips padding byte by byte, which takes
    hours for the hole of a sparse file."""

    def readinto(self, buffer: Any, /) -> int | None:
        count = super().readinto(buffer)
        block = memoryview(buffer).cast("B")[: count or 0]
        return 0 if len(block) >= NULS and not any(block[::NULS]) and not any(block) else count


def _compressed(path: Path, stack: contextlib.ExitStack) -> io.BufferedReader:
    return stack.enter_context(io.BufferedReader(stack.enter_context(_Unpadded(path)), PADDING))


_DECOMPRESSORS: dict[str | None, Callable[[Path, contextlib.ExitStack], Any]] = {
    None: lambda path, stack: stack.enter_context(io.FileIO(path)),
    "gz": lambda path, stack: stack.enter_context(gzip.GzipFile(fileobj=_compressed(path, stack))),
    "bz2": lambda path, stack: stack.enter_context(bz2.BZ2File(_compressed(path, stack))),
    "xz": lambda path, stack: stack.enter_context(lzma.LZMAFile(_compressed(path, stack))),  # noqa: SIM115
    "zst": lambda path, stack: stack.enter_context(
        zstandard.ZstdDecompressor(max_window_size=2**27).stream_reader(
            _compressed(path, stack), read_across_frames=True
        )
    ),
    "zip": _member,
}


class _Bounded(io.BufferedReader):
    """Bytes that end at the first run of NULs: the holes of sparse files are gigabytes, which would be read as one line."""

    def __init__(self, raw: Any, path: Path, limit: int | None):
        super().__init__(raw)
        self.path, self.limit = path, limit
        self.offset, self.ended = 0, False

    def read1(self, size: int = -1, /) -> bytes:
        """Return the bytes of the next block, with the first NULs.

        Raises:
            DataError: the file holds more bytes than one of its size may.
        """
        block = b"" if self.ended else super().read1(size)
        if (run := block.find(bytes(NULS))) >= 0:
            self.ended = True
            block = block[: run + NULS - (self.offset + run) % 4]  # complete characters, also of UTF-32
        self.offset += len(block)
        if self.limit is not None and self.offset > self.limit:
            raise bomb(self.path)
        return block


def bomb(path: Path) -> DataError:
    """Return the refusal of a file that holds far more than its size."""
    return DataError(
        f"{path} holds more than {BOMB:,} times what it has in bytes, which no text does; write its table anew"
    )


def lines(
    file: DataFile, encoding: str, errors: str = "strict", newline: str = "", bad: BadRows | None = None
) -> Generator[str, None, None]:
    """Yield the lines of a text file, with their ends, and without a byte order mark.

    Args:
        newline: as that of `open`; empty: CR, LF and CR LF end a line.
        bad: records lines that hold NUL, which are left out; None: they are refused.

    Raises:
        LookupError: there is no such encoding of text.
        UnicodeError: bytes cannot be decoded.
        DataError: a line holds NUL.
    """
    if "\0" in encoding:
        raise LookupError("unknown encoding")
    with file.open() as binary, io.TextIOWrapper(binary, encoding, errors, newline=newline) as stream:
        first = [line.removeprefix("\ufeff") for line in itertools.islice(stream, 1)]
        for number, line in enumerate(itertools.chain(first, stream), 1):
            if "\0" in line:
                (bad or BadRows("error")).add(
                    f"{file.path}, line {number} holds NUL: is it no text, or UTF-16 (dataset.encoding=utf-16)? "
                    "In text remove this character, as with: tr -d '\\000' < FILE > NEW"
                )
                continue
            yield line


def line_of_error(file: DataFile, encoding: str) -> str:
    """`, line N` for the first bytes that cannot be decoded. (The error itself counts from the start of a block.)"""
    decoder = codecs.getincrementaldecoder(encoding)()
    line = 1
    with contextlib.suppress(OSError, UnicodeError, DataError), file.open() as stream:
        for piece in iter(functools.partial(stream.readline, 2**20), b""):
            decoder.decode(piece)
            line += piece.endswith(b"\n")
    return f", line {line}"
