"""Tags of words: entities counted as CoNLL counts them, words found among the tokens, and what does not count."""

from __future__ import annotations

import logging
import random
from pathlib import Path

import datasets
import numpy as np
import onnxruntime
import pytest
import torch
from support.commands import naming, require_words
from support.tiny import BAD, FILLER, GOOD, bert, speller
from transformers import BertForTokenClassification, CanineTokenizer

from kdcli.errors import DataError, ModelError
from kdcli.evaluation.statistics import mean_interval
from kdcli.exporting.targets.cpu import Cpu
from kdcli.losses.forward_kl import ForwardKL
from kdcli.losses.hard_label import HardLabel
from kdcli.signals import Signal
from kdcli.tasks.base import Predictions
from kdcli.tasks.rows import IGNORE
from kdcli.tasks.token_classification.scheme import entities, scheme_of
from kdcli.tasks.token_classification.task import TokenClassification
from kdcli.training.distiller import Distiller

TAGS = ["B-LOC", "B-PER", "I-LOC", "I-PER", "O"]
TASK = TokenClassification(TAGS)


def table(*rows: tuple[list[str], list[int]]) -> datasets.Dataset:
    return datasets.Dataset.from_list(
        [{"id": str(number), "words": words, "label": label} for number, (words, label) in enumerate(rows)]
    )


def spans(rows: list[list[str]]) -> set[tuple[int, int, str]]:
    """What `entities` finds: first word, last word, type."""
    labels = sorted({tag for row in rows for tag in row})
    tags = np.asarray([labels.index(tag) for row in rows for tag in row])
    scheme = scheme_of(labels)
    types = scheme.types
    kinds, ends = entities(scheme, tags, np.asarray([len(row) for row in rows]))
    return {(place, int(ends[place]), types[kinds[place]]) for place in np.flatnonzero(kinds >= 0)}


@pytest.mark.parametrize(
    ("rows", "expected"),
    [
        (["B-PER I-PER O B-LOC"], {(0, 1, "PER"), (3, 3, "LOC")}),
        (["B-PER B-PER I-PER"], {(0, 0, "PER"), (1, 2, "PER")}),
        (["I-PER I-PER O I-LOC"], {(0, 1, "PER"), (3, 3, "LOC")}),
        (["I-PER B-PER I-PER I-LOC"], {(0, 0, "PER"), (1, 2, "PER"), (3, 3, "LOC")}),
        (["S-PER B-PER E-PER S-LOC O"], {(0, 0, "PER"), (1, 2, "PER"), (3, 3, "LOC")}),
        (["B-PER I-PER E-PER I-PER"], {(0, 2, "PER"), (3, 3, "PER")}),
        (["U-PER B-PER I-PER L-PER U-PER"], {(0, 0, "PER"), (1, 3, "PER"), (4, 4, "PER")}),
        (["I-PER E-PER E-PER"], {(0, 1, "PER"), (2, 2, "PER")}),
        (["PER PER O LOC"], {(0, 1, "PER"), (3, 3, "LOC")}),
        (["O B-PER", "I-PER O", "I-PER"], {(1, 1, "PER"), (2, 2, "PER"), (4, 4, "PER")}),
        (["O O", "O"], set()),
    ],
    ids=["IOB2", "side by side", "IOB1", "IOB1 side by side", "BIOES", "after the end", "BILOU", "IOE", "types", "rows", "none"],
)  # fmt: skip
def test_entities_of_every_scheme(rows: list[str], expected: set[tuple[int, int, str]]) -> None:
    """A scheme that is not understood, or an entity that reaches into the next sentence, gives figures of its own."""
    assert spans([row.split() for row in rows]) == expected


def conlleval(tags: list[str]) -> set[tuple[int, int, str]]:
    """The chunks of one sentence by the two rules of the script of CoNLL, a word at a time."""
    found: set[tuple[int, int, str]] = set()
    before, type_before, start = "O", "", 0
    for place, tag in enumerate([*tags, "O"]):
        now, _, type_ = tag.partition("-")
        ends = (
            before in ("E", "S")
            or (before in ("B", "I") and now in ("B", "S", "O"))
            or (before != "O" and type_before != type_)
        )
        begins = (
            now in ("B", "S")
            or (now in ("E", "I") and before in ("E", "S", "O"))
            or (now != "O" and type_before != type_)
        )
        if before != "O" and ends:
            found.add((start, place - 1, type_before))
        if begins:
            start = place
        before, type_before = now, type_
    return found


WILD = ["O", *(f"{place}-{kind}" for place in "BIES" for kind in ("PER", "LOC"))]


