"""The commands and messages of the README and the documentation."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

REPOSITORY = Path(__file__).parents[2]
PAGES = [REPOSITORY / "README.md", *sorted((REPOSITORY / "docs").glob("*.md")), *sorted((REPOSITORY / "docs/quickstart").glob("*.md"))]  # fmt: skip
"""The pages that are written by hand."""
BLOCK = re.compile(r"^```console\n(.*?)^```", re.MULTILINE | re.DOTALL)


@dataclass(frozen=True)
class Shown:
    """A command of kdcli that a page shows.

    Attributes:
        page: its path in the repository.
        words: the words after `kdcli`.
    """

    page: str
    words: tuple[str, ...]

    def __str__(self) -> str:
        return f"{self.page}: kdcli {shlex.join(self.words)}"


def shown_commands() -> list[Shown]:
    """All of them, each page's in its order."""
    return [
        Shown(page.relative_to(REPOSITORY).as_posix(), tuple(words))
        for page in PAGES
        for line in _lines(page.read_text(encoding="utf-8"))
        if (words := _after_kdcli(shlex.split(line, comments=True))) is not None
    ]


def _lines(text: str) -> Iterator[str]:
    """The lines after `$ `, each with those that continue it."""
    for block in BLOCK.findall(text):
        for line in block.replace("\\\n", " ").splitlines():
            if line.startswith("$ "):
                yield line[2:]


def _after_kdcli(words: list[str]) -> list[str] | None:
    """The words after `kdcli`, or after `-m kdcli` of another program."""
    if words and words[0] == "kdcli":
        return words[1:]
    return words[words.index("kdcli") + 1 :] if "kdcli" in words and words[0] == "torchrun" else None
