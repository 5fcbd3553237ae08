"""Batches: what is dropped of them."""

from __future__ import annotations

import copy

import torch
from transformers import BertTokenizerFast

from kdcli.training.batches import drop_tokens, dropped_token


def test_dropped_tokens_are_masks(tokenizer: BertTokenizerFast) -> None:
    """Special tokens that are dropped leave a classifier nothing to read its label from, and padding that is replaced is read."""
    text = " ".join(["good film"] * 100)
    ids = tokenizer([text, "a good film"], return_tensors="pt", padding=True)["input_ids"]
    dropped = drop_tokens(ids, tokenizer, 0.3, [1, 2])
    special = torch.isin(ids, torch.tensor(tokenizer.all_special_ids))
    assert torch.equal(dropped[special], ids[special])
    assert set(dropped[dropped != ids].tolist()) == {tokenizer.mask_token_id}
    share = (dropped != ids)[0].float().mean().item()
    assert 0.2 < share < 0.4
    assert torch.equal(drop_tokens(ids, tokenizer, 0.0, [1, 2]), ids)
    everything = drop_tokens(ids, tokenizer, 1.0, [1, 2])
    assert (everything[~special] == tokenizer.mask_token_id).all()


def test_what_is_dropped_of_a_row_depends_on_its_seed_alone(tokenizer: BertTokenizerFast) -> None:
    """Micro-batches and processes that change what is dropped change the result with the memory one has."""
    ids = tokenizer(["a good film " * 20, "a bad film " * 9], return_tensors="pt", padding=True)["input_ids"]
    both = drop_tokens(ids, tokenizer, 0.5, [7, 8])
    length = int((ids[1] != tokenizer.pad_token_id).sum())
    alone = drop_tokens(ids[1:, :length], tokenizer, 0.5, [8])
    assert torch.equal(both[1, :length], alone[0])
    assert not torch.equal(both, drop_tokens(ids, tokenizer, 0.5, [9, 10]))


def test_a_tokenizer_without_a_mask_has_its_unknown_token(tokenizer: BertTokenizerFast) -> None:
    """GPT-2's unknown token ends a text: a text with it in the middle is another one."""
    own = copy.deepcopy(tokenizer)
    own.mask_token = None
    assert dropped_token(own) == own.unk_token_id
    own.unk_token = own.pad_token
    assert dropped_token(own) is None
    ids = torch.tensor([[5, 6, 7]])
    assert torch.equal(drop_tokens(ids, own, 1.0, [0]), ids)
