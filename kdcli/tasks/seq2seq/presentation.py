"""Presents the results of translation and of other sequence-to-sequence tasks."""

from __future__ import annotations

from kdcli.numbers import format_apart, format_number, format_share
from kdcli.tasks.causal_lm.presentation import PERPLEXITY
from kdcli.tasks.presentation import PERCENT, Card, Metric, Presentation, Report, format_figure


class Bleu(Metric):
    """sacrebleu's BLEU of greedy translations, 0 to 100. chrF and BLEU of beam search are shown in the same format."""

    digits = 1
    relevant = 1.0
    chance = "a copy of the source"
    note = (
        "BLEU and chrF are sacrebleu's, from 0 to 100, over the whole test split: of greedy translations, or of beam search "
        "where it is marked. Retention is the student's BLEU over the teacher's, greedy against greedy."
    )
    compact = True
    latency, latency_of, rate, rates = "sentence", "time of a sentence", "tokens/s", "tokens per second"
    item, gold, same_prediction = "tokens", "references", "same most likely token as the teacher"
    latency_title = "Time of a sentence"
    terminal_scores = (("beam", "bleu_beam"), ("chrF", "chrf"))
    details = (
        ("BLEU, beam search", "beam BLEU", lambda scores: BLEU.format_score(scores.get("bleu_beam"))),
        ("chrF", "chrF", lambda scores: BLEU.format_score(scores.get("chrf"))),
        ("chrF, beam search", "", lambda scores: BLEU.format_score(scores.get("chrf_beam"))),
        (
            "perplexity of the references",
            "perplexity",
            lambda scores: PERPLEXITY.format_score(scores.get("log_prob")),
        ),
        ("token accuracy", "", lambda scores: PERCENT.format_score(scores.get("token_accuracy"))),
        ("KL to the teacher, nats a token", "", lambda scores: format_figure(scores.get("kl_to_teacher"))),
        ("length over the references'", "", lambda scores: format_figure(scores.get("length_ratio"))),
        ("copies of the source", "copies", lambda scores: PERCENT.format_score(scores.get("copied"))),
    )

    def __init__(self, key: str) -> None:
        super().__init__(key)
        self.name = self.unit = "BLEU"

    def texts(self, *scores: float) -> list[str]:
        return format_apart(*scores, digits=1)

    def of_beam(self, report: Report) -> tuple[float, float] | None:
        """Return the student's greedy BLEU as a share of what the teacher reaches by beam search, and the latter."""
        own, beam = (
            format_number(value)
            for value in (
                (report["models"].get("student") or {}).get("score"),
                ((report["models"].get("teacher") or {}).get("scores") or {}).get("bleu_beam"),
            )
        )
        return (own / beam, beam) if own is not None and beam else None

    def remark(self, report: Report) -> str:
        retained = self.of_beam(report)
        if retained is None:
            return ""
        share, beam = retained
        return f"; its greedy BLEU is {format_share(share)} of the teacher's by beam search ({self.texts(beam)[0]})"

    def tiles(self, report: Report) -> list[tuple[str, str, str]]:
        retained = self.of_beam(report)
        if retained is None:
            return []
        share, beam = retained
        return [
            (
                "of beam search",
                format_share(share),
                f"of the teacher's BLEU by beam search, {self.texts(beam)[0]}",
            )
        ]


BLEU: Metric = Bleu("bleu")
PRESENTATION = Presentation(
    metric=BLEU,
    card=Card(
        tag="translation",
        metrics=("bleu", "chrf"),
        model="sequence-to-sequence model",
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
        agreement="Its most likely token is the teacher's at {} of the places in the references.",
        limits="""A translation can be fluent and wrong: it can leave out, add, repeat, mix up names and numbers, or turn a meaning
  round. BLEU and chrF count what is shared with one reference and see none of that, so read some translations
  (the worst stand in the run's `report.html`). It works in one direction, from the source language to the target language.""",
        labelled="have a reference",
    ),
    score_names={"bleu": "BLEU", "chrf": "chrF"},
)
