"""Servers that score given tokens: at each token of a prompt, the likeliest tokens and their log-probabilities."""

from __future__ import annotations

import re
from abc import abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, ClassVar, NamedTuple

from kdcli.errors import TeacherError, listed
from kdcli.teachers.remote.client import Rejected, Unreadable
from kdcli.teachers.remote.ledger import Answer
from kdcli.teachers.remote.top import Position, Top
from kdcli.teachers.remote.wire import HTTPClient

_CAPPED = re.compile(r"greater than max(?:imum)? allowed|max.?logprobs|at most \d+ .*logprob", re.IGNORECASE)
_TOO_LONG = re.compile(r"context length|max.?model.?len|too long|longer than|input length", re.IGNORECASE)
_UNKNOWN_MODEL = re.compile(r"model .*(?:does not exist|not found)", re.IGNORECASE)


class ServedModel(NamedTuple):
    """A model that a server lists."""

    name: str
    max_length: int | None
    """Tokens of a prompt and its completion together; None: it does not say."""


class ScoringClient(HTTPClient):
    """Requests the likeliest tokens at the tokens of given prompts.

    The body of a request has `rows`, each a mapping with the token ids (`prompt`), the index of the first token that is scored (`start`, at
    least 1) and the number of likeliest tokens (`k`). Each row has its own entry in the ledger, whatever rows are requested together.
    """

    server: ClassVar[str]
    """What the server is called, for messages."""
    serve: ClassVar[str]
    """The command that starts it, for messages."""
    longer: ClassVar[str]
    """Its option that accepts longer prompts."""
    capped: ClassVar[str]
    """Its option that gives more likeliest tokens; empty: there is none."""

    def written(self, k: int) -> dict[str, Any]:
        """Return the parameters with which a chat completion reports its tokens and the k likeliest ones at each (`written_top`); none: it does not."""
        return {}

    @abstractmethod
    def request(self, rows: Sequence[Mapping[str, Any]]) -> tuple[str, dict[str, Any]]:
        """Return the address behind `base_url` and the JSON of a request."""

    @abstractmethod
    def positions(
        self, response: Any, rows: Sequence[Mapping[str, Any]]
    ) -> Iterator[tuple[list[Position | None] | None, int]]:
        """Yield for each row of a response the listed tokens at its tokens from the first or from one before `start` on (None: it has
        none), and the number of the prompt's tokens that it is about."""

    @abstractmethod
    def usage_of(self, response: Any) -> dict[str, int]:
        """Return the `usage` of an answer."""

    # ---- requests ----------------------------------------------------------------------------------------

    def prompt_bytes(self, body: dict[str, Any]) -> int:
        """Return the tokens, which are the most that it is charged for."""
        return sum(len(row["prompt"]) for row in body["rows"])

    def expected_tokens(self, body: dict[str, Any]) -> int:
        """Return the tokens of the prompts."""
        return self.prompt_bytes(body)

    def max_completion_tokens(self, body: dict[str, Any]) -> int | None:
        """Return one for each row, which the server writes and nobody reads."""
        return len(body["rows"])

    def stored(self, key: bytes, body: dict[str, Any]) -> Answer | None:
        """Return the answer of the rows, if the ledger has all of them."""
        choices = []
        for row in body["rows"]:
            answer = self.ledger.get(self.key(row))
            if answer is None:
                return None
            choices += answer.choices
        return Answer("answered", choices)

    def made(self, key: bytes, body: dict[str, Any]) -> float | None:
        """Return when the oldest answer of the rows was stored."""
        times = [self.ledger.made(self.key(row)) for row in body["rows"]]
        return min((time for time in times if time is not None), default=None)

    def store(self, key: bytes, body: dict[str, Any], answer: Answer) -> None:
        """Keep the answer of each row. One that cannot be read is requested again next time."""
        for row, choice in zip(body["rows"], answer.choices, strict=answer.status == "answered"):
            self.ledger.append(self.key(row), Answer("answered", [choice]))

    def send(self, body: dict[str, Any]) -> Answer:
        """Score some rows.

        Raises:
            TeacherError: the server does not give what the rows need; the message has the remedy.
        """
        rows = body["rows"]
        try:
            response = self.receive(*self.request(rows))
        except Rejected as rejected:
            raise self._refusal(rejected, rows) from None
        if isinstance(response, Answer):
            raise TeacherError(
                f"{self.base_url} stops a row by a filter ({response.reason}); turn the filter off: every row is scored, or none"
            )
        try:
            of_rows = list(self.positions(response, rows))
            if len(of_rows) != len(rows):
                raise ValueError(f"{len(of_rows)} prompts of {len(rows)}")
            choices = [self._top(row, *each).packed() for row, each in zip(rows, of_rows, strict=True)]
            usage = self.usage_of(response)
        except (KeyError, TypeError, ValueError, AttributeError, IndexError) as error:
            shape = self.scrub(f"{response!r:.300}")
            raise Unreadable(
                f"its JSON has no scores of prompts ({type(error).__name__}: {error}): {shape}", charged=True
            ) from None
        return Answer("answered", choices, usage)

    def _top(self, row: Mapping[str, Any], scored: list[Position | None] | None, tokens: int) -> Top:
        """Return the k likeliest tokens at each token of a row from `start` on.

        Raises:
            TeacherError: the server leaves tokens out.
        """
        k, needed = row["k"], len(row["prompt"]) - row["start"]
        if scored is None:
            raise TeacherError(
                f"{self.base_url} gives no log-probabilities of prompts; take a server that does: {self.serve}"
            )
        if tokens != len(row["prompt"]) or len(scored) < needed:
            raise TeacherError(
                f"{self.base_url} cuts prompts: it scores {tokens} tokens of {len(row['prompt'])}; {self._length_remedy(len(row['prompt']))}"
            )
        try:
            return Top.of(scored[len(scored) - needed :], k)
        except ValueError as error:
            raise self._too_few(k, str(error)) from None

    # ---- what is wrong -----------------------------------------------------------------------------------

    def _refusal(self, rejected: Rejected, rows: Sequence[Mapping[str, Any]]) -> TeacherError:
        longest = max(len(row["prompt"]) for row in rows)
        if _UNKNOWN_MODEL.search(rejected.text):
            return TeacherError(f"{self.base_url}: {rejected}; check teacher.model = {self.model}")
        if _CAPPED.search(rejected.text):
            return self._too_few(rows[0]["k"], str(rejected))
        if _TOO_LONG.search(rejected.text):
            return TeacherError(
                f"{self.base_url} refuses a prompt of {longest} tokens ({rejected}); {self._length_remedy(longest)}"
            )
        return TeacherError(
            f"{self.base_url} refuses to score prompts ({rejected}); take a server that gives their log-probabilities: {self.serve}"
        )

    def _too_few(self, k: int, reason: str) -> TeacherError:
        more = f"start it with {self.capped} {k}, or " if self.capped else ""
        return TeacherError(
            f"{self.base_url} does not give the {k} likeliest tokens ({reason}); {more}lower teacher.top_k = {k}"
        )

    def _length_remedy(self, length: int) -> str:
        return f"start it with {self.longer} {length + 1} or more, or lower dataset.max_length"

    def require_model(self, longest: int) -> None:
        """Check that the server is there, has the model, and takes prompts of so many tokens.

        Raises:
            TeacherError: it does not.
        """
        models = self.models()
        if models is None:  # it keeps no list
            return
        model = next((model for model in models if model.name == self.model), None)
        if model is None:
            names = listed(sorted(model.name for model in models))
            raise TeacherError(
                f"teacher.model = {self.model}: {self.base_url} serves {names}; give one of these, or correct teacher.base_url"
            )
        if model.max_length is not None and model.max_length <= longest:
            raise TeacherError(
                f"{self.base_url} takes {model.max_length} tokens, and the longest row has {longest} and one that is written; "
                f"{self._length_remedy(longest)}"
            )

    def models(self) -> list[ServedModel] | None:
        """Return the models that the server lists; None: it has no list."""
        page = self.lookup("/models", start=self.serve)
        if not isinstance(page, dict):
            return None
        return [ServedModel(model["id"], model.get("max_model_len")) for model in page.get("data", ())]

    def tokenize(self, text: str) -> list[int] | None:
        """Return the server's tokens of a text, without the first one if the server does not tell it; None: it does not tell any."""
        body = {"model": self.model, "prompt": text, "add_special_tokens": False}
        page = self.lookup(f"{self.root}/tokenize", body)
        if isinstance(page, dict) and isinstance(page.get("tokens"), list):
            return list(map(int, page["tokens"]))
        return self.probe(text)

    @abstractmethod
    def probe(self, text: str) -> list[int] | None:
        """Return the same as `tokenize`, from the scores of the text."""

    @property
    def root(self) -> str:
        """Return the server's address without the version of the protocol."""
        return re.sub(r"/v\d+$", "", self.base_url.partition("?")[0])


