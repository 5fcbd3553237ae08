from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
import yaml
from pydantic import ValidationError
from support.commands import naming
from torch import Tensor
from torch.nn.functional import cross_entropy

from kdcli.config.components import build, locate
from kdcli.config.paths import conf_dir
from kdcli.config.types import Component
from kdcli.losses.base import EXACT, Divergence, Loss, bucketed
from kdcli.losses.forward_kl import ForwardKL
from kdcli.losses.hard_label import HardLabel
from kdcli.losses.jsd import JSD
from kdcli.losses.reverse_kl import ReverseKL
from kdcli.losses.skew_kl import SkewKL
from kdcli.losses.skew_reverse_kl import SkewReverseKL
from kdcli.losses.tvd import TVD
from kdcli.losses.uld import ULD
from kdcli.signals import FLOOR, Signal, TopKSignal

Formula = Callable[[Tensor, Tensor], Tensor]


def kl(p: Tensor, q: Tensor) -> Tensor:
    return (torch.xlogy(p, p) - torch.xlogy(p, q)).sum(-1)


def jsd(beta: float) -> Formula:
    def formula(p: Tensor, q: Tensor) -> Tensor:
        m = beta * p + (1 - beta) * q
        return beta * kl(p, m) + (1 - beta) * kl(q, m)

    return formula


def skew_kl(skew: float) -> Formula:
    return lambda p, q: kl(p, skew * p + (1 - skew) * q)


def skew_reverse_kl(skew: float) -> Formula:
    return lambda p, q: kl(q, skew * q + (1 - skew) * p)


FORMULAS: dict[str, tuple[int, list[tuple[dict[str, float], Formula]]]] = {
    "ForwardKL": (2, [({}, kl)]),
    "ReverseKL": (2, [({}, lambda p, q: kl(q, p))]),
    "JSD": (2, [({"beta": beta}, jsd(beta)) for beta in (0.1, 0.5, 0.9)]),
    "SkewKL": (2, [({"skew": skew}, skew_kl(skew)) for skew in (0.0, 0.1, 0.7)]),
    "SkewReverseKL": (2, [({"skew": skew}, skew_reverse_kl(skew)) for skew in (0.0, 0.1, 0.7)]),
    "TVD": (1, [({}, lambda p, q: (p - q).abs().sum(-1) / 2)]),
}
"""For each divergence: the power of T in front, and its arguments with the paper's formula of the teacher's p and the student's q."""


def packaged() -> list[type[Divergence]]:
    """The divergences that the YAML files of conf/loss name: a new one has no formula here, and fails."""
    targets = {
        term["_target_"]
        for path in (conf_dir() / "loss").glob("*.yaml")
        for term in yaml.safe_load(path.read_text(encoding="utf-8")).values()
        if isinstance(term, dict)
    }
    kinds = [locate(target) for target in sorted(targets)]
    return [kind for kind in kinds if issubclass(kind, Divergence)]


DIVERGENCES = [
    pytest.param(kind, arguments, formula, power, id="-".join([kind.__name__, *map(str, arguments.values())]))
    for kind in packaged()
    for power, cases in [FORMULAS[kind.__name__]]
    for arguments, formula in cases
]
divergences = pytest.mark.parametrize(("kind", "arguments", "formula", "power"), DIVERGENCES)


def top_k(logits: Tensor, k: int, temperature: float) -> TopKSignal:
    """What a teacher with these logits stores."""
    logits = logits.double()
    log_p, indices = logits.log_softmax(-1).topk(k)
    rest = (logits / temperature).log_softmax(-1).scatter(-1, indices, -torch.inf).logsumexp(-1)
    return TopKSignal(indices, log_p.float(), rest.float(), temperature, logits.shape[-1])


def buckets(logits: Tensor, indices: Tensor | None, temperature: float) -> Tensor:
    """softmax(logits / T) in fp64, all classes beside the indices added up in the last column; None: as it is."""
    p = torch.softmax(logits.double() / temperature, -1)
    if indices is None:
        return p
    return torch.cat([p.gather(-1, indices), p.scatter(-1, indices, 0.0).sum(-1, keepdim=True)], -1)


def slopes(function: Callable[[Tensor], Tensor], at: Tensor, step: float = 1e-5) -> Tensor:
    """The gradient of a sum over rows by central differences, in fp64."""
    columns = []
    for shift in torch.eye(at.shape[-1], dtype=torch.float64) * step:
        columns.append((function(at + shift) - function(at - shift)) / (2 * step))
    return torch.stack(columns, -1)


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


