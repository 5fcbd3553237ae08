"""Runs a command of the command line through Hydra.

A config is composed with Hydra's public API and checked before `hydra.main` may create a directory. Then
`hydra.main` runs the command with a rebuilt argv, so that Hydra provides sweeps, launchers and `--cfg`.
"""

from __future__ import annotations

import os
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kdcli import console, processes, rundir
from kdcli.config import renamed
from kdcli.config.schema import COMMANDS
from kdcli.config.secrets import secret_in
from kdcli.errors import ConfigError, ExitCode, hide_nothing, shown, suggest
from kdcli.evaluation.results import is_finished, read_report
from kdcli.files import clean_cache, user_path, workplace
from kdcli.launch.argv import (
    CFG,
    INFO,
    chosen_options,
    is_sweep,
    own_options,
    parse_overrides,
    quote_override,
    require_choices,
    require_known_hydra_keys,
    written_keys,
)
from kdcli.launch.compose import (
    compose_config,
    config_remarks,
    config_tree,
    expand_home,
    register_defaults,
    require_components,
    require_parts,
    run_folder,
)
from kdcli.launch.hydra_errors import failure_of
from kdcli.launch.job import UNRECORDED, run_hydra
from kdcli.launch.sweep import sweep


@dataclass(frozen=True)
class Done:
    """A command that did not fail.

    Attributes:
        status: its exit code.
        folder: the directory that it wrote or read: that of the run, or of an export; None: of a sweep, or of a config that was only shown.
    """

    status: int
    folder: Path | None = None


def launch(command: str, overrides: list[str], *options: Any, **named: Any) -> int:
    """Run a command of the command line; returns its exit code. Every exception becomes one message.

    Args:
        options, named: as for `call`.
    """
    console.setup_logging()
    with processes.watched():
        try:
            return call(command, overrides, *options, **named).status
        except KeyboardInterrupt as error:
            console.error(
                f"{error or 'interrupted'}: the same command on the same directory continues from the last checkpoint"
            )
            return processes.exit_code(error)
        except Exception as error:
            failure = failure_of(error)
            console.error(failure.message)
            return failure.exit_code


def call(
    command: str,
    overrides: list[str],
    multirun: bool = False,
    config_dir: Path | None = None,
    cfg: str | None = None,
    resolve: bool = False,
    info: str | None = None,
    rerun: Path | None = None,
    trust_run: bool = False,
) -> Done:
    """Run a command.

    Raises:
        KDError: it was refused, or failed.
        KeyboardInterrupt: a signal came; the child processes have ended.
    """
    rundir.trust(trust_run)
    hide_nothing()
    renamed.reset_warnings()
    with processes.watched():
        before = processes.children()
        try:
            return _launch(command, overrides, multirun, config_dir, cfg, resolve, info, rerun)
        except KeyboardInterrupt:
            processes.end_children(before)
            raise


def _launch(
    command: str,
    overrides: list[str],
    multirun: bool,
    config_dir: Path | None,
    cfg: str | None,
    resolve: bool,
    info: str | None,
    rerun: Path | None,
) -> Done:
    for word in overrides:
        key, _, value = word.lstrip("+~").partition("=")
        # each value of a sweep is checked by itself; an interpolation is checked once it is resolved
        for each in value.split(",") if "${" not in value else ():
            if problem := secret_in(key.replace("/", "."), each.strip("'\"[] ")):
                raise ConfigError(problem)
    if wrong := [word for word in overrides if "=" not in word and not word.startswith("~")]:
        raise ConfigError(
            f"{shown(wrong[0])} is not KEY=VALUE{suggest(wrong[0], COMMANDS)} (kdcli {command} --help)"
        )
    if resolve and not cfg:
        raise ConfigError("--resolve goes with --cfg job")
    for option, chosen, allowed in (("--cfg", cfg, CFG), ("--info", info, INFO)):
        if chosen is not None and chosen not in allowed:
            raise ConfigError(f"{option} {shown(chosen)}: expected one of {', '.join(allowed)}")
    overrides = [renamed.addable_override(expand_home(word)) for word in overrides]
    typed = parse_overrides(overrides)
    renamed.warn_of_options(chosen_options(typed))
    require_choices(typed)
    require_known_hydra_keys(typed)
    if config_dir is not None:
        os.environ["KDCLI_CONFIG_DIR"] = str(config_dir)
    own = own_options(command, typed)
    written = written_keys(typed, own)
    name, overrides = register_defaults(command, overrides, rerun)
    if cfg or info:
        composed = compose_config(command, name, [word for word in overrides if not is_sweep(word)], written)
        require_components(command, composed, written)
        options = [f"--cfg={cfg}" if cfg else f"--info={info}", *(["--resolve"] if resolve else [])]
        return Done(run_hydra(name, [*options, *overrides]))
    if multirun:
        return Done(sweep(command, name, overrides, written))
    composed = compose_config(command, name, overrides, written)
    folder = run_folder(composed)
    if command == "export":  # it writes into the run's directory, and does not change the run's .hydra
        folder = user_path(str(composed.run)).absolute()
        read_report(folder)
    elif int(os.environ.get("RANK", "0")) > 0:  # only the first process owns the run directory
        with workplace():
            unused = Path(tempfile.gettempdir(), "run")
            status = run_hydra(name, [*overrides, UNRECORDED, f"hydra.run.dir={quote_override(unused)}"])
            return Done(status)
    elif rundir.examine(folder, config_tree(composed), is_finished) == "finished":
        with workplace():
            clean_cache()
            rundir.tidy(folder)
        console.say(f"{folder} is finished; see {folder / 'report.html'}")
        return Done(ExitCode.DONE, folder)
    require_parts(command, composed, written)
    for remark in config_remarks(command, composed):
        console.warn(remark)
    rundir.make(folder)
    status = run_hydra(name, [*overrides, UNRECORDED, f"hydra.run.dir={quote_override(folder)}"])
    exported = command == "export"
    return Done(
        status, folder / "export" / str(composed.hydra.runtime.choices.hardware) if exported else folder
    )
