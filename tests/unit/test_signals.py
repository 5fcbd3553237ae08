"""The outputs of a model at the counted positions, and what is stored of them."""

from __future__ import annotations

import pytest
import torch

from kdcli import signals
from kdcli.signals import FLOOR, Head, HiddenSignal, Signal, top_k


@pytest.fixture(autouse=True)
def small_slices(monkeypatch: pytest.MonkeyPatch) -> None:
    """Slices of 16 classes and 4 positions, so that each test has several."""
    monkeypatch.setattr(signals, "SLICE", 16)
    monkeypatch.setattr(signals, "FINE", 64)


def head(classes: int, scale: float = 1.0) -> HiddenSignal:
    torch.manual_seed(0)
    weight, bias = torch.randn(classes, 12) * scale, torch.randn(classes)
    return HiddenSignal(torch.randn(11, 12), Head(weight, bias, scale=0.7, cap=30.0))


@pytest.mark.parametrize("temperature", [1.0, 4.0])
@pytest.mark.parametrize(
    ("classes", "k"), [(50, 5), (48, 20), (19, 16), (7, 5), (40, 40), (5, 64)]
)  # slices shorter than k, one slice, all classes, more than all
def test_top_k_in_slices_is_that_of_all_logits(classes: int, k: int, temperature: float) -> None:
    """Classes of a later slice that are dropped, or counted twice in the mass of the rest."""
    signal = head(classes)
    logits = signal.head(signal.hidden).double()
    expected, indices = logits.log_softmax(-1).topk(min(k, classes), dim=-1)
    rest = (logits / temperature).softmax(-1).scatter(-1, indices, 0).sum(-1)
    before = signal.hidden.clone()
    for stored in (top_k(signal, k, temperature), top_k(Signal(logits.float()), k, temperature)):
        assert torch.equal(stored.indices, indices)
        assert torch.allclose(stored.log_p.double(), expected, atol=1e-5)
        assert torch.allclose(stored.log_rest.double(), rest.log().clamp(min=FLOOR), atol=1e-5)
    assert torch.equal(signal.hidden, before)


def test_a_tiny_mass_of_the_rest_is_exact() -> None:
    """As the difference of two sums in fp32 the mass of the rest is 0 or noise below 1e-7."""
    logits = torch.full((3, 60), -20.0)
    logits[:, 37], logits[:, 5] = 1.0, 0.5
    stored = top_k(Signal(logits), 2, 1.0)
    rest = logits.double().softmax(-1).scatter(-1, stored.indices, 0).sum(-1)
    assert torch.allclose(stored.log_rest.double(), rest.log(), atol=1e-5)
    assert torch.equal(logits[:, 5], torch.full((3,), 0.5))


def test_no_position_has_no_top_k() -> None:
    """A row without a counted token ends the run."""
    stored = top_k(head(50).at(slice(0, 0)), 5, 1.0)
    assert stored.indices.shape == (0, 5)
    assert stored.log_rest.shape == (0,)
