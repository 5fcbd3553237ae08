"""Tokenizers of other kinds: their files, ids with gaps, and students over them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import datasets
import pytest
from support.architectures import MODELS
from support.checkpoints import CASES, classifier, counted_tokens
from support.tiny import sentences

from kdcli.models.checkpoint import Checkpoint, load_ready, load_tokenizer
from kdcli.models.vocabulary import TOKENIZER_FILES, save_tokenizer
from kdcli.students.from_config import FromConfig
from kdcli.students.pretrained import from_checkpoint
from kdcli.students.pruning.layers import Layers
from kdcli.tasks.classification.task import Classification
from kdcli.tasks.masked_lm.task import MaskedLM

TASK = Classification(["bad", "good"])
TINY = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
ROWS = datasets.Dataset.from_list(
    [{"id": str(at), "text": text, "label": 0} for at, (text, _) in enumerate(sentences(24))]
)


@pytest.mark.parametrize(
    "name", ["vocab.txt with counts, and bpe.codes", "Token ids with gaps", "A token twice in vocab.txt"]
)
@pytest.mark.parametrize("student", ["of a size", "layers", "checkpoint"])
def test_a_student_over_an_odd_vocabulary(name: str, student: str, tokenizer: Any, tmp_path: Path) -> None:
    """An index error at the first row, from embeddings that have a row for each token and not for each id; or a student without the
    tokenizer's files."""
    (folder := tmp_path / "teacher").mkdir()
    CASES[name].make(folder, tokenizer)
    source = Checkpoint(folder, "teacher")
    if student == "of a size":
        model, own = FromConfig(**TINY, embeddings="teacher").initialize(TASK, source, ROWS)
    elif student == "layers":
        model, own = Layers(1).initialize(TASK, source, ROWS)
    else:
        model, own = from_checkpoint(source, TASK)
    model.save_pretrained(tmp_path / "student")
    save_tokenizer(own, tmp_path / "student")
    saved = Checkpoint(tmp_path / "student", "student")
    loaded = load_ready(saved, TASK)
    tokens = load_tokenizer(saved, loaded, 16)
    assert tokens(ROWS["text"][:])["input_ids"] == load_tokenizer(source)(ROWS["text"][:])["input_ids"]
    assert (
        sum(len(rows) for rows, *_ in TASK.batches(loaded, tokens, TASK.encode(tokens, ROWS, 16), 8, False))
        == 24
    )


@pytest.mark.parametrize("kind", ["Bertweet", "Phobert"])
def test_files_of_bertweet_and_phobert(kind: str, tokenizer: Any, tmp_path: Path) -> None:
    """vocab.txt taken for a list of tokens, and the teacher refused as two models."""
    counted_tokens(tmp_path, tokenizer, kind)
    source = Checkpoint(tmp_path, "teacher")
    assert type(load_tokenizer(source, max_length=16)).__name__ == f"{kind}Tokenizer"
    before = source.tokenizer_hash
    (tmp_path / "bpe.codes").write_text("f i 5\n")
    assert source.tokenizer_hash != before


def test_tokens_that_replace_others_exist(tokenizer: Any, tmp_path: Path) -> None:
    """An id in a gap is read as a token that the model was never trained on."""
    classifier(tmp_path, tokenizer, "bert-masked")
    CASES["Token ids with gaps"].make(tmp_path, tokenizer)
    MODELS["bert-masked"]().save_pretrained(tmp_path)
    own = load_tokenizer(Checkpoint(tmp_path, "teacher"))
    rows = datasets.Dataset.from_list([{"id": str(at), "text": "film the day"} for at in range(300)])
    ids = MaskedLM().encode(own, rows, 16).columns["input_ids"]
    assert set(ids.tolist()) <= set(own.get_vocab().values())


def test_both_vocabularies_of_marian_are_hashed() -> None:
    """Teacher outputs of another target vocabulary are read from the cache."""
    assert {"vocab.json", "target_vocab.json", "source.spm", "target.spm"} <= set(TOKENIZER_FILES)


def test_mobilebert_as_a_teacher_of_embeddings(tokenizer: Any, tmp_path: Path) -> None:
    """A traceback about shapes: its words are narrower than its positions."""
    from transformers import MobileBertConfig, MobileBertForSequenceClassification

    config = MobileBertConfig(
        vocab_size=len(tokenizer), hidden_size=32, embedding_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32,
        intra_bottleneck_size=16, num_feedforward_networks=1, max_position_embeddings=40,
        id2label={0: "bad", 1: "good"}, label2id={"bad": 0, "good": 1},
    )  # fmt: skip
    MobileBertForSequenceClassification(config).save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    model, _ = FromConfig(**TINY, embeddings="teacher").initialize(
        TASK, Checkpoint(tmp_path, "teacher"), ROWS
    )
    assert model.get_input_embeddings().weight.shape == (len(tokenizer), 16)
