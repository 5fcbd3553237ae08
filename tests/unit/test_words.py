"""The words of the code and of its messages: the field's terms, each with one meaning."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

import kdcli

PACKAGE = Path(kdcli.__file__).parent
REPOSITORY = PACKAGE.parent
DIALECT = re.compile(
    r"(?i)(?<![a-z])(lessons?|courses?|pupils?|born|births?|foretell|untaught|loudness|weed)(?![a-z])"
)
"""Words of the first release that no practitioner searches for: nowhere, neither in names nor in text."""
OLD_NAMES = "config/renamed.py"
"""Holds the names of the first release, which still work."""
SEEDS = {"birth"}
"""Names that random seeds are made of: with another name every result would change."""


OF_OLD_NAMES = {"test_words.py", "test_renamed.py", "test_old_names.py"}
"""Tests that contain the old names."""


def modules() -> Iterator[tuple[str, ast.Module]]:
    for path in sorted(PACKAGE.rglob("*.py")):
        yield str(path.relative_to(PACKAGE)), ast.parse(path.read_text(encoding="utf-8"))


def scripts() -> Iterator[tuple[str, ast.Module]]:
    """The tests and the benchmarks."""
    for folder in ("tests", "benchmarks"):
        for path in sorted((REPOSITORY / folder).rglob("*.py")):
            if path.name not in OF_OLD_NAMES:
                yield str(path.relative_to(REPOSITORY)), ast.parse(path.read_text(encoding="utf-8"))


def identifiers(tree: ast.Module) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Name):
            yield node.id
        elif isinstance(node, ast.arg | ast.keyword):
            yield node.arg or ""
        elif isinstance(node, ast.Attribute):
            yield node.attr
        elif isinstance(node, ast.FunctionDef | ast.ClassDef):
            yield node.name


def texts(tree: ast.Module) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and node.value not in SEEDS:
            yield node.value


def plain(name: str) -> set[str]:
    """The words that a name is made of."""
    return {word.lower() for word in re.findall(r"[A-Z]?[a-z]+", name)}


def test_no_name_and_no_text_is_of_the_old_dialect() -> None:
    """A reader of transformers or TRL searches the code for the term of the field, and finds nothing."""
    wrong = []
    for module, tree in [*modules(), *scripts()]:
        if module == OLD_NAMES:
            continue
        wrong += [
            f"{module}: the name {name}"
            for name in identifiers(tree)
            if DIALECT.search(" ".join(plain(name)))
        ]
        wrong += [f"{module}: {text[:80]!r}" for text in texts(tree) if DIALECT.search(text)]
    assert not wrong


@pytest.mark.parametrize(
    "pattern",
    [
        "conf/**/*.yaml", "*.md", "docs/**/*.md", "benchmarks/*.*", "kdcli/**/*.jinja", "kdcli/exporting/snippets/*.*",
        "kdcli/exporting/targets/page/*",
    ],
)  # fmt: skip
def test_no_document_is_of_the_old_dialect(pattern: str) -> None:
    """The README explains one vocabulary and the messages use another. (A table of renamed keys names the old ones.)"""
    wrong = [
        f"{path.relative_to(REPOSITORY)}, line {number}: {line.strip()[:80]}"
        for path in sorted(REPOSITORY.glob(pattern))
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1)
        if DIALECT.search(line) and not line.startswith("  | `")
    ]
    assert not wrong


def unwanted() -> list[str]:
    """The identifiers that CONTRIBUTING.md lists."""
    text = (REPOSITORY / "CONTRIBUTING.md").read_text(encoding="utf-8")
    rows = re.findall(
        r"^\| ((?:`\w+`(?:, )?)+) \|", text.partition("## Names")[2].partition("\n## ")[0], re.MULTILINE
    )
    return [name for row in rows for name in re.findall(r"`(\w+)`", row)]


def test_no_identifier_is_one_that_contributing_lists() -> None:
    """`said`, `theirs` or `found` tell a reader nothing of what a variable holds."""
    listed = set(unwanted())
    assert listed
    found = [
        f"{module}: {name}"
        for module, tree in modules()
        if not module.startswith("exporting/snippets/")
        for name in identifiers(tree)
        if name.strip("_") in listed
    ]
    assert not sorted(set(found))
