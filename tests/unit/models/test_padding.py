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
from transformers import AutoModelForSequenceClassification

from kdcli.models.checkpoint import Checkpoint, load_ready, load_tokenizer
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
    rows = datasets.Dataset.from_list(
        [{"id": str(at), "text": text, "label": 0} for at, (text, _) in enumerate(sentences(24))]
    )
    source = Checkpoint(tmp_path, kind)
    loaded = load_ready(source, TASK)
    own = load_tokenizer(source, loaded, 16)
    plain = AutoModelForSequenceClassification.from_pretrained(tmp_path).eval()
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
