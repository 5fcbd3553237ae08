"""Micro-batches, and batches of rows of similar length."""

from __future__ import annotations

import itertools
import logging
from collections.abc import Iterator, Sequence

import numpy as np
import torch
from torch.utils.data import Sampler
from transformers import PreTrainedTokenizerBase

from kdcli.config.trainer import Trainer as TrainerConfig
from kdcli.errors import ConfigError

logger = logging.getLogger(__name__)
MEGABATCH = 50
"""Batches that are sorted by length together: a larger number pads less, a smaller one shuffles better."""


class LengthBuckets(Sampler[int]):
    """Yields rows in batches of similar length, in an order that the seed and the epoch fix.

    The rows are shuffled, sorted by length within groups of `MEGABATCH` batches and cut into batches, which are shuffled. The rows of an
    incomplete last batch are dropped; they differ from epoch to epoch.

    Args:
        lengths: tokens of each row, (N,).
        batch_size: rows an optimizer step.
    """

    def __init__(self, lengths: np.ndarray, batch_size: int, seed: int):
        self.lengths, self.batch_size, self.seed, self.epoch = lengths, batch_size, seed, 0

    def set_epoch(self, epoch: int) -> None:
        """Set the epoch; the Trainer calls it at the beginning of each."""
        self.epoch = epoch

    def __len__(self) -> int:
        return len(self.lengths) // self.batch_size * self.batch_size

    def __iter__(self) -> Iterator[int]:
        return iter(self._batches(self.epoch).ravel().tolist())

    def _batches(self, epoch: int) -> np.ndarray:
        """Return the rows of each step of an epoch, (steps, batch_size)."""
        random = np.random.default_rng([self.seed, epoch])
        order = random.permutation(len(self.lengths))[: len(self)]
        size = self.batch_size * MEGABATCH
        groups = [order[start : start + size] for start in range(0, len(order), size)]
        order = np.concatenate([group[np.argsort(self.lengths[group], kind="stable")] for group in groups])
        batches = order.reshape(-1, self.batch_size)
        return batches[random.permutation(len(batches))]

    def steps(self, first: int, end: int) -> Iterator[tuple[int, int]]:
        """Yield (step, row) for the rows of the steps from `first` to before `end`, counted from 0 over all epochs."""
        of_epoch = len(self) // self.batch_size
        for epoch, steps in itertools.groupby(range(first, end), key=lambda step: step // of_epoch):
            batches = self._batches(epoch)
            for step in steps:
                for row in batches[step % of_epoch].tolist():
                    yield step, row


class TokenDropout:
    """Replaces tokens of training texts by the mask token, or by the unknown token where there is no mask token. Special tokens are kept.

    Args:
        probability: with which a token is replaced.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, probability: float):
        self.probability = probability
        self.special = torch.tensor(tokenizer.all_special_ids)
        ends = {tokenizer.eos_token_id, tokenizer.bos_token_id, tokenizer.pad_token_id, None}
        candidates = (tokenizer.mask_token_id, tokenizer.unk_token_id)
        self.token = next((token for token in candidates if token not in ends), None)
        if probability and self.token is None:
            logger.warning(
                "trainer.token_dropout = %g: the tokenizer has neither a mask token nor an unknown token, so that no token is replaced",
                probability,
            )

    def __call__(self, input_ids: torch.Tensor, seeds: Sequence[int]) -> torch.Tensor:
        """Return the token ids, some of them replaced.

        Args:
            input_ids: (B, L). With padding on the right, what is replaced in a row does not depend on the other rows.
            seeds: one for each row, (B,).
        """
        if self.token is None:
            return input_ids
        draws = np.stack([np.random.default_rng(seed).random(input_ids.shape[1]) for seed in seeds])
        replaced = torch.from_numpy(draws < self.probability).to(input_ids.device)
        replaced &= ~torch.isin(input_ids, self.special.to(input_ids.device))
        return input_ids.masked_fill(replaced, self.token)


def micro_batches(cfg: TrainerConfig, processes: int) -> tuple[int, int]:
    """Return the rows of a micro-batch, and the micro-batches that each process accumulates in a step.

    Raises:
        ConfigError: batch_size cannot be divided evenly.
    """
    micro = min(cfg.micro_batch_size or cfg.batch_size, cfg.batch_size // processes)
    if not micro or cfg.batch_size % (micro * processes):
        raise ConfigError(
            f"a batch_size of {cfg.batch_size} cannot be shared by {processes} processes in micro-batches of "
            f"{max(1, micro)}; make it a multiple of both"
        )
    return micro, cfg.batch_size // (micro * processes)
