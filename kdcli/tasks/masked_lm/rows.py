"""Reads rows of masked language models."""

from __future__ import annotations

from kdcli.tasks.causal_lm.rows import CausalLMRows


class MaskedLMRows(CausalLMRows):
    """Column text, as causal_lm has it."""

    keys = "dataset.text="
