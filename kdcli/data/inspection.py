"""Examines a data file: how it is read, which columns it has, and which tasks they fit."""

from __future__ import annotations

import contextlib
import glob
import logging
import os
import re
import shlex
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from kdcli.config.check import check_values
from kdcli.config.dataset import Dataset as DatasetConfig
from kdcli.config.tasks import packaged_specs
from kdcli.data.delimited import looks_like_row
from kdcli.data.readers import read_file, read_parallel, require_data_file
from kdcli.data.reading import Reading, decide
from kdcli.data.sources import (
    SUFFIXES_OF_DATA,
    columns_of_folders,
    data_files,
    data_suffix,
    local_splits,
    names_splits,
    normalized_split,
    parallel_files,
)
from kdcli.data.streams import HEAD, DataFile
from kdcli.errors import DataError, listed, shown
from kdcli.files import user_path
from kdcli.hub import data_path
from kdcli.tasks import row_schema_of
from kdcli.tasks.columns import LOOKED_AT, Column, Fit
from kdcli.tasks.rows import SPLIT_COLUMNS, RawSplit, Row, RowSchema, labels_of, row_hash

SAMPLE = 20_000
"""The maximum number of rows of a file that are examined."""
CHOSEN_BY = ("task", "text", "label", "words", "tags", "prompt", "completion", "messages", "source", "target")
"""The keys of `dataset` that choose a task, or a column of it."""
READING = ("format", "encoding", "delimiter", "quote", "escape", "columns", "field", "bad_rows")
"""The keys of `dataset` that say how a file is read."""
MOST_EXCEPTIONS = 0.05
"""The maximum share of rows that are in none of the classes of one-hot columns, or in several."""
TABLES = ("auto", "csv", "json", "jsonl", "parquet", "arrow")
"""The formats with columns that are not known before a file is read."""
_ENDING = re.compile(r"\.[a-z]{2,3}")


class AllColumns(RowSchema):
    """Rows with all columns of a file as they are, without a task: a row is one mapping."""

    keys = "dataset.columns="

    def __init__(self, cfg: DatasetConfig):
        super().__init__(cfg)
        self.columns: list[str] = []

    def column_paths(self, columns: list[str], name: str, nested: bool = False) -> list[list[str]]:
        """Return the paths to all columns that have a name of their own."""
        counts = Counter(columns)
        self.names = [column for column in columns if column and counts[column] == 1] or columns[:1]
        return [[column] for column in self.names]

    def check(self, values: tuple[Any, ...], where: str) -> tuple[Any, ...]:
        """Return the row as a mapping. A reader looks up the columns of a row right before its values."""
        return (dict(zip(self.names, values, strict=True)),)

    def row(self, values: tuple[Any, ...], where: str) -> Row | None:
        """Return the mapping with an id."""
        return {"id": row_hash(list(values)), **values[0]}

    def group(self, row: Row) -> str:
        """Return each row alone."""
        return str(row["id"])


@dataclass(frozen=True)
class Inspection:
    """What a file holds.

    Attributes:
        keys: the keys of `dataset` that it needs, with their values; `path` is the first.
        reading: how it is read.
        unread: the names of columns that are not read.
        rows: the rows that were examined.
        is_whole: whether these are all rows.
        labels: the rows of each label among them; empty for language models.
        length: the characters of a row that 95 % of the rows do not exceed.
        problem: why rows are dropped (bad_rows); empty: none is.
    """

    task: str
    keys: Mapping[str, Any]
    reading: Reading
    unread: Sequence[str]
    rows: int
    is_whole: bool
    labels: Mapping[str, int] = field(default_factory=dict)
    length: int = 0
    problem: str = ""


def inspect(given: str, keys: Mapping[str, Any]) -> Inspection:
    """Examine a file, or the files of the training split that a folder or a pattern means.

    Args:
        given: the path as it is written into a config.
        keys: keys of `dataset` that the user gave, without `path`.

    Raises:
        DataError: it cannot be read, no task fits it, or several do.
        ConfigError: a given key is wrong.
    """
    path = user_path(given)
    if (pair := _parallel(path)) is not None and not keys:
        return _verified([path], {"path": str(path.with_suffix("")), "format": "parallel"} | pair, [], None)
    if path.is_dir() and (pair_file := _parallel_below(path)) is not None:
        return inspect(str(Path(given) / pair_file.name), keys)
    paths = _training_files(given, path, keys)
    path = paths[0]
    require_data_file(path, given)
    base = {"path": given, **_of_name(given, path, keys), **keys}
    if base.get("format", "auto") not in TABLES:
        return _verified(paths, base, [], None)
    columns, reading, named = _read_columns(path, given, keys)
    if reading is None:
        return _verified(paths, base | {"format": "txt", "label": None}, [], None)
    chosen = {**_chosen(given, columns, keys), **_split_key(columns, keys)}
    return _verified(paths, {**base, **named, **chosen}, [column.name for column in columns], reading)


