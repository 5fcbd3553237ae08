"""From the command line to Hydra and back: composed configs are checked first, errors become short messages.

A config is composed with Hydra's public API and checked before `hydra.main` may make a directory. Then
`hydra.main` runs the command with a rebuilt argv, so that sweeps, launchers, `.hydra/` and `--cfg` are Hydra's.
"""

from __future__ import annotations

import copy
import gc
import itertools
import json
import math
import os
import re
import shlex
import signal
import subprocess
import sys
import tempfile
import traceback
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import BrokenExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import hydra
import yaml
from hydra.core.config_store import ConfigStore
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import ChoiceSweep, Glob, Override, QuotedString, RangeSweep
from hydra.errors import HydraException, MissingConfigException, OverrideParseException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from omegaconf.resolvers import oc

from kdcli import console, processes, rundir
from kdcli.config import (
    COMMANDS,
    Dataset,
    Distill,
    Section,
    check,
    conf_dir,
    defaults,
    holds_mapping,
    remarks,
    secret_in,
    suggest,
    unread,
    user_conf_dir,
)
from kdcli.configfiles import UNUSABLE, Option, read_options
from kdcli.errors import ConfigError, KDError, abbreviated, hide, hide_nothing, listed, shown
from kdcli.files import (
    cache_folder,
    clean_cache,
    named_path,
    remove_abandoned,
    require_name,
    storage_error,
    user_path,
    workplace,
    write_json,
)

VERSION_BASE = "1.3"
HOME = re.compile(r"(?<![^,\[ ])~(?=/|$)")
"""The user's folder, where a value or one of several begins with it."""
MOST_SAID = 500
"""Characters of an exception's text that a message repeats."""
UNSET = object()
"""In place of a default that was not given."""
UNRECORDED = "hydra.output_subdir=null"
"""Keeps Hydra from writing `.hydra/`, which it does before the directory is held, in place, and anew when a run is continued."""
MOST_JOBS = 256
"""Jobs of a sweep that are checked before the first one starts."""
MOST_POINTS = 10_000
"""Jobs of a sweep."""
LONGEST_FILE = 100
"""Characters of a path inside a run directory, at most about so many."""
MOST_CHARACTERS, MOST_VALUES = 10_000, 2_000
"""Of a word of the command line: the time that Hydra's parser takes grows with the square."""
CFG = ("job", "hydra", "all")
INFO = ("all", "config", "defaults", "defaults-tree", "plugins", "searchpath")
OF_HYDRA = re.compile(r"hydra[./](launcher|sweeper)(\..+)?|hydra\.run(\.dir)?|hydra\.sweep(\.(dir|subdir))?")
"""Keys and groups of Hydra's own that a user may set; kdcli relies on its values of the others."""
SETTABLE = ("hydra.run.dir", "hydra.sweep.dir", "hydra.sweep.subdir", "hydra/launcher", "hydra/sweeper")


def launch(
    command: str,
    overrides: list[str],
    multirun: bool = False,
    config_dir: Path | None = None,
    cfg: str | None = None,
    resolve: bool = False,
    info: str | None = None,
    rerun: Path | None = None,
    trust_run: bool = False,
) -> int:
    """Run a command; returns its exit code. Every exception becomes one message."""
    console.setup_logging()
    rundir.trust(trust_run)
    hide_nothing()
    with processes.watched():
        before = processes.children()
        try:
            return _launch(command, overrides, multirun, config_dir, cfg, resolve, info, rerun)
        except KeyboardInterrupt as error:
            processes.end_children(before)
            console.error(
                f"{error or 'interrupted'}: the same command on the same directory goes on from the last checkpoint"
            )
            return processes.exit_code(error)
        except Exception as error:
            failure = _failure(error)
            console.error(failure.message)
            return failure.exit_code


def _failure(error: BaseException, folder: Path | None = None) -> KDError:
    """What the user is told of an exception. The traceback of one that nobody expected is written to a file.

    Args:
        folder: the run directory, if there is one.
    """
    places = [folder] if folder is not None else []
    if isinstance(error, KDError):
        return error
    if refused := storage_error(error, *places, cache_folder(), Path(tempfile.gettempdir())):
        return refused
    if os.environ.get("KDCLI_DEBUG"):
        traceback.print_exception(error)
    said = abbreviated(next(iter(str(error).strip().splitlines()), "no text"), MOST_SAID)
    if isinstance(error, MemoryError) or re.search(r"out of memory|can't allocate memory|bad_alloc", said):
        return KDError(
            f"out of memory ({type(error).__name__}: {said}). Give trainer.micro_batch_size a smaller number, or dataset.max_length, and "
            "start the same command on the same directory: it goes on from the last checkpoint"
        )
    try:
        log = (folder or Path(tempfile.mkdtemp(prefix="kdcli-"))) / rundir.ERROR_LOG
        log.write_text("".join(traceback.format_exception(error)), encoding="utf-8")
        place = f"the traceback is in {log}"
    except OSError as problem:
        place = f"the traceback could not be written ({problem}), KDCLI_DEBUG=1 shows it"
    return KDError(
        f"unexpected {type(error).__name__}: {said}. It comes from a class of your own, or is a defect of kdcli: {place}; please report a "
        "defect of kdcli with it"
    )


