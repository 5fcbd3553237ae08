"""Turns rows into splits: removes duplicates, cleans, and splits off validation and test."""

from __future__ import annotations

import logging
import math
import re
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from operator import itemgetter

from kdcli.config.dataset import Dataset
from kdcli.data.coverage import cover_classes
from kdcli.data.gold import merge_duplicates
from kdcli.data.near_duplicates import ROWS, clusters, text_of
from kdcli.data.raw_rows import UNREADABLE, BadRows
from kdcli.errors import DataError
from kdcli.tasks.rows import IGNORE, RawSplit, Row, RowSchema, log_level, row_hash

logger = logging.getLogger(__name__)
SPLITS = ("train", "validation", "test")
_DIGITS = 13
"""Hexadecimal digits of a hash that fit a float."""
_HASH = re.compile(r"[0-9a-f]{16}")


def clean_rows(schema: RowSchema, parts: list[RawSplit], dropped: Counter[str]) -> list[Row]:
    """Make rows of raw values, without duplicates, in the order of their groups and ids, which is a fixed shuffle.

    Args:
        dropped: counts the dropped rows by reason.
    """
    rows: dict[str, Row] = {}
    others: dict[str, list[tuple[RawSplit, Row]]] = {}
    for part in parts:
        bad = BadRows(schema.cfg.bad_rows)
        for number, values in enumerate(part.rows):
            try:
                row = schema.row(values, part.place(number))
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
    by_id = sorted(rows.values(), key=itemgetter("id"))
    return sorted(by_id, key=schema.group)


def log_dropped(name: str, dropped: Counter[str]) -> None:
    for why, count in dropped.items():
        logger.info("%s: %d rows dropped (%s)", name, count, why)


def filter_rows(schema: RowSchema, train: list[Row], dropped: Counter[str]) -> list[Row]:
    """Filter the training rows by `dataset.clean`; warn if it drops many."""
    remaining, filtered = schema.filtered(train)
    log_dropped(schema.cfg.path, filtered)
    dropped += filtered
    reasons = ", ".join(f"{why}: {count}" for why, count in filtered.items())
    remedy = "turn it off with dataset.clean.identical=false, dataset.clean.max_ratio=null or dataset.clean.script=false"
    if filtered and not remaining:
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
    return remaining


def groups_of(schema: RowSchema, rows: Mapping[str, Sequence[Row]]) -> Callable[[Row], str]:
    """Return the function that gives the group of a row: that of the schema, or with `dataset.near_duplicates=group` the first one of the groups of
    its near-duplicates."""
    if schema.cfg.near_duplicates != "group":
        return schema.group
    groups = {schema.group(row): row for part in rows.values() for row in part}
    ordered = sorted(groups)[:ROWS]
    if len(ordered) < len(groups):
        logger.warning(
            "%s: near-duplicates are searched in %d of %d rows", schema.cfg.path, len(ordered), len(groups)
        )
    first_of = clusters([text_of(groups[group]) for group in ordered])
    cluster_of = {group: ordered[first] for group, first in zip(ordered, first_of, strict=True)}
    joined = sum(group != first for group, first in cluster_of.items())
    logger.info("%s: %d near-duplicates stay in the split of another row", schema.cfg.path, joined)

    def group_of(row: Row) -> str:
        group = schema.group(row)
        return cluster_of.get(group, group)

    return group_of


def limited(rows: list[Row], limit: int) -> list[Row]:
    """Return the first rows. If they have one class and the others have another one, the last of them is the first row of another class."""
    if len(rows) <= limit or limit < 2 or not isinstance(rows[0].get("label"), int):
        return rows[:limit]
    label = rows[0]["label"]
    other = next((at for at, row in enumerate(rows) if row["label"] != label), 0)
    return rows[:limit] if other < limit else [*rows[: limit - 1], rows[other]]


