"""Loads the data set that a config describes: read, checked, cleaned, split and fingerprinted."""

from __future__ import annotations

import logging
import os
from collections import Counter
from collections.abc import Collection
from dataclasses import dataclass, field

import datasets

from kdcli.config.dataset import Dataset as DatasetConfig
from kdcli.data.hub import read_hub
from kdcli.data.readers import read_file, read_gettext
from kdcli.data.splits import SPLITS, carve_splits, clean_rows, disjoint_splits, filter_rows
from kdcli.errors import ConfigError, DataError
from kdcli.files import digest
from kdcli.hub import data_path
from kdcli.tasks import task_class
from kdcli.tasks.rows import IGNORE, RawSplit, Row, RowSchema, labels_of, row_hash

logger = logging.getLogger(__name__)
datasets.disable_progress_bars()  # the run has its own


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

    def unseen_labels(self, split: str) -> Counter[str]:
        """The gold labels of a split that no training row has, and how often it has them."""
        if not self.labels:
            return Counter()
        known = {IGNORE, *(label for row in self["train"]["label"][:] for label in labels_of(row))}
        there = (label for row in self[split]["label"][:] for label in labels_of(row))
        return Counter(self.labels[label] for label in there if label not in known)


def without(rows: datasets.Dataset, ids: Collection[str]) -> datasets.Dataset:
    """The rows but for those with one of these ids."""
    return rows.select([row for row, key in enumerate(rows["id"][:]) if key not in ids]) if ids else rows


def with_gold(rows: datasets.Dataset, wanted: bool = True) -> datasets.Dataset:
    """The rows of a split that have a gold label, or of their labels any, or a translation: for language models all of them. Or
    (wanted = False) the others."""
    if "label" in rows.column_names:
        gold = (set(labels_of(label)) != {IGNORE} for label in rows["label"][:])
    elif "target" in rows.column_names:
        gold = (target is not None for target in rows["target"][:])
    else:
        return rows if wanted else rows.select([])
    chosen = [row for row, has in enumerate(gold) if has == wanted]
    return rows if len(chosen) == len(rows) else rows.select(chosen)


def load(cfg: DatasetConfig) -> Data:
    """The data set that the config describes.

    Raises:
        DataError: it cannot be found or read, a column is missing, a text is empty, a label is unknown or
            missing, words and tags are not of one number, a conversation has no answer, a split is empty, the training
            rows have a single class, or there is no catalogue of a language.
        ConfigError: there is no such task.
    """
    kind = task_class(cfg.kind).row_schema(cfg)
    sources = {"train": _read(kind, cfg.train)}
    for split, name in (("validation", cfg.validation), ("test", cfg.test)):
        if name:
            sources[split] = _read(kind, name)
    kind.declare(sources)
    dropped: Counter[str] = Counter()
    rows = {split: clean_rows(kind, parts, dropped) for split, parts in sources.items()}
    rows["train"] = filter_rows(kind, rows["train"], dropped)
    rows = carve_splits(kind, disjoint_splits(kind, rows, dropped))
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
        row | {"id": row_hash([row["id"], copy])}
        for copy in range(1, cfg.mask_copies)
        for row in rows["train"]
    ]
    if cfg.eval_limit:
        rows |= {split: rows[split][: cfg.eval_limit] for split in ("validation", "test")}
    kind.require(rows["train"])
    labels = list(kind.labels)
    fingerprint = digest(labels, {split: rows[split] for split in SPLITS})
    splits = {split: datasets.Dataset.from_list(rows[split]) for split in SPLITS}
    return Data(splits, labels, fingerprint, sources["train"][0].commit, dict(dropped))


def _unlabelled(kind: RowSchema, name: str, rows: dict[str, list[Row]], dropped: Counter[str]) -> list[Row]:
    """The rows of a source without labels that stand in no split."""
    found = clean_rows(kind, _read(kind, name), dropped)
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


def _read(kind: RowSchema, split: str) -> list[RawSplit]:
    """A hub split, or a file or the files of a folder (`split` is then its name, but for the training rows)."""
    cfg = kind.cfg
    if cfg.format == "hub":
        return [read_hub(kind, split)]
    given = cfg.path if split == cfg.train else split
    path = data_path(given, "folder" if cfg.format == "gettext" else "file")
    if cfg.format == "gettext":
        return read_gettext(kind, path, given)
    folder = cfg.spec.formats.get(cfg.format)
    if folder and os.path.isdir(path):
        files = sorted(file for file in path.iterdir() if file.suffix.lower() in folder.suffixes)
        if not files:
            raise DataError(f"the data folder {path} has no files *{', *'.join(folder.suffixes)}")
        return [read_file(kind, file, str(file)) for file in files]
    return [read_file(kind, path, given)]


def require_batch(rows: int, batch_size: int, what: str, key: str) -> None:
    """Refuse fewer rows than one batch.

    Raises:
        ConfigError
    """
    if rows < batch_size:
        raise ConfigError(
            f"{what}: {rows} rows are fewer than one batch ({key} = {batch_size}); lower it, or add data"
        )
