"""Parses and checks the overrides of the command line before Hydra sees them."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from pathlib import Path

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import ChoiceSweep, Glob, Override, QuotedString

from kdcli.config import renamed
from kdcli.config.check import annotation_at, holds_mapping
from kdcli.config.paths import conf_dir, user_conf_dir
from kdcli.config.schema import COMMANDS
from kdcli.config.types import Section
from kdcli.config.yaml_files import UNUSABLE, Option, read_options
from kdcli.errors import ConfigError, abbreviated, shown, suggest
from kdcli.launch.choices import matches_glob
from kdcli.launch.hydra_errors import config_at_fault, config_leaves, hydra_errors

MOST_CHARACTERS, MOST_VALUES = 10_000, 2_000
"""The most characters and values of an override, since the time of Hydra's parser grows quadratically."""
CFG = ("job", "hydra", "all")
INFO = ("all", "config", "defaults", "defaults-tree", "plugins", "searchpath")
OF_HYDRA = re.compile(r"hydra[./](launcher|sweeper)(\..+)?|hydra\.run(\.dir)?|hydra\.sweep(\.(dir|subdir))?")
"""Hydra's own keys and groups that a user may set; kdcli sets the others."""
SETTABLE = ("hydra.run.dir", "hydra.sweep.dir", "hydra.sweep.subdir", "hydra/launcher", "hydra/sweeper")


def parse_overrides(overrides: list[str]) -> list[Override]:
    """Parse overrides with Hydra's grammar.

    Raises:
        ConfigError: an override is too long, cannot be written to a file, or is not valid in Hydra's grammar.
    """
    parsed = []
    for word in overrides:
        if len(word) > MOST_CHARACTERS or word.count(",") >= MOST_VALUES:
            raise ConfigError(
                f"{abbreviated(word)}: an override has at most {MOST_CHARACTERS} characters and {MOST_VALUES} values; put this one into a YAML "
                "file (--config-dir)"
            )
        if UNUSABLE.search(word):
            raise ConfigError(
                f"{abbreviated(word)}: it is not UTF-8 text, or contains U+0000; remove or rename what is not"
            )
        with hydra_errors("", [word]), config_at_fault(f"{abbreviated(word)}: Hydra cannot read it"):
            parsed += OverridesParser.create().parse_overrides([word])
    return parsed


def require_choices(typed: Iterable[Override]) -> None:
    """Raise ConfigError if a group is given anything but names of its options."""
    for word in typed:
        group = word.key_or_group
        if "." in group or not (conf_dir() / group).is_dir() or word.is_sweep_override():
            continue
        value = word.value()
        names = value if isinstance(value, list) else [value]
        if not isinstance(value, dict) and not all(isinstance(name, str | None) for name in names):
            raise ConfigError(
                f"{abbreviated(str(word.input_line))}: expected the name of an option (kdcli list {group} shows them)"
            )


def require_known_hydra_keys(typed: Iterable[Override]) -> None:
    """Raise ConfigError for one of Hydra's own keys that is not in `OF_HYDRA`, that is removed, or that names a class."""
    for word in typed:
        key = word.key_or_group
        if not re.match(r"hydra\b", key):
            continue
        if not OF_HYDRA.fullmatch(key) or _names_class(word):
            raise ConfigError(not_settable(key))
        if word.is_delete():
            raise ConfigError(
                f"~{key}: Hydra's keys cannot be removed; give {key} another value, or leave this word out"
            )


def _names_class(word: Override) -> bool:
    """Return whether a word has `_target_` in its key, or in a value that is more than plain text: a mapping, a list, a sweep or an interpolation."""
    if "_target_" not in str(word.input_line):
        return False
    value = None if word.is_delete() else word.value()
    return "_target_" in word.key_or_group or not isinstance(value, str) or "${" in value


def not_settable(key: str) -> str:
    """Return the message for one of Hydra's own keys that only kdcli sets."""
    return (
        f"{abbreviated(key)}: there is no such key{suggest(key, SETTABLE)} (of Hydra's, {', '.join(SETTABLE)} and what is below "
        "hydra.launcher and hydra.sweeper can be given, but no _target_; kdcli sets the others itself)"
    )


