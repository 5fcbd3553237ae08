"""Writes report.html, one self-contained file."""

from __future__ import annotations

import hashlib
import math
import re
from base64 import b64encode
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from kdcli import console
from kdcli.files import read_json, write_text
from kdcli.numbers import (
    format_bytes,
    format_count,
    format_items,
    format_milliseconds,
    format_number,
    format_rate,
    format_share,
    format_times,
    truncate_text,
)
from kdcli.report.cards import details_of, signatures_of
from kdcli.report.metrics import (
    MODELS,
    baseline_lines,
    baselines,
    calibration_lines,
    compared_models,
    format_p_value,
    metric_of,
    present_models,
)
from kdcli.report.plots import calibration_plot, gain_plot, loss_curves, score_plot, validation_plot
from kdcli.report.sections import facts, failures, next_steps, precision_and_recall
from kdcli.report.tables import model_rows, seed_columns, seed_rows
from kdcli.report.verdict import verdict_text
from kdcli.rundir import read_metrics
from kdcli.tasks.presentation import PERCENT, PLAIN, Metric, Report, format_figure, outcome_of

TEMPLATES = Path(__file__).parent / "templates"
_MAX_MATRIX = 12  # the number of classes up to which a confusion matrix is readable
_MAX_CLASSES = 200  # rows of the per-class table