@divergences
def test_gradient_size_does_not_depend_on_temperature(
    kind: type[Loss], arguments: dict[str, Any], formula: Formula, power: int
) -> None:
    """Without T² (T for a distance) the soft labels fade as T grows (most of the peers forgot it); T² would
    make the distance's gradient grow instead.
    """
    student, teacher, labels = signals(scale=0.3)
    norms = []
    for temperature in (4.0, 16.0):
        logits = student.logits.clone().requires_grad_()
        kind(**arguments, temperature=temperature)(Signal(logits), teacher, labels).sum().backward()
        norms.append(logits.grad.norm())
    assert norms[0] / norms[1] == pytest.approx(1.0, abs=0.05)


@pytest.mark.parametrize(
    "loss",
    [
        ForwardKL(2.0),
        ReverseKL(2.0),
        JSD(0.3, 2.0),
        SkewKL(0.1, 2.0),
        SkewReverseKL(0.1, 2.0),
        TVD(2.0),
        HardLabel(),
    ],
)
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


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_labels_of_several_annotators_are_the_mean_of_each(
    smoothing: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Shares that are taken as logits, or normalised again, train on labels that no annotator gave."""
    monkeypatch.setattr(torch.Tensor, "float", lambda self: self)
    student, _, labels = signals(3, 4, 1.0)
    others = (labels + 1) % 4
    votes = (2 * torch.eye(4)[labels] + torch.eye(4)[others]).to(student.logits) / 3
    loss = HardLabel(smoothing)
    each = (2 * loss(student, None, labels) + loss(student, None, others)) / 3
    assert torch.allclose(loss(student, None, votes), each)
    logits = student.logits.clone().requires_grad_()
    assert torch.autograd.gradcheck(lambda x: loss(Signal(x), None, votes), logits)


def test_loss_without_its_teacher_is_refused() -> None:
    """A missing signal must not train silently on something else."""
    student, _, labels = signals()
    with pytest.raises(ValueError, match="teacher"):
        ForwardKL()(student, None, labels)


@divergences
@pytest.mark.parametrize("k", [None, 1, 3])
@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.5, 8.0])
def test_value_and_gradient_are_those_of_the_formula(
    kind: type[Loss],
    arguments: dict[str, Any],
    formula: Formula,
    power: int,
    k: int | None,
    temperature: float,
) -> None:
    """Swapped distributions or weights, a term without its gradient, or a top-k teacher that is compared with
    anything but the student's k + 1 buckets would train on another loss than the paper's.
    """
    student, dense, labels = signals(scale=1.5)
    teacher = dense if k is None else top_k(dense.logits, k, temperature)
    indices = teacher.indices if isinstance(teacher, TopKSignal) else None
    p = buckets(dense.logits, indices, temperature)

    def expected(x: Tensor) -> Tensor:
        return temperature**power * formula(p, buckets(x, indices, temperature))

    logits = student.logits.float().requires_grad_()
    values = kind(**arguments, temperature=temperature)(Signal(logits), teacher, labels)
    values.sum().backward()
    assert values.shape == (6,)
    assert values.dtype == torch.float32
    assert torch.allclose(values.double(), expected(student.logits), rtol=1e-4, atol=2e-5)
    assert torch.allclose(logits.grad.double(), slopes(expected, student.logits), rtol=1e-3, atol=2e-5)


@divergences
@pytest.mark.parametrize("k", [None, 1, 3, 5])
@pytest.mark.parametrize("scale", [1.0, 40.0])
def test_divergence_is_zero_for_a_perfect_student_and_never_negative(
    kind: type[Loss], arguments: dict[str, Any], formula: Formula, power: int, k: int | None, scale: float
) -> None:
    """A sum over the top k alone goes negative; 0 · log 0 or the log of an underflown mixture is NaN."""
    student, dense, labels = signals()
    x, y = student.logits * scale, dense.logits * scale
    teacher = Signal(y) if k is None else top_k(y, k, 2.5)
    loss = kind(**arguments, temperature=2.5)
    assert torch.allclose(loss(Signal(y), teacher, labels), torch.zeros(6), atol=2e-5)
    logits = x.clone().requires_grad_()
    values = loss(Signal(logits), teacher, labels)
    values.sum().backward()
    assert (values >= -1e-6).all()
    assert values.isfinite().all()
    assert logits.grad.isfinite().all()
    if scale == 1.0:
        assert (values > 1e-3).all()


@divergences
@pytest.mark.parametrize("temperature", [1.0, 2.5])
def test_top_k_grows_to_the_dense_value(
    kind: type[Loss], arguments: dict[str, Any], formula: Formula, power: int, temperature: float
) -> None:
    """A top-k loss above the dense one (data-processing inequality), or another one at k = C, is no bound of it."""
    student, teacher, labels = signals(8, 12, 1.5)
    loss = kind(**arguments, temperature=temperature)
    dense = loss(student, teacher, labels)
    values = torch.stack([loss(student, top_k(teacher.logits, k, temperature), labels) for k in range(1, 13)])
    assert (values.diff(dim=0) > -2e-5).all()
    assert (values <= dense + 2e-5).all()
    assert torch.allclose(values[-1], dense, atol=1e-4)


@pytest.mark.parametrize("scale", [0.1, 1.0, 3.0, 40.0])
def test_relations_between_the_divergences(scale: float) -> None:
    """Swapped roles or weights that each loss's own formula in a test could repeat."""
    x, y, labels = signals(scale=scale)

    def close(a: Tensor, b: Tensor) -> bool:
        return torch.allclose(a, b, rtol=1e-4, atol=1e-5)

    assert close(ReverseKL(2.0)(x, y, labels), ForwardKL(2.0)(y, x, labels))
    assert close(SkewReverseKL(0.2, 2.0)(x, y, labels), SkewKL(0.2, 2.0)(y, x, labels))
    assert close(SkewKL(0.0)(x, y, labels), ForwardKL()(x, y, labels))
    assert close(SkewReverseKL(0.0)(x, y, labels), ReverseKL()(x, y, labels))
    assert close(JSD(0.5)(x, y, labels), JSD(0.5)(y, x, labels))
    assert close(JSD(0.2)(x, y, labels), JSD(0.8)(y, x, labels))
    assert (JSD(0.5)(x, y, labels) <= math.log(2) + 1e-6).all()
    assert (SkewKL(0.1)(x, y, labels) <= -math.log(0.1) + 1e-5).all()
    distance = TVD()(x, y, labels)
    assert (distance <= 1 + 1e-6).all()
    for kind in (ForwardKL, ReverseKL):  # Pinsker
        assert (distance <= (kind()(x, y, labels).clamp(min=0) / 2).sqrt() + 1e-5).all()


def test_skew_tends_to_the_unskewed_loss() -> None:
    """A jump at skew = 0, which has a branch of its own, would make a sweep over the skew misleading."""
    x, y, labels = signals()
    for skewed, plain in ((SkewKL, ForwardKL), (SkewReverseKL, ReverseKL)):
        assert torch.allclose(skewed(1e-9)(x, y, labels), plain()(x, y, labels), rtol=1e-3)


@pytest.mark.parametrize(
    ("kind", "arguments"),
    [
        (JSD, {"beta": 0.0}),
        (JSD, {"beta": 1.0}),
        (JSD, {"beta": True}),
        (SkewKL, {"skew": 1.0}),
        (SkewKL, {"skew": -0.1}),
        (SkewReverseKL, {"skew": 1.0}),
        (SkewReverseKL, {"skew": True}),
        (TVD, {"temperature": 0.0}),
        (ReverseKL, {"temperature": -1.0}),
    ],
)
def test_argument_out_of_range_is_refused(kind: type[Loss], arguments: dict[str, Any]) -> None:
    """The loss would be 0 or NaN everywhere, found only after a day of training."""
    target = {"_target_": f"{kind.__module__}.{kind.__name__}"}
    build(Component.model_validate(target), Loss)
    with pytest.raises(ValidationError):
        build(Component.model_validate(target | arguments), Loss)


@pytest.mark.parametrize("temperature", [1.0, 2.5])
@pytest.mark.parametrize(
    ("lead", "below", "tolerance"), [(0.0, 1.0, 1e-5), (7.0, 0.05, 1e-3), (19.0, 1e-7, 1e-5)]
)
def test_bucketed_is_the_log_softmax_with_its_rest(
    temperature: float, lead: float, below: float, tolerance: float
) -> None:
    """1 minus the top k cancels where the rest is small: its logarithm and its gradient are noise, or -inf.
    A gradient by hand may be another function's.
    """
    random = torch.Generator().manual_seed(1)
    logits = torch.randn(64, 9, generator=random)
    indices = torch.stack([torch.randperm(9, generator=random)[:3] for _ in logits])
    logits = (logits.scatter_add(-1, indices, torch.full(indices.shape, lead)) * temperature).requires_grad_()
    weights = torch.randn(64, 4, generator=random)
    exact = logits.detach().double().requires_grad_()
    expected = buckets(exact, indices, temperature).log()
    rest = expected[:, -1].exp()
    assert expected[:, -1].min() > FLOOR
    assert (rest < below).all()
    if below == 0.05:  # both branches in one batch
        assert (rest < EXACT).any()
        assert (rest > EXACT).any()

    values = bucketed(logits, indices, temperature)
    (values * weights).sum().backward()
    (expected * weights).sum().backward()
    assert torch.allclose(values.double(), expected, rtol=tolerance, atol=tolerance)
    assert torch.allclose(logits.grad.double(), exact.grad, rtol=tolerance, atol=tolerance)
    assert torch.allclose(values.exp().sum(-1), torch.ones(64), atol=1e-5)


def test_bucketed_rest_that_is_empty_is_the_floor() -> None:
    """-inf for a rest without mass (k = C, or an underflown one) makes the loss and its gradient NaN."""
    logits = torch.tensor([[300.0, 0.0, -300.0]], requires_grad=True)
    for indices in ([[0]], [[0, 1, 2]]):
        values = bucketed(logits, torch.tensor(indices))
        assert values[0, -1] == FLOOR
        (gradient,) = torch.autograd.grad(values.sum(), logits)
        assert gradient.isfinite().all()


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.5])
@pytest.mark.parametrize("scale", [1.0, 40.0])
@pytest.mark.parametrize("k", [1, 3, 5])
def test_softened_top_k_is_a_distribution(temperature: float, scale: float, k: int) -> None:
    """Buckets that do not sum to 1 make a divergence negative, or not 0 for a perfect student."""
    _, teacher, _ = signals()
    signal = top_k(teacher.logits * scale, k, temperature)
    for asked in {temperature, 1.0}:
        log_p = signal.softened(asked)
        assert log_p.isfinite().all()
        assert torch.allclose(log_p.exp().sum(-1), torch.ones(6), atol=2e-6)
        expected = buckets(teacher.logits * scale, signal.indices, asked)
        assert torch.allclose(log_p.exp().double(), expected, atol=2e-6)


