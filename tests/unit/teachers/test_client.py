"""The client of an endpoint: the ledger, the budget, the limits, and what follows from an error."""

from __future__ import annotations

import contextlib
import email.utils
import itertools
import json
import re
import signal
import sqlite3
import time
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from support.commands import naming, require_words
from support.endpoint import Host, Odd, Said, Served, last, question, said
from tenacity import RetryCallState, Retrying

from kdcli import processes
from kdcli.errors import ConfigError, EndpointError, TeacherError
from kdcli.teachers.remote.client import WINDOW, Unreadable
from kdcli.teachers.remote.limits import Backoff, Budget, Prices, retry_after
from kdcli.teachers.remote.wire import ChatClient, read_completion

KEY = "sk-never-write-this-down"
TOKENS = 12
"""Tokens of a request and its answer, as the server of the tests counts."""
Ready = Callable[..., ChatClient]


@pytest.fixture
def ready(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Ready:
    """Makes a client that waits little between two tries."""
    monkeypatch.setenv("TEST_KEY", KEY)

    def make(host: Host, **options: Any) -> ChatClient:
        given: dict[str, Any] = {"key": "TEST_KEY", "ledger": tmp_path / "ledger", "backoff": 0.01} | options
        return ChatClient(given.pop("url", host.url), given.pop("model", "m"), **given)

    return make


def echo(body: dict[str, Any]) -> list[dict[str, Any]]:
    return [said(f"you said: {last(body)}")]


def questions(*numbers: int, **parameters: Any) -> list[dict[str, Any]]:
    return [question(f"{number}", **parameters) for number in numbers]


def texts_of(client: ChatClient, bodies: list[dict[str, Any]]) -> list[str]:
    """The text of each answer; empty if there is none."""
    return [answer.choices[0]["text"] if answer.choices else "" for _, answer in client.query(bodies)]


# ---- the ledger ----------------------------------------------------------------------------------------


def test_what_makes_a_question(served: Served, ready: Ready) -> None:
    """A question gets the answer to another, of another model or host; or one is paid for twice for how it is written."""
    host = served(echo)
    body = question("so?", temperature=0.5)
    assert texts_of(ready(host), [body]) == ["you said: so?"]
    others = [
        body | {"temperature": 0.6}, body | {"n": 2}, body | {"logprobs": True}, question("so? ", temperature=0.5),
        body | {"messages": [{"role": "system", "content": "so?"}]}, body | {"messages": body["messages"] * 2},
        question("so?"),
    ]  # fmt: skip
    assert ready(host).estimate([*others, body]).in_ledger == 1
    assert ready(host, model="M").estimate([body]).in_ledger == 0
    assert ready(host, url=host.url.replace("v1", "v2")).estimate([body]).in_ledger == 0
    same = dict(reversed(body.items()))
    assert ready(host, url=host.url + "/", key=None, timeout=9).estimate([same]).in_ledger == 1


def test_stored_before_it_is_used(served: Served, ready: Ready, tmp_path: Path) -> None:
    """After a crash an answer is gone that a data set was made of."""
    for number, answer in ready(served(echo)).query(questions(*range(50))):
        (path,) = (tmp_path / "ledger").glob("*.sqlite")
        assert answer.choices[0]["text"] == f"you said: {number}"
        with contextlib.closing(sqlite3.connect(path)) as connection:
            stored = [json.loads(row[0]) for row in connection.execute("SELECT answer FROM answers")]
        assert [each for each in stored if each["choices"] == answer.choices]


# ---- the budget ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("fails", [False, True])
def test_a_budget_of_requests(served: Served, ready: Ready, fails: bool) -> None:
    """More is asked than was allowed: tries that failed are not counted, or those under way; or less."""
    host = served(lambda body: 500 if fails and len(host.bodies) % 3 == 0 else echo(body))
    client = ready(host, budget=Budget(requests=25))
    answers: list[Any] = []
    with pytest.raises(EndpointError, match=naming("25 (requests", "25 are spent", "teacher.budget")):
        answers += client.query(questions(*range(60)))
    assert len(host.bodies) == client.usage.requests == 25
    paid = sum(host.paid.values())
    assert ready(host).estimate(questions(*range(60))).in_ledger == paid == 25 - fails * 8
    further = ready(host, budget=Budget(requests=100))
    assert texts_of(further, questions(*range(60))) == [f"you said: {number}" for number in range(60)]
    assert further.usage.from_ledger == paid
    assert set(host.paid.values()) == {1}


@pytest.mark.parametrize("unit", ["tokens", "money"])
def test_a_budget_of_tokens_or_money(served: Served, ready: Ready, unit: str) -> None:
    """It is passed by those that are under way; or it stops long before, as if each answer were the longest."""
    host = served(echo)
    prices = Prices(prompt=1e6, completion=3e6)  # a token costs 1, and one that is written 3
    each = {"tokens": TOKENS, "money": 10 + 2 * 3}[unit]
    most = len(json.dumps(question("10")["messages"])) + 64 + 8 * {"tokens": 1, "money": 3}[unit]
    client = ready(host, budget=Budget(**{unit: 600}), prices=prices)
    with pytest.raises(EndpointError, match=naming(f"600 ({unit}", "teacher.budget")):
        list(client.query(questions(*range(10, 99))))
    spent = each * len(host.bodies)
    assert 600 - most < spent <= 600
    assert client.usage.prompt_tokens == 10 * len(host.bodies)
    assert client.usage.cost == pytest.approx(16 * len(host.bodies))


def test_a_budget_without_usage(served: Served, ready: Ready) -> None:
    """A host that does not tell what it counts, or that fails after it may have charged: nothing is counted."""

    def reply(body: dict[str, Any]) -> Said:
        good = echo(body)
        cut = Odd(good, cut=0.9)
        return cut if len(host.bodies) % 2 else Odd(data=json.dumps({"choices": good}).encode())

    host = served(reply)
    most = len(json.dumps(question("10")["messages"])) + 64 + 8
    with pytest.raises(EndpointError, match=naming("(tokens", f"{6 * most} are spent", "teacher.budget")):
        list(ready(host, budget=Budget(tokens=7 * most - 1)).query(questions(*range(10, 60))))
    assert len(host.bodies) == 6


def test_answers_whose_tokens_are_not_counted(served: Served, ready: Ready) -> None:
    """They are taken for free: the report says `0 + 0 tokens, cost 0.00`."""

    def reply(body: dict[str, Any]) -> Said:
        return echo(body) if last(body) == "1" else Odd(data=json.dumps({"choices": echo(body)}).encode())

    client = ready(served(reply), prices=Prices(1e6, 3e6))
    list(client.query(questions(1, 2, 3)))
    assert (client.usage.uncounted, client.usage.prompt_tokens) == (2, 10)


def test_a_budget_that_cannot_be_kept(served: Served, ready: Ready) -> None:
    """An answer of any length; or money without prices: the budget would mean nothing."""
    host = served(echo)
    body = {"messages": question("so")["messages"]}
    with pytest.raises(ConfigError, match="max_tokens"):
        list(ready(host, budget=Budget(tokens=10**6)).query([body]))
    with pytest.raises(ConfigError, match="prices"):
        ready(host, budget=Budget(money=1))
    assert host.bodies == []


# ---- the host's limits ---------------------------------------------------------------------------------


def test_requests_per_minute(served: Served, ready: Ready) -> None:
    """More requests in a minute than the host allows, failed ones too."""
    host = served(lambda body: 500 if len(host.bodies) % 4 == 0 else echo(body))
    start = time.monotonic()
    list(ready(host, requests_per_minute=1200).query(questions(*range(20))))
    waited = [moment - start for moment in host.times]
    assert len(waited) >= 26
    assert all(moment > 0.05 * number for number, moment in enumerate(waited))


def test_tokens_per_minute(served: Served, ready: Ready) -> None:
    """More tokens in a minute than the host allows; or it takes an hour, as if each answer were the longest."""
    host = served(echo)
    start = time.monotonic()
    list(ready(host, tokens_per_minute=1200 * TOKENS).query(questions(*range(20), max_tokens=2400)))
    waited = [moment - start for moment in host.times]
    assert all(moment > 0.0499 * number for number, moment in enumerate(waited))
    assert waited[-1] < 2400 / (1200 * TOKENS) * 60


def test_the_host_asks_to_wait(served: Served, ready: Ready) -> None:
    """One request waits and the others go on, or those that already waited for their turn: the host locks the user out."""
    wait = 1.2

    def reply(body: dict[str, Any]) -> Said:
        return Odd(status=429, headers={"Retry-After": f"{wait}"}) if len(host.bodies) == 2 else echo(body)

    host = served(reply)
    list(ready(host, requests_per_minute=200, concurrency=4).query(questions(*range(4))))
    assert len(host.times) == 5
    assert host.times[2] - host.times[1] >= wait


def test_how_long_the_host_asks_to_wait() -> None:
    """A date that is taken for nothing, or nonsense that ends the run."""

    def asked(text: str) -> float | None:
        return retry_after({"retry-after": text})

    assert (asked("7"), asked("0.25"), asked("-3")) == (7, 0.25, 0)
    assert 95 < (asked(email.utils.formatdate(time.time() + 100, usegmt=True)) or 0) <= 100
    assert asked("Wed, 21 Oct 2015 07:28:00 GMT") == 0
    assert [asked(text) for text in ("soon", "", "inf", "nan", "Wed, 99 Oct")] == [None] * 5
    assert retry_after({}) is None


def test_the_host_asks_to_wait_for_an_hour(served: Served, ready: Ready) -> None:
    """A run that stands still, and nobody knows why."""
    host = served(lambda body: Odd(status=503, headers={"Retry-After": "3600"}))
    with pytest.raises(EndpointError, match=naming(host.url, "3600 s", "teacher.requests_per_minute")):
        list(ready(host).query(questions(1)))
    assert len(host.bodies) == 1


def test_pauses() -> None:
    """Requests that failed together come back together; or the hundredth try is made in a thousand years."""
    backoff, state = Backoff(0.5), RetryCallState(Retrying(), None, (), {})
    for tries, longest in ((1, 0.5), (2, 1), (5, 8), (7, 32), (8, 60), (900, 60)):
        state.attempt_number = tries
        pauses = [backoff(state) for _ in range(200)]
        assert longest / 2 <= min(pauses) < 0.6 * longest
        assert 0.9 * longest < max(pauses) <= longest


def test_tries_come_later_and_later(served: Served, ready: Ready) -> None:
    """A host that is overloaded is asked again at once, and again."""
    host = served(lambda body: 500 if len(host.bodies) < 5 else echo(body))
    client = ready(host, backoff=0.1)
    list(client.query(questions(1)))
    gaps = [after - before for before, after in itertools.pairwise(host.times)]
    assert all(gap >= least for gap, least in zip(gaps, (0.05, 0.1, 0.2, 0.4), strict=True))
    assert (client.usage.requests, client.usage.retries) == (5, 4)


# ---- errors --------------------------------------------------------------------------------------------

QUOTA = Odd(status=429, data=b'{"error": {"code": "insufficient_quota", "message": "pay"}}')


@pytest.mark.parametrize("late", [False, True])
@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        (401, ("answers 401", "TEST_KEY", "teacher.api_key_env")),
        (402, ("answers 402", "no credit")),
        (403, ("answers 403", "TEST_KEY", "teacher.model=m")),
        (404, ("answers 404", "teacher.base_url", "/v1)", "teacher.model=m")),
        (QUOTA, ("answers 429", "no credit")),
        (405, ("answers 405", "teacher.base_url", "teacher.parameters")),
    ],
)
def test_errors_that_stay(
    served: Served, ready: Ready, wrong: Said, words: tuple[str, ...], late: bool
) -> None:
    """They are repeated, by each of a million prompts; or the user does not learn what to do; or what was paid for is lost."""
    before = 20 if late else 0
    host = served(lambda body: wrong if len(host.bodies) > before else echo(body))
    with pytest.raises(TeacherError) as error:
        list(ready(host, concurrency=4).query(questions(*range(200))))
    require_words(str(error.value), host.url, *words)
    assert len(host.bodies) == 1 if not late else 21 <= len(host.bodies) <= 24
    assert ready(host).estimate(questions(*range(200))).in_ledger == before
    assert KEY not in "".join(traceback.format_exception(error.value))


