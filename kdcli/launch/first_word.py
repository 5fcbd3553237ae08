"""Reads the words of a command line without a key: the file of keys, the run directory of eval and export, and `--out`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from kdcli.config.index import keys_meant
from kdcli.config.schema import COMMANDS
from kdcli.data.sources import SUFFIXES_OF_DATA, data_suffix
from kdcli.errors import ConfigError, shown, suggest
from kdcli.files import user_path
from kdcli.launch.argv import override_value, quote_override
from kdcli.launch.config_file import SUFFIXES, ConfigFile, read_config_file

OF_A_RUN = ("eval", "export")
"""The commands whose first word may be a run directory."""


def _is_override(word: str) -> bool:
    return "=" in word or word.startswith("~")


def named_file(command: str, words: Sequence[str], rerun: Path | None = None) -> tuple[ConfigFile, list[str]]:
    """Return the file of keys that the first word names, and the other words.

    Raises:
        ConfigError: the file is wrong, or is given together with `--rerun`.
    """
    first, *others = words or [""]
    if not words or _is_override(first) or not first.lower().endswith(SUFFIXES) or user_path(first).is_dir():
        return ConfigFile((), {}), list(words)
    if rerun is not None:
        raise ConfigError(
            f"--rerun repeats a recorded config, and {shown(first)} is another one; leave one of them out"
        )
    if not user_path(first).exists():
        raise ConfigError(
            f"{shown(first)} does not exist; check the path, or write such a file (kdcli init DATA)"
        )
    return read_config_file(user_path(first), COMMANDS[command]), others


def with_run_directory(command: str, words: Sequence[str]) -> list[str]:
    """Return the words of a command line as overrides; the run directory that the first one of eval and export may be is `run=`.

    Raises:
        ConfigError: a word is neither an override nor, in the first place, a directory.
    """
    words = list(words)
    if words and not _is_override(words[0]) and command in OF_A_RUN and user_path(words[0]).is_dir():
        given = override_value(words, "run")
        if given is not None and user_path(given).absolute() != user_path(words[0]).absolute():
            raise ConfigError(f"{shown(words[0])} and run={given} are two runs; give one of them")
        others = [word for word in words[1:] if word.partition("=")[0] != "run"]
        words = [f"run={quote_override(words[0])}", *others]
    wrong = next((word for word in words if not _is_override(word)), None)
    if wrong is None:
        return words
    if command in OF_A_RUN:
        expected = f"expected the directory of a run first (kdcli {command} RUN), then KEY=VALUE"
        if user_path(wrong).is_file() and command == "eval":
            expected = f"it is a file: an exported one is scored with artifact={wrong}, and {expected}"
    elif data_suffix(wrong) in SUFFIXES_OF_DATA:
        expected = f"it looks like data: write a config for it (kdcli init {wrong}), or give it as dataset.path={wrong}"
    elif user_path(wrong).is_dir():
        expected = f"it is a folder: a run is repeated with --rerun {wrong}, and continued by its own command with --out {wrong}"
    elif candidates := keys_meant(wrong, command):
        expected = f"config keys are given as KEY=VALUE: write {candidates[0]}=…"
    else:
        expected = "expected KEY=VALUE, or first a YAML file with keys (kdcli distill kdcli.yaml)"
    raise ConfigError(
        f"{shown(wrong)} is not KEY=VALUE{suggest(wrong, COMMANDS)}; {expected} (kdcli {command} --help)"
    )


def with_folder(words: Sequence[str], out: Path | None, multirun: bool) -> list[str]:
    """Return the overrides with the directory that `--out` names: of the run, or of the sweep.

    Raises:
        ConfigError: an override names another one.
    """
    if out is None:
        return list(words)
    key = "hydra.sweep.dir" if multirun else "hydra.run.dir"
    given = override_value(words, key)
    if given is not None and user_path(given).absolute() != user_path(out).absolute():
        raise ConfigError(f"--out {out} and {key}={given} are two directories; give one of them")
    return [
        *(word for word in words if word.partition("=")[0] != key),
        f"{key}={quote_override(user_path(out))}",
    ]
