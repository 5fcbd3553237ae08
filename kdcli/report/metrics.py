"""How the headline metric of each task is shown and compared."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

from kdcli.report.numbers import (
    format_apart,
    format_count,
    format_number,
    format_pair,
    format_share,
    format_significant,
    format_times,
)
from kdcli.rundir import UNQUANTIZED

if TYPE_CHECKING:
    from matplotlib.axes import Axes
MODELS = ("teacher", "control", "student")
Report = Mapping[str, Any]
Finding = Literal["helped", "hurt", "no evidence", "unknown"]
Detail = tuple[str, str, Callable[[Mapping[str, Any]], str]]
"""A further figure of a model: its name on the page, on the card ("": not there), and its text from the scores."""


def present_models(report: Report) -> dict[str, Mapping[str, Any]]:
    """The models of the report in reading order; without the control where there was none."""
    return {name: report["models"][name] for name in MODELS if report["models"].get(name)}


def compared_models(report: Report) -> dict[str, Mapping[str, Any]]:
    """The models, and between the teacher and what it taught the assistants, and the student before its weights were rounded."""
    teacher, *others = present_models(report).items()
    before = {name: entry for name, entry in report["models"].items() if name == UNQUANTIZED}
    return dict([teacher, *report.get("assistants", {}).items(), *before.items(), *others])


SAME = "the same student without a teacher"


class Metric:
    """How a score is told to people. In report.json a higher score is better, whatever people read.

    This one shows scores as they are. Everything that differs between metrics, sentences included, is here.
    """

    scale, digits = 1, 3  # of a difference of scores: what it is multiplied by, and its fewest decimals
    better = ""  # said of the figure where it is not plain which is better
    note = ""  # on the page, beneath the models
    compact = False  # tables on the terminal join columns (80 characters!), tiles leave the unit to the note
    latency, latency_of, rate, rates = "p50", "latency", "rows/s", "rows per second"
    item, gold, same_answer = "rows", "gold labels", "same answer as the teacher"
    bars = "Latency of one row"
    counted = "test rows"  # of a class
    joint = " and is"  # between what the student keeps and what it saves
    details: tuple[Detail, ...] = ()
    beside: tuple[tuple[str, str], ...] = ()
    """Scores of this kind that the terminal shows instead of the memory: column, key."""

    def __init__(self, name: str) -> None:
        self.name = self.unit = name

    @property
    def share_of(self) -> str:
        """What retention is a share of."""
        return f"the teacher's {self.name}"

    def figure(self, score: float) -> float:
        """What people read instead of the score."""
        return score

    def texts(self, *scores: float) -> list[str]:
        """Scores that are read side by side."""
        return [f"{score:.3f}" for score in scores]

    def interval(self, low: float, high: float) -> str:
        return " to ".join(self.texts(low, high))

    def axis(self, axes: Axes, which: Literal["x", "y"], figures: Sequence[float]) -> None:
        """Set up the axis of a plot on which figures are."""

    def kept(self, student: float, teacher: float, retention: float | None) -> str:
        """The student against its teacher: the head of the verdict."""
        own, other = self.texts(student, teacher)
        if student > teacher:
            return f"The student beats the teacher in {self.name} ({own} against {other})"
        if student == teacher:
            return f"The student has the teacher's {self.name} ({own})"
        if retention is None:
            return f"The student has less {self.name} than the teacher ({own} against {other})"
        return f"The student keeps {format_share(retention)} of {self.share_of} ({own} against {other})"

    def gained(
        self, student: float | None, control: float | None, gain: str, interval: str, over: str
    ) -> str:
        """The student against its control, with its gain and that gain's interval."""
        return f"{gain} {self.unit} {over} {SAME} ({interval})"

    def nearer(self, verdict: Mapping[str, Any]) -> str:
        """Whether the student is nearer to the teacher than the control, as a clause; "" where that is not told."""
        return ""

    def aside(self, report: Report) -> str:
        """What else the verdict says of the student, as a clause; "" where there is nothing."""
        return ""

    def tiles(self, report: Report) -> list[tuple[str, str, str]]:
        """Further tiles of the page: name, figure, note."""
        return []


