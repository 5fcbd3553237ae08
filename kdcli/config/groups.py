"""Reads config groups: their options, packaged and the user's own, and the values that a choice of options sets. It imports no Hydra."""

from __future__ import annotations

import functools
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from kdcli.config.paths import conf_dir, user_conf_dir
from kdcli.config.yaml_files import ENTRY, Option, read_option, read_options, read_packaged
from kdcli.errors import ConfigError, abbreviated, listed, suggest

SELF = "_self_"
"""The entry of a defaults list that stands for the file itself."""


def config_folders() -> list[Path]:
    return [folder for folder in (conf_dir(), user_conf_dir()) if folder]


def config_groups() -> list[str]:
    return sorted(
        {
            path.name
            for folder in config_folders()
            for path in folder.iterdir()
            if path.is_dir() and any(path.glob("*.yaml"))
        }
    )


def group_options(group: str) -> list[str]:
    return sorted({path.stem for folder in config_folders() for path in (folder / group).glob("*.yaml")})


def require_group(group: str) -> None:
    """Refuse a name that is not a config group.

    Raises:
        ConfigError: with the nearest group.
    """
    groups = config_groups()
    if group not in groups:
        raise ConfigError(
            f"there is no group {abbreviated(group)}{suggest(group, groups)}; expected one of {listed(groups)}"
        )


def no_such_option(group: str, option: str) -> ConfigError:
    """Return the error for an option that does not exist, with the nearest one."""
    options = group_options(group)
    there = f"; there are {listed(options)}" if options else ""
    return ConfigError(
        f"{group}={abbreviated(option)}: there is no such {group}{suggest(option, options)}{there} (look at kdcli list {group})"
    )


def describe_option(group: str, option: str) -> str:
    """Return the first comment of an option's file, which describes it."""
    path = _file(group, option)
    if path is None:
        return ""
    try:
        lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError as error:
        return f"cannot be read ({error.strerror})"
    comments = [line.lstrip("# ") for line in lines if line.startswith("#") and "@package" not in line]
    return comments[0] if comments else ""


def _file(group: str, option: str) -> Path | None:
    """Return the YAML file of an option; of a group "" that of a command."""
    paths = (folder / group / f"{option}.yaml" for folder in config_folders())
    return next((path for path in paths if path.is_file()), None)


@dataclass
class Choice:
    """The options that a command's defaults list and the user choose, and the values that their files set.

    Attributes:
        chosen: the option of each group; None: none.
        values: the merged values of the files, as nested mappings.
        origins: the option that sets each key, as GROUP=OPTION.
    """

    chosen: dict[str, str | None]
    values: dict[str, Any] = field(default_factory=dict)
    origins: dict[str, str] = field(default_factory=dict)

    def merge(self, tree: Mapping[str, Any], path: tuple[str, ...], origin: str) -> None:
        """Set the values of a file below a path."""
        node = self.values
        for part in path:
            if not isinstance(node.get(part), dict):
                node[part] = {}
            node = node[part]
        for key, value in tree.items():
            inner = (*path, str(key))
            if isinstance(value, dict):
                self.merge(value, inner, origin)
            else:
                node[str(key)] = value
                self.origins[".".join(inner)] = origin


def choose(command: str, options: Mapping[str, str | None]) -> Choice:
    """Return the values that the YAML files of a command set, as Hydra composes them from its defaults list.

    Args:
        options: what the user chooses in place of the defaults, by group; None: nothing.

    Raises:
        ConfigError: there is no such group or option, or a file is wrong.
    """
    for group, option in options.items():
        require_group(group)
        if option is not None and _file(group, option) is None:
            raise no_such_option(group, option)
    if folder := user_conf_dir():
        read_options([folder, conf_dir()], [f"{group}/{option}" for group, option in options.items()])
    primary = [entry for entry in _entries("", command) if entry.group]
    chosen = {entry.group: entry.option for entry in primary} | dict(options)
    for group, option in list(chosen.items()):  # an experiment chooses options of other groups
        if option and _file(group, option):
            overriding = [entry for entry in _entries(group, option) if entry.overrides]
            chosen |= {entry.group: entry.option for entry in overriding if entry.group not in options}
    choice = Choice({entry.group: _resolved(chosen[entry.group], chosen) for entry in primary})
    for group, option in choice.chosen.items():
        _merge(choice, group, option, (group,), f"{group}={option}")
    choice.merge(_keys(conf_dir() / f"{command}.yaml", command), (), "")
    return choice


def _resolved(option: str | None, chosen: Mapping[str, str | None]) -> str | None:
    """Return an option, also one that is named as the option of another group, such as `${dataset}`."""
    match = re.fullmatch(r"\$\{(\w+)\}", option or "")
    return chosen.get(match[1]) if match else option


def _merge(choice: Choice, group: str, option: str | None, package: tuple[str, ...], origin: str) -> None:
    """Merge an option's file, after the files of its defaults list unless they follow `_self_`."""
    path = _file(group, option) if option else None
    if path is None or option is None:
        return
    read = _read(path, f"{group}/{option}")
    if read.package != group:  # the header of the file names another package
        package = tuple(filter(None, read.package.split(".")))
    entries = [entry for entry in _entries(group, option) if not entry.overrides]
    if not any(entry.option == SELF for entry in entries):
        entries.append(_Entry(group, SELF))
    for entry in entries:
        if entry.option == SELF:
            choice.merge(_keys(path, f"{group}/{option}"), package, origin)
        else:
            _merge(choice, entry.group, entry.option, (*package, *entry.package), origin)


class _Entry(NamedTuple):
    """An entry of a defaults list."""

    group: str
    option: str | None
    package: tuple[str, ...] = ()
    """Where its keys go, below the package of the file with the list."""
    overrides: bool = False
    """It chooses the option of a group of the command."""


def _entries(group: str, option: str) -> Iterator[_Entry]:
    """Yield the entries of an option's defaults list, without those of schemas and of Hydra's own node."""
    path = _file(group, option)
    tree = _read(path, f"{group}/{option}").document.tree if path else None
    for entry in (tree or {}).get("defaults", []):
        words, name = next(iter(entry.items())) if isinstance(entry, dict) else (entry, None)
        parsed = ENTRY.fullmatch(str(words))
        if parsed is None or parsed["name"].startswith(("schema_", "hydra", "output")):
            continue
        named = parsed["name"].strip("/")
        package = tuple(filter(None, (parsed["package"] or "").split(".")))
        if isinstance(entry, dict):
            for each in name if isinstance(name, list) else [name]:
                yield _Entry(named, each, package, "override" in parsed["words"])
        elif group or named != SELF:
            yield _Entry(group, named, package)


def _keys(path: Path, name: str) -> dict[str, Any]:
    """Return the keys of a file, without its defaults list."""
    return {key: value for key, value in (_read(path, name).document.tree or {}).items() if key != "defaults"}


def _read(path: Path, name: str) -> Option:
    return _read_once(path, name, path.stat().st_mtime_ns)


@functools.cache
def _read_once(path: Path, name: str, changed: int) -> Option:
    return read_packaged(path, name) if path.is_relative_to(conf_dir()) else read_option(path, name)
