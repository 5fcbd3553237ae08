"""Every old name still works, and a warning tells the new one."""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from support.commands import naming, require_words

from kdcli.config import renamed
from kdcli.config.components import locate
from kdcli.config.paths import conf_dir
from kdcli.errors import ConfigError
from kdcli.launch.argv import parse_overrides, written_keys
from kdcli.losses.base import Loss
from kdcli.losses.features import FeatureLoss
from kdcli.students.base import StudentInitializer
from kdcli.teachers.base import Teacher

TARGETS = [
    *(
        f"kdcli.hardware.{name}.{name.capitalize()}"
        for name in ["apple", "browser", "cpu", "cuda", "intel", "laptop", "mobile"]
    ),
    "kdcli.losses.attention.Attention",
    "kdcli.losses.embeddings.Embeddings",
    "kdcli.losses.forward_kl.ForwardKL",
    "kdcli.losses.hard_label.HardLabel",
    "kdcli.losses.hidden_states.HiddenStates",
    "kdcli.losses.jsd.JSD",
    "kdcli.losses.relations.Relations",
    "kdcli.losses.reverse_kl.ReverseKL",
    "kdcli.losses.skew_kl.SkewKL",
    "kdcli.losses.skew_reverse_kl.SkewReverseKL",
    "kdcli.losses.tvd.TVD",
    "kdcli.losses.uld.ULD",
    "kdcli.students.births.Births",
    "kdcli.students.encoder_decoder.EncoderDecoder",
    "kdcli.students.from_config.FromConfig",
    "kdcli.students.layers.Layers",
    "kdcli.students.lora.Lora",
    "kdcli.students.pretrained.Pretrained",
    "kdcli.students.pruned.Pruned",
    "kdcli.students.vocabulary.Vocabulary",
    "kdcli.teachers.local.LocalTeacher",
    "kdcli.teachers.openai.OpenAITeacher",
]
"""What a config of the release before could name."""
IMPORTS = {
    "kdcli.config.BirthStep": "kdcli.config.schema.InitializerStep",
    "kdcli.config.Checkpoint": "kdcli.config.types.CheckpointConfig",
    "kdcli.config.Count": "kdcli.config.types.Count",
    "kdcli.config.Fraction": "kdcli.config.types.Fraction",
    "kdcli.config.Rollout": "kdcli.config.schema.Rollout",
    "kdcli.config.Dataset": "kdcli.config.dataset.Dataset",
    "kdcli.hardware.base.Target": "kdcli.exporting.targets.base.Target",
    "kdcli.hardware.cpu.Cpu": "kdcli.exporting.targets.cpu.Cpu",
    "kdcli.losses.base.Divergence": "kdcli.losses.base.Divergence",
    "kdcli.losses.inside.InsideLoss": "kdcli.losses.features.FeatureLoss",
    "kdcli.models.Source": "kdcli.models.checkpoint.Checkpoint",
    "kdcli.signal.Inside": "kdcli.signals.Features",
    "kdcli.signal.Signal": "kdcli.signals.Signal",
    "kdcli.signal.TopKSignal": "kdcli.signals.TopKSignal",
    "kdcli.students.anatomy.Anatomy": "kdcli.students.pruning.anatomy.Anatomy",
    "kdcli.students.anatomy.carve": "kdcli.students.pruning.anatomy.carve",
    "kdcli.students.base.Birth": "kdcli.students.base.StudentInitializer",
    "kdcli.students.births.Births": "kdcli.students.composed.Composed",
    "kdcli.students.cut.Cut": "kdcli.students.pruning.base.PruningInitializer",
    "kdcli.teachers.openai.OpenAITeacher": "kdcli.teachers.remote.openai.OpenAITeacher",
}
"""What a user's own class could import, and where it is now."""
KEYS: list[tuple[dict[str, Any], dict[str, Any], list[str]]] = [
    ({"teacher": {"born": None}}, {"teacher": {"from_scratch": None}}, ["teacher.from_scratch"]),
    ({"teacher": {"stand_in": "a"}}, {"teacher": {}, "student": {"init_from": "a"}}, ["student.init_from"]),
    ({"teacher": {"stand_in": None}, "student": {}}, {"teacher": {}, "student": {}}, ["student.init_from"]),
    (
        {"teacher": {"_target_": "kdcli.teachers.openai.OpenAITeacher", "together": False}},
        {"teacher": {"_target_": "kdcli.teachers.remote.openai.OpenAITeacher", "n_per_request": 1}},
        ["kdcli.teachers.remote.openai.OpenAITeacher", "teacher.n_per_request"],
    ),
    (
        {"teacher": {"_target_": "kdcli.teachers.remote.openai.OpenAITeacher", "together": True}},
        {"teacher": {"_target_": "kdcli.teachers.remote.openai.OpenAITeacher", "n_per_request": None}},
        ["teacher.n_per_request"],
    ),
    ({"teacher": {"_target_": "mine.Teacher", "together": 1}},) * 2 + ([],),
    (
        {"student": {"_target_": "kdcli.students.births.Births", "births": ["layers"]}},
        {"student": {"_target_": "kdcli.students.composed.Composed", "initializers": ["layers"]}},
        ["kdcli.students.composed.Composed", "student.initializers"],
    ),
    (
        {"stages": {"a": {"student": {"_target_": "kdcli.students.composed.Composed", "births": ["layers"]}}}},
        {"stages": {"a": {"student": {"_target_": "kdcli.students.composed.Composed", "initializers": ["layers"]}}}},
        ["stages.a.student.initializers"],
    ),
    (
        {"dataset": {"clean": {"overlong": "drop", "script": True}, "truncation": None}},
        {"dataset": {"clean": {"script": True}, "truncation": "drop"}},
        ["dataset.truncation"],
    ),
    (
        {"dataset": {"clean": {"overlong": "refuse"}, "truncation": "drop"}},
        {"dataset": {"clean": {}, "truncation": None}},
        ["dataset.truncation"],
    ),
    (
        {"stages": {"a": {"dataset": {"clean": {"overlong": "drop"}}}, "b": {}}},
        {"stages": {"a": {"dataset": {"clean": {}, "truncation": "drop"}}, "b": {}}},
        ["stages.a.dataset.truncation"],
    ),
    ({"rollout": {"source": "dataset", "by": "teacher"}}, {"rollout": {"source": "teacher"}}, ["rollout.source"]),
    ({"rollout": {"keep": 0.5}}, {"rollout": {"keep_fraction": 0.5}}, ["rollout.keep_fraction"]),
    ({"rollout": {"pick": "nearest", "candidates": 4}}, {"rollout": {"candidates": 4}}, ["rollout.candidates"]),
    ({"rollout": "teacher", "stages": None, "teacher": {}},) * 2 + ([],),
]  # fmt: skip
"""Old configs, what they are now, and the new names that warnings tell."""


