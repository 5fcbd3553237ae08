"""Implements `kdcli cache`, which lists, checks and deletes what runs share through the cache folder."""

from __future__ import annotations

import json
import re
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import typer

from kdcli import console
from kdcli.cache_notes import KINDS, SHORT, Entry, delete, entries, is_unfinished, unused
from kdcli.errors import ConfigError, ExitCode, ModelError, listed, shown, suggest
from kdcli.files import cache_folder, digest, read_json
from kdcli.model_files import SUMS, require_unchanged
from kdcli.numbers import format_age, format_bytes, format_items
from kdcli.teachers.remote.ledger import Ledger
from kdcli.teachers.shards import is_unchanged

UNITS = {"m": 60, "h": 3600, "d": 86400, "w": 7 * 86400}
"""The seconds of each unit of `--older-than`."""
IN_PARTS = "augmented", "checked_texts", "rollout_scores", "rollouts"
"""The kinds of entries that `make_in_parts` stores."""
CHANGED = "its checksum does not match"
UNKNOWN = "not known"


def choose(teacher: str | None, kind: str | None, older_than: str | None) -> list[Entry]:
    """Return the entries of a teacher, of a kind, and of an age; None: of all.

    Args:
        teacher: a part of its name, in any case.
        older_than: as `30d`: no run has used them for so long.

    Raises:
        ConfigError: there is no such kind, or the age is none.
    """
    if kind is not None and kind not in KINDS:
        raise ConfigError(f"--kind {shown(kind)}{suggest(kind, KINDS)}: expected one of {listed(KINDS)}")
    before = time.time() - (0 if older_than is None else _seconds(older_than))
    return [
        entry
        for entry in entries()
        if (kind is None or entry.kind == kind)
        and (teacher is None or (entry.note is not None and teacher.lower() in entry.note["teacher"].lower()))
        and (older_than is None or entry.used < before)
    ]


def _seconds(age: str) -> float:
    match = re.fullmatch(r"(\d{1,6})([mhdw])", age.strip())
    if match is None:
        raise ConfigError(f"--older-than {shown(age)}: expected a number and a unit, as in 30d, 12h or 90m")
    return int(match[1]) * UNITS[match[2]]


def ls(chosen: Sequence[Entry], as_json: bool) -> int:
    """Print the entries as a table or as JSON."""
    if as_json:
        console.say(json.dumps([_record(entry) for entry in chosen], indent=2, ensure_ascii=False))
        return ExitCode.DONE
    _table(chosen)
    if chosen:
        console.say("to delete some: kdcli cache clear --teacher NAME --kind KIND --older-than 30d")
    return ExitCode.DONE


def _record(entry: Entry) -> dict[str, Any]:
    note = entry.note
    return {
        "kind": entry.kind,
        "name": entry.name,
        "teacher": note["teacher"] if note else None,
        "data": note["data"] if note else [],
        "runs": note["runs"] if note else [],
        "bytes": entry.size,
        "used": entry.used,
        "unfinished": is_unfinished(entry),
        "paths": list(map(str, entry.paths)),
    }


def _table(chosen: Sequence[Entry]) -> None:
    sizes = [entry.size for entry in chosen]
    rows = [
        [
            entry.kind + (" (unfinished)" if is_unfinished(entry) else ""),
            entry.name[:SHORT],
            entry.note["teacher"] if entry.note else UNKNOWN,
            listed(entry.note["data"]) if entry.note else UNKNOWN,
            format_bytes(size),
            re.sub(" old$", " ago", format_age(time.time() - entry.used)),
        ]
        for entry, size in zip(chosen, sizes, strict=True)
    ]
    if rows:
        console.table("", ["kind", "entry", "teacher", "data", "size", "last used"], rows)
    console.say(
        f"{format_items(len(rows), 'entry', 'entries')}, {format_bytes(sum(sizes))}, in {cache_folder()}"
    )


def clear(chosen: Sequence[Entry], yes: bool) -> int:
    """Delete entries, after asking.

    Raises:
        ConfigError: a run uses one of them, or nobody can be asked.
    """
    _table(chosen)
    if not chosen:
        return ExitCode.DONE
    paid = any(entry.kind == "answers" for entry in chosen)
    with unused(chosen):
        if not yes:
            if not sys.stdin.isatty():
                raise ConfigError(
                    "nobody can be asked here, and nothing was deleted; give --yes to delete these entries"
                )
            warning = " The answers of an endpoint were paid for." if paid else ""
            if not typer.confirm(f"Delete {format_items(len(chosen), 'entry', 'entries')}?{warning}"):
                console.say("nothing was deleted")
                return ExitCode.DONE
        freed = sum(entry.size for entry in chosen)
        for entry in chosen:
            delete(entry)
    console.say(
        f"deleted {format_items(len(chosen), 'entry', 'entries')}: {format_bytes(freed)} are free again"
    )
    console.say("next: kdcli cache ls")
    return ExitCode.DONE


def verify(chosen: Sequence[Entry], as_json: bool) -> int:
    """Compare entries with their checksums, and name the damaged ones."""
    damaged: dict[str, str] = {}
    checked = Counter[str]()
    for entry in chosen:
        for path, problem in _checks(entry):
            checked[entry.kind] += 1
            if problem:
                damaged[str(path)] = problem
    if as_json:
        console.say(json.dumps({"checked": checked, "damaged": damaged}, indent=2, ensure_ascii=False))
    else:
        for name, problem in damaged.items():
            console.say(f"{name}: {problem}")
        counts = listed(f"{count:,} of {kind}" for kind, count in checked.items()) or "no files"
        end = (
            f"{len(damaged)} damaged; a run that needs them makes them again"
            if damaged
            else "all are as they were written"
        )
        console.say(f"checked {counts}: {end}")
        console.say("next: kdcli cache ls")
    return ExitCode.FAILED if damaged else ExitCode.DONE


def _checks(entry: Entry) -> Iterator[tuple[Path, str]]:
    """Yield the files of an entry that have a checksum, each with what is wrong with it; "": nothing is."""
    for path in entry.paths:
        if path.suffix == ".sqlite":
            yield path, _problem(_ledger_problem, path)
        elif path.is_dir() and (path / SUMS).is_file():
            yield path, _problem(_model_problem, path)
        elif entry.kind == "teacher_outputs":
            yield from ((file, _problem(_shard_problem, file)) for file in sorted(path.glob("*.safetensors")))
        elif entry.kind in IN_PARTS:
            yield from ((file, _problem(_part_problem, file)) for file in sorted(path.glob("*.json")))


def _problem(check: Callable[[Path], str], path: Path) -> str:
    try:
        return check(path)
    except (ConfigError, ModelError) as error:
        return error.message
    except (OSError, ValueError, KeyError, TypeError) as error:
        return f"it is damaged ({type(error).__name__}: {error})"


def _ledger_problem(path: Path) -> str:
    count, damaged = Ledger(path).check()
    return f"damaged answers: {damaged} of {count}" if damaged else ""


def _model_problem(path: Path) -> str:
    require_unchanged(path, "it is made again")
    return ""


def _shard_problem(path: Path) -> str:
    return "" if is_unchanged(path) else CHANGED


def _part_problem(path: Path) -> str:
    part: dict[str, Any] = read_json(path, dict, "it is made again")
    return "" if part.get("sha256") == digest(part.get("made")) else CHANGED
