"""The ledger of answers: what is on the disk when, and what a damaged, an old or a crowded file does."""

from __future__ import annotations

import errno
import fcntl
import itertools
import json
import os
import resource
import shutil
import signal
import sqlite3
import time
from collections import namedtuple
from dataclasses import asdict
from pathlib import Path
from typing import Any

import psutil
import pytest
from support.commands import naming, require_words
from support.endpoint import apart

from kdcli.errors import ConfigError, EndpointError
from kdcli.teachers.remote.ledger import Answer, Ledger


def written(text: str) -> Answer:
    return Answer("answered", [{"text": text, "finish_reason": "stop", "logprobs": None}])


def key_of(number: int) -> bytes:
    return number.to_bytes(32)


def fill(path: Path, count: int, text: str = "") -> None:
    ledger = Ledger(path)
    for number in range(count):
        ledger.append(key_of(number), written(f"{number}{text}"))


def texts(ledger: Ledger, count: int) -> list[str | None]:
    """The text of each of the first keys; None where there is no answer."""
    answers = [ledger.get(key_of(number)) for number in range(count)]
    return [answer and answer.choices[0]["text"] for answer in answers]


def settings(ledger: Ledger) -> tuple[Any, ...]:
    """The journal mode and how far each commit is synchronised to the disk (2: FULL)."""
    pragmas = ("journal_mode", "synchronous")
    return tuple(ledger._writer.execute(f"PRAGMA {name}").fetchone()[0] for name in pragmas)


def test_commits_are_synchronised(tmp_path: Path) -> None:
    """After a power failure an answer is gone that a data set was made of."""
    ledger = Ledger(tmp_path / "ledger.sqlite")
    assert settings(ledger) == (b"wal", 2)


@pytest.mark.parametrize("cut", [0, 1, 40, 4096, 5000, 9000])
def test_a_torn_log(tmp_path: Path, cut: int) -> None:
    """What was written when the power failed is taken for an answer; or the next answer is lost with it."""
    path, copy = tmp_path / "ledger.sqlite", tmp_path / "copy.sqlite"
    ledger = Ledger(path)
    for number in range(5):
        ledger.append(key_of(number), written(f"{number}" * 3000))
    log = tmp_path / "ledger.sqlite-wal"
    shutil.copy(path, copy)
    (tmp_path / "copy.sqlite-wal").write_bytes(log.read_bytes()[: log.stat().st_size - cut])
    again = Ledger(copy)
    held = [text for text in texts(again, 5) if text is not None]
    assert held == [f"{number}" * 3000 for number in range(len(held))]
    assert len(held) == 5 if not cut else 2 <= len(held) < 5
    again.append(key_of(9), written("new"))
    found = Ledger(copy)
    assert found.get(key_of(9)) == written("new")
    assert texts(found, len(held)) == held


@pytest.mark.parametrize(
    "wrong", [b"\0" * 80, b'{"status"', b"\xff\xfe", b"[]", b'{"status": "answered"}', b"", 7, '{"status": "odd"}']
)  # fmt: skip
def test_a_damaged_answer(tmp_path: Path, wrong: Any, caplog: pytest.LogCaptureFixture) -> None:
    """One damaged answer makes all answers useless; or it stays damaged after its request was paid for again."""
    path = tmp_path / "ledger.sqlite"
    fill(path, 3)
    with sqlite3.connect(path) as connection:
        connection.execute("UPDATE answers SET answer = ? WHERE key = ?", (wrong, key_of(1)))
    connection.close()
    again = Ledger(path)
    assert texts(again, 3) == ["0", None, "2"]
    assert caplog.text.count("damaged answer") == 1
    again.append(key_of(1), written("new"))
    assert texts(Ledger(path), 3) == ["0", "new", "2"]


def test_the_first_answer_counts(tmp_path: Path) -> None:
    """Two processes that sent one request give two data sets."""
    path = tmp_path / "ledger.sqlite"
    fill(path, 1)
    Ledger(path).append(key_of(0), written("another"))
    assert texts(Ledger(path), 1) == ["0"]


