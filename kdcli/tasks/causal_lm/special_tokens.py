"""Finds special tokens in texts: those that the tokenizer or the chat template writes itself are removed, so that none is doubled."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

import datasets
from transformers import PreTrainedTokenizerBase

from kdcli.files import digest
from kdcli.prompts import special_tokens
from kdcli.tasks.causal_lm.chat import Chat


def without_repeated_tokens(
    rows: datasets.Dataset, tokenizer: PreTrainedTokenizerBase, chat: bool
) -> tuple[datasets.Dataset, Counter[str]]:
    """Return the rows without the special tokens that are written around their texts anyway, and the number of rows that had each token.

    These are the begin token before a text or a prompt, and the end token behind a text or a completion. In conversations they are the begin
    token of the template before a content, and the end tokens of the template behind it. A changed row has another id.

    Args:
        rows: of prompts and completions, conversations or plain text.
        chat: prompts and completions are conversations.
    """
    begins, ends = _written_tokens(tokenizer, chat)
    edges = {"messages": (begins, ends), "text": (begins, ends)}
    edges |= {"prompt": (begins, ends if chat else []), "completion": (begins if chat else [], ends)}
    removed: list[set[str]] = [set() for _ in range(len(rows))]
    changed: dict[str, list[Any]] = {}
    for column in [column for column in rows.column_names if any(edges.get(column, ()))]:
        changed[column] = [
            _bare(value, *edges[column], own) for value, own in zip(rows[column][:], removed, strict=True)
        ]
    counts = Counter(token for own in removed for token in own)
    if not counts:
        return rows, counts
    parts = zip(rows["id"][:], removed, *changed.values(), strict=True)
    changed["id"] = [digest(row_id, values)[:32] if own else row_id for row_id, own, *values in parts]
    for column, values in changed.items():
        feature = rows.features[column]
        rows = rows.remove_columns(column).add_column(column, values, feature=feature)
    return rows, counts


def _written_tokens(tokenizer: PreTrainedTokenizerBase, chat: bool) -> tuple[list[str], list[str]]:
    """Return the special tokens that stand before a text, and behind it, without being in it."""
    if chat:
        template = Chat(tokenizer)
        return template.begin_tokens, template.end_tokens
    before, _ = special_tokens(tokenizer)
    ends = [str(tokenizer.eos_token)] if tokenizer.eos_token_id is not None else []
    return [str(tokenizer.convert_ids_to_tokens(token)) for token in before], ends


def _bare(value: Any, begins: Sequence[str], ends: Sequence[str], removed: set[str]) -> Any:
    """Return a text, or turns, without these tokens at the edges of the text or of each content. They are added to `removed`."""
    if isinstance(value, list):
        return [{**turn, "content": _bare(turn["content"], begins, ends, removed)} for turn in value]
    for token in begins:
        if value.startswith(token):
            value = value.removeprefix(token).lstrip()
            removed.add(token)
    for token in reversed(ends):
        if value.endswith(token):
            value = value.removesuffix(token).rstrip()
            removed.add(token)
    return value