@pytest.mark.parametrize(
    ("host", "header"),
    [("a.openai.azure.com", KEY), ("azure.com.example.org", None), ("api.openai.com", None)],
)
def test_the_header_of_the_key(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, host: str, header: str | None
) -> None:
    """A deployment of Azure refuses the key, which it takes in a header of its own; or another host gets it twice."""
    monkeypatch.setenv("TEST_KEY", KEY)
    client = ChatClient(
        f"https://{host}/openai/deployments/d?api-version=1", "m", "TEST_KEY", ledger=tmp_path
    )
    assert client._client.default_headers.get("api-key") == header


def test_a_model_that_the_server_does_not_know(served: Served, tmp_path: Path) -> None:
    """The name is one letter off, and nobody learns how the server writes it."""
    names = ["meta-llama/Llama-3.2-3B-Instruct", "qwen2.5:7b", "gemma"]
    page = Odd(data=json.dumps({"data": [{"id": name} for name in names]}).encode())
    host = served(lambda body: 404, lambda path, body: page if path.endswith("/models") else 404)
    client = ChatClient(host.url, "llama-3.2-3b-instruct", None, ledger=tmp_path)
    with pytest.raises(TeacherError) as error:
        list(client.query(questions(1)))
    require_words(str(error.value), "teacher.model=llama-3.2-3b-instruct", names[0])


