"""Masked language modelling: some tokens of a text are masked, and the model predicts them from their context."""

from __future__ import annotations

import itertools
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import datasets
import numpy as np
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from kdcli.errors import ConfigError, DataError, ModelError
from kdcli.files import digest
from kdcli.generation import seed_of
from kdcli.signals import HiddenSignal
from kdcli.tasks.encoded import Encoded, padded
from kdcli.tasks.language_model import LanguageModel, before_head, tokenize
from kdcli.tasks.masked_lm.presentation import PRESENTATION
from kdcli.tasks.masked_lm.rows import MaskedLMRows
from kdcli.tasks.masked_lm.spec import SPEC
from kdcli.tasks.rows import IGNORE

logger = logging.getLogger(__name__)
CHUNK = 1000
"""The number of rows in a call of the tokenizer."""
HIDDEN = 0.15
"""The share of the tokens of a row that is predicted (Devlin et al. 2019, https://arxiv.org/abs/1810.04805, section 3.1)."""
MASKED, REPLACED = 0.8, 0.1
"""The shares of the predicted tokens that are replaced by the mask token, and by a random token. The rest stays unchanged."""


class MaskedLM(LanguageModel):
    """The headline metric is the mean log-probability of a masked token, in nats.

    Rows hold `text`. The id of a row alone decides which of its tokens are masked, and by what they are replaced, so that teacher, cache and
    student, a rerun and a resumed run read the same.
    """

    spec = SPEC
    row_schema = MaskedLMRows
    presentation = PRESENTATION
    head = ("ForMaskedLM",)
    batch = 64
    auto = "AutoModelForMaskedLM"

    def load(self, path: Path, **kwargs: Any) -> tuple[PreTrainedModel, bool]:
        """Return an encoder with a masked-LM head.

        Raises:
            ModelError: its architecture has none, or has other operations after its body.
        """
        try:
            model, new = super().load(path, **kwargs)
        except ValueError as error:  # transformers has no such class
            raise _no_head(str(error).partition("\n")[0]) from None
        if not type(model).__name__.endswith(self.head):
            raise _no_head(f"{type(model).__name__} is an encoder with a decoder.")
        return model, new

    # ---- rows -> tokens ----------------------------------------------------------------------------------

    def prepare(
        self, rows: datasets.Dataset, tokenizer: PreTrainedTokenizerBase, max_length: int
    ) -> datasets.Dataset:
        """Split texts into rows of at most `max_length` tokens, and drop those without a token to mask.

        Raises:
            ConfigError: rows of `max_length` tokens have no token to mask.
            DataError: a character has more than `max_length` tokens, or no text has a token to mask.
            ModelError: the tokenizer has no mask token, or does not return character offsets.
        """
        _require_mask(tokenizer)
        most_tokens = max_length - tokenizer.num_special_tokens_to_add()
        if most_tokens < 1:
            raise ConfigError(
                f"dataset.max_length = {max_length}: special tokens fill it; give at least {max_length - most_tokens + 1}"
            )
        prepared: list[dict[str, Any]] = []
        dropped = 0
        for start in range(0, len(rows), CHUNK):
            chunk = rows[start : start + CHUNK]
            for key, text, pieces in zip(
                chunk["id"], chunk["text"], _cut(tokenizer, chunk["text"], most_tokens), strict=True
            ):
                dropped += not pieces
                for index, piece in enumerate(pieces):
                    own = key if piece == text else digest(key, index, piece)[:32]
                    prepared.append({"id": own, "text": piece})
        if dropped:
            logger.warning(
                "%d of %d rows are dropped: they have no token but special ones", dropped, len(rows)
            )
        if not prepared:
            raise DataError(
                "no row has a token but special ones; use a model whose tokenizer knows the language and the script of the text"
            )
        return datasets.Dataset.from_list(prepared)

    def encode(self, tokenizer: PreTrainedTokenizerBase, rows: Any, max_length: int) -> Encoded:
        """Return token ids, some of them masked; segment ids if the tokenizer returns them; and the labels: the masked tokens.

        Raises:
            DataError: a row has no token to mask.
            ModelError: the tokenizer has no mask token.
        """
        mask = _require_mask(tokenizer)
        special = np.asarray(tokenizer.all_special_ids)
        others = np.setdiff1d(list(tokenizer.get_vocab().values()), special)
        keys = [key for key in tokenizer.model_input_names if key != "attention_mask"]
        columns: dict[str, list[np.ndarray]] = {key: [] for key in (*keys, "labels")}
        for start in range(0, len(rows), CHUNK):
            chunk = rows[start : start + CHUNK]
            encodings = tokenizer(
                chunk["text"], truncation=True, max_length=max_length, return_attention_mask=False
            )
            for key in keys:
                columns[key] += [np.asarray(values, np.int32) for values in encodings[key]]
            for index, name in enumerate(chunk["id"], start):
                ids = columns["input_ids"][index]
                maskable = np.flatnonzero(~np.isin(ids, special))
                if not len(maskable):
                    raise DataError(
                        f"row {name} ({chunk['text'][index - start][:60]!r}) has no token but special ones; remove it"
                    )
                labels, masked = mask_tokens(ids, maskable, mask, others, name)
                columns["labels"].append(labels)
                columns["input_ids"][index] = masked
        flat = {key: np.concatenate(parts).astype(np.int32) for key, parts in columns.items()}
        return Encoded(flat, np.cumsum([0, *map(len, columns["labels"])]))

    def collate(
        self, features: Sequence[dict[str, Any]], tokenizer: PreTrainedTokenizerBase
    ) -> dict[str, Tensor]:
        """Return right-padded inputs and `labels` (B, L), and `rows` (B,)."""
        return padded(features, (*tokenizer.model_input_names, "labels"), tokenizer)

    def inputs(self, rows: datasets.Dataset, tokenizer: PreTrainedTokenizerBase) -> list[list[str]]:
        """Return the text."""
        return [[text] for text in rows["text"][:]]

    # ---- models ------------------------------------------------------------------------------------------

    def positions(self, labels: Tensor) -> tuple[tuple[Tensor, Tensor], Tensor]:
        """Select, of labels (B, L), the positions of the masked tokens, and these tokens, (N,)."""
        row, column = (labels != IGNORE).nonzero(as_tuple=True)
        return (row, column), labels[row, column]

    def counts(self, labels: Tensor) -> Tensor:
        """Return the number of masked tokens of each row."""
        return (labels != IGNORE).sum(1)

    def compared(self, encoded: Encoded) -> tuple[np.ndarray, np.ndarray]:
        """Return all tokens that are read, since each of them affects the predictions."""
        return encoded.columns["input_ids"], encoded.lengths

    def signal(
        self, model: PreTrainedModel, inputs: Mapping[str, Tensor], pick: tuple[Tensor, Tensor]
    ) -> HiddenSignal:
        """Return the input of the output layer at the picked positions, (N, H), and that layer."""
        return before_head(model, inputs, pick)


