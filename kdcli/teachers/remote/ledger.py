"""Keeps the ledger: every answer that was paid for, on disk, by the hash of its request."""

from __future__ import annotations

import contextlib
import json
import logging
import sqlite3
import threading
import time
import weakref
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from filelock import Timeout
from tenacity import Retrying, retry_if_exception, stop_after_delay, wait_random
from typing_extensions import TypedDict

from kdcli.errors import ConfigError, EndpointError
from kdcli.files import parse_json
from kdcli.locks import Lock, is_network_file_system, supports_locks

logger = logging.getLogger(__name__)
VERSION = 2
"""The version of the tables (`PRAGMA user_version`)."""
PATIENCE = 60.0
"""Seconds that a process waits for another one to finish its transaction."""
_RETRYING = Retrying(
    retry=retry_if_exception(
        lambda error: (
            isinstance(error, sqlite3.OperationalError) and error.sqlite_errorcode == sqlite3.SQLITE_BUSY
        )
    ),
    stop=stop_after_delay(PATIENCE),
    wait=wait_random(0, 0.1),
    reraise=True,
)
"""SQLite does not wait by itself while several processes create one file."""
_TABLES = (
    "CREATE TABLE IF NOT EXISTS answers (key BLOB PRIMARY KEY, answer TEXT NOT NULL, made REAL)",
    "CREATE TABLE IF NOT EXISTS migrated (name TEXT PRIMARY KEY, bytes INTEGER NOT NULL)",
)
"""`made` is the time of an answer in seconds since the epoch; null: an earlier version stored it."""


@dataclass(frozen=True)
class Answer:
    """The response of a service to one request. Students learn from answers with the status `answered` alone.

    Attributes:
        status: refused: a content filter, the model itself, or the service (for this one prompt, which is too long, say) gave no
            answer; unparsable: the response does not have the structure that the API specifies.
        choices: JSON values in the order of the response. A chat completion has {"text", "finish_reason", "logprobs"}; where the
            service returned log-probabilities, `logprobs` has for each token {"token", "logprob", "top": [{"token", "logprob"}, …]}.
            Choices that a filter stopped are left out.
        usage: prompt_tokens and completion_tokens; empty if the service does not report them.
        reason: why there is no answer, in the service's words.
    """

    status: Literal["answered", "refused", "unparsable"]
    choices: list[dict[str, Any]] = field(default_factory=list)
    usage: dict[str, int] = field(default_factory=dict)
    reason: str = ""


