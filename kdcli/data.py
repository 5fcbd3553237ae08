"""Rows of text, with labels or with completions: read, checked, cleaned, split and fingerprinted.

Reading, leaving out duplicates and splitting are the same for all data. What a row is, when two rows are the same and
which of them must not be told apart by a split is a *kind*: `Classification`, `TokenClassification`, `CausalLM`,
`MaskedLM` or `Seq2Seq`.
"""

from __future__ import annotations

import codecs
import contextlib
import copy
import csv
import functools
import io
import itertools
import json
import logging
import os
import re
import statistics
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

import datasets
import numpy as np
import yaml

from kdcli.catalogues import catalogued
from kdcli.config import Dataset as DatasetConfig
from kdcli.config import suggest
from kdcli.errors import ConfigError, DataError, abbreviated, listed, printable, shown
from kdcli.files import PACKAGE, digest, locate_package, snapshot, storage_error, user_path
from kdcli.scripts import SIDES, Side, fits, script_of
from kdcli.tasks.base import IGNORE

datasets.disable_progress_bars()  # the run has its own
logger = logging.getLogger(__name__)
SPLITS = ("train", "validation", "test")
DOCUMENT = 1000
"""Characters from which on a document of plain text is long enough."""
MANY = 0.1
"""The share of the rows from which on it is said loudly that they are left out, or cut off."""
NULS = 64
"""So many NULs in a row are the hole of a sparse file, in every encoding."""
LONGEST_FIELD = 2**24
"""Characters of a csv field: a longer one is a quote that does not close."""
LONGEST_LABEL = 1000
"""Characters of a label's name: a longer one is a text."""
BOMB = 200
"""How many times larger than its file a table may be, from `BOMB_FROM` bytes on."""
BOMB_FROM = 2**28
BATCH = 1000
"""Rows of a parquet file that are decoded at once."""
DEEPEST = 500
"""Levels of JSON that need no closer look."""
LARGEST_CARD = 2**22
"""Characters of a data set's card that are looked at."""
MOST_EXACT = 2**53
"""The integer up to which floats are exact: one beyond it is no number of a class."""
_INTEGER = re.compile(r"-?\d+")
_HALF = re.compile(r"[\ud800-\udfff]")


@dataclass(frozen=True)
class Data:
    """The splits of a data set.

    Attributes:
        splits: train, validation, test. Columns: id, and for classification text, (text_pair), label; for
            token_classification words and label, a list with one a word; for causal_lm prompt and completion, or messages,
            or text; for masked_lm text; for seq2seq source and target, None where only the teacher translates.
        labels: the label names in the order of the logits; none for language models.
        fingerprint: sha256 over every row's split, id and label, and the label names.
        commit: the hub commit that was resolved, None for files.
        dropped: how many rows were left out, by reason; those beyond a limit are not among them.
    """

    splits: dict[str, datasets.Dataset]
    labels: list[str]
    fingerprint: str
    commit: str | None = None
    dropped: dict[str, int] = field(default_factory=dict)

    def __getitem__(self, split: str) -> datasets.Dataset:
        return self.splits[split]

    @property
    def gold(self) -> datasets.Dataset:
        """The training rows that have a gold label: for language models all of them."""
        return with_gold(self["train"])

    def untaught(self, split: str) -> Counter[str]:
        """The gold labels of a split that no training row has, and how often it has them."""
        if not self.labels:
            return Counter()
        known = {IGNORE, *(label for row in self["train"]["label"] for label in _each(row))}
        there = (label for row in self[split]["label"] for label in _each(row))
        return Counter(self.labels[label] for label in there if label not in known)


def loudness(some: int, rows: int) -> int:
    """The level at which to tell that so many of all rows are left out, or cut off: a warning if they are many (`MANY`)."""
    return logging.WARNING if some / max(1, rows) > MANY else logging.INFO


def without(rows: datasets.Dataset, ids: Collection[str]) -> datasets.Dataset:
    """The rows but for those with one of these ids."""
    return rows.select([row for row, key in enumerate(rows["id"]) if key not in ids]) if ids else rows


def with_gold(rows: datasets.Dataset, wanted: bool = True) -> datasets.Dataset:
    """The rows of a split that have a gold label, or of their labels any, or a translation: for language models all of them. Or
    (wanted = False) the others."""
    if "label" in rows.column_names:
        gold = (set(_each(label)) != {IGNORE} for label in rows["label"])
    elif "target" in rows.column_names:
        gold = (target is not None for target in rows["target"])
    else:
        return rows if wanted else rows.select([])
    return rows.select([row for row, has in enumerate(gold) if has == wanted])


@dataclass
class Source:
    """One file or hub split as it was read.

    Attributes:
        name: for messages.
        rows: the values of the kind's columns, checked.
        names: the label names that it declares.
        commit: the hub commit.
        dropped: how many rows were left out while it was read, by reason.
    """

    name: str
    rows: list[tuple[Any, ...]]
    names: list[str] | None = None
    commit: str | None = None
    dropped: Counter[str] = field(default_factory=Counter)


Sources = dict[str, list[Source]]
Row = dict[str, Any]


