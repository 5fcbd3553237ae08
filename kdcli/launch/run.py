"""Runs a command of the command line through Hydra.

A config is composed with Hydra's public API and checked before a directory is made, then a single run begins on it. Sweeps with their launchers, `--cfg` and
`--info` are left to `hydra.main`, with a rebuilt argv.
"""

from __future__ import annotations

import io
import os
import shlex
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from kdcli import console, processes, rundir
from kdcli.config import renamed
from kdcli.config.secrets import secret_in
from kdcli.distributed import peers, record_failure
from kdcli.errors import ConfigError, ExitCode, hide_nothing, shown, without_environment
from kdcli.evaluation.results import is_finished, read_export, read_report
from kdcli.files import clean_cache, user_path, workplace
from kdcli.launch.argv import (
    CFG,
    INFO,
    chosen_options,
    is_sweep,
    own_options,
    parse_overrides,
    require_choices,
    require_known_hydra_keys,
    written_keys,
)
from kdcli.launch.check import CheckOptions, run_check
from kdcli.launch.compose import (
    compose_config,
    config_remarks,
    config_tree,
    expand_home,
    job_config,
    register_defaults,
    require_components,
    require_parts,
    run_folder,
)
from kdcli.launch.first_word import named_file, with_folder, with_run_directory
from kdcli.launch.hydra_errors import failure_of
from kdcli.launch.job import run_hydra, run_single
from kdcli.launch.sweep import TEXT, sweep


@dataclass(frozen=True)
class Done:
    """A command that did not fail.

    Attributes:
        status: its exit code.
        folder: the directory that it wrote or read: that of the run, or of an export; None: of a sweep, or of a config that was only shown.
        following: the words of the command that usually follows; empty: none does.
    """

    status: int
    folder: Path | None = None
    following: tuple[str, ...] = ()


