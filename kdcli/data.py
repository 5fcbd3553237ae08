"""Rows of text with labels: read, checked, cleaned, split and fingerprinted.

A row is `id` (a hash of its text), `text`, `text_pair` where the task has one, and `label` (an index into
the label names, -100 where there is no gold label). Rows whose text is the same but for case and white
space count as one, so that none can stand in two splits.
"""

from __future__ import annotations

import csv
import json
import logging
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import datasets

from kdcli.config import Dataset as DatasetConfig
from kdcli.config import suggest
from kdcli.errors import ConfigError, DataError
from kdcli.files import PACKAGE, digest, locate_package, snapshot
from kdcli.tasks.base import IGNORE

datasets.disable_progress_bars()  # the run has its own
logger = logging.getLogger(__name__)
SPLITS = ("train", "validation", "test")
_INTEGER = re.compile(r"-?\d+")
_HALF = re.compile(r"[\ud800-\udfff]")


@dataclass(frozen=True)
class Data:
    """The splits of a data set.

    Attributes:
        splits: train, validation, test: columns id, text, (text_pair), label.
        labels: the label names in the order of the logits.
        fingerprint: sha256 over every row's split, id and label, and the label names.
        commit: the hub commit that was resolved, None for files.
    """

    splits: dict[str, datasets.Dataset]
    labels: list[str]
    fingerprint: str
    commit: str | None = None

    def __getitem__(self, split: str) -> datasets.Dataset:
        return self.splits[split]

    @property
    def gold(self) -> datasets.Dataset:
        """The training rows that have a gold label."""
        train = self["train"]
        return train.select([row for row, label in enumerate(train["label"]) if label != IGNORE])


@dataclass
class _Raw:
    """One source as it was read: texts, seconds and labels as strings, and a name for messages."""

    name: str
    texts: list[tuple[str, ...]]
    labels: list[str | None]
    names: list[str] | None = None
    commit: str | None = None


def load(cfg: DatasetConfig) -> Data:
    """The data set that the config describes.

    Raises:
        DataError: it cannot be found or read, a column is missing, a text is empty, a label is unknown or
            missing, a split is empty, or the training rows have a single class.
    """
    sources = {"train": _read(cfg, cfg.train)}
    for split, name in (("validation", cfg.validation), ("test", cfg.test)):
        if name:
            sources[split] = _read(cfg, name)
    labels = _label_names(cfg, sources)
    rows = {split: _clean(cfg, raw, labels) for split, raw in sources.items()}
    rows = _carve(cfg, _disjoint(rows))
    if cfg.limit:
        rows["train"] = rows["train"][: cfg.limit]
    if cfg.eval_limit:
        rows |= {split: rows[split][: cfg.eval_limit] for split in ("validation", "test")}
    if cfg.labelled:
        for row in rows["train"][cfg.labelled :]:
            row["label"] = IGNORE
    for split in SPLITS:
        if not rows[split]:
            raise DataError(f"{cfg.path}: the {split} split has no rows")
    found = {row["label"] for row in rows["train"]} - {IGNORE}
    if len(found) < 2:
        raise DataError(
            f"{cfg.path}: all training rows have the label {labels[found.pop()]!r}; at least two are needed"
        )
    fingerprint = digest(
        labels, {split: [(row["id"], row["label"]) for row in rows[split]] for split in SPLITS}
    )
    splits = {split: datasets.Dataset.from_list(rows[split]) for split in SPLITS}
    return Data(splits, labels, fingerprint, sources["train"].commit)


def _read(cfg: DatasetConfig, split: str) -> _Raw:
    """One source: a hub split, or a file (`split` is then a file's name, but for the training rows)."""
    columns = [cfg.text, *([cfg.text_pair] if cfg.text_pair else []), cfg.label]
    if cfg.format == "hub":
        return _read_hub(cfg, split, columns)
    given = cfg.path if split == cfg.train else split
    path = locate_package(given) if given.startswith(PACKAGE) else Path(given).expanduser()
    if not path.is_file():
        what = "is no file" if path.exists() else "does not exist"
        raise DataError(f"the data file {given} {what} (looked for {path.absolute()})")
    if path.stat().st_size == 0:
        raise DataError(f"the data file {path} is empty")
    reader = {"csv": _read_csv, "jsonl": _read_jsonl, "parquet": _read_parquet}[cfg.format]
    try:
        table = list(reader(cfg, path, columns))
    except UnicodeError as error:
        raise DataError(
            f"{path}{_line_of(error, path, cfg.encoding)} is not {cfg.encoding} text ({error}); save it as UTF-8, or "
            "give dataset.encoding= (latin-1, cp1252, utf-16 …)"
        ) from None
    except LookupError as error:
        raise DataError(f"dataset.encoding = {cfg.encoding}: {error}") from None
    except OSError as error:
        raise DataError(f"{path} cannot be read ({error})") from None
    if not table:
        raise DataError(f"{path} has no rows")
    return _raw(path.name, table)


