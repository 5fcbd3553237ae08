"""What a config folder and words say of Hydra's own node: its launcher, its sweeper and its callbacks, which Hydra creates by itself."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from support.commands import refusal, require_words

from kdcli.errors import ConfigError

Refused = Callable[..., str]
BASIC_LAUNCHER = "hydra._internal.core_plugins.basic_launcher.BasicLauncher"
BASIC_SWEEPER = "hydra._internal.core_plugins.basic_sweeper.BasicSweeper"
COPY = "{_target_: shutil.copy, src: here.txt, dst: canary}"
FILES = {
    "hydra/launcher/nested.yaml": f"_target_: {BASIC_LAUNCHER}\nx: {COPY}\n",
    "hydra/launcher/listed.yaml": f"_target_: {BASIC_LAUNCHER}\nx: [1, {COPY}]\n",
    "hydra/launcher/copied.yaml": f"_target_: {BASIC_LAUNCHER}\nx: ${{teacher.parameters}}\n",
    "hydra/launcher/other.yaml": "_target_: shutil.copy\nsrc: here.txt\ndst: canary\n",
    "hydra/launcher/none.yaml": "x: 1\n",
    "hydra/launcher/more.yaml": f"_target_: {BASIC_LAUNCHER}\njobs: 1\n",
    "hydra/sweeper/nested.yaml": f"_target_: {BASIC_SWEEPER}\nmax_batch_size: null\nparams: {{x: {COPY}}}\n",
    "hydra/sweeper/points.yaml": f"_target_: {BASIC_SWEEPER}\nmax_batch_size: null\nparams: {{trainer.epochs: '1,2'}}\n",
    "experiment/headed.yaml": f"# @package hydra.callbacks\na: {COPY}\nb: {{_target_: builtins.nope}}\n",
    "experiment/logging.yaml": f"# @package hydra.job_logging\nhandlers: {{a: {COPY}}}\n",
    "experiment/chosen.yaml": "# @package _global_\ndefaults:\n  - override /hydra/launcher: nested\n",
    "experiment/packaged.yaml": "# @package _global_\ndefaults:\n  - /loss@hydra.callbacks: mine\n",
    "experiment/number.yaml": "# @package _global_\nhydra: 5\n",
    "experiment/indirect.yaml": "# @package _global_\ndefaults:\n  - override /loss: launcher\n",
    "experiment/twice.yaml": "# @package _global_\ndefaults:\n  - /loss: null\n",
    "experiment/elsewhere.yaml": "# @package _global_\ndefaults:\n  - /loss@hydra.run: jsd\n",
    "loss/launcher.yaml": "# @package hydra.launcher\n_target_: os.getcwd\n",
    "loss/mine.yaml": f"# A loss\na: {COPY}\n",
}


@pytest.fixture
def refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Refused:
    """Runs `kdcli distill` with the config folder; returns its message. Nothing was copied, no folder was made, and no model would be trained."""
    for name in ("KDCLI_CONFIG_DIR", "PYTHONPATH"):
        monkeypatch.setenv(name, os.environ.get(name, ""))
    monkeypatch.setattr(sys, "path", list(sys.path))
    module = __import__("kdcli.commands.distill", fromlist=["distill"])
    monkeypatch.setattr(module, "distill", lambda *_: 0)
    folder = tmp_path / "mine"
    for name, text in FILES.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
    (tmp_path / "here.txt").write_text("here")
    monkeypatch.chdir(tmp_path)

    def run(*words: str, **options: object) -> str:
        try:
            return refusal(capsys, "distill", words, config_dir=folder, **options)
        finally:
            assert sorted(path.name for path in tmp_path.iterdir()) == ["here.txt", "mine"]

    return run


@pytest.mark.parametrize(
    ("words", "named"),
    [
        (["hydra/launcher=nested"], ["hydra.launcher.x._target_", "nested.yaml", "line 2"]),
        (["hydra/launcher=listed"], ["hydra.launcher.x.1._target_"]),
        (["hydra/launcher=copied"], ["hydra.launcher.x", "'${teacher.parameters}'"]),
        (["hydra/launcher=other"], ["hydra.launcher._target_", "'shutil.copy'", "other.yaml", "line 1"]),
        (["hydra/launcher=none"], ["hydra.launcher"]),
        (["hydra/launcher=more"], ["hydra.launcher.jobs", "BasicLauncher"]),
        (["hydra/sweeper=nested"], ["hydra.sweeper.params.x._target_"]),
        (["hydra/sweeper=points"], ["hydra.sweeper.params"]),
        (["experiment=headed"], ["hydra.callbacks.a", "headed.yaml", "line 2"]),
        (["experiment=logging"], ["hydra.job_logging.handlers", "logging.yaml", "line 2"]),
        (["experiment=chosen"], ["hydra.launcher.x._target_"]),
        (["experiment=packaged"], ["hydra.callbacks"]),
        (["experiment=number"], ["hydra", "5", "number.yaml", "line 2"]),
        (["+loss@hydra.callbacks=mine"], ["hydra.callbacks"]),
        (["+loss@hydra.job_logging=mine"], ["hydra.job_logging"]),
    ],
)
def test_hydra_creates_nothing_from_a_config_folder(
    refused: Refused, words: list[str], named: list[str]
) -> None:
    """A config folder that somebody sent runs any function of any package, once a sweep starts."""
    for swept, multirun in ((["seed=1,2"], True), ([], False)):
        require_words(refused(*swept, *words, multirun=multirun), *named)
    require_words(refused(*words, cfg="all"), *named)


@pytest.mark.parametrize(
    ("word", "named"),
    [
        ("experiment=twice", ["loss", "twice.yaml", "line 3", "override /loss"]),
        ("experiment=elsewhere", ["loss=jsd", "hydra.run", "elsewhere.yaml", "line 3"]),
        ("~hydra.run.dir", ["~hydra.run.dir", "cannot be removed"]),
    ],
)
def test_a_defaults_list_that_hydra_refuses(refused: Refused, word: str, named: list[str]) -> None:
    """A sentence of Hydra that names no file and says nothing to do."""
    require_words(refused(word), *named)


def test_the_launcher_of_the_sweep_itself_is_checked(refused: Refused) -> None:
    """No point has the option that is swept over, and Hydra composes the sweep without it: with that of the config folder."""
    words = ["experiment=indirect", "loss=soft_hard,forward_kl"]
    require_words(refused(*words, multirun=True), "hydra.launcher._target_", "'os.getcwd'")


@pytest.mark.parametrize("word", ["hydra/launcher=basic,joblib", "hydra.run.dir=a,b", "hydra.sweep.dir=a,b"])
def test_keys_of_the_sweep_are_not_swept_over(refused: Refused, word: str) -> None:
    """Hydra ends in an error after the sweep's directory is made, and an empty table follows."""
    require_words(refused(word, multirun=True), word)


