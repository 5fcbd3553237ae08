"""Weights of linear layers in fewer bits: which layers, how far their outputs differ, and what is refused before weights are read."""

from __future__ import annotations

import dataclasses
import sys
from pathlib import Path
from typing import get_args

import pytest
import torch
from support.commands import naming
from support.tiny import decoder, exchanges, speller
from transformers import GPT2Config, LlamaConfig, PreTrainedConfig, Qwen3MoeConfig

from kdcli.config.types import Quantization
from kdcli.errors import ConfigError
from kdcli.evaluation.predict import size
from kdcli.exporting.runtimes.torch import TorchCausalLM
from kdcli.measure.models import loading, make_spec
from kdcli.models.checkpoint import Checkpoint, load_ready, trainable
from kdcli.models.weight_only import is_quantized, require_quantizable
from kdcli.pipeline.fidelity import compare_outputs
from kdcli.signals import Signal
from kdcli.tasks.causal_lm.task import CausalLM
from kdcli.teachers.local import LocalTeacher

AUTO = "AutoModelForCausalLM"
LARGEST: dict[Quantization, float] = {"int8": 0.02, "int4": 0.3, "nf4": 0.3}
"""The largest differences of logits as shares of their largest one."""


@pytest.fixture(scope="module")
def stored(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A decoder with tied embeddings."""
    folder, tokenizer = tmp_path_factory.mktemp("decoder"), speller()
    decoder(tokenizer).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.mark.parametrize("kind", get_args(Quantization))
def test_a_quantized_teacher_keeps_its_head_and_answers_each_row_by_itself(
    stored: Path, kind: Quantization
) -> None:
    """A tied head that is rounded rounds the embeddings; weights that stay floats save nothing; activations that are rounded by batch would make the stored
    outputs depend on other rows."""
    task, plain = CausalLM(), Checkpoint(stored, "teacher")
    source = dataclasses.replace(plain, quantization=kind)
    model = load_ready(source, task)
    names = {name for name, layer in model.named_modules() if is_quantized(layer)}
    assert len(names) == 2 * 7
    assert not any("head" in name or "embed" in name for name in names)
    assert model.get_output_embeddings().weight is model.get_input_embeddings().weight
    assert size(source, task, model) == size(plain, task)
    assert trainable(source) == plain
    spec, _ = make_spec(None, "torch", stored, stored, task, [], 64, **loading(source))
    ids, measured = torch.arange(12).reshape(2, 6), TorchCausalLM(spec).model
    with torch.inference_mode():
        assert torch.equal(measured(ids).logits, model(ids).logits)
    rows = [
        {"id": str(index), "prompt": prompt, "completion": answer}
        for index, (prompt, answer) in enumerate(exchanges(6))
    ]
    teachers = {}
    for each in (plain, source):
        teachers[each] = LocalTeacher()
        teachers[each].open(each, task, 64, "auto")
    logits = {}
    for each, teacher in teachers.items():
        signal = teacher.signals(rows)
        logits[each] = signal.rows(slice(0, len(signal))).logits
    assert logits[source].dtype == torch.float32
    difference = (logits[source] - logits[plain]).abs().max()
    assert 0 < difference <= LARGEST[kind] * logits[plain].abs().max()
    alone = teachers[source].signals(rows[:1])
    assert torch.equal(alone.rows(slice(0, len(alone))).logits, logits[source][: len(alone)])


@pytest.mark.parametrize(
    ("config", "kind", "words"),
    [
        (GPT2Config(n_layer=1, n_embd=32, n_head=2), "nf4", ["GPT2LMHeadModel", "Conv1D"]),
        (Qwen3MoeConfig(num_hidden_layers=1, num_experts=8, hidden_size=32, moe_intermediate_size=64), "int8", ["Qwen3MoeForCausalLM"]),
        (LlamaConfig(num_hidden_layers=1, hidden_size=40, intermediate_size=40, num_attention_heads=2), "int4", ["16", "32"]),
        (LlamaConfig(quantization_config={"quant_method": "gptq"}), "int8", ["quantization_config"]),
    ],
)  # fmt: skip
def test_a_model_that_would_stay_as_large_is_refused_by_name(
    config: PreTrainedConfig, kind: Quantization, words: list[str]
) -> None:
    """A run with a key that changes next to nothing, or an error of a library while weights are read."""
    with pytest.raises(ConfigError, match=naming("teacher.quantization", kind, *words)):
        require_quantizable(kind, AUTO, config, "teacher.quantization")


def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """An ImportError after the data were read, without the package to install."""
    monkeypatch.setitem(sys.modules, "torchao.quantization", None)
    with pytest.raises(
        ConfigError, match=naming("teacher.quantization", "torchao.quantization", "kdcli[quantization]")
    ):
        require_quantizable("int8", AUTO, LlamaConfig(), "teacher.quantization")


def test_the_loss_of_fidelity_is_the_divergence_from_the_exact_outputs() -> None:
    """A divergence with its arguments swapped, or one chunk of the positions."""
    torch.manual_seed(0)
    exact, other = torch.randn(300, 5), torch.randn(300, 5)
    divergence, same, positions = compare_outputs(Signal(exact), Signal(other))
    p, q = exact.double().softmax(-1), other.double().softmax(-1)
    assert divergence == pytest.approx(float((p * (p / q).log()).sum()), rel=1e-5)
    assert (same, positions) == (int((exact.argmax(-1) == other.argmax(-1)).sum()), 300)
    assert compare_outputs(Signal(exact), Signal(exact)) == (0, 300, 300)
