"""Tokenized splits are kept, and never taken for another split or another tokenizer's."""

from __future__ import annotations

import copy

import datasets
import pytest

from kdcli.tasks import encoded
from kdcli.tasks.classification.task import Classification


class Counting(Classification):
    """Counts how often it tokenizes."""

    calls = 0

    def encode(self, tokenizer, rows, max_length):
        self.calls += 1
        return super().encode(tokenizer, rows, max_length)


@pytest.fixture
def rows() -> datasets.Dataset:
    texts = ["a good film", "the bad book", "so sad", "a lovely day"]
    return datasets.Dataset.from_list(
        [{"id": str(index), "text": text, "label": index % 2} for index, text in enumerate(texts)]
    )


def test_the_same_rows_are_tokenized_once(tokenizer, rows: datasets.Dataset) -> None:
    """Tokenizing takes longer than an epoch of a tiny student."""
    task = Counting(["bad", "good"])
    twin = copy.deepcopy(tokenizer)
    twin(["a"], truncation=True, max_length=2, padding=True)  # which is kept in the tokenizer
    first = task.encode_split(tokenizer, rows, 16)
    assert task.encode_split(twin, rows, 16) is first
    assert (
        task.encode_split(tokenizer, rows.select(range(4)), 16).columns["input_ids"].tolist()
        == first.columns["input_ids"].tolist()
    )


def test_other_rows_tokenizers_and_lengths_are_tokenized_anew(tokenizer, rows: datasets.Dataset) -> None:
    """Tokens of other rows, or of another vocabulary, train a model on noise without a word."""
    task = Counting(["bad", "good"])
    larger = copy.deepcopy(tokenizer)
    larger.add_tokens(["lovely day"])
    fewer_inputs = copy.deepcopy(tokenizer)
    fewer_inputs.model_input_names = ["input_ids", "attention_mask"]
    cases = [
        (tokenizer, rows, 16),
        (larger, rows, 16),
        (fewer_inputs, rows, 16),
        (tokenizer, rows.select([1, 0]), 16),
        (tokenizer, rows, 3),
    ]
    results = [task.encode_split(*case) for case in cases]
    assert task.calls == len(cases)
    assert "token_type_ids" not in results[2].columns
    for case, result in zip(cases, results, strict=True):
        assert result.columns["input_ids"].tolist() == task.encode(*case).columns["input_ids"].tolist()


def test_the_least_recently_used_goes(tokenizer, rows, monkeypatch: pytest.MonkeyPatch) -> None:
    """A cache without a bound holds every part of a large data set."""
    task = Counting(["bad", "good"])
    size = task.encode(tokenizer, rows, 16).nbytes
    monkeypatch.setattr(encoded, "MOST_BYTES", 2 * size)
    splits = [rows.select([index, 0, 1, 2]) for index in range(3)]
    for index in (0, 1, 0, 2):
        task.encode_split(tokenizer, splits[index], 16)
    calls = task.calls
    task.encode_split(tokenizer, splits[0], 16)
    assert task.calls == calls
    task.encode_split(tokenizer, splits[1], 16)
    assert task.calls == calls + 1
