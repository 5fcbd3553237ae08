"""Declares text classification."""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING, ClassVar

from kdcli.config.tasks import TaskSpec
from kdcli.errors import shown

if TYPE_CHECKING:
    from kdcli.config.dataset import Dataset


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
    quantizable = True

    def implied_by(self, cfg: Dataset) -> bool:
        """Return whether there are columns of texts and labels; the columns of every other task are named."""
        return True

    def check(self, cfg: Dataset) -> None:
        """Check that the columns differ, and that there is one with labels."""
        for first, second in itertools.combinations(("text", "text_pair", "label"), 2):
            column = getattr(cfg, first)
            if column and column == getattr(cfg, second):
                raise ValueError(f"{first} and {second}: both are the column {shown(column)}; name two")
        if cfg.label is None:
            raise ValueError("label = null: classification needs the label's column")


SPEC = ClassificationSpec()
