"""Every refusal contains its remedy, and names only config keys that exist."""

from __future__ import annotations

import ast
import re
import typing
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import yaml
from pydantic import BaseModel

import kdcli
from kdcli import errors
from kdcli.config.components import section_of, union_members
from kdcli.config.schema import COMMANDS

PACKAGE = Path(kdcli.__file__).parent


def error_names() -> set[str]:
    """The names of all errors with a message for users: the subclasses of KDError anywhere in the package."""
    trees = [ast.parse(path.read_text(encoding="utf-8")) for path in PACKAGE.rglob("*.py")]
    bases = {
        node.name: {ast.unparse(base).rpartition(".")[2] for base in node.bases}
        for tree in trees
        for node in ast.walk(tree)
        if isinstance(node, ast.ClassDef)
    }
    names = {errors.KDError.__name__}
    while more := {name for name, own in bases.items() if own & names} - names:
        names |= more
    return names - {errors.KDError.__name__}


ERRORS = error_names()
VERBS = (
    "add allow ask begin check choose clear close convert copy correct declare delete download drop export fill free give install keep leave let list "
    "load look lower make measure merge move name pass pick put quote raise recover reduce remove rename repair replace restore run save select "
    "set shorten spell start switch take train try turn type unpack update use wait write"
)
"""What a remedy begins with."""
REMEDY = re.compile(
    rf"(?:^|[;:,.(?]\s*|\b(?:or|and|then)\s+|\n\s*)(?:{VERBS.replace(' ', '|')})\b"  # an imperative
    r"|\bexpected\b"  # the house's form: what was expected, and what came
    r"|pip install"
    r"|\{[^{}]*(?:remedy|REMEDY|RESTORE|install_hint|error\.message)|\{key\}="  # a remedy that is made elsewhere
    r"|\b(?:dataset|teacher|student|rollout|trainer|loss|hardware|measure|stages|hydra)\.[a-z_{]|(?<![\w-])--[a-z-]+",  # a key, an option
    re.IGNORECASE,
)
_LISTS = "it lists or forwards messages that are made, with their remedies, elsewhere"
_ROW = "kdcli.data.raw_rows.BadRows adds dataset.bad_rows=drop to what is wrong with a row"
_LLAMA = "llama.cpp itself is at fault; the export reports it as a file that cannot be run, and goes on with the others"
_REPEATED = "it becomes a warning, and what is damaged is made again"
EXCUSED = {
    "config/check.py: _refuse": _LISTS,
    "config/components.py: build": _LISTS,
    "data/raw_rows.py: value_at": _ROW,
    "data/json_files.py: _under_a_key": "SeveralKeysError names dataset.field=",
    "data/reading.py: _format": "the table _OTHER has what to do with each kind of file",
    "data/reading.py: decide": "the table _TEXTS has what to do with each kind of file",
    "distributed.py: _Peers._failed": "it forwards the message of a process, or says that the same command continues",
    "exporting/plan.py: plan_export": _LISTS,
    "exporting/runtimes/llama.py: LlamaCausalLM._force": _LLAMA,
    "exporting/runtimes/llama.py: LlamaCausalLM._request": _LLAMA,
    "exporting/runtimes/llama.py: LlamaCausalLM._score_token": _LLAMA,
    "exporting/runtimes/llama.py: LlamaCausalLM._stream": _LLAMA,
    "exporting/targets/base.py: require_writable": "Target.refusal says what to choose",
    "exporting/targets/mobile.py: Mobile.export": _LISTS,
    "launch/argv.py: own_options": "not_settable says which keys are",
    "launch/argv.py: require_known_hydra_keys": "not_settable says which keys are",
    "launch/compose.py: compose_config": _LISTS,
    "launch/compose.py: composed_with_hydra": "node_problems says what to do with each key",
    "launch/hydra_errors.py: hydra_errors": "_no_such_option and _short suggest the nearest keys and options",
    "launch/run.py: _launch": "secret_in says how the value is to be given",
    "models/gguf.py: convert.write": "_explain says what to fetch",
    "pipeline/cache.py: _read_part": _REPEATED,
    "pipeline/remote.py: _require_better_than_chance": _LISTS,
    "tasks/causal_lm/conversations.py: _content": _ROW,
    "tasks/rows.py: require_text": _ROW,
    "tasks/token_classification/rows.py: TokenClassificationRows.check": _ROW,
    "training/preflight.py: check_texts": _LISTS,
    "training/preflight.py: preflight": _LISTS,
    "training/resume.py: read_state": _REPEATED,
}
"""The places (module: function) whose messages have no remedy of their own, and why."""
SECTIONS = "dataset|teacher|student|rollout|trainer|loss|hardware|measure|stages"
KEY = re.compile(rf"(?<![\w./{{}}<-])(?:{SECTIONS})\.[A-Za-z_]\w*(?:\.[A-Za-z_]\w*)*(?!\w*\(|\.?\w)")
FILES = re.compile(r"\.(?:py|mjs|json|html)$")


class Raised(NamedTuple):
    """A place that makes an error."""

    place: str
    message: str
    """Its message; an expression in it is written in braces."""


