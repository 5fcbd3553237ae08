"""Token classification: one tag a word, of which names of people, places … are spans (entities)."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import datasets
import numpy as np
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from kdcli.errors import DataError, ModelError
from kdcli.files import digest
from kdcli.signals import Signal
from kdcli.tasks.base import Predictions
from kdcli.tasks.classification.task import CHUNK, Classification, log_softmax
from kdcli.tasks.encoded import Encoded, padded
from kdcli.tasks.rows import IGNORE
from kdcli.tasks.token_classification.presentation import PRESENTATION
from kdcli.tasks.token_classification.rows import TokenClassificationRows
from kdcli.tasks.token_classification.spec import SPEC

logger = logging.getLogger(__name__)
UNTAGGED = -1
"""In tokenized rows the label of a word that counts and has no gold tag; -100 are tokens that do not count."""


class TokenClassification(Classification):
    """Every word counts, at its first token; the headline metric is the F1 of entities.

    An entity is right if its type and its first and last word are (Tjong Kim Sang and De Meulder 2003,
    https://aclanthology.org/W03-0419), whatever the scheme of the tags: IOB1, IOB2, IOE, BIOES, BILOU, or types alone.
    """

    metric = "f1"
    chance_is = "the F1 of no entity anywhere,"
    spec = SPEC
    row_schema = TokenClassificationRows
    presentation = PRESENTATION
    fits_rows = True
    head = ("ForTokenClassification",)
    auto = "AutoModelForTokenClassification"

    # ---- rows -> tokens ----------------------------------------------------------------------------------

    def prepare(
        self, rows: datasets.Dataset, tokenizer: PreTrainedTokenizerBase, max_length: int
    ) -> datasets.Dataset:
        """Rows of the words that a model reads: those beyond `max_length` tokens, and those that are nothing to the
        tokenizer (control characters), are left out with their tags.

        Raises:
            DataError: nothing is left of a row.
        """
        kept = [np.flatnonzero(first >= 0) for _, first in _tokenized(tokenizer, rows, max_length)]
        lengths = [len(words) for words in rows["words"][:]]
        lost = sum(lengths) - sum(map(len, kept))
        if not lost:
            return rows
        logger.warning(
            "%d of %d words are left out: they are beyond dataset.max_length = %d tokens, or nothing to the tokenizer",
            lost,
            sum(lengths),
            max_length,
        )
        found: list[dict[str, Any]] = []
        for row, places in zip(rows, kept, strict=True):
            if not len(places):
                raise DataError(
                    f"row {row['id']} ({' '.join(row['words'])[:60]!r}): there is no token of its words within "
                    f"dataset.max_length = {max_length} tokens; raise it, or remove the row"
                )
            if len(places) < len(row["words"]):
                words, label = ([row[key][place] for place in places] for key in ("words", "label"))
                row = {"id": digest(row["id"], words)[:32], "words": words, "label": label}
            found.append(row)
        return datasets.Dataset.from_list(found)

    def encode(self, tokenizer: PreTrainedTokenizerBase, rows: Any, max_length: int) -> Encoded:
        """Token ids, segment ids where the tokenizer makes them, and the labels: at each word's first token.

        Raises:
            DataError: a word has no token: rows are prepared with another tokenizer, or for more tokens, than they are
                read with, and teacher and student would not count the same words.
            ModelError: the tokenizer does not say where its tokens stand in the text.
        """
        columns: dict[str, list[np.ndarray]] = {}
        lengths: list[int] = []
        tags = rows["label"][:]
        for number, (pieces, first) in enumerate(_tokenized(tokenizer, rows, max_length)):
            if (first < 0).any():
                raise DataError(
                    f"row {rows['id'][number]} ({' '.join(rows['words'][number])[:60]!r}): {(first < 0).sum()} of its "
                    f"{len(first)} words have no token within dataset.max_length = {max_length}, as this tokenizer cuts "
                    "them; raise dataset.max_length, or make the row shorter"
                )
            gold = np.asarray(tags[number])
            labels = np.full(len(pieces["input_ids"]), IGNORE)
            labels[first] = np.where(gold == IGNORE, UNTAGGED, gold)
            lengths.append(len(labels))
            for key, values in (pieces | {"labels": labels}).items():
                columns.setdefault(key, []).append(np.asarray(values, np.int32))
        flat = {key: np.concatenate(parts) for key, parts in columns.items()}
        return Encoded(flat, np.cumsum([0, *lengths]))

    def collate(
        self, features: Sequence[dict[str, Any]], tokenizer: PreTrainedTokenizerBase
    ) -> dict[str, Tensor]:
        """Right-padded inputs and `labels` (B, L), and `rows` (B,)."""
        return padded(features, (*tokenizer.model_input_names, "labels"), tokenizer)

    def inputs(self, rows: datasets.Dataset, tokenizer: PreTrainedTokenizerBase) -> list[list[str]]:
        """The words with a space between two."""
        return [[" ".join(words)] for words in rows["words"][:]]

    # ---- models ------------------------------------------------------------------------------------------

    def positions(self, labels: Tensor) -> tuple[Tensor, Tensor]:
        """(B, L) -> which of the B · L tokens are the first of a word, and its tag, (N,); -100 where there is no gold one."""
        pick = (labels.flatten() != IGNORE).nonzero()[:, 0]
        found = labels.flatten()[pick]
        return pick, found.where(found != UNTAGGED, IGNORE)

    def counts(self, labels: Tensor) -> Tensor:
        """The words of each row."""
        return (labels != IGNORE).sum(1)

    def targets(self, encoded: Encoded) -> tuple[np.ndarray, np.ndarray]:
        """One a word."""
        found, counts = encoded.counted()
        return np.where(found == UNTAGGED, IGNORE, found), counts

    def signal(self, model: PreTrainedModel, inputs: Mapping[str, Tensor], pick: Tensor) -> Signal:
        """The logits of the words, fp32."""
        return Signal(model(**inputs).logits.flatten(0, 1)[pick].float())

    # ---- scores ------------------------------------------------------------------------------------------

    def chance(self, predictions: Predictions, classes: int) -> float:
        """0: who tags every word O finds no entity."""
        return 0.0

    def scores(self, predictions: Predictions) -> dict[str, Any]:
        """F1, precision and recall of entities over all words (micro); share of words with the right tag; negative
        log-likelihood of a tag; of each type its F1 (None: nobody sees one) and its number of gold entities."""
        gold, found, right = self._entities(predictions)
        names = _types(self.labels)
        each = [np.bincount(kinds[kinds >= 0], minlength=len(names)) for kinds in (gold, found, right)]
        whole = [int(count.sum()) for count in each]
        log_p = log_softmax(predictions["logits"])
        return {
            "f1": _f1(*whole),
            "precision": whole[2] / max(1, whole[1]),
            "recall": whole[2] / max(1, whole[0]),
            "token_accuracy": float((log_p.argmax(1) == predictions.labels).mean()),
            "nll": float(-log_p[np.arange(len(log_p)), predictions.labels].mean()),
            "per_type_f1": {
                name: _f1(*counts) if counts[0] + counts[1] else None
                for name, *counts in zip(names, *map(np.ndarray.tolist, each), strict=True)
            },
            "entities": dict(zip(names, each[0].tolist(), strict=True)),
        }

    def per_example_scores(self, predictions: Predictions) -> np.ndarray:
        """Each row's share in the F1 of all rows, which is a ratio of two sums over them, linearised (Cochran 1977,
        section 6.3)."""
        rows = np.repeat(np.arange(len(predictions.counts)), predictions.counts)
        gold, found, right = (
            np.bincount(rows[kinds >= 0], minlength=len(predictions.counts))
            for kinds in self._entities(predictions)
        )
        both = gold + found
        f1 = _f1(gold.sum(), found.sum(), right.sum())
        return f1 + (2 * right - f1 * both) * len(both) / max(1, both.sum())

    def _entities(self, predictions: Predictions) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """The gold entities, those that the model found, and those of them that are right: of each word that begins one the
        number of its type, -1 elsewhere; (N,) each."""
        gold, last = entities(self.labels, predictions.labels, predictions.counts)
        found, end = entities(self.labels, predictions["logits"].argmax(1), predictions.counts)
        return gold, found, np.where((gold == found) & (last == end), gold, -1)


def entities(labels: Sequence[str], tags: np.ndarray, counts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The spans in rows of tags, by the rules of CoNLL's `conlleval`.

    A span begins at B, S and U, after O, after E, L, S and U, and where the type changes; it ends before the next one and
    before O.

    Args:
        labels: the tags' names.
        tags: numbers of names, (N,), row after row.
        counts: words of each row, none of them 0.

    Returns:
        Of each word that begins a span the number of its type among the sorted ones, and its last word; -1 elsewhere.
    """
    types = _types(labels)
    parsed = [_parsed(label) for label in labels]
    kind = np.asarray([-1 if prefix == "O" else types.index(name) for prefix, name in parsed])[tags]
    opens, closes = (np.asarray([prefix in which for prefix, _ in parsed])[tags] for which in ("BSU", "ELSU"))
    new = opens | np.roll(closes, 1) | (np.roll(kind, 1) != kind)
    new[np.cumsum(counts) - counts] = True
    begin = np.flatnonzero((kind >= 0) & new)
    starts, ends = np.full((2, len(tags)), -1)
    starts[begin] = kind[begin]
    ends[begin] = np.flatnonzero((kind >= 0) & np.append(new[1:], True))
    return starts, ends


