"""The same code on a GPU (`make test-gpu`). KDCLI_GPU_TESTS_DEVICE=cpu runs these tests without one, to try the tests themselves."""

from __future__ import annotations

import math
import os
from collections.abc import Callable
from pathlib import Path

import datasets
import numpy as np
import pytest
import torch
from support.commands import read, runner, weights
from support.tiny import language_model_options, sentences, speaker, talk
from torch import Tensor

from kdcli.config.components import build
from kdcli.config.types import Component
from kdcli.losses.base import Loss
from kdcli.models.checkpoint import Checkpoint, load_complete, load_ready, load_tokenizer
from kdcli.signals import AnySignal, Head, HiddenSignal, top_k
from kdcli.tasks.base import Task
from kdcli.tasks.causal_lm.task import CausalLM
from kdcli.tasks.classification.task import Classification
from kdcli.training.distiller import by_chunks

pytestmark = pytest.mark.gpu
LOSSES = ["forward_kl.ForwardKL", "reverse_kl.ReverseKL", "jsd.JSD", "skew_kl.SkewKL", "skew_reverse_kl.SkewReverseKL", "tvd.TVD"]  # fmt: skip
POSITIONS, HIDDEN, CLASSES = 450, 32, 40_000
"""Of the loss head: several chunks on a CPU."""


@pytest.fixture(scope="module")
def device() -> torch.device:
    """The device that is tested."""
    name = os.environ.get("KDCLI_GPU_TESTS_DEVICE", "cuda")
    if name == "cuda" and not torch.cuda.is_available():
        pytest.skip("torch finds no GPU here")
    return torch.device(name)


