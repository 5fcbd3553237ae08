"""Interprets the column of labels: which rows have no label, whether it holds classes, and their names."""

from __future__ import annotations

import logging
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from decimal import Decimal

from kdcli.config.dataset import NO_LABEL
from kdcli.errors import DataError, listed, shown, suggest
from kdcli.tasks.labels import DATE, Label, by_place, canonical, folded, in_order, number_of, override

logger = logging.getLogger(__name__)
MANY_CLASSES = 20
"""The number of different labels up to which a column holds classes, however few rows each has, and up to which numbers are classes without
a remark."""
FEW_ROWS = 3
"""The mean number of rows per label below which a column of more than `MANY_CLASSES` labels holds no classes, if half of them occur once."""
RARE = 0.1
"""The share of the training rows below which -1 among 0 and 1 means that there is no label."""
MISSING = frozenset({
    "nan", "NaN", "NAN", "-nan", "<NA>", "NA", "N/A", "n/a", "#N/A", "null", "NULL", r"\N", "#NULL!", "-100",
})  # fmt: skip
"""The texts that pandas, R, spreadsheets, databases and torch write for a missing label, besides an empty cell."""
UNCLEAR = frozenset(
    {"None", "?", ".", "undefined", "unlabeled", "unlabelled", "no label", "missing", "–", "—"}
)
"""The texts that may be a class, or may be the name that a program gives to a missing value."""
CODES = frozenset(map(Decimal, (-9, -99, -999, -9999, 99, 999, 9999)))
"""The numbers that surveys and statistics programs write for a missing value."""
FAR = 9
"""How many times as large as all other numbers a code is that does not belong to them."""
_SEPARATORS = ("|", ";", ",", "#", "/", "+", "&", " and ", " ")
_BETWEEN_LABELS = frozenset("|;,#")
"""The separators that stand between labels more often than in the name of one."""
_WHOLE = re.compile(r"[+-]?\d+,0{1,2}")
"""An integer with a decimal comma. (1,000 may be a thousand.)"""
_THOUSANDS = re.compile(r"[+-]?(?:\d+|\d{1,3}(?:[,. \u00a0\u2009\u202f'’]\d{3})+(?:[.,]\d{1,2})?)")
_DECIMAL_COMMA = re.compile(r"[+-]?\d+(?:,\d+)?")


def no_labels(
    sources: Mapping[str, Counter[str]], given: Sequence[str], names: Sequence[str] | None, path: str
) -> set[str]:
    """Return the spellings that mean that a row has no label.

    Args:
        sources: the rows of each label in train, validation and test.
        given: `dataset.no_label`. Its default is a guess, which is not made where -1 or - is a value of a scale, or where a single class would
            be left.
        names: the names of the classes, if they are given or declared.
    """
    labels = sum(sources.values(), Counter())
    keys = {canonical(name) for name in given}
    chosen = {label for label in labels if canonical(label) in keys}
    missing = {label for label in labels if label in MISSING}
    if list(given) == NO_LABEL:
        rest = labels.keys() - chosen - missing
        if chosen and _is_scale(chosen, sources["train"], rest, names, path):
            chosen = set()
        if names is None and len({canonical(label) for label in rest}) < 2:
            chosen, missing = set(), {label for label in missing if "nan" in label.casefold()}
        classes = {canonical(name) for name in names or ()}
        chosen = {label for label in chosen if canonical(label) not in classes}
    return chosen | (missing - set(names or ()))


def _is_scale(
    chosen: Iterable[str], train: Counter[str], rest: Iterable[str], names: Sequence[str] | None, path: str
) -> bool:
    """Return whether -1 or - is the lower end of a scale.

    Args:
        chosen: the spellings of -1 and -.
        train: the rows of each label.
        rest: the other labels.
        names: of the classes, if they are given.
    """
    numbers = {number for label in rest if (number := number_of(label)) is not None}
    if any(number < 0 for number in numbers) or any(label.startswith("+") for label in rest):
        return True
    if names is not None:
        return bool(numbers) and len(numbers) + 1 == len(names) and numbers <= {0, 1}
    rows = sum(train[label] for label in chosen if number_of(label) is not None)
    if (
        numbers != {0, 1}
        or len(numbers) < len({canonical(label) for label in rest})
        or rows < RARE * train.total()
    ):
        return False
    logger.warning(
        "%s: -1, 0 and 1 are read as three classes; if -1 means that a row has no label, give dataset.no_label=[-1]",
        path,
    )
    return True


