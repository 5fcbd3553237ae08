"""Defines the row schema of a task: which columns a row has, when two rows are the same, and how rows are grouped."""

from __future__ import annotations

import copy
import hashlib
import logging
import re
from abc import ABC, abstractmethod
from array import array
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Self

from kdcli.config.dataset import Dataset as DatasetConfig
from kdcli.errors import DataError, listed, shown, suggest
from kdcli.files import as_json
from kdcli.tasks.labels import INTEGER, alike, require_label_name
from kdcli.tasks.pairs import MAPPING, keys_of_pairs

logger = logging.getLogger(__name__)
IGNORE = -100
"""The label of a position that has no gold label (`ignore_index`)."""
MANY = 0.1
"""The share of the rows above which dropping or truncating them is a warning."""
_WORDS, _TAGS = ("tokens", "words"), ("ner_tags", "tags", "ner", "spans", "entities")
"""The usual names of the columns of words with tags, for messages."""
_TEXT_KEYS = ("content", "text", "value")
"""The usual keys of the text in a mapping."""
_HALF = re.compile(r"[\ud800-\udfff]")
SPLIT_COLUMNS = (
    "split",
    "data_split",
    "dataset_split",
    "set",
    "subset",
    "partition",
    "fold",
    "ml_use",
    "usage",
)
"""The usual names of a column with the split of each row, in small letters."""


def place_of(path: str, first: int, last: int) -> str:
    """Return where a row stands: its lines, or with 0 for the last one the row of this number."""
    if not last:
        return f"{path}, row {first}"
    return f"{path}, line {first}" if first >= last else f"{path}, lines {first} to {last}"


@dataclass
class RawSplit:
    """One file or hub split as it was read.

    Attributes:
        name: for messages.
        rows: the checked values of the schema's columns.
        names: the label names that it declares, if it does.
        commit: the hub commit, if it is from the hub.
        dropped: the number of rows that were dropped while it was read, by reason.
        split_of: the value of each row in the column of splits; None: there is no such column.
        path: the file or files, if it is not from the hub.
        places: where each row stands in the file, as two numbers: its first and its last line, or its number and 0; empty: the rows are all.
    """

    name: str
    rows: list[tuple[Any, ...]]
    names: list[str] | None = None
    commit: str | None = None
    dropped: Counter[str] = field(default_factory=Counter)
    split_of: list[Any] | None = None
    path: str | None = None
    places: Sequence[int] = ()

    def place(self, row: int) -> str:
        """Return where a row stands, for messages. `row` counts from 0."""
        first, last = self.places[2 * row : 2 * row + 2] if self.places else (row + 1, 0)
        return place_of(self.path or self.name, first, last)

    def selected(self, rows: Sequence[int], **changes: Any) -> RawSplit:
        """Return a part with some of the rows, and changed attributes."""
        places = array("Q", (number for row in rows for number in self.places[2 * row : 2 * row + 2]))
        return replace(self, rows=[self.rows[row] for row in rows], places=places, **changes)


RawSplits = dict[str, list[RawSplit]]
Row = dict[str, Any]


