"""Sends requests to remote services: concurrently, with retries and limits. Answers are stored before they are used."""

from __future__ import annotations

import contextlib
import json
import threading
import time
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

from tenacity import RetryCallState, Retrying, retry_if_exception_type, sleep_using_event

from kdcli import processes
from kdcli.errors import ConfigError, EndpointError, TeacherError
from kdcli.files import digest
from kdcli.teachers.remote.ledger import Answer, Ledger
from kdcli.teachers.remote.limits import (
    BYTES_PER_TOKEN,
    Backoff,
    Budget,
    Charge,
    Estimate,
    Pacer,
    Prices,
    Spending,
    Stopped,
    Usage,
)

WINDOW = 32
"""The number of requests that are in flight or wait to be yielded in order, per unit of `concurrency`: a slow request delays no other."""
PATIENCE = 600.0
"""The most seconds that a service may ask to wait (Retry-After)."""
DOUBT = 3
"""The number of rejections before the first answer that show that all requests are wrong, and not single prompts."""
UNREADABLE = 2
"""How many times a request is repeated whose response has another structure than the API specifies."""
TEMPLATE = 64
"""The number of tokens that a chat template may add to a prompt."""


class Retry(Exception):  # noqa: N818
    """An attempt failed and may be repeated.

    Args:
        after: the seconds that the service asks to wait.
        charged: whether the service may have charged for it.
        tries: the most attempts for such a failure; None: as many as for any.
        remedy: what to do if no attempt succeeds; empty: the usual.
    """

    def __init__(
        self,
        problem: str,
        *,
        after: float | None = None,
        charged: bool = False,
        tries: int | None = None,
        remedy: str = "",
    ):
        super().__init__(problem)
        self.after, self.charged, self.tries, self.remedy = after, charged, tries, remedy


class Unreadable(Retry):
    """The response has another structure than the API specifies."""


class Rejected(Exception):  # noqa: N818
    """The service does not accept this request: for its prompt, or for what all requests have in common.

    Attributes:
        parameter: the parameter that is at fault, if the service names it.
        text: the complete response.
    """

    def __init__(self, problem: str, *, parameter: str | None = None, text: str | None = None):
        super().__init__(problem)
        self.parameter, self.text = parameter, text or problem


class Altered(Exception):  # noqa: N818
    """The service does not accept this request, and `send` is to be called again: it sends it in another form then."""


