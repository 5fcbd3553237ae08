"""YAML files of configs: what is wrong in one is told with its place; and what a task does not read, or what is of no use."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

import pytest
from faults.test_schema import whole
from support.commands import naming, require_one_message, require_words

from kdcli.config.check import check, defaults
from kdcli.config.dataset import READ_BY_ALL, Dataset
from kdcli.config.paths import conf_dir
from kdcli.config.remarks import remarks, unread
from kdcli.config.schema import Distill
from kdcli.config.tasks import packaged_specs
from kdcli.config.yaml_files import read_options, read_yaml
from kdcli.errors import ConfigError
from kdcli.launch.run import launch
from kdcli.rundir import leaves

HEAD = "# @package _global_\n"
BOMB = "a: &a [1,1,1,1,1,1,1,1,1,1]\n" + "".join(
    f"{now}: &{now} [{','.join([f'*{before}'] * 10)}]\n"
    for before, now in zip("abcdefgh", "bcdefghi", strict=True)
)


@pytest.mark.parametrize(
    ("data", "place", "word"),
    [
        (b"a:\n\tb: 1\n", "line 2, column 1", "tab"),
        (b"a: 1\nb: 2\na: 3\n", "line 3, column 1", "twice"),
        (b"a: 1\n---\nb: 2\n", "line 2, column 1", "second document"),
        ("a: 1\nb: é\n".encode("latin-1"), "line 2, column 4", "not UTF-8"),
        ("a: 1".encode("utf-16"), "line 1, column 1", "byte order mark"),
        (b"\xef\xbb\xbfa: 1", "line 1, column 1", "byte order mark"),
        (b"a: !!python/object:os.x {}", "line 1, column 4", "tag"),
        (b"a: !mine 1", "line 1, column 4", "tag"),
        (b"? [1]\n: 2", "line 1, column 3", "no text"),
        (b"on: 1", "line 1, column 1", "no text"),
        (b"a: &x 1\nb:\n  <<: *x\n", "line 1, column 4", "merging"),
        (b"a: &a [*a]", "line 1, column 8", "inside"),
        (b"a: *b", "line 1, column 4", "undefined alias"),
        (b"a: " + b"9" * 5000, "line 1, column 4", "digits"),
        (b"a: 0x" + b"f" * 5000, "line 1, column 4", "bits"),
        (b'a: "\\0"', "line 1, column 4", "U+0000"),
        (b"a: \x07", "line 1, column 4", "U+0007"),
        (BOMB.encode(), "line 5", "values"),
        (b"a: " + b"[" * 10_000, "line 1", "levels"),
    ],
    ids=lambda value: repr(value)[:20],
)
def test_where_a_file_is_wrong(tmp_path: Path, data: bytes, place: str, word: str) -> None:
    """A traceback of PyYAML, or gigabytes of aliases, in place of the line to look at."""
    path = tmp_path / "own.yaml"
    path.write_bytes(data)
    began = time.process_time()
    with pytest.raises(ConfigError) as caught:
        read_yaml(path)
    require_words(caught.value.message, str(path), place, word)
    assert time.process_time() - began < 5


def test_what_is_no_file(tmp_path: Path) -> None:
    """A pipe that is read waits for ever."""
    (tmp_path / "folder.yaml").mkdir()
    os.mkfifo(tmp_path / "pipe.yaml")
    for name in ("folder", "pipe"):
        with pytest.raises(ConfigError, match=naming(f"{name}.yaml", "regular file")):
            read_yaml(tmp_path / f"{name}.yaml")


def test_what_is_read(tmp_path: Path) -> None:
    """A strict reader that reads other values than OmegaConf does."""
    from omegaconf import OmegaConf

    path = tmp_path / "own.yaml"
    path.write_text(
        "a: &x {b: 1e3, c: 2024-01-01, d: .5, e: ~, f: 'yes'}\ng:\n  <<: *x\n  h: [1, 0x10, true]\n"
    )
    document = read_yaml(path)
    assert document.tree == OmegaConf.to_container(OmegaConf.load(path))
    assert document.at("g", "h", "1") == f"{path}, line 4, column 10"


@pytest.mark.parametrize(
    ("text", "line", "word"),
    [
        ("# @package\n", 1, "no header"),
        ("# @pakage _global_\n", 1, "no header"),
        ("# @package a..b\n", 1, "no header"),
        ("# About\n# @package _global_\n", 2, "first line"),
        ("5", 1, "mapping"),
        (HEAD + "defaults: x\n", 2, "list"),
        (HEAD + "defaults:\n  - 5\n", 3, "entry"),
        (HEAD + "defaults:\n  - override /loss: [1]\n", 3, "name of an option"),
        (HEAD + "defaults:\n  - override /loss: nope\n", 3, "loss/nope.yaml"),
        (HEAD + "defaults:\n  - /experiment: mine\n", 2, "include each other"),
    ],
)
def test_where_an_option_is_wrong(tmp_path: Path, text: str, line: int, word: str) -> None:
    """A RecursionError or an AssertionError of Hydra for a defaults list; a header that is ignored in silence."""
    path = tmp_path / "experiment" / "mine.yaml"
    path.parent.mkdir()
    path.write_text(text)
    with pytest.raises(ConfigError) as caught:
        read_options([tmp_path, conf_dir()], ["experiment/mine"])
    require_words(caught.value.message, str(path), f"line {line}, column", word)


def test_every_key_of_a_data_set_says_who_reads_it() -> None:
    """A new key that is ignored in silence by tasks that do not read it."""
    declared = READ_BY_ALL.union(*(spec.reads for _, spec in packaged_specs()))
    assert declared == Dataset.model_fields.keys()
    assert all(not spec.reads & READ_BY_ALL for _, spec in packaged_specs())
    assert all(spec.only_here.keys() <= spec.reads for _, spec in packaged_specs())
    known = {key for key, _ in leaves(defaults(Distill))}
    for _, spec in packaged_specs():
        assert all(any(f"{key}.".startswith(f"{each}.") for key in known) for each in spec.reads_of_run)


@pytest.mark.parametrize(
    ("dataset", "key", "wrong"),
    [
        ({"source": "a", "target": "b", "labels": ["x", "y"]}, "dataset.labels", True),
        ({"source": "a", "target": "b"}, "dataset.labels", False),
        ({"words": "a", "tags": "b", "text_pair": "c"}, "dataset.text_pair", True),
        ({"text_pair": "c"}, "dataset.text_pair", False),
        ({}, "teacher.top_k", False),
        ({}, "rollout.max_new_tokens", True),
        ({"label": None}, "rollout.max_new_tokens", False),
        ({"label": None}, "dataset.label", False),
    ],
)
def test_keys_that_the_task_does_not_read(dataset: dict[str, Any], key: str, wrong: bool) -> None:
    """A key that was typed and does nothing."""
    tree = whole("distill") | {"stages": {}}
    tree["dataset"] |= dataset
    tree["rollout"] |= {"max_new_tokens": 7}
    problems = list(unread(check(Distill, tree), [key]))
    assert [problem.startswith(key) for problem in problems] == [True] * wrong


def test_a_section_that_cannot_be_null(capsys: pytest.CaptureFixture[str]) -> None:
    """Whoever wants a section to be as it was is told that it is a mapping, and not what to type."""
    assert launch("distill", ["hub=null"]) == 2
    require_words(
        require_one_message(capsys.readouterr().err), "hub = None", "mapping of keys to values", "~hub"
    )
    assert launch("distill", ["~hub"], cfg="job") == 0


def test_a_run_directory_may_have_any_name(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A folder that is called like the key of a class is refused as a class."""
    for word in ("hydra.run.dir", "hydra.sweep.dir"):
        assert launch("distill", [f"{word}={tmp_path / 'my_target_run'}"], cfg="job") == 0
        capsys.readouterr()
        for value in ("{_target_: os.getcwd}", "[_target_]", "'${oc.decode:\"{_target_: os.getcwd}\"}'"):
            assert launch("distill", [f"{word}={value}"], cfg="job") == 2
            require_words(require_one_message(capsys.readouterr().err), word)


