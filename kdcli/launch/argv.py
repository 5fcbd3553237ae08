"""Overrides as they were typed: parsed and checked before Hydra sees them."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import ChoiceSweep, Glob, Override, QuotedString

from kdcli.config import renamed
from kdcli.config.check import holds_mapping
from kdcli.config.paths import conf_dir, user_conf_dir
from kdcli.config.schema import COMMANDS
from kdcli.config.yaml_files import UNUSABLE, Option, read_options
from kdcli.errors import ConfigError, abbreviated, shown, suggest
from kdcli.launch.choices import matches_glob
from kdcli.launch.hydra_errors import config_at_fault, config_leaves, hydra_errors

MOST_CHARACTERS, MOST_VALUES = 10_000, 2_000
"""Of a word of the command line: the time that Hydra's parser takes grows with the square."""
CFG = ("job", "hydra", "all")
INFO = ("all", "config", "defaults", "defaults-tree", "plugins", "searchpath")
OF_HYDRA = re.compile(r"hydra[./](launcher|sweeper)(\..+)?|hydra\.run(\.dir)?|hydra\.sweep(\.(dir|subdir))?")
"""Keys and groups of Hydra's own that a user may set; kdcli relies on its values of the others."""
SETTABLE = ("hydra.run.dir", "hydra.sweep.dir", "hydra.sweep.subdir", "hydra/launcher", "hydra/sweeper")


def parse_overrides(overrides: list[str]) -> list[Override]:
    """The words as Hydra reads them.

    Raises:
        ConfigError: a word is too long, no text that can be written to a file, or not of Hydra's grammar.
    """
    parsed = []
    for word in overrides:
        if len(word) > MOST_CHARACTERS or word.count(",") >= MOST_VALUES:
            raise ConfigError(
                f"{abbreviated(word)}: a word has at most {MOST_CHARACTERS} characters and {MOST_VALUES} values; put this one into a YAML "
                "file (--config-dir)"
            )
        if UNUSABLE.search(word):
            raise ConfigError(
                f"{abbreviated(word)}: the word is not UTF-8 text without U+0000; remove or rename what is not"
            )
        with hydra_errors("", [word]), config_at_fault(f"{abbreviated(word)}: Hydra cannot read it"):
            parsed += OverridesParser.create().parse_overrides([word])
    return parsed


def require_choices(typed: Iterable[Override]) -> None:
    """Raises ConfigError where a group is given anything but names of its options."""
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
    """Raises ConfigError for a key of Hydra's own that is none of `OF_HYDRA`, or that names a class."""
    for word in typed:
        key, line = word.key_or_group, str(word.input_line)
        if not re.match(r"hydra\b", key):
            continue
        if word.is_delete() or not OF_HYDRA.fullmatch(key) or "_target_" in line:
            raise ConfigError(_not_settable(key))


def _not_settable(key: str) -> str:
    return (
        f"{abbreviated(key)}: there is no such key{suggest(key, SETTABLE)} (of Hydra's, {', '.join(SETTABLE)} and what is below "
        "hydra.launcher and hydra.sweeper can be given, but no _target_; kdcli sets the others itself)"
    )


def chosen_options(typed: Iterable[Override]) -> list[str]:
    """The options that the words choose, as GROUP/NAME; words that set a key are among them, and name no file."""
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
    """The files of the user's folder that the words choose, and those that these name.

    Raises:
        ConfigError: one of them is no config, sets a key of Hydra's own that is none of `OF_HYDRA`, or has another value where the schema
            has a mapping.
    """
    folder = user_conf_dir()
    if folder is None:
        return []
    options = read_options([folder, conf_dir()], chosen_options(typed))
    for option in options:
        if option.package.partition(".")[0] == "hydra":
            continue
        for key in option.keys:
            whole = ".".join(key)
            if key[0] == "hydra" and len(key) > 1 and not OF_HYDRA.fullmatch(whole):
                raise ConfigError(f"{option.at(key)}: {_not_settable(whole)}")
            value = option.value(key)
            if (
                value is not None
                and not isinstance(value, dict | str)
                and holds_mapping(COMMANDS[command], key)
            ):
                raise ConfigError(
                    f"{option.at(key)}: {whole} = {shown(value)}: expected a mapping of keys to values"
                )
    return options


def written_keys(typed: Iterable[Override], own: Iterable[Option]) -> dict[str, str]:
    """The keys of the config that the user wrote, by their names of today: where in a file of the user's, or "" if they were typed.

    Raises:
        ConfigError: a key is given under both its old and its new name.
    """
    found = {".".join(key): option.at(key) for option in own for key in option.keys}
    for word in typed:
        value = word.value()
        if "." in word.key_or_group:  # what has none is a choice of a group
            found[word.key_or_group] = ""
        if isinstance(value, dict):
            found |= {f"{word.key_or_group}.{key}": "" for key, _ in config_leaves(value)}
    current = {key: renamed.current_key(key) for key in found}
    if both := [key for key, new in current.items() if new != key and new in found]:
        raise ConfigError(
            f"{both[0]} is the old name of {current[both[0]]}, and both are given; leave {both[0]} out"
        )
    return {current[key]: where for key, where in found.items()}


def override_value(overrides: Iterable[str], key: str) -> str | None:
    found = [word.partition("=")[2] for word in overrides if word.partition("=")[0] == key]
    return found[-1].strip("'\"") if found else None


def quote_override(path: Path | str) -> str:
    return "'" + str(path).replace("\\", "\\\\").replace("'", "\\'") + "'"


def is_sweep(word: str) -> bool:
    return bool(re.search(r"=.*,", word)) and not re.search(r"=\s*[\[{'\"]", word)