def _endpoint(endpoint: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Yield the lines of the page about a remote teacher."""
    yield "address", endpoint["base_url"]
    yield "model", endpoint["model"]
    yield from ((f"parameter {key}", str(value)) for key, value in endpoint["parameters"].items())
    for key in ("questions", "from_ledger", "requests", "retries", "prompt_tokens", "completion_tokens"):
        yield key.replace("_", " "), f"{endpoint[key]:,}"
    if endpoint.get("uncounted"):
        yield "answers whose tokens the host does not count", f"{endpoint['uncounted']:,}"
    yield "cost", "n/a" if endpoint["cost"] is None else f"{endpoint['cost']:.4f}"
    yield "refused rows", f"{endpoint['refused']:,}"
    yield "unparsable rows", f"{endpoint['unparsable']:,}"
    yield from ((f"dropped: {why}", f"{count:,}") for why, count in endpoint["dropped"].items())
    yield "rows learned", f"{endpoint['training_rows']:,}"
    agreement = endpoint["agreement"]
    if agreement.get("accuracy") is not None:
        yield (
            "training rows labelled as their gold label",
            f"{format_share(agreement['accuracy'])} of {agreement['gold']:,}",
        )
    if agreement.get("rouge_l") is not None:
        yield (
            "ROUGE-L against the references",
            f"{format_figure(agreement['rouge_l'], 3)} ({format_items(agreement['gold'], 'row')})",
        )
    if "soft_labels" in endpoint:
        yield "soft labels", endpoint["soft_labels"]
        if endpoint["smoothing"] is not None:
            yield "smoothing", str(endpoint["smoothing"])
        if endpoint["missing_mass"] is not None:
            yield "probability on no label's token", f"{100 * endpoint['missing_mass']:.1f} %"
        if endpoint["letters"]:
            yield (
                "requested letters",
                ", ".join(f"{letter} = {label}" for letter, label in endpoint["letters"].items()),
            )
    yield "examples shown", f"{endpoint['shots']:,}"


def _answers(endpoint: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return some answers of a remote teacher, with the labels that they give."""
    answers = []
    for answer in endpoint["answers"]:
        labels = sorted((answer.get("labels") or {}).items(), key=lambda item: -item[1])
        lines = [(name, f"{100 * share:.1f} %") for name, share in labels[:5]]
        lines += [("gold", answer["gold"])] if "gold" in answer else []
        lines += [("dropped", answer["dropped"])] if "dropped" in answer else []
        answers.append(
            {
                "question": truncate_text(answer["question"]),
                "answers": list(map(truncate_text, answer["answers"])),
                "lines": lines,
            }
        )
    return answers


def write_html(run_dir: Path, report: Report | None = None) -> None:
    """Write ``run_dir/report.html`` from report.json (or from ``report``, before that is written).

    Curves come from metrics.jsonl and the environment from env.json, if there are any.

    Raises:
        ConfigError: report.json is missing or damaged.
    """
    if report is None:
        report = read_json(run_dir / "report.json", dict, "the same kdcli distill writes it again")
    write_text(run_dir / "report.html", _html(run_dir, _clean(report)))


def _html(run_dir: Path, report: Report) -> str:
    """Return the page, which loads nothing from the network."""
    env_path = run_dir / "env.json"
    remedy = "remove it, and the page is written without it"
    environment = _clean(read_json(env_path, dict, remedy)) if env_path.exists() else {}
    metrics = _read_metrics(run_dir / "metrics.jsonl")
    page = _page(report, metrics, environment, run_dir)
    if page["failures"]:
        script = (TEMPLATES / "search.js").read_text(encoding="utf-8")
        page["script"] = script
        page["script_hash"] = b64encode(hashlib.sha256(script.encode()).digest()).decode()
    return render("report.html.jinja", page)


def render(template: str, values: Mapping[str, Any]) -> str:
    """Return a page from one of the templates of this package, which share their style."""
    from jinja2 import FileSystemLoader, StrictUndefined
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    jinja = ImmutableSandboxedEnvironment(
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        loader=FileSystemLoader(TEMPLATES),
    )
    jinja.filters["unbroken"] = _unbroken
    jinja.filters["counted"] = format_items
    return jinja.get_template(template).render(values)


def _unbroken(figure: str) -> str:
    """Return a figure whose number stays on one line with its unit."""
    return re.sub(r"(?<=\d) (?=\S)", "\N{NO-BREAK SPACE}", figure)


def _clean(value: Any) -> Any:
    """Return the JSON value with NaN and infinities, which Python writes but nobody can draw, as None."""
    if isinstance(value, dict):
        return {key: _clean(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_clean(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _read_metrics(path: Path) -> list[dict[str, Any]]:
    """Return the log's records, without the half line of a killed run; of what a resumed run repeats, the last."""
    records: dict[tuple[str, int, bool], dict[str, Any]] = {}
    for record in read_metrics(path):
        records[record["stage"], record["step"], "eval/score" in record] = record
    return sorted(records.values(), key=lambda record: record["step"])


def _page(
    report: Report, metrics: list[dict[str, Any]], environment: Mapping[str, Any], run: Path
) -> dict[str, Any]:
    """Everything the template shows, as text, numbers and finished SVGs."""
    metric, models, verdict = metric_of(report), present_models(report), report["verdict"]
    classes = _classes(report, models)
    retention, gain = format_share(verdict.get("retention")), format_number(verdict.get("gain_over_control"))
    gained = "n/a" if gain is None else metric.differences(gain)[0]
    certainty = f"95 %: {metric.format_interval(verdict.get('gain_ci95'), sign=True)}"
    if chance := format_p_value(verdict.get("gain_p")):
        certainty += f", {chance}"
    if metric.compact:
        certainty = f"{metric.unit}; {certainty}"
    elif gain is not None:
        gained += f" {metric.unit}"
    tiles = [
        ("kept", retention, f"of {metric.share_of}"),
        ("smaller", *_ratio(verdict.get("compression"), "parameters")),
        ("faster", *_ratio(verdict.get("speedup"), metric.rates)),
        ("gain over control", gained, certainty if "control" in models else "no control"),
        ("agreement", format_share(verdict.get("agreement")), metric.same_prediction),
        *metric.tiles(report),
    ]
    return {
        "run": run.name,
        "facts": list(facts(run, report, metrics)),
        "failures": failures(report),
        "next_steps": list(next_steps(run, report)),
        "script": "",
        "script_hash": "",
        "report": report,
        "shown": metric,
        "signatures": signatures_of(report),
        "dataset": dict(_dataset(report["dataset"])),
        "verdict": verdict_text(report),
        "suspicions": [str(each.get("text")) for each in report.get("suspicions") or ()],
        "finding": "smoke" if report.get("smoke") else outcome_of(verdict).replace("_", "-"),
        "tiles": tiles,
        "figures": _figures(report),
        "bars": _bars(metric, models),
        "seeds": [seed_columns(metric), *rows] if (rows := seed_rows(report)) else [],
        "scores": score_plot(metric, models | baselines(report)),
        "gain": gain_plot(metric, verdict),
        # without those of further seeds (student@5), which look alike
        "curves": list(loss_curves([record for record in metrics if "@" not in record["stage"]])),
        "validation": validation_plot(metric, metrics),
        "calibration": calibration_plot(models),
        "miscalibrated": calibration_lines(report),
        "ece": [(f"{name}, ECE {_calibration_error(m)}", name) for name, m in models.items()],
        "matrices": [
            _matrix(name, report["labels"], model, models["student"]) for name, model in models.items()
        ][::-1],
        "classes": classes[:_MAX_CLASSES],
        "hidden_classes": max(0, len(classes) - _MAX_CLASSES),
        "loss": {
            term: ", ".join(f"{k} {v}" for k, v in options.items())
            for term, options in report["loss"].items()
        },
        "stages": _stages(report.get("stages") or []),
        "training": [(name, _length(entry)) for name, entry in (report.get("training") or {}).items()],
        "environment": list(_flat(environment)),
        "models": list(models),
        "baselines": baseline_lines(report),
        "compared": list(compared_models(report)),
        "generations": _generations(report.get("generations") or []),
        "translations": _translations(metric, report.get("translations") or {}),
        "endpoint": list(_endpoint(report["endpoint"])) if "endpoint" in report else [],
        "answers": _answers(report["endpoint"]) if "endpoint" in report else [],
    }


def _calibration_error(model: Mapping[str, Any]) -> str:
    """Return the expected calibration error, and that before the temperature was fitted."""
    error = PLAIN.format_score(model.get("scores", {}).get("ece"))
    before = format_number((model.get("calibration") or {}).get("ece_before"))
    return error if before is None else f"{error} ({PLAIN.format_score(before)} before calibration)"


def _dataset(dataset: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """Yield the lines of the page about the data set, without unset keys; dropped rows have a line for each reason."""
    for key, value in dataset.items():
        if isinstance(value, Mapping):
            what = key.replace("_", " ")
            yield what, f"{sum(value.values()):,}"
            yield from ((f"{what}: {reason}", f"{count:,}") for reason, count in value.items())
        elif value is not None and value != "":
            yield key, f"{value:,}" if isinstance(value, int) else value


def _texts(row: Mapping[str, Any]) -> list[tuple[str, str, str]]:
    """Return the texts of a row: (reference or model, colour, text)."""
    colours = {"reference": "muted"} | {name: name for name in MODELS}
    return [(name, ink, truncate_text(row[name])) for name, ink in colours.items() if name in row]


def _generations(generations: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Return the completions of the models for some prompts."""
    return [
        {
            "prompt": truncate_text(row.get("prompt")),
            "turns": [(str(turn["role"]), truncate_text(turn["text"])) for turn in row.get("turns") or ()],
            "texts": _texts(row),
        }
        for row in generations
    ]


def _translations(
    metric: Metric, translations: Mapping[str, Sequence[Mapping[str, Any]]]
) -> list[dict[str, Any]]:
    """Return the worst and the best translations of the student, with those of the other models."""
    return [
        {
            "title": f"The student's {len(chosen)} {name}",
            "rows": [
                {
                    "source": truncate_text(row.get("source")),
                    "score": metric.format_score(row.get("score")),
                    "texts": _texts(row),
                }
                for row in chosen
            ],
        }
        for name in ("worst", "best")
        if (chosen := translations.get(name))
    ]


def _ratio(value: Any, what: str) -> tuple[str, str]:
    number = format_number(value)
    return ("n/a", "not known") if not number else (f"{format_times(number)}\N{MULTIPLICATION SIGN}", what)


def _figures(report: Report) -> list[tuple[str, list[str]]]:
    """Return the table of the page, one line for each figure, so that it fits a phone: (name, one cell for each model)."""
    metric, models = metric_of(report), compared_models(report)
    names = [
        "",
        metric.name,
        "95 % interval",
        "parameters",
        "weights",
        f"{metric.latency_of} p50",
        metric.rates,
        "memory",
    ]
    lines = list(zip(names, map(list, zip(*model_rows(metric, models), strict=True)), strict=True))[1:]
    lines[2:2] = [(name, cells) for name, _, cells in details_of(metric, models)]
    lines[-2:-2] = [
        (
            f"{metric.latency_of} p95",
            [format_milliseconds((m.get("latency_ms") or {}).get("p95")) for m in models.values()],
        )
    ]
    return lines


def _bars(metric: Metric, models: Mapping[str, Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Return bar charts of cost: each bar is (model, text, share of the longest in %)."""
    charts: tuple[tuple[str, Callable[[Mapping[str, Any]], Any], Callable[[Any], str]], ...] = (
        ("Weights on disk", lambda m: m.get("bytes"), format_bytes),
        ("Parameters", lambda m: m.get("parameters"), format_count),
        (
            f"{metric.latency_title}, p50",
            lambda m: (m.get("latency_ms") or {}).get("p50"),
            format_milliseconds,
        ),
        (
            f"{metric.latency_title}, p95",
            lambda m: (m.get("latency_ms") or {}).get("p95"),
            format_milliseconds,
        ),
        ("Peak memory", lambda m: m.get("peak_memory_bytes"), format_bytes),
        (f"{metric.rates.capitalize()} (longer is better)", lambda m: m.get("throughput_per_s"), format_rate),
    )
    drawn = []
    for title, pick, text in charts:
        values = {name: format_number(pick(model)) for name, model in models.items()}
        longest = max((value for value in values.values() if value), default=0)
        bars = [
            (name, text(value), 100 * (value or 0) / longest if longest else 0)
            for name, value in values.items()
        ]
        drawn.append({"title": title, "bars": bars})
    return drawn


STOPPED = {
    "converged": "until its validation curve was flat",
    "bound": "the most that was allowed",
    "steps": "as the config fixed them",
}


def _length(entry: Mapping[str, Any]) -> str:
    """Return how long a model was trained, and where its best validation score was."""
    best = entry.get("best_step")
    text = f"{format_items(entry.get('steps') or 0, 'step')}, {STOPPED.get(entry.get('stopped') or '', 'for a reason that is not known')}"
    if entry.get("flat") is False:
        text += "; its validation curve still improved"
    if (buffer := entry.get("rollout_buffer") or 1) > 1:
        text += f"; it wrote its completions for {buffer} steps at once"
    return text + (f"; best score at {best:,}" if best is not None else "")


def _stages(stages: Sequence[Mapping[str, Any]]) -> list[tuple[str, str, float]]:
    """Return bars of the stages, their parts added up: (name, time and steps, share of the longest in %)."""
    seconds: dict[str, float] = {}
    steps: dict[str, int] = {}
    for stage in stages:
        seconds[stage["name"]] = seconds.get(stage["name"], 0.0) + (
            format_number(stage.get("seconds")) or 0.0
        )
        steps[stage["name"]] = steps.get(stage["name"], 0) + (stage.get("steps") or 0)
    longest = max(seconds.values(), default=0.0) or 1.0
    return [
        (
            name,
            console.duration(took) + (f" · {format_items(steps[name], 'step')}" if steps[name] else ""),
            100 * took / longest,
        )
        for name, took in seconds.items()
    ]


def _matrix(
    name: str, labels: Sequence[str], model: Mapping[str, Any], student: Mapping[str, Any]
) -> dict[str, Any] | None:
    """Return a confusion matrix to draw, rows = gold: the classes that the student confuses most, if there are many.

    Cells are (count, share of the row, is it the diagonal, tooltip); `elsewhere` is the sum of the classes that are not shown.
    """
    confusion = model.get("confusion")
    if not confusion:
        return None
    chosen = list(range(len(labels)))
    if len(labels) > _MAX_MATRIX:
        ranked = student.get("confusion") or confusion
        wrong = [sum(ranked[i]) + sum(row[i] for row in ranked) - 2 * ranked[i][i] for i in chosen]
        chosen = sorted(sorted(chosen, key=lambda i: -wrong[i])[:_MAX_MATRIX])
    rows = []
    for i in chosen:
        total = sum(confusion[i])
        counts = [(confusion[i][j], labels[j], i == j) for j in chosen]
        if len(chosen) < len(labels):
            counts.append((total - sum(n for n, _, _ in counts), "another class", False))
        cells = [
            (n, n / total if total else 0, same, f"{labels[i]} taken for {other}: {n} of {total}")
            for n, other, same in counts
        ]
        rows.append({"label": labels[i], "total": total, "cells": cells})
    return {
        "model": name,
        "columns": [labels[j] for j in chosen] + (["elsewhere"] if len(chosen) < len(labels) else []),
        "rows": rows,
        "limited": len(chosen) < len(labels),
        "worst": _worst(labels, confusion),
    }


def _worst(
    labels: Sequence[str], confusion: Sequence[Sequence[int]], most: int = 8
) -> list[tuple[str, str, int, int]]:
    """Return the most frequent confusions: (gold, predicted, how often, of how many gold rows)."""
    pairs = [
        (labels[i], labels[j], n, sum(row))
        for i, row in enumerate(confusion)
        for j, n in enumerate(row)
        if n and i != j
    ]
    return sorted(pairs, key=lambda pair: -pair[2])[:most]


def _classes(report: Report, models: Mapping[str, Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Return the F1 of each class, or of each entity type, for each model: the worst of the student first, those without test rows last."""
    labels = report["labels"]
    confusion, entities = (
        models["student"].get("confusion"),
        models["student"].get("scores", {}).get("entities"),
    )
    supports = entities or dict(zip(labels, map(sum, confusion or []), strict=False))
    key = "per_type_f1" if entities else "per_class_f1"
    rows = []
    for label in entities or labels:
        support = supports.get(label)
        scores = {
            name: format_number((model.get("scores", {}).get(key) or {}).get(label))
            for name, model in models.items()
        }
        if any(score is not None for score in scores.values()) or support is not None:
            cells = [
                (
                    name,
                    PERCENT.format_score(f1),
                    100 * (f1 or 0),
                    *map(PERCENT.format_score, precision_and_recall(report, label, name)),
                )
                for name, f1 in scores.items()
            ]
            rows.append({"label": label, "support": support, "cells": cells, "f1": scores["student"]})
    rows.sort(key=lambda row: (row["support"] == 0, row["f1"] if row["f1"] is not None else 2.0))
    return rows


def _flat(value: Any, prefix: str = "") -> Iterator[tuple[str, str]]:
    """Yield nested settings as (dotted name, text)."""
    if isinstance(value, dict):
        for key, item in value.items():
            yield from _flat(item, f"{prefix}.{key}" if prefix else str(key))
    elif isinstance(value, list):
        yield prefix, ", ".join(map(str, value))
    else:
        yield prefix, "n/a" if value is None else str(value)
