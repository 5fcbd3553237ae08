"""Every YAML file that is shipped composes, binds and is listed; a user's own folder is as good as ours."""

from __future__ import annotations

import inspect
import json
import os
import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file
from support.commands import naming, require_one_message, require_words

from kdcli.config.check import check, defaults
from kdcli.config.components import locate
from kdcli.config.index import ConfigKey, keys, keys_below
from kdcli.config.paths import conf_dir
from kdcli.config.schema import COMMANDS
from kdcli.launch.choices import list_groups
from kdcli.launch.hydra_errors import config_leaves
from kdcli.launch.run import launch

FILES = sorted(path.relative_to(conf_dir()) for path in conf_dir().rglob("*.yaml"))
OPTIONS = [path for path in FILES if len(path.parts) == 2]
USED_BY = {"dataset": ("distill", "eval"), "hardware": ("distill", "export")}
SUBJECT = {"distill": [], "eval": ["model=somewhere"], "export": ["run=somewhere"]}
"""What a command must be given."""
Compose = Callable[..., dict[str, Any]]


def plain(path: Path) -> dict[str, Any]:
    return yaml.safe_load((conf_dir() / path).read_text(encoding="utf-8")) or {}


def components(tree: Any) -> Iterator[dict[str, Any]]:
    if isinstance(tree, dict):
        if "_target_" in tree:
            yield tree
        for value in tree.values():
            yield from components(value)


