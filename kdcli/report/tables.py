"""Prints the tables of the terminal: models, artifacts, targets, sweeps."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from statistics import fmean
from typing import Any

from kdcli import console
from kdcli.numbers import (
    format_bytes,
    format_count,
    format_items,
    format_milliseconds,
    format_number,
    format_pair,
    format_rate,
    format_share,
    format_times,
)
from kdcli.report.metrics import (
    baseline_lines,
    calibration_lines,
    compared_models,
    metric_of,
    suspicion_lines,
)
from kdcli.report.verdict import verdict_text
from kdcli.tasks.presentation import Metric, Report, outcome_of


def model_columns(metric: Metric) -> list[str]:
    """Return the names of the columns of `model_rows`."""
    return ["model", metric.name, "95 % interval", "params", "size", metric.latency, metric.rate, "memory"]


def model_rows(metric: Metric, models: Mapping[str, Mapping[str, Any]]) -> list[list[str]]:
    """Return one row a model, cells as in `model_columns`."""
    return [
        [
            name,
            metric.format_score(model.get("score")),
            metric.format_interval(model.get("scores", {}).get(f"{metric.key}_ci95")),
            format_count(model.get("parameters")),
            format_bytes(model.get("bytes")),
            format_milliseconds((model.get("latency_ms") or {}).get("p50")),
            format_rate(model.get("throughput_per_s")),
            format_bytes(model.get("peak_memory_bytes")),
        ]
        for name, model in models.items()
    ]


def _table(title: str, metric: Metric, models: Mapping[str, Mapping[str, Any]]) -> None:
    """Print models side by side. A compact metric joins the score and its interval in one column, and shows further scores in other columns."""
    columns, rows = model_columns(metric), model_rows(metric, models)
    if metric.compact:
        columns[1:3] = [f"{columns[1]} (95 %)"]
        for row, model in zip(rows, models.values(), strict=True):
            low, high = format_pair(model.get("scores", {}).get(f"{metric.key}_ci95"))
            row[1:3] = [row[1] if low is None or high is None else f"{row[1]} ({row[2]})"]
    further = []
    for name, key in metric.terminal_scores:
        scores = [model.get("scores", {}).get(key) for model in models.values()]
        if any(format_number(score) is not None for score in scores):
            further.append((name, list(map(metric.format_score, scores))))
    if further:
        columns[2:] = [*(name for name, _ in further), *columns[2:-1]]
        for i, row in enumerate(rows):
            row[2:] = [*(cells[i] for _, cells in further), *row[2:-1]]
    console.table(title, columns, rows)


def final_table(report: Report) -> None:
    """Print teacher, control and student side by side, then the verdict, to stdout."""
    tokens = (
        f", {format_items(report['test_tokens'], 'reference token')}" if report.get("test_tokens") else ""
    )
    _table(
        f"{format_items(report['test_examples'], 'test example')}{tokens}",
        metric_of(report),
        compared_models(report),
    )
    for name, model in compared_models(report).items():
        if measured := model.get("measured_as"):
            console.say(
                f"speed and memory of the {name} are those of the {measured}, which has the same architecture; measure.mode=full measures both"
            )
    if rows := seed_rows(report):
        metric = metric_of(report)
        console.table(f"{metric.name} of {len(rows) - 1} seeds", seed_columns(metric), rows)
    for line in baseline_lines(report):
        console.say(line)
    console.say(verdict_text(report), style="bold")
    for line in calibration_lines(report):
        console.say(line)
    for line in suspicion_lines(report):
        console.say(f"doubtful: {line}")
    if endpoint := report.get("endpoint"):
        console.say(f"{endpoint['model']}: {_bill(endpoint)}")


def seed_columns(metric: Metric) -> list[str]:
    """Return the names of the columns of `seed_rows`."""
    return ["seed", "student", "control", f"gain in {metric.unit} (95 %)"]


def seed_rows(report: Report) -> list[list[str]]:
    """Return one row for each seed of a run with several, cells as in `seed_columns`, and one of their means: its gain has the interval over seeds and
    rows."""
    metric, seeds = metric_of(report), report["verdict"].get("seeds") or []
    if len(seeds) < 2:
        return []
    columns = [[format_number(each.get(key)) for each in seeds] for key in ("student", "control", "gain")]
    gains = iter(metric.differences(*(gain for gain in columns[2] if gain is not None)))
    rows = [
        [
            f"{each['seed']}",
            *map(metric.format_score, scores[:2]),
            "n/a" if scores[2] is None else next(gains),
        ]
        for each, scores in zip(seeds, zip(*columns, strict=True), strict=True)
    ]
    means = [
        fmean(present) if (present := [x for x in column if x is not None]) else None
        for column in columns[:2]
    ]
    return [*rows, ["mean", *map(metric.format_score, means), _gain(metric, report["verdict"])]]


def _bill(endpoint: Mapping[str, Any]) -> str:
    """Return the number of answers of a remote teacher, and their cost."""
    cost = "not known" if endpoint["cost"] is None else f"{endpoint['cost']:.2f}"
    before = f", {endpoint['from_ledger']:,} answered before" if endpoint["from_ledger"] else ""
    uncounted = format_items(endpoint.get("uncounted", 0), "answer")
    without = f" ({uncounted} not counted by the host)" if endpoint.get("uncounted") else ""
    return (
        f"{format_items(endpoint['questions'], 'question')}{before}; {format_items(endpoint['requests'], 'request')} ({endpoint['retries']:,} of them retries), "
        f"{endpoint['prompt_tokens']:,} + {endpoint['completion_tokens']:,} tokens{without}, cost {cost}; {endpoint['refused']:,} refused, "
        f"{endpoint['unparsable']:,} unparsable"
    )


def eval_table(result: Mapping[str, Any]) -> None:
    """Print what ``kdcli eval`` found (eval.json), and the verdict if student and teacher were compared, or how much faster a file
    is that was measured interleaved with the student."""
    title = (
        f"{format_items(result['examples'], 'row')} of {result['dataset']['name']}, split {result['split']}"
    )
    shown = metric_of(result)
    _table(title, shown, result["models"])
    if "verdict" in result:
        console.say(result["verdict"]["text"], style="bold")
        return
    for name, model in result["models"].items():
        faster, speedup = (format_number(model.get(key)) for key in ("times_faster", "speedup"))
        if (
            faster and speedup and "parameters" not in model
        ):  # a checkpoint was measured interleaved with the teacher
            sooner = "shorter" if faster > 1 else "longer"
            console.say(
                f"{name}, interleaved with the student in torch: {shown.latency_of} {format_times(max(faster, 1 / faster))} times {sooner}, "
                f"{format_times(speedup)} times the {shown.rates}"
            )


UNRUN = "Nothing here runs these files: their predictions and their speed are not known. Compare them on the device."


def export_table(result: Mapping[str, Any]) -> None:
    """Print the artifacts of ``kdcli export`` (export.json) and the torch student in one table, and the limits that they miss.

    ``faster`` is the speed-up on the same rows, measured interleaved; ``agrees`` is the share of rows (of models that write text: tokens) with
    the torch student's prediction; ``texts`` is the share of texts that are identical to the student's; ``checks`` says whether these, the score
    and the budget are within their limits.
    """
    metric, best = metric_of(result), result["recommended"]
    texts = any("same_texts" in (entry["parity"] or {}) for entry in result["artifacts"].values())

    agrees = ["agrees", "texts"] if texts else ["agrees"]
    rows, misses = [export_cells("torch student", metric, result["torch"], agrees)], []
    for name, entry in result["artifacts"].items():
        parity, budget = entry["parity"] or {}, entry["budget"]
        rows.append(export_cells(("* " if name == best else "") + name, metric, entry, agrees))
        if not parity.get("within", True):
            lost = metric.differences(parity["score_drop"])[0].removeprefix("+")
            agreed = (
                f"agrees with the torch student on {format_share(parity['agreement'])} of the {metric.item}"
            )
            if "generated" in parity:
                agreed += f", writes {format_share(parity['generated'])} of its answers,"
            if "same_texts" in parity:
                agreed += f", writes {format_share(parity['same_texts'])} of its texts just as it does,"
            misses.append(f"{name}: out of tolerance: {agreed} and loses {lost} {metric.unit}")
            if parity.get("same_tokens", 1) < 1:
                same = format_share(parity["same_tokens"])
                misses.append(
                    f"{name}: its own tokenizer cuts only {same} of the texts as the student's does"
                )
        for key, check in budget.items():
            if key != "met" and not check["met"]:
                misses.append(f"{name}: misses its budget: {_budget_line(key, check)}")
    misses += [f"{name}: could not be made or run" for name in result.get("failed", {})]
    columns = export_columns(metric, agrees)
    console.table(
        f"{result['hardware']}, {format_items(result['test_examples'], 'test example')}", columns, rows
    )
    if texts:
        console.say(
            f"agrees, texts: shares of {metric.item} and of whole texts written as the torch student does"
        )
    notes = [f"The files were {result['note']}."] if result.get("note") else []
    if result.get("sequence_length"):
        notes.append(
            f"Speed and memory are those of rows of {format_items(result['sequence_length'], 'token')}."
        )
    for line in [*notes, *stream_lines(result), *load_lines(result), *misses]:
        console.say(line)
    if compared := result.get("quantization"):
        _quantization_table(metric, compared)
    if not any(entry["parity"] for entry in result["artifacts"].values()):
        console.say(UNRUN, style="bold")
    elif best is None:
        console.say("No artifact is within tolerance and budget.", style="bold")
    else:
        console.say("* recommended: the smallest within tolerance and budget")
    if result["smoke"]:
        console.say("A smoke run: these figures mean nothing.", style="bold")


def probability_lines(result: Mapping[str, Any]) -> list[str]:
    """Return a sentence on each file of a classifier: the largest difference of a probability from the torch student's."""
    lines = []
    for name, entry in result["artifacts"].items():
        apart = (entry["parity"] or {}).get("max_abs_difference_of_probabilities")
        if apart is not None:
            most = math.ceil(apart * 1000) / 1000
            lines.append(f"{name}: no label's probability is further than {most:g} from the torch student's")
    return lines


