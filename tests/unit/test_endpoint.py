"""The parts of what asks an endpoint: the ledger, the limits, the budget, and what follows from an error."""

from __future__ import annotations

import email.utils
import itertools
import json
import os
import resource
import signal
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from endpoint import Host, Odd, Said, Served, apart, last, question, said

from kdcli.errors import ConfigError, EndpointError, TeacherError
from kdcli.teachers.remote.client import Endpoint
from kdcli.teachers.remote.ledger import Ledger
from kdcli.teachers.remote.limits import Budget, Prices, pause_after, retry_after
from kdcli.teachers.remote.wire import Answer, Unreadable, read_completion

KEY = "sk-never-write-this-down"
TOLD = 12
"""Tokens of a request and its answer, as the server of the tests counts."""
Ready = Callable[..., Endpoint]


@pytest.fixture
def ready(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Ready:
    """An endpoint that waits little between two tries."""
    monkeypatch.setenv("TEST_KEY", KEY)

    def make(host: Host, **options: Any) -> Endpoint:
        given: dict[str, Any] = {"key": "TEST_KEY", "ledger": tmp_path / "ledger", "backoff": 0.01} | options
        return Endpoint(given.pop("url", host.url), given.pop("model", "m"), **given)

    return make


def echo(body: dict[str, Any]) -> list[dict[str, Any]]:
    return [said(f"you said: {last(body)}")]


def questions(*numbers: int, **parameters: Any) -> list[dict[str, Any]]:
    return [question(f"{number}", **parameters) for number in numbers]


def texts_of(endpoint: Endpoint, bodies: list[dict[str, Any]]) -> list[str]:
    """What is answered; nothing, if it is not."""
    return [answer.choices[0]["text"] if answer.choices else "" for _, answer in endpoint.ask(bodies)]


# ---- the ledger ----------------------------------------------------------------------------------------


def written(text: str) -> Answer:
    return Answer("answered", [{"text": text, "finish_reason": "stop", "logprobs": None}])


def key_of(number: int) -> bytes:
    return number.to_bytes(32)


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


def test_kept_before_it_is_used(
    served: Served, ready: Ready, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After a power failure an answer is gone that a data set was made of."""
    on_disk = 0
    sync = os.fsync

    def fsync(file: int) -> None:
        nonlocal on_disk
        size = os.fstat(file).st_size
        sync(file)
        on_disk = max(on_disk, size)

    monkeypatch.setattr(os, "fsync", fsync)
    for number, answer in ready(served(echo)).ask(questions(*range(50))):
        (path,) = (tmp_path / "ledger").glob("*.jsonl")
        lines = path.read_bytes()[:on_disk].splitlines()
        assert answer.choices[0]["text"] == f"you said: {number}"
        assert [line for line in lines if json.loads(line)["choices"] == answer.choices]


def test_half_a_line(tmp_path: Path) -> None:
    """What was written when the power failed is taken for an answer; or the next answer is lost with it."""
    path = tmp_path / "ledger.jsonl"
    first = Ledger(path)
    with first.hold():
        for number in range(3):
            first.append(key_of(number), written("a" * 50))
    whole = path.read_bytes()
    for length in (len(whole) - 1, len(whole) - 40, len(whole) // 3 * 2 + 1):
        path.write_bytes(whole[:length])
        again = Ledger(path)
        assert again.get(key_of(1)) == written("a" * 50)
        assert again.get(key_of(2)) is None
        with again.hold():
            again.append(key_of(3), written("b"))
        found = Ledger(path)
        assert [found.get(key_of(number)) for number in (1, 2, 3)] == [written("a" * 50), None, written("b")]
        assert all(map(json.loads, path.read_bytes().splitlines()))


@pytest.mark.parametrize(
    "wrong",
    [b"\0" * 80, b'{"key": "00", "status"', b"\xff\xfe", b'{"key": "zz", "status": "answered"}', b"[]", b'{"key": 1}', b'{"key": "%064d"}' % 1, b'{"key": "%064d", "text": ""}' % 1, b""],
)  # fmt: skip
def test_a_line_that_cannot_be_read(tmp_path: Path, wrong: bytes, caplog: pytest.LogCaptureFixture) -> None:
    """One damaged line makes all answers useless."""
    path = tmp_path / "ledger.jsonl"
    first = Ledger(path)
    with first.hold():
        for number in range(3):
            first.append(key_of(number), written(f"{number}"))
    lines = path.read_bytes().split(b"\n")
    path.write_bytes(b"\n".join([lines[0], wrong, *lines[2:]]))
    again = Ledger(path)
    assert [again.get(key_of(number)) for number in range(3)] == [written("0"), None, written("2")]
    assert caplog.text.count("1 damaged lines are not used") == 1
    with again.hold():
        again.append(key_of(1), written("new"))
    assert Ledger(path).get(key_of(1)) == written("new")


def append_in_turns(path: Path, name: int, rounds: int, each: int) -> None:
    """Append answers, some at a time."""
    ledger = Ledger(path)
    for turn in range(rounds):
        with ledger.hold():
            for number in range(each):
                ledger.append(
                    key_of(name << 32 | turn << 16 | number), written(f"{name} {turn} " + "x" * 9000)
                )


def test_two_processes_write_one_ledger(tmp_path: Path) -> None:
    """Their lines get mixed, or those of one overwrite the other's."""
    path, rounds, each = tmp_path / "ledger.jsonl", 10, 5
    processes = [apart(append_in_turns, path, name, rounds, each) for name in (1, 2)]
    for process in processes:
        process.join(60)
        assert process.exitcode == 0
    ledger = Ledger(path)
    for name, turn, number in itertools.product((1, 2), range(rounds), range(each)):
        assert ledger.get(key_of(name << 32 | turn << 16 | number)) == written(f"{name} {turn} " + "x" * 9000)
    texts = [json.loads(line)["choices"][0]["text"] for line in path.read_bytes().splitlines()]
    turns = [(text, len(list(group))) for text, group in itertools.groupby(texts)]
    assert turns == [(text, each) for text in dict.fromkeys(texts)]
    assert len(turns) == 2 * rounds


def fill_the_disk(path: Path, into: Path) -> None:
    """Append until no more fits; then there is room again."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, resource.RLIM_INFINITY))
    ledger = Ledger(path)
    with ledger.hold():
        try:
            for number in itertools.count():
                ledger.append(key_of(number), written("x" * 700))
        except EndpointError as error:
            into.write_text(f"{number} {error}")
        resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
        ledger.append(key_of(99), written("what was under way"))


def test_a_place_where_nothing_can_be_kept(tmp_path: Path) -> None:
    """A file in the folder's place, or a folder in the file's, ends in a traceback."""
    (tmp_path / "file").touch()
    (tmp_path / "folder.jsonl").mkdir()
    for path in (tmp_path / "file" / "ledger.jsonl", tmp_path / "folder.jsonl"):
        with pytest.raises(ConfigError, match=r"cannot be kept in .*set KDCLI_CACHE_DIR"):
            Ledger(path)


def test_a_full_disk(tmp_path: Path) -> None:
    """The answer after the one that did not fit is glued to a part of it; or the user sees a traceback."""
    path = tmp_path / "ledger.jsonl"
    process = apart(fill_the_disk, path, tmp_path / "said")
    process.join(60)
    assert process.exitcode == 0
    count, _, message = (tmp_path / "said").read_text().partition(" ")
    assert "set KDCLI_CACHE_DIR" in message
    assert int(count) > 9
    ledger = Ledger(path)
    assert all(ledger.get(key_of(number)) for number in range(int(count)))
    assert ledger.get(key_of(int(count))) is None
    assert ledger.get(key_of(99)) == written("what was under way")
    assert len(path.read_bytes().splitlines()) == int(count) + 1


# ---- the budget ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("fails", [False, True])
def test_a_budget_of_requests(served: Served, ready: Ready, fails: bool) -> None:
    """More is asked than was allowed: tries that failed are not counted, or those under way; or less."""
    host = served(lambda body: 500 if fails and len(host.bodies) % 3 == 0 else echo(body))
    asking = ready(host, budget=Budget(requests=25))
    answers: list[Any] = []
    with pytest.raises(EndpointError, match=r"budget of 25 \(requests; 25 are spent\)"):
        answers += asking.ask(questions(*range(60)))
    assert len(host.bodies) == asking.usage.requests == 25
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
    each = {"tokens": TOLD, "money": 10 + 2 * 3}[unit]
    most = len(json.dumps(question("10")["messages"])) + 64 + 8 * {"tokens": 1, "money": 3}[unit]
    asking = ready(host, budget=Budget(**{unit: 600}), prices=prices)
    with pytest.raises(EndpointError, match=f"budget of 600 .{unit}"):
        list(asking.ask(questions(*range(10, 99))))
    spent = each * len(host.bodies)
    assert 600 - most < spent <= 600
    assert asking.usage.prompt_tokens == 10 * len(host.bodies)
    assert asking.usage.cost == pytest.approx(16 * len(host.bodies))


def test_a_budget_without_usage(served: Served, ready: Ready) -> None:
    """A host that does not tell what it counts, or that fails after it may have charged: nothing is counted."""

    def reply(body: dict[str, Any]) -> Said:
        good = echo(body)
        cut = Odd(good, cut=0.9)
        return cut if len(host.bodies) % 2 else Odd(data=json.dumps({"choices": good}).encode())

    host = served(reply)
    most = len(json.dumps(question("10")["messages"])) + 64 + 8
    with pytest.raises(EndpointError, match=f"{6 * most} are spent"):
        list(ready(host, budget=Budget(tokens=7 * most - 1)).ask(questions(*range(10, 60))))
    assert len(host.bodies) == 6


def test_a_budget_that_cannot_be_kept(served: Served, ready: Ready) -> None:
    """An answer of any length; or money without prices: the budget would mean nothing."""
    host = served(echo)
    body = {"messages": question("so")["messages"]}
    with pytest.raises(ConfigError, match="max_tokens"):
        list(ready(host, budget=Budget(tokens=10**6)).ask([body]))
    with pytest.raises(ConfigError, match="prices"):
        ready(host, budget=Budget(money=1))
    assert host.bodies == []


# ---- the host's limits ---------------------------------------------------------------------------------


def test_requests_per_minute(served: Served, ready: Ready) -> None:
    """More requests in a minute than the host allows, failed ones too."""
    host = served(lambda body: 500 if len(host.bodies) % 4 == 0 else echo(body))
    start = time.monotonic()
    list(ready(host, requests_per_minute=1200).ask(questions(*range(20))))
    waited = [moment - start for moment in host.times]
    assert len(waited) >= 26
    assert all(moment > 0.05 * number for number, moment in enumerate(waited))


def test_tokens_per_minute(served: Served, ready: Ready) -> None:
    """More tokens in a minute than the host allows; or it takes an hour, as if each answer were the longest."""
    host = served(echo)
    start = time.monotonic()
    list(ready(host, tokens_per_minute=1200 * TOLD).ask(questions(*range(20), max_tokens=2400)))
    waited = [moment - start for moment in host.times]
    assert all(moment > 0.0499 * number for number, moment in enumerate(waited))
    assert waited[-1] < 2400 / (1200 * TOLD) * 60


def test_the_host_asks_to_wait(served: Served, ready: Ready) -> None:
    """One request waits and the others go on, or those that already waited for their turn: the host locks the user out."""
    wait = 1.2

    def reply(body: dict[str, Any]) -> Said:
        return Odd(status=429, headers={"Retry-After": f"{wait}"}) if len(host.bodies) == 2 else echo(body)

    host = served(reply)
    list(ready(host, requests_per_minute=200, concurrency=4).ask(questions(*range(4))))
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
    with pytest.raises(EndpointError, match="asks to wait 3600 s"):
        list(ready(host).ask(questions(1)))
    assert len(host.bodies) == 1


def test_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    """Requests that failed together come back together; or the hundredth try is made in a thousand years."""
    for tries, longest in ((1, 0.5), (2, 1), (5, 8), (7, 32), (8, 60), (900, 60)):
        found = [pause_after(0.5, tries) for _ in range(200)]
        assert longest / 2 <= min(found) < 0.6 * longest
        assert 0.9 * longest < max(found) <= longest


def test_tries_come_later_and_later(served: Served, ready: Ready) -> None:
    """A host that is overloaded is asked again at once, and again."""
    host = served(lambda body: 500 if len(host.bodies) < 5 else echo(body))
    asking = ready(host, backoff=0.1)
    list(asking.ask(questions(1)))
    gaps = [after - before for before, after in itertools.pairwise(host.times)]
    assert all(gap >= least for gap, least in zip(gaps, (0.05, 0.1, 0.2, 0.4), strict=True))
    assert (asking.usage.requests, asking.usage.retries) == (5, 4)


# ---- errors --------------------------------------------------------------------------------------------

QUOTA = Odd(status=429, data=b'{"error": {"code": "insufficient_quota", "message": "pay"}}')


@pytest.mark.parametrize("late", [False, True])
@pytest.mark.parametrize(
    ("wrong", "remedy"),
    [
        (401, "check the key in TEST_KEY"),
        (402, "no credit left"),
        (403, "may not use this model"),
        (404, "check base_url (it often ends in /v1) and the model's name, m"),
        (QUOTA, "no credit left"),
        (405, "check base_url and the parameters"),
    ],
)
def test_errors_that_stay(served: Served, ready: Ready, wrong: Said, remedy: str, late: bool) -> None:
    """They are repeated, by each of a million prompts; or the user does not learn what to do; or what was paid for is lost."""
    before = 20 if late else 0
    host = served(lambda body: wrong if len(host.bodies) > before else echo(body))
    with pytest.raises(TeacherError) as error:
        list(ready(host, concurrency=4).ask(questions(*range(200))))
    assert remedy in str(error.value)
    assert host.url in str(error.value)
    assert len(host.bodies) == 1 if not late else 21 <= len(host.bodies) <= 24
    assert ready(host).estimate(questions(*range(200))).in_ledger == before
    assert KEY not in "".join(traceback.format_exception(error.value))


def test_a_host_that_wants_a_key(served: Served, ready: Ready) -> None:
    """A user without a key is told to check it."""
    host = served(lambda body: 401)
    with pytest.raises(TeacherError, match="it wants a key"):
        list(ready(host, key=None).ask(questions(1)))


def test_a_request_that_is_wrong(served: Served, ready: Ready) -> None:
    """A parameter that the host does not know: all prompts are noted as refused, for ever."""
    host = served(lambda body: 400 if "odd" in body else echo(body))
    with pytest.raises(TeacherError, match="refuses every request .*check the parameters"):
        list(ready(host).ask(questions(*range(50), odd=1)))
    assert len(host.bodies) == 3
    assert ready(host).estimate(questions(*range(50), odd=1)).in_ledger == 0


def test_prompts_that_are_refused(served: Served, ready: Ready) -> None:
    """One prompt that is too long ends the run, is asked again, or is left to chance when it is the first."""
    host = served(lambda body: 400 if last(body) in ("0", "1", "30") else echo(body))
    for _ in range(2):
        found = [answer.status for _, answer in ready(host).ask(questions(*range(40)))]
        assert [number for number, status in enumerate(found) if status == "refused"] == [0, 1, 30]
        assert found.count("answered") == 37
    assert len(host.bodies) == 40


def test_json_that_is_no_completion(served: Served, ready: Ready) -> None:
    """It counts as an answer at once, and for ever; or tries that failed otherwise count as such; or it ends the run."""
    odd = Odd(data=b'{"choices": []}')
    ways: dict[str, list[Said]] = {"1": [500, 500, odd, odd], "2": [odd, 500, odd, odd]}
    host = served(lambda body: ways[last(body)].pop(0) if ways.get(last(body)) else echo(body))
    found = [answer.status for _, answer in ready(host).ask(questions(0, 1, 2))]
    assert found == ["answered", "answered", "unparsable"]
    assert len(host.bodies) == 1 + 5 + 4


def test_an_error_for_an_answer(served: Served, ready: Ready) -> None:
    """A router's model fails for a minute, which it tells with status 200: rows are noted as unparsable, for ever; or a prompt that
    cannot be answered ends the run."""
    broken = Odd(data=b'{"error": {"code": 502, "message": "the model is gone"}}')
    host = served(lambda body: broken if 1 < len(host.bodies) < 6 else echo(body))
    assert texts_of(ready(host), questions(0, 1)) == ["you said: 0", "you said: 1"]
    ways = {
        "2": Odd(data=b'{"error": {"code": "content_filter", "message": "not that"}}'),
        "3": Odd(data=b'{"error": {"code": 403, "message": "nor that"}}'),
        "4": broken,
    }
    host.reply = lambda body: ways[last(body)]
    found = [answer for _, answer in ready(host).ask(questions(0, 2, 3))]
    assert [answer.status for answer in found] == ["answered", "refused", "unparsable"]
    assert "not that" in found[1].reason
    with pytest.raises(
        EndpointError, match="no answer in 3 tries: an error for an answer: the model is gone"
    ):
        list(ready(host, retries=2).ask(questions(4)))
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
    with pytest.raises(EndpointError, match="no answer in 3 tries: ReadTimeout"):
        list(ready(host, timeout=0.3, retries=2).ask(questions(1)))
    assert len(host.bodies) == 3
    host.close()
    with pytest.raises(EndpointError, match="no answer in 3 tries: ConnectError"):
        list(ready(host, retries=50).ask(questions(1)))


def test_interrupted(served: Served, ready: Ready) -> None:
    """Ctrl-C hangs; or what is under way is lost."""
    number = itertools.count(1)

    def reply(body: dict[str, Any]) -> Said:
        if next(number) == 10:  # of the bodies two may have come at once
            host.later(0, lambda: signal.raise_signal(signal.SIGINT))
        return Odd(echo(body), delay=0.1)

    host = served(reply)
    with pytest.raises(KeyboardInterrupt):
        list(ready(host, concurrency=4).ask(questions(*range(200))))
    assert 10 <= len(host.bodies) < 20
    assert (
        sum(host.paid.values()) == len(host.bodies) == ready(host).estimate(questions(*range(100))).in_ledger
    )


def test_the_key_is_in_no_message(served: Served, ready: Ready, tmp_path: Path) -> None:
    """Hosts repeat the key that they were given: it is printed and written down, or a part of it where a message is cut."""
    odd = {"a": Odd([said("", "stop") | {"message": {"refusal": f"not with {KEY}"}}]), "b": Odd(data=f'{{"k": "{KEY}"}}'.encode()), "c": 400}  # fmt: skip
    host = served(lambda body: odd.get(last(body), echo(body)))
    asking = ready(host)
    reasons = [answer.reason for _, answer in asking.ask(question(letter) for letter in "0abc")]
    assert all("<key>" in reason for reason in reasons[1:])
    (path,) = (tmp_path / "ledger").glob("*.jsonl")
    assert KEY[:6].encode() not in path.read_bytes()
    for length in range(400):
        with pytest.raises(Unreadable) as error:
            read_completion({"pad": "x" * length + KEY}, asking._scrub)
        assert KEY[:6] not in "".join(traceback.format_exception(error.value))
    for status in (500, 404):
        host.reply = lambda body, status=status: status
        with pytest.raises((EndpointError, TeacherError)) as told:
            list(ready(host, retries=1).ask(questions(7)))
        assert "no: Bearer <key>" in str(told.value)
        assert KEY not in "".join(traceback.format_exception(told.value))
