"""Composes and checks the config, and finds the run directory."""

from __future__ import annotations

import functools
import logging
import os
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import hydra
from hydra.core.config_store import ConfigStore
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.plugins import Plugins
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from omegaconf.resolvers import oc

from kdcli import rundir
from kdcli.config import renamed
from kdcli.config.check import check_components, check_values, defaults
from kdcli.config.dataset import Dataset
from kdcli.config.groups import config_groups
from kdcli.config.paths import conf_dir, user_conf_dir
from kdcli.config.remarks import remarks, unread
from kdcli.config.schema import COMMANDS, Distill
from kdcli.data.sources import require_source
from kdcli.errors import ConfigError, hide
from kdcli.files import require_name, user_path
from kdcli.hub import PACKAGE
from kdcli.launch.argv import is_sweep, override_value, quote_override
from kdcli.launch.hydra_errors import VERSION_BASE, config_at_fault, hydra_errors, nearby_keys
from kdcli.launch.hydra_node import node_problems
from kdcli.launch.replay import hardware_overrides, replayed_overrides

logger = logging.getLogger(__name__)
HOME = re.compile(r"(?<![^,\[ ])~(?=/|$)")
"""The user's home folder at the beginning of a value, or of one of several values."""
UNSET = object()
"""Stands for a default that was not given."""
RERUN = "rerun"
"""The name of the config that repeats a recorded run."""
LONGEST_FILE = 100
"""The most characters of a path inside a run directory, approximately."""


def _of_environment(key: str, default: Any = UNSET) -> str | None:
    """Return OmegaConf's resolver `oc.env`, extended so that messages hide its values."""
    value: str | None = oc.env(key) if default is UNSET else oc.env(key, default)
    if key in os.environ:
        hide(os.environ[key], f"${{oc.env:{key}}}")
    return value


OmegaConf.register_new_resolver("oc.env", _of_environment, replace=True)


def config_remarks(command: str, composed: DictConfig) -> list[str]:
    """Return warnings about valid but useless values of a composed config."""
    return remarks(Distill.model_validate(config_tree(composed))) if command == "distill" else []


def register_defaults(
    command: str, overrides: list[str], rerun: Path | None, typed: Sequence[str]
) -> tuple[str, list[str]]:
    """Register the schema's defaults, the user's folder and a recorded run with Hydra; returns the config's name and the overrides.

    Args:
        typed: the overrides that the command line has; the others are those of the file that it names.
    """
    store = ConfigStore.instance()
    store.store(name=f"schema_{command}", node=defaults(COMMANDS[command]), provider="kdcli")
    for old, new in renamed.OPTIONS.items():
        group, _, option = old.partition("/")
        node = {"defaults": [new.partition("/")[2], "_self_"]}
        store.store(group=group, name=option, node=node, provider="kdcli")
    overrides = ["hydra/job_logging=none", "hydra/hydra_logging=none", *overrides]
    if folder := user_conf_dir():
        make_importable(folder)
        overrides.append(f"hydra.searchpath=[{quote_override(f'file://{folder}')}]")
    if rerun is not None:
        overrides = _repeating(rerun, overrides)
    elif command == "export":
        overrides = _with_hardware_of_run(overrides)
    elif command == "eval" and override_value(overrides, "run"):
        overrides = _with_dataset_of_run(overrides)
    else:
        overrides = _with_group_of_own_data(overrides, typed)
    name = command if rerun is None else RERUN
    return name, _with_stage_keys(name, overrides)


