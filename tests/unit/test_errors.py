"""Exit codes, and what messages do not show."""

from __future__ import annotations

import ast
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

import kdcli
from kdcli import errors
from kdcli.errors import (
    ConfigError,
    ExitCode,
    KDError,
    bounded,
    hide,
    hide_nothing,
    looks_secret,
    redacted,
    shown,
)


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
    hide("correct//horse", "${oc.env:PHRASE}")
    assert ConfigError("no file /data/correct/horse.csv").message == "no file /data/${oc.env:PHRASE}.csv"
    hide("xYz7" * 200, "${oc.env:LONG}")
    assert shown(["xYz7" * 200]) == "['${oc.env:LONG}']"
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


def test_the_docstring_tells_each_exit_code() -> None:
    """A table that says 1 where the command exits with 2 misleads whoever writes a script after it."""
    for kind in [KDError, *KDError.__subclasses__()]:
        line = next(line for line in str(errors.__doc__).splitlines() if kind.__name__ in line.split())
        assert line.endswith(f"{kind.exit_code.name} ({kind.exit_code.value})")


def test_exit_codes_are_named() -> None:
    """A 2 in the code does not tell what it means, and one that is forgotten when another changes is wrong."""
    root = Path(kdcli.__file__).parent
    wrong = []
    for path in [
        root / "cli.py",
        root / "processes.py",
        *root.glob("launch/*.py"),
        *root.glob("commands/*.py"),
    ]:
        tree = ast.parse(path.read_text(encoding="utf-8"))
        counts = {
            node
            for each in ast.walk(tree)
            if getattr(each, "name", "") == "_points"
            for node in ast.walk(each)
        }
        for node in ast.walk(tree):
            value = getattr(node, "value", None)
            if isinstance(node, ast.Return | ast.Assign) and isinstance(value, ast.Constant):
                code = isinstance(node, ast.Return) or "status" in ast.unparse(node)
                if code and type(value.value) is int and node not in counts:
                    wrong.append(f"{path.name}, line {node.lineno}")
            elif isinstance(node, ast.Constant) and value in {*ExitCode} - {0, 1, 2, 3}:
                wrong.append(f"{path.name}, line {node.lineno}")
    assert not wrong
