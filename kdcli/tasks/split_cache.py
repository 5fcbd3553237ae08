"""A cache of tokenized splits."""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Callable, Hashable
from typing import Generic, Protocol, TypeVar

import datasets
from transformers import PreTrainedTokenizerBase

MOST_BYTES = 2**30
"""How much memory the tokenized splits of a task may take."""


class Sized(Protocol):
    """Something that takes memory."""

    @property
    def nbytes(self) -> int: ...


T = TypeVar("T", bound=Sized)


class SplitCache(Generic[T]):
    """Tokenized splits, by their rows, their tokenizer and the maximum length; the least recently used go beyond `MOST_BYTES`.

    A run reads the same split for its checks, for each of its phases and for its evaluation, with tokenizers that are loaded anew from the
    teacher, the initialised student and the trained one, and give the same tokens.
    """

    def __init__(self) -> None:
        self._splits: OrderedDict[Hashable, tuple[T, PreTrainedTokenizerBase]] = OrderedDict()

    def get(
        self,
        tokenizer: PreTrainedTokenizerBase,
        rows: datasets.Dataset,
        max_length: int,
        encode: Callable[[PreTrainedTokenizerBase, datasets.Dataset, int], T],
    ) -> T:
        """The rows as `encode(tokenizer, rows, max_length)` returns them."""
        key = rows._fingerprint, max_length, tokenizer_key(tokenizer)
        if key not in self._splits:
            # the entry holds the tokenizer too, so that no other one can get its id
            self._splits[key] = encode(tokenizer, rows, max_length), tokenizer
            while (
                len(self._splits) > 1 and sum(split.nbytes for split, _ in self._splits.values()) > MOST_BYTES
            ):
                self._splits.popitem(last=False)
        self._splits.move_to_end(key)
        return self._splits[key][0]


def tokenizer_key(tokenizer: PreTrainedTokenizerBase) -> Hashable:
    """A value that two tokenizers share only if they cut every text into the same tokens. A tokenizer without a fast backend shares it
    with no other."""
    settings = (
        type(tokenizer).__name__,
        tuple(tokenizer.model_input_names),
        repr(tokenizer.special_tokens_map),
        repr(tokenizer.chat_template),
        tokenizer.truncation_side,
    )
    if not tokenizer.is_fast:
        return *settings, id(tokenizer)
    backend = tokenizer.backend_tokenizer
    backend.no_truncation()  # each call sets truncation and padding anew
    backend.no_padding()
    return *settings, hashlib.sha256(backend.to_str().encode()).hexdigest()