def disjoint_splits(
    schema: RowSchema, rows: dict[str, list[Row]], dropped: Counter[str], group_of: Callable[[Row], str]
) -> dict[str, list[Row]]:
    """Remove rows of the groups in test from validation and train, and rows of the groups in validation from train."""
    taken: set[str] = set()
    for split in reversed(SPLITS):
        if split not in rows:
            continue
        remaining = [row for row in rows[split] if group_of(row) not in taken] if taken else rows[split]
        if len(remaining) < len(rows[split]):
            logger.info(
                "%d rows of %s are dropped: they are in a later split as well",
                len(rows[split]) - len(remaining),
                split,
            )
            dropped["in a later split as well"] += len(rows[split]) - len(remaining)
        if not remaining:
            later = " or ".join(SPLITS[SPLITS.index(split) + 1 :])
            raise DataError(
                f"{schema.cfg.path}: all rows of {split} are in {later} as well, and no row may be in two splits; name other files, "
                f"or leave dataset.{later.replace(' or ', '= and dataset.')}= out: a part of the training rows is then kept for it"
            )
        rows[split] = remaining
        if split != "train":
            taken |= {group_of(row) for row in remaining}
    return rows


def carve_splits(
    schema: RowSchema, rows: dict[str, list[Row]], dropped: Mapping[str, int], group_of: Callable[[Row], str]
) -> dict[str, list[Row]]:
    """Take test and validation out of the training rows, if they have no source of their own.

    A share takes the groups whose hash is in its part of the range, so that more rows move no group that is there: test has the lower end
    of the range and validation the upper one. A number of rows takes the groups that are nearest to these ends. The splits are stratified:
    where a class has more or fewer rows than its part, groups at the border move (`_stratified`), and each class has a group in every split
    where it has enough groups (`cover_classes`).

    Args:
        dropped: the numbers of dropped rows by reason, for messages.
        group_of: the group of a row.
    """
    cfg = schema.cfg
    sizes = {"test": cfg.test_size, "validation": cfg.validation_size}
    carved = [split for split in sizes if split not in rows]
    train = rows["train"]
    group_at = list(map(group_of, train))
    counts = Counter(group_at)
    order = in_order(counts)
    classes = _classes(train, group_at)
    strata = dict.fromkeys(order, frozenset[int]()) if isinstance(train[0].get("label"), list) else classes
    split_of = dict.fromkeys(order, "train")
    left = len(train)
    for index, split in enumerate(carved):
        others = len(carved) - index  # train and each split that follows keep one group
        count = _expected(cfg, sizes[split], split, len(train), left, others, dropped)
        free = [group for group, own in split_of.items() if own == "train"]
        if split == "validation":
            free.reverse()
        chosen = _stratified(free[: max(0, len(free) - others)], counts, strata, count, sizes[split], split)
        if not chosen:
            raise DataError(
                f"{cfg.path}: rows with the same {schema.shared} stay in one split, and every {schema.shared} has more than the {count} "
                f"rows for {split}; give a larger dataset.{split}_size, or dataset.{split}="
            )
        split_of |= dict.fromkeys(chosen, split)
        left -= sum(counts[group] for group in chosen)
    exact = {split for split in carved if sizes[split] >= 1}
    cover_classes(split_of, classes, counts, carved, exact)
    ordered = [group for group in order for _ in range(counts[group])]
    if group_at != ordered:  # groups that are no hashes, or that are joined
        rank = {group: index for index, group in enumerate(order)}
        ranked = sorted(range(len(train)), key=lambda index: rank[group_at[index]])
        train, group_at = [train[index] for index in ranked], ordered
    rows |= {split: [] for split in ("train", *carved)}
    for row, group in zip(train, group_at, strict=True):
        rows[split_of[group]].append(row)
    return rows


def in_order(groups: Collection[str]) -> list[str]:
    """Return groups in the order of their positions, and those of one position in the order of their characters."""
    if all(map(_HASH.match, groups)):  # the positions of hashes are ordered as their characters are
        return sorted(groups)
    return sorted(groups, key=lambda group: (position(group), group))


def position(group: str) -> float:
    """Return the place of a group in [0, 1), by its hash."""
    if not _HASH.match(group):  # a task of the user has groups that are not hashes
        group = row_hash([group])
    return int(group[:_DIGITS], 16) / 16**_DIGITS


