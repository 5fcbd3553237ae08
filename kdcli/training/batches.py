"""Micro-batches, and batches of rows of similar length."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from torch.utils.data import Sampler

from kdcli.config.trainer import Trainer as TrainerConfig
from kdcli.errors import ConfigError

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
        random = np.random.default_rng([self.seed, self.epoch])
        order = random.permutation(len(self.lengths))[: len(self)]
        size = self.batch_size * MEGABATCH
        groups = [order[start : start + size] for start in range(0, len(order), size)]
        order = np.concatenate([group[np.argsort(self.lengths[group], kind="stable")] for group in groups])
        batches = order.reshape(-1, self.batch_size)
        return iter(batches[random.permutation(len(batches))].ravel().tolist())


def micro_batches(cfg: TrainerConfig, processes: int) -> tuple[int, int]:
    """The rows of a micro-batch, and the micro-batches that each process accumulates in a step.

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
