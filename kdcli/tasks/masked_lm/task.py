"""Masked language modelling: tokens of a text are hidden from the model, and it predicts them from all that stands around."""

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
from kdcli.tasks.language_model import LanguageModel, head_of, tokenize, unknown_head
from kdcli.tasks.masked_lm.presentation import PRESENTATION
from kdcli.tasks.masked_lm.rows import MaskedLMRows
from kdcli.tasks.masked_lm.spec import SPEC
from kdcli.tasks.rows import IGNORE

logger = logging.getLogger(__name__)
CHUNK = 1000
"""Rows handed to the tokenizer at once."""
HIDDEN = 0.15
"""The share of a row's tokens that is predicted (Devlin et al. 2019, https://arxiv.org/abs/1810.04805, section 3.1) …"""
MASKED, REPLACED = 0.8, 0.1
"""… and of those the shares that the model reads as the mask token, and as some other token; the rest it reads as it is."""


class MaskedLM(LanguageModel):
    """The headline metric is the mean log-probability of a hidden token, in nats.

    Rows hold `text`. Which of its tokens are hidden, and what is read in their place, is decided by the row's id alone, so that
    teacher, cache and student, a rerun and a resumed run see the same.
    """

    spec = SPEC
    row_schema = MaskedLMRows
    presentation = PRESENTATION
    head = ("ForMaskedLM",)
    batch = 64
    auto = "AutoModelForMaskedLM"

    def load(self, path: Path, **kwargs: Any) -> tuple[PreTrainedModel, bool]:
        """An encoder with a masked-LM head.

        Raises:
            ModelError: its architecture has none, or does something else after its body.
        """
        try:
            model, new = super().load(path, **kwargs)
        except ValueError as error:  # transformers knows no such class
            raise _no_head(str(error).partition("\n")[0]) from None
        if not type(model).__name__.endswith(self.head):
            raise _no_head(f"{type(model).__name__} is an encoder with a decoder.")
        return model, new

    # ---- rows -> tokens ----------------------------------------------------------------------------------

    def prepare(
        self, rows: datasets.Dataset, tokenizer: PreTrainedTokenizerBase, max_length: int
    ) -> datasets.Dataset:
        """Texts of at most `max_length` tokens: longer ones are cut, and nothing of them is lost. Those without a token to
        hide are left out.

        Raises:
            ConfigError: rows of so few tokens have none to hide.
            DataError: one character is more than `max_length` tokens, or no text has a token to hide.
            ModelError: the tokenizer has no mask token, or does not return character offsets.
        """
        _require_mask(tokenizer)
        room = max_length - tokenizer.num_special_tokens_to_add()
        if room < 1:
            raise ConfigError(
                f"dataset.max_length = {max_length}: special tokens fill it; give at least {max_length - room + 1}"
            )
        found: list[dict[str, Any]] = []
        lost = 0
        for start in range(0, len(rows), CHUNK):
            chunk = rows[start : start + CHUNK]
            for key, text, pieces in zip(
                chunk["id"], chunk["text"], _cut(tokenizer, chunk["text"], room), strict=True
            ):
                lost += not pieces
                for number, piece in enumerate(pieces):
                    own = key if piece == text else digest(key, number, piece)[:32]
                    found.append({"id": own, "text": piece})
        if lost:
            logger.warning("%d of %d rows are left out: they have no token but special ones", lost, len(rows))
        if not found:
            raise DataError(
                "no row has a token but special ones: is the text in a language that the tokenizer of this model does not know?"
            )
        return datasets.Dataset.from_list(found)

    def encode(self, tokenizer: PreTrainedTokenizerBase, rows: Any, max_length: int) -> Encoded:
        """Token ids, of which some are hidden; segment ids where the tokenizer makes them; and the labels: the hidden tokens.

        Raises:
            DataError: a row has no token to hide.
            ModelError: the tokenizer has no mask token.
        """
        mask = _require_mask(tokenizer)
        special = np.asarray(tokenizer.all_special_ids)
        others = np.setdiff1d(np.arange(len(tokenizer)), special)
        keys = [key for key in tokenizer.model_input_names if key != "attention_mask"]
        columns: dict[str, list[np.ndarray]] = {key: [] for key in (*keys, "labels")}
        for start in range(0, len(rows), CHUNK):
            chunk = rows[start : start + CHUNK]
            read = tokenizer(
                chunk["text"], truncation=True, max_length=max_length, return_attention_mask=False
            )
            for key in keys:
                columns[key] += [np.asarray(values, np.int32) for values in read[key]]
            for number, name in enumerate(chunk["id"], start):
                ids = columns["input_ids"][number]
                places = np.flatnonzero(~np.isin(ids, special))
                if not len(places):
                    raise DataError(
                        f"row {name} ({chunk['text'][number - start][:60]!r}) has no token but special ones; remove it"
                    )
                labels, shown = hide(ids, places, mask, others, name)
                columns["labels"].append(labels)
                columns["input_ids"][number] = shown
        flat = {key: np.concatenate(parts).astype(np.int32) for key, parts in columns.items()}
        return Encoded(flat, np.cumsum([0, *map(len, columns["labels"])]))

    def collate(
        self, features: Sequence[dict[str, Any]], tokenizer: PreTrainedTokenizerBase
    ) -> dict[str, Tensor]:
        """Right-padded inputs and `labels` (B, L), and `rows` (B,)."""
        return padded(features, (*tokenizer.model_input_names, "labels"), tokenizer)

    def inputs(self, rows: datasets.Dataset, tokenizer: PreTrainedTokenizerBase) -> list[list[str]]:
        """The text."""
        return [[text] for text in rows["text"][:]]

    # ---- models ------------------------------------------------------------------------------------------

    def positions(self, labels: Tensor) -> tuple[tuple[Tensor, Tensor], Tensor]:
        """(B, L) -> where tokens are hidden, and which, (N,)."""
        row, column = (labels != IGNORE).nonzero(as_tuple=True)
        return (row, column), labels[row, column]

    def counts(self, labels: Tensor) -> Tensor:
        """Hidden tokens of each row."""
        return (labels != IGNORE).sum(1)

    def compared(self, encoded: Encoded) -> tuple[np.ndarray, np.ndarray]:
        """All that is read, since every token of it bears on the hidden ones."""
        return encoded.columns["input_ids"], encoded.lengths

    def signal(
        self, model: PreTrainedModel, inputs: Mapping[str, Tensor], pick: tuple[Tensor, Tensor]
    ) -> HiddenSignal:
        """What the last layer, which makes logits, is given at the picked positions, (N, H), and that layer.

        It is watched by a hook, since architectures do different things before it, and runs on no position.

        Raises:
            ModelError: the model has no such layer, or computes its logits without it.
        """
        head = head_of(model)
        seen: list[Tensor] = []

        def keep(_: Any, args: tuple[Tensor]) -> tuple[Tensor]:
            seen.append(args[0][pick])
            return (args[0][:, :0],)

        hook = model.get_output_embeddings().register_forward_pre_hook(keep)
        try:
            model(**inputs)
        finally:
            hook.remove()
        if not seen:
            raise unknown_head(model)
        return HiddenSignal(seen[0], head)