def text_of(node: ast.expr) -> str:
    """A message as far as it can be known, with expressions in braces."""
    if isinstance(node, ast.Constant):
        return str(node.value)
    if isinstance(node, ast.JoinedStr):
        return "".join(map(text_of, node.values))
    if isinstance(node, ast.BinOp):
        return text_of(node.left) + text_of(node.right)
    if isinstance(node, ast.IfExp):
        return f"{text_of(node.body)}\n{text_of(node.orelse)}"
    return f"{{{ast.unparse(node.value if isinstance(node, ast.FormattedValue) else node)}}}"


def raised(node: ast.AST, place: str, assigned: Mapping[str, str]) -> Iterator[Raised]:
    """The errors that are made in a node, below functions and classes.

    Args:
        assigned: the texts of the function's variables.
    """
    for child in ast.iter_child_nodes(node):
        inner, texts = place, assigned
        if isinstance(child, ast.FunctionDef | ast.ClassDef):
            inner = f"{place}{'.' if not place.endswith(': ') else ''}{child.name}"
            texts = {
                target.id: text_of(each.value)
                for each in ast.walk(child)
                if isinstance(each, ast.Assign)
                for target in each.targets
                if isinstance(target, ast.Name)
            }
        called = ast.unparse(child.func).rpartition(".")[2] if isinstance(child, ast.Call) else ""
        in_config = called == "ValueError" and place.startswith("config/")  # pydantic shows it
        if isinstance(child, ast.Call) and (called in ERRORS or in_config):
            argument = child.args[0] if child.args else ast.Constant("")
            name = argument.id if isinstance(argument, ast.Name) else ""
            yield Raised(inner, texts.get(name) or text_of(argument))
        yield from raised(child, inner, texts)


def places() -> Iterator[Raised]:
    for path in sorted(PACKAGE.rglob("*.py")):
        module = path.relative_to(PACKAGE)
        yield from raised(ast.parse(path.read_text(encoding="utf-8")), f"{module}: ", {})


def test_every_refusal_has_a_remedy() -> None:
    """A user learns what is wrong and not which key, command or edit mends it."""
    without = [each for each in places() if not REMEDY.search(each.message)]
    told = [f"{place}: {message}" for place, message in without if place not in EXCUSED]
    assert not told, "\n".join(["no remedy, and no excuse in EXCUSED:", *told])
    assert EXCUSED.keys() <= {each.place for each in without}, "some places need no excuse any more"


def schema_keys(model: type[BaseModel], path: str = "") -> Iterator[str]:
    """All keys of a config with dots; `*` stands for a name of the user."""
    for name, field in model.model_fields.items():
        key = f"{path}{field.alias or name}"
        yield key
        if section := section_of(field.annotation):
            yield from schema_keys(section, f"{key}.")
        for option in union_members(field.annotation):
            if typing.get_origin(option) is dict:
                yield f"{key}.*"
                inner = section_of(typing.get_args(option)[1])
                if inner and "*" not in key:
                    yield from schema_keys(inner, f"{key}.*.")


def yaml_keys(tree: Any, path: str) -> Iterator[str]:
    """The keys of an option of a config group: the arguments of its class among them. A mapping may have other keys."""
    for key, value in (tree or {}).items():
        if key != "defaults":
            yield f"{path}.{key}"
        if isinstance(value, dict):
            yield from ([f"{path}.{key}.*"] if not value else yaml_keys(value, f"{path}.{key}"))


@pytest.fixture(scope="module")
def keys() -> set[str]:
    found = {key for model in COMMANDS.values() for key in schema_keys(model)}
    for path in (PACKAGE.parent / "conf").glob("*/*.yaml"):
        found |= {*yaml_keys(yaml.safe_load(path.read_text(encoding="utf-8")), path.parent.name)}
    return found


def exists(key: str, keys: set[str]) -> bool:
    """Whether a config has a key; a part in capitals stands for a name of the user, and below a free mapping all keys exist."""
    parts = key.split(".")
    for known in keys:
        names = known.split(".")
        longer = len(parts) > len(names) and names[-1] == "*" and names[0] == "teacher"
        if (longer or len(parts) == len(names)) and all(
            name in (part, "*") or part.isupper() for name, part in zip(names, parts, strict=False)
        ):
            return True
    return False


def test_messages_name_only_keys_that_exist(keys: set[str]) -> None:
    """A user is sent to a key that was renamed, or that never was."""
    assert exists("dataset.delimiter", keys)
    assert exists("stages.NAME.dataset.task", keys)
    assert exists("teacher.parameters.max_tokens", keys)
    assert not exists("dataset.separator", keys)
    assert not exists("teacher.max_tokens", keys)
    unknown = []
    for path in sorted(PACKAGE.rglob("*.py")):
        if path.name in ("renamed.py", "secrets.py"):  # the old names, and patterns of names
            continue
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                mentioned = [key for key in KEY.findall(node.value) if not FILES.search(key)]
                unknown += [
                    f"{path.relative_to(PACKAGE)}, line {node.lineno}: {key}"
                    for key in mentioned
                    if not exists(key, keys)
                ]
    assert not unknown