@pytest.mark.parametrize(
    ("data", "told"),
    [(b"<html>hello</html>", "not JSON: <html>hello"), (b"data: {}", "teacher.parameters.stream=false")],
)
def test_answers_that_are_not_json(served: Served, ready: Ready, data: bytes, told: str) -> None:
    """The address of a web page, or a server that streams: nobody learns what it sent."""
    host = served(lambda body: Odd(data=data))
    with pytest.raises(EndpointError, match=re.escape(told)) as error:
        list(ready(host, retries=1).query(questions(1)))
    assert "teacher.base_url" in str(error.value)


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/chat/completions/", "/v1/completions"])
def test_an_address_with_the_path_of_requests(ready: Ready, path: str) -> None:
    """The address of the documentation's first example is pasted, and the host answers 404."""
    with pytest.raises(ConfigError, match=naming("teacher.base_url", "http://127.0.0.1:1/v1")):
        ready(SimpleNamespace(url=f"http://127.0.0.1:1{path}"))


@pytest.mark.parametrize("path", ["/v1?api-version=1", "/v1/?api-version=1"])
def test_an_address_with_a_query(served: Served, ready: Ready, path: str) -> None:
    """The path of requests is written behind the query (`?api-version=1chat/completions`), and the host answers 404."""
    asked: list[str] = []

    def answered(path: str, body: dict[str, Any]) -> Said:
        asked.append(path)
        return echo(body)

    host = served(echo, answered)
    url = host.url.removesuffix("/v1") + path
    assert texts_of(ready(host, url=url), questions(1)) == ["you said: 1"]
    assert asked == ["/v1/chat/completions?api-version=1"]
    with pytest.raises(
        ConfigError, match=naming("teacher.base_url", "give http://127.0.0.1:1/v1?api-version=1")
    ):
        ready(SimpleNamespace(url="http://127.0.0.1:1/v1/chat/completions?api-version=1"))


