"""Moves groups between splits, so that every split has each class."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence

TRIED = 3
"""The number of groups of a class that are tried for an exchange."""


def cover_classes(
    split_of: dict[str, str],
    classes: Mapping[str, frozenset[int]],
    rows: Mapping[str, int],
    carved: Sequence[str],
    exact: Collection[str],
) -> None:
    """Give each class a group in every split: the first group to train, the second to test, and the third to validation.

    A split that lacks a class takes the group of the class that is nearest to its end of the range of hashes: test the lowest, validation
    the highest one. A split never loses its last group of a class. No split shrinks to less than half of its rows, and none of
    `carved` grows to more than twice its rows, so that many rare classes leave rows to train and to test on. Frequent classes come first,
    and a split gives in exchange what it has most above its part.

    Args:
        split_of: the split of each group, in the order of their hashes; is changed.
        classes: the classes of each group.
        rows: the number of rows of each group.
        carved: the splits that groups may be in, without train.
        exact: those of them whose number of rows is given: a group is exchanged for one of the other split, or stays.
    """
    splits = ["train", *carved]
    groups_of: dict[int, list[str]] = {}
    members: dict[str, list[str]] = {split: [] for split in splits}
    for group, split in split_of.items():
        members[split].append(group)
        for label in classes[group]:
            groups_of.setdefault(label, []).append(group)
    needed = {label: splits[: len(groups)] for label, groups in groups_of.items()}
    counts = {
        split: Counter(itertools.chain.from_iterable(map(classes.__getitem__, own)))
        for split, own in members.items()
    }
    totals = Counter({split: sum(map(rows.__getitem__, own)) for split, own in members.items()})
    fewest = {split: totals[split] / 2 for split in splits}
    most = {split: 2 * totals[split] for split in carved} | {"train": totals.total()}

    def may_leave(group: str) -> bool:
        split = split_of[group]
        return all(counts[split][label] > 1 or split not in needed[label] for label in classes[group])

    def fits(group: str, split: str) -> bool:
        size, origin = rows[group], split_of[group]
        return totals[origin] - size >= fewest[origin] and totals[split] + size <= most[split]

    def surplus(group: str) -> float:
        split = split_of[group]
        share = totals[split] / totals.total()
        return min(
            (counts[split][label] - share * len(groups_of[label]) for label in classes[group]), default=0
        )

    def move(group: str, split: str) -> None:
        counts[split_of[group]].subtract(classes[group])
        totals[split_of[group]] -= rows[group]
        counts[split].update(classes[group])
        totals[split] += rows[group]
        split_of[group] = split

    for label, groups in sorted(groups_of.items(), key=lambda item: (-len(item[1]), item[0])):
        for split in needed[label]:
            if counts[split][label]:
                continue
            for group in itertools.islice(filter(may_leave, _from_end(groups, split)), TRIED):
                origin = split_of[group]
                if not {origin, split} & set(exact):
                    if fits(group, split):
                        move(group, split)
                    break
                move(group, split)
                partners = (
                    other for other in _exchanged(members[split], origin, split) if split_of[other] == split
                )
                if partner := max(filter(may_leave, partners), key=surplus, default=None):
                    move(partner, origin)
                    break
                move(group, origin)


def _from_end(groups: Sequence[str], split: str) -> Iterable[str]:
    """Return the groups in the order in which a split takes them."""
    if split == "train":
        middle = len(groups) // 2
        return [*groups[middle:], *reversed(groups[:middle])]
    return reversed(groups) if split == "validation" else groups


def _exchanged(groups: Sequence[str], origin: str, split: str) -> Iterator[str]:
    """Return the groups of a split in the order in which it gives them to `origin`: those first that are nearest to it in the range."""
    return iter(groups) if split == "validation" or origin == "test" else reversed(groups)
