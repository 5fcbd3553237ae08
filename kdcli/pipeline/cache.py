"""Expensive intermediate results, stored part by part and shared between runs."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import datasets
import torch
from typing_extensions import TypedDict

from kdcli import console
from kdcli.errors import ConfigError, ModelError
from kdcli.files import digest, read_json, write_json, write_text
from kdcli.locks import Lock
from kdcli.model_files import require_unchanged
from kdcli.models.checkpoint import (
    Checkpoint,
    fast_bf16,
)
from kdcli.pipeline.plan import Run
from kdcli.teachers.cached import shares

logger = logging.getLogger(__name__)
PART_FORMAT = 2
"""Of the files that hold a part of what is made of rows: a new one whenever they come to mean something else."""
PART = 512
"""Prompts that a teacher answers between two writes to the disk."""


def is_saved(folder: Path) -> bool:
    """Whether a model was made and saved before. A damaged one is named, and does not count: it is made again."""
    if not folder.is_dir():
        return False
    try:
        require_unchanged(folder, "it is made again")
        return True
    except ModelError as error:
        logger.warning("%s", error.message)
        return False


def content_hash(rows: datasets.Dataset, labels: bool = True) -> str:
    """A digest of a split's rows: ids alone are the same for texts that differ in case.

    Args:
        labels: and of their labels.
    """
    return digest({name: list(rows[name]) for name in rows.column_names if labels or name != "label"})


def make_in_parts(
    run: Run,
    progress: console.ProgressStage | None,
    folder: Path,
    rows: datasets.Dataset,
    size: int,
    make: Callable[[datasets.Dataset, int], list[Any]],
    before: int = 0,
) -> list[Any]:
    """What is made of rows, so many at a time, each part kept in a folder; several processes share the work.

    Args:
        make: called with some of the rows, and how many this process has done before.
        before: what the progress counts before the first of them.
    """
    found: dict[int, list[Any]] = {}
    done = 0
    for starts in shares(range(0, len(rows), size), run.state):
        for start in starts:
            part = rows.select(range(start, min(start + size, len(rows))))
            path = folder / f"{digest(PART_FORMAT, list(part['id']))[:32]}.json"
            if not _whole(path):
                made = make(part, done)
                write_json(path, Part(sha256=digest(made), made=made), sync=False)
            found[start] = _read_part(path)
            done += len(part)
            if progress is not None:
                progress.update(before + done)
    return [each for start in sorted(found) for each in found[start]]


class Part(TypedDict):
    """A part of what is made of rows, with its `digest`: it need not be on the disk before it is renamed."""

    sha256: str
    made: list[Any]


def _whole(path: Path) -> bool:
    """Whether a part was made before. A damaged one is named, and does not count: it is made again."""
    try:
        return path.exists() and _read_part(path) is not None
    except ConfigError as error:
        logger.warning("%s", error.message)
        return False


def _read_part(path: Path) -> list[Any]:
    """Raises ConfigError if the part is damaged."""
    part = read_json(path, Part, "it is made again")
    if part["sha256"] != digest(part["made"]):
        raise ConfigError(f"{path} is damaged (its checksum is another); it is made again")
    return part["made"]


def write_rows(run: Run, what: str, rows: Iterable[dict[str, Any]]) -> None:
    """Rows that were made here, in the run directory, for people to read."""
    if run.state.is_main_process:
        lines = [json.dumps(row, ensure_ascii=False) + "\n" for row in rows]
        write_text(run.folder / f"{run.named(what).replace('/', '-')}.jsonl", "".join(lines))


def advance(progress: console.ProgressStage, before: int, done: int) -> None:
    progress.update(before + done)


@contextmanager
def exclusive(run: Run, folder: Path) -> Iterator[None]:
    """Hold a shared folder of the cache, so that runs side by side make what it holds once."""
    with Lock(folder.with_suffix(".lock")) if run.state.is_main_process else nullcontext():
        run.state.wait_for_everyone()
        yield


def queried_by(run: Run, sources: Sequence[Checkpoint]) -> tuple[Any, ...]:
    """What determines all that a teacher says of a row."""
    cfg = run.cfg.teacher
    return (
        [(source.weights_hash, source.tokenizer_hash) for source in sources],
        cfg.target,
        cfg.arguments,
        run.data.labels,
        run.cfg.dataset.max_length,
        fast_bf16(cfg.trainer.precision),
        torch.__version__,
        run.task.chat,
        run.cfg.dataset.source_language,
        run.cfg.dataset.target_language,
        run.cfg.dataset.prefix,
        *([] if run.classes is None else [run.classes]),
    )
