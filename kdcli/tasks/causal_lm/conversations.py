"""Reads conversations in the shapes in which people store them, as turns of a role and a content.

A turn is `{"role", "content"}`. What else it has (tool calls, reasoning, a name, a weight …) is in `extra`, as JSON, because a table would
give every turn the keys of all others.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

from kdcli.errors import DataError, listed, shown
from kdcli.tasks.notation import decode_json, decode_python
from kdcli.tasks.rows import require_text

EXPECTED = 'a list of {"role": …, "content": …}'
ROLES = {
    "human": "user", "prompter": "user", "user": "user", "gpt": "assistant", "chatgpt": "assistant", "gpt4": "assistant",
    "gpt-4": "assistant", "bing": "assistant", "bard": "assistant", "claude": "assistant", "model": "assistant", "bot": "assistant",
    "chatbot": "assistant", "ai": "assistant", "assistant": "assistant", "system": "system", "tool": "tool", "function": "tool",
    "observation": "tool", "tool_response": "tool", "function_response": "tool",
}  # fmt: skip
"""The roles of chat templates, by the names that data sets have for them, in lower case. Other roles are handed on as they are."""
CALLS = ("function_call", "tool_call", "tool_calls")
"""Roles of turns whose content is a call, in JSON: it is the assistant's."""
EXCHANGE = {
    **dict.fromkeys(("prompt", "instruction", "question", "query", "input"), "user"),
    **dict.fromkeys(("completion", "response", "answer", "reply", "output"), "assistant"),
}
"""The keys of an object that holds a prompt and its answer."""
RARE_ROLE_KEYS = ("sender", "author")
"""Keys of roles that also stand in other JSON than conversations."""
ROLE_KEYS, CONTENT_KEYS = (
    ("role", "from", "speaker", *RARE_ROLE_KEYS),
    ("content", "value", "text", "message", "parts"),
)
WRAPPERS = ("messages", "conversations", "conversation", "turns", "dialogue", "dialog")
"""Keys of an object that holds the turns."""
THOUGHTS = ("reasoning_content", "reasoning", "thinking", "thoughts", "thought")
"""Keys of a turn that hold reasoning. The first one is what chat templates read."""
KEEP = "keep_thought"
"""The key of a stored turn whose thought is written even if the template omits it."""
THINKERS = ("reasoning", "thinking", "thoughts", "thought", "analysis")
"""Roles of turns, and channels of gpt-oss, that are the reasoning of the answer that follows."""
MASKS = ("masked",)
WEIGHTS = ("weight", "train", "training", "trainable", "learnable", "loss", "loss_mask", *MASKS)
"""Keys of a turn that say whether it is learned; those of `MASKS` whether it is not."""
TEXT_PARTS = (None, "text", "input_text", "output_text")
PAIR = 2
_PLAIN = {"role", "content"}
_ORDER = ("system", "user", "assistant", "tool")
"""The roles of an object with a key for each, in the order of their turns."""
_NAME = r"(human|user|assistant|system|gpt|model|chatbot|bot|ai)[ \t]*:[ \t]*"
_SPEAKERS = [
    re.compile(pattern + _NAME, re.IGNORECASE)
    for pattern in (r"(?:\A|\n[ \t]*\n)\s*", r"(?:\A|\n)\s*", r"\s*#{2,}[ \t]*")
]
"""The beginnings of turns in a transcript: with a blank line between them, with none, or with ### before the name."""
_RENDERED = re.compile(r"<\|im_start\|>|<\|start_header_id\|>|<start_of_turn>|<\|user\|>|\[INST\]")
_PARTS = re.compile(
    r"""\s*\[\s*\{\s*['"]type['"]\s*:\s*['"](?:text|input_text|output_text|thinking|tool_use|tool_result|image|image_url)['"]"""
)
"""The beginning of parts that are written as JSON."""
_ARRAY = re.compile(r"\}\s+\{")
"""The text between the items of an array as numpy writes it."""


