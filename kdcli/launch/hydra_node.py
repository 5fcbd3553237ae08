"""Checks Hydra's own node of a composed config before Hydra creates an object from it.

Hydra instantiates the launcher, the sweeper and the callbacks from their `_target_`, nested ones included, and a callable of any package can stand
there. The keys of a config folder reach this node in several ways (a header, a package in a defaults list, `GROUP@PACKAGE=OPTION`), so the
composed node is checked and not the files.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from hydra.core.plugins import Plugins
from hydra.plugins.launcher import Launcher
from hydra.plugins.sweeper import Sweeper
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from kdcli.config.paths import user_conf_dir
from kdcli.errors import listed, shown, suggest
from kdcli.launch.argv import not_settable
from kdcli.rundir import leaves

NO_LOGGING = {"version": 1, "root": None, "disable_existing_loggers": False}
FIXED: Mapping[str, Any] = {
    "callbacks": {},
    "job_logging": NO_LOGGING,
    "hydra_logging": NO_LOGGING,
    "job.env_set": {},
    "job.env_copy": [],
    "job.chdir": False,
    "mode": None,
    "output_subdir": ".hydra",
    "verbose": False,
}
"""The keys by which Hydra's node could run code or write elsewhere, each with its only value."""
PLUGINS: Mapping[str, Any] = {"launcher": Launcher, "sweeper": Sweeper}
SETTINGS: Mapping[str, Mapping[str, tuple[str, str]]] = {
    "BasicSweeper": {
        "max_batch_size": (r"None|[1-9]\d*", "at least 1, or null"),
        "params": (r"None|\{\}", "null; give the values as words of the command line"),
    },
    "JoblibLauncher": {
        "n_jobs": (r"-?[1-9]\d{0,5}", "at least 1, or -1 for as many as there are cores"),
        "backend": (r"None|loky", "null: Hydra's launcher takes loky alone"),
        "prefer": (r"processes|threads", "processes"),
        "require": (r"None", "null: the points of a sweep run in processes, which share no memory"),
        "verbose": (r"\d{1,5}", "an integer from 0"),
        "timeout": (r"None|(?!-)(?=.*[1-9])[\d.e+-]+", "a number above 0, or null"),
        "pre_dispatch": (
            r"all|[1-9]\d{0,8}|([1-9]\d{0,5}(\.\d+)? ?\* ?)?n_jobs",
            "all, a number, or a multiple of n_jobs such as 2*n_jobs",
        ),
        "batch_size": (r"auto|[1-9]\d{0,8}", "auto, or at least 1"),
        "temp_folder": (r"(?s).*", "a path, or null"),
        "max_nbytes": (r"None|\d{1,15}|\d{1,9}(\.\d+)?[KMG]", "a size such as 100M, or null"),
        "mmap_mode": (r"r|r\+|w\+|c", "r, r+, w+ or c"),
    },
}
"""By class: its keys, each with the pattern of its values, and these in words. A value outside of them ends a sweep in a traceback, or is ignored."""


def node_problems(composed: DictConfig) -> Iterator[str]:
    """Yield what is wrong with Hydra's node, each beginning with the key."""
    node = composed.hydra
    for key, only in FIXED.items():
        if OmegaConf.to_container(OmegaConf.create({"value": OmegaConf.select(node, key)})) != {
            "value": only
        }:
            yield not_settable(f"hydra.{key}")
    for name, kind in PLUGINS.items():
        yield from _plugin_problems(node, name, kind)


def _plugin_problems(node: DictConfig, name: str, kind: Any) -> Iterator[str]:
    """Yield what is wrong with the launcher or the sweeper."""
    key, remedy = f"hydra.{name}", f"take one that kdcli keys hydra/{name} shows"
    raw = OmegaConf.to_container(node, resolve=False).get(name)  # type: ignore[union-attr]
    if not isinstance(raw, dict) or not isinstance(raw.get("_target_"), str):
        yield f"{key} = {shown(raw)}: expected the class of a {name} of Hydra; {remedy}"
        return
    nested = [path for path, _ in leaves(raw, key) if path.rpartition(".")[2].startswith("_")]
    if wrong := [path for path in nested if path != f"{key}._target_"]:
        yield f"{wrong[0]}: Hydra would create an object from it; remove it"
        return
    installed = {f"{each.__module__}.{each.__qualname__}": each for each in Plugins.instance().discover(kind)}
    chosen = installed.get(raw["_target_"])
    if chosen is None or _is_own(chosen):
        yield f"{key}._target_ = {shown(raw['_target_'])}: it is no {name} of Hydra that is installed; {remedy}"
        return
    for path, value in leaves(raw, key):
        if (
            isinstance(value, str)
            and "${" in value
            and (problem := _interpolation_problem(node, path, value))
        ):
            yield problem
            return
    yield from _setting_problems(key, chosen, node[name])


def _is_own(plugin: Any) -> bool:
    """Return whether a class comes from the user's config folder and not from an installed package."""
    folder = user_conf_dir()
    return folder is not None and Path(inspect.getfile(plugin)).resolve().is_relative_to(folder.resolve())


def _interpolation_problem(node: DictConfig, key: str, text: str) -> str | None:
    """Return what is wrong with an interpolation: it could become a mapping that names a class, now or once Hydra resolves it."""
    try:
        value = OmegaConf.select(node, key.removeprefix("hydra."), throw_on_missing=True)
    except OmegaConfBaseException as error:
        return f"{key} = {shown(text)}: it cannot be resolved ({str(error).splitlines()[0]}); give the value itself"
    if OmegaConf.is_config(value) or (text.count("${") > 1 and text.startswith("${")):
        return f"{key} = {shown(text)}: expected one value, and not a mapping or nested interpolations; give the value itself"
    return None


def _setting_problems(key: str, plugin: Any, settings: DictConfig) -> Iterator[str]:
    """Yield what is wrong with the arguments of a launcher or a sweeper."""
    allowed = SETTINGS.get(plugin.__name__)
    parameters = inspect.signature(plugin).parameters
    open_ended = any(each.kind is each.VAR_KEYWORD for each in parameters.values())
    names = list(allowed or parameters)
    for name, value in ((str(name), value) for name, value in settings.items()):
        if name == "_target_":
            continue
        if name not in names and (allowed is not None or not open_ended):
            remedy = suggest(name, names) or f"; it has {listed(names) if names else 'none'}"
            yield f"{key}.{name}: {plugin.__name__} has no such key{remedy}"
        elif allowed is not None and not re.fullmatch(allowed[name][0], str(value)):
            yield f"{key}.{name} = {shown(value)}: expected {allowed[name][1]}"
