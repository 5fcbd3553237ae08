"""Finds near-duplicates, texts that share most of their shingles, by MinHash, in time that grows linearly with the number of rows.

A shingle is a run of five characters of the text without case, punctuation and repeated white space. One permutation of all shingles is cut
into bins, and the minimum of each bin is a part of a row's signature (Li, Owen and Zhang 2012, https://arxiv.org/abs/1208.1259). Rows that
agree in a band of bins are candidates (Leskovec, Rajaraman and Ullman 2014, section 3.4), whose shingles are compared.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import datasets
import numpy as np

TEXTS = ("text", "text_pair", "prompt", "source")
"""The columns of texts that a model reads."""
ROWS = 100_000
"""The maximum number of rows that are compared."""
SIMILAR = 0.7
"""The least share of common shingles (Jaccard) of two near-duplicates."""
_CHARACTERS = 512
"""The characters of a text that are compared."""
_WIDTH = 5
_BANDS, _IN_BAND = 11, 3
_CANDIDATES = 8
"""The maximum number of rows of one band that a row is compared with."""
_EMPTY = np.uint32(2**32 - 1)
_CHUNK = 4096
_NO_WORD = re.compile(r"[\W_]+")


def text_of(row: Mapping[str, Any]) -> str:
    """Return what a model reads of a row, without the answer: its texts, prompt, source, words, or the turns of the user."""
    parts = [row[name] for name in TEXTS if row.get(name)]
    parts += row.get("words") or []
    parts += [turn["content"] for turn in row.get("messages") or () if turn["role"] == "user"]
    return " ".join(filter(None, parts))


def texts_of(rows: datasets.Dataset) -> list[str]:
    """Return `text_of` of each row. It reads whole columns, since `datasets` takes longer to convert each row alone."""
    names = [name for name in (*TEXTS, "words", "messages") if name in rows.column_names]
    columns = rows.select_columns(names)[:]
    return [text_of(dict(zip(names, row, strict=True))) for row in zip(*columns.values(), strict=True)]


def near_duplicates(rows: Sequence[str], others: Sequence[str]) -> dict[int, int]:
    """Return, for each text that has a near-duplicate among other texts, its index and that of the other text."""
    rows, others = _normal(rows), _normal(others)
    first, second = _signatures(rows), _signatures(others)
    nearest: dict[int, int] = {}
    for one, other in _candidates(first, second):
        for at, to in zip(one.tolist(), other.tolist(), strict=True):
            if at not in nearest and _similar(rows[at], others[to]):
                nearest[at] = to
    return nearest


def clusters(texts: Sequence[str]) -> list[int]:
    """Return, for each text, the index of the first text of its cluster: texts that are joined by near-duplicates."""
    texts = _normal(texts)
    signatures = _signatures(texts)
    root = list(range(len(texts)))

    def find(index: int) -> int:
        while root[index] != index:
            root[index] = root[root[index]]
            index = root[index]
        return index

    for one, other in _candidates(signatures, signatures, within=True):
        for at, to in zip(one.tolist(), other.tolist(), strict=True):
            first, second = sorted((find(at), find(to)))
            if first != second and _similar(texts[at], texts[to]):
                root[second] = first
    return [find(index) for index in range(len(texts))]


def _normal(texts: Sequence[str]) -> list[str]:
    return [_NO_WORD.sub(" ", text[: 2 * _CHARACTERS].casefold()).strip()[:_CHARACTERS] for text in texts]


def _shingles(text: str) -> set[str]:
    return {text[at : at + _WIDTH] for at in range(max(1, len(text) - _WIDTH + 1))}


def _similar(first: str, second: str) -> bool:
    one, other = _shingles(first), _shingles(second)
    common = len(one & other)
    return common >= SIMILAR * (len(one) + len(other) - common)


def _signatures(texts: Sequence[str]) -> np.ndarray:
    """Return the smallest hash of each bin of the shingles of each text, uint32 (N, bins)."""
    bins = _BANDS * _IN_BAND
    signatures = np.full((len(texts), bins), _EMPTY, np.uint32)
    for start in range(0, len(texts), _CHUNK):
        chunk = [text.ljust(_WIDTH) for text in texts[start : start + _CHUNK]]
        lengths = np.asarray([len(text) for text in chunk])
        codes = np.frombuffer("".join(chunk).encode("utf-32-le", "replace"), np.uint32).astype(np.uint64)
        hashes = np.zeros(len(codes) - _WIDTH + 1, np.uint64)
        for at in range(_WIDTH):
            hashes = hashes * np.uint64(1_000_003) + codes[at : at + len(hashes)]
        hashes ^= hashes >> np.uint64(33)
        hashes *= np.uint64(0xFF51AFD7ED558CCD)  # the finalizer of MurmurHash3
        hashes ^= hashes >> np.uint64(29)
        ends = np.cumsum(lengths)
        row = np.repeat(np.arange(len(chunk)), lengths)[: len(hashes)]
        filled = np.asarray([text.strip() != "" for text in chunk])
        complete = (np.arange(len(hashes)) + _WIDTH <= ends[row]) & filled[row]
        row, hashes = row[complete], hashes[complete]
        place = (row + start) * bins + (hashes % np.uint64(bins)).astype(np.int64)
        np.minimum.at(signatures.reshape(-1), place, (hashes >> np.uint64(32)).astype(np.uint32))
    return signatures


def _candidates(
    first: np.ndarray, second: np.ndarray, within: bool = False
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yield pairs of rows that agree in a band and in half of all bins that one of them has.

    Args:
        within: whether both are one array; each row is then compared with the rows after it.
    """
    for band in range(_BANDS):
        at = slice(band * _IN_BAND, (band + 1) * _IN_BAND)
        (keys, filled), (other_keys, other_filled) = (_keys(each[:, at]) for each in (first, second))
        order = np.flatnonzero(other_filled)
        order = order[np.argsort(other_keys[order], kind="stable")]
        ordered = other_keys[order]
        rows = np.flatnonzero(filled)
        left = np.searchsorted(ordered, keys[rows], "left")
        right = np.searchsorted(ordered, keys[rows], "right")
        if within:  # the place after the row itself
            place = np.empty(len(second), np.int64)
            place[order] = np.arange(len(order))
            left = place[rows] + 1
        for step in range(_CANDIDATES):
            inside = left + step < right
            if not inside.any():
                break
            one, other = rows[inside], order[left[inside] + step]
            has = (first[one] != _EMPTY) | (second[other] != _EMPTY)
            same = (first[one] == second[other]) & has
            close = 2 * same.sum(1) >= has.sum(1)
            yield one[close], other[close]


def _keys(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return one number for the bins of a band of each row, uint64 (N,), and whether a bin has a value."""
    keys = np.zeros(len(values), np.uint64)
    for column in values.T:
        keys = (keys ^ column.astype(np.uint64)) * np.uint64(0x9E3779B97F4A7C15)
        keys ^= keys >> np.uint64(32)
    return keys, (values != _EMPTY).any(1)
