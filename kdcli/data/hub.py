"""Reads data sets of the Hugging Face hub."""

from __future__ import annotations

import contextlib
import json
import logging
import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import yaml

from kdcli.config.dataset import Dataset as DatasetConfig
from kdcli.data.raw_rows import UNREADABLE, BadRows, check_rows, table_rows
from kdcli.data.readers import PlainLoader
from kdcli.data.tables import class_name, class_names
from kdcli.errors import DataError, abbreviated, shown
from kdcli.files import digest, storage_error
from kdcli.hub import snapshot
from kdcli.tasks.rows import RawSplit, RowSchema, fold_white_space

logger = logging.getLogger(__name__)
DEEPEST = 500
"""The nesting depth of brackets from which a file is parsed as JSON to measure its depth."""
LARGEST_CARD = 2**22
"""The number of characters of a data set card that are read."""


def _require_card(folder: Path, name: str) -> None:
    """Refuse a data set card whose front matter is invalid, or that names files outside of the data set.

    Raises:
        DataError
    """
    card = folder / "README.md"
    if not card.is_file():
        return
    with card.open(encoding="utf-8", errors="replace") as stream:
        front = re.match(r"\s*---[ \t]*\n(.*?)\n---[ \t]*(\n|$)", stream.read(LARGEST_CARD), re.DOTALL)
    try:
        tree = yaml.load(front[1], PlainLoader) if front else None
    except (yaml.YAMLError, ValueError, OverflowError, RecursionError) as error:
        why = "it is nested too deeply" if isinstance(error, RecursionError) else fold_white_space(str(error))
        raise DataError(
            f"the data set {name}: {card} is not YAML ({why}); correct its head, or give the data files themselves as dataset.path"
        ) from None
    for file in _strings(tree.get("configs") if isinstance(tree, dict) else None):
        if file.startswith(("/", "~")) or "://" in file or ".." in file.split("/"):
            raise DataError(
                f"the data set {name}: {card} names files outside of it ({shown(file)}); fetch them yourself, and give them with "
                "dataset=csv dataset.path="
            )


def _require_shallow(file: Path, name: str) -> None:
    """Refuse JSON that is nested too deeply: the reader of hub data sets is native code, which it would crash.

    Brackets are counted first. They can occur in texts as well, so a file with many open ones is then parsed.

    Raises:
        DataError
    """
    steps = np.zeros(256, np.int64)
    steps[list(b"[{")], steps[list(b"]}")] = 1, -1
    depth = deepest = 0
    with file.open("rb") as stream:
        while block := stream.read(2**20):
            depths = depth + np.cumsum(steps[np.frombuffer(block, np.uint8)])
            depth, deepest = int(depths[-1]), max(deepest, int(depths.max()))
        if deepest < DEEPEST:
            return
        stream.seek(0)
        try:
            for document in stream if file.suffix in (".jsonl", ".ndjson") else [stream.read()]:
                json.loads(document)
        except RecursionError:
            raise DataError(
                f"the data set {name}: {file} is nested too deeply; give the data files themselves as dataset.path"
            ) from None
        except ValueError:  # the reader reports other errors
            return


def _strings(tree: Any) -> Iterator[str]:
    """Yield all strings of nested lists and mappings."""
    if isinstance(tree, str):
        yield tree
    elif isinstance(tree, list | dict):
        for value in tree.values() if isinstance(tree, dict) else tree:
            yield from _strings(value)


def read_hub(schema: RowSchema, split: str, folder: Path | None = None) -> RawSplit:
    """Read a split of a hub data set.

    Args:
        folder: of a repository on disk; None: the repository is fetched, or found in the local cache.
    """
    cfg = schema.cfg
    commit, cache = None, None
    if folder is None:
        folder, commit = snapshot(cfg.path, cfg.revision, kind="dataset")
    else:
        cache = _cache_of(folder)
    with _readable(folder, cfg.path):
        table = datasets.load_dataset(str(folder), cfg.name, split=split, cache_dir=cache)
    name = f"{cfg.path} ({split})"
    paths = schema.column_paths(table.column_names, name, nested=True)
    columns = {path[0]: table[path[0]] for path in paths}
    label = paths[-1][0]
    names = class_names(table.features[label])
    if names is not None:
        columns[label] = [class_name(value, names) for value in columns[label]]
    if cache is not None:
        logger.info("read %s as a repository of the hub, %d columns", name, len(table.column_names))
    bad = BadRows(cfg.bad_rows)
    rows = check_rows(schema, name, table_rows(columns, paths, name, bad), bad)
    bad.warn(name, len(rows))
    return RawSplit(name, rows, names, commit, +Counter({UNREADABLE: bad.count}), places=bad.places)


def _cache_of(folder: Path) -> str:
    """Return a folder for what the library prepares of a repository on disk, by its path and its files: the library's own is that of all
    repositories whose folders have the same name, and of what they held before."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    states = [(str(path), (status := path.stat()).st_size, status.st_mtime_ns) for path in files]
    name = f"kdcli-{digest(str(folder.resolve()), states)[:16]}"
    return str(Path(datasets.config.HF_DATASETS_CACHE) / name)


def splits_of_repository(cfg: DatasetConfig, folder: Path) -> list[str]:
    """Return the names of the splits of a repository on disk.

    Raises:
        DataError: its files cannot be read.
    """
    with _readable(folder, cfg.path):
        return [
            str(name) for name in datasets.load_dataset_builder(str(folder), cfg.name).config.data_files or ()
        ]


@contextlib.contextmanager
def _readable(folder: Path, name: str) -> Iterator[None]:
    """Check the files of a repository before they are read by native code, and refuse what cannot be read."""
    _require_card(folder, name)
    for file in folder.rglob("*json*"):
        if file.is_file():
            _require_shallow(file, name)
    logging.getLogger("datasets").setLevel(logging.CRITICAL)  # its logged errors are also raised
    try:
        yield
    except Exception as error:  # from any library that reads the files
        if storage_error(error):
            raise
        raise DataError(
            f"the data set {name} cannot be read: {abbreviated(str(error.__cause__ or error).strip(), 1000)} (dataset.name=, "
            "dataset.train=, dataset.validation= and dataset.test= choose its parts; dataset.format=csv, or another one, reads the files of a folder "
            "without its card)"
        ) from None
