"""A student that knows only the tokens of its data."""

from __future__ import annotations

import copy
import json
import logging
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import datasets
import numpy as np
from tokenizers import Tokenizer
from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase, PreTrainedTokenizerFast

from kdcli.config.types import Count, VocabularySize
from kdcli.errors import ConfigError, ModelError
from kdcli.students.pruning.base import PruningInitializer
from kdcli.tasks.base import Task

logger = logging.getLogger(__name__)
KINDS = ("WordPiece", "BPE", "Unigram")
"""The kinds of tokenizers that are understood."""
BYTE = re.compile(r"<0x[0-9A-F]{2}>")
"""A token that stands for one byte of a character that is no token."""


class Vocabulary(PruningInitializer):
    """The model without the tokens that the training rows do not use: their rows of the embeddings go, and their entries
    in the tokenizer (Abdaoui et al. 2020, https://arxiv.org/abs/2010.05609). A small student is mostly embeddings.

    With min_count = 1 the training rows are cut into the same tokens as before, and the model answers them alike, bit
    for bit; other texts may be cut into smaller tokens. Whatever the rows hold, these stay: special and added tokens,
    single characters (`x`, `##x`), bytes, and tokens with a character that is no token itself. So a word whose
    characters are all in the vocabulary is always spelled, and the share of unknown tokens does not grow.

    Args:
        min_count: tokens that the training rows use fewer times are dropped.
        max_tokens: at most so many are kept, the most frequent ones; null: all that `min_count` leaves.
    """

    def __init__(self, min_count: Count = 1, max_tokens: VocabularySize | None = None):
        self.min_count, self.max_tokens = min_count, max_tokens

    def cut(
        self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, task: Task, rows: datasets.Dataset
    ) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
        """A model of the same shape over fewer tokens, which stay in their order.

        Raises:
            ModelError: of a tokenizer that is not understood.
            ConfigError: the classes are the tokens, or more than `max_tokens` have to stay.
        """
        self.require(task, model)
        if not isinstance(tokenizer, PreTrainedTokenizerFast):
            raise ModelError(
                f"{type(tokenizer).__name__}: tokens can be dropped from a tokenizer.json only, and this tokenizer is "
                "written in Python; use another model, or leave its vocabulary as it is"
            )
        state = json.loads(tokenizer.backend_tokenizer.to_str())
        if (kind := state["model"]["type"]) not in KINDS:
            raise ModelError(
                f"{type(tokenizer).__name__}: tokens can be dropped from {', '.join(KINDS)} tokenizers, and this one is "
                f"{kind}; use another model, or leave its vocabulary as it is"
            )
        used = task.encode(tokenizer, rows, sys.maxsize).columns["input_ids"]
        vocabulary = tokenizer.get_vocab()
        counts = np.bincount(used, minlength=max(vocabulary.values()) + 1)
        kept = self._kept(state["model"], vocabulary, _fixed(model, state, vocabulary), counts)
        logger.info("%d of %d tokens are kept", len(kept), len(vocabulary))
        renumber(state, kept)
        trimmed = copy.deepcopy(tokenizer)
        trimmed._tokenizer = Tokenizer.from_str(json.dumps(state))
        return with_rows(model, kept), trimmed

    def require(self, task: Task, model: PreTrainedModel) -> None:
        """Its classes are no tokens."""
        if task.vocabulary:
            raise ConfigError(
                "the student's vocabulary cannot be trimmed where models predict tokens: the losses compare what teacher "
                "and student say of the same ones. Take another student (student=layers, pruned)"
            )

    def _kept(
        self, inner: Mapping[str, Any], vocabulary: Mapping[str, int], fixed: set[int], counts: np.ndarray
    ) -> list[int]:
        """The numbers of the tokens that stay, in their order.

        Args:
            inner: the tokenizer's model, as JSON.
            fixed: those that stay whatever the rows hold.
            counts: how often the training rows use each token, (tokens,).
        """
        parts: dict[int, set[int]] = {}
        for left, right, both in _merges(inner):
            parts.setdefault(vocabulary[both], set()).update((vocabulary[left], vocabulary[right]))
        kept: set[int] = set()
        for token in fixed:
            kept |= _lacking(token, parts, kept)
        if self.max_tokens is not None and len(kept) > self.max_tokens:
            raise ConfigError(
                f"student.max_tokens = {self.max_tokens}: {len(kept)} tokens have to stay in any case (special tokens, "
                "single characters); give at least so many"
            )
        for token in np.argsort(-counts, kind="stable").tolist():
            more = _lacking(token, parts, kept)
            if counts[token] < self.min_count or len(kept) + len(more) > (self.max_tokens or sys.maxsize):
                break
            kept |= more
        return sorted(kept)


def _merges(inner: Mapping[str, Any]) -> Iterator[tuple[str, str, str]]:
    """What BPE makes one token of: the two parts, and the token."""
    prefix = inner.get("continuing_subword_prefix") or ""
    for left, right in inner.get("merges", ()):
        yield left, right, left + right.removeprefix(prefix)


