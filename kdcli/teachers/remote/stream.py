"""Reads a completion that an endpoint sends as a stream of server-sent events."""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Any

from kdcli.teachers.remote.top import token_logprobs

PREFIX, DONE = "data:", "[DONE]"
TEXTS = "content", "reasoning_content", "reasoning", "refusal"
"""The fields of a message that arrive in pieces."""


def read_stream(data: bytes | bytearray) -> dict[str, Any] | None:
    """Return the completion whose pieces are the events of a response, or the error among them; None: it is no stream.

    Raises:
        ValueError: its events are no pieces of a completion, or it ends before the completion.
    """
    if not data.lstrip().startswith((PREFIX.encode(), b"event:", b": ")):
        return None
    lines = (line.strip() for line in data.decode(errors="replace").split("\n"))
    events = [line.removeprefix(PREFIX).strip() for line in lines if line.startswith(PREFIX)]
    try:
        completion = _joined(event for event in events if event not in ("", DONE))
    except (AttributeError, TypeError, IndexError) as error:
        raise ValueError(f"its events are no pieces of a completion ({error})") from None
    finished = DONE in events or all(choice["finish_reason"] for choice in completion.get("choices", ()))
    if "error" not in completion and not (finished and completion.get("choices")):
        raise ValueError("it ends before the completion")
    return completion


def _joined(events: Iterable[str]) -> dict[str, Any]:
    """Return the completion of some pieces, or the error among them."""
    completion: dict[str, Any] = {}
    choices: dict[int, dict[str, Any]] = {}
    for event in events:
        piece = json.loads(event)
        if piece.get("error"):
            return piece
        completion |= {key: value for key, value in piece.items() if key != "object" and value}
        for part in piece.get("choices") or ():
            index = part.get("index", 0)
            _add(choices.setdefault(index, {"index": index, "message": {}, "finish_reason": None}), part)
    return completion | {"choices": [choices[index] for index in sorted(choices)]}


def _add(choice: dict[str, Any], part: dict[str, Any]) -> None:
    """Add a piece to the choice that it belongs to."""
    message, delta = choice["message"], part.get("delta") or part.get("message") or {}
    if text := part.get("text"):
        delta = {"content": text}
    for field in TEXTS:
        if isinstance(value := delta.get(field), str):
            message[field] = message.get(field, "") + value
    for call in delta.get("tool_calls") or ():
        _add_call(message.setdefault("tool_calls", []), call)
    if tokens := token_logprobs(part.get("logprobs")):
        choice.setdefault("logprobs", {"content": []})["content"] += tokens
    choice["finish_reason"] = part.get("finish_reason") or choice["finish_reason"]


def _add_call(calls: list[dict[str, Any]], piece: dict[str, Any]) -> None:
    """Add a piece to the call of a tool that it belongs to: the name comes first, the arguments in pieces."""
    at = piece.get("index", 0)
    while len(calls) <= at:
        calls.append({"function": {"name": "", "arguments": ""}})
    for key, value in (piece.get("function") or {}).items():
        if key in calls[at]["function"] and isinstance(value, str):
            calls[at]["function"][key] += value
