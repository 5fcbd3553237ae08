"""The memory of a training step, by the shapes of a model."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from support import peaks

from kdcli.training.memory import optimizer_bytes


@pytest.mark.long
def test_planned_peaks_are_those_that_are_measured() -> None:
    """A plan that refuses what fits, or lets through what does not: an encoder, a decoder with its chunked head, and gradient checkpointing over several
    micro-batches."""
    done = subprocess.run([sys.executable, Path(peaks.__file__)], capture_output=True, text=True, check=False)
    found = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    assert [each["case"] for each in found] == list(peaks.CASES), done.stderr
    ratios = {each["case"]: each["planned"] / each["measured"] for each in found}
    assert all(0.75 < ratio < 1.25 for ratio in ratios.values()), found


@pytest.mark.parametrize("name", ["adamw_torch_fused", "sgd", "adafactor"])
def test_the_state_of_an_optimizer_has_the_planned_size(name: str) -> None:
    """A state of another size than the optimizer of transformers has: twice the weights are forgotten, or a key that saves nothing is named."""
    from transformers import Trainer, TrainingArguments

    model = torch.nn.Sequential(torch.nn.Linear(64, 96), torch.nn.LayerNorm(96))
    options = TrainingArguments(optim=name, use_cpu=True, report_to="none")
    kind, arguments = Trainer.get_optimizer_cls_and_kwargs(options)
    optimizer = kind(model.parameters(), **arguments)
    model(torch.randn(2, 64)).sum().backward()
    optimizer.step()
    held = [
        part
        for state in optimizer.state.values()
        for part in state.values()
        if torch.is_tensor(part) and part.numel() > 1
    ]
    actual = sum(part.numel() * part.element_size() for part in held)
    assert optimizer_bytes(name, list(model.parameters())) == actual