@pytest.fixture(autouse=True)
def unused(device: torch.device) -> None:
    """Forgets what memory of a GPU the tests before used."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()


def require_used(device: torch.device) -> None:
    """The test ran on the GPU, if one is tested."""
    if device.type == "cuda":
        assert torch.cuda.max_memory_allocated() > 0


def loss_and_gradients(loss: Loss, tensors: list[Tensor], is_stored: bool, bf16: bool) -> list[Tensor]:
    """The loss of a student's hidden states and head, given a teacher's, and their gradients, on the CPU.

    Args:
        tensors: hidden states and head of both.
        is_stored: the teacher's outputs are those of a store: the top 8 of each position.
    """
    hidden, head, teacher_hidden, teacher_head = tensors
    hidden, head = (tensor.clone().requires_grad_() for tensor in (hidden, head))
    teacher: AnySignal = HiddenSignal(teacher_hidden, Head(teacher_head))
    if is_stored:
        assert isinstance(teacher, HiddenSignal)
        teacher = top_k(teacher, 8, 1.0)
    labels = torch.zeros(len(hidden), dtype=torch.int64, device=hidden.device)
    with torch.autocast(hidden.device.type, torch.bfloat16, enabled=bf16):
        value = by_chunks(
            HiddenSignal(hidden, Head(head)),
            teacher.rows,  # type: ignore[arg-type]
            lambda outputs, of_teacher, at: loss(outputs, of_teacher, labels[at]).mean(),
            [],
        )
    value.backward()
    assert hidden.grad is not None
    assert head.grad is not None
    return [value.detach().cpu(), hidden.grad.cpu(), head.grad.cpu()]


@pytest.mark.parametrize("name", LOSSES)
def test_a_loss_head_on_a_gpu_is_that_on_a_cpu(name: str, device: torch.device) -> None:
    """A chunk of another size, or a kernel of the GPU, that changes a loss or its gradients beyond rounding."""
    loss = build(Component.model_validate({"_target_": f"kdcli.losses.{name}"}), Loss)
    draw = torch.Generator().manual_seed(0)
    shapes = [(POSITIONS, HIDDEN), (CLASSES, HIDDEN)] * 2
    tensors = [torch.randn(shape, generator=draw) * 0.6 for shape in shapes]
    there = [tensor.to(device) for tensor in tensors]
    for is_stored in (False, True):
        expected = loss_and_gradients(loss, tensors, is_stored, False)
        for bf16, tolerance in ((False, 1e-4), (True, 0.06)):
            for own, other in zip(loss_and_gradients(loss, there, is_stored, bf16), expected, strict=True):
                assert own.isfinite().all()
                assert torch.dist(own, other) <= tolerance * other.norm(), (is_stored, bf16)
    require_used(device)


def predicted(task: Task, source: Checkpoint, rows: datasets.Dataset, on_cpu: bool) -> dict[str, np.ndarray]:
    model = load_complete(source, task).eval() if on_cpu else load_ready(source, task)
    tokenizer = load_tokenizer(source)
    encoded = task.encode(tokenizer, rows, 32)
    return dict(task.predict(model, tokenizer, encoded).arrays)


@pytest.mark.parametrize("kind", ["classifier", "decoder"])
def test_an_evaluation_on_a_gpu_is_that_on_a_cpu(
    kind: str, device: torch.device, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    """Scores that depend on where a model was evaluated."""
    task: Task
    if kind == "classifier":
        task, source = Classification(["bad", "good"]), request.getfixturevalue("teacher")
        table = [{"id": str(row), "text": text, "label": 0} for row, (text, _) in enumerate(sentences(40))]
    else:
        task, source = CausalLM(), speaker(tmp_path / "speaker", steps=10)
        table = [{"id": str(row), "prompt": f"{text}:", "completion": f" it was {label}"} for row, (text, label) in enumerate(sentences(40))]  # fmt: skip
    rows = datasets.Dataset.from_list(table)
    checkpoint = Checkpoint(source, kind)
    expected = predicted(task, checkpoint, rows, on_cpu=True)
    own = predicted(task, checkpoint, rows, on_cpu=False)
    assert expected.keys() == own.keys()
    for key, values in expected.items():
        np.testing.assert_allclose(own[key], values, rtol=1e-3, atol=1e-3, err_msg=key)
    require_used(device)


def distance(one: Path, other: Path) -> float:
    a, b = weights(one), weights(other)
    return sum(float(torch.dist(a[key].float(), b[key].float())) for key in a)


def require_reproducible(device: torch.device, distil: Callable[..., Path]) -> None:
    """Distil three times in bf16: a run ends with a report, and its seed decides the student. Kernels of a GPU add in any order."""
    bf16 = ["trainer.precision=bf16", "teacher.trainer.precision=bf16", "control=false"]
    one, again, other = (
        distil(name, *bf16, f"seed={seed}") for name, seed in (("one", 3), ("again", 3), ("other", 4))
    )
    assert math.isfinite(read(one / "report.json")["models"]["student"]["score"])
    assert (one / "report.html").is_file()
    assert len(read(one / "env.json")["gpus"]) == (torch.cuda.device_count() if device.type == "cuda" else 0)
    assert distance(one, again) <= 0.05 * distance(one, other)
    require_used(device)


def test_a_classifier_is_distilled_on_a_gpu(device: torch.device, distil: Callable[..., Path]) -> None:
    """A tensor that stays on the CPU; a precision that only a CPU has; a random number that no seed decides."""
    require_reproducible(device, lambda name, *more: distil(name, *more, "trainer.epochs=1"))


def test_a_decoder_is_distilled_on_a_gpu(
    device: torch.device, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same for the chunked head, stored top k, and completions that the student generates during training."""
    monkeypatch.chdir(tmp_path)
    teacher = speaker(tmp_path / "speaker", steps=30)
    words = [*language_model_options(teacher), *talk(tmp_path, "pairs"), "measure=null", "trainer.epochs=1"]
    run = runner(tmp_path, lambda *more: [*words, *more])
    require_reproducible(device, run)
    on_policy = ["rollout=student", "rollout.max_new_tokens=8", "teacher.cache=false", "control=false", "trainer.precision=bf16"]  # fmt: skip
    assert (run("on-policy", *on_policy) / "report.json").is_file()