def _launch(
    command: str,
    overrides: list[str],
    multirun: bool,
    config_dir: Path | None,
    cfg: str | None,
    resolve: bool,
    info: str | None,
    rerun: Path | None,
) -> int:
    for word in overrides:
        key, _, value = word.lstrip("+~").partition("=")
        # of several values of a sweep each one; what an interpolation stands for is seen once it is resolved
        for each in value.split(",") if "${" not in value else ():
            if problem := secret_in(key.replace("/", "."), each.strip("'\"[] ")):
                raise ConfigError(problem)
    if wrong := [word for word in overrides if "=" not in word and not word.startswith("~")]:
        raise ConfigError(
            f"{shown(wrong[0])} is not KEY=VALUE{suggest(wrong[0], COMMANDS)} (kdcli {command} --help)"
        )
    if resolve and not cfg:
        raise ConfigError("--resolve goes with --cfg job")
    for option, chosen, known in (("--cfg", cfg, CFG), ("--info", info, INFO)):
        if chosen is not None and chosen not in known:
            raise ConfigError(f"{option} {shown(chosen)}: expected one of {', '.join(known)}")
    overrides = list(map(_at_home, overrides))
    typed = _parse(overrides)
    _require_choices(typed)
    _require_hydra(typed)
    if config_dir is not None:
        os.environ["KDCLI_CONFIG_DIR"] = str(config_dir)
    own = _own_options(command, typed)
    written = _written(typed, own)
    name, overrides = _register(command, overrides, rerun)
    if cfg or info:
        _compose(command, name, [word for word in overrides if not _swept(word)], written)
        options = [f"--cfg={cfg}" if cfg else f"--info={info}", *(["--resolve"] if resolve else [])]
        return _hydra(name, [*options, *overrides])
    if multirun:
        return _sweep(command, name, overrides, written)
    composed = _compose(command, name, overrides, written)
    for remark in _remarks(command, composed):
        console.warn(remark)
    argv = list(overrides)
    folder = _run_folder(composed)
    if command == "export":  # it writes into the run's own directory, and leaves that run's .hydra alone
        folder = user_path(str(composed.run)).absolute()
        rundir.read_report(folder)
    elif int(os.environ.get("RANK", "0")) > 0:  # only the first process owns the run directory
        with workplace():
            place = Path(tempfile.gettempdir(), "run")
            return _hydra(name, [*argv, UNRECORDED, f"hydra.run.dir={_quoted(place)}"])
    elif rundir.examine(folder, _tree(composed)) == "finished":
        with workplace():
            clean_cache()
            rundir.tidy(folder)
        console.say(f"{folder} is finished; see {folder / 'report.html'}")
        return 0
    rundir.make(folder)
    return _hydra(name, [*argv, UNRECORDED, f"hydra.run.dir={_quoted(folder)}"])


def _of_environment(key: str, default: Any = UNSET) -> str | None:
    """OmegaConf's `oc.env`, whose values messages do not show."""
    value: str | None = oc.env(key) if default is UNSET else oc.env(key, default)
    if key in os.environ:
        hide(os.environ[key], f"${{oc.env:{key}}}")
    return value


OmegaConf.register_new_resolver("oc.env", _of_environment, replace=True)


# ---- the words of the command line -------------------------------------------------------------------


def _parse(overrides: list[str]) -> list[Override]:
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
        with _hydra_errors("", [word]), _config_at_fault(f"{abbreviated(word)}: Hydra cannot read it"):
            parsed += OverridesParser.create().parse_overrides([word])
    return parsed


def _require_choices(typed: Iterable[Override]) -> None:
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


def _require_hydra(typed: Iterable[Override]) -> None:
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


def _own_options(command: str, typed: Iterable[Override]) -> list[Option]:
    """The files of the user's folder that the words choose, and those that these name.

    Raises:
        ConfigError: one of them is no config, sets a key of Hydra's own that is none of `OF_HYDRA`, or has another value where the schema
            has a mapping.
    """
    folder = user_conf_dir()
    if folder is None:
        return []
    chosen = []
    for word in typed:
        value = _globbed(word) if isinstance(word._value, Glob) else word.value()
        values = (
            value.list if isinstance(value, ChoiceSweep) else value if isinstance(value, list) else [value]
        )
        names = [each.text if isinstance(each, QuotedString) else each for each in values]
        chosen += [f"{word.key_or_group}/{name}" for name in names if isinstance(name, str)]
    options = read_options([folder, conf_dir()], chosen)
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


def _written(typed: Iterable[Override], own: Iterable[Option]) -> dict[str, str]:
    """The keys of the config that the user wrote: where in a file of his own, or "" if he typed them."""
    found = {".".join(key): option.at(key) for option in own for key in option.keys}
    for word in typed:
        value = word.value()
        if "." in word.key_or_group:  # what has none is a choice of a group
            found[word.key_or_group] = ""
        if isinstance(value, dict):
            found |= {f"{word.key_or_group}.{key}": "" for key, _ in _leaves(value)}
    return found


def _remarks(command: str, composed: DictConfig) -> list[str]:
    return remarks(Distill.model_validate(_tree(composed))) if command == "distill" else []