class Kind(ABC):
    """What a row is, and when two rows are the same."""

    keys: str
    """The config keys that name the columns."""
    columns: list[str]
    """The columns to read."""
    labels: Sequence[str] = ()
    shared = "prompt"
    """What the rows of a group have in common, for messages."""
    asked = True
    """Whether the rows have gold labels, or translations; without, that column, the last one, is not read."""

    def __init__(self, cfg: DatasetConfig):
        self.cfg = cfg
        self.replacements = [(re.compile(pattern), put) for pattern, put in cfg.replace.items()]

    def unlabelled(self) -> Self:
        """The same kind of rows for the teacher alone."""
        bare = copy.copy(self)
        bare.asked, bare.columns = False, self.columns[:-1]
        return bare

    def hide(self, row: Row) -> None:
        """Take a row's gold label, or its translation, away: it is for the teacher alone."""
        raise NotImplementedError

    @abstractmethod
    def check(self, values: tuple[Any, ...], where: str) -> tuple[Any, ...]:
        """A row's values as they were read, or a DataError that begins with `where`."""

    def declare(self, sources: Sources) -> None:  # noqa: B027
        """Look at all sources before rows are made of them."""

    @abstractmethod
    def row(self, values: tuple[Any, ...], where: str) -> Row | None:
        """The tidied row with its id; None if `dataset.replace` left nothing of a text."""

    @abstractmethod
    def group(self, row: Row) -> str:
        """A hash that rows have in common which must stand in the same split; rows are shuffled by it."""

    def weeded(self, train: list[Row]) -> tuple[list[Row], Counter[str]]:
        """The training rows that `dataset.clean` keeps, and how many it does not, by reason."""
        return train, Counter()

    def require(self, train: list[Row]) -> None:  # noqa: B027
        """Refuse training rows that teach nothing."""

    def replaced(self, text: str) -> str:
        """The text after `dataset.replace`."""
        for pattern, put in self.replacements:
            text = pattern.sub(put, text)
        return text

    def pick(self, found: list[str], name: str, nested: bool = False) -> list[list[str]]:
        """The way to each of the kind's columns: its name, which is among those found; or, if they may hold mappings, to
        `translation.de` that of the column `translation`, and then `de`."""
        ways = []
        for column in self.columns:
            way = [column]
            if nested and column not in found:
                way = column.split(".")
            if way[0] not in found:
                remedy = f"name them with {self.keys}"
                if len(found) == 1 and (sign := re.search("[;|,]", found[0])):
                    remedy = (
                        f"if {sign[0]} stands between its columns, give 'dataset.delimiter=\"{sign[0]}\"'"
                    )
                raise DataError(
                    f"{name} has no column {shown(column)}{suggest(column, found)} (columns: {listed(found)}); {remedy}"
                )
            if found.count(way[0]) > 1:
                raise DataError(
                    f"{name} has {found.count(way[0])} columns {shown(way[0])}; rename or remove all but one"
                )
            ways.append(way)
        return ways


class Labelled(Kind):
    """Rows with gold labels, names or integers, which stand in the last column."""

    def hide(self, row: Row) -> None:
        """-100, also for each word."""
        row["label"] = [IGNORE] * len(row["words"]) if "words" in row else IGNORE

    def declare(self, sources: Sources) -> None:
        """Names of the labels: given, declared, or all found, sorted."""
        found = {
            label
            for parts in sources.values()
            for part in parts
            for row in part.rows
            for label in _each(row[-1])
        }
        names = self.cfg.labels or sources["train"][0].names
        for name in names or ():
            require_name(name, f"{self.cfg.path}: a label's name")
        self.labels = names or sorted(
            found - {None},
            key=lambda label: (0, int(label), label) if _INTEGER.fullmatch(label) else (1, 0, label),
        )
        if not names:
            self._warn_of_alike()
        self.index = {name: number for number, name in enumerate(self.labels)}
        if not any(map(_INTEGER.fullmatch, self.labels)):  # then integers are places among the names
            self.index |= {str(number): number for number in range(len(self.labels))}

    def _warn_of_alike(self) -> None:
        """Labels that were written in two ways count as two."""
        spelt: dict[str, list[str]] = {}
        for label in self.labels:
            spelt.setdefault(" ".join(label.split()).casefold(), []).append(label)
        if alike := [ways for ways in spelt.values() if len(ways) > 1]:
            logger.warning(
                "%s: labels that differ in case or white space alone count as several (%s); if they are one, write them alike",
                self.cfg.path,
                "; ".join(" | ".join(map(shown, ways[:3])) for ways in alike[:3]),
            )

    def place(self, label: Any, where: str) -> int:
        """Where a label stands among the names; -100 of one that is not asked for."""
        if not self.asked:
            return IGNORE
        if label is None:
            raise DataError(f"{where}: the label is missing")
        if label not in self.index:
            raise DataError(
                f"{where}: the label {shown(label)} is not among {listed(self.labels)}{suggest(label, self.labels)}"
            )
        return self.index[label]

    def require(self, train: list[Row]) -> None:
        """At least two classes."""
        found = {label for row in train for label in _each(row["label"])} - {IGNORE}
        if len(found) < 2:
            raise DataError(
                f"{self.cfg.path}: all training rows have the label {shown(self.labels[found.pop()])}; at least two are "
                "needed"
            )


class Classification(Labelled):
    """Columns text, (text_pair) and label: an index into the label names, -100 where there is no gold label.

    Rows whose text is the same but for case and white space count as one. White space is folded.
    """

    keys = "dataset.text= and dataset.label="

    def __init__(self, cfg: DatasetConfig):
        super().__init__(cfg)
        self.columns = [column for column in (cfg.text, cfg.text_pair, cfg.label) if column]

    def check(self, values: tuple[Any, ...], where: str) -> tuple[Any, ...]:
        """Texts, and the label as a string or None."""
        texts = values[:-1] if self.asked else values
        label = _label(values[-1], where) if self.asked else None
        return *(_text(value, "the text", where) for value in texts), label

    def row(self, values: tuple[Any, ...], where: str) -> Row | None:
        """Its id is a hash of the texts without case."""
        *texts, label = values
        number = self.place(label, where)
        texts = [_folded(self.replaced(text)) for text in texts]
        if not all(texts):
            return None
        columns = zip(("text", "text_pair"), texts, strict=False)
        return {"id": _hash([text.casefold() for text in texts]), **dict(columns), "label": number}

    def group(self, row: Row) -> str:
        """Each row by itself."""
        return row["id"]