def hide(
    ids: np.ndarray, places: np.ndarray, mask: int, others: np.ndarray, key: str
) -> tuple[np.ndarray, np.ndarray]:
    """Hide a share of a row's tokens, at least one.

    Args:
        ids: the row, (L,).
        places: where there is a token that may be hidden; at least one.
        mask: the mask token.
        others: what a token may be replaced by.
        key: decides what is hidden, and how.

    Returns:
        The hidden tokens, -100 elsewhere, and what the model reads; (L,) each.
    """
    random = np.random.default_rng(seed_of("masked_lm", key))
    hidden = random.choice(places, max(1, round(HIDDEN * len(places))), replace=False)
    how = random.random(len(hidden))
    drawn = random.choice(others, len(hidden))
    labels, shown = np.full_like(ids, IGNORE), ids.copy()
    labels[hidden] = ids[hidden]
    shown[hidden] = np.select([how < MASKED, how < MASKED + REPLACED], [mask, drawn], ids[hidden])
    return labels, shown


def _cut(tokenizer: PreTrainedTokenizerBase, texts: list[str], room: int) -> list[list[str]]:
    """Each text in pieces of at most `room` tokens, without those that have no token but special ones.

    It is cut between two words, or within one that is longer than a piece.
    """
    special = set(tokenizer.all_special_ids)
    found = tokenize(tokenizer, texts, special=False)
    whole: list[list[str]] = []
    for number, text in enumerate(texts):
        ids, spans, words = (
            found["input_ids"][number],
            found["offset_mapping"][number],
            found.word_ids(number),
        )
        if len(ids) <= room:
            whole.append([] if special.issuperset(ids) else [text])
            continue
        ends, first = [0], 0
        while len(ids) - first > room:
            last = first + room
            starts = [place for place in range(first + 1, last + 1) if words[place] != words[place - 1]]
            last = starts[-1] if starts else last
            ends.append(min(spans[last - 1][1], spans[last][0]))
            first = last
        ends.append(len(text))
        if min(np.diff(ends)) < 1:
            raise DataError(
                f"the text {text[:60]!r} has a character of more than {room} tokens; raise dataset.max_length"
            )
        parts = [text[begin:end] for begin, end in itertools.pairwise(ends)]
        whole.append([piece for pieces in _cut(tokenizer, parts, room) for piece in pieces])
    return whole


def _require_mask(tokenizer: PreTrainedTokenizerBase) -> int:
    """The mask token.

    Raises:
        ModelError: there is none.
    """
    if tokenizer.mask_token_id is None:
        raise ModelError(
            f"{type(tokenizer).__name__} has no mask token, which the task masked_lm hides tokens with; use an encoder that was "
            "trained on masked text (BERT, RoBERTa, DistilBERT …), or dataset.task=causal_lm for a decoder"
        )
    return int(tokenizer.mask_token_id)


def _no_head(why: str) -> ModelError:
    return ModelError(
        f"{why} The task masked_lm needs an encoder with a masked-LM head (BertForMaskedLM, RobertaForMaskedLM …); use one, or "
        "dataset.task=causal_lm for a decoder"
    )