@pytest.mark.parametrize("spoil", [b"no database " * 1000, None])
def test_a_damaged_file(tmp_path: Path, spoil: bytes | None) -> None:
    """All that was paid for is silently paid for again; or the user sees a traceback."""
    path = tmp_path / "ledger.sqlite"
    fill(path, 50, "x" * 500)
    whole = path.read_bytes()
    path.write_bytes(spoil or whole[:4096] + os.urandom(len(whole) - 4096))
    before = path.read_bytes()
    with pytest.raises(ConfigError, match=naming(str(path), "damaged", "ledger.sqlite .recover")):
        texts(Ledger(path), 50)
    assert path.read_bytes() == before


def test_answers_that_are_too_old_are_replaced(tmp_path: Path) -> None:
    """A repaired server's old answers come back for ever; or the new ones are not stored, and paid for each time."""
    path = tmp_path / "ledger.sqlite"
    fill(path, 2)
    ledger = Ledger(path)
    assert ledger.made(key_of(0)) == pytest.approx(time.time(), abs=60)
    assert ledger.made(key_of(9)) is None
    ledger.since = time.time() + 100
    assert texts(ledger, 2) == [None, None]
    ledger.append(key_of(0), written("new"))
    assert texts(Ledger(path), 2) == ["new", "1"]
    assert ledger.check() == (2, 0)


def test_a_ledger_without_times_is_read(tmp_path: Path) -> None:
    """Answers of an earlier version, whose table has no times, are lost or end the run."""
    path = tmp_path / "ledger.sqlite"
    fill(path, 1)
    connection = sqlite3.connect(path)
    connection.executescript("ALTER TABLE answers DROP COLUMN made; PRAGMA user_version = 1")
    connection.close()
    ledger = Ledger(path)
    assert texts(ledger, 1) == ["0"]
    assert ledger.made(key_of(0)) is None
    ledger.append(key_of(1), written("1"))
    assert ledger.made(key_of(1)) is not None


def test_a_newer_version(tmp_path: Path) -> None:
    """A file of another structure is written to."""
    path = tmp_path / "ledger.sqlite"
    connection = sqlite3.connect(path)
    connection.execute("PRAGMA user_version = 99")
    connection.close()
    with pytest.raises(ConfigError, match=naming(str(path), "newer version", "KDCLI_CACHE_DIR")):
        Ledger(path)


# ---- several processes ------------------------------------------------------------------------------------


def append_many(path: Path, name: int, count: int) -> None:
    ledger = Ledger(path)
    for number in range(count):
        ledger.append(key_of(name << 32 | number), written(f"{name} {number} " + "x" * 9000))


def test_processes_append_at_once(tmp_path: Path) -> None:
    """One of several that begin together fails, or its answers overwrite those of another."""
    path, count = tmp_path / "ledger.sqlite", 20
    processes = [apart(append_many, path, name, count) for name in range(4)]
    for process in processes:
        process.join(60)
        assert process.exitcode == 0
    ledger = Ledger(path)
    for name, number in itertools.product(range(4), range(count)):
        assert ledger.get(key_of(name << 32 | number)) == written(f"{name} {number} " + "x" * 9000)


def append_and_tell(path: Path, into: Path) -> None:
    """Append until it is killed; note each answer once it is stored."""
    ledger = Ledger(path)
    with into.open("w") as stream:
        for number in itertools.count():
            ledger.append(key_of(number), written(f"{number}"))
            print(number, file=stream, flush=True)


def test_killed(tmp_path: Path) -> None:
    """An answer is lost that was already used."""
    path, into = tmp_path / "ledger.sqlite", tmp_path / "told"
    stored = 0
    for turn in range(3):
        process = apart(append_and_tell, path, into)
        while process.is_alive() and not (into.is_file() and into.read_text().count("\n") > 20 + 7 * turn):
            time.sleep(0.003)
        process.kill()
        process.join(60)
        assert process.exitcode == -signal.SIGKILL
        stored = max(stored, into.read_text().count("\n"))
        into.unlink()
        assert texts(Ledger(path), stored) == [f"{number}" for number in range(stored)]


# ---- where nothing can be stored ----------------------------------------------------------------------------


def test_a_path_that_cannot_be_used(tmp_path: Path) -> None:
    """A file in the folder's place, or a folder in the file's, ends in a traceback."""
    (tmp_path / "file").touch()
    (tmp_path / "folder.sqlite").mkdir()
    for path in (tmp_path / "file" / "ledger.sqlite", tmp_path / "folder.sqlite"):
        with pytest.raises(ConfigError, match=naming(str(path), "set KDCLI_CACHE_DIR")):
            Ledger(path)