# ---- the column as a whole ----------------------------------------------------------------------------


def single(labels: Mapping[Label, int], as_classes: bool, path: str) -> dict[Label, str | None]:
    """Return each label as one name. A list of one name is that name; a list of zeros and one 1 is the place of the 1; 1,0 among integers with a decimal
    comma is 1.

    Args:
        labels: the rows of each label.
        as_classes: take the combination of a list as one name.

    Raises:
        DataError: rows have several labels.
    """
    lists = {label: rows for label, rows in labels.items() if isinstance(label, tuple)}
    names_in = _places if _are_hot(lists) else lambda label: tuple(sorted(set(label)))
    names = {label: names_in(label) for label in lists}
    several = {label: rows for label, rows in lists.items() if len(names[label]) > 1}
    scores = [label for label in several if _are_scores(label)]
    if len(scores) > len(several) / 2 and not as_classes:
        raise DataError(
            f"{path}: {sum(several.values()):,} of {sum(labels.values()):,} rows have a list of numbers (such as {shown(list(scores[0]))}). This looks "
            "like the scores of all classes, or an embedding, and kdcli reads one label a row; write the class with the highest score, or give "
            "dataset.as_classes=true, which takes each combination as a class"
        )
    if several and not as_classes:
        has_votes = any(len(set(label)) < len(label) for label in several) and names_in is not _places
        votes = "; if they are votes, write a row for each and give dataset.duplicates=soft" * has_votes
        raise DataError(
            f"{path}: {sum(several.values()):,} of {sum(labels.values()):,} rows have a list of labels (such as {shown(list(next(iter(several))))}). "
            "This looks like multi-label classification, and kdcli trains classifiers of one label a row; leave one label a row, or give "
            f"dataset.as_classes=true, which takes each combination as a class{votes}"
        )
    are_whole = all(label is None or _WHOLE.fullmatch(str(label)) for label in labels)
    name_of: dict[Label, str | None] = {}
    for label in labels:
        if isinstance(label, tuple):
            name_of[label] = "|".join(names[label]) or None
        else:
            name_of[label] = label.partition(",")[0] if are_whole and label is not None else label
    return name_of


def _are_scores(label: Sequence[str]) -> bool:
    """Return whether all members of a list are numbers, and some are fractions."""
    numbers = [number_of(name) for name in label]
    return None not in numbers and any(number % 1 for number in numbers if number is not None)


def _are_hot(lists: Iterable[tuple[str, ...]]) -> bool:
    """Return whether lists are zeros and ones, one for each class."""
    sizes = {len(label) for label in lists}
    return len(sizes) == 1 and min(sizes) > 1 and set().union(*lists) <= {"0", "1"}


def _places(label: Sequence[str]) -> tuple[str, ...]:
    """Return where a list of zeros and ones has a one."""
    return tuple(str(index) for index, flag in enumerate(label) if flag == "1")


def require_classes(labels: Counter[str], path: str, column: str) -> None:
    """Refuse a column that looks like something else than classes: scores, several labels a row, identifiers or texts.

    Raises:
        DataError
    """
    if appearance := _appearance(labels):
        raise DataError(
            f"{path}: the column {shown(column)} {appearance}; or give dataset.as_classes=true, which takes each different value as a class"
        )
    if unclear := [label for label in labels if label in UNCLEAR] + _codes(labels):
        logger.warning(
            "%s: %s in the column %r is read as a class; if it means that there is no label, give %s",
            path, listed(unclear), column, override("dataset.no_label", [*NO_LABEL, *unclear]),
        )  # fmt: skip
    numbers = [number for label in labels if (number := number_of(label)) is not None]
    if len(numbers) == len(labels) > MANY_CLASSES:
        logger.warning(
            "%s: the %d numbers from %s to %s in the column %r are read as classes; if they are scores or counts, this is regression, which "
            "kdcli does not do (dataset.as_classes=true omits this warning)",
            path, len(numbers), min(numbers), max(numbers), column,
        )  # fmt: skip


