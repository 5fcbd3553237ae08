"""A model that one can only ask: an OpenAI-compatible address, which costs money, limits its callers and fails now and then.

Every answer is written into a ledger before it is used, and what the ledger holds is not asked again: neither by a run that
was killed and goes on, nor by another run.
"""

from __future__ import annotations

import contextlib
import email.utils
import errno
import io
import json
import logging
import math
import os
import random
import sqlite3
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal
from urllib.parse import urlsplit

from filelock import Timeout
from typing_extensions import TypedDict

from kdcli.errors import ConfigError, EndpointError, TeacherError
from kdcli.files import digest, parse_json
from kdcli.locks import Lock

if TYPE_CHECKING:
    import openai

logger = logging.getLogger(__name__)

WINDOW = 32
"""Questions that are under way or wait for their turn to be handed out, for each of `concurrency`: a slow one holds up no other."""
LONGEST = 60.0
"""Seconds between two tries, unless the host asks for more."""
PATIENCE = 600.0
"""Seconds that a host may ask to wait (Retry-After)."""
DOUBT = 3
"""So many refusals before the first answer: it is the request that is wrong, not a prompt."""
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
JITTER = random.Random()
"""Not the generator that training draws from: what a run learns does not depend on how often it had to ask."""
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


@dataclass(frozen=True)
class Prices:
    """Money for a million tokens."""

    prompt: float
    completion: float

    def of(self, prompt_tokens: int, completion_tokens: int) -> float:
        return (prompt_tokens * self.prompt + completion_tokens * self.completion) / 1e6


@dataclass(frozen=True)
class Budget:
    """The most that may be asked and paid for by this process; None: no limit."""

    requests: int | None = None
    """Tries that fail count too."""
    tokens: int | None = None
    money: float | None = None


@dataclass
class Usage:
    """What was asked and paid for by this process."""

    requests: int = 0
    """HTTP requests, those that failed too."""
    retries: int = 0
    from_ledger: int = 0
    """Answers that had been paid for before."""
    prompt_tokens: int = 0
    completion_tokens: int = 0
    cost: float | None = None
    """None: no prices are known. As the host counts tokens; what it may have charged for answers that got lost is not in it."""
    refused: int = 0
    """Of the answers handed out, from the ledger too."""
    unparsable: int = 0


@dataclass(frozen=True)
class Estimate:
    """What questions would take."""

    questions: int
    in_ledger: int
    prompt_tokens: int
    """Of those that would be asked: a quarter of their bytes."""
    completion_tokens: int | None
    """At most; None: the questions set no limit."""
    cost: float | None


class _Again(Exception):  # noqa: N818
    """A try that failed and may be repeated."""

    def __init__(
        self, problem: str, *, after: float | None = None, charged: bool = False, tries: int | None = None
    ):
        super().__init__(problem)
        self.after = after  # seconds that the host asks to wait
        self.charged = charged  # whether it may have been paid for
        self.tries = tries  # at most


class _Rejected(Exception):  # noqa: N818
    """The host does not take this request: for its prompt, or for what all have in common."""


