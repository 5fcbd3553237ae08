"""Compares finished runs and exported files: their scores and costs, and the keys that differ. Imports no torch."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from kdcli import rundir
from kdcli.errors import ConfigError
from kdcli.evaluation.results import (
    ENVIRONMENT,
    SCHEMA,
    ExportResult,
    Report,
    finished_report,
    is_finished,
    read_export,
)
from kdcli.evaluation.row_scores import RowScores
from kdcli.files import read_json
from kdcli.numbers import format_number, format_pair

STUDENT = "student"
MACHINE = "processor", "gpus", "platform"
"""The keys of env.json that name the machine."""
Entry = dict[str, Any]
"""A line of a comparison, as `compare` returns it."""


def compare(paths: Sequence[Path]) -> dict[str, Any]:
    """Compare runs, the runs of sweeps, and the files of exports with the first one of them.

    Args:
        paths: run directories, directories of sweeps, and folders that `kdcli export` wrote.

    Returns:
        `runs`: for each one `name`, `path`, `kind` (run, export or failed), `model`, `task`, `metric`, `score`, `ci95`, `retention`,
        `gain_over_control`, `gain_ci95`, `outcome`, `validation_score`, `bytes`, `parameters`, `latency_ms`, `throughput_per_s`; `difference`
        and `difference_ci95` (the score less that of the first one), `p`, and `paired` (null: there is no difference to give); `keys`;
        and `message` of a run that has no results.
        `keys`: the names of the keys that differ. `notes`: what a reader must know, as sentences.

    Raises:
        ConfigError: a path is none of these, or a file of it is damaged.
    """
    entries, scores = [], []
    for path in paths:
        for entry, rows in _entries(path):
            entries.append(entry)
            scores.append(rows)
    for entry, name in zip(entries, _names([entry["path"] for entry in entries]), strict=True):
        entry["name"] = name if entry["model"] == STUDENT else f"{name}: {entry['model']}"
    done = [index for index, entry in enumerate(entries) if entry["kind"] != "failed"]
    notes: list[str] = []
    for index in done:
        entry = entries[index]
        entry |= {"difference": None, "difference_ci95": None, "p": None, "paired": None}
        if index != done[0]:
            entry |= _difference(entry, scores[index], entries[done[0]], scores[done[0]])
    if done:
        notes += _notes([entries[index] for index in done])
    keys = _differing([entry["keys"] for entry in entries])
    for entry in entries:
        entry["keys"] = {key: entry["keys"][key] for key in keys if key in entry["keys"]}
        entry.pop("rows_of")
        entry.pop("machine")
    return {"schema": SCHEMA, "runs": entries, "keys": keys, "notes": notes}


def jobs_of(sweep: Path) -> list[Path]:
    """Return the directories of a sweep's runs, in the order of their names."""
    parents = {each.parent for name in (".hydra", rundir.ERROR) for each in sweep.glob(f"**/{name}")}
    return sorted(parents - {sweep}, key=lambda job: (len(str(job)), job))


def _entries(path: Path) -> Iterator[tuple[Entry, RowScores | None]]:
    """Yield the lines of one path of the command line.

    Raises:
        ConfigError: it is no run, sweep or export.
    """
    if (path / rundir.SWEEP).is_file():
        jobs = jobs_of(path)
        if not jobs:
            raise ConfigError(f"{path} is a sweep without runs; start it with kdcli distill -m")
        for job in jobs:
            yield from _job(job)
    elif (path / rundir.EXPORT).is_file():
        yield from _exported(path)
    elif (path / rundir.HYDRA).is_file():
        yield _run(path)
    else:
        rundir.require_run(path)
        raise ConfigError(
            f"{path} is no run directory, no sweep directory and no folder that kdcli export wrote; give such ones"
        )


