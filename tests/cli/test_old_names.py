"""Configs, folders and runs of the release before this one, through the real command."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from safetensors.torch import load_file
from support.commands import naming, require_one_message, require_words

from kdcli.launch.run import launch

Distil = Callable[..., Path]
QUICK = ["control=false", "trainer.max_steps=4", "trainer.eval_steps=4"]
OLD_KEYS = (
    ("rollout", "source", "by"),
    ("rollout", "keep_fraction", "keep"),
    ("teacher", "from_scratch", "born"),
)
OLD_CLASSES = (("kdcli.exporting.targets.", "kdcli.hardware."),)


FIRST = """
from kdcli.config import Count
from kdcli.students.anatomy import Anatomy, carve
from kdcli.students.cut import Cut


class First(Cut):
    def __init__(self, num_hidden_layers: Count = 2):
        self.count = num_hidden_layers

    def cut(self, model, tokenizer, task, rows):
        anatomy = Anatomy(model)
        return carve(anatomy, [list(range(self.count)) for _ in anatomy.stacks]), tokenizer
"""
SIMILARITY = """
from torch.nn.functional import normalize
from kdcli.losses.inside import InsideLoss


class Similarity(InsideLoss):
    inside = frozenset({"hidden_states"})

    def between(self, student, teacher, pair):
        units = [
            normalize(model.hidden_states[layer].float(), dim=-1)
            for model, layer in zip((student, teacher), self.pairs[pair])
        ]
        ours, theirs = (unit @ unit.transpose(1, 2) for unit in units)
        apart = (ours - theirs).square().masked_fill(~student.pairs, 0)
        return apart.sum(-1) / student.pairs.sum(-1).clamp(min=1)
"""
HELLINGER = """
from kdcli.losses.base import Divergence


class Hellinger(Divergence):
    def between(self, log_p, log_q):
        return 1 - ((log_p + log_q) / 2).exp().sum(-1)
"""


@pytest.fixture(autouse=True)
def own_path(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setenv("KDCLI_CONFIG_DIR", "")
    return


def age(run: Path, **changed: Any) -> None:
    """Rewrite what a run recorded as the release before would have."""
    path = run / ".hydra" / "config.yaml"
    tree = yaml.safe_load(path.read_text())
    for section, new, old in OLD_KEYS:
        tree[section][old] = tree[section].pop(new)
    del tree["student"]["init_from"], tree["dataset"]["truncation"]
    tree["teacher"]["stand_in"] = None
    tree["dataset"]["clean"]["overlong"] = "refuse"
    tree["rollout"]["pick"] = "likeliest"
    tree["rollout"] |= changed
    text = yaml.safe_dump(tree)
    for new, old in OLD_CLASSES:
        text = text.replace(new, old)
    path.write_text(text)


def test_an_old_run_continues(distil: Distil, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A run of days that an upgrade of kdcli makes worthless, or that goes on with another config than it began with."""
    run = distil("run", *QUICK)
    weights = load_file(run / "student" / "model.safetensors")
    report = (run / "report.json").read_text()
    age(run)
    distil("run", *QUICK)  # it is finished
    (run / "report.json").unlink()
    capsys.readouterr()
    distil("run", *QUICK)
    assert "warning: " not in capsys.readouterr().err
    again = load_file(run / "student" / "model.safetensors")
    assert all((again[name] == weights[name]).all() for name in weights)
    assert json.loads((run / "report.json").read_text())["verdict"] == json.loads(report)["verdict"]
    assert launch("eval", [f"run={run}", "measure=null", f"hydra.run.dir={tmp_path / 'scored'}"]) == 0
    assert launch("distill", [], rerun=run, cfg="job") == 0
    capsys.readouterr()
    (run / "report.json").unlink()
    distil("run", *QUICK, "seed=1", code=2)
    require_words(require_one_message(capsys.readouterr().err), "another config", "(seed)")
    age(distil("other", *QUICK, "smoke=true"), keep=0.5)
    (tmp_path / "other" / "report.json").unlink()
    distil("other", *QUICK, "smoke=true", code=2)
    require_words(require_one_message(capsys.readouterr().err), "another config", "(rollout.keep_fraction)")


def test_old_names_on_the_command_line_and_in_a_folder(
    small: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """One's own YAML files and scripts of the release before; and a warning that comes ten times."""
    folder = tmp_path / "own"
    (folder / "experiment").mkdir(parents=True)
    (folder / "experiment" / "mine.yaml").write_text(
        "# @package _global_\ndefaults:\n  - override /student: births\nstudent:\n  births: [layers]\n"
        "  steps:\n    layers:\n      _target_: kdcli.students.layers.Layers\n      num_hidden_layers: 1\n"
        "hardware:\n  _target_: kdcli.hardware.cpu.Cpu\n"
    )
    os.environ["KDCLI_CONFIG_DIR"] = str(folder)
    words = [word for word in small if not word.startswith("student.")]
    run = tmp_path / "run"
    own = ["experiment=mine", "rollout.keep=1.0", "measure=null", f"hydra.run.dir={run}"]
    code = launch("distill", [*words, *QUICK, *own])
    err = capsys.readouterr().err
    assert code == 0, err
    warnings = [line for line in err.splitlines() if line.startswith("warning: ")]
    for new in (
        "student=composed", "student.initializers", "kdcli.students.pruning.layers.Layers", "kdcli.exporting.targets.cpu.Cpu",
        "rollout.keep_fraction",
    ):  # fmt: skip
        assert sum(bool(naming(new).search(line)) for line in warnings) == 1, err
    recorded = yaml.safe_load((run / ".hydra" / "config.yaml").read_text())
    assert recorded["student"]["initializers"] == ["layers"]
    assert "keep" not in recorded["rollout"]
    assert "composed" in (run / "student" / "README.md").read_text()


def test_classes_after_the_old_readme(small: list[str], tmp_path: Path) -> None:
    """A class of one's own that was written after the README of the release before."""
    folder = tmp_path / "own"
    for name in ("student", "loss", "old_parts"):
        (folder / name).mkdir(parents=True)
    (folder / "old_parts" / "first.py").write_text(FIRST)
    (folder / "old_parts" / "similarity.py").write_text(SIMILARITY)
    (folder / "old_parts" / "hellinger.py").write_text(HELLINGER)
    (folder / "student" / "first.yaml").write_text("_target_: old_parts.first.First\nnum_hidden_layers: 1\n")
    (folder / "loss" / "hellinger.yaml").write_text(
        "soft_label:\n  _target_: old_parts.hellinger.Hellinger\n  weight: 1.0\n  temperature: 2.0\n"
    )
    words = [word for word in small if not word.startswith("student.")]
    similarity = [
        "+loss.similarity._target_=old_parts.similarity.Similarity",
        "+loss.similarity.layer_mapping=uniform",
    ]
    own = [
        "student=first",
        "loss=hellinger",
        *similarity,
        "measure=null",
        f"hydra.run.dir={tmp_path / 'run'}",
    ]
    assert launch("distill", [*words, *QUICK, *own], config_dir=folder) == 0
    report = json.loads((tmp_path / "run" / "report.json").read_text())
    assert set(report["loss"]) >= {"soft_label", "similarity"}