def chosen_options(typed: Iterable[Override]) -> list[str]:
    """Return the options that overrides choose, as GROUP/NAME. Overrides that set a key are included, and match no file."""
    chosen = []
    for word in typed:
        value = matches_glob(word) if isinstance(word._value, Glob) else word.value()
        values = (
            value.list if isinstance(value, ChoiceSweep) else value if isinstance(value, list) else [value]
        )
        names = [each.text if isinstance(each, QuotedString) else each for each in values]
        chosen += [f"{word.key_or_group}/{name}" for name in names if isinstance(name, str)]
    return chosen


def own_options(command: str, typed: Iterable[Override]) -> list[Option]:
    """Return the files of the user's folder that overrides choose, and those that their defaults lists include.

    Raises:
        ConfigError: a file is not a valid config, sets one of Hydra's own keys that is not in `OF_HYDRA`, or has a plain value where the
            schema has a mapping.
    """
    folder = user_conf_dir()
    if folder is None:
        return []
    typed = list(typed)
    options = read_options([folder, conf_dir()], chosen_options(typed))
    direct = chosen_options(word for word in typed if word.package is None)
    for option in options:
        name = option.document.path.relative_to(folder).with_suffix("").as_posix()
        if name in direct and (problem := _package_problem(COMMANDS[command], option)):
            raise ConfigError(problem)
        for key in option.keys:
            path, value = ".".join(key), option.value(key)
            if key[0] == "hydra":
                if len(key) == 1 and not isinstance(value, dict):
                    raise ConfigError(
                        f"{option.at(key)}: hydra = {shown(value)}: expected a mapping of keys to values"
                    )
                if len(key) > 1 and not OF_HYDRA.fullmatch(path):
                    raise ConfigError(f"{option.at(key)}: {not_settable(path)}")
                continue
            if (
                value is not None
                and not isinstance(value, dict | str)
                and holds_mapping(COMMANDS[command], key)
            ):
                raise ConfigError(
                    f"{option.at(key)}: {path} = {shown(value)}: expected a mapping of keys to values"
                )
    return options


def _package_problem(schema: type[Section], option: Option) -> str | None:
    """Return what is wrong with the place to which an option's keys go; None: it is a section of the config, or its top level."""
    path = tuple(filter(None, option.package.split(".")))
    if not path or path[0] == "hydra":
        return None
    first = renamed.key_name(path[0])
    if first in schema.model_fields and (
        len(path) == 1 or holds_mapping(schema, path) or annotation_at(schema, path) is None
    ):
        return None
    return (
        f"{option.document.path}, line 1, column 1: its keys would go to {option.package}, which is no section of the config; write the header "
        "# @package _global_, or that of a section, into the first line"
    )


def written_keys(
    typed: Iterable[Override], own: Iterable[Option], named: Mapping[str, str] | None = None
) -> dict[str, str]:
    """Return the config keys that the user wrote, by their current names, each with its position in a file, or "" if it was typed.

    Args:
        named: the keys of the file that the command line names, with their positions.

    Raises:
        ConfigError: a key is given under both its old and its new name.
    """
    written = {".".join(key): option.at(key) for option in own for key in option.keys} | dict(named or {})
    for word in typed:
        value = word.value()
        if "." in word.key_or_group:  # a name without a dot is a group
            written[word.key_or_group] = ""
        if isinstance(value, dict):
            written |= {f"{word.key_or_group}.{key}": "" for key, _ in config_leaves(value)}
    current = {key: renamed.key_name(key) for key in written}
    if both := [key for key, new in current.items() if new != key and new in written]:
        raise ConfigError(
            f"{both[0]} is the old name of {current[both[0]]}, and both are given; leave {both[0]} out"
        )
    return {current[key]: where for key, where in written.items()}


def override_value(overrides: Iterable[str], key: str) -> str | None:
    values = [word.partition("=")[2] for word in overrides if word.lstrip("+").startswith(f"{key}=")]
    return values[-1].strip("'\"") if values else None


def quote_override(value: Path | str) -> str:
    """Return a text in quotes of Hydra's grammar, in which a backslash stands for itself except before a quote."""
    escaped = re.sub(r"(\\*)('|\Z)", lambda match: match[1] * 2 + ("\\'" if match[2] else ""), str(value))
    return f"'{escaped}'"


def is_sweep(word: str) -> bool:
    return bool(re.search(r"=.*,", word)) and not re.search(r"=\s*[\[{'\"]", word)
