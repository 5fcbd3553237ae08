"""Sources as people have them: read, cleaned and split without surprises, or refused with the place and the remedy."""

from __future__ import annotations

import json
import os
import random
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import Any

import datasets
import pyarrow
import pyarrow.parquet
import pytest
import yaml
from pydantic import ValidationError
from support.commands import naming, require_words
from support.tiny import sentences, write_csv

from kdcli.config.dataset import Dataset
from kdcli.config.paths import conf_dir
from kdcli.data.dataset import Data, load, require_batch, with_gold
from kdcli.data.delimited import LONGEST_FIELD
from kdcli.data.sources import require_source
from kdcli.data.splits import SPLITS
from kdcli.errors import ConfigError, DataError
from kdcli.pipeline.keys import content_hash
from kdcli.tasks.rows import IGNORE

ROWS = sentences(60)
SIX: dict[str, Any] = {"validation_size": 6, "test_size": 6}


def read(path: Path, **more: Any) -> Data:
    kind = {".jsonl": "jsonl", ".parquet": "parquet", ".txt": "txt", ".yml": "conversations"}.get(
        path.suffix, "csv"
    )
    return load(Dataset.model_validate({"path": str(path), "format": kind, **SIX, **more}))


def texts(data: Data) -> set[str]:
    return {text for split in SPLITS for text in data[split]["text"]}


def refused(path: Path, **more: Any) -> str:
    with pytest.raises(DataError) as caught:
        read(path, **more)
    return caught.value.message


def write_jsonl(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def write_parquet(path: Path, columns: dict[str, list[Any]]) -> Path:
    pyarrow.parquet.write_table(pyarrow.table(columns), path)
    return path


@pytest.mark.parametrize("key", ["path", "validation", "test", "unlabelled"])
def test_a_file_that_is_not_there_is_named_with_its_key(key: str, tmp_path: Path) -> None:
    """A user who mistyped dataset.test is told to correct dataset.path."""
    write_csv(tmp_path / "rows.csv", ROWS)
    keys = {"path": str(tmp_path / "rows.csv")} | {key: str(tmp_path / "nowhere.csv")}
    with pytest.raises(DataError, match=f"correct dataset.{key}$"):
        require_source(Dataset(**keys), keys[key])


# ---- splits ------------------------------------------------------------------------------------------


def test_variants_of_a_text_are_one_row(tmp_path: Path) -> None:
    """A test row that differs from a training row by case or white space is a training row."""
    variants = [
        (change(text), label)
        for text, label in ROWS
        for change in (str, str.upper, lambda t: f"  {t.replace(' ', '   ')}\t")
    ]
    data = read(write_csv(tmp_path / "all.csv", variants))
    everywhere = [text.casefold() for split in SPLITS for text in data[split]["text"]]
    assert sorted(everywhere) == sorted(text for text, _ in ROWS)
    assert not any("  " in text or text != text.strip() for text in everywhere)


def test_what_is_stored_is_of_these_very_texts(tmp_path: Path) -> None:
    """A cased teacher's answers to a text in other letters: rows that differ in case alone are the same row, and other texts."""
    one, other = (
        read(write_csv(tmp_path / f"{change.__name__}.csv", [(change(text), label) for text, label in ROWS]))
        for change in (str.lower, str.upper)
    )
    assert one["train"]["id"][:] == other["train"]["id"][:]
    assert one.fingerprint != other.fingerprint
    for labels in True, False:
        assert content_hash(one["train"], labels) != content_hash(other["train"], labels)


def test_given_files_do_not_share_rows(tmp_path: Path) -> None:
    """Published splits overlap; what stands in test as well must leave the training rows, not the test rows."""
    train = write_csv(tmp_path / "train.csv", ROWS)
    validation = write_csv(tmp_path / "validation.csv", [(text.title(), label) for text, label in ROWS[:20]])
    test = write_csv(tmp_path / "test.csv", [(text.upper(), label) for text, label in ROWS[:10]])
    data = read(train, validation=str(validation), test=str(test))
    assert [len(data[split]) for split in SPLITS] == [40, 10, 10]
    assert {text.casefold() for text in data["test"]["text"]} == {text for text, _ in ROWS[:10]}
    assert not {text.casefold() for text in data["train"]["text"]} & {text for text, _ in ROWS[:20]}


def test_split_does_not_depend_on_the_order_of_the_rows(tmp_path: Path) -> None:
    """A sorted or appended file would put other rows into test, and two runs could not be compared."""
    shuffled = random.Random(1).sample(ROWS, len(ROWS))
    one, other = read(write_csv(tmp_path / "a.csv", ROWS)), read(write_csv(tmp_path / "b.csv", shuffled))
    assert one.fingerprint == other.fingerprint
    assert all(one[split].to_list() == other[split].to_list() for split in SPLITS)


def test_fingerprint_follows_labels_and_rows(tmp_path: Path) -> None:
    """A label that was changed under a finished run would go unnoticed in its continuation."""
    before = read(write_csv(tmp_path / "a.csv", ROWS))
    text, label = ROWS[0]
    changed = [(text, {"bad": "good", "good": "bad"}[label]), *ROWS[1:]]
    assert read(write_csv(tmp_path / "b.csv", changed)).fingerprint != before.fingerprint
    assert read(write_csv(tmp_path / "c.csv", ROWS[1:])).fingerprint != before.fingerprint


def test_sizes_are_rows_or_shares(tmp_path: Path) -> None:
    """`validation_size=1` read as 100 %, or a share taken of what the test split left over."""
    path = write_csv(tmp_path / "a.csv", ROWS)
    data = read(path, test_size=0.25, validation_size=5)
    assert [len(data[split]) for split in SPLITS] == [40, 5, 15]
    assert len(read(path, validation_size=1)["validation"]) == 1
    require_words(refused(path, test_size=60), "a.csv", "60 rows", "test", "none", "dataset.test_size")
    with pytest.raises(ValidationError, match=naming("validation_size", "2.5", "whole number")):
        read(path, validation_size=2.5)


def test_limit_labelled_and_eval_limit(tmp_path: Path) -> None:
    """A limit that shrinks test too, or labels that stay where the config says that there are none."""
    path = write_csv(tmp_path / "a.csv", ROWS)
    whole = read(path, test_size=10, validation_size=10)
    less = read(path, test_size=10, validation_size=10, limit=30, labelled=12)
    assert [len(less[split]) for split in SPLITS] == [30, 10, 10]
    assert less["test"].to_list() == whole["test"].to_list()
    assert less["train"]["id"] == whole["train"]["id"][:30]
    labels = list(less["train"]["label"])
    assert IGNORE not in labels[:12]
    assert labels[12:] == [IGNORE] * 18
    assert less.gold["id"] == whole["train"]["id"][:12]
    few = read(path, test_size=10, validation_size=10, eval_limit=4)
    assert [len(few[split]) for split in SPLITS] == [40, 4, 4]
    assert few["test"]["id"] == whole["test"]["id"][:4]


# ---- labels ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("written", "names"),
    [
        ([1, 0], ["0", "1"]),
        ([True, False], ["False", "True"]),
        ([1.0, 0.0], ["0", "1"]),
        ([" good", "bad "], ["bad", "good"]),
        ([10, 2], ["2", "10"]),
    ],
)
def test_labels_of_every_type(tmp_path: Path, written: list[Any], names: list[str]) -> None:
    """0 and 0.0, or a name with a blank, become classes of their own; 10 sorts before 2."""
    rows = [{"text": text, "label": written[label == "bad"]} for text, label in ROWS]
    for data in (
        read(write_jsonl(tmp_path / "a.jsonl", rows)),
        read(
            write_parquet(
                tmp_path / "a.parquet", {key: [row[key] for row in rows] for key in ("text", "label")}
            )
        ),
    ):
        assert data.labels == names
        gold = dict(ROWS)
        for row in data["train"]:
            assert names[row["label"]] == str(written[gold[row["text"]] == "bad"]).strip().removesuffix(".0")


def test_many_integer_labels_stand_in_numerical_order(tmp_path: Path) -> None:
    """Sorted as text, label 10 takes the place of label 2, and a teacher's logits are read by the wrong name."""
    rows = [(f"{text} {number}", str(number % 12)) for number, (text, _) in enumerate(ROWS)]
    data = read(write_csv(tmp_path / "a.csv", rows))
    assert data.labels == [str(number) for number in range(12)]
    assert all(row["label"] == int(row["text"].split()[-1]) % 12 for row in data["train"])


def test_declared_labels_give_the_order(tmp_path: Path) -> None:
    """`dataset.labels` that is only a set leaves the logits in the alphabet's order."""
    data = read(write_csv(tmp_path / "a.csv", ROWS), labels=["good", "bad"])
    assert data.labels == ["good", "bad"]
    assert all(["good", "bad"][row["label"]] == dict(ROWS)[row["text"]] for row in data["train"])


def test_integers_in_the_file_are_places_among_declared_names(tmp_path: Path) -> None:
    """A file with 0 and 1 needs no edit to get names; but if the names are integers, 0 is not "the first"."""
    rows = [(text, str(int(label == "good"))) for text, label in ROWS]
    path = write_csv(tmp_path / "a.csv", rows)
    data = read(path, labels=["bad", "good"])
    assert all(["bad", "good"][row["label"]] == dict(ROWS)[row["text"]] for row in data["train"])
    assert read(path, labels=[1, 0])["train"]["label"] == [1 - label for label in data["train"]["label"]]
    require_words(refused(path, labels=[1, 2]), "a.csv", "line 3", "label '0'", "1, 2", "dataset.labels")


