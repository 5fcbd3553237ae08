"""Writes the pages of docs/reference from the code: `python docs/generate.py [FOLDER]`; `make docs` runs it."""

from __future__ import annotations

import ast
import inspect
import itertools
import json
import sys
from collections.abc import Iterator
from enum import Enum
from pathlib import Path
from typing import Any

from typer.main import get_command
from typer.testing import CliRunner

import kdcli
from kdcli.cli import app
from kdcli.config import index
from kdcli.config.groups import config_groups, describe_option, group_options
from kdcli.errors import ExitCode
from kdcli.inference.predictor import Predictor

HERE = Path(__file__).parent
COMPONENTS = ("teacher", "student", "loss", "hardware")
"""The groups whose options have arguments of their own."""
SCHEMAS = {
    "report": "`report.json`: what a run compares.",
    "export": "`export/<hardware>/export.json`: the files of an export, and how they were checked.",
    "env": "`env.json`: versions, seeds, fingerprints and decisions, by which a run is repeated.",
}


def keys_page() -> str:
    """All keys, a section each, and the arguments of each component."""
    lines = [
        "# Keys",
        "",
        "Each key is given as `KEY=VALUE` on the command line, or in a YAML file. `kdcli keys PREFIX` prints the same table, also for the components "
        "that you choose (`kdcli keys loss.soft_label loss=jsd`).",
        "",
        "A part in capitals (`stages.NAME.rows`) is a name that you choose.",
    ]
    defaults = index.all_keys()
    groups = list(dict.fromkeys(key.group for key in defaults))
    for group in groups:
        lines += ["", f"## {group or 'General'}", "", *_table(key for key in defaults if key.group == group)]
    known = {key.name for key in defaults}
    for group in COMPONENTS:
        options: dict[tuple[tuple[str, str], ...], list[str]] = {}
        for option in group_options(group):
            own = [key for key in index.all_keys({group: option}) if key.name not in known and key.target]
            options.setdefault(tuple((key.name, key.target) for key in own), []).append(option)
        for own_names, names in options.items():
            if own_names:
                own = [
                    key for key in index.all_keys({group: names[0]}) if key.name not in known and key.target
                ]
                more = f" (and {', '.join(names[1:])})" if names[1:] else ""
                lines += ["", f"## {group}={names[0]}{more}", "", *_table(own)]
    return "\n".join(lines) + "\n"


def _table(keys: Iterator[index.Key] | list[index.Key]) -> Iterator[str]:
    yield "| Key | Type | Default | Meaning |"
    yield "|---|---|---|---|"
    for key in keys:
        if key.is_section:
            continue
        kind = f"{key.type}, {key.range}" if key.range else key.type
        if key.choices:
            kind += ": " + ", ".join(f"`{choice}`" for choice in key.choices)
        default = "required" if key.required else f"`{json.dumps(key.default, ensure_ascii=False)}`"
        commands = "" if "distill" in key.commands else f" ({', '.join(key.commands)})"
        yield f"| `{key.name}`{commands} | {_cell(kind)} | {_cell(default)} | {_cell(key.meaning)} |"


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")


def options_page() -> str:
    """The options of each config group."""
    lines = [
        "# Options",
        "",
        "`kdcli list` prints this table, with the options of your own folder.",
    ]
    for group in config_groups():
        lines += ["", f"## {group}", "", "| Option | What it is |", "|---|---|"]
        lines += [
            f"| `{group}={name}` | {_cell(describe_option(group, name))} |" for name in group_options(group)
        ]
    return "\n".join(lines) + "\n"


def commands_page() -> str:
    """The help of each command."""
    lines = [
        "# Commands",
        "",
        "Results go to stdout; logs and progress go to stderr.",
        "",
        "## Exit codes",
        "",
    ]
    meanings = member_docstrings(ExitCode)
    lines += [
        "| Code | Name | Meaning |",
        "|---|---|---|",
        *(f"| {code.value} | {code.name.lower()} | {_cell(meanings[code.name])} |" for code in ExitCode),
    ]
    lines += [
        "",
        "The help of each command says what they mean there, and [Runs](../runs.md) what a signal does.",
    ]
    for words in command_lines(get_command(app)):
        name = " ".join(words)
        shown = CliRunner().invoke(
            app, [*words, "--help"], env={"COLUMNS": "100", "TERMINAL_WIDTH": "100"}, catch_exceptions=False
        )
        lines += [
            "",
            f"## kdcli {name}",
            "",
            "```text",
            shown.output.strip().replace("Usage: root", "Usage: kdcli"),
            "```",
        ]
    return "\n".join(lines) + "\n"


