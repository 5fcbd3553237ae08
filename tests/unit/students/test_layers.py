"""Students of some of the teacher's layers, of every architecture that is known."""

from __future__ import annotations

import copy
import re
from pathlib import Path

import pytest
import torch
from support.architectures import MODELS, NEWER, says
from support.commands import naming
from torch import nn
from transformers import OPTConfig, OPTForCausalLM, PreTrainedModel

from kdcli.errors import ConfigError, ModelError
from kdcli.students.pruning.layers import Layers

STACKS = r"(.*\.)?((encoder|transformer)\.layer|layers|h|(encoder|decoder)\.(layers|block))"
"""Where layers stand, in any of the architectures."""


def cut(model: PreTrainedModel, *layers: object, **more: object) -> PreTrainedModel:
    student, tokenizer = Layers(*layers, **more).cut(model, None, None, None)
    assert tokenizer is None
    return student


def stacks(model: PreTrainedModel) -> list[str]:
    return [
        name
        for name, part in model.named_modules()
        if isinstance(part, nn.ModuleList) and re.fullmatch(STACKS, name)
    ]


def without(model: PreTrainedModel, chosen: list[list[int]]) -> PreTrainedModel:
    """The model itself with the other layers taken out of its lists; T5's first layer hands on what only it has."""
    model = copy.deepcopy(model)
    for name, numbers in zip(stacks(model), chosen, strict=True):
        whole = model.get_submodule(name)
        if name.endswith("block"):
            first, new = (whole[layer].layer[0].SelfAttention for layer in (0, numbers[0]))
            new.has_relative_attention_bias = True
            new.relative_attention_bias = first.relative_attention_bias
        model.set_submodule(name, nn.ModuleList(whole[layer] for layer in numbers))
    for config in {
        id(part.config): part.config for part in model.modules() if hasattr(part, "config")
    }.values():
        if getattr(config, "layer_types", None):
            config.layer_types = [config.layer_types[layer] for layer in chosen[0]]
        config.num_hidden_layers = len(chosen[0])
    return model.eval()


@pytest.mark.parametrize("name", [*MODELS, *NEWER])
def test_the_chosen_layers_one_after_the_other(name: str, tmp_path: Path) -> None:
    """A layer that is lost, or stands in another's place; a decoder left whole; a T5 without its position biases once its
    first layer is gone; a student that loads as another model than it was."""
    model = (MODELS | NEWER)[name]()
    chosen = [0 if "modernbert" in name else 1, 3]
    said = says(model)
    student = cut(model, 2, chosen)
    expected = says(without(model, [chosen] * len(stacks(model))))
    torch.testing.assert_close(says(student), expected)
    assert not torch.allclose(expected, said, atol=1e-3)
    assert torch.equal(says(model), said)
    assert not student.training
    student.save_pretrained(tmp_path)
    loaded = type(student).from_pretrained(tmp_path).eval()
    assert torch.equal(says(loaded), says(student))


@pytest.mark.parametrize("name", ["bart", "bart-labels", "marian", "mbart", "m2m100", "t5", "t5-labels"])
def test_a_shallow_decoder(name: str, tmp_path: Path) -> None:
    """A decoder as deep as the encoder, when it is the decoder that takes the time; matrices of the whole vocabulary that were one."""

    def tied(model: PreTrainedModel) -> int:
        parts = model.get_encoder(), model.get_decoder()
        words = [part.get_input_embeddings().weight for part in parts]
        head = model.get_output_embeddings()
        return len({id(weight) for weight in [*words, *([] if head is None else [head.weight])]})

    model = MODELS[name]()
    student = cut(model, 3, decoder_layers=1)
    torch.testing.assert_close(says(student), says(without(model, [[0, 2, 3], [0]])))
    assert [len(student.get_submodule(stack)) for stack in stacks(student)] == [3, 1]
    assert tied(student) == tied(model)
    student.save_pretrained(tmp_path)
    assert tied(type(student).from_pretrained(tmp_path)) == tied(model)
    student = cut(model, 2, [3, 1], decoder_layers=4)
    torch.testing.assert_close(says(student), says(without(model, [[3, 1], [0, 1, 2, 3]])))


