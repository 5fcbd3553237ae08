"""What is paid for is kept: against a server that fails in every way, and processes that are killed."""

from __future__ import annotations

import contextlib
import json
import random
import resource
import signal
import sqlite3
import time
from collections import Counter
from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from support.endpoint import Odd, Said, Served, apart, ask_all, last, question, said

from kdcli.files import digest
from kdcli.teachers.remote.ledger import Answer
from kdcli.teachers.remote.wire import ChatClient

CONCURRENCY = 16
TIMEOUT = 4.0
"""Seconds; long enough that no good answer takes so long, however busy the machine is."""
STALLS = {20: "stalled", 30: "stalled in the body", 40: "stalled", 50: "stalled in the body"}
"""The requests whose answers do not come, or never end; all at the same time, as each takes a time-out."""
IN_HEADERS, IN_BODY = 0.1, 0.8
"""The shares of an answer after which the connection is dropped, or nothing comes any more."""
MOST = 5
"""Tries of a prompt that may fail in a row."""


def prompts_of(count: int) -> list[str]:
    """Prompts of very different lengths, in several scripts; some stand there twice, near each other and far from each other."""
    draw = random.Random(1)
    words = ['so "it" is', "naïve\n", "猫", "{}", "\\", "a\u2028b", "🙂", "data: [DONE]"]
    found: list[str] = []
    for number in range(count):
        if number % 20 == 19:
            found.append(found[draw.choice([number - 1, number // 2])])
        else:
            found.append(f"{number} " + " ".join(draw.choices(words, k=draw.choice([1, 3, 50]))))
    return found


def echo(prompt: str) -> list[dict[str, Any]]:
    """An answer that cannot be another prompt's."""
    return [said(f"you said: {prompt}")]


def lines_of(prompts: Iterable[str]) -> list[Any]:
    """The data set that is asked for."""
    return [[prompt, "answered", f"you said: {prompt}"] for prompt in prompts]


def read(path: Path) -> list[Any]:
    return [json.loads(line) for line in path.read_text().split("\n")[:-1]]


def failing(seed: int) -> tuple[Any, Counter[str]]:
    """A server's answers, of which a quarter go wrong, and how often each way was taken."""
    tries: Counter[str] = Counter()
    taken: Counter[str] = Counter()

    def reply(body: dict[str, Any]) -> Said:
        prompt = last(body)
        tries[prompt] += 1
        draw = random.Random(f"{seed} {prompt} {tries[prompt]}")
        good = echo(prompt)
        ways: dict[str, Said] = {
            "too many": 429,
            "too many, wait": Odd(status=429, headers={"Retry-After": "0.02"}),
            "too many, until": Odd(status=429, headers={"Retry-After": "Wed, 21 Oct 2015 07:28:00 GMT"}),
            "failed": 500,
            "overloaded": Odd(status=503, headers={"Content-Type": "text/html"}, data=b"<html>busy"),
            "dropped": Odd(good, cut=0),
            "dropped in the headers": Odd(good, cut=IN_HEADERS),
            "dropped in the body": Odd(good, cut=IN_BODY),
            "cut JSON": Odd(data=json.dumps({"choices": good}).encode()[:-9]),
            "empty": Odd(data=b""),
            "a page": Odd(headers={"Content-Type": "text/html"}, data=b"<html>Welcome to the Wi-Fi</html>"),
            "no completion": Odd(data=b'{"object": "chat.completion", "choices": []}'),
            "late": Odd(good, delay=draw.uniform(0, 0.2)),
            "in pieces": Odd(good, pieces=7),
            "as text": Odd(good, headers={"Content-Type": "text/plain"}),
            "twice": Odd(good, twice=True),
        }
        way = draw.choice([*ways, *["good"] * 2 * len(ways)]) if tries[prompt] <= MOST else "good"
        ways |= {"stalled": Odd(good, stall=0), "stalled in the body": Odd(good, stall=IN_BODY)}
        way = STALLS.get(tries.total(), way)
        taken[way] += 1
        return ways.get(way, good)

    return reply, taken


def test_nothing_is_lost_asked_twice_or_mixed_up(served: Served, tmp_path: Path) -> None:
    """Under failures a row is lost, gets the answer to another, or is paid for twice."""
    prompts = prompts_of(2000)
    reply, taken = failing(seed=3)
    host = served(reply)
    ledger, into = tmp_path / "ledger", tmp_path / "set.jsonl"
    process = apart(
        ask_all, host.url, ledger, prompts, into, concurrency=CONCURRENCY, timeout=TIMEOUT, backoff=0.01
    )
    process.join(300)
    assert process.exitcode == 0
    assert read(into) == lines_of(prompts)
    assert host.paid == Counter(set(prompts))
    assert len(host.bodies) == sum(taken.values()) > 1.25 * len(set(prompts))
    assert min(taken.values()) > 0
    assert len(taken) == 19
    host.close()
    process = apart(ask_all, host.url, ledger, prompts, tmp_path / "again.jsonl")
    process.join(60)
    assert process.exitcode == 0
    assert (tmp_path / "again.jsonl").read_bytes() == into.read_bytes()


def in_ledger(folder: Path) -> set[str]:
    """The prompts whose answers are stored."""
    stored: list[bytes] = []
    for path in folder.glob("*.sqlite"):
        with contextlib.closing(sqlite3.connect(path)) as connection:
            stored += [row[0] for row in connection.execute("SELECT answer FROM answers")]
    return {json.loads(each)["choices"][0]["text"].removeprefix("you said: ") for each in stored}


def test_killed_at_any_moment(served: Served, tmp_path: Path) -> None:
    """A killed run loses or repeats what was paid for; or the data set is another than that of a run that was left alone."""
    kills, concurrency = 20, 8
    prompts = prompts_of(600)
    draw = random.Random(7)
    moments = [(draw.randrange(1, 12), draw.uniform(0, 0.01)) for _ in range(kills)]  # requests, then seconds
    ledger, into = tmp_path / "ledger", tmp_path / "set.jsonl"
    left, kill = 0, lambda: None

    def reply(body: dict[str, Any]) -> Said:
        nonlocal left
        left -= 1
        if left == 0:
            host.later(moments[run][1], kill)
        return Odd(echo(last(body)), delay=draw.uniform(0, 0.01))

    host = served(reply)
    held = [set[str]()]
    for run in range(kills + 1):
        process = apart(ask_all, host.url, ledger, prompts, into, key=f"run-{run}", concurrency=concurrency)
        kill, left = process.kill, moments[run][0] if run < kills else 0
        process.join(60)
        assert process.exitcode == (-signal.SIGKILL if run < kills else 0)
        held.append(in_ledger(ledger))
        assert held[-2] <= held[-1]
    asked = [
        (int(key.rpartition("-")[2]), last(body)) for key, body in zip(host.keys, host.bodies, strict=True)
    ]
    assert not [prompt for run, prompt in asked if prompt in held[run]]
    assert len(set(prompts)) < len(asked) <= len(set(prompts)) + kills * concurrency
    assert 0 < len(held[kills]) < len(set(prompts))
    ask_all(host.url, tmp_path / "other", prompts, tmp_path / "calm.jsonl", concurrency=concurrency)
    assert into.read_bytes() == (tmp_path / "calm.jsonl").read_bytes()
    assert read(into) == lines_of(prompts)


def test_two_runs_at_once(served: Served, tmp_path: Path) -> None:
    """Two runs with the same questions pay twice, or one of them fails."""
    prompts = prompts_of(300)
    host = served(lambda body: echo(last(body)))
    runs = [
        apart(ask_all, host.url, tmp_path / "ledger", each, tmp_path / f"{number}.jsonl")
        for number, each in enumerate((prompts[:200], prompts[100:]))
    ]
    for run in runs:
        run.join(60)
        assert run.exitcode == 0
    assert Counter(map(last, host.bodies)) == Counter(set(prompts))
    assert read(tmp_path / "0.jsonl") == lines_of(prompts[:200])
    assert read(tmp_path / "1.jsonl") == lines_of(prompts[100:])


def test_throughput(served: Served, tmp_path: Path) -> None:
    """Requests wait for each other: a hundred thousand answers take days."""
    latency, concurrency, count = 0.2, 8, 121
    host = served(lambda body: Odd(echo(last(body)), delay=latency))
    rates = []
    for turn in range(3):  # another process may have had the processor
        endpoint = ChatClient(host.url, "m", None, ledger=tmp_path / f"{turn}", concurrency=concurrency)
        answers = endpoint.query(question(f"{number}") for number in range(count))
        next(answers)  # the first is asked alone
        start = time.monotonic()
        rates.append(sum(1 for _ in answers) / (time.monotonic() - start))
        if rates[-1] >= 0.9 * concurrency / latency:
            break
    assert max(rates) >= 0.9 * concurrency / latency
    assert max(rates) <= 1.05 * concurrency / latency


def weigh(url: str, ledger: Path, count: int, into: Path) -> None:
    """Write how much memory it took at most to ask so many questions, in KiB."""
    endpoint = ChatClient(url, "m", None, ledger=ledger, concurrency=8)
    for _ in endpoint.query(question(f"{number}") for number in range(count)):
        pass
    into.write_text(str(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss))


def fill(endpoint: ChatClient, ledger: Path, count: int, text: str) -> None:
    """Put answers to the first questions into its ledger, as an earlier version wrote it."""
    (path,) = ledger.glob("*.sqlite")
    choice = {"text": text, "finish_reason": "stop", "logprobs": None}
    with path.with_suffix(".jsonl").open("w") as stream:
        for number in range(count):
            key = digest(endpoint.base_url, endpoint.model, question(f"{number}"))
            print(json.dumps({"key": key, **asdict(Answer("answered", [choice]))}), file=stream)


def test_memory_does_not_grow(served: Served, tmp_path: Path) -> None:
    """A million prompts do not fit: something is kept of each. Most of the answers come from the ledger, for the test's sake."""
    text = "so it is " * 250
    host = served(lambda body: [said(text)])

    def peak(count: int, asked: int) -> int:
        """Of a process that has so many answers, of which it must ask for some."""
        ledger, into = tmp_path / f"{count}", tmp_path / f"{count}.txt"
        endpoint = ChatClient(host.url, "m", None, ledger=ledger)
        fill(endpoint, ledger, count - asked, text)
        before = len(host.bodies)
        process = apart(weigh, host.url, ledger, count, into)
        process.join(120)
        assert process.exitcode == 0
        assert len(host.bodies) - before == asked
        return int(into.read_text())

    small, large = peak(2000, 100), peak(20000, 1000)
    assert large - small < 8 * 1024  # the answers alone are 40 MiB more