@pytest.mark.parametrize("place", ["typed", "in a file"])
@pytest.mark.parametrize(
    ("dataset", "key", "value"),
    [("parallel", "dataset.labels", "[a, b]"), ("conll", "dataset.text_pair", "other")],
)
def test_a_key_that_the_task_does_not_read_is_refused(
    dataset: str,
    key: str,
    value: str,
    place: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """The labels of a translator, or the second text of a tagger, in a command or a config of the user's own: they change nothing, in silence."""
    monkeypatch.setenv("KDCLI_CONFIG_DIR", "")  # which a folder of the user's own sets
    chosen = f"{key}={value.replace(' ', '')}"
    if place != "typed":
        chosen, file = "experiment=mine", tmp_path / "experiment" / "mine.yaml"
        file.parent.mkdir()
        file.write_text(
            f"# @package _global_\n{key.partition('.')[0]}:\n  {key.partition('.')[2]}: {value}\n"
        )
    words = [f"dataset={dataset}", "dataset.path=rows", chosen, f"hydra.run.dir={tmp_path / 'run'}"]
    assert launch("distill", words, config_dir=tmp_path if place != "typed" else None) == 2
    require_words(require_one_message(capsys.readouterr().err), key, "does not read", "leave it out")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("key", "value", "effect"),
    [
        ("dataset.max_length", 1, "only special tokens"),
        ("trainer.dropout", 1, "learns nothing"),
        ("trainer.max_grad_norm", 1e-320, "almost nothing"),
        ("trainer.learning_rate", 5e-324, "nothing is learned"),
        ("teacher.trainer.dropout", 1, "learns nothing"),
        ("loss.soft.temperature", 1e-30, "almost no gradient"),
        ("loss.soft.temperature", 1e5, "almost nothing to learn"),
        ("loss.soft.weight", 1e-30, "almost nothing"),
        ("student.dropout", 1, "learns nothing"),
    ],
)
def test_what_is_of_no_use_is_a_warning(key: str, value: float, effect: str) -> None:
    """A run of hours that could learn nothing, and that nobody warned of."""
    tree = whole("distill") | {"stages": {}}
    assert remarks(check(Distill, tree)) == []
    *parents, last = key.split(".")
    node = tree
    for parent in parents:
        node = node[parent]
    node[last] = value
    [remark] = remarks(check(Distill, tree))
    assert remark.startswith(f"{key} = ")
    assert effect in remark