def test_a_host_that_wants_a_key(served: Served, ready: Ready) -> None:
    """A user without a key is told to check it."""
    host = served(lambda body: 401)
    with pytest.raises(TeacherError, match=naming(host.url, "a key", "teacher.api_key_env")):
        list(ready(host, key=None).query(questions(1)))


def test_a_request_that_is_wrong(served: Served, ready: Ready) -> None:
    """A parameter that the host does not know: all prompts are noted as refused, for ever."""
    host = served(lambda body: 400 if "odd" in body else echo(body))
    with pytest.raises(TeacherError, match=naming(host.url, "every request", "teacher.parameters")):
        list(ready(host).query(questions(*range(50), odd=1)))
    assert len(host.bodies) == 3
    assert ready(host).estimate(questions(*range(50), odd=1)).in_ledger == 0


def test_prompts_that_are_refused(served: Served, ready: Ready) -> None:
    """One prompt that is too long ends the run, is asked again, or is left to chance when it is the first."""
    host = served(lambda body: 400 if last(body) in ("0", "1", "30") else echo(body))
    for _ in range(2):
        found = [answer.status for _, answer in ready(host).query(questions(*range(40)))]
        assert [number for number, status in enumerate(found) if status == "refused"] == [0, 1, 30]
        assert found.count("answered") == 37
    assert len(host.bodies) == 40


