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
    """Columns prompt and completion, or messages, or text. Rows are the same if every character is.

    Rows with one prompt stay together: the same first turn of the user, or text, but for case and white space.
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
        """Texts, or the turns of a conversation."""
        if self.fields == ["messages"]:
            return (_turns(values[0], where),)
        return tuple(
            require_text(value, f"the {field}", where)
            for field, value in zip(self.fields, values, strict=True)
        )

    def row(self, values: tuple[Any, ...], where: str) -> Row | None:
        """Its id is a hash of all that it holds."""
        texts: list[str] = []

        def tidy(value: Any, field: str) -> Any:
            if isinstance(value, list):
                return [turn | {"content": tidy(turn["content"], field)} for turn in value]
            text = self.replaced(value)
            texts.append(text.strip())
            joined = (
                field in ("prompt", "completion") and not self.cfg.chat
            )  # what stands between them is theirs
            return texts[-1] if not joined else text.lstrip() if field == "prompt" else text.rstrip()

        tidied = [tidy(value, field) for field, value in zip(self.fields, values, strict=True)]
        if not all(texts):
            return None
        return {"id": row_hash(tidied), **dict(zip(self.fields, tidied, strict=True))}

    def group(self, row: Row) -> str:
        """The prompt; a conversation that no user begins stands by itself."""
        said = [turn["content"] for turn in row.get("messages", ()) if turn["role"] == "user"]
        prompt = row.get("prompt") or row.get("text") or next(iter(said), row["id"])
        return row_hash([fold_white_space(prompt).casefold()])


def _turns(value: Any, where: str) -> list[dict[str, str]]:
    """A conversation, also as the JSON that a csv file holds: role and content of each turn, and nothing else."""
    expected = 'a list of {"role": …, "content": …}'
    if isinstance(value, str):
        with contextlib.suppress(ValueError):
            value = decode_json(value)
    if not isinstance(value, list):
        raise DataError(f"{where}: the messages are {shown(value)}; expected {expected}, or that as JSON")
    turns = []
    for number, turn in enumerate(value, 1):
        if not isinstance(turn, dict) or not {"role", "content"} <= turn.keys():
            raise DataError(f"{where}: message {number} is {shown(turn)}; expected {expected}")
        turns.append(
            {
                key: require_text(turn[key], f"the {key} of message {number}", where)
                for key in ("role", "content")
            }
        )
    if not any(turn["role"] == "assistant" for turn in turns):
        roles = listed(dict.fromkeys(turn["role"] for turn in turns)) or "none"
        raise DataError(
            f"{where}: no message has the role assistant (roles: {roles}), and only what it says is learnt; remove "
            "the row, or rename the roles"
        )
    return turns