@pytest.mark.parametrize(
    "word",
    ["seed=range(0,10,1e-320)", "trainer.epochs=range(-1e308,1e308,1)", f"seed=range(0,1{'0' * 400})", "seed=range(0,5,0)", "seed=range(0,5,nan)"],
    ids=lambda word: word[:30],
)  # fmt: skip
def test_ranges_beyond_floats(refused: Refused, word: str) -> None:
    """The number of points overflows, as a defect of kdcli."""
    require_words(refused(word, multirun=True), word.partition("=")[0], "10,000")


def test_a_sweep_whose_directory_cannot_be_made(refused: Refused, tmp_path: Path) -> None:
    """Hydra's traceback, where a run has a message."""
    path = tmp_path / "here.txt" / "sweep"
    require_words(refused("seed=1,2", multirun=True, out=path), str(path), "--out")


def test_a_sweep_that_hydra_refuses_has_no_table(refused: Refused, monkeypatch: pytest.MonkeyPatch) -> None:
    """An empty table, and a page that is not written, stand after the only message that matters."""

    def refuse(*_: object) -> int:
        raise ConfigError("seed: give another one")

    monkeypatch.setattr("kdcli.launch.sweep.run_hydra", refuse)
    require_words(refused("seed=1,2", multirun=True), "seed")


def test_a_folder_of_plugins_is_not_imported(refused: Refused, tmp_path: Path) -> None:
    """Hydra imports each module of hydra_plugins that it can find, also that of a config folder, although no key names it."""
    plugins = tmp_path / "mine" / "hydra_plugins"
    plugins.mkdir()
    (plugins / "evil.py").write_text(f"open({str(tmp_path / 'canary')!r}, 'w').close()\n")
    from hydra.core.plugins import Plugins
    from hydra.core.singleton import Singleton

    before = Singleton._instances.pop(Plugins, None)
    try:
        refused("sede=1")
    finally:
        Singleton._instances[Plugins] = before or Singleton._instances[Plugins]


@pytest.mark.parametrize(
    "word",
    ["batch_size=0", "max_nbytes=x", "timeout=-1.0", "backend=x", "mmap_mode=x", "n_jobs=0", "pre_dispatch=x", "require=sharedmem", "prefer=x"],
)  # fmt: skip
def test_settings_of_joblib(refused: Refused, word: str) -> None:
    """A traceback of a thread once the sweep starts, or a setting that is ignored."""
    pytest.importorskip("hydra_plugins.hydra_joblib_launcher")
    words = ["seed=1,2", "hydra/launcher=joblib", f"hydra.launcher.{word}"]
    key, _, value = word.partition("=")
    require_words(refused(*words, multirun=True), f"hydra.launcher.{key}", value)


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("# @package nope\na: 1\n", ["nope", "line 1", "# @package _global_"]),
        ("# @package trainer.epochs\na: 1\n", ["trainer.epochs", "line 1", "# @package _global_"]),
        ("seed: 1\n", ["experiment", "line 1", "# @package _global_"]),
        ("", ["experiment", "line 1", "# @package _global_"]),
        (
            "# @package _global_\ndefaults:\n  - override /teacher: ${nope}\n",
            ["${nope}", "line 3", "kdcli list"],
        ),
    ],
)
def test_an_option_whose_keys_go_nowhere(
    refused: Refused, tmp_path: Path, text: str, named: list[str]
) -> None:
    """A message that names a key which no file has, and no file."""
    (tmp_path / "mine" / "experiment" / "placed.yaml").write_text(text)
    require_words(refused("experiment=placed"), "placed.yaml", *named)


@pytest.mark.parametrize(
    ("word", "named"), [("hydra.run.dir=null", "give"), ("~dataset", "kdcli list dataset")]
)
def test_words_that_hydra_cannot_merge(refused: Refused, word: str, named: str) -> None:
    """Hydra's own sentence, which says nothing of what to do."""
    require_words(refused(word), word, named)
