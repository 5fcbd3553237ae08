"""More text for the teacher alone: some words of a text are replaced by others that a masked language model finds likely there.

Jiao et al. 2020 (TinyBERT, https://arxiv.org/abs/1909.10351), Algorithm 1: of each word the K likeliest others at its place,
while it is hidden, are its candidates; in each of N_a copies of the text, a word is replaced with probability p_t, by one of them. For
a word of several pieces the paper takes the nearest GloVe vectors; there are no word vectors here, and such a word is hidden
behind one mask token, as one of a single piece is. The authors' code also leaves stop words and all but a-z alone; the paper does not
say so, and neither is done here.
"""

from __future__ import annotations

import itertools
import re
import unicodedata
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import datasets
import numpy as np
import torch
from transformers import PreTrainedTokenizerBase

from kdcli.config.dataset import Augment
from kdcli.config.dataset import Dataset as DatasetConfig
from kdcli.config.schema import Teacher
from kdcli.errors import ModelError
from kdcli.generation import seed_of
from kdcli.models.checkpoint import Checkpoint, find, has_head, load_model, load_tokenizer
from kdcli.tasks.classification.rows import ClassificationRows
from kdcli.tasks.encoded import padded
from kdcli.tasks.language_model import head_of
from kdcli.tasks.masked_lm.task import MaskedLM

WINDOW = 64
"""Rows whose words are asked for together."""
_MARKUP = re.compile(r"</?[a-zA-Z][^<>]*>")
_REMEDY = "name a checkpoint with a masked-LM head (BERT, RoBERTa, DistilBERT …) with dataset.augment.path"


@dataclass
class Place:
    """A word of a text.

    Attributes:
        start, end: its characters.
        tokens: its tokens among the text's: the first, and the one after the last.
        candidates: the words that may stand there instead, in the order of the vocabulary.
    """

    start: int
    end: int
    tokens: tuple[int, int]
    candidates: list[str] = field(default_factory=list)


def find_proposer(cfg: Augment, teacher: Teacher) -> Checkpoint:
    """The checkpoint that proposes words: the one named, of which no code is run, or the teacher's, as it is before it is tuned.

    Raises:
        ConfigError, ModelError: it cannot be found, or does not say that it has a masked-LM head.
    """
    if cfg.path is None:
        source = find(teacher, "teacher")
    else:
        own = {"path": cfg.path, "revision": cfg.revision, "trust_remote_code": False}
        source = find(teacher.model_copy(update=own), "dataset.augment")
    if not has_head(source, MaskedLM()):
        raise ModelError(f"dataset.augment: {source.name} has no masked-LM head; {_REMEDY}")
    return source


def augmented(
    rows: datasets.Dataset,
    proposer: Proposer,
    cfg: DatasetConfig,
    seed: int,
    known: Collection[str],
    progress: Callable[[int], None],
) -> datasets.Dataset:
    """Copies of rows with other words, and without labels.

    What is drawn for a row depends on the seed and its id alone. Of a pair both texts are changed, each by itself (the authors' code
    changes one after the other). Words beyond `max_length` tokens stay, as does what is inside of markup (<br />).

    Args:
        rows: columns id, text, (text_pair) and label.
        proposer: reads `max_length` tokens.
        cfg: with `augment`.
        known: ids of rows that must not be made, such as those of validation and test.
        progress: called with the number of rows that are done so far.

    Returns:
        Columns and ids as `kdcli.data` makes them, in the order of the ids: no row twice, none that is among `rows` or known. Empty if no
        word has a candidate.
    """
    how = cfg.augment
    assert how is not None
    schema = ClassificationRows(cfg.model_copy(update={"replace": {}})).unlabelled()  # it has been done
    columns = [column for column in ("text", "text_pair") if column in rows.column_names]
    sizes = [sum(map(len, texts)) for texts in zip(*(rows[column][:] for column in columns), strict=True)]
    order = sorted(range(len(rows)), key=list(zip(sizes, rows["id"][:], strict=True)).__getitem__)
    seen = {*known, *rows["id"][:]}
    made: list[dict[str, Any]] = []
    for start in range(0, len(order), WINDOW):
        chunk = list(rows.select(order[start : start + WINDOW]))
        places = iter(
            proposer.places(
                [row[column] for row in chunk for column in columns], how.candidates, how.batch_size
            )
        )
        for row in chunk:
            sides = [(row[column], next(places)) for column in columns]
            random = np.random.default_rng(seed_of(seed, "augment", row["id"]))
            for _ in range(how.copies):
                copy = [_replaced(text, at, how.probability, random) for text, at in sides]
                new = schema.row((*copy, None), f"a copy of row {row['id']}")
                if new is not None and new["id"] not in seen:
                    seen.add(new["id"])
                    made.append(new)
        progress(start + len(chunk))
    made.sort(key=lambda row: row["id"])
    table = {column: [row[column] for row in made] for column in rows.features}
    return datasets.Dataset.from_dict(table, features=rows.features)


