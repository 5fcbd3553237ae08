"""Decoders of a given size over a teacher's vocabulary."""

from __future__ import annotations

from pathlib import Path

import datasets
import pytest
import torch
from support.commands import naming
from support.tiny import decoder, exchanges, sentences, speller
from transformers import (
    AutoConfig,
    AutoModelForSequenceClassification,
    BloomConfig,
    BloomForCausalLM,
    LlamaConfig,
)

from kdcli.errors import ConfigError
from kdcli.models.checkpoint import Checkpoint
from kdcli.students.from_config import FromConfig
from kdcli.tasks.causal_lm.task import CausalLM
from kdcli.tasks.classification.task import Classification

SHAPE = {"hidden_size": 16, "num_hidden_layers": 3, "num_attention_heads": 4, "intermediate_size": 32}


def test_a_decoder_of_a_size(tmp_path: Path) -> None:
    """A student that ends its text with another token, sees less far, or begins with random words."""
    tokenizer = speller()
    model = decoder(tokenizer)
    model.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    rows = datasets.Dataset.from_list(
        [{"id": prompt, "prompt": prompt, "completion": answer} for prompt, answer in exchanges(20)]
    )
    initializer = FromConfig(
        **SHAPE, model_type="llama", num_key_value_heads=2, dropout=0.125, embeddings="teacher"
    )
    student, own = initializer.initialize(CausalLM(), Checkpoint(tmp_path, "teacher"), rows)
    config = student.config
    assert (config.num_key_value_heads, config.num_hidden_layers, config.attention_dropout) == (2, 3, 0.125)
    assert config.max_position_embeddings == model.config.max_position_embeddings
    assert config.eos_token_id == tokenizer.eos_token_id
    assert own.chat_template == tokenizer.chat_template
    assert student.get_output_embeddings().weight is student.get_input_embeddings().weight
    words = student.get_input_embeddings().weight.detach()
    assert not words[tokenizer.eos_token_id].eq(0).all()  # it pads as well, and must be said
    near = torch.nn.functional.cosine_similarity
    theirs = model.get_input_embeddings().weight.detach()
    ours = [float(near(words[20], words[other], dim=0)) for other in range(30, 60)]
    others = [
        float(near(theirs[20] - theirs.mean(0), theirs[other] - theirs.mean(0), dim=0))
        for other in range(30, 60)
    ]
    assert torch.corrcoef(torch.tensor([ours, others]))[0, 1] > 0.4


@pytest.mark.parametrize("kinds", [("roberta", "bert"), ("bert", "roberta")], ids="-".join)
def test_the_first_token_stands_where_the_teachers_does(
    tokenizer, tmp_path: Path, kinds: tuple[str, str]
) -> None:
    """RoBERTa's first token is at row padding_idx + 1 and BERT's at row 0: each place inherits that of a neighbour."""
    config = AutoConfig.for_model(
        kinds[0], vocab_size=len(tokenizer), max_position_embeddings=40, pad_token_id=0, **SHAPE
    )
    torch.manual_seed(0)
    model = AutoModelForSequenceClassification.from_config(config)
    model.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    rows = datasets.Dataset.from_list([{"id": text, "text": text, "label": 0} for text, _ in sentences(20)])
    initializer = FromConfig(**SHAPE, model_type=kinds[1], embeddings="teacher")
    student, _ = initializer.initialize(
        Classification(["bad", "good"]), Checkpoint(tmp_path, "teacher"), rows
    )
    first = {"roberta": 1, "bert": 0}
    theirs, ours = (
        each.base_model.embeddings.position_embeddings.weight[first[kind] :][:20]
        for each, kind in zip((model, student), kinds, strict=True)
    )
    ratios = torch.pdist(ours) / torch.pdist(theirs)  # of the same width, so they are turned and scaled alone
    assert torch.allclose(ratios, ratios.mean().expand_as(ratios), rtol=1e-3)


def test_a_teacher_without_a_limit_of_positions(tmp_path: Path) -> None:
    """BLOOM says no max_position_embeddings: a traceback."""
    tokenizer = speller()
    ends = {
        "bos_token_id": None,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }
    BloomForCausalLM(
        BloomConfig(vocab_size=len(tokenizer), hidden_size=16, n_layer=1, n_head=2, **ends)
    ).save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    student, _ = FromConfig(**SHAPE, model_type="llama").initialize(
        CausalLM(), Checkpoint(tmp_path, "teacher"), None
    )
    assert student.config.max_position_embeddings == LlamaConfig().max_position_embeddings


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ({"num_key_value_heads": 3}, ["student.num_attention_heads", "4", "num_key_value_heads", "3"]),
        ({"model_type": "bert", "num_key_value_heads": 2}, ["bert", "num_key_value_heads"]),
        ({"model_type": "lama"}, ["lama", "llama"]),
        ({"hidden_size": 18}, ["student.hidden_size", "18", "num_attention_heads"]),
    ],
)
def test_shapes_that_cannot_be(wrong: dict[str, object], words: list[str]) -> None:
    """A shape that transformers refuses after minutes, with a traceback."""
    with pytest.raises(ConfigError, match=naming(*words)):
        FromConfig(**({**SHAPE, "model_type": "llama"} | wrong))
