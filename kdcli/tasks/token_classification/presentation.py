"""How the results of token classification are shown."""

from __future__ import annotations

from kdcli.tasks.presentation import PERCENT, PLAIN, Card, Percentage, Presentation


class EntityF1(Percentage):
    """F1 of entities: spans of words with a type."""

    item, gold, same_answer = "words", "gold tags", "same tag as the teacher"
    support = "test entities"
    details = (
        ("precision", "precision", lambda scores: PERCENT.format_score(scores.get("precision"))),
        ("recall", "recall", lambda scores: PERCENT.format_score(scores.get("recall"))),
        (
            "words with the right tag",
            "right tags",
            lambda scores: PERCENT.format_score(scores.get("token_accuracy")),
        ),
        ("log-loss", "", lambda scores: PLAIN.format_score(scores.get("nll"))),
    )

    def __init__(self, key: str) -> None:
        super().__init__(key)
        self.name = "entity F1"

    def interval(self, low: float, high: float) -> str:
        """Within [0, 1]: a linearised interval can reach beyond."""
        return super().interval(max(low, 0.0), min(high, 1.0))


PRESENTATION = Presentation(
    metric=EntityF1("f1"),
    card=Card(
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
