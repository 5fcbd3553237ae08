"""Trims the vocabulary of a student to the tokens of its data."""

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
from kdcli.models.checkpoint import Checkpoint
from kdcli.students.pruning.base import PruningInitializer
from kdcli.tasks.base import Task

logger = logging.getLogger(__name__)
KINDS = ("WordPiece", "BPE", "Unigram")
"""The tokenizer models that are supported."""
BYTE = re.compile(r"<0x[0-9A-F]{2}>")
"""A token that represents one byte of a character that is not in the vocabulary."""


class Vocabulary(PruningInitializer):
    """Removes the tokens that the training rows do not use from the embeddings and from the tokenizer (Abdaoui et al. 2020,
    https://arxiv.org/abs/2010.05609). Most weights of a small student are embeddings.

    With min_count = 1 the training rows have the same tokens as before, and the model's outputs for them are bit-identical;
    other texts may have smaller tokens. These tokens are always kept: special and added tokens, single characters (`x`, `##x`),
    bytes, and tokens with a character that is no token itself. Every word whose characters are in the vocabulary can
    therefore be tokenized, and the share of unknown tokens does not grow.

    Args:
        min_count: tokens with a lower frequency in the training rows are removed.
        max_tokens: the maximum number of tokens, of which the most frequent are kept; null: all that `min_count` keeps.
    """

    at_most = True

    def __init__(self, min_count: Count = 1, max_tokens: VocabularySize | None = None):
        self.min_count, self.max_tokens = min_count, max_tokens

    def cut(
        self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, task: Task, rows: datasets.Dataset
    ) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
        """Create a model of the same shape over fewer tokens, whose order does not change.

        Raises:
            ModelError: the tokenizer is not supported.
            ConfigError: the task's classes are the tokens, or more than `max_tokens` must be kept.
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
        token_ids = self._select(state["model"], vocabulary, _required(model, state, vocabulary), counts)
        logger.info("%d of %d tokens are kept", len(token_ids), len(vocabulary))
        renumber(state, token_ids)
        trimmed = copy.deepcopy(tokenizer)
        trimmed._tokenizer = Tokenizer.from_str(json.dumps(state))
        return trim_embeddings(model, token_ids), trimmed

    def skeleton(self, task: Task, teacher: Checkpoint, model: PreTrainedModel) -> PreTrainedModel | None:
        """Return the model with all its tokens: which of them remain depends on the rows."""
        return model

    def require(self, task: Task, model: PreTrainedModel) -> None:
        """Check that the task's classes are not tokens."""
        if task.vocabulary:
            raise ConfigError(
                "the vocabulary of a student that predicts tokens cannot be trimmed, because the losses compare the outputs of teacher "
                "and student over the same tokens. Use another student (student=layers, pruned)"
            )

    def _select(
        self, inner: Mapping[str, Any], vocabulary: Mapping[str, int], required: set[int], counts: np.ndarray
    ) -> list[int]:
        """Return the ids of the selected tokens in ascending order.

        Args:
            inner: the tokenizer's model, as JSON.
            required: the ids that are always selected.
            counts: the frequency of each token in the training rows, (tokens,).
        """
        parts: dict[int, set[int]] = {}
        for left, right, both in _merges(inner):
            parts.setdefault(vocabulary[both], set()).update((vocabulary[left], vocabulary[right]))
        selected: set[int] = set()
        for token in required:
            selected |= _with_parts(token, parts, selected)
        if self.max_tokens is not None and len(selected) > self.max_tokens:
            raise ConfigError(
                f"student.max_tokens = {self.max_tokens}: {len(selected)} tokens must be kept in any case (special tokens, "
                "single characters); give at least this number"
            )
        for token in np.argsort(-counts, kind="stable").tolist():
            added = _with_parts(token, parts, selected)
            if counts[token] < self.min_count or len(selected) + len(added) > (
                self.max_tokens or sys.maxsize
            ):
                break
            selected |= added
        return sorted(selected)


def _merges(inner: Mapping[str, Any]) -> Iterator[tuple[str, str, str]]:
    """Yield the merges of BPE: the two parts, and the merged token."""
    prefix = inner.get("continuing_subword_prefix") or ""
    for left, right in inner.get("merges", ()):
        yield left, right, left + right.removeprefix(prefix)


def _with_parts(token: int, parts: Mapping[int, set[int]], selected: set[int]) -> set[int]:
    """Return the token and, recursively, its parts, without those that are selected already."""
    added, queue = set(), [token]
    while queue:
        if (part := queue.pop()) not in selected and part not in added:
            added.add(part)
            queue += parts.get(part, ())
    return added