@pytest.fixture
def compose(capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Compose:
    """What `kdcli COMMAND … --cfg job --resolve` prints; it must make nothing."""
    monkeypatch.chdir(tmp_path)

    def run(command: str, *overrides: str) -> dict[str, Any]:
        assert launch(command, list(overrides), cfg="job", resolve=True) == 0, capsys.readouterr().err
        assert list(tmp_path.iterdir()) == []
        return yaml.safe_load(capsys.readouterr().out)

    return run


def needed(group: str, tree: dict[str, Any]) -> list[str]:
    return [f"{group}.{key}=somewhere" for key, value in tree.items() if value == "???"]


@pytest.mark.parametrize(
    ("command", "path"),
    [
        pytest.param(command, path, id=f"{command} {path}")
        for path in OPTIONS
        for command in USED_BY.get(path.parts[0], ("distill",))
    ],
)
def test_every_option_composes_and_binds(compose: Compose, command: str, path: Path) -> None:
    """A YAML file that nobody composes stops working when the class that it names changes."""
    group, option = path.parts[0], path.stem
    tree = compose(command, f"{group}={option}", *needed(group, plain(path)), *SUBJECT[command])
    check(COMMANDS[command], tree)
    own = plain(path)
    where = tree if group in ("debug", "experiment", "recipe") else tree[group]
    for key, value in own.items():
        if not isinstance(value, dict) and key != "defaults" and value != "???":
            assert where[key] == value, f"{key} of {path} does not reach the run"
    require_indexed(tree, keys(command, {group: option}), given={"model", "run"})


def require_indexed(tree: dict[str, Any], known: list[ConfigKey], given: set[str]) -> None:
    """Refuse an index that lacks a key of a composed config, or holds another default than Hydra composes.

    Args:
        given: the keys that were given in place of their defaults.
    """
    defaults = {key.name: key for key in known}
    for name, value in config_leaves(tree):
        if name in defaults:
            key = defaults[name]
            if name not in given and not key.required and not key.is_section and "${" not in str(key.default):
                assert key.default == value, name
        else:
            assert keys_below(name, known) or any(name.startswith(f"{key}.") for key in defaults), name


@pytest.mark.parametrize("option", [path for path in OPTIONS if path.parts[0] != "debug"], ids=str)
@pytest.mark.long
def test_every_option_composes_with_smoke(compose: Compose, option: Path) -> None:
    """A rehearsal that works for the default alone rehearses nothing."""
    group = option.parts[0]
    tree = compose("distill", f"{group}={option.stem}", "debug=smoke", *needed(group, plain(option)))
    assert (tree["smoke"], tree["trainer"]["max_steps"], tree["teacher"]["trainer"]["max_steps"]) == (
        True,
        6,
        4,
    )
    assert tree["dataset"]["limit"] == 256


@pytest.mark.parametrize("command", COMMANDS)
def test_every_key_of_the_schema_can_be_overridden(compose: Compose, command: str) -> None:
    """A key that must be given with "+" is a key that nobody finds."""
    tree = compose(command, *SUBJECT[command])

    def missing(of: dict[str, Any], there: dict[str, Any], at: str = "") -> list[str]:
        lost = [f"{at}{key}" for key in of if key not in there]
        inner = [key for key in of if isinstance(of[key], dict) and isinstance(there.get(key), dict)]
        return lost + [line for key in inner for line in missing(of[key], there[key], f"{at}{key}.")]

    assert not missing(defaults(COMMANDS[command]), tree)


def test_every_key_of_a_stage_can_be_overridden(compose: Compose) -> None:
    """A stage's file says only in what it differs from the run."""
    given = ["stages.general.trainer.max_steps=8", "stages.task.trainer.warmup=0.5"]
    tree = compose("distill", "experiment=distilbert", "teacher=minilm", *given)
    assert tree["stages"]["general"]["trainer"]["max_steps"] == 8
    assert tree["stages"]["general"]["trainer"]["epochs"] == 3
    assert tree["stages"]["task"]["trainer"]["warmup"] == 0.5


@pytest.mark.parametrize("path", [path for path in OPTIONS if list(components(plain(path)))], ids=str)
def test_every_argument_stands_in_the_yaml(path: Path) -> None:
    """An argument that is left to the constructor cannot be seen in `--cfg job`, nor be overridden without "+"."""
    for node in components(plain(path)):
        takes = inspect.signature(locate(node["_target_"])).parameters.values()
        names = {each.name for each in takes if each.kind not in (each.VAR_POSITIONAL, each.VAR_KEYWORD)}
        assert names <= node.keys(), f"{path}: {node['_target_']}"


def test_list_names_every_option_with_a_description(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A choice that is not listed is not there; one without a description is a riddle."""
    monkeypatch.delenv("KDCLI_CONFIG_DIR", raising=False)  # a command with --config-dir leaves it set
    assert list_groups(None, None) == 0
    _, *lines, last = capsys.readouterr().out.splitlines()
    assert last == "next: kdcli list GROUP"
    rows = [line.split(maxsplit=2) for line in lines]
    assert {(group, name) for group, name, _ in rows} == {(path.parts[0], path.stem) for path in OPTIONS}
    assert all(len(about.strip()) > 10 and not about.startswith(("@", "#")) for _, _, about in rows)
    assert list_groups("student", None) == 0
    title, _, *lines, last = capsys.readouterr().out.splitlines()
    assert last == "next: kdcli distill student=NAME"
    assert title.startswith("student: The small model.")
    names = [line.split()[0] for line in lines]
    assert names == sorted(path.stem for path in OPTIONS if path.parts[0] == "student")


def test_list_of_no_group(capsys: pytest.CaptureFixture[str]) -> None:
    """An empty list for a typo."""
    assert list_groups("studnet", None) == 2
    require_words(require_one_message(capsys.readouterr().err), "studnet", "student", "dataset", "trainer")


# ---- a folder of one's own ---------------------------------------------------------------------------


@pytest.fixture
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A user's folder: a loss class of his own, with its YAML file. What kdcli does to this process is undone."""
    for name in ("KDCLI_CONFIG_DIR", "PYTHONPATH"):
        monkeypatch.setenv(name, os.environ.get(name, ""))
    monkeypatch.setattr(sys, "path", list(sys.path))
    folder = tmp_path / "mine"
    (folder / "loss").mkdir(parents=True)
    (folder / "experiment").mkdir()
    (folder / "squares.py").write_text(
        "from torch import Tensor\n"
        "from kdcli.losses.base import Loss\n"
        "from kdcli.signals import Signal\n\n\n"
        "class Squares(Loss):\n"
        "    def __init__(self, scale: float = 1.0):\n"
        "        super().__init__()\n"
        "        self.scale = scale\n\n"
        "    def forward(self, student: Signal, teacher: Signal | None, labels: Tensor) -> Tensor:\n"
        "        return self.scale * (student.logits - teacher.logits).square().mean(-1)\n"
    )
    (folder / "loss" / "squares.yaml").write_text(
        "# Squared difference of the logits\nsquares:\n  _target_: squares.Squares\n  weight: 1.0\n  scale: 0.5\n"
    )
    (folder / "experiment" / "short.yaml").write_text(
        "# @package _global_\n# Two steps\ndefaults:\n  - override /loss: squares\ntrainer:\n  max_steps: 2\n"
    )
    return folder


def test_own_class_from_an_own_folder(
    own: Path, small: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A loss of one's own that needs a fork of kdcli."""
    run = tmp_path / "run"
    options = [
        *small,
        "measure=null",
        "control=false",
        "debug=smoke",
        "loss=squares",
        "loss.squares.scale=0.25",
    ]
    assert launch("distill", [*options, f"hydra.run.dir={run}"], config_dir=own) == 0, capsys.readouterr().err
    report = json.loads((run / "report.json").read_text())
    assert report["loss"] == {"squares": {"weight": 1.0, "scale": 0.25}}
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert [line["loss/squares"] > 0 for line in lines if "lr" in line] == [True] * 3


def test_own_class_is_checked_like_ours(
    own: Path, small: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    """A typo in an argument of one's own class passes in silence."""
    options = [*small, "loss=squares", "+loss.squares.scael=2", "loss.squares.scale=wide"]
    assert launch("distill", options, config_dir=own) == 2
    err = capsys.readouterr().err
    for words in (
        ("loss.squares.scael", "squares.Squares", "scale"),
        ("loss.squares.scale", "'wide'", "number"),
    ):
        assert any(naming(*words).search(line) for line in err.splitlines()), err


def test_own_folder_by_the_environment(
    own: Path,
    compose: Compose,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """An option that must be typed each time; an experiment that cannot choose from one's own groups."""
    monkeypatch.setenv("KDCLI_CONFIG_DIR", str(own))
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert launch("distill", ["experiment=short"], cfg="job") == 0
    tree = yaml.safe_load(capsys.readouterr().out)
    assert list(tree["loss"]) == ["squares"]
    assert tree["trainer"]["max_steps"] == 2
    assert list_groups("loss", None) == 0
    assert re.search(r"squares +Squared difference of the logits", capsys.readouterr().out)


def test_own_file_named_like_ours(own: Path, small: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    """Hydra takes the first of two files with one name, in silence."""
    (own / "loss" / "soft_hard.yaml").write_text("x: 1\n")
    assert launch("distill", small, config_dir=own) == 2
    err = capsys.readouterr().err
    require_words(require_one_message(err), str(own / "loss" / "soft_hard.yaml"), "packaged", "name")
    assert list_groups(None, own) == 2


@pytest.mark.parametrize("overrides", [["student=local"], ["student=tiny"]], ids=lambda value: value[0])
def test_student_from_a_checkpoint(
    small: list[str], body: Path, tmp_path: Path, overrides: list[str]
) -> None:
    """A `student.path` that is ignored: the student has random weights, or a shape that is not the checkpoint's."""
    run = tmp_path / "run"
    base = [word for word in small if not word.startswith("student.")]
    options = [
        *base,
        *overrides,
        f"student.path={body}",
        "measure=null",
        "student.allow_same_size=true",
        "control=false",
        "trainer.max_steps=1",
    ]
    assert launch("distill", [*options, "trainer.learning_rate=1e-9", f"hydra.run.dir={run}"]) == 0
    before, after = load_file(body / "model.safetensors"), load_file(run / "student" / "model.safetensors")
    assert before
    assert all(torch.allclose(before[key], after[f"bert.{key}"], atol=1e-6) for key in before)
    assert json.loads((run / "env.json").read_text())["student"]["path"] == str(body)