def test_labels_that_cannot_be_right_are_refused(tmp_path: Path) -> None:
    """One name twice shifts all that follow; YAML's bare `no` is a boolean."""
    path = write_csv(tmp_path / "a.csv", ROWS)
    with pytest.raises(ValidationError, match=naming("labels:", "'bad'", "twice")):
        read(path, labels=["bad", "good", "bad"])
    with pytest.raises(ValidationError, match=naming("""'"False"'""", "quotes")):
        read(path, labels=[False, "good"])
    with pytest.raises(ValidationError, match=naming("no_label.0", """'"False"'""", "quotes")):
        read(path, no_label=False)
    message = refused(path, labels=["bad", "goood"])
    require_words(message, "a.csv", "line 2", "label 'good'", "bad, goood", "mean goood?", "dataset.labels")


@pytest.mark.parametrize("more", [{}, {"limit": 1, "labelled": 1}])
def test_single_class(tmp_path: Path, more: dict[str, Any]) -> None:
    """A student that always says the one label there is scores 100 %."""
    rows = ROWS if more else [(text, "good") for text, _ in ROWS]
    message = refused(write_csv(tmp_path / "a.csv", rows), **more)
    keys = ["dataset.limit", "dataset.labelled"] if more else ["dataset.path", "dataset.label"]
    require_words(message, "a.csv", "all training rows", "at least two", *keys)


# ---- text without labels -----------------------------------------------------------------------------

MORE = [text for text, _ in sentences(90, seed=3) if text not in dict(ROWS)]