def stream_lines(result: Mapping[str, Any]) -> list[str]:
    """Return a sentence on each generative model: the time to its first token, and between tokens."""
    lines = []
    for name, entry in {"torch student": result["torch"], **result["artifacts"]}.items():
        if entry.get("between_tokens_ms"):
            first, later = (
                f"{format_milliseconds(entry[key]['p50'])} (95 %: {format_milliseconds(entry[key]['p95'])})"
                for key in ("first_token_ms", "between_tokens_ms")
            )
            lines.append(f"{name}: an answer's first token in {first}, then one each {later}")
    return lines


def load_lines(result: Mapping[str, Any]) -> list[str]:
    """Return a sentence on each artifact that was measured with raw texts at stated rates."""
    lines = []
    for name, entry in result["artifacts"].items():
        if load := entry.get("load"):
            at = []
            for rate in load["rates"]:
                late = "" if rate["busy"] < 1 else " (falls behind)"
                at.append(
                    f"{format_milliseconds(rate['latency_ms']['p95'])} at {rate['requests_per_s']:g} a second{late}"
                )
            line = f"{name}: from raw text to output, 95 % of requests within {', '.join(at)}"
            if load["limit_ms"] is not None:
                most = load["most_requests_per_s"]
                kept_text = (
                    "no rate keeps" if most is None else f"up to {float(f'{most:.2g}'):,g} a second keep"
                )
                line += f"; {kept_text} {load['limit_ms']:g} ms"
            lines.append(line)
    return lines


