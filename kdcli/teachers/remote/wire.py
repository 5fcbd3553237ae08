"""Implements the OpenAI protocol: requests to an endpoint and its responses (completions, log-probabilities, errors)."""

from __future__ import annotations

import contextlib
import difflib
import json
import os
import re
import time
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qsl, urlsplit

from kdcli.errors import ConfigError, TeacherError, listed
from kdcli.teachers.remote.client import Altered, Client, Rejected, Retry, Unreadable
from kdcli.teachers.remote.ledger import Answer
from kdcli.teachers.remote.limits import retry_after
from kdcli.teachers.remote.parameters import Change, Parameters, is_rejection, remedy_for
from kdcli.teachers.remote.stream import read_stream
from kdcli.teachers.remote.top import finite, token_logprobs, written_top

if TYPE_CHECKING:
    import openai
"""The HTTP statuses of requests that the endpoint does not accept."""
FILTERED = (
    "content_filter",
    "content_policy_violation",
    "moderation_blocked",
    "ResponsibleAIPolicyViolation",
)
"""The error codes of endpoints whose content filter stopped a prompt."""
STOPPED = (
    "content_filter",
    "refusal",
    "safety",
    "recitation",
    "prohibited_content",
    "blocklist",
    "spii",
    "sensitive",
)
"""The finish reasons of completions that a content filter, or the model, has stopped."""
BROKEN = ("error", "abort", "network_error", "insufficient_system_resource")
"""The finish reasons of completions that the server has not completed."""
BUSY = "Lower teacher.concurrency, teacher.requests_per_minute or teacher.tokens_per_minute, or raise teacher.retries"
"""What to do about an endpoint that refuses requests for their number."""
REASONING = ("reasoning_content", "reasoning", "thinking", "reasoning_details")
"""The fields of a message with the model's thoughts."""