@contextmanager
def _config_at_fault(problem: str) -> Iterator[None]:
    """Whatever exception Hydra and OmegaConf end in while they read a config: what the user wrote is at fault.

    Raises:
        ConfigError: for every exception that is no error of kdcli, Hydra or OmegaConf.
    """
    try:
        yield
    except (KDError, HydraException, OmegaConfBaseException):
        raise
    except Exception as error:
        why = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise ConfigError(f"{problem} ({abbreviated(why)})") from None


# ---- composing ---------------------------------------------------------------------------------------


def _register(command: str, overrides: list[str], rerun: Path | None) -> tuple[str, list[str]]:
    """Give Hydra the schema's defaults, the user's folder, and what a run recorded."""
    store = ConfigStore.instance()
    for each, schema in COMMANDS.items():
        store.store(name=f"schema_{each}", node=defaults(schema), provider="kdcli")
    overrides = ["hydra/job_logging=none", "hydra/hydra_logging=none", *overrides]
    if folder := user_conf_dir():
        _importable(folder)
        overrides.append(f"hydra.searchpath=[{_quoted(f'file://{folder}')}]")
    name = command
    if rerun is not None:
        if any(
            word.partition("=")[0]
            in ("teacher", "student", "dataset", "rollout", "loss", "hardware", "trainer")
            for word in overrides
        ):
            raise ConfigError(
                "--rerun repeats a recorded config: groups cannot be chosen anew, single keys can (seed=1)"
            )
        saved = _replayed(rerun, Distill, overrides)
        choices, words = rundir.recorded_choice(rerun)
        called = OmegaConf.create({"runtime": {"choices": choices}, "overrides": {"task": words}})
        recorded = {"runtime": {"choices": _called(called, saved)}}
        store.store(
            name="rerun",
            node={"defaults": ["_self_", "output"], "hydra": recorded, **saved},
            provider="kdcli",
        )
        name = "rerun"
        if _value(overrides, "hydra.run.dir") is None:
            overrides.append("hydra.run.dir=runs/distill/${now:%Y-%m-%d-%H%M%S-%f}")
    if command == "export" and (run := _value(overrides, "run")) and _value(overrides, "hardware") is None:
        overrides = [*_hardware_words(user_path(run), overrides), *overrides]
    named = _value(overrides, "dataset") is not None
    if command == "eval" and not named and (run := _value(overrides, "run")):
        if any(word.startswith("run=") and _swept(word) for word in overrides):
            raise ConfigError(
                f"run={run}: each run is scored on its own data set, so eval takes one at a time; start it once for each, or "
                "name the data set (dataset=…)"
            )
        dataset = _replayed(user_path(run), Dataset, overrides, "dataset")
        if (
            _value(overrides, "dataset.path") is not None and dataset.get("format") != "hub"
        ):  # its other files are not of that one
            dataset |= {"validation": None, "test": None, "unlabelled": None}
        store.store(group="dataset", name="of_the_run", node=dataset, provider="kdcli")
        overrides.append("dataset=of_the_run")
    if any(word.startswith("stages.") for word in overrides):
        # a stage says only in what it differs from the run: its other keys are in no file, and the schema refuses wrong ones
        stages = tuple(f"{key}." for key in _known(name, overrides) if re.fullmatch(r"stages\.[^.]+", key))
        overrides = [f"++{word}" if word.startswith(stages) else word for word in overrides]
    return name, overrides


OWN = ("kdcli.losses.", "kdcli.students.", "kdcli.teachers.", "kdcli.hardware.")
"""Where the classes are that any config may name."""
NAMES_CODE = ("_target_", "function")
"""Keys whose value names Python code that is imported."""


def _replayed(run: Path, schema: type[Section], overrides: list[str], part: str = "") -> dict[str, Any]:
    """The config that a run recorded, or a part of it, as it is used once more.

    Raises:
        ConfigError: it could do harm and the run is not trusted, or it holds what no config holds.
    """
    tree: Any = rundir.saved_config(run)
    tree = tree.get(part) if part else tree
    where = run / ".hydra" / "config.yaml"
    if not isinstance(tree, dict):
        raise ConfigError(f"{where} is damaged (no {part} in it)")
    if unknown := [
        key for key in tree if key not in schema.model_fields
    ]:  # Hydra would read defaults and hydra
        raise ConfigError(
            f"{where} is damaged: {listed(unknown)} {'is' if len(unknown) == 1 else 'are'} no key of it"
        )
    _require_harmless(run, {part: tree} if part else tree, overrides)
    return {str(key): value for key, value in tree.items()}


