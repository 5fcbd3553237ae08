"""A model that one can only ask: an OpenAI-compatible address, which costs money, limits its callers and fails now and then.

Every answer is written into a ledger before it is used, and what the ledger holds is not asked again: neither by a run that
was killed and goes on, nor by another run.
"""

from __future__ import annotations

import contextlib
import json
import os
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from kdcli.errors import ConfigError, EndpointError, TeacherError
from kdcli.files import digest
from kdcli.teachers.remote.ledger import Ledger
from kdcli.teachers.remote.limits import (
    Budget,
    Charge,
    Estimate,
    Pacer,
    Prices,
    Rejected,
    Spending,
    Stopped,
    Usage,
    pause_after,
    retry_after,
)
from kdcli.teachers.remote.wire import (
    TEMPLATE,
    UNREADABLE,
    Answer,
    Retry,
    Unreadable,
    is_filtered,
    is_finished,
    is_transient,
    max_completion_tokens,
    read_completion,
    request_bytes,
)

if TYPE_CHECKING:
    import openai
WINDOW = 32
"""Questions that are under way or wait for their turn to be handed out, for each of `concurrency`: a slow one holds up no other."""
PATIENCE = 600.0
"""Seconds that a host may ask to wait (Retry-After)."""
DOUBT = 3
"""So many refusals before the first answer: it is the request that is wrong, not a prompt."""


