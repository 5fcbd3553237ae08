"""Defines token classification: one tag for each word; entities (people, organisations …) are spans of tags."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, Self

import datasets
import numpy as np
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from kdcli.config.dataset import Dataset as DatasetConfig
from kdcli.config.measure import Measure
from kdcli.errors import DataError, ModelError
from kdcli.files import digest
from kdcli.signals import Signal
from kdcli.tasks.base import Predictions, Task
from kdcli.tasks.calibration import calibration
from kdcli.tasks.classification.task import CHUNK, Classification, log_softmax
from kdcli.tasks.encoded import Encoded, padded
from kdcli.tasks.mistakes import COMPARED, RowPredictions, mistakes
from kdcli.tasks.rows import IGNORE
from kdcli.tasks.token_classification.presentation import PRESENTATION
from kdcli.tasks.token_classification.rows import TokenClassificationRows
from kdcli.tasks.token_classification.scheme import entities, scheme_of
from kdcli.tasks.token_classification.spec import SPEC
from kdcli.tasks.token_classification.trivial import WordTags
from kdcli.tasks.trivial import TrivialModel

logger = logging.getLogger(__name__)
UNTAGGED = -1
"""In tokenized rows the label of a word without a gold tag; tokens that do not count have -100."""


class TokenClassification(Classification):
    """Every word counts, at its first token; the headline metric is the F1 of entities.

    An entity is right if its type and its first and last word are (Tjong Kim Sang and De Meulder 2003,
    https://aclanthology.org/W03-0419), for any scheme of the tags (`scheme_of`).

    Args:
        labels: the names of the tags, in the order of the logits.
        outside: the tags of words in no entity; empty: they are found by their names.
    """

    metric = "f1"
    chance_is = "the F1 of no entity anywhere,"
    spec = SPEC
    row_schema = TokenClassificationRows
    presentation = PRESENTATION
    fits_rows = True
    regularized = False
    head = ("ForTokenClassification",)
    auto = "AutoModelForTokenClassification"

    def __init__(self, labels: Sequence[str] = (), chat: bool = False, outside: Sequence[str] = ()):
        super().__init__(labels, chat)
        self.scheme = scheme_of(self.labels, outside)

    @classmethod
    def from_config(cls, cfg: DatasetConfig, labels: Sequence[str]) -> Self:
        """Return the task for a data set."""
        return cls(labels, outside=cfg.outside or ())

    # ---- rows -> tokens ----------------------------------------------------------------------------------

    def prepare(
        self, rows: datasets.Dataset, tokenizer: PreTrainedTokenizerBase, max_length: int
    ) -> datasets.Dataset:
        """Drop the words, with their tags, that a model does not read: those beyond `max_length` tokens, and those for which the tokenizer
        has no token (control characters).

        Raises:
            DataError: a row has no other words.
        """
        readable = readable_words(tokenizer, rows, max_length)
        lengths = [len(words) for words in rows["words"][:]]
        dropped = sum(lengths) - sum(map(len, readable))
        if not dropped:
            return rows
        logger.warning(
            "%d of %d words are dropped: they are beyond dataset.max_length = %d tokens, or have no token",
            dropped,
            sum(lengths),
            max_length,
        )
        prepared: list[dict[str, Any]] = []
        for row, indices in zip(rows, readable, strict=True):
            if not len(indices):
                raise DataError(
                    f"row {row['id']} ({' '.join(row['words'])[:60]!r}): there is no token of its words within "
                    f"dataset.max_length = {max_length} tokens; raise it, or remove the row"
                )
            if len(indices) < len(row["words"]):
                words, label = ([row[key][index] for index in indices] for key in ("words", "label"))
                row = {"id": digest(row["id"], words)[:32], "words": words, "label": label}
            prepared.append(row)
        return datasets.Dataset.from_list(prepared)

    def encode(self, tokenizer: PreTrainedTokenizerBase, rows: Any, max_length: int) -> Encoded:
        """Return token ids, segment ids if the tokenizer returns them, and the labels, each at the first token of its word.

        Raises:
            DataError: a word has no token: the rows were prepared with another tokenizer, or for more tokens, and teacher and student would not
                count the same words.
            ModelError: the tokenizer does not return character offsets.
        """
        columns: dict[str, list[np.ndarray]] = {}
        lengths: list[int] = []
        tags = rows["label"][:]
        for index, (tokens, first) in enumerate(_tokenized(tokenizer, rows, max_length)):
            if (first < 0).any():
                raise DataError(
                    f"row {rows['id'][index]} ({' '.join(rows['words'][index])[:60]!r}): {(first < 0).sum()} of its "
                    f"{len(first)} words have no token within dataset.max_length = {max_length}, as this tokenizer cuts "
                    "them; raise dataset.max_length, or make the row shorter"
                )
            gold = np.asarray(tags[index])
            labels = np.full(len(tokens["input_ids"]), IGNORE)
            labels[first] = np.where(gold == IGNORE, UNTAGGED, gold)
            lengths.append(len(labels))
            for key, values in (tokens | {"labels": labels}).items():
                columns.setdefault(key, []).append(np.asarray(values, np.int32))
        flat = {key: np.concatenate(parts) for key, parts in columns.items()}
        return Encoded(flat, np.cumsum([0, *lengths]))

    def collate(
        self, features: Sequence[dict[str, Any]], tokenizer: PreTrainedTokenizerBase
    ) -> dict[str, Tensor]:
        """Return right-padded inputs and `labels` (B, L), and `rows` (B,)."""
        return padded(features, (*tokenizer.model_input_names, "labels"), tokenizer)

    def inputs(self, rows: datasets.Dataset, tokenizer: PreTrainedTokenizerBase) -> list[list[str]]:
        """Return the words of each row, separated by spaces."""
        return [[" ".join(words)] for words in rows["words"][:]]

    # ---- models ------------------------------------------------------------------------------------------

    def positions(self, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Select, of labels (B, L), the first token of each word and its tag, (N,); -100 for a word without a gold tag."""
        pick = (labels.flatten() != IGNORE).nonzero()[:, 0]
        tags = labels.flatten()[pick]
        return pick, tags.where(tags != UNTAGGED, IGNORE)

    def counts(self, labels: Tensor) -> Tensor:
        """Return the words of each row."""
        return (labels != IGNORE).sum(1)

    def targets(self, encoded: Encoded) -> tuple[np.ndarray, np.ndarray]:
        """Return one label for each word."""
        tags, counts = encoded.counted()
        return np.where(tags == UNTAGGED, IGNORE, tags), counts

    def signal(self, model: PreTrainedModel, inputs: Mapping[str, Tensor], pick: Tensor) -> Signal:
        """Return the logits of the words, fp32."""
        return Signal(model(**inputs).logits.flatten(0, 1)[pick].float())

    # ---- scores ------------------------------------------------------------------------------------------

    def chance(self, predictions: Predictions, classes: int) -> float:
        """0: a model that tags every word O finds no entity."""
        return 0.0

    def chance_predictions(self, predictions: Predictions) -> Predictions | None:
        """Predict no entity anywhere; None if no tag means that."""
        if not self.scheme.outside:
            return None
        logits = np.zeros_like(predictions["logits"])
        logits[:, self.labels.index(self.scheme.outside[0])] = 1.0
        return replace(predictions, arrays=predictions.arrays | {"logits": logits})

    def balanced(self, predictions: Predictions) -> Task | None:
        """None: F1 counts entities alone, however rare they are."""
        return None

    def scores(self, predictions: Predictions) -> dict[str, Any]:
        """Return micro F1, precision and recall of entities; the share of words with the right tag; the negative log-likelihood and the expected
        calibration error of a tag; the F1 of each type (None: there is no such entity, neither gold nor predicted) and its number of gold
        entities."""
        gold, predicted, right = self._entities(predictions)
        names = self.scheme.types
        each = [np.bincount(kinds[kinds >= 0], minlength=len(names)) for kinds in (gold, predicted, right)]
        totals = [int(count.sum()) for count in each]
        log_p = log_softmax(predictions["logits"])
        right_tags = log_p.argmax(1) == predictions.labels
        curve = calibration(np.exp(log_p.max(1)), right_tags)
        return {
            "f1": _f1(*totals),
            "precision": totals[2] / max(1, totals[1]),
            "recall": totals[2] / max(1, totals[0]),
            "token_accuracy": float(right_tags.mean()),
            "nll": float(-log_p[np.arange(len(log_p)), predictions.labels].mean()),
            "ece": curve["ece"],
            "calibration": curve,
            "per_type_precision": {
                name: right / predicted if predicted else None
                for name, _, predicted, right in zip(names, *map(np.ndarray.tolist, each), strict=True)
            },
            "per_type_recall": {
                name: right / gold if gold else None
                for name, gold, _, right in zip(names, *map(np.ndarray.tolist, each), strict=True)
            },
            "per_type_f1": {
                name: _f1(*counts) if counts[0] + counts[1] else None
                for name, *counts in zip(names, *map(np.ndarray.tolist, each), strict=True)
            },
            "entities": dict(zip(names, each[0].tolist(), strict=True)),
        }

    def per_example_scores(self, predictions: Predictions) -> np.ndarray:
        """Return the share of each row in the F1 of all rows, which is a ratio of two sums over rows; it is linearised (Cochran 1977, section 6.3)."""
        rows = np.repeat(np.arange(len(predictions.counts)), predictions.counts)
        gold, predicted, right = (
            np.bincount(rows[kinds >= 0], minlength=len(predictions.counts))
            for kinds in self._entities(predictions)
        )
        both = gold + predicted
        f1 = _f1(gold.sum(), predicted.sum(), right.sum())
        return f1 + (2 * right - f1 * both) * len(both) / max(1, both.sum())

    def report_sections(
        self,
        rows: datasets.Dataset,
        predictions: Mapping[str, Predictions],
        samples: Mapping[str, Sequence[str]],
        cfg: Measure | None,
    ) -> dict[str, Any]:
        """Return how entities are read from the tags."""
        return super().report_sections(rows, predictions, samples, cfg) | {"tags": self.scheme.as_json()}

    def mistakes(self, rows: datasets.Dataset, predictions: Mapping[str, Predictions]) -> dict[str, Any]:
        """Return the sentences with a wrong entity; the confidence of a sentence is that of its least certain tag."""
        own = {name: predictions[name] for name in COMPARED if name in predictions}
        counts, words = predictions["student"].counts, rows["words"]
        ends = np.cumsum(counts)

        def entities_of(tags: np.ndarray) -> Callable[[int], str]:
            starts, lasts = entities(self.scheme, tags, counts)

            def named(row: int) -> str:
                first = ends[row] - counts[row]
                at = first + np.flatnonzero(starts[first : ends[row]] >= 0)
                spans = [
                    f"{self.scheme.types[starts[i]]}: {' '.join(words[row][i - first : lasts[i] - first + 1])}"
                    for i in at
                ]
                return "; ".join(spans) or "no entity"

            return named

        gold = entities_of(predictions["student"].labels)
        by_model, log_p = {}, {name: log_softmax(each["logits"]) for name, each in own.items()}
        for name, each in log_p.items():
            named = entities_of(each.argmax(1))
            right = np.asarray([named(row) == gold(row) for row in range(len(counts))])
            by_model[name] = RowPredictions(
                named, np.exp(np.minimum.reduceat(each.max(1), ends - counts)), right
            )
        apart = np.zeros(len(counts))
        if "teacher" in log_p:
            distance = np.abs(np.exp(log_p["teacher"]) - np.exp(log_p["student"])).sum(1) / 2
            apart = np.maximum.reduceat(distance, ends - counts)
        return mistakes(lambda row: " ".join(words[row]), gold, by_model, apart)

    def trivial(self, tokenizer: PreTrainedTokenizerBase, seed: int) -> TrivialModel | None:
        """Return the most frequent tag of each word."""
        return WordTags(len(self.labels))

    def snippet_constants(self, tokenizer: PreTrainedTokenizerBase, max_length: int) -> dict[str, Any]:
        """Return the role and the entity type of each tag."""
        return super().snippet_constants(tokenizer, max_length) | {"PARTS": dict(self.scheme.parts)}

    def _entities(self, predictions: Predictions) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Return the gold entities, the predicted ones, and those predicted ones that are right: the index of the type at each word that begins one, -1
        elsewhere; (N,) each."""
        gold, last = entities(self.scheme, predictions.labels, predictions.counts)
        predicted, end = entities(self.scheme, predictions["logits"].argmax(1), predictions.counts)
        return gold, predicted, np.where((gold == predicted) & (last == end), gold, -1)


def _f1(gold: int, predicted: int, right: int) -> float:
    return float(2 * right / max(1, gold + predicted))


def readable_words(tokenizer: PreTrainedTokenizerBase, rows: Any, max_length: int) -> list[np.ndarray]:
    """Return the indices of the words of each row that a model reads: not those beyond `max_length` tokens, nor those without a token."""
    return [np.flatnonzero(first >= 0) for _, first in _tokenized(tokenizer, rows, max_length)]


def _tokenized(
    tokenizer: PreTrainedTokenizerBase, rows: Any, max_length: int
) -> Iterator[tuple[dict[str, list[int]], np.ndarray]]:
    """Yield the inputs of each row, and the index of the first token of each of its words; -1 for a word without tokens.

    The words are tokenized as one text, separated by spaces, and matched to tokens by character offsets, which is how a pipeline sees
    them. (Byte-level tokenizers that add no space would join words that are given one by one.)
    """
    if not tokenizer.is_fast:
        raise ModelError(
            f"{type(tokenizer).__name__} does not return character offsets; use a model with a fast tokenizer "
            "(tokenizer.json)"
        )
    keys = [key for key in tokenizer.model_input_names if key != "attention_mask"]
    for start in range(0, len(rows), CHUNK):
        chunk = rows["words"][start : start + CHUNK]
        encodings = tokenizer(
            [" ".join(words) for words in chunk],
            truncation=True,
            max_length=max_length,
            return_attention_mask=False,
            return_offsets_mapping=True,
        )
        for index, words in enumerate(chunk):
            inputs = {key: encodings[key][index] for key in keys}
            yield inputs, _first(words, encodings["offset_mapping"][index])


def _first(words: Sequence[str], offsets: Sequence[tuple[int, int]]) -> np.ndarray:
    """Return the index of the first token of each word, (words,), by the character offsets of the tokens in the joined text; -1: it has none.

    A token belongs to the word in which it ends; some tokens begin with the space before the word.
    """
    lengths = np.asarray([len(word) for word in words])
    ends = np.cumsum(lengths + 1) - 1
    begin, end = np.asarray(offsets).reshape(-1, 2).T
    word = np.searchsorted(ends, end)
    starts = (ends - lengths)[word]
    own = np.flatnonzero((end > starts) & (begin >= starts - 1))
    covered, at = np.unique(word[own], return_index=True)
    first = np.full(len(words), -1)
    first[covered] = own[at]
    return first