def _hardware_words(run: Path, overrides: list[str]) -> list[str]:
    """The words by which a run chose its device, as they are used once more.

    Raises:
        ConfigError: they could do harm and the run is not trusted, or they are not such words.
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
                    f"{run / rundir.HYDRA}: {shown(parsed.input_line)} is not a key of hardware with its value"
                )
            for path, leaf in rundir.leaves({key: value}):
                if reads := rundir.resolvers(leaf):
                    rundir.require_trust(run, f"{path} = {leaf}", f"calls {listed(reads)} here")
            _require_harmless(run, {key: value}, overrides)
    except (HydraException, OmegaConfBaseException, RecursionError):
        raise ConfigError(
            f"{run / rundir.HYDRA} is damaged: the words that chose the hardware cannot be read"
        ) from None
    return words


def _require_harmless(run: Path, tree: Any, overrides: list[str]) -> None:
    """Refuse what a config from elsewhere could run or send, unless this command line gives it or the run is trusted.

    Raises:
        ConfigError
    """
    typed = [word.lstrip("+") for word in overrides]
    for path, value in rundir.leaves(tree):
        key = path.rpartition(".")[2]
        if any(word.startswith(f"{path}=") for word in typed):  # that value takes its place
            continue
        if key in NAMES_CODE and isinstance(value, str) and value != "???" and not value.startswith(OWN):
            if not _names(value, run, typed):
                rundir.require_trust(run, f"{path} = {value}", "is Python code that is run here")
        elif key == "trust_remote_code" and value not in (False, None):
            rundir.require_trust(run, f"{path} = {value}", "runs Python files that lie beside a model")
        elif key in ("base_url", "api_key_env") and value is not None:
            rundir.require_trust(
                run, f"{path} = {value}", "sends data, and the key if one is named, to a server"
            )


def _names(value: str, run: Path, typed: list[str]) -> bool:
    """Whether this command line names a class or a function: by a typed word, or in a choice of the user's own folder."""
    name = re.compile(rf"(?<![\w.]){re.escape(value)}(?![\w.])")
    if any(name.search(word) for word in typed):
        return True
    folder = user_conf_dir()
    groups = [path.name for path in conf_dir().iterdir() if path.is_dir()]
    return folder is not None and any(
        name.search(file.read_text(encoding="utf-8", errors="replace"))
        for group in groups
        for file in (folder / group).rglob("*.yaml")
        if not file.resolve().is_relative_to(run.resolve())
    )


def _at_home(word: str) -> str:
    """A word with its `~` expanded: Hydra cannot read it, and not every shell expands it after =."""
    key, equals, value = word.partition("=")
    return word if re.search(r"['\"]", value) else key + equals + HOME.sub(lambda _: str(Path.home()), value)


def _importable(folder: Path) -> None:
    """Have classes in the user's folder found, after everything else: no file in it takes the place of another module."""
    if str(folder) not in sys.path:
        sys.path.append(str(folder))


def _compose(command: str, name: str, overrides: list[str], written: Mapping[str, str]) -> DictConfig:
    """The composed config with Hydra's own node, checked.

    Args:
        written: the keys that the user wrote, and where.

    Raises:
        ConfigError: Hydra cannot compose it, the schema refuses it, or the task does not read what the user wrote.
    """
    with _hydra_errors(command, overrides), _config_at_fault("the config cannot be composed"):
        GlobalHydra.instance().clear()
        with hydra.initialize_config_dir(str(conf_dir()), version_base=VERSION_BASE):
            try:
                composed = hydra.compose(name, overrides, return_hydra_config=True)
            except ValueError:
                nothing = [key for key in _groups() if _value(overrides, key) == "null"]
                if not nothing:
                    raise
                raise ConfigError(
                    f"{nothing[0]}=null: a choice is needed (kdcli list {nothing[0]} shows them)"
                ) from None
    if "hardware" in composed.hydra.runtime.choices:
        require_name(str(composed.hydra.runtime.choices.hardware), "hardware")

    def tell(problem: str) -> str:
        """Where the value at fault stands, unless it was typed."""
        where = written.get(re.split(r" = |: ", problem, maxsplit=1)[0])
        return f"{problem} ({where})" if where else problem

    config = check(COMMANDS[command], _tree(composed), tell)
    if problems := [*map(tell, unread(config, written))]:
        raise ConfigError("\n  ".join(["the config is wrong:", *problems]))
    return composed


def _tree(composed: DictConfig) -> dict[str, Any]:
    """The config without Hydra's node, resolved, as plain data."""
    with _config_at_fault("the config cannot be resolved"):
        plain = OmegaConf.masked_copy(composed, [str(key) for key in composed if key != "hydra"])
        try:
            return dict(OmegaConf.to_container(plain, resolve=True))  # type: ignore[arg-type]
        except OmegaConfBaseException as error:
            raise ConfigError(f"the config cannot be resolved: {str(error).splitlines()[0]}") from None


def _run_folder(composed: DictConfig) -> Path:
    """Where the run goes: `hydra.run.dir`, made absolute."""
    HydraConfig.instance().set_config(composed)
    return _folder(composed, "hydra.run.dir")


def _folder(composed: DictConfig, key: str, within: Path = Path()) -> Path:
    """A path of Hydra's, made absolute.

    Raises:
        ConfigError: it cannot be resolved, or no file system takes it.
    """
    try:
        given = Path(str(OmegaConf.select(composed, key, throw_on_missing=True)))
        folder = (within / user_path(given)).absolute()
        (folder / ("x" * LONGEST_FILE)).exists()  # that is how long the names of a run's files can be
    except OmegaConfBaseException as error:
        raise ConfigError(f"{key}: it cannot be resolved ({str(error).splitlines()[0]})") from None
    except (OSError, ValueError, RuntimeError) as error:
        raise ConfigError(
            f"{key}: the run directory cannot be made there ({error}); choose another"
        ) from None
    return folder


def _value(overrides: Iterable[str], key: str) -> str | None:
    found = [word.partition("=")[2] for word in overrides if word.partition("=")[0] == key]
    return found[-1].strip("'\"") if found else None


def _quoted(path: Path | str) -> str:
    return "'" + str(path).replace("\\", "\\\\").replace("'", "\\'") + "'"