def test_unlabelled_rows_are_added_without_labels(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Text whose labels nobody vouches for taught as gold; text of the test split that the teacher labels for the student."""
    path = write_csv(tmp_path / "a.csv", ROWS)
    plain = read(path, labelled=12, eval_limit=2)
    more = write_csv(
        tmp_path / "more.csv",
        [
            *((text.upper(), "no such label") for text, _ in ROWS),
            *((text, "") for text in MORE),
            (MORE[0], "bad"),
        ],
    )
    with caplog.at_level("INFO"):
        data = read(path, labelled=12, eval_limit=2, unlabelled=str(more))
    require_words(caplog.text, f"{more}:", "60 rows", "dropped", "train", "validation", "test")
    rows = data["train"].to_list()
    assert rows[:48] == plain["train"].to_list()
    assert {row["text"] for row in rows[48:]} == set(MORE)
    assert {row["label"] for row in rows[48:]} == {IGNORE}
    assert data.gold.to_list() == plain.gold.to_list()
    assert data["test"].to_list() == plain["test"].to_list()
    assert (data.labels, data["validation"].to_list()) == (plain.labels, plain["validation"].to_list())


def test_unlabelled_files_without_labels(tmp_path: Path) -> None:
    """A column of labels asked of text that has none; an order that follows the file; a change that nobody notices."""
    path = write_csv(tmp_path / "a.csv", ROWS)
    bare = tmp_path / "bare.csv"
    bare.write_text("text\n" + "".join(f"{text}\n" for text in MORE))
    turned = tmp_path / "turned.csv"
    turned.write_text("text\n" + "".join(f"{text}\n" for text in reversed(MORE)))
    data, plain = read(path, unlabelled=str(bare)), read(path)
    assert len(data["train"]) == len(plain["train"]) + len(MORE)
    assert data.fingerprint == read(path, unlabelled=str(turned)).fingerprint
    few = read(path, unlabelled=str(bare), unlabelled_limit=7)
    assert few["train"].to_list() == data["train"].to_list()[: len(plain["train"]) + 7]
    assert len({data.fingerprint, few.fingerprint, plain.fingerprint}) == 3
    pairs = write_jsonl(
        tmp_path / "pairs.jsonl", [{"text": text, "b": text, "label": label} for text, label in ROWS]
    )
    others = write_jsonl(tmp_path / "others.jsonl", [{"text": text, "b": "so"} for text in MORE])
    assert set(read(pairs, text_pair="b", unlabelled=str(others))["train"]["text_pair"]) >= {"so"}


def test_unlabelled_hub_split(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A split whose labels are all -1, as IMDB's `unsupervised`, refused for them; or the training split read again."""
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("kdcli.data.hub.snapshot", lambda *_, **__: (tmp_path / "hub", "c0ffee"))
    names = datasets.ClassLabel(names=["bad", "good"])
    features = datasets.Features({"text": datasets.Value("string"), "label": names})
    (tmp_path / "hub" / "data").mkdir(parents=True)
    for split, rows in (("train", ROWS), ("unsupervised", [(text, -1) for text in MORE])):
        columns = {"text": [text for text, _ in rows], "label": [label for _, label in rows]}
        table = datasets.Dataset.from_dict(columns, features=features)
        table.to_parquet(tmp_path / "hub" / "data" / f"{split}-00000-of-00001.parquet")
    for path, keys in (("someone/words", {"format": "hub"}), (tmp_path / "hub", {"format": "auto"})):
        data = read(Path(path), unlabelled="unsupervised", **keys)
        assert {
            text
            for text, label in zip(data["train"]["text"], data["train"]["label"], strict=True)
            if label == IGNORE
        } == set(MORE)
        assert len(data.gold) == 48


def test_rows_beyond_the_limit_may_come_back_without_labels(tmp_path: Path) -> None:
    """Rows that a limit took out of validation or test belong to them still; those that it took out of train are text."""
    path = write_csv(tmp_path / "a.csv", ROWS)
    whole = read(path)
    data = read(path, limit=10, eval_limit=1, unlabelled=str(path))
    assert data["train"]["id"][:10] == whole["train"]["id"][:10]
    assert set(data["train"]["id"]) == set(whole["train"]["id"])
    assert len(data.gold) == 10


def test_unlabelled_text_that_is_no_use(tmp_path: Path) -> None:
    """A run that says nothing of text that it did not take, or of a limit to nothing."""
    path = write_csv(tmp_path / "a.csv", ROWS)
    message = refused(path, unlabelled=str(path))
    require_words(message, f"dataset.unlabelled = {path}", "all its rows", "train", "validation", "test")
    require_words(refused(path, unlabelled="nowhere.csv"), "nowhere.csv", "not exist")
    other = write_csv(tmp_path / "b.csv", ROWS, header=("texts", "label"))
    require_words(
        refused(path, unlabelled=str(other)), "b.csv", "no column 'text'", "mean texts?", "dataset.text="
    )
    with pytest.raises(ValidationError, match=naming("unlabelled_limit:", "nothing", "unlabelled")):
        read(path, unlabelled_limit=3)
    with pytest.raises(ValidationError, match=naming("unlabelled:", "without labels", "causal_lm")):
        read(path, label=None, unlabelled=str(path))


# ---- words and tags ----------------------------------------------------------------------------------

NAMES = ["B-LOC", "B-PER", "I-PER", "O"]
TAGGED = [
    {"tokens": [*text.split(), "Jo", "Lee"], "ner": ["O"] * len(text.split()) + ["B-PER", "I-PER"]}
    for text, _ in ROWS[:40]
] + [
    {"tokens": [*text.split(), "Rome"], "ner": ["O"] * len(text.split()) + ["B-LOC"]} for text, _ in ROWS[40:]
]
WORDS = {"words": "tokens", "tags": "ner"}


def conll(rows: list[dict[str, Any]], columns: str = "{word} NN {tag}\n") -> str:
    sentences = (
        "".join(
            columns.format(word=word, tag=tag) for word, tag in zip(row["tokens"], row["ner"], strict=True)
        )
        for row in rows
    )
    return "-DOCSTART- -X- O\n\n" + "\n".join(sentences)


def tagged(data: Data, *splits: str) -> list[tuple[str, ...]]:
    """Rows as they were: words and the names of their tags."""
    return sorted(
        (*row["words"], *(data.labels[tag] for tag in row["label"]))
        for split in splits or SPLITS
        for row in data[split]
    )


@pytest.mark.parametrize("kind", ["jsonl", "parquet", "conll", "hub", "hub of integers"])
def test_tags_from_every_format(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    """Tags shifted against their words, the second column of four taken for the tag, integers without their names."""
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("kdcli.data.hub.snapshot", lambda *_, **__: (tmp_path, "c0ffee"))
    columns = {key: [row[key] for row in TAGGED] for key in ("tokens", "ner")}
    if kind == "jsonl":
        data = read(write_jsonl(tmp_path / "a.jsonl", TAGGED), **WORDS)
    elif kind == "conll":
        (tmp_path / "a.conll").write_text(conll(TAGGED).replace("\n", "\r\n"))
        data = read(tmp_path / "a.conll", format="conll")
    elif kind == "hub of integers":
        names = datasets.List(datasets.ClassLabel(names=NAMES))
        features = datasets.Features({"tokens": datasets.List(datasets.Value("string")), "ner": names})
        datasets.Dataset.from_dict(columns, features=features).to_parquet(tmp_path / "a.parquet")
        data = read(tmp_path / "a.parquet", format="hub", **WORDS)
    else:
        data = read(write_parquet(tmp_path / "a.parquet", columns), **{"format": kind, **WORDS})
    assert data.labels == NAMES
    assert tagged(data) == sorted((*row["tokens"], *row["ner"]) for row in TAGGED)
    assert [len(data[split]) for split in SPLITS] == [48, 6, 6]
    assert data["train"].column_names == ["id", "words", "label"]


def test_integer_tags(tmp_path: Path) -> None:
    """Numbers alone do not tell where an entity begins: each would be an entity, O among them."""
    rows = [{"tokens": row["tokens"], "ner": [NAMES.index(tag) for tag in row["ner"]]} for row in TAGGED]
    path = write_jsonl(tmp_path / "a.jsonl", rows)
    assert tagged(read(path, **WORDS, labels=NAMES)) == sorted(
        (*row["tokens"], *row["ner"]) for row in TAGGED
    )
    message = refused(path, **WORDS)
    require_words(message, "a.jsonl", "integers", "0, 1, 2, 3", "dataset.labels=[O,B-PER,I-PER,…]")


def test_words_that_differ_by_case_stay_in_one_split(tmp_path: Path) -> None:
    """A test sentence in capitals that was learnt in small letters; one that is dropped, though its tags are others."""
    loud = [{"tokens": [word.upper() for word in row["tokens"]], "ner": row["ner"]} for row in TAGGED]
    data = read(write_jsonl(tmp_path / "a.jsonl", [*TAGGED, *TAGGED, *loud]), **WORDS)
    assert sum(len(data[split]) for split in SPLITS) == 120
    found = [{" ".join(words).casefold() for words in data[split]["words"]} for split in SPLITS]
    assert sum(map(len, found)) == len(set.union(*found)) == 60
    test = write_jsonl(tmp_path / "test.jsonl", loud[:9])
    assert len(read(tmp_path / "a.jsonl", **WORDS, test=str(test))["train"]) == 120 - 18 - 6


def test_hidden_tags_and_text_without_tags(tmp_path: Path) -> None:
    """Half a row of tags that stays, or text for the teacher that must come with a column of tags."""
    path = write_jsonl(tmp_path / "a.jsonl", TAGGED)
    more = tmp_path / "more.conll"
    more.write_text("\n".join("".join(f"{word}\n" for word in text.split()) + "\n" for text in MORE))
    (tmp_path / "a.conll").write_text(conll(TAGGED))
    data = read(tmp_path / "a.conll", format="conll", labelled=20, unlabelled=str(more))
    assert len(data.gold) == 20
    assert len(data["train"]) == 48 + len(MORE)
    for row in data["train"].to_list()[20:]:
        assert row["label"] == [IGNORE] * len(row["words"])
    assert {" ".join(row) for row in data["train"]["words"][48:]} == set(MORE)
    bare = write_jsonl(tmp_path / "bare.jsonl", [{"tokens": text.split()} for text in MORE])
    again = read(path, **WORDS, labelled=20, unlabelled=str(bare))
    assert again.fingerprint == data.fingerprint
    assert with_gold(again["train"]).to_list() == again["train"].to_list()[:20]


def test_replace_leaves_a_word_out_with_its_tag(tmp_path: Path) -> None:
    """A word that is emptied and whose tag stays moves all tags after it."""
    rows = [
        {"tokens": ["http://x", *row["tokens"], " a\tb "], "ner": ["B-LOC", *row["ner"], "O"]}
        for row in TAGGED
    ]
    rows.append({"tokens": ["http://y"], "ner": ["O"]})
    data = read(write_jsonl(tmp_path / "a.jsonl", rows), **WORDS, replace={r"http\S*": ""})
    assert tagged(data) == sorted((*row["tokens"], "a b", *row["ner"], "O") for row in TAGGED)


@pytest.mark.parametrize(
    ("row", "words"),
    [
        ({"tokens": ["a", "b"], "ner": ["O"]}, ("line 2", "2 words", "1 tags")),
        ({"tokens": ["\u200b", " "], "ner": ["O", "O"]}, ("line 2", "no words", "remove")),
        ({"tokens": ["a", None], "ner": ["O", "O"]}, ("line 2", "word 2", "None", "string")),
        ({"tokens": [], "ner": []}, ("line 2", "no words", "remove")),
        ({"tokens": 7, "ner": ["O", "O"]}, ("line 2", "the words", "7", "a list")),
        ({"tokens": ["a"], "ner": 0}, ("line 2", "the tags", "0", "a list")),
        ({"tokens": ["a"], "ner": [None]}, ("line 2", "word 1", "tag", "missing", "write O")),
        ({"tokens": ["a"], "ner": [["O"]]}, ("line 2", "label", "['O']", "a name", "an integer")),
        ({"tokens": ["a"], "ner": ["I-PRE"]}, ("line 2", "label 'I-PRE'", "B-LOC, B-PER, I-PER, O", "mean I-PER?", "dataset.labels")),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else "",
)  # fmt: skip
def test_tagged_rows_that_are_refused(tmp_path: Path, row: dict[str, Any], words: tuple[str, ...]) -> None:
    """Words and tags that are paired up to the shorter of the two; a row of nothing."""
    path = write_jsonl(tmp_path / "a.jsonl", [TAGGED[0], row, *TAGGED])
    require_words(refused(path, **WORDS, labels=NAMES), "a.jsonl", *words)


def test_tags_that_are_refused(tmp_path: Path) -> None:
    """A tagger of one tag; a file of lines with a word and no tag; columns that nobody named."""
    path = write_jsonl(tmp_path / "a.jsonl", [row | {"ner": ["O"] * len(row["ner"])} for row in TAGGED])
    message = refused(path, **WORDS)
    require_words(message, "a.jsonl", "all training rows", "'O'", "dataset.label")
    path = tmp_path / "a.conll"
    path.write_text(conll(TAGGED) + "\nalone\n")
    line = f"line {path.read_text().count(chr(10))}"
    require_words(refused(path, format="conll"), "a.conll", line, "a word", "its tag", "3 columns", "'alone'")
    path.write_text("-DOCSTART- -X- O\n\n")
    require_words(refused(path, format="conll"), "a.conll", "no rows")
    for keys, words in (
        ({"words": "tokens"}, ("words and tags:", "both", "neither")),
        (
            {"task": "token_classification"},
            ("token_classification:", "dataset.words=", "dataset.tags=", "dataset=conll"),
        ),
    ):
        with pytest.raises(ValidationError, match=naming(*words)):
            read(path, format="jsonl", **keys)
    with pytest.raises(
        ValidationError, match=naming("format = conll", "token_classification", "not for classification")
    ):
        read(path, format="conll", task="classification")


# ---- texts -------------------------------------------------------------------------------------------


def test_text_pair(tmp_path: Path) -> None:
    """Pairs told apart by their first text alone are dropped as duplicates; so is a pair in the other order."""
    rows = [{"a": text, "b": other, "label": label} for text, label in ROWS[:8] for other, _ in ROWS[:8]]
    data = read(write_jsonl(tmp_path / "a.jsonl", rows), text="a", text_pair="b")
    assert sum(len(data[split]) for split in SPLITS) == 64
    pairs = {(row["text"], row["text_pair"]) for split in SPLITS for row in data[split]}
    assert pairs == {(row["a"], row["b"]) for row in rows}
    rows[5]["b"] = "  "
    message = refused(write_jsonl(tmp_path / "b.jsonl", rows), text="a", text_pair="b")
    require_words(message, "b.jsonl", "line 6", "the text", "empty")


def test_empty_and_missing_texts(tmp_path: Path) -> None:
    """A row of nothing but [CLS] [SEP] has a label all the same, and teaches it."""
    message = refused(write_csv(tmp_path / "a.csv", [*ROWS[:2], (" \t", "bad"), *ROWS[3:]]))
    require_words(message, "a.csv", "line 4", "the text", "empty")
    columns = {"text": [None, *(text for text, _ in ROWS[1:])], "label": [label for _, label in ROWS]}
    message = refused(write_parquet(tmp_path / "a.parquet", columns))
    require_words(message, "a.parquet", "row 1", "the text", "None", "string")
    rows = [{"text": 5, "label": "bad"}, *({"text": text, "label": label} for text, label in ROWS)]
    message = refused(write_jsonl(tmp_path / "a.jsonl", rows))
    require_words(message, "a.jsonl", "line 1", "the text", "5", "string")


def test_replace_cleans_before_rows_are_compared(tmp_path: Path) -> None:
    """Rows that are the same once they are cleaned would stand in two splits; an emptied row has no text."""
    rows = [(f"{text} <br/> {number}", label) for text, label in ROWS for number in range(3)] + [
        ("<br/> 7", "bad")
    ]
    data = read(write_csv(tmp_path / "a.csv", rows), replace={r"<[^>]*>": " ", r"\s\d+$": ""})
    assert texts(data) == {text for text, _ in ROWS}
    for wrong in ({"(": ""}, {"a": r"\1"}):
        with pytest.raises(ValidationError, match=naming("replace:", "regular expression")):
            read(tmp_path / "a.csv", replace=wrong)


def test_half_a_character(tmp_path: Path) -> None:
    """A lone surrogate, which JSON may hold, ends in a traceback when it is hashed or tokenized."""
    rows = [
        {"text": "half \ud83d", "label": "bad"},
        *({"text": text, "label": label} for text, label in ROWS),
    ]
    message = refused(write_jsonl(tmp_path / "a.jsonl", rows))
    require_words(message, "a.jsonl", "line 1", "the text", "'half \\ud83d'", "surrogate")


# ---- files -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "latin-1", "utf-16"])
def test_encodings(tmp_path: Path, encoding: str) -> None:
    """A byte order mark glued to the first column's name, or é read as two characters."""
    rows = [(f"{text} café", label) for text, label in ROWS]
    path = write_csv(tmp_path / "a.csv", rows)
    path.write_text(path.read_text(encoding="utf-8"), encoding=encoding)
    data = read(path, encoding="utf-8" if encoding == "utf-8-sig" else encoding)
    assert texts(data) == {text for text, _ in rows}


def test_wrong_encodings(tmp_path: Path) -> None:
    """Bytes that are skipped or replaced in silence; a codec that does not exist in a traceback."""
    path = write_csv(tmp_path / "a.csv", [*ROWS, ("café", "good")])
    path.write_text(path.read_text(encoding="utf-8"), encoding="latin-1")
    message = refused(path, encoding="utf-8")
    require_words(message, "a.csv", "line 62", "not utf-8", "dataset.encoding=")
    require_words(refused(path, encoding="utf-99"), "unknown encoding", "utf-99")
    path.write_text(write_csv(tmp_path / "b.csv", ROWS).read_text(), encoding="utf-16-le")
    require_words(refused(path, encoding="utf-8"), "line 1", "NUL", "dataset.encoding=utf-16")
    path.write_bytes("text,label\ngood,café".encode()[:-1])
    require_words(refused(path, encoding="utf-8"), "line 2", "not utf-8")


def test_tsv_has_no_quotes(tmp_path: Path) -> None:
    """A tweet that begins with a quote swallows the rows after it, in silence."""
    rows = [(f'"{text}' if number % 3 else f'{text} "', label) for number, (text, label) in enumerate(ROWS)]
    path = tmp_path / "a.tsv"
    path.write_text("".join(f"{text}\t{label}\n" for text, label in [("text", "label"), *rows]))
    assert texts(read(path)) == {text for text, _ in rows}
    path.rename(tmp_path / "a.txt")
    assert texts(read(tmp_path / "a.txt", format="csv", delimiter=r"\t")) == {text for text, _ in rows}


def test_csv_with_quoted_newlines_commas_and_quotes(tmp_path: Path) -> None:
    """A reader that goes by lines cuts such texts in two, or keeps the doubled quotes."""
    rows = [(f'{text},\n"so" it\nsaid', label) for text, label in ROWS]
    assert texts(read(write_csv(tmp_path / "a.csv", rows))) == {" ".join(text.split()) for text, _ in rows}


def test_other_delimiter_and_quote(tmp_path: Path) -> None:
    """Spreadsheets of half of Europe write semicolons; a delimiter of two characters ended in a traceback."""
    path = tmp_path / "a.csv"
    path.write_text("text;label\n" + "".join(f"'{text}; yes';{label}\n" for text, label in ROWS))
    assert texts(read(path, delimiter=";", quote="'")) == {f"{text}; yes" for text, _ in ROWS}
    assert texts(read(path)) == {f"{text}; yes" for text, _ in ROWS}
    message = refused(path, delimiter=",")
    require_words(message, "a.csv", "no column 'text'", "text;label", """'dataset.delimiter=";"'""")
    for key in ("delimiter", "quote"):
        with pytest.raises(ValidationError, match=rf"(?s)\b{key}\b.*at most 1"):
            read(path, **{key: "||"})


@pytest.mark.parametrize("name", ["a.parquet", "a.JSONL"])
def test_a_file_of_another_format(tmp_path: Path, name: str) -> None:
    """A parquet file is said to be no UTF-8, and a jsonl file to lack columns."""
    write_csv(tmp_path / name, ROWS)
    message = refused(tmp_path / name, format="csv")
    require_words(message, name, "csv", "dataset.format=auto", f"dataset.format={name[2:].lower()}")


def test_labels_that_are_spelt_in_two_ways(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A class more, which is as good as another one, and nobody hears of it; or a word where the labels were named so."""
    rows = [
        (text, "Good" if label == "good" and number % 2 else label)
        for number, (text, label) in enumerate(ROWS)
    ]
    path = write_csv(tmp_path / "a.csv", rows)
    assert len(read(path).labels) == len({label for _, label in rows}) == 3
    require_words(caplog.text, "a.csv", "several", "'Good'", "'good'")
    caplog.clear()
    read(path, labels=sorted({label for _, label in rows}))
    assert not naming("'Good'").search(caplog.text)


def test_missing_column_names_what_there_is(tmp_path: Path) -> None:
    """A KeyError does not say which of the file's columns was meant."""
    path = write_csv(tmp_path / "a.csv", ROWS, header=("texts", "sentiment"))
    message = refused(path)
    require_words(message, "a.csv", "no column 'text'", "mean texts?", "texts, sentiment", "dataset.text=")
    require_words(refused(path, text="texts"), "a.csv", "no column 'label'", "dataset.label=")
    rows = [{"text": text, "label": label} for text, label in ROWS] + [{"text": "no label here"}]
    require_words(refused(write_jsonl(tmp_path / "a.jsonl", rows)), "a.jsonl", "line 61", "no column 'label'")
    columns = {"text": [text for text, _ in ROWS], "labels": [label for _, label in ROWS]}
    message = refused(write_parquet(tmp_path / "a.parquet", columns))
    require_words(message, "a.parquet", "no column 'label'", "mean labels?", "dataset.label=")


def spoil(change: Callable[[str], str]) -> Callable[[Path], Path]:
    def write(folder: Path) -> Path:
        path = write_csv(folder / "a.csv", ROWS)
        path.write_bytes(change(path.read_bytes().decode()).encode())
        return path

    return write


@pytest.mark.parametrize(
    ("write", "words"),
    [
        (
            spoil(lambda text: text.replace("\r\n", ",x\r\n", 6).replace(",x\r\n", "\r\n", 5)),
            ("line 6:", "3 fields", "header", "2"),
        ),
        (spoil(lambda text: text[:-6].rstrip(",")), ("line 61:", "1 fields", "header", "2")),
        (
            spoil(lambda text: text.replace("\r\n", '\r\n"a b",bad\r\n"', 5)),
            ("lines 3 to 4:", "','", "'\"'"),
        ),
        (
            spoil(lambda text: text + '"a text that stops'),
            ("line 62:", "1 fields", "header", "2", "truncated"),
        ),
        (spoil(lambda text: text[:100] + "\0" + text[100:]), ("line", "NUL", "tr -d")),
        (spoil(lambda text: ""), ("is empty",)),
        (spoil(lambda text: "\ufeff"), ("no column 'text'",)),
        (spoil(lambda text: "text,label\n\n\n"), ("no rows",)),
    ],
    ids=["ragged", "cut", "stray quote", "open quote", "nul", "empty", "only a mark", "only a header"],
)
def test_spoiled_csv(tmp_path: Path, write: Callable[[Path], Path], words: tuple[str, ...]) -> None:
    """Half a file trains half a student, without a word."""
    require_words(refused(write(tmp_path)), "a.csv", *words)


def test_spoiled_jsonl(tmp_path: Path) -> None:
    """An error that does not give the line sends one through a million of them."""
    path = write_jsonl(tmp_path / "a.jsonl", [{"text": text, "label": label} for text, label in ROWS])
    whole = path.read_text()
    path.write_text(whole[:-20])
    require_words(refused(path), "a.jsonl", "line 60", "not JSON", "truncated")
    path.write_text("\n" + whole + "[1, 2]\n")
    require_words(refused(path), "a.jsonl", "line 62", "object", "list")
    path.write_text(whole + "[1, 2]\n")
    require_words(refused(path), "a.jsonl", "2 items", "dataset.columns=")


def test_spoiled_parquet(tmp_path: Path) -> None:
    """A download that was cut off ends in Arrow's traceback."""
    columns = {"text": [text for text, _ in ROWS], "label": [label for _, label in ROWS]}
    path = write_parquet(tmp_path / "a.parquet", columns)
    whole = path.read_bytes()
    path.write_bytes(whole[:-100])
    require_words(refused(path), "a.parquet", "not a complete parquet")
    path.write_bytes(whole[:10] + bytes(200) + whole[210:])
    require_words(refused(path), "a.parquet", "not a complete parquet")
    path.write_text("text,label\nx,y\n")
    require_words(refused(path), "a.parquet", "not a complete parquet")


@pytest.mark.parametrize("kind", ["csv", "jsonl", "parquet"])
def test_no_file(tmp_path: Path, kind: str) -> None:
    """A folder instead of a file, or a path relative to another directory than one thinks."""
    (tmp_path / "folder").mkdir()
    require_words(refused(tmp_path / "folder", format=kind), str(tmp_path / "folder"), "no files")
    require_words(refused(tmp_path / "nowhere", format=kind), str(tmp_path / "nowhere"), "not exist")


STRANGE = {
    "below a row that is dropped, blank lines, and a text of two lines": (
        "a.csv",
        'text,label\n\n ,bad\n"well,\nindeed",good\nso so,meh\n',
        "{},{}\n",
        "line 6",
    ),
    "a text of two lines": ("a.csv", 'text,label\nfine,good\n"so\nso",meh\n', "{},{}\n", "lines 3 to 4"),
    "a column of splits": (
        "a.csv",
        "text,label,split\nfine,good,test\nbleak,bad,test\nkind,good,validation\n ,bad,train\ngrim,bad,validation\nso so,meh,test\n",
        "{},{},train\n",
        "line 7",
    ),
    "lines of JSON": (
        "a.jsonl",
        '{"text": " ", "label": "bad"}\n\n{"text": "so so", "label": "meh"}\n',
        '{{"text": "{}", "label": "{}"}}\n',
        "line 3",
    ),
    "labels first": (
        "a.txt",
        "__label__bad  \n__label__good fine\n__label__meh so so\n",
        "__label__{1} {0}\n",
        "line 3",
    ),
    "objects that follow each other": (
        "a.json",
        '{"text": "fine",\n "label": "good"}\n{"text": "so so", "label": "meh"}\n',
        '{{"text": "{}", "label": "{}"}}\n',
        "row 2",
    ),
}


@pytest.mark.parametrize("name", STRANGE)
def test_a_label_that_is_not_among_the_names_is_found_in_the_file(
    tmp_path: Path, name: str, caplog: pytest.LogCaptureFixture
) -> None:
    """The number of a row among those that were read, in a file of which an editor shows lines and of which rows were dropped."""
    file, start, form, place = STRANGE[name]
    path = tmp_path / file
    path.write_text(start + "".join(form.format(*row) for row in ROWS))
    read(path, format="auto", labels=["bad", "good"], bad_rows="drop")
    [message] = [text for record in caplog.records if "'meh'" in (text := record.getMessage())]
    require_words(message, str(path), place, "bad, good")


def test_split_file_that_is_missing_or_unlike(tmp_path: Path) -> None:
    """A validation file with other columns or labels is read as if it were the training file."""
    train = write_csv(tmp_path / "train.csv", ROWS)
    require_words(refused(train, validation="nowhere.csv"), "nowhere.csv", "not exist")
    other = write_csv(tmp_path / "other.csv", ROWS, header=("text", "class"))
    require_words(refused(train, test=str(other)), "other.csv", "no column 'label'")
    strange = write_csv(tmp_path / "strange.csv", [("a strange one", "neutral")])
    message = refused(train, test=str(strange), labels=["bad", "good"])
    require_words(message, "strange.csv", "line 2", "label 'neutral'", "bad, good", "dataset.labels")
    same = write_csv(tmp_path / "same.csv", ROWS)
    message = refused(train, test=str(same), validation=str(same))
    require_words(message, "all rows of validation", "test", "dataset.test=")
    message = refused(train, test=str(same))
    require_words(message, "all rows of train", "validation", "test", "dataset.validation=", "dataset.test=")


def test_labels_that_only_later_splits_have(tmp_path: Path) -> None:
    """A misspelt label of the test file becomes a class by itself, and nobody says why its rows are wrong."""
    train = write_csv(tmp_path / "train.csv", ROWS)
    later = [("a strange one", "god"), ("and another", "god"), ("a usual one", "good")]
    data = read(train, test=str(write_csv(tmp_path / "test.csv", later)))
    assert data.unseen_labels("test") == {"god": 2}
    assert not data.unseen_labels("validation")
    rows = [{"words": ["a", text], "tags": ["O", label]} for text, label in ROWS]
    keys = {"words": "words", "tags": "tags"}
    test = write_jsonl(tmp_path / "b.jsonl", [{"words": ["one", "two"], "tags": ["bda", "bda"]}])
    tagged = read(write_jsonl(tmp_path / "a.jsonl", rows), test=str(test), **keys)
    assert tagged.unseen_labels("test") == {"bda": 2}


# ---- completions, conversations and plain text -------------------------------------------------------

PAIRS = [(f"What is {number}?", f"It is\n  {number}.") for number in range(60)]
COLUMNS = {"prompt": "prompt", "completion": "completion"}
SAID = {"messages": "messages"}


def pairs(rows: list[tuple[Any, Any]] = PAIRS) -> list[dict[str, Any]]:
    return [{"prompt": prompt, "completion": completion} for prompt, completion in rows]


def conversation(*turns: Any) -> list[dict[str, Any]]:
    """Turns of user and assistant, one after the other."""
    return [{"role": ("user", "assistant")[number % 2], "content": turn} for number, turn in enumerate(turns)]


def everything(data: Data) -> list[dict[str, Any]]:
    return [{key: row[key] for key in row if key != "id"} for split in SPLITS for row in data[split]]


def ordered(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return sorted(rows, key=json.dumps)


def save(folder: Path, kind: str, rows: list[dict[str, Any]]) -> Path:
    """The rows as a file; csv holds messages as JSON."""
    if kind == "jsonl":
        return write_jsonl(folder / "a.jsonl", rows)
    if kind == "parquet":
        return write_parquet(folder / "a.parquet", {key: [row[key] for row in rows] for key in rows[0]})
    cells = [
        tuple(value if isinstance(value, str) else json.dumps(value) for value in row.values())
        for row in rows
    ]
    return write_csv(folder / "a.csv", cells, header=tuple(rows[0]))  # type: ignore[arg-type]


FORMS: list[tuple[dict[str, Any], list[dict[str, Any]]]] = [
    (COLUMNS, pairs()),
    (SAID, [{"messages": conversation(*pair, "And?", "No.")} for pair in PAIRS]),
    ({"label": None}, [{"text": f"{prompt}\n\n\t{completion}"} for prompt, completion in PAIRS]),
]


@pytest.mark.parametrize("kind", ["csv", "jsonl", "parquet", "hub"])
@pytest.mark.parametrize(("keys", "rows"), FORMS, ids=["pairs", "messages", "text"])
def test_causal_rows_from_every_format(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    kind: str,
    keys: dict[str, Any],
    rows: list[dict[str, Any]],
) -> None:
    """Folded newlines, columns of another format, or a `label` column asked of data that has none."""
    path = save(tmp_path, "parquet" if kind == "hub" else kind, rows)
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("kdcli.data.hub.snapshot", lambda *_, **__: (tmp_path, "c0ffee"))
    data = read(path, format=kind, **keys)
    assert ordered(everything(data)) == ordered(rows)
    assert [len(data[split]) for split in SPLITS] == [48, 6, 6]
    assert data.labels == []
    assert data.gold.to_list() == data["train"].to_list()
    assert data.commit == ("c0ffee" if kind == "hub" else None)


def test_columns_of_other_names(tmp_path: Path) -> None:
    """Columns kept under the file's names, which no task would find."""
    rows = [{"instruction": prompt, "output": completion} for prompt, completion in PAIRS]
    data = read(write_jsonl(tmp_path / "a.jsonl", rows), prompt="instruction", completion="output")
    assert ordered(everything(data)) == ordered(pairs())
    talks = [{"talk": conversation(*pair)} for pair in PAIRS]
    data = read(write_jsonl(tmp_path / "b.jsonl", talks), messages="talk")
    assert data["train"].column_names == ["id", "messages"]


def test_more_keys_than_role_and_content(tmp_path: Path) -> None:
    """A weight or a name beside a turn would change its id, or reach the chat template."""
    rows = [{"messages": [turn | {"weight": 1} for turn in conversation(*pair)]} for pair in PAIRS]
    plain = [{"messages": conversation(*pair)} for pair in PAIRS]
    one = read(write_jsonl(tmp_path / "a.jsonl", rows), **SAID)
    assert one.fingerprint == read(write_jsonl(tmp_path / "b.jsonl", plain), **SAID).fingerprint


@pytest.mark.parametrize(("keys", "rows"), FORMS, ids=["pairs", "messages", "text"])
def test_causal_ids_and_fingerprint(tmp_path: Path, keys: dict[str, Any], rows: list[dict[str, Any]]) -> None:
    """An answer changed by a letter's case under a finished run; a split that follows the order of the rows."""

    def loaded(name: str, changed: list[dict[str, Any]]) -> Data:
        return read(write_jsonl(tmp_path / name, changed), **keys)

    before = loaded("a.jsonl", rows)
    assert loaded("b.jsonl", random.Random(1).sample(rows, len(rows))).fingerprint == before.fingerprint
    louder = json.loads(json.dumps(rows[0]).replace("It is", "IT is"))
    assert loaded("c.jsonl", [louder, *rows[1:]]).fingerprint != before.fingerprint
    assert loaded("d.jsonl", rows[1:]).fingerprint != before.fingerprint
    assert len(everything(loaded("e.jsonl", [louder, rows[0], *rows]))) == 61


def test_ends_are_stripped_and_replaced_is_every_text(tmp_path: Path) -> None:
    """A blank at the end is a token that the model learns to say; a mark left in one turn of many."""
    rows = [(f" <b>{prompt}\n", f"\n{completion}<b>  ") for prompt, completion in PAIRS]
    replace = {"replace": {"<b>": ""}}
    data = read(write_jsonl(tmp_path / "a.jsonl", pairs(rows)), **COLUMNS, **replace, chat=True)
    assert ordered(everything(data)) == ordered(pairs())
    talks = [{"messages": conversation(*row)} for row in [*rows, ("<b>", "gone")]]
    data = read(write_jsonl(tmp_path / "b.jsonl", talks), **SAID, **replace)
    assert ordered(everything(data)) == ordered([{"messages": conversation(*pair)} for pair in PAIRS])


def test_what_stands_between_prompt_and_completion_stays(tmp_path: Path) -> None:
    """`Q: 2 + 2?\nA:` and ` 4` become `Q: 2 + 2?\nA:4`, other tokens than at inference, and no way to say otherwise."""
    rows = [(f"  {prompt}\nA:", f" {completion}\n") for prompt, completion in PAIRS]
    data = read(write_jsonl(tmp_path / "a.jsonl", pairs(rows)), **COLUMNS)
    kept = [(f"{prompt}\nA:", f" {completion}") for prompt, completion in PAIRS]
    assert ordered(everything(data)) == ordered(pairs(kept))


MANY = [(prompt, f"{completion} {more}") for prompt, completion in PAIRS for more in range(3)]


@pytest.mark.parametrize(
    ("keys", "rows"),
    [
        (COLUMNS, pairs(MANY)),
        (COLUMNS, pairs([((str.upper, str.title, str)[more % 3](p), c) for more, (p, c) in enumerate(MANY)])),
        (SAID, [{"messages": conversation(*pair)} for pair in MANY]),
        (SAID, [{"messages": [{"role": "system", "content": c}, *conversation(p, c)]} for p, c in MANY]),
        ({"label": None}, [{"text": change(p)} for p, _ in PAIRS for change in (str, str.upper, str.title)]),
    ],
    ids=["pairs", "pairs by case", "messages", "system first", "text by case"],
)
def test_a_prompt_stays_in_one_split(
    tmp_path: Path, keys: dict[str, Any], rows: list[dict[str, Any]]
) -> None:
    """Another answer to a training prompt in test measures what was learnt by heart."""

    def prompts(data: Data) -> list[set[str]]:
        def of(row: dict[str, Any]) -> str:
            turns = row.get("messages", [])
            return (
                row.get("prompt")
                or row.get("text")
                or next(t["content"] for t in turns if t["role"] == "user")
            )

        return [{of(row).casefold() for row in data[split]} for split in SPLITS]

    data = read(write_jsonl(tmp_path / "a.jsonl", rows), **keys, validation_size=18, test_size=31)
    assert [len(data[split]) for split in SPLITS] == [132, 18, 30]
    assert [len(found) for found in prompts(data)] == [44, 6, 10]
    assert len(set.union(*prompts(data))) == 60
    test = write_jsonl(tmp_path / "test.jsonl", rows[:1])
    validation = write_jsonl(tmp_path / "validation.jsonl", [rows[1], rows[4]])
    data = read(tmp_path / "a.jsonl", **keys, validation=str(validation), test=str(test))
    assert [len(data[split]) for split in SPLITS] == [174, 1, 1]


def test_a_prompt_with_more_rows_than_a_split(tmp_path: Path) -> None:
    """One prompt of a thousand rows takes all of them into a test split of ten, or leaves it empty without a word."""
    rows = [*PAIRS, *(("Tell a joke.", f"Joke {number}.") for number in range(30))]
    data = read(write_jsonl(tmp_path / "a.jsonl", pairs(rows)), **COLUMNS, test_size=10, validation_size=10)
    assert [len(data[split]) for split in SPLITS] == [70, 10, 10]
    path = write_jsonl(tmp_path / "b.jsonl", pairs(rows[60:]))
    require_words(
        refused(path, **COLUMNS, test_size=0.1),
        "every prompt",
        "3 rows",
        "test",
        "dataset.test_size",
        "dataset.test=",
    )


def test_conversations_that_no_user_begins_are_not_one_group(tmp_path: Path) -> None:
    """Without a prompt to tell them apart, all stay in one split."""
    rows = [
        {"messages": [{"role": "system", "content": "Speak."}, {"role": "assistant", "content": said}]}
        for _, said in PAIRS
    ]
    data = read(write_jsonl(tmp_path / "a.jsonl", rows), **SAID)
    assert [len(data[split]) for split in SPLITS] == [48, 6, 6]


@pytest.mark.parametrize(
    ("keys", "row", "words"),
    [
        (COLUMNS, {"prompt": "x", "completion": ""}, ("the completion", "empty", "remove", "fill")),
        (COLUMNS, {"prompt": " \n", "completion": "y"}, ("the prompt", "empty", "remove", "fill")),
        (COLUMNS, {"prompt": 5, "completion": "y"}, ("the prompt", "5", "string")),
        (COLUMNS, {"prompt": "x", "completion": None}, ("the completion", "None", "string")),
        (COLUMNS, {"prompt": "x", "completion": "\ud83d"}, ("the completion", "'\\ud83d'", "surrogate")),
        ({"label": None}, {"text": ""}, ("the text", "empty")),
        (SAID, {"messages": None}, ("the messages", "None", "a list of {")),
        (SAID, {"messages": "hello"}, ("the messages", "'hello'", "a list of {")),
        (SAID, {"messages": '{"role": 1}'}, ("the messages", "'{\"role\": 1}'", "a list of {")),
        (SAID, {"messages": ["hello"]}, ("message 1", "'hello'", "a list of {")),
        (SAID, {"messages": [{"who": "gpt", "value": "x"}]}, ("message 1", "{'who': 'gpt', 'value': 'x'}")),
        (SAID, {"messages": conversation("x", None)}, ("content", "message 2", "None", "string")),
        (SAID, {"messages": conversation("x", " ")}, ("content", "message 2", "empty")),
        (SAID, {"messages": [{"role": 1, "content": "x"}]}, ("role of message 1", "is 1", "string")),
        (SAID, {"messages": conversation("x")}, ("no message", "role assistant", "roles: user")),
        (SAID, {"messages": []}, ("the messages", "[]", "a list of {")),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else "",
)
def test_causal_rows_that_are_refused(
    tmp_path: Path, keys: dict[str, Any], row: dict[str, Any], words: tuple[str, ...]
) -> None:
    """A row without an answer teaches silence; a traceback of the chat template, an hour later, names no row."""
    good = next(rows for form, rows in FORMS if form == keys)
    message = refused(write_jsonl(tmp_path / "a.jsonl", [good[0], row, *good]), **keys)
    require_words(message, "a.jsonl", "line 2", *words)


@pytest.mark.parametrize("keys", [COLUMNS, SAID, {"label": None}], ids=["pairs", "messages", "text"])
def test_missing_causal_column(tmp_path: Path, keys: dict[str, Any]) -> None:
    """Advice to name a label's column to somebody who has none."""
    path = write_csv(tmp_path / "a.csv", PAIRS, header=("prompts", "answer"))
    message = refused(path, **keys)
    remedies = ("dataset.prompt=", "dataset.completion=", "dataset.messages=", "dataset.text=")
    require_words(message, "a.csv", "prompts, answer", *remedies)
    assert "dataset.label" not in message


# ---- plain text

PARAGRAPH = (
    "A line of text that is fifty characters long, yes.\n" * 8
)  # 8 · 51 - 1 = 407 without the last end


def test_plain_text_becomes_documents(tmp_path: Path) -> None:
    """A row a line has no context; one row for a whole book is cut off after its first page."""
    paragraphs = [f"{number}\n{PARAGRAPH}".strip() for number in range(40)]
    path = tmp_path / "a.txt"
    path.write_bytes(("\n" + "\n \t\n\n".join(paragraphs)).replace("\n", "\r\n").encode())
    data = read(path)
    found = sorted(texts(data), key=lambda text: int(text.split()[0]))
    assert "\n\n".join(found) == "\n\n".join(paragraphs)
    assert [text.count("\n\n") + 1 for text in found] == [3] * 13 + [1]
    assert all(len(text) >= 1000 for text in found[:-1])
    assert data["train"].column_names == ["id", "text"]
    assert data.labels == []


def test_folders_of_text_and_of_conversations(tmp_path: Path) -> None:
    """Half of a corpus read, a README read as part of it, or a row's place given in the folder, not in a file."""
    folder = tmp_path / "folder"
    folder.mkdir()
    with pytest.raises(DataError, match=naming("folder", "no files", "*.txt")):
        read(folder, format="txt")
    with pytest.raises(DataError, match=naming("folder", "no files", "*.yml", "*.yaml")):
        read(folder, format="conversations")
    (folder / "README.md").write_text("not this")
    for number in range(12):
        (folder / f"{number}.{['txt', 'TXT'][number % 2]}").write_text(f"Document {number}.")
        talk = {"conversations": [[f"Ask {number}?", f"Say {number}."]]}
        (folder / f"{number}.{['yml', 'yaml'][number % 2]}").write_text(yaml.safe_dump(talk))
    one = {"validation_size": 1, "test_size": 1}
    assert texts(read(folder, format="txt", **one)) == {f"Document {number}." for number in range(12)}
    rows = [(f"Ask {number}?", f"Say {number}.") for number in range(12)]
    assert ordered(everything(read(folder, format="conversations", **one))) == ordered(pairs(rows))
    other = tmp_path / "b.txt"
    other.write_text("Document 3.\n")
    assert read(folder, format="txt", test=str(other), **one)["test"]["text"] == ["Document 3."]
    (folder / "7.TXT").write_text("half \0")
    require_words(refused(folder, format="txt"), "7.TXT", "line 1", "NUL")
    (folder / "7.TXT").write_text("\n\n")
    require_words(refused(folder, format="txt"), "7.TXT", "no rows")
    (folder / "7.yaml").write_text("conversations:\n- - x\n  - ' '\n")
    require_words(refused(folder, format="conversations"), "7.yaml", "row 1", "the completion", "empty")


def test_no_text_at_all(tmp_path: Path) -> None:
    """A path that does not exist taken for a folder without files."""
    for kind in ("txt", "conversations"):
        require_words(refused(tmp_path / "nowhere", format=kind), str(tmp_path / "nowhere"), "not exist")
    path = tmp_path / "a.txt"
    path.write_text("café", encoding="latin-1")
    require_words(refused(path, encoding="utf-8"), "a.txt", "line 1", "not utf-8")


@pytest.mark.parametrize(
    ("kind", "tasks"), [("txt", ("causal_lm", "masked_lm")), ("conversations", ("causal_lm",))]
)
def test_formats_without_labels(tmp_path: Path, kind: str, tasks: tuple[str, ...]) -> None:
    """A classifier of plain text: the message speaks of a missing column in a file that has none."""
    with pytest.raises(ValidationError, match=naming(f"format = {kind}", *tasks, "not for classification")):
        read(tmp_path / "a.txt", format=kind, task="classification")


# ---- text with hidden tokens

MASKED = {"task": "masked_lm"}


@pytest.mark.parametrize("kind", ["csv", "jsonl", "parquet", "hub", "txt"])
def test_text_alone_from_every_format(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    """A label that is asked for of text that has none, or rows read as another task's."""
    rows = [{"text": f"Line {number}."} for number in range(60)]
    if kind == "hub":
        monkeypatch.setattr("kdcli.data.hub.snapshot", lambda *_, **__: (tmp_path, "abc"))
        monkeypatch.setattr(datasets, "load_dataset", lambda *_, **__: datasets.Dataset.from_list(rows))
        data = load(Dataset(path="a/b", format="hub", **MASKED))
    elif kind == "txt":
        for number, row in enumerate(rows):
            (tmp_path / f"{number}.txt").write_text(row["text"])
        data = read(tmp_path, format="txt", **MASKED)
    else:
        path = write_csv(tmp_path / "a.csv", [(row["text"], "x") for row in rows])
        data = read(path if kind == "csv" else save(tmp_path, kind, rows), **MASKED)
    assert ordered(everything(data)) == ordered(rows)
    assert data["train"].column_names == ["id", "text"]
    assert data.labels == []
    assert len(data.gold) == len(data["train"])


def test_each_training_text_is_there_as_often_as_it_is_hidden(tmp_path: Path) -> None:
    """Copies of one id hide the same tokens; copies that are made before the split stand in the test rows as well."""
    path = write_csv(tmp_path / "a.csv", ROWS)
    once, often = read(path, **MASKED, limit=20), read(path, **MASKED, limit=20, mask_copies=3)
    assert often["train"]["id"][:20] == once["train"]["id"][:]
    assert often["train"]["text"] == once["train"]["text"][:] * 3
    assert len(set(often["train"]["id"])) == 60
    for split in ("validation", "test"):
        assert often[split]["id"][:] == once[split]["id"][:]
    assert once.fingerprint != often.fingerprint


@pytest.mark.parametrize(
    ("keys", "words"),
    [
        (
            {"mask_copies": 2},
            ("mask_copies:", "masked_lm", "not for classification", "leave it out"),
        ),
        ({"mask_copies": 2, "label": None}, ("mask_copies:", "masked_lm", "not for causal_lm")),
        ({"mask_copies": 0, **MASKED}, ("mask_copies", "greater than")),
        ({"labelled": 5, **MASKED}, ("labelled:", "masked_lm", "no labels", "limit")),
        ({"unlabelled": "b.csv", **MASKED}, ("unlabelled:", "without labels", "masked_lm")),
        (
            {"text_pair": "b", **MASKED},
            ("text_pair:", "masked_lm", "text alone", "dataset.text"),
        ),
        ({**COLUMNS, **MASKED}, ("prompt:", "masked_lm", "text alone", "dataset.text")),
        ({**SAID, **MASKED}, ("messages:", "masked_lm", "text alone", "dataset.text")),
        ({"words": "w", "tags": "t", **MASKED}, ("words:", "masked_lm", "text alone", "dataset.text")),
    ],
)
def test_keys_that_mean_nothing_to_hidden_tokens(keys: dict[str, Any], words: tuple[str, ...]) -> None:
    """A key that is read nowhere: the user believes that half of the text, or a label, is used."""
    with pytest.raises(ValidationError, match=naming(*words)):
        Dataset.model_validate({"path": "a.csv", **keys})


def test_missing_text_column(tmp_path: Path) -> None:
    """A message about prompts and conversations, of data that can have neither."""
    path = write_csv(tmp_path / "a.csv", ROWS, header=("texts", "label"))
    message = refused(path, **MASKED)
    require_words(message, "a.csv", "no column 'text'", "mean texts?", "dataset.text=")
    assert not naming("dataset.prompt=").search(message)
    assert not naming("dataset.messages=").search(message)
    with pytest.raises(
        ValidationError, match=naming("format = conversations", "causal_lm", "not for masked_lm")
    ):
        read(tmp_path / "a.yml", **MASKED)


# ---- conversations

TALK = """
categories: [small talk]
conversations:
- - How many?
  - 42
- - Which version?
  - 1.10
- - Really?
  - yes
- - ? Is it so
  - x
- A line that is no conversation
- - Alone
- - Nothing after
  -
-
- - Are you sad?
  - No.
  - Not now.
  - Sometimes.
"""


def test_conversations_become_pairs(tmp_path: Path) -> None:
    """An unquoted yes becomes True and 1.10 becomes 1.1; a third turn becomes an answer to the second."""
    rows = [("How many?", "42"), ("Which version?", "1.10"), ("Really?", "yes"), ("Are you sad?", "No.")]
    path = tmp_path / "a.yml"
    path.write_text(TALK.replace("- - ? Is it so\n  - x\n", ""))
    data = read(path, validation_size=1, test_size=1)
    assert ordered(everything(data)) == ordered(pairs(rows))
    path.write_text(TALK)
    require_words(refused(path), "a.yml", "conversation 4", "text", "{'Is it so': ''}", "quotes")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("conversations: [", ("not YAML", "flow node")),
        ("conversations:\n- - a: b: c\n", ("not YAML", "line 2", "column 9")),
        ("talks:\n- - a\n  - b\n", ("`conversations`", "a list of lists")),
        ("- - a\n  - b\n", ("`conversations`", "a list of lists")),
        ("conversations: hello", ("`conversations`", "a list of lists")),
        ("conversations:\n- - a\n", ("no rows",)),
    ],
    ids=["cut", "colon", "other key", "list", "text", "no pair"],
)
def test_spoiled_conversations(tmp_path: Path, text: str, words: tuple[str, ...]) -> None:
    """A file of another shape read as an empty one."""
    (tmp_path / "a.yml").write_text(text)
    require_words(refused(tmp_path / "a.yml"), "a.yml", *words)


@pytest.mark.real
def test_packaged_conversations() -> None:
    """A new version of the package, or of the reader, that leaves little of the packaged data."""
    cfg = Dataset.model_validate(yaml.safe_load((conf_dir() / "dataset" / "chat.yaml").read_text()))
    data = load(cfg)
    assert len(data["validation"]) == cfg.validation_size
    assert len(data["test"]) == cfg.test_size
    assert len(data["train"]) > 550
    rows = everything(data)
    assert {"prompt": "What language are you written in?", "completion": "Python."} in rows
    prompts = [{prompt.casefold() for prompt in data[split]["prompt"]} for split in SPLITS]
    assert sum(map(len, prompts)) == len(set.union(*prompts))


# ---- batches -----------------------------------------------------------------------------------------


def test_fewer_rows_than_a_batch() -> None:
    """No step at all would be trained, and the untrained student saved."""
    require_batch(32, 32, "training rows", "trainer.batch_size")
    with pytest.raises(ConfigError, match=naming("training rows:", "31 rows", "trainer.batch_size = 32")):
        require_batch(31, 32, "training rows", "trainer.batch_size")


# ---- hostile files -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("row", "words"),
    [
        ('{"text": ' + "[" * 10**5 + "]" * 10**5 + ', "label": "good"}', ("line 61", "not JSON")),
        ('{"a": ' * 10**5 + "1" + "}" * 10**5, ("line 61", "not JSON")),
        ('{"text": "a b", "label": ' + "9" * 5000 + "}", ("line 61", "not JSON")),
        ('{"text": "a b", "label": 1e999}', ("line 61", "the label", "inf")),
        ('{"text": "a b", "label": Infinity}', ("line 61", "the label", "inf")),
        ('{"text": "a b", "label": 1e300}', ("line 61", "the label", "1e+300")),
        (r'{"text": "a b", "label": "\ud800"}', ("line 61", "the label")),
        (r'{"text": "a b", "label": "\u0000"}', ("line 61", "the label")),
        (r'{"text": "a b", "label": "\u001b[2J"}', ("line 61", "the label")),
        (r'{"text": "a b", "label": "a\nb"}', ("line 61", "the label")),
        (r'{"text": "a b", "label": "\u202egood"}', ("line 61", "the label")),
        ('{"text": "a b", "label": "' + "x" * 1001 + '"}', ("line 61", "dataset.label", "right column")),
        ('{"text": "a b", "label": "good", "label": "bad"}', ("line 61", "key 'label'", "twice")),
        (r'{"text": "a \ud800", "label": "good"}', ("line 61", "the text", "surrogate")),
        ('{"text": ["a"], "label": "good"}', ("line 61", "the text", "['a']")),
    ],
)
def test_hostile_jsonl(tmp_path: Path, row: str, words: tuple[str, ...]) -> None:
    """A traceback, a value that is taken in silence, or a label that breaks the files and tables it is written to."""
    path = write_jsonl(tmp_path / "a.jsonl", [{"text": text, "label": label} for text, label in ROWS])
    path.write_text(path.read_text() + row + "\n")
    require_words(refused(path), "a.jsonl", *words)


def test_names_of_labels_that_are_given_are_checked_as_well(tmp_path: Path) -> None:
    """dataset.labels puts an escape sequence into config.json and every table."""
    path = write_csv(tmp_path / "a.csv", ROWS)
    require_words(
        refused(path, labels=["good", "bad", "\x1b[2J"]), "a.csv", "label's name", "control character"
    )


def test_a_second_column_of_the_same_name(tmp_path: Path) -> None:
    """One of two label columns is taken in silence."""
    path = tmp_path / "a.csv"
    path.write_text("text,label,label\n" + "".join(f"{text},{label},other\n" for text, label in ROWS))
    require_words(refused(path), "a.csv", "2 columns 'label'")
    path.write_text("text,label,,\n" + "".join(f"{text},{label},,\n" for text, label in ROWS))
    assert len(read(path)["train"]) == 48
    table = pyarrow.table([["a b"], ["good"], ["bad"]], names=["text", "label", "label"])
    pyarrow.parquet.write_table(table, tmp_path / "a.parquet")
    require_words(refused(tmp_path / "a.parquet"), "a.parquet", "2 columns 'label'")


FORMATS = {"csv": ".csv", "jsonl": ".jsonl", "parquet": ".parquet", "txt": ".txt", "conversations": ".yml"}


@pytest.mark.parametrize("kind", FORMATS)
def test_what_is_no_regular_file_is_not_opened(tmp_path: Path, kind: str) -> None:
    """kdcli waits for ever for a pipe that nobody writes to, or reads zeros without end."""
    path = tmp_path / f"a{FORMATS[kind]}"
    os.mkfifo(path)
    assert "is no file" in refused(path, format=kind)
    for target in ("/dev/zero", path):  # the second one is a loop
        path.unlink()
        path.symlink_to(target)
        assert "is no file" in refused(path, format=kind)
    for name in ("x" * 5000, "a\0b", "~nobody/here", "\ud800"):
        assert "does not exist" in refused(Path(name), format=kind)


@pytest.mark.parametrize("kind", FORMATS)
@pytest.mark.parametrize("encoding", ["utf-8", "latin-1", "utf-16", "utf-32-le"])
def test_sparse_files_are_refused_at_their_first_block(tmp_path: Path, kind: str, encoding: str) -> None:
    """50 GB of zeros are read as one line until the memory is full."""
    path = tmp_path / f"a{FORMATS[kind]}"
    for begin in ("", "text,label\na b,good\n"):
        path.write_bytes(begin.encode(encoding))
        os.truncate(path, 50 * 2**30)
        assert "a." in refused(path, format=kind, encoding=encoding)


@pytest.mark.parametrize(
    "encoding",
    ["zip", "hex", "rot13", "base64", "bz2", "undefined", "punycode", "mbcs", "../x", "", "\0", "x" * 5000],
)
def test_encodings_that_are_none(tmp_path: Path, encoding: str) -> None:
    """A codec that decompresses, or one that is unknown, in a traceback."""
    assert "dataset.encoding" in refused(write_csv(tmp_path / "a.csv", ROWS), encoding=encoding)


@pytest.mark.parametrize("signs", [{"delimiter": "\n"}, {"quote": "\r"}, {"delimiter": ";", "quote": ";"}])
def test_delimiters_that_are_none(tmp_path: Path, signs: dict[str, str]) -> None:
    """A line break between columns, or one sign for two things, in a message about columns, or in a traceback."""
    with pytest.raises(ConfigError, match=r"dataset\.delimiter"):
        read(write_csv(tmp_path / "a.csv", ROWS), **signs)


def test_a_quote_that_does_not_close(tmp_path: Path) -> None:
    """The rest of a large file is read as one field."""
    path = write_csv(tmp_path / "a.csv", ROWS)
    path.write_text(path.read_text() + '"a b,good\n')
    assert '"a b' in texts(read(path))  # it is text, because no other field is quoted
    path.write_text(path.read_text() + "c d,bad\n" * (LONGEST_FIELD // 8 + 1))
    require_words(refused(path, quote='"'), "a.csv", "stray quote")


def test_a_small_parquet_file_that_holds_gigabytes(tmp_path: Path) -> None:
    """A file of some kilobytes fills the memory."""
    text = pyarrow.DictionaryArray.from_arrays(pyarrow.array([0] * 10**4, pyarrow.int32()), ["x" * 10**5])
    label = pyarrow.array(["good"] * 10**4).dictionary_encode()
    path = write_parquet(tmp_path / "a.parquet", {"text": text, "label": label})
    assert path.stat().st_size < 10**6
    require_words(refused(path), "a.parquet", "times", "bytes")


@pytest.mark.parametrize(
    ("text", "label"),
    [
        (["a b"], [datetime(2020, 1, 1)]),
        (["a b"], pyarrow.array([2**62], pyarrow.timestamp("us"))),
        (["a b"], pyarrow.array([2**40], pyarrow.timestamp("s", tz="No/Where"))),
        (["a b"], [b"good"]),
        (["a b"], [None]),
        ([b"a b"], ["good"]),
        (pyarrow.array([b"\xff\xfe"]).view(pyarrow.string()), ["good"]),
        ([{"a": {"b": "c"}}], ["good"]),
        (pyarrow.StructArray.from_arrays([["c"], ["d"]], names=["a", "a"]), ["good"]),
        (pyarrow.array([], pyarrow.string()), pyarrow.array([], pyarrow.string())),
    ],
)
def test_parquet_columns_of_other_types(tmp_path: Path, text: Any, label: Any) -> None:
    """A type that pyarrow cannot convert, or that is no text, in a traceback."""
    path = tmp_path / "a.parquet"
    pyarrow.parquet.write_table(pyarrow.table([text, label], names=["text", "label"]), path)
    assert "a.parquet" in refused(path)


@pytest.mark.parametrize(
    "content",
    [
        "a: &a [x, x]\nconversations: [*a]\n",
        "conversations: &a [*a]\n",
        "conversations: " + "[" * 1500,
        "conversations:\n- - a\n  - b\nconversations:\n- - c\n  - d\n",
        'conversations:\n- - "\\UFFFFFFFF"\n  - b\n',
        "conversations:\n- - !!python/object/apply:os.system [touch owned]\n  - b\n",
    ],
)
def test_hostile_conversations(tmp_path: Path, content: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Aliases that multiply to the size of the memory, a doubled key whose first list is lost, a tag that runs code."""
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "a.yml"
    path.write_text(content)
    assert "a.yml" in refused(path)
    assert [file.name for file in tmp_path.iterdir()] == ["a.yml"]


@pytest.fixture
def on_the_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of the data set someone/words in a cache of the hub."""
    folder = tmp_path / "datasets--someone--words" / "snapshots" / ("a" * 40)
    folder.mkdir(parents=True)
    (folder.parents[1] / "refs").mkdir()
    (folder.parents[1] / "refs" / "main").write_text("a" * 40)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "arrow")
    return folder


def test_bad_rows_of_a_hub_data_set(on_the_hub: Path, caplog: pytest.LogCaptureFixture) -> None:
    """An empty text of a data set from the hub is learned, or its remedy does nothing."""
    rows = [{"text": text, "label": label} for text, label in ROWS]
    write_jsonl(on_the_hub / "data.jsonl", [*rows, {"text": " ", "label": "good"}])
    require_words(refused(Path("someone/words"), format="hub"), "row 61", "the text", "dataset.bad_rows=drop")
    data = load(Dataset(path="someone/words", format="hub", bad_rows="drop", **SIX))
    assert sum(map(len, data.splits.values())) == len(rows)
    require_words(caplog.text, "1 of 61 rows", "dropped")


def test_deep_json_of_a_hub_data_set(on_the_hub: Path) -> None:
    """The native reader of JSON crashes, and kdcli with it; texts with brackets are refused."""
    rows = [{"text": f"{text} " + "[{" * 20, "label": label} for text, label in ROWS]
    write_jsonl(on_the_hub / "data.jsonl", rows)
    assert len(load(Dataset(path="someone/words", format="hub", **SIX))["train"]) == 48
    deep = '{"text": ' + "[" * 10**5 + "]" * 10**5 + ', "label": "good"}\n'
    (on_the_hub / "data.jsonl").write_text(json.dumps(rows[0]) + "\n" + deep)
    require_words(refused(Path("someone/words"), format="hub"), "data.jsonl", "nested too deeply")


@pytest.mark.parametrize(
    ("card", "words"),
    [
        ("a: &a [x, x]\nconfigs: [*a]", ("README.md", "alias")),
        ("configs: " + "[" * 1500, ("README.md", "nested too deeply")),
        ("configs:\n- config_name: default\n  data_files: /etc/passwd", ("outside", "/etc/passwd")),
        (
            "configs:\n- config_name: default\n  data_files: [{split: train, path: ../../*}]",
            ("outside", "../../*"),
        ),
        (
            "configs:\n- config_name: default\n  data_files: https://localhost/a.csv",
            ("outside", "https://localhost/a.csv"),
        ),
        ("dataset_info:\n  features:\n  - name: text\n    dtype: nonsense", ("cannot be read",)),
        ("configs: 5", ("cannot be read",)),
    ],
)
def test_hostile_cards_of_hub_data_sets(
    on_the_hub: Path, tmp_path: Path, card: str, words: tuple[str, ...]
) -> None:
    """A data set's card makes kdcli read other files of the user, ask a server, or expand aliases without end."""
    write_csv(on_the_hub / "data.csv", ROWS)
    (on_the_hub / "words.py").write_text(f"import os; os.mkdir({str(tmp_path / 'owned')!r})\n")
    with pytest.raises(DataError):
        load(Dataset(path="someone/other", format="hub"))
    assert len(load(Dataset(path="someone/words", format="hub", **SIX))["train"]) == 48
    (on_the_hub / "README.md").write_text(f"---\n{card}\n---\n")
    require_words(refused(Path("someone/words"), format="hub"), "someone/words", *words)
    assert not (tmp_path / "owned").exists()
