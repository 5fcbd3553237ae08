"""Tokenizes prompts that are to be continued."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def appended(tokenizer: PreTrainedTokenizerBase) -> int:
    """Return the number of special tokens that a tokenizer appends to a text, such as an end token."""
    bare = tokenizer("x", add_special_tokens=False)["input_ids"]
    ids = tokenizer("x")["input_ids"]
    return next(
        (n for n in range(len(ids) - len(bare) + 1) if ids[len(ids) - n - len(bare) : len(ids) - n] == bare),
        0,
    )


def special_tokens(tokenizer: PreTrainedTokenizerBase) -> tuple[list[int], list[int]]:
    """Return the ids of the special tokens that a tokenizer puts before a text, and behind it."""
    ids, bare = tokenizer("x")["input_ids"], tokenizer("x", add_special_tokens=False)["input_ids"]
    end = len(ids) - appended(tokenizer)
    return ids[: end - len(bare)], ids[end:]


def tokenize_prompts(
    tokenizer: PreTrainedTokenizerBase, prompts: Sequence[str], special: bool
) -> list[list[int]]:
    """Return the token ids of prompts that are to be continued: no special token stands behind them, also if the tokenizer appends one to a text.

    Args:
        special: the tokenizer adds the special tokens before a text (a rendered chat has them already).
    """
    ids: list[list[int]] = (
        tokenizer(list(prompts), add_special_tokens=special)["input_ids"] if prompts else []
    )
    behind = appended(tokenizer) if special else 0
    return [row[: len(row) - behind] for row in ids]


def append_nothing(tokenizer: PreTrainedTokenizerBase) -> None:
    """Let a tokenizer append no special token to a text, so that other programs continue a prompt as `tokenize_prompts` does."""
    from tokenizers import processors

    backend = getattr(tokenizer, "backend_tokenizer", None)
    before, behind = special_tokens(tokenizer)
    if backend is None or not behind:
        return
    names = tokenizer.convert_ids_to_tokens(before)
    special = list(zip(names, before, strict=True))
    template: Any = processors.TemplateProcessing(
        single=[*names, "$A"], pair=[*names, "$A", "$B"], special_tokens=special
    )
    own = json.loads(backend.to_str())["post_processor"]
    steps = own["processors"] if own["type"] == "Sequence" else [own]
    if any("trim_offsets" in step for step in steps):  # byte-level tokenizers also trim offsets
        trims = any(step.get("trim_offsets") for step in steps)
        template = processors.Sequence([processors.ByteLevel(trim_offsets=trims), template])
    backend.post_processor = template
    if getattr(tokenizer, "add_eos_token", False):
        tokenizer.init_kwargs["add_eos_token"] = False