@contextmanager
def _hydra_errors(command: str, overrides: list[str]) -> Iterator[None]:
    """Hydra's errors as short messages with a suggestion."""
    try:
        yield
    except KDError:
        raise
    except OverrideParseException as error:
        key, _, value = str(error.override).partition("=")
        why = str(error).splitlines()[0]
        if why.startswith("LexerNoViableAltException"):  # which repeats the word and says no more
            why = "Hydra cannot read a character of it"
        value = value.replace('"', '\\"')
        raise ConfigError(
            f"{error.override}: {why}; a text with such characters stands in quotes of its own: "
            + shlex.quote(f'{key}="{value}"')
        ) from None
    except MissingConfigException as error:
        raise ConfigError(_no_such_option(error)) from None
    except (HydraException, OmegaConfBaseException) as error:
        raise ConfigError(_short(command, overrides, error)) from None


def _known(command: str, overrides: list[str]) -> list[str]:
    """Every key that these choices of groups have, and the groups."""
    groups = _groups()
    choices = (*groups, "hydra.searchpath")  # the user's own folder has choices too
    chosen = [word for word in overrides if word.lstrip("+~").partition("=")[0] in choices]
    try:
        GlobalHydra.instance().clear()
        with hydra.initialize_config_dir(str(conf_dir()), version_base=VERSION_BASE):
            tree = OmegaConf.to_container(
                hydra.compose(command, chosen, return_hydra_config=True), resolve=False
            )
    except Exception:  # these choices are at fault as well, of which other messages tell
        tree = defaults(COMMANDS.get(command, Distill))
    return [*(key for key, _ in _leaves(tree)), *groups]  # type: ignore[arg-type]


def _no_such_option(error: MissingConfigException) -> str:
    group, _, option = (error.missing_cfg_file or "").rpartition("/")
    if not group:
        return str(error).splitlines()[0]
    options = _options(group)
    there = f"; there are {listed(options)} (kdcli list {group})" if options else ""
    return f"{group}={abbreviated(option)}: there is no such {group}{suggest(option, options)}{there}"


def _short(command: str, overrides: list[str], error: Exception) -> str:
    """Name the overrides that are at fault, and what is like them."""
    known = _known(command, overrides)
    text = " ".join(str(error).split())
    words = [word.lstrip("~") for word in overrides if not word.startswith("+")]
    keys = [word.partition("=")[0].partition("@")[0].replace("/", ".") for word in words]
    unknown = [key for key in keys if key not in known]
    if any(key in text or key.rpartition(".")[2] in text for key in unknown):
        lines = [f"{key}: there is no such key{suggest(key, known)}" for key in unknown]
        return "\n  ".join(lines) + f" (kdcli {command} --cfg job shows all)"
    return text.removesuffix(
        "Set the environment variable HYDRA_FULL_ERROR=1 for a complete stack trace."
    ).strip()