class RowSchema(ABC):
    """The columns of a data set's rows: how they are checked, when two rows are the same, and which rows must stay in one split."""

    keys: str
    """The config keys that name the columns."""
    columns: list[str]
    """The columns to read."""
    labels: Sequence[str] = ()
    shared = "prompt"
    """The column that the rows of a group share, for messages."""
    has_gold = True
    """Whether the rows have gold labels or targets. If not, their column, which is the last one, is not read."""

    def __init__(self, cfg: DatasetConfig):
        self.cfg = cfg
        self.suspicions: list[dict[str, Any]] = []
        """The reasons to doubt results on the rows."""
        self.decided: dict[str, Any] = {}
        """The decisions about the first file, which apply to the other files of the data set."""
        self.header: tuple[str, ...] = ()
        """The names of the columns in the file of the source that was read before, for files without a header."""
        self.replacements = [(re.compile(pattern), put) for pattern, put in cfg.replace.items()]
        self.reads_splits = False
        """Whether the column of splits is read, of the source of the training rows."""
        self.split_column: str | None = None
        """The column of splits in the source that was read last."""

    @property
    def columns_read(self) -> set[str]:
        """The columns that are read of the source that was read last."""
        return {column.partition(".")[0] for column in self.columns}

    def unlabelled(self) -> Self:
        """Return the same schema for rows without gold labels or targets, which only the teacher labels."""
        bare = copy.copy(self)
        bare.has_gold, bare.columns = False, self.columns[:-1]
        return bare

    def hide(self, row: Row) -> None:
        """Remove the gold label or the target of a row, so that only the teacher labels it."""
        raise NotImplementedError

    @abstractmethod
    def check(self, values: tuple[Any, ...], where: str) -> tuple[Any, ...]:
        """Check the values of a row, and return them.

        Raises:
            DataError: with a message that begins with `where`.
        """

    def assembled(self, table: Iterable[tuple[Any, ...]]) -> Iterable[tuple[Any, ...]]:
        """Return the rows of a table, which are its own; a schema may join several to one."""
        return table

    def declare(self, sources: RawSplits) -> None:  # noqa: B027
        """Read from all sources what the rows need, such as the names of the labels."""

    @abstractmethod
    def row(self, values: tuple[Any, ...], where: str) -> Row | None:
        """Make a row with an id of its values; None if `dataset.replace` leaves nothing of a text."""

    def merged(self, rows: Sequence[Row]) -> Row:
        """Return one row of rows with the same id: the first."""
        return rows[0]

    def decision(self, tied: int) -> str:
        """Describe what `merged` does with rows whose labels differ, for messages.

        Args:
            tied: the number of ids without a label of most rows.
        """
        return "the first row counts"

    def settled(self, row: Row) -> Row:
        """Return a training row without a gold label as it is trained on: unchanged."""
        return row

    @abstractmethod
    def group(self, row: Row) -> str:
        """Return a hash that is equal for rows which must be in the same split. Rows are shuffled by it."""

    def filtered(self, train: list[Row]) -> tuple[list[Row], Counter[str]]:
        """Filter the training rows by `dataset.clean`; also return the number of dropped rows by reason."""
        return train, Counter()

    def require(self, train: list[Row]) -> None:  # noqa: B027
        """Refuse training rows from which nothing can be learned."""

    def replaced(self, text: str) -> str:
        """Return the text after `dataset.replace`."""
        for pattern, put in self.replacements:
            text = pattern.sub(put, text)
        return text

    def _remedy(self, columns: list[str], nested: bool) -> str:
        """Describe the remedy for a missing column: name the columns, or those of another task that the source looks like."""
        signs = r"([;|,])\1*|::+" if " " in "".join(columns) else r"([;|,:])\1*"
        if len(columns) == 1 and (sign := re.search(signs, columns[0])):
            give = (
                f"give 'dataset.delimiter=\"{sign[0]}\"'" if len(sign[0]) == 1 else "write tabs in its place"
            )
            return f"if {sign[0]} stands between its columns, {give}"
        remedy = (
            f"name them with {self.keys}"
            + " (COLUMN.KEY for a value in a mapping, COLUMN.0 for one in a list)" * nested
        )
        remedy = "; ".join([remedy, *self._other_readings(columns, nested)])
        if not nested and any(_is_within(column, columns) for column in self.columns):
            remedy += "; a value in a mapping is read from jsonl and parquet files: write one of them"
        return remedy

    def _other_readings(self, columns: list[str], nested: bool) -> Iterator[str]:
        """Yield what the columns hold by their names, if the schema does not read it, with the keys that read it."""
        if talk := sorted({"messages", "conversations"} & {*columns} - {*self.columns}):
            yield f"conversations are read with dataset.messages={talk[0]}"
        words, tags = ([name for name in columns if name in names] for names in (_WORDS, _TAGS))
        if words and tags and not {*words, *tags} & {*self.columns}:
            yield f"words with tags are read with dataset.words={words[0]} dataset.tags={tags[0]}"
        for pair in keys_of_pairs(columns):
            if not {*pair.values()} & {*self.columns}:
                yield f"pairs are read with {' '.join(f'dataset.{key}={column}' for key, column in pair.items())}"
        if nested and MAPPING in columns:
            first, second = self.cfg.source or "LANGUAGE", self.cfg.target or "LANGUAGE"
            yield f"pairs in a mapping are read with dataset.source={MAPPING}.{first} dataset.target={MAPPING}.{second}"

    def column_paths(self, columns: list[str], name: str, nested: bool = False) -> list[list[str]]:
        """Return the path of keys to each column of the schema.

        Args:
            columns: the columns that the source has.
            name: of the source, for messages.
            nested: columns may hold mappings: `translation.de` is the key `de` in the column `translation`.

        Raises:
            DataError: a column is missing, or is there twice.
        """
        paths = []
        for column in self.columns:
            path = column.split(".") if nested and column not in columns else [column]
            if path[0] not in columns:
                is_default = column in (DatasetConfig.model_fields[key].default for key in ("text", "label"))
                is_other = is_default and any(self._other_readings(columns, nested))
                similar = "" if is_other or _is_within(column, columns) else suggest(column, columns)
                raise DataError(
                    f"{name} has no column {shown(column)}{similar} (columns: {listed(columns)}); {self._remedy(columns, nested)}"
                )
            if columns.count(path[0]) > 1:
                raise DataError(
                    f"{name} has {columns.count(path[0])} columns {shown(path[0])}; rename or remove all but one"
                )
            paths.append(path)
        return paths

    def value_paths(self, columns: list[str], name: str, nested: bool = False) -> list[list[str]]:
        """Return the path of keys to each value of a row: `column_paths`, and before them that to the column of splits, if there is one.

        Args, Raises: as for `column_paths`.
        """
        paths = self.column_paths(columns, name, nested)
        given = self.cfg.split
        if not self.reads_splits or given == "none":
            return paths
        if given not in (None, *columns):
            raise DataError(
                f"{name} has no column {shown(given)}{suggest(str(given), columns)} (columns: {listed(columns)}); correct dataset.split, which "
                "names the column with the split of each row, or leave it out"
            )
        usual = (
            column
            for column in columns
            if column.lower() in SPLIT_COLUMNS and [column] not in paths and columns.count(column) == 1
        )
        self.split_column = given or next(usual, None)
        return [[self.split_column], *paths] if self.split_column is not None else paths


