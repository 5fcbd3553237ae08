"""The ledger: every answer that was paid for, on disk, found again by its request."""

from __future__ import annotations

import contextlib
import errno
import io
import json
import logging
import os
import sqlite3
import threading
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal

from filelock import Timeout
from typing_extensions import TypedDict

from kdcli.errors import ConfigError, EndpointError
from kdcli.files import parse_json
from kdcli.locks import Lock
from kdcli.teachers.remote.wire import Answer

logger = logging.getLogger(__name__)


class Ledger:
    """Answers under the hash of their question, one JSON line each, only ever appended to. The first of a question counts.

    Several processes may read it; one at a time asks and appends (two would ask the same and pay twice, and together they
    would pass the host's limits). Which line is where stands in a temporary database on disk, so that a million answers
    need no memory.
    """

    def __init__(self, path: Path):
        self._path = path
        self._lock = threading.RLock()
        self._syncing = threading.Lock()
        self._written = self._synced = 0
        self._end = 0  # so far it was read
        self._places = sqlite3.connect("", isolation_level=None, check_same_thread=False)
        self._places.execute("CREATE TABLE places (key BLOB PRIMARY KEY, place INTEGER) WITHOUT ROWID")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.touch()
            self._reader = path.open("rb")
        except OSError as error:
            raise ConfigError(
                f"the answers cannot be kept in {path} ({error.strerror}); set KDCLI_CACHE_DIR"
            ) from None
        self._writer: io.FileIO | None = None
        self._catch_up()

    def get(self, key: bytes) -> Answer | None:
        with self._lock:
            row = self._places.execute("SELECT place FROM places WHERE key = ?", (key,)).fetchone()
            if row is None:
                return None
            self._reader.seek(row[0])
            return _stored_answer(self._reader.readline())[1]

    def append(self, key: bytes, answer: Answer) -> None:
        """Returns once the answer is on the disk; one fsync serves all that wait for it.

        Raises:
            EndpointError: it cannot be written.
        """
        line = json.dumps({"key": key.hex(), **asdict(answer)}).encode() + b"\n"
        try:
            with self._lock:
                assert self._writer is not None
                if self._writer.write(line) != len(line):  # not a half line before the next whole one
                    self._writer.truncate(self._end)
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
                self._catch_up()
                self._written += 1
                mine = self._written
            with self._syncing:
                if self._synced < mine:
                    reached = self._written
                    os.fsync(self._writer.fileno())
                    self._synced = reached
        except OSError as error:
            raise EndpointError(
                f"the answers cannot be written to {self._path} ({error}); set KDCLI_CACHE_DIR"
            ) from None

    @contextlib.contextmanager
    def hold(self) -> Iterator[None]:
        """Be the one that asks and appends."""
        lock = Lock(self._path.with_name(f"{self._path.name}.lock"))
        try:
            lock.acquire(wait=False)
        except Timeout:
            logger.info("another process asks this endpoint: waiting for its answers (%s)", lock.path)
            lock.acquire()
        try:
            with self._lock:
                self._catch_up()
                with self._path.open("r+b") as file:  # a process that was killed may have left half a line
                    file.truncate(self._end)
                self._writer = self._path.open("ab", buffering=0)
            yield
        finally:
            if self._writer is not None:
                self._writer.close()
            self._writer = None
            lock.release()

    def _catch_up(self) -> None:
        """Read the whole lines that were appended since."""
        damaged = 0
        with self._lock:
            self._reader.seek(self._end)
            for line in iter(self._reader.readline, b""):
                if not line.endswith(b"\n"):
                    break
                try:
                    key, _ = _stored_answer(line)
                except ValueError:
                    damaged += 1
                else:
                    self._places.execute("INSERT OR IGNORE INTO places VALUES (?, ?)", (key, self._end))
                self._end += len(line)
        if damaged:
            logger.warning(
                "%s: %d damaged lines are not used, and their questions are asked again", self._path, damaged
            )


class _Line(TypedDict):
    key: str
    status: Literal["answered", "refused", "unparsable"]
    choices: list[dict[str, Any]]
    usage: dict[str, int]
    reason: Any  # in the host's words, which need not be valid Unicode


def _stored_answer(line: bytes) -> tuple[bytes, Answer]:
    """What a line of the ledger holds: the hash of a question, and its answer.

    Raises:
        ValueError: it is damaged.
    """
    found = parse_json(line, _Line)
    answer = Answer(found["status"], found["choices"], found["usage"], found["reason"])
    return bytes.fromhex(found["key"]), answer