def _types(labels: Sequence[str]) -> list[str]:
    """The types of entities that tags tell of, sorted."""
    return sorted({name for prefix, name in map(_parsed, labels) if prefix != "O"})


def _parsed(label: str) -> tuple[str, str]:
    """A tag's place in its entity and the type; a type alone is a place within it."""
    found = re.fullmatch(r"([BIELSUO])(?:-(.*))?", label)
    return (found[1], found[2] or "") if found else ("I", label)


def _f1(gold: int, found: int, right: int) -> float:
    return float(2 * right / max(1, gold + found))


def _tokenized(
    tokenizer: PreTrainedTokenizerBase, rows: Any, max_length: int
) -> Iterator[tuple[dict[str, list[int]], np.ndarray]]:
    """Each row's inputs, and where the first token of each of its words is; -1 of a word that has none.

    The words are tokenized as text, with a space between two, and found again by their places in it: as a pipeline will see
    them. (Handed over one by one, byte-level tokenizers that add no space of their own would glue them together.)
    """
    if not tokenizer.is_fast:
        raise ModelError(
            f"{type(tokenizer).__name__} does not say where its tokens stand in the text; a fast tokenizer "
            "(tokenizer.json) is needed for token_classification"
        )
    keys = [key for key in tokenizer.model_input_names if key != "attention_mask"]
    for start in range(0, len(rows), CHUNK):
        chunk = rows["words"][start : start + CHUNK]
        found = tokenizer(
            [" ".join(words) for words in chunk],
            truncation=True,
            max_length=max_length,
            return_attention_mask=False,
            return_offsets_mapping=True,
        )
        for number, words in enumerate(chunk):
            yield {key: found[key][number] for key in keys}, _first(words, found["offset_mapping"][number])


def _first(words: Sequence[str], offsets: Sequence[tuple[int, int]]) -> np.ndarray:
    """Where the first token of each word is, (words,), by the tokens' places in the joined text; -1: it has none.

    A token is of the word in which it ends; some begin with the space before it.
    """
    lengths = np.asarray([len(word) for word in words])
    ends = np.cumsum(lengths + 1) - 1
    begin, end = np.asarray(offsets).reshape(-1, 2).T
    word = np.searchsorted(ends, end)
    starts = (ends - lengths)[word]
    own = np.flatnonzero((end > starts) & (begin >= starts - 1))
    found, at = np.unique(word[own], return_index=True)
    first = np.full(len(words), -1)
    first[found] = own[at]
    return first