def test_entities_are_those_of_conlleval() -> None:
    """Models write tags in no scheme at all: O I-PER, E without B … which the script of CoNLL counts in its own way."""
    chance = random.Random(0)
    for _ in range(300):
        tags = [*chance.choices(WILD, k=chance.randint(1, 9)), "B-PER", "B-LOC"]
        assert spans([tags]) == conlleval(tags), tags


def wild(
    rows: int, seed: int = 0, right: float = 0.7
) -> tuple[Predictions, list[list[str]], list[list[str]]]:
    """Random gold tags, and answers that are right so often."""
    chance = random.Random(seed)
    fixed = random.Random(99)
    gold = [fixed.choices(WILD, k=fixed.randint(1, 12)) for _ in range(rows)]
    found = [[tag if chance.random() < right else chance.choice(WILD) for tag in row] for row in gold]
    index = {tag: number for number, tag in enumerate(WILD)}
    logits = np.eye(len(WILD), dtype=np.float32)[[index[tag] for row in found for tag in row]]
    labels = np.asarray([index[tag] for row in gold for tag in row])
    return Predictions({"logits": logits}, labels, np.asarray([len(row) for row in gold])), gold, found


def counted(gold: list[list[str]], found: list[list[str]]) -> np.ndarray:
    """Gold, found and right entities of each row, (rows, 3)."""
    pairs = [(conlleval(one), conlleval(other)) for one, other in zip(gold, found, strict=True)]
    return np.asarray([(len(one), len(other), len(one & other)) for one, other in pairs])


def f1(counts: np.ndarray) -> np.ndarray:
    """Of summed counts, (…, 3)."""
    return 2 * counts[..., 2] / (counts[..., 0] + counts[..., 1])


def test_scores_by_hand() -> None:
    """Precision and recall the wrong way round; a wrong type or a wrong last word that counts as half right."""
    gold = ["B-PER", "I-PER", "O", "B-LOC", "O", "B-PER"]
    said = ["B-PER", "O", "O", "B-PER", "O", "B-PER"]
    labels = np.asarray([TAGS.index(tag) for tag in gold])
    probabilities = np.full((6, 5), 0.1)
    probabilities[np.arange(6), [TAGS.index(tag) for tag in said]] = 0.6
    scores = TASK.scores(Predictions({"logits": np.log(probabilities)}, labels, np.asarray([3, 3])))
    assert scores["precision"] == pytest.approx(1 / 3)  # the last PER alone has the gold one's words
    assert scores["recall"] == pytest.approx(1 / 3)
    assert scores["f1"] == pytest.approx(1 / 3)
    assert scores["token_accuracy"] == pytest.approx(4 / 6)
    assert scores["nll"] == pytest.approx(-(4 * np.log(0.6) + 2 * np.log(0.1)) / 6)
    assert scores["per_type_f1"] == {"LOC": 0.0, "PER": pytest.approx(2 / 5)}
    assert scores["entities"] == {"LOC": 1, "PER": 2}


def test_scores_where_nothing_is_found() -> None:
    """0 divided by 0, and a type that neither the data nor the model has counted as a failure."""
    logits = np.eye(5, dtype=np.float32)[[4, 4, 4]]
    said = Predictions({"logits": logits}, np.asarray([4, 1, 4]), np.asarray([2, 1]))
    scores = TASK.scores(said)
    assert (scores["f1"], scores["precision"], scores["recall"]) == (0, 0, 0) == (TASK.chance(said, 5),) * 3
    assert scores["per_type_f1"] == {"LOC": None, "PER": 0.0}
    bare = Predictions({"logits": logits}, np.asarray([4, 4, 4]), np.asarray([2, 1]))
    assert TASK.scores(bare)["f1"] == 0
    assert TASK.per_example_scores(bare).tolist() == [0, 0]


def test_the_interval_is_that_of_resampled_rows() -> None:
    """The F1 is no mean over rows: taken as one, its interval and that of the gain are too narrow or beside the point."""
    task = TokenClassification(WILD)
    (one, gold, found), (other, _, less) = wild(300, 1, 0.8), wild(300, 2, 0.7)
    counts, fewer = counted(gold, found), counted(gold, less)
    assert task.scores(one)["f1"] == pytest.approx(f1(counts.sum(0)))
    assert task.per_example_scores(one).mean() == pytest.approx(f1(counts.sum(0)))
    chosen = np.random.default_rng(0).integers(0, 300, (10_000, 300))
    resampled = f1(counts[chosen].sum(1)), f1(counts[chosen].sum(1)) - f1(fewer[chosen].sum(1))
    for values, brute in zip(
        (task.per_example_scores(one), task.per_example_scores(one) - task.per_example_scores(other)),
        resampled,
        strict=True,
    ):
        low, high = np.percentile(brute, [2.5, 97.5])
        np.testing.assert_allclose(mean_interval(values), (low, high), atol=0.03 * (high - low))


