"""What messages do not show."""

from __future__ import annotations

import time
from collections.abc import Iterator

import pytest

from kdcli.errors import ConfigError, bounded, hide, hide_nothing, looks_secret, redacted, shown


@pytest.fixture
def hidden() -> Iterator[None]:
    yield
    hide_nothing()


@pytest.mark.parametrize(
    ("text", "secret"),
    [
        ("sk-proj-abcdEFGH1234567890abcd", "abcdEFGH"),
        ("Incorrect API key provided: sk-ant-api03-AbCd1234EfGh5678_x-y", "AbCd1234"),
        ("hf_abcdefghijklmnopqrstuvwxyz", "abcdefghijkl"),
        ("github_pat_11ABCDEFG0abcdefghij_klmnop", "11ABCDEFG0"),
        ("ghp_abcdefghijklmnopqrstuvwxyz0123456789", "abcdefgh"),
        ("AKIAIOSFODNN7EXAMPLE", "IOSFODNN"),
        ("AIzaSyA-1234567890abcdefghijklmnopqrstuv", "1234567890"),
        ("xoxb-123456789012-abcdefghijkl", "123456789012"),
        ("glpat-abcdefghij_1234567890", "abcdefghij"),
        ("Authorization: Bearer abcdef1234567890", "abcdef1234567890"),
        ("eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxMjM0In0.c2lnbmF0dXJl", "eyJzdWIi"),
        ("https://user:hunter2@host/v1", "hunter2"),
        ("https://host/v1?x=1&api-key=hunter2", "hunter2"),
        ("{api_key: hunter2, x: 1}", "hunter2"),
        ("{'X-Api-Key': 'hunter2'}", "hunter2"),
        ("teacher.parameters.password = 'hunter2'", "hunter2"),
        ("-----BEGIN RSA PRIVATE KEY-----\nMIIEow", "MIIEow"),
    ],
)
def test_a_secret_is_in_no_message(text: str, secret: str) -> None:
    """A key in the log of a CI, in a bug report, or on a shared screen."""
    for said in (
        redacted(text),
        shown(text),
        bounded(text),
        ConfigError(f"{'x' * 5000} {text} {text}").message,
    ):
        assert secret not in said


@pytest.mark.parametrize(
    "text",
    [
        "/data/sk-en-corpus-2024.csv", "sk-SK", "hf_models", "task-sk-abcdefghijklmnop1", "teacher.api_key_env: a value is needed",
        "teacher.parameters.api_key: a value of that name", "https://huggingface.co/OWNER/NAME?revision=main", "the missing token: [PAD]",
        "basic education", "me@example.com", "package:kdcli/conf", "secrets of style",
    ],
)  # fmt: skip
def test_an_ordinary_text_is_shown_as_it_is(text: str) -> None:
    """A message that hides what the user needs to see."""
    assert redacted(text) == text
    assert not looks_secret(text)


def test_a_value_of_the_environment_is_shown_by_its_name(hidden: None) -> None:
    """A long value whose head and tail stand in a message that was cut to its bounds; one that repr writes otherwise."""
    hide("line one\nline two" * 100, "${oc.env:LONG}")
    hide("/home/someone", "${oc.env:HOME}")
    hide("1", "${oc.env:ONE}")
    assert shown("line one\nline two" * 100) == "'${oc.env:LONG}'"
    assert ConfigError("/home/someone/x.csv: 1 row").message == "${oc.env:HOME}/x.csv: 1 row"
    hide_nothing()
    assert redacted("/home/someone") == "/home/someone"


def test_redaction_takes_no_longer_than_the_text() -> None:
    """A message of a hostile file that takes minutes to print."""
    began = time.process_time()
    for part in (
        "a.",
        "sk-",
        "?key",
        "&key=",
        "://",
        "eyJ",
        "Bearer ",
        "api_key",
        "a-",
        "-----BEGIN",
        "'\"",
        "\\",
    ):
        redacted(part * 50_000)
    assert time.process_time() - began < 5
