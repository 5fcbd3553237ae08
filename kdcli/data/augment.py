"""Augments text for the teacher: words of a text are replaced by others that a masked language model finds likely there, or whose word
embeddings are the nearest.

Jiao et al. 2020 (TinyBERT, https://arxiv.org/abs/1909.10351), Algorithm 1: the candidates of a word are the K most likely other words at its
position while it is masked; in each of N_a copies of the text, a word is replaced with probability p_t by one of its candidates. For a
word of several tokens the paper uses the nearest GloVe vectors; here such a word is masked by one mask token, as a word of a single
token is. If the checkpoint has no masked-LM head, the candidates are the words with the nearest word embeddings. The authors' code also skips
stop words and words with other letters than a-z; the paper does not say so, and kdcli does not.
"""

from __future__ import annotations

import itertools
import re
import unicodedata
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import datasets
import numpy as np
import torch
from transformers import BatchEncoding, PreTrainedTokenizerBase

from kdcli.config.dataset import Augment
from kdcli.config.dataset import Dataset as DatasetConfig
from kdcli.config.schema import Teacher
from kdcli.device import to_default_device
from kdcli.errors import ModelError
from kdcli.generation import seed_of
from kdcli.models.checkpoint import (
    Checkpoint,
    find,
    has_head,
    load_model,
    load_tokenizer,
    with_new_head,
)
from kdcli.tasks.base import Task
from kdcli.tasks.classification.rows import ClassificationRows
from kdcli.tasks.encoded import padded
from kdcli.tasks.language_model import head_of
from kdcli.tasks.masked_lm.task import MaskedLM

WINDOW = 64
"""The number of rows whose words are masked together."""
_MARKUP = re.compile(r"</?[a-zA-Z][^<>]*>")
_REMEDY = "name a checkpoint with a masked-LM head (BERT, RoBERTa, DistilBERT …) with dataset.augment.path"


@dataclass
class Word:
    """A word of a text.

    Attributes:
        start, end: its first character, and the one after its last.
        tokens: the index of its first token, and the one after its last.
        candidates: the words that may replace it, in the order of the vocabulary.
    """

    start: int
    end: int
    tokens: tuple[int, int]
    candidates: list[str] = field(default_factory=list)


_Query = tuple[Word, list[int], int]
"""A word with its token ids and the index of its text."""


def find_proposer(cfg: Augment, teacher: Teacher) -> Checkpoint:
    """Return the checkpoint that proposes words: the configured one, whose code is not run, or the teacher's before it is tuned.

    Raises:
        ConfigError, ModelError: it does not exist, or has no masked-LM head, which the config asks for.
    """
    if cfg.path is None:
        source = find(teacher, "teacher")
    else:
        own = {"path": cfg.path, "revision": cfg.revision, "trust_remote_code": False}
        source = find(teacher.model_copy(update=own), "dataset.augment")
    if cfg.method == "mlm" and not has_head(source, MaskedLM()):
        raise ModelError(f"dataset.augment: {source.name} has no masked-LM head; {_REMEDY}")
    return source


def augmented(
    rows: datasets.Dataset,
    proposer: Proposer,
    cfg: DatasetConfig,
    seed: int,
    excluded: Collection[str],
    progress: Callable[[int], None],
) -> datasets.Dataset:
    """Return copies of rows with other words, and without labels.

    The random choices for a row depend on the seed and its id alone. Both texts of a pair are changed independently (the authors' code
    changes one after the other). Words beyond `max_length` tokens and words in markup (<br />) stay unchanged.

    Args:
        rows: columns id, text, (text_pair) and label.
        proposer: reads `max_length` tokens.
        cfg: with `augment`.
        excluded: ids of rows that must not be created, such as those of validation and test.
        progress: called with the number of finished rows.

    Returns:
        Rows as `kdcli.data` creates them, in the order of their ids, without duplicates and without rows that are in `rows` or `known`. Empty
        if no word has a candidate.
    """
    settings = cfg.augment
    assert settings is not None
    schema = ClassificationRows(
        cfg.model_copy(update={"replace": {}})
    ).unlabelled()  # dataset.replace was applied before
    columns = [column for column in ("text", "text_pair") if column in rows.column_names]
    sizes = [sum(map(len, texts)) for texts in zip(*(rows[column][:] for column in columns), strict=True)]
    order = sorted(range(len(rows)), key=list(zip(sizes, rows["id"][:], strict=True)).__getitem__)
    seen = {*excluded, *rows["id"][:]}
    made: list[dict[str, Any]] = []
    for start in range(0, len(order), WINDOW):
        chunk = list(rows.select(order[start : start + WINDOW]))
        texts = [row[column] for row in chunk for column in columns]
        words = iter(proposer.propose(texts, settings.candidates, settings.batch_size))
        for row in chunk:
            sides = [(row[column], next(words)) for column in columns]
            random = np.random.default_rng(seed_of(seed, "augment", row["id"]))
            for _ in range(settings.copies):
                copy = [_replaced(text, own, settings.probability, random) for text, own in sides]
                new = schema.row((*copy, None), f"a copy of row {row['id']}")
                if new is not None and new["id"] not in seen:
                    seen.add(new["id"])
                    made.append(new)
        progress(start + len(chunk))
    made.sort(key=lambda row: row["id"])
    table = {column: [row[column] for row in made] for column in rows.features}
    return datasets.Dataset.from_dict(table, features=rows.features)


