"""A YAML file as the first word, a run directory as the first word, and `--out`."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from support.commands import refusal, require_words

from kdcli.launch.check import CheckOptions
from kdcli.launch.run import launch

Composed = Callable[..., dict[str, Any]]


@pytest.fixture
def composed(capsys: pytest.CaptureFixture[str]) -> Composed:
    """The config that words compose."""

    def compose(*words: str, command: str = "distill", **options: Any) -> dict[str, Any]:
        capsys.readouterr()
        assert launch(command, list(words), cfg="job", **options) == 0, capsys.readouterr().err
        tree: dict[str, Any] = yaml.safe_load(capsys.readouterr().out)
        return tree

    return compose


def nested(words: list[str]) -> dict[str, Any]:
    """Overrides as the mapping that a file holds."""
    return {key: yaml.safe_load(value) for key, _, value in (word.partition("=") for word in words)}


CONTENT = r"""
teacher: minilm
teacher.tune: true
student: mini
student.num_hidden_layers: 1
dataset:
  path: tickets.csv
  text: it's the body, all of it
  label: cat
  labels: [yes please, "no"]
  replace: {'https?://\S+': '<url>', '(a|b)\\': "it's \\1"}
trainer:
  epochs: 3
  learning_rate: 1e-4
loss.soft_label: {temperature: 2}
hardware.budget.max_bytes: 5000000
rollout:
measure: null
hydra.run.dir: runs/tickets
"""


def test_only_a_typed_path_is_answered_with_its_group(
    composed: Composed, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Each run of a config that `kdcli init` wrote begins with a line on a key that it lacks on purpose."""
    monkeypatch.chdir(tmp_path)
    Path("tickets.csv").write_text("text,label\n")
    Path("kdcli.yaml").write_text("dataset:\n  path: tickets.csv\n")
    logs = []
    for words in (["kdcli.yaml"], ["kdcli.yaml", "seed=1"], ["dataset.path=tickets.csv"]):
        assert launch("distill", words, cfg="job") == 0
        captured = capsys.readouterr()
        assert yaml.safe_load(captured.out)["dataset"]["format"] == "auto"
        logs.append("dataset=csv" in captured.err)
    assert logs == [False, False, True]


