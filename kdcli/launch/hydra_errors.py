"""Turns errors of Hydra and OmegaConf into short messages with a suggestion."""

from __future__ import annotations

import errno
import os
import re
import shlex
import tempfile
import traceback
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import hydra
from hydra.core.global_hydra import GlobalHydra
from hydra.errors import HydraException, MissingConfigException, OverrideParseException
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from kdcli import rundir
from kdcli.config import index
from kdcli.config.check import defaults
from kdcli.config.groups import config_groups, no_such_option
from kdcli.config.paths import conf_dir, user_conf_dir
from kdcli.config.schema import COMMANDS, Distill
from kdcli.errors import ConfigError, KDError, abbreviated
from kdcli.files import cache_folder, storage_error

VERSION_BASE = "1.3"
LONGEST_QUOTE = 500
"""The most characters of an exception's text in a message."""


def failure_of(error: BaseException, folder: Path | None = None) -> KDError:
    """Return the error that the user is shown for an exception. The traceback of an unexpected one is written to a file.

    Args:
        folder: the run directory, if there is one.
    """
    folders = [folder] if folder is not None else []
    if isinstance(error, KDError):
        return error
    if refused := storage_error(error, *folders, cache_folder(), Path(tempfile.gettempdir())):
        return refused
    if isinstance(error, OSError) and error.errno == errno.ENAMETOOLONG:
        name = str(error.filename or "a path")
        return ConfigError(
            f"{abbreviated(name)} is too long for a path ({len(name):,} characters; file systems allow names of 255 bytes and paths of "
            "4,096): give a shorter one"
        )
    if os.environ.get("KDCLI_DEBUG"):
        traceback.print_exception(error)
    quoted = abbreviated(next(iter(str(error).strip().splitlines()), "no text"), LONGEST_QUOTE)
    if isinstance(error, MemoryError) or re.search(r"out of memory|can't allocate memory|bad_alloc", quoted):
        return KDError(
            f"out of memory ({type(error).__name__}: {quoted}). Give trainer.micro_batch_size a smaller number, or dataset.max_length, and "
            "start the same command on the same directory: it goes on from the last checkpoint"
        )
    try:
        log = (folder or Path(tempfile.mkdtemp(prefix="kdcli-"))) / rundir.ERROR_LOG
        log.write_text("".join(traceback.format_exception(error)), encoding="utf-8")
        where = f"the traceback is in {log}"
    except OSError as problem:
        where = f"the traceback could not be written ({problem}), KDCLI_DEBUG=1 shows it"
    return KDError(
        f"unexpected {type(error).__name__}: {quoted}. It comes from a class of your own, or is a defect of kdcli: {where}; please report a "
        "defect of kdcli with it"
    )


@contextmanager
def config_at_fault(problem: str) -> Iterator[None]:
    """Report any exception in Hydra or OmegaConf while they read a config as an error in what the user wrote.

    Raises:
        ConfigError: for every exception that is not an error class of kdcli, Hydra or OmegaConf.
    """
    try:
        yield
    except (KDError, HydraException, OmegaConfBaseException):
        raise
    except Exception as error:
        why = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise ConfigError(
            f"{problem} ({abbreviated(why)}); correct the override or the YAML file that says so"
        ) from None


@contextmanager
def hydra_errors(command: str, overrides: list[str]) -> Iterator[None]:
    """Turn Hydra's errors into a ConfigError with a short message and a suggestion."""
    try:
        yield
    except KDError:
        raise
    except OverrideParseException as error:
        key, _, value = str(error.override).partition("=")
        why = str(error).splitlines()[0]
        if why.startswith("LexerNoViableAltException"):  # it only repeats the word
            why = "Hydra's grammar does not allow one of its characters"
        value = value.replace('"', '\\"')
        raise ConfigError(
            f"{error.override}: {why}; a text with such characters stands in quotes of its own: "
            + shlex.quote(f'{key}="{value}"')
        ) from None
    except MissingConfigException as error:
        raise _no_such_option(error) from None
    except (HydraException, OmegaConfBaseException) as error:
        raise ConfigError(_short(command, overrides, error)) from None


def nearby_keys(command: str, overrides: list[str]) -> list[str]:
    """Return every key of the config that these overrides' groups compose, and the groups."""
    groups = config_groups()
    choices = (*groups, "hydra.searchpath")  # the user's own folder has options, too
    chosen = [word for word in overrides if word.lstrip("+~").partition("=")[0] in choices]
    try:
        GlobalHydra.instance().clear()
        with hydra.initialize_config_dir(str(conf_dir()), version_base=VERSION_BASE):
            tree = OmegaConf.to_container(
                hydra.compose(command, chosen, return_hydra_config=True), resolve=False
            )
    except Exception:  # another message reports what is wrong with these choices
        tree = defaults(COMMANDS.get(command, Distill))
    return [*(key for key, _ in config_leaves(tree)), *groups]  # type: ignore[arg-type]