def _required(model: PreTrainedModel, state: Mapping[str, Any], vocabulary: Mapping[str, int]) -> set[int]:
    """Return the ids of the tokens that are always kept."""
    inner = state["model"]
    prefix, suffix = inner.get("continuing_subword_prefix") or "", inner.get("end_of_word_suffix") or ""
    named = {holder[key] for holder, key in _special_ids(state)}
    for config in _configs(model.config):
        named |= {i for value in _token_ids(config).values() for i in np.atleast_1d(value).tolist()}
    required = {
        token_id
        for token, token_id in vocabulary.items()
        if token_id in named
        or token == inner.get("unk_token")
        or BYTE.fullmatch(token)
        or any(form == token or form not in vocabulary for form in _spelled(token, prefix, suffix))
    }
    if inner["type"] == "Unigram":
        # The score of an unknown character is derived from the lowest score. The unknown token keeps its id, because
        # tokenizer classes of transformers store it.
        scores = [score for _, score in inner["vocab"]]
        required |= {scores.index(min(scores)), *range(1 + (inner["unk_id"] or 0))}
    words = model.get_input_embeddings()
    for part in model.modules():  # RoBERTa and similar models count positions from the padding token's id on
        if isinstance(part, nn.Embedding) and part.weight is not words.weight:
            required |= set(range(part.padding_idx or 0))
    return required


def _spelled(token: str, prefix: str, suffix: str) -> list[str]:
    """Return the characters of a token, in the form in which each is a token itself."""
    forms = [prefix + letter for letter in token.removeprefix(prefix).removesuffix(suffix)]
    if forms and not token.startswith(prefix):
        forms[0] = forms[0].removeprefix(prefix)
    if forms and token.endswith(suffix):
        forms[-1] += suffix
    return forms


def _special_ids(state: Mapping[str, Any]) -> Iterator[tuple[Any, Any]]:
    """Yield the locations of special token ids in a tokenizer's JSON: the mapping or list, and the key or index in it."""
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
                    yield from ((token["ids"], index) for index in range(len(token["ids"])))
            case {"type": "BertProcessing" | "RobertaProcessing", "sep": sep, "cls": cls}:
                yield sep, 1
                yield cls, 1


def renumber(state: dict[str, Any], token_ids: Sequence[int]) -> None:
    """Remove all but the selected tokens from a tokenizer's JSON, and give them new ids from 0 in their order."""
    new_ids = {old: new for new, old in enumerate(token_ids)}
    for holder, key in _special_ids(state):
        holder[key] = new_ids[holder[key]]
    inner = state["model"]
    if inner["type"] == "Unigram":
        inner["vocab"] = [entry for old, entry in enumerate(inner["vocab"]) if old in new_ids]
    else:
        inner["vocab"] = {token: new_ids[old] for token, old in inner["vocab"].items() if old in new_ids}
    if inner["type"] == "BPE":
        inner["merges"] = [[left, right] for left, right, both in _merges(inner) if both in inner["vocab"]]


def trim_embeddings(model: PreTrainedModel, token_ids: Sequence[int]) -> PreTrainedModel:
    """Create the same model with the selected rows of the embeddings and, if there is one, of the output head."""
    new_ids = {old: new for new, old in enumerate(token_ids)}
    config = copy.deepcopy(model.config)
    config.get_text_config().vocab_size = len(token_ids)
    for part in _configs(config):
        for name, value in _token_ids(part).items():
            is_list = isinstance(value, list)
            new = [new_ids[old] for old in value if old in new_ids] if is_list else new_ids.get(value)
            setattr(part, name, new)
    modules = filter(None, (model.get_input_embeddings(), model.get_output_embeddings()))
    tables = {id(weight) for module in modules for weight in module.parameters()}
    smaller = type(model)(config)
    weights = model.state_dict()
    for name, weight in model.named_parameters(remove_duplicate=False):
        if id(weight) in tables:
            weights[name] = weights[name][list(token_ids)]
    smaller.load_state_dict(weights)
    return smaller.eval()


def _configs(config: PreTrainedConfig) -> list[PreTrainedConfig]:
    """Return a model's config and, if it is another one, the config of its text model."""
    inner = config.get_text_config()
    return [config] if inner is config else [config, inner]


def _token_ids(config: PreTrainedConfig) -> dict[str, Any]:
    """Return the token ids in a config by key: an id, or a list of ids."""
    return {
        name: value
        for name, value in vars(config).items()
        if name.endswith("_token_id") and value is not None
    }