class LabelledRows(RowSchema):
    """Rows with gold labels, names or integers, in the last column."""

    def __init__(self, cfg: DatasetConfig):
        super().__init__(cfg)
        self.rejected = 0
        """The number of rows that the annotator did not accept."""

    def column_paths(self, columns: list[str], name: str, nested: bool = False) -> list[list[str]]:
        """Return the paths to the columns, and before them that to Prodigy's answer, if there is one."""
        paths = super().column_paths(columns, name, nested)
        return [["answer"], *paths] if "answer" in columns and ["answer"] not in paths else paths

    def assembled(self, table: Iterable[tuple[Any, ...]]) -> Iterable[tuple[Any, ...]]:
        """Yield the rows that the annotator accepted."""
        width = len(self.columns)
        for row in table:
            if len(row) == width:
                yield row
            elif self._accepts(row[:-width]):
                yield row[-width:]

    def _accepts(self, more: Sequence[Any]) -> bool:
        """Return whether the annotator accepted a row, by the values before its own; the others are counted."""
        accepted = not any(value in ("reject", "ignore") for value in more)
        self.rejected += not accepted
        return accepted

    def _warn_of_rejected(self) -> None:
        """Warn of the rows that the annotator did not accept."""
        if self.rejected:
            logger.warning(
                "%s: %d rows whose answer is reject or ignore are dropped (Prodigy)",
                self.cfg.path,
                self.rejected,
            )

    def hide(self, row: Row) -> None:
        """Set the label to -100, or that of each word."""
        row["label"] = [IGNORE] * len(row["words"]) if "words" in row else IGNORE

    def declare(self, sources: RawSplits) -> None:
        """Set the names of the labels: those given, those declared, or all that the sources have, sorted."""
        labels = {
            label
            for parts in sources.values()
            for part in parts
            for row in part.rows
            for label in labels_of(row[-1])
        }
        names = self.cfg.labels or sources["train"][0].names
        for name in names or ():
            require_label_name(name, f"{self.cfg.path}: a label's name")
        self._warn_of_rejected()
        self.labels = names or sorted(
            labels - {None},
            key=lambda label: (0, int(label), label) if INTEGER.fullmatch(label) else (1, 0, label),
        )
        if not names:
            self._warn_of_alike()
        self.index: dict[Any, int] = {name: index for index, name in enumerate(self.labels)}
        if not any(map(INTEGER.fullmatch, self.labels)):  # then an integer is the index of a name
            self.index |= {str(index): index for index in range(len(self.labels))}

    def _warn_of_alike(self) -> None:
        """Warn of labels that differ in signs between words alone: they count as different ones."""
        if several := alike(self.labels):
            logger.warning(
                "%s: labels that differ in case, white space, hyphens, underscores, quotes or the forms of a character alone count as several (%s); if they are one, write them alike",
                self.cfg.path,
                "; ".join(" | ".join(map(shown, spellings[:3])) for spellings in several[:3]),
            )

    def index_of(self, label: Any, where: str) -> int:
        """Return the index of a label among the names; -100 if the rows have no gold labels.

        Raises:
            DataError: it is missing, or is not among the names.
        """
        if not self.has_gold:
            return IGNORE
        if label is None:
            raise DataError(f"{where}: the label is missing; give it one, or remove the row")
        if label not in self.index:
            raise DataError(
                f"{where}: the label {shown(label)} is not among {listed(self.labels)}{suggest(label, self.labels)}; correct it, or add it to dataset.labels"
            )
        return self.index[label]

    def require(self, train: list[Row]) -> None:
        """Require at least two classes."""
        labels = {label for row in train for label in labels_of(row["label"])} - {IGNORE}
        if len(labels) < 2:
            keys = [key for key in ("limit", "labelled") if getattr(self.cfg, key)]
            remedy = (
                " or ".join(f"give a larger dataset.{key}" for key in keys)
                or "correct dataset.path or dataset.label"
            )
            of = f" that {' and '.join(f'dataset.{key}' for key in keys)} leave" if keys else ""
            raise DataError(
                f"{self.cfg.path}: all training rows{of} have the label {shown(self.labels[labels.pop()])}, and at least two labels are "
                f"needed; {remedy}"
            )