@pytest.mark.parametrize(
    ("override", "word"),
    [
        ("seed=range(0,0)", "no values"),
        ("seed=range(0,3,0)", "step"),
        ("seed=glob(*)", "no values"),
        ("seed=interval(0,1)", "interval"),
        ("seed=range(0,1000000000)", "2,000,000,000 points"),
        ("hydra.sweeper.max_batch_size=0", "at least 1"),
        ("hydra.sweep.subdir=same", "hydra.sweep.dir"),
    ],
)
def test_sweeps_that_cannot_be_run(
    override: str,
    word: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """A sweep that ends in a traceback, or that fills the memory with its points."""
    monkeypatch.chdir(tmp_path)
    began = time.process_time()
    assert launch("distill", [override, "trainer.warmup=0.1,0.2"], multirun=True) == 2
    require_words(capsys.readouterr().err, override.partition("=")[0], word)
    assert list(tmp_path.iterdir()) == []
    assert time.process_time() - began < 30


@pytest.mark.parametrize(
    "word",
    ["teacher=5", "dataset=true", "~trainer=1", "dataset=[{}]", "hydra.job.name=x", "hydra=5", f"seed={'9' * 5000}", "hydra.launcher._target_=os.getcwd",
     f"hydra.run.dir={'a' * 300}", f"dataset.labels=[{'a,' * 3000}a]", "trainer.epochs=1e18", "student.hidden_size=1000000000000",
     "student.num_hidden_layers=1000000000000", "measure.latency_runs=1e12", "measure.threads=1000000000000", "measure.latency_runs=1000000000000",
     "~teacher.vocab_size=a,b loss=null", "~metric", "~seeds"],
    ids=lambda word: word[:30],
)  # fmt: skip
def test_words_that_are_wrong(
    word: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Exceptions of Hydra and Python that reach the user as tracebacks."""
    monkeypatch.chdir(tmp_path)
    assert launch("distill", word.split()) == 2
    assert word.lstrip("~").partition("=")[0] in require_one_message(capsys.readouterr().err)
    assert list(tmp_path.iterdir()) == []