class _Stopped(Exception):  # noqa: N818
    """Another question has failed for good."""


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
        self._ledger = _Ledger(ledger / f"{digest(self.base_url, model)[:32]}.jsonl")
        self._purse = _Purse(self._budget)
        self._requests = _Pace(requests_per_minute)
        self._tokens = _Pace(tokens_per_minute)
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
                except _Rejected as rejected:
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
                        future = _done(known)
                    elif self._accepted:
                        future = pool.submit(work, key, body)
                    else:
                        future = _done(work(key, body))  # one at a time, until the host has answered once
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
            prompt += _bytes(body) // 4
            if (most := _most_written(body)) is None:
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
            _Rejected: the host does not take it.
            TeacherError, EndpointError: nothing more can be asked, or not this.
        """
        tries = unreadable = 0
        while True:
            charge = self._reserve(body, stop)
            try:
                answer = self._call(body)
            except _Again as again:
                self._settle(charge, None, charged=again.charged)
                problem = again
            except BaseException:
                self._settle(charge, None, charged=False)
                raise
            else:
                self._settle(charge, answer.usage)
                return answer
            tries += 1
            unreadable += isinstance(problem, _Unreadable)
            last = tries > (self._retries if problem.tries is None else min(self._retries, problem.tries))
            if isinstance(problem, _Unreadable) and (last or unreadable > UNREADABLE):
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
            stop.wait(_pause(self._backoff, tries))

    def _reserve(self, body: dict[str, Any], stop: threading.Event) -> _Charge:
        """Wait for this request's turn; it counts as the most it may cost, until more is known."""
        most = None
        if self._budget.tokens is not None or self._budget.money is not None:
            if (written := _most_written(body)) is None:
                raise ConfigError(
                    "a budget in tokens or money needs max_tokens in the parameters: without it one answer may cost anything"
                )
            most = (_bytes(body) + TEMPLATE, written)
        with self._counting:
            # what questions took so far; what the first may take is a guess
            guess = (
                (self.usage.prompt_tokens + self.usage.completion_tokens) / self._told
                if self._told
                else _bytes(body) / 4 + (_most_written(body) or 0)
            )
        money = self._prices.of(*most) if self._prices and most else 0.0
        charge = _Charge(sum(most or (0, 0)), money, guess)
        self._purse.take(charge, stop)
        try:
            turn = 0.0
            while turn <= self._not_before:  # which the host may move while one waits for one's turn
                stop.wait(max(0.0, self._not_before - time.monotonic()))
                stop.wait(max(self._requests.slot(1), self._tokens.slot(guess)))
                turn = time.monotonic()
                if stop.is_set():
                    raise _Stopped
        except BaseException:
            self._purse.settle(charge, 0, 0, 0.0)
            raise
        with self._counting:
            self.usage.requests += 1
        return charge

    def _settle(self, charge: _Charge, usage: dict[str, int] | None, *, charged: bool = True) -> None:
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
            _Again, _Unreadable, _Rejected, TeacherError.
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
            raise _Again(problem, charged=not unreached, tries=tries) from None
        except TimeoutError:
            raise _Again(f"no whole answer in {self._timeout:g} s", charged=True) from None
        except Exception as error:  # of whatever library carries the request
            raise _Again(self._scrub(f"{type(error).__name__}: {error}"), charged=True) from None
        try:
            told = json.loads(data)
        except ValueError:
            raise _Again("its answer is not JSON", charged=True) from None
        wrong = told.get("error") if isinstance(told, dict) and not told.get("choices") else None
        if isinstance(wrong, dict):  # of routers, with status 200
            problem = self._scrub(f"an error for an answer: {wrong.get('message') or wrong}")
            if _filtered(wrong):
                return Answer("refused", reason=problem)
            if isinstance(wrong.get("code"), int) and _passes(wrong["code"]):
                raise _Again(problem, charged=True)
        return _read(told, self._scrub)

    def _status(self, error: openai.APIStatusError) -> Answer:
        """What an HTTP error means for this question and for all."""
        status, body = error.status_code, error.body
        details = body if isinstance(body, dict) else {}
        said = self._scrub(str(details.get("message") or body or error.message))
        if _filtered(details):
            return Answer("refused", reason=said)
        if status in (400, 413, 422):
            raise _Rejected(said)
        if _passes(status) and "insufficient_quota" not in (details.get("code"), details.get("type")):
            raise _Again(f"{status} {said}", after=_retry_after(error.response.headers))
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


class _Unreadable(_Again):
    """JSON, but not what the API promises."""


@dataclass(frozen=True)
class _Charge:
    """What a request that is under way counts for."""

    tokens: int
    money: float
    guess: float


