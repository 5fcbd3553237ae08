"""Writes the verdict: a few sentences on the outcome of a run."""

from __future__ import annotations

from typing import NamedTuple

from kdcli.numbers import format_bytes, format_number, format_pair, format_rate, format_times
from kdcli.report.metrics import format_p_value, metric_of, present_models
from kdcli.report.outcome import (
    Missing,
    amount,
    chance_of,
    not_above_chance,
    number_of_rows,
    outcome,
    under_tuned,
)
from kdcli.tasks.presentation import BASELINE, Report, outcome_of

HEADS = {
    "helped": "Distillation helped",
    "no_evidence": "No evidence that the teacher helped",
    "hurt": "The teacher hurt",
    "not_enough": "Not enough to tell whether the teacher helped",
}
"""The beginning of the sentence on the gain, by `verdict.outcome`."""
SAME = (0.95, 1.05)
"""The ratios between which two models count as equally large, or equally fast."""


def verdict_text(report: Report) -> str:
    """Return what the student retains and saves, whether the teacher helped, and what a reader must know before the figures."""
    if report.get("smoke"):
        return "A smoke run: these figures mean nothing."
    sentences = [
        _no_saving_sentence(report),
        f"{_retention_sentence(report)}.",
        _gain_sentence(report),
        _trivial_sentence(report),
    ]
    return " ".join(filter(None, sentences))


class _Ratio(NamedTuple):
    """A ratio of the student and its teacher (size or speed), with the words for more, less and equal."""

    value: float | None
    more: str
    less: str
    same: str

    @property
    def saves(self) -> bool:
        return self.value is not None and self.value >= SAME[1]

    def __str__(self) -> str:
        value = self.value or 1.0
        if SAME[0] < value < SAME[1]:
            return self.same
        return f"{format_times(max(value, 1 / value))} times {self.more if value > 1 else self.less}"


def _ratios(report: Report) -> tuple[_Ratio, _Ratio]:
    size, speed = (format_number(report["verdict"].get(key)) or None for key in ("compression", "speedup"))
    return _Ratio(size, "smaller", "larger", "about as large"), _Ratio(
        speed, "faster", "slower", "about as fast"
    )


def _no_saving_sentence(report: Report) -> str:
    """Return what a student does not save: it stands before all else."""
    missed = [ratio for ratio in _ratios(report) if ratio.value is not None and not ratio.saves]
    if not missed:
        return ""
    names = " and no ".join(ratio.more for ratio in missed)
    return f"The student is no {names} than its teacher ({', '.join(map(str, missed))})."


def _retention_sentence(report: Report) -> str:
    metric, models = metric_of(report), present_models(report)
    student, teacher = (format_number(models.get(name, {}).get("score")) for name in ("student", "teacher"))
    if student is None:
        return "The student has no score"
    if "student" in not_above_chance(report):  # a share of the teacher's score would read as a success
        other = "not known" if teacher is None else metric.format_score(teacher)
        return (
            f"The student is not clearly better than {chance_of(report)}: its {metric.name} is {metric.format_score(student)}, the teacher's "
            f"{metric.name} {'is ' if teacher is None else ''}{other}"
        )
    if teacher is None:
        text = f"The student has {metric.name} {metric.format_score(student)} (the teacher's is not known)"
    else:
        text = metric.retention_sentence(student, teacher, format_number(report["verdict"].get("retention")))
    return f"{text}{_savings_clause(report)}{metric.remark(report)}"


def _savings_clause(report: Report) -> str:
    """` and is 25 times smaller and 8.1 times faster`; or what is unknown."""
    ratios = _ratios(report)
    saved = [str(ratio) for ratio in ratios if ratio.saves]
    unknown = [ratio.more for ratio in ratios if ratio.value is None]
    text = f"{metric_of(report).joint} {' and '.join(saved)}" if saved else ""
    return text + (f"; how much {' and '.join(unknown)} it is cannot be known" if unknown else "")


def _gain_sentence(report: Report) -> str:
    """Return the outcome, with the gain, its interval and the number of seeds."""
    verdict = report["verdict"]
    judged = verdict if verdict.get("outcome") else outcome(report)  # of a report of an earlier version
    head, gain = HEADS[judged["outcome"]], _gain_clause(report)
    if judged["outcome"] == "not_enough":
        reasons = "; ".join(str(Missing(**each)) for each in judged["missing"])
        return f"{head}: {reasons}." + (f" Measured: {gain}." if gain else "")
    shown = ""
    smallest = format_number(verdict.get("smallest_gain"))
    if judged["outcome"] == "no_evidence" and smallest is not None:
        shown = f"; {number_of_rows(report)} show a gain from {amount(metric_of(report), smallest)} on"
    return f"{head}: {gain}{shown}."


def _gain_clause(report: Report) -> str:
    """Return the student against its control; "" if there is nothing to compare."""
    metric, verdict, models = metric_of(report), report["verdict"], present_models(report)
    nearer = metric.divergence_clause(verdict)
    gain = format_number(verdict.get("gain_over_control"))
    if "control" not in models:
        return ""
    if gain is None:
        return f"the gain over {BASELINE} is not known{nearer}" if nearer else ""
    low, high = format_pair(verdict.get("gain_ci95"))
    shown = metric.differences(*(value for value in (gain, low, high) if value is not None))
    has_interval = len(shown) == 3
    seeds = verdict.get("seeds") or []
    certainty = ", ".join(
        filter(
            None,
            [
                f"95 % interval {shown[1]} to {shown[2]}" if has_interval else "its interval is not known",
                format_p_value(verdict.get("gain_p")),
                f"over {len(seeds)} seeds" if seeds else "one seed",
            ],
        )
    )
    student, teacher, control = (
        format_number(models[name].get("score")) for name in ("student", "teacher", "control")
    )
    if gain == 0:
        text = f"{BASELINE} does exactly as well ({certainty})"
    else:
        over = "over" if gain > 0 or outcome_of(verdict) != "hurt" else "against"
        text = metric.gain_clause(student, control, shown[0], certainty, over)
    text += nearer
    if teacher is not None and control is not None and (keys := under_tuned(report)) is not None:
        scores = " against ".join(metric.texts(teacher, control))
        rival = "the student without it" if nearer else "that student"
        text += f"; the teacher itself is no better than {rival} ({scores})"
        text += f": tune it longer ({keys})" if keys else ""
    return text


def _trivial_sentence(report: Report) -> str:
    """Return a sentence on a model without a network whose score is within the student's interval, or above it."""
    metric, models = metric_of(report), report["models"]
    trivial, student = models.get("trivial") or {}, models["student"]
    score, own = format_number(trivial.get("score")), format_number(student.get("score"))
    if score is None or own is None:
        return ""
    low, _ = format_pair((student.get("scores") or {}).get(f"{metric.key}_ci95"))
    if score < (own if low is None else low):
        return ""
    cost, other = (_cost(model, metric.rate) for model in (trivial, student))
    return (
        f"A model without a network does as well: {trivial.get('method', 'a trivial model')} has {metric.name} {metric.format_score(score)}"
        f"{f' ({cost}; the student: {other})' if cost and other else ''}."
    )


def _cost(model: dict[str, object], rate: str) -> str:
    """Return size and speed, as far as they are known."""
    size, speed = format_number(model.get("bytes")), format_number(model.get("throughput_per_s"))
    parts = [format_bytes(size)] if size is not None else []
    return ", ".join(parts + ([f"{format_rate(speed)} {rate}"] if speed is not None else []))