def test_a_file_says_what_typed_words_say(
    composed: Composed, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A key of the file that is lost, or a value that Hydra's grammar reads otherwise than YAML, trains something else than the file says."""
    monkeypatch.chdir(tmp_path)
    Path("kdcli.yaml").write_text(CONTENT)
    tree = composed("kdcli.yaml")
    data = tree["dataset"]
    assert data["text"] == "it's the body, all of it"
    assert data["labels"] == ["yes please", "no"]
    assert data["replace"] == {r"https?://\S+": "<url>", r"(a|b)\\": r"it's \1"}
    assert (data["path"], data["format"]) == ("tickets.csv", "auto")
    assert (tree["teacher"]["tune"], tree["student"]["num_hidden_layers"]) == (True, 1)
    assert (
        tree["student"]["num_attention_heads"] == composed("student=mini")["student"]["num_attention_heads"]
    )
    assert tree["trainer"]["learning_rate"] == 1e-4
    assert tree["loss"]["soft_label"]["temperature"] == 2
    assert tree["loss"]["soft_label"]["_target_"]
    assert tree["measure"] is None
    assert tree["hardware"]["budget"]["max_bytes"] == 5_000_000
    typed = composed("kdcli.yaml", "student=tiny", "trainer.epochs=4", "student.num_hidden_layers=2")
    assert (typed["trainer"]["epochs"], typed["student"]["num_hidden_layers"]) == (4, 2)
    assert typed["student"]["hidden_size"] == composed("student=tiny")["student"]["hidden_size"]
    assert typed["dataset"] == data


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("seed: 1\ntrainer:\n  epohs: 2\n", ["trainer.epohs", "epochs", "line 3", "column 3"]),
        ("studnt: tiny\n", ["studnt", "student", "line 1"]),
        ("seed: 1\nstudent: tinny\n", ["student=tinny", "tiny", "line 2", "column 1"]),
        ("trainer: {epochs: many}\n", ["trainer.epochs", "line 1", "column 11"]),
        ("teacher.tun: true\n", ["teacher.tun", "tune", "line 1"]),
        ("hydra: {job: {name: x}}\n", ["hydra.job.name", "line 1", "column 15"]),
        ("trainer: [1\n", ["line 2", "column 1"]),
        ("- 1\n", ["line 1", "mapping"]),
        ("student: 3\n", ["student", "line 1", "kdcli list student"]),
        ("defaults: [csv]\n", ["defaults", "--config-dir"]),
        ("dataset.replace: {'^a': b}\n", ["^a", "--config-dir"]),
    ],
)
def test_what_is_wrong_in_a_file_has_a_position(
    content: str, words: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A misspelt key of a long file that is searched for by hand, or that is ignored."""
    file = tmp_path / "kdcli.yaml"
    file.write_text(content)
    require_words(refusal(capsys, "distill", [str(file)]), "kdcli.yaml", *words)


def test_relative_paths_are_those_of_the_working_directory(
    composed: Composed, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A file that lies beside the config is reported as missing, without a word on where it was looked for and what to write."""
    (tmp_path / "project").mkdir()
    (tmp_path / "project" / "kdcli.yaml").write_text("dataset:\n  path: data.csv\n")
    (tmp_path / "project" / "data.csv").write_text("text,label\n")
    monkeypatch.chdir(tmp_path)
    message = refusal(capsys, "distill", ["project/kdcli.yaml"])
    require_words(message, "line 2", "dataset.path", "project/data.csv", "working directory")
    monkeypatch.chdir(tmp_path / "project")
    assert composed("kdcli.yaml")["dataset"]["path"] == "data.csv"
    assert composed("../project/kdcli.yaml")["dataset"]["path"] == "data.csv"


@pytest.mark.parametrize(
    ("command", "words", "named"),
    [
        ("distill", ["data.csv"], ["data.csv", "kdcli init data.csv", "dataset.path=data.csv"]),
        ("distill", ["."], ["--rerun .", "--out ."]),
        ("distill", ["nowhere.yaml"], ["nowhere.yaml", "check the path"]),
        ("distill", ["seed=1", "kdcli.yaml"], ["kdcli.yaml", "KEY=VALUE"]),
        ("eval", ["nowhere"], ["nowhere", "kdcli eval RUN"]),
        ("eval", ["data.csv"], ["artifact=data.csv"]),
        ("eval", [".", "run=elsewhere"], ["run=elsewhere"]),
        ("export", ["nowhere", "hardware=cpu"], ["nowhere", "kdcli export RUN"]),
        ("export", ["."], [".hydra/config.yaml"]),
        ("eval", ["kdcli.yaml"], ["teacher", "line 1", "kdcli distill"]),
    ],
)
def test_a_first_word_that_is_no_key(
    command: str,
    words: list[str],
    named: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """`X is not KEY=VALUE` leaves a user who typed a path with nothing to do."""
    monkeypatch.chdir(tmp_path)
    Path("data.csv").write_text("text,label\n")
    Path("kdcli.yaml").write_text("teacher: minilm\n")
    require_words(refusal(capsys, command, words), *named)


def test_a_run_of_a_file(
    small: list[str],
    composed: Composed,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    points_here: None,
) -> None:
    """A run that a file described must be recorded, continued, repeated and swept over as one that was typed."""
    file, run, other = tmp_path / "kdcli.yaml", tmp_path / "run", tmp_path / "other"
    brief = ["control=false", "trivial_baseline=false", "measure=null", "trainer.max_steps=2", "smoke=true"]
    content = nested([*small, *brief]) | {"hardware": "intel", "hardware.budget.max_bytes": 10**9}
    del content["measure.latency_runs"], content["measure.throughput_seconds"]
    file.write_text(yaml.safe_dump(content, sort_keys=False))
    assert launch("distill", [str(file)], out=run) == 0, capsys.readouterr().err
    assert launch("distill", [str(file), f"hydra.run.dir={run}"]) == 0
    assert "is finished" in capsys.readouterr().out
    light = CheckOptions(with_models=False, as_json=True)
    assert launch("distill", [str(file)], check=light, out=run) == 0
    checked = json.loads(capsys.readouterr().out)
    assert checked["run_directory"] == {"path": str(run), "state": "finished"}
    assert checked["next"] == f"kdcli export {run}"
    assert (checked["rows"]["train"], checked["phases"][-2]["steps"]) == (440, 2)
    assert launch("distill", [str(file), "seed=1,2"], multirun=True, check=CheckOptions(False)) == 0
    require_words(capsys.readouterr().out, "seed=1:", "seed=2:", "440 train", "seed=1,2 -m")
    require_words(refusal(capsys, "distill", [str(file), "seed=1"], out=run), "another config", "seed")
    message = refusal(capsys, "distill", [str(file), f"hydra.run.dir={other}"], out=run)
    require_words(message, "--out", f"hydra.run.dir={other}")
    require_words(refusal(capsys, "distill", [str(file)], rerun=run), "--rerun", "kdcli.yaml")
    again = composed(rerun=run)
    assert again == composed(str(file))
    assert composed(str(run), command="export")["hardware"]["budget"]["max_bytes"] == 10**9
    of_run = tmp_path / "eval.yaml"
    of_run.write_text(yaml.safe_dump({"run": str(run), "split": "validation", "measure": None}))
    assert composed(str(of_run), command="eval")["dataset"] == again["dataset"]
    of_run.write_text(yaml.safe_dump({"run": str(run)}))
    assert composed(str(of_run), command="export")["run"] == str(run)
    assert launch("eval", [str(run), "measure=null", "format=json"], out=other) == 0
    shown = json.loads(capsys.readouterr().out)
    assert shown == json.loads((other / "eval.json").read_text())
    assert launch("distill", [str(file), "seed=1,2"], multirun=True, out=tmp_path / "sweep") == 0
    reports = [tmp_path / "sweep" / name / "report.json" for name in "01"]
    assert all(report.is_file() for report in reports)


@pytest.mark.parametrize("text", ["", "# nothing\n"])
def test_a_file_without_keys_sets_none(composed: Composed, tmp_path: Path, text: str) -> None:
    """A file whose keys are all commented out is answered with a key that nobody wrote."""
    (tmp_path / "own.yaml").write_text(text)
    assert composed(str(tmp_path / "own.yaml")) == composed()


@pytest.mark.parametrize(
    ("text", "key"),
    [("'': 1\n", "''"), ("1: 2\n", "1"), ("trainer:\n  2: 1\n", "2"), ("trainer..x: 1\n", "'trainer..x'")],
)
def test_keys_that_are_no_names(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], text: str, key: str
) -> None:
    """The message quotes an override that nobody wrote."""
    (tmp_path / "own.yaml").write_text(text)
    message = refusal(capsys, "distill", [str(tmp_path / "own.yaml")])
    require_words(message, "own.yaml", f"line {len(text.splitlines())}", key, "kdcli keys")
    assert "++" not in message
