"""Decides the outcome of a run from the numbers of report.json: whether the teacher helped, or what is missing for a judgement."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from kdcli.numbers import format_items, format_number, format_pair
from kdcli.report.metrics import metric_of, present_models
from kdcli.tasks.presentation import Metric, Report, outcome_by_interval

COMPARED = ("student", "control")
STOPPED_BY = {"steps": "until=converged", "bound": "max_epochs"}
"""The trainer key that lets a training continue, by the reason for which it ended."""
LONGER = "min_steps"
"""The trainer key that makes a training longer that ended by itself."""
TEST_ROWS = "dataset.test_size"


class Missing(NamedTuple):
    """One thing that a judgement needs, and the config key that mends it (None: none does)."""

    reason: str
    key: str | None

    def __str__(self) -> str:
        return f"{self.reason} ({self.key})" if self.key else self.reason


def outcome(report: Report, test_key: str = TEST_ROWS) -> dict[str, Any]:
    """`outcome` and `missing` of the verdict.

    A teacher helped, hurt, or gave no evidence of either only if student and control were trained to the end, are clearly better than
    chance, and if the test rows could show a gain that matters. Otherwise the outcome is `not_enough`. Keys that an earlier version did
    not write prevent no judgement.

    Args:
        test_key: the config key that gives more test rows.
    """
    if report.get("smoke"):
        missing = [Missing("this is a smoke run", "debug")]
    else:
        missing = [*_unknown_gain(report), *_unfinished(report), *_at_chance(report, test_key)]
    judgement = outcome_by_interval(report["verdict"])
    if not missing and judgement == "no_evidence":
        missing += _too_few_rows(report, test_key)
    return {
        "outcome": "not_enough" if missing else judgement,
        "missing": [each._asdict() for each in missing],
    }


def _unknown_gain(report: Report) -> Iterator[Missing]:
    if "control" not in report["models"]:
        yield Missing("no control was trained", "control=true")
    elif format_number(report["verdict"].get("gain_over_control")) is None:
        yield Missing("the gain over the control is not known", None)
    elif format_pair(report["verdict"].get("gain_ci95"))[0] is None:
        yield Missing("the interval of the gain is not known", None)


def _unfinished(report: Report) -> Iterator[Missing]:
    """Yield trainings that ended before their validation curve was flat."""
    by_key: dict[str, list[str]] = {}
    for name in report.get("training") or {}:
        model = name.partition("@")[0]  # of a further seed: student@5
        key = continuing_key(report, name)
        if key is not None and model in COMPARED and model in report["models"]:
            by_key.setdefault(key, []).append(name)
    for key, names in by_key.items():
        steps = ", ".join(format_items(report["training"][name]["steps"], "step") for name in names)
        verb = "was" if len(names) == 1 else "were"
        yield Missing(
            f"{_names(names)} {verb} not shown to have stopped improving when training ended ({steps})", key
        )


def continuing_key(report: Report, name: str) -> str | None:
    """Return the config key that lets a model's training continue; None: its validation curve was flat, or is unknown."""
    training = (report.get("training") or {}).get(name) or {}
    stopped, flat = training.get("stopped"), training.get("flat")
    # a fixed number of steps whose curve nobody knows may be any number
    ended = flat is False or (flat is None and stopped == "steps")
    return f"trainer.{STOPPED_BY[stopped]}" if ended and stopped in STOPPED_BY else None


def not_above_chance(report: Report) -> list[str]:
    """Return the models that are not clearly better than chance, by the 95 % intervals."""
    chance = report["verdict"].get("chance") or {}
    names = []
    for name in COMPARED:
        low, _ = format_pair(chance.get(name))
        if name in chance and (low is None or low <= 0):
            names.append(name)
    return names


def chance_of(report: Report) -> str:
    """Return the name of the prediction that student and control must beat, and its score."""
    metric, chance = metric_of(report), report["verdict"]["chance"]
    if chance["metric"] == metric.key:
        return f"{metric.chance} ({metric.format_score(chance['score'])})"
    return f"{metric.chance} ({chance['metric'].replace('_', ' ')} {metric.format_score(chance['score'])})"


def _at_chance(report: Report, test_key: str) -> Iterator[Missing]:
    names = not_above_chance(report)
    if not names:
        return
    chance = report["verdict"]["chance"]
    better = [name for name in names if sum(bound or 0.0 for bound in format_pair(chance[name])) > 0]
    for some, key in (
        ([name for name in names if name not in better], f"trainer.{LONGER}"),
        (better, test_key),
    ):
        if some:
            verb = "is" if len(some) == 1 else "are"
            own = next(filter(None, (continuing_key(report, name) for name in some)), key)
            yield Missing(f"{_names(some)} {verb} not clearly better than {chance_of(report)}", own)


def _too_few_rows(report: Report, test_key: str) -> Iterator[Missing]:
    """Yield a finding if the test rows could not show a gain that matters: the lead of the teacher over the control, but at least `Metric.relevant`."""
    metric, models = metric_of(report), present_models(report)
    if "smallest_gain" not in report["verdict"]:
        return
    smallest, rows = format_number(report["verdict"]["smallest_gain"]), number_of_rows(report)
    if smallest is None:
        if report["verdict"].get("gain_ci95") != [0.0, 0.0]:
            yield Missing(f"{rows} can show no gain", test_key)
        return
    teacher, control = (format_number(models[name].get("score")) for name in ("teacher", "control"))
    ahead = abs(teacher - control) if teacher is not None and control is not None else 0.0
    if smallest > max(ahead, metric.relevant):
        yield Missing(
            f"{rows} show a gain from {amount(metric, smallest)} on, and one of "
            f"{amount(metric, max(ahead, metric.relevant))} would matter",
            test_key,
        )


def number_of_rows(report: Report) -> str:
    """Return the number of test rows of a report, or of the rows of an evaluation: ``64 test rows``."""
    return format_items(report.get("test_examples", report.get("examples", 0)), "test row")


def amount(metric: Metric, difference: float) -> str:
    """Return a difference of scores without a sign, with its unit."""
    return f"{metric.differences(abs(difference))[0].removeprefix('+')} {metric.unit}"


def _names(names: Sequence[str]) -> str:
    """`the student, the control and the student of seed 5`."""
    parts = (name.partition("@") for name in names)
    *first, last = [f"the {model} of seed {seed}" if seed else f"the {model}" for model, _, seed in parts]
    return f"{', '.join(first)} and {last}" if first else last


def under_tuned(report: Report) -> str | None:
    """Return the keys that tune a teacher longer, if it is no better than the control; "" if it is behind an API; None: it is better, or this is not
    known."""
    models: Mapping[str, Mapping[str, Any]] = present_models(report)
    teacher, control = (format_number(models.get(name, {}).get("score")) for name in ("teacher", "control"))
    if teacher is None or control is None or teacher > control:
        return None
    if "endpoint" in report:
        return ""
    trained = (report.get("training") or {}).get("teacher")
    if trained is None:
        return f"teacher.tune=true, teacher.trainer.{STOPPED_BY['steps']}"
    return f"teacher.trainer.{STOPPED_BY.get(str(trained.get('stopped')), LONGER)}"