def fill_the_disk(path: Path, into: Path) -> None:
    """Append until no more fits; then there is room again."""
    ledger = Ledger(path)
    resource.setrlimit(resource.RLIMIT_FSIZE, (500_000, resource.RLIM_INFINITY))
    try:
        for number in itertools.count():
            ledger.append(key_of(number), written("x" * 700))
    except EndpointError as error:
        into.write_text(f"{number} {error}")
    resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    ledger.append(key_of(99_999), written("what was in flight"))


def test_a_full_disk(tmp_path: Path) -> None:
    """The answers before the one that did not fit are lost; or the next one is; or the user sees a traceback."""
    path = tmp_path / "ledger.sqlite"
    process = apart(fill_the_disk, path, tmp_path / "said")
    process.join(60)
    assert process.exitcode == 0
    count, _, message = (tmp_path / "said").read_text().partition(" ")
    require_words(message, "ledger.sqlite", "set KDCLI_CACHE_DIR")
    assert int(count) > 9
    ledger = Ledger(path)
    assert all(text is not None for text in texts(ledger, int(count)))
    assert ledger.get(key_of(99_999)) == written("what was in flight")


def test_a_network_file_system(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two machines share a log of which each has its own index in memory: the file is damaged."""
    mount = namedtuple("mount", "mountpoint fstype")
    mounts = [mount("/", "ext4"), mount(str(tmp_path), "nfs4")]
    monkeypatch.setattr(psutil, "disk_partitions", lambda all: mounts)
    fill(tmp_path / "ledger.sqlite", 3)
    ledger = Ledger(tmp_path / "ledger.sqlite")
    assert settings(ledger) == (b"delete", 2)
    assert texts(ledger, 3) == ["0", "1", "2"]


def test_a_file_system_without_locks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On NFS without its lock service SQLite waits for a lock for ever."""

    def lockf(*_: Any) -> None:
        raise OSError(errno.ENOLCK, "no locks here")

    monkeypatch.setattr(fcntl, "lockf", lockf)
    fill(tmp_path / "ledger.sqlite", 3)
    ledger = Ledger(tmp_path / "ledger.sqlite")
    assert settings(ledger) == (b"delete", 2)
    assert texts(ledger, 3) == ["0", "1", "2"]


# ---- ledgers of earlier versions ------------------------------------------------------------------------------


def line_of(number: int, text: str) -> bytes:
    return json.dumps({"key": key_of(number).hex(), **asdict(written(text))}).encode() + b"\n"


def test_an_old_ledger_is_migrated(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """What an earlier version paid for is paid for again, or its file is lost."""
    old, path = tmp_path / "ledger.jsonl", tmp_path / "ledger.sqlite"
    damaged = [b"\0" * 80, b'{"key": 1}', b'{"key": "zz", "status": "answered"}', b""]
    lines = [line_of(0, "0"), *(wrong + b"\n" for wrong in damaged), line_of(1, "1"), line_of(0, "again")]
    old.write_bytes(b"".join(lines) + line_of(2, "2")[:-9])
    before = old.read_bytes()
    assert texts(Ledger(path), 3) == ["0", "1", None]
    assert old.read_bytes() == before
    require_words(caplog.text, str(old), "4 damaged lines")
    caplog.clear()
    again = Ledger(path)
    again.append(key_of(3), written("3"))
    assert not caplog.text
    old.write_bytes(before + line_of(2, "2")[-9:] + line_of(4, "4") + line_of(3, "another"))
    assert texts(Ledger(path), 5) == ["0", "1", "2", "3", "4"]


def test_processes_migrate_at_once(tmp_path: Path) -> None:
    """One of two runs that are started together after an update fails."""
    (tmp_path / "ledger.jsonl").write_bytes(b"".join(line_of(number, f"{number}") for number in range(300)))
    path = tmp_path / "ledger.sqlite"
    processes = [apart(append_many, path, name, 1) for name in range(1, 4)]
    for process in processes:
        process.join(60)
        assert process.exitcode == 0
    assert texts(Ledger(path), 300) == [f"{number}" for number in range(300)]