class _Percentage(Metric):
    """A metric from 0 to 1 that people read in percent."""

    scale, digits = 100, 1
    details: tuple[Detail, ...] = (
        ("macro F1", "macro F1", lambda scores: format_score("macro_f1", scores.get("macro_f1"))),
        ("log-loss", "", lambda scores: format_score("nll", scores.get("nll"))),
        ("calibration error", "ECE", lambda scores: format_score("ece", scores.get("ece"))),
    )

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self.unit = "points"

    def texts(self, *scores: float) -> list[str]:
        return [f"{100 * score:.1f} %" for score in scores]

    def interval(self, low: float, high: float) -> str:
        return f"{100 * low:.1f} to {100 * high:.1f}"

    def axis(self, axes: Axes, which: Literal["x", "y"], figures: Sequence[float]) -> None:
        axis: Any = getattr(axes, f"{which}axis")
        axis.get_major_locator().set_params(nbins=7)
        axis.set_major_formatter(lambda value, _: f"{100 * value:.4g} %")


class _EntityF1(_Percentage):
    """F1 of entities: spans of words with a type."""

    item, gold, same_answer = "words", "gold tags", "same tag as the teacher"
    counted = "test entities"
    details = (
        ("precision", "precision", lambda scores: format_score("f1", scores.get("precision"))),
        ("recall", "recall", lambda scores: format_score("f1", scores.get("recall"))),
        (
            "words with the right tag",
            "right tags",
            lambda scores: format_score("f1", scores.get("token_accuracy")),
        ),
        ("log-loss", "", lambda scores: format_score("nll", scores.get("nll"))),
    )

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self.name = "entity F1"

    def interval(self, low: float, high: float) -> str:
        return super().interval(max(low, 0.0), min(high, 1.0))  # linearised, it may reach beyond


