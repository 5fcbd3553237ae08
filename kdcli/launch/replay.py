"""Reads the config of a recorded run for reuse, and refuses values in it that could do harm."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException
from omegaconf.errors import OmegaConfBaseException

from kdcli import rundir
from kdcli.config import renamed
from kdcli.config.paths import conf_dir, user_conf_dir
from kdcli.config.types import Section
from kdcli.config.yaml_files import read_yaml
from kdcli.errors import ConfigError, listed, shown
from kdcli.launch.argv import parse_overrides

OWN = ("kdcli.losses.", "kdcli.students.", "kdcli.tasks.", "kdcli.teachers.", "kdcli.exporting.targets.")
"""The prefixes of classes that any recorded config may name."""
NAMES_CODE = ("_target_", "function")
"""Keys whose value names Python code that kdcli imports."""


def replayed_overrides(
    run: Path, schema: type[Section], overrides: list[str], part: str = ""
) -> dict[str, Any]:
    """Return the config that a run recorded, or a section of it, for reuse.

    Raises:
        ConfigError: it could do harm and the run is not trusted, or it has unknown keys.
    """
    tree: Any = rundir.saved_config(run)
    tree = tree.get(part) if part else tree
    where = run / ".hydra" / "config.yaml"
    if not isinstance(tree, dict):
        raise ConfigError(f"{where} is damaged (no {part} in it); {rundir.RESTORE}")
    if unknown := [
        key for key in tree if key not in schema.model_fields
    ]:  # Hydra would read defaults and hydra
        raise ConfigError(
            f"{where} is damaged: {listed(unknown)} {'is' if len(unknown) == 1 else 'are'} no key of it; {rundir.RESTORE}"
        )
    _require_harmless(run, {part: tree} if part else tree, overrides)
    return {str(key): value for key, value in tree.items()}


def hardware_overrides(run: Path, overrides: list[str]) -> list[str]:
    """Return the overrides that chose the device of a run, for reuse.

    Raises:
        ConfigError: they could do harm and the run is not trusted, or they are not overrides of `hardware`.
    """
    words = rundir.hardware_of(run)
    try:
        for parsed in OverridesParser.create().parse_overrides(words):
            key, value = parsed.key_or_group, parsed.value()
            if (
                parsed.is_sweep_override()
                or key.partition(".")[0] != "hardware"
                or "/" in str(parsed.get_key_element())
            ):
                raise ConfigError(
                    f"{run / rundir.HYDRA}: {shown(parsed.input_line)} is not a key of hardware with its value; {rundir.RESTORE}"
                )
            for path, leaf in rundir.leaves({key: value}):
                if reads := rundir.resolvers(leaf):
                    rundir.require_trust(run, f"{path} = {leaf}", f"calls {listed(reads)} here")
            _require_harmless(run, {key: value}, overrides)
    except (HydraException, OmegaConfBaseException, RecursionError):
        raise ConfigError(
            f"{run / rundir.HYDRA} is damaged: the words that chose the hardware cannot be read; {rundir.RESTORE}"
        ) from None
    return words


def _require_harmless(run: Path, tree: Any, overrides: list[str]) -> None:
    """Refuse recorded values that run code or send data, unless this command line gives them or the run is trusted.

    Raises:
        ConfigError
    """
    typed = [word.lstrip("+") for word in overrides]
    for path, value in rundir.leaves(tree):
        key = path.rpartition(".")[2]
        if any(word.startswith(f"{path}=") for word in typed):  # the typed value replaces the recorded one
            continue
        value = renamed.class_name(value) if key == "_target_" and isinstance(value, str) else value
        if _names_code(path, value) and value != "???" and not value.startswith(OWN):
            if not _names(value, run, typed):
                rundir.require_trust(run, f"{path} = {value}", "is Python code that is run here")
        elif key == "trust_remote_code" and value not in (False, None):
            rundir.require_trust(run, f"{path} = {value}", "runs Python files in a model's folder")
        elif key in ("base_url", "api_key_env", "push_to") and value is not None:
            rundir.require_trust(
                run, f"{path} = {value}", "sends data, and the key if one is named, to a server"
            )


def _names(value: str, run: Path, typed: list[str]) -> bool:
    """Return whether this command line names a class or a function as one: in an override of such a key, or under one in a file of the user's own
    folder. A directory of that name does not."""
    for word in parse_overrides(typed):
        if (
            not word.is_delete()
            and not word.is_sweep_override()
            and _has(value, {word.key_or_group: word.value()})
        ):
            return True
    folder = user_conf_dir()
    groups = [path.name for path in conf_dir().iterdir() if path.is_dir()]
    return folder is not None and any(
        _has(value, _tree(file))
        for group in groups
        for file in (folder / group).rglob("*.yaml")
        if file.is_file() and not file.resolve().is_relative_to(run.resolve())
    )


def _names_code(path: str, value: Any) -> bool:
    """Return whether the value of a key is the name of code that kdcli imports."""
    key = path.rpartition(".")[2]
    return isinstance(value, str) and (key in NAMES_CODE or (key == "task" and "." in value))  # MODULE.CLASS


def _tree(file: Path) -> Any:
    """Return the keys of a YAML file; nothing, if it cannot be read."""
    with contextlib.suppress(ConfigError):
        return read_yaml(file).tree
    return None


def _has(name: str, tree: Any) -> bool:
    """Return whether a tree of keys names a class or a function as such."""
    return any(_names_code(path, value) and value == name for path, value in rundir.leaves(tree))
