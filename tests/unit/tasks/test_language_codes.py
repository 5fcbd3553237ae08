"""Translators whose tokenizers write the code of a language behind its text: mBART-25, PLBart, and NLLB as transformers once read it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
import torch
import transformers as of
from support.tiny import pairs
from support.translators import sentencepieces

from kdcli.config.measure import Measure
from kdcli.evaluation.predict import open_checkpoint
from kdcli.measure.models import make_spec
from kdcli.models.checkpoint import Checkpoint
from kdcli.tasks.rows import IGNORE
from kdcli.tasks.seq2seq.task import Seq2Seq

SHAPE: dict[str, Any] = {
    "d_model": 32, "encoder_layers": 1, "decoder_layers": 1, "encoder_attention_heads": 2, "decoder_attention_heads": 2,
    "encoder_ffn_dim": 32, "decoder_ffn_dim": 32, "max_position_embeddings": 128, "init_std": 0.2,
}  # fmt: skip
LANGUAGES = {"MBart": ("en_XX", "es_XX"), "PLBart": ("en_XX", "java"), "Nllb": ("eng_Latn", "spa_Latn")}
NEW = 12


@pytest.fixture(scope="module")
def rows() -> datasets.Dataset:
    return datasets.Dataset.from_list(
        [
            {"id": str(number), "source": source, "target": target}
            for number, (source, target) in enumerate(pairs(20))
        ]
    )


def lay_out(folder: Path, family: str) -> Checkpoint:
    """A small random model as the hub has it: its config does not say with which token a text begins."""
    letters = sorted({letter for pair in pairs(40) for text in pair for letter in text} - {" "})
    tokens = ["<s>", "<pad>", "</s>", "<unk>", "▁", *letters]
    if family == "MBart":
        tokenizer = of.MBartTokenizer(vocab=[(token, 0.0) for token in tokens])
    elif family == "Nllb":
        numbered = {token: number for number, token in enumerate(tokens)}
        tokenizer = of.NllbTokenizer(vocab=numbered, legacy_behaviour=True)
    else:
        sentencepieces(folder, "sentencepiece.bpe.model", [text for pair in pairs(300) for text in pair])
        tokenizer = of.PLBartTokenizer(vocab_file=str(folder / "sentencepiece.bpe.model"))
    own = {"decoder_start_token_id": 2} if family == "Nllb" else {}
    made_of = {"Nllb": "M2M100"}.get(family, family)
    torch.manual_seed(0)
    config = getattr(of, f"{made_of}Config")(vocab_size=len(tokenizer), **own, **SHAPE)
    getattr(of, f"{made_of}ForConditionalGeneration")(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return Checkpoint(folder, family)


@pytest.mark.parametrize("family", list(LANGUAGES))
def test_a_language_code_behind_the_text(family: str, rows: datasets.Dataset, tmp_path: Path) -> None:
    """The code is a target and the end token is not: every text is empty, with a perplexity of 1. Or the decoder begins with another token than
    the model was trained with, here or in what `generate` writes with the saved student."""
    source = lay_out(tmp_path, family)
    task = Seq2Seq(LANGUAGES[family])
    model, tokenizer = open_checkpoint(source, task, 100)
    names = {"java": "__java__", "en_XX": "__en_XX__"} if family == "PLBart" else {}
    read, written = (tokenizer.convert_tokens_to_ids(names.get(code, code)) for code in LANGUAGES[family])
    encoded = task.encode(tokenizer, rows, 100)
    item = encoded[0]
    assert item["input_ids"][-2:].tolist() == [tokenizer.eos_token_id, read]
    assert item["target"][-1] == item["labels"][-1] == tokenizer.eos_token_id
    given = [written] if family == "Nllb" else []
    assert task.given(tokenizer) == given
    assert task.start(tokenizer) == (None if given else written)

    batch = tokenizer(
        list(rows["source"]), text_target=list(rows["target"]), return_tensors="pt", padding=True
    )
    pad = tokenizer.pad_token_id
    labels, inputs = batch.labels.masked_fill(batch.labels == pad, IGNORE), {}
    if given:  # as the model writes: after the end token and the code
        begin = torch.tensor([[model.config.decoder_start_token_id, written]] * len(rows))
        inputs = {"decoder_input_ids": torch.cat([begin, batch.labels[:, :-2]], 1)}
        labels = torch.cat([torch.full_like(labels[:, :1], IGNORE), labels[:, :-1]], 1)
    else:  # its own loss counts the code behind the text, which nobody has to predict
        inputs = {"labels": labels}
    with torch.no_grad():
        logits = model(input_ids=batch.input_ids, attention_mask=batch.attention_mask, **inputs).logits
    counted = [line[(line != IGNORE) & (line != written)] for line in labels]
    expected = [
        float(logits[row, place].log_softmax(-1)[token])
        for row, line in enumerate(labels)
        for place, token in enumerate(line.tolist())
        if token not in (IGNORE, written)
    ]
    predictions = task.predict(model, tokenizer, encoded)
    assert predictions.counts.tolist() == [len(line) for line in counted]
    np.testing.assert_allclose(predictions["log_prob"], expected, atol=2e-5)

    texts = task.write(model, tokenizer, rows.select(range(4)), 100, max_new_tokens=NEW)
    task.prepare_for_saving(model, tokenizer, NEW)
    model.save_pretrained(tmp_path / "student")
    tokenizer.save_pretrained(tmp_path / "student")
    student = of.AutoModelForSeq2SeqLM.from_pretrained(tmp_path / "student")
    again = of.AutoTokenizer.from_pretrained(tmp_path / "student")
    for text, row in zip(texts, rows, strict=False):
        (ids,) = student.generate(**again(row["source"], return_tensors="pt"), num_beams=1, do_sample=False)
        own = again.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)
        assert own.strip() == text
        assert ids[len(given)] == written
    spec, _ = make_spec(Measure(), "torch", source.path, source.path, task, [[rows["source"][0]]], 100)
    assert (spec.decoder_start, list(spec.decoder_prefix)) == (None if given else written, given)


def test_a_long_source_keeps_its_language(rows: datasets.Dataset, tmp_path: Path) -> None:
    """A source that is cut loses the code behind it, and is read as a text in no language."""
    source = lay_out(tmp_path, "MBart")
    task = Seq2Seq(LANGUAGES["MBart"])
    _, tokenizer = open_checkpoint(source, task, 100)
    item = task.encode(tokenizer, rows, 8)[0]
    assert tokenizer.convert_ids_to_tokens(item["input_ids"].tolist())[-2:] == ["</s>", "en_XX"]
    assert len(item["input_ids"]) == len(item["target"]) == 8
    assert item["target"][-1] == tokenizer.eos_token_id