def _lacking(token: int, parts: Mapping[int, set[int]], kept: set[int]) -> set[int]:
    """The token, its parts, and theirs, as far as they are not kept yet."""
    found, todo = set(), [token]
    while todo:
        if (one := todo.pop()) not in kept and one not in found:
            found.add(one)
            todo += parts.get(one, ())
    return found


def _fixed(model: PreTrainedModel, state: Mapping[str, Any], vocabulary: Mapping[str, int]) -> set[int]:
    """The numbers of the tokens that stay whatever the rows hold."""
    inner = state["model"]
    prefix, suffix = inner.get("continuing_subword_prefix") or "", inner.get("end_of_word_suffix") or ""
    named = {holder[key] for holder, key in _places(state)}
    for config in _configs(model.config):
        named |= {one for value in _token_ids(config).values() for one in np.atleast_1d(value).tolist()}
    fixed = {
        number
        for token, number in vocabulary.items()
        if number in named
        or token == inner.get("unk_token")
        or BYTE.fullmatch(token)
        or any(form == token or form not in vocabulary for form in _spelled(token, prefix, suffix))
    }
    if inner["type"] == "Unigram":
        # What an unknown character costs is reckoned from the lowest score. The unknown token keeps its number, which
        # classes of transformers write down.
        scores = [score for _, score in inner["vocab"]]
        fixed |= {scores.index(min(scores)), *range(1 + (inner["unk_id"] or 0))}
    words = model.get_input_embeddings()
    for part in model.modules():  # RoBERTa and its kin count positions from the padding token's number on
        if isinstance(part, nn.Embedding) and part.weight is not words.weight:
            fixed |= set(range(part.padding_idx or 0))
    return fixed


def _spelled(token: str, prefix: str, suffix: str) -> list[str]:
    """A token's characters, in the forms in which they are tokens themselves."""
    forms = [prefix + letter for letter in token.removeprefix(prefix).removesuffix(suffix)]
    if forms and not token.startswith(prefix):
        forms[0] = forms[0].removeprefix(prefix)
    if forms and token.endswith(suffix):
        forms[-1] += suffix
    return forms


def _places(state: Mapping[str, Any]) -> Iterator[tuple[Any, Any]]:
    """Where a tokenizer's JSON names special tokens by number: the mapping or list, and the key or place in it."""
    for token in state["added_tokens"]:
        yield token, "id"
    if state["padding"] is not None:
        yield state["padding"], "pad_id"
    processors = [state["post_processor"]]
    for processor in processors:
        match processor:
            case {"type": "Sequence", "processors": inner}:
                processors += inner
            case {"type": "TemplateProcessing", "special_tokens": special}:
                for token in special.values():
                    yield from ((token["ids"], place) for place in range(len(token["ids"])))
            case {"type": "BertProcessing" | "RobertaProcessing", "sep": sep, "cls": cls}:
                yield sep, 1
                yield cls, 1


def renumber(state: dict[str, Any], kept: Sequence[int]) -> None:
    """Leave only the kept tokens in a tokenizer's JSON, numbered from 0 in their order."""
    numbers = {old: new for new, old in enumerate(kept)}
    for holder, key in _places(state):
        holder[key] = numbers[holder[key]]
    inner = state["model"]
    if inner["type"] == "Unigram":
        inner["vocab"] = [entry for old, entry in enumerate(inner["vocab"]) if old in numbers]
    else:
        inner["vocab"] = {token: numbers[old] for token, old in inner["vocab"].items() if old in numbers}
    if inner["type"] == "BPE":
        inner["merges"] = [[left, right] for left, right, both in _merges(inner) if both in inner["vocab"]]


def with_rows(model: PreTrainedModel, kept: Sequence[int]) -> PreTrainedModel:
    """The same model over some of its tokens: rows of the embeddings, and of the output head where there is one."""
    numbers = {old: new for new, old in enumerate(kept)}
    config = copy.deepcopy(model.config)
    config.get_text_config().vocab_size = len(kept)
    for each in _configs(config):
        for name, value in _token_ids(each).items():
            several = isinstance(value, list)
            new = [numbers[old] for old in value if old in numbers] if several else numbers.get(value)
            setattr(each, name, new)
    ends = filter(None, (model.get_input_embeddings(), model.get_output_embeddings()))
    tables = {id(weight) for end in ends for weight in end.parameters()}
    smaller = type(model)(config)
    weights = model.state_dict()
    for name, weight in model.named_parameters(remove_duplicate=False):
        if id(weight) in tables:
            weights[name] = weights[name][list(kept)]
    smaller.load_state_dict(weights)
    return smaller.eval()


def _configs(config: PreTrainedConfig) -> list[PreTrainedConfig]:
    """A model's config and, in it, that of the part that reads text, if it has one of its own."""
    inner = config.get_text_config()
    return [config] if inner is config else [config, inner]


def _token_ids(config: PreTrainedConfig) -> dict[str, Any]:
    """The numbers of tokens in a config, by key: one each, or a list."""
    return {
        name: value
        for name, value in vars(config).items()
        if name.endswith("_token_id") and value is not None
    }