class _LogProb(Metric):
    """The mean log-probability of a reference token, which people read as perplexity: its exp(-score)."""

    digits = 2
    better = "lower is better"
    note = (
        "Perplexity is exp of minus the mean log-probability of a reference token: 1 is certainty, lower is better. "
        "What the student keeps of its teacher's probability of a reference token is a geometric mean over tokens."
    )
    compact = True
    latency, latency_of, rate, rates = "first token", "time to first token", "tokens/s", "tokens per second"
    item, gold, same_answer = "tokens", "references", "same most likely token as the teacher"
    bars = "Time to first token"
    joint = ". It is"
    details = (
        ("log-probability, nats a token", "", lambda scores: format_figure(scores.get("log_prob"))),
        (
            "token accuracy",
            "token accuracy",
            lambda scores: format_score("accuracy", scores.get("token_accuracy")),
        ),
        ("agreement with the teacher", "", lambda scores: format_share(scores.get("agreement"))),
        (
            "KL to the teacher, nats a token",
            "KL to teacher",
            lambda scores: format_figure(scores.get("kl_to_teacher")),
        ),
        ("ROUGE-L, generations", "ROUGE-L", lambda scores: format_figure(scores.get("rouge_l"), 3)),
        (
            "distinct 2-grams, generations",
            "",
            lambda scores: format_score("accuracy", scores.get("distinct_2")),
        ),
        (
            "repeated 4-grams, generations",
            "",
            lambda scores: format_score("accuracy", scores.get("repetition")),
        ),
    )
    share_of = "the teacher's probability of a reference token"

    def __init__(self, name: str) -> None:
        self.name, self.unit = "perplexity", "nats a token"

    def figure(self, score: float) -> float:
        return min(math.exp(min(-score, 99.0)), 1e15)  # worse than that nobody can tell apart

    def texts(self, *scores: float, most: int = 6) -> list[str]:
        figures = [self.figure(score) for score in scores]
        for digits in range(3, most + 1):
            shown = [format_significant(figure, digits) for figure in figures]
            if len(set(shown)) == len(set(figures)):
                break
        return shown

    def interval(self, low: float, high: float) -> str:
        return " to ".join(self.texts(high, low, most=4 if self.figure(low) < 999 else 3))

    def axis(self, axes: Axes, which: Literal["x", "y"], figures: Sequence[float]) -> None:
        axis: Any = getattr(axes, f"{which}axis")
        spread = max(figures) / min(figures)
        if spread > 8:
            from matplotlib.ticker import LogLocator

            axes.set(**{f"{which}scale": "log"})
            axis.set_major_locator(LogLocator(subs=(1, 2, 5) if spread < 100 else (1,)))
            axis.set_minor_formatter(lambda value, _: "")
        axis.set_major_formatter(
            lambda value, _: f"{value:,.4g}" if value < 9999 else format_count(value).replace(".0", "")
        )

    def kept(self, student: float, teacher: float, retention: float | None) -> str:
        own, other = self.texts(student, teacher)
        if student == teacher:
            return f"The student has its teacher's perplexity ({own})"
        better = "better than " if student > teacher else ""
        text = f"The student's perplexity is {own}, {better}its teacher's {other}"
        if retention is None:
            return text
        if retention >= 2:
            given = f"{format_times(retention)} times the probability that its teacher gives it"
        elif student > teacher:
            given = f"{format_share(retention - 1)} more probability than its teacher does"
        else:
            given = f"{format_share(retention)} of the probability that its teacher gives it"
        return f"{text}: it gives a reference token {given}"

    def gained(
        self, student: float | None, control: float | None, gain: str, interval: str, over: str
    ) -> str:
        if student is None or control is None:
            return super().gained(student, control, gain, interval, over)
        own, other = self.texts(student, control)
        return f"perplexity {own} against {other} for {SAME} ({gain} {self.unit}, {interval})"

    def nearer(self, verdict: Mapping[str, Any]) -> str:
        own, gain = (format_number(verdict.get(key)) for key in ("kl_to_teacher", "kl_gain_over_control"))
        if own is None or gain is None:
            return ""
        low, high = format_pair(verdict.get("kl_gain_ci95"))
        nearer, further = low is not None and low > 0, high is not None and high < 0
        side = "nearer to" if nearer else "further from" if further else "not clearly nearer to"
        joint = "and" if nearer == (finding(verdict) == "helped") else "but"
        return f", {joint} the student is {side} the teacher (KL {' against '.join(format_apart(own, own + gain))})"

    def tiles(self, report: Report) -> list[tuple[str, str, str]]:
        verdict = report["verdict"]
        own, gain = (format_number(verdict.get(key)) for key in ("kl_to_teacher", "kl_gain_over_control"))
        if own is None:
            return []
        if gain is None:
            return [("KL to the teacher", format_figure(own), "nats a token, 0 is the teacher itself")]
        shown, other = format_apart(own, own + gain)
        return [("KL to the teacher", shown, f"nats a token; the control's is {other}")]


