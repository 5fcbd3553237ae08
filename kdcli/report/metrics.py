"""Selects the models of a report, and the metric by which they are compared."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from kdcli.numbers import format_number
from kdcli.rundir import BASELINES, UNQUANTIZED
from kdcli.tasks import packaged_presentations, presentation_of
from kdcli.tasks.presentation import PERCENT, Metric, Presentation, Report

MODELS = ("teacher", "control", "student")
MISCALIBRATED = 0.1
"""The expected calibration error above which a report warns."""


IMBALANCED = 0.8
"""The share of the most frequent class above which accuracy says little of the others."""


def present_models(report: Report) -> dict[str, Mapping[str, Any]]:
    """Return the models of the report in reading order; without the control where there was none."""
    return {name: report["models"][name] for name in MODELS if report["models"].get(name)}


def compared_models(report: Report) -> dict[str, Mapping[str, Any]]:
    """Return the models in reading order, with the assistants and the student before quantization after the teacher, and the baselines at the end."""
    teacher, *others = present_models(report).items()
    before = {name: entry for name, entry in report["models"].items() if name == UNQUANTIZED}
    return dict(
        [teacher, *report.get("assistants", {}).items(), *before.items(), *others, *baselines(report).items()]
    )


def baselines(report: Report) -> dict[str, Mapping[str, Any]]:
    """Return the baselines of the report that are not saved."""
    return {name: report["models"][name] for name in BASELINES if report["models"].get(name)}


def baseline_lines(report: Report) -> list[str]:
    """Return a sentence on each baseline: what it is, and where its speed was measured."""
    lines = []
    for name, model in baselines(report).items():
        timed = format_number(model.get("throughput_per_s")) is not None
        where = "; its speed was measured in the process of the run, on one thread" if timed else ""
        lines.append(f"{name}: {model.get('method')}{where}")
    return lines + imbalance_lines(report)


def imbalance_lines(report: Report) -> list[str]:
    """Return where one class has most of the test rows: its share, which is the accuracy of a model that always predicts it, and each model's
    macro F1."""
    majority = format_number(report["models"]["student"].get("scores", {}).get("majority"))
    if majority is None or majority <= IMBALANCED:
        return []
    scores = {name: model.get("scores", {}) for name, model in present_models(report).items()}
    f1 = ", ".join(f"{name} {PERCENT.format_score(own.get('macro_f1'))}" for name, own in scores.items())
    return [
        f"majority: the most frequent class has {PERCENT.format_score(majority)} of the test rows; macro F1: {f1}"
    ]


def calibration_lines(report: Report) -> list[str]:
    """Return a warning if the probabilities of a classifier are further from its share of right predictions than `MISCALIBRATED`."""
    student = report["models"].get("student") or {}
    error = format_number((student.get("scores") or {}).get("ece"))
    if error is None or error <= MISCALIBRATED or not report.get("labels") or report.get("smoke"):
        return []
    fitted = "temperature" in (student.get("calibration") or {})
    remedy = (
        "More validation rows (dataset.validation_size) calibrate it better."
        if fitted
        else "It was not calibrated (student.calibrate, and enough validation rows: dataset.validation_size)."
    )
    return [
        f"The student's calibration error is {error:.2f}: its probabilities are not shares of right predictions. {remedy}"
    ]


def suspicion_lines(report: Report) -> list[str]:
    """Return what makes the results doubtful, without the remedies."""
    return [str(each.get("text")).split("; ")[0] for each in report.get("suspicions") or ()]


def metric_of(result: Mapping[str, Any]) -> Metric:
    """Return the headline metric of a report, an evaluation or an export. A metric that no task presents is shown unformatted."""
    presentations: list[Presentation] = [*packaged_presentations()]
    if (own := presentation_of(str(result.get("task")))) is not None:
        presentations.insert(0, own)
    key = result.get("metric", "score")
    metrics = [metric for each in presentations for metric in (each.metric, *each.further)]
    return next((metric for metric in metrics if metric.key == key), None) or Metric(key)


def format_p_value(value: Any) -> str:
    """`p = 0.012`; "" if there is no p-value."""
    p = format_number(value)
    if p is None:
        return ""
    return "p < 0.001" if p < 0.001 else "p > 0.999" if p > 0.999 else f"p = {p:.3f}"