def read_turns(value: Any, where: str, what: str = "the messages") -> list[dict[str, str]]:
    """Return the turns of a conversation, in any of the shapes of docs/conversations.md.

    Args:
        value: lists and mappings, or their JSON.
        what: the name of the column, for messages.

    Raises:
        DataError: with a message that begins with `where`.
    """
    turns = _listed(value) or _transcript(value)
    if not turns:
        remedy = ", or that as JSON"
        if isinstance(value, str) and _RENDERED.search(value):
            remedy += "; a chat that a template has rendered is read as plain text with dataset.text="
        raise DataError(f"{where}: {what} {_are(what)} {shown(value)}; expected {EXPECTED}{remedy}")
    if len(turns) == 1 and isinstance(turns[0], list) and all(isinstance(each, Mapping) for each in turns[0]):
        turns = _listed(turns[0]) or turns
    if isinstance(turns[0], Mapping):
        turns = [each for turn in turns for each in _named(turn, ROLES | EXCHANGE)]
    else:
        turns = _of_texts(turns)
    read = _with_reasoning([_turn(turn, index, where) for index, turn in enumerate(turns, 1)])
    return [turn for turn in read if turn["content"] or turn["role"] != "system"]


def _transcript(text: Any) -> list[dict[str, str]]:
    """Return the turns of a text in which each begins with a name and a colon (Human: … Assistant: …); []: it is none."""
    for pattern in _SPEAKERS:
        before, *pieces = pattern.split(text) if isinstance(text, str) else [""]
        if not before.strip() and len(pieces) > 2:
            pairs = zip(pieces[::2], pieces[1::2], strict=True)
            return [{"role": role, "content": content.strip()} for role, content in pairs]
    return []


def _of_texts(turns: list[Any]) -> list[Any]:
    """Return the turns of texts with a name before each, or else of the user and of the assistant in alternation, and of pairs: a role and a
    content, or a prompt and its answer. Other turns are unchanged."""
    if all(
        isinstance(turn, list) and len(turn) == PAIR and all(isinstance(text, str) for text in turn)
        for turn in turns
    ):
        if all(role.casefold() in ROLES for role, _ in turns):
            return [{"role": role, "content": content} for role, content in turns]
        turns = list(itertools.chain(*turns))
    if len(turns) < PAIR or not all(isinstance(turn, str) for turn in turns):
        return turns
    named = [_SPEAKERS[0].match(turn) for turn in turns]
    if all(named):
        return [{"role": match[1], "content": match.string[match.end() :]} for match in named if match]
    return [{"role": ("user", "assistant")[index % 2], "content": turn} for index, turn in enumerate(turns)]


def _with_reasoning(turns: list[dict[str, str]]) -> list[dict[str, str]]:
    """Return turns with the thoughts before an answer, which are turns of their own (a role such as thought, the channel analysis), as its reasoning."""
    if not any("channel" in turn.get("extra", "") or turn["role"].casefold() in THINKERS for turn in turns):
        return turns
    read: list[dict[str, str]] = []
    thoughts: list[dict[str, str]] = []
    for turn in turns:
        if _is_reasoning(turn):
            thoughts.append(turn)
            continue
        if turn["role"] == "assistant":
            extra = extra_of(turn)
            if extra.get("channel") == "final":
                del extra["channel"]
            if texts := [*(each["content"] for each in thoughts), *filter(None, [extra.get(THOUGHTS[0])])]:
                extra[THOUGHTS[0]] = "\n".join(texts)
            turn = with_extra(turn, extra)
        else:
            read += thoughts
        thoughts = []
        read.append(turn)
    return read + thoughts


def _is_reasoning(turn: Mapping[str, str]) -> bool:
    return turn["role"].casefold() in THINKERS or extra_of(turn).get("channel") in THINKERS


def is_conversation(value: Any) -> bool:
    """Return whether a value is turns, or their JSON, and not a text."""
    if isinstance(value, str) and value.lstrip()[:1] not in ("[", "{"):
        return False
    turns = _listed(value)
    return bool(turns) and all(
        isinstance(turn, Mapping) and (keys := _keys(turn)) is not None and keys[0] not in RARE_ROLE_KEYS
        for turn in turns
    )


