"""Defines text classification: one label per row, of one text or of a pair."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, ClassVar, Self

import datasets
import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

from kdcli.config.measure import Measure
from kdcli.config.tasks import TaskSpec
from kdcli.signals import Signal, TopKSignal
from kdcli.tasks.base import Predictions, Task
from kdcli.tasks.calibration import calibration
from kdcli.tasks.classification.presentation import PRESENTATION
from kdcli.tasks.classification.rows import ClassificationRows
from kdcli.tasks.classification.spec import SPEC
from kdcli.tasks.classification.trivial import TfidfClassifier
from kdcli.tasks.encoded import Encoded, padded
from kdcli.tasks.mistakes import COMPARED, RowPredictions, mistakes
from kdcli.tasks.rows import RowSchema
from kdcli.tasks.trivial import TrivialModel

LARGEST_MATRIX = 1000
"""The maximum number of classes of a confusion matrix: one of 100,000 classes would need 80 GB."""
CHUNK = 1000
"""The number of rows in a call of the tokenizer."""
SURE = 100.0
"""The logit of a class whose probability is 1."""
IMBALANCED = 0.8
"""The share of the most frequent label above which accuracy hardly distinguishes models."""


class Classification(Task):
    """Every row is one position; the headline metric is accuracy, or macro F1 (`metric=macro_f1`)."""

    metric = "accuracy"
    further_metrics = ("macro_f1",)
    chance_is = "the most frequent label's share"
    spec: ClassVar[TaskSpec] = SPEC
    row_schema: ClassVar[type[RowSchema]] = ClassificationRows
    presentation = PRESENTATION
    head = ("ForSequenceClassification",)
    batch = 64
    auto = "AutoModelForSequenceClassification"
    calibrates = True
    regularized = True

    def choose_metric(self, metric: str | None) -> Self:
        """Return the task with another metric. With macro F1, which is no mean over rows, chance is the macro F1 of a model that always predicts one label."""
        super().choose_metric(metric)
        if self.metric == "macro_f1":
            self.corpus, self.chance_is = True, "the macro F1 of the best single label"
        return self

    def configure(self, config: PreTrainedConfig) -> PreTrainedConfig:
        """Set the number and the names of the labels."""
        config.id2label = dict(enumerate(self.labels))
        config.label2id = {name: index for index, name in enumerate(self.labels)}
        config.problem_type = "single_label_classification"
        return config

    def encode(self, tokenizer: PreTrainedTokenizerBase, rows: Any, max_length: int) -> Encoded:
        """Return token ids, segment ids if the tokenizer returns them, and one label for each row."""
        pairs = "text_pair" in rows.column_names
        texts, seconds = rows["text"], rows["text_pair"] if pairs else None
        keys = [key for key in tokenizer.model_input_names if key != "attention_mask"]
        flat: dict[str, list[np.ndarray]] = {key: [] for key in keys}
        lengths: list[int] = []
        for start in range(0, len(rows), CHUNK):
            at = slice(start, start + CHUNK)
            chunk = tokenizer(
                list(texts[at]),
                list(seconds[at]) if seconds is not None else None,
                truncation=True,
                max_length=max_length,
                return_attention_mask=False,
            )
            lengths += [len(ids) for ids in chunk["input_ids"]]
            for key in keys:
                flat[key] += [np.asarray(ids, np.int32) for ids in chunk[key]]
        columns = {
            key: np.concatenate(parts) if parts else np.empty(0, np.int32) for key, parts in flat.items()
        }
        votes = rows["votes"][:] if "votes" in rows.column_names else None
        return Encoded(columns, np.cumsum([0, *lengths]), np.asarray(rows["label"][:], np.int64), votes=votes)

    def collate(
        self, features: Sequence[dict[str, Any]], tokenizer: PreTrainedTokenizerBase
    ) -> dict[str, Tensor]:
        """Return right-padded inputs (B, L), `labels` (B,) and `rows` (B,)."""
        batch = padded(features, tokenizer.model_input_names, tokenizer)
        batch["labels"] = torch.tensor([int(feature["label"]) for feature in features])
        return batch

    def soft_gold(self, features: Sequence[dict[str, Any]]) -> dict[str, Tensor]:
        """Return the share of each label among the votes for a row; zeros for a row without one."""
        if not features or "votes" not in features[0]:
            return {}
        votes = torch.zeros(len(features), len(self.labels))
        for row, feature in zip(votes, features, strict=True):
            if len(feature["votes"]):
                row += torch.bincount(torch.tensor(feature["votes"]), minlength=len(row)) / len(
                    feature["votes"]
                )
        return {"votes": votes}

    def positions(self, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Select all rows: (B,) -> (B,), (B,)."""
        return torch.arange(len(labels), device=labels.device), labels

    def signal(self, model: PreTrainedModel, inputs: Mapping[str, Tensor], pick: Tensor) -> Signal:
        """Return the logits of the rows, fp32."""
        return Signal(model(**inputs).logits[pick].float())

    def targets(self, encoded: Encoded) -> tuple[np.ndarray, np.ndarray]:
        """Return one label for each row."""
        assert encoded.labels is not None
        return encoded.labels, np.ones(len(encoded), np.int64)

    def inputs(self, rows: datasets.Dataset, tokenizer: PreTrainedTokenizerBase) -> list[list[str]]:
        """Return the text, or the text and its pair."""
        columns = ["text", "text_pair"] if "text_pair" in rows.column_names else ["text"]
        return [list(texts) for texts in zip(*(rows[name][:] for name in columns), strict=True)]

    def reduce_outputs(
        self, outputs: Signal | TopKSignal, labels: Tensor, teacher: Signal | TopKSignal | None
    ) -> dict[str, Tensor]:
        """Return the logits."""
        assert isinstance(outputs, Signal)
        return {"logits": outputs.logits.float()}

    def agreement(self, first: Predictions, second: Predictions) -> np.ndarray:
        """Return where both predict the same label."""
        return first["logits"].argmax(1) == second["logits"].argmax(1)

    def divergence(self, teacher: Predictions, student: Predictions) -> np.ndarray:
        """Return KL(teacher ‖ student) over the labels."""
        log_p, log_q = (log_softmax(predictions["logits"]) for predictions in (teacher, student))
        return (np.exp(log_p) * (log_p - log_q)).sum(1)

    def chance(self, predictions: Predictions, classes: int) -> float:
        """Return the share of the most frequent label, or the macro F1 of a model that always predicts it."""
        counts = np.bincount(predictions.labels)
        if self.metric == "macro_f1":
            best = 2 * counts.max() / (counts.max() + len(predictions.labels))
            return float(best / (counts > 0).sum())
        return float(counts.max() / len(predictions.labels))

    def chance_predictions(self, predictions: Predictions) -> Predictions | None:
        """Predict the most frequent label everywhere."""
        logits = np.zeros_like(predictions["logits"])
        logits[:, np.bincount(predictions.labels).argmax()] = SURE
        return replace(predictions, arrays=predictions.arrays | {"logits": logits})

    def balanced(self, predictions: Predictions) -> Task | None:
        """Return the task with macro F1, if one class has more than `IMBALANCED` of the rows."""
        imbalanced = self.metric == "accuracy" and self.chance(predictions, len(self.labels)) > IMBALANCED
        return Classification(self.labels).choose_metric("macro_f1") if imbalanced else None

    def scores(self, predictions: Predictions) -> dict[str, Any]:
        """Compute accuracy, macro F1, the share of the most frequent label (`majority`), negative log-likelihood, expected calibration error, and for
        at most `LARGEST_MATRIX` classes the confusion matrix."""
        logits, labels = predictions["logits"], predictions.labels
        log_p = log_softmax(logits)
        predicted = logits.argmax(1)
        size = len(self.labels)
        right = predicted == labels
        gold, counts, hits = (
            np.bincount(each, minlength=size) for each in (labels, predicted, labels[right])
        )
        f1 = 2 * hits / np.maximum(gold + counts, 1)
        curve = calibration(np.exp(log_p.max(1)), right)
        scores = {
            "accuracy": float(right.mean()),
            "macro_f1": float(f1[gold + counts > 0].mean()),
            "majority": float(gold.max() / len(labels)),
            "nll": float(-log_p[np.arange(len(labels)), labels].mean()),
            "ece": curve["ece"],
            "per_class_f1": dict(zip(self.labels, f1.tolist(), strict=True)),
            "calibration": curve,
        }
        if size <= LARGEST_MATRIX:
            confusion = np.bincount(labels * size + predicted, minlength=size**2).reshape(size, size)
            scores["confusion"] = confusion.tolist()
        return scores

    def report_sections(
        self,
        rows: datasets.Dataset,
        predictions: Mapping[str, Predictions],
        samples: Mapping[str, Sequence[str]],
        cfg: Measure | None,
    ) -> dict[str, Any]:
        """Return the rows that show where the student fails."""
        sections = super().report_sections(rows, predictions, samples, cfg)
        return sections | {"mistakes": self.mistakes(rows, predictions)}

    def mistakes(self, rows: datasets.Dataset, predictions: Mapping[str, Predictions]) -> dict[str, Any]:
        """As `kdcli.tasks.mistakes` returns them; empty for rows without texts."""
        if "text" not in rows.column_names:
            return {}
        own = {name: predictions[name] for name in COMPARED if name in predictions}
        log_p = {name: log_softmax(each["logits"]) for name, each in own.items()}
        labels = predictions["student"].labels
        texts = rows["text"]
        pairs = rows["text_pair"] if "text_pair" in rows.column_names else None

        def of_rows(log_p: np.ndarray) -> RowPredictions:
            predicted = log_p.argmax(1)
            return RowPredictions(
                lambda row: self.labels[predicted[row]], np.exp(log_p.max(1)), predicted == labels
            )

        apart = np.zeros(len(labels))
        if "teacher" in log_p:
            apart = np.abs(np.exp(log_p["teacher"]) - np.exp(log_p["student"])).sum(1) / 2
        return mistakes(
            lambda row: texts[row] if pairs is None else f"{texts[row]}\n{pairs[row]}",
            lambda row: self.labels[labels[row]],
            {name: of_rows(each) for name, each in log_p.items()},
            apart,
        )

    def trivial(self, tokenizer: PreTrainedTokenizerBase, seed: int) -> TrivialModel | None:
        """Return logistic regression over TF-IDF; the two texts of a pair are joined."""
        return TfidfClassifier(
            len(self.labels), lambda rows: [" ".join(texts) for texts in self.inputs(rows, tokenizer)], seed
        )

    def per_example_scores(self, predictions: Predictions) -> np.ndarray:
        """1 where the label is right, else 0."""
        return (predictions["logits"].argmax(1) == predictions.labels).astype(np.float64)

    def sufficient_statistics(self, predictions: Predictions) -> np.ndarray:
        """For macro F1: return whether a row has a label, whether it is predicted, and whether both, for each label that occurs; float64 (rows, 3C)."""
        predicted, labels = predictions["logits"].argmax(1), predictions.labels
        names = np.union1d(predicted, labels)
        own, other = labels[:, None] == names, predicted[:, None] == names
        return np.concatenate([own, other, own & other], axis=1).astype(np.float64)

    def score_from_statistics(self, sums: np.ndarray) -> float:
        """Return macro F1 over the labels that occur."""
        gold, counts, hits = np.split(sums, 3)
        occurs = gold + counts > 0
        return float((2 * hits[occurs] / (gold + counts)[occurs]).mean())


def log_softmax(logits: np.ndarray) -> np.ndarray:
    """Return the log-probabilities of logits (N, C), float64."""
    logits = logits.astype(np.float64)
    return logits - np.logaddexp.reduce(logits, axis=1, keepdims=True)