def command_lines(command: Any, words: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    """Yield the words that name each command, also those of groups (`cache ls`)."""
    commands = getattr(command, "commands", None)
    if commands is None:
        yield words
    for name, inner in (commands or {}).items():
        yield from command_lines(inner, (*words, name))


def member_docstrings(enumeration: type[Enum]) -> dict[str, str]:
    """Return the text below each member of an enumeration, which Python does not keep."""
    (node,) = ast.parse(inspect.getsource(enumeration)).body
    assert isinstance(node, ast.ClassDef)
    return {
        member.targets[0].id: inspect.cleandoc(text.value.value)
        for member, text in itertools.pairwise(node.body)
        if isinstance(member, ast.Assign)
        and isinstance(member.targets[0], ast.Name)
        and isinstance(text, ast.Expr)
        and isinstance(text.value, ast.Constant)
    }


def schema_page(name: str) -> str:
    """The entries of one of the files of a run, from its JSON schema."""
    schema = json.loads((HERE / f"{name}.schema.json").read_text(encoding="utf-8"))
    lines = [
        f"# {name}.json",
        "",
        SCHEMAS[name],
        "",
        f"The JSON schema is [{name}.schema.json](../{name}.schema.json).",
    ]
    lines += ["", *_entries(schema)]
    for title, part in schema.get("$defs", {}).items():
        lines += ["", f"## {title}", ""]
        lines += [*([_cell(part["description"]), ""] if part.get("description") else []), *_entries(part)]
    return "\n".join(lines) + "\n"


def _entries(schema: dict[str, Any]) -> Iterator[str]:
    yield "| Entry | Type | Meaning |"
    yield "|---|---|---|"
    for name, entry in schema.get("properties", {}).items():
        yield f"| `{name}` | {_cell(_type(entry))} | {_cell(entry.get('description', ''))} |"


def _type(entry: dict[str, Any]) -> str:
    if "$ref" in entry:
        title = entry["$ref"].rpartition("/")[2]
        return f"[{title}](#{title.lower()})"
    if "anyOf" in entry:
        return " or ".join(_type(each) for each in entry["anyOf"])
    if "enum" in entry:
        return ", ".join(f"`{value}`" for value in entry["enum"])
    if "const" in entry:
        return f"`{entry['const']}`"
    if entry.get("type") == "array":
        return f"list of {_type(entry['items'])}" if "items" in entry else "list"
    inner = entry.get("additionalProperties")
    if entry.get("type") == "object" and isinstance(inner, dict):
        return f"object of {_type(inner)}"
    return str(entry.get("type", "any"))


def api_page() -> str:
    """The public functions and classes of `import kdcli`."""
    lines = ["# Python API", "", inspect.getdoc(kdcli) or ""]
    for name in getattr(kdcli, "__all__", ()):
        member = getattr(kdcli, name)
        if not callable(member):
            continue
        lines += ["", f"## kdcli.{name}", ""]
        if not (inspect.isclass(member) and issubclass(member, Exception | Predictor)):  # the user makes none
            lines += ["```python", f"{name}{inspect.signature(member)}", "```", ""]
        lines += [inspect.getdoc(member) or ""]
        if inspect.isclass(member):
            for title, text in _members(member):
                lines += ["", f"**{title}**", "", text]
    return "\n".join(lines) + "\n"


def _members(cls: type) -> Iterator[tuple[str, str]]:
    """Yield the public methods and properties of a class, each with its docstring."""
    for name, member in vars(cls).items():
        if name.startswith("_") or not member.__doc__:
            continue
        if isinstance(member, property):
            yield f"{name}: {inspect.signature(member.fget).return_annotation}", inspect.getdoc(member) or ""
        elif inspect.isroutine(member):
            yield f"{name}{inspect.signature(member)}", inspect.getdoc(member) or ""


def pages() -> dict[str, str]:
    """The text of each page by its name."""
    return {
        "keys.md": keys_page(),
        "options.md": options_page(),
        "commands.md": commands_page(),
        "api.md": api_page(),
        **{f"{name}.md": schema_page(name) for name in SCHEMAS},
    }


if __name__ == "__main__":
    folder = Path(sys.argv[1]) if len(sys.argv) > 1 else HERE / "reference"
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in pages().items():
        (folder / name).write_text(text, encoding="utf-8")