def _quantization_table(metric: Metric, compared: Mapping[str, Any]) -> None:
    """Print what quantization-aware training gains: the files next to those of the student before that stage."""
    before, precision = metric.format_score(compared["score"]), compared["precision"]
    console.table(
        f"trained in {precision}, against rounded after training; kept: of {before}, the student's in fp32 before that stage",
        ["", "quantization-aware", "kept", "post-training", "kept"],
        [
            [
                name,
                *(
                    cell
                    for own in pair.values()
                    for cell in (metric.format_score(own["score"]), format_share(own["kept"]))
                ),
            ]
            for name, pair in compared["artifacts"].items()
        ],
    )


def export_columns(metric: Metric, agrees: Sequence[str]) -> list[str]:
    """Return the names of the columns of `export_cells`; where the time to the first token is not all of it, nothing is called faster by it."""
    faster = [] if metric.compact else ["faster"]
    return ["file", metric.name, "size", metric.latency, *faster, "memory", *agrees, "checks"]


def export_cells(name: str, metric: Metric, entry: Mapping[str, Any], agrees: Sequence[str]) -> list[str]:
    """Return a line of an export's table; that of the torch student has nothing to agree with."""
    speed, faster = entry.get("latency_ms") or {}, format_number(entry.get("times_faster"))
    cost = [format_bytes(entry.get("bytes")), format_milliseconds(speed.get("p50"))]
    if not metric.compact:
        cost.append("" if faster is None else f"{faster:.1f} x")
    cost.append(format_bytes(entry.get("peak_memory_bytes")))
    parity = entry.get("parity")
    if parity is None:
        checks = "not run" if "parity" in entry else ""
        return [name, metric.format_score(entry.get("score")), *cost, *("" for _ in agrees), checks]
    shares = [format_share(parity.get(key)) for key in ("agreement", "same_texts")[: len(agrees)]]
    good = parity["within"] and entry["budget"]["met"]
    return [name, metric.format_score(entry.get("score")), *cost, *shares, "ok" if good else "MISSED"]