def _expected(
    cfg: Dataset, size: float, split: str, total: int, left: int, others: int, dropped: Mapping[str, int]
) -> int:
    """Return the number of rows of a split, if the hash takes its share exactly.

    Args:
        total: the rows before any split is carved.
        left: those that are not in another split.
        others: the splits that the remaining rows are for.
        dropped: the numbers of dropped rows by reason.

    Raises:
        DataError: it leaves no row to train on.
    """
    count = int(size) if size >= 1 else max(1, round(size * total))
    if count <= left - others:
        return count
    remedy = f"give a smaller dataset.{split}_size"
    if total < 3:  # any size is too large
        remedy = "give dataset.validation= and dataset.test=, or more rows"
        remedy += " (documents end at blank lines)" if cfg.format == "txt" else ""
        remedy += f"; {dropped['duplicates']} rows are duplicates" if dropped.get("duplicates") else ""
    raise DataError(
        f"{cfg.path}: {count} rows for {split} leave none to train on ({left} are there); {remedy}"
    )


def _stratified(
    free: Sequence[str],
    counts: Mapping[str, int],
    strata: Mapping[str, frozenset[int]],
    count: int,
    size: float,
    split: str,
) -> list[str]:
    """Return the groups of a split: those of `_nearest`, but of each stratum its part of the split, within a tenth or one row.

    A stratum that has more or fewer loses or takes the groups that are nearest to the border. If the number of rows is given, the most frequent
    strata make up for it.

    Args:
        free: the groups, from the end of the range.
        counts: the rows of each group.
        strata: the classes of each group; empty: it has none, and the hash decides.
        count: the number of rows of the split.
    """
    nearest = _nearest(free, counts, count, size, split)
    rows_of, wanted = Counter[frozenset[int]](), Counter[frozenset[int]]()
    for group, stratum in strata.items():
        rows_of[stratum] += counts[group]
    for group in nearest:
        wanted[strata[group]] += counts[group]
    given = dict(wanted)
    share = size if size < 1 else count / rows_of.total()
    expected = {stratum: share * rows for stratum, rows in rows_of.items() if stratum}
    for stratum, rows in expected.items():
        fewest, most = _within_a_tenth(rows, round(rows), max(1, round(rows)))
        wanted[stratum] = min(max(wanted[stratum], fewest), most)
    if +wanted == given:
        return nearest
    if size >= 1:
        for stratum in sorted(expected, key=expected.__getitem__, reverse=True):
            rows, own = expected[stratum], wanted[stratum]
            fewest, most = _within_a_tenth(rows, math.floor(rows), math.ceil(rows))
            wanted[stratum] = min(max(own + count - wanted.total(), fewest), most)
    chosen = []
    for group in free:
        if counts[group] <= wanted[strata[group]]:
            wanted[strata[group]] -= counts[group]
            chosen.append(group)
    if size >= 1:  # a stratum has too few, or none of the right size
        taken = set(chosen)
        rest = [group for group in free if group not in taken]
        chosen += _nearest(rest, counts, count - sum(map(counts.__getitem__, chosen)), size, split)
    return chosen


def _within_a_tenth(rows: float, low: int, high: int) -> tuple[int, int]:
    """Return the bounds of a number of rows: within a tenth of it, and no narrower than `low` and `high`."""
    return min(low, math.ceil(0.9 * rows)), max(high, math.floor(1.1 * rows))


def _nearest(
    free: Sequence[str], counts: Mapping[str, int], count: int, size: float, split: str
) -> list[str]:
    """Return the groups of a split, from its end of the range. None has more rows than the split shall have.

    Args:
        free: the groups, from the end of the range.
        counts: the rows of each group.
        count: the number of rows; those of a share are at least a third of it, and else what the hash decides.
    """
    chosen, total = [], 0
    for group in free:
        rows = counts[group]
        if size >= 1:
            if total + rows > count:
                continue
        elif rows > count:
            continue
        elif 3 * total >= count and not (
            position(group) < size if split == "test" else position(group) >= 1 - size
        ):
            break
        chosen.append(group)
        total += rows
    return chosen


def _classes(rows: Iterable[Row], group_at: Iterable[str]) -> dict[str, frozenset[int]]:
    """Return the classes of the rows of each group; empty for language models.

    Equal sets are one object, because the garbage collector takes long for 100,000 of them.
    """
    single: dict[int, frozenset[int]] = {IGNORE: frozenset()}
    classes: dict[str, frozenset[int]] = {}
    for row, group in zip(rows, group_at, strict=True):
        label = row.get("label", IGNORE)
        if not isinstance(label, list):
            own = single.get(label) or single.setdefault(label, frozenset((label,)))
        else:
            own = frozenset(label) - {IGNORE}
        classes[group] = classes[group] | own if group in classes else own
    return classes
