"""Limits the requests to a service: prices, budgets and rates."""

from __future__ import annotations

import email.utils
import math
import random
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from tenacity import RetryCallState, wait_exponential

from kdcli.errors import EndpointError

BYTES_PER_TOKEN = 4
"""The bytes of a request per token, by estimate."""
FIRST_TOKENS = 4
"""The number of tokens that are requested to read the first token of a label: some models begin with a space, a line break or a quotation mark."""
LABEL_TOKENS = 16
"""The number of tokens that a written label may have in addition to its number of characters."""
JSON_TOKENS = 16
"""The number of tokens that the JSON around a label may have."""
LONGEST = 60.0
"""The most seconds between two attempts, unless the service asks for more."""
JITTER = random.Random()
"""A generator of its own, so that the number of retries does not change the random numbers of training."""


@dataclass(frozen=True)
class Prices:
    """The price of a million tokens."""

    prompt: float
    completion: float

    def of(self, prompt_tokens: int, completion_tokens: int) -> float:
        return (prompt_tokens * self.prompt + completion_tokens * self.completion) / 1e6


@dataclass(frozen=True)
class Budget:
    """The most that this process may request and pay; None: no limit.

    Attributes:
        requests: HTTP requests, with those that fail.
    """

    requests: int | None = None
    tokens: int | None = None
    money: float | None = None


@dataclass
class Usage:
    """The requests of this process and their cost.

    Attributes:
        requests: the number of HTTP requests, with those that failed.
        from_ledger: the number of answers that were paid for before.
        uncounted: the number of answers whose tokens the service does not report.
        cost: the cost by the token counts that the service reports; None if no prices are known. It does not include lost answers that the
            service may have charged for.
        refused, unparsable: the numbers of such answers among those that were yielded, from the ledger too.
    """

    requests: int = 0
    retries: int = 0
    from_ledger: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    uncounted: int = 0
    cost: float | None = None
    refused: int = 0
    unparsable: int = 0


@dataclass(frozen=True)
class Estimate:
    """The expected cost of queries.

    Attributes:
        questions: the number of all queries.
        in_ledger: the number of queries whose answers are in the ledger.
        prompt_tokens: the tokens of the other queries, estimated as a quarter of their bytes.
        completion_tokens: the maximum number of tokens of the other answers; None if the queries set no limit.
        cost: the expected cost; None if it is not known.
        oldest: when the oldest of the answers in the ledger was stored, in seconds since the epoch; 0: that is not known.
    """

    questions: int
    in_ledger: int
    prompt_tokens: int
    completion_tokens: int | None
    cost: float | None
    oldest: float = 0.0


class Stopped(Exception):  # noqa: N818
    """Another request has failed permanently."""


@dataclass(frozen=True)
class Charge:
    """The reservation of a request in flight: its maximum of tokens and money, and the expected number of tokens."""

    tokens: int
    money: float
    expected_tokens: float


class Spending:
    """Tracks what was spent and what is in flight. Their sum never exceeds the budget."""

    def __init__(self, budget: Budget):
        self._budget = budget
        self._spent: list[float] = [0, 0, 0.0]
        self._in_flight = 0
        self._changed = threading.Condition()

    def take(self, charge: Charge, stop: threading.Event) -> None:
        """Reserve the maximum of one request. Wait while other requests may turn out cheaper than their maximum.

        Raises:
            EndpointError: the budget does not suffice.
        """
        amounts = (1, charge.tokens, charge.money)
        with self._changed:
            while exceeded := self._exceeded(amounts):
                if stop.is_set():
                    raise Stopped
                if not self._in_flight:
                    raise EndpointError(
                        f"the next request would exceed the budget of {exceeded}. The answers so far are kept; raise "
                        "teacher.budget, and the same command continues from there"
                    )
                self._changed.wait(0.1)
            self._add(amounts)
            self._in_flight += 1

    def settle(self, charge: Charge, requests: int, tokens: int, money: float) -> None:
        """Replace a reservation by what the request has cost; `requests` is 0 if it was not sent."""
        with self._changed:
            self._add((requests - 1, tokens - charge.tokens, money - charge.money))
            self._in_flight -= 1
            self._changed.notify_all()

    def _add(self, amounts: Sequence[float]) -> None:
        self._spent = [spent + amount for spent, amount in zip(self._spent, amounts, strict=True)]

    def _exceeded(self, amounts: Sequence[float]) -> str:
        """Return the part of the budget that a request would exceed, in words."""
        limits = (self._budget.requests, self._budget.tokens, self._budget.money)
        units = ("requests", "tokens", "money")
        for spent, amount, limit, unit in zip(self._spent, amounts, limits, units, strict=True):
            if limit is not None and spent + amount > limit:
                return f"{limit:g} ({unit}; {spent:g} are spent)"
        return ""


class Pacer:
    """Spreads an amount per minute evenly, because services also limit shorter intervals."""

    def __init__(self, per_minute: float | None):
        self._seconds = 60 / per_minute if per_minute else 0.0
        self._free = 0.0
        self._lock = threading.Lock()

    def slot(self, amount: float) -> float:
        """Reserve an amount; returns the seconds until it may be used."""
        with self._lock:
            now = time.monotonic()
            start = max(now, self._free)
            self._free = start + amount * self._seconds
            return start - now

    def correct(self, amount: float) -> None:
        """Add the difference between the amount that was used and the amount that was reserved."""
        with self._lock:
            self._free += amount * self._seconds


class Backoff(wait_exponential):
    """Seconds before the next attempt: first / 2 to first, then twice as many each time, up to `LONGEST`. They are random so that
    requests which failed at the same time are not repeated at the same time."""

    def __init__(self, first: float):
        super().__init__(multiplier=first, max=LONGEST)

    def __call__(self, retry_state: RetryCallState) -> float:
        return super().__call__(retry_state) * JITTER.uniform(0.5, 1)


def retry_after(headers: Any) -> float | None:
    """Return the seconds that a service asks to wait: a number, or a date."""
    value = headers.get("retry-after")
    if value is None:
        return None
    try:
        seconds = float(value)
    except ValueError:
        try:
            seconds = email.utils.parsedate_to_datetime(value).timestamp() - time.time()
        except ValueError:
            return None
    return max(0.0, seconds) if math.isfinite(seconds) else None
