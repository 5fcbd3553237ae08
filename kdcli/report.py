"""What a run found, told to people: the final table, one honest sentence, ``report.html``, a model card.

Everything here reads ``report.json`` (made by kdcli.commands.distill) and measures nothing. What
is missing or null there is shown as ``n/a``: a run without a control, a remote teacher, a class that the test
split does not hold. Plots are matplotlib SVGs whose colours are CSS variables, so that one picture serves
light and dark.
"""

from __future__ import annotations

import json
import math
import re
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from io import StringIO
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from kdcli import console
from kdcli.errors import printable
from kdcli.files import read_json, write_text
from kdcli.rundir import UNQUANTIZED, read_metrics

if TYPE_CHECKING:
    from markupsafe import Markup
    from matplotlib.axes import Axes

MODELS = ("teacher", "control", "student")
_MAX_POINTS = 300  # of a curve; more cannot be seen, and would make the page heavy
_MAX_MATRIX = 12  # classes of a confusion matrix that can still be read
_MAX_CLASSES = 200  # rows of the per-class table
_MAX_TEXT = 4000  # characters of one text on the page

Report = Mapping[str, Any]
Finding = Literal["helped", "hurt", "no evidence", "unknown"]
Detail = tuple[str, str, Callable[[Mapping[str, Any]], str]]
"""A further figure of a model: its name on the page, on the card ("": not there), and its text from the scores."""


# --- figures as text ---


def _number(value: Any) -> float | None:
    """The value if it is a finite number, else None."""
    return float(value) if isinstance(value, int | float) and math.isfinite(value) else None


def _scaled(value: Any, base: str, units: Sequence[str], plain: str) -> str:
    number = _number(value)
    if number is None:
        return "n/a"
    for power in range(len(units), 0, -1):
        if abs(number) >= 999.5 * 1000 ** (power - 1):
            scaled = number / 1000**power
            return f"{scaled:.{0 if scaled >= 99.95 else 1}f}{base}{units[power - 1]}"
    return plain.format(number)


def _count(value: Any) -> str:
    return _scaled(value, "", ("k", "M", "B", "T"), "{:.0f}")


def _bytes(value: Any) -> str:
    return _scaled(value, " ", ("kB", "MB", "GB", "TB"), "{:.0f} B")


def _milliseconds(value: Any) -> str:
    number = _number(value)
    if number is None:
        return "n/a"
    return f"{number:.2f} ms" if number < 1 else f"{number:.1f} ms" if number < 100 else f"{number:,.0f} ms"


def _rate(value: Any) -> str:
    number = _number(value)
    return "n/a" if number is None else f"{number:.1f}" if number < 100 else f"{number:,.0f}"


def _share(value: Any) -> str:
    """A retention in percent, rounded down below 1: what was lost must not be rounded away."""
    number = _number(value)
    if number is None:
        return "n/a"
    percent = 100 * number
    if 0 < percent < 0.1:
        return "under 0.1 %"
    return f"{math.floor(10 * percent + 1e-6) / 10 if percent < 100 else percent:,.1f} %"


def _significant(value: float, digits: int) -> str:
    """A figure of at least 1 as ``14.2``, ``1.23k``, ``45.6M``."""
    if not value < 999e12:
        return "over 999T"
    rounded = float(f"{value:.{digits - 1}e}")
    power = max(0, math.floor(math.log10(rounded)) // 3)
    scaled = rounded / 1000**power
    return (
        f"{scaled:.{max(0, digits - 1 - math.floor(math.log10(scaled)))}f}{('', 'k', 'M', 'B', 'T')[power]}"
    )


def _apart(*values: float, digits: int = 2) -> list[str]:
    """Figures to compare, with as many decimals as show what is not the same as not the same, and no 0 for more."""
    for more in range(digits, digits + 4):
        rounded = [round(value, more) for value in values]
        if len(set(rounded)) == len(set(values)) and all(
            r for r, v in zip(rounded, values, strict=True) if v
        ):
            break
    return [f"{value:.{more}f}" for value in values]


def _pair(bounds: Any) -> tuple[float | None, float | None]:
    low, high = bounds or (None, None)
    return _number(low), _number(high)


def _models(report: Report) -> dict[str, Mapping[str, Any]]:
    """The models of the report in reading order; without the control where there was none."""
    return {name: report["models"][name] for name in MODELS if report["models"].get(name)}


def _compared(report: Report) -> dict[str, Mapping[str, Any]]:
    """The models, and between the teacher and what it taught the assistants, and the student before its weights were rounded."""
    teacher, *others = _models(report).items()
    before = {name: entry for name, entry in report["models"].items() if name == UNQUANTIZED}
    return dict([teacher, *report.get("assistants", {}).items(), *before.items(), *others])


# --- metrics: how people are told a score ---

_SAME = "the same student without a teacher"


class _Metric:
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
        return f"The student keeps {_share(retention)} of {self.share_of} ({own} against {other})"

    def gained(
        self, student: float | None, control: float | None, gain: str, interval: str, over: str
    ) -> str:
        """The student against its control, with its gain and that gain's interval."""
        return f"{gain} {self.unit} {over} {_SAME} ({interval})"

    def nearer(self, verdict: Mapping[str, Any]) -> str:
        """Whether the student is nearer to the teacher than the control, as a clause; "" where that is not told."""
        return ""

    def aside(self, report: Report) -> str:
        """What else the verdict says of the student, as a clause; "" where there is nothing."""
        return ""

    def tiles(self, report: Report) -> list[tuple[str, str, str]]:
        """Further tiles of the page: name, figure, note."""
        return []


class _Percentage(_Metric):
    """A metric from 0 to 1 that people read in percent."""

    scale, digits = 100, 1
    details: tuple[Detail, ...] = (
        ("macro F1", "macro F1", lambda scores: _score("macro_f1", scores.get("macro_f1"))),
        ("log-loss", "", lambda scores: _score("nll", scores.get("nll"))),
        ("calibration error", "ECE", lambda scores: _score("ece", scores.get("ece"))),
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
        ("precision", "precision", lambda scores: _score("f1", scores.get("precision"))),
        ("recall", "recall", lambda scores: _score("f1", scores.get("recall"))),
        ("words with the right tag", "right tags", lambda scores: _score("f1", scores.get("token_accuracy"))),
        ("log-loss", "", lambda scores: _score("nll", scores.get("nll"))),
    )

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self.name = "entity F1"

    def interval(self, low: float, high: float) -> str:
        return super().interval(max(low, 0.0), min(high, 1.0))  # linearised, it may reach beyond


class _LogProb(_Metric):
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
        ("log-probability, nats a token", "", lambda scores: _figure(scores.get("log_prob"))),
        ("token accuracy", "token accuracy", lambda scores: _score("accuracy", scores.get("token_accuracy"))),
        ("agreement with the teacher", "", lambda scores: _share(scores.get("agreement"))),
        (
            "KL to the teacher, nats a token",
            "KL to teacher",
            lambda scores: _figure(scores.get("kl_to_teacher")),
        ),
        ("ROUGE-L, generations", "ROUGE-L", lambda scores: _figure(scores.get("rouge_l"), 3)),
        ("distinct 2-grams, generations", "", lambda scores: _score("accuracy", scores.get("distinct_2"))),
        ("repeated 4-grams, generations", "", lambda scores: _score("accuracy", scores.get("repetition"))),
    )
    share_of = "the teacher's probability of a reference token"

    def __init__(self, name: str) -> None:
        self.name, self.unit = "perplexity", "nats a token"

    def figure(self, score: float) -> float:
        return min(math.exp(min(-score, 99.0)), 1e15)  # worse than that nobody can tell apart

    def texts(self, *scores: float, most: int = 6) -> list[str]:
        figures = [self.figure(score) for score in scores]
        for digits in range(3, most + 1):
            shown = [_significant(figure, digits) for figure in figures]
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
            lambda value, _: f"{value:,.4g}" if value < 9999 else _count(value).replace(".0", "")
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
            given = f"{_times(retention)} times the probability that its teacher gives it"
        elif student > teacher:
            given = f"{_share(retention - 1)} more probability than its teacher does"
        else:
            given = f"{_share(retention)} of the probability that its teacher gives it"
        return f"{text}: it gives a reference token {given}"

    def gained(
        self, student: float | None, control: float | None, gain: str, interval: str, over: str
    ) -> str:
        if student is None or control is None:
            return super().gained(student, control, gain, interval, over)
        own, other = self.texts(student, control)
        return f"perplexity {own} against {other} for {_SAME} ({gain} {self.unit}, {interval})"

    def nearer(self, verdict: Mapping[str, Any]) -> str:
        own, gain = (_number(verdict.get(key)) for key in ("kl_to_teacher", "kl_gain_over_control"))
        if own is None or gain is None:
            return ""
        low, high = _pair(verdict.get("kl_gain_ci95"))
        nearer, further = low is not None and low > 0, high is not None and high < 0
        side = "nearer to" if nearer else "further from" if further else "not clearly nearer to"
        joint = "and" if nearer == (finding(verdict) == "helped") else "but"
        return f", {joint} the student is {side} the teacher (KL {' against '.join(_apart(own, own + gain))})"

    def tiles(self, report: Report) -> list[tuple[str, str, str]]:
        verdict = report["verdict"]
        own, gain = (_number(verdict.get(key)) for key in ("kl_to_teacher", "kl_gain_over_control"))
        if own is None:
            return []
        if gain is None:
            return [("KL to the teacher", _figure(own), "nats a token, 0 is the teacher itself")]
        shown, other = _apart(own, own + gain)
        return [("KL to the teacher", shown, f"nats a token; the control's is {other}")]


