"""From rows to splits: duplicates, cleaning, and rows carved out for validation and test."""

from __future__ import annotations

import itertools
import logging
from collections import Counter

from kdcli.data.gold import lacks_labels, merge_duplicates, stratified
from kdcli.data.raw_rows import UNREADABLE, BadRows
from kdcli.errors import DataError
from kdcli.tasks.rows import RawSplit, Row, RowSchema, log_level

logger = logging.getLogger(__name__)
SPLITS = ("train", "validation", "test")


def clean_rows(schema: RowSchema, parts: list[RawSplit], dropped: Counter[str]) -> list[Row]:
    """Make rows of raw values, without duplicates, in the order of their groups and ids, which is a fixed shuffle.

    Args:
        dropped: counts the dropped rows by reason.
    """
    rows: dict[str, Row] = {}
    others: dict[str, list[tuple[RawSplit, Row]]] = {}
    for part in parts:
        bad = BadRows(schema.cfg.bad_rows)
        for number, values in enumerate(part.rows, 1):
            try:
                row = schema.row(values, f"{part.name}, row {number}")
            except DataError as error:
                bad.add(error.message)
                continue
            if row is None:
                part.dropped["empty after dataset.replace"] += 1
            elif rows.setdefault(row["id"], row) is not row:
                others.setdefault(row["id"], []).append((part, row))
        bad.warn(part.name, len(part.rows) - bad.count)
        if bad.count:
            part.dropped[UNREADABLE] += bad.count
    merge_duplicates(schema, rows, others)
    for part in parts:
        log_dropped(part.name, part.dropped)
        dropped += part.dropped
    return sorted(rows.values(), key=lambda row: (schema.group(row), row["id"]))


def log_dropped(name: str, dropped: Counter[str]) -> None:
    for why, count in dropped.items():
        logger.info("%s: %d rows dropped (%s)", name, count, why)


def filter_rows(schema: RowSchema, train: list[Row], dropped: Counter[str]) -> list[Row]:
    """Filter the training rows by `dataset.clean`; warn if it drops many."""
    kept, filtered = schema.filtered(train)
    log_dropped(schema.cfg.path, filtered)
    dropped += filtered
    reasons = ", ".join(f"{why}: {count}" for why, count in filtered.items())
    remedy = "turn it off with dataset.clean.identical=false, dataset.clean.max_ratio=null or dataset.clean.script=false"
    if filtered and not kept:
        raise DataError(
            f"{schema.cfg.path}: dataset.clean leaves none of the {len(train)} training rows ({reasons}); look at them, or {remedy}"
        )
    if log_level(filtered.total(), len(train)) == logging.WARNING:
        logger.warning(
            "%s: dataset.clean drops %.0f %% of the training rows (%s); if nothing is wrong with them, %s",
            schema.cfg.path,
            100 * filtered.total() / len(train),
            reasons,
            remedy,
        )
    return kept


def disjoint_splits(
    schema: RowSchema, rows: dict[str, list[Row]], dropped: Counter[str]
) -> dict[str, list[Row]]:
    """Remove rows of the groups in test from validation and train, and rows of the groups in validation from train."""
    taken: set[str] = set()
    for split in reversed(SPLITS):
        if split not in rows:
            continue
        kept = [row for row in rows[split] if schema.group(row) not in taken]
        if len(kept) < len(rows[split]):
            logger.info(
                "%d rows of %s are dropped: they are in a later split as well",
                len(rows[split]) - len(kept),
                split,
            )
            dropped["in a later split as well"] += len(rows[split]) - len(kept)
        if not kept:
            later = " or ".join(SPLITS[SPLITS.index(split) + 1 :])
            raise DataError(
                f"{schema.cfg.path}: all rows of {split} are in {later} as well, and no row may be in two splits; name other files, "
                f"or leave dataset.{later.replace(' or ', '= and dataset.')}= out: a part of the training rows is then kept for it"
            )
        rows[split] = kept
        taken |= {schema.group(row) for row in kept}
    return rows


def carve_splits(schema: RowSchema, rows: dict[str, list[Row]]) -> dict[str, list[Row]]:
    """Take test and validation out of the training rows, if they have no source of their own.

    Groups stay together, and are taken in their order as long as they fit. Where this leaves a split or the training rows with one label of
    several, each label's rows are taken by its share.
    """
    cfg = schema.cfg
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
        for _, group in itertools.groupby(rows["train"], schema.group):
            members = list(group)
            (rows[split] if len(rows[split]) + len(members) <= count else rest).extend(members)
        if not rows[split]:
            raise DataError(
                f"{cfg.path}: rows with the same {schema.shared} stay in one split, and every {schema.shared} has more than the {count} "
                f"rows for {split}; give a larger dataset.{split}_size, or dataset.{split}="
            )
        if lacks_labels(rows[split], rest):
            rows[split], rest = stratified(rows["train"], count)
        rows["train"] = rest
    return rows
