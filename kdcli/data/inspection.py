"""Examines a data file: how it is read, which columns it has, and which tasks they fit."""

from __future__ import annotations

import contextlib
import glob
import json
import os
import re
import shlex
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from kdcli.config.check import check_values
from kdcli.config.dataset import Dataset as DatasetConfig
from kdcli.config.tasks import packaged_specs
from kdcli.data.delimited import DELIMITERS
from kdcli.data.headers import looks_like_row
from kdcli.data.json_files import SeveralKeysError
from kdcli.data.raw_rows import UNREADABLE
from kdcli.data.readers import (
    KEYS_OF_LINES,
    TEXT_SUFFIXES,
    is_tagged,
    read_class_folders,
    read_file,
    read_parallel,
    require_data_file,
    without_messages,
)
from kdcli.data.reading import Reading, decide, start_of
from kdcli.data.sources import (
    SUFFIXES_OF_DATA,
    class_files,
    columns_of_folders,
    data_files,
    data_suffix,
    is_parallel,
    local_splits,
    names_splits,
    normalized_split,
    parallel_files,
)
from kdcli.data.streams import DataFile
from kdcli.errors import DataError, listed, shown
from kdcli.files import user_path
from kdcli.hub import data_path
from kdcli.tasks import row_schema_of
from kdcli.tasks.columns import LOOKED_AT, Column, Fit, is_language
from kdcli.tasks.rows import SPLIT_COLUMNS, RawSplit, Row, RowSchema, labels_of, row_hash

