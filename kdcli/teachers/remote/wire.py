"""The OpenAI protocol: requests to an endpoint and its responses (completions, log-probabilities, errors)."""

from __future__ import annotations

import json
import math
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from kdcli.errors import ConfigError, TeacherError
from kdcli.teachers.remote.client import Client, Rejected, Retry, Unreadable
from kdcli.teachers.remote.ledger import Answer
from kdcli.teachers.remote.limits import retry_after

if TYPE_CHECKING:
    import openai
FILTERED = (
    "content_filter",
    "content_policy_violation",
    "moderation_blocked",
    "ResponsibleAIPolicyViolation",
)
"""The error codes of endpoints whose content filter stopped a prompt."""
LOWEST = -9999.0
"""What endpoints write for a log-probability that is not finite."""


class ChatClient(Client):
    """Requests chat completions from an OpenAI-compatible endpoint. A request's body has `messages` and further parameters.

    Args:
        base_url: up to and without /chat/completions.
        key: the name of the environment variable that holds the API key; None if the endpoint needs none.
        timeout: the seconds in which the complete response must arrive.
        options: of `Client`.

    Raises:
        ConfigError: the API key or the package openai is missing, the address is wrong, or as `Client`.
    """

    def __init__(
        self, base_url: str, model: str, key: str | None, *, ledger: Path, timeout: float = 60, **options: Any
    ):
        try:
            import openai
        except ImportError:
            raise ConfigError(
                "a teacher behind an endpoint needs the package openai; install it with: pip install 'kdcli[openai]'"
            ) from None
        parts = urlsplit(base_url)
        if parts.scheme not in ("http", "https") or not parts.hostname or parts.username or parts.password:
            raise ConfigError(
                f"base_url is http(s)://HOST[:PORT]/PATH without a user or password (these would be written down with the "
                f"config); this one begins with {parts.scheme or 'no scheme'}"
            )
        self._variable, self._key, self._timeout = key, _read_key(key), timeout
        self._responded = False
        super().__init__(base_url.rstrip("/"), model, ledger=ledger, **options)
        self._client = openai.OpenAI(
            base_url=self.base_url,
            api_key=self._key or "none",
            timeout=timeout,
            max_retries=0,
            # one connection for each request: a response that is sent twice cannot be taken for the next one
            default_headers={"Connection": "close"},
        )

    def prompt_bytes(self, body: dict[str, Any]) -> int:
        """The bytes of the messages."""
        return super().prompt_bytes(body["messages"])

    def max_completion_tokens(self, body: dict[str, Any]) -> int | None:
        """The most tokens of all completions together."""
        most = body.get("max_completion_tokens", body.get("max_tokens"))
        return None if most is None else int(most) * int(body.get("n", 1))

    def send(self, body: dict[str, Any]) -> Answer:
        """Send one request once."""
        response = self._receive(body)
        if isinstance(response, Answer):
            return response
        error = response.get("error") if isinstance(response, dict) and not response.get("choices") else None
        if isinstance(error, dict):  # routers send it with status 200
            problem = self.scrub(f"an error for an answer: {error.get('message') or error}")
            if is_filtered(error):
                return Answer("refused", reason=problem)
            if isinstance(error.get("code"), int) and is_transient(error["code"]):
                raise Retry(problem, charged=True)
        return read_completion(response, self.scrub)

    def _receive(self, body: dict[str, Any]) -> Any:
        """The JSON of the response; an `Answer` if a content filter stopped the prompt."""
        import openai

        deadline = time.monotonic() + self._timeout
        data = bytearray()
        try:
            with self._client.chat.completions.with_streaming_response.create(
                model=self.model,
                messages=body["messages"],
                extra_body={name: value for name, value in body.items() if name != "messages"},
            ) as response:
                self._responded = True
                for piece in response.iter_bytes():
                    data += piece
                    if time.monotonic() > deadline:
                        raise TimeoutError
        except openai.APIStatusError as error:
            self._responded = True
            return self._from_status(error)
        except openai.APIConnectionError as error:
            cause = error.__cause__ or error
            unreached = type(cause).__name__ == "ConnectError"
            problem = self.scrub(f"{type(cause).__name__}: {cause}")
            # a wrong address, or a server that was not started, is reported soon
            tries = 2 if unreached and not self._responded else None
            raise Retry(problem, charged=not unreached, tries=tries) from None
        except TimeoutError:
            raise Retry(f"no complete answer in {self._timeout:g} s", charged=True) from None
        except Exception as error:  # the HTTP library has exceptions of its own
            raise Retry(self.scrub(f"{type(error).__name__}: {error}"), charged=True) from None
        try:
            return json.loads(data)
        except ValueError:
            raise Retry("its answer is not JSON", charged=True) from None

    def _from_status(self, error: openai.APIStatusError) -> Answer:
        """What an HTTP error means for this request and for all."""
        status, body = error.status_code, error.body
        details = body if isinstance(body, dict) else {}
        message = self.scrub(str(details.get("message") or body or error.message))
        if is_filtered(details):
            return Answer("refused", reason=message)
        if status in (400, 413, 422):
            raise Rejected(message)
        if is_transient(status) and "insufficient_quota" not in (details.get("code"), details.get("type")):
            raise Retry(f"{status} {message}", after=retry_after(error.response.headers))
        remedy = {
            401: f"check the key in {self._variable}"
            if self._variable
            else "it wants a key: name its environment variable",
            402: "the account has no credit left",
            403: "this key may not use this model",
            404: f"check base_url (it often ends in /v1) and the model's name, {self.model}",
            429: "the account has no credit left",
        }.get(status, "check base_url and the parameters")
        raise TeacherError(f"{self.base_url} answers {status} ({message}): {remedy}") from None

    def scrub(self, text: str) -> str:
        """One short line without the API key, which some endpoints repeat."""
        if self._key:
            text = text.replace(self._key, "<key>")
        text = " ".join(text.split())
        return text if len(text) <= 300 else f"{text[:300]}…"


