"""Requests to an OpenAI-compatible endpoint and what comes back: completions, log-probabilities, errors."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any, Literal

UNREADABLE = 2
"""So often a question is repeated that was answered with JSON that is no completion."""
TEMPLATE = 64
"""Tokens that a chat template may add to what was sent."""
FILTERED = (
    "content_filter",
    "content_policy_violation",
    "moderation_blocked",
    "ResponsibleAIPolicyViolation",
)
"""How hosts call a prompt that their filter stopped."""
LOWEST = -9999.0
"""What hosts write for a log-probability that is not finite."""


@dataclass(frozen=True)
class Answer:
    """What came back for one question. Only `answered` has something to learn from."""

    status: Literal["answered", "refused", "unparsable"]
    """refused: by a content filter, by the model itself, or by the host for this one prompt (too long, say); unparsable: no
    such structure as the API promises."""
    choices: list[dict[str, Any]] = field(default_factory=list)
    """{"text", "finish_reason", "logprobs"}, in the order of their index; logprobs, if the host gave them: for each token
    {"token", "logprob", "top": [{"token", "logprob"}, …]}. Choices that a filter stopped are left out."""
    usage: dict[str, int] = field(default_factory=dict)
    """prompt_tokens and completion_tokens; empty if the host does not tell."""
    reason: str = ""
    """Why there is no answer, in the host's words."""


class Retry(Exception):  # noqa: N818
    """A try that failed and may be repeated."""

    def __init__(
        self, problem: str, *, after: float | None = None, charged: bool = False, tries: int | None = None
    ):
        super().__init__(problem)
        self.after = after  # seconds that the host asks to wait
        self.charged = charged  # whether it may have been paid for
        self.tries = tries  # at most


class Unreadable(Retry):
    """JSON, but not what the API promises."""


def is_finished(answer: Answer) -> Future[Answer]:
    """A question that was answered before."""
    future: Future[Answer] = Future()
    future.set_result(answer)
    return future


def request_bytes(body: dict[str, Any]) -> int:
    """Of what is sent as text: no tokenizer makes more tokens of it."""
    return len(json.dumps(body["messages"], ensure_ascii=False).encode())


def max_completion_tokens(body: dict[str, Any]) -> int | None:
    """Tokens that may be written at most; None: there is no limit."""
    most = body.get("max_completion_tokens", body.get("max_tokens"))
    return None if most is None else int(most) * int(body.get("n", 1))


def is_transient(status: int) -> bool:
    """Whether the same request may succeed later."""
    return status in (408, 409, 425, 429) or status >= 500


def is_filtered(details: dict[str, Any]) -> bool:
    """Whether an error says that a content filter stopped the prompt."""
    inner = details.get("innererror")
    told = [details, inner] if isinstance(inner, dict) else [details]
    return any(each.get(key) in FILTERED for each in told for key in ("code", "type"))


def read_completion(told: Any, scrub: Callable[[str], str]) -> Answer:
    """What an answer's JSON says.

    Raises:
        Unreadable: it is not what the API promises.
    """
    try:
        choices, refusal = [], ""
        for choice in sorted(told["choices"], key=lambda each: each.get("index", 0)):
            message, finish = choice["message"], choice.get("finish_reason")
            if finish == "content_filter" or message.get("refusal"):
                refusal = str(message.get("refusal") or finish)
                continue
            text = message.get("content") or ""
            if not isinstance(text, str):
                raise TypeError("content")
            found = {"text": text, "finish_reason": finish, "logprobs": _logprobs(choice.get("logprobs"))}
            choices.append(found)
        if not choices and not refusal:
            raise ValueError("choices")
        usage = told.get("usage") or {}
        counts = {key: int(usage[key]) for key in ("prompt_tokens", "completion_tokens") if key in usage}
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise Unreadable(
            scrub(f"its JSON is no chat completion ({type(error).__name__}: {error}): {told!r}"),
            charged=True,
        ) from None  # fmt: skip
    known = counts if len(counts) == 2 else {}
    return Answer("answered", choices, known) if choices else Answer("refused", [], known, scrub(refusal))


def _logprobs(told: Any) -> list[dict[str, Any]] | None:
    if not told or not told.get("content"):
        return None

    def finite(value: Any) -> float:
        return max(float(value), LOWEST) if math.isfinite(float(value)) else LOWEST

    return [
        {
            "token": token["token"],
            "logprob": finite(token["logprob"]),
            "top": [
                {"token": top["token"], "logprob": finite(top["logprob"])}
                for top in token.get("top_logprobs") or ()
            ],
        }
        for token in told["content"]
    ]