class Client(ABC):
    """Sends requests to one model of one service, many at a time. A subclass implements `send`.

    Args:
        base_url: the address, which is a part of each request's hash and of messages.
        ledger: the folder of the ledgers; each address and model has its own file there.
        concurrency: the number of requests in flight.
        retries: of one request.
        backoff: seconds before the first retry; each further one waits twice as long (`Backoff`).

    Raises:
        ConfigError: a budget in money lacks prices, or the ledger cannot be used.
    """

    def __init__(
        self,
        base_url: str,
        model: str,
        *,
        ledger: Path,
        concurrency: int = 8,
        requests_per_minute: float | None = None,
        tokens_per_minute: float | None = None,
        retries: int = 8,
        backoff: float = 0.5,
        budget: Budget | None = None,
        prices: Prices | None = None,
    ):
        if budget and budget.money is not None and prices is None:
            raise ConfigError(
                "teacher.budget.money needs the prices of a million tokens; give teacher.prices.prompt and teacher.prices.completion"
            )
        self.base_url, self.model = base_url, model
        self.usage = Usage(cost=None if prices is None else 0.0)
        self.ledger = Ledger(ledger / f"{digest(base_url, model)[:32]}.sqlite")
        self.concurrency = concurrency
        self.accepted = False
        """Whether the service has answered a request, and not with an error."""
        self._retries = retries
        self._backoff = Backoff(backoff)
        self._budget = budget or Budget()
        self._prices = prices
        self._spending = Spending(self._budget)
        self._requests = Pacer(requests_per_minute)
        self._tokens = Pacer(tokens_per_minute)
        self._counting = threading.Lock()
        self._with_usage = 0
        self._not_before = 0.0

    def require_ready(self) -> None:  # noqa: B027
        """Refuse to begin without what requests need, such as an API key. It is called before the first request, and not for an estimate.

        Raises:
            ConfigError
        """

    @abstractmethod
    def send(self, body: dict[str, Any]) -> Answer:
        """Send one request once.

        Raises:
            Retry, Unreadable: it may be repeated.
            Altered: it is to be sent again at once.
            Rejected: the service does not accept it.
            TeacherError: the service accepts no request (the key, the model).
        """

    def prompt_bytes(self, body: dict[str, Any]) -> int:
        """Return the bytes of a request's text; no tokenizer makes more tokens of it."""
        return len(json.dumps(body, ensure_ascii=False).encode())

    def expected_tokens(self, body: dict[str, Any]) -> int:
        """The expected number of tokens of a request's text."""
        return self.prompt_bytes(body) // BYTES_PER_TOKEN

    def max_completion_tokens(self, body: dict[str, Any]) -> int | None:
        """Return the most tokens that the answer to a request may have; None if there is no limit."""
        return 0

    def stored(self, key: bytes, body: dict[str, Any]) -> Answer | None:
        """The answer to a request in the ledger; None: there is none."""
        return self.ledger.get(key)

    def made(self, key: bytes, body: dict[str, Any]) -> float | None:
        """Return when the answer to a request was stored; None: not known."""
        return self.ledger.made(key)

    def store(self, key: bytes, body: dict[str, Any], answer: Answer) -> None:
        """Keep the answer to a request; returns once it is on the disk."""
        self.ledger.append(key, answer)

    def share_limits(self, other: Client) -> None:
        """Count requests and costs together with those of another client, under its budget and its rates."""
        self.usage, self._spending = other.usage, other._spending
        self._requests, self._tokens = other._requests, other._tokens

    def query(
        self, bodies: Iterable[dict[str, Any]], progress: Callable[[Usage], None] | None = None
    ) -> Iterator[tuple[int, Answer]]:
        """Yield the index of each request and its answer, in the order of the requests.

        Args:
            bodies: the requests as JSON values. Equal ones are sent once.
            progress: is called after each answer.

        Raises:
            TeacherError: the service refuses all requests (the key, the model, the parameters).
            EndpointError: the budget is used up, or a request had no answer after all retries. The ledger keeps the answers so far.
            ConfigError: there is a budget in tokens or money, and a request without a limit of its tokens.
        """
        with _Batch(self, progress) as batch:
            for index, body in enumerate(bodies):
                batch.add(index, body)
                yield from batch.ready()
                if batch.failures:
                    break
            if batch.doubted:
                raise self.refuses_all(batch.doubted[0][1].reason)
            while batch.window:
                yield batch.next()

    def estimate(self, bodies: Iterable[dict[str, Any]]) -> Estimate:
        """Return the expected cost of requests, of which none is sent."""
        questions = in_ledger = prompt = completion = 0
        limited, oldest = True, time.time()
        for body in bodies:
            questions += 1
            key = self.key(body)
            if self.stored(key, body) is not None:
                in_ledger += 1
                oldest = min(oldest, self.made(key, body) or 0.0)
                continue
            prompt += self.expected_tokens(body)
            if (most := self.max_completion_tokens(body)) is None:
                limited = False
            else:
                completion += most
        cost = self._prices.of(prompt, completion) if self._prices and limited else None
        return Estimate(questions, in_ledger, prompt, completion if limited else None, cost, oldest)

    def key(self, body: dict[str, Any]) -> bytes:
        """Return the hash of a request: the address, the model, the parameters and the prompt."""
        return bytes.fromhex(digest(self.base_url, self.model, body))

    def refuses_all(self, reason: str) -> TeacherError:
        """Return the error for a service that rejects each request for this reason."""
        remedy = self.remedy(reason) or f"check teacher.parameters, and teacher.model = {self.model}"
        return TeacherError(f"{self.base_url} refuses every request ({reason}); {remedy}")

    def remedy(self, reason: str) -> str:
        """Return what to do about a rejection with this reason; empty: it names nothing that is known."""
        return ""

    def send_with_retries(self, body: dict[str, Any], stop: threading.Event) -> Answer:
        """Send a request until it is answered.

        Raises:
            Rejected: the service does not accept it.
            TeacherError, EndpointError: no further request can be sent, or this one has no answer after all retries.
        """
        unreadable = 0

        def attempt() -> Answer:
            nonlocal unreadable
            while True:
                charge = self._reserve(body, stop)
                try:
                    answer = self.send(body)
                except Altered:
                    self._settle(charge, None, charged=False)
                    with self._counting:
                        self.usage.retries += 1
                except Retry as problem:
                    self._settle(charge, None, charged=problem.charged)
                    unreadable += isinstance(problem, Unreadable)
                    raise
                except BaseException:
                    self._settle(charge, None, charged=False)
                    raise
                else:
                    self._settle(charge, answer.usage)
                    if answer.status == "answered" and not answer.usage:
                        with self._counting:
                            self.usage.uncounted += 1
                    return answer

        def is_last(state: RetryCallState) -> bool:
            problem = _problem(state)
            most = self._retries if problem.tries is None else min(self._retries, problem.tries)
            return state.attempt_number > most or (
                isinstance(problem, Unreadable) and unreadable > UNREADABLE
            )

        retrying = Retrying(
            retry=retry_if_exception_type(Retry),
            stop=is_last,
            wait=self._backoff,
            sleep=sleep_using_event(stop),
            before_sleep=self._before_retry,
            retry_error_callback=self._give_up,
        )
        return retrying(attempt)

    def _before_retry(self, state: RetryCallState) -> None:
        problem = _problem(state)
        if problem.after is not None:
            if problem.after > PATIENCE:
                raise EndpointError(
                    f"{self.base_url} asks to wait {problem.after:.0f} s ({problem}). The answers so far are kept; the same "
                    "command, started then, continues from there; or lower teacher.requests_per_minute and teacher.concurrency"
                )
            with self._counting:
                self._not_before = max(self._not_before, time.monotonic() + problem.after)
        with self._counting:
            self.usage.retries += 1

    def _give_up(self, state: RetryCallState) -> Answer:
        problem = _problem(state)
        if isinstance(problem, Unreadable):
            return Answer("unparsable", reason=str(problem))
        remedy = problem.remedy or "Check teacher.base_url, or raise teacher.timeout and teacher.retries"
        raise EndpointError(
            f"{self.base_url} gave no answer in {state.attempt_number} tries: {problem}. {remedy}; the answers so far are kept, and the same "
            "command continues from there"
        )

    def _reserve(self, body: dict[str, Any], stop: threading.Event) -> Charge:
        """Wait until a request may be sent. It is counted as the most that it may cost until its usage is known."""
        most = None
        if self._budget.tokens is not None or self._budget.money is not None:
            if (completion := self.max_completion_tokens(body)) is None:
                raise ConfigError(
                    "teacher.budget: without a limit of tokens one answer may cost anything; leave teacher.parameters.max_tokens as it is"
                )
            most = (self.prompt_bytes(body) + TEMPLATE, completion)
        with self._counting:
            # the mean of the answers so far; before the first answer, a guess
            expected = (
                (self.usage.prompt_tokens + self.usage.completion_tokens) / self._with_usage
                if self._with_usage
                else self.expected_tokens(body) + (self.max_completion_tokens(body) or 0)
            )
        money = self._prices.of(*most) if self._prices and most else 0.0
        charge = Charge(sum(most or (0, 0)), money, expected)
        self._spending.take(charge, stop)
        try:
            turn = 0.0
            while turn <= self._not_before:  # the service may move it while this thread waits
                stop.wait(max(0.0, self._not_before - time.monotonic()))
                stop.wait(max(self._requests.slot(1), self._tokens.slot(expected)))
                turn = time.monotonic()
                if stop.is_set():
                    raise Stopped
        except BaseException:
            self._spending.settle(charge, 0, 0, 0.0)
            raise
        with self._counting:
            self.usage.requests += 1
        return charge

    def _settle(self, charge: Charge, usage: dict[str, int] | None, *, charged: bool = True) -> None:
        """Replace a reservation by what the request has cost: nothing, what the service reports, or (if it may have charged for it and
        reports nothing) the most."""
        tokens, money = (charge.tokens, charge.money) if charged else (0, 0.0)
        if usage:
            prompt, completion = usage["prompt_tokens"], usage["completion_tokens"]
            tokens = prompt + completion
            with self._counting:
                self._with_usage += 1
                self.usage.prompt_tokens += prompt
                self.usage.completion_tokens += completion
                if self._prices:
                    money = self._prices.of(prompt, completion)
                    self.usage.cost = (self.usage.cost or 0.0) + money
        if usage or not charged:
            self._tokens.correct(tokens - charge.expected_tokens)
        self._spending.settle(charge, 1, tokens, money)