class _Bleu(_Metric):
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
        ("BLEU, beam search", "beam BLEU", lambda scores: _score("bleu", scores.get("bleu_beam"))),
        ("chrF", "chrF", lambda scores: _score("bleu", scores.get("chrf"))),
        ("chrF, beam search", "", lambda scores: _score("bleu", scores.get("chrf_beam"))),
        (
            "perplexity of the references",
            "perplexity",
            lambda scores: _score("log_prob", scores.get("log_prob")),
        ),
        ("token accuracy", "", lambda scores: _score("accuracy", scores.get("token_accuracy"))),
        ("KL to the teacher, nats a token", "", lambda scores: _figure(scores.get("kl_to_teacher"))),
        ("length over the references'", "", lambda scores: _figure(scores.get("length_ratio"))),
        ("copies of the source", "copies", lambda scores: _score("accuracy", scores.get("copied"))),
    )

    def __init__(self, name: str) -> None:
        self.name = self.unit = "BLEU"

    def texts(self, *scores: float) -> list[str]:
        return _apart(*scores, digits=1)

    def of_beam(self, report: Report) -> tuple[float, float] | None:
        """The student's greedy BLEU as a share of what the teacher reaches by beam search, and the latter."""
        models = _models(report)
        own = _number(models["student"].get("score")) if "student" in models else None
        beam = _number(((models.get("teacher") or {}).get("scores") or {}).get("bleu_beam"))
        return (own / beam, beam) if own is not None and beam else None

    def aside(self, report: Report) -> str:
        found = self.of_beam(report)
        if found is None:
            return ""
        share, beam = found
        return f"; its greedy BLEU is {_share(share)} of the teacher's by beam search ({self.texts(beam)[0]})"

    def tiles(self, report: Report) -> list[tuple[str, str, str]]:
        found = self.of_beam(report)
        if found is None:
            return []
        share, beam = found
        return [
            ("of beam search", _share(share), f"of the teacher's BLEU by beam search, {self.texts(beam)[0]}")
        ]


_METRICS: dict[str, type[_Metric]] = {
    **dict.fromkeys(("accuracy", "macro_f1"), _Percentage),
    "f1": _EntityF1,
    "log_prob": _LogProb,
    "bleu": _Bleu,
}


def _metric(name: str) -> _Metric:
    return _METRICS.get(name, _Metric)(name)


def _figure(value: Any, digits: int = 2) -> str:
    """A plain figure; more decimals rather than a 0 for what is none."""
    number = _number(value)
    return "n/a" if number is None else _apart(number, digits=digits)[0]


def _score(metric: str, value: Any) -> str:
    number = _number(value)
    return "n/a" if number is None else _metric(metric).texts(number)[0]


def _interval(metric: str, bounds: Any, sign: bool = False) -> str:
    low, high = _pair(bounds)
    if low is None or high is None:
        return "n/a"
    return " to ".join(_differences(metric, low, high)) if sign else _metric(metric).interval(low, high)


def _differences(metric: str, *values: float) -> list[str]:
    """Signed differences of scores, with as many decimals as keep a difference from being shown as none."""
    scale, least = _metric(metric).scale, _metric(metric).digits
    shown = [scale * value for value in values]
    digits = next((d for d in range(least, least + 3) if all(round(v, d) for v in shown if v)), least + 2)
    return [f"{value + 0.0:+.{digits}f}" for value in shown]


def _chance(value: Any) -> str:
    """``p = 0.012``; "" where no p-value is known."""
    p = _number(value)
    if p is None:
        return ""
    return "p < 0.001" if p < 0.001 else "p > 0.999" if p > 0.999 else f"p = {p:.3f}"


# --- the verdict ---


def finding(verdict: Mapping[str, Any]) -> Finding:
    """Whether the teacher helped: only if the paired 95 % interval of the gain excludes 0."""
    if _number(verdict.get("gain_over_control")) is None:
        return "unknown"
    low, high = _pair(verdict.get("gain_ci95"))
    if low is not None and low > 0:
        return "helped"
    return "hurt" if high is not None and high < 0 else "no evidence"


def verdict_text(report: Report) -> str:
    """What the student keeps, what it saves, and whether the teacher helped, in two short sentences."""
    if report.get("smoke"):
        return "A smoke run: these figures mean nothing."
    return f"{_kept(report)}{_saved(report)}{_metric(report['metric']).aside(report)}. {_helped(report)}"


def _kept(report: Report) -> str:
    metric, models = report["metric"], _models(report)
    student, teacher = (_number(models.get(name, {}).get("score")) for name in ("student", "teacher"))
    if student is None:
        return "The student has no score"
    if teacher is None:
        name, text = _metric(metric).name, _score(metric, student)
        return f"The student has {name} {text} (the teacher's is not known)"
    return _metric(metric).kept(student, teacher, _number(report["verdict"].get("retention")))


def _saved(report: Report) -> str:
    """`` and is 25 times smaller and 8.1 times faster``; what is not known is said."""
    known, unknown = [], []
    for key, more, less, same in (
        ("compression", "smaller", "larger", "about as large"),
        ("speedup", "faster", "slower", "about as fast"),
    ):
        ratio = _number(report["verdict"].get(key))
        if not ratio:
            unknown.append(more)
        elif 0.95 < ratio < 1.05:
            known.append(same)
        else:
            known.append(f"{_times(max(ratio, 1 / ratio))} times {more if ratio > 1 else less}")
    text = f"{_metric(report['metric']).joint} {' and '.join(known)}" if known else ""
    return text + (f"; how much {' and '.join(unknown)} it is cannot be known" if unknown else "")


def _times(ratio: float) -> str:
    return f"{ratio:.1f}" if ratio < 9.95 else f"{ratio:,.0f}"


def _helped(report: Report) -> str:
    metric, verdict, models = report["metric"], report["verdict"], _models(report)
    if "control" not in models:
        return "No control was trained, so whether the teacher helped is not known."
    gain, nearer = _number(verdict.get("gain_over_control")), _metric(metric).nearer(verdict)
    if gain is None:
        return f"The gain over {_SAME} is not known, nor whether the teacher helped{nearer}."
    low, high = _pair(verdict.get("gain_ci95"))
    head, over = {
        "helped": ("Distillation helped", "over"),
        "hurt": ("The teacher HURT", "against"),
    }.get(finding(verdict), ("No evidence that the teacher helped", "over"))
    shown = _differences(metric, *(value for value in (gain, low, high) if value is not None))
    student, teacher, control = (
        _number(models[name].get("score")) for name in ("student", "teacher", "control")
    )
    if low == high == gain == 0:
        text = f"{head}: {_SAME} does exactly as well"
    else:
        known = len(shown) == 3
        certainty = f"95 % interval {shown[1]} to {shown[2]}" if known else "its interval is not known"
        certainty = ", ".join(filter(None, [certainty, _chance(verdict.get("gain_p"))]))
        text = f"{head}: {_metric(metric).gained(student, control, shown[0], certainty, over)}"
    text += nearer
    if teacher is not None and control is not None and teacher <= control:
        scores = " against ".join(_metric(metric).texts(teacher, control))
        rival = "the student without it" if nearer else "that student"
        text += f"; the teacher itself is no better than {rival} ({scores})"
    return text + "."


# --- tables on the terminal ---