class _Bleu(Metric):
    """sacrebleu's BLEU of greedy translations, 0 to 100; chrF and BLEU of beam search are told as it is."""

    digits = 1
    note = (
        "BLEU and chrF are sacrebleu's, from 0 to 100, over the whole test split: of greedy translations, or of beam search "
        "where that is said. What the student keeps is its BLEU over the teacher's, greedy against greedy."
    )
    compact = True
    latency, latency_of, rate, rates = "sentence", "time of a sentence", "tokens/s", "tokens per second"
    item, gold, same_answer = "tokens", "references", "same most likely token as the teacher"
    bars = "Time of a sentence"
    beside = (("beam", "bleu_beam"), ("chrF", "chrf"))
    details = (
        ("BLEU, beam search", "beam BLEU", lambda scores: format_score("bleu", scores.get("bleu_beam"))),
        ("chrF", "chrF", lambda scores: format_score("bleu", scores.get("chrf"))),
        ("chrF, beam search", "", lambda scores: format_score("bleu", scores.get("chrf_beam"))),
        (
            "perplexity of the references",
            "perplexity",
            lambda scores: format_score("log_prob", scores.get("log_prob")),
        ),
        ("token accuracy", "", lambda scores: format_score("accuracy", scores.get("token_accuracy"))),
        ("KL to the teacher, nats a token", "", lambda scores: format_figure(scores.get("kl_to_teacher"))),
        ("length over the references'", "", lambda scores: format_figure(scores.get("length_ratio"))),
        ("copies of the source", "copies", lambda scores: format_score("accuracy", scores.get("copied"))),
    )

    def __init__(self, name: str) -> None:
        self.name = self.unit = "BLEU"

    def texts(self, *scores: float) -> list[str]:
        return format_apart(*scores, digits=1)

    def of_beam(self, report: Report) -> tuple[float, float] | None:
        """The student's greedy BLEU as a share of what the teacher reaches by beam search, and the latter."""
        models = present_models(report)
        own = format_number(models["student"].get("score")) if "student" in models else None
        beam = format_number(((models.get("teacher") or {}).get("scores") or {}).get("bleu_beam"))
        return (own / beam, beam) if own is not None and beam else None

    def aside(self, report: Report) -> str:
        found = self.of_beam(report)
        if found is None:
            return ""
        share, beam = found
        return f"; its greedy BLEU is {format_share(share)} of the teacher's by beam search ({self.texts(beam)[0]})"

    def tiles(self, report: Report) -> list[tuple[str, str, str]]:
        found = self.of_beam(report)
        if found is None:
            return []
        share, beam = found
        return [
            (
                "of beam search",
                format_share(share),
                f"of the teacher's BLEU by beam search, {self.texts(beam)[0]}",
            )
        ]


_METRICS: dict[str, type[Metric]] = {
    **dict.fromkeys(("accuracy", "macro_f1"), _Percentage),
    "f1": _EntityF1,
    "log_prob": _LogProb,
    "bleu": _Bleu,
}


def metric_of(name: str) -> Metric:
    return _METRICS.get(name, Metric)(name)


def format_figure(value: Any, digits: int = 2) -> str:
    """A plain figure; more decimals rather than a 0 for what is none."""
    number = format_number(value)
    return "n/a" if number is None else format_apart(number, digits=digits)[0]


def format_score(metric: str, value: Any) -> str:
    number = format_number(value)
    return "n/a" if number is None else metric_of(metric).texts(number)[0]


def format_interval(metric: str, bounds: Any, sign: bool = False) -> str:
    low, high = format_pair(bounds)
    if low is None or high is None:
        return "n/a"
    return " to ".join(differences_of(metric, low, high)) if sign else metric_of(metric).interval(low, high)


def differences_of(metric: str, *values: float) -> list[str]:
    """Signed differences of scores, with as many decimals as keep a difference from being shown as none."""
    scale, least = metric_of(metric).scale, metric_of(metric).digits
    shown = [scale * value for value in values]
    digits = next((d for d in range(least, least + 3) if all(round(v, d) for v in shown if v)), least + 2)
    return [f"{value + 0.0:+.{digits}f}" for value in shown]


def chance_of(value: Any) -> str:
    """``p = 0.012``; "" where no p-value is known."""
    p = format_number(value)
    if p is None:
        return ""
    return "p < 0.001" if p < 0.001 else "p > 0.999" if p > 0.999 else f"p = {p:.3f}"


def finding(verdict: Mapping[str, Any]) -> Finding:
    """Whether the teacher helped: only if the paired 95 % interval of the gain excludes 0."""
    if format_number(verdict.get("gain_over_control")) is None:
        return "unknown"
    low, high = format_pair(verdict.get("gain_ci95"))
    if low is not None and low > 0:
        return "helped"
    return "hurt" if high is not None and high < 0 else "no evidence"