class TokenClassification(Labelled):
    """Columns words and label: of each word an index into the tags' names, -100 where there is no gold tag.

    Rows are the same if every character of their words is; those that differ in case alone stay in one split. Words of
    which `dataset.replace` left nothing are left out with their tags.
    """

    keys = "dataset.words= and dataset.tags="

    def __init__(self, cfg: DatasetConfig):
        super().__init__(cfg)
        folder = _FOLDERS.get(cfg.format)
        self.columns = folder.columns if folder else [str(cfg.words), str(cfg.tags)]

    def check(self, values: tuple[Any, ...], where: str) -> tuple[Any, ...]:
        """Words, and their tags as strings or None."""
        words = [
            _text(word, f"word {number}", where)
            for number, word in enumerate(_list(values[0], "words", where), 1)
        ]
        tags = _list(values[1], "tags", where) if self.asked else [None] * len(words)
        if len(tags) != len(words):
            raise DataError(f"{where}: {len(words)} words and {len(tags)} tags; each word needs one")
        return words, [_label(tag, where) for tag in tags]

    def declare(self, sources: Sources) -> None:
        """Spans of words are told by the tags' names: integers need them."""
        super().declare(sources)
        if all(map(_INTEGER.fullmatch, self.labels)):
            raise DataError(
                f"{self.cfg.path}: the tags are integers ({listed(self.labels)}), and only names tell where an "
                "entity begins; name them in their order: dataset.labels=[O,B-PER,I-PER,…]"
            )

    def row(self, values: tuple[Any, ...], where: str) -> Row | None:
        """Its id is a hash of the words."""
        tagged = [
            (_folded(self.replaced(word)), self.place(tag, where)) for word, tag in zip(*values, strict=True)
        ]
        kept = [(word, number) for word, number in tagged if word]
        words, label = [word for word, _ in kept], [number for _, number in kept]
        return {"id": _hash(words), "words": words, "label": label} if words else None

    def group(self, row: Row) -> str:
        """The words without case."""
        return _hash([word.casefold() for word in row["words"]])


class CausalLM(Kind):
    """Columns prompt and completion, or messages, or text. Rows are the same if every character is.

    Rows with one prompt stay together: the same first turn of the user, or text, but for case and white space.
    """

    keys = "dataset.prompt= and dataset.completion=, dataset.messages=, or dataset.text="

    def __init__(self, cfg: DatasetConfig):
        super().__init__(cfg)
        if cfg.format in _FOLDERS:
            self.fields = self.columns = _FOLDERS[cfg.format].columns
        else:
            self.fields = (
                ["messages"] if cfg.messages else ["prompt", "completion"] if cfg.prompt else ["text"]
            )
            self.columns = [getattr(cfg, field) for field in self.fields]

    def check(self, values: tuple[Any, ...], where: str) -> tuple[Any, ...]:
        """Texts, or the turns of a conversation."""
        if self.fields == ["messages"]:
            return (_turns(values[0], where),)
        return tuple(
            _text(value, f"the {field}", where) for field, value in zip(self.fields, values, strict=True)
        )

    def row(self, values: tuple[Any, ...], where: str) -> Row | None:
        """Its id is a hash of all that it holds."""
        texts: list[str] = []

        def tidy(value: Any, field: str) -> Any:
            if isinstance(value, list):
                return [turn | {"content": tidy(turn["content"], field)} for turn in value]
            text = self.replaced(value)
            texts.append(text.strip())
            joined = (
                field in ("prompt", "completion") and not self.cfg.chat
            )  # what stands between them is theirs
            return texts[-1] if not joined else text.lstrip() if field == "prompt" else text.rstrip()

        tidied = [tidy(value, field) for field, value in zip(self.fields, values, strict=True)]
        if not all(texts):
            return None
        return {"id": _hash(tidied), **dict(zip(self.fields, tidied, strict=True))}

    def group(self, row: Row) -> str:
        """The prompt; a conversation that no user begins stands by itself."""
        said = [turn["content"] for turn in row.get("messages", ()) if turn["role"] == "user"]
        prompt = row.get("prompt") or row.get("text") or next(iter(said), row["id"])
        return _hash([_folded(prompt).casefold()])


class MaskedLM(CausalLM):
    """Column text, as causal_lm has it."""

    keys = "dataset.text="


class Seq2Seq(Kind):
    """Columns source and target: one row is one pair. White space is folded, and pairs are the same if every character is.

    Rows with one source stay together, also if it differs by case.
    """

    keys = "dataset.source= and dataset.target="
    shared = "source"

    def __init__(self, cfg: DatasetConfig):
        super().__init__(cfg)
        folder = _FOLDERS.get(cfg.format)
        self.columns = folder.columns if folder else [str(cfg.source), str(cfg.target)]

    def check(self, values: tuple[Any, ...], where: str) -> tuple[Any, ...]:
        """Two texts, or the source alone."""
        return tuple(_text(value, f"the {side}", where) for side, value in zip(SIDES, values, strict=False))

    def row(self, values: tuple[Any, ...], where: str) -> Row | None:
        """Its id is a hash of both texts."""
        pair = [_folded(self.replaced(text)) for text in values]
        return {"id": _hash(pair), **dict(itertools.zip_longest(SIDES, pair))} if all(pair) else None

    def hide(self, row: Row) -> None:
        """The target. The row is then another one: what was kept of the whole pair, by its id, may have been chosen by the target."""
        row |= {"id": _hash([row["id"], "hidden"]), "target": None}

    def group(self, row: Row) -> str:
        """The source without case."""
        return _hash([row["source"].casefold()])

    def weeded(self, train: list[Row]) -> tuple[list[Row], Counter[str]]:
        """Pairs that are no copies, whose lengths are to each other about as in the others, and that are written as the others
        are. A warning if the columns are not written as their languages are."""
        clean = self.cfg.clean
        kept, dropped = train, Counter[str]()

        def drop(why: str, wrong: Callable[[Row], bool]) -> None:
            nonlocal kept
            count = len(kept)
            kept = [row for row in kept if not wrong(row)]
            dropped[why] += count - len(kept)

        if clean.identical:
            drop("identical", lambda row: row["source"] == row["target"])
        sides = [Side(name, kept) for name in SIDES]
        self._compare(sides)
        if clean.max_ratio and kept:
            limit = clean.max_ratio
            usual = statistics.median(len(row["target"]) / len(row["source"]) for row in kept)

            def uneven(row: Row) -> bool:
                source, target = len(row["source"]), len(row["target"])
                ratio = target / source / usual
                return max(source, target) >= clean.ratio_from and max(ratio, 1 / ratio) > limit

            drop("length ratio", uneven)
        if clean.script:
            drop("wrong script", lambda row: any(side.strange(row) for side in sides))
        return kept, +dropped

    def _compare(self, sides: list[Side]) -> None:
        """Warn if a side is not written as its language is: most often, source and target are swapped."""
        codes = [self.cfg.source_language, self.cfg.target_language]
        expected = [script_of(code or "") for code in codes]
        wrong = [
            f"the {side.name} is written in {' and '.join(side.own)} letters, dataset.{side.name}_language = {code} is in {script}"
            for side, code, script in zip(sides, codes, expected, strict=True)
            if not fits(script, side)
        ]
        if not wrong:
            return
        if all(map(fits, expected, reversed(sides))):
            remedy = "source and target seem to be swapped: exchange dataset.source and dataset.target, or the two languages"
        else:
            remedy = "name the languages that the data has, or other columns"
        logger.warning("%s: %s; %s", self.cfg.path, "; ".join(wrong), remedy)


