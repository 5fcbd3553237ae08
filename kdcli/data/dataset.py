"""Loads the data set that a config describes: read, checked, cleaned, split and fingerprinted."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from typing import Any

import datasets

from kdcli.config.dataset import Dataset as DatasetConfig
from kdcli.data.gold import set_apart
from kdcli.data.reading import Reading
from kdcli.data.split_reader import SplitReader
from kdcli.data.splits import (
    SPLITS,
    carve_splits,
    clean_rows,
    disjoint_splits,
    filter_rows,
    groups_of,
    limited,
)
from kdcli.errors import ConfigError, DataError
from kdcli.files import digest
from kdcli.tasks import row_schema_of
from kdcli.tasks.rows import IGNORE, Row, labels_of, row_hash

logger = logging.getLogger(__name__)
datasets.disable_progress_bars()  # the run shows its own progress


@dataclass(frozen=True)
class Data:
    """The splits of a data set.

    Attributes:
        splits: train, validation, test; with the columns of the task's row schema, and `id`.
        labels: the label names in the order of the logits; empty for language models.
        fingerprint: sha256 over every row's split, id and label, and the label names.
        commit: the hub commit of the data; None for files.
        dropped: the number of dropped rows by reason, without rows beyond `dataset.limit`.
        readings: how each file was read.
        suspicions: reasons to doubt results on it: `kind`, `text`, `key` and figures.
    """

    splits: dict[str, datasets.Dataset]
    labels: list[str]
    fingerprint: str
    commit: str | None = None
    dropped: dict[str, int] = field(default_factory=dict)
    readings: list[Reading] = field(default_factory=list)
    suspicions: list[dict[str, Any]] = field(default_factory=list)

    def __getitem__(self, split: str) -> datasets.Dataset:
        return self.splits[split]

    @property
    def gold(self) -> datasets.Dataset:
        """The training rows with a gold label; for language models all of them."""
        return with_gold(self["train"])

    def unseen_labels(self, split: str) -> Counter[str]:
        """Return the gold labels of a split that no training row has, with their numbers of rows."""
        if not self.labels:
            return Counter()
        seen = {IGNORE, *(label for row in self["train"]["label"][:] for label in labels_of(row))}
        labels = (label for row in self[split]["label"][:] for label in labels_of(row))
        return Counter(self.labels[label] for label in labels if label not in seen)


def without(rows: datasets.Dataset, ids: Collection[str]) -> datasets.Dataset:
    """Return the rows whose id is not among these."""
    return rows.select([row for row, key in enumerate(rows["id"][:]) if key not in ids]) if ids else rows


def with_gold(rows: datasets.Dataset, wanted: bool = True) -> datasets.Dataset:
    """Return the rows of a split with a gold label, with one for any of their words, or with a target; for language models all rows.

    Args:
        wanted: false: the other rows.
    """
    if "label" in rows.column_names:
        gold = (set(labels_of(label)) != {IGNORE} for label in rows["label"][:])
    elif "target" in rows.column_names:
        gold = (target is not None for target in rows["target"][:])
    else:
        return rows if wanted else rows.select([])
    chosen = [row for row, has in enumerate(gold) if has == wanted]
    return rows if len(chosen) == len(rows) else rows.select(chosen)


def load(cfg: DatasetConfig, recorded: Sequence[Reading] = ()) -> Data:
    """Load the data set that the config describes.

    Args:
        recorded: how an earlier command of the run read the files. They are read in the same way, unless the config says otherwise.

    Raises:
        DataError: a file is missing or cannot be read, a column or a label is missing, a text or a split is empty, a label is unknown, the
            numbers of words and tags differ, a conversation has no answer, the training rows have a single class, or there is no
            catalogue of a language.
        ConfigError: there is no such task.
    """
    schema = row_schema_of(cfg)
    reader = SplitReader(schema, recorded)
    sources = reader.read()
    schema.declare(sources)
    dropped: Counter[str] = Counter()
    rows = {split: clean_rows(schema, parts, dropped) for split, parts in sources.items()}
    rows["train"] = filter_rows(schema, rows["train"], dropped)
    group_of = groups_of(schema, rows)
    rows, unlabelled = set_apart(schema, disjoint_splits(schema, rows, dropped, group_of), dropped)
    rows = carve_splits(schema, rows, dropped, group_of)
    for split in SPLITS:
        if not rows[split]:
            raise DataError(f"{cfg.path}: the {split} split has no rows; check the files, and dataset.limit")
    rows["train"] += unlabelled
    if cfg.limit:
        rows["train"] = rows["train"][: cfg.limit]
    if cfg.labelled:
        for row in rows["train"][cfg.labelled :]:
            schema.hide(row)
    if cfg.unlabelled:
        rows["train"] += _unlabelled(reader, cfg.unlabelled, rows, dropped)
    rows["train"] += [
        row | {"id": row_hash([row["id"], copy])}
        for copy in range(1, cfg.mask_copies)
        for row in rows["train"]
    ]
    if cfg.eval_limit:
        rows |= {split: limited(rows[split], cfg.eval_limit) for split in ("validation", "test")}
    schema.require(rows["train"])
    labels = list(schema.labels)
    fingerprint = digest(labels, {split: rows[split] for split in SPLITS})
    splits = {split: datasets.Dataset.from_list(rows[split]) for split in SPLITS}
    commit = sources["train"][0].commit
    return Data(splits, labels, fingerprint, commit, dict(dropped), reader.readings, schema.suspicions)


def _unlabelled(
    reader: SplitReader, name: str, rows: dict[str, list[Row]], dropped: Counter[str]
) -> list[Row]:
    """Return the rows of a source without labels that are in no split."""
    schema = reader.schema.unlabelled()
    rows_read = clean_rows(schema, reader.read_unlabelled(schema, name), dropped)
    taken = {schema.group(row) for split in SPLITS for row in rows[split]}
    disjoint = [row for row in rows_read if schema.group(row) not in taken]
    if not disjoint:
        raise DataError(
            f"dataset.unlabelled = {name}: all its rows stand in train, validation or test as well; give other text, or leave "
            "it out"
        )
    if len(disjoint) < len(rows_read):
        logger.info(
            "%s: %d rows dropped (they are in train, validation or test)",
            name,
            len(rows_read) - len(disjoint),
        )
        dropped["unlabelled, in train, validation or test as well"] += len(rows_read) - len(disjoint)
    return disjoint[: schema.cfg.unlabelled_limit]


def require_batch(rows: int, batch_size: int, what: str, key: str) -> None:
    """Refuse fewer rows than one batch.

    Raises:
        ConfigError
    """
    if rows < batch_size:
        raise ConfigError(
            f"{what}: {rows} rows are fewer than one batch ({key} = {batch_size}); lower it, or add data"
        )