def targets_table(jobs: Sequence[Mapping[str, Any]]) -> None:
    """Print the files of several exports side by side, and which of all is the best: the smallest within tolerance and budget.

    A job has ``overrides`` (the words, one string) and either what export.json holds, or ``message`` (why it failed).
    """
    words = [job["overrides"].split() for job in jobs]
    names = [
        " ".join(word.removeprefix("hardware=") for word in line if not all(word in other for other in words))
        or " ".join(word.removeprefix("hardware=") for word in line)
        for line in words
    ]
    done = [(name, job) for name, job in zip(names, jobs, strict=True) if "artifacts" in job]
    if done:
        first = done[0][1]
        metric = metric_of(first)
        good = [
            (entry["bytes"], name, file)
            for name, job in done
            for file, entry in job["artifacts"].items()
            if (entry["parity"] or {}).get("within") and entry["budget"]["met"]
        ]
        best = min(good, default=None)
        rows = [export_cells("torch student", metric, first["torch"], ["agrees"])]
        for name, job in done:
            for file, entry in job["artifacts"].items():
                mark = "* " if best is not None and best[1:] == (name, file) else ""
                rows.append(export_cells(f"{mark}{name} {entry['precision']}", metric, entry, ["agrees"]))
        columns = ["target", *export_columns(metric, ["agrees"])[1:]]
        console.table(f"all targets, {format_items(first['test_examples'], 'test example')}", columns, rows)
        if best is None:
            console.say("No artifact is within tolerance and budget.", style="bold")
        else:
            console.say("* best: the smallest within tolerance and budget")
    for name, job in zip(names, jobs, strict=True):
        if "message" in job:
            console.say(f"{name}: {job['message']}")
        elif job.get("note"):
            console.say(f"{name}: its files were {job['note']}")


def _budget_line(key: str, check: Mapping[str, Any]) -> str:
    """Return a limit that is not met, and what there is of it."""
    show: Callable[[Any], str] = (
        format_bytes if "bytes" in key else format_milliseconds if "_ms_" in key else format_share
    )
    verb = "needs" if key.startswith("max") else "has"
    value = f"what it {verb} is not known" if check["value"] is None else f"it {verb} {show(check['value'])}"
    return f"{key} is {show(check['limit'])}, and {value}"


def sweep_table(rows: Sequence[Mapping[str, Any]]) -> None:
    """Print the runs of a sweep to stdout.

    A row has ``overrides`` (the words, one string) and either ``message`` (why the run failed) or ``metric``,
    ``score`` (on the test split), ``validation_score``, ``retention``, ``gain_over_control`` and
    ``gain_ci95``, each of which may be None, ``outcome`` and ``smoke``. The best is marked by validation score alone: the
    test score of a run that was picked by it would flatter that run.
    """
    words = [row["overrides"].split() for row in rows]
    shared = [w for w in words[0] if all(w in others for others in words)] if len(rows) > 1 else []
    names = [" ".join(w for w in line if w not in shared) or "(as it is)" for line in words]
    metric = metric_of(next((row for row in rows if "metric" in row), {}))
    validation = [format_number(row.get("validation_score")) for row in rows]
    best = max((score for score in validation if score is not None), default=None)
    outcomes = {"no_evidence": "no evidence", "not_enough": "not enough"}
    cells = []
    for name, row, score in zip(_short(names), rows, validation, strict=True):
        if "message" in row:
            cells.append([name, "n/a", "n/a", "n/a", "n/a", "failed"])
            continue
        name = f"* {name}" if score is not None and score == best else name
        tested, retention = metric.format_score(row.get("score")), format_share(row.get("retention"))
        outcome = "smoke" if row.get("smoke") else outcome_of(row)
        cells.append(
            [
                name,
                metric.format_score(score),
                tested,
                retention,
                _gain(metric, row),
                outcomes.get(outcome, outcome),
            ]
        )
    title = format_items(len(rows), "run") + (f" with {' '.join(shared)}" if shared else "")
    console.table(title, ["overrides", "val.", "test", "kept", "gain (95 %)", "teacher"], cells)
    if best is None:
        console.say("No run has a validation score, so none is marked as the best.")
    else:
        console.say("* best by validation score; test scores are for reporting, not for choosing")
    if metric.compact:
        better = metric.better or "higher is better"
        console.say(f"val. and test: {metric.name} ({better}); gain: {metric.unit}, higher is better")
    for full, row in zip(names, rows, strict=True):
        if "message" in row:
            console.say(f"{full} failed: {row['message']}")