def load(cfg: DatasetConfig) -> Data:
    """The data set that the config describes.

    Raises:
        DataError: it cannot be found or read, a column is missing, a text is empty, a label is unknown or
            missing, words and tags are not of one number, a conversation has no answer, a split is empty, the training
            rows have a single class, or there is no catalogue of a language.
        ConfigError: the format is for another task.
    """
    folder = _FOLDERS.get(cfg.format)
    if folder and cfg.kind not in folder.tasks:
        raise ConfigError(
            f"dataset.format = {cfg.format} is for {' and '.join(folder.tasks)}, not for {cfg.kind}; leave dataset.task out, or give "
            "another format"
        )
    kind = _KINDS.get(cfg.kind, Classification)(cfg)
    sources = {"train": _read(kind, cfg.train)}
    for split, name in (("validation", cfg.validation), ("test", cfg.test)):
        if name:
            sources[split] = _read(kind, name)
    kind.declare(sources)
    dropped: Counter[str] = Counter()
    rows = {split: _clean(kind, parts, dropped) for split, parts in sources.items()}
    rows["train"] = _weed(kind, rows["train"], dropped)
    rows = _carve(kind, _disjoint(kind, rows, dropped))
    for split in SPLITS:
        if not rows[split]:
            raise DataError(f"{cfg.path}: the {split} split has no rows")
    if cfg.limit:
        rows["train"] = rows["train"][: cfg.limit]
    if cfg.labelled:
        for row in rows["train"][cfg.labelled :]:
            kind.hide(row)
    if cfg.unlabelled:
        rows["train"] += _unlabelled(kind.unlabelled(), cfg.unlabelled, rows, dropped)
    rows["train"] += [
        row | {"id": _hash([row["id"], copy])} for copy in range(1, cfg.mask_copies) for row in rows["train"]
    ]
    if cfg.eval_limit:
        rows |= {split: rows[split][: cfg.eval_limit] for split in ("validation", "test")}
    kind.require(rows["train"])
    labels = list(kind.labels)
    fingerprint = digest(labels, {split: rows[split] for split in SPLITS})
    splits = {split: datasets.Dataset.from_list(rows[split]) for split in SPLITS}
    return Data(splits, labels, fingerprint, sources["train"][0].commit, dict(dropped))


def _unlabelled(kind: Kind, name: str, rows: dict[str, list[Row]], dropped: Counter[str]) -> list[Row]:
    """The rows of a source without labels that stand in no split."""
    found = _clean(kind, _read(kind, name), dropped)
    taken = {kind.group(row) for split in SPLITS for row in rows[split]}
    kept = [row for row in found if kind.group(row) not in taken]
    if not kept:
        raise DataError(
            f"dataset.unlabelled = {name}: all its rows stand in train, validation or test as well; give other text, or leave "
            "it out"
        )
    if len(kept) < len(found):
        logger.info(
            "%s: %d rows left out (they stand in train, validation or test)", name, len(found) - len(kept)
        )
        dropped["unlabelled, in train, validation or test as well"] += len(found) - len(kept)
    return kept[: kind.cfg.unlabelled_limit]


def _read(kind: Kind, split: str) -> list[Source]:
    """A hub split, or a file or the files of a folder (`split` is then its name, but for the training rows)."""
    cfg = kind.cfg
    if cfg.format == "hub":
        return [_read_hub(kind, split)]
    given = cfg.path if split == cfg.train else split
    path = locate_package(given) if given.startswith(PACKAGE) else user_path(given)
    if cfg.format == "gettext":
        return _read_gettext(kind, path, given)
    folder = _FOLDERS.get(cfg.format)
    if folder and os.path.isdir(path):
        files = sorted(file for file in path.iterdir() if file.suffix.lower() in folder.suffixes)
        if not files:
            raise DataError(f"the data folder {path} has no files *{', *'.join(folder.suffixes)}")
        return [_read_file(kind, file, str(file)) for file in files]
    return [_read_file(kind, path, given)]


def _read_file(kind: Kind, path: Path, given: str) -> Source:
    encoding = kind.cfg.encoding
    if not os.path.isfile(path):  # nor a pipe, a socket or a device
        what = "is no file" if os.path.lexists(path) else "does not exist"
        raise DataError(
            f"the data file {abbreviated(given)} {what} (looked for {abbreviated(str(path.absolute()))})"
        )
    if os.path.getsize(path) == 0:
        raise DataError(f"the data file {path} is empty")
    if kind.cfg.format != (named := path.suffix[1:].lower()) and named in ("parquet", "jsonl"):
        raise DataError(
            f"{path} is {named} by its name, and would be read as {kind.cfg.format}: give dataset={named}, and all files of a data set in one format"
        )
    try:
        rows = _checked(kind, path.name, _READERS[kind.cfg.format](kind, path))
    except UnicodeError as error:
        raise DataError(
            f"{path}{_line_of(path, encoding)} is not {encoding} text ({error}); save it as UTF-8, or "
            "give dataset.encoding= (latin-1, cp1252, utf-16 …)"
        ) from None
    except LookupError as error:
        raise DataError(
            f"dataset.encoding = {abbreviated(encoding)}: {abbreviated(str(error).partition(';')[0])}; give the name of a text encoding (utf-8, latin-1, cp1252, utf-16 …)"
        ) from None
    except OSError as error:
        raise DataError(f"{path} cannot be read ({error})") from None
    if not rows:
        raise DataError(f"{path} has no rows")
    return Source(path.name, rows)


