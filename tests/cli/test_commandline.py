"""The manners of the command line: help that is read to the end, and answers to what is misspelt."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from typing import Any

import pytest
from support.commands import require_words
from support.runs import make_result, make_run
from typer.main import get_command
from typer.testing import CliRunner

from kdcli.cli import app
from kdcli.launch.commandline import PANELS, split_help

STOPPED = ("distill", "check", "eval", "export", "predict", "chat")
"""The commands that report a signal themselves."""


def run(*words: str) -> tuple[int, str, str]:
    """The exit code, stdout and stderr of a command line."""
    done = CliRunner().invoke(app, [*words])
    return done.exit_code, done.stdout, done.stderr


def test_without_a_command_the_help_is_shown() -> None:
    """A first look at kdcli ends with an error, or with sentences that are cut off."""
    code, out, _ = run()
    assert code == 0
    assert out == run("--help")[1]
    assert "..." not in out.partition("Options:")[2]
    for title in ("Train and measure:", "Look up:", "Examples:"):
        assert title in out
    assert "  kdcli distill teacher=bert-base student=tiny dataset=csv dataset.path=reviews.csv\n" in out


def commands(command: Any) -> dict[str, Any]:
    inner = getattr(command, "commands", {})
    return {name: each for name, each in inner.items() if not each.hidden}


def test_every_command_has_examples_and_exit_codes() -> None:
    """A command whose help tells no example and no exit code cannot be scripted without reading the code."""
    titles = [name for names in PANELS.values() for name in names]
    root = get_command(app)
    assert commands(root).keys() <= {*titles}
    every = [(), *((name,) for name in commands(root))]
    every += [(name, inner) for name, command in commands(root).items() for inner in commands(command)]
    for words in every:
        command = root
        for word in words:
            command = commands(command)[word]
        parts = split_help(command.help or "")
        assert parts.examples, words
        assert all(number.isdigit() and meaning for number, meaning in parts.codes), words
        assert parts.codes, words
        assert parts.paragraphs[0].endswith("."), words
        assert "\nExit codes:\n" in run(*words, "--help")[1], words
        if words[:1] in ((name,) for name in STOPPED):
            assert {"130", "143"} <= {number for number, _ in parts.codes}, words
    code, out, _ = run("export", "--help")
    assert code == 0
    assert "[[" not in out
    assert re.search(r"\nExit codes:\n  0 +done\n", out)
    assert "hardware=cpu,intel -m\n" in out


@pytest.mark.parametrize(
    ("words", "answers"),
    [
        (["distill", "--epochs", "3"], ["trainer.epochs=3", "teacher.trainer.epochs=3"]),
        (["distill", "student=tiny", "--epochs=3"], ["trainer.epochs=3"]),
        (["distill", "--epoch", "3"], ["trainer.epochs=3"]),
        (["distill", "--learning-rate", "1e-3"], ["trainer.learning_rate=1e-3"]),
        (["distill", "--trainer.patience", "2"], ["trainer.patience=2"]),
        (["distill", "--student", "mini"], ["student=mini"]),
        (["distill", "--dry-run"], ["dry_run=true"]),
        (["eval", "--split", "validation"], ["split=validation"]),
        (["export", "--max-bytes", "1e6"], ["hardware.budget.max_bytes=1e6"]),
        (["check", "--epochs", "3"], ["trainer.epochs=3"]),
        (["--epochs", "3", "distill"], ["kdcli distill trainer.epochs=3"]),
        (["--lr=1e-4"], ["kdcli distill trainer.learning_rate=1e-4"]),
        (["--json", "list"], ["kdcli list … --json"]),
        (["--versoin"], ["--version"]),
        (["distill", "--lr", "1e-4"], ["trainer.learning_rate=1e-4"]),
        (["distill", "--bs", "8"], ["trainer.batch_size=8"]),
        (["distill", "--epohs", "3"], ["trainer.epochs=3"]),
        (["distill", "trainer.lr=1e-4"], ["trainer.learning_rate"]),
        (["distill", "lr", "1e-4"], ["trainer.learning_rate=…"]),
        (["distill", "epohs=3"], ["trainer.epochs"]),
        (["chat", "nowhere"], ["nowhere", "path of a run"]),
        (["keys", "lr"], ["trainer.learning_rate"]),
        (["keys", "epohs"], ["trainer.epochs"]),
        (["keys", "trainer.lr"], ["trainer.learning_rate"]),
        (["predict"], ["kdcli predict RUN TEXT"]),
        (["chat"], ["kdcli chat RUN"]),
        (["compare"], ["kdcli compare RUN RUN"]),
        (["init"], ["kdcli init FILE"]),
        (["completion"], ["kdcli completion bash"]),
        (["export"], ["kdcli export RUN"]),
        (["eval"], ["kdcli eval RUN", "model=CHECKPOINT", "artifact=FILE"]),
        (["cache", "ls", "--knid", "answers"], ["--kind", "kdcli cache ls --help"]),
        (["cache", "lss"], ["ls", "kdcli cache --help"]),
        (["predict", "run", "text", "--max-new-tokens", "0"], ["--max-new-tokens", "kdcli predict --help"]),
        (["distill", "--out"], ["--out"]),
        (["doctor", "now"], ["now", "kdcli doctor --help"]),
        (["distill", "--confg-dir", "x"], ["--config-dir"]),
        (["list", "--config-dri", "x"], ["--config-dir"]),
        (["distill", "epochs", "3"], ["trainer.epochs=…"]),
        (["distil"], ["distill"]),
        (["distil", "student=tiny"], ["distill"]),
        (["student=tiny"], ["kdcli distill student=tiny"]),
        (["keys", "tranier"], ["trainer"]),
        (["keys", "student.layers"], ["student=layers"]),
        (["keys", "experiment"], ["kdcli list experiment"]),
        (["keys", "loss=jds"], ["jsd", "kdcli list loss"]),
        (["keys", "trainer", "teacher"], ["trainer teacher"]),
        (["list", "studnet"], ["student"]),
        (["completion", "ksh"], ["bash", "zsh", "fish"]),
    ],
    ids=lambda value: " ".join(value),
)
def test_what_is_misspelt_is_answered(words: list[str], answers: list[str]) -> None:
    """`--epochs 3`, which every other tool has, is refused without the key that is meant."""
    code, out, err = run(*words)
    assert code == 2
    assert out == ""
    assert err.startswith("error: ")
    require_words(err, *answers)


def test_keys_are_shown() -> None:
    """A key is found, and neither its range nor its meaning."""
    code, out, _ = run("keys", "loss.soft_label", "loss=jsd")
    assert code == 0
    require_words(out, "loss.soft_label.beta = 0.5", "above 0, below 1", "loss=jsd", "mixture")
    assert "loss.hard_label" not in out
    assert out.endswith("next: kdcli distill loss=jsd loss.soft_label.weight=VALUE\n")
    every = run("keys")[1].splitlines()
    assert len(every) > 150
    assert every[-1] == "next: kdcli keys KEY"
    assert next(line for line in every if line.startswith("trainer.batch_size ")).split()[1] == "32"
    assert "teacher.trainer.epochs" in run("keys", "epochs")[1]
    found = json.loads(run("keys", "trainer.schedule", "--json")[1])
    assert [each["choices"] for each in found] == [["linear", "cosine", "constant"]]


def test_list_for_scripts() -> None:
    """A script that reads the table takes a description for a column."""
    students = json.loads(run("list", "student", "--json")[1])
    assert {"group": "student", "name": "distil"}.items() <= students[1].items()
    assert {each["group"] for each in json.loads(run("list", "--json")[1])} >= {"teacher", "loss", "debug"}


def test_doctor(monkeypatch: pytest.MonkeyPatch) -> None:
    """Looking at a broken machine fails on what is broken, or waits for a network that is not there."""
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    code, out, _ = run("doctor", "--json")
    assert code == 0
    found = json.loads(out)
    assert found["versions"]["kdcli"]
    assert found["extras"]["cpu"] == []
    assert "fp32" in found["fast_dtypes"]
    assert (found["hub"]["reachable"], bool(found["hub"]["reason"])) == (False, True)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setitem(sys.modules, "torch", None)  # it cannot be imported
    code, out, _ = run("doctor")
    assert code == 0
    require_words(
        out, "HF_HUB_OFFLINE", "KDCLI_CACHE_DIR", "torch cannot be imported", "next: kdcli init FILE"
    )


@pytest.mark.parametrize("name", ["eval.json", ""])
@pytest.mark.parametrize("command", ["predict", "chat", "export", "eval", "compare"])
def test_the_directory_of_an_evaluation_is_no_run(tmp_path: Path, command: str, name: str) -> None:
    """It is called damaged, or a run that `kdcli distill` goes on with, which would train into it."""
    scored = make_run(tmp_path / "run")
    folder = make_result(tmp_path / "scored", "eval", scored)
    if not name:  # it was interrupted
        (folder / "eval.json").unlink()
    code, out, err = run(command, str(folder), *(["text"] if command == "predict" else []))
    assert (code, out) == (2, "")
    require_words(err, str(folder), "kdcli eval", str(scored))
    assert "damaged" not in err
    assert "distill" not in err


@pytest.mark.parametrize("command", ["predict", "export", "eval"])
def test_the_directory_of_an_export_is_no_run(tmp_path: Path, command: str) -> None:
    """A job of a sweep of exports has a config of its own, which is called a damaged one of a run."""
    exported = make_run(tmp_path / "run")
    folder = make_result(tmp_path / "job", "export", exported)
    code, out, err = run(command, str(folder), *(["text"] if command == "predict" else []))
    assert (code, out) == (2, "")
    require_words(err, str(folder), "kdcli export", str(exported), f"artifact={folder}")
    inside = exported / "export" / "cpu"
    inside.mkdir(parents=True)
    (inside / "export.json").write_text("{}")
    if command != "predict":  # which runs the files of an export
        code, out, err = run(command, str(inside))
        assert (code, out) == (2, "")
        require_words(err, str(inside), "kdcli export", str(exported), f"artifact={inside}")


def test_the_directory_of_a_sweep_is_no_run(tmp_path: Path) -> None:
    """Eval and export call it a directory that kdcli did not make."""
    (tmp_path / "multirun.yaml").write_text("hydra: {}\n")
    for command in ("eval", "export"):
        code, out, err = run(command, str(tmp_path))
        assert (code, out) == (2, "")
        require_words(err, str(tmp_path), "sweep", "one of its runs")


def test_json_is_for_one_run_and_a_run_may_have_any_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Several JSON texts follow each other on stdout; and a run directory called run passes for `run=`."""
    monkeypatch.chdir(tmp_path)
    make_run(tmp_path / "run")
    for command, options in (("eval", ["dataset=csv", "dataset.path=x.csv"]), ("export", ["hardware=cpu"])):
        code, out, err = run(command, "run", "measure.latency_runs=1,2", "-m", "--json")
        assert (code, out) == (2, "")
        require_words(err, "--json", "-m")
        err = run(command, "run", *options, "format=xml")[2]
        require_words(err, "format", "'xml'", "'table'", "'json'")
        assert "--json" in run(command, "--help")[1]
