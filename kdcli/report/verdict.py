"""The verdict: a few sentences on the outcome of a run."""

from __future__ import annotations

from kdcli.numbers import format_number, format_pair, format_times
from kdcli.report.metrics import format_p_value, metric_of, present_models
from kdcli.tasks.presentation import BASELINE, Report, finding


def verdict_text(report: Report) -> str:
    """What the student retains, what it saves, and whether the teacher helped, in two short sentences."""
    if report.get("smoke"):
        return "A smoke run: these figures mean nothing."
    return f"{_retention_sentence(report)}{_savings_sentence(report)}{metric_of(report).remark(report)}. {_gain_sentence(report)}"


def _retention_sentence(report: Report) -> str:
    metric, models = metric_of(report), present_models(report)
    student, teacher = (format_number(models.get(name, {}).get("score")) for name in ("student", "teacher"))
    if student is None:
        return "The student has no score"
    if teacher is None:
        return f"The student has {metric.name} {metric.format_score(student)} (the teacher's is not known)"
    return metric.retention_sentence(student, teacher, format_number(report["verdict"].get("retention")))


def _savings_sentence(report: Report) -> str:
    """` and is 25 times smaller and 8.1 times faster`; or what is unknown."""
    measured, unknown = [], []
    for key, more, less, same in (
        ("compression", "smaller", "larger", "about as large"),
        ("speedup", "faster", "slower", "about as fast"),
    ):
        ratio = format_number(report["verdict"].get(key))
        if not ratio:
            unknown.append(more)
        elif 0.95 < ratio < 1.05:
            measured.append(same)
        else:
            measured.append(f"{format_times(max(ratio, 1 / ratio))} times {more if ratio > 1 else less}")
    text = f"{metric_of(report).joint} {' and '.join(measured)}" if measured else ""
    return text + (f"; how much {' and '.join(unknown)} it is cannot be known" if unknown else "")


def _gain_sentence(report: Report) -> str:
    metric, verdict, models = metric_of(report), report["verdict"], present_models(report)
    if "control" not in models:
        return "No control was trained, so whether the teacher helped is not known."
    gain, nearer = format_number(verdict.get("gain_over_control")), metric.divergence_clause(verdict)
    if gain is None:
        return f"The gain over {BASELINE} is not known, nor whether the teacher helped{nearer}."
    low, high = format_pair(verdict.get("gain_ci95"))
    head, over = {
        "helped": ("Distillation helped", "over"),
        "hurt": ("The teacher HURT", "against"),
    }.get(finding(verdict), ("No evidence that the teacher helped", "over"))
    shown = metric.differences(*(value for value in (gain, low, high) if value is not None))
    student, teacher, control = (
        format_number(models[name].get("score")) for name in ("student", "teacher", "control")
    )
    if low == high == gain == 0:
        text = f"{head}: {BASELINE} does exactly as well"
    else:
        known = len(shown) == 3
        certainty = f"95 % interval {shown[1]} to {shown[2]}" if known else "its interval is not known"
        certainty = ", ".join(filter(None, [certainty, format_p_value(verdict.get("gain_p"))]))
        text = f"{head}: {metric.gain_clause(student, control, shown[0], certainty, over)}"
    text += nearer
    if teacher is not None and control is not None and teacher <= control:
        scores = " against ".join(metric.texts(teacher, control))
        rival = "the student without it" if nearer else "that student"
        text += f"; the teacher itself is no better than {rival} ({scores})"
    return text + "."