def _leaves(tree: dict[str, Any], path: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in tree.items():
        where = f"{path}.{key}".lstrip(".")
        yield where, value
        if isinstance(value, dict):
            yield from _leaves(value, where)


# ---- running -----------------------------------------------------------------------------------------

_status: dict[str, int] = {}


def _hydra(name: str, argv: list[str]) -> int:
    """`hydra.main` with a rebuilt argv. In this process jobs leave their exit code in `_status`."""
    os.environ["HYDRA_FULL_ERROR"] = "1"  # exceptions come to us, not to Hydra's printer
    before, sys.argv = sys.argv, ["kdcli", *argv]
    task = {"distill": run_distill, "rerun": run_distill, "eval": run_eval, "export": run_export}[name]
    _status.clear()
    try:
        with _hydra_errors("distill" if name == "rerun" else name, argv):
            hydra.main(version_base=VERSION_BASE, config_path=str(conf_dir()), config_name=name)(task)()
    finally:
        sys.argv = before
    return max(_status.values(), default=0)


def run_distill(cfg: DictConfig) -> None:
    """One job of `kdcli distill`."""
    _job("distill", cfg)


def run_eval(cfg: DictConfig) -> None:
    """One job of `kdcli eval`."""
    _job("eval", cfg)


def run_export(cfg: DictConfig) -> None:
    """One job of `kdcli export`."""
    _job("export", cfg)


def _job(command: str, cfg: DictConfig) -> None:
    """Check, hold the run directory, run, and leave no directory behind that nothing came of. Whatever a job fails with becomes its message
    and its exit code; of a sweep it is also written into its directory, and the other jobs run.

    Raises:
        KeyboardInterrupt: a signal came.
    """
    console.setup_logging()
    folder = Path(HydraConfig.get().runtime.output_dir)
    owner = int(os.environ.get("RANK", "0")) == 0
    sweep = HydraConfig.get().mode == hydra.types.RunMode.MULTIRUN
    holds = owner and command != "export"
    own = not holds  # whether its files are this process's to write
    fresh, status = False, 1
    with processes.watched(), workplace():
        try:
            if holds:
                state = rundir.take(folder, _tree(cfg))
                own, fresh = True, state == "new"
                if state == "finished":  # a job of a sweep that is continued
                    status = 0
                    return
            if holds or (owner and sweep):
                _record(folder, cfg)
            if owner:
                clean_cache()
                remove_abandoned(folder, deep=True)
            if conf := user_conf_dir():  # in the process of a launcher it is not importable yet
                _importable(conf)
            config = check(COMMANDS[command], _tree(cfg))
            status = _command(command, config, folder)
            if holds and command == "distill" and config.dry_run:
                rundir.release(folder, remove=fresh)
        except (Exception, SystemExit) as error:
            failure = _failure(error, folder if owner else None)
            status = failure.exit_code
            if fresh and status == 2 and rundir.trained(folder):
                status = 1  # what was trained stays, and 2 would say that nothing was
            if holds:
                rundir.release(folder, remove=fresh and status == 2)
            _failed(folder, status, failure.message, own)
        except KeyboardInterrupt as error:
            status = processes.exit_code(error)
            _failed(folder, status, f"{error or 'interrupted'}", own, say=False)
            raise
        finally:
            if holds:
                rundir.release(folder)
            _status[str(folder)] = status


def _words(recorded: Any) -> list[str]:
    """The words of a command line as Hydra keeps them; an interpolation in a word stays as it was typed."""
    return [str(word) for word in OmegaConf.to_container(recorded, resolve=False)]  # type: ignore[union-attr]


def _record(folder: Path, cfg: DictConfig) -> None:
    """Write `.hydra/` into a job's directory, as Hydra does it."""
    recorded: Any = copy.deepcopy(HydraConfig.instance().cfg)
    OmegaConf.set_readonly(recorded.hydra, False)
    recorded.hydra.output_subdir = str(rundir.HYDRA.parent)
    recorded.hydra.overrides.hydra = [
        word for word in _words(recorded.hydra.overrides.hydra) if word != UNRECORDED
    ]
    parts = {"config": cfg, "hydra": recorded, "overrides": recorded.hydra.overrides.task}
    rundir.record(folder, {f"{name}.yaml": OmegaConf.to_yaml(part) for name, part in parts.items()})


def _failed(folder: Path, status: int, message: str, own: bool, say: bool = True) -> None:
    """Tell what a job failed with; of a job of a sweep, write it into its directory for the table.

    Args:
        own: the directory is held by this process. Nothing is written into another one's.
    """
    sweep = HydraConfig.get().mode == hydra.types.RunMode.MULTIRUN
    if say:
        console.error(f"{folder.name}: {message}" if sweep else message)
    if sweep and own:
        _write_failure(folder, status, message, " ".join(_words(HydraConfig.get().overrides.task)))


def _write_failure(folder: Path, status: int, message: str, words: str) -> None:
    told = {"exit_code": status, "message": message, "overrides": words}
    with suppress(OSError):  # a full disk, which the message told: the table says that the job did not finish
        folder.mkdir(parents=True, exist_ok=True)
        (folder / rundir.ERROR).write_text(json.dumps(told), encoding="utf-8")


def _command(command: str, config: Any, folder: Path) -> int:
    if command == "distill":
        from kdcli.commands.distill import distill

        _imported()
        return distill(config, folder, _called(HydraConfig.get(), config.model_dump()))
    if command == "eval":
        from kdcli.commands.eval import evaluate

        _imported()
        return evaluate(config, folder)
    from kdcli.commands.export import export

    _imported()
    hardware = str(HydraConfig.get().runtime.choices["hardware"])
    status = export(config, hardware)
    if HydraConfig.get().mode == hydra.types.RunMode.MULTIRUN:  # another job may make the same files anew
        place = named_path(user_path(config.run), "export", hardware, what="hardware")
        made = rundir.read_export(place)
        write_json(folder / rundir.EXPORT, made | {"exit_code": status})
    return status


def _imported() -> None:
    """Have garbage looked for from now on, if `kdcli.cli.main` put it off, and never among what was imported."""
    if not gc.isenabled():
        gc.freeze()
        gc.enable()


def _called(recorded: Any, config: Mapping[str, Any]) -> dict[str, str]:
    """What teacher, student and data set are called: the choice that was made, or the path that was given.

    Args:
        recorded: what Hydra tells of a run; of one that repeats another its choices are what they were called there.
    """
    chosen, overrides = recorded.runtime.choices, _words(recorded.overrides.task)
    names = {}
    for group in ("teacher", "student", "dataset", "hardware"):
        given = any(word.startswith(f"{group}.path=") for word in overrides)
        section = config.get(group)
        path = section.get("path") if isinstance(section, Mapping) else None
        names[group] = str(path if given or group not in chosen else chosen[group])
    return names


# ---- sweeps ------------------------------------------------------------------------------------------


def _swept(word: str) -> bool:
    return bool(re.search(r"=.*,", word)) and not re.search(r"=\s*[\[{'\"]", word)


def _axes(overrides: list[str]) -> list[list[str]]:
    """What each word of a sweep stands for: one word, or one for each of its values.

    Raises:
        ConfigError: a word stands for none, or for none that can be counted; or all of them for more than `MOST_POINTS` jobs.
    """
    parsed = _parse(overrides)
    points = [_points(word) for word in parsed]
    if math.prod(points) > MOST_POINTS:
        counted = ", ".join(
            f"{word.get_key_element()}: {count}"
            for word, count in zip(parsed, points, strict=True)
            if count > 1
        )
        raise ConfigError(
            f"the sweep has {math.prod(points):,} points ({abbreviated(counted)}), and at most {MOST_POINTS:,} are possible; "
            "give fewer values, or a larger step"
        )
    axes = []
    for word in parsed:
        if not word.is_sweep_override():
            axes.append([str(word.input_line)])
            continue
        with _config_at_fault(f"{abbreviated(str(word.input_line))}: it cannot be swept over"):
            values = _globbed(word) if isinstance(word._value, Glob) else [*word.sweep_string_iterator()]
        axes.append([f"{word.get_key_element()}={value}" for value in values])
    return axes


def _points(word: Override) -> int:
    """How many values a word stands for, counted without making them.

    Raises:
        ConfigError: none, or they cannot be counted.
    """
    line, value = abbreviated(str(word.input_line)), word._value
    if not word.is_sweep_override():
        return 1
    if isinstance(value, RangeSweep):
        first, last, step = (float(each or 0) for each in (value.start, value.stop, value.step))
        if step == 0 or not all(map(math.isfinite, (first, last, step))):
            raise ConfigError(f"{line}: a range needs finite bounds and a step that is not 0")
        count = max(0, math.ceil((last - first) / step))
    elif isinstance(value, ChoiceSweep):
        count = len(value.list)
    elif isinstance(value, Glob):
        count = len(_globbed(word))
    else:  # an interval, from which a sweeper draws
        raise ConfigError(
            f"{line}: kdcli runs every point of a sweep, and an interval has too many; give values (a,b,c) or range(FIRST,END,STEP)"
        )
    if count == 0:
        raise ConfigError(f"{line}: this stands for no value at all; give at least one")
    return count


def _globbed(word: Override) -> list[str]:
    """The options of a group, one's own included, that a pattern is like."""
    return list(word._value.filter(_options(word.key_or_group)))  # type: ignore[union-attr]


def _require_sweeper(composed: DictConfig) -> None:
    """Raises ConfigError for settings with which Hydra's sweeper or a launcher starts no job."""
    size, jobs = composed.hydra.sweeper.get("max_batch_size"), composed.hydra.launcher.get("n_jobs")
    if size is not None and size < 1:
        raise ConfigError(f"hydra.sweeper.max_batch_size = {size}: expected at least 1, or null")
    if jobs is not None and jobs == 0:
        raise ConfigError(
            "hydra.launcher.n_jobs = 0: expected at least 1, or -1 for as many as there are cores"
        )


def _sweep(command: str, name: str, overrides: list[str], written: Mapping[str, str]) -> int:
    """All jobs are checked, then Hydra runs them, then a table shows them side by side."""
    axes = _axes(overrides)
    points: dict[Path, list[str]] = {}
    remarked: dict[str, None] = {}
    for number, job in enumerate(itertools.islice(itertools.product(*axes), MOST_JOBS)):
        composed = _compose(command, name, list(job), written)
        remarked |= dict.fromkeys(_remarks(command, composed))
        if number == 0:
            _require_sweeper(composed)
        OmegaConf.set_readonly(composed, False)
        composed.hydra.job.num = number
        HydraConfig.instance().set_config(composed)
        if number == 0:  # its name has the time in it, which is another one for each point
            folder = _folder(composed, "hydra.sweep.dir")
            rundir.examine_sweep(folder)
        run = _folder(composed, "hydra.sweep.subdir", folder)
        rundir.examine(run, _tree(composed))
        if run in points or not run.is_relative_to(folder) or ".." in run.parts:
            raise ConfigError(
                f"hydra.sweep.subdir: point {number} would go to {run}; give each a folder of its own below hydra.sweep.dir, as "
                "'NAME-${hydra:job.num}' does"
            )
        points[run] = list(job)
    for remark in remarked:
        console.warn(remark)
    for run in points:  # what an earlier sweep left there says nothing of this one
        (run / rundir.ERROR).unlink(missing_ok=True)
    words = [
        f"{axis[0].partition('=')[0]}={','.join(word.partition('=')[2] for word in axis)}"
        if "glob(" in word
        else word
        for axis, word in zip(axes, overrides, strict=True)
    ]
    interrupted: KeyboardInterrupt | None = None
    before = processes.children()
    try:
        status = _hydra(name, ["--multirun", *words, UNRECORDED, f"hydra.sweep.dir={_quoted(folder)}"])
    except KeyboardInterrupt as error:
        processes.end_children(before)
        interrupted, status = error, processes.exit_code(error)
    except Exception as error:
        if name == command and _workers_died(error):
            status = _one_by_one(command, folder, points)
        else:
            failure = _failure(error)
            console.error(failure.message)
            status = failure.exit_code
    status = max(status, _table(command, folder))
    if interrupted:
        raise interrupted
    return status


def _workers_died(error: BaseException | None) -> bool:
    """Whether a launcher tells that one of its processes was killed."""
    while error is not None:
        if isinstance(error, BrokenExecutor):
            return True
        error = error.__cause__ or error.__context__
    return False


def _one_by_one(command: str, folder: Path, points: Mapping[Path, Sequence[str]]) -> int:
    """Run what is left of a sweep whose launcher broke, each point in a process of its own: one that is killed takes no other with it."""
    console.warn("a process of the launcher was killed: what is left of the sweep is run point by point")
    status = 0
    for run, words in points.items():
        if any((run / name).is_file() for name in (rundir.REPORT, rundir.EXPORT, rundir.ERROR)):
            continue
        # what `_register` added, the process adds for itself
        own = [word for word in words if not word.startswith(("hydra/", "hydra.", "dataset=of_the_run"))]
        if os.environ.get(rundir.TRUST) and command != "distill":
            own.append("--trust-run")
        sub = str(run.relative_to(folder))
        places = [f"hydra.sweep.dir={_quoted(folder)}", f"hydra.sweep.subdir={_quoted(sub)}"]
        line = [sys.executable, "-m", "kdcli", command, "--multirun", *own, *places]
        quiet = None if command == "eval" else subprocess.DEVNULL  # its table would have one line
        code = subprocess.run(processes.bound(line), stdout=quiet, check=False).returncode
        results = rundir.REPORT, rundir.EXPORT, rundir.ERROR
        if code < 0 or (code and command != "eval" and not any((run / name).is_file() for name in results)):
            message = f"its process ended with exit code {code}"
            if code < 0:
                message = f"its process was killed by {signal.Signals(-code).name}; the system does so where memory runs out"
            console.error(f"{run.name}: {message}")
            _write_failure(run, 1, message, " ".join(words))
        if (
            command == "eval"
        ):  # of the others the table tells, and the process's own code is that of all points
            status = max(status, abs(code) and max(code, 1))
    return status


def _table(command: str, folder: Path) -> int:
    """Show the points of a sweep side by side; returns the highest of their exit codes."""
    found = {each.parent for name in (".hydra", rundir.ERROR) for each in folder.glob(f"**/{name}")}
    jobs = sorted(found, key=lambda job: (len(str(job)), job))
    if command == "eval":
        return max([0, *(_row(job, _eval_row)["exit_code"] for job in jobs)])
    from kdcli.report import sweep_table, targets_table

    if command == "export":
        rows = [_row(job, _export_row) for job in jobs]
        targets_table(rows)
    else:
        rows = [_row(run, _sweep_row) | {"run": str(run.relative_to(folder))} for run in jobs]
        sweep_table(rows)
        console.say(f"runs in {folder}")
    return max([0, *(row["exit_code"] for row in rows)])


def _row(job: Path, read: Callable[[Path], dict[str, Any]]) -> dict[str, Any]:
    """What the table shows of a job: what `read` finds, or why there is no result, under the words that tell it from the other jobs."""
    try:
        words = _words(OmegaConf.load(job / ".hydra" / "overrides.yaml"))
    except (OSError, ValueError, RecursionError, yaml.YAMLError, OmegaConfBaseException):
        words = []
    row = {"overrides": " ".join(words), "exit_code": 0}
    try:
        return row | (rundir.read_error(job) if (job / rundir.ERROR).is_file() else read(job))
    except ConfigError as error:
        return row | {"exit_code": error.exit_code, "message": error.message}


def _sweep_row(run: Path) -> dict[str, Any]:
    if not (run / rundir.REPORT).is_file():
        return {"exit_code": 1, "message": "did not finish"}
    report = rundir.read_report(run)
    student, verdict = report["models"]["student"], report["verdict"]
    return {
        "smoke": report["smoke"],
        "metric": report["metric"],
        "score": student["score"],
        "validation_score": report["validation_score"]["student"],
        "retention": verdict["retention"],
        "gain_over_control": verdict["gain_over_control"],
        "gain_ci95": verdict["gain_ci95"],
    }


def _export_row(job: Path) -> dict[str, Any]:
    if not (job / rundir.EXPORT).is_file():
        return {"exit_code": 1, "message": "did not finish"}
    return rundir.read_export(job)


def _eval_row(job: Path) -> dict[str, Any]:
    return {}


# ---- kdcli list --------------------------------------------------------------------------------------


def _folders() -> list[Path]:
    return [folder for folder in (conf_dir(), user_conf_dir()) if folder]


def _groups() -> list[str]:
    return sorted(
        {
            path.name
            for folder in _folders()
            for path in folder.iterdir()
            if path.is_dir() and any(path.glob("*.yaml"))
        }
    )


def _options(group: str) -> list[str]:
    return sorted({path.stem for folder in _folders() for path in (folder / group).glob("*.yaml")})


def list_groups(group: str | None, config_dir: Path | None) -> int:
    """Print a group's options, or every group's, with the first comment of each file."""
    if config_dir is not None:
        os.environ["KDCLI_CONFIG_DIR"] = str(config_dir)
    try:
        groups = _groups()
        if group is not None and group not in groups:
            raise ConfigError(
                f"there is no group {group}{suggest(group, groups)}; there are {listed(groups)}"
            )
        rows = [
            [*([name] if group is None else []), option, _about(name, option)]
            for name in ([group] if group else groups)
            for option in _options(name)
        ]
    except KDError as error:
        console.error(error.message)
        return error.exit_code
    console.table("", [*(["group"] if group is None else []), "name", "what it is"], rows)
    return 0


def _about(group: str, option: str) -> str:
    for folder in _folders():
        path = folder / group / f"{option}.yaml"
        if path.is_file():
            try:
                lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
            except OSError as error:
                return f"cannot be read ({error.strerror})"
            comments = [
                line.lstrip("# ") for line in lines if line.startswith("#") and "@package" not in line
            ]
            return comments[0] if comments else ""
    return ""