class Proposer(ABC):
    """Finds words that may replace the words of a text.

    Args:
        tokenizer: a fast tokenizer.
        max_length: the maximum number of tokens of a text.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, max_length: int):
        self.tokenizer, self.max_length = tokenizer, max_length
        self.words = whole_words(tokenizer)
        self.spelt: dict[str, list[int]] = {}
        for token, word in self.words.items():
            self.spelt.setdefault(word.casefold(), []).append(token)

    @abstractmethod
    def _set_candidates(
        self, queries: Sequence[_Query], encodings: BatchEncoding, candidates: int, batch_size: int
    ) -> None:
        """Set the candidates of words."""

    def propose(self, texts: Sequence[str], candidates: int, batch_size: int) -> list[list[Word]]:
        """Return the words of each text that have candidates, in their order.

        Args:
            candidates: the maximum number of candidates of a word.
            batch_size: words in a batch.
        """
        encodings = self.tokenizer(
            list(texts), truncation=True, max_length=self.max_length, return_offsets_mapping=True
        )
        words_of: list[list[Word]] = []
        queries: list[_Query] = []
        for index, text in enumerate(texts):
            spans, ids = encodings["offset_mapping"][index], encodings["input_ids"][index]
            words_of.append(list(self._words(text, ids, spans, encodings.word_ids(index))))
            queries += [(word, ids[slice(*word.tokens)], index) for word in words_of[-1]]
        self._set_candidates(queries, encodings, candidates, batch_size)
        return [[word for word in words if word.candidates] for words in words_of]

    def _words(
        self, text: str, ids: list[int], spans: list[tuple[int, int]], words: list[int | None]
    ) -> Iterator[Word]:
        """Yield the words of the tokenizer, without the punctuation around them."""
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
                yield Word(start, end, (tokens[0], tokens[-1] + 1))


class MaskedLMProposer(Proposer):
    """A masked language model, fp32, on the GPU if there is one.

    Raises:
        ModelError: the checkpoint has no masked-LM head, or its tokenizer no mask token.
        ConfigError: the model cannot read `max_length` tokens.
    """

    def __init__(self, source: Checkpoint, max_length: int):
        self.task = MaskedLM()
        try:
            self.model, new = load_model(source, self.task)
        except ModelError as error:
            raise ModelError(f"dataset.augment: {error.message}. To propose words, {_REMEDY}") from error
        if new:
            raise ModelError(f"dataset.augment: {source.name} has no masked-LM head; {_REMEDY}")
        tokenizer = load_tokenizer(source, self.model, max_length)
        if tokenizer.mask_token_id is None or not tokenizer.is_fast:
            raise ModelError(
                f"dataset.augment: {source.name} needs a fast tokenizer (tokenizer.json) with a mask token; {_REMEDY}"
            )
        super().__init__(tokenizer, max_length)
        to_default_device(self.model)
        self.others = torch.ones(len(head_of(self.model).weight), dtype=torch.bool, device=self.model.device)
        self.others[list(self.words)] = False

    def _set_candidates(
        self, queries: Sequence[_Query], encodings: BatchEncoding, candidates: int, batch_size: int
    ) -> None:
        keys = [key for key in self.tokenizer.model_input_names if key != "attention_mask"]
        masked: list[tuple[Word, list[int], dict[str, Any]]] = []
        for word, own, index in queries:
            first, end = word.tokens
            columns = {key: encodings[key][index] for key in keys}
            hidden = {key: [*flat[: first + 1], *flat[end:]] for key, flat in columns.items()}
            hidden["input_ids"][first] = self.tokenizer.mask_token_id
            masked.append((word, own, hidden))
        masked.sort(key=lambda query: len(query[2]["input_ids"]))
        for start in range(0, len(masked), batch_size):
            self._score(masked[start : start + batch_size], candidates)

    @torch.no_grad()
    def _score(self, queries: Sequence[tuple[Word, list[int], dict[str, Any]]], candidates: int) -> None:
        """Set the candidates of a batch of words.

        Args:
            queries: words, their token ids, and the inputs in which they are masked.
        """
        features = [hidden | {"row": row} for row, (_, _, hidden) in enumerate(queries)]
        batch = padded(features, self.tokenizer.model_input_names, self.tokenizer)
        inputs = {key: values.to(self.model.device) for key, values in batch.items()}
        columns = torch.tensor([word.tokens[0] for word, _, _ in queries]).to(self.model.device)
        outputs = self.task.signal(self.model, inputs, (inputs.pop("rows"), columns))
        logits = outputs.rows(slice(0, len(queries))).logits.masked_fill(self.others, -torch.inf)
        for line, (_, own, _) in zip(logits, queries, strict=True):
            line[self.spelt.get(_spelling(self.tokenizer, own).casefold(), [])] = -torch.inf
        best = logits.topk(min(candidates, logits.shape[-1]))
        allowed = (best.values > -torch.inf).tolist()
        for (word, _, _), tokens, mask in zip(queries, best.indices.tolist(), allowed, strict=True):
            word.candidates = [self.words[token] for token in sorted(itertools.compress(tokens, mask))]


class EmbeddingProposer(Proposer):
    """The word embeddings of a model, fp32: the candidates of a word are the words with the largest cosine, after the mean of all embeddings is
    subtracted. A word of several tokens has none.

    Args:
        task: decides with which head the checkpoint is loaded. The head is not used.

    Raises:
        ModelError: the tokenizer is not a fast one.
    """

    def __init__(self, source: Checkpoint, task: Task, max_length: int):
        model = load_model(source, task)[0] if has_head(source, task) else with_new_head(source, task)
        tokenizer = load_tokenizer(source, model, max_length)
        if not tokenizer.is_fast:
            raise ModelError(
                f"dataset.augment: {source.name} needs a fast tokenizer (tokenizer.json); name another checkpoint with dataset.augment.path"
            )
        super().__init__(tokenizer, max_length)
        self.tokens = sorted(self.words)
        vectors = torch.as_tensor(model.get_input_embeddings().weight).detach()[self.tokens].float()
        self.vectors = torch.nn.functional.normalize(vectors - vectors.mean(0), dim=1)
        self.row = {token: row for row, token in enumerate(self.tokens)}
        self.nearest: dict[tuple[int, int], list[str]] = {}

    def _set_candidates(
        self, queries: Sequence[_Query], encodings: BatchEncoding, candidates: int, batch_size: int
    ) -> None:
        single = [(word, own[0]) for word, own, _ in queries if len(own) == 1 and own[0] in self.row]
        new = sorted({token for _, token in single if (token, candidates) not in self.nearest})
        for start in range(0, len(new), batch_size):
            part = new[start : start + batch_size]
            cosines = self.vectors[[self.row[token] for token in part]] @ self.vectors.T
            for line, token in zip(cosines, part, strict=True):
                same = self.spelt[self.words[token].casefold()]
                line[[self.row[other] for other in same]] = -torch.inf
                best = line.topk(min(candidates, max(0, len(line) - len(same)))).indices.tolist()
                self.nearest[token, candidates] = [self.words[self.tokens[row]] for row in sorted(best)]
        for word, token in single:
            word.candidates = self.nearest[token, candidates]


def load_proposer(source: Checkpoint, task: Task, cfg: Augment, max_length: int) -> Proposer:
    """Return the proposer that the config asks for, with the checkpoint of `find_proposer`."""
    if cfg.method == "mlm" or (cfg.method is None and has_head(source, MaskedLM())):
        return MaskedLMProposer(source, max_length)
    return EmbeddingProposer(source, task, max_length)


def whole_words(tokenizer: PreTrainedTokenizerBase) -> dict[int, str]:
    """Return the tokens that are words by themselves, with their text.

    A token is a word if its text after a space is tokenized into this token alone, which excludes pieces inside a word (##ing), and if it has
    a letter or a digit.
    """
    special = set(tokenizer.all_special_ids)
    tokens = [token for token in sorted(tokenizer.get_vocab().values()) if token not in special]
    names = [_spelling(tokenizer, [token]) for token in tokens]
    encodings = tokenizer([f" {name}" for name in names], add_special_tokens=False)["input_ids"]
    return {
        token: name
        for token, name, ids in zip(tokens, names, encodings, strict=True)
        if ids == [token] and any(map(str.isalnum, name))
    }


def _spelling(tokenizer: PreTrainedTokenizerBase, ids: list[int]) -> str:
    return str(tokenizer.decode(ids, clean_up_tokenization_spaces=False)).strip()


def _core(text: str, start: int, end: int) -> tuple[int, int]:
    """Return the first character of a word and the one after its last, without punctuation, symbols and spaces around it, and with all combining marks
    of its letters, which some tokenizers skip."""
    while _category(text[end : end + 1]) == "M":
        end += 1
    inner = [index for index in range(start, end) if _category(text[index]) in "LMN"]
    return (inner[0], inner[-1] + 1) if inner else (start, start)


def _category(character: str) -> str:
    """Return the Unicode category of a character: L(etter), M(ark), N(umber), P(unctuation), S(ymbol) …; empty for no character."""
    return unicodedata.category(character)[0] if character else ""


def _replaced(text: str, words: Sequence[Word], probability: float, random: np.random.Generator) -> str:
    """Return the text with some of its words replaced by candidates."""
    hit = random.random(len(words)) < probability
    drawn = random.integers(np.array([len(word.candidates) for word in words], np.int64))
    parts, last = [], 0
    for word, index in itertools.compress(zip(words, drawn, strict=True), hit):
        parts += [text[last : word.start], word.candidates[index]]
        last = word.end
    return "".join([*parts, text[last:]])
