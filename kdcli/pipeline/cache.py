"""Stores expensive intermediate results part by part, and shares them between runs."""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import datasets
from typing_extensions import TypedDict

from kdcli import console
from kdcli.cache_notes import note_use
from kdcli.distributed import wait_for_everyone
from kdcli.errors import ConfigError, ModelError
from kdcli.files import digest, read_json, write_json, write_jsonl
from kdcli.locks import Lock
from kdcli.model_files import require_unchanged
from kdcli.pipeline.keys import content_hash
from kdcli.pipeline.plan import Run
from kdcli.teachers.cached import shares

logger = logging.getLogger(__name__)
PART_FORMAT = 4
"""The version of the files that hold the result of a part of the rows. It is raised whenever their meaning changes."""
PART = 512
"""The number of prompts that a teacher answers between two writes to the disk."""


def is_saved(folder: Path) -> bool:
    """Return whether a model was saved before. A damaged one is named in a warning and does not count: it is made again."""
    if not folder.is_dir():
        return False
    try:
        require_unchanged(folder, "it is made again")
        return True
    except ModelError as error:
        logger.warning("%s", error.message)
        return False


def make_in_parts(
    run: Run,
    folder: Path,
    rows: datasets.Dataset,
    size: int,
    make: Callable[[datasets.Dataset, int], list[Any]],
    progress: Callable[[int], None] = lambda done: None,
) -> list[Any]:
    """Compute a result for each row, a part of the rows at a time, and store each part in a folder. Several processes share the work.

    Args:
        folder: the folder of the cache. Its key holds all that decides the result except the rows; a part's file is named by the content of its rows.
        make: called with a part of the rows, and how many rows this process has done before.
        progress: called with the number of rows that are done.

    Returns:
        What was made from all parts, in the order of the rows.
    """
    results: dict[int, list[Any]] = {}
    done = 0
    for starts in shares(range(0, len(rows), size), run.state):
        for start in starts:
            part = rows.select(range(start, min(start + size, len(rows))))
            path = folder / f"{digest(PART_FORMAT, content_hash(part))[:32]}.json"
            stored = _stored_part(path, run.fresh_since)
            if stored is None:
                made = make(part, done)
                write_json(path, Part(sha256=digest(made), made=made), sync=False)
                stored = _read_part(path)
            results[start] = stored
            done += len(part)
            progress(done)
    return [result for start in sorted(results) for result in results[start]]


class Part(TypedDict):
    """The result of a part of the rows, with its `digest`, so that the file need not be synchronised before it is renamed."""

    sha256: str
    made: list[Any]


def _stored_part(path: Path, since: float | None) -> list[Any] | None:
    """Return what was made from a part before; None: nothing. A damaged part is named in a warning and does not count: it is made again."""
    try:
        is_stored = path.exists() and (since is None or path.stat().st_mtime >= since)
        return _read_part(path) if is_stored else None
    except ConfigError as error:
        logger.warning("%s", error.message)
        return None


def _read_part(path: Path) -> list[Any]:
    """Read a part. Raise ConfigError if it is damaged."""
    part = read_json(path, Part, "it is made again")
    if part["sha256"] != digest(part["made"]):
        raise ConfigError(f"{path} is damaged (its checksum is another); it is made again")
    return part["made"]


def write_rows(run: Run, stage: str, rows: Iterable[dict[str, Any]]) -> None:
    """Write rows that were made in a stage into the run directory, for people to read."""
    if run.state.is_main_process:
        write_jsonl(run.folder / f"{run.stage_name(stage).replace('/', '-')}.jsonl", rows)


def progress_from(stage: console.ProgressStage, before: int) -> Callable[[int], None]:
    """Return a function that updates a stage, in which so many rows were done before, with the number of rows done since."""
    return functools.partial(_update, stage, before)


def _update(stage: console.ProgressStage, before: int, done: int) -> None:
    stage.update(before + done)


@contextmanager
def exclusive(run: Run, folder: Path) -> Iterator[None]:
    """Lock a shared folder of the cache, so that simultaneous runs make its content once."""
    with Lock(folder.with_suffix(".lock")) if run.state.is_main_process else nullcontext():
        if run.state.is_main_process:
            note_use(folder, run.names["teacher"], run.names["dataset"], run.folder)
        wait_for_everyone(run.state)
        yield