def _read_key(variable: str | None) -> str | None:
    """The API key.

    Raises:
        ConfigError: the environment variable is not set.
    """
    if variable is None:
        return None
    key = os.environ.get(variable, "").strip()
    if not key:
        raise ConfigError(f"the endpoint wants a key: the environment variable {variable} is not set")
    return key


def is_transient(status: int) -> bool:
    """Whether the same request may succeed later."""
    return status in (408, 409, 425, 429) or status >= 500


def is_filtered(details: dict[str, Any]) -> bool:
    """Whether an error says that a content filter stopped the prompt."""
    inner = details.get("innererror")
    levels = [details, inner] if isinstance(inner, dict) else [details]
    return any(level.get(key) in FILTERED for level in levels for key in ("code", "type"))


def read_completion(response: Any, scrub: Callable[[str], str]) -> Answer:
    """The answer in a response's JSON.

    Raises:
        Unreadable: it has another structure than the API specifies.
    """
    try:
        choices, refusal = [], ""
        for choice in sorted(response["choices"], key=lambda choice: choice.get("index", 0)):
            message, finish = choice["message"], choice.get("finish_reason")
            if finish == "content_filter" or message.get("refusal"):
                refusal = str(message.get("refusal") or finish)
                continue
            text = message.get("content") or ""
            if not isinstance(text, str):
                raise TypeError("content")
            logprobs = _read_logprobs(choice.get("logprobs"))
            choices.append({"text": text, "finish_reason": finish, "logprobs": logprobs})
        if not choices and not refusal:
            raise ValueError("choices")
        reported = response.get("usage") or {}
        counts = {
            key: int(reported[key]) for key in ("prompt_tokens", "completion_tokens") if key in reported
        }
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise Unreadable(
            scrub(f"its JSON is no chat completion ({type(error).__name__}: {error}): {response!r}"),
            charged=True,
        ) from None
    usage = counts if len(counts) == 2 else {}
    return Answer("answered", choices, usage) if choices else Answer("refused", [], usage, scrub(refusal))


def _read_logprobs(logprobs: Any) -> list[dict[str, Any]] | None:
    if not logprobs or not logprobs.get("content"):
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
        for token in logprobs["content"]
    ]
