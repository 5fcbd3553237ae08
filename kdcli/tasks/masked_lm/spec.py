"""Declares masked language modelling."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from kdcli.config.tasks import FolderFormat, TaskSpec
from kdcli.tasks.causal_lm.spec import require_text_alone

if TYPE_CHECKING:
    from kdcli.config.dataset import Dataset


class MaskedLMSpec(TaskSpec):
    """Plain text, some tokens of which are masked."""

    family = "masked_lm"
    reads = frozenset({"text", "mask_copies"})
    reads_of_run = frozenset({"teacher.top_k"})
    only_here: ClassVar[dict[str, str]] = {"mask_copies": "it masks other tokens in each copy of a text"}
    formats: ClassVar[dict[str, FolderFormat]] = {"txt": FolderFormat((".txt",), ("text",))}
    column_keys = "stages.NAME.dataset.task=masked_lm"
    general = True
    max_epochs = 3.0
    refuses_short = True

    def check(self, cfg: Dataset) -> None:
        """Check that the data set has a column of texts alone."""
        require_text_alone("masked_lm", cfg)
        others = [key for key in ("text_pair", "prompt", "messages", "words", "source") if getattr(cfg, key)]
        if others:
            raise ValueError(
                f"{others[0]}: masked_lm reads plain text alone; name its column with dataset.text, and leave {others[0]} out"
            )


SPEC = MaskedLMSpec()
