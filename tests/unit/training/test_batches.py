"""Batches: their rows, and what is dropped of them."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from support.commands import require_words
from transformers import BertTokenizerFast

from kdcli.training.batches import LengthBuckets, TokenDropout


def test_dropped_tokens_are_masks(tokenizer: BertTokenizerFast) -> None:
    """Special tokens that are dropped leave a classifier nothing to read its label from, and padding that is replaced is read."""
    text = " ".join(["good film"] * 100)
    ids = tokenizer([text, "a good film"], return_tensors="pt", padding=True)["input_ids"]
    dropped = TokenDropout(tokenizer, 0.3)(ids, [1, 2])
    special = torch.isin(ids, torch.tensor(tokenizer.all_special_ids))
    assert torch.equal(dropped[special], ids[special])
    assert set(dropped[dropped != ids].tolist()) == {tokenizer.mask_token_id}
    share = (dropped != ids)[0].float().mean().item()
    assert 0.2 < share < 0.4
    assert torch.equal(TokenDropout(tokenizer, 0.0)(ids, [1, 2]), ids)
    everything = TokenDropout(tokenizer, 1.0)(ids, [1, 2])
    assert (everything[~special] == tokenizer.mask_token_id).all()


def test_what_is_dropped_of_a_row_depends_on_its_seed_alone(tokenizer: BertTokenizerFast) -> None:
    """Micro-batches and processes that change what is dropped change the result with the memory one has."""
    ids = tokenizer(["a good film " * 20, "a bad film " * 9], return_tensors="pt", padding=True)["input_ids"]
    drop = TokenDropout(tokenizer, 0.5)
    both = drop(ids, [7, 8])
    length = int((ids[1] != tokenizer.pad_token_id).sum())
    alone = drop(ids[1:, :length], [8])
    assert torch.equal(both[1, :length], alone[0])
    assert not torch.equal(both, drop(ids, [9, 10]))


def test_a_tokenizer_without_a_mask_has_its_unknown_token(
    tokenizer: BertTokenizerFast, caplog: pytest.LogCaptureFixture
) -> None:
    """GPT-2's unknown token ends a text: a text with it in the middle is another one."""
    own = copy.deepcopy(tokenizer)
    own.mask_token = None
    assert TokenDropout(own, 0.5).token == own.unk_token_id
    own.unk_token = own.pad_token
    none = TokenDropout(own, 1.0)
    assert none.token is None
    require_words(caplog.text, "trainer.token_dropout", "mask token")
    ids = torch.tensor([[5, 6, 7]])
    assert torch.equal(none(ids, [0]), ids)


def test_the_rows_of_later_steps_are_those_that_come() -> None:
    """Completions that were written ahead for rows of another epoch's order: those that come have none."""
    sampler = LengthBuckets(np.arange(23) % 5, 4, seed=3)
    came = []
    for epoch in range(3):
        sampler.set_epoch(epoch)
        came += list(sampler)
    ahead = list(LengthBuckets(sampler.lengths, 4, seed=3).steps(2, 13))
    assert [row for _, row in ahead] == came[2 * 4 : 13 * 4]
    assert [step for step, _ in ahead] == [step for step in range(2, 13) for _ in range(4)]
