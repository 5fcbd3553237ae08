"""Keys that stand in an environment variable, in a header or in a path: none is printed or recorded."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from support.commands import refusal, require_one_message, require_words
from typer.testing import CliRunner

from kdcli import console
from kdcli.cli import app
from kdcli.errors import hide, hide_nothing
from kdcli.launch.check import CheckOptions
from kdcli.launch.run import launch

KEY = "sk-proj-abcdefghijklmnop1234"


@pytest.mark.parametrize(
    "options",
    [
        {"check": CheckOptions(with_models=False)},
        {"cfg": "job"},
        {"cfg": "job", "resolve": True},
        {"cfg": "all"},
        {"info": "config"},
    ],
    ids=str,
)
def test_a_check_prints_no_value_of_the_environment(
    options: dict[str, Any],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """The log of a scheduler keeps what a variable held, since only errors hide it."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PLANTED", "a-value-of-the-user")
    words = ["teacher=openai", "teacher.base_url=http://127.0.0.1:9/v1", "teacher.model=${oc.env:PLANTED}"]
    assert launch("distill", words, **options) == 0
    captured = capsys.readouterr()
    assert "a-value-of-the-user" not in captured.out + captured.err
    require_words(captured.out, "${oc.env:PLANTED}")


def test_results_hide_values_of_the_environment(capsys: pytest.CaptureFixture[str]) -> None:
    """A path in a result or a table shows the variable's value; or a number, or a key of JSON, is replaced, and JSON is no JSON any more."""
    try:
        hide("/home/someone", "${oc.env:HOME}")
        hide("123456789", "${oc.env:SIZE}")
        hide("validation", "${oc.env:SPLIT}")
        console.say('runs in /home/someone/x {"validation": 123456789}')
        console.table("", ["run"], [["/home/someone/x"]])
    finally:
        hide_nothing()
    out = capsys.readouterr().out
    assert 'runs in ${oc.env:HOME}/x {"validation": 123456789}' in out
    assert "someone" not in out


@pytest.mark.parametrize("part", ["extra_headers", "default_query"])
def test_a_random_word_in_a_request_is_a_key(part: str, capsys: pytest.CaptureFixture[str]) -> None:
    """A key of a gateway, under a name that says nothing, stands in the run directory."""
    key, value = f"teacher.parameters.{part}.X-Custom", "0123456789abcdef" * 4
    message = refusal(capsys, "distill", ["teacher=openai", f"+{key}={value}"])
    require_words(message, key, "teacher.api_key_env=NAME")
    assert value not in message


def test_a_key_in_the_name_of_the_run_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """hydra.run.dir is refused with a key in it, and --out is not."""
    monkeypatch.chdir(tmp_path)
    message = refusal(capsys, "distill", [], out=Path("runs", KEY))
    require_words(message, "--out")
    assert KEY not in message
    assert list(tmp_path.iterdir()) == []


def test_a_key_in_the_place_of_an_option_is_not_repeated() -> None:
    """The message for an unknown option has the key, since -- stands before it."""
    done = CliRunner().invoke(app, ["distill", f"--{KEY}"])
    assert done.exit_code == 2
    require_words(require_one_message(done.stderr), "<secret>", "kdcli distill --help")
    assert KEY not in done.output + done.stderr
