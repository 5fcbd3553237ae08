"""Merges the gold labels of several annotators, and separates rows without a gold label."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Mapping, Sequence

from kdcli.errors import DataError
from kdcli.tasks.rows import IGNORE, RawSplit, Row, RowSchema

logger = logging.getLogger(__name__)
UNLABELLED = "without a gold label"
"""The reason for which a row is dropped."""
CONTESTED = 0.02
"""The least share of texts with differing labels that is a suspicion."""


def merge_duplicates(
    schema: RowSchema, rows: dict[str, Row], others: Mapping[str, Sequence[tuple[RawSplit, Row]]]
) -> None:
    """Replace the first row of each text that occurs several times by a row that merges all of them, and report how many have differing labels.

    Args:
        rows: the first row of each id.
        others: the further rows of an id, each with the source that counts its dropped rows.
    """
    contested = tied = 0
    for row_id, further in others.items():
        same_text = [rows[row_id], *(row for _, row in further)]
        rows[row_id] = merged = schema.merged(same_text)
        labels = [row["label"] for row in same_text if row.get("label", IGNORE) != IGNORE]
        for part, row in further:
            same = row.get("label") == merged.get("label")
            part.dropped["duplicates" if same else "duplicates with another label"] += 1
        contested += any(label != labels[0] for label in labels)
        tied += bool(labels) and merged["label"] == IGNORE
    if not contested:
        return
    text = f"{schema.cfg.path}: the labels of {contested} of {len(rows)} texts differ between their rows: {schema.decision(tied)}"
    if contested < CONTESTED * len(rows):
        logger.info("%s", text)
        return
    logger.warning("%s", text)
    key = "dataset.duplicates" if "dataset.duplicates" in text else None
    figures = {"share": contested / len(rows), "rows": contested}
    schema.suspicions.append({"kind": "contradicting_labels", "text": text, "key": key, **figures})


def set_apart(
    schema: RowSchema, rows: dict[str, list[Row]], dropped: Counter[str]
) -> tuple[dict[str, list[Row]], list[Row]]:
    """Return the splits without rows that have no gold label, and those of the training rows, which no split is carved of.

    Args:
        dropped: counts the rows of validation and test without a gold label, and with `dataset.bad_rows=drop` those of train.

    Raises:
        DataError: no training row has a gold label.
    """
    unlabelled = {split: [row for row in own if row.get("label") == IGNORE] for split, own in rows.items()}
    if not any(unlabelled.values()):
        return rows, []
    labelled = {split: [row for row in own if row.get("label") != IGNORE] for split, own in rows.items()}
    if not labelled["train"]:
        raise DataError(
            f"{schema.cfg.path}: no row of train has a label that counts: all are missing, or as many rows of a text have one label as another; correct "
            "dataset.path or dataset.label, or train on the share of each label (dataset.duplicates=soft)"
        )
    apart = [schema.settled(row) for row in unlabelled["train"]]
    if schema.cfg.bad_rows == "drop":
        apart = [row for row in apart if row["label"] != IGNORE]
    if missing := sum(map(len, unlabelled.values())) - len(apart):
        dropped[UNLABELLED] += missing
    return labelled, apart