def _repeating(run: Path, overrides: list[str]) -> list[str]:
    """Register the config of a recorded run under the name `RERUN`; returns the overrides for repeating it."""
    if any(word.partition("=")[0] in config_groups() for word in overrides):
        raise ConfigError(
            "--rerun repeats a recorded config: groups cannot be chosen again, but single keys can (seed=1)"
        )
    config = replayed_overrides(run, Distill, overrides)
    choices, words = rundir.recorded_choice(run)
    recorded = OmegaConf.create({"runtime": {"choices": choices}, "overrides": {"task": words}})
    hydra_node = {"runtime": {"choices": display_name(recorded, config)}}
    node = {"defaults": ["_self_", "output"], "hydra": hydra_node, **config}
    ConfigStore.instance().store(name=RERUN, node=node, provider="kdcli")
    if override_value(overrides, "hydra.run.dir") is None:
        return [*overrides, "hydra.run.dir=runs/distill/${now:%Y-%m-%d-%H%M%S-%f}"]
    return overrides


def _with_hardware_of_run(overrides: list[str]) -> list[str]:
    """Return overrides of an export that choose the run's own device, unless they name another one."""
    run = override_value(overrides, "run")
    if not run or override_value(overrides, "hardware") is not None:
        return overrides
    return [*hardware_overrides(user_path(run), overrides), *overrides]


def _with_dataset_of_run(overrides: list[str]) -> list[str]:
    """Return overrides of an evaluation that choose the run's own data set, unless they name another one."""
    run = override_value(overrides, "run")
    assert run is not None
    if override_value(overrides, "dataset") is not None:
        return overrides
    if any(word.lstrip("+").startswith("run=") and is_sweep(word) for word in overrides):
        raise ConfigError(
            f"run={run}: each run is scored on its own data set, so eval takes one at a time; start it once for each, or "
            "name the data set (dataset=…)"
        )
    dataset = replayed_overrides(user_path(run), Dataset, overrides, "dataset")
    if override_value(overrides, "dataset.path") is not None and dataset.get("format") != "hub":
        # the recorded validation and test files belong to another data set
        dataset |= {"validation": None, "test": None, "unlabelled": None}
    ConfigStore.instance().store(group="dataset", name="of_the_run", node=dataset, provider="kdcli")
    return [*overrides, "dataset=of_the_run"]


def _with_group_of_own_data(overrides: list[str], typed: Sequence[str]) -> list[str]:
    """Return overrides that name a file of the user's own, and no group, with the group of such files: the labels, the cleaning and the sizes of the
    packaged data set are not those of another file. The log names the group if the path is typed."""
    paths, typed_paths = (
        [word.partition("=")[2] for word in words if word.lstrip("+").partition("=")[0] == "dataset.path"]
        for words in (overrides, typed)
    )
    chosen = any(
        word.partition("=")[0] in ("dataset", "experiment") and word.partition("=")[2] != "null"
        for word in overrides
    )
    if not paths or chosen or paths[-1].strip("'\"").startswith(PACKAGE):
        return overrides
    if typed_paths:
        logger.info(
            "dataset.path=%s without dataset=: read as dataset=csv, whose format is found",
            typed_paths[-1].strip("'\""),
        )
    return ["dataset=csv", *overrides]


def _with_stage_keys(name: str, overrides: list[str]) -> list[str]:
    """Return overrides in which keys of stages may be new: a stage holds only the keys that differ from the run's, so Hydra does not know the
    others. The schema refuses wrong ones."""
    if not any(word.startswith("stages.") for word in overrides):
        return overrides
    keys = nearby_keys(name, overrides)
    stages = tuple(f"{key}." for key in keys if re.fullmatch(r"stages\.[^.]+", key))
    return [f"++{word}" if word.startswith(stages) else word for word in overrides]


def expand_home(word: str) -> str:
    """Expand `~` in an override: Hydra's grammar does not allow it, and not every shell expands it after =."""
    key, equals, value = word.partition("=")
    return word if re.search(r"['\"]", value) else key + equals + HOME.sub(lambda _: str(Path.home()), value)


def make_importable(folder: Path) -> None:
    """Make modules in the user's folder importable, after all others, so that none of its files hides another module."""
    if str(folder) not in sys.path:
        Plugins.instance()  # Hydra imports all modules of hydra_plugins, and a folder of that name is not to be among them
        sys.path.append(str(folder))


