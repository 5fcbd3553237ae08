"""Hosts that refuse a parameter: the request is sent otherwise, and what that was is known from then on."""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from support.commands import require_words
from support.endpoint import Host, Odd, Said, Served, last, question, refusing, said

from kdcli.errors import TeacherError
from kdcli.teachers.remote.limits import Budget
from kdcli.teachers.remote.parameters import SingleAnswerError
from kdcli.teachers.remote.wire import ChatClient

PAGE = Path(__file__).parents[3] / "docs" / "endpoints.md"
SCHEMA = {"type": "json_schema", "json_schema": {"name": "label", "schema": {}}}
Ready = Callable[..., ChatClient]


@pytest.fixture
def ready(tmp_path: Path) -> Ready:
    def make(host: Host, **options: Any) -> ChatClient:
        return ChatClient(host.url, "m", None, ledger=tmp_path / "ledger", backoff=0.01, **options)

    return make


def echo(body: dict[str, Any]) -> list[dict[str, Any]]:
    return [said(last(body))] * body.get("n", 1)


CHANGED: dict[str, list[tuple[str, Any, dict[str, Any], dict[str, Any]]]] = {
    "max_tokens": [
        ("openai", {"message": "Unsupported parameter: 'max_tokens' is not supported with this model. Use 'max_completion_tokens' instead.",
                    "type": "invalid_request_error", "param": "max_tokens", "code": "unsupported_parameter"}, {}, {"max_completion_tokens": 8}),
        ("a proxy", {"message": "Unsupported parameter: 'max_tokens' is not supported with this model. Use 'max_completion_tokens' instead.",
                     "code": "invalid_request_body"}, {}, {"max_completion_tokens": 8}),
    ],
    "max_completion_tokens": [
        ("mistral", {"object": "error", "message": {"detail": [{"type": "extra_forbidden", "loc": ["body", "max_completion_tokens"],
                     "msg": "Extra inputs are not permitted"}]}, "param": None}, {"max_tokens": None, "max_completion_tokens": 8}, {"max_tokens": 8}),
    ],
    "temperature": [
        ("openai", {"message": "Unsupported value: 'temperature' does not support 0 with this model. Only the default (1) value is supported.",
                    "param": "temperature", "code": "unsupported_value"}, {"temperature": 0}, {"temperature": None}),
        ("litellm", {"message": "litellm.UnsupportedParamsError: openai does not support parameters: ['temperature'], for model=o1-mini"},
         {"temperature": 0}, {"temperature": None}),
        ("tgi", "Input validation error: `temperature` must be strictly positive", {"temperature": 0}, {"temperature": None}),
    ],
    "seed": [
        ("mistral", {"object": "error", "message": {"detail": [{"type": "extra_forbidden", "loc": ["body", "seed"],
                     "msg": "Extra inputs are not permitted", "input": 1}]}}, {"seed": 1}, {"seed": None}),
        ("gemini", {"message": 'Invalid JSON payload received. Unknown name "seed": Cannot find field.', "code": 400}, {"seed": 1}, {"seed": None}),
    ],
    "response_format": [
        ("deepseek", {"message": "This response_format type is unavailable now", "param": None}, {"response_format": SCHEMA},
         {"response_format": None}),
        ("openai", {"message": "Invalid parameter: 'response_format' of type 'json_schema' is not supported with this model.",
                    "param": "response_format"}, {"response_format": SCHEMA}, {"response_format": None}),
        ("a type", {"message": "Invalid value: 'json_schema'.", "param": "response_format.type"}, {"response_format": SCHEMA},
         {"response_format": None}),
        ("lm studio", "'response_format.json_schema.schema' must be an object", {"response_format": SCHEMA}, {"response_format": None}),
    ],
    "unnamed": [
        ("a router", {"message": "No endpoints found that can handle the requested parameters. To learn more about provider routing, visit …", "code": 404},
         {"response_format": SCHEMA, "temperature": 0}, {"response_format": None, "temperature": 0}),
        ("a server", {"message": "Bad request"}, {"response_format": SCHEMA}, {"response_format": None}),
    ],
    "top_logprobs": [
        ("vllm", {"message": "Requested sample logprobs of 20, which is greater than max allowed: 5"}, {"logprobs": True, "top_logprobs": 20},
         {"top_logprobs": 5}),
        ("a host", {"message": "top_logprobs must be <= 5", "param": "top_logprobs"}, {"logprobs": True, "top_logprobs": 20}, {"top_logprobs": 5}),
    ],
}  # fmt: skip
"""Of each case: the host, its error, the parameters of the request, and those that are sent in the end (None: not sent)."""
STOPPED: dict[str, tuple[Any, dict[str, Any], str]] = {
    "logprobs": ({"message": "logprobs is not supported with this model"}, {"logprobs": True}, "teacher.soft_labels=samples"),
    "logprobs of a router": ({"message": "No endpoints found that can handle the requested parameters.", "code": 404}, {"logprobs": True},
                             "teacher.soft_labels=samples"),
    "n": ({"message": "n must be at most 1"}, {"n": 8}, "teacher.n_per_request=1"),
    "own": ({"message": "temperature does not support 0.3"}, {"temperature": 0.3}, "teacher.parameters"),
}  # fmt: skip
"""Of each case: the error, the parameters, and the key that the message names. (OpenAITeacher catches that of `n`.)"""


