"""From rows to splits: duplicates, cleaning, and rows carved out for validation and test."""

from __future__ import annotations

import itertools
import logging
from collections import Counter

from kdcli.errors import DataError
from kdcli.tasks.rows import RawSplit, Row, RowSchema, log_level

logger = logging.getLogger(__name__)
SPLITS = ("train", "validation", "test")


def clean_rows(kind: RowSchema, parts: list[RawSplit], dropped: Counter[str]) -> list[Row]:
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
        log_dropped(part.name, part.dropped)
        dropped += part.dropped
    return sorted(rows.values(), key=lambda row: (kind.group(row), row["id"]))


def log_dropped(name: str, dropped: Counter[str]) -> None:
    for why, count in dropped.items():
        logger.info("%s: %d rows left out (%s)", name, count, why)


def filter_rows(kind: RowSchema, train: list[Row], dropped: Counter[str]) -> list[Row]:
    """The training rows that `dataset.clean` keeps; a warning if they are much fewer."""
    kept, weeds = kind.filtered(train)
    log_dropped(kind.cfg.path, weeds)
    dropped += weeds
    said = ", ".join(f"{why}: {count}" for why, count in weeds.items())
    remedy = "turn it off with dataset.clean.identical=false, dataset.clean.max_ratio=null or dataset.clean.script=false"
    if weeds and not kept:
        raise DataError(
            f"{kind.cfg.path}: dataset.clean leaves none of the {len(train)} training rows ({said}); look at them, or {remedy}"
        )
    if log_level(weeds.total(), len(train)) == logging.WARNING:
        logger.warning(
            "%s: dataset.clean left out %.0f %% of the training rows (%s); if nothing is wrong with them, %s",
            kind.cfg.path,
            100 * weeds.total() / len(train),
            said,
            remedy,
        )
    return kept


def disjoint_splits(
    kind: RowSchema, rows: dict[str, list[Row]], dropped: Counter[str]
) -> dict[str, list[Row]]:
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


def carve_splits(kind: RowSchema, rows: dict[str, list[Row]]) -> dict[str, list[Row]]:
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