def test_no_entity_is_what_a_tagger_must_beat() -> None:
    """A tagger without a tag for "no entity" has no trivial model; with one, that finds nothing."""
    outputs = wild(20, 1, 0.8)[0]
    task = TokenClassification(WILD)
    baseline = task.chance_predictions(outputs)
    assert baseline is not None
    assert task.scores(baseline)["f1"] == 0
    assert task.balanced(outputs) is None


# ---- words among tokens ------------------------------------------------------------------------------


def test_a_word_counts_at_its_first_token(tokenizer) -> None:
    """Each piece of a word counted on its own weighs long words more, and shifts the tags of all that follow."""
    rows = table((["good", "so-so", "film"], [1, 3, 4]), (["?", "sad"], [4, 0]))
    encoded = TASK.encode(tokenizer, rows, 32)
    assert tokenizer.convert_ids_to_tokens(encoded[0]["input_ids"]) == [
        "[CLS]", "good", "so", "[UNK]", "so", "film", "[SEP]",
    ]  # fmt: skip
    assert encoded[0]["labels"].tolist() == [IGNORE, 1, 3, IGNORE, IGNORE, 4, IGNORE]
    assert encoded[1]["labels"].tolist() == [IGNORE, 4, 0, IGNORE]
    labels, counts = TASK.targets(encoded)
    assert (labels.tolist(), counts.tolist()) == ([1, 3, 4, 4, 0], [3, 2])
    batch = TASK.collate([encoded[1], encoded[0]], tokenizer)
    assert TASK.positions(batch["labels"])[1].tolist() == [4, 0, 1, 3, 4]
    assert TASK.counts(batch["labels"]).tolist() == [2, 3]
    assert TASK.inputs(rows, tokenizer) == [["good so-so film"], ["? sad"]]


def test_byte_level_tokens_keep_the_space(tokenizer) -> None:
    """Words handed over one by one are glued together by tokenizers such as GPT-2's and RoBERTa's: another text."""
    letters = speller()
    words = ["good", "café", "très", "x", "film"]
    encoded = TASK.encode(letters, table((words, [0, 1, 2, 3, 4])), 64)
    assert letters.decode(encoded[0]["input_ids"]) == " ".join(words)
    at = np.flatnonzero(encoded[0]["labels"] != IGNORE)
    assert encoded[0]["labels"][at].tolist() == [0, 1, 2, 3, 4]
    pieces = np.split(encoded[0]["input_ids"], at[1:])
    assert [letters.decode(piece).strip() for piece in pieces] == words


def test_rows_are_cut_before_they_are_read(tokenizer, caplog: pytest.LogCaptureFixture) -> None:
    """Words that one model reads and another does not would be compared with the words beside them."""
    rows = table((["good"] * 9, [1, 3, 3, 3, 3, 3, 3, 3, 3]), (["bad", "\u200b", "day"], [0, 2, 4]))
    with caplog.at_level(logging.WARNING):
        prepared = TASK.prepare(rows, tokenizer, 8)
    require_words(caplog.text, "4 of 12 words", "dropped", "dataset.max_length = 8")
    assert prepared["words"][:] == [["good"] * 6, ["bad", "day"]]
    assert prepared["label"][:] == [[1, 3, 3, 3, 3, 3], [0, 4]]
    assert not set(prepared["id"]) & set(rows["id"]), (
        "what is kept of a row's answers would be taken for those of a part"
    )
    assert TASK.targets(TASK.encode(tokenizer, prepared, 8))[1].tolist() == [6, 2]
    assert TASK.prepare(prepared, tokenizer, 8) is prepared
    with pytest.raises(DataError, match=naming("row 0", "3 of its 9", "no token", "dataset.max_length = 8")):
        TASK.encode(tokenizer, rows, 8)
    with pytest.raises(DataError, match=naming("row 1", "no token", "its words", "dataset.max_length = 8")):
        TASK.prepare(table((["day"], [4]), (["\u200b"], [4])), tokenizer, 8)


def test_a_tokenizer_that_is_not_fast() -> None:
    """One that does not return character offsets cannot be asked, and ends in a NotImplementedError."""
    with pytest.raises(ModelError, match=naming("CanineTokenizer", "fast tokenizer")):
        TASK.encode(CanineTokenizer(), table((["good"], [1])), 8)


