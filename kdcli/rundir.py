"""The run directory: whose it is, whether it can be continued, and who is using it."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import filelock
import yaml
from omegaconf import OmegaConf

from kdcli.errors import ConfigError

APP = "kdcli"
"""The job name that Hydra writes into a run directory of ours."""
REPORT = "report.json"
"""The last file of a run: it is finished when it is there."""
LOCK = ".lock"
ERROR = "error.json"
_SLIGHT = {".hydra", LOCK, ERROR}
_held: dict[Path, filelock.BaseFileLock] = {}


def examine(run: Path, config: Mapping[str, Any]) -> Literal["new", "continue", "finished"]:
    """What a command that wants to write to `run` would find there. Nothing is changed.

    Raises:
        ConfigError: the directory is in use, holds a run with another config, or was not made by kdcli.
    """
    if not run.exists():
        return "new"
    if not run.is_dir():
        raise ConfigError(f"the run directory {run} is a file; choose another hydra.run.dir")
    if not any(path.name not in _SLIGHT for path in run.iterdir()) and not (run / ".hydra" / "config.yaml").is_file():
        return "new"
    if not _ours(run):
        raise ConfigError(f"{run} holds files and was not made by kdcli; choose another hydra.run.dir")
    _free(run)
    before = saved_config(run)
    if changed := sorted(_differences(before, config)):
        raise ConfigError(
            f"{run} holds a run with another config ({', '.join(changed[:5])}{' …' if len(changed) > 5 else ''}); "
            "choose another hydra.run.dir, or the config that it was started with"
        )
    return "finished" if (run / REPORT).is_file() else "continue"


def saved_config(run: Path) -> dict[str, Any]:
    """The composed config that a run was started with, interpolations resolved.

    Raises:
        ConfigError: there is none.
    """
    path = run / ".hydra" / "config.yaml"
    if not path.is_file() or not _ours(run):
        raise ConfigError(f"{run} is not a run directory of kdcli (it has no .hydra/config.yaml that kdcli wrote)")
    tree = OmegaConf.to_container(OmegaConf.load(path), resolve=True)
    return {str(key): value for key, value in tree.items()} if isinstance(tree, dict) else {}


def _ours(run: Path) -> bool:
    try:
        hydra = yaml.safe_load((run / ".hydra" / "hydra.yaml").read_text(encoding="utf-8"))
        return str(hydra["hydra"]["job"]["name"]) == APP
    except (OSError, yaml.YAMLError, KeyError, TypeError):
        return False


def _free(run: Path) -> None:
    lock = filelock.FileLock(run / LOCK)
    try:
        lock.acquire(timeout=0)
    except filelock.Timeout:
        raise ConfigError(f"{run} is in use by another kdcli process; wait for it, or choose another hydra.run.dir") from None
    lock.release()


def _differences(before: Any, now: Any, path: str = "") -> set[str]:
    if isinstance(before, Mapping) and isinstance(now, Mapping):
        keys = set(before) | set(now)
        return {
            line for key in keys for line in _differences(before.get(key), now.get(key), f"{path}.{key}".lstrip("."))
        }
    return set() if before == now else {path}


def take(run: Path) -> bool:
    """Hold the directory until this process ends; returns whether it is fresh (nothing of a run in it yet).

    Raises:
        ConfigError: another process holds it.
    """
    lock = filelock.FileLock(run / LOCK)
    try:
        lock.acquire(timeout=0)
    except filelock.Timeout:
        raise ConfigError(f"{run} is in use by another kdcli process; wait for it, or choose another hydra.run.dir") from None
    _held[run] = lock
    (run / ERROR).unlink(missing_ok=True)
    return not any(path.name not in _SLIGHT for path in run.iterdir())


def release(run: Path, remove: bool = False) -> None:
    """Let go of the directory; with `remove`, delete it: nothing came of it."""
    lock = _held.pop(run, None)
    if remove:
        shutil.rmtree(run, ignore_errors=True)
    if lock is not None:
        lock.release()
    if not remove:
        (run / LOCK).unlink(missing_ok=True)


def read_report(run: Path) -> dict[str, Any]:
    """The report of a finished run.

    Raises:
        ConfigError: it has none.
    """
    saved_config(run)
    path = run / REPORT
    if not path.is_file():
        raise ConfigError(f"{run} is not finished (no {REPORT}); continue it with: kdcli distill hydra.run.dir={run} …")
    return dict(json.loads(path.read_text(encoding="utf-8")))
