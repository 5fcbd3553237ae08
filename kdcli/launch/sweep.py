"""Runs sweeps: checks all jobs, has Hydra run them, and prints a table of their results."""

from __future__ import annotations

import itertools
import math
import multiprocessing
import re
import shlex
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import BrokenExecutor
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.types import ChoiceSweep, Glob, Override, RangeSweep
from omegaconf import OmegaConf

from kdcli import console, processes, rundir
from kdcli.errors import ConfigError, ExitCode, KDError, abbreviated, listed
from kdcli.evaluation.results import is_finished, read_export, read_report
from kdcli.launch.argv import parse_overrides, quote_override
from kdcli.launch.check import CheckOptions, run_check
from kdcli.launch.choices import matches_glob
from kdcli.launch.compose import (
    compose_config,
    composed_with_hydra,
    config_remarks,
    config_tree,
    require_parts,
    resolved_folder,
)
from kdcli.launch.hydra_errors import config_at_fault, failure_of
from kdcli.launch.job import UNRECORDED, run_hydra
from kdcli.report.comparison import compare, jobs_of

TEXT = "A text."
"""The text of the command by which a model is tried."""
MOST_JOBS = 256
"""The most jobs of a sweep that are checked before the first one starts."""
MOST_POINTS = 10_000
"""The most jobs of a sweep."""


def _axes(overrides: list[str]) -> list[list[str]]:
    """Expand each override of a sweep into one override per value.

    Raises:
        ConfigError: an override has no values or uncountably many, or the sweep has more than `MOST_POINTS` points.
    """
    parsed = parse_overrides(overrides)
    for word in parsed:
        if word.is_sweep_override() and re.match(r"hydra\b", word.key_or_group):
            raise ConfigError(
                f"{abbreviated(str(word.input_line))}: a sweep has one value of {word.key_or_group}; give one, in quotes if it has a comma"
            )
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
        with config_at_fault(f"{abbreviated(str(word.input_line))}: it cannot be swept over"):
            values = matches_glob(word) if isinstance(word._value, Glob) else [*word.sweep_string_iterator()]
        axes.append([f"{word.get_key_element()}={value}" for value in values])
    return axes


def _points(word: Override) -> int:
    """Return the number of values of an override, computed without creating them.

    Raises:
        ConfigError: it has none, or uncountably many.
    """
    line, value = abbreviated(str(word.input_line)), word._value
    if not word.is_sweep_override():
        return 1
    if isinstance(value, RangeSweep):
        try:
            first, last, step = (float(each or 0) for each in (value.start, value.stop, value.step))
            count = max(0, math.ceil((last - first) / step))
        except (ArithmeticError, ValueError):  # no number, or beyond the range of floats
            raise ConfigError(
                f"{line}: expected a range with finite bounds, and a step that is not 0 and gives at most {MOST_POINTS:,} values"
            ) from None
    elif isinstance(value, ChoiceSweep):
        count = len(value.list)
    elif isinstance(value, Glob):
        count = len(matches_glob(word))
    else:  # an interval, which only sweepers that sample support (Optuna)
        raise ConfigError(
            f"{line}: kdcli runs every point of a sweep, and an interval has too many; give values (a,b,c) or range(FIRST,END,STEP)"
        )
    if count == 0:
        raise ConfigError(f"{line}: it has no values; give at least one")
    return count


def sweep(
    command: str,
    name: str,
    overrides: list[str],
    written: Mapping[str, str],
    check: CheckOptions | None = None,
) -> int:
    """Check all jobs, let Hydra run them, and print a table of their results; returns the highest exit code.

    Args:
        check: only say what each job would do and cost.
    """
    axes = _axes(overrides)
    if check is not None:
        return _check_jobs(command, name, axes, written, check)
    words = [
        f"{axis[0].partition('=')[0]}={','.join(word.partition('=')[2] for word in axis)}"
        if "glob(" in word
        else word
        for axis, word in zip(axes, overrides, strict=True)
    ]
    # Hydra creates its launcher and its sweeper from what the other words compose than those that are swept over
    fixed = [word for word in words if not parse_overrides([word])[0].is_sweep_override()]
    composed_with_hydra(command, name, fixed, written)
    points: list[Path] = []
    remarked: dict[str, None] = {}
    for index, job in enumerate(itertools.islice(itertools.product(*axes), MOST_JOBS)):
        composed = compose_config(command, name, list(job), written)
        remarked |= dict.fromkeys(config_remarks(command, composed))
        OmegaConf.set_readonly(composed, False)
        composed.hydra.job.num = index
        HydraConfig.instance().set_config(composed)
        if index == 0:  # its name contains the time, which changes between points
            folder = resolved_folder(composed, "hydra.sweep.dir")
            rundir.examine_sweep(folder)
        run = resolved_folder(composed, "hydra.sweep.subdir", folder)
        if rundir.examine(run, config_tree(composed), is_finished) != "finished":
            require_parts(command, composed, written)
        if run in points or not run.is_relative_to(folder) or ".." in run.parts:
            raise ConfigError(
                f"hydra.sweep.subdir: point {index} would go to {run}; give each a folder of its own below hydra.sweep.dir, as "
                "'NAME-${hydra:job.num}' does"
            )
        points.append(run)
    for remark in remarked:
        console.warn(remark)
    rundir.make(folder)
    for run in points:  # errors of an earlier sweep do not belong to this one
        (run / rundir.ERROR).unlink(missing_ok=True)
    interrupted: KeyboardInterrupt | None = None
    before = processes.children()
    try:
        status = run_hydra(
            name, ["--multirun", *words, UNRECORDED, f"hydra.sweep.dir={quote_override(folder)}"]
        )
    except KeyboardInterrupt as error:
        processes.end_children(before)
        interrupted, status = error, processes.exit_code(error)
    except Exception as error:
        failure = _launcher_error(error, folder, points) or failure_of(error)
        processes.end_children(before)
        if not jobs_of(folder):
            rundir.unmake(folder)
            raise failure from error
        console.error(failure.message)
        status = failure.exit_code
    status = max(status, _table(command, folder))
    if interrupted:
        raise interrupted
    return status