@pytest.fixture(autouse=True)
def fresh() -> Iterator[None]:
    renamed.reset_warnings()
    yield
    renamed.reset_warnings()


@pytest.mark.parametrize("old", TARGETS)
def test_classes_that_a_config_names(old: str) -> None:
    """A YAML of one's own that worked yesterday cannot be imported today."""
    assert locate(renamed.class_name(old)).__name__
    assert renamed.with_current_names({"a": [{"_target_": old}]})["a"][0]["_target_"] == renamed.class_name(
        old
    )


@pytest.mark.parametrize(("old", "new"), IMPORTS.items())
def test_what_a_users_class_imports(old: str, new: str, capsys: pytest.CaptureFixture[str]) -> None:
    """A class of one's own, written after the README of the release before, fails at its first line."""
    (module, _, name), (into, _, today) = old.rpartition("."), new.rpartition(".")
    found = getattr(importlib.import_module(module), name)
    assert found is getattr(importlib.import_module(into), today)
    getattr(importlib.import_module(module), name)
    err = capsys.readouterr().err
    assert err.count("warning: ") == (old != new)
    assert old == new or naming(old, new).search(err), err


def test_no_other_names_are_made_up() -> None:
    """A module that is found under every name hides a typo."""
    for name in ("kdcli.hardwares", "kdcli.students.cutt", "kdcli.hardware.nothing"):
        with pytest.raises(ModuleNotFoundError):
            importlib.import_module(name)
    for module, name in (
        ("kdcli.config", "Cuont"), ("kdcli.config", "count"), ("kdcli.students.cut", "Cute"), ("kdcli.students.base", "Births"),
        ("kdcli.models", "Sauce"),
    ):  # fmt: skip
        with pytest.raises(AttributeError, match=name):
            getattr(importlib.import_module(module), name)