def launch(command: str, overrides: list[str], *options: Any, **named: Any) -> int:
    """Run a command of the command line; returns its exit code. Every exception becomes one message.

    Args:
        options, named: as for `call`.
    """
    console.setup_logging()
    with processes.watched():
        try:
            done = call(command, overrides, *options, **named)
            if done.following and done.status == ExitCode.DONE:
                console.say(f"next: {shlex.join(['kdcli', *done.following])}")
            return done.status
        except KeyboardInterrupt as error:
            ended = peers.failure()
            text = f"{error or 'interrupted'}: the same command on the same directory continues from the last checkpoint"
            message = text if ended is None else ended.message
            record_failure(message, processes.exit_code(error))
            if not peers.fail("", processes.exit_code(error)):
                console.error(message)
            return processes.exit_code(error)
        except Exception as error:
            failure = failure_of(error)
            record_failure(failure.message, failure.exit_code)
            if not peers.fail(failure.message, failure.exit_code):
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
    out: Path | None = None,
    check: CheckOptions | None = None,
    as_json: bool = False,
) -> Done:
    """Run a command.

    Args:
        overrides: the words of the command line; the first one may be a file with keys, or the run directory of eval and export.
        out: the run directory, or that of a sweep; None: the one of the config.
        check: only report what the run would do and cost; the command is distill.
        as_json: eval and export print JSON, as with format=json.

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
            if (as_json or (check is not None and check.as_json)) and multirun:
                raise ConfigError("--json describes one run, and -m means several; leave one of them out")
            overrides = [*overrides, *(["format=json"] if as_json else [])]
            return _launch(command, overrides, multirun, config_dir, cfg, resolve, info, rerun, out, check)
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
    out: Path | None,
    check: CheckOptions | None,
) -> Done:
    words = list(overrides)
    if config_dir is not None:
        os.environ["KDCLI_CONFIG_DIR"] = str(config_dir)
    file, overrides = named_file(command, overrides, rerun)
    overrides = with_run_directory(command, overrides)
    for word in overrides:
        key, _, value = word.lstrip("+~").partition("=")
        # each value of a sweep is checked by itself; an interpolation is checked once it is resolved
        for each in value.split(",") if "${" not in value else ():
            if problem := secret_in(key.replace("/", "."), each.strip("'\"[] ")):
                raise ConfigError(problem)
    if out is not None and (problem := secret_in("--out", str(out))):
        raise ConfigError(problem)
    if resolve and cfg != "job":
        raise ConfigError("--resolve goes with --cfg job")
    for option, chosen, allowed in (("--cfg", cfg, CFG), ("--info", info, INFO)):
        if chosen is not None and chosen not in allowed:
            raise ConfigError(f"{option} {shown(chosen)}: expected one of {', '.join(allowed)}")
    overrides = [renamed.addable_override(expand_home(word)) for word in overrides]
    overrides = with_folder(overrides, out, multirun)
    typed_words, typed = overrides, parse_overrides(overrides)
    overrides = [*file.overrides(overrides), *overrides]
    _require_subject(command, overrides)
    parsed = parse_overrides(overrides)
    renamed.warn_of_options(chosen_options(parsed))
    require_choices(parsed)
    require_known_hydra_keys(parsed)
    own = own_options(command, parsed)
    written = written_keys(typed, own, file.positions)
    name, overrides = register_defaults(command, overrides, rerun, typed_words)
    if cfg or info:
        return Done(_show(command, name, overrides, written, cfg, info, resolve))
    if multirun:
        status = sweep(command, name, overrides, written, check)
        if check is not None:
            console.say(f"next: {shlex.join([*command_line(words, rerun, out, config_dir), '-m'])}")
        return Done(status)
    composed = compose_config(command, name, overrides, written)
    if command == "distill" and (check is not None or OmegaConf.select(composed, "dry_run")):
        start = command_line(words, rerun, out, config_dir)
        run_check(composed, written, check or CheckOptions(), start)
        return Done(ExitCode.DONE)
    folder = run_folder(composed)
    if command == "export":  # it writes into the run's directory, and does not change the run's .hydra
        folder = user_path(str(composed.run)).absolute()
        read_report(folder)
    elif int(os.environ.get("RANK", "0")) > 0:  # only the first process owns the run directory
        with workplace():
            return Done(run_single(command, composed, Path(tempfile.gettempdir(), "run")))
    elif rundir.examine(folder, config_tree(composed), is_finished) == "finished":
        with workplace():
            clean_cache()
            rundir.tidy(folder)
        console.say(f"{folder} is finished; see {folder / 'report.html'}")
        return Done(ExitCode.DONE, folder, _following(command, composed, folder))
    require_parts(command, composed, written)
    for remark in config_remarks(command, composed):
        console.warn(remark)
    rundir.make(folder)
    status = run_single(command, composed, folder)
    if command == "export":
        folder = folder / "export" / str(composed.hydra.runtime.choices.hardware)
    return Done(status, folder, _following(command, composed, folder))


def _require_subject(command: str, overrides: Sequence[str]) -> None:
    """Refuse an evaluation or an export of nothing, before its config is composed.

    Raises:
        ConfigError: no word names what is scored or exported.
    """
    given = {word.lstrip("+").partition("=")[0] for word in overrides}
    if command == "export" and "run" not in given:
        raise ConfigError("which run? kdcli export RUN (take a finished one)")
    if command == "eval" and not given & {"run", "model", "artifact"}:
        raise ConfigError("which model? kdcli eval RUN (or give model=CHECKPOINT or artifact=FILE)")


def _following(command: str, composed: DictConfig, folder: Path) -> tuple[str, ...]:
    """Return the words of the command that usually follows, without kdcli; empty: the output is for machines.

    Args:
        folder: the directory that the command wrote.
    """
    if command == "distill":
        return "export", str(folder)
    # ~KEY removes a key
    form, artifact, model = (OmegaConf.select(composed, key) for key in ("format", "artifact", "model"))
    if form == "json":
        return ()
    if command == "export":  # without a file that ran here, the student itself predicts
        return "predict", str(folder if read_export(folder).recommended else folder.parents[1]), TEXT
    if artifact and os.path.exists(user_path(artifact)):
        return "predict", artifact, TEXT
    return ("predict", model, TEXT) if model else ("export", str(composed.run))


def _show(
    command: str,
    name: str,
    overrides: list[str],
    written: Mapping[str, str],
    cfg: str | None,
    info: str | None,
    resolve: bool,
) -> int:
    """Check a config and print it (`--cfg`), or what Hydra says of it (`--info`), without values of environment variables; returns the exit code."""
    composed = compose_config(command, name, [word for word in overrides if not is_sweep(word)], written)
    require_components(command, composed, written)
    if cfg == "job" and not resolve and not any(map(is_sweep, overrides)):
        console.write(job_config(composed))  # Hydra would compose it a second time
        return ExitCode.DONE
    options = [f"--cfg={cfg}" if cfg else f"--info={info}", *(["--resolve"] if resolve else [])]
    with redirect_stdout(io.StringIO()) as printed:
        code = run_hydra(name, [*options, *overrides])
    console.write(without_environment(printed.getvalue()))
    return code


def command_line(
    words: list[str], rerun: Path | None, out: Path | None, config_dir: Path | None
) -> list[str]:
    """Return the command line of the run that a check describes."""
    options = {"--rerun": rerun, "--out": out, "--config-dir": config_dir}
    given = [text for name, path in options.items() if path is not None for text in (name, str(path))]
    return ["kdcli", "distill", *(word for word in words if not word.startswith("dry_run=")), *given]