def _training_files(given: str, path: Path, keys: Mapping[str, Any]) -> list[Path]:
    """Return the files of the training split: one, or those of a folder or of a pattern.

    Raises:
        DataError: there is none, or the names of folders give columns.
    """
    is_pattern = glob.has_magic(given) and not os.path.lexists(path)
    if not is_pattern:
        path = data_path(given)
        if not path.is_dir():
            return [path]
    files = local_splits(_config({"path": given, **keys}), given).get("train")
    if not files:
        raise DataError(
            f"{given} has no files of a training split; name the file, or give the files of train as a pattern: kdcli init 'FOLDER/*.csv'"
        )
    if folders := columns_of_folders(given, files[0]):
        raise DataError(
            f"{given}: the names of its folders give {listed(folders)}, and columns in names of folders are not inspected; name the columns of a run: kdcli "
            f"distill dataset=csv dataset.path={given} dataset.text=text dataset.label={next(iter(folders))}"
        )
    return files


def _split_key(columns: Sequence[Column], keys: Mapping[str, Any]) -> dict[str, str]:
    """Return the key that names a column with the splits of the rows; empty: there is none."""
    usual = (column for column in columns if column.name.lower() in SPLIT_COLUMNS)
    named = (column.name for column in usual if names_splits({*map(normalized_split, column.values)}))
    name = None if "split" in keys else next(named, None)
    return {} if name is None else {"split": name}


def _parallel(path: Path) -> dict[str, str] | None:
    """Return the languages of two text files whose names differ in them alone, as train.en and train.de; None: it is none of two."""
    if not path.is_file() or not _ENDING.fullmatch(path.suffix) or path.suffix in SUFFIXES_OF_DATA:
        return None
    others = [
        other
        for other in path.parent.glob(f"{path.stem}.*")
        if other != path and _ENDING.fullmatch(other.suffix) and other.suffix not in SUFFIXES_OF_DATA
    ]
    return {"source": path.suffix[1:], "target": others[0].suffix[1:]} if len(others) == 1 else None


def _parallel_below(path: Path) -> Path | None:
    """Return the first of two parallel text files that a folder holds; None: it holds something else."""
    files = [file for file in data_files(path) if file.is_file()]
    return files[0] if len(files) == 2 and _parallel(files[0]) is not None else None


def _of_name(given: str, path: Path, keys: Mapping[str, Any]) -> dict[str, Any]:
    """Return the format of a file by its name or its first lines, before its columns are looked at.

    Raises:
        DataError: it is a catalogue of gettext, of which a folder is read.
    """
    if path.suffix.lower() in (".po", ".mo"):
        raise DataError(
            f"{given} is a catalogue of translations; name the folder of all locales: kdcli distill dataset=gettext dataset.path=FOLDER "
            "dataset.target_language=de"
        )
    cfg = _config({"path": str(path), **keys})
    if cfg.format != "auto":
        return {"format": cfg.format}
    with path.open("rb") as stream:
        head = stream.read(HEAD)
    if head.startswith(b"__label__"):
        return {"format": "fasttext"}
    return {"format": "conll"} if _is_conll(head.decode("utf-8", "ignore")) else {}


def _is_conll(text: str) -> bool:
    """Return whether lines of words with tags stand between blank lines."""
    lines = text.splitlines()[:-1]
    filled = [line.split() for line in lines if line.strip() and not line.startswith("#")]
    blank = sum(not line.strip() for line in lines)
    widths = {len(words) for words in filled}
    if not filled or not blank or len(widths) != 1 or min(widths) < 2:
        return False
    tags = {words[-1] for words in filled}
    return any(re.fullmatch(r"O|[BIESLUM][-_].+", tag) for tag in tags)


