"""Sampling: from the right distribution, and of each row by itself."""

from __future__ import annotations

import numpy as np
import torch

from kdcli.generation import _Sampled


def test_samples_are_from_the_softmax() -> None:
    """A temperature that is not read, or tokens that are impossible."""
    logits = torch.tensor([[1.0, 0.0, -torch.inf, 2.0, -3.0, -torch.inf]])
    for temperature in (1.0, 0.5):
        expected = (logits[0] / temperature).softmax(-1).numpy()
        sampler = _Sampled(temperature, range(4000))
        drawn = sampler(None, logits.expand(4000, -1)).argmax(-1).numpy()
        shares = np.bincount(drawn, minlength=6) / len(drawn)
        assert np.abs(shares - expected).max() < 4 * np.sqrt(0.25 / len(drawn))
        assert shares[2] == shares[5] == 0


def test_a_sample_depends_on_its_row_alone() -> None:
    """Batches and padding that change what is sampled change the result with the memory one has."""
    logits = torch.randn(5, 1000, generator=torch.Generator().manual_seed(0))
    together, apart = _Sampled(1.0, range(5)), [_Sampled(1.0, [seed]) for seed in range(5)]
    for _ in range(3):
        both = together(None, logits).argmax(-1)
        alone = [one(None, logits[row : row + 1]).argmax(-1) for row, one in enumerate(apart)]
        assert torch.equal(both, torch.cat(alone))
    assert len({int(token) for token in both}) > 1
    assert not torch.equal(together(None, logits).argmax(-1), both)
