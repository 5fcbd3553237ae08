"""Implements `kdcli keys`, which describes each config key."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from kdcli import console
from kdcli.config.index import ConfigKey, all_keys, keys_below, no_such_key
from kdcli.errors import ConfigError, ExitCode, abbreviated

VALUE, SENTENCE = 40, 160
"""The maximum number of characters of a default and of a meaning in the list of all keys."""


def show_keys(words: Sequence[str], as_json: bool, config_dir: Path | None = None) -> int:
    """Print the keys that a prefix names, with the arguments of the chosen components; returns the exit code.

    Args:
        words: at most one prefix, and options as GROUP=OPTION.
        config_dir: the folder of the user's own options.

    Raises:
        ConfigError: there is no such key or option.
    """
    if config_dir is not None:
        os.environ["KDCLI_CONFIG_DIR"] = str(config_dir)
    options = dict(word.split("=", 1) for word in words if "=" in word)
    prefixes = [word for word in words if "=" not in word]
    if len(prefixes) > 1:
        raise ConfigError(
            f"{abbreviated(' '.join(prefixes))}: expected one key or the beginning of one; give one at a time"
        )
    candidates = all_keys({group: None if option == "null" else option for group, option in options.items()})
    prefix = prefixes[0] if prefixes else ""
    chosen = _chosen(prefix, candidates) if prefix else candidates
    if as_json:
        console.say(json.dumps([key.as_json() for key in chosen], ensure_ascii=False, indent=2))
    elif prefix:
        for key in chosen:
            console.entry(_heading(key), _details(key))
        settable = [key.name for key in chosen if "distill" in key.commands and not key.is_section]
        if names := [name for name in settable if not name.endswith("._target_")]:
            typed = [f"{group}={option}" for group, option in options.items()]
            console.say(" ".join(["next: kdcli distill", *typed, f"{names[0]}=VALUE"]))
    else:
        rows = [[key.name, _short(_value(key)), _short(_first_sentence(key), SENTENCE)] for key in chosen]
        console.table("", ["key", "default", "meaning"], rows)
        console.say("next: kdcli keys KEY")
    return ExitCode.DONE


def _chosen(prefix: str, candidates: Sequence[ConfigKey]) -> list[ConfigKey]:
    """Return the keys that a prefix matches, or else those whose last part it is.

    Raises:
        ConfigError: there is none.
    """
    matching = keys_below(prefix, candidates)
    matching = matching or [key for key in candidates if key.name.rpartition(".")[2] == prefix]
    if not matching:
        raise no_such_key(prefix, candidates)
    return matching


def _value(key: ConfigKey) -> str:
    """Return the default as it is written on a command line."""
    if key.required:
        return "(required)"
    return "" if key.is_section and key.default is not None else written(key.default, key.is_section)


def written(value: Any, section: bool = False) -> str:
    """Return a value as YAML and the command line write it."""
    if value is None:
        return "" if section else "null"
    return value if isinstance(value, str) and value else json.dumps(value, ensure_ascii=False)


def _heading(key: ConfigKey) -> str:
    if key.is_section:
        return key.name
    return f"{key.name}  (required)" if key.required else f"{key.name} = {_value(key)}"


def _details(key: ConfigKey) -> list[str]:
    """Return the lines below a key: its type and range, its choices, where its default comes from, and its meaning."""
    facts = [", ".join(filter(None, [key.type, key.range]))]
    if key.choices:
        facts.append(f"choices: {', '.join(key.choices)}")
    if key.option:
        facts.append(f"set by {key.option}")
    if "distill" not in key.commands:
        facts.append(f"of kdcli {', '.join(key.commands)}")
    return ["; ".join(facts), key.meaning]


def _short(text: str, limit: int = VALUE) -> str:
    return text if len(text) <= limit else f"{text[: limit - 1]}…"


def _first_sentence(key: ConfigKey) -> str:
    return key.meaning.partition(". ")[0].rstrip(".")
