"""Writes the pages of docs/reference from the code: `python docs/generate.py [FOLDER]`; `make docs` runs it."""

from __future__ import annotations

import inspect
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from typer.testing import CliRunner

import kdcli
from kdcli.cli import app
from kdcli.config import index
from kdcli.config.groups import config_groups, describe_option, group_options
from kdcli.errors import ExitCode

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
    lines += [
        "| Code | Name |",
        "|---|---|",
        *(f"| {code.value} | {code.name.lower()} |" for code in ExitCode),
    ]
    lines += ["", "[Runs](../runs.md) explains them."]
    for command in app.registered_commands:
        name = command.name or str(command.callback and command.callback.__name__)
        shown = CliRunner().invoke(
            app, [name, "--help"], env={"COLUMNS": "100", "TERMINAL_WIDTH": "100"}, catch_exceptions=False
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
        signature = (
            ""
            if inspect.isclass(member) and issubclass(member, Exception)
            else str(inspect.signature(member))
        )
        lines += [
            "",
            f"## kdcli.{name}",
            "",
            "```python",
            f"{name}{signature}",
            "```",
            "",
            inspect.getdoc(member) or "",
        ]
        if inspect.isclass(member):
            for method, function in inspect.getmembers(member, inspect.isroutine):
                if not method.startswith("_") and function.__doc__ and method in vars(member):
                    lines += [
                        "",
                        f"**{method}{inspect.signature(function)}**",
                        "",
                        inspect.getdoc(function) or "",
                    ]
    return "\n".join(lines) + "\n"


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