def _is_within(column: str, columns: Sequence[str]) -> bool:
    """Return whether a name is that of a value in one of the columns: COLUMN.KEY."""
    outer, dot, _ = column.partition(".")
    return bool(dot) and outer in columns


def log_level(affected: int, rows: int) -> int:
    """Return the level at which to tell that some rows are dropped or truncated: a warning if they are more than `MANY`."""
    return logging.WARNING if affected / max(1, rows) > MANY else logging.INFO


def require_text(value: Any, what: str, where: str, in_turn: bool = False) -> str:
    """Return a value, which must be a text that is not empty.

    Args:
        what: the name of the value, for messages.
        in_turn: it is in a turn of a conversation, whose keys have no names in the config.

    Raises:
        DataError: with a message that begins with `where`.
    """
    if not isinstance(value, str):
        remedy = "" if in_turn else _inner_remedy(value)
        raise DataError(f"{where}: {what} is {shown(value)}, not a string{remedy}")
    if not value.strip():
        raise DataError(f"{where}: {what} is empty; remove the row, or fill it")
    if not value.isascii() and _HALF.search(value):
        raise DataError(f"{where}: {what} {shown(value, 80)} holds half a character (a lone surrogate)")
    return value


def _inner_remedy(value: Any) -> str:
    """Return how to name the texts that a mapping or a list holds; empty: it holds none."""
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    texts = {key: each for key, each in inner if isinstance(each, str) and each.strip()}
    if isinstance(value, list) and len(texts) > 1 and not any(" " in text.strip() for text in texts.values()):
        return "; if it is a text in words, join them with spaces"
    usual = [key for key in _TEXT_KEYS if key in texts]
    paths = [f"COLUMN.{key}" for key in usual or texts]
    return f"; what it holds is named by {' or '.join(paths[:3])} in place of COLUMN" if paths else ""


def require_list(value: Any, what: str, where: str) -> list[Any]:
    if not isinstance(value, list):
        raise DataError(
            f"{where}: the {what} are {shown(value)}; expected a list (of jsonl, parquet or hub data), or conll lines"
        )
    if not value:
        raise DataError(f"{where}: there are no {what}; remove the row")
    return value


def labels_of(label: Any) -> list[Any]:
    """Return the labels of a row: one, or one a word."""
    return label if isinstance(label, list) else [label]


def fold_white_space(text: str) -> str:
    return " ".join(text.split())


def row_hash(content: list[Any]) -> str:
    """Return the first 32 digits of `digest(content)`, several times faster: `digest` makes an encoder in each call, which a text does not need."""
    written = ", ".join(map(as_json, content))
    return hashlib.sha256(f"[[{written}]]".encode()).hexdigest()[:32]