class Proposer:
    """A masked language model, fp32, on the GPU if there is one.

    Args:
        max_length: tokens of a text that it reads.

    Raises:
        ModelError: the checkpoint has no masked-LM head, or its tokenizer no mask token.
        ConfigError: the model cannot read `max_length` tokens.
    """

    def __init__(self, source: Checkpoint, max_length: int):
        self.task, self.max_length = MaskedLM(), max_length
        try:
            self.model, new = load_model(source, self.task)
        except ModelError as error:
            raise ModelError(f"dataset.augment: {error.message}. To propose words, {_REMEDY}") from error
        if new:
            raise ModelError(f"dataset.augment: {source.name} has no masked-LM head; {_REMEDY}")
        self.tokenizer = load_tokenizer(source, self.model, max_length)
        if self.tokenizer.mask_token_id is None or not self.tokenizer.is_fast:
            raise ModelError(
                f"dataset.augment: {source.name} needs a fast tokenizer (tokenizer.json) with a mask token; {_REMEDY}"
            )
        if torch.cuda.is_available():
            torch.nn.Module.cuda(self.model)
        self.words = whole_words(self.tokenizer)
        self.spelt: dict[str, list[int]] = {}
        for number, word in self.words.items():
            self.spelt.setdefault(word.casefold(), []).append(number)
        self.others = torch.ones(len(head_of(self.model).weight), dtype=torch.bool, device=self.model.device)
        self.others[list(self.words)] = False

    def places(self, texts: Sequence[str], candidates: int, batch_size: int) -> list[list[Place]]:
        """The words of each text that have candidates, in their order.

        Args:
            candidates: of a word, at most.
            batch_size: words that are asked for at once.
        """
        keys = [key for key in self.tokenizer.model_input_names if key != "attention_mask"]
        read = self.tokenizer(
            list(texts), truncation=True, max_length=self.max_length, return_offsets_mapping=True
        )
        found: list[list[Place]] = []
        asked: list[tuple[Place, list[int], dict[str, Any]]] = []
        for number, text in enumerate(texts):
            spans, ids = read["offset_mapping"][number], read["input_ids"][number]
            found.append(list(self._words(text, ids, spans, read.word_ids(number))))
            for place in found[-1]:
                first, end = place.tokens
                columns = {key: read[key][number] for key in keys}
                hidden = {key: [*flat[: first + 1], *flat[end:]] for key, flat in columns.items()}
                hidden["input_ids"][first] = self.tokenizer.mask_token_id
                asked.append((place, ids[first:end], hidden))
        asked.sort(key=lambda one: len(one[2]["input_ids"]))
        for start in range(0, len(asked), batch_size):
            self._propose(asked[start : start + batch_size], candidates)
        return [[place for place in places if place.candidates] for places in found]

    def _words(
        self, text: str, ids: list[int], spans: list[tuple[int, int]], words: list[int | None]
    ) -> Iterator[Place]:
        """The tokenizer's words, without punctuation around them."""
        special = set(self.tokenizer.all_special_ids) - {self.tokenizer.unk_token_id}
        markup = [match.span() for match in _MARKUP.finditer(text)]
        for word, group in itertools.groupby(range(len(ids)), words.__getitem__):
            if word is None:
                continue
            tokens = list(group)
            start, end = _core(text, spans[tokens[0]][0], spans[tokens[-1]][1])
            tokens = [token for token in tokens if spans[token][0] < end and spans[token][1] > start]
            if (
                any(map(str.isalnum, text[start:end]))
                and special.isdisjoint(ids[token] for token in tokens)
                and not any(begin < end and start < stop for begin, stop in markup)
            ):
                yield Place(start, end, (tokens[0], tokens[-1] + 1))

    @torch.no_grad()
    def _propose(self, asked: Sequence[tuple[Place, list[int], dict[str, Any]]], candidates: int) -> None:
        """Give places their candidates."""
        features = [hidden | {"row": row} for row, (_, _, hidden) in enumerate(asked)]
        batch = padded(features, self.tokenizer.model_input_names, self.tokenizer)
        inputs = {key: values.to(self.model.device) for key, values in batch.items()}
        columns = torch.tensor([place.tokens[0] for place, _, _ in asked]).to(self.model.device)
        said = self.task.signal(self.model, inputs, (inputs.pop("rows"), columns))
        logits = said.rows(slice(0, len(asked))).logits.masked_fill(self.others, -torch.inf)
        for line, (_, own, _) in zip(logits, asked, strict=True):
            line[self.spelt.get(_spelling(self.tokenizer, own).casefold(), [])] = -torch.inf
        best = logits.topk(min(candidates, logits.shape[-1]))
        kept = (best.values > -torch.inf).tolist()
        for (place, _, _), numbers, likely in zip(asked, best.indices.tolist(), kept, strict=True):
            place.candidates = [self.words[number] for number in sorted(itertools.compress(numbers, likely))]


