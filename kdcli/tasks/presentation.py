"""Presents the results of a task to people: its headline metric, and its part of a model card. Imports no torch."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, cast

from kdcli.numbers import format_apart, format_number, format_pair, format_share

if TYPE_CHECKING:
    from matplotlib.axes import Axes
Report = Mapping[str, Any]
"""The content of report.json."""
Outcome = Literal["helped", "no_evidence", "hurt", "not_enough"]
Detail = tuple[str, str, Callable[[Mapping[str, Any]], str]]
"""A further score of a model: its name on the page, its name on the card ("": not there), and its text, made of the model's scores."""
BASELINE = "the same student without a teacher"


class Metric:
    """Formats a score. In report.json a higher score is better, for any figure that people read.

    This class shows scores as they are, with three decimals. A subclass changes what differs for its metric, sentences included.

    Args:
        key: the metric's key among the scores of report.json.
    """

    scale, digits = 1, 3
    """Differences of scores are multiplied by `scale` and have `digits` decimals at least."""
    better = ""
    """Which figures are better, where that is not plain."""
    note = ""
    """A paragraph for the page, below the table of models."""
    compact = False
    """Terminal tables (80 characters) join the score and its interval in one column, and tiles leave the unit to their note."""
    latency, latency_of, rate, rates = "p50", "latency", "rows/s", "rows per second"
    item, gold, same_prediction = "rows", "gold labels", "same label as the teacher"
    latency_title = "Latency of one row"
    support = "test rows"
    """What the number of examples of a class counts."""
    joint = " and is"
    """Joins what the student retains to what it saves."""
    details: tuple[Detail, ...] = ()
    relevant = 0.02
    """The difference of scores that matters where the teacher promises no larger one."""
    chance = "a model that does not read the text"
    """What `Task.chance_predictions` are the predictions of."""
    terminal_scores: tuple[tuple[str, str], ...] = ()
    """Scores that the terminal shows in place of the memory, in the metric's format: (column, key)."""

    def __init__(self, key: str) -> None:
        self.key = self.name = self.unit = key

    @property
    def share_of(self) -> str:
        """What retention is a share of."""
        return f"the teacher's {self.name}"

    def figure(self, score: float) -> float:
        """Return the number that people read in place of the score."""
        return score

    def texts(self, *scores: float) -> list[str]:
        """Format a figure in percent, with one decimal."""
        return [f"{score:.3f}" for score in scores]

    def interval(self, low: float, high: float) -> str:
        """Format an interval in percent, without the sign."""
        return " to ".join(self.texts(low, high))

    def axis(self, axes: Axes, which: Literal["x", "y"], figures: Sequence[float]) -> None:
        """Set up the axis of a plot that shows these figures."""

    def format_score(self, value: Any) -> str:
        """Return one score, or n/a."""
        number = format_number(value)
        return "n/a" if number is None else self.texts(number)[0]

    def format_interval(self, bounds: Any, sign: bool = False) -> str:
        """Return the interval of a score, or (with `sign`) of a difference of scores, or n/a."""
        low, high = format_pair(bounds)
        if low is None or high is None:
            return "n/a"
        return " to ".join(self.differences(low, high)) if sign else self.interval(low, high)

    def differences(self, *values: float) -> list[str]:
        """Return signed differences of scores, with as many decimals as distinguish a difference from none."""
        scaled = [self.scale * value for value in values]
        choices = range(self.digits, self.digits + 3)
        digits = next((d for d in choices if all(round(v, d) for v in scaled if v)), self.digits + 2)
        return [f"{value + 0.0:+.{digits}f}" for value in scaled]

    def retention_sentence(self, student: float, teacher: float, retention: float | None) -> str:
        """Return the student against its teacher: the beginning of the verdict."""
        own, other = self.texts(student, teacher)
        if student > teacher:
            return f"The student beats the teacher in {self.name} ({own} against {other})"
        if student == teacher:
            return f"The student has the teacher's {self.name} ({own})"
        if retention is None:
            return f"The student has less {self.name} than the teacher ({own} against {other})"
        return f"The student keeps {format_share(retention)} of {self.share_of} ({own} against {other})"

    def gain_clause(
        self, student: float | None, control: float | None, gain: str, interval: str, over: str
    ) -> str:
        """Return the student against its control, with the gain and the interval of the gain."""
        return f"{gain} {self.unit} {over} {BASELINE} ({interval})"

    def divergence_clause(self, verdict: Mapping[str, Any]) -> str:
        """Return whether the student is nearer to the teacher than the control is; "" where the metric says nothing about it."""
        return ""

    def remark(self, report: Report) -> str:
        """Return a further clause of the verdict on the student; "" for none."""
        return ""

    def tiles(self, report: Report) -> list[tuple[str, str, str]]:
        """Return further tiles of the page: name, figure, note."""
        return []


