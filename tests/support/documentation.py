"""The commands and messages of the README and the documentation."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import yaml
from typer.testing import CliRunner

from kdcli.cli import app

REPOSITORY = Path(__file__).parents[2]
PAGES = [REPOSITORY / "README.md", *sorted((REPOSITORY / "docs").glob("*.md")), *sorted((REPOSITORY / "docs/quickstart").glob("*.md"))]  # fmt: skip
"""The pages that are written by hand."""
BLOCK = re.compile(r"^```console\n(.*?)^```", re.MULTILINE | re.DOTALL)
FILE = re.compile(r"^```(?:python|yaml)\n# ([\w/]+\.(?:py|yaml))\n(.*?)^```", re.MULTILINE | re.DOTALL)
"""A file that a page lets users copy: its name and its text."""
EXCUSED = REPOSITORY / "tests" / "cli" / "excused.yaml"
"""The commands that no test types, each with the reason."""
JOBS = ("api-teacher", "classifier", "entities", "language-model", "own-teacher", "translator")
"""The quickstarts that `tests/cli/test_quickstarts.py` types; `tests/cli/test_pages.py` types all other pages."""
PROCESSES = re.compile(r"--nproc-per-node=\d+")
SECRET = "sk-of-a-test-and-of-nobody-else"
"""What stands for an API key."""


@dataclass(frozen=True)
class Shown:
    """A command that a page shows.

    Attributes:
        page: its path in the repository.
        line: the command as it is shown, without its comment.
        before: the words before `kdcli`: of `torchrun`, or of a file that is piped into it; all words of another program.
        words: the words after `kdcli`; none: it is another program.
    """

    page: str
    line: str
    before: tuple[str, ...]
    words: tuple[str, ...]

    def __str__(self) -> str:
        return f"{self.page}: {self.line}"


def all_commands() -> list[Shown]:
    """All commands, each page's in its order."""
    shown = []
    for page in PAGES:
        for line in _lines(page.read_text(encoding="utf-8")):
            words = shlex.split(line, comments=True)
            start = words.index("kdcli") if "kdcli" in words else len(words)
            name = page.relative_to(REPOSITORY).as_posix()
            shown.append(Shown(name, shlex.join(words), tuple(words[:start]), tuple(words[start + 1 :])))
    return shown


def shown_commands() -> list[Shown]:
    """The commands of kdcli, each page's in its order."""
    return [command for command in all_commands() if command.words]


def excused() -> dict[str, str]:
    """The commands that no test types, and why."""
    reasons: dict[str, str] = yaml.safe_load(EXCUSED.read_text(encoding="utf-8"))
    return reasons


def write_parts(folder: Path) -> set[str]:
    """Writes the files that the pages let users copy into a folder; returns their names."""
    names = set()
    for page in PAGES:
        for name, text in FILE.findall(page.read_text(encoding="utf-8")):
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_text(text, encoding="utf-8")
            names.add(name)
    return names


def _lines(text: str) -> Iterator[str]:
    """The lines after `$ `, each with those that continue it."""
    for block in BLOCK.findall(text):
        for line in block.replace("\\\n", " ").splitlines():
            if line.startswith("$ "):
                yield line[2:]


def type_command(
    command: Shown,
    changes: Mapping[str, str],
    more: Callable[[Sequence[str]], Iterable[str]],
    stdin: str = "",
) -> tuple[str, str]:
    """Type a command as it stands; it must do what it says. An export of a student of a few steps may miss its tolerance.

    Args:
        changes: words that name what is not on this machine, and what stands for it here; empty: nothing does.
        more: returns the words that reduce a command, by its words. Keys that the page sets are not set again.
        stdin: what is typed into the command, unless the page pipes a file into it.

    Returns:
        The name of the command, and what it printed.
    """
    name, *words = (word for old in command.words for word in shlex.split(changes.get(old, shlex.quote(old))))
    set_here = {word.partition("=")[0] for word in words}
    words += [word for word in more([name, *words]) if word.partition("=")[0] not in set_here]
    allowed = (0, 3) if name == "export" else (0,)
    if "torchrun" in command.before:
        start = PROCESSES.sub("--nproc-per-node=2", " ".join(command.before[1:])).split()
        line = [sys.executable, "-m", "torch.distributed.run", *start, "kdcli", name, *words]
        run = subprocess.run(line, capture_output=True, text=True, check=False)
        assert run.returncode in allowed, f"{command}\n{run.stderr[-3000:]}"
        return name, run.stdout
    if "|" in command.before:
        stdin = Path(command.before[1]).read_text(encoding="utf-8")
    done = CliRunner().invoke(app, [name, *words], input=stdin, catch_exceptions=False)
    assert done.exit_code in allowed, f"{command}\n{shlex.join([name, *words])}\n{done.output[-3000:]}"
    return name, done.stdout