def _job(job: Path) -> Iterator[tuple[Entry, RowScores | None]]:
    """Yield a run of a sweep, which may have failed, or the files of a job of an export.

    Raises:
        ConfigError: it is a job of an evaluation.
    """
    message = "it did not finish"
    if (job / rundir.ERROR).is_file():
        message = rundir.read_error(job)["message"]
    elif (job / rundir.EXPORT).is_file():
        yield from _exported(job)
        return
    elif is_finished(job):
        yield _run(job)
        return
    rundir.require_run(job)
    keys = _flat(rundir.recorded_keys(job)) if (job / rundir.HYDRA).is_file() else {}
    yield _entry(job, "failed", STUDENT, keys) | {"message": message}, None


def _run(run: Path) -> tuple[Entry, RowScores | None]:
    """Return the student of a run."""
    report = finished_report(run)
    verdict, student = report.verdict, report.models[STUDENT]
    validation = report.validation_score.get(STUDENT)
    entry = _entry(run, "run", STUDENT, _flat(rundir.recorded_keys(run))) | _costs(report, student.as_json())
    entry |= {
        "validation_score": validation,
        "retention": verdict.retention,
        "gain_over_control": verdict.gain_over_control,
        "gain_ci95": verdict.gain_ci95,
        "outcome": "smoke" if report.smoke else verdict.outcome,
        "rows_of": (report.dataset.fingerprint, report.test_examples),
        "machine": _machine(run),
    }
    rows = RowScores.read(run)
    return entry, rows if rows is not None and entry["model"] in rows.values else None


def _exported(folder: Path) -> Iterator[tuple[Entry, RowScores | None]]:
    """Yield the files of an export; those that did not run here have no score."""
    result, rows = read_export(folder), RowScores.read(folder)
    run = folder.parent.parent
    has_run = (run / rundir.HYDRA).is_file() and is_finished(run)
    fingerprint = finished_report(run).dataset.fingerprint if has_run else None
    machine = {key: result.environment.get(key) for key in MACHINE}
    for name, artifact in result.artifacts.items():
        keys = _flat(rundir.recorded_keys(run)) if has_run else {}
        keys |= {"hardware": result.hardware, "precision": artifact.precision}
        entry = _entry(folder, "export", name, keys) | _costs(result, artifact.as_json())
        entry |= {"retention": artifact.retention, "outcome": "smoke" if result.smoke else None}
        entry |= {"rows_of": (fingerprint, result.test_examples), "machine": machine}
        yield entry, rows if rows is not None and name in rows.values else None


def _entry(path: Path, kind: str, model: str, keys: Mapping[str, Any]) -> Entry:
    return {"path": str(path), "kind": kind, "model": model, "keys": dict(keys)} | {
        "rows_of": None,
        "machine": None,
    }


def _costs(result: Report | ExportResult, model: Mapping[str, Any]) -> Entry:
    return {
        "task": result.task,
        "metric": result.metric,
        "score": model.get("score"),
        "ci95": (model.get("scores") or {}).get(f"{result.metric}_ci95"),
        "test_examples": result.test_examples,
        **{key: model.get(key) for key in ("bytes", "parameters", "latency_ms", "throughput_per_s")},
    }


def _machine(run: Path) -> dict[str, Any]:
    """Return the machine on which a run was measured, as far as env.json states it."""
    path = run / ENVIRONMENT
    environment: dict[str, Any] = {}
    if path.is_file():
        environment = read_json(path, dict, "restore it, or remove it")
    return {key: environment.get(key) for key in MACHINE}