def _checked(kind: Kind, name: str, table: Iterable[tuple[Any, ...]]) -> list[tuple[Any, ...]]:
    return [kind.check(values, f"{name}, row {number}") for number, values in enumerate(table, 1)]


def _text(value: Any, what: str, where: str) -> str:
    if not isinstance(value, str):
        raise DataError(f"{where}: {what} is {shown(value)}, not a string")
    if not value.strip():
        raise DataError(f"{where}: {what} is empty; remove the row, or fill it")
    if _HALF.search(value):
        raise DataError(f"{where}: {what} {shown(value, 80)} holds half a character (a lone surrogate)")
    return value


def _list(value: Any, what: str, where: str) -> list[Any]:
    if not isinstance(value, list):
        raise DataError(
            f"{where}: the {what} are {shown(value)}; expected a list (of jsonl, parquet or hub data), or conll lines"
        )
    if not value:
        raise DataError(f"{where}: there are no {what}; remove the row")
    return value


def _each(label: Any) -> list[Any]:
    """The labels of a row: one, or one a word."""
    return label if isinstance(label, list) else [label]


def _turns(value: Any, where: str) -> list[dict[str, str]]:
    """A conversation, also as the JSON that a csv file holds: role and content of each turn, and nothing else."""
    expected = 'a list of {"role": …, "content": …}'
    if isinstance(value, str):
        with contextlib.suppress(ValueError):
            value = _json(value)
    if not isinstance(value, list):
        raise DataError(f"{where}: the messages are {shown(value)}; expected {expected}, or that as JSON")
    turns = []
    for number, turn in enumerate(value, 1):
        if not isinstance(turn, dict) or not {"role", "content"} <= turn.keys():
            raise DataError(f"{where}: message {number} is {shown(turn)}; expected {expected}")
        turns.append(
            {key: _text(turn[key], f"the {key} of message {number}", where) for key in ("role", "content")}
        )
    if not any(turn["role"] == "assistant" for turn in turns):
        roles = listed(dict.fromkeys(turn["role"] for turn in turns)) or "none"
        raise DataError(
            f"{where}: no message has the role assistant (roles: {roles}), and only what it says is learnt; remove "
            "the row, or rename the roles"
        )
    return turns


def _folded(text: str) -> str:
    return " ".join(text.split())


def _hash(content: list[Any]) -> str:
    return digest(content)[:32]


def _label(value: Any, where: str) -> str | None:
    """A label as a string: 1.0, which is what a column of integers with gaps becomes, is 1; None is a missing one."""
    if value is None or value != value:  # NaN
        return None
    if not isinstance(value, str | int | float) or (isinstance(value, float) and abs(value) > MOST_EXACT):
        raise DataError(f"{where}: the label is {shown(value)}; expected a name or an integer")
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    name = str(value).strip()
    if len(name) > LONGEST_LABEL or not name.isprintable():
        require_name(name, f"{where}: the label")
    return name or None


def require_name(name: str, what: str) -> None:
    """Refuse a label's name that no file and no table can hold: it stands in config.json, reports and model cards.

    Raises:
        DataError
    """
    if len(name) > LONGEST_LABEL:
        raise DataError(
            f"{what} {shown(name)} has {len(name):,} characters, and a name may have {LONGEST_LABEL:,}; is dataset.label the right column?"
        )
    if printable(name) != name or set(name) & set("\t\n"):
        raise DataError(
            f"{what} {shown(name)} holds a control character, a line break or half a character; remove it from the data"
        )


def _line_of(path: Path, encoding: str) -> str:
    """`, line N` for the first bytes that cannot be decoded: the error itself counts from where a block began."""
    decoder = codecs.getincrementaldecoder(encoding)()
    number = 1
    with contextlib.suppress(OSError, UnicodeError), path.open("rb") as stream:
        for piece in iter(functools.partial(stream.readline, 2**20), b""):
            decoder.decode(piece)
            number += piece.endswith(b"\n")
    return f", line {number}"


def _read_csv(kind: Kind, path: Path) -> Iterator[tuple[Any, ...]]:
    cfg = kind.cfg
    tabs = path.suffix in (".tsv", ".tab") if cfg.delimiter is None else cfg.delimiter == "\t"
    quote = cfg.quote if cfg.quote is not None else None if tabs else '"'
    delimiter = cfg.delimiter or ("\t" if tabs else ",")
    if delimiter == quote or {delimiter, quote} & set("\r\n\0"):
        raise ConfigError(
            f"dataset.delimiter = {shown(delimiter)} and dataset.quote = {shown(quote)}: expected two characters, none of them a line break"
        )
    csv.field_size_limit(LONGEST_FIELD)
    reader = csv.reader(
        _lines(kind, path),
        delimiter=delimiter,
        quotechar=quote,
        quoting=csv.QUOTE_MINIMAL if quote else csv.QUOTE_NONE,
        strict=True,
    )
    try:
        header = cfg.columns or next(reader, [])
        given = "dataset.columns names" if cfg.columns else "the header has"
        picked = [header.index(column) for (column,) in kind.pick(header, path.name)]
        for row in reader:
            if not row:
                continue
            if len(row) != len(header):
                raise DataError(
                    f"{path}, line {reader.line_num}: {len(row)} fields where {given} {len(header)} "
                    "(a truncated file, another delimiter, or a quote that does not close?)"
                )
            if row == cfg.columns:
                raise DataError(
                    f"{path}, line {reader.line_num} is the header; leave dataset.columns out, it is for files without one"
                )
            yield tuple(row[column] for column in picked)
    except csv.Error as error:
        raise DataError(
            f"{path}, line {reader.line_num}: {error} (a truncated file, or a stray quote?)"
        ) from None


