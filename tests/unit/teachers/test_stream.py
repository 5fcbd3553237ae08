"""Completions that arrive as a stream of events."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from support.endpoint import Odd, Served, question

from kdcli.errors import EndpointError
from kdcli.teachers.remote.stream import read_stream
from kdcli.teachers.remote.wire import ChatClient


def events(*pieces: Any) -> bytes:
    return (
        b"".join(b"data: " + json.dumps(piece).encode() + b"\n\n" for piece in pieces) + b"data: [DONE]\n\n"
    )


def piece(delta: dict[str, Any], index: int = 0, **more: Any) -> dict[str, Any]:
    choice = {"index": index, "delta": delta, "finish_reason": None} | more
    return {"id": "1", "object": "chat.completion.chunk", "choices": [choice]}


WHOLE = (
    piece({"role": "assistant", "content": ""}),
    piece({"reasoning_content": "h"}),
    piece({"reasoning_content": "m"}),
    piece({"content": "It "}, logprobs={"content": [{"token": "It ", "logprob": -0.5, "top_logprobs": []}]}),
    piece({"content": "ends"}, 1),
    piece({"content": "is."}, logprobs={"content": [{"token": "is.", "logprob": -1.0, "top_logprobs": []}]}),
    piece({}, finish_reason="stop"),
    piece({}, 1, finish_reason="length"),
    {"id": "1", "choices": [], "usage": {"prompt_tokens": 4, "completion_tokens": 3}},
)


@pytest.mark.parametrize("before", [b"", b": OPENROUTER PROCESSING\n\n", b"event: message\n"])
def test_a_stream_is_put_together(served: Served, tmp_path: Path, before: bytes) -> None:
    """A host that streams, asked or not, cannot be a teacher; or a part of the answer is lost."""
    host = served(lambda body: Odd(data=before + events(*WHOLE)))
    [(_, answer)] = ChatClient(host.url, "m", None, ledger=tmp_path).query([question("so?", stream=True)])
    assert [choice["text"] for choice in answer.choices] == ["It is.", "ends"]
    assert [choice["finish_reason"] for choice in answer.choices] == ["stop", "length"]
    assert answer.choices[0]["reasoning"] == "hm"
    assert [token["token"] for token in answer.choices[0]["logprobs"]] == ["It ", "is."]
    assert answer.usage == {"prompt_tokens": 4, "completion_tokens": 3}
    assert host.bodies[0]["stream"] is True


def test_tokens_of_older_completions_in_a_stream() -> None:
    """The log-probabilities of a host that streams them as lists are lost."""
    parts = [
        piece(
            {"content": text},
            logprobs={"tokens": [text], "token_logprobs": [-0.5], "top_logprobs": [{"x": -2.0}]},
        )
        for text in ("It ", "is.")
    ]
    completion = read_stream(events(*parts, piece({}, finish_reason="stop")))
    assert completion is not None
    content = completion["choices"][0]["logprobs"]["content"]
    assert [(token["token"], token["logprob"]) for token in content] == [("It ", -0.5), ("is.", -0.5)]
    assert content[0]["top_logprobs"] == [{"token": "x", "logprob": -2.0}]


def test_calls_and_texts_in_a_stream() -> None:
    """The arguments of a call, which come in pieces, are lost; or so is the text of a plain completion."""
    parts: list[dict[str, Any]] = [
        {"name": "label", "arguments": ""},
        {"arguments": '{"label": '},
        {"arguments": '"good"}'},
    ]
    calls = [piece({"tool_calls": [{"index": 0, "function": part}]}) for part in parts]
    found = read_stream(events(*calls, piece({}, finish_reason="tool_calls")))
    assert found is not None
    [choice] = found["choices"]
    assert choice["message"]["tool_calls"][0]["function"] == {
        "name": "label",
        "arguments": '{"label": "good"}',
    }
    found = read_stream(
        events({"choices": [{"text": "a"}]}, {"choices": [{"text": "b", "finish_reason": "stop"}]})
    )
    assert found is not None
    assert found["choices"][0]["message"] == {"content": "ab"}


@pytest.mark.parametrize(
    "event", ["1", "[]", '{"choices": 1}', '{"choices": [1]}', '{"choices": [{"delta": 1}]}', "{"]
)
def test_events_that_are_no_pieces(event: str) -> None:
    """A traceback."""
    with pytest.raises(ValueError, match=r"pieces|ends|Expecting"):
        read_stream(f"data: {event}\n\n".encode())


def test_a_line_separator_within_a_text() -> None:
    """A text with U+2028, which JSON need not escape, is cut there."""
    sent = 'data: {"choices": [{"delta": {"content": "a\u2028b"}, "finish_reason": "stop"}]}\r\n\r\ndata: [DONE]\r\n'
    found = read_stream(sent.encode())
    assert found is not None
    assert found["choices"][0]["message"]["content"] == "a\u2028b"


def test_a_stream_that_ends_early(served: Served, tmp_path: Path) -> None:
    """Half of an answer is learned."""
    host = served(lambda body: Odd(data=events(*WHOLE[:5])[: -len("data: [DONE]\n\n")]))
    client = ChatClient(host.url, "m", None, ledger=tmp_path, retries=1, backoff=0.01)
    with pytest.raises(EndpointError, match="a stream"):
        list(client.query([question("so?")]))


def test_an_error_in_a_stream() -> None:
    """The host's words are lost."""
    assert read_stream(events(WHOLE[0], {"error": {"message": "overloaded", "code": 529}})) == {
        "error": {"message": "overloaded", "code": 529}
    }


def test_json_is_no_stream() -> None:
    """An answer is taken for a stream."""
    assert read_stream(b' {"choices": []}') is None
