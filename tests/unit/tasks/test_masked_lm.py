"""Masked language modelling: what is hidden, that nobody sees it otherwise, and that logits are those of the model itself."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
import torch
import transformers
from pydantic import ValidationError
from support.commands import naming, require_words
from support.tiny import FILLER, GOOD, decoder, sentences, speller
from tokenizers import processors
from torch.nn.functional import cross_entropy
from transformers import PreTrainedModel

from kdcli import signals as signal
from kdcli.config.dataset import Dataset
from kdcli.errors import ConfigError, DataError, ModelError
from kdcli.losses.features import LayerMapping
from kdcli.losses.forward_kl import ForwardKL
from kdcli.losses.hard_label import HardLabel
from kdcli.losses.hidden_states import HiddenStates
from kdcli.models.checkpoint import Checkpoint, inspect_inputs, load_complete, load_model
from kdcli.signals import HiddenSignal, Signal, TopKSignal
from kdcli.tasks import task_of
from kdcli.tasks.masked_lm.task import MaskedLM, mask_tokens
from kdcli.tasks.rows import IGNORE
from kdcli.teachers.cached import CachedTeacher
from kdcli.teachers.local import LocalTeacher
from kdcli.training.distiller import Distiller

TASK = MaskedLM()
SHAPE = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 24}
DISTILBERT = {"dim": 16, "n_layers": 2, "n_heads": 2, "hidden_dim": 24}
SHAPES: dict[str, dict[str, Any]] = {
    "bert": SHAPE,
    "roberta": SHAPE,
    "distilbert": DISTILBERT,
    "electra": SHAPE | {"embedding_size": 8},
    "albert": SHAPE | {"embedding_size": 8},
    "deberta-v2": SHAPE,
    "mobilebert": SHAPE | {"embedding_size": 8},
    "bart": {"d_model": 16, "encoder_layers": 1, "decoder_layers": 1},
    "modernbert": SHAPE | {"bos_token_id": 2, "eos_token_id": 3, "cls_token_id": 2, "sep_token_id": 3},
}
DROPOUT = ("hidden_dropout_prob", "attention_probs_dropout_prob", "dropout", "attention_dropout")


def encoder(kind: str, tokenizer, seed: int = 0, dropout: float = 0.0, **more: Any) -> PreTrainedModel:
    """A small random model with a masked-LM head, of which no weight is as it was made."""
    shape = SHAPES.get(kind, SHAPE) | {"vocab_size": len(tokenizer), "max_position_embeddings": 64} | more
    config = transformers.AutoConfig.for_model(kind, pad_token_id=0, **shape)
    for key in DROPOUT:
        if hasattr(config, key):
            setattr(config, key, dropout)
    torch.manual_seed(seed)
    model = TASK.create(config).eval()
    with torch.no_grad():
        for weight in model.parameters():
            weight += 0.2 * torch.randn_like(weight)
    return model


def masker():
    """A byte-level tokenizer with a mask token."""
    letters = speller()
    letters.mask_token = "<|system|>"
    return letters


def table(*texts: str) -> datasets.Dataset:
    return datasets.Dataset.from_list([{"id": f"row{n}", "text": text} for n, text in enumerate(texts)])


def many(count: int, seed: int = 0) -> datasets.Dataset:
    return table(*(text for text, _ in sentences(count, seed)))


def batch(tokenizer, rows: datasets.Dataset) -> dict[str, torch.Tensor]:
    encoded = TASK.encode(tokenizer, rows, 32)
    found = TASK.collate([encoded[row] for row in range(len(encoded))], tokenizer)
    del found["rows"]
    return found


def taken(model: PreTrainedModel, inputs: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Those of the inputs that a model takes."""
    return {name: values for name, values in inputs.items() if name in inspect_inputs(model)}


# ---- what is hidden ----------------------------------------------------------------------------------


def test_what_is_hidden_is_decided_by_the_id_alone(tokenizer) -> None:
    """A teacher that sees other tokens than the student gives away the answer, and a cached signal is of other positions."""
    rows = many(40)
    whole = TASK.encode(tokenizer, rows, 32)
    np.random.seed(1)
    order = list(range(39, -1, -2))
    some = TASK.encode(tokenizer, rows.select(order), 32)
    for number, row in enumerate(order):
        for key in ("input_ids", "labels"):
            assert np.array_equal(some[number][key], whole[row][key])
    other = rows.map(lambda row: {"id": f"{row['id']}/1"})
    assert not np.array_equal(TASK.encode(tokenizer, other, 32).columns["labels"], whole.columns["labels"])


