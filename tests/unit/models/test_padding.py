"""Padding: it is masked by its place, whatever tokens config.json and the tokenizer name."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
import torch
from support.architectures import MODELS
from support.tiny import sentences
from tokenizers import Tokenizer, processors
from transformers import (
    AutoModelForSequenceClassification,
    PreTrainedTokenizerFast,
    XLNetConfig,
    XLNetForSequenceClassification,
)

from kdcli.exporting.runtimes.torch import TorchEncoder
from kdcli.measure.spec import MeasureSpec
from kdcli.models.checkpoint import Checkpoint, load_ready, load_tokenizer
from kdcli.students.from_config import FromConfig
from kdcli.tasks.classification.task import Classification

TASK = Classification(["bad", "good"])
PADS = {
    "null": None,
    "-1": -1,
    "another special token": 2,
    "the end token": 3,
    "a word": 7,
    "the tokenizer's": 0,
}
KINDS = (
    "bert",
    "roberta",
    "distilbert",
    "electra",
    "llama-labels",
    "gpt2-labels",
    "bart-labels",
    "t5-labels",
)


@pytest.mark.parametrize("pad", PADS)
@pytest.mark.parametrize("kind", KINDS)
def test_a_row_in_a_batch_is_the_row_alone(kind: str, pad: str, tokenizer: Any, tmp_path: Path) -> None:
    """Logits of a padding token in place of the last one's, positions that count the padding, or an end token that is taken for padding."""
    number = PADS[pad]
    if kind in ("roberta", "bart-labels", "t5-labels", "distilbert") and number is None:
        pytest.skip("transformers cannot make it")
    model = MODELS[kind](eos_token_id=3, pad_token_id=number)
    if kind == "roberta" and number == 7:
        pytest.skip("more positions than the model has")
    model.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    assert_rows_are_their_own(tmp_path)


def test_xlnet_is_padded_on_the_left(tokenizer: Any, tmp_path: Path) -> None:
    """Its class token ends a row, and what it classifies is the last token: of padded rows, the padding. A student over its tokenizer
    has no embedding for the segment of that token."""
    inner = Tokenizer.from_str(tokenizer.backend_tokenizer.to_str())
    special = [("[SEP]", 3), ("[CLS]", 2)]
    inner.post_processor = processors.TemplateProcessing(
        single="$A:0 [SEP]:0 [CLS]:2", pair="$A:0 [SEP]:0 $B:1 [SEP]:1 [CLS]:2", special_tokens=special
    )
    names = {"pad_token": "[PAD]", "unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]"}
    inputs = ["input_ids", "token_type_ids", "attention_mask"]
    own = PreTrainedTokenizerFast(
        tokenizer_object=inner, padding_side="left", model_input_names=inputs, **names
    )
    shape = {"d_model": 24, "n_layer": 2, "n_head": 4, "d_inner": 32, "pad_token_id": 0}
    labels = {"id2label": {0: "bad", 1: "good"}, "label2id": {"bad": 0, "good": 1}}
    torch.manual_seed(0)
    XLNetForSequenceClassification(XLNetConfig(vocab_size=len(own), **shape, **labels)).save_pretrained(
        tmp_path
    )
    own.save_pretrained(tmp_path)
    assert_rows_are_their_own(tmp_path)
    texts = [[text] for text, _ in sentences(24)]
    spec = MeasureSpec("torch", str(tmp_path), str(tmp_path), 16, batch_sizes=(8,))
    runtime = TorchEncoder(spec)
    alone = np.stack([runtime(runtime.batch([row]))[0] for row in runtime.encode(texts)])
    np.testing.assert_allclose(runtime.predict(texts, [], spec)["logits"], alone, atol=1e-5)
    student = FromConfig(hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32)
    model, _ = student.initialize(TASK, Checkpoint(tmp_path, "teacher"), datasets.Dataset.from_list([]))
    assert model.config.type_vocab_size == 3


def assert_rows_are_their_own(folder: Path) -> None:
    """The logits of rows in padded batches are those that transformers computes for each row alone."""
    rows = datasets.Dataset.from_list(
        [{"id": str(at), "text": text, "label": 0} for at, (text, _) in enumerate(sentences(24))]
    )
    source = Checkpoint(folder, "the model")
    loaded = load_ready(source, TASK)
    own = load_tokenizer(source, loaded, 16)
    plain = AutoModelForSequenceClassification.from_pretrained(folder).eval()
    with torch.no_grad():
        alone = [
            plain(**{name: torch.tensor([own(text)[name]]) for name in own.model_input_names})
            .logits[0]
            .numpy()
            for text in rows["text"]
        ]
    batched = np.empty((len(rows), 2), np.float32)
    for indices, signal, _ in TASK.batches(loaded, own, TASK.encode(own, rows, 16), 8, False):
        batched[indices] = signal.logits.numpy()
    np.testing.assert_allclose(batched, np.stack(alone), atol=1e-5)