def _read_columns(
    path: Path, given: str, keys: Mapping[str, Any]
) -> tuple[list[Column], Reading | None, dict[str, Any]]:
    """Return the columns of a table, how it is read, and keys of `dataset` that it needs. No reading: it is a text without columns."""
    reads = {key: value for key, value in keys.items() if key in READING}
    is_text = data_suffix(path.name) in ("", ".txt", ".text")
    reads = {"bad_rows": "error" if is_text else "drop", **reads}
    schema = AllColumns(_config({"path": given, **reads}))

    def without_header(names: Sequence[str]) -> tuple[list[Column], Reading | None, dict[str, Any]]:
        named = {"columns": [f"column{number}" for number in range(1, len(names) + 1)]}
        return *_read_columns(path, given, {**keys, **named})[:2], named

    try:
        with _without_messages():
            split, reading = read_file(schema, path, given, most=SAMPLE)
    except DataError:
        if is_text:
            return [], None, {}
        dialect = None if "columns" in keys else decide(schema, DataFile.of(path), ()).dialect
        if dialect is None or not looks_like_row(dialect.names):
            raise
        return without_header(dialect.names)
    rows = [values[0] for values in split.rows]
    names = list(dict.fromkeys(name for row in rows[:1000] for name in row))
    is_tabbed = reading.dialect is not None and reading.dialect.delimiter == "\t"
    if is_text and (len(names) == 1 or (looks_like_row(names) and not is_tabbed)):
        return [], None, {}
    if reading.format in ("json", "jsonl") and "field" not in keys and not _is_array(path):
        for name in (name for name in names if all(_holds_rows(row.get(name)) for row in rows)):
            with contextlib.suppress(DataError):
                columns, inner, _ = _read_columns(path, given, {**keys, "field": name})
                if name not in [column.name for column in columns]:
                    return columns, inner, {"field": name}
    body = [[row.get(name) for name in names] for row in rows[:1000]]
    is_named = bool({str(value) for value in keys.values()} & {*names})
    is_header = reading.format == "csv" or (reading.format == "json" and _is_array(path, first=b"["))
    if is_header and "columns" not in keys and not is_named and looks_like_row(names, body):
        return without_header(names)
    present = {name: [row[name] for row in rows if row.get(name) not in (None, "")] for name in names}
    columns = [Column(name, values, len(values) / len(rows)) for name, values in present.items()]
    return columns, reading, {}


@contextlib.contextmanager
def _without_messages() -> Iterator[None]:
    """Hold back what reading a file says: the file is read again with the columns of its task, which says it."""
    logger = logging.getLogger("kdcli.data")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)


def _is_array(path: Path, first: bytes = b"") -> bool:
    """Return whether a document of JSON is an array, whose items are the rows.

    Args:
        first: the beginning of its first item.
    """
    blank = b"\xef\xbb\xbf \t\r\n"
    head = DataFile.of(path).head().lstrip(blank)
    return head.startswith(b"[") and head[1:].lstrip(blank).startswith(first)


def _leaves(columns: Sequence[Column]) -> list[Column]:
    """Return the values in columns of mappings as columns, called COLUMN.KEY."""
    leaves = []
    for column in columns:
        if column.values and all(isinstance(value, dict) for value in column.values):
            for key in dict.fromkeys(key for value in column.values[:LOOKED_AT] for key in value):
                values = [value[key] for value in column.values if value.get(key) not in (None, "")]
                filled = column.filled * len(values) / len(column.values)
                leaves.append(Column(f"{column.name}.{key}", values, filled))
    return leaves


def _holds_rows(value: Any) -> bool:
    """Return whether a value is rows, or one of them where a document of rows was taken for one of columns."""
    return isinstance(value, dict) or (
        isinstance(value, list) and any(isinstance(row, dict) for row in value)
    )


def fitting(columns: Sequence[Column], given: Mapping[str, Any]) -> list[tuple[str, Fit]]:
    """Return the surest ways in which a task could read columns, each with the task. With keys that the user gave others do not fit."""
    ways = [(name, fit) for name, spec in packaged_specs() for fit in spec.fits(columns, given)]
    agreeing = [
        (name, fit)
        for name, fit in ways
        if given.get("task", name) == name
        and all(fit.keys.get(key) == given[key] for key in CHOSEN_BY[1:] if key in given)
    ]
    most = max((fit.sureness for _, fit in agreeing), default=0)
    sure = {(name, *fit.keys.values()): (name, fit) for name, fit in agreeing if fit.sureness == most}
    return list(sure.values())