class VLLMClient(ScoringClient):
    """vLLM: `prompt_logprobs` of /v1/completions (https://docs.vllm.ai, "OpenAI-Compatible Server")."""

    server = "vLLM"
    serve = "vllm serve MODEL --max-logprobs K"
    longer = "--max-model-len"
    capped = "--max-logprobs"

    def written(self, k: int) -> dict[str, Any]:
        """Request log-probabilities before the sampling temperature, and tokens by their ids."""
        return {
            "logprobs": True,
            "top_logprobs": k,
            "return_token_ids": True,
            "return_tokens_as_token_ids": True,
        }

    def request(self, rows: Sequence[Mapping[str, Any]]) -> tuple[str, dict[str, Any]]:
        """Request one token: the scores of the prompt are those of the model, whatever the temperature of that token."""
        prompts = [row["prompt"] for row in rows]
        body = {"model": self.model, "prompt": prompts, "max_tokens": 1, "temperature": 0.0}
        return "/completions", body | {"prompt_logprobs": max(row["k"] for row in rows)}

    def probe(self, text: str) -> list[int] | None:
        """Request no likeliest tokens: a position then lists the prompt's own token."""
        body = {"model": self.model, "prompt": text, "add_special_tokens": False, "max_tokens": 1}
        page = self.lookup("/completions", body | {"prompt_logprobs": 0})
        entries = page["choices"][0].get("prompt_logprobs") if isinstance(page, dict) else None
        return [int(next(iter(entry))) for entry in entries[1:]] if entries else None

    def positions(
        self, response: Any, rows: Sequence[Mapping[str, Any]]
    ) -> Iterator[tuple[list[Position | None] | None, int]]:
        """Yield no position for the first token: nothing precedes it."""
        for choice in sorted(response["choices"], key=lambda choice: int(choice["index"])):
            entries = choice.get("prompt_logprobs")
            if entries is None:
                yield None, 0
                continue
            scored: list[Position | None] = [
                entry and [(float(each["logprob"]), int(token)) for token, each in entry.items()]
                for entry in entries
            ]
            yield scored, len(scored)

    def usage_of(self, response: Any) -> dict[str, int]:
        """Return what the server counts."""
        reported = response.get("usage") or {}
        keys = ("prompt_tokens", "completion_tokens")
        return {key: int(reported[key]) for key in keys} if all(map(reported.get, keys)) else {}