def read_history(value: Any, where: str) -> list[dict[str, str]]:
    """Return earlier turns, as such or as pairs of a prompt and its answer (LLaMA-Factory, ms-swift)."""
    if is_conversation(value):
        return read_turns(value, where, "the history")
    pairs = _decoded(value)
    if not isinstance(pairs, list) or not all(
        isinstance(pair, list) and len(pair) == PAIR and all(isinstance(text, str) for text in pair)
        for pair in pairs
    ):
        raise DataError(
            f"{where}: the history is {shown(value)}; expected pairs [[prompt, answer], …], or leave it out (dataset.context=[])"
        )
    return [
        {"role": role, "content": text}
        for pair in pairs
        for role, text in zip(("user", "assistant"), pair, strict=True)
    ]


def read_tools(value: Any, where: str) -> list[Any]:
    """Return the tools that a conversation may use, as chat templates read them: JSON schemas of functions."""
    tools = _decoded(value)
    if isinstance(tools, Mapping):
        tools = [tools]
    if not isinstance(tools, list) or not all(isinstance(tool, Mapping | str) for tool in tools):
        raise DataError(
            f"{where}: the tools are {shown(value)}; expected a list of JSON schemas of functions, or leave them out (dataset.context=[])"
        )
    tools = [_without_nulls(_decoded(tool), where) for tool in tools]
    if wrong := [tool for tool in tools if not isinstance(tool, Mapping)]:
        raise DataError(f"{where}: a tool is {shown(wrong[0])}; expected the JSON schema of a function")
    return [tool if "function" in tool else {"type": "function", "function": tool} for tool in tools]


def require_answer(turns: list[dict[str, str]], where: str) -> list[dict[str, str]]:
    """Return the turns up to the last one that is learned: what follows it changes nothing.

    Raises:
        DataError: none is learned.
    """
    answers = [index for index, turn in enumerate(turns) if turn["role"] == "assistant"]
    if not answers:
        roles = listed(dict.fromkeys(turn["role"] for turn in turns)) or "none"
        raise DataError(
            f"{where}: no message has the role assistant (roles: {roles}), and only its messages are learned; remove "
            "the row, or rename the roles"
        )
    learned = [index for index in answers if is_learned(turns[index])]
    if not learned:
        raise DataError(
            f"{where}: every message of the assistant has the weight 0, so that nothing is learned; remove the row, or its weights"
        )
    return turns[: learned[-1] + 1]


def is_learned(turn: Mapping[str, Any]) -> bool:
    """Return whether a turn of the assistant counts: it has not the weight 0."""
    return bool(extra_of(turn).get("weight", 1))


def extra_of(turn: Mapping[str, Any]) -> dict[str, Any]:
    """Return what a stored turn has besides role and content."""
    stored = turn.get("extra")
    extra: dict[str, Any] = json.loads(stored) if stored else {}
    return extra


def with_extra(turn: Mapping[str, Any], extra: Mapping[str, Any]) -> dict[str, str]:
    """Return a stored turn with other keys besides role and content."""
    bare = {key: turn[key] for key in ("role", "content")}
    stored = json.dumps(extra, ensure_ascii=False, default=str)  # tables also hold dates
    return bare | ({"extra": stored} if extra else {})


def split_thought(content: str) -> tuple[str, str] | None:
    """Return the thought in <think> tags with which a content begins, and the answer after it; None: there is none.

    The opening tag may be missing: some templates write it into the generation prompt.
    """
    before, tag, answer = content.partition("</think>")
    if not tag or ("<think>" in before and not before.lstrip().startswith("<think>")):
        return None
    return before.strip().removeprefix("<think>").strip("\n"), answer.lstrip("\n")


def without_thoughts(turn: Mapping[str, str]) -> dict[str, str]:
    """Return a turn without its reasoning, in a key or at the beginning of its content."""
    extra = {key: value for key, value in extra_of(turn).items() if key != THOUGHTS[0]}
    thought = split_thought(turn["content"])
    return with_extra({**turn, "content": thought[1]} if thought else turn, extra)