@pytest.mark.parametrize("name", ["bert", "t5", "llama", "marian"])
def test_half_of_the_layers_is_the_default(name: str) -> None:
    """A fixed number is all of a small teacher's layers: a student as large as its teacher."""
    model = MODELS[name]()
    student = cut(model)
    depths = [len(model.get_submodule(stack)) for stack in stacks(model)]
    assert [len(student.get_submodule(stack)) for stack in stacks(student)] == [(d + 1) // 2 for d in depths]
    assert len(stacks(cut(model, layers=[0, 1, 3]))) == len(stacks(model))
    with torch.device("meta"):
        empty = MODELS[name]()
    assert (
        Layers().skeleton(None, None, empty).num_parameters()
        == student.num_parameters()
        < model.num_parameters()
    )


def test_kinds_of_attention_go_with_their_layers() -> None:
    """A layer of full attention that only sees a window, or the other way round."""
    model = MODELS["gemma3"]()
    kinds = model.config.layer_types
    assert kinds[0] != kinds[1]
    assert cut(model, 3, [0, 1, 1]).config.layer_types == [kinds[0], kinds[1], kinds[1]]
    rotated = MODELS["smollm3"]()
    assert cut(rotated, 2, [1, 3]).config.no_rope_layers == [
        rotated.config.no_rope_layers[at] for at in (1, 3)
    ]
    ends = MODELS["llama"](eos_token_id=[3, 4, 5, 6])
    assert cut(ends, 2).config.eos_token_id == [3, 4, 5, 6]  # as many as layers, and no list of layers


def test_where_text_ends_and_what_is_tied_stays() -> None:
    """A student that writes on for ever; one with a second matrix of the whole vocabulary."""
    model = MODELS["llama"]()
    model.generation_config.eos_token_id = [3, 7]
    student = cut(model, 2)
    assert student.generation_config.eos_token_id == [3, 7]
    assert student.get_output_embeddings().weight is student.get_input_embeddings().weight


@pytest.mark.parametrize(
    ("name", "arguments", "words"),
    [
        ("bert", {"num_hidden_layers": 5}, ["student.num_hidden_layers", "5", "4"]),
        ("bert", {"num_hidden_layers": 1, "layers": [4]}, ["no layer 4", "0 to 3"]),
        ("bert", {"num_hidden_layers": 2, "decoder_layers": 1}, ["one stack", "decoder_layers", "null"]),
        ("t5", {"num_hidden_layers": 2, "decoder_layers": 5}, ["student.decoder_layers", "5", "4"]),
        ("t5-tokens", {"num_hidden_layers": 2, "decoder_layers": 1}, ["one stack", "decoder_layers", "null"]),
        ("bert", {"num_hidden_layers": 2, "layers": [1]}, ["1 layers", "student.num_hidden_layers", "2"]),
    ],
)
def test_layers_that_there_are_not(name: str, arguments: dict[str, object], words: list[str]) -> None:
    """An index error from within torch, or a student of another depth than the config says."""
    with pytest.raises(ConfigError, match=naming(*words)):
        cut(MODELS[name](), **arguments)


def test_a_first_layer_of_its_own_stays_the_first() -> None:
    """ModernBERT's first layer has no norm before its attention: in another place it would be another layer."""
    with pytest.raises(ConfigError, match=naming("modernbert", "student.layers", "0")):
        cut(NEWER["modernbert"](), 2, [1, 3])


def test_an_architecture_that_is_not_known() -> None:
    """Layers guessed from a list that happens to be as long as the model is deep."""
    model = OPTForCausalLM(
        OPTConfig(
            vocab_size=40,
            hidden_size=8,
            num_hidden_layers=2,
            num_attention_heads=2,
            ffn_dim=8,
            word_embed_proj_dim=8,
        )
    )
    with pytest.raises(ModelError, match=naming("opt", "bert", "llama", "t5")) as caught:
        cut(model, 1)
    assert caught.value.exit_code == 2


def test_a_weight_that_is_not_known() -> None:
    """Weights that nothing is known of, kept whole where they no longer fit."""
    model = MODELS["gpt2"](add_cross_attention=True)
    with pytest.raises(ModelError, match=r"transformer\.h\.0\.crossattention\.\w+\.weight \(24, \d+\)"):
        cut(model, 1)