class _Purse:
    """What was spent, and what is under way: together they never pass the budget."""

    def __init__(self, budget: Budget):
        self._budget = budget
        self._spent: list[float] = [0, 0, 0.0]
        self._under_way = 0
        self._changed = threading.Condition()

    def take(self, charge: _Charge, stop: threading.Event) -> None:
        """Reserve one request's most; while others may turn out cheaper than theirs, wait for them.

        Raises:
            EndpointError: the budget does not reach.
        """
        most = (1, charge.tokens, charge.money)
        with self._changed:
            while short := self._short(most):
                if stop.is_set():
                    raise _Stopped
                if not self._under_way:
                    raise EndpointError(
                        f"the budget of {short} would be passed by the next request. What was answered is kept; a larger "
                        "budget goes on from there"
                    )
                self._changed.wait(0.1)
            self._add(most)
            self._under_way += 1

    def settle(self, charge: _Charge, requests: int, tokens: int, money: float) -> None:
        """What was taken of what was reserved; no request, if it was not sent."""
        with self._changed:
            self._add((requests - 1, tokens - charge.tokens, money - charge.money))
            self._under_way -= 1
            self._changed.notify_all()

    def _add(self, amounts: Sequence[float]) -> None:
        self._spent = [spent + amount for spent, amount in zip(self._spent, amounts, strict=True)]

    def _short(self, amounts: Sequence[float]) -> str:
        """The part of the budget that a request would pass, in words."""
        limits = (self._budget.requests, self._budget.tokens, self._budget.money)
        units = ("requests", "tokens", "money")
        for spent, amount, limit, unit in zip(self._spent, amounts, limits, units, strict=True):
            if limit is not None and spent + amount > limit:
                return f"{limit:g} ({unit}; {spent:g} are spent)"
        return ""


class _Pace:
    """So much a minute, evenly: hosts count shorter times than a minute."""

    def __init__(self, per_minute: float | None):
        self._each = 60 / per_minute if per_minute else 0.0
        self._free = 0.0
        self._lock = threading.Lock()

    def slot(self, amount: float) -> float:
        """Seconds until so much may be used, which is then taken."""
        with self._lock:
            now = time.monotonic()
            start = max(now, self._free)
            self._free = start + amount * self._each
            return start - now

    def correct(self, amount: float) -> None:
        """So much more (or less) than it had taken was used."""
        with self._lock:
            self._free += amount * self._each


class _Ledger:
    """Answers under the hash of their question, one JSON line each, only ever appended to. The first of a question counts.

    Several processes may read it; one at a time asks and appends (two would ask the same and pay twice, and together they
    would pass the host's limits). Which line is where stands in a temporary database on disk, so that a million answers
    need no memory.
    """

    def __init__(self, path: Path):
        self._path = path
        self._lock = threading.RLock()
        self._syncing = threading.Lock()
        self._written = self._synced = 0
        self._end = 0  # so far it was read
        self._places = sqlite3.connect("", isolation_level=None, check_same_thread=False)
        self._places.execute("CREATE TABLE places (key BLOB PRIMARY KEY, place INTEGER) WITHOUT ROWID")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.touch()
            self._reader = path.open("rb")
        except OSError as error:
            raise ConfigError(
                f"the answers cannot be kept in {path} ({error.strerror}); set KDCLI_CACHE_DIR"
            ) from None
        self._writer: io.FileIO | None = None
        self._catch_up()

    def get(self, key: bytes) -> Answer | None:
        with self._lock:
            row = self._places.execute("SELECT place FROM places WHERE key = ?", (key,)).fetchone()
            if row is None:
                return None
            self._reader.seek(row[0])
            return _kept(self._reader.readline())[1]

    def append(self, key: bytes, answer: Answer) -> None:
        """Returns once the answer is on the disk; one fsync serves all that wait for it.

        Raises:
            EndpointError: it cannot be written.
        """
        line = json.dumps({"key": key.hex(), **asdict(answer)}).encode() + b"\n"
        try:
            with self._lock:
                assert self._writer is not None
                if self._writer.write(line) != len(line):  # not a half line before the next whole one
                    self._writer.truncate(self._end)
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
                self._catch_up()
                self._written += 1
                mine = self._written
            with self._syncing:
                if self._synced < mine:
                    reached = self._written
                    os.fsync(self._writer.fileno())
                    self._synced = reached
        except OSError as error:
            raise EndpointError(
                f"the answers cannot be written to {self._path} ({error}); set KDCLI_CACHE_DIR"
            ) from None

    @contextlib.contextmanager
    def hold(self) -> Iterator[None]:
        """Be the one that asks and appends."""
        lock = Lock(self._path.with_name(f"{self._path.name}.lock"))
        try:
            lock.acquire(wait=False)
        except Timeout:
            logger.info("another process asks this endpoint: waiting for its answers (%s)", lock.path)
            lock.acquire()
        try:
            with self._lock:
                self._catch_up()
                with self._path.open("r+b") as file:  # a process that was killed may have left half a line
                    file.truncate(self._end)
                self._writer = self._path.open("ab", buffering=0)
            yield
        finally:
            if self._writer is not None:
                self._writer.close()
            self._writer = None
            lock.release()

    def _catch_up(self) -> None:
        """Read the whole lines that were appended since."""
        damaged = 0
        with self._lock:
            self._reader.seek(self._end)
            for line in iter(self._reader.readline, b""):
                if not line.endswith(b"\n"):
                    break
                try:
                    key, _ = _kept(line)
                except ValueError:
                    damaged += 1
                else:
                    self._places.execute("INSERT OR IGNORE INTO places VALUES (?, ?)", (key, self._end))
                self._end += len(line)
        if damaged:
            logger.warning(
                "%s: %d damaged lines are not used, and their questions are asked again", self._path, damaged
            )