def test_json_that_is_no_completion(served: Served, ready: Ready) -> None:
    """It counts as an answer at once, and for ever; or tries that failed otherwise count as such; or it ends the run."""
    odd = Odd(data=b'{"choices": []}')
    ways: dict[str, list[Said]] = {"1": [500, 500, odd, odd], "2": [odd, 500, odd, odd]}
    host = served(lambda body: ways[last(body)].pop(0) if ways.get(last(body)) else echo(body))
    found = [answer.status for _, answer in ready(host).query(questions(0, 1, 2))]
    assert found == ["answered", "answered", "unparsable"]
    assert len(host.bodies) == 1 + 5 + 4


def test_an_error_for_an_answer(served: Served, ready: Ready) -> None:
    """A router's model fails for a minute, which it tells with status 200: rows are noted as unparsable or as empty answers, for ever; or a
    prompt that cannot be answered ends the run; or its words are lost."""
    broken = Odd(data=b'{"error": {"code": 502, "message": "the model is gone"}}')
    host = served(lambda body: broken if 1 < len(host.bodies) < 6 else echo(body))
    assert texts_of(ready(host), questions(0, 1)) == ["you said: 0", "you said: 1"]
    ways = {
        "2": Odd(data=b'{"error": {"code": "content_filter", "message": "not that"}}'),
        "3": Odd(data=b'{"error": {"code": 403, "message": "nor that"}}'),
        "4": broken,
        "5": Odd([{"message": {"content": ""}, "finish_reason": "error", "error": {"message": "nor that"}}]),
        "6": Odd(data=b'[{"error": "nor that"}]'),
        "7": Odd(data=b'{"object": "error", "message": "nor that"}'),
        "8": Odd([{"message": {"content": "nor that"}, "finish_reason": "insufficient_system_resource"}]),
    }
    host.reply = lambda body: ways[last(body)]
    found = [answer for _, answer in ready(host).query(questions(0, 2, 3, 5, 6, 7, 8))]
    assert [answer.status for answer in found] == ["answered", "refused", *["unparsable"] * 5]
    assert "not that" in found[1].reason
    assert all("an error for an answer: nor that" in answer.reason for answer in found[2:6])
    assert "insufficient_system_resource" in found[6].reason
    with pytest.raises(EndpointError, match=naming("3 tries", "the model is gone", "teacher.retries")):
        list(ready(host, retries=2).query(questions(4)))
    assert ready(host).estimate(questions(4)).in_ledger == 0


def test_time_outs(served: Served, ready: Ready) -> None:
    """A run that waits for ever: for the first byte, for the last, or because one comes now and then."""
    tries: list[str] = []

    def reply(body: dict[str, Any]) -> Said:
        tries.append(last(body))
        odd = {"1": Odd(stall=0), "2": Odd(echo(body), stall=0.8), "3": Odd(echo(body), pieces=400)}
        return odd.get(last(body), echo(body)) if tries.count(last(body)) == 1 else echo(body)

    host = served(reply)
    start = time.monotonic()
    found = texts_of(ready(host, timeout=1), questions(0, 1, 2, 3))
    assert found == [f"you said: {number}" for number in range(4)]
    assert all(tries.count(number) >= 2 for number in "123")
    assert time.monotonic() - start >= 1


def test_no_answer_at_all(served: Served, ready: Ready) -> None:
    """A host that is gone is asked for ever; or a typo in the address is told after minutes."""
    host = served(lambda body: Odd(stall=0))
    with pytest.raises(EndpointError, match=naming("3 tries", "ReadTimeout", "teacher.timeout")):
        list(ready(host, timeout=0.3, retries=2).query(questions(1)))
    assert len(host.bodies) == 3
    host.close()
    with pytest.raises(
        EndpointError, match=naming("3 tries", "ConnectError", "Start the server", "teacher.base_url")
    ):
        list(ready(host, retries=50).query(questions(1)))