class HTTPClient(Client):
    """Posts JSON to a server with an API key, and reads what its responses and errors mean.

    Args:
        base_url: up to and without the path of requests; a query (`?api-version=…`) is a part of each address.
        key: the name of the environment variable that holds the API key; None if the server needs none.
        timeout: the seconds in which the complete response must arrive.
        options: of `Client`.

    Raises:
        ConfigError: the package openai is missing, the address is wrong, or as `Client`.
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
                "teacher.base_url: expected http(s)://HOST[:PORT]/PATH without a user or password (these would be written down with the "
                f"config), got one that begins with {parts.scheme or 'no scheme'}"
            )
        address, mark, query = base_url.partition("?")
        address, *path = re.split(r"/(?:(?:chat/)?completions|generate)/?$", address)
        address = address.rstrip("/")
        base_url = f"{address}{mark}{query}"
        if path:
            raise ConfigError(
                f"teacher.base_url ends in the path of requests, which is added to it; give {base_url}"
            )
        self._variable, self._key, self._timeout = key, os.environ.get(key or "", "").strip(), timeout
        self._responded = False
        super().__init__(base_url, model, ledger=ledger, **options)
        self._client = openai.OpenAI(
            base_url=address,
            default_query=dict(parse_qsl(query)),
            api_key=self._key or "none",
            timeout=timeout,
            max_retries=0,
            # one connection for each request: a response that is sent twice cannot be taken for the next one
            default_headers={"Connection": "close"} | self._further_headers(parts.hostname),
        )

    def _further_headers(self, host: str) -> dict[str, str]:
        """Return the header in which Azure's deployments take the key; their Authorization is for tokens alone."""
        return {"api-key": self._key} if self._key and host.endswith(".azure.com") else {}

    def require_ready(self) -> None:
        """Refuse to begin without the API key.

        Raises:
            ConfigError: the environment variable is not set.
        """
        if self._variable is not None and not self._key:
            raise ConfigError(
                f"teacher.api_key_env = {self._variable}: this environment variable is not set; set it to the key, name another one, or give null for an "
                "endpoint without keys"
            )

    def receive(self, path: str, body: dict[str, Any]) -> Any:
        """Post a request, and return the JSON of the response, or an `Answer` if a content filter stopped the prompt.

        Args:
            path: behind `base_url`, or a complete address.

        Raises:
            Retry, Rejected, TeacherError: as `Client.send`.
        """
        import openai

        deadline = time.monotonic() + self._timeout
        data = bytearray()
        try:
            stream = self._client.post(
                path, body=body, cast_to=object, stream=True, stream_cls=openai.Stream[object]
            )
            with contextlib.closing(stream.response) as response:
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
            remedy = "Start the server, or correct teacher.base_url" if tries else ""
            raise Retry(problem, charged=not unreached, tries=tries, remedy=remedy) from None
        except TimeoutError:
            raise Retry(f"no complete answer in {self._timeout:g} s", charged=True) from None
        except Exception as error:  # the HTTP library has exceptions of its own
            raise Retry(self.scrub(f"{type(error).__name__}: {error}"), charged=True) from None
        try:
            return read_stream(data) or json.loads(data)
        except (ValueError, RecursionError):
            shape = (
                "a stream (++teacher.parameters.stream=false)" if data.startswith(b"data:") else "not JSON"
            )
            start = self.scrub(data[:200].decode(errors="replace"))
            raise Retry(
                f"its answer is {shape}: {start}",
                charged=True,
                tries=None if self.accepted else 2,  # the address of a web page is reported soon
                remedy=f"Check teacher.base_url = {self.base_url}",
            ) from None

    def lookup(self, path: str, body: dict[str, Any] | None = None, start: str = "") -> Any:
        """Return what a server says about itself: the JSON of a GET, or of a POST with a body; None: it has no such page.

        Args:
            start: the command that starts a server, for the message.

        Raises:
            TeacherError: there is no server, or it refuses the key.
        """
        import openai

        try:
            if body is None:
                return self._client.get(path, cast_to=object)
            return self._client.post(path, body=body, cast_to=object)
        except openai.APIConnectionError as error:
            cause = error.__cause__ or error
            raise TeacherError(
                f"no server answers at {self.base_url} ({self.scrub(f'{type(cause).__name__}: {cause}')}); start it"
                f"{f' ({start})' if start else ''}, or correct teacher.base_url"
            ) from None
        except openai.APIStatusError as error:
            if error.status_code in (401, 403):
                self._from_status(error)
            return None

    def _from_status(self, error: openai.APIStatusError) -> Answer:
        """Return what an HTTP error means for this request and for all."""
        status, body = error.status_code, error.body
        details = body if isinstance(body, dict) else {}
        message = self.scrub(str(details.get("message") or body or error.message))
        if is_filtered(details):
            return Answer("refused", reason=message)
        if is_rejection(status, message):
            raise Rejected(message, parameter=parameter_in(details), text=f"{message} {body}")
        if is_transient(status) and "insufficient_quota" not in (details.get("code"), details.get("type")):
            remedy = BUSY if status == 429 else ""
            raise Retry(f"{status} {message}", after=retry_after(error.response.headers), remedy=remedy)
        key = f"the key in {self._variable or 'no variable'} (teacher.api_key_env)"
        remedy = {
            401: f"check {key}"
            if self._variable
            else "it wants a key: name its variable by teacher.api_key_env",
            402: "the account has no credit left",
            403: f"check whether {key} suffices for teacher.model={self.model}",
            404: f"check teacher.base_url (it often ends in /v1) and teacher.model={self.model}{self._others() if status == 404 else ''}",
            429: "the account has no credit left",
        }.get(status, "check teacher.base_url and teacher.parameters")
        raise TeacherError(f"{self.base_url} answers {status} ({message}): {remedy}") from None

    def _others(self) -> str:
        """Return the names of the models that a server lists, the likeliest first, for the refusal of one that it does not know."""
        try:
            page = self.lookup("/models")
            names = sorted(str(model["id"]) for model in page["data"])
        except (TeacherError, TypeError, KeyError):  # not every server has a list
            return ""
        close = difflib.get_close_matches(self.model, names, n=5, cutoff=0.4)
        return f"; it serves {listed(close or names)}" if names and self.model not in names else ""

    def scrub(self, text: str) -> str:
        """Return one short line without the API key, which some endpoints repeat."""
        if self._key:
            text = text.replace(self._key, "<key>")
        text = " ".join(text.split())
        return text if len(text) <= 300 else f"{text[:300]}…"