class Endpoint:
    """Asks one model at one address, many questions at a time.

    Args:
        base_url: up to and without /chat/completions.
        key: the name of the environment variable that holds the key; None: the server wants none.
        ledger: the folder of the ledgers; each address and model has a file of its own there.
        concurrency: requests under way at the same time.
        timeout: seconds that an answer may take in all.
        retries: of one question.
        backoff: seconds before the first retry; each further one waits twice as long, at random up to half of it less.

    Raises:
        ConfigError: there is no key, the client is not installed, or what is given does not fit together.
    """

    def __init__(
        self,
        base_url: str,
        model: str,
        key: str | None,
        *,
        ledger: Path,
        concurrency: int = 8,
        requests_per_minute: float | None = None,
        tokens_per_minute: float | None = None,
        timeout: float = 60,
        retries: int = 8,
        backoff: float = 0.5,
        budget: Budget | None = None,
        prices: Prices | None = None,
    ):
        try:
            import openai
        except ImportError:
            raise ConfigError(
                "asking an endpoint needs the package openai; install it with: pip install 'kdcli[openai]'"
            ) from None
        parts = urlsplit(base_url)
        if parts.scheme not in ("http", "https") or not parts.hostname or parts.username or parts.password:
            raise ConfigError(
                f"base_url is http(s)://HOST[:PORT]/PATH without a user or password (these would be written down with the "
                f"config); this one begins with {parts.scheme or 'no scheme'}"
            )
        if budget and budget.money is not None and prices is None:
            raise ConfigError("a budget in money needs the prices of a million tokens")
        self.base_url = base_url.rstrip("/")
        self.model = model
        self.usage = Usage(cost=None if prices is None else 0.0)
        self._variable = key
        self._key = _read_key(key)
        self._concurrency = concurrency
        self._timeout = timeout
        self._retries = retries
        self._backoff = backoff
        self._budget = budget or Budget()
        self._prices = prices
        self._client = openai.OpenAI(
            base_url=self.base_url,
            api_key=self._key or "none",
            timeout=timeout,
            max_retries=0,
            # a connection of its own for each question: what a server sends twice cannot be taken for the next answer
            default_headers={"Connection": "close"},
        )
        self._ledger = Ledger(ledger / f"{digest(self.base_url, model)[:32]}.jsonl")
        self._purse = Spending(self._budget)
        self._requests = Pacer(requests_per_minute)
        self._tokens = Pacer(tokens_per_minute)
        self._counting = threading.Lock()
        self._told = 0  # answers whose usage is known
        self._not_before = 0.0
        self._heard = False  # the host has answered something
        self._accepted = False  # … and not with an error

    def ask(
        self, bodies: Iterable[dict[str, Any]], progress: Callable[[Usage], None] | None = None
    ) -> Iterator[tuple[int, Answer]]:
        """The number of each question and its answer, in the order of the questions.

        Args:
            bodies: the parameters of a chat completion besides the model: messages, and whatever else the host takes.
            progress: is called after each answer.

        Raises:
            TeacherError: the host refuses all requests (the key, the model, the parameters).
            EndpointError: the budget is used up, or a question had no answer after all retries. Either way the ledger
                keeps what was answered.
            ConfigError: there is a budget in tokens or money, and a question without max_tokens.
        """
        stop = threading.Event()
        failures: list[BaseException] = []
        window: deque[tuple[int, bytes, Future[Answer]]] = deque()
        asked: dict[bytes, Future[Answer]] = {}
        doubted: list[tuple[bytes, Answer]] = []

        def work(key: bytes, body: dict[str, Any]) -> Answer:
            try:
                try:
                    answer = self._try(body, stop)
                except Rejected as rejected:
                    answer = Answer("refused", reason=str(rejected))
                    if not self._accepted:  # it may be meant for all
                        doubted.append((key, answer))
                        if len(doubted) >= DOUBT:
                            raise self._refuses_all(answer.reason) from None
                        return answer
                believe()
                self._ledger.append(key, answer)
                return answer
            except BaseException as error:
                failures.append(error)
                stop.set()
                raise

        def believe() -> None:
            self._accepted = True
            while doubted:
                self._ledger.append(*doubted.pop())

        def first() -> tuple[int, Answer]:
            number, key, future = window.popleft()
            try:
                answer = future.result()
            except (Exception, KeyboardInterrupt):
                if not failures:
                    raise
                raise failures[0] from None
            if asked.get(key) is future:
                del asked[key]
            self.usage.refused += answer.status == "refused"
            self.usage.unparsable += answer.status == "unparsable"
            if progress:
                progress(self.usage)
            return number, answer

        holding_lock = False
        with contextlib.ExitStack() as holding, contextlib.ExitStack() as working:
            pool = ThreadPoolExecutor(self._concurrency, thread_name_prefix="endpoint")
            working.callback(pool.shutdown, cancel_futures=True)
            working.callback(stop.set)
            for number, body in enumerate(bodies):
                key = self._hash(body)
                if (future := asked.get(key)) is not None:
                    self.usage.from_ledger += 1
                else:
                    known = self._ledger.get(key)
                    if known is None and not holding_lock:
                        holding.enter_context(self._ledger.hold())
                        holding_lock = True
                        known = self._ledger.get(key)
                    if known is not None:
                        self.usage.from_ledger += 1
                        if known.status == "answered" and not self._accepted:
                            believe()
                        future = is_finished(known)
                    elif self._accepted:
                        future = pool.submit(work, key, body)
                    else:
                        future = is_finished(
                            work(key, body)
                        )  # one at a time, until the host has answered once
                    asked[key] = future
                window.append((number, key, future))
                while (
                    window
                    and not doubted
                    and (window[0][2].done() or len(window) >= WINDOW * self._concurrency)
                ):
                    yield first()
                if failures:
                    break
            if doubted:
                raise self._refuses_all(doubted[0][1].reason)
            while window:
                yield first()

    def estimate(self, bodies: Iterable[dict[str, Any]]) -> Estimate:
        """What asking these questions would take; nothing is asked."""
        questions = held = prompt = completion = 0
        limited = True
        for body in bodies:
            questions += 1
            if self._ledger.get(self._hash(body)) is not None:
                held += 1
                continue
            prompt += request_bytes(body) // 4
            if (most := max_completion_tokens(body)) is None:
                limited = False
            else:
                completion += most
        cost = self._prices.of(prompt, completion) if self._prices and limited else None
        return Estimate(questions, held, prompt, completion if limited else None, cost)

    def _hash(self, body: dict[str, Any]) -> bytes:
        """Of a question: the address, the model, the parameters and the prompt."""
        return bytes.fromhex(digest(self.base_url, self.model, body))

    def _try(self, body: dict[str, Any], stop: threading.Event) -> Answer:
        """One question, until it is answered.

        Raises:
            Rejected: the host does not take it.
            TeacherError, EndpointError: nothing more can be asked, or not this.
        """
        tries = unreadable = 0
        while True:
            charge = self._reserve(body, stop)
            try:
                answer = self._call(body)
            except Retry as again:
                self._settle(charge, None, charged=again.charged)
                problem = again
            except BaseException:
                self._settle(charge, None, charged=False)
                raise
            else:
                self._settle(charge, answer.usage)
                return answer
            tries += 1
            unreadable += isinstance(problem, Unreadable)
            last = tries > (self._retries if problem.tries is None else min(self._retries, problem.tries))
            if isinstance(problem, Unreadable) and (last or unreadable > UNREADABLE):
                return Answer("unparsable", reason=str(problem))
            if last:
                raise EndpointError(
                    f"{self.base_url} gave no answer in {tries} tries: {problem}. What was answered is kept; the same command "
                    "goes on from there"
                )
            if problem.after is not None:
                if problem.after > PATIENCE:
                    raise EndpointError(
                        f"{self.base_url} asks to wait {problem.after:.0f} s ({problem}). What was answered is kept; the same "
                        "command, given then, goes on from there"
                    )
                with self._counting:
                    self._not_before = max(self._not_before, time.monotonic() + problem.after)
            with self._counting:
                self.usage.retries += 1
            stop.wait(pause_after(self._backoff, tries))

    def _reserve(self, body: dict[str, Any], stop: threading.Event) -> Charge:
        """Wait for this request's turn; it counts as the most it may cost, until more is known."""
        most = None
        if self._budget.tokens is not None or self._budget.money is not None:
            if (written := max_completion_tokens(body)) is None:
                raise ConfigError(
                    "a budget in tokens or money needs max_tokens in the parameters: without it one answer may cost anything"
                )
            most = (request_bytes(body) + TEMPLATE, written)
        with self._counting:
            # what questions took so far; what the first may take is a guess
            guess = (
                (self.usage.prompt_tokens + self.usage.completion_tokens) / self._told
                if self._told
                else request_bytes(body) / 4 + (max_completion_tokens(body) or 0)
            )
        money = self._prices.of(*most) if self._prices and most else 0.0
        charge = Charge(sum(most or (0, 0)), money, guess)
        self._purse.take(charge, stop)
        try:
            turn = 0.0
            while turn <= self._not_before:  # which the host may move while one waits for one's turn
                stop.wait(max(0.0, self._not_before - time.monotonic()))
                stop.wait(max(self._requests.slot(1), self._tokens.slot(guess)))
                turn = time.monotonic()
                if stop.is_set():
                    raise Stopped
        except BaseException:
            self._purse.settle(charge, 0, 0, 0.0)
            raise
        with self._counting:
            self.usage.requests += 1
        return charge

    def _settle(self, charge: Charge, usage: dict[str, int] | None, *, charged: bool = True) -> None:
        """What a request has cost in truth: nothing, what the host tells, or (if it may be charged and tells nothing) the most."""
        tokens, money = (charge.tokens, charge.money) if charged else (0, 0.0)
        if usage:
            prompt, completion = usage["prompt_tokens"], usage["completion_tokens"]
            tokens = prompt + completion
            with self._counting:
                self._told += 1
                self.usage.prompt_tokens += prompt
                self.usage.completion_tokens += completion
                if self._prices:
                    money = self._prices.of(prompt, completion)
                    self.usage.cost = (self.usage.cost or 0.0) + money
        if usage or not charged:
            self._tokens.correct(tokens - charge.guess)
        self._purse.settle(charge, 1, tokens, money)

    def _call(self, body: dict[str, Any]) -> Answer:
        """One request.

        Raises:
            Retry, Unreadable, Rejected, TeacherError.
        """
        import openai

        deadline = time.monotonic() + self._timeout
        data = bytearray()
        try:
            with self._client.chat.completions.with_streaming_response.create(
                model=self.model,
                messages=body["messages"],
                extra_body={name: value for name, value in body.items() if name != "messages"},
            ) as response:
                self._heard = True
                for piece in response.iter_bytes():
                    data += piece
                    if time.monotonic() > deadline:
                        raise TimeoutError
        except openai.APIStatusError as error:
            self._heard = True
            return self._status(error)
        except openai.APIConnectionError as error:
            cause = error.__cause__ or error
            unreached = type(cause).__name__ == "ConnectError"
            problem = self._scrub(f"{type(cause).__name__}: {cause}")
            # a typo in the address, or a server that was not started, is told soon
            tries = 2 if unreached and not self._heard else None
            raise Retry(problem, charged=not unreached, tries=tries) from None
        except TimeoutError:
            raise Retry(f"no whole answer in {self._timeout:g} s", charged=True) from None
        except Exception as error:  # of whatever library carries the request
            raise Retry(self._scrub(f"{type(error).__name__}: {error}"), charged=True) from None
        try:
            told = json.loads(data)
        except ValueError:
            raise Retry("its answer is not JSON", charged=True) from None
        wrong = told.get("error") if isinstance(told, dict) and not told.get("choices") else None
        if isinstance(wrong, dict):  # of routers, with status 200
            problem = self._scrub(f"an error for an answer: {wrong.get('message') or wrong}")
            if is_filtered(wrong):
                return Answer("refused", reason=problem)
            if isinstance(wrong.get("code"), int) and is_transient(wrong["code"]):
                raise Retry(problem, charged=True)
        return read_completion(told, self._scrub)

    def _status(self, error: openai.APIStatusError) -> Answer:
        """What an HTTP error means for this question and for all."""
        status, body = error.status_code, error.body
        details = body if isinstance(body, dict) else {}
        said = self._scrub(str(details.get("message") or body or error.message))
        if is_filtered(details):
            return Answer("refused", reason=said)
        if status in (400, 413, 422):
            raise Rejected(said)
        if is_transient(status) and "insufficient_quota" not in (details.get("code"), details.get("type")):
            raise Retry(f"{status} {said}", after=retry_after(error.response.headers))
        remedy = {
            401: f"check the key in {self._variable}"
            if self._variable
            else "it wants a key: name its environment variable",
            402: "the account has no credit left",
            403: "this key may not use this model",
            404: f"check base_url (it often ends in /v1) and the model's name, {self.model}",
            429: "the account has no credit left",
        }.get(status, "check base_url and the parameters")
        raise TeacherError(f"{self.base_url} answers {status} ({said}): {remedy}") from None

    def _refuses_all(self, reason: str) -> TeacherError:
        return TeacherError(
            f"{self.base_url} refuses every request ({reason}): check the parameters and the model's name, {self.model}"
        )

    def _scrub(self, text: str) -> str:
        """One short line without the key, which some hosts repeat."""
        if self._key:
            text = text.replace(self._key, "<key>")
        text = " ".join(text.split())
        return text if len(text) <= 300 else f"{text[:300]}…"


def _read_key(variable: str | None) -> str | None:
    """The key.

    Raises:
        ConfigError: there is none.
    """
    if variable is None:
        return None
    key = os.environ.get(variable, "").strip()
    if not key:
        raise ConfigError(f"the endpoint wants a key: the environment variable {variable} is not set")
    return key