class _UntilNul(io.BufferedReader):
    """A file that ends at the first run of NUL: sparse files have gigabytes of it, which would be read as one line."""

    ended = False

    def read1(self, size: int = -1, /) -> bytes:
        """Bytes of the next block, the first NULs included."""
        place = self.tell()
        block = b"" if self.ended else super().read1(size)
        if (run := block.find(bytes(NULS))) >= 0:
            self.ended = True
            block = block[: run + NULS - (place + run) % 4]  # whole characters, also of UTF-32
        return block


def _lines(kind: Kind, path: Path) -> Iterator[str]:
    """The lines of a text file, with their ends, and without the mark that Windows begins UTF-8 with."""
    if "\0" in kind.cfg.encoding:
        raise LookupError("unknown encoding")
    encoding = "utf-8-sig" if kind.cfg.encoding == "utf-8" else kind.cfg.encoding
    with io.TextIOWrapper(_UntilNul(io.FileIO(path)), encoding, newline="") as stream:
        for number, line in enumerate(stream, 1):
            if "\0" in line:
                raise DataError(
                    f"{path}, line {number} holds NUL: is it no text, or UTF-16 (dataset.encoding=utf-16)?"
                )
            yield line


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """A JSON object; of a key that stands there twice the first value would be lost."""
    row = dict(pairs)
    if len(row) < len(pairs):
        keys = Counter(key for key, _ in pairs)
        raise ValueError(f"the key {shown(keys.most_common(1)[0][0])} stands there twice")
    return row


_decode = json.JSONDecoder(object_pairs_hook=_unique).decode


def _json(text: str) -> Any:
    """What a text in JSON holds.

    Raises:
        ValueError: it is not JSON, is nested too deeply, holds a number of thousands of digits or a key twice.
    """
    try:
        return _decode(text)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None
    except json.JSONDecodeError as error:
        raise ValueError(f"{error}; is the file truncated?") from None


def _read_jsonl(kind: Kind, path: Path) -> Iterator[tuple[Any, ...]]:
    keys: list[str] = []
    for number, line in enumerate(_lines(kind, path), 1):
        if not line.strip():
            continue
        where = f"{path}, line {number}"
        try:
            row = _json(line)
        except ValueError as error:
            raise DataError(f"{where} is not JSON: {error}") from None
        if not isinstance(row, dict):
            raise DataError(f"{where}: expected an object, got {type(row).__name__}; write one object a line")
        if list(row) != keys:  # most often they are those of the line before
            keys = list(row)
            ways = kind.pick(keys, where, nested=True)
        yield tuple(_inside(row, way, where) for way in ways)


def _read_parquet(kind: Kind, path: Path) -> Iterator[tuple[Any, ...]]:
    import pyarrow
    import pyarrow.parquet

    try:
        with pyarrow.parquet.ParquetFile(path) as file:
            ways = kind.pick(file.schema_arrow.names, path.name, nested=True)
            names = list({way[0]: None for way in ways})
            _require_rows(file, path)
            size, first = 0, 1
            for batch in file.iter_batches(BATCH, columns=names):
                columns = {name: _plain(batch.column(name)) for name in names}
                size += sum(column.nbytes for column in columns.values())
                if size > max(BOMB_FROM, BOMB * os.path.getsize(path)):
                    raise _bomb(path)
                table = {name: column.to_pylist() for name, column in columns.items()}
                yield from _columns(table, ways, path.name, first)
                first += len(batch)
    except (pyarrow.ArrowException, OSError, ValueError, OverflowError, NotImplementedError) as error:
        raise DataError(
            f"{path} is not a whole parquet file, or a column of it cannot be read ({str(error).strip()}); write it anew"
        ) from None


def _plain(column: Any) -> Any:
    """A column of a table without dictionaries, which hide how much it holds."""
    import pyarrow

    return column.dictionary_decode() if pyarrow.types.is_dictionary(column.type) else column


def _bomb(path: Path) -> DataError:
    return DataError(
        f"{path} holds more than {BOMB:,} times what it has in bytes, which no text does; write its table anew"
    )


def _require_rows(file: Any, path: Path) -> None:
    """Refuse a table that is too large by what it says of itself, before anything is decoded."""
    groups = [file.metadata.row_group(number) for number in range(file.metadata.num_row_groups)]
    claimed = max(file.metadata.num_rows, sum(group.total_byte_size for group in groups))
    if claimed > max(BOMB_FROM, BOMB * os.path.getsize(path)):
        raise _bomb(path)


def _columns(
    table: dict[str, list[Any]], ways: list[list[str]], name: str, first: int = 1
) -> Iterator[tuple[Any, ...]]:
    """The rows of a table's columns, each with what it holds at the end of its way; `first` is the number of the first row."""
    for number, values in enumerate(zip(*(table[way[0]] for way in ways), strict=True), first):
        yield tuple(
            _inside(value, way[1:], f"{name}, row {number}") for value, way in zip(values, ways, strict=True)
        )


def _inside(value: Any, way: list[str], where: str) -> Any:
    """What mappings hold at the end of a way of keys."""
    for key in way:
        if not isinstance(value, dict):
            raise DataError(f"{where}: expected a mapping that holds {key!r}, got {shown(value)}")
        if key not in value:
            raise DataError(f"{where}: there is no {key!r}{suggest(key, value)} (there are: {listed(value)})")
        value = value[key]
    return value


def _read_txt(kind: Kind, path: Path) -> Iterator[tuple[Any, ...]]:
    """Documents: paragraphs in their order, as many as make at least `DOCUMENT` characters."""
    document = ""
    lines = (line.rstrip("\r\n") for line in _lines(kind, path))
    for blank, paragraph in itertools.groupby(lines, lambda line: not line.strip()):
        if not blank:
            document += "\n\n" * bool(document) + "\n".join(paragraph)
        if len(document) >= DOCUMENT:
            yield (document,)
            document = ""
    if document:
        yield (document,)