def _raw(
    name: str, table: list[tuple[Any, ...]], names: list[str] | None = None, commit: str | None = None
) -> _Raw:
    texts, labels = [], []
    for number, row in enumerate(table, 1):
        for value in row[:-1]:
            if not isinstance(value, str):
                raise DataError(f"{name}, row {number}: the text is {value!r}, not a string")
            if not value.strip():
                raise DataError(f"{name}, row {number}: the text is empty; remove the row, or fill it")
            if _HALF.search(value):
                raise DataError(
                    f"{name}, row {number}: the text {value[:40]!r} holds half a character (a lone surrogate)"
                )
        texts.append(row[:-1])
        labels.append(_label(row[-1], f"{name}, row {number}"))
    return _Raw(name, texts, labels, names, commit)


def _label(value: Any, where: str) -> str | None:
    """A label as a string: 1.0, which is what a column of integers with gaps becomes, is 1; None is a missing one."""
    if value is None or value != value:  # NaN
        return None
    if not isinstance(value, str | int | float):
        raise DataError(f"{where}: the label is {value!r}; expected a name or an integer")
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    return str(value).strip() or None


def _line_of(error: UnicodeError, path: Path, encoding: str) -> str:
    """`, line N` for the first byte that cannot be decoded: the error itself counts from where a block began."""
    raw = path.read_bytes()
    try:
        raw.decode(encoding)
    except UnicodeDecodeError as whole:
        number = raw.count(b"\n", 0, whole.start) + 1
        return f", line {number}"
    except UnicodeError:
        pass
    return ""


def _pick(found: list[str], columns: list[str], name: str) -> list[int]:
    for column in columns:
        if column not in found:
            raise DataError(
                f"{name} has no column {column!r}{suggest(column, found)} (columns: {', '.join(map(str, found))}); "
                "name them with dataset.text= and dataset.label="
            )
    return [found.index(column) for column in columns]


def _read_csv(cfg: DatasetConfig, path: Path, columns: list[str]) -> Iterator[tuple[Any, ...]]:
    tabs = path.suffix in (".tsv", ".tab") if cfg.delimiter is None else cfg.delimiter == "\t"
    quote = cfg.quote if cfg.quote is not None else None if tabs else '"'
    csv.field_size_limit(2**31 - 1)
    reader = csv.reader(
        _lines(cfg, path),
        delimiter=cfg.delimiter or ("\t" if tabs else ","),
        quotechar=quote,
        quoting=csv.QUOTE_MINIMAL if quote else csv.QUOTE_NONE,
        strict=True,
    )
    try:
        header = next(reader, [])
        picked = _pick(header, columns, path.name)
        for row in reader:
            if not row:
                continue
            if len(row) != len(header):
                raise DataError(
                    f"{path}, line {reader.line_num}: {len(row)} fields where the header has {len(header)} "
                    "(a truncated file, another delimiter, or a quote that does not close?)"
                )
            yield tuple(row[column] for column in picked)
    except csv.Error as error:
        raise DataError(
            f"{path}, line {reader.line_num}: {error} (a truncated file, or a stray quote?)"
        ) from None


def _lines(cfg: DatasetConfig, path: Path) -> Iterator[str]:
    """The lines of a text file, with their ends, and without the mark that Windows begins UTF-8 with."""
    with path.open(encoding="utf-8-sig" if cfg.encoding == "utf-8" else cfg.encoding, newline="") as stream:
        for number, line in enumerate(stream, 1):
            if "\0" in line:
                raise DataError(
                    f"{path}, line {number} holds NUL: is it no text, or UTF-16 (dataset.encoding=utf-16)?"
                )
            yield line