def test_as_many_tokens_are_hidden_as_bert_hides(tokenizer) -> None:
    """A share that is wrong trains on another task, and a hidden token among the labels at the wrong place on nonsense."""
    words = np.random.default_rng(0).choice(FILLER + GOOD, (400, 28))
    rows = table(*(" ".join(line) for line in words))
    encoded = TASK.encode(tokenizer, rows, 32)
    plain = [tokenizer(text)["input_ids"] for text in rows["text"]]
    assert (TASK.targets(encoded)[1] == round(0.15 * 28)).all()
    same = masked = 0
    others = []
    for row, ids in enumerate(plain):
        item = encoded[row]
        hidden = np.flatnonzero(item["labels"] != IGNORE)
        assert np.array_equal(item["labels"][hidden], np.asarray(ids)[hidden])
        left = np.delete(np.arange(len(ids)), hidden)
        assert np.array_equal(item["input_ids"][left], np.asarray(ids)[left])
        for place in hidden:
            read = item["input_ids"][place]
            same += read == ids[place]
            masked += read == tokenizer.mask_token_id
            others += [read] if read not in (ids[place], tokenizer.mask_token_id) else []
    total = 4 * 400
    assert masked / total == pytest.approx(0.8, abs=0.03)
    assert same / total == pytest.approx(0.1 + 0.1 / 27, abs=0.03)
    assert len(others) / total == pytest.approx(0.1, abs=0.03)
    assert not set(map(int, others)) & set(tokenizer.all_special_ids)
    assert len(set(others)) == len(tokenizer) - len(tokenizer.all_special_ids)


def test_a_short_row_has_a_hidden_token(tokenizer) -> None:
    """15 % of three tokens is none, and the row would teach nothing."""
    rows = table("good", "a film [SEP] [MASK] ?")
    labels = TASK.encode(tokenizer, rows, 32)
    assert TASK.targets(labels)[1].tolist() == [1, 1]
    assert TASK.targets(labels)[0][0] == tokenizer.convert_tokens_to_ids("good")
    special = set(tokenizer.all_special_ids)
    for name in range(200):
        ids = np.asarray(tokenizer(rows["text"][1])["input_ids"])
        places = np.flatnonzero([number not in special for number in ids])
        found, _ = mask_tokens(ids, places, 4, np.arange(5, 30), str(name))
        assert found[found != IGNORE].tolist()[0] not in special


def test_segments_and_padding(tokenizer) -> None:
    """token_type_ids that are dropped, or a padded position that counts."""
    found = batch(tokenizer, table("good", "this was a very good film and a song"))
    assert set(found) == {"input_ids", "token_type_ids", "attention_mask", "labels"}
    assert found["labels"].shape == found["input_ids"].shape == (2, 11)
    assert (found["labels"][0, 3:] == IGNORE).all()
    pick, flat = TASK.positions(found["labels"])
    assert torch.equal(found["labels"][pick], flat)
    assert TASK.counts(found["labels"]).tolist() == [1, round(0.15 * 9)]
    assert TASK.inputs(table("good"), tokenizer) == [["good"]]


# ---- texts become rows -------------------------------------------------------------------------------


def test_long_texts_are_cut_and_nothing_is_lost(tokenizer) -> None:
    """Text beyond max_length that is cut off, a word that is cut in two, or a piece that is longer than it may be."""
    long = "  " + "\n".join(text for text, _ in sentences(60)) + "  "
    rows = TASK.prepare(table("a good film", long, long), tokenizer, 16)
    assert rows[0] == {"id": "row0", "text": "a good film"}
    assert "".join(rows["text"][1:]) == long * 2
    assert len(set(rows["id"])) == len(rows)
    lengths = [len(tokenizer(text)["input_ids"]) for text in rows["text"]]
    assert max(lengths) == 16
    assert [tokenizer.unk_token_id in tokenizer(text)["input_ids"] for text in rows["text"]] == [False] * len(
        rows
    )
    again = TASK.prepare(rows, tokenizer, 16)
    assert again["id"] == rows["id"]
    repeated = TASK.prepare(table("so very " * 40), tokenizer, 10)
    assert len(set(repeated["id"])) == len(repeated) > len(set(repeated["text"]))