def _codes(labels: Iterable[str]) -> list[str]:
    """Return the numbers that may mean a missing value: negative ones beside no other negative one than -1, or ones far beyond the others."""
    numbers = {label: number for label in labels if (number := number_of(label)) is not None}
    codes = {label: number for label, number in numbers.items() if number in CODES}
    others = [Decimal(0), *(number for label, number in numbers.items() if label not in codes)]
    smallest, largest = min(others), max(Decimal(1), *others)
    return [label for label, code in codes.items() if (smallest >= -1 if code < 0 else code > FAR * largest)]


def _appearance(labels: Counter[str]) -> str | None:
    """Return what a column looks like that holds no classes, and what to do about it; None: it looks like classes."""
    percent = all(label.endswith("%") for label in labels)
    numbers = {
        label: number
        for label in labels
        if (number := number_of(label.rstrip("% ") if percent else label)) is not None
    }
    fractions = [label for label, number in numbers.items() if number != number.to_integral_value()]
    most = listed((label for label, _ in labels.most_common(3)), 200)
    once = sum(rows == 1 for rows in labels.values())
    values = f"{len(labels):,} different values, such as {most}" + f"; {once:,} occur once" * bool(once)
    regression = (
        "That is regression, and kdcli trains classifiers; make classes of ranges of them in the data"
    )
    if (fractions or (percent and len(numbers) > MANY_CLASSES)) and sum(
        labels[label] for label in numbers
    ) >= 0.95 * labels.total():
        return f"looks like a score ({values}). {regression}"
    if all(map(DATE.fullmatch, labels)):
        return f"looks like dates or times ({values}); name the column of classes with dataset.label="
    if not all(label.lstrip("+-").isdecimal() for label in labels) and all(map(_THOUSANDS.fullmatch, labels)):
        return f"looks like numbers with a comma, a dot or a blank before the thousands ({values}); write them without it"
    if sum("," in label for label in labels) > 1 and all(map(_DECIMAL_COMMA.fullmatch, labels)):
        return (
            f"looks like a score with a decimal comma, or like several numbers a row ({values}). {regression}"
        )
    for separator in _SEPARATORS:
        if joined := _joined(labels, separator):
            rows = sum(labels[label] for label in joined)
            return (
                f"looks like several labels a row, joined by {shown(separator)} ({rows:,} of {labels.total():,} rows, such as {shown(joined[0])}). "
                "That is multi-label classification, and kdcli trains classifiers of one label a row; leave one label a row"
            )
    if len(labels) > MANY_CLASSES and labels.total() < FEW_ROWS * len(labels) <= 2 * FEW_ROWS * once:
        if len(numbers) == len(labels):
            return f"looks like a score, a count or an identifier ({values}). {regression}, or name the column of classes with dataset.label="
        return f"looks like free text or an identifier ({values}); name the column of classes with dataset.label="
    return None


def _joined(labels: Counter[str], separator: str) -> list[str]:
    """Return the labels that are several, joined by a separator; []: the separator is a part of names.

    They are several if there are more labels than parts, or (for separators that names seldom have) if the parts are numbers, or half of them
    are a label by themselves or stand at several places, which the levels of a hierarchy and a town with its country do not. Words of names
    (very good) are parts as well; they are labels only if most names are made of such parts alone.
    """
    parts = {label: [part.strip() for part in " ".join(label.split()).split(separator)] for label in labels}
    joined = [label for label, own in parts.items() if len(own) > 1 and all(own)]
    if not joined:
        return []
    levels_of: dict[str, set[int]] = {}
    for label in joined:
        for level, part in enumerate(parts[label]):
            levels_of.setdefault(part, set()).add(level)
    free = {part for part, at in levels_of.items() if part in labels or len(at) > 1}
    more = len(labels) > len(levels_of.keys() | labels.keys() - set(joined))
    if separator == " ":
        more = more and 2 * sum(free.issuperset(parts[label]) for label in joined) >= len(joined)
    several = 2 * len(free) >= len(levels_of) or all(number_of(part) is not None for part in levels_of)
    return joined if more or (several and separator in _BETWEEN_LABELS) else []


