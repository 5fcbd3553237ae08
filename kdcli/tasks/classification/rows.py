"""Reads rows of text classification."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from kdcli.config.dataset import Dataset as DatasetConfig
from kdcli.errors import DataError, listed, shown
from kdcli.tasks.classification.labels import (
    no_labels,
    require_classes,
    require_common,
    single,
    spelling_of,
    unknown_label,
)
from kdcli.tasks.labels import Label, by_place, in_order, matcher, read_label, require_label_name
from kdcli.tasks.rows import IGNORE, LabelledRows, RawSplits, Row, fold_white_space, require_text, row_hash

logger = logging.getLogger(__name__)


class ClassificationRows(LabelledRows):
    """Reads columns text, (text_pair) and label: an index into the label names, -100 where there is no gold label. With `dataset.duplicates=soft`
    also votes: the index of each row's label that was joined to this one, sorted.

    Rows whose texts differ only in case and white space are duplicates. White space is folded.
    """

    keys = "dataset.text= and dataset.label="

    def __init__(self, cfg: DatasetConfig):
        super().__init__(cfg)
        self.columns = [column for column in (cfg.text, cfg.text_pair, cfg.label) if column]
        self.written: dict[str, Label] = {}
        self.soft = cfg.duplicates == "soft"

    def check(self, values: tuple[Any, ...], where: str) -> tuple[Any, ...]:
        """Check that the texts are texts, and return them with the label as it is written."""
        texts = values[:-1] if self.has_gold else values
        label = self._label(values[-1], where) if self.has_gold else None
        return *(require_text(value, "the text", where) for value in texts), label

    def _label(self, value: Any, where: str) -> Label:
        """Return a label as it is written; each text is read once."""
        if not isinstance(value, str):
            return read_label(value, where)
        if value not in self.written:
            self.written[value] = read_label(value, where)
        return self.written[value]

    def declare(self, sources: RawSplits) -> None:
        """Set the names of the labels: those given, those declared, or all that the sources have, sorted; and which label each spelling is.

        Raises:
            DataError: the column holds no classes, a split has no labels, or the labels of a split are not those of train.
        """
        cfg, path = self.cfg, self.cfg.path
        written = {
            split: Counter(row[-1] for part in parts for row in part.rows) for split, parts in sources.items()
        }
        self._warn_of_rejected()
        name_of = single(sum(written.values(), Counter()), cfg.as_classes, path)
        labels: dict[str, Counter[str]] = {}
        for split, counts in written.items():
            labels[split] = Counter()
            for label, rows in counts.items():
                if (name := name_of[label]) is not None:
                    labels[split][name] += rows
        names = cfg.labels or sources["train"][0].names
        none = no_labels(labels, cfg.no_label, names, path)
        for split, counts in written.items():
            self._tell_unlabelled(split, counts.total(), labels[split], none)
        gold = {
            split: Counter({label: rows for label, rows in counts.items() if label not in none})
            for split, counts in labels.items()
        }
        names, index = self._given(names, none, gold) if names else self._names_in(gold)
        self.labels = names
        self.index = {}
        for label, name in name_of.items():
            if name is None or name in none:
                self.index[label] = IGNORE
            elif name in index:
                self.index[label] = index[name]

    def _given(
        self, names: Sequence[str], none: set[str], labels: Mapping[str, Counter[str]]
    ) -> tuple[list[str], dict[str, int]]:
        """Return the names that are given or declared, and the index of each label that is one of them, by its name or by its number."""
        names = [name for name in names if name not in none]
        for name in names:
            require_label_name(name, f"{self.cfg.path}: a label's name")
        find = matcher(names)
        order = in_order(set().union(*labels.values()))
        index = {label: at for label in order if (at := find(label)) is not None}
        if numbers := by_place([label for label in order if label not in index], names):
            logger.info(
                "%s: the labels %s are read as %s, by their place in dataset.labels",
                self.cfg.path, listed(numbers, 200), listed((names[at] for at in numbers.values()), 200),
            )  # fmt: skip
        return names, numbers | index

    def _names_in(self, labels: Mapping[str, Counter[str]]) -> tuple[list[str], dict[str, int]]:
        """Return the names of all labels in their order, and the index of each spelling."""
        cfg, path = self.cfg, self.cfg.path
        if not cfg.as_classes:
            require_classes(sum(labels.values(), Counter()), path, str(cfg.label))
        name_of = spelling_of(labels, path)
        require_common(
            {split: {name_of[label] for label in counts} for split, counts in labels.items()}, path
        )
        self.labels = names = in_order(set(name_of.values()))
        self._warn_of_alike()
        return names, {label: names.index(name) for label, name in name_of.items()}

    def _tell_unlabelled(self, split: str, rows: int, labels: Counter[str], none: set[str]) -> None:
        """Log how many rows of a split have no gold label.

        Raises:
            DataError: none has one.
        """
        written = {shown(label): labels[label] for label in in_order(none) if labels[label]}
        empty = rows - labels.total()
        missing = empty + sum(written.values())
        if not missing:
            return
        counts = ({"empty": empty} if empty else {}) | written
        spellings = ", ".join(f"{label}: {count:,}" for label, count in counts.items())
        where = f"{self.cfg.path}: "
        if missing == rows:
            remedy = (
                "the control, validation and test need some; name labelled rows with dataset.path=, and these with dataset.unlabelled="
                if split == "train"
                else f"leave dataset.{split}= out, and a part of the training rows is kept for it, or name rows with labels"
            )
            raise DataError(
                f"{where}none of the {rows:,} rows of {split} has a gold label ({spellings}); {remedy}"
            )
        decision = "they are dropped"
        if split == "train" and self.cfg.bad_rows == "error":
            decision = "they are text that only the teacher labels (dataset.bad_rows=drop drops them)"
        classes = "; if these are classes, name all classes with dataset.labels=[…]" if written else ""
        logger.warning(
            "%s%d of %d rows of %s have no gold label (%s): %s%s",
            where, missing, rows, split, spellings, decision, classes,
        )  # fmt: skip

    def index_of(self, label: Any, where: str) -> int:
        """Return the index of a label among the names; -100 if the row has no gold label.

        Raises:
            DataError: it is not among the names.
        """
        if not self.has_gold:
            return IGNORE
        if label not in self.index:
            raise unknown_label("|".join(label) if isinstance(label, tuple) else label, self.labels, where)
        return self.index[label]

    def row(self, values: tuple[Any, ...], where: str) -> Row | None:
        """Make a row whose id is a hash of the case-folded texts."""
        *texts, label = values
        index = self.index_of(label, where)
        texts = [fold_white_space(self.replaced(text)) for text in texts]
        if not all(texts):
            return None
        row: Row = {"id": row_hash([text.casefold() for text in texts]), "text": texts[0]}
        if len(texts) > 1:
            row["text_pair"] = texts[1]
        row["label"] = index
        return row | {"votes": [index] * (index != IGNORE)} if self.soft else row

    def hide(self, row: Row) -> None:
        """Set the label to -100."""
        row |= {"label": IGNORE, "votes": []} if self.soft else {"label": IGNORE}

    def merged(self, rows: Sequence[Row]) -> Row:
        """Merge duplicate rows: return the first one with the label of the majority, or without a label on a tie."""
        votes = sorted(row["label"] for row in rows if row["label"] != IGNORE)
        best = _most(votes)
        row = rows[0] | {"label": best[0] if len(best) == 1 else IGNORE}
        return row | {"votes": votes} if self.soft else row

    def decision(self, tied: int) -> str:
        """State that the label of each is that of most rows."""
        if self.soft:
            return f"the loss on gold labels takes the share of each, and scores that of most rows ({tied} have none, and are in train alone)"
        return (
            f"the label of most rows counts ({tied} have none, and are text that only the teacher labels); dataset.duplicates=soft trains "
            "on the share of each"
        )

    def settled(self, row: Row) -> Row:
        """Return the row; with soft gold labels, one whose votes are equal gets the first of its labels."""
        return row | {"label": _most(row["votes"])[0]} if row.get("votes") else row

    def group(self, row: Row) -> str:
        """Return the id: each row is a group of its own."""
        return row["id"]


def _most(votes: Sequence[int]) -> list[int]:
    """Return the labels that most votes are for, in their order."""
    counts = Counter(votes)
    return sorted(label for label, count in counts.items() if count == max(counts.values()))