def _pause(backoff: float, tries: int) -> float:
    """Seconds before the next try after so many; those that failed together do not come back together."""
    return min(LONGEST, backoff * 2 ** (tries - 1)) * JITTER.uniform(0.5, 1)


class _Line(TypedDict):
    key: str
    status: Literal["answered", "refused", "unparsable"]
    choices: list[dict[str, Any]]
    usage: dict[str, int]
    reason: Any  # in the host's words, which need not be valid Unicode


def _kept(line: bytes) -> tuple[bytes, Answer]:
    """What a line of the ledger holds: the hash of a question, and its answer.

    Raises:
        ValueError: it is damaged.
    """
    found = parse_json(line, _Line)
    answer = Answer(found["status"], found["choices"], found["usage"], found["reason"])
    return bytes.fromhex(found["key"]), answer


def _done(answer: Answer) -> Future[Answer]:
    """A question that was answered before."""
    future: Future[Answer] = Future()
    future.set_result(answer)
    return future


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


def _bytes(body: dict[str, Any]) -> int:
    """Of what is sent as text: no tokenizer makes more tokens of it."""
    return len(json.dumps(body["messages"], ensure_ascii=False).encode())


def _most_written(body: dict[str, Any]) -> int | None:
    """Tokens that may be written at most; None: there is no limit."""
    most = body.get("max_completion_tokens", body.get("max_tokens"))
    return None if most is None else int(most) * int(body.get("n", 1))


def _passes(status: int) -> bool:
    """Whether the same request may succeed later."""
    return status in (408, 409, 425, 429) or status >= 500


def _filtered(details: dict[str, Any]) -> bool:
    """Whether an error says that a content filter stopped the prompt."""
    inner = details.get("innererror")
    told = [details, inner] if isinstance(inner, dict) else [details]
    return any(each.get(key) in FILTERED for each in told for key in ("code", "type"))


def _retry_after(headers: Any) -> float | None:
    """Seconds that the host asks to wait: a number, or a date."""
    given = headers.get("retry-after")
    if given is None:
        return None
    try:
        seconds = float(given)
    except ValueError:
        try:
            seconds = email.utils.parsedate_to_datetime(given).timestamp() - time.time()
        except ValueError:
            return None
    return max(0.0, seconds) if math.isfinite(seconds) else None


def _read(told: Any, scrub: Callable[[str], str]) -> Answer:
    """What an answer's JSON says.

    Raises:
        _Unreadable: it is not what the API promises.
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
        raise _Unreadable(
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