@pytest.mark.parametrize("asked", [2.0, 0.5])
def test_top_k_of_another_temperature_is_refused(asked: float) -> None:
    """The rest's mass at another temperature is not stored; guessing it trains on wrong soft labels."""
    student, dense, labels = signals()
    teacher = top_k(dense.logits, 3, 2.5)
    with pytest.raises(ValueError, match=naming("stored", "temperature 2.5")):
        teacher.softened(asked)
    with pytest.raises(ValueError, match=naming("stored", "temperature 2.5")):
        ForwardKL(asked)(student, teacher, labels)


def sorted_distance(p: Tensor, q: Tensor) -> Tensor:
    """The paper's equation 4: both sorted, the shorter one padded with 0."""
    width = max(p.shape[-1], q.shape[-1])
    p, q = (
        torch.nn.functional.pad(x.sort(-1, descending=True).values, (0, width - x.shape[-1])) for x in (p, q)
    )
    return (p - q).abs().sum(-1)


@pytest.mark.parametrize("temperature", [1.0, 2.5])
def test_uld_is_the_papers_formula(temperature: float) -> None:
    """Unsorted probabilities, or a vocabulary cut to the other's, compare the wrong tokens."""
    student, teacher, labels = signals(classes=9)
    other = Signal(teacher.logits[:, :6])
    p, q = (torch.softmax(x.logits / temperature, -1) for x in (other, student))
    expected = sorted_distance(p, q)
    assert torch.allclose(ULD(temperature, top_k=9)(student, other, labels).double(), expected, atol=1e-5)
    stored = top_k(other.logits, 6, temperature)
    assert torch.allclose(ULD(temperature, top_k=9)(student, stored, labels).double(), expected, atol=1e-4)