class ChatClient(HTTPClient):
    """Requests chat completions from an OpenAI-compatible endpoint. A request's body has `messages` and further parameters.

    A parameter that the endpoint refuses is changed or removed (`Parameters`). The answer is stored under the hash of the original
    request, which does not depend on what the endpoint takes.

    Args:
        given: the parameters that the user chose; they are never removed.
        options: of `HTTPClient`, whose `base_url` is up to and without /chat/completions.
    """

    def __init__(
        self, base_url: str, model: str, key: str | None, *, given: Collection[str] = (), **options: Any
    ):
        super().__init__(base_url, model, key, **options)
        self._parameters = Parameters(
            f"{model} at {urlsplit(base_url).netloc}", given, self.ledger.path.with_suffix(".parameters.json")
        )
        self._changes: dict[bytes, list[Change]] = {}

    def prompt_bytes(self, body: dict[str, Any]) -> int:
        """Return the bytes of the messages."""
        return super().prompt_bytes(body["messages"])

    def max_completion_tokens(self, body: dict[str, Any]) -> int | None:
        """Return the most tokens of all completions together."""
        most = body.get("max_completion_tokens", body.get("max_tokens"))
        return None if most is None else int(most) * int(body.get("n", 1))

    def send(self, body: dict[str, Any]) -> Answer:
        """Send one request once, with the parameters that the endpoint takes."""
        key = self.key(body)
        changes = self._changes.pop(key, [])
        sent = self._parameters.applied(body, changes)
        try:
            answer = self._send(sent)
        except Retry:
            self._changes[key] = changes
            raise
        except Rejected as rejected:
            change = self._parameters.change_after(sent, rejected)
            if change is None or any(made.name == change.parameter for made in changes):
                raise
            self._changes[key] = [*changes, change]
            raise Altered from None
        if answer.status == "answered":
            self._parameters.accepted(sent, changes)
        return answer

    def remedy(self, reason: str) -> str:
        """Return what to do about a rejection, as `Client.remedy`."""
        return remedy_for(reason)

    def _send(self, body: dict[str, Any]) -> Answer:
        response = self.receive("/chat/completions", {"model": self.model, **body})
        if isinstance(response, Answer):
            return response
        if error := error_in(response):
            problem = self.scrub(f"an error for an answer: {error.get('message') or error}")
            if is_filtered(error):
                return Answer("refused", reason=problem)
            status = str(error.get("code"))
            code = int(status) if re.fullmatch(r"\d{3}", status) else 0
            if is_rejection(code, problem):
                raise Rejected(problem, parameter=parameter_in(error), text=str(error))
            if is_transient(code):
                raise Retry(problem, charged=True)
            raise Unreadable(problem, charged=True)
        return read_completion(response, self.scrub)


def is_transient(status: int) -> bool:
    """Return whether the same request may succeed later."""
    return status in (408, 409, 425, 429) or status >= 500


def parameter_in(details: dict[str, Any]) -> str | None:
    """Return the parameter that an error names, such as `response_format` of `response_format.type`."""
    parameter = details.get("param")
    return re.split(r"[.\[]", parameter)[0] if isinstance(parameter, str) else None


def is_filtered(details: dict[str, Any]) -> bool:
    """Return whether an error says that a content filter stopped the prompt."""
    inner = details.get("innererror")
    levels = [details, inner] if isinstance(inner, dict) else [details]
    return any(level.get(key) in FILTERED for level in levels for key in ("code", "type"))


def error_in(response: Any) -> dict[str, Any] | None:
    """Return the error that a response with status 200 has in place of an answer, as routers and proxies send it; None: it has none.

    It is the value of `error` (an object or a text) of the response, of its only item, or of its only choice, or else a `message` or `detail` without
    choices, or the finish reason of a choice that is not complete.
    """
    if isinstance(response, list) and len(response) == 1:
        [response] = response
    if not isinstance(response, dict):
        return None
    choices = response.get("choices")
    if isinstance(choices, list) and len(choices) == 1 and isinstance(choices[0], dict):
        finish = choices[0].get("finish_reason")
        error = choices[0].get("error") or (finish in BROKEN and f"finish_reason is {finish}")
    elif choices:
        return None
    else:
        error = response.get("error") or response.get("detail")
        if not error and isinstance(response.get("message"), str):
            error = response
    return error if isinstance(error, dict) else {"message": error} if error else None