def _difference(entry: Entry, rows: RowScores | None, first: Entry, first_rows: RowScores | None) -> Entry:
    """Return the score of a line less that of the first one: with a paired interval where the scores of the same rows are stored, with one of two
    independent scores where they are not stored and the data is the same, else none."""
    score, other = format_number(entry["score"]), format_number(first["score"])
    if score is None or other is None or entry["metric"] != first["metric"]:
        return {}
    if rows is not None and first_rows is not None:
        if not rows.same_rows(first_rows):
            return {}
        gain = rows.gain(entry["model"], first_rows, first["model"])
        interval = None if gain.interval is None else list(gain.interval)
        return {"difference": gain.value, "difference_ci95": interval, "p": gain.p, "paired": True}
    if entry["rows_of"] != first["rows_of"]:
        return {}
    unpaired = _independent(score, format_pair(entry["ci95"]), other, format_pair(first["ci95"]))
    return {"difference": score - other, "difference_ci95": unpaired, "paired": False}


def _independent(
    score: float,
    bounds: tuple[float | None, float | None],
    other: float,
    other_bounds: tuple[float | None, float | None],
) -> list[float] | None:
    """Return the 95 % interval of a difference of two independent scores from the interval of each (Newcombe 1998, method 10,
    https://doi.org/10.1002/(SICI)1097-0258(19980430)17:8<873::AID-SIM779>3.0.CO;2-I)."""
    (low, high), (other_low, other_high) = bounds, other_bounds
    if low is None or high is None or other_low is None or other_high is None:
        return None
    difference = score - other
    return [
        difference - math.hypot(score - low, other_high - other),
        difference + math.hypot(high - score, other - other_low),
    ]


def _notes(done: Sequence[Entry]) -> Iterator[str]:
    """Yield what a reader of the comparison must know, for the lines that have results."""
    first, others = done[0], done[1:]

    def named(which: Callable[[Entry], bool]) -> str:
        return ", ".join(entry["name"] for entry in others if which(entry))

    if metrics := named(lambda entry: entry["metric"] != first["metric"]):
        yield f"judged by another metric than {first['name']}, and not compared with it: {metrics}"
    same = [entry for entry in others if entry["metric"] == first["metric"]]
    others = same
    if rows := named(lambda entry: entry["paired"] is None and entry["score"] is not None):
        yield f"scored on other test rows than {first['name']}, so that there is no paired interval: {rows}"
    if unpaired := named(lambda entry: entry["paired"] is False):
        yield (
            f"the scores of single rows are not stored (an earlier version made the run), so that the interval is that of two independent scores, "
            f"which is wider than a paired one: {unpaired}"
        )
    others = done[1:]
    if machines := named(lambda entry: entry["machine"] != first["machine"]):
        yield f"measured on another machine than {first['name']}, so that latencies are not comparable: {machines}"
    if smoke := ", ".join(entry["name"] for entry in done if entry["outcome"] == "smoke"):
        yield f"smoke runs, whose figures mean nothing: {smoke}"
    if len(done) > 2:
        yield "each interval is for one difference; of many, some exclude 0 by chance"


def _flat(tree: Mapping[str, Any]) -> dict[str, Any]:
    """Return the keys of a config with their values; that of a list is the list. Keys that belong to one run directory alone are dropped."""
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        if isinstance(value, Mapping):
            flat |= {f"{key}.{inner}": own for inner, own in _flat(value).items()}
        else:
            flat[str(key)] = value
    return flat


def _differing(configs: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return the keys whose values are not the same in all configs, in the order of the first one that has them. The keys of a section that is null in one of
    them, such as `measure`, are dropped."""
    keys = dict.fromkeys(key for config in configs for key in config)
    keys = {
        key: None for key in keys if not any(key[:end] in keys for end, char in enumerate(key) if char == ".")
    }
    missing = object()
    return [
        key
        for key in keys
        if any(config.get(key, missing) != configs[0].get(key, missing) for config in configs[1:])
    ]


def _names(paths: Sequence[str]) -> list[str]:
    """Return the paths without the folders that they all have in common."""
    distinct = {os.path.abspath(path) for path in paths}
    if len(distinct) < 2:
        return [Path(path).name or path for path in paths]
    common = os.path.commonpath([os.path.dirname(path) for path in distinct])
    return [os.path.relpath(os.path.abspath(path), common) for path in paths]
