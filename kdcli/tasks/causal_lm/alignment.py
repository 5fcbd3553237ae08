"""Finds where tokens begin in a text, by which the tokens of two tokenizers are matched."""

from __future__ import annotations

import numpy as np

from kdcli.tasks.encoded import Encoded
from kdcli.tasks.rows import IGNORE

SPAN = 2**20
"""An upper bound of the characters in a turn, or in a document of a packed row."""
NOWHERE = -(2**30)
"""The start of a token that begins at no character."""


def counted_starts(encoded: Encoded, row: int) -> np.ndarray:
    """Return the characters at which the counted tokens of a row begin."""
    item = encoded[row]
    return item["starts"][1:][item["labels"][1:] != IGNORE]


def token_starts(span: np.ndarray, begin: int) -> np.ndarray:
    """Return the start of each token, in characters from `begin`: the end of the token before it, because some tokenizers do not count the space
    with which a token begins. Tokens that begin inside a character have the start `NOWHERE`.

    Args:
        span: the first character of each token and the one after its last, (L, 2).
    """
    before = np.concatenate([[0], np.maximum.accumulate(span[:-1, 1])])[: len(span)]
    return np.where(span[:, 0] < before, NOWHERE, np.maximum(before - begin, 0))