def _read_jsonl(cfg: DatasetConfig, path: Path, columns: list[str]) -> Iterator[tuple[Any, ...]]:
    for number, line in enumerate(_lines(cfg, path), 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except json.JSONDecodeError as error:
            raise DataError(f"{path}, line {number} is not JSON ({error}); is the file truncated?") from None
        if not isinstance(row, dict):
            raise DataError(f"{path}, line {number}: expected an object, got {type(row).__name__}")
        _pick(list(row), columns, f"{path}, line {number}")
        yield tuple(row[column] for column in columns)


def _read_parquet(cfg: DatasetConfig, path: Path, columns: list[str]) -> Iterator[tuple[Any, ...]]:
    import pyarrow
    import pyarrow.parquet

    try:
        _pick(pyarrow.parquet.read_schema(path).names, columns, path.name)
        table = pyarrow.parquet.read_table(path, columns=columns)
    except (pyarrow.ArrowException, OSError) as error:
        raise DataError(f"{path} is not a whole parquet file ({error})") from None
    yield from zip(*(table[column].to_pylist() for column in columns), strict=True)


def _read_hub(cfg: DatasetConfig, split: str, columns: list[str]) -> _Raw:
    folder, commit = snapshot(cfg.path, cfg.revision, kind="dataset")
    logging.getLogger("datasets").setLevel(logging.CRITICAL)  # what it would log is raised as well
    try:
        table = datasets.load_dataset(str(folder), cfg.name, split=split)
    except (ValueError, FileNotFoundError, datasets.exceptions.DatasetGenerationError) as error:
        raise DataError(
            f"the data set {cfg.path} cannot be read: {str(error.__cause__ or error).strip()} (dataset.name=, "
            "dataset.train=, dataset.validation= and dataset.test= choose its parts)"
        ) from None
    _pick(table.column_names, columns, f"{cfg.path} ({split})")
    feature = table.features[cfg.label]
    names = feature.names if isinstance(feature, datasets.ClassLabel) else None
    labels = table[cfg.label]
    if names is not None:
        labels = [names[label] if label is not None and label >= 0 else None for label in labels]
    rows = list(zip(*(table[column] for column in columns[:-1]), labels, strict=True))
    return _raw(f"{cfg.path} ({split})", rows, names, commit)


def _label_names(cfg: DatasetConfig, sources: dict[str, _Raw]) -> list[str]:
    if cfg.labels:
        return cfg.labels
    if names := sources["train"].names:
        return names
    found = {label for raw in sources.values() for label in raw.labels if label is not None}
    return sorted(
        found, key=lambda label: (0, int(label), label) if _INTEGER.fullmatch(label) else (1, 0, label)
    )


def _clean(cfg: DatasetConfig, raw: _Raw, labels: list[str]) -> list[dict[str, Any]]:
    """Tidied rows without duplicates, in the order of their ids (which is a fixed shuffle)."""
    index = {name: number for number, name in enumerate(labels)}
    if not any(_INTEGER.fullmatch(name) for name in labels):  # then integers are places among the names
        index |= {str(number): number for number in range(len(labels))}
    patterns = [(re.compile(pattern), put) for pattern, put in cfg.replace.items()]
    rows: dict[str, dict[str, Any]] = {}
    dropped: Counter[str] = Counter()
    for number, (texts, label) in enumerate(zip(raw.texts, raw.labels, strict=True), 1):
        if label is None:
            raise DataError(f"{raw.name}, row {number}: the label is missing")
        if label not in index:
            raise DataError(
                f"{raw.name}, row {number}: the label {label!r} is not among {', '.join(labels)}"
                f"{suggest(label, labels)}"
            )
        tidy = []
        for text in texts:
            for pattern, put in patterns:
                text = pattern.sub(put, text)
            tidy.append(" ".join(text.split()))
        if not all(tidy):
            dropped["empty after dataset.replace"] += 1
            continue
        key = digest([text.casefold() for text in tidy])[:32]
        if key in rows:
            same = rows[key]["label"] == index[label]
            dropped["duplicates" if same else "duplicates with another label"] += 1
            continue
        pair = {"text_pair": tidy[1]} if len(tidy) > 1 else {}
        rows[key] = {"id": key, "text": tidy[0], **pair, "label": index[label]}
    for why, count in dropped.items():
        logger.info("%s: %d rows left out (%s)", raw.name, count, why)
    return [rows[key] for key in sorted(rows)]


def _disjoint(rows: dict[str, list[dict[str, Any]]]) -> dict[str, list[dict[str, Any]]]:
    """Rows of test leave validation and train, rows of validation leave train."""
    taken: set[str] = set()
    for split in reversed(SPLITS):
        if split not in rows:
            continue
        kept = [row for row in rows[split] if row["id"] not in taken]
        if len(kept) < len(rows[split]):
            logger.info(
                "%d rows of %s also stand in a later split and were left out",
                len(rows[split]) - len(kept),
                split,
            )
        rows[split] = kept
        taken |= {row["id"] for row in kept}
    return rows


def _carve(cfg: DatasetConfig, rows: dict[str, list[dict[str, Any]]]) -> dict[str, list[dict[str, Any]]]:
    """Take test and validation out of the training rows where they have no source of their own."""
    total = len(rows["train"])
    for split, size in (("test", cfg.test_size), ("validation", cfg.validation_size)):
        if split in rows:
            continue
        count = int(size) if size >= 1 else max(1, round(size * total))
        if count >= len(rows["train"]):
            raise DataError(
                f"{cfg.path}: {count} rows for {split} leave none to train on ({len(rows['train'])} are there); "
                f"give a smaller dataset.{split}_size"
            )
        rows[split], rows["train"] = rows["train"][:count], rows["train"][count:]
    return rows


def require_batch(rows: int, batch_size: int, what: str, key: str) -> None:
    """Refuse fewer rows than one batch.

    Raises:
        ConfigError
    """
    if rows < batch_size:
        raise ConfigError(
            f"{what}: {rows} rows are fewer than one batch ({key} = {batch_size}); lower it, or add data"
        )
