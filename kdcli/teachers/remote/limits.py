"""Prices, budgets and pacing of requests."""

from __future__ import annotations

import email.utils
import math
import random
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from kdcli.errors import EndpointError

LONGEST = 60.0
"""Seconds between two tries, unless the host asks for more."""
JITTER = random.Random()
"""Not the generator that training draws from: what a run learns does not depend on how often it had to ask."""


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


class Rejected(Exception):  # noqa: N818
    """The host does not take this request: for its prompt, or for what all have in common."""


class Stopped(Exception):  # noqa: N818
    """Another question has failed for good."""


@dataclass(frozen=True)
class Charge:
    """What a request that is under way counts for."""

    tokens: int
    money: float
    guess: float


class Spending:
    """What was spent, and what is under way: together they never pass the budget."""

    def __init__(self, budget: Budget):
        self._budget = budget
        self._spent: list[float] = [0, 0, 0.0]
        self._under_way = 0
        self._changed = threading.Condition()

    def take(self, charge: Charge, stop: threading.Event) -> None:
        """Reserve one request's most; while others may turn out cheaper than theirs, wait for them.

        Raises:
            EndpointError: the budget does not reach.
        """
        most = (1, charge.tokens, charge.money)
        with self._changed:
            while short := self._short(most):
                if stop.is_set():
                    raise Stopped
                if not self._under_way:
                    raise EndpointError(
                        f"the budget of {short} would be passed by the next request. What was answered is kept; a larger "
                        "budget goes on from there"
                    )
                self._changed.wait(0.1)
            self._add(most)
            self._under_way += 1

    def settle(self, charge: Charge, requests: int, tokens: int, money: float) -> None:
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


class Pacer:
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


def pause_after(backoff: float, tries: int) -> float:
    """Seconds before the next try after so many; those that failed together do not come back together."""
    return min(LONGEST, backoff * 2 ** (tries - 1)) * JITTER.uniform(0.5, 1)


def retry_after(headers: Any) -> float | None:
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
