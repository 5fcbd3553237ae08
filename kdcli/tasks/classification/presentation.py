"""Presents the results of text classification."""

from __future__ import annotations

from kdcli.tasks.presentation import PERCENT, PLAIN, Card, Percentage, Presentation


class Accuracy(Percentage):
    """Accuracy, shown with macro F1, log-loss and calibration error."""

    chance = "the most frequent label"
    details = (
        ("macro F1", "macro F1", lambda scores: PERCENT.format_score(scores.get("macro_f1"))),
        ("log-loss", "", lambda scores: PLAIN.format_score(scores.get("nll"))),
        ("calibration error", "ECE", lambda scores: PLAIN.format_score(scores.get("ece"))),
    )


class MacroF1(Percentage):
    """Macro F1, the mean over the classes, shown with accuracy, log-loss and calibration error."""

    details = (
        ("accuracy", "accuracy", lambda scores: PERCENT.format_score(scores.get("accuracy"))),
        *Accuracy.details[1:],
    )

    def __init__(self, key: str) -> None:
        super().__init__(key)
        self.name = "macro F1"


PRESENTATION = Presentation(
    metric=Accuracy("accuracy"),
    further=(MacroF1("macro_f1"),),
    card=Card(
        tag="text-classification",
        metrics=("accuracy", "f1"),
        model="text classifier",
        use="""from transformers import pipeline
classify = pipeline("text-classification", model="path/to/this/directory")
print(classify("A text to classify."))""",
        figures="""p50 is the latency
of one row at a time on the machine of the run. ECE is the expected calibration error: 0 is best.""",
        agreement="It predicts the teacher's label for {} of the test rows.",
        limits="Scores are averages: single classes can be much worse, see the run's `report.json`.",
        labelled="kept their gold label",
    ),
)
