"""Reads data sets of the Hugging Face hub."""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import yaml

from kdcli.data.readers import PlainLoader, check_rows, table_rows
from kdcli.errors import DataError, abbreviated, listed, shown
from kdcli.files import storage_error
from kdcli.hub import snapshot
from kdcli.tasks.rows import RawSplit, RowSchema, fold_white_space

DEEPEST = 500
"""The nesting depth of JSON up to which a file is not parsed."""
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
        raise DataError(f"the data set {name}: {card} is not YAML ({why})") from None
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
            raise DataError(f"the data set {name}: {file} is nested too deeply") from None
        except ValueError:  # the reader reports other errors
            return


def _strings(tree: Any) -> Iterator[str]:
    """All strings of nested lists and mappings."""
    if isinstance(tree, str):
        yield tree
    elif isinstance(tree, list | dict):
        for value in tree.values() if isinstance(tree, dict) else tree:
            yield from _strings(value)


def read_hub(schema: RowSchema, split: str) -> RawSplit:
    cfg = schema.cfg
    folder, commit = snapshot(cfg.path, cfg.revision, kind="dataset")
    _require_card(folder, cfg.path)
    for file in folder.rglob("*json*"):
        if file.is_file():
            _require_shallow(file, cfg.path)
    logging.getLogger("datasets").setLevel(logging.CRITICAL)  # it also raises what it logs
    try:
        table = datasets.load_dataset(str(folder), cfg.name, split=split)
    except Exception as error:  # from any library that reads the files
        if storage_error(error):
            raise
        raise DataError(
            f"the data set {cfg.path} cannot be read: {abbreviated(str(error.__cause__ or error).strip(), 1000)} (dataset.name=, "
            "dataset.train=, dataset.validation= and dataset.test= choose its parts)"
        ) from None
    name = f"{cfg.path} ({split})"
    paths = schema.column_paths(table.column_names, name, nested=True)
    columns = {path[0]: table[path[0]] for path in paths}
    names = None
    label = paths[-1][0]
    feature = table.features[label]
    if isinstance(feature, datasets.List | datasets.LargeList):
        feature = feature.feature
    if isinstance(feature, datasets.ClassLabel):
        names = feature.names
        columns[label] = [_named(value, names) for value in columns[label]]
    return RawSplit(name, check_rows(schema, name, table_rows(columns, paths, name)), names, commit)


def _named(label: Any, names: list[str]) -> Any:
    """The name of a class index, or those of a list; None for a missing one (-1)."""
    if isinstance(label, list):
        return [_named(each, names) for each in label]
    if label is not None and label >= len(names):
        raise DataError(
            f"the label {label} is not among the {len(names)} names that the data set declares: {listed(names)}"
        )
    return names[label] if label is not None and label >= 0 else None
