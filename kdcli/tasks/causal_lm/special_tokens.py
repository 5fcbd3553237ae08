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
    columns = [column for column in rows.column_names if column in edges and any(edges[column])]
    removed: Counter[str] = Counter()
    bare: list[dict[str, Any]] = []
    for row in rows if columns else ():
        own: Counter[str] = Counter()
        changes = {column: _bare(row[column], *edges[column], own) for column in columns}
        removed.update(own.keys())
        bare.append({**row, **changes, "id": digest(row["id"], changes)[:32]} if own else row)
    return (datasets.Dataset.from_list(bare, features=rows.features) if removed else rows), removed


def _written_tokens(tokenizer: PreTrainedTokenizerBase, chat: bool) -> tuple[list[str], list[str]]:
    """Return the special tokens that stand before a text, and behind it, without being in it."""
    if chat:
        template = Chat(tokenizer)
        return template.begin_tokens, template.end_tokens
    before, _ = special_tokens(tokenizer)
    ends = [str(tokenizer.eos_token)] if tokenizer.eos_token_id is not None else []
    return [str(tokenizer.convert_ids_to_tokens(token)) for token in before], ends


def _bare(value: Any, begins: Sequence[str], ends: Sequence[str], removed: Counter[str]) -> Any:
    """Return a text, or turns, without these tokens at the edges of the text or of each content. `removed` counts them."""
    if isinstance(value, list):
        return [{**turn, "content": _bare(turn["content"], begins, ends, removed)} for turn in value]
    for token in begins:
        if value.startswith(token):
            value = value.removeprefix(token).lstrip()
            removed[token] += 1
    for token in reversed(ends):
        if value.endswith(token):
            value = value.removesuffix(token).rstrip()
            removed[token] += 1
    return value