class SGLangClient(ScoringClient):
    """SGLang: its own /generate (https://docs.sglang.ai, "Sampling Parameters"), which begins with the scores where the completion does."""

    server = "SGLang"
    serve = "python -m sglang.launch_server --model-path MODEL"
    longer = "--context-length"
    capped = ""

    def request(self, rows: Sequence[Mapping[str, Any]]) -> tuple[str, dict[str, Any]]:
        """Request scores from one token before `start`: the first one that is returned is empty."""
        body = {
            "input_ids": [row["prompt"] for row in rows],
            "logprob_start_len": [row["start"] - 1 for row in rows],
            "top_logprobs_num": [row["k"] for row in rows],
        }
        written = {"max_new_tokens": 1, "temperature": 0.0}
        return f"{self.root}/generate", body | {"return_logprob": True, "sampling_params": written}

    def probe(self, text: str) -> list[int] | None:
        """Request the scores of the text, which are returned with its tokens."""
        body = {"text": text, "return_logprob": True, "logprob_start_len": 0}
        page = self.lookup(f"{self.root}/generate", body | {"sampling_params": {"max_new_tokens": 1}})
        scores = page["meta_info"].get("input_token_logprobs") if isinstance(page, dict) else None
        return [int(token) for _, token, *_ in scores] if scores else None

    def positions(
        self, response: Any, rows: Sequence[Mapping[str, Any]]
    ) -> Iterator[tuple[list[Position | None] | None, int]]:
        """Read a list of answers, in the order of the rows."""
        for answer in response:
            meta = answer["meta_info"]
            entries = meta.get("input_top_logprobs")
            scored: list[Position | None] | None = entries and [
                entry and [(float(value), int(token)) for value, token, *_ in entry] for entry in entries
            ]
            yield scored or None, int(meta["prompt_tokens"])

    def usage_of(self, response: Any) -> dict[str, int]:
        """Return the sum over the rows."""
        counts = [answer["meta_info"] for answer in response]
        return {key: sum(int(each[key]) for each in counts) for key in ("prompt_tokens", "completion_tokens")}