def tagger(tokenizer) -> BertForTokenClassification:
    """A random tagger that tells words apart."""
    torch.manual_seed(0)
    model = BertForTokenClassification(bert(tokenizer, TAGS).config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.1 * torch.randn_like(parameter)
    return model


def some(count: int, seed: int = 0) -> datasets.Dataset:
    chance = random.Random(seed)
    lengths = [chance.randint(1, 12) for _ in range(count)]
    return table(
        *(
            (chance.choices(GOOD + BAD + FILLER, k=length), chance.choices(range(5), k=length))
            for length in lengths
        )
    )


def test_hidden_tags_count_for_the_teacher_alone(tokenizer) -> None:
    """A word without a gold tag that does not count at all makes unlabelled text worthless; one that counts as gold is
    learnt as the last class."""
    rows = some(4)
    hidden = table(*((row["words"], row["label"]) for row in rows.select([0, 1])), *(
        (row["words"], [IGNORE] * len(row["words"])) for row in rows.select([2, 3])
    ))  # fmt: skip
    lengths = [len(words) for words in rows["words"]]
    model = tagger(tokenizer)
    losses = {"hard_label": HardLabel(), "soft_label": ForwardKL()}
    distiller = Distiller(model, TASK, losses, dict.fromkeys(losses, 1.0)).train()
    whole, half = (TASK.encode(tokenizer, table, 32) for table in (rows, hidden))
    assert TASK.targets(half)[0].tolist() == [
        *(tag for label in rows["label"][:2] for tag in label), *[IGNORE] * sum(lengths[2:])
    ]  # fmt: skip
    batch = TASK.collate([half[row] for row in range(4)], tokenizer)
    del batch["rows"]
    teacher = Signal(torch.randn(sum(lengths), 5))
    out = distiller(**batch, teacher=teacher)
    log_q = TASK.signal(model, {key: batch[key] for key in batch if key != "labels"},
                        TASK.positions(batch["labels"])[0]).logits.log_softmax(-1)  # fmt: skip
    gold = torch.as_tensor(TASK.targets(whole)[0][: sum(lengths[:2])])
    hard = -log_q[: len(gold)].gather(1, gold[:, None]).mean()
    log_p = teacher.logits.log_softmax(-1)
    soft = (log_p.exp() * (log_p - log_q)).sum(1).mean()
    torch.testing.assert_close(out["terms"], torch.stack([hard, soft]).detach())


def test_padding_and_the_batch_change_nothing(tokenizer) -> None:
    """Rows come back in the order of their lengths, or padding is counted as words."""
    rows, model = some(70), tagger(tokenizer)
    encoded = TASK.encode(tokenizer, rows, 32)
    said = TASK.predict(model, tokenizer, encoded)
    assert said.labels.tolist() == [tag for label in rows["label"] for tag in label]
    assert said.counts.tolist() == [len(words) for words in rows["words"]]
    starts = np.cumsum(said.counts) - said.counts
    for row in (0, 33, 69):
        alone = tokenizer([" ".join(rows["words"][row])], return_tensors="pt")
        with torch.inference_mode():
            logits = model(**alone).logits[0, 1:-1]  # every word here is one token
        np.testing.assert_allclose(said["logits"][starts[row] :][: len(logits)], logits, atol=1e-5)
    told = TASK.predictions_from_outputs([Signal(torch.as_tensor(said["logits"]))], encoded)
    assert TASK.scores(told) == TASK.scores(said)
    assert TASK.agreement(said, told).all()
    assert np.abs(TASK.divergence(said, told)).max() < 1e-9


def test_a_body_gets_a_new_head_for_the_tags(tokenizer, body: Path) -> None:
    """A head that is taken for a trained one leaves the teacher random."""
    model, new = TASK.load(body, config=TASK.configure(bert(tokenizer, ["bad", "good"]).config))
    assert new
    assert model.config.id2label == dict(enumerate(TAGS))
    assert type(model).__name__.endswith(TASK.head)


def test_onnx_of_a_tagger_takes_any_shape(tokenizer, tmp_path: Path) -> None:
    """The length of the sample that is baked into the graph's output refuses all other sentences."""
    model = tagger(tokenizer)
    names = ("input_ids", "attention_mask", "token_type_ids")
    file = Cpu(["fp32"]).export(
        tmp_path, tmp_path, model, [dict.fromkeys(names, torch.ones(1, 1).long())], 64
    )["fp32"]
    session = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])
    assert session.get_outputs()[0].shape == ["batch", "sequence", 5]
    for shape in ((1, 1), (3, 9), (2, 20)):
        batch = {name: torch.ones(shape).long() for name in names}
        batch["input_ids"] = torch.randint(5, 20, shape)
        with torch.inference_mode():
            expected = model(**batch).logits.numpy()
        (found,) = session.run(["logits"], {name: tensor.numpy() for name, tensor in batch.items()})
        np.testing.assert_allclose(found, expected, atol=1e-5)