def mask_tokens(
    ids: np.ndarray, maskable: np.ndarray, mask: int, others: np.ndarray, key: str
) -> tuple[np.ndarray, np.ndarray]:
    """Mask a share of the tokens of a row, at least one.

    Args:
        ids: the row, (L,).
        maskable: the positions of tokens that may be masked; at least one.
        mask: the mask token.
        others: the tokens that may replace one.
        key: the seed.

    Returns:
        The masked tokens, -100 elsewhere, and the tokens that the model reads; (L,) each.
    """
    random = np.random.default_rng(seed_of("masked_lm", key))
    hidden = random.choice(maskable, max(1, round(HIDDEN * len(maskable))), replace=False)
    draws = random.random(len(hidden))
    drawn = random.choice(others, len(hidden))
    labels, masked = np.full_like(ids, IGNORE), ids.copy()
    labels[hidden] = ids[hidden]
    masked[hidden] = np.select([draws < MASKED, draws < MASKED + REPLACED], [mask, drawn], ids[hidden])
    return labels, masked


def _cut(tokenizer: PreTrainedTokenizerBase, texts: list[str], most_tokens: int) -> list[list[str]]:
    """Split each text into pieces of at most `most_tokens` tokens, without pieces that have special tokens alone.

    A text is split between two words, or within a word that is longer than a piece.
    """
    special = set(tokenizer.all_special_ids)
    encodings = tokenize(tokenizer, texts, special=False)
    pieces_of: list[list[str]] = []
    for index, text in enumerate(texts):
        ids, spans, words = (
            encodings["input_ids"][index],
            encodings["offset_mapping"][index],
            encodings.word_ids(index),
        )
        if len(ids) <= most_tokens:
            pieces_of.append([] if special.issuperset(ids) else [text])
            continue
        ends, first = [0], 0
        while len(ids) - first > most_tokens:
            last = first + most_tokens
            starts = [token for token in range(first + 1, last + 1) if words[token] != words[token - 1]]
            last = starts[-1] if starts else last
            ends.append(min(spans[last - 1][1], spans[last][0]))
            first = last
        ends.append(len(text))
        if min(np.diff(ends)) < 1:
            raise DataError(
                f"the text {text[:60]!r} has a character of more than {most_tokens} tokens; raise dataset.max_length"
            )
        parts = [text[begin:end] for begin, end in itertools.pairwise(ends)]
        pieces_of.append([piece for pieces in _cut(tokenizer, parts, most_tokens) for piece in pieces])
    return pieces_of


def _require_mask(tokenizer: PreTrainedTokenizerBase) -> int:
    """Return the id of the mask token.

    Raises:
        ModelError: there is none.
    """
    if tokenizer.mask_token_id is None:
        raise ModelError(
            f"{type(tokenizer).__name__} has no mask token, which the task masked_lm needs; use an encoder that was "
            "trained on masked text (BERT, RoBERTa, DistilBERT …), or dataset.task=causal_lm for a decoder"
        )
    return int(tokenizer.mask_token_id)


def _no_head(why: str) -> ModelError:
    return ModelError(
        f"{why} The task masked_lm needs an encoder with a masked-LM head (BertForMaskedLM, RobertaForMaskedLM …); use one, or "
        "dataset.task=causal_lm for a decoder"
    )