def _valid_keys(command: str, overrides: list[str]) -> list[str]:
    """Return the same as `nearby_keys` without Hydra's keys: from the index, which takes a third of the time of a composition, unless an override adds
    or removes a group, or names a stage, whose keys are not all in the index; or the user has options, which may leave out keys that the index has."""
    if user_conf_dir() is None and not any(
        word.startswith(("+", "~", "stages.")) or "@" in word for word in overrides
    ):
        with suppress(KDError):  # another message reports what is wrong with these choices
            groups = config_groups()
            chosen = (word.partition("=")[::2] for word in overrides)
            options = {key: None if value == "null" else value for key, value in chosen if key in groups}
            return [*(key.name for key in index.keys(command, options)), *groups]
    return nearby_keys(command, overrides)


def _no_such_option(error: MissingConfigException) -> ConfigError:
    group, _, option = (error.missing_cfg_file or "").rpartition("/")
    if not group:
        return ConfigError(f"{str(error).splitlines()[0]}; correct the defaults list that names it")
    return no_such_option(group, option)


def _short(command: str, overrides: list[str], error: Exception) -> str:
    """Name the overrides that are wrong, and the nearest valid keys."""
    valid = _valid_keys(command, overrides)
    text = " ".join(str(error).split())
    words = [word.lstrip("~") for word in overrides if not word.startswith("+")]
    keys = [word.partition("=")[0].partition("@")[0].replace("/", ".") for word in words]
    unknown = [key for key in keys if key not in valid and not key.startswith("hydra.")]
    if any(key in text or key.rpartition(".")[2] in text for key in unknown):
        lines = [f"{key}: there is no such key{index.suggest_keys(key, valid)}" for key in unknown]
        return "\n  ".join(lines) + " (kdcli keys shows all)"
    if unresolved := re.match(r"Error resolving interpolation '(\$\{[^']*\})'", text):
        removed = [word.lstrip("~") for word in overrides if word.startswith("~")]
        if unresolved[1][2:-1] in removed:
            group = unresolved[1][2:-1]
            return f"~{group}: a choice is needed; take one of those that kdcli list {group} shows"
        place = _place_of(re.escape(unresolved[1]), overrides)
        return f"{place}{unresolved[1]}: there is no such group; name one of those that kdcli list shows, or an option"
    if absent := re.match(r"Could not delete from config\. '(.+)' does not exist", text):
        return f"~{absent[1]}: the key has no value that could be removed; leave this word out"
    if twice := re.match(r"Multiple values for ([\w/]+)\. To override a value use", text):
        return (
            f"{_place_of(_in_defaults(twice[1]), overrides)}{twice[1]}: the defaults lists choose it twice; write `- override /{twice[1]}: NAME`, or "
            "leave this line out"
        )
    if misplaced := re.match(r"In '([\w/]+)/([^'/]+)': .* full_key: (\S+)", text):
        group, option, key = misplaced.groups()
        section, _, name = key.rpartition(".")
        return (
            f"{_place_of(_in_defaults(group), overrides)}{group}={option}: its keys would go to {section}, which has no key {name}; correct "
            "what stands behind @ in the defaults list"
        )
    if text.startswith("Error merging override"):
        return f"{text}: expected a value of another type; give one, or leave the override out"
    text = text.removesuffix(
        "Set the environment variable HYDRA_FULL_ERROR=1 for a complete stack trace."
    ).strip()
    return (
        text
        or f"the config cannot be composed ({type(error).__name__}); look for an interpolation (${{…}}) that does not end"
    )


def _in_defaults(group: str) -> str:
    """Return the pattern of a line of a defaults list that chooses an option of a group."""
    return rf"^\s*-\s*(optional\s+|override\s+)*/?{group}(@\S+)?\s*:"


def _place_of(pattern: str, overrides: list[str]) -> str:
    """Return the position of a pattern in the user's config folder, as `FILE, line 3: `; empty: none of its files matches. Options that the overrides
    choose are searched first."""
    folder = user_conf_dir()
    if folder is None:
        return ""
    chosen = {word.lstrip("+").replace("=", "/", 1) for word in overrides}

    def rank(file: Path) -> tuple[bool, Path]:
        return file.relative_to(folder).with_suffix("").as_posix() not in chosen, file

    for file in sorted(folder.rglob("*.yaml"), key=rank):
        if file.is_file():
            lines = file.read_text(encoding="utf-8", errors="replace").splitlines()
            for number, line in enumerate(lines, start=1):
                if re.search(pattern, line):
                    return f"{file}, line {number}: "
    return ""


def config_leaves(tree: dict[str, Any], path: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in tree.items():
        where = f"{path}.{key}".lstrip(".")
        yield where, value
        if isinstance(value, dict):
            yield from config_leaves(value, where)
