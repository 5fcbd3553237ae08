"""kdcli cache: what it lists, deletes and finds damaged, and what it must not delete."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path

import pytest
from support.commands import require_words
from typer.testing import CliRunner

from kdcli.cache_notes import NOTE, entries, note_use
from kdcli.cli import app
from kdcli.files import digest, write_json
from kdcli.locks import Lock
from kdcli.rundir import LOCK

NAMES = {name: digest(name)[:32] for name in ("new", "old", "ledger", "unknown")}


def kdcli(*words: object, code: int = 0) -> str:
    """What a command prints."""
    result = CliRunner().invoke(app, ["cache", *map(str, words)])
    assert result.exit_code == code, result.output
    return result.output


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Completions of two teachers, one of which was used 40 days ago, answers, and an entry of an earlier version."""
    base = tmp_path / "cache"
    monkeypatch.setenv("KDCLI_CACHE_DIR", str(base))
    for name in ("new", "old", "unknown"):
        made = [f"a completion of {name}"]
        write_json(base / "rollouts" / NAMES[name] / "part.json", {"sha256": digest(made), "made": made})
    for name in ("new", "old"):
        note_use(base / "rollouts" / NAMES[name], f"Teacher-{name}", "reviews", tmp_path / "run")
    path = base / "rollouts" / f"{NAMES['old']}{NOTE}"
    write_json(path, json.loads(path.read_text()) | {"used": time.time() - 40 * 86400})
    (base / "answers").mkdir()
    for suffix in (".sqlite", ".sqlite-wal", ".sqlite.lock", ".lock"):
        (base / "answers" / f"{NAMES['ledger']}{suffix}").write_bytes(b"")
    return base


def test_entries_are_listed_with_what_they_are_for(cache: Path) -> None:
    """A user cannot tell which of the hashes is the repaired teacher's; or a lock passes for an entry."""
    listed = {each["name"]: each for each in json.loads(kdcli("ls", "--json"))}
    assert listed.keys() == set(NAMES.values())
    new = listed[NAMES["new"]]
    assert (new["kind"], new["teacher"], new["data"]) == ("rollouts", "Teacher-new", ["reviews"])
    assert new["bytes"] == (cache / "rollouts" / NAMES["new"] / "part.json").stat().st_size
    assert listed[NAMES["unknown"]]["teacher"] is None
    assert len(listed[NAMES["ledger"]]["paths"]) == 2
    table = kdcli("ls")
    require_words(table, "Teacher-old", "40 days ago", "4 entries", *(name[:8] for name in NAMES.values()))
    require_words(kdcli("ls", "--teacher", "Teacher-old"), "1 entry")


@pytest.mark.parametrize(
    ("options", "left"),
    [
        (["--older-than", "30d"], {"new", "ledger", "unknown"}),
        (["--teacher", "teacher-NEW"], {"old", "ledger", "unknown"}),
        (["--kind", "answers"], {"new", "old", "unknown"}),
        (["--kind", "rollouts", "--older-than", "6w"], {"new", "old", "ledger", "unknown"}),
        ([], set()),
    ],
)
def test_what_is_chosen_is_deleted(cache: Path, options: list[str], left: set[str]) -> None:
    """Answers that were paid for go with the completions that a user wanted to forget."""
    assert kdcli("clear", *options, code=0 if len(left) == 4 else 2)  # nobody can be asked here
    assert {entry.name for entry in entries()} == set(NAMES.values())
    out = kdcli("clear", *options, "--yes")
    assert {entry.name for entry in entries()} == {NAMES[name] for name in left}
    if len(left) < 4:
        require_words(
            out, f"deleted {4 - len(left)} entr{'y' if len(left) == 3 else 'ies'}", "next: kdcli cache ls"
        )
    assert not [path for path in cache.rglob(f"*{NOTE}") if path.name[:32] not in {NAMES[n] for n in left}]


@pytest.mark.parametrize("held", ["run", "entry"])
def test_what_a_run_uses_stays(cache: Path, held: str) -> None:
    """The outputs of a run that is training are deleted under its feet."""
    run = cache.parent / "run"
    run.mkdir()
    path = run / LOCK if held == "run" else cache / "rollouts" / f"{NAMES['new']}.lock"
    with Lock(path):
        require_words(kdcli("clear", "--yes", code=2), "in use", NAMES["new"][:8], "--teacher")
        assert {entry.name for entry in entries()} == set(NAMES.values())
        kdcli("clear", "--yes", "--kind", "answers")
    kdcli("clear", "--yes")
    assert entries() == []


def test_damage_is_found(cache: Path) -> None:
    """A disk that loses bits is noticed by the run that wants them, or by none."""
    require_words(kdcli("verify", "--kind", "rollouts"), "3 of rollouts", "as they were written")
    part = cache / "rollouts" / NAMES["old"] / "part.json"
    part.write_text(part.read_text().replace("completion", "Completion"))
    require_words(kdcli("verify", code=1), str(part), "1 damaged")
    assert list(json.loads(kdcli("verify", "--json", code=1))["damaged"]) == [str(part)]


def test_wrong_options(cache: Path) -> None:
    """A typo clears everything."""
    require_words(kdcli("clear", "--yes", "--kind", "rollout", code=2), "rollouts")
    require_words(kdcli("clear", "--yes", "--older-than", "30", code=2), "30d")
    assert len(entries()) == 4


def test_a_note_keeps_the_last_runs(tmp_path: Path) -> None:
    """The note of a teacher that a thousand runs use grows with each of them."""
    for number in range(30):
        note_use(tmp_path / "entry", "t", "d", tmp_path / f"{number}")
    note = json.loads((tmp_path / f"entry{NOTE}").read_text())
    assert note["runs"] == [os.path.join(tmp_path, f"{number}") for number in range(10, 30)]
    assert note["data"] == ["d"]