def compose_config(command: str, name: str, overrides: list[str], written: Mapping[str, str]) -> DictConfig:
    """Compose the config, including Hydra's own node, and check its values. (`require_parts` checks its data files and classes.)

    Args:
        written: the keys that the user wrote, with their positions in files.

    Raises:
        ConfigError: Hydra cannot compose it, the schema refuses it, or the task does not read a key that the user wrote.
    """
    composed = composed_with_hydra(command, name, overrides, written)
    if "hardware" in composed.hydra.runtime.choices:
        require_name(str(composed.hydra.runtime.choices.hardware), "hardware")
    describe = functools.partial(_located, written)
    config = check_values(COMMANDS[command], config_tree(composed), describe)
    if command == "distill" and isinstance(config.seeds, list):
        typed = override_value(overrides, "seed")
        if typed is not None and typed != str(
            config.seed
        ):  # the schema cannot distinguish it from the default
            raise ConfigError(
                f"seed = {typed}: the first of seeds = {config.seeds} is the run's; leave seed out"
            )
    if problems := [*map(describe, unread(config, written))]:
        raise ConfigError("\n  ".join(["the config is wrong:", *problems]))
    return composed


def composed_with_hydra(
    command: str, name: str, overrides: list[str], written: Mapping[str, str]
) -> DictConfig:
    """Compose the config, including Hydra's own node, from which nothing is created that is no launcher or sweeper of Hydra. Its values are not
    checked.

    Args:
        written: the keys that the user wrote, with their positions in files.

    Raises:
        ConfigError: Hydra cannot compose it, or its own node is not one that a user may give.
    """
    with hydra_errors(command, overrides), config_at_fault("the config cannot be composed"):
        GlobalHydra.instance().clear()
        with hydra.initialize_config_dir(str(conf_dir()), job_name="kdcli", version_base=VERSION_BASE):
            try:
                composed = hydra.compose(name, overrides, return_hydra_config=True)
            except ValueError:
                nothing = [key for key in config_groups() if override_value(overrides, key) == "null"]
                if not nothing:
                    raise
                raise ConfigError(
                    f"{nothing[0]}=null: a choice is needed; take one of those that kdcli list {nothing[0]} shows"
                ) from None
        if problems := [_located(written, each) for each in node_problems(composed)]:
            raise ConfigError("\n  ".join(problems))
    return composed


def _located(written: Mapping[str, str], problem: str) -> str:
    """Return a problem with the position of the wrong value, unless it was typed."""
    where = written.get(re.split(r" = |: ", problem, maxsplit=1)[0])
    return f"{problem} ({where})" if where else problem


def require_parts(command: str, composed: DictConfig, written: Mapping[str, str]) -> None:
    """Refuse missing data files, then wrong arguments of classes. Only the second check imports torch.

    Args:
        written: the keys that the user wrote, with their positions in files.

    Raises:
        ConfigError, DataError
    """
    require_data(command, composed)
    announce_loading()
    require_components(command, composed, written)


def announce_loading() -> None:
    """Log that torch and transformers are about to be imported, which takes seconds."""
    if "torch" not in sys.modules:
        logger.info("loading torch and transformers")


def require_data(command: str, composed: DictConfig) -> None:
    """Refuse missing data files.

    Raises:
        ConfigError, DataError
    """
    tree = config_tree(composed)
    for data in _data_of(command, COMMANDS[command].model_validate(tree)):
        for key in ("path", "validation", "test", "unlabelled"):
            if data.get(key):
                require_source(Dataset.model_construct(**data), data[key])


def require_components(command: str, composed: DictConfig, written: Mapping[str, str]) -> None:
    """Refuse a config that names a wrong class, or wrong arguments of a class.

    Args:
        written: the keys that the user wrote, with their positions in files.

    Raises:
        ConfigError
    """
    check_components(COMMANDS[command], config_tree(composed), functools.partial(_located, written))