def _columns(metric: str) -> list[str]:
    shown = _metric(metric)
    return ["model", shown.name, "95 % interval", "params", "size", shown.latency, shown.rate, "memory"]


def _rows(metric: str, models: Mapping[str, Mapping[str, Any]]) -> list[list[str]]:
    """One row a model, cells as in ``_columns``."""
    return [
        [
            name,
            _score(metric, model.get("score")),
            _interval(metric, model.get("scores", {}).get(f"{metric}_ci95")),
            _count(model.get("parameters")),
            _bytes(model.get("bytes")),
            _milliseconds((model.get("latency_ms") or {}).get("p50")),
            _rate(model.get("throughput_per_s")),
            _bytes(model.get("peak_memory_bytes")),
        ]
        for name, model in models.items()
    ]


def _table(title: str, metric: str, models: Mapping[str, Mapping[str, Any]]) -> None:
    """Print models side by side; where columns are to be joined, the score and its interval are, and there further
    scores stand beside them."""
    columns, rows, shown = _columns(metric), _rows(metric, models), _metric(metric)
    if shown.compact:
        columns[1:3] = [f"{columns[1]} (95 %)"]
        for row, model in zip(rows, models.values(), strict=True):
            low, high = _pair(model.get("scores", {}).get(f"{metric}_ci95"))
            row[1:3] = [row[1] if low is None or high is None else f"{row[1]} ({row[2]})"]
    further = []
    for name, key in shown.beside:
        scores = [model.get("scores", {}).get(key) for model in models.values()]
        if any(_number(score) is not None for score in scores):
            further.append((name, [_score(metric, score) for score in scores]))
    if further:
        columns[2:] = [*(name for name, _ in further), *columns[2:-1]]
        for i, row in enumerate(rows):
            row[2:] = [*(cells[i] for _, cells in further), *row[2:-1]]
    console.table(title, columns, rows)


def final_table(report: Report) -> None:
    """Print teacher, control and student side by side, then the verdict, to stdout."""
    tokens = f", {report['test_tokens']:,} reference tokens" if report.get("test_tokens") else ""
    _table(f"{report['test_examples']:,} test examples{tokens}", report["metric"], _compared(report))
    console.say(verdict_text(report), style="bold")
    if asked := report.get("endpoint"):
        console.say(f"{asked['model']}: {_bill(asked)}")


def _bill(asked: Mapping[str, Any]) -> str:
    """What a teacher that was only asked has answered, and what that took."""
    cost = "not known" if asked["cost"] is None else f"{asked['cost']:.2f}"
    before = f", {asked['from_ledger']:,} answered before" if asked["from_ledger"] else ""
    return (
        f"{asked['questions']:,} questions{before}; {asked['requests']:,} requests ({asked['retries']:,} of them retries), "
        f"{asked['prompt_tokens']:,} + {asked['completion_tokens']:,} tokens, cost {cost}; {asked['refused']:,} refused, "
        f"{asked['unparsable']:,} unparsable"
    )