SAMPLE = 20_000
"""The maximum number of rows of a file that are examined."""
CHOSEN_BY = (
    "task",
    "text",
    "text_pair",
    "label",
    "words",
    "tags",
    "prompt",
    "completion",
    "messages",
    "source",
    "target",
)
"""The keys of `dataset` that choose a task, or a column of it."""
TABLE_KEYS = ("delimiter", "quote", "escape", "columns", "field")
"""The keys of `dataset` that a text without columns does not have."""
READING = ("format", "encoding", "delimiter", "quote", "escape", "columns", "field", "bad_rows")
"""The keys of `dataset` that say how a file is read."""
MOST_DROPPED = 0.2
"""The share of rows that cannot be read above which a file is refused: its columns are not what they seem."""
ALIKE = 0.8
"""The share of lines with a sign equally often from which on it divides their columns."""
MOST_EXCEPTIONS = 0.05
"""The maximum share of rows that are in none of the classes of one-hot columns, or in several."""
TABLES = ("auto", "csv", "json", "jsonl", "parquet", "arrow")
"""The formats with columns that are not known before a file is read."""
SIDES = (("source", "target"), ("src", "tgt"), ("src", "trg"))
"""The words by which the names of parallel text files differ, if these are no languages."""
CLASSES = (
    {"neg", "pos"}, {"negative", "positive"}, {"bad", "good"}, {"ham", "spam"}, {"fake", "real"}, {"fake", "true"}, {"false", "true"},
)  # fmt: skip
"""The words by which the names of two text files differ that hold a class each."""


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
        if not self.names:
            raise DataError(
                f"{name}: no column was found; give a file of text with columns, or of objects with keys"
            )
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
        texts: those among them that hold texts.
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
    texts: Sequence[str] = ()


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
    if keys.get("source") and keys.get("target") and is_parallel(_config({"path": given, **keys}), given):
        return _verified([path], {"path": given, "format": "parallel", **keys}, [], None)
    if not keys and os.path.lexists(path) and (pair := _parallel(path)):
        with contextlib.nullcontext() if pair.is_sure else contextlib.suppress(DataError):
            own = {
                "path": pair.path_as(given),
                "format": "parallel",
                "source": pair.source,
                "target": pair.target,
            }
            return _verified([path], own, [], None)
    paths = _training_files(given, path, keys)
    if class_files(_config({"path": given, **keys}), path, paths):
        return _verified(paths[:: max(1, len(paths) // SAMPLE)], {"path": given, **keys}, [], None)
    path = paths[0]
    require_data_file(path, given)
    base = {"path": given, **_of_name(given, path, keys), **keys}
    if base.get("format", "auto") not in TABLES:
        return _verified(paths, base, [], None)
    columns, reading, named = _read_columns(path, given, keys)
    if reading is None:
        return _verified(paths, base | {"format": "txt", "label": None}, [], None)
    chosen = {**_chosen(given, columns, keys), **_split_key(columns, keys)}
    header = Counter(reading.dialect.names if reading.dialect else ())
    repeated = [name for name, count in header.items() if name and count > 1]
    if repeated and chosen.get("label", "") is None and "label" not in keys:
        raise DataError(
            f"{given} has {header[repeated[0]]} columns {shown(repeated[0])}, of which none can be read; rename or remove all but one, or give "
            "dataset.label=null for texts without labels"
        )
    inspection = _verified(paths, {**base, **named, **chosen}, [column.name for column in columns], reading)
    texts = [column.name for column in columns if column.is_text and not column.looks_like_labels]
    return replace(inspection, texts=[name for name in texts if name in inspection.unread])


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


@dataclass(frozen=True)
class Pair:
    """Two text files whose names differ in one word, that of a language or of a side.

    Attributes:
        file: that of the sources.
        source, target: the words.
    """

    file: Path
    source: str
    target: str

    @property
    def is_sure(self) -> bool:
        """Whether the files are called after nothing else, as train.en and train.de are."""
        return self.file.suffix == f".{self.source}"

    def path_as(self, given: str) -> str:
        """Return the path of both files, from the given one of a file or of their folder."""
        path = Path(given, self.file.name) if user_path(given).is_dir() else Path(given)
        return str(path.with_suffix("") if self.is_sure else path)


def _parallel(path: Path) -> Pair | None:
    """Return the parallel text files of which a path is the first one, or which its folder holds alone; None: it is something else."""
    if not path.is_file() and not path.is_dir():
        return None
    siblings: list[Path] = []
    with contextlib.suppress(PermissionError):
        siblings += (file for file in data_files(path if path.is_dir() else path.parent) if file.is_file())
    if path.is_dir():
        return _pair(*siblings) if len(siblings) == 2 else None
    pairs = [pair for other in siblings if other != path and (pair := _pair(path, other))]
    return pairs[0] if len(pairs) == 1 else None


def _pair(file: Path, other: Path) -> Pair | None:
    """Return two files whose names differ in the word of a language or of a side, which may be the suffix of texts that have no other one.

    Raises:
        DataError: they differ in the word of a class.
    """
    if any(data_suffix(each.name) in {*SUFFIXES_OF_DATA} - {".txt"} for each in (file, other)):
        return None
    words = [re.split(r"[\W_]+", each.name) for each in (file, other)]
    if len({len(own) for own in words}) > 1:
        return None
    different = [pair for pair in zip(*words, strict=True) if pair[0] != pair[1]]
    if len(different) != 1:
        return None
    if {*different[0]} in CLASSES:
        raise DataError(
            f"{file.name} and {other.name} in {file.parent} look like a class each ({listed(different[0])}); write their texts and these names as rows of a "
            "csv or jsonl file, and give that as dataset.path"
        )
    is_translation = different[0] in SIDES or all(map(is_language, different[0]))
    return Pair(file, *different[0]) if is_translation else None


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
    reads = {key: value for key, value in keys.items() if key in (*READING, *KEYS_OF_LINES)}
    cfg = _config({"path": str(path), **reads})
    if cfg.format != "auto":
        return {"format": cfg.format}
    file = DataFile.of(path)
    if start_of(file.head()).startswith("__label__"):
        return {"format": "fasttext"}
    return {"format": "conll"} if is_tagged(cfg, file) else {}


def _read_columns(
    path: Path, given: str, keys: Mapping[str, Any]
) -> tuple[list[Column], Reading | None, dict[str, Any]]:
    """Return the columns of a table, how it is read, and keys of `dataset` that it needs. No reading: it is a text without columns."""
    reads = {key: value for key, value in keys.items() if key in READING}
    is_text = data_suffix(path.name) in TEXT_SUFFIXES
    reads = {"bad_rows": "error" if is_text else "drop", **reads}
    schema = AllColumns(_config({"path": given, **reads}))

    try:
        with without_messages():
            split, reading = read_file(schema, path, given, most=SAMPLE)
    except SeveralKeysError as error:
        return _under_a_key(path, given, keys, error)
    except DataError:
        if is_text and not {*keys} & {*TABLE_KEYS}:
            return [], None, {}
        dialect = None if "columns" in keys else decide(schema, DataFile.of(path), ()).dialect
        if dialect is None or not dialect.names or not looks_like_row(dialect.names):
            raise
        return _without_header(path, given, keys, len(dialect.names))
    rows = [values[0] for values in split.rows]
    names = list(dict.fromkeys(name for row in rows[:1000] for name in row))
    header = names if reading.dialect is None else list(reading.dialect.names)
    is_tabbed = reading.dialect is not None and reading.dialect.delimiter == "\t"
    body = [[row.get(name) for name in header] for row in rows[:1000]]
    is_single = len(header) == 1
    if is_text and not {*keys} & {*TABLE_KEYS} and (is_single or (looks_like_row(header) and not is_tabbed)):
        return [], None, {}
    is_array = reading.format == "json" and _is_array(path, first=b"[")
    is_named = bool({str(value) for value in keys.values()} & {*names})
    may_lack_header = (reading.format == "csv" or is_array) and "columns" not in keys and not is_named
    if may_lack_header and looks_like_row(header, body):
        return _without_header(path, given, keys, _width_of_array(path) if is_array else len(header))
    if reading.dialect and is_single:
        _require_one_column(given, header[0], [str(row[names[0]]) for row in rows])
    present = {name: [row[name] for row in rows if row.get(name) not in (None, "")] for name in names}
    columns = [Column(name, values, len(values) / len(rows)) for name, values in present.items()]
    return columns, reading, {}


def _without_header(
    path: Path, given: str, keys: Mapping[str, Any], width: int
) -> tuple[list[Column], Reading | None, dict[str, Any]]:
    """Return what `_read_columns` does, with names for the columns of a file without a header."""
    named = {"columns": [f"column{number}" for number in range(1, width + 1)]}
    return *_read_columns(path, given, {**keys, **named})[:2], named


def _under_a_key(
    path: Path, given: str, keys: Mapping[str, Any], error: SeveralKeysError
) -> tuple[list[Column], Reading | None, dict[str, Any]]:
    """Return what `_read_columns` does for the one key of a document whose rows fit a task.

    Raises:
        SeveralKeysError: the rows of several keys do, or of none.
    """
    fitted = []
    for name in error.fields:
        with contextlib.suppress(DataError):
            columns, reading, _ = _read_columns(path, given, {**keys, "field": name})
            if (
                len(error.fields) == 1
                or fitting(columns, keys)
                or fitting([*columns, *_leaves(columns)], keys)
            ):
                fitted.append((columns, reading, {"field": name}))
    if len(fitted) != 1:
        raise error
    return fitted[0]


def _require_one_column(given: str, name: str, rows: Sequence[str]) -> None:
    """Refuse lines that the same sign divides into equally many fields, and that are read as one column all the same.

    Raises:
        DataError
    """
    for sign in ("::", "||", *DELIMITERS):
        counts = Counter(row.count(sign) for row in rows)
        count, most = counts.most_common(1)[0]
        if count and most >= ALIKE * len(rows):
            above = (
                ""
                if sign in name
                else ", and its first line is no header of such fields: remove the lines above the header, or name the columns with dataset.columns="
            )
            raise DataError(
                f"{given}: its lines are read as one column {shown(name)}, but {shown(sign)} divides them into {count + 1} fields{above}; write tabs between the "
                "fields, or give dataset.delimiter with the character that stands there"
            )


def _is_array(path: Path, first: bytes = b"") -> bool:
    """Return whether a document of JSON is an array, whose items are the rows.

    Args:
        first: the beginning of its first item.
    """
    blank = b"\xef\xbb\xbf \t\r\n"
    head = DataFile.of(path).head().lstrip(blank)
    return head.startswith(b"[") and head[1:].lstrip(blank).startswith(first)


def _width_of_array(path: Path) -> int:
    """Return the number of items of the first array in an array of arrays."""
    text = start_of(DataFile.of(path).head())
    return len(json.JSONDecoder().raw_decode(text, text.index("[", 1))[0])


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
    _require_no_flags(
        given, [name for _, fit in fits if isinstance(name := fit.keys.get("label"), str)], columns
    )
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


def _require_no_flags(given: str, names: Sequence[str], columns: Sequence[Column]) -> None:
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
    config: DatasetConfig = check_values(
        DatasetConfig, tree, lambda problem: "dataset." + problem.removeprefix("the config: ")
    )
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
        dropped = sum(split.dropped[UNREADABLE] for split in splits)
        total = dropped + sum(len(split.rows) for split in splits)
        if dropped > MOST_DROPPED * total:
            raise DataError(
                f"{problem}; {dropped:,} of {total:,} rows cannot be read: name other columns, or give dataset.bad_rows=drop"
            ) from None
    schema.declare({"train": splits})
    read = [values for split in splits for values in split.rows]
    rows = [row for row in (schema.row(values, given) for values in read) if row is not None]
    if not rows:
        raise DataError(f"{given} has no rows with a text; give another file")
    labels: dict[str, int] = {}
    if schema.labels:
        counted = Counter(label for row in rows for label in labels_of(row["label"]))
        labels = {name: counted[index] for index, name in enumerate(schema.labels)}
    read_columns = {*schema.columns_read, *schema.columns, keys.get("split")}
    unread = [column for column in columns if column not in read_columns]
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
    if class_files(cfg, user_path(given), paths):
        split, readings = read_class_folders(schema, paths, given)
        return schema, [split], replace(readings[0], guess=None)  # other files may have other encodings
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