def _data_of(command: str, config: Any) -> Iterator[Mapping[str, Any]]:
    """Yield the data sets that a command reads."""
    if command == "export":
        recorded = rundir.saved_config(user_path(config.run))["dataset"]
        yield recorded | config.dataset.model_dump(exclude_none=True)
        return
    yield config.dataset.model_dump()
    if command == "distill":
        yield from (stage.dataset.model_dump() for stage in config.stages.values() if stage.dataset)


def config_tree(composed: DictConfig) -> dict[str, Any]:
    """Return the config as plain data under current names, resolved and without Hydra's node."""
    tree = {}
    for key in map(str, composed):
        if key == "hydra":
            continue
        with config_at_fault(f"{key} cannot be resolved"):
            try:
                tree[key] = _resolved(composed, key)
            except OmegaConfBaseException as error:
                raise ConfigError(
                    f"{error.full_key or key} cannot be resolved: {str(error).splitlines()[0]}; correct the interpolation, or give the value itself"
                ) from None
    return renamed.with_current_names(tree)


def _resolved(composed: DictConfig, key: str) -> Any:
    """Return one key's value as plain data. (All keys but one would be copied first, which takes five times as long.)"""
    if OmegaConf.is_missing(composed, key):
        return "???"
    value = composed[key]
    return OmegaConf.to_container(value, resolve=True) if OmegaConf.is_config(value) else value


def job_config(composed: DictConfig) -> str:
    """Return the config as YAML, with its interpolations and without Hydra's node, as Hydra shows it (`--cfg job`)."""
    return OmegaConf.to_yaml(without_hydra(composed))


def without_hydra(composed: DictConfig) -> Any:
    """Return the config without Hydra's node."""
    return OmegaConf.masked_copy(composed, [str(key) for key in composed if key != "hydra"])


def run_folder(composed: DictConfig) -> Path:
    """Return the absolute path of the run directory, `hydra.run.dir`."""
    HydraConfig.instance().set_config(composed)
    return resolved_folder(composed, "hydra.run.dir")


def resolved_folder(composed: DictConfig, key: str, within: Path = Path()) -> Path:
    """Return the absolute path in one of Hydra's keys.

    Raises:
        ConfigError: it cannot be resolved, or the file system does not allow it.
    """
    try:
        given = Path(str(OmegaConf.select(composed, key, throw_on_missing=True)))
        folder = (within / user_path(given)).absolute()
        (folder / ("x" * LONGEST_FILE)).exists()  # the length of the longest file names of a run
    except OmegaConfBaseException as error:
        raise ConfigError(
            f"{key}: it cannot be resolved ({str(error).splitlines()[0]}); give a path"
        ) from None
    except (OSError, ValueError, RuntimeError) as error:
        raise ConfigError(
            f"{key}: the run directory cannot be made there ({error}); choose another --out"
        ) from None
    return folder


def override_words(recorded: Any) -> list[str]:
    """Return the overrides that Hydra recorded, with interpolations unresolved."""
    return [str(word) for word in OmegaConf.to_container(recorded, resolve=False)]  # type: ignore[union-attr]


def display_name(recorded: Any, config: Mapping[str, Any]) -> dict[str, str]:
    """Return the display names of teacher, student, data set and device: the chosen option, or the path that was given.

    Args:
        recorded: Hydra's node of a run; of a repeated run, it holds the choices of the original.
    """
    chosen, overrides = recorded.runtime.choices, override_words(recorded.overrides.task)
    names = {}
    for group in ("teacher", "student", "dataset", "hardware"):
        given = any(word.lstrip("+").startswith(f"{group}.path=") for word in overrides)
        section = config.get(group)
        path = section.get("path") if isinstance(section, Mapping) else None
        names[group] = str(
            path if given or group not in chosen else renamed.option_name(group, str(chosen[group]))
        )
    return names