class Ledger:
    """Answers by the hash of their request, in an SQLite file. The first answer to a request counts.

    Several processes may read and append at once. Each commit is synchronised to the disk (WAL with `synchronous=FULL`), so a killed
    process loses at most the answers that it had not committed. On a network file system, where processes of several machines
    cannot share a WAL, the file has a rollback journal.

    Ledgers of earlier versions (JSON lines in PATH.jsonl) are read into the file; the old file stays where it is.

    Args:
        path: the file, which is created if it is missing.

    Attributes:
        since: answers that are older than this do not count, and are replaced, in seconds since the epoch; None: all count.

    Raises:
        ConfigError: it cannot be created or read.
    """

    def __init__(self, path: Path):
        self.path = path
        self.since: float | None = None
        self._writing = threading.Lock()
        self._queueing = threading.Lock()
        self._queue: list[tuple[bytes, str]] = []
        self._replaced: set[bytes] = set()
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._locks = supports_locks(path.parent)
            _RETRYING(self._open)
            self._reader = self._connect() if self._locks else self._writer
        except (OSError, sqlite3.DatabaseError) as error:
            raise self._unusable(error) from None
        weakref.finalize(self, _close, self._writer, self._reader)
        self._migrate(path.with_suffix(".jsonl"))

    def get(self, key: bytes) -> Answer | None:
        """Return the answer to a request; None if there is none, a damaged one, or one that is too old (`since`).

        Raises:
            ConfigError: the file is damaged.
        """
        try:
            row = self._reader.execute("SELECT answer, made FROM answers WHERE key = ?", (key,)).fetchone()
        except sqlite3.DatabaseError as error:
            raise self._unusable(error) from None
        if row is None:
            return None
        if self.since is not None and (row[1] or 0.0) < self.since:
            self._replaced.add(key)
            return None
        try:
            return _parse(row[0])
        except ValueError:
            logger.warning("%s: a damaged answer is not used, and its request is sent again", self.path)
            self._replaced.add(key)
            return None

    def made(self, key: bytes) -> float | None:
        """Return when an answer was stored, in seconds since the epoch; None: there is none, or an earlier version stored it."""
        row = self._reader.execute("SELECT made FROM answers WHERE key = ?", (key,)).fetchone()
        return row[0] if row else None

    def check(self) -> tuple[int, int]:
        """Return the number of answers, and that of damaged ones.

        Raises:
            ConfigError: the file is damaged.
        """
        count = damaged = 0
        try:
            (verdict,) = self._reader.execute("PRAGMA quick_check(1)").fetchone()
            if verdict != b"ok":
                raise sqlite3.DatabaseError(verdict.decode(errors="replace"))
            for (answer,) in self._reader.execute("SELECT answer FROM answers"):
                count += 1
                try:
                    _parse(answer)
                except ValueError:
                    damaged += 1
        except sqlite3.DatabaseError as error:
            raise self._unusable(error) from None
        return count, damaged

    def append(self, key: bytes, answer: Answer) -> None:
        """Store an answer; returns once it is on the disk. One commit serves all threads that wait for it.

        Raises:
            EndpointError: it cannot be written.
        """
        with self._queueing:
            self._queue.append((key, json.dumps(asdict(answer))))
        with self._writing:
            with self._queueing:
                rows, self._queue = self._queue, []
            try:
                self._commit(rows)
            except sqlite3.Error as error:
                with self._queueing:  # the threads that wait for these rows try again, and report it
                    self._queue[:0] = rows
                raise EndpointError(
                    f"the answers cannot be written to {self.path} ({error}); set KDCLI_CACHE_DIR"
                ) from None

    @contextlib.contextmanager
    def hold(self) -> Iterator[None]:
        """Be the only process that sends requests: two would pay for the same answers, and together exceed the service's limits."""
        lock = Lock(self.path.with_name(f"{self.path.name}.lock"))
        try:
            lock.acquire(wait=False)
        except Timeout:
            logger.info(
                "another process sends requests to this endpoint: waiting for its answers (%s)", lock.path
            )
            lock.acquire()
        try:
            yield
        finally:
            lock.release()

    def _connect(self) -> sqlite3.Connection:
        # without locks, `hold` is what keeps other processes from writing
        connection = sqlite3.connect(
            f"{self.path.absolute().as_uri()}{'' if self._locks else '?nolock=1'}",
            uri=True,
            timeout=PATIENCE,
            isolation_level=None,
            check_same_thread=False,
        )
        connection.text_factory = bytes
        local = self._locks and not is_network_file_system(self.path.parent)
        connection.execute(f"PRAGMA journal_mode = {'WAL' if local else 'DELETE'}")
        connection.execute("PRAGMA synchronous = FULL")
        return connection

    def _open(self) -> None:
        """Connect to the file and create its tables."""
        self._writer = self._connect()
        (version,) = self._writer.execute("PRAGMA user_version").fetchone()
        if version > VERSION:
            raise ConfigError(
                f"the ledger {self.path} was written by a newer version of kdcli; update kdcli, or set KDCLI_CACHE_DIR"
            )
        if version < VERSION:
            self._writer.execute("BEGIN IMMEDIATE")
            try:
                (version,) = self._writer.execute(
                    "PRAGMA user_version"
                ).fetchone()  # another process may have been first
                if version == 1:
                    self._writer.execute("ALTER TABLE answers ADD COLUMN made REAL")
                for table in _TABLES:
                    self._writer.execute(table)
                self._writer.execute(f"PRAGMA user_version = {VERSION}")
                self._writer.execute("COMMIT")
            except BaseException:
                self._roll_back()
                raise

    def _commit(self, rows: Sequence[tuple[bytes, str]]) -> None:
        """Write rows in one transaction."""
        if not rows:
            return
        self._writer.execute("BEGIN IMMEDIATE")
        try:
            for key, answer in rows:
                conflict = "REPLACE" if key in self._replaced else "IGNORE"
                self._writer.execute(
                    f"INSERT OR {conflict} INTO answers (key, answer, made) VALUES (?, ?, ?)",
                    (key, answer, time.time()),
                )
            self._writer.execute("COMMIT")
        except BaseException:
            self._roll_back()
            raise

    def _roll_back(self) -> None:
        if self._writer.in_transaction:  # SQLite itself rolls back after some errors
            self._writer.execute("ROLLBACK")

    def _migrate(self, old: Path) -> None:
        """Read what was appended to an old ledger since the last time, in one transaction."""
        if not old.is_file():
            return
        read = "SELECT bytes FROM migrated WHERE name = ?"
        try:
            if self._writer.execute(read, (old.name,)).fetchone() == (old.stat().st_size,):
                return
            self._writer.execute("BEGIN IMMEDIATE")
            try:
                (start,) = self._writer.execute(read, (old.name,)).fetchone() or (0,)
                end = self._copy_lines(old, start)
                self._writer.execute("INSERT OR REPLACE INTO migrated VALUES (?, ?)", (old.name, end))
                self._writer.execute("COMMIT")
            except BaseException:
                self._roll_back()
                raise
        except (OSError, sqlite3.DatabaseError) as error:
            raise self._unusable(error) from None

    def _copy_lines(self, old: Path, start: int) -> int:
        """Copy the complete lines of an old ledger.

        Returns:
            The offset at which the last complete line ends.
        """
        copied = damaged = 0
        end = start
        insert = "INSERT OR IGNORE INTO answers (key, answer) VALUES (?, ?)"
        with old.open("rb") as lines:
            lines.seek(start)
            for line in iter(lines.readline, b""):
                if not line.endswith(b"\n"):  # a process was killed while it wrote
                    break
                end += len(line)
                try:
                    key, answer = _parse_line(line)
                except ValueError:
                    damaged += 1
                    continue
                row = key, json.dumps(asdict(answer))
                copied += self._writer.execute(insert, row).rowcount
        if damaged:
            logger.warning(
                "%s: %d damaged lines are not used, and their requests are sent again", old, damaged
            )
        if copied:
            logger.info(
                "%d answers of %s were copied to %s; the old file may be removed", copied, old, self.path
            )
        return end

    def _unusable(self, error: OSError | sqlite3.DatabaseError) -> ConfigError:
        if isinstance(error, OSError | sqlite3.OperationalError):
            return ConfigError(f"the answers cannot be kept in {self.path} ({error}); set KDCLI_CACHE_DIR")
        return ConfigError(
            f"the ledger {self.path} is damaged ({error}): its answers were paid for and cannot be read. Recover them with "
            f"`sqlite3 {self.path.name} .recover`, restore a copy, or move the file away, and all requests are sent and paid for again"
        )


def _close(*connections: sqlite3.Connection) -> None:
    """Close connections; the last one of all processes writes the log into the file and removes it."""
    for connection in connections:
        connection.close()


class _Stored(TypedDict):
    status: Literal["answered", "refused", "unparsable"]
    choices: list[dict[str, Any]]
    usage: dict[str, int]
    reason: Any  # in the service's words, which need not be valid Unicode


class _Line(_Stored):
    key: str


def _parse(data: bytes) -> Answer:
    """Read a stored answer. Raise ValueError if it is damaged."""
    stored = parse_json(data, _Stored)
    return Answer(stored["status"], stored["choices"], stored["usage"], stored["reason"])


def _parse_line(line: bytes) -> tuple[bytes, Answer]:
    """Return the hash of the request and the answer in a line of an old ledger.

    Raises:
        ValueError: the line is damaged.
    """
    stored = parse_json(line, _Line)
    answer = Answer(stored["status"], stored["choices"], stored["usage"], stored["reason"])
    return bytes.fromhex(stored["key"]), answer