# ---- the names of all labels ---------------------------------------------------------------------------


def spelling_of(sources: Mapping[str, Counter[str]], path: str) -> dict[str, str]:
    """Return the name of each spelling: numbers of one value are one label, and so are spellings of true and false, and spellings that differ in case
    or white space and that no source has both of.

    Args:
        sources: the rows of each label in train, validation and test.
    """
    order = list(dict.fromkeys(label for counts in sources.values() for label in in_order(counts)))
    groups: dict[str, list[str]] = {}
    for label in order:
        groups.setdefault(folded(label), []).append(label)
    numeric = all(number_of(label) is not None for label in order)
    name_of: dict[str, str] = {}
    for key, spellings in groups.items():
        if number_of(key) is not None:
            name = key if numeric or len(spellings) > 1 else spellings[0]
            name_of |= dict.fromkeys(spellings, name)
        elif len(spellings) > 1 and _is_one(groups, spellings, sources):
            name_of |= dict.fromkeys(spellings, spellings[0])
            logger.info("%s: %s are read as one label", path, " and ".join(map(shown, spellings)))
        else:
            name_of |= {each: each for each in spellings}
    booleans = {folded(label) for label in order}
    if booleans <= {"true", "false", "0", "1"} and {"true", "false"} & booleans and {"0", "1"} & booleans:
        truth = {"true": "True", "1": "True", "false": "False", "0": "False"}
        name_of = {label: truth[folded(label)] for label in order}
        logger.info("%s: 0 and 1 are read as False and True", path)
    return name_of


def _is_one(
    groups: Mapping[str, list[str]], spellings: list[str], sources: Mapping[str, Counter[str]]
) -> bool:
    """Return whether spellings that differ in case or white space are one label."""
    return groups.keys() <= {"true", "false"} or all(
        sum(each in counts for each in spellings) < 2 for counts in sources.values()
    )


def require_common(sources: Mapping[str, set[str]], path: str) -> None:
    """Refuse a validation or test split of whose labels train has none, and warn of one that has others.

    Args:
        sources: the labels of each split.

    Raises:
        DataError
    """
    train = sources["train"]
    for split, labels in sources.items():
        if not labels or labels & train:
            if more := labels - train:
                logger.warning(
                    "%s: train has no row of the labels %s, which %s has; correct them, or add rows of them to train",
                    path,
                    listed(in_order(more), 200),
                    split,
                )
            continue
        remedy = "write them alike, or give the names of all classes with dataset.labels=[…]"
        if len(by_place(labels, in_order(train))) == len(labels):
            remedy = f"if they are numbers of these, give the names in the order of the numbers: {override('dataset.labels', in_order(train))}"
        elif len(by_place(train, in_order(labels))) == len(train):
            remedy = f"if those are numbers of these, give the names in the order of the numbers: {override('dataset.labels', in_order(labels))}"
        raise DataError(
            f"{path}: the labels of {split} ({listed(in_order(labels), 200)}) are not those of train ({listed(in_order(train), 200)}); {remedy}"
        )


def unknown_label(label: str, names: Sequence[str], where: str) -> DataError:
    """Return the error for a label that is not among the names."""
    return DataError(
        f"{where}: the label {shown(label)} is not among {listed(names)}{suggest(label, names)}; write it as one of them, add it to "
        "dataset.labels, or to dataset.no_label if it means that there is none"
    )
