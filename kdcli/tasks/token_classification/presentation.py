"""Presents the results of token classification."""

from __future__ import annotations

from kdcli.tasks.presentation import PERCENT, PLAIN, Card, Percentage, Presentation, Report
from kdcli.tasks.token_classification.scheme import scheme_of

GROUPS = '''from transformers import TokenClassificationPipeline, pipeline

PARTS = {parts}


class Tagger(TokenClassificationPipeline):
    """Groups words by the scheme of these tags, which the pipeline does not know."""

    def group_entities(self, words):
        groups, last, last_type = [], "O", ""
        for word in words:
            part, type_ = PARTS[word["entity"]]
            if part != "O" and (part in "BS" or last in "OES" or type_ != last_type):
                groups.append({{"entity_group": type_, "word": word["word"], "start": word["start"], "end": word["end"]}})
            elif part != "O":
                groups[-1] |= {{"word": groups[-1]["word"] + " " + word["word"], "end": word["end"]}}
            last, last_type = part, type_
        return groups


tag = pipeline("token-classification", model="path/to/this/directory", pipeline_class=Tagger, aggregation_strategy="first")
print(tag("A text with names in it ."))'''
"""The code for tags that the pipelines of transformers do not group."""


class EntityF1(Percentage):
    """F1 of entities: spans of words with a type."""

    item, gold, same_prediction = "words", "gold tags", "same tag as the teacher"
    support = "test entities"
    chance = "no entity anywhere"
    details = (
        ("precision", "precision", lambda scores: PERCENT.format_score(scores.get("precision"))),
        ("recall", "recall", lambda scores: PERCENT.format_score(scores.get("recall"))),
        (
            "words with the right tag",
            "right tags",
            lambda scores: PERCENT.format_score(scores.get("token_accuracy")),
        ),
        ("log-loss", "", lambda scores: PLAIN.format_score(scores.get("nll"))),
        ("calibration error", "ECE", lambda scores: PLAIN.format_score(scores.get("ece"))),
    )

    def __init__(self, key: str) -> None:
        super().__init__(key)
        self.name = "entity F1"

    def interval(self, low: float, high: float) -> str:
        """Format an interval within [0, 1], which a linearised interval can leave."""
        return super().interval(max(low, 0.0), min(high, 1.0))


class TaggerCard(Card):
    """A model card whose code groups words by the scheme of the tags."""

    def usage(self, report: Report, chat: bool, sample: str) -> str:
        """Return the code of a pipeline, with its own grouping where transformers' would be another one."""
        tags = report.get("tags") or {}
        scheme = scheme_of(report["labels"], tags.get("outside", ()))
        return self.use if scheme.standard else GROUPS.format(parts=dict(scheme.parts))


PRESENTATION = Presentation(
    metric=EntityF1("f1"),
    card=TaggerCard(
        tag="token-classification",
        metrics=("f1", "precision", "recall"),
        model="token classifier",
        use="""from transformers import pipeline
tag = pipeline("token-classification", model="path/to/this/directory", aggregation_strategy="first")
print(tag("A text with names in it ."))""",
        figures="""F1, precision and
recall are those of whole entities: type, first and last word. p50 is the latency of one row at a time on the machine
of the run.""",
        agreement="It gives the teacher's tag to {} of the test words.",
        limits="Scores are averages: single types can be much worse, see the run's `report.json`.",
        labelled="kept their gold tags",
    ),
)