def test_uld_in_buckets() -> None:
    """Mass beyond the top k that is left out, or counted as one more token, is no distance."""
    student, teacher, labels = signals(rows=40, classes=30, scale=1.0)
    whole = ULD(top_k=30)(student, teacher, labels)
    before = torch.zeros(40)
    for k in (1, 4, 12, 29):
        dense = ULD(top_k=k)(student, teacher, labels)
        assert torch.allclose(dense, ULD(top_k=64)(student, top_k(teacher.logits, k, 1.0), labels), atol=1e-5)
        assert (dense <= whole + 1e-6).all()
        assert (dense >= before - 1e-6).all()
        before = dense
        assert torch.allclose(ULD(top_k=k)(teacher, teacher, labels), torch.zeros(40), atol=1e-6)


def test_uld_has_the_gradient_of_finite_differences() -> None:
    """Sorting that cuts the gradient, or gives it to another token, trains nothing."""
    student, teacher, labels = signals(rows=5, classes=7, scale=1.0)
    logits = student.logits.clone().requires_grad_(True)
    loss = ULD(1.5, top_k=4)
    loss(Signal(logits), teacher, labels).sum().backward()

    def value(x: Tensor) -> Tensor:
        p, q = (torch.softmax(y / 1.5, -1).sort(-1, descending=True).values for y in (teacher.logits, x))
        p, q = (torch.cat([y[:, :4], y[:, 4:].sum(-1, keepdim=True)], -1) for y in (p, q))
        return (p - q).abs().sum(-1)

    assert torch.allclose(logits.grad, slopes(value, student.logits), atol=1e-4)