class _Plain(yaml.BaseLoader):
    """YAML whose scalars stay as written (yes, 1.10), without aliases, which can multiply, and without doubled keys."""

    def compose_node(self, parent: Any, index: Any) -> Any:
        """Raises yaml.YAMLError at an alias."""
        if self.check_event(yaml.AliasEvent):
            event = self.peek_event()
            raise yaml.MarkedYAMLError(
                problem=f"an alias (*{event.anchor}); write its text out", problem_mark=event.start_mark
            )
        return super().compose_node(parent, index)

    def construct_mapping(self, node: Any, deep: bool = False) -> Any:
        """Raises yaml.YAMLError at a key that stands there twice."""
        mapping = super().construct_mapping(node, deep)
        if len(mapping) < len(node.value):
            keys = Counter(key.value for key, _ in node.value if isinstance(key.value, str))
            twice = keys.most_common(1)[0][0]
            raise yaml.MarkedYAMLError(
                problem=f"the key {shown(twice)} stands there twice", problem_mark=node.start_mark
            )
        return mapping


def _read_conversations(kind: Kind, path: Path) -> Iterator[tuple[Any, ...]]:
    """The first turn of each conversation and the second.

    Those after it are a dialogue in some files, and more answers to the first in others; nothing says which.
    """
    try:
        tree = yaml.load("".join(_lines(kind, path)), _Plain)
    except (yaml.YAMLError, OverflowError, RecursionError) as error:
        why = "it is nested too deeply" if isinstance(error, RecursionError) else _folded(str(error))
        raise DataError(f"{path} is not YAML ({why})") from None
    conversations = tree.get("conversations") if isinstance(tree, dict) else None
    if not isinstance(conversations, list):
        raise DataError(f"{path}: expected `conversations`, a list of lists of turns")
    later = 0
    for number, conversation in enumerate(conversations, 1):
        turns = [turn for turn in conversation if turn] if isinstance(conversation, list) else []
        for turn in turns:
            if not isinstance(turn, str):
                raise DataError(
                    f"{path}, conversation {number}: expected turns that are text, got {shown(turn)}; put quotes around it"
                )
        if len(turns) > 1:
            yield turns[0], turns[1]
            later += len(turns) - 2
    if later:
        logger.info("%s: %d turns after the second one of a conversation left out", path.name, later)


def _read_conll(kind: Kind, path: Path) -> Iterator[tuple[Any, ...]]:
    """Sentences: a word and its tag a line, in the first and the last column, and a blank line between two."""
    words: list[str] = []
    tags: list[str] = []
    for number, line in enumerate(itertools.chain(_lines(kind, path), ["\n"]), 1):
        columns = re.split(r"[ \t]+", line.strip(" \t\r\n"))
        if columns[0] and columns[0] != "-DOCSTART-":
            if len(columns) < len(kind.columns):
                raise DataError(
                    f"{path}, line {number}: expected a word and its tag, got {shown(line.strip())}"
                )
            words.append(columns[0])
            tags.append(columns[-1])
        elif words:
            yield (words, tags)[: len(kind.columns)]
            words, tags = [], []


def _read_gettext(kind: Kind, path: Path, given: str) -> list[Source]:
    """The catalogues of two locales under a folder."""
    found = catalogued(path, given, kind.cfg.source_language, kind.cfg.target_language or "")
    return [Source(place, _checked(kind, place, table), dropped=dropped) for place, table, dropped in found]


@dataclass(frozen=True)
class _Folder:
    """A format of files that may lie in a folder: its tasks, how they end, and the columns that it always has."""

    tasks: tuple[str, ...]
    suffixes: tuple[str, ...]
    columns: list[str]


_FOLDERS = {
    "txt": _Folder(("causal_lm", "masked_lm"), (".txt",), ["text"]),
    "conversations": _Folder(("causal_lm",), (".yml", ".yaml"), ["prompt", "completion"]),
    "gettext": _Folder(("seq2seq",), (".po", ".mo"), ["source", "target"]),
    "conll": _Folder(
        ("token_classification",), (".conll", ".bio", ".iob", ".iob2", ".txt"), ["words", "tags"]
    ),
}
_KINDS: dict[str, type[Kind]] = {
    "causal_lm": CausalLM,
    "masked_lm": MaskedLM,
    "seq2seq": Seq2Seq,
    "token_classification": TokenClassification,
}
_READERS: dict[str, Callable[[Kind, Path], Iterator[tuple[Any, ...]]]] = {
    "csv": _read_csv,
    "jsonl": _read_jsonl,
    "parquet": _read_parquet,
    "txt": _read_txt,
    "conversations": _read_conversations,
    "conll": _read_conll,
}


def _require_card(folder: Path, name: str) -> None:
    """Refuse what a data set's card says of its files if it cannot be read quickly, or if it names files elsewhere.

    Raises:
        DataError
    """
    card = folder / "README.md"
    if not card.is_file():
        return
    with card.open(encoding="utf-8", errors="replace") as stream:
        front = re.match(r"\s*---[ \t]*\n(.*?)\n---[ \t]*(\n|$)", stream.read(LARGEST_CARD), re.DOTALL)
    try:
        tree = yaml.load(front[1], _Plain) if front else None
    except (yaml.YAMLError, ValueError, OverflowError, RecursionError) as error:
        why = "it is nested too deeply" if isinstance(error, RecursionError) else _folded(str(error))
        raise DataError(f"the data set {name}: {card} is not YAML ({why})") from None
    for place in _strings(tree.get("configs") if isinstance(tree, dict) else None):
        if place.startswith(("/", "~")) or "://" in place or ".." in place.split("/"):
            raise DataError(
                f"the data set {name}: {card} names files outside of it ({shown(place)}); fetch them yourself, and give them with "
                "dataset=csv dataset.path="
            )


