"""Reads the splits of a data set from the sources in the config, and logs in one line how each is read."""

from __future__ import annotations

import functools
import logging
import os
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from kdcli.config.dataset import NO_LABEL
from kdcli.data.hub import read_hub, splits_of_repository
from kdcli.data.readers import read_class_folders, read_file, read_gettext, read_parallel
from kdcli.data.reading import Reading
from kdcli.data.sources import (
    SPLIT_NAMES,
    class_files,
    columns_of_folders,
    is_hub,
    is_local_repository,
    is_parallel,
    key_of,
    local_splits,
    names_splits,
    normalized_split,
    parallel_files,
    parallel_splits,
    split_name,
)
from kdcli.errors import DataError, listed, shown
from kdcli.files import user_path
from kdcli.hub import data_path
from kdcli.tasks.rows import RawSplit, RawSplits, RowSchema, labels_of

logger = logging.getLogger(__name__)


class SplitReader:
    """Reads the sources of a data set.

    Attributes:
        schema: of its rows.
        recorded: how an earlier command of the run read the files.
        readings: how each file was read.
    """

    def __init__(self, schema: RowSchema, recorded: Sequence[Reading] = ()):
        self.schema, self.recorded = schema, recorded
        self.readings: list[Reading] = []

    def read(self) -> RawSplits:
        """Return the sources of the training rows, and of validation and test where they have some of their own: those that are named, or that
        the folder has."""
        cfg = self.schema.cfg
        column = None if cfg.split == "none" else cfg.split
        self.schema.reads_splits = cfg.split != "none"
        train = self._read(self.schema, cfg.path, "train" if column else cfg.train)
        self.schema.reads_splits = False
        by_column = self._by_column(train, column)
        sources = {"train": by_column.get("train", train)}
        for split, given in (("validation", cfg.validation), ("test", cfg.test)):
            if given and not (column and split in by_column):
                sources[split] = self._read_split(split, given)
            elif split in by_column or split in self._published:
                if any(map(_has_gold, parts := by_column.get(split) or self._read_published(split))):
                    sources[split] = parts
                else:
                    logger.info("%s: its %s split has no gold labels and is not used", cfg.path, split)
        return sources

    def _by_column(self, parts: list[RawSplit], given: str | None) -> RawSplits:
        """Return the rows by the splits that a column assigns them to; empty: there is no such column.

        Args:
            given: the column that the config names.

        Raises:
            DataError: the given column has no such names, or the files have no columns.
        """
        cfg = self.schema.cfg
        if any(part.split_of is None for part in parts):
            if given:
                raise DataError(
                    f"dataset.split = {shown(given)}: {cfg.path} is no csv, json, parquet or arrow file, so it has no column of splits; leave the key out"
                )
            return {}
        split_of = {
            name: split
            for split, own in (("train", cfg.train), ("validation", cfg.validation), ("test", cfg.test))
            for name in ((own.lower(),) if given and own and own != split else SPLIT_NAMES[split])
        }
        rows: dict[str, list[list[int]]] = {split: [[] for _ in parts] for split in SPLIT_NAMES}
        others: Counter[str] = Counter()
        values: Counter[str] = Counter()
        for number, part in enumerate(parts):
            for row, value in enumerate(map(normalized_split, part.split_of or ())):
                values[value] += 1
                if value in split_of:
                    rows[split_of[value]][number].append(row)
                else:
                    others[value] += 1
        if not names_splits(split_of[value] for value in values if value in split_of):
            if not given:
                return {}
            raise DataError(
                f"dataset.split = {shown(given)}: expected names of splits in this column (train, validation, test), got {listed(values)}; name those that are "
                "meant with dataset.train=, dataset.validation= and dataset.test=, or leave it out"
            )
        column = self.schema.split_column
        sizes = {split: sum(map(len, own)) for split, own in rows.items()}
        logger.info(
            "%s: the column %r assigns the rows to splits (%s); dataset.split=none ignores it",
            cfg.path, column, ", ".join(f"{split} {count:,}" for split, count in sizes.items() if count),
        )  # fmt: skip
        if others:
            logger.warning(
                "%s: %d rows dropped, because their %r names no split (%s)",
                cfg.path, others.total(), column, listed(map(shown, sorted(others))),
            )  # fmt: skip
            parts[0].dropped["in no split"] += others.total()
        return {
            split: [
                part.selected(own, split_of=None, dropped=part.dropped if split == "train" else Counter())
                for part, own in zip(parts, rows[split], strict=True)
            ]
            for split, count in sizes.items()
            if count
        }

    def _read_published(self, split: str) -> list[RawSplit]:
        """Return a split that nobody named; empty if it lacks the column of gold labels, as the test files of competitions do."""
        try:
            return self._read(self.schema, self.schema.cfg.path, split)
        except DataError as error:
            if f"no column {shown(self.schema.columns[-1])}" not in error.message:
                raise
            return []

    def read_unlabelled(self, schema: RowSchema, given: str) -> list[RawSplit]:
        """Return a source of rows without gold labels."""
        return self._read_split("train", given, schema)

    def _read_split(self, split: str, given: str, schema: RowSchema | None = None) -> list[RawSplit]:
        """Return a source that is named: a split of the data set, or a file or folder."""
        schema, cfg = schema or self.schema, self.schema.cfg
        if is_hub(cfg):
            return self._read(schema, cfg.path, given)
        named = given if given in self._published else split_name(given)
        if named in self._published and not os.path.lexists(user_path(given)) and len(self._published) > 1:
            return self._read(schema, cfg.path, named)
        return self._read(schema, given, split)

    @functools.cached_property
    def _published(self) -> dict[str, list[Path]]:
        """The files of each split of a local data set; those of a repository are found by the library that reads it."""
        cfg = self.schema.cfg
        if cfg.format == "gettext" or is_hub(cfg):
            return {}
        if is_parallel(cfg, cfg.path):
            return parallel_splits(cfg, cfg.path)
        path = user_path(cfg.path)
        if is_local_repository(cfg, path):
            return {split_name(name) or name: [] for name in splits_of_repository(cfg, path)}
        return local_splits(cfg, cfg.path)

    def _read(self, schema: RowSchema, given: str, split: str) -> list[RawSplit]:
        """Return the parts of a split, one for each of its files, from wherever a path means."""
        cfg = schema.cfg
        if is_hub(cfg):
            return [read_hub(schema, split)]
        if cfg.format == "gettext":
            return read_gettext(schema, data_path(given, "folder", key_of(cfg, given)), given)
        if is_parallel(cfg, given) or (not schema.has_gold and is_parallel(cfg, cfg.path)):
            pair = self._published.get(split) if given == cfg.path else None
            source, target = pair or parallel_files(cfg, given, schema.has_gold)
            part, readings = read_parallel(schema, source, target, self.recorded)
            self._tell(part.name, readings)
            return [part]
        path = user_path(given)
        if is_local_repository(cfg, path):
            size = sum(file.stat().st_size for file in path.rglob("*") if file.is_file())
            self._record([Reading(path.name, size, "hub")])
            return [read_hub(schema, self._name_in_repository(path, split), path)]
        own = given == cfg.path
        files = self._published if own else local_splits(cfg, given)
        if split not in files and own:
            raise DataError(
                f"{given} has no split {split} (splits: {listed(files)}); name them with dataset.train=, dataset.validation= and dataset.test="
            )
        chosen = files.get(split) or files["train"]
        if class_files(cfg, path, chosen):
            part, readings = read_class_folders(schema, chosen, given)
            names = sorted({file.parent.name for file in chosen})
            logger.info(
                "%s (%s): a folder for each class (%s), a text in each file", given, split, listed(names)
            )
            self._tell(f"{given} ({split})", readings)
            return [part]
        schema.header = ()
        results = [self._read_file(schema, given, file, len(chosen) == 1) for file in chosen]
        if schema.has_gold and any(cfg.label in columns_of_folders(given, file) for file in chosen):
            logger.info("%s: the column %r is that of the names of its folders", given, cfg.label)
        self._tell(f"{given} ({split})" if len(files) > 1 else given, [reading for _, reading in results])
        return [part for part, _ in results]

    def _read_file(self, schema: RowSchema, given: str, file: Path, alone: bool) -> tuple[RawSplit, Reading]:
        """Return a file of a path, with the label that the names of the folders between them give.

        Args:
            alone: it is the only one.
        """
        folders, label = columns_of_folders(given, file), schema.cfg.label
        try:
            return read_file(schema, file, given if alone else str(file), self.recorded, folders=folders)
        except DataError as error:
            if label is None or f"no column {shown(label)}" not in error.message:
                raise
            remedy = ""
            if folders:
                remedy = (
                    f"the names of its folders give {listed(folders)}: dataset.label={next(iter(folders))}"
                )
            elif not alone and file.parent != user_path(given) and not split_name(file.parent.name):
                remedy = f"if the names of the folders are the labels, rename each, as {file.parent.name} to {label}={file.parent.name}"
            raise DataError(f"{error.message}; {remedy}" if remedy else error.message) from None

    def _name_in_repository(self, path: Path, split: str) -> str:
        """Return the name that a repository has for a split."""
        names = splits_of_repository(self.schema.cfg, path)
        return next((name for name in names if split in (name, split_name(name))), split)

    def _tell(self, name: str, readings: list[Reading]) -> None:
        """Log how the files of a source are read; a warning if an encoding is only likely."""
        self._record(readings)
        for description, count in Counter(map(str, readings)).items():
            same = [reading for reading in readings if str(reading) == description]
            likely = any(reading.guess and not reading.guess.certain for reading in same)
            files = f"{count} file{'s' * (count > 1)} of {name}" if len(readings) > 1 else name
            forced = "; dataset.encoding= gives another encoding" if likely else ""
            logger.log(
                logging.WARNING if likely else logging.INFO, "read %s as %s%s", files, description, forced
            )

    def _record(self, readings: list[Reading]) -> None:
        """Add readings to those that env.json keeps."""
        self.readings += [reading for reading in readings if reading not in self.readings]


def _has_gold(part: RawSplit) -> bool:
    """Return whether any row of a source has a gold label or a target."""
    return any(
        label is not None and str(label) not in NO_LABEL for row in part.rows for label in labels_of(row[-1])
    )
