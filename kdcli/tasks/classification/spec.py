"""Declares text classification."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

from kdcli.config.tasks import TaskSpec
from kdcli.errors import shown

if TYPE_CHECKING:
    from kdcli.config.dataset import Dataset
    from kdcli.tasks.columns import Column, Fit
TEXTS = (
    "text", "sentence", "body", "content", "message", "review", "comment", "tweet", "utterance", "query", "question", "description", "title",
)  # fmt: skip
"""The usual names of columns of texts, the most usual first."""
PEOPLE = frozenset({
    "user", "username", "user_id", "userid", "author", "author_id", "sender", "from", "to", "reviewer", "customer", "owner", "speaker", "role",
})  # fmt: skip
"""Names of columns of people, who repeat and are no classes, unless the user says so. (Teams and assignees are: tickets are routed.)"""
PAIRS = (
    ("premise", "hypothesis"), ("claim", "evidence"), ("query", "passage"), ("query", "document"), ("question", "passage"),
    ("question", "context"), ("question", "sentence"), ("context", "question"),
)  # fmt: skip
"""The usual names of the columns of the two texts of a pair, besides those that differ in a number or a letter alone."""
SHORT = 20
"""Characters of a label, in the mean, in a column that is called so and may hold something else."""


class ClassificationSpec(TaskSpec):
    """One label a row, of one text or of a pair."""

    family = "classification"
    reads = frozenset({
        "text", "text_pair", "label", "augment", "labels", "labelled", "unlabelled", "unlabelled_limit", "no_label", "as_classes",
        "duplicates",
    })  # fmt: skip
    reads_of_run = frozenset({"trainer.token_dropout", "teacher.trainer.token_dropout"})
    only_here: ClassVar[dict[str, str]] = {"augment": "it replaces words of whole texts"}
    inference_order = 3
    script_arguments = '"A text." ["Its second text."]'
    column_keys = "dataset.text= and dataset.label="
    quantizable = True

    def implied_by(self, cfg: Dataset) -> bool:
        """Return whether there are columns of texts and labels; the columns of every other task are named."""
        return True

    def fits(self, columns: Sequence[Column], given: Mapping[str, Any]) -> Iterator[Fit]:
        """Yield a column of texts, or the two of a pair, with one of labels: the one that is given or is called so, or else each that looks like labels."""
        from kdcli.tasks.columns import (
            AMBIGUOUS,
            LABELS,
            LIKELY,
            NAMED,
            POSSIBLE,
            Fit,
            numbered_pairs,
            usual_pair,
        )

        columns = [column.with_label_names for column in columns]
        flat = [column for column in columns if not (column.is_spans or column.is_turns or column.is_mapping)]
        chosen = [column for column in flat if column.name == given.get("label")]
        named = [
            column
            for name in LABELS
            for column in flat
            if column.name.lower().rpartition(".")[2] == name
            and (column.looks_like_labels or column.name.lower() not in AMBIGUOUS)
        ]
        likely = [column for column in named if column.looks_like_labels or column.length <= SHORT]
        others = [column for column in flat if column.looks_like_labels and column.name.lower() not in PEOPLE]
        ways = ((chosen, NAMED), (likely[:1], NAMED), (others, LIKELY), (named[:1], POSSIBLE))
        labels, sureness = next((way for way in ways if way[0]), ways[-1])
        labels = [label if label in chosen else label.named_by(flat) for label in labels]
        for label in labels:
            texts = [
                column
                for column in columns
                if column.is_text and column is not label and column.filled >= 0.5
            ]
            texts = [column for column in texts if not column.looks_like_labels] or texts
            pair = usual_pair(texts, (*PAIRS, *numbered_pairs(texts)), lambda first, second: True)
            if pair and not {"text", "text_pair"} & {*given}:
                yield Fit({"text": pair[0], "text_pair": pair[1], "label": label.name}, sureness)
                continue
            second = {"text_pair": str(given["text_pair"])} if given.get("text_pair") else {}
            texts = [column for column in texts if column.name not in second.values()]
            chosen = [column for column in columns if column.name == given.get("text")]
            usual = [column for name in TEXTS for column in texts if column.name.lower() == name]
            longest = sorted(texts, key=lambda column: -column.length)
            for text in [*chosen, *usual, *longest][:1]:
                yield Fit({"text": text.name, **second, "label": label.name}, sureness)

    def check(self, cfg: Dataset) -> None:
        """Check that the columns differ, and that there is one with labels."""
        for first, second in itertools.combinations(("text", "text_pair", "label"), 2):
            column = getattr(cfg, first)
            if column and column == getattr(cfg, second):
                raise ValueError(f"{first} and {second}: both are the column {shown(column)}; name two")
        if cfg.label is None:
            raise ValueError("label = null: classification needs the label's column")


SPEC = ClassificationSpec()