def _chosen(given: str, columns: Sequence[Column], keys: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return the keys of the one way in which a task could read the columns.

    Raises:
        DataError: there is none, or there are several.
    """
    fits = fitting(columns, keys) or fitting([*columns, *_leaves(columns)], keys)
    if len(fits) == 1:
        return fits[0][1].keys
    names = listed(column.name for column in columns)
    if not fits and "text" in keys and "label" not in keys and "label" not in [each.name for each in columns]:
        raise DataError(
            f"{given}: it cannot be told which column has the labels ({names}); name it with dataset.label=, or give dataset.label=null: texts without "
            "labels are for a language model"
        )
    if not fits and {*keys} & {*CHOSEN_BY[1:]}:
        return {}  # the given ones choose the task
    if not fits:
        raise DataError(
            f"{given}: it cannot be told which task its columns are for ({names}); name them: dataset.text= and dataset.label= for classes of texts, "
            "dataset.words= and dataset.tags= for tagged words, dataset.messages=, or dataset.prompt= and dataset.completion=, for a language model, "
            "dataset.source= and dataset.target= for translation, dataset.text= and dataset.label=null for texts without labels"
        )
    _require_no_flags(given, [fit.keys["label"] for _, fit in fits if "label" in fit.keys], columns)
    words = [shlex.join(f"dataset.{key}={value}" for key, value in fit.keys.items()) for _, fit in fits]
    ways = " or ".join(f"{name} ({own})" for (name, _), own in zip(fits, words, strict=True))
    others = [
        column
        for column in columns
        if column.name not in {name for _, fit in fits for name in fit.keys.values()}
    ]
    scores = "".join(
        f"; the column {shown(each.name)} looks like scores, and kdcli trains no regression"
        for each in others
        if each.looks_like_scores
    )
    raise DataError(
        f"{given} fits {ways}{scores}; choose by a key, as in: kdcli init {shlex.quote(given)} {words[0]}"
    )


def _require_no_flags(given: str, names: Sequence[str | None], columns: Sequence[Column]) -> None:
    """Refuse columns of 0 and 1 that are one column of classes, or several labels a row.

    Raises:
        DataError
    """
    values = {"0", "1", "0.0", "1.0"}
    flags = [each for each in columns if each.name in names and {*map(str, each.values)} <= values]
    if len(flags) < 2 or any(each.filled < 1 for each in flags):
        return
    sums = [sum(map(float, row)) for row in zip(*(each.values for each in flags), strict=True)]
    own = listed(each.name for each in flags)
    if sum(total != 1 for total in sums) <= MOST_EXCEPTIONS * len(sums):
        quoted = ", ".join(f"'{each.name}'" for each in flags)
        raise DataError(
            f"{given}: the columns {own} have a 1 for the class of a row (one-hot); write the class into one column, as by pandas: "
            f"rows['label'] = rows[[{quoted}]].idxmax(axis=1), or name one of them: dataset.label={flags[0].name}"
        )
    raise DataError(
        f"{given}: the columns {own} hold 0 or 1, and a row has several of them or none: these are several labels a row, and kdcli trains one; name "
        f"one column: dataset.label={flags[0].name}"
    )


def _config(tree: dict[str, Any]) -> DatasetConfig:
    config: DatasetConfig = check_values(DatasetConfig, tree, lambda problem: f"dataset.{problem}")
    return config


def _verified(
    paths: Sequence[Path], keys: Mapping[str, Any], columns: Sequence[str], reading: Reading | None
) -> Inspection:
    """Return what the files hold, read by the task's own row schema.

    Raises:
        DataError: they hold nothing that the task can learn.
    """
    given, problem = str(keys["path"]), ""
    try:
        schema, splits, reading = _read(paths, keys)
    except DataError as error:
        if "bad_rows=drop" not in error.message or "bad_rows" in keys:
            raise
        problem, keys = error.message, {**keys, "bad_rows": "drop"}
        schema, splits, reading = _read(paths, keys)
    schema.declare({"train": splits})
    read = [values for split in splits for values in split.rows]
    rows = [row for row in (schema.row(values, given) for values in read) if row is not None]
    if not rows:
        raise DataError(f"{given} has no rows with a text; give another file")
    labels: dict[str, int] = {}
    if schema.labels:
        counted = Counter(label for row in rows for label in labels_of(row["label"]))
        labels = {name: counted[index] for index, name in enumerate(schema.labels)}
    unread = [column for column in columns if column not in {*schema.columns_read, keys.get("split")}]
    lengths = sorted(sum(map(len, _texts(row))) for row in rows)
    return Inspection(
        schema.cfg.kind, keys, reading, unread, len(read), len(read) < SAMPLE, labels,
        lengths[int(0.95 * (len(lengths) - 1))], problem,
    )  # fmt: skip


def _read(paths: Sequence[Path], keys: Mapping[str, Any]) -> tuple[RowSchema, list[RawSplit], Reading]:
    """Return the first rows of files with the schema that read them, and how the first file is read."""
    given, cfg = str(keys["path"]), _config(dict(keys))
    schema = row_schema_of(cfg)
    if cfg.format == "parallel":
        split, readings = read_parallel(schema, *parallel_files(cfg, given))
        return schema, [split], readings[0]
    splits: list[RawSplit] = []
    readings = []
    for path in paths:
        remaining = SAMPLE - sum(len(split.rows) for split in splits)
        if remaining > 0:
            split, reading = read_file(schema, path, given, most=remaining)
            splits.append(split)
            readings.append(reading)
    return schema, splits, readings[0]


def _texts(row: Row) -> Iterator[str]:
    """Yield what a model reads and writes of a row."""
    for name, value in row.items():
        if name == "words":
            yield " ".join(value)
        elif name == "messages":
            yield from (turn["content"] for turn in value)
        elif isinstance(value, str) and name != "id":
            yield value