@pytest.mark.parametrize(("old", "new", "told"), KEYS, ids=lambda value: "")
def test_keys(
    old: dict[str, Any], new: dict[str, Any], told: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    """A key that is unknown today, or one that is taken for an argument of a class of the user's own."""
    before = str(old)
    assert renamed.with_current_names(old) == new
    assert renamed.with_current_names(old, quiet=True) == new
    renamed.with_current_names(old)
    err = capsys.readouterr().err
    assert err.count("warning: ") == len(told), err
    require_words(err, *told)
    assert str(old) == before


def test_each_old_key_is_tested() -> None:
    """A key that is added to the table and to no test."""

    def leaves(tree: Any, path: str = "") -> Iterator[str]:
        for key, value in tree.items() if isinstance(tree, dict) else ():
            yield f"{path}.{key}".lstrip(".")
            yield from leaves(value, f"{path}.{key}".lstrip("."))

    given = {path for old, _, _ in KEYS for path in leaves(old)}
    assert all(any(renamed._matches(key.old, path) for path in given) for key in renamed.KEYS)
    assert {*renamed.CLASSES} <= {*IMPORTS, *TARGETS}


def test_words_of_the_command_line() -> None:
    """Hydra refuses a key that no YAML file has, before anything can tell its new name."""
    for word, added in (
        ("rollout.by=teacher", "++rollout.by=teacher"),
        ("+rollout.by=teacher", "++rollout.by=teacher"),
        ("stages.general.dataset.clean.overlong=drop", "++stages.general.dataset.clean.overlong=drop"),
        ("rollout.source=teacher", "rollout.source=teacher"),
        ("+rollout.bye=teacher", "+rollout.bye=teacher"),
    ):
        assert renamed.addable_override(word) == added
    assert written_keys(parse_overrides(["++rollout.keep=0.5"]), []) == {"rollout.keep_fraction": ""}
    with pytest.raises(ConfigError, match=naming("rollout.keep", "rollout.keep_fraction")):
        written_keys(parse_overrides(["++rollout.keep=0.5", "rollout.keep_fraction=0.4"]), [])


def test_options() -> None:
    """An old option that a file has taken since, or a new one that has none."""
    for old, new in renamed.OPTIONS.items():
        assert not (conf_dir() / f"{old}.yaml").exists()
        assert (conf_dir() / f"{new}.yaml").is_file()


def test_packaged_files_have_new_names() -> None:
    """A packaged file that warns of itself."""
    for path in conf_dir().rglob("*.yaml"):
        tree = yaml.safe_load(path.read_text()) or {}
        group = path.parent.name
        assert renamed.with_current_names({group: tree}, quiet=True) == {group: tree}, path
        assert renamed.with_current_names(tree, quiet=True) == tree, path


def test_members_of_a_users_classes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A class that defines `born` is abstract today: what made a student yesterday cannot be built."""
    (tmp_path / "parts_of_mine.py").write_text(
        "from kdcli.losses.inside import InsideLoss\n"
        "from kdcli.students.base import Birth\n"
        "from kdcli.teachers.base import Teacher\n\n\n"
        "class Own(Birth):\n"
        "    of_teacher = adapts = True\n"
        "    def kind(self): return 'kind'\n"
        "    def born(self, task, teacher, rows): return 'born'\n"
        "    def dress(self, model): return 'dressed'\n"
        "    def undress(self, model): return 'undressed'\n\n\n"
        "class Heir(Own):\n"
        "    def dress(self, model): return 'dressed otherwise'\n\n\n"
        "class Alike(InsideLoss):\n"
        "    inside = frozenset({'hidden_states'})\n"
        "    def between(self, student, teacher, pair): return pair\n\n\n"
        "class Host(Teacher):\n"
        "    def rows(self, examples, keep=None): return []\n"
        "    def look(self, examples, parts): return 'looked'\n"
        "    def narrow(self, classes): return 'narrowed'\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    own, heir, alike, host = (locate(f"parts_of_mine.{name}") for name in ("Own", "Heir", "Alike", "Host"))
    assert issubclass(own, StudentInitializer)
    assert issubclass(alike, FeatureLoss)
    assert issubclass(host, Teacher)
    made: Any = own()
    assert (made.initialize(None, None, None), made.prepare_for_training(None)) == ("born", "dressed")
    assert (made.architecture(), made.inherits_teacher, made.trains_adapters) == ("kind", True, True)
    assert heir().prepare_for_training(None) == "dressed otherwise"
    assert heir().merge_and_unload(None) == "undressed"
    assert alike.features == frozenset({"hidden_states"})
    assert alike("uniform").needs_teacher
    assert Loss.features == frozenset()
    teacher: Any = host()
    assert teacher.outputs([]) == []
    assert teacher.outputs_with_features([], frozenset()) == "looked"
    assert teacher.truncate_vocabulary(1) == "narrowed"
    err = capsys.readouterr().err
    for old, new in (("born", "initialize"), ("inside", "features"), ("look", "outputs_with_features")):
        require_words(err, f"{old} of", f"now {new}")