class _Batch:
    """The requests of one `Client.query` call.

    Attributes:
        window: the requests that were not yielded yet: their index, hash and answer.
        failures: why requests failed permanently, the first one first.
        doubted: rejections before the first answer. They are stored once the service has accepted another request.
    """

    def __init__(self, client: Client, progress: Callable[[Usage], None] | None):
        self.client, self.progress = client, progress
        self.window: deque[tuple[int, bytes, Future[Answer]]] = deque()
        self.failures: list[BaseException] = []
        self.doubted: list[tuple[bytes, Answer]] = []
        self._in_flight: dict[bytes, Future[Answer]] = {}
        self._stop = threading.Event()
        self._pool = ThreadPoolExecutor(client.concurrency, thread_name_prefix="endpoint")
        self._ledger_lock = contextlib.ExitStack()
        self._holds_ledger = False

    def __enter__(self) -> _Batch:
        return self

    def __exit__(self, *_: object) -> None:
        with self._ledger_lock:  # is released when no request is in flight
            self._stop.set()
            self._pool.shutdown(cancel_futures=True)

    def add(self, index: int, body: dict[str, Any]) -> None:
        """Take the answer from the ledger, or send the request."""
        processes.raise_if_interrupted()
        key = self.client.key(body)
        future = self._in_flight.get(key)
        if future is None:
            future = self._in_flight[key] = self._start(key, body)
        else:
            self.client.usage.from_ledger += 1
        self.window.append((index, key, future))

    def ready(self) -> Iterator[tuple[int, Answer]]:
        """Yield the answers that are there; wait for one only if the window is full."""
        most = WINDOW * self.client.concurrency
        while self.window and not self.doubted and (self.window[0][2].done() or len(self.window) >= most):
            yield self.next()

    def next(self) -> tuple[int, Answer]:
        """Wait for the first answer of the window."""
        index, key, future = self.window.popleft()
        try:
            answer = future.result()
        except (Exception, KeyboardInterrupt):
            if not self.failures:
                raise
            raise self.failures[0] from None
        processes.raise_if_interrupted()
        if self._in_flight.get(key) is future:
            del self._in_flight[key]
        usage = self.client.usage
        usage.refused += answer.status == "refused"
        usage.unparsable += answer.status == "unparsable"
        if self.progress:
            self.progress(usage)
        return index, answer

    def _start(self, key: bytes, body: dict[str, Any]) -> Future[Answer]:
        client = self.client
        stored = client.stored(key, body)
        if stored is None and not self._holds_ledger:
            self._ledger_lock.enter_context(client.ledger.hold())
            self._holds_ledger = True
            stored = client.stored(key, body)
        if stored is not None:
            client.usage.from_ledger += 1
            if stored.status == "answered" and not client.accepted:
                self._accept()
            return _finished(stored)
        if client.accepted:
            return self._pool.submit(self._send, key, body)
        return _finished(self._send(key, body))  # one at a time, until the service has answered once

    def _send(self, key: bytes, body: dict[str, Any]) -> Answer:
        try:
            try:
                answer = self.client.send_with_retries(body, self._stop)
            except Rejected as rejected:
                answer = Answer("refused", reason=str(rejected))
                if not self.client.accepted:  # the service may reject all requests
                    self.doubted.append((key, answer))
                    if len(self.doubted) >= DOUBT:
                        raise self.client.refuses_all(answer.reason) from None
                    return answer
            self._accept()
            self.client.store(key, body, answer)
            return answer
        except BaseException as error:
            self.failures.append(error)
            self._stop.set()
            raise

    def _accept(self) -> None:
        self.client.accepted = True
        while self.doubted:
            self.client.ledger.append(*self.doubted.pop())


def _finished(answer: Answer) -> Future[Answer]:
    future: Future[Answer] = Future()
    future.set_result(answer)
    return future


def _problem(state: RetryCallState) -> Retry:
    """Return the exception of the last attempt."""
    problem = state.outcome.exception() if state.outcome else None
    assert isinstance(problem, Retry)
    return problem
