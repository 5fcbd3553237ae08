"""Runs one job under Hydra: locks the run directory, calls the command, records failures."""

from __future__ import annotations

import gc
import json
import os
import signal
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

import hydra
from hydra.conf import HydraConf
from hydra.core.hydra_config import HydraConfig
from hydra.core.utils import setup_globals
from omegaconf import DictConfig, OmegaConf, open_dict, read_write

from kdcli import console, processes, rundir
from kdcli.config import renamed
from kdcli.config.check import check
from kdcli.config.dataset import Dataset
from kdcli.config.paths import conf_dir, user_conf_dir
from kdcli.config.schema import COMMANDS
from kdcli.distributed import GRACE, peers
from kdcli.errors import ExitCode, KDError
from kdcli.evaluation.results import is_finished
from kdcli.files import clean_cache, remove_abandoned, user_path, workplace
from kdcli.launch.argv import quote_override
from kdcli.launch.compose import config_tree, display_name, make_importable, override_words, without_hydra
from kdcli.launch.hydra_errors import VERSION_BASE, failure_of, hydra_errors
from kdcli.launch.replay import replayed_overrides

UNRECORDED = "hydra.output_subdir=null"
"""Overrides that keep Hydra from writing `.hydra/`: it would write before the directory is locked, not atomically, and again for a continued run."""
_status: dict[str, int] = {}
_failures: list[KDError] = []
"""The failure of the only job. (Failures of a sweep are printed one by one, and the other jobs run.)"""


def run_single(command: str, composed: DictConfig, folder: Path) -> int:
    """Run the only job in a run directory, on the config that was composed and checked; returns its exit code. (`hydra.main` would compose it twice
    more. What else it does for a job, its logging, callbacks and environment variables, cannot be configured here.)

    Raises:
        KDError: the job failed.
    """
    node, directory = composed.hydra, f"hydra.run.dir={quote_override(folder)}"
    with read_write(node), open_dict(node):
        node.run.dir, node.mode = str(folder), hydra.types.RunMode.RUN
        node.runtime.output_dir = str(folder)
        node.overrides.hydra.extend([directory, "hydra.mode=RUN"])
    HydraConfig.instance().set_config(composed)
    _status.clear()
    _failures.clear()
    _job(command, without_hydra(composed))
    if _failures:
        raise _failures[0]
    return _status[str(folder)]


def run_hydra(name: str, argv: list[str]) -> int:
    """Call `hydra.main` with a rebuilt argv; returns the highest exit code of the jobs that ran in this process.

    Raises:
        KDError: the only job failed.
    """
    os.environ["HYDRA_FULL_ERROR"] = "1"  # exceptions are raised here, and not printed by Hydra
    before, sys.argv = sys.argv, ["kdcli", *argv]
    task = {"distill": run_distill, "rerun": run_distill, "eval": run_eval, "export": run_export}[name]
    _status.clear()
    _failures.clear()
    try:
        with hydra_errors("distill" if name == "rerun" else name, argv):
            hydra.main(version_base=VERSION_BASE, config_path=str(conf_dir()), config_name=name)(task)()
    finally:
        sys.argv = before
    if _failures:
        raise _failures[0]
    return max(_status.values(), default=ExitCode.DONE)


def run_distill(cfg: DictConfig) -> None:
    """Run one point of a sweep of `kdcli distill`."""
    _point("distill", cfg)


def run_eval(cfg: DictConfig) -> None:
    """Run one point of a sweep of `kdcli eval`."""
    _point("eval", cfg)


def run_export(cfg: DictConfig) -> None:
    """Run one point of a sweep of `kdcli export`."""
    _point("export", cfg)