def fits(body: dict[str, Any], expected: dict[str, Any]) -> bool:
    return all(body.get(name) == value for name, value in expected.items())


@pytest.mark.parametrize(
    ("case", "error", "parameters", "expected"),
    [
        pytest.param(case, *rest, id=f"{case}, {host}")
        for case, ways in CHANGED.items()
        for host, *rest in ways
    ],
)
def test_a_refused_parameter(
    served: Served, ready: Ready, case: str, error: Any, parameters: dict[str, Any], expected: dict[str, Any], caplog: Any
) -> None:  # fmt: skip
    """A host that takes all but one parameter cannot be used; or it refuses each request once more, and each time it is told."""
    host = served(refusing(lambda body: not fits(body, expected), error, echo))
    bodies = [question(f"{number}", **parameters) for number in range(20)]
    bodies = [{key: value for key, value in body.items() if value is not None} for body in bodies]
    client = ready(host)
    with caplog.at_level(logging.WARNING):
        answers = [answer.choices[0]["text"] for _, answer in client.query(bodies)]
    assert answers == [f"{number}" for number in range(20)]
    assert len(host.bodies) == 21
    assert client.usage.retries == 1
    told = [record.getMessage() for record in caplog.records]
    assert len(told) == 1
    assert ("response_format" if case == "unnamed" else case) in told[0]
    # a later process finds the answers under the requests as they were meant, and sends no other request with what was refused
    later = ready(host)
    assert [answer.choices[0]["text"] for _, answer in later.query(bodies)] == answers
    assert len(host.bodies) == 21
    [(_, answer)] = later.query(
        [{key: value for key, value in question("new", **parameters).items() if value is not None}]
    )
    assert answer.choices[0]["text"] == "new"
    assert len(host.bodies) == 22


@pytest.mark.parametrize("record", [b"", b"[1]", b'[{"parameter": "messages", "name": null, "value": null}]'])
def test_a_damaged_record_of_refusals(served: Served, ready: Ready, tmp_path: Path, record: bytes) -> None:
    """A record that a full disk cut, or somebody wrote, ends the run, or takes the prompt out of each request."""
    host = served(refusing(lambda body: "seed" in body, {"message": "unknown parameter seed"}, echo))
    path = ready(host).ledger.path.with_suffix(".parameters.json")
    path.write_bytes(record)
    [(_, answer)] = ready(host).query([question("new", seed=1)])
    assert answer.choices[0]["text"] == "new"
    assert json.loads(path.read_bytes()) == [{"parameter": "seed", "name": None, "value": None}]