@pytest.mark.parametrize("trimmed", [False, True])
def test_byte_level_tokenizers_keep_their_spaces(trimmed: bool) -> None:
    """A piece that begins after the space, or within a word, is cut into other tokens than the text was."""
    letters = masker()
    letters.backend_tokenizer.post_processor = processors.ByteLevel(trim_offsets=trimmed)
    text = " ".join(text.replace("film", "filmography") for text, _ in sentences(20))
    rows = TASK.prepare(table(text), letters, 12)
    assert "".join(rows["text"]) == text
    assert all(piece.startswith(" ") for piece in rows["text"][1:])
    tokens = [letters(piece)["input_ids"] for piece in rows["text"]]
    assert max(map(len, tokens)) == 12
    assert [token for piece in tokens for token in piece] == letters(text)["input_ids"]


def test_words_that_are_longer_than_a_piece() -> None:
    """A cut that looks for the next word in vain does not end; one within a character makes another character of it."""
    letters = masker()
    text = "good " + "x" * 50 + " 🦊🦊🦊🦊 film"
    rows = TASK.prepare(table(text), letters, 6)
    assert "".join(rows["text"]) == text
    assert max(len(letters(piece)["input_ids"]) for piece in rows["text"]) <= 6
    with pytest.raises(DataError, match=naming("'🦊 b'", "3 tokens", "dataset.max_length")):
        TASK.prepare(table("a 🦊 b"), letters, 3)


def test_rows_without_anything_to_hide(tokenizer, caplog: pytest.LogCaptureFixture) -> None:
    """A row of unknown tokens alone has no label, and the mean over no position is nan."""
    with caplog.at_level(logging.WARNING):
        rows = TASK.prepare(table("? !", "good", "猫"), tokenizer, 16)
    assert rows["text"] == ["good"]
    require_words(caplog.text, "2 of 3 rows", "dropped", "special")
    with pytest.raises(DataError, match=naming("no row", "special")):
        TASK.prepare(table("? !"), tokenizer, 16)
    with pytest.raises(DataError, match=naming("row row0", "'? !'", "special")):
        TASK.encode(tokenizer, table("? !"), 16)


def test_tokenizers_and_lengths_that_are_refused(tokenizer) -> None:
    """A decoder's tokenizer hides tokens behind token None."""
    for ask in (TASK.prepare, lambda rows, own, length: TASK.encode(own, rows, length)):
        with pytest.raises(ModelError, match=naming("no mask token", "encoder")):
            ask(table("good"), speller(), 16)
    with pytest.raises(ConfigError, match=naming("dataset.max_length", "2", "at least 3")):
        TASK.prepare(table("good"), tokenizer, 2)


def test_models_that_read_other_tokens_are_refused(tokenizer) -> None:
    """Teacher and student that read other tokens around the same hidden ones do not answer the same question."""
    rows = many(20)
    ours = TASK.encode(tokenizer, rows, 32)
    TASK.require_same(rows, ours, TASK.encode(tokenizer, rows, 32))
    other = TASK.encode(tokenizer, rows, 32)
    shown = np.flatnonzero(other[7]["labels"] == IGNORE)[1]
    other.columns["input_ids"][other.offsets[7] + shown] += 1
    with pytest.raises(ModelError, match=naming("row row7", "teacher", "student", "different tokens")):
        TASK.require_same(rows, other, ours)


# ---- models ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "kind", ["bert", "roberta", "distilbert", "electra", "albert", "deberta-v2", "modernbert"]
)
def test_logits_are_those_of_the_model_itself(tokenizer, kind: str, tmp_path: Path) -> None:
    """Architectures do different things between the body and the output layer: a head that leaves it out is another model."""
    model = encoder(kind, tokenizer)
    inputs = taken(model, batch(tokenizer, many(5)))
    labels = inputs.pop("labels")
    pick, _ = TASK.positions(labels)
    with torch.no_grad():
        said = TASK.signal(model, inputs, pick)
        own = model(**inputs).logits
    assert own.shape == (*labels.shape, len(tokenizer))  # nothing is left in the model
    assert own.std() > 0.1
    assert torch.allclose(said.rows(slice(0, len(said))).logits, own[pick], atol=1e-5)
    model.save_pretrained(tmp_path)
    loaded, new = TASK.load(tmp_path)
    assert not new
    with torch.no_grad():
        assert torch.allclose(loaded(**inputs).logits, own, atol=1e-5)