def whole_words(tokenizer: PreTrainedTokenizerBase) -> dict[int, str]:
    """The tokens that are words by themselves, and how they are written.

    A token is one if it is read where that text stands after a space, which a piece that goes on with a word (##ing) is not, and if a
    letter or a digit is in it.
    """
    special = set(tokenizer.all_special_ids)
    numbers = [number for number in sorted(tokenizer.get_vocab().values()) if number not in special]
    names = [_spelling(tokenizer, [number]) for number in numbers]
    read = tokenizer([f" {name}" for name in names], add_special_tokens=False)["input_ids"]
    return {
        number: name
        for number, name, ids in zip(numbers, names, read, strict=True)
        if ids == [number] and any(map(str.isalnum, name))
    }


def _spelling(tokenizer: PreTrainedTokenizerBase, ids: list[int]) -> str:
    return str(tokenizer.decode(ids, clean_up_tokenization_spaces=False)).strip()


def _core(text: str, start: int, end: int) -> tuple[int, int]:
    """Where a word begins and ends without the punctuation, symbols and space around it, and with all marks of its letters, which some
    tokenizers pass over."""
    while _kind(text[end : end + 1]) == "M":
        end += 1
    inner = [place for place in range(start, end) if _kind(text[place]) in "LMN"]
    return (inner[0], inner[-1] + 1) if inner else (start, start)


def _kind(character: str) -> str:
    """What Unicode says of a character: L(etter), M(ark), N(umber), P(unctuation), S(ymbol) …; of none: nothing."""
    return unicodedata.category(character)[0] if character else ""


def _replaced(text: str, places: Sequence[Place], probability: float, random: np.random.Generator) -> str:
    """The text with some of its words replaced by candidates."""
    hit = random.random(len(places)) < probability
    drawn = random.integers(np.array([len(place.candidates) for place in places], np.int64))
    parts, last = [], 0
    for place, number in itertools.compress(zip(places, drawn, strict=True), hit):
        parts += [text[last : place.start], place.candidates[number]]
        last = place.end
    return "".join([*parts, text[last:]])