def test_a_recorded_refusal_of_what_the_user_chose(served: Served, ready: Ready) -> None:
    """A parameter that the user chooses is left out in silence, because an earlier run did without it."""
    host = served(refusing(lambda body: "seed" in body, {"message": "unknown parameter seed"}, echo))
    assert list(ready(host).query([question("one", seed=1)]))
    with pytest.raises(TeacherError, match="seed"):
        list(ready(host, given=["seed"]).query([question("two", seed=1)]))


@pytest.mark.parametrize("case", STOPPED)
def test_a_refusal_with_a_remedy(served: Served, ready: Ready, case: str) -> None:
    """A parameter that the labels need, or that the user chose, is left out silently."""
    error, parameters, key = STOPPED[case]
    host = served(refusing(lambda body: True, error, echo))
    given = parameters if case == "own" else ()
    with pytest.raises(TeacherError, match=re.escape(key)) as raised:
        list(ready(host, given=given).query([question(f"{number}", **parameters) for number in range(20)]))
    assert isinstance(raised.value, SingleAnswerError) == (case == "n")
    assert len(host.bodies) <= 3


def test_both_limits_are_refused(served: Served, ready: Ready) -> None:
    """A host that refuses both names of a limit is asked for ever."""
    host = served(
        lambda body: Odd(
            status=400,
            data=json.dumps({"error": {"message": f"unsupported: {sorted(body)}"}}).encode(),
        )
    )
    with pytest.raises(TeacherError, match="teacher.parameters"):
        list(ready(host).query([question(f"{number}") for number in range(9)]))
    assert len(host.bodies) == 6


def test_a_prompt_that_is_too_long(served: Served, ready: Ready) -> None:
    """An error about one prompt, which names max_tokens or comes with a schema, changes the requests of all others."""
    error = {
        "message": "max_tokens is too large: this model's context length is 512 tokens",
        "param": "max_tokens",
    }
    host = served(refusing(lambda body: last(body) == "1", error, echo))
    found = [
        answer.status
        for _, answer in ready(host).query(
            [question(f"{number}", response_format=SCHEMA) for number in range(5)]
        )
    ]
    assert found == ["answered", "refused", "answered", "answered", "answered"]
    assert len(host.bodies) == 5
    assert all("max_tokens" in body and "response_format" in body for body in host.bodies)
    # as the first one, it is sent again without the schema, which the next one is sent with
    found = [
        answer.status
        for _, answer in ready(host).query(
            [question("1", response_format=SCHEMA, temperature=0), question("7", response_format=SCHEMA)]
        )
    ]
    assert found == ["refused", "answered"]
    assert "response_format" in host.bodies[-1]


@pytest.mark.parametrize(
    ("reason", "words"),
    [
        ("Could not finish the message because max_tokens or model output limit was reached. Please try again with higher max_tokens.",
         ("++teacher.parameters.max_tokens=8192",)),
        ("Invalid 'max_output_tokens': integer below minimum value. Expected a value >= 16, but got 8 instead.",
         ("++teacher.parameters.max_tokens=8192",)),
        ("System role not supported", ("of the system", "first turn of the user")),
        ("Developer instruction is not enabled for models/gemma-3-27b-it", ("of the system", "first turn of the user")),
        ("After the optional system message, conversation roles must alternate user/assistant/user/assistant/...", ("first turn of the user",)),
        ("This model does not support system messages", ("first turn of the user",)),
        ("max_tokens is too large: this model's context length is 512 tokens", ("check teacher.parameters",)),
        ("The system is not available", ("check teacher.parameters",)),
        ("This model only support stream mode, please enable the stream parameter to access the model.", ("++teacher.parameters.stream=true",)),
        ("parameter.enable_thinking only support stream call", ("++teacher.parameters.stream=true",)),
        ("Streaming is required for operations that may take longer than 10 minutes", ("++teacher.parameters.stream=true",)),
        ("stream must be true for this model", ("++teacher.parameters.stream=true",)),
        ("This model does not support streaming", ("check teacher.parameters",)),
    ],
)  # fmt: skip
def test_what_to_do_about_a_rejection(
    served: Served, ready: Ready, reason: str, words: tuple[str, ...]
) -> None:
    """A user is told to check teacher.parameters, where a larger limit, or another conversation, is what the host wants."""
    host = served(refusing(lambda body: True, {"message": reason, "param": None}, echo))
    with pytest.raises(TeacherError) as caught:
        list(ready(host).query([question(f"{number}") for number in range(9)]))
    assert reason in caught.value.message
    require_words(caught.value.message, *words)


