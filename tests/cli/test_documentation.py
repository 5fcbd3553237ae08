"""The README and the documentation: the commands that they show, the parts that they let users copy, and the site."""

from __future__ import annotations

import functools
import gc
import importlib.util
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import yaml
from support.commands import read
from support.documentation import (
    EXCUSED,
    JOBS,
    PAGES,
    REPOSITORY,
    Shown,
    all_commands,
    excused,
    shown_commands,
    write_parts,
)
from support.tiny import sentences, write_csv
from typer.main import get_command
from typer.testing import CliRunner

import kdcli
from kdcli.cli import app
from kdcli.config import index
from kdcli.config.groups import config_groups, group_options
from kdcli.errors import ExitCode
from kdcli.launch.run import launch

EXTENDING = REPOSITORY / "docs" / "extending.md"
README_LINES = 150
MOST_EXCUSED = 0.1
"""The largest share of commands that no test types."""
CHOICES = [
    {"teacher": "openai"},
    *({"student": name} for name in ("composed", "layers", "lora", "pruned", "vocabulary")),
    *({"loss": name} for name in ("features", "jsd", "uld")),
    {"hardware": "mobile"},
]
"""Options whose components have arguments that the pages name."""
PACKAGED = {group: set(group_options(group)) for group in config_groups()}
"""The options of each config group."""
COMPOSED = {"distill": "distill", "check": "distill", "eval": "eval", "export": "export"}
"""The commands with a config, and whose config it is."""


def test_a_student_and_losses_of_ones_own(small: list[str], tmp_path: Path) -> None:
    """An example that does not run as it stands is the first that a user of the extension points meets."""
    folder = tmp_path / "own"
    assert {"my_parts/first.py", "my_parts/similarity.py", "student/first.yaml", "loss/hellinger.yaml"} <= write_parts(folder)  # fmt: skip
    run = tmp_path / "run"
    options = [
        *(option for option in small if not option.startswith("student.")), "student=first", "student.num_hidden_layers=1",
        "loss=hellinger", "+loss.similarity._target_=my_parts.similarity.Similarity",
        "+loss.similarity.layer_mapping=uniform", "control=false", "trainer.max_steps=4", "measure=null",
        f"hydra.run.dir={run}",
    ]  # fmt: skip
    assert launch("distill", options, config_dir=folder) == 0
    assert {"soft_label", "similarity"} <= set(read(run / "report.json")["loss"])


def test_each_command_is_typed_or_excused() -> None:
    """A command that no test types, and of which nobody knows why: the reader is the first to run it."""
    commands, reasons = all_commands(), excused()
    lines = {command.line for command in commands}
    assert not reasons.keys() - lines, "they are shown no longer"
    assert all(len(reason.split()) >= 5 for reason in reasons.values())
    assert sum(command.line in reasons for command in commands) <= len(commands) * MOST_EXCUSED
    others = [command for command in commands if not command.words and command.line not in reasons]
    assert all(command.before[0] == "export" for command in others), others
    source = (EXCUSED.parent / "test_quickstarts.py").read_text(encoding="utf-8")
    assert {*re.findall(r'type_page\(\s*"([\w-]+)"', source)} == {*JOBS}


def unique(commands: list[Shown]) -> list[Shown]:
    """Each command once, wherever its run lies."""
    named = re.compile(r"runs/\w+")
    return list({named.sub("RUN", " ".join(command.words)): command for command in commands}.values())


@pytest.fixture
def uncollected() -> Iterator[None]:
    """No search for garbage: that of a config would go through all that the session has imported."""
    gc.disable()
    yield
    gc.enable()


