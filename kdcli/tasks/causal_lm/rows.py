"""Rows of causal language models: prompts, conversations and plain text."""

from __future__ import annotations

import contextlib
from typing import Any

from kdcli.config.dataset import Dataset as DatasetConfig
from kdcli.errors import DataError, listed, shown
from kdcli.tasks.rows import (
    Row,
    RowSchema,
    decode_json,
    fold_white_space,
    require_text,
    row_hash,
)


class CausalLMRows(RowSchema):
    """Columns prompt and completion, or messages, or text. Rows are duplicates if all of their characters are equal.

    Rows with the same prompt (the first turn of the user, or the text, up to case and white space) stay in one split.
    """

    keys = "dataset.prompt= and dataset.completion=, dataset.messages=, or dataset.text="

    def __init__(self, cfg: DatasetConfig):
        super().__init__(cfg)
        if (folder := cfg.spec.formats.get(cfg.format)) is not None:
            self.fields = self.columns = list(folder.columns)
        else:
            self.fields = (
                ["messages"] if cfg.messages else ["prompt", "completion"] if cfg.prompt else ["text"]
            )
            self.columns = [getattr(cfg, field) for field in self.fields]

    def check(self, values: tuple[Any, ...], where: str) -> tuple[Any, ...]:
        """Check that the values are texts, or the turns of a conversation."""
        if self.fields == ["messages"]:
            return (_turns(values[0], where),)
        return tuple(
            require_text(value, f"the {field}", where)
            for field, value in zip(self.fields, values, strict=True)
        )

    def row(self, values: tuple[Any, ...], where: str) -> Row | None:
        """The id is a hash of all values."""
        texts: list[str] = []

        def tidy(value: Any, field: str) -> Any:
            if isinstance(value, list):
                return [turn | {"content": tidy(turn["content"], field)} for turn in value]
            text = self.replaced(value)
            texts.append(text.strip())
            joined = (
                field in ("prompt", "completion") and not self.cfg.chat
            )  # the white space between them belongs to them
            return texts[-1] if not joined else text.lstrip() if field == "prompt" else text.rstrip()

        tidied = [tidy(value, field) for field, value in zip(self.fields, values, strict=True)]
        if not all(texts):
            return None
        return {"id": row_hash(tidied), **dict(zip(self.fields, tidied, strict=True))}

    def group(self, row: Row) -> str:
        """The prompt; a conversation without a turn of the user is a group of its own."""
        user_turns = [turn["content"] for turn in row.get("messages", ()) if turn["role"] == "user"]
        prompt = row.get("prompt") or row.get("text") or next(iter(user_turns), row["id"])
        return row_hash([fold_white_space(prompt).casefold()])


def _turns(value: Any, where: str) -> list[dict[str, str]]:
    """The role and the content of each turn of a conversation, which in a csv file is JSON."""
    expected = 'a list of {"role": …, "content": …}'
    if isinstance(value, str):
        with contextlib.suppress(ValueError):
            value = decode_json(value)
    if not isinstance(value, list):
        raise DataError(f"{where}: the messages are {shown(value)}; expected {expected}, or that as JSON")
    turns = []
    for index, turn in enumerate(value, 1):
        if not isinstance(turn, dict) or not {"role", "content"} <= turn.keys():
            raise DataError(f"{where}: message {index} is {shown(turn)}; expected {expected}")
        turns.append(
            {
                key: require_text(turn[key], f"the {key} of message {index}", where)
                for key in ("role", "content")
            }
        )
    if not any(turn["role"] == "assistant" for turn in turns):
        roles = listed(dict.fromkeys(turn["role"] for turn in turns)) or "none"
        raise DataError(
            f"{where}: no message has the role assistant (roles: {roles}), and only its messages are learned; remove "
            "the row, or rename the roles"
        )
    return turns