class Percentage(Metric):
    """A metric in [0, 1], shown in percent."""

    scale, digits = 100, 1

    def __init__(self, key: str) -> None:
        super().__init__(key)
        self.unit = "points"

    def texts(self, *scores: float) -> list[str]:
        """Return in percent, with one decimal."""
        return [f"{100 * score:.1f} %" for score in scores]

    def interval(self, low: float, high: float) -> str:
        """Return in percent, without the sign."""
        return f"{100 * low:.1f} to {100 * high:.1f}"

    def axis(self, axes: Axes, which: Literal["x", "y"], figures: Sequence[float]) -> None:
        """At most seven ticks, in percent."""
        axis: Any = getattr(axes, f"{which}axis")
        axis.get_major_locator().set_params(nbins=7)
        axis.set_major_formatter(lambda value, _: f"{100 * value:.4g} %")


PLAIN, PERCENT = Metric("score"), Percentage("share")


@dataclass(frozen=True)
class Card:
    """The sentences of a model card that differ between tasks.

    Attributes:
        tag: the hub's name of the task (`pipeline_tag`).
        metrics: the hub's names of the metrics.
        model: what the model is called.
        use: Python code that runs the model; INPUT stands for a text.
        figures: what the columns of the table mean.
        agreement: how the student's outputs agree with the teacher's; `{}` is the share.
        limits: what the scores do not show.
        labelled: continues "training rows, of which N …".
        use_of_chat: Python code for a model that was trained on conversations.
    """

    tag: str
    metrics: tuple[str, ...]
    model: str
    use: str
    figures: str
    agreement: str
    limits: str
    labelled: str
    use_of_chat: str = ""

    def usage(self, report: Report, chat: bool, sample: str) -> str:
        """Return the Python code that runs the model of a report on a text, a literal of Python."""
        return self.use_of_chat if chat else self.use.replace("INPUT", sample)


@dataclass(frozen=True)
class Presentation:
    """Describes how the results of one task are shown.

    Attributes:
        metric: the headline metric.
        card: the task's part of the model card.
        further: the other metrics that may be the headline metric.
        score_names: what scores with a signature (sacrebleu's) are called.
    """

    metric: Metric
    card: Card
    further: tuple[Metric, ...] = ()
    score_names: Mapping[str, str] = field(default_factory=dict)


def outcome_of(verdict: Mapping[str, Any]) -> Outcome:
    """Return whether the teacher helped. A report of an earlier version has no `outcome`; the interval of the gain decides then."""
    if verdict.get("outcome"):
        return cast(Outcome, verdict["outcome"])
    low, _ = format_pair(verdict.get("gain_ci95"))
    return "not_enough" if low is None else outcome_by_interval(verdict)


def outcome_by_interval(verdict: Mapping[str, Any]) -> Outcome:
    """Return what the paired 95 % interval of the gain shows, if nothing else speaks against a judgement."""
    low, high = format_pair(verdict.get("gain_ci95"))
    if low is not None and low > 0:
        return "helped"
    return "hurt" if high is not None and high < 0 else "no_evidence"


def format_figure(value: Any, digits: int = 2) -> str:
    """Return a number with `digits` decimals, or more where it would be shown as 0; or n/a."""
    number = format_number(value)
    return "n/a" if number is None else format_apart(number, digits=digits)[0]