def _check_jobs(
    command: str, name: str, axes: list[list[str]], written: Mapping[str, str], options: CheckOptions
) -> int:
    """Report what each job would do and cost; returns the highest exit code."""
    for job in itertools.islice(itertools.product(*axes), MOST_JOBS):
        composed = compose_config(command, name, list(job), written)
        console.say(" ".join(word for axis, word in zip(axes, job, strict=True) if len(axis) > 1) + ":")
        run_check(composed, written, options)
    return ExitCode.DONE


def _without_result(points: Iterable[Path]) -> list[Path]:
    """Return the directories of the points that have neither a result nor an error."""
    results = rundir.REPORT, rundir.EXPORT, rundir.ERROR
    return [run for run in points if not any((run / name).is_file() for name in results)]


def _launcher_error(error: BaseException | None, folder: Path, points: Iterable[Path]) -> KDError | None:
    """Return the error of a sweep whose launcher timed out, or whose launcher's process was killed; None: it failed otherwise."""
    while error is not None and not isinstance(error, multiprocessing.TimeoutError | BrokenExecutor):
        error = error.__cause__ or error.__context__
    if error is None:
        return None
    ended = f"those without a result were ended ({listed(map(str, _without_result(points)))})"
    again = f"start the same command with hydra.sweep.dir={quote_override(folder)}: it goes on from their checkpoints"
    if isinstance(error, BrokenExecutor):
        return KDError(f"hydra/launcher: one of its processes was killed, and {ended}; {again}")
    return KDError(
        f"hydra.launcher.timeout: a point of the sweep took longer, and {ended}; give a larger one, or null, and {again}"
    )


def _table(command: str, folder: Path) -> int:
    """Print the points of a sweep as a table; returns the highest exit code."""
    jobs = jobs_of(folder)
    if command == "eval":
        return max([ExitCode.DONE, *(_row(job, _eval_row)["exit_code"] for job in jobs)])
    from kdcli.report.tables import sweep_table, targets_table

    if command == "export":
        rows = [_row(job, _export_row) for job in jobs]
        targets_table(rows)
        usable = [
            (row["artifacts"][row["recommended"]]["bytes"], str(job))
            for job, row in zip(jobs, rows, strict=True)
            if row.get("recommended")
        ]
        if usable:  # that of the smallest file
            console.say(f"next: {shlex.join(['kdcli', 'predict', min(usable)[1], TEXT])}")
    else:
        rows = [_row(run, _sweep_row) | {"run": str(run.relative_to(folder))} for run in jobs]
        sweep_table(rows)
        console.say(f"runs in {folder}")
        _page(folder)
        scored = [row for row in rows if row.get("validation_score") is not None]
        if scored:
            best = max(scored, key=lambda row: row["validation_score"])
            console.say(f"next: {shlex.join(['kdcli', 'export', str(folder / best['run'])])}")
    return max([ExitCode.DONE, *(row["exit_code"] for row in rows)])


def _page(folder: Path) -> None:
    """Write compare.html of a sweep. A run that cannot be read leaves the sweep without a page, and is named."""
    from kdcli.report.compare_page import PAGE, write_comparison

    try:
        write_comparison(folder / PAGE, compare([folder]), folder.name)
    except KDError as error:
        console.warn(f"{PAGE} is not written: {error.message}")
        return
    console.say(f"comparison: {folder / PAGE}")


def _row(job: Path, read: Callable[[Path], dict[str, Any]]) -> dict[str, Any]:
    """Return the table row of a job: its overrides with the result that `read` returns, or the reason why there is none."""
    row = {"overrides": " ".join(rundir.recorded_overrides(job) or []), "exit_code": ExitCode.DONE}
    try:
        return row | (rundir.read_error(job) if (job / rundir.ERROR).is_file() else read(job))
    except ConfigError as error:
        return row | {"exit_code": error.exit_code, "message": error.message}


def _sweep_row(run: Path) -> dict[str, Any]:
    if not (run / rundir.REPORT).is_file():
        return {"exit_code": ExitCode.FAILED, "message": "did not finish"}
    report = read_report(run)
    verdict = report.verdict
    return {
        "smoke": report.smoke,
        "task": report.task,
        "metric": report.metric,
        "score": report.models["student"].score,
        "validation_score": report.validation_score.get("student"),
        "retention": verdict.retention,
        "gain_over_control": verdict.gain_over_control,
        "gain_ci95": verdict.gain_ci95,
        "outcome": verdict.outcome,
    }


def _export_row(job: Path) -> dict[str, Any]:
    if not (job / rundir.EXPORT).is_file():
        return {"exit_code": ExitCode.FAILED, "message": "did not finish"}
    return read_export(job).as_json()


def _eval_row(job: Path) -> dict[str, Any]:
    return {}