SHOWN_KEYS = 12
"""Keys of a run that the terminal shows; the page and --json have all."""


def comparison_table(comparison: Mapping[str, Any]) -> None:
    """Print what `kdcli.report.comparison.compare` returns: a line for each run, the keys that differ, and the notes."""
    runs = comparison["runs"]
    rows = [[f"{number}", *_comparison_cells(run)] for number, run in enumerate(runs, 1)]
    columns = ["", "run", "score (95 %)", "against the first (95 %)", "size", "p50"]
    if len(runs) == 1:
        rows, columns = [[*row[:3], *row[4:]] for row in rows], [*columns[:3], *columns[4:]]
    console.table(f"{len(runs)} runs and files" if len(runs) > 1 else "", columns, rows)
    keys = [
        [
            f"{number}",
            " ".join(f"{key}={config_value(value)}" for key, value in [*run["keys"].items()][:SHOWN_KEYS]),
        ]
        for number, run in enumerate(runs, 1)
    ]
    if comparison["keys"]:
        more = len(comparison["keys"]) - SHOWN_KEYS
        title = "keys that differ" + (
            f" (the first {SHOWN_KEYS}; --json has {more} more)" if more > 0 else ""
        )
        console.table(title, ["", "values"], keys)
    for line in comparison["notes"]:
        console.say(f"note: {line}")
    for run in runs:
        if "message" in run:
            console.say(f"{run['name']} has no results: {run['message']}")


def config_value(value: Any) -> str:
    """Return the value of a key as a command line has it: null, true, [1, 2]."""
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _comparison_cells(run: Mapping[str, Any]) -> list[str]:
    """Return the name of a run with its score, its difference, its size and its latency."""
    if "message" in run:
        return [run["name"], "n/a", "n/a", "n/a", "n/a"]
    metric = metric_of(run)
    score = metric.format_score(run["score"])
    interval = metric.format_interval(run["ci95"])
    latency = format_milliseconds((run["latency_ms"] or {}).get("p50"))
    return [
        run["name"],
        f"{metric.name} {score}" + ("" if interval == "n/a" else f" ({interval})"),
        difference_text(metric, run),
        format_bytes(run["bytes"]),
        latency,
    ]


def difference_text(metric: Metric, run: Mapping[str, Any]) -> str:
    """`+1.2 [-0.3, +2.7]`: a score less that of the first run, with its interval; marked where the interval is not paired."""
    difference, (low, high) = format_number(run["difference"]), format_pair(run["difference_ci95"])
    if difference is None:
        return ""
    if low is None or high is None:
        return metric.differences(difference)[0]
    shown = "{} [{}, {}]".format(*metric.differences(difference, low, high))
    return shown if run["paired"] else f"{shown} not paired"


def _short(names: Sequence[str]) -> list[str]:
    """``loss.soft_label.temperature=2`` as ``temperature=2``, if no other key of the sweep ends so."""
    keys = {word.partition("=")[0] for name in names for word in name.split()}
    ends = [key.rpartition(".")[2] for key in keys]
    unclear = {key for key in keys if ends.count(key.rpartition(".")[2]) > 1}

    def short(word: str) -> str:
        key, equals, value = word.partition("=")
        return word if key in unclear else key.rpartition(".")[2] + equals + value

    return [" ".join(map(short, name.split())) for name in names]


def _gain(metric: Metric, verdict: Mapping[str, Any]) -> str:
    """``+2.9 [+1.9, +3.9]``: the gain over the control with its interval."""
    gain, (low, high) = format_number(verdict.get("gain_over_control")), format_pair(verdict.get("gain_ci95"))
    if gain is None:
        return "n/a"
    if low is None or high is None:
        return metric.differences(gain)[0]
    return "{} [{}, {}]".format(*metric.differences(gain, low, high))