def _asked(asked: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """A teacher that was only asked, as lines of the page."""
    yield "address", asked["base_url"]
    yield "model", asked["model"]
    yield from ((f"parameter {key}", str(value)) for key, value in asked["parameters"].items())
    for key in ("questions", "from_ledger", "requests", "retries", "prompt_tokens", "completion_tokens"):
        yield key.replace("_", " "), f"{asked[key]:,}"
    yield "cost", "n/a" if asked["cost"] is None else f"{asked['cost']:.4f}"
    yield "refused rows", f"{asked['refused']:,}"
    yield "unparsable rows", f"{asked['unparsable']:,}"
    yield from ((f"left out: {why}", f"{count:,}") for why, count in asked["dropped"].items())
    yield "rows learnt", f"{asked['learnt']:,}"
    agreement = asked["agreement"]
    if agreement.get("accuracy") is not None:
        yield (
            "training rows labelled as their gold label",
            f"{_share(agreement['accuracy'])} of {agreement['gold']:,}",
        )
    if agreement.get("rouge_l") is not None:
        yield (
            "ROUGE-L against the references",
            f"{_figure(agreement['rouge_l'], 3)} ({agreement['gold']:,} rows)",
        )
    if "soft_labels" in asked:
        yield "soft labels", asked["soft_labels"]
        if asked["smoothing"] is not None:
            yield "smoothing", str(asked["smoothing"])
        if asked["missing_mass"] is not None:
            yield "probability on no label's token", f"{100 * asked['missing_mass']:.1f} %"
        if asked["asked_for"]:
            yield (
                "asked for",
                ", ".join(f"{letter} = {label}" for letter, label in asked["asked_for"].items()),
            )
    yield "examples shown", f"{asked['shots']:,}"


def _answers(asked: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Some of its answers, with what they amount to."""
    found = []
    for one in asked["answers"]:
        labels = sorted((one.get("labels") or {}).items(), key=lambda item: -item[1])
        lines = [(name, f"{100 * share:.1f} %") for name, share in labels[:5]]
        lines += [("gold", one["gold"])] if "gold" in one else []
        lines += [("left out", one["left_out"])] if "left_out" in one else []
        found.append(
            {"question": _cut(one["question"]), "answers": list(map(_cut, one["answers"])), "lines": lines}
        )
    return found


def eval_table(result: Mapping[str, Any]) -> None:
    """Print what ``kdcli eval`` found (eval.json), and the verdict if student and teacher were compared, or how much faster a file
    is that took turns with the student."""
    title = f"{result['examples']:,} rows of {result['dataset']['name']}, split {result['split']}"
    _table(title, result["metric"], result["models"])
    if "verdict" in result:
        console.say(result["verdict"]["text"], style="bold")
        return
    shown = _metric(result["metric"])
    for name, model in result["models"].items():
        faster, speedup = (_number(model.get(key)) for key in ("times_faster", "speedup"))
        if faster and speedup and "parameters" not in model:  # a checkpoint took turns with the teacher
            sooner = "shorter" if faster > 1 else "longer"
            console.say(
                f"{name}, in turns with the student in torch: {shown.latency_of} {_times(max(faster, 1 / faster))} times {sooner}, "
                f"{_times(speedup)} times the {shown.rates}"
            )


UNRUN = (
    "Nothing here runs these files: their answers and their speed are not known. Compare them on the device."
)


def export_table(result: Mapping[str, Any]) -> None:
    """Print the artifacts of ``kdcli export`` (export.json) beside the torch student, and what they miss.

    ``faster`` is how many times, of the same rows in turns; ``agrees`` the share of rows (of what writes text: tokens) with the
    torch student's answer, ``texts`` that of texts written just as it does; ``checks`` says whether those, the score and the
    budget are as they must be.
    """
    metric, best, shown = result["metric"], result["recommended"], _metric(result["metric"])
    texts = any("same_texts" in (entry["parity"] or {}) for entry in result["artifacts"].values())

    agrees = ["agrees", "texts"] if texts else ["agrees"]
    rows, misses = [_export_cells("torch student", metric, result["torch"], agrees)], []
    for name, entry in result["artifacts"].items():
        parity, budget = entry["parity"] or {}, entry["budget"]
        rows.append(_export_cells(("* " if name == best else "") + name, metric, entry, agrees))
        if not parity.get("within", True):
            lost = _differences(metric, parity["score_drop"])[0].removeprefix("+")
            agreed = f"agrees with the torch student on {_share(parity['agreement'])} of the {shown.item}"
            if "generated" in parity:
                agreed += f", writes {_share(parity['generated'])} of its answers,"
            if "same_texts" in parity:
                agreed += f", writes {_share(parity['same_texts'])} of its texts just as it does,"
            misses.append(f"{name}: out of tolerance: {agreed} and loses {lost} {shown.unit}")
            if parity.get("same_tokens", 1) < 1:
                same = _share(parity["same_tokens"])
                misses.append(
                    f"{name}: its own tokenizer cuts only {same} of the texts as the student's does"
                )
        for key, check in budget.items():
            if key != "met" and not check["met"]:
                misses.append(f"{name}: misses its budget: {_budget_line(key, check)}")
    misses += [f"{name}: could not be made or run" for name in result.get("failed", {})]
    columns = _export_columns(metric, agrees)
    console.table(f"{result['hardware']}, {result['test_examples']:,} test examples", columns, rows)
    if texts:
        console.say(
            f"agrees, texts: shares of {shown.item} and of whole texts written as the torch student does"
        )
    told = [f"The files were {result['note']}."] if result.get("note") else []
    if result.get("sequence_length"):
        told.append(f"Speed and memory are those of rows of {result['sequence_length']:,} tokens.")
    for line in [*told, *_stream_lines(result), *_load_lines(result), *misses]:
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


def _probability_lines(result: Mapping[str, Any]) -> list[str]:
    """One sentence on each classifier's file: how far a label's probability is from the torch student's, at most."""
    lines = []
    for name, entry in result["artifacts"].items():
        apart = (entry["parity"] or {}).get("max_abs_difference_of_probabilities")
        if apart is not None:
            most = math.ceil(apart * 1000) / 1000
            lines.append(f"{name}: no label's probability is further than {most:g} from the torch student's")
    return lines


def _stream_lines(result: Mapping[str, Any]) -> list[str]:
    """One sentence on each model that writes: how its answers come, token by token."""
    lines = []
    for name, entry in {"torch student": result["torch"], **result["artifacts"]}.items():
        if entry.get("between_tokens_ms"):
            first, later = (
                f"{_milliseconds(entry[key]['p50'])} (95 %: {_milliseconds(entry[key]['p95'])})"
                for key in ("first_token_ms", "between_tokens_ms")
            )
            lines.append(f"{name}: an answer's first token in {first}, then one each {later}")
    return lines


def _load_lines(result: Mapping[str, Any]) -> list[str]:
    """One sentence on each artifact that was asked raw texts at stated rates."""
    lines = []
    for name, entry in result["artifacts"].items():
        if load := entry.get("load"):
            at = []
            for rate in load["rates"]:
                late = "" if rate["busy"] < 1 else " (falls behind)"
                at.append(
                    f"{_milliseconds(rate['latency_ms']['p95'])} at {rate['requests_per_s']:g} a second{late}"
                )
            line = f"{name}: from raw text to answer, 95 % of requests within {', '.join(at)}"
            if load["limit_ms"] is not None:
                most = load["most_requests_per_s"]
                kept = "no rate keeps" if most is None else f"up to {float(f'{most:.2g}'):,g} a second keep"
                line += f"; {kept} {load['limit_ms']:g} ms"
            lines.append(line)
    return lines


def _quantization_table(metric: str, compared: Mapping[str, Any]) -> None:
    """What the stage with rounded weights is worth: the files beside those of the student before it."""
    before, precision = _score(metric, compared["score"]), compared["precision"]
    console.table(
        f"trained in {precision}, against rounded after training; kept: of {before}, the student's in fp32 before that stage",
        ["", "quantization-aware", "kept", "post-training", "kept"],
        [
            [
                name,
                *(
                    cell
                    for own in pair.values()
                    for cell in (_score(metric, own["score"]), _share(own["kept"]))
                ),
            ]
            for name, pair in compared["artifacts"].items()
        ],
    )


def _export_columns(metric: str, agrees: Sequence[str]) -> list[str]:
    """What `_export_cells` holds; where the time to the first token is not all of it, nothing is called faster by it."""
    shown = _metric(metric)
    faster = [] if shown.compact else ["faster"]
    return ["file", shown.name, "size", shown.latency, *faster, "memory", *agrees, "checks"]


def _export_cells(name: str, metric: str, entry: Mapping[str, Any], agrees: Sequence[str]) -> list[str]:
    """A line of an export's table; that of the torch student has nothing to agree with."""
    speed, faster = entry.get("latency_ms") or {}, _number(entry.get("times_faster"))
    cost = [_bytes(entry.get("bytes")), _milliseconds(speed.get("p50"))]
    if not _metric(metric).compact:
        cost.append("" if faster is None else f"{faster:.1f} x")
    cost.append(_bytes(entry.get("peak_memory_bytes")))
    parity = entry.get("parity")
    if parity is None:
        checks = "not run" if "parity" in entry else ""
        return [name, _score(metric, entry.get("score")), *cost, *("" for _ in agrees), checks]
    shares = [_share(parity.get(key)) for key in ("agreement", "same_texts")[: len(agrees)]]
    good = parity["within"] and entry["budget"]["met"]
    return [name, _score(metric, entry.get("score")), *cost, *shares, "ok" if good else "MISSED"]


def targets_table(jobs: Sequence[Mapping[str, Any]]) -> None:
    """Print the files of several exports side by side, and which of all is the best: the smallest within tolerance and budget.

    A job has ``overrides`` (the words, one string) and either what export.json holds, or ``message`` (why it failed).
    """
    words = [job["overrides"].split() for job in jobs]
    told = [
        " ".join(word.removeprefix("hardware=") for word in line if not all(word in other for other in words))
        or " ".join(word.removeprefix("hardware=") for word in line)
        for line in words
    ]
    done = [(name, job) for name, job in zip(told, jobs, strict=True) if "artifacts" in job]
    if done:
        first = done[0][1]
        metric = first["metric"]
        good = [
            (entry["bytes"], name, file)
            for name, job in done
            for file, entry in job["artifacts"].items()
            if (entry["parity"] or {}).get("within") and entry["budget"]["met"]
        ]
        best = min(good, default=None)
        rows = [_export_cells("torch student", metric, first["torch"], ["agrees"])]
        for name, job in done:
            for file, entry in job["artifacts"].items():
                mark = "* " if best is not None and best[1:] == (name, file) else ""
                rows.append(_export_cells(f"{mark}{name} {entry['precision']}", metric, entry, ["agrees"]))
        columns = ["target", *_export_columns(metric, ["agrees"])[1:]]
        console.table(f"all targets, {first['test_examples']:,} test examples", columns, rows)
        if best is None:
            console.say("No artifact is within tolerance and budget.", style="bold")
        else:
            console.say("* best: the smallest within tolerance and budget")
    for name, job in zip(told, jobs, strict=True):
        if "message" in job:
            console.say(f"{name}: {job['message']}")
        elif job.get("note"):
            console.say(f"{name}: its files were {job['note']}")


def _budget_line(key: str, check: Mapping[str, Any]) -> str:
    """A limit that is not met, and what there is of it."""
    show: Callable[[Any], str] = _bytes if "bytes" in key else _milliseconds if "_ms_" in key else _share
    verb = "needs" if key.startswith("max") else "has"
    value = f"what it {verb} is not known" if check["value"] is None else f"it {verb} {show(check['value'])}"
    return f"{key} is {show(check['limit'])}, and {value}"


def sweep_table(rows: Sequence[Mapping[str, Any]]) -> None:
    """Print the runs of a sweep to stdout.

    A row has ``overrides`` (the words, one string) and either ``message`` (why the run failed) or ``metric``,
    ``score`` (on the test split), ``validation_score``, ``retention``, ``gain_over_control`` and
    ``gain_ci95``, each of which may be None, and ``smoke``. The best is marked by validation score alone: the
    test score of a run that was picked by it would flatter that run.
    """
    words = [row["overrides"].split() for row in rows]
    shared = [w for w in words[0] if all(w in others for others in words)] if len(rows) > 1 else []
    names = [" ".join(w for w in line if w not in shared) or "(as it is)" for line in words]
    metric = next((row["metric"] for row in rows if "metric" in row), "score")
    validation = [_number(row.get("validation_score")) for row in rows]
    best = max((score for score in validation if score is not None), default=None)
    said = {"no evidence": "unclear", "unknown": "n/a"}
    cells = []
    for name, row, score in zip(_short(names), rows, validation, strict=True):
        if "message" in row:
            cells.append([name, "n/a", "n/a", "n/a", "n/a", "failed"])
            continue
        name = f"* {name}" if score is not None and score == best else name
        tested, kept = _score(metric, row.get("score")), _share(row.get("retention"))
        found = "smoke" if row.get("smoke") else finding(row)
        cells.append([name, _score(metric, score), tested, kept, _gain(metric, row), said.get(found, found)])
    title = f"{len(rows)} runs" + (f" with {' '.join(shared)}" if shared else "")
    console.table(title, ["overrides", "val.", "test", "kept", "gain (95 %)", "teacher"], cells)
    if best is None:
        console.say("No run has a validation score, so none is marked as the best.")
    else:
        console.say("* best by validation score; test scores are for reporting, not for choosing")
    shown = _metric(metric)
    if shown.compact:
        better = shown.better or "higher is better"
        console.say(f"val. and test: {shown.name} ({better}); gain: {shown.unit}, higher is better")
    for full, row in zip(names, rows, strict=True):
        if "message" in row:
            console.say(f"{full} failed: {row['message']}")


def _short(names: Sequence[str]) -> list[str]:
    """``loss.soft_label.temperature=2`` as ``temperature=2``, if no other key of the sweep ends so."""
    keys = {word.partition("=")[0] for name in names for word in name.split()}
    ends = [key.rpartition(".")[2] for key in keys]
    unclear = {key for key in keys if ends.count(key.rpartition(".")[2]) > 1}

    def short(word: str) -> str:
        key, equals, value = word.partition("=")
        return word if key in unclear else key.rpartition(".")[2] + equals + value

    return [" ".join(map(short, name.split())) for name in names]


def _gain(metric: str, verdict: Mapping[str, Any]) -> str:
    """``+2.9 [+1.9, +3.9]``: the gain over the control with its interval."""
    gain, (low, high) = _number(verdict.get("gain_over_control")), _pair(verdict.get("gain_ci95"))
    if gain is None:
        return "n/a"
    if low is None or high is None:
        return _differences(metric, gain)[0]
    return "{} [{}, {}]".format(*_differences(metric, gain, low, high))


# --- the model card ---


class _Card(NamedTuple):
    """What the card of a task says in its own words."""

    tag: str
    """The hub's name of the task."""
    metrics: list[str]
    kind: str
    use: str
    """Python; INPUT stands for a text."""
    figures: str
    copied: str
    """What the student shares with its teacher, ahead of the share."""
    limits: str
    labelled: str


_CARDS = {
    "classification": _Card(
        tag="text-classification",
        metrics=["accuracy", "f1"],
        kind="text classifier",
        use="""from transformers import pipeline
classify = pipeline("text-classification", model="path/to/this/directory")
print(classify("A text to classify."))""",
        figures="""p50 is the latency
of one row at a time on the machine of the run. ECE is the expected calibration error: 0 is best.""",
        copied="It gives the teacher's answer to {} of the test rows.",
        limits="Scores are averages: single classes can be much worse, see the run's `report.json`.",
        labelled="kept their gold label",
    ),
    "token_classification": _Card(
        tag="token-classification",
        metrics=["f1", "precision", "recall"],
        kind="token classifier",
        use="""from transformers import pipeline
tag = pipeline("token-classification", model="path/to/this/directory", aggregation_strategy="first")
print(tag("A text with names in it ."))""",
        figures="""F1, precision and
recall are those of whole entities: type, first and last word. p50 is the latency of one row at a time on the machine
of the run.""",
        copied="It gives the teacher's tag to {} of the test words.",
        limits="Scores are averages: single types can be much worse, see the run's `report.json`.",
        labelled="kept their gold tags",
    ),
    "causal_lm": _Card(
        tag="text-generation",
        metrics=["perplexity"],
        kind="language model",
        use="""from transformers import AutoModelForCausalLM, AutoTokenizer
path = "path/to/this/directory"
tokenizer = AutoTokenizer.from_pretrained(path)
model = AutoModelForCausalLM.from_pretrained(path)
inputs = tokenizer("A prompt as in the training data.", return_tensors="pt")
output = model.generate(**inputs, max_new_tokens=128)
print(tokenizer.decode(output[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True))""",
        figures="""Perplexity
is exp of minus the mean log-probability of a reference token: 1 would be certainty, lower is better; models
with other tokenizers cannot be compared by it. KL is in nats a token, 0 is the teacher itself. Times are those
of one prompt at a time on the machine of the run.""",
        copied="Its most likely token is the teacher's at {} of the places in the references.",
        limits="""It can write what is false, offensive or endless. Perplexity is measured on references: it says little
  about what the model writes on its own, so read some of that (the run's `report.html`).""",
        labelled="have a reference",
    ),
    "seq2seq": _Card(
        tag="translation",
        metrics=["bleu", "chrf"],
        kind="sequence-to-sequence model",
        use="""from transformers import AutoModelForSeq2SeqLM, AutoTokenizer
path = "path/to/this/directory"
tokenizer = AutoTokenizer.from_pretrained(path)
model = AutoModelForSeq2SeqLM.from_pretrained(path)
text = INPUT
inputs = tokenizer(text, return_tensors="pt")
output = model.generate(**inputs, num_beams=1, max_new_tokens=128)
print(tokenizer.decode(output[0], skip_special_tokens=True))""",
        figures="""BLEU and chrF
are sacrebleu's, from 0 to 100, of greedy translations (beam BLEU: of beam search). Perplexity is that of the
references, copies are translations that are their source. Times are those of one sentence at a time, translated
greedily, on the machine of the run.""",
        copied="Its most likely token is the teacher's at {} of the places in the references.",
        limits="""A translation can be fluent and wrong: it can leave out, add, repeat, mix up names and numbers, or turn a meaning
  round. BLEU and chrF count what is shared with one reference and see none of that, so read some translations
  (the worst stand in the run's `report.html`). It works in one direction, from the source language to the target language.""",
        labelled="have a reference",
    ),
}


_CHAT = """from transformers import pipeline
write = pipeline("text-generation", "path/to/this/directory")
asked = [{"role": "user", "content": "A question like those it was trained on."}]
print(write(asked, max_new_tokens=128, do_sample=False, return_full_text=False)[0]["generated_text"])"""
"""How a language model is used that has learnt conversations: its chat template writes the prompt."""


def model_card(report: Report, extra: Mapping[str, Any]) -> str:
    """README.md of the student's directory, with the front matter that the Hugging Face hub reads.

    ``extra``: ``teacher``, ``student``, ``dataset`` (names), ``base_model`` (hub id that the student started
    from, or None), ``kdcli_version``; ``chat``: it has learnt conversations.
    """
    import yaml

    card, metric = _CARDS[report["task"]], report["metric"]
    front: dict[str, Any] = {
        "library_name": "transformers",
        "pipeline_tag": card.tag,
        "tags": [card.tag, "knowledge-distillation", "kdcli"],
        "metrics": card.metrics,
    }
    if extra.get("base_model"):
        front["base_model"] = extra["base_model"]
    models, dataset = _models(report), report["dataset"]
    student = models["student"]
    teacher, name, data = (_markdown(extra[key]) for key in ("teacher", "student", "dataset"))
    details = [(name, cells) for _, name, cells in _details(metric, models) if name]
    columns = [*_columns(metric), *(name for name, _ in details)]
    rows = [row + [cells[i] for _, cells in details] for i, row in enumerate(_rows(metric, models))]
    table = [columns, ["---"] + ["---:"] * (len(columns) - 1), *rows]
    labels = [_markdown(label) for label in report["labels"]]
    listed = (
        f" It tells {len(labels)} classes apart: "
        + ", ".join(labels[:50])
        + (f" and {len(labels) - 50} more" if len(labels) > 50 else "")
        + "."
    )
    losses = [
        f"{_markdown(term)} (" + ", ".join(f"{_markdown(k)} {_markdown(v)}" for k, v in options.items()) + ")"
        for term, options in report["loss"].items()
    ]
    agreement = _share(report["verdict"].get("agreement"))
    copied = "" if agreement == "n/a" else " " + card.copied.format(agreement)
    started = f" It started from {_code(extra['base_model'])}." if extra.get("base_model") else ""
    train, labelled, validation = (f"{dataset[split]:,}" for split in ("train", "labelled", "validation"))
    cleaned = _cleaned(dataset.get("dropped") or {})
    sample = json.dumps(
        f"{dataset.get('prefix') or ''}A text like those it was trained on.", ensure_ascii=False
    )
    signed = "\n".join(f"- {name}: {_markdown(text)}" for name, text in _signatures(report))
    return f"""---
{yaml.safe_dump(front, sort_keys=False).strip()}
---

# {name}

**{_markdown(verdict_text(report))}**

A {card.kind} of {_count(student.get("parameters"))} parameters, distilled from {teacher} on {data}
with kdcli {extra["kdcli_version"]}.{started}{listed if labels else ""}

## Use

```python
{_CHAT if extra.get("chat") else card.use.replace("INPUT", sample)}
```

## Figures

{chr(10).join("| " + " | ".join(line) + " |" for line in table)}

Measured once, after training, on {report["test_examples"]:,} test rows that neither training nor selection
saw. The control is the same student trained on the {_metric(metric).gold} alone, without the teacher. {card.figures}{signed and chr(10) * 2 + signed}

## Training

{train} training rows, of which {labelled} {card.labelled}; {validation} validation rows.{cleaned}
Loss terms: {", ".join(losses)}. Seed {report["seed"]}.
Data fingerprint `{dataset.get("fingerprint")}`.

## Limits

- The figures hold for text like that of {data}. Other domains, languages or lengths were not measured.
- A distilled model takes over its teacher's mistakes and biases.{copied}
- {card.limits}
- The licences of the teacher ({teacher}), of the data and of what the student started from were not checked
  by kdcli and may bind this model: check them before you publish or sell it.
"""


def export_card(result: Mapping[str, Any], report: Report, runs: Sequence[tuple[Path, str]]) -> str:
    """README.md of the folder that ``kdcli export`` makes: what its files are worth, where they were measured, how to run them.

    ``result`` is what export.json holds, ``report`` the run's report.json, ``runs`` the files that run an artifact, with
    their text.
    """
    import yaml

    card, metric, best = _CARDS[result["task"]], result["metric"], result["recommended"]
    front = {
        "pipeline_tag": card.tag,
        "tags": [card.tag, "knowledge-distillation", "kdcli", result["hardware"]],
    }
    texts = any("same_texts" in (entry["parity"] or {}) for entry in result["artifacts"].values())
    agrees = ["agrees", "texts"] if texts else ["agrees"]
    columns = _export_columns(metric, agrees)
    rows = [_export_cells("torch student", metric, result["torch"], agrees)]
    rows += [_export_cells(_code(name), metric, entry, agrees) for name, entry in result["artifacts"].items()]
    table = [columns, ["---"] + ["---:"] * (len(columns) - 1), *rows]
    machine = result["environment"]
    threads = f"{result['threads']} thread{'s' if result['threads'] > 1 else ''}"
    length = result["sequence_length"]
    row = f"row of {length:,} tokens" if length else "row of its own length"
    batches = " or ".join(map(str, result["batch_sizes"]))
    ran = any(entry["parity"] for entry in result["artifacts"].values())
    advice = "**None of them is within tolerance and budget.**"
    if best:
        advice = f"{_code(best)} is the smallest within tolerance and budget."
    elif not ran:
        advice = f"**{UNRUN}**"
    checked = (
        f"Each file was run by its own runtime on all {result['test_examples']:,} test rows, and its answers compared with "
        "those of the student in torch. "
    )
    if result.get("note"):
        checked += f"**They were {result['note']}.** "
    notes = [
        f"- {note}" for note in [*_probability_lines(result), *_stream_lines(result), *_load_lines(result)]
    ]
    failed = [f"- {_code(name)} could not be made or run, and is not to be used" for name in result["failed"]]
    languages = {".py": "python", ".mjs": "js", ".kt": "kotlin", ".swift": "swift"}
    used = "\n\n".join(
        f"`{file.as_posix()}`:\n\n```{languages[file.suffix]}\n{text.strip()}\n```" for file, text in runs
    )
    return f"""---
{yaml.safe_dump(front, sort_keys=False).strip()}
---

# {card.kind[0].upper()}{card.kind[1:]} for hardware={_markdown(result["hardware"])}

Files of a student of {_count(result["torch"].get("parameters"))} parameters. {_markdown(verdict_text(report))}

## Figures

{chr(10).join("| " + " | ".join(line) + " |" for line in table)}

{advice} {checked if ran else ""}Measured on {_markdown(machine["processor"])} with {threads}, one {row} at a time, tokens given: on another machine
the times are other ones. All figures, throughput in batches of {batches} rows among them, and the versions of what made and ran the files, stand in `export.json`.
{chr(10).join(["", *notes, *failed, ""]) if notes or failed else ""}
{used and f"## Use{chr(10) * 2}Without kdcli, by what the first line of each names; the rest that they import lies beside them:{chr(10) * 2}{used}{chr(10) * 2}"}## Limits

- {card.limits}
- The licences of the teacher, of the data and of what the student started from were not checked by kdcli and may bind
  these files: check them before you publish or sell them.
"""


def _cleaned(dropped: Mapping[str, int]) -> str:
    """A sentence on what cleaning left out, after a space; "" if that was nothing."""
    if not dropped:
        return ""
    reasons = ", ".join(f"{_markdown(reason)} {count:,}" for reason, count in dropped.items())
    return f" Left out were {sum(dropped.values()):,} rows ({reasons})."


def _signatures(report: Report) -> list[tuple[str, str]]:
    """How translations were made and scored: (name, sacrebleu's signature, or how wide the beam search was)."""
    names = {"bleu": "BLEU", "chrf": "chrF"}
    found = [(names.get(key, key), text) for key, text in (report.get("signature") or {}).items()]
    beams = report.get("beams") or 1
    return [*found, ("Beam search", f"{beams} beams")] if beams > 1 else found


def _markdown(value: Any) -> str:
    """Text from outside as one line of plain Markdown: no markup, no HTML, no table cell of its own, no control characters."""
    return re.sub(r"([\\`*_\[\]<>|#~&])", r"\\\1", " ".join(printable(str(value)).split()))


def _code(value: Any) -> str:
    """Text from outside as one line of code in Markdown."""
    return "`" + " ".join(printable(str(value)).split()).replace("`", "'").replace("|", "¦") + "`"


# --- the files of a run ---


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
    """The page: one text that needs no network."""
    from jinja2 import Environment, StrictUndefined

    env_path = run_dir / "env.json"
    remedy = "remove it, and the page is written without it"
    environment = _clean(read_json(env_path, dict, remedy)) if env_path.exists() else {}
    jinja = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    template = jinja.from_string(Path(__file__).with_name("report.html.jinja").read_text(encoding="utf-8"))
    metrics = _read_metrics(run_dir / "metrics.jsonl")
    return template.render(_page(report, metrics, environment, run_dir.name))


def _clean(value: Any) -> Any:
    """The JSON value with NaN and infinities, which Python writes but nobody can draw, as None."""
    if isinstance(value, dict):
        return {key: _clean(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_clean(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _read_metrics(path: Path) -> list[dict[str, Any]]:
    """The log's records, without the half line of a killed run; of what a resumed run repeats, the last."""
    records: dict[tuple[str, int, bool], dict[str, Any]] = {}
    for record in read_metrics(path):
        records[record["stage"], record["step"], "eval/score" in record] = record
    return sorted(records.values(), key=lambda record: record["step"])


def _page(
    report: Report, metrics: list[dict[str, Any]], environment: Mapping[str, Any], run: str
) -> dict[str, Any]:
    """Everything the template shows, as text, numbers and finished SVGs."""
    metric, models, verdict = report["metric"], _models(report), report["verdict"]
    shown, classes = _metric(metric), _classes(report["labels"], models)
    kept, gain = _share(verdict.get("retention")), _number(verdict.get("gain_over_control"))
    gained = "n/a" if gain is None else _differences(metric, gain)[0]
    certainty = f"95 %: {_interval(metric, verdict.get('gain_ci95'), sign=True)}"
    if chance := _chance(verdict.get("gain_p")):
        certainty += f", {chance}"
    if shown.compact:
        certainty = f"{shown.unit}; {certainty}"
    elif gain is not None:
        gained += f" {shown.unit}"
    tiles = [
        ("kept", kept, f"of {shown.share_of}"),
        ("smaller", *_ratio(verdict.get("compression"), "parameters")),
        ("faster", *_ratio(verdict.get("speedup"), shown.rates)),
        ("gain over control", gained, certainty if "control" in models else "no control"),
        ("agreement", _share(verdict.get("agreement")), shown.same_answer),
        *shown.tiles(report),
    ]
    return {
        "run": run,
        "report": report,
        "shown": shown,
        "signatures": _signatures(report),
        "dataset": dict(_dataset(report["dataset"])),
        "verdict": verdict_text(report),
        "finding": "smoke" if report.get("smoke") else finding(verdict).replace(" ", "-"),
        "tiles": tiles,
        "figures": _figures(report),
        "bars": _bars(shown, models),
        "scores": _score_plot(metric, models),
        "gain": _gain_plot(metric, verdict),
        "curves": list(_curves(metrics)),
        "validation": _validation_plot(metric, metrics),
        "calibration": _calibration_plot(models),
        "ece": [
            (f"{name}, ECE {_score('ece', m.get('scores', {}).get('ece'))}", name)
            for name, m in models.items()
        ],
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
        "environment": list(_flat(environment)),
        "models": list(models),
        "compared": list(_compared(report)),
        "generations": _generations(report.get("generations") or []),
        "translations": _translations(report.get("translations") or {}),
        "asked": list(_asked(report["endpoint"])) if "endpoint" in report else [],
        "answers": _answers(report["endpoint"]) if "endpoint" in report else [],
    }


def _dataset(dataset: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """The data set as lines of the page, without what is not set; what was left out has a line a reason."""
    for key, value in dataset.items():
        if isinstance(value, Mapping):
            what = key.replace("_", " ")
            yield what, f"{sum(value.values()):,}"
            yield from ((f"{what}: {reason}", f"{count:,}") for reason, count in value.items())
        elif value is not None and value != "":
            yield key, f"{value:,}" if isinstance(value, int) else value


def _written(one: Mapping[str, Any]) -> list[tuple[str, str, str]]:
    """What there is to a row: (whose text it is, its colour, text)."""
    colours = {"reference": "muted"} | {name: name for name in MODELS}
    return [(name, ink, _cut(one[name])) for name, ink in colours.items() if name in one]


def _cut(value: Any) -> str:
    """A text as it can be shown on the page."""
    plain = str(value or "").encode(errors="replace").decode().strip()
    return plain if len(plain) <= _MAX_TEXT else plain[:_MAX_TEXT].rstrip() + " …"


def _generations(generations: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """What the models wrote after some prompts."""
    return [{"prompt": _cut(one.get("prompt")), "texts": _written(one)} for one in generations]


def _translations(translations: Mapping[str, Sequence[Mapping[str, Any]]]) -> list[dict[str, Any]]:
    """The student's worst and best translations, with the other models'."""
    return [
        {
            "title": f"The student's {len(chosen)} {name}",
            "rows": [
                {
                    "source": _cut(one.get("source")),
                    "score": _score("bleu", one.get("score")),
                    "texts": _written(one),
                }
                for one in chosen
            ],
        }
        for name in ("worst", "best")
        if (chosen := translations.get(name))
    ]


def _ratio(value: Any, what: str) -> tuple[str, str]:
    number = _number(value)
    return ("n/a", "not known") if not number else (f"{_times(number)}\N{MULTIPLICATION SIGN}", what)


def _details(metric: str, models: Mapping[str, Mapping[str, Any]]) -> list[tuple[str, str, list[str]]]:
    """Further figures that any model has: (name on the page, name on the card, one cell a model)."""
    found = [
        (name, on_card, [text(model.get("scores", {})) for model in models.values()])
        for name, on_card, text in _metric(metric).details
    ]
    return [detail for detail in found if set(detail[2]) != {"n/a"}]


def _figures(report: Report) -> list[tuple[str, list[str]]]:
    """The table of the page, a line a figure, so that it fits a phone: (name, one cell a model)."""
    metric, models = report["metric"], _compared(report)
    shown = _metric(metric)
    names = [
        "",
        shown.name,
        "95 % interval",
        "parameters",
        "weights",
        f"{shown.latency_of} p50",
        shown.rates,
        "memory",
    ]
    lines = list(zip(names, map(list, zip(*_rows(metric, models), strict=True)), strict=True))[1:]
    lines[2:2] = [(name, cells) for name, _, cells in _details(metric, models)]
    lines[-2:-2] = [
        (
            f"{shown.latency_of} p95",
            [_milliseconds((m.get("latency_ms") or {}).get("p95")) for m in models.values()],
        )
    ]
    return lines


def _bars(shown: _Metric, models: Mapping[str, Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Bar charts of cost: each bar is (model, text, share of the longest in %)."""
    charts: tuple[tuple[str, Callable[[Mapping[str, Any]], Any], Callable[[Any], str]], ...] = (
        ("Weights on disk", lambda m: m.get("bytes"), _bytes),
        ("Parameters", lambda m: m.get("parameters"), _count),
        (f"{shown.bars}, p50", lambda m: (m.get("latency_ms") or {}).get("p50"), _milliseconds),
        (f"{shown.bars}, p95", lambda m: (m.get("latency_ms") or {}).get("p95"), _milliseconds),
        ("Peak memory", lambda m: m.get("peak_memory_bytes"), _bytes),
        (f"{shown.rates.capitalize()} (longer is better)", lambda m: m.get("throughput_per_s"), _rate),
    )
    found = []
    for title, pick, text in charts:
        values = {name: _number(pick(model)) for name, model in models.items()}
        longest = max((value for value in values.values() if value), default=0)
        bars = [
            (name, text(value), 100 * (value or 0) / longest if longest else 0)
            for name, value in values.items()
        ]
        found.append({"title": title, "bars": bars})
    return found


def _stages(stages: Sequence[Mapping[str, Any]]) -> list[tuple[str, str, float]]:
    """Bars of the stages, their parts added up: (name, time and steps, share of the longest in %)."""
    seconds: dict[str, float] = {}
    steps: dict[str, int] = {}
    for stage in stages:
        seconds[stage["name"]] = seconds.get(stage["name"], 0.0) + (_number(stage.get("seconds")) or 0.0)
        steps[stage["name"]] = steps.get(stage["name"], 0) + (stage.get("steps") or 0)
    longest = max(seconds.values(), default=0.0) or 1.0
    return [
        (
            name,
            console.duration(took) + (f" · {steps[name]:,} steps" if steps[name] else ""),
            100 * took / longest,
        )
        for name, took in seconds.items()
    ]


def _matrix(
    name: str, labels: Sequence[str], model: Mapping[str, Any], student: Mapping[str, Any]
) -> dict[str, Any] | None:
    """A confusion matrix to draw, rows = gold: the classes that the student confuses most, if there are many.

    Cells are (count, share of the row, is it the diagonal, tooltip); ``elsewhere`` adds up what was left out.
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
    """The most frequent confusions: (gold, predicted, how often, of how many gold rows)."""
    pairs = [
        (labels[i], labels[j], n, sum(row))
        for i, row in enumerate(confusion)
        for j, n in enumerate(row)
        if n and i != j
    ]
    return sorted(pairs, key=lambda pair: -pair[2])[:most]


def _classes(labels: Sequence[str], models: Mapping[str, Mapping[str, Any]]) -> list[dict[str, Any]]:
    """F1 of each class, or type of entities, under each model, the student's worst first, those that test lacks last."""
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
            name: _number((model.get("scores", {}).get(key) or {}).get(label))
            for name, model in models.items()
        }
        if any(score is not None for score in scores.values()) or support is not None:
            cells = [(name, _score("f1", f1), 100 * (f1 or 0)) for name, f1 in scores.items()]
            rows.append({"label": label, "support": support, "cells": cells, "f1": scores["student"]})
    rows.sort(key=lambda row: (row["support"] == 0, row["f1"] if row["f1"] is not None else 2.0))
    return rows


def _flat(value: Any, prefix: str = "") -> Iterator[tuple[str, str]]:
    """Nested settings as (dotted name, text)."""
    if isinstance(value, dict):
        for key, item in value.items():
            yield from _flat(item, f"{prefix}.{key}" if prefix else str(key))
    elif isinstance(value, list):
        yield prefix, ", ".join(map(str, value))
    else:
        yield prefix, "n/a" if value is None else str(value)


# --- plots ---

_INKS = ("ink", "muted", "grid", *MODELS, *(f"term{i}" for i in range(6)))
_HEX = {
    name: f"#0000{i:02x}" for i, name in enumerate(_INKS, 1)
}  # stand-ins, replaced by CSS variables in the SVG


def _svg(name: str, draw: Callable[[Axes], None], size: tuple[float, float] = (5.2, 2.7)) -> Markup:
    """Draw one plot (``size`` in inches at 72 px) as an SVG element for an HTML page.

    Its text stays text and takes the page's font; ``name`` salts its ids, which have to differ within a page.
    The same figures give the same bytes. Neither pyplot nor the user's matplotlib settings take part.
    """
    from markupsafe import Markup
    from matplotlib import style
    from matplotlib.figure import Figure

    settings = {
        "svg.fonttype": "none",
        "svg.hashsalt": f"kdcli-{name}",
        "text.parse_math": False,  # a label called $x$ is no formula
        "font.size": 10,
        "text.color": _HEX["ink"],
        "axes.labelcolor": _HEX["muted"],
        "axes.edgecolor": _HEX["grid"],
        "axes.grid": True,
        "axes.axisbelow": True,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "grid.color": _HEX["grid"],
        "grid.linewidth": 0.8,
        "xtick.color": _HEX["grid"],
        "ytick.color": _HEX["grid"],
        "xtick.labelcolor": _HEX["muted"],
        "ytick.labelcolor": _HEX["muted"],
        "lines.linewidth": 1.8,
        "lines.solid_capstyle": "round",
    }
    with style.context(["default", settings]), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a glyph that matplotlib's font lacks: the browser's has it
        figure = Figure(figsize=size, layout="constrained")
        draw(figure.subplots())
        buffer = StringIO()
        figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None})
    text = buffer.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>|<style.*?</style>|<!--.*?-->", "", text, flags=re.DOTALL)
    text = re.sub(r' id="[a-zA-Z0-9.]+_\d+"| xmlns(:xlink)?="[^"]*"', "", text)
    text = re.sub(r'(<svg[^>]*?) height="[^"]*"', r'\1 role="img"', text, count=1)
    text = re.sub(r'(<svg[^>]*?) width="[^"]*"', r"\1", text, count=1)
    return Markup(re.sub(r"#0000([0-9a-f]{2})\b", lambda m: f"var(--{_INKS[int(m[1], 16) - 1]})", text))


def _thin(points: Sequence[tuple[float, float]]) -> tuple[list[float], list[float]]:
    """Points as x and y, averaged over equal groups of neighbours where there are more than can be seen."""
    width = math.ceil(len(points) / _MAX_POINTS) or 1
    groups = [points[i : i + width] for i in range(0, len(points), width)]
    return [group[-1][0] for group in groups], [sum(y for _, y in group) / len(group) for group in groups]


def _series(records: Sequence[Mapping[str, Any]], key: str) -> list[tuple[float, float]]:
    return [(r["step"], value) for r in records if (value := _number(r.get(key))) is not None]


def _curves(metrics: Sequence[Mapping[str, Any]]) -> Iterator[dict[str, Any]]:
    """One plot a stage with every loss term, raw, and the legend that the page sets beneath it."""
    keys = dict.fromkeys(key for record in metrics for key in record)
    terms = list(
        dict.fromkeys(key.removeprefix("eval/")[5:] for key in keys if re.match(r"(eval/)?loss/", key))
    )
    stages = sorted(
        dict.fromkeys(record["stage"] for record in metrics),
        key=lambda s: (*MODELS, _model(s)).index(_model(s)),
    )
    for stage in stages:
        records = [record for record in metrics if record["stage"] == stage]
        lines = []
        for i, term in enumerate(terms):
            train, held_out = _series(records, f"loss/{term}"), _series(records, f"eval/loss/{term}")
            if train or held_out:
                lines.append((term, f"term{i % 6}", train, held_out))
        if not lines:
            continue
        values = [y for _, _, train, held_out in lines for _, y in (*train, *held_out)]

        def draw(ax: Axes, lines: Any = lines, values: Any = values) -> None:
            for _, colour, train, held_out in lines:
                ax.plot(*_thin(train), color=_HEX[colour])
                ax.plot(
                    *_thin(held_out), color=_HEX[colour], marker="o", markersize=4, linestyle=":", linewidth=1
                )
            if min(values) > 0 and max(values) > 50 * min(values):
                ax.set_yscale("log")
                ax.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
                ax.yaxis.set_minor_formatter(lambda value, _: "")
            ax.set_xlabel("step")

        legend = [(term, colour) for term, colour, _, _ in lines]
        yield {"stage": stage, "svg": _svg(f"curve-{stage.replace('/', '-')}", draw), "legend": legend}


def _model(stage: str) -> str:
    """Whose training a stage is: a student's in parts is called student/part."""
    return stage.partition("/")[0]


def _validation_plot(metric: str, metrics: Sequence[Mapping[str, Any]]) -> dict[str, Any] | None:
    """Validation scores of every model that has them in one plot, the student against the control; parts one after the other."""
    lines: dict[str, list[tuple[float, float]]] = {}
    for model in MODELS:
        before = 0
        for stage in dict.fromkeys(r["stage"] for r in metrics if _model(r["stage"]) == model):
            records = [r for r in metrics if r["stage"] == stage]
            if points := _series(records, "eval/score"):
                lines.setdefault(model, []).extend((before + step, score) for step, score in points)
            before += max(r["step"] for r in records)
    shown, drawn = _metric(metric), list[float]()
    if not lines:
        return None

    def draw(ax: Axes) -> None:
        for stage, points in lines.items():
            xs, ys = _thin(points)
            figures = [shown.figure(y) for y in ys]
            ax.plot(xs, figures, color=_HEX[stage], marker="o" if len(xs) < 40 else "", markersize=4)
            drawn.extend(figures)
        shown.axis(ax, "y", drawn)
        ax.set_xlabel("step")

    return {"svg": _svg("validation", draw), "legend": [(stage, stage) for stage in lines]}


def _score_plot(metric: str, models: Mapping[str, Mapping[str, Any]]) -> Markup | None:
    """Test scores as points with their intervals, the student at the bottom as in the tables."""
    shown = _metric(metric)
    points = [
        (name, score, *_pair(model.get("scores", {}).get(f"{metric}_ci95")))
        for name, model in models.items()
        if (score := _number(model.get("score"))) is not None
    ]
    if not points:
        return None

    def draw(ax: Axes) -> None:
        texts = shown.texts(*(score for _, score, _, _ in points))
        drawn = []
        for y, (name, score, low, high) in enumerate(points):
            drawn += [shown.figure(value) for value in (score, low, high) if value is not None]
            figure = shown.figure(score)
            if low is not None and high is not None:
                ax.plot(
                    [shown.figure(low), shown.figure(high)], [y, y], color=_HEX[name], linewidth=3, alpha=0.45
                )
            ax.plot([figure], [y], color=_HEX[name], marker="o", markersize=8)
            ax.annotate(texts[y], (figure, y), (0, 9), textcoords="offset points", ha="center")
        ax.set_yticks(range(len(points)), [name for name, *_ in points])
        ax.set_ylim(len(points) - 0.5, -0.75)
        ax.margins(x=0.15)
        ax.grid(visible=False, axis="y")
        shown.axis(ax, "x", drawn)

    return _svg("scores", draw, (5.2, 2.1))


def _gain_plot(metric: str, verdict: Mapping[str, Any]) -> Markup | None:
    """The gain over the control against 0: does its interval exclude it?"""
    gain, (low, high) = _number(verdict.get("gain_over_control")), _pair(verdict.get("gain_ci95"))
    if gain is None or low is None or high is None:
        return None
    scale = _metric(metric).scale

    def draw(ax: Axes) -> None:
        ax.axvline(0, color=_HEX["ink"], linewidth=1.2)
        ax.plot([scale * low, scale * high], [0, 0], color=_HEX["student"], linewidth=3, alpha=0.45)
        ax.plot([scale * gain], [0], color=_HEX["student"], marker="o", markersize=8)
        text = _differences(metric, gain)[0]
        ax.annotate(text, (scale * gain, 0), (0, 9), textcoords="offset points", ha="center")
        ax.set_yticks([0], ["gain"])
        ax.set_ylim(-0.6, 0.8)
        reach = 1.25 * scale * max(abs(low), abs(high), abs(gain)) or 1.0
        ax.set_xlim(min(-0.3 * reach, 1.25 * scale * low), max(0.3 * reach, 1.25 * scale * high))
        ax.grid(visible=False, axis="y")
        ax.set_xlabel(f"{_metric(metric).unit} over the control")

    return _svg("gain", draw, (5.2, 2.1))


def _calibration_plot(models: Mapping[str, Mapping[str, Any]]) -> Markup | None:
    """Accuracy against confidence in bins: below the diagonal a model is too sure of itself."""
    lines = {}
    for name, model in models.items():
        bins = model.get("calibration") or {}
        columns = (bins.get("confidence") or [], bins.get("accuracy") or [], bins.get("count") or [])
        points = [(_number(x), _number(y), n) for x, y, n in zip(*columns, strict=True) if n]
        if points := [(x, y, n) for x, y, n in points if x is not None and y is not None]:
            lines[name] = points
    if not lines:
        return None

    def draw(ax: Axes) -> None:
        ax.plot([0, 1], [0, 1], color=_HEX["muted"], linestyle=":", linewidth=1.2)
        for name, points in lines.items():
            xs, ys, counts = zip(*points, strict=True)
            ax.plot(xs, ys, color=_HEX[name], linewidth=1.4)
            sizes = [6 + 74 * math.sqrt(n / max(counts)) for n in counts]
            ax.scatter(xs, ys, s=sizes, color=_HEX[name], linewidths=0, alpha=0.8)
        ax.set_xlim(-0.03, 1.03)
        ax.set_ylim(-0.03, 1.03)
        ax.set_xlabel("confidence")
        ax.set_ylabel("accuracy")

    return _svg("calibration", draw, (5.2, 3.4))
