from __future__ import annotations

import pytest
import torch
from torch.nn.functional import cross_entropy

from kdcli.losses.forward_kl import ForwardKL
from kdcli.losses.hard_label import HardLabel
from kdcli.signal import Signal


def signals(rows: int = 6, classes: int = 5, scale: float = 3.0) -> tuple[Signal, Signal, torch.Tensor]:
    random = torch.Generator().manual_seed(0)
    student, teacher = (
        torch.randn(rows, classes, generator=random, dtype=torch.float64) * scale for _ in range(2)
    )
    return Signal(student), Signal(teacher), torch.randint(classes, (rows,), generator=random)


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0, 8.0])
def test_forward_kl_is_the_papers_formula(temperature: float) -> None:
    """Swapped arguments, a softmax over the wrong axis, or reduction='mean' would give other numbers."""
    student, teacher, labels = signals()
    p = torch.distributions.Categorical(logits=teacher.logits / temperature)
    q = torch.distributions.Categorical(logits=student.logits / temperature)
    expected = temperature**2 * torch.distributions.kl_divergence(p, q)
    assert torch.allclose(ForwardKL(temperature)(student, teacher, labels).double(), expected, atol=1e-5)


def test_forward_kl_is_a_divergence() -> None:
    """A loss that is not 0 for a perfect student, or negative elsewhere, pulls the student away from the teacher."""
    student, teacher, labels = signals()
    loss = ForwardKL(2.0)
    assert torch.allclose(loss(teacher, teacher, labels), torch.zeros(6), atol=1e-6)
    assert (loss(student, teacher, labels) > 0).all()
    assert (loss(Signal(student.logits * 40), Signal(teacher.logits * 40), labels) >= 0).all()


def test_gradient_size_does_not_depend_on_temperature() -> None:
    """Without T² the soft labels fade as T grows (most of the peers forgot it)."""
    student, teacher, labels = signals(scale=0.3)
    norms = []
    for temperature in (4.0, 16.0):
        logits = student.logits.clone().requires_grad_()
        ForwardKL(temperature)(Signal(logits), teacher, labels).sum().backward()
        norms.append(logits.grad.norm())
    assert norms[0] / norms[1] == pytest.approx(1.0, abs=0.05)


@pytest.mark.parametrize("loss", [ForwardKL(2.0), HardLabel()])
def test_gradient_is_that_of_finite_differences(
    loss: torch.nn.Module, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A detach or a wrong in-place operation makes the gradient another function's."""
    student, teacher, labels = signals(3, 4, 1.0)
    monkeypatch.setattr(
        torch.Tensor, "float", lambda self: self
    )  # keep fp64: differences of fp32 are too coarse
    logits = student.logits.clone().requires_grad_()
    assert torch.autograd.gradcheck(lambda x: loss(Signal(x), teacher, labels), logits)


def test_hard_label_is_cross_entropy_and_ignores_rows_without_gold() -> None:
    """A row that only the teacher labelled must not pull the student to a label that nobody gave."""
    student, _, labels = signals()
    labels[2] = -100
    values = HardLabel()(student, None, labels)
    assert values[2] == 0
    kept = labels != -100
    assert torch.allclose(
        values[kept], cross_entropy(student.logits[kept].float(), labels[kept], reduction="none")
    )


def test_loss_without_its_teacher_is_refused() -> None:
    """A missing signal must not train silently on something else."""
    student, _, labels = signals()
    with pytest.raises(ValueError, match="teacher"):
        ForwardKL()(student, None, labels)