def template_turns(turns: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Return stored turns as a chat template reads them. A null content of a turn with a call is dropped, as in transformers."""
    ready = []
    for turn in turns:
        extra = {key: value for key, value in extra_of(turn).items() if key != "weight"}
        empty = not turn["content"] and "tool_calls" in extra
        ready.append({"role": turn["role"], **({} if empty else {"content": turn["content"]}), **extra})
    return ready


def shown_turn(turn: Mapping[str, Any]) -> str:
    """Return a stored turn as text for people: its content, and its calls as JSON."""
    calls = [call["function"] for call in extra_of(turn).get("tool_calls", ())]
    return "\n".join(
        filter(None, [turn["content"], *(json.dumps(call, ensure_ascii=False) for call in calls)])
    )


def endpoint_turns(turns: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Return stored turns as the chat API of OpenAI reads them: the arguments of a call are JSON. A call has an id, its own or that of its result, and
    else its number in the conversation; its result names this id."""
    sent: list[dict[str, Any]] = []
    messages = template_turns(turns)
    waiting: list[str] = []
    count = 0
    for position, (turn, message) in enumerate(zip(turns, messages, strict=True)):
        own = {"role": turn["role"], "content": turn["content"]}
        own |= {key: message[key] for key in ("name", "tool_call_id") if key in message}
        if "tool_calls" in message:
            results = itertools.takewhile(lambda each: each["role"] == "tool", messages[position + 1 :])
            given = [result.get("tool_call_id") for result in results]
            given += [None] * len(message["tool_calls"])
            own["tool_calls"] = [
                {"type": "function", **call}
                | {
                    "id": call.get("id") or result or f"call_{count + index}",
                    "function": _with_json_arguments(call["function"]),
                }
                for index, (call, result) in enumerate(zip(message["tool_calls"], given, strict=False))
            ]
            waiting = [call["id"] for call in own["tool_calls"]]
            count += len(waiting)
        elif turn["role"] == "tool" and waiting:
            own.setdefault("tool_call_id", waiting[0])
            waiting = waiting[1:]
        sent.append(own)
    return sent


def _with_json_arguments(function: Mapping[str, Any]) -> dict[str, Any]:
    arguments = function.get("arguments", {})
    text = arguments if isinstance(arguments, str) else json.dumps(arguments, ensure_ascii=False)
    return {**function, "arguments": text}


def with_text_arguments(turns: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Return turns for templates that read the arguments of a call as JSON."""
    ready = []
    for turn in turns:
        calls = [
            {**call, "function": _with_json_arguments(call["function"])}
            for call in turn.get("tool_calls", ())
        ]
        ready.append({**turn, **({"tool_calls": calls} if calls else {})})
    return ready


def _turn(turn: Any, index: int, where: str) -> dict[str, str]:
    """Return a turn as it is stored: its role and content under any of their names, and what else it has in `extra`.

    Args:
        index: the number of the turn, for messages.

    Raises:
        DataError: it has no role, or no text where it needs one.
    """
    what = f"message {index}"
    if isinstance(turn, dict) and turn.keys() == _PLAIN:  # most turns are such
        named, plain = turn["role"], turn["content"]
        if (
            isinstance(named, str)
            and named in ROLES
            and isinstance(plain, str)
            and plain
            and not plain.isspace()
            and not _PARTS.match(plain)
        ):
            return {
                "role": ROLES[named],
                "content": require_text(plain, f"the content of {what}", where, in_turn=True),
            }
    keys = _keys(turn) if isinstance(turn, Mapping) else None
    if keys is None:
        raise DataError(f"{where}: {what} is {shown(turn)}; expected {EXPECTED}")
    role_key, content_key = keys
    author = turn[role_key]
    given = author.get("role", author) if isinstance(author, Mapping) else author  # ChatGPT's exports nest it
    named = require_text(given, f"the {role_key} of {what}", where, in_turn=True).strip()
    role = ROLES.get(named.casefold(), named)
    if role_key == content_key:  # {"user": "…"}
        more: dict[str, Any] = {}
    else:
        more = {
            key: value
            for key, value in turn.items()
            if key not in keys and value is not None and value not in ([], {}, "")
        }
    content: Any = turn.get(content_key)
    if role == "user" and isinstance(content, list) and len(content) == 1 and _is_result(content[0]):
        role, more["tool_call_id"], content = "tool", content[0].get("tool_use_id"), content[0].get("content")
    if content is None:  # OpenAI's key for an answer that declines
        content = more.pop("refusal", None)
    if named.casefold() in CALLS:
        role, content, more["tool_calls"] = "assistant", None, content
    text, extra = _content(content, f"the {content_key} of {what}", where, role, more)
    extra |= _more(more, what, where)
    if not text.strip() and not (
        role in ("system", "tool") or (role == "assistant" and "tool_calls" in extra)
    ):
        text = require_text(content, f"the {content_key} of {what}", where, in_turn=True)
    return with_extra({"role": role, "content": text if text.strip() else ""}, extra)


def _is_result(part: Any) -> bool:
    """Return whether a part of a turn of the user is the result of a tool, as Anthropic stores it."""
    return isinstance(part, Mapping) and part.get("type") == "tool_result"


def _keys(turn: Mapping[str, Any]) -> tuple[str, str] | None:
    """Return the keys of the role and of the content of a turn."""
    role = next((key for key in ROLE_KEYS if key in turn), None)
    content = next((key for key in CONTENT_KEYS if key in turn), None)
    if role is None and isinstance(kind := turn.get("type"), str) and kind.casefold() in ROLES:  # LangChain
        role = "type"
    if role is None:
        return None
    if content is None:  # a call alone
        return (role, "content") if any(key in turn for key in CALLS) else None
    return role, content


def _content(
    content: Any, what: str, where: str, role: str, more: Mapping[str, Any]
) -> tuple[str, dict[str, Any]]:
    """Return the text of a content, and what its parts hold besides text."""
    if content is None:
        if role == "assistant" and any(key in more for key in CALLS):
            return "", {}
        content = require_text(content, what, where, in_turn=True)
    if isinstance(content, str) and _PARTS.match(content):
        content = _decoded(content)
    if isinstance(content, str):
        if content.strip():
            require_text(content, what, where, in_turn=True)
        return content, {}
    if isinstance(content, Mapping) and "parts" in content:
        content = content["parts"]
    if role == "tool" and not isinstance(content, list):  # a result that is no text
        return json.dumps(content, ensure_ascii=False), {}
    parts = content if isinstance(content, list) else [content]
    texts, extra = [], dict[str, Any]()
    for part in parts:
        if isinstance(part, str):
            texts.append(part)
            continue
        kind = part.get("type") if isinstance(part, Mapping) else None
        if isinstance(part, Mapping) and kind in TEXT_PARTS and isinstance(part.get("text"), str):
            texts.append(part["text"])
        elif kind in ("thinking", "reasoning") and (thought := part.get("thinking") or part.get("text")):
            extra[THOUGHTS[0]] = extra.get(THOUGHTS[0], "") + str(thought)
        elif kind == "tool_use" and role == "assistant":
            function = {"name": part.get("name"), "arguments": part.get("input")}
            extra.setdefault("tool_calls", []).extend(_calls([function], what, where))
        elif kind is not None and isinstance(kind, str):
            raise DataError(
                f"{where}: {what} has a part of the type {shown(kind)}, and only text is learned; remove the row, or the part"
            )
        else:
            raise DataError(f"{where}: {what} is {shown(content)}, not a string")
    return "".join(texts), extra


def _more(more: Mapping[str, Any], what: str, where: str) -> dict[str, Any]:
    """Return the other keys of a turn under the names that chat templates read."""
    extra = {
        key: _without_nulls(value, where)
        for key, value in more.items()
        if key not in (*CALLS, *THOUGHTS, *WEIGHTS)
    }
    calls = [call for key in CALLS if key in more for call in _calls(more[key], what, where)]
    if calls:
        extra["tool_calls"] = calls
    if thought := next((more[key] for key in THOUGHTS if key in more), None):
        extra[THOUGHTS[0]] = require_text(thought, f"the reasoning of {what}", where, in_turn=True)
    for key in WEIGHTS:
        if key not in more:
            continue
        weight = {"0": 0, "1": 1, "false": 0, "true": 1}.get(str(more[key]).casefold(), more[key])
        if weight not in (0, 1):
            raise DataError(
                f"{where}: the {key} of {what} is {shown(more[key])}; expected 1, or 0 for a message that is not learned"
            )
        if bool(weight) == (key in MASKS):
            extra["weight"] = 0
    return extra


def _calls(value: Any, what: str, where: str) -> list[dict[str, Any]]:
    """Return calls of functions: their arguments are an object."""
    value = _decoded(value)
    calls = []
    for call in value if isinstance(value, list) else [value]:
        call = _without_nulls(_decoded(call), where)
        function = call.get("function", call) if isinstance(call, Mapping) else None
        if not isinstance(function, Mapping) or not isinstance(function.get("name"), str):
            raise DataError(
                f'{where}: a call of {what} is {shown(call)}; expected {{"name": …, "arguments": …}}'
            )
        arguments = function.get("arguments", function.get("parameters", {}))
        decoded = _decoded(arguments)
        own = {"name": function["name"], "arguments": decoded if isinstance(decoded, Mapping) else arguments}
        calls.append(
            {key: call[key] for key in ("id", "index") if key in call and call is not function}
            | {"type": "function", "function": own}
        )
    return calls


def _without_nulls(value: Any, where: str) -> Any:
    """Return a value without nulls in its mappings: a table has them for the keys of other rows.

    Raises:
        DataError: it is nested too deeply.
    """

    def bare(value: Any) -> Any:
        if isinstance(value, Mapping):
            return {key: bare(each) for key, each in value.items() if each is not None}
        return [bare(each) for each in value] if isinstance(value, list) else value

    try:
        return bare(value)
    except RecursionError:
        raise DataError(
            f"{where}: a value of a message or of a tool is nested too deeply; remove it, or the row"
        ) from None


def _listed(value: Any) -> list[Any]:
    """Return the turns of a value; []: it holds none."""
    value = _decoded(value)
    if isinstance(value, Mapping):
        held = next((value[key] for key in WRAPPERS if key in value), None)
        columns = [list(each) for each in value.values() if isinstance(each, list)]
        if held is not None:
            value = _decoded(held)
        elif len(columns) == len(value) and len({len(column) for column in columns}) == 1:
            value = [dict(zip(value, row, strict=True)) for row in zip(*columns, strict=True)]
    if not isinstance(value, list):
        return []
    if all(isinstance(turn, dict) and "role" in turn for turn in value):  # most values are
        return value
    return [each for turn in value for each in _named(turn)]


def _named(turn: Any, roles: Mapping[str, str] = ROLES) -> list[Any]:
    """Return the turns of `{"user": "…", "assistant": "…"}` with their roles named; JSON of a turn decoded.

    Args:
        roles: the role that each key means. Two keys of one role that is no role of a template, such as instruction and input, are no turns.
    """
    if isinstance(turn, str) and turn.lstrip().startswith("{"):
        turn = _decoded(turn)
    if not isinstance(turn, Mapping) or not turn or _keys(turn) is not None:
        return [turn]
    named = [roles.get(role.casefold()) if isinstance(role, str) else None for role in turn]
    if None in named or (len(set(named)) < len(named) and roles is not ROLES):
        return [turn]
    pairs = zip(named, turn.values(), strict=True)
    turns = [{"role": role, "content": content} for role, content in pairs if content is not None]
    return sorted(turns, key=lambda each: _ORDER.index(str(each["role"])))


def _decoded(value: Any) -> Any:
    """Return what a text in JSON holds, or in Python's own notation, in which pandas writes lists into csv; other values as they are."""
    if not isinstance(value, str) or value.lstrip()[:1] not in ("[", "{"):
        return value
    with contextlib.suppress(ValueError):
        return decode_json(value)
    for text in (value, _ARRAY.sub("}, {", value)):
        with contextlib.suppress(ValueError):
            return decode_python(text)
    return value


def _are(what: str) -> str:
    return "are" if what.endswith("s") else "is"