def test_a_host_that_is_too_busy(served: Served, ready: Ready) -> None:
    """A user is told to check the address of a host that limits the rate."""
    host = served(lambda body: 429)
    with pytest.raises(EndpointError, match=naming("3 tries", "teacher.requests_per_minute")) as error:
        list(ready(host, retries=2).query(questions(1)))
    assert "teacher.base_url" not in str(error.value)


def test_a_web_page_is_reported_soon(served: Served, ready: Ready) -> None:
    """The address of a web page is requested for minutes; or a page of a proxy that fails for a moment ends a run."""
    host = served(lambda body: Odd(data=b"<html>sign in</html>"))
    with pytest.raises(EndpointError, match=naming("3 tries", "not JSON", "teacher.base_url")):
        list(ready(host, retries=50).query(questions(1)))
    pages = served(lambda body: Odd(data=b"<html>") if 1 < len(pages.bodies) < 7 else echo(body))
    assert texts_of(ready(pages), questions(1, 2)) == ["you said: 1", "you said: 2"]


@pytest.fixture
def ctrl_c() -> Iterator[None]:
    """SIGINT arrives: a shell has programs in its background ignore it, and these tests with them."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("ctrl_c")
def test_interrupted(served: Served, ready: Ready) -> None:
    """Ctrl-C hangs; or what is under way is lost."""
    number = itertools.count(1)

    def reply(body: dict[str, Any]) -> Said:
        if next(number) == 10:  # of the bodies two may have come at once
            host.later(0, lambda: signal.raise_signal(signal.SIGINT))
        return Odd(echo(body), delay=0.1)

    host = served(reply)
    with processes.watched(), pytest.raises(KeyboardInterrupt):
        list(ready(host, concurrency=4).query(questions(*range(200))))
    assert 10 <= len(host.bodies) < 20
    assert (
        sum(host.paid.values()) == len(host.bodies) == ready(host).estimate(questions(*range(100))).in_ledger
    )


class Finalised:
    """An object that receives Ctrl-C while Python finalises it, which discards the exception of the signal's handler."""

    def __del__(self) -> None:
        signal.raise_signal(signal.SIGINT)
        time.sleep(0)


@pytest.mark.faults
@pytest.mark.usefixtures("ctrl_c")
def test_interrupted_while_an_object_is_finalised(served: Served, ready: Ready) -> None:
    """Ctrl-C is discarded by the garbage collector, and the run goes on paying."""
    host = served(echo)

    def query() -> None:
        for index, _ in ready(host, concurrency=2).query(questions(*range(200))):
            if index == 10:
                Finalised()

    with processes.watched(), pytest.raises(KeyboardInterrupt):
        query()
    assert len(host.bodies) < 10 + 2 * 2 * WINDOW
    assert sum(host.paid.values()) == ready(host).estimate(questions(*range(200))).in_ledger


def test_the_key_is_in_no_message(served: Served, ready: Ready, tmp_path: Path) -> None:
    """Hosts repeat the key that they were given: it is printed and written down, or a part of it where a message is cut."""
    odd = {"a": Odd([said("", "stop") | {"message": {"refusal": f"not with {KEY}"}}]), "b": Odd(data=f'{{"k": "{KEY}"}}'.encode()), "c": 400}  # fmt: skip
    host = served(lambda body: odd.get(last(body), echo(body)))
    client = ready(host)
    reasons = [answer.reason for _, answer in client.query(question(letter) for letter in "0abc")]
    assert all("<key>" in reason for reason in reasons[1:])
    stored = [path.read_bytes() for path in (tmp_path / "ledger").glob("*.sqlite*")]
    assert any(b"you said: 0" in each for each in stored)
    assert not any(KEY[:6].encode() in each for each in stored)
    for length in range(400):
        with pytest.raises(Unreadable) as error:
            read_completion({"pad": "x" * length + KEY}, client.scrub)
        assert KEY[:6] not in "".join(traceback.format_exception(error.value))
    for status in (500, 404):
        host.reply = lambda body, status=status: status
        with pytest.raises((EndpointError, TeacherError)) as told:
            list(ready(host, retries=1).query(questions(7)))
        assert "no: Bearer <key>" in str(told.value)
        assert KEY not in "".join(traceback.format_exception(told.value))