def _point(command: str, cfg: DictConfig) -> None:
    """Run a point of a sweep in a process of its own, so that the others run even if the system kills it.

    Raises:
        KeyboardInterrupt: this process or that of the point received a signal.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:  # its process group spans the sweep
        _job(command, cfg)
        return
    folder = Path(HydraConfig.get().runtime.output_dir)
    with suppress(KDError):  # the point's process reports it
        if command != "export" and rundir.examine(folder, config_tree(cfg), is_finished) == "finished":
            _status[str(folder)] = ExitCode.DONE
            return
    # plain containers: a launcher may have loaded the class of a node twice, which cannot be pickled
    parts = [OmegaConf.to_container(part, resolve=False) for part in (cfg, HydraConfig.get())]
    code = processes.call_in_child(_job_in_child, command, *parts)
    if code not in [*ExitCode]:
        message = f"its process ended with exit code {code}"
        if code < 0:
            names = {each.value: each.name for each in signal.Signals}
            message = f"its process was killed by {names.get(-code, f'signal {-code}')}"  # most real-time signals have no name
        if code == -signal.SIGKILL:
            message += "; the system does so where memory runs out"
        console.error(f"{folder.name}: {message}")
        code = ExitCode.FAILED
        _record_failure(folder, code, message, own=True)
    _status[str(folder)] = code


def _job_in_child(command: str, config: dict[str, Any], node: dict[str, Any]) -> int:
    """Run a job in a new process; returns its exit code.

    Args:
        config, node: the config of the job, and that of Hydra, with their interpolations.
    """
    setup_globals()
    hydra_node = OmegaConf.structured(HydraConf)
    with open_dict(hydra_node):
        hydra_node.merge_with(node)
    HydraConfig.instance().set_config(OmegaConf.create({**config, "hydra": hydra_node}))
    _job(command, OmegaConf.create(config))
    return max(_status.values())


def _job(command: str, cfg: DictConfig) -> None:
    """Check the config, lock the run directory, run the command, and remove a new directory if the command was refused. `run_hydra` raises a
    failure afterwards, so that Hydra adds no message of its own; in a sweep it is printed, written into the job's directory, and the other
    jobs run.

    Raises:
        KeyboardInterrupt: the process received a signal.
    """
    console.setup_logging()
    folder = Path(HydraConfig.get().runtime.output_dir)
    owner = int(os.environ.get("RANK", "0")) == 0
    sweep = HydraConfig.get().mode == hydra.types.RunMode.MULTIRUN
    holds = owner and command != "export"
    own = not holds  # whether this process may write into the directory
    fresh, status = False, int(ExitCode.FAILED)
    with processes.watched(), workplace():
        try:
            if holds:
                state = rundir.take(folder, config_tree(cfg), is_finished)
                own, fresh = True, state == "new"
                if state == "finished":  # a job of a sweep that is continued
                    status = ExitCode.DONE
                    return
            if holds or (owner and sweep):
                _record(folder, cfg)
            if owner:
                clean_cache()
                remove_abandoned(folder, deep=True)
            if conf := user_conf_dir():  # a launcher's process has not made it importable yet
                make_importable(conf)
            config = check(COMMANDS[command], config_tree(cfg))
            status = _command(command, config, folder)
            if holds and command == "distill" and config.dry_run:
                rundir.release(folder, remove=fresh)
        except (Exception, SystemExit) as error:
            # the end of another process breaks what this one waits for
            ended = None if isinstance(error, KDError) else peers.failure(wait=GRACE)
            failure = ended or failure_of(error, folder if owner else peers.folder)
            status = failure.exit_code
            if fresh and status == ExitCode.REFUSED and rundir.trained(folder):
                status = ExitCode.FAILED  # a trained model is kept, and REFUSED would mean that there is none
            if holds:
                rundir.release(folder, remove=fresh and status == ExitCode.REFUSED)
            silent = peers.fail(failure.message, status)
            if sweep:
                if not silent:
                    console.error(f"{folder.name}: {failure.message}")
                _record_failure(folder, status, failure.message, own)
            else:
                failure.exit_code = ExitCode(status)
                failure.__cause__ = error if failure is not error else error.__cause__
                _failures.append(failure)
        except KeyboardInterrupt as error:
            status = processes.exit_code(error)
            if sweep:
                _record_failure(folder, status, f"{error or 'interrupted'}", own)
            raise
        finally:
            if holds:
                rundir.release(folder)
            _status[str(folder)] = status


def _record(folder: Path, cfg: DictConfig) -> None:
    """Write `.hydra/` into a job's directory, as Hydra would."""
    recorded: Any = OmegaConf.masked_copy(HydraConfig.instance().cfg, "hydra")  # type: ignore[arg-type]
    OmegaConf.set_readonly(recorded.hydra, False)
    recorded.hydra.output_subdir = str(rundir.HYDRA.parent)
    recorded.hydra.overrides.hydra = [
        word for word in override_words(recorded.hydra.overrides.hydra) if word != UNRECORDED
    ]
    config = OmegaConf.create(renamed.with_current_names(OmegaConf.to_container(cfg, resolve=False)))  # type: ignore[arg-type]
    parts = {"config": config, "hydra": recorded, "overrides": recorded.hydra.overrides.task}
    rundir.record(folder, {f"{name}.yaml": OmegaConf.to_yaml(part) for name, part in parts.items()})


def _record_failure(folder: Path, status: int, message: str, own: bool) -> None:
    """Write why a job of a sweep failed into its directory, for the table.

    Args:
        own: whether this process holds the directory and may write into it.
    """
    if not own:
        return
    words = " ".join(override_words(HydraConfig.get().overrides.task))
    failure = {"exit_code": status, "message": message, "overrides": words}
    with suppress(
        OSError
    ):  # a full disk: the message was printed, and the table shows that the job did not finish
        folder.mkdir(parents=True, exist_ok=True)
        (folder / rundir.ERROR).write_text(json.dumps(failure), encoding="utf-8")


def _command(command: str, config: Any, folder: Path) -> int:
    if command == "distill":
        from kdcli.commands.distill import distill

        _imported()
        words = override_words(HydraConfig.get().overrides.task)
        chose_hardware = any(word.lstrip("+").startswith(("hardware=", "hardware.")) for word in words)
        names = display_name(HydraConfig.get(), config.model_dump())
        return distill(config, folder, names, chose_hardware)
    if command == "eval":
        from kdcli.commands.eval import evaluate

        _imported()
        return evaluate(config, folder)
    from kdcli.commands.export import export

    _imported()
    words = override_words(HydraConfig.get().overrides.task)
    replayed_overrides(
        user_path(config.run), Dataset, words, "dataset"
    )  # its task may be a class from elsewhere
    hardware = str(HydraConfig.get().runtime.choices["hardware"])
    sweep = HydraConfig.get().mode == hydra.types.RunMode.MULTIRUN
    return export(config, hardware, folder if sweep else None)


def _imported() -> None:
    """Enable the garbage collector that `kdcli.cli.main` disabled, and exclude the imported objects from it."""
    if not gc.isenabled():
        gc.freeze()
        gc.enable()