def _require_shallow(file: Path, name: str) -> None:
    """Refuse JSON that is nested too deeply: the reader of hub data sets is native code, which crashes at it.

    Brackets are counted first. They may stand in texts as well, so a file with many open ones is then parsed.

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
        except ValueError:  # what else is wrong with it is told by what reads it
            return


def _strings(tree: Any) -> Iterator[str]:
    """All strings of nested lists and mappings."""
    if isinstance(tree, str):
        yield tree
    elif isinstance(tree, list | dict):
        for value in tree.values() if isinstance(tree, dict) else tree:
            yield from _strings(value)


def _read_hub(kind: Kind, split: str) -> Source:
    cfg = kind.cfg
    folder, commit = snapshot(cfg.path, cfg.revision, kind="dataset")
    _require_card(folder, cfg.path)
    for file in folder.rglob("*json*"):
        if file.is_file():
            _require_shallow(file, cfg.path)
    logging.getLogger("datasets").setLevel(logging.CRITICAL)  # what it would log is raised as well
    try:
        table = datasets.load_dataset(str(folder), cfg.name, split=split)
    except Exception as error:  # of whatever library reads its files
        if storage_error(error):
            raise
        raise DataError(
            f"the data set {cfg.path} cannot be read: {abbreviated(str(error.__cause__ or error).strip(), 1000)} (dataset.name=, "
            "dataset.train=, dataset.validation= and dataset.test= choose its parts)"
        ) from None
    name = f"{cfg.path} ({split})"
    ways = kind.pick(table.column_names, name, nested=True)
    columns = {way[0]: table[way[0]] for way in ways}
    names = None
    label = ways[-1][0]
    feature = table.features[label]
    if isinstance(feature, datasets.List | datasets.LargeList):
        feature = feature.feature
    if isinstance(feature, datasets.ClassLabel):
        names = feature.names
        columns[label] = [_named(value, names) for value in columns[label]]
    return Source(name, _checked(kind, name, _columns(columns, ways, name)), names, commit)


def _named(label: Any, names: list[str]) -> Any:
    """The name that an integer stands for, or those of a list; None of one that is missing (-1)."""
    if isinstance(label, list):
        return [_named(one, names) for one in label]
    if label is not None and label >= len(names):
        raise DataError(
            f"the label {label} is not among the {len(names)} names that the data set declares: {listed(names)}"
        )
    return names[label] if label is not None and label >= 0 else None


def _clean(kind: Kind, parts: list[Source], dropped: Counter[str]) -> list[Row]:
    """Tidied rows without duplicates, in the order of their groups and ids (which is a fixed shuffle).

    Args:
        dropped: what is left out is added to it.
    """
    rows: dict[str, Row] = {}
    for part in parts:
        for number, values in enumerate(part.rows, 1):
            row = kind.row(values, f"{part.name}, row {number}")
            if row is None:
                part.dropped["empty after dataset.replace"] += 1
            elif (first := rows.setdefault(row["id"], row)) is not row:
                same = first.get("label") == row.get("label")
                part.dropped["duplicates" if same else "duplicates with another label"] += 1
        _log(part.name, part.dropped)
        dropped += part.dropped
    return sorted(rows.values(), key=lambda row: (kind.group(row), row["id"]))


def _log(name: str, dropped: Counter[str]) -> None:
    for why, count in dropped.items():
        logger.info("%s: %d rows left out (%s)", name, count, why)


def _weed(kind: Kind, train: list[Row], dropped: Counter[str]) -> list[Row]:
    """The training rows that `dataset.clean` keeps; a warning if they are much fewer."""
    kept, weeds = kind.weeded(train)
    _log(kind.cfg.path, weeds)
    dropped += weeds
    said = ", ".join(f"{why}: {count}" for why, count in weeds.items())
    remedy = "turn it off with dataset.clean.identical=false, dataset.clean.max_ratio=null or dataset.clean.script=false"
    if weeds and not kept:
        raise DataError(
            f"{kind.cfg.path}: dataset.clean leaves none of the {len(train)} training rows ({said}); look at them, or {remedy}"
        )
    if loudness(weeds.total(), len(train)) == logging.WARNING:
        logger.warning(
            "%s: dataset.clean left out %.0f %% of the training rows (%s); if nothing is wrong with them, %s",
            kind.cfg.path,
            100 * weeds.total() / len(train),
            said,
            remedy,
        )
    return kept


def _disjoint(kind: Kind, rows: dict[str, list[Row]], dropped: Counter[str]) -> dict[str, list[Row]]:
    """Rows of test, and those of their groups, leave validation and train; rows of validation leave train."""
    taken: set[str] = set()
    for split in reversed(SPLITS):
        if split not in rows:
            continue
        kept = [row for row in rows[split] if kind.group(row) not in taken]
        if len(kept) < len(rows[split]):
            logger.info(
                "%d rows of %s also stand in a later split and were left out",
                len(rows[split]) - len(kept),
                split,
            )
            dropped["in a later split as well"] += len(rows[split]) - len(kept)
        if not kept:
            later = " or ".join(SPLITS[SPLITS.index(split) + 1 :])
            raise DataError(
                f"{kind.cfg.path}: all rows of {split} also stand in {later}, and no row may stand in two splits; name other files, "
                f"or leave dataset.{later.replace(' or ', '= and dataset.')}= out: a part of the training rows is then kept for it"
            )
        rows[split] = kept
        taken |= {kind.group(row) for row in kept}
    return rows


def _carve(kind: Kind, rows: dict[str, list[Row]]) -> dict[str, list[Row]]:
    """Take test and validation out of the training rows where they have no source of their own.

    Groups are taken whole, in their order, as long as they fit.
    """
    cfg = kind.cfg
    total = len(rows["train"])
    for split, size in (("test", cfg.test_size), ("validation", cfg.validation_size)):
        if split in rows:
            continue
        count = int(size) if size >= 1 else max(1, round(size * total))
        if count >= len(rows["train"]):
            remedy = f"give a smaller dataset.{split}_size"
            if total < 3:  # no size is small enough
                remedy = "give dataset.validation= and dataset.test=, or more rows"
                remedy += " (documents end at blank lines)" if cfg.format == "txt" else ""
            raise DataError(
                f"{cfg.path}: {count} rows for {split} leave none to train on ({len(rows['train'])} are there); {remedy}"
            )
        rest: list[Row] = []
        rows[split] = []
        for _, group in itertools.groupby(rows["train"], kind.group):
            together = list(group)
            (rows[split] if len(rows[split]) + len(together) <= count else rest).extend(together)
        if not rows[split]:
            raise DataError(
                f"{cfg.path}: rows with the same {kind.shared} stay in one split, and every {kind.shared} has more than the {count} "
                f"rows for {split}; give a larger dataset.{split}_size, or dataset.{split}="
            )
        rows["train"] = rest
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
