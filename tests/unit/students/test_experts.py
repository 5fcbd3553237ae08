"""Mixtures of experts with fewer experts, and a model whose layers share their weights."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
from support.architectures import ALBERT, MODELS, NEWER, PAD, VOCABULARY, says
from support.commands import naming

from kdcli.errors import ConfigError
from kdcli.students.pruning.anatomy import Anatomy, Group
from kdcli.students.pruning.layers import Layers
from kdcli.students.pruning.pruned import Batch, Pruned, by_activation
from kdcli.tasks.causal_lm.task import CausalLM

MIXTURES = ["mixtral", "qwen3-moe"]


@pytest.mark.parametrize("name", MIXTURES)
def test_the_experts_with_the_most_weight_are_kept(name: str, tmp_path: Path) -> None:
    """Experts of one layer that are chosen for all; a router whose rows are those of other experts."""
    model = NEWER[name]()
    best = [[0, 3], [1, 2], [2, 3], [0, 1]]
    with torch.no_grad():
        for layer, chosen in zip(model.model.layers, best, strict=True):
            for expert in set(range(4)) - set(chosen):
                layer.mlp.experts.down_proj[expert] *= 0.01
                layer.mlp.experts.gate_up_proj[expert] *= 0.01
    student, _ = Pruned(num_experts=2, importance="magnitude").cut(model, None, None, None)
    for own, layer, chosen in zip(student.model.layers, model.model.layers, best, strict=True):
        for part in ("experts.down_proj", "experts.gate_up_proj", "gate.weight"):
            assert torch.equal(own.mlp.get_parameter(part), layer.mlp.get_parameter(part)[chosen])
    student.save_pretrained(tmp_path)
    loaded = type(student).from_pretrained(tmp_path).eval()
    assert loaded.config.num_experts_per_tok == 2
    assert torch.equal(says(loaded), says(student))


@pytest.mark.parametrize("name", MIXTURES)
def test_an_expert_counts_by_the_probability_that_tokens_give_it(name: str) -> None:
    """Experts that padding alone would choose are kept."""
    model = NEWER[name]()
    ids = torch.randint(4, VOCABULARY, (3, 7), generator=torch.Generator().manual_seed(2))
    ids[1, 4:] = ids[2, 2:] = PAD
    tokens = ids.ne(PAD)
    inputs = {"input_ids": ids, "attention_mask": tokens.long()}
    scores = by_activation(
        Anatomy(model), [Batch(inputs, ids.masked_fill(~tokens, -100), (tokens, tokens))], CausalLM()
    )
    with torch.no_grad():
        logits = model(**inputs, output_router_logits=True).router_logits
    for layer, of_layer in enumerate(logits):
        expected = of_layer.double().softmax(-1)[tokens.flatten()].mean(0)
        torch.testing.assert_close(scores[Group("experts", "layers", layer)], expected, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize(
    ("name", "sizes", "words"),
    [
        ("mixtral", {"num_experts": 1}, ["student.num_experts", "2", "num_experts_per_tok"]),
        ("mixtral", {"num_experts": 9}, ["student.num_experts", "9", "4"]),
        ("qwen3-moe", {"intermediate_size": 8}, ["student.intermediate_size", "student.importance=gradient"]),
        ("llama", {"num_experts": 2}, ["student.num_experts", "null"]),
    ],
)
def test_experts_that_cannot_be(name: str, sizes: dict[str, int], words: list[str]) -> None:
    """A router that chooses two of one expert fails at the first token; units that nobody scored are chosen by their order."""
    with pytest.raises(ConfigError, match=naming(*words)):
        Pruned(**sizes).cut((MODELS | NEWER)[name](), None, CausalLM(), None)


def test_layers_that_share_their_weights(tmp_path: Path) -> None:
    """ALBERT: fewer layers are fewer passes through the same weights, and less of everything is less of these."""
    model = ALBERT()
    expected = copy.deepcopy(model)
    expected.albert.encoder.config.num_hidden_layers = 2
    student, _ = Layers(2).cut(model, None, None, None)
    torch.testing.assert_close(says(student), says(expected))
    assert not torch.allclose(says(student), says(model), atol=1e-3)
    small, _ = Pruned(hidden_size=12, intermediate_size=9, importance="magnitude").cut(
        model, None, None, None
    )
    small.save_pretrained(tmp_path)
    loaded, info = type(small).from_pretrained(tmp_path, output_loading_info=True)
    assert not any(info.values())
    assert torch.equal(says(loaded.eval()), says(small))
    assert (loaded.config.hidden_size, loaded.config.num_attention_heads) == (12, 2)


@pytest.mark.parametrize("name", MIXTURES)
def test_a_narrower_mixture(name: str, tmp_path: Path) -> None:
    """Experts whose channels are not those of the rest of the model; widths that transformers cannot compute."""
    model = NEWER[name]()
    student, _ = Pruned(hidden_size=16, intermediate_size=8, importance="magnitude").cut(
        model, None, None, None
    )
    student.save_pretrained(tmp_path)
    assert says(type(student).from_pretrained(tmp_path).eval()).isfinite().all()
    assert student.model.layers[0].mlp.experts.down_proj.shape == (4, 16, 8)
    with pytest.raises(ConfigError, match=naming("student.hidden_size", "12", "8")):
        Pruned(hidden_size=12, importance="magnitude").cut(model, None, None, None)