def test_logits_never_exist_whole(tokenizer) -> None:
    """An output layer that runs over all positions costs more memory than the rest of the model."""
    model = encoder("bert", tokenizer)
    inputs = batch(tokenizer, many(5))
    pick, _ = TASK.positions(inputs.pop("labels"))
    made: list[torch.Size] = []
    model.get_output_embeddings().register_forward_hook(lambda _, __, logits: made.append(logits.shape))
    TASK.signal(model, inputs, pick)
    assert [shape.numel() for shape in made] == [0]
    model.bert.register_forward_hook(lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        TASK.signal(model, inputs, pick)
    assert not model.get_output_embeddings()._forward_pre_hooks


@pytest.mark.parametrize("kind", ["bert", "roberta", "distilbert", "electra"])
def test_gradients_are_those_of_dense_logits(tokenizer, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A hook that cuts the graph leaves the head's transform, its bias, or the body without a gradient; tied embeddings get
    one from both ends."""
    student, teacher = encoder(kind, tokenizer), encoder(kind, tokenizer, seed=1).requires_grad_(False)
    inputs = taken(student, batch(tokenizer, many(30)))
    labels = inputs.pop("labels")
    pick, flat = TASK.positions(labels)
    module = Distiller(
        student, TASK, {"soft": ForwardKL(2.0), "hard": HardLabel()}, {"soft": 1.0, "hard": 0.5}
    )
    monkeypatch.setattr(signal, "CHUNK", len(tokenizer) * 16)
    assert len(flat) > 32
    loss = module(labels=labels, teacher=TASK.signal(teacher, inputs, pick), **inputs)["loss"]
    loss.backward()
    found = {name: weight.grad for name, weight in student.named_parameters()}
    student.zero_grad()
    ours, theirs = (model(**inputs).logits[pick] for model in (student, teacher))
    whole = ForwardKL(2.0)(Signal(ours), Signal(theirs), flat).mean() + 0.5 * cross_entropy(ours, flat)
    whole.backward()
    assert torch.allclose(loss, whole, atol=1e-5)
    for name, weight in student.named_parameters():
        assert (found[name] is None) == (weight.grad is None), name
        if weight.grad is not None:
            assert torch.allclose(found[name], weight.grad, atol=1e-6), name
    assert found[next(name for name in found if "word_embeddings" in name)].abs().sum() > 0
    assert student.get_output_embeddings().bias.grad.abs().sum() > 0


def test_predictions_are_the_models_own_loss(tokenizer) -> None:
    """A score at other positions, or of rows in another order, than the model is trained on."""
    model, rows = encoder("bert", tokenizer), many(70)
    encoded = TASK.encode(tokenizer, rows, 32)
    said = TASK.predict(model, tokenizer, encoded)
    with torch.no_grad():
        own = model(**batch(tokenizer, rows)).loss
    assert TASK.scores(said)["log_prob"] == pytest.approx(-float(own), abs=1e-5)
    assert np.array_equal(said.labels, TASK.targets(encoded)[0])
    assert np.array_equal(said.counts, TASK.targets(encoded)[1])
    assert TASK.per_example_scores(said).mean() == pytest.approx(-float(own), abs=1e-5)


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        ("mobilebert", ["MobileBertForMaskedLM", "logits"]),
        ("esm", ["EsmForMaskedLM", "logits"]),
        ("bart", ["BartForConditionalGeneration", "masked_lm", "encoder"]),
    ],
)
def test_heads_that_are_not_understood_are_refused(
    tokenizer, tmp_path: Path, kind: str, words: list[str]
) -> None:
    """Logits without what MobileBERT or ESM add to them would be learnt as if they were the teacher's."""
    encoder(kind, tokenizer).save_pretrained(tmp_path)
    with pytest.raises(ModelError, match=naming(*words)):
        load_model(Checkpoint(tmp_path, "it"), TASK)


def test_a_decoder_is_refused(tokenizer, tmp_path: Path) -> None:
    """transformers' own message lists a hundred classes, and says nothing of what to do."""
    decoder(tokenizer).save_pretrained(tmp_path)
    with pytest.raises(
        ModelError, match=naming("AutoModelForMaskedLM", "masked_lm", "dataset.task=causal_lm")
    ):
        load_model(Checkpoint(tmp_path, "it"), TASK)


def test_a_body_without_a_head_is_refused(body: Path) -> None:
    """A random head says nothing, and its student learns that."""
    with pytest.raises(ModelError, match=naming("weights lack", "…ForMaskedLM")):
        load_complete(Checkpoint(body, "it"), TASK)


# ---- teachers and losses -----------------------------------------------------------------------------


@pytest.fixture
def local(tokenizer, tmp_path: Path) -> LocalTeacher:
    folder = tmp_path / "teacher"
    encoder("bert", tokenizer, seed=5).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    teacher = LocalTeacher(batch_size=8)
    teacher.open(Checkpoint(folder, "it"), TASK, 32, "fp32")
    return teacher


def test_the_cache_holds_what_the_teacher_says(tokenizer, local: LocalTeacher, tmp_path: Path) -> None:
    """Stored answers of other positions, or in another order than the student's."""
    rows = many(50)
    encoded = TASK.encode(tokenizer, rows, 32)
    labels, counts = TASK.targets(encoded)
    online = local.signals(list(rows))
    assert isinstance(online, HiddenSignal)
    assert [len(signal) for signal in local.outputs(list(rows))] == counts.tolist()
    cached = CachedTeacher(tmp_path / "cache", k=4)
    cached.fetch(rows, lambda: local, lambda done: None)
    order = [*range(49, -1, -3)]
    stored = cached.signals(list(rows.select(order)))
    assert isinstance(stored, TopKSignal)
    assert len(stored) == counts[order].sum()
    ends = counts.cumsum()
    places = np.concatenate([np.arange(ends[row] - counts[row], ends[row]) for row in order])
    log_p = online.rows(slice(0, len(online))).logits.log_softmax(-1)[places]
    top, indices = log_p.topk(4)
    assert torch.equal(stored.indices, indices)
    assert torch.allclose(stored.log_p, top, atol=5e-3)
    whole = CachedTeacher(tmp_path / "whole", k=len(tokenizer))
    whole.fetch(rows, lambda: local, lambda done: None)
    told = TASK.predictions_from_outputs([whole.signals(list(rows))], encoded)
    said = TASK.predict(local.model, tokenizer, encoded)
    assert np.array_equal(told.labels, labels)
    assert TASK.scores(told)["log_prob"] == pytest.approx(TASK.scores(said)["log_prob"], abs=2e-3)


@pytest.mark.parametrize("layers", ["last", [(-1, -1)]])
def test_all_three_terms_of_distilbert_reach_every_weight(
    tokenizer, local: LocalTeacher, layers: LayerMapping
) -> None:
    """A term that reads the inside beside a head that is watched as well: one hook must not undo the other."""
    student = encoder("distilbert", tokenizer)
    losses = {"soft": ForwardKL(2.0), "hard": HardLabel(), "cosine": HiddenStates(layers, "cosine")}
    losses["cosine"].attach(student.config, local.model.config)
    module = Distiller(student, TASK, losses, {"soft": 5.0, "hard": 2.0, "cosine": 1.0}).train()
    rows = many(30)
    inputs = taken(student, batch(tokenizer, rows))
    teacher = local.outputs_with_features(list(rows), module.parts)
    out = module(teacher=teacher, **inputs)
    out["loss"].backward()
    assert (out["terms"] > 0).all()
    used = inputs["attention_mask"].shape[1]
    for name, weight in student.named_parameters():
        assert weight.grad is not None, name
        assert torch.isfinite(weight.grad).all(), name
        kept = weight.grad[:used] if "position" in name else weight.grad
        flat = "k_lin.bias" in name  # softmax does not see what all keys have in common
        assert flat or kept.abs().sum() > 0, name


def test_a_teacher_has_nothing_to_teach_itself(local: LocalTeacher, tokenizer) -> None:
    """Teacher and student that hide other tokens, or are watched at other layers, differ where they are the same model."""
    losses = {"soft": ForwardKL(2.0), "inside": HiddenStates("uniform", "mse")}
    losses["inside"].attach(local.model.config, local.model.config)
    module = Distiller(local.model, TASK, losses, {"soft": 1.0, "inside": 1.0}).eval()
    rows = many(12)
    out = module(teacher=local.outputs_with_features(list(rows), module.parts), **batch(tokenizer, rows))
    assert torch.allclose(out["terms"], torch.zeros(2), atol=1e-5)


def test_the_task_is_found_by_its_name() -> None:
    """What tasks have in common is no task: it cannot be made, and ends in a traceback."""
    found = task_of(Dataset(path="d", task="masked_lm"), [])
    assert isinstance(found, MaskedLM)
    assert found.vocabulary
    assert not found.writes
    for name in ("base", "language_model"):
        with pytest.raises(ValidationError, match=naming("no such task", "masked_lm")):
            Dataset(path="d", task=name)
