"""Presents the results of causal language modelling."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

from kdcli.numbers import (
    format_apart,
    format_count,
    format_number,
    format_pair,
    format_share,
    format_significant,
    format_times,
)
from kdcli.tasks.presentation import (
    BASELINE,
    PERCENT,
    Card,
    Metric,
    Presentation,
    Report,
    format_figure,
    outcome_of,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes


class Perplexity(Metric):
    """The mean log-probability of a reference token, which people read as perplexity: its exp(-score)."""

    digits = 2
    chance = "the frequencies of the tokens"
    better = "lower is better"
    note = (
        "Perplexity is exp of minus the mean log-probability of a reference token: 1 is certainty, lower is better. "
        "What the student keeps of its teacher's probability of a reference token is a geometric mean over tokens."
    )
    compact = True
    latency, latency_of, rate, rates = "first token", "time to first token", "tokens/s", "tokens per second"
    item, gold, same_prediction = "tokens", "references", "same most likely token as the teacher"
    latency_title = "Time to first token"
    joint = ". It is"
    details = (
        ("log-probability, nats a token", "", lambda scores: format_figure(scores.get("log_prob"))),
        (
            "token accuracy",
            "token accuracy",
            lambda scores: PERCENT.format_score(scores.get("token_accuracy")),
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
            lambda scores: PERCENT.format_score(scores.get("distinct_2")),
        ),
        (
            "repeated 4-grams, generations",
            "",
            lambda scores: PERCENT.format_score(scores.get("repetition")),
        ),
    )
    share_of = "the teacher's probability of a reference token"

    def __init__(self, key: str) -> None:
        super().__init__(key)
        self.name, self.unit = "perplexity", "nats a token"

    def figure(self, score: float) -> float:
        return min(math.exp(min(-score, 99.0)), 1e15)  # larger perplexities are indistinguishable

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

    def retention_sentence(self, student: float, teacher: float, retention: float | None) -> str:
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

    def gain_clause(
        self, student: float | None, control: float | None, gain: str, interval: str, over: str
    ) -> str:
        if student is None or control is None:
            return super().gain_clause(student, control, gain, interval, over)
        own, other = self.texts(student, control)
        return f"perplexity {own} against {other} for {BASELINE} ({gain} {self.unit}, {interval})"

    def divergence_clause(self, verdict: Mapping[str, Any]) -> str:
        own, gain = (format_number(verdict.get(key)) for key in ("kl_to_teacher", "kl_gain_over_control"))
        if own is None or gain is None:
            return ""
        low, high = format_pair(verdict.get("kl_gain_ci95"))
        nearer, further = low is not None and low > 0, high is not None and high < 0
        side = "nearer to" if nearer else "further from" if further else "not clearly nearer to"
        outcome, difference = outcome_of(verdict), format_number(verdict.get("gain_over_control"))
        better = outcome == "helped" or (outcome == "not_enough" and (difference or 0.0) > 0)
        joint = "and" if nearer == better else "but"
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


PERPLEXITY = Perplexity("log_prob")
PRESENTATION = Presentation(
    metric=PERPLEXITY,
    card=Card(
        tag="text-generation",
        metrics=("perplexity",),
        model="language model",
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
        agreement="Its most likely token is the teacher's at {} of the places in the references.",
        limits="""It can write what is false, offensive or endless. Perplexity is measured on references: it says little
  about what the model writes on its own, so read some of that (the run's `report.html`).""",
        labelled="have a reference",
        use_of_chat="""from transformers import pipeline
generate = pipeline("text-generation", "path/to/this/directory")
messages = [{"role": "user", "content": "A question like those it was trained on."}]
print(generate(messages, max_new_tokens=128, do_sample=False, return_full_text=False)[0]["generated_text"])""",
    ),
)