def read_completion(response: Any, scrub: Callable[[str], str]) -> Answer:
    """Return the answer in a response's JSON.

    Raises:
        Unreadable: it has another structure than the API specifies.
    """
    try:
        choices, refusal = [], ""
        for choice in sorted(response["choices"], key=lambda choice: choice.get("index", 0)):
            finish = choice.get("finish_reason")
            stopped = str(finish).casefold() in STOPPED
            message = choice.get("message")
            if message is None:
                message = {"content": choice.get("text") if stopped else choice["text"]}
            text, reasoning, declined = read_message(message)
            if declined or stopped:
                refusal = declined or text or str(finish)
                continue
            tokens = written_top(response, choice)
            logprobs = None if tokens else _read_logprobs(choice.get("logprobs"), text)
            choices.append(
                {"text": text, "finish_reason": finish, "logprobs": logprobs}
                | ({"tokens": tokens} if tokens else {})
                | ({"reasoning": reasoning} if reasoning else {})
                | ({"calls": calls} if (calls := read_calls(message)) and not text.strip() else {})
            )
        if not choices and not refusal:
            raise ValueError("choices")
        reported = response.get("usage") or {}
        counts = {
            key: int(reported[key])
            for key in ("prompt_tokens", "completion_tokens")
            if reported.get(key) is not None
        }
    except (KeyError, TypeError, ValueError, AttributeError, RecursionError) as error:
        raise Unreadable(
            scrub(f"its JSON is no chat completion ({type(error).__name__}: {error}): {response!r}"),
            charged=True,
        ) from None
    usage = counts if len(counts) == 2 else {}
    return Answer("answered", choices, usage) if choices else Answer("refused", [], usage, scrub(refusal))


def read_message(message: Mapping[str, Any]) -> tuple[str, str, str]:
    """Return the text of a message, its thoughts where the host returns them apart, and its refusal; each may be empty.

    Content is a string, a list of parts, or JSON that a proxy has parsed.

    Raises:
        TypeError: the content has a part that is no text.
    """
    content = message.get("content") or ""
    if isinstance(content, Mapping):
        content = json.dumps(content)
    text, thoughts, refusal = [], [], [str(message.get("refusal") or "")]
    for part in [content] if isinstance(content, str) else list(content):
        if isinstance(part, str):
            text.append(part)
        elif part["type"] in ("text", "output_text"):
            text.append(part["text"])
        elif part["type"] in ("thinking", "reasoning", "redacted_thinking"):
            thoughts.append(_joined(part))
        elif part["type"] == "refusal":
            refusal.append(part["refusal"])
        else:
            raise TypeError(f"a content part of the type {part['type']}")
    thoughts += [_joined(message[field]) for field in REASONING if message.get(field)][:1]
    return "".join(text), "".join(thoughts), "".join(refusal)


def read_calls(message: Mapping[str, Any]) -> list[dict[str, str]]:
    """Return the calls of tools in a message: the name and the arguments, as JSON, of each. Proxies request structured output of some models as a call."""
    calls = [call.get("function") for call in message.get("tool_calls") or ()]
    functions = [call for call in (*calls, message.get("function_call")) if isinstance(call, Mapping)]
    return [
        {
            "name": str(call.get("name") or ""),
            "arguments": arguments if isinstance(arguments, str) else json.dumps(arguments),
        }
        for call in functions
        if (arguments := call.get("arguments"))
    ]


def _joined(value: Any) -> str:
    """Return the texts in a value of strings, lists and mappings."""
    if isinstance(value, Mapping):
        return "".join(
            _joined(inner) for key, inner in value.items() if key in (*REASONING, "text", "summary")
        )
    if isinstance(value, list):
        return "".join(map(_joined, value))
    return value if isinstance(value, str) else ""


def _read_logprobs(logprobs: Any, text: str) -> list[dict[str, Any]] | None:
    if not (content := token_logprobs(logprobs)):
        return None
    listed = [each for token in content for each in (token, *(token.get("top_logprobs") or ()))]
    decode = _byte_level_decoder([_text_of(token) for token in content], [*map(_text_of, listed)], text)

    def read(token: Mapping[str, Any]) -> dict[str, Any]:
        return {"token": decode(_text_of(token)), "logprob": finite(token["logprob"])}

    return [read(token) | {"top": [*map(read, token.get("top_logprobs") or ())]} for token in content]


def _text_of(token: Mapping[str, Any]) -> str:
    """Return the text of a token by its bytes; if there are none, or they are a part of a character, as it is written."""
    try:
        return bytes(token.get("bytes") or ()).decode() or token["token"]
    except (ValueError, TypeError):
        return token["token"]


def _byte_level_decoder(written: list[str], listed: list[str], text: str) -> Callable[[str], str]:
    """Return what makes texts of tokens. Some servers report them as byte-level vocabularies hold them: `Ġgood` is ` good`, `Ã©t` is `ét`.

    Args:
        written: the tokens of a completion.
        listed: these and their alternatives.
        text: the completion.
    """
    from tokenizers.decoders import ByteLevel

    decoder, answer = ByteLevel(), text.strip()
    has_marks = bool({*"ĠĊ"} & {*"".join(listed)} - {*text})
    if (has_marks or answer not in "".join(written)) and answer in decoder.decode(written):
        return lambda token: decoder.decode([token])
    return str