@pytest.mark.usefixtures("uncollected")
def test_each_command_that_is_shown_composes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A page shows a key, an option or a choice that does not exist, or no longer exists."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("KDCLI_CONFIG_DIR", "")  # which --config-dir sets
    write_parts(tmp_path)
    write_csv(tmp_path / "tickets.csv", sentences(40))
    assert CliRunner().invoke(app, ["init", "tickets.csv"]).exit_code == 0
    wrong = []
    seen = set()
    for command in unique(shown_commands()):
        name, *words = command.words
        if name == "export":
            (tmp_path / words[0]).mkdir(parents=True, exist_ok=True)
        monkeypatch.delenv("KDCLI_CONFIG_DIR", raising=False)
        if "-m" in words:  # a sweep's first point
            words = [word.partition(",")[0] for word in words if word != "-m"]
        line = [COMPOSED[name], *words, "--cfg", "job"] if name in COMPOSED else [name, "--help"]
        if (*line,) in seen:
            continue
        seen.add((*line,))
        done = CliRunner().invoke(app, line)
        if done.exit_code:
            wrong.append(f"{command}\n{done.output[-300:]}")
    assert not wrong, "\n".join(wrong)


def inline_code() -> Iterator[tuple[str, str]]:
    """The code in the sentences of the pages, each with the name of its page."""
    for page in PAGES:
        prose = re.sub(r"^```.*?^```", "", page.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
        yield from ((page.name, code) for code in re.findall(r"(?<!`)`([^`\n]+)`(?!`)", prose))


@functools.cache
def all_known() -> list[index.ConfigKey]:
    """The keys of all commands and of the components that the pages name."""
    keys = {(key.name, key.commands): key for choice in CHOICES for key in index.all_keys(choice)}
    return list(keys.values())


def faults_of(line: str) -> Iterator[str]:
    """The words of a command that name what does not exist; words in capitals and … stand for others."""
    command: Any = get_command(app)
    words = [word for word in shlex.split(line) if word != "…"]
    while words and hasattr(command, "commands"):
        name = words.pop(0)
        if name not in command.commands:
            yield name
            return
        command = command.commands[name]
    options = {option for param in command.params for option in param.opts}
    name, given = command.name, dict(word.split("=", 1) for word in words if "=" in word)
    keys = [key for key in all_known() if COMPOSED.get(name, "distill") in key.commands]
    for word in words:
        if word.startswith("-"):
            yield from [word] * (word.partition("=")[0] not in options)
        elif name == "list":
            yield from [word] * (word not in config_groups() and not word.isupper())
        elif name == "keys" and "=" not in word and not word.isupper():
            yield from [word] * (not index.keys_below(word, keys))
    for key, value in given.items() if name in (*COMPOSED, "keys", "init") else ():
        if key in config_groups():
            chosen = [each for each in value.split(",") if each and not each.isupper()]
            yield from (f"{key}={each}" for each in chosen if each not in PACKAGED[key])
        elif not key.startswith("-") and all(each.name != key for each in index.keys_below(key, keys)):
            yield key


def test_each_command_in_a_sentence_exists() -> None:
    """A command, an option or a key is renamed, and a sentence goes on naming the former one."""
    commands = {
        (page, code[start.end() :])
        for page, code in inline_code()
        if (start := re.match(r"kdcli (?=[a-z])|.* -m kdcli ", code))
    }
    assert len(commands) >= 30
    wrong = {f"{page}: kdcli {line}": faults for page, line in commands if (faults := [*faults_of(line)])}
    assert not wrong
    for line in (
        "distil",
        "export RUN --hardware=cpu",
        "eval RUN trainer.epochs=2",
        "check … trainer.epoch=3",
        "list teachers",
        "keys datasets",
        "distill loss=embeddings",
        "cache rm",
    ):
        assert [*faults_of(line)], line


def test_each_option_in_a_sentence_exists() -> None:
    """A page names `loss=embeddings`, which is no option, and the reader who types it is refused."""
    groups = "|".join(config_groups())
    wrong = {
        f"{page}: {group}={option}"
        for page, code in inline_code()
        for group, option in re.findall(rf"(?<![\w./-])({groups})=([a-z][\w-]*)", code)
        if option not in PACKAGED[group]
    }
    assert not wrong


def test_the_version_is_the_same_everywhere() -> None:
    """A release whose README installs a wheel of another name, or that is cited as the one before."""
    citation = yaml.safe_load((REPOSITORY / "CITATION.cff").read_text(encoding="utf-8"))["version"]
    newest = re.search(r"^## (\S+)", (REPOSITORY / "CHANGELOG.md").read_text(encoding="utf-8"), re.MULTILINE)
    wheels = [
        version
        for page in PAGES
        for version in re.findall(r"kdcli-(\d[\w.]*?)-py3", page.read_text(encoding="utf-8"))
    ]
    assert newest
    assert wheels
    assert {citation, newest[1], *wheels} == {kdcli.__version__}


def test_each_key_that_is_named_exists() -> None:
    """A page explains `trainer.epoch`, and a reader types it."""
    keys = all_known()
    sections = {key.name.partition(".")[0] for key in keys if "." in key.name}
    wrong = {
        f"{page}: {name}"
        for page, code in inline_code()
        for name in re.findall(r"(?<![\w./-])([a-z]+(?:\.[a-z_]+)+)=", code)
        if name.partition(".")[0] in sections
        and not name.startswith("teacher.parameters.")
        and not index.keys_below(name, keys)
    }
    assert not wrong


QUICKSTARTS = [page for page in PAGES if page.parent.name == "quickstart"]


@pytest.mark.parametrize("page", QUICKSTARTS, ids=lambda page: page.stem)
def test_a_quickstart_explains_each_key(page: Path) -> None:
    """A new user types `dataset.text=text`, of which the page does not say what it is, or begins with a config that no command has written."""
    text = page.read_text(encoding="utf-8")
    prose = re.sub(r"^```.*?^```", "", text, flags=re.MULTILINE | re.DOTALL)
    explained = {
        name
        for code in re.findall(r"`([^`\n]+)`", prose)
        for name in re.findall(r"(?<![^ ])(-*[\w.-]+)", code)
    }
    commands = [command for command in shown_commands() if command.page.endswith(f"quickstart/{page.name}")]
    words = [word for command in commands for word in command.words[1:]]
    typed = {word.partition("=")[0] for word in words if "=" in word or word.startswith("-")}
    assert typed
    assert not typed - explained
    uses = [command.words[0] for command in commands if "kdcli.yaml" in command.words]
    assert not uses or commands[0].words[0] == "init"


def test_the_page_of_losses_has_each_loss() -> None:
    """A loss is found in no table, and the reader does not learn what it computes and whose it is."""
    page = (REPOSITORY / "docs" / "losses.md").read_text(encoding="utf-8")
    rows = [line for line in page.splitlines() if line.startswith("| `")]
    for path in sorted((REPOSITORY / "kdcli" / "losses").glob("*.py")):
        links = set(re.findall(r"https://arxiv\.org/abs/[\d.]+\d", path.read_text(encoding="utf-8")))
        if path.stem not in ("base", "hard_label", "__init__"):
            assert all(link in page for link in links), path.name
        if path.stem not in ("base", "features", "hard_label", "__init__"):
            assert any(re.match(rf"\| .*`{path.stem}`[^|]*\|[^|]*[=·Σ\d][^|]*\|", row) for row in rows), (
                path.name
            )
    options = {path.stem for path in (REPOSITORY / "conf" / "loss").glob("*.yaml")}
    assert not {option for option in options if not re.search(rf"`(loss=)?{option}`", page)}


def test_the_messages_that_are_explained_are_kdcli_s() -> None:
    """A reader searches the page for a message that no version prints."""
    source = " ".join(
        path.read_text(encoding="utf-8") for path in sorted((REPOSITORY / "kdcli").rglob("*.py"))
    )
    text = (REPOSITORY / "docs" / "troubleshooting.md").read_text(encoding="utf-8")
    quoted = re.findall(r"^- \*\*`([^`]+)`\*\*", text, re.MULTILINE)
    assert len(quoted) >= 5
    missing = [
        part
        for message in quoted
        for part in re.split(
            r" … |\b\d[\d.]*|the teacher's accuracy|the most frequent label's share", message
        )
        if len(part.strip()) > 5 and part.strip() not in source
    ]
    assert not missing


@pytest.fixture(scope="module")
def reference() -> ModuleType:
    """`docs/generate.py`, which writes the pages of the reference."""
    spec = importlib.util.spec_from_file_location("generate", REPOSITORY / "docs" / "generate.py")
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_reference_has_each_command_and_exit_code(reference: ModuleType) -> None:
    """A command of a group is not found in the reference, or a script's author reads the name of an exit code and no meaning."""
    page = reference.commands_page()
    sections = dict(re.findall(r"^## kdcli (.+?)$\s+```text\n(.+?)```", page, re.MULTILINE | re.DOTALL))
    names = {info.name or info.callback.__name__ for info in app.registered_commands if info.callback}
    for group in app.registered_groups:
        names |= {f"{group.name} {info.name}" for info in group.typer_instance.registered_commands}
    assert {*sections} == {*names} >= {"distill", "cache ls", "cache clear", "cache verify"}
    for name, text in sections.items():
        assert f"Usage: kdcli {name} " in text
        assert len(text.splitlines()) > 5, name
    codes = re.findall(r"^\| (\d+) \| (\w+) \| (.+) \|$", page, re.MULTILINE)
    assert [(int(code), name) for code, name, _ in codes] == [(code, code.name.lower()) for code in ExitCode]
    assert all(len(meaning.split()) >= 8 for _, _, meaning in codes)


def test_the_reference_has_what_python_offers(reference: ModuleType) -> None:
    """`Result.verdict` and `Predictor.predict`, by which every program goes on, stand in no reference."""
    page = reference.api_page()
    assert {*re.findall(r"^## kdcli\.(\w+)$", page, re.MULTILINE)} == {*kdcli.__all__} - {"__version__"}
    members = dict.fromkeys(re.findall(r"^\*\*(\w+)", page, re.MULTILINE))
    assert {"student", "verdict", "predict"} <= {*members}


def test_the_readme_is_short() -> None:
    """The README grows until nobody finds the three lines that begin."""
    assert len((REPOSITORY / "README.md").read_text(encoding="utf-8").splitlines()) <= README_LINES


@pytest.mark.docs
def test_the_site_is_built_without_a_warning(tmp_path: Path) -> None:
    """A link leads nowhere, a page of the reference is not written, or a picture is drawn by a script from elsewhere."""
    shutil.copy(REPOSITORY / "mkdocs.yml", tmp_path)
    shutil.copytree(
        REPOSITORY / "docs", tmp_path / "docs", ignore=shutil.ignore_patterns("reference", "*.py")
    )
    for line in (
        [sys.executable, str(REPOSITORY / "docs" / "generate.py"), str(tmp_path / "docs" / "reference")],
        [sys.executable, "-m", "zensical", "build", "--strict"],
    ):
        done = subprocess.run(line, capture_output=True, text=True, cwd=tmp_path, check=False)
        assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    keys = (tmp_path / "site" / "reference" / "keys" / "index.html").read_text(encoding="utf-8")
    for name in ("trainer.epochs", "loss.soft_label.temperature", "hardware.budget.max_bytes"):
        assert name in keys
    pages = {page: page.read_text(encoding="utf-8") for page in (tmp_path / "site").rglob("*.html")}
    fetches = re.compile(
        r'class="mermaid"|<(?:script|link|img)\b[^>]* (?:src|href)="?(?:https?:)?//[^">]*\.(?:js|css|png|svg|woff2?)\b'
    )
    assert len(pages) > 30
    assert not {str(page): found[0] for page, text in pages.items() if (found := fetches.search(text))}
