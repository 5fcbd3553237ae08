"""Reports properties of a data set that make its results doubtful, in sentences with their figures."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterator
from typing import Any

from kdcli.config.dataset import Dataset as DatasetConfig
from kdcli.config.schema import Distill as Config
from kdcli.data.dataset import Data
from kdcli.data.near_duplicates import ROWS, near_duplicates, texts_of
from kdcli.errors import DataError, shown
from kdcli.tasks.rows import IGNORE, labels_of

logger = logging.getLogger(__name__)
NEAR = 0.01
"""The least share of test rows with a near-duplicate in train that is reported."""
NAMED = 5
"""The number of classes that a sentence names."""
Suspicion = dict[str, Any]
"""`kind`, `text` and `key` (null: no key mends it), and figures."""


def check_data(cfg: Config, data: Data) -> None:
    """Refuse data on which nothing can be judged, and add to its suspicions what makes its results doubtful. A smoke run continues.

    Raises:
        DataError
    """
    if cfg.smoke:
        return
    require_several_classes(cfg.dataset, data)
    for suspicion in find_suspicions(cfg.dataset, data):
        logger.warning("%s", suspicion["text"])
        data.suspicions.append(suspicion)


def find_suspicions(cfg: DatasetConfig, data: Data) -> list[Suspicion]:
    """Return what makes the results on a data set doubtful."""
    suspicions = [*_unseen_classes(data), *_missing_classes(data)]
    if cfg.near_duplicates == "warn":
        suspicions += _near_duplicates(data)
    return suspicions


def require_several_classes(cfg: DatasetConfig, data: Data) -> None:
    """Refuse a validation split of one class: no teacher is better than chance there, and each student is as good as the next.

    Raises:
        DataError
    """
    counts = class_counts(data, "validation")
    if (
        len(counts) != 1
        or len(class_counts(data, "train")) < 2
        or isinstance(data["validation"][0]["label"], list)
    ):
        return
    ((label, rows),) = counts.items()
    if cfg.validation:
        remedy = "name rows of every class with dataset.validation=, or leave it out: a part of the training rows is then kept for it"
    else:
        remedy = "give a larger dataset.validation_size, or dataset.validation="
    remedy += " (dataset.eval_limit shortens it)" * (cfg.eval_limit is not None)
    raise DataError(
        f"{cfg.validation or cfg.path}: all {rows} rows of validation have the label {shown(label)}, so that no model can be compared with "
        f"chance on them; {remedy}"
    )


def class_counts(data: Data, split: str) -> Counter[str]:
    """Return the number of rows of a split with each class, or with a word of each tag; empty for language models."""
    if not data.labels or "label" not in data[split].column_names:
        return Counter()
    rows = (set(labels_of(label)) - {IGNORE} for label in data[split]["label"][:])
    return Counter(data.labels[label] for labels in rows for label in labels)


def _unseen_classes(data: Data) -> Iterator[Suspicion]:
    """Yield classes of validation and test that no training row has."""
    for split in ("validation", "test"):
        if unseen := data.unseen_labels(split):
            yield {
                "kind": "unseen_classes",
                "text": f"{split} has labels that no training row has ({_counted(unseen)}), so they cannot be learned from this data; are they "
                "misspelt, or too rare?",
                "key": None,
                "split": split,
                "classes": dict(unseen),
            }


def _missing_classes(data: Data) -> Iterator[Suspicion]:
    """Yield classes of the training rows that validation or test lacks."""
    train = class_counts(data, "train")
    for split, consequence in (
        ("validation", "the best checkpoint is chosen without them"),
        ("test", "the scores do not measure them"),
    ):
        own = class_counts(data, split)
        if own and (missing := Counter({label: rows for label, rows in train.items() if label not in own})):
            rows = "row" if set(missing.values()) == {1} else "rows"
            yield {
                "kind": "missing_classes",
                "text": f"{split} lacks {len(missing)} of {len(train)} classes of the training rows ({_counted(missing)} training {rows}): "
                f"{consequence}; add rows of them, or give a larger dataset.{split}_size or other rows with dataset.{split}=",
                "key": f"dataset.{split}_size",
                "split": split,
                "classes": dict(missing),
            }


def _near_duplicates(data: Data) -> Iterator[Suspicion]:
    """Yield the share of test rows that have a near-duplicate in train."""
    test = data["test"].select(range(min(len(data["test"]), ROWS // 5)))
    train = data["train"].select(range(min(len(data["train"]), ROWS - len(test))))
    texts = texts_of(test), texts_of(train)
    pairs = near_duplicates(*texts)
    share = len(pairs) / len(test)
    if share < NEAR:
        return
    at, to = next(iter(sorted(pairs.items())))
    compared = "" if len(train) == len(data["train"]) else f" of the first {len(train):,} rows"
    yield {
        "kind": "near_duplicates",
        "text": f"{len(pairs):,} of {len(test):,} rows of test ({100 * share:.1f} %) have a near-duplicate in train{compared} ({shown(texts[0][at], 60)} and "
        f"{shown(texts[1][to], 60)}), so the scores count memorized rows; dataset.near_duplicates=group keeps them in one split",
        "key": "dataset.near_duplicates",
        "share": share,
        "rows": len(pairs),
    }


def _counted(classes: Counter[str]) -> str:
    named = ", ".join(f"{label}: {count}" for label, count in classes.most_common(NAMED))
    return named + " …" * (len(classes) > NAMED)
