from __future__ import annotations

import pytest
import torch
from torch.nn.functional import cross_entropy
from transformers import LlamaConfig, LlamaForCausalLM

from kdcli import signal
from kdcli.distiller import Distiller
from kdcli.losses.forward_kl import ForwardKL
from kdcli.losses.hard_label import HardLabel
from kdcli.signal import Signal
from kdcli.tasks.causal_lm import CausalLM


@pytest.mark.parametrize("tied", [True, False])
def test_chunks_are_the_whole(tied: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """A chunk left out or counted twice, a label off by one, or a head whose gradient is lost trains something else."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=97, hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32,
        tie_word_embeddings=tied,
    )  # fmt: skip
    student, teacher = LlamaForCausalLM(config), LlamaForCausalLM(config).requires_grad_(False)
    ids = torch.randint(97, (3, 40))
    labels = ids.clone()
    labels[:, :10] = -100
    task = CausalLM()
    pick, flat = task.positions(labels)
    assert torch.equal(flat, ids[:, 10:].flatten())
    module = Distiller(
        student, task, {"soft": ForwardKL(2.0), "hard": HardLabel()}, {"soft": 1.0, "hard": 0.5}
    )
    monkeypatch.setattr(signal, "CHUNK", 97 * 20)
    loss = module(labels=labels, teacher=task.signal(teacher, {"input_ids": ids}, pick), input_ids=ids)[
        "loss"
    ]
    loss.backward()
    found = {name: parameter.grad.clone() for name, parameter in student.named_parameters()}
    student.zero_grad()
    ours, theirs = (model(input_ids=ids).logits[:, 9:-1].flatten(0, 1) for model in (student, teacher))
    whole = ForwardKL(2.0)(Signal(ours), Signal(theirs), flat).mean() + 0.5 * cross_entropy(ours, flat)
    whole.backward()
    assert torch.allclose(loss, whole, atol=1e-5)
    for name, parameter in student.named_parameters():
        assert torch.allclose(found[name], parameter.grad, atol=1e-6), name