def test_a_host_that_cannot_keep_to_the_schema_once(served: Served, ready: Ready) -> None:
    """One answer that the host could not make fit ends as a refusal, or takes the schema from all others."""
    error = {"message": "Failed to generate JSON. Please adjust your prompt.", "code": "json_validate_failed"}
    host = served(refusing(lambda body: last(body) == "3" and "response_format" in body, error, echo))
    bodies = [question(f"{number}", response_format=SCHEMA) for number in range(9)]
    found = [answer.choices[0]["text"] for _, answer in ready(host, concurrency=1).query(bodies)]
    assert found == [f"{number}" for number in range(9)]
    assert sum("response_format" not in body for body in host.bodies) == 1


def test_an_internal_error_about_a_parameter(served: Served, ready: Ready) -> None:
    """A server that calls it an internal error is asked the same again, until the run ends."""
    error = json.dumps({"error": {"message": "response_format: json_schema is not supported"}}).encode()
    host = served(lambda body: Odd(status=500, data=error) if "response_format" in body else echo(body))
    found = list(ready(host).query([question("1", response_format=SCHEMA)]))
    assert (found[0][1].status, len(host.bodies)) == ("answered", 2)


def test_several_refusals_under_load(served: Served, ready: Ready, caplog: Any) -> None:
    """A host that refuses three parameters in turn, while others of its requests are under way: an answer is lost or sent twice, or
    the changes are told by each request."""

    def reply(body: dict[str, Any]) -> Said:
        for name in ("response_format", "temperature", "max_tokens"):
            if name in body:
                return Odd(
                    status=400, data=json.dumps({"error": {"message": f"{name}: not supported"}}).encode()
                )
        return echo(body)

    host = served(echo)
    bodies = [question(f"{number}", response_format=SCHEMA, temperature=0) for number in range(60)]
    list(ready(host).query(bodies[:2]))
    host.reply = reply  # it is accepted from the ledger, so that requests are sent side by side at once
    client = ready(host, concurrency=8)
    assert [answer.choices[0]["text"] for _, answer in client.query(bodies)] == [str(n) for n in range(60)]
    assert {text: count for text, count in host.paid.items() if count > 1} == {}
    assert sum(record.levelno == logging.WARNING for record in caplog.records) == 3


def test_changed_requests_are_in_the_budget(served: Served, ready: Ready) -> None:
    """A budget of requests is passed by those that were refused."""
    error = {"message": "Unsupported parameter: 'max_tokens'. Use 'max_completion_tokens' instead."}
    host = served(refusing(lambda body: "max_tokens" in body, error, echo))
    client = ready(host, budget=Budget(requests=4))
    with pytest.raises(Exception, match="budget"):
        list(client.query([question(f"{number}") for number in range(9)]))
    assert len(host.bodies) == 4


def test_the_page_names_each_case() -> None:
    """The table of docs/endpoints.md promises what no test shows."""
    table = PAGE.read_text(encoding="utf-8").partition("## Parameters that a host refuses")[2]
    cases = {
        case
        for line in re.findall(r"^\|.*\| ([\w, ]+) \|$", table, re.MULTILINE)[1:]
        for case in line.split(", ")
    }
    assert cases == {*CHANGED, *STOPPED, "prompt", "remedy"}
