"""Reads rows of causal language models: prompts, conversations and plain text."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from typing import Any, NamedTuple

from kdcli.config.dataset import Dataset as DatasetConfig
from kdcli.errors import DataError, listed, shown
from kdcli.tasks.causal_lm.conversations import (
    KEEP,
    THOUGHTS,
    extra_of,
    is_conversation,
    read_history,
    read_tools,
    read_turns,
    require_answer,
    split_thought,
    with_extra,
    without_thoughts,
)
from kdcli.tasks.pairs import marker_of
from kdcli.tasks.rows import RawSplits, Row, RowSchema, fold_white_space, require_text, row_hash

logger = logging.getLogger(__name__)
CONTEXT = {
    "tools": "tools", "functions": "tools", "system": "system", "system_prompt": "system", "systemInstruction": "system",
    "system_instruction": "system", "history": "history", "input": "input",
    "context": "input",
}  # fmt: skip
"""The columns that belong to a conversation besides its turns, by the name that `dataset.context` has for them."""
INSTRUCTION = "instruction"
"""The name of the column of prompts with which a column `input` (Alpaca) or `context` (Dolly) is a part of the prompt."""
TURNS = "[{ \t\n"
"""The first characters of texts that may be turns in JSON."""
UNREAD = {
    "rejected": "the answer that was not chosen",
    "label": "if it marks answers as good or bad, remove the bad ones",
    "rating": "if it marks answers as good or bad, remove the bad ones",
}
"""Columns of preference data that are not learned, for messages."""
MEDIA = ("image", "images", "audio", "audios", "video", "videos")
"""Columns of pictures and sounds, which are not learned."""


class Values(NamedTuple):
    """The checked values of a row."""

    texts: tuple[str, ...]
    """The text, or prompt and completion; empty for a conversation."""
    turns: list[dict[str, str]]
    """The turns of a conversation; of prompt and completion those before the prompt."""
    tools: str
    """The tools of a conversation, as JSON; empty: it has none."""


class CausalLMRows(RowSchema):
    """Reads columns prompt and completion, or messages, or text, and the columns `CONTEXT` of conversations. Rows are duplicates if all of their
    characters are equal.

    Prompts and completions that are lists of turns are one conversation, of which the turns of the completion count. Rows with the same
    prompt (the first turn of the user, or the text, up to case and white space) stay in one split.
    """

    keys = "dataset.prompt= and dataset.completion=, dataset.messages=, or dataset.text="
    conversational = False
    """Whether some rows have turns or tools; set by `declare`."""
    tools = False
    """Whether some rows have tools; set by `declare`."""

    def __init__(self, cfg: DatasetConfig):
        super().__init__(cfg)
        if (folder := cfg.spec.formats.get(cfg.format)) is not None:
            self.fields = self.columns = list(folder.columns)
        else:
            self.fields = (
                ["messages"] if cfg.messages else ["prompt", "completion"] if cfg.prompt else ["text"]
            )
            self.columns = [getattr(cfg, field) for field in self.fields]
        self.plain = self.fields == ["prompt", "completion"] and cfg.thoughts != "drop"
        self.value_names: list[str] = list(self.fields)
        """The names of the values of a row of the current source: the fields, and those of `CONTEXT` that the source has."""
        self.context: dict[str, None] = {}
        self.unread: dict[str, None] = {}
        self.ended = 0
        """The number of conversations with turns after the last one that is learned."""

    def column_paths(self, columns: list[str], name: str, nested: bool = False) -> list[list[str]]:
        """Return the paths of the base class, and those of the columns of `CONTEXT` that the source has."""
        paths = super().column_paths(columns, name, nested)
        self.value_names = list(self.fields)
        for column in columns if self.fields != ["text"] else ():
            if column not in self.columns and self._belongs(column) and columns.count(column) == 1:
                paths.append([column])
                self.value_names.append(column)
            elif column not in {*self.columns, *(path[0] for path in paths), self.cfg.split}:
                self.unread[column] = None
        return paths

    @property
    def columns_read(self) -> set[str]:
        """As in the base class, with the columns of `CONTEXT` that the source has."""
        return super().columns_read | {*self.value_names} - {*self.fields}

    def _belongs(self, column: str) -> bool:
        kind = CONTEXT.get(column)
        if kind is None or (self.fields == ["messages"] and kind in ("history", "input")):
            return False
        if self.cfg.context is not None:
            return kind in self.cfg.context or column in self.cfg.context
        return kind != "input" or self.cfg.prompt == INSTRUCTION

    def check(self, values: tuple[Any, ...], where: str) -> tuple[Any, ...]:
        """Check that the values are texts, or the turns of a conversation.

        Returns:
            `Values`
        """
        if self.plain and len(values) == 2 and _are_texts(*values):
            texts: tuple[str, ...] = (
                require_text(values[0], "the prompt", where),
                require_text(values[1], "the completion", where),
            )
            return Values(texts, [], "")
        given = dict(zip(self.value_names, values, strict=True))
        before, tools = self._read_context(given, where) if len(given) > len(self.fields) else ([], "")
        if self.fields == ["messages"]:
            turns = read_turns(given["messages"], where)
            return Values((), self._answered(_after(before, turns), where), tools)
        if self.fields == ["prompt", "completion"]:
            prompt, completion = (
                [value] if isinstance(value, Mapping) and is_conversation([value]) else value
                for value in (given["prompt"], given["completion"])
            )
            if is_conversation(prompt) or (not isinstance(completion, str) and is_conversation(completion)):
                turns = _joined(prompt, completion, where)
                return Values((), self._answered(_after(before, turns), where), tools)
            given["prompt"] = self._with_input(given, where)
            if self.cfg.thoughts == "drop" and isinstance(completion, str):
                given["completion"] = (split_thought(completion) or ("", completion))[1]
        texts = tuple(require_text(given[field], f"the {field}", where) for field in self.fields)
        return Values(texts, before, tools)

    def _with_input(self, given: Mapping[str, Any], where: str) -> Any:
        """Return the prompt, with the texts of columns such as `input` as its last paragraphs."""
        prompt = given["prompt"]
        for column, more in given.items():
            is_input = column not in self.fields and CONTEXT[column] == "input"
            if not is_input or more in (None, "") or not isinstance(prompt, str):
                continue
            if not isinstance(more, str):
                raise DataError(
                    f"{where}: the {column} is {shown(more)}, not a string; if it is no part of the prompt, give dataset.context=[]"
                )
            self.context[column] = None
            prompt = f"{prompt.rstrip()}\n\n{more.lstrip()}" if more.strip() else prompt
        return prompt

    def _read_context(self, given: Mapping[str, Any], where: str) -> tuple[list[dict[str, str]], str]:
        """Return the turns before a conversation, and its tools as JSON."""
        turns: list[dict[str, str]] = []
        tools: list[Any] = []
        for column, value in given.items():
            kind = CONTEXT.get(column) if column not in self.fields else None
            if value in (None, [], {}) or kind in (None, "input") or not str(value).strip():
                continue
            self.context[column] = None
            if kind == "system":
                if isinstance(value, list) or (
                    isinstance(value, dict) and {"parts", "content"} & value.keys()
                ):
                    turn = value if isinstance(value, dict) else {"content": value}
                    [value] = [
                        turn["content"] for turn in read_turns([turn | {"role": "system"}], where)
                    ] or [""]
                if not isinstance(value, str):
                    raise DataError(
                        f"{where}: the {column} is {shown(value)}, not a string; if it is no part of the conversation, give dataset.context=[]"
                    )
                text = require_text(value, f"the {column}", where).strip()
                turns.insert(0, {"role": "system", "content": text})
            elif kind == "history":
                turns += read_history(value, where)
            else:
                tools += read_tools(value, where)
        return turns, json.dumps(tools, ensure_ascii=False) if tools else ""

    def _answered(self, turns: list[dict[str, str]], where: str) -> list[dict[str, str]]:
        """Return the turns up to the last one that is learned, with their reasoning as `dataset.thoughts` says."""
        learned = require_answer(turns, where)
        self.ended += len(learned) < len(turns)
        return [self._thinking(turn, where) if turn["role"] == "assistant" else turn for turn in learned]

    def _thinking(self, turn: dict[str, str], where: str) -> dict[str, str]:
        policy = self.cfg.thoughts
        if policy == "template":
            return turn
        extra = extra_of(turn)
        if THOUGHTS[0] not in extra and not split_thought(turn["content"]):
            return turn
        if policy == "all":
            return with_extra(turn, extra | {KEEP: True})
        bare = without_thoughts(turn)
        if not bare["content"].strip() and "tool_calls" not in extra:
            raise DataError(
                f"{where}: a message of the assistant is nothing but a thought, which dataset.thoughts=drop leaves out; remove the row"
            )
        return bare

    def declare(self, sources: RawSplits) -> None:
        """Whether the rows are conversations, and have tools: all of them are then stored alike."""
        values = [Values(*row) for parts in sources.values() for part in parts for row in part.rows]
        self.tools = any(row.tools for row in values)
        self.conversational = self.tools or any(row.turns for row in values)
        if not self.cfg.chat and any(row.texts and (row.turns or row.tools) for row in values):
            raise DataError(
                f"{self.cfg.path}: prompt and completion are texts, and {listed(self.context)} belongs to a conversation; give dataset.chat=true, "
                "which makes turns of prompt and completion, or leave it out (dataset.context=[])"
            )

    def row(self, values: tuple[Any, ...], where: str) -> Row | None:
        """Make a row whose id is a hash of all values."""
        texts, turns, tools = Values(*values)
        if self.conversational and texts:
            roles = ("user", "assistant")
            turns = [
                *turns,
                *({"role": role, "content": text} for role, text in zip(roles, texts, strict=True)),
            ]
        if not turns:
            tidied: list[Any] = [
                self._tidy(text, field) for field, text in zip(self.fields, texts, strict=True)
            ]
            row = {"id": row_hash(tidied), **dict(zip(self.fields, tidied, strict=True))}
            return row if all(text.strip() for text in tidied) else None
        turns = [turn | {"content": self._tidy(turn["content"], "messages")} for turn in turns]
        if not all(
            turn["content"] or turn["role"] == "tool" or "tool_calls" in extra_of(turn) for turn in turns
        ):
            return None
        own = {"tools": tools} if self.tools else {}
        return {"id": row_hash([turns, *filter(None, [tools])]), "messages": turns, **own}

    def _tidy(self, text: str, field: str) -> str:
        text = self.replaced(text)
        if field in ("prompt", "completion") and not self.cfg.chat:
            # the white space between them belongs to them
            return text.lstrip() if field == "prompt" else text.rstrip()
        return text.strip()

    def group(self, row: Row) -> str:
        """Return the prompt; a conversation without a turn of the user is a group of its own."""
        user_turns = [turn["content"] for turn in row.get("messages", ()) if turn["role"] == "user"]
        prompt = row.get("prompt") or row.get("text") or next(iter(user_turns), row["id"])
        return row_hash([fold_white_space(prompt).casefold()])

    def require(self, train: list[Row]) -> None:
        """Tell which further columns are read, and which are not."""
        if self.context:
            logger.info(
                "%s: %s read as a part of the conversation or of its prompt (dataset.context=[] leaves it out)",
                self.cfg.path,
                listed(self.context),
            )
        prompts = [row["prompt"] for row in train if "prompt" in row]
        if self.cfg.chat and (marker := marker_of(prompts)):
            logger.warning(
                "%s: all prompts end with %s, as those for models without a chat template do, and it is learned as a part of the user's turn; remove it "
                "(dataset.replace), or give dataset.chat=false, which leaves the texts as they are",
                self.cfg.path,
                shown(marker),
            )
        if self.ended:
            logger.info(
                "%s: %d conversations go on after the last turn that is learned; the rest is not read",
                self.cfg.path,
                self.ended,
            )
        for column in [each for each in self.unread if each in UNREAD]:
            logger.info("%s: the column %s is not read (%s)", self.cfg.path, column, UNREAD[column])
        if media := [each for each in self.unread if each in MEDIA]:
            logger.warning(
                "%s: pictures and sounds are not read (columns: %s), so that texts about them are learned without them; remove such rows, if "
                "there are any",
                self.cfg.path,
                listed(media),
            )
        inputs = [each for each in self.unread if CONTEXT.get(each) == "input" and self.cfg.context is None]
        if inputs and self.fields == ["prompt", "completion"]:
            kinds = dict.fromkeys([*(CONTEXT[each] for each in self.context), "input"])
            logger.warning(
                "%s: the column %s is not read; if it is a part of the prompt, give dataset.context=[%s]",
                self.cfg.path,
                inputs[0],
                ",".join(kinds),
            )
        if others := [each for each in self.unread if each not in (*UNREAD, *MEDIA, *inputs)]:
            logger.info("%s: columns that are not read: %s", self.cfg.path, listed(others))


def _are_texts(prompt: Any, completion: Any) -> bool:
    """Return whether a prompt and a completion are texts that are no turns in JSON."""
    return isinstance(completion, str) and isinstance(prompt, str) and prompt[:1] not in TURNS


def _after(before: list[dict[str, str]], turns: list[dict[str, str]]) -> list[dict[str, str]]:
    """Return turns after those of the other columns; a conversation with an instruction of its own keeps it."""
    own = turns[0]["role"] == "system"
    return [*(turn for turn in before if not own or turn["role"] != "system"), *turns]


def _joined(prompt: Any, completion: Any, where: str) -> list[dict[str, str]]:
    """Return a prompt and a completion, one of which is a list of turns, as one conversation. Answers in the prompt are not learned."""
    given, answers = (
        read_turns(value, where, f"the {field}")
        if is_conversation(value)
        else [{"role": role, "content": require_text(value, f"the {field}", where)}]
        for field, role, value in (("prompt", "user", prompt), ("completion", "assistant", completion))
    )
    if not isinstance(prompt, str) or given[0]["role"] != "user" or len(given) > 1:
        repeated = answers[: len(given)] == given
    else:
        repeated = (
            answers[0]["role"] == "user" and answers[0]["content"].strip() == given[0]["content"].strip()
        )
    if repeated:  # preference data: the completion is the whole conversation
        answers = answers[len(given) :]
    if not answers or answers[0]["role"] == "user":
        what = answers[0] if answers else completion
        raise DataError(
            f"{where}: the completion begins with {shown(what)}, and not with a turn of the assistant; if it is the whole conversation, "
            "give its column as dataset.messages"
        )
    unlearned = [
        with_extra(turn, extra_of(turn) | {"weight": 0}) if turn["role"] == "assistant" else turn
        for turn in given
    ]
    return [*unlearned, *answers]
