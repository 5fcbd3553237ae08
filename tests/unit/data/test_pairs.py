"""Pairs of source and target: read from whatever holds them, cleaned by rules that are told, and never taken apart."""

from __future__ import annotations

import json
import logging
import random
from pathlib import Path
from typing import Any

import datasets
import pyarrow
import pyarrow.parquet
import pytest
from pydantic import ValidationError
from support.commands import naming, require_words

from kdcli.config.dataset import Clean, Dataset
from kdcli.config.schema import Distill
from kdcli.config.tasks import spec_of
from kdcli.data.dataset import Data, load
from kdcli.data.splits import SPLITS
from kdcli.errors import DataError

PAIRS = [(f"the house number {number} is red", f"das Haus Nummer {number} ist rot") for number in range(60)]
ASIDE = {"validation_size": 6, "test_size": 6}


def read(path: Path, **more: Any) -> Data:
    kind = {".jsonl": "jsonl", ".parquet": "parquet"}.get(path.suffix, "csv")
    columns = {} if more.get("format") == "gettext" else {"source": "en", "target": "de"}
    return load(Dataset.model_validate({"path": str(path), "format": kind, **ASIDE, **columns, **more}))


def refused(path: Path, **more: Any) -> str:
    with pytest.raises(DataError) as caught:
        read(path, **more)
    return caught.value.message


def write(path: Path, rows: list[tuple[str, str]]) -> Path:
    path.write_text("".join(json.dumps({"en": source, "de": target}) + "\n" for source, target in rows))
    return path


def pairs(data: Data, *splits: str) -> set[tuple[str, str]]:
    return {(row["source"], row["target"]) for split in splits or SPLITS for row in data[split]}


# ---- rows --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("nested", [False, True], ids=["flat", "nested"])
@pytest.mark.parametrize("kind", ["csv", "jsonl", "parquet", "hub"])
def test_pairs_from_every_format(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str, nested: bool
) -> None:
    """Source and target exchanged, or the whole mapping of a hub data set taken for a text."""
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("kdcli.data.hub.snapshot", lambda *_, **__: (tmp_path, "c0ffee"))
    table: dict[str, list[Any]] = {"en": [pair[0] for pair in PAIRS], "de": [pair[1] for pair in PAIRS]}
    columns = {"source": "en", "target": "de"}
    if nested and kind != "csv":
        table = {"translation": [{"en": source, "de": target} for source, target in PAIRS]}
        columns = {"source": "translation.en", "target": "translation.de"}
    elif nested:
        table = {"a.en": table["en"], "a.de": table["de"]}
        columns = {"source": "a.en", "target": "a.de"}
    path = tmp_path / f"a.{'parquet' if kind == 'hub' else kind}"
    if kind == "hub" and nested:
        features = datasets.Features({"translation": datasets.Translation(languages=["en", "de"])})
        datasets.Dataset.from_dict(table, features=features).to_parquet(path)
    elif kind in ("parquet", "hub"):
        pyarrow.parquet.write_table(pyarrow.table(table), path)
    elif kind == "jsonl":
        path.write_text(
            "".join(
                json.dumps(dict(zip(table, row, strict=True))) + "\n"
                for row in zip(*table.values(), strict=True)
            )
        )
    else:
        rows = [tuple(table), *zip(*table.values(), strict=True)]
        path.write_text("".join(",".join(row) + "\n" for row in rows))
    data = read(path, format=kind, **columns)
    assert pairs(data) == set(PAIRS)
    assert [len(data[split]) for split in SPLITS] == [48, 6, 6]
    assert data["train"].column_names == ["id", "source", "target"]
    assert (data.labels, data.dropped) == ([], {})
    assert data.gold.to_list() == data["train"].to_list()


def test_white_space_is_folded_and_replace_is_for_both_sides(tmp_path: Path) -> None:
    """A line break that a model must translate; half a pair that is cleaned, or that goes and leaves the other half."""
    rows = [(f" <b>{source}</b>\n", target.replace(" ", "\t ") + "<i>") for source, target in PAIRS]
    rows += [("<b>", "nothing of the source"), ("nothing of the target", "<i> <b>")]
    data = read(write(tmp_path / "a.jsonl", rows), replace={"<[^>]*>": ""})
    assert pairs(data) == set(PAIRS)
    assert data.dropped == {"empty after dataset.replace": 2}


def test_duplicates_and_several_translations_of_a_source(tmp_path: Path) -> None:
    """A test source that was learnt with another translation; a second reference that is dropped for the first."""
    rows = [
        (change(source), more + target)
        for source, target in PAIRS
        for change, more in ((str, ""), (str, "also: "), (str.upper, ""), (str, ""))
    ]
    data = read(write(tmp_path / "a.jsonl", rows))
    assert data.dropped == {"duplicates": 60}
    assert sum(len(data[split]) for split in SPLITS) == 180
    found = [{source.casefold() for source in data[split]["source"]} for split in SPLITS]
    assert sum(map(len, found)) == len(set.union(*found)) == 60
    few = write(tmp_path / "few.jsonl", [("one source", f"das Ziel {number}") for number in range(60)])
    require_words(
        refused(few), "few.jsonl", "every source", "6 rows", "test", "dataset.test_size", "dataset.test="
    )


def test_ids_and_fingerprint(tmp_path: Path) -> None:
    """A translation that was corrected under a finished run, and goes unnoticed; a split that follows the rows' order."""
    one = read(write(tmp_path / "a.jsonl", PAIRS))
    turned = read(write(tmp_path / "b.jsonl", PAIRS[::-1]))
    assert one.fingerprint == turned.fingerprint
    assert all(one[split].to_list() == turned[split].to_list() for split in SPLITS)
    other = read(write(tmp_path / "c.jsonl", [(PAIRS[0][0], PAIRS[0][1] + "!"), *PAIRS[1:]]))
    assert other.fingerprint != one.fingerprint


def test_a_pair_whose_target_is_hidden_is_another_row(tmp_path: Path) -> None:
    """What the cache keeps by id was chosen, or learnt, with the target: the candidate nearest to it, a vocabulary of both sides."""
    path = write(tmp_path / "a.jsonl", PAIRS)
    whole, some = (read(path, **keys)["train"].to_list() for keys in ({}, {"labelled": 5}))
    assert some[:5] == whole[:5]
    assert [row["source"] for row in some] == [row["source"] for row in whole]
    assert all(row["target"] is None for row in some[5:])
    assert len({row["id"] for row in [*whole, *some[5:]]}) == len(whole) + len(some[5:])
    assert read(path, labelled=5).fingerprint != read(path).fingerprint


def test_no_step_takes_a_pair_apart(tmp_path: Path) -> None:
    """A column that is shuffled, filtered or cut without the other: every later row gets its neighbour's translation."""
    chance = random.Random(5)

    def target(source: str) -> str:
        return " ".join(word[::-1] for word in source.split())

    for trial in range(12):
        sources = {
            " ".join("".join(chance.choices("abcdefgh", k=4)) for _ in range(chance.randint(1, 30)))
            for _ in range(150)
        }
        rows = [(source, target(source)) for source in sources]
        rows += [(source.upper(), target(source.upper())) for source in chance.sample(sorted(sources), 30)]
        bad = [(f"{'xx ' * 60}{number}", "xx") for number in range(8)] + [("same", "same"), ("gone", "<>")]
        rows += bad + chance.sample(rows, 20)
        chance.shuffle(rows)
        more: dict[str, Any] = {"limit": chance.choice([None, 40]), "eval_limit": chance.choice([None, 5])}
        if trial % 2:
            own = [(source, target(source)) for source in chance.sample(sorted(sources), 30)]
            more["test"] = str(write(tmp_path / "test.jsonl", own))
        data = read(write(tmp_path / "a.jsonl", rows), replace={"<>": ""}, **more)
        assert all(row["target"] == target(row["source"]) for split in SPLITS for row in data[split])
        kept = [{source.casefold() for source in data[split]["source"]} for split in SPLITS]
        assert sum(map(len, kept)) == len(set.union(*kept))
        assert data.dropped["length ratio"] == 8
        assert data.dropped["empty after dataset.replace"] == data.dropped["identical"] == 1
        again = data["train"].shuffle(seed=trial).filter(lambda row: len(row["source"]) > 20).select(range(9))
        assert all(row["target"] == target(row["source"]) for row in again)


# ---- bad input ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("row", "words"),
    [
        ({"en": "", "de": "leer"}, ("line 3", "the source", "empty", "remove", "fill")),
        ({"en": "empty", "de": " \t"}, ("line 3", "the target", "empty")),
        ({"en": "none", "de": None}, ("line 3", "the target", "None", "string")),
        ({"en": ["a list"], "de": "Liste"}, ("line 3", "the source", "['a list']", "string")),
        ({"en": "half \ud83d", "de": "halb"}, ("line 3", "the source", "'half \\ud83d'", "surrogate")),
        ({"en": "no target"}, ("line 3", "no column 'de'", "columns: en)", "dataset.source=")),
    ],
    ids=["empty source", "empty target", "null", "list", "surrogate", "missing"],
)  # fmt: skip
def test_pairs_that_are_refused(tmp_path: Path, row: dict[str, Any], words: tuple[str, ...]) -> None:
    """A translation of nothing, which a model learns to write for everything that it does not know."""
    path = write(tmp_path / "a.jsonl", PAIRS)
    lines = path.read_text().splitlines()
    path.write_text("\n".join([*lines[:2], json.dumps(row), *lines[2:]]))
    require_words(refused(path), "a.jsonl", *words)


@pytest.mark.parametrize(
    ("row", "columns", "words"),
    [
        ({"t": {"en": "x", "de": "y"}}, ("t.en", "t.deu"), ("line 1", "'deu'", "mean de?", "en, de)")),
        ({"t": "x = y"}, ("t.en", "t.de"), ("line 61", "a mapping", "'en'", "'x = y'")),
        ({"t": {"en": "x", "de": "y"}}, ("u.en", "u.de"), ("line 1", "no column 'u.en'", "columns: t)", "dataset.source=")),
        ({"t": {"en": "x", "de": None}}, ("t.en", "t.de"), ("line 61", "the target", "None", "string")),
        ({"t": {"en": "x", "de": "y"}}, ("t", "t.de"), ("line 1", "the source", "{'en'", "COLUMN.en")),
    ],
    ids=["no such key", "no mapping", "no such column", "null", "whole mapping"],
)  # fmt: skip
def test_nested_columns_that_are_refused(
    tmp_path: Path, row: dict[str, Any], columns: tuple[str, str], words: tuple[str, ...]
) -> None:
    """A language that some rows lack becomes the text "None"."""
    path = tmp_path / "a.jsonl"
    rows = [*({"t": {"en": source, "de": target}} for source, target in PAIRS), row]
    path.write_text("\n".join(map(json.dumps, rows)))
    require_words(refused(path, source=columns[0], target=columns[1]), "a.jsonl", *words)


def test_the_key_within_a_mapping_is_named(tmp_path: Path) -> None:
    """A user of OPUS's files is told that there is no column en, or, of a csv file, to take the mapping for both texts."""
    path = tmp_path / "a.jsonl"
    path.write_text(json.dumps({"translation": {"en": "x", "de": "y"}}))
    require_words(refused(path), "dataset.source=translation.en dataset.target=translation.de")
    path = tmp_path / "a.csv"
    path.write_text("translation\n\"{'en': 'x', 'de': 'y'}\"\n")
    message = refused(path, source="translation.en", target="translation.de")
    require_words(message, "no column 'translation.en'", "jsonl", "parquet")
    assert "did you mean" not in message


def test_files_without_a_header(tmp_path: Path) -> None:
    """The first pair taken for the columns' names; a third column that shifts the second; a header that is learnt."""
    path = tmp_path / "a.tsv"
    path.write_text("".join(f"{source}\t{target}\tGenesis 1\n" for source, target in PAIRS))
    named = {"columns": ["en", "de", "verse"]}
    assert pairs(read(path, **named)) == set(PAIRS)
    turned = pairs(read(path, columns=["de", "en", "verse"]))
    assert turned == {(target, source) for source, target in PAIRS}
    message = refused(path, columns=["en", "de"])
    require_words(message, "a.tsv", "line 1:", "3 fields", "dataset.columns", "2")
    message = refused(path, columns=["en", "d", "verse"])
    require_words(message, "a.tsv", "no column 'de'", "mean d?", "en, d, verse", "dataset.target=")
    whole = path.read_text()
    path.write_text(whole + "half a line\n")
    require_words(refused(path, **named), "a.tsv", "line 61:", "1 fields", "dataset.columns", "3")
    path.write_text(whole + "a whole one\tdie ganze\n")
    assert ("a whole one", "die ganze") in pairs(read(path, **named))
    first, *others = whole.splitlines(keepends=True)
    path.write_text(
        "".join([first.replace("\tGenesis 1", ""), *others])
    )  # fields that most rows have, and the first one has not
    assert pairs(read(path, columns=["en", "de"])) == set(PAIRS)
    path.write_text("en\tde\tverse\n" + whole)
    require_words(refused(path, **named), "a.tsv", "line 1", "header", "remove dataset.columns")
    labelled = tmp_path / "b.csv"
    labelled.write_text("".join(f"text {number},{number % 2}\n" for number in range(60)))
    data = load(Dataset(path=str(labelled), columns=["text", "label"], **ASIDE))
    assert len(data["train"]) == 48


@pytest.mark.parametrize(
    ("keys", "words"),
    [
        ({"source": "en"}, ("source and target:", "both", "neither")),
        ({"source": "en", "target": "en"}, ("source and target:", "column 'en'", "two")),
        ({"task": "seq2seq"}, ("seq2seq:", "columns", "source", "translation")),
        ({"source": "en", "target": "de", "text_pair": "b"}, ("source and text_pair:", "name", "one")),
        ({"source": "en", "target": "de", "prompt": "a", "completion": "b"}, ("source and prompt:", "name", "one")),
        ({"source": "en", "target": "de", "messages": "m"}, ("source and messages:", "name", "one")),
        ({"source": "en", "target": "de", "words": "w", "tags": "t"}, ("source:", "pairs", "not for token_classification")),
        ({"source": "en", "target": "de", "task": "classification"}, ("source:", "pairs", "not for classification")),
        ({"source": "en", "target": "de", "task": "masked_lm"}, ("source:", "pairs", "not for masked_lm")),
        ({"format": "gettext", "target_language": "de", "unlabelled": "b.csv"}, ("unlabelled:", "catalogues")),
        ({"source": "en", "target": "de", "augment": {}}, ("augment:", "classification", "not for seq2seq")),
        ({"source": "en", "target": "de", "mask_copies": 2}, ("mask_copies:", "masked_lm", "not for seq2seq")),
        ({"source": "en", "target": "de", "chat": True}, ("chat:", "a prompt", "a completion")),
        ({"truncation": "drop"}, ("truncation:", "causal_lm", "not for classification")),
        ({"label": None, "truncation": "refuse"}, ("truncation = refuse", "plain text", "packed")),
        (
            {"prompt": "a", "completion": "b", "clean": {"script": False}},
            ("clean:", "seq2seq", "not for causal_lm"),
        ),
        ({"prefix": "translate: "}, ("prefix:", "seq2seq", "not for classification")),
        ({"target_language": "de"}, ("target_language:", "seq2seq", "not for classification")),
        ({"clean": {"script": False}}, ("clean:", "seq2seq", "not for classification")),
        ({"source": "en", "target": "de", "clean": {"max_ratio": 1}}, ("clean.max_ratio", "greater than 1")),
        ({"source": "en", "target": "de", "truncation": "cut"}, ("truncation = cut", "pairs", "never")),
        ({"source": "en", "target": "de", "clean": {"max_ration": 2}}, ("clean.max_ration", "not permitted")),
        ({"format": "gettext"}, ("gettext", "dataset.target_language=de")),
        ({"format": "gettext", "target_language": "de", "source_language": "de"}, ("source_language and target_language:", "both", "are de")),
        ({"format": "gettext", "target_language": "de", "source": "en", "target": "de"}, ("catalogues", "no columns")),
        ({"format": "parquet", "columns": ["text", "label"]}, ("columns:", "parquet")),
        ({"columns": ["text", "text"]}, ("columns:", "'text'", "twice")),
        ({"columns": []}, ("columns", "at least 1")),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, dict) else "",
)  # fmt: skip
def test_settings_that_do_not_fit(keys: dict[str, Any], words: tuple[str, ...]) -> None:
    """A key that is read nowhere, and a run that is not what its config says."""
    with pytest.raises(ValidationError, match=naming(*words)):
        Dataset.model_validate({"path": "a.csv", **keys})


def test_kind_is_inferred() -> None:
    """Pairs that are read as sentences to classify, for want of a task."""
    assert Dataset(path="a", source="en", target="de").kind == "seq2seq"
    assert Dataset(path="a", source="en", target="de", label=None).kind == "seq2seq"
    assert Dataset(path="a", format="gettext", target_language="de").kind == "seq2seq"
    with pytest.raises(
        ValidationError, match=naming("format = gettext", "seq2seq", "not for classification")
    ):
        Dataset(path="a", format="gettext", task="classification")


def test_a_stage_of_plain_text_has_no_pairs() -> None:
    """Columns and languages of the run that are handed to a stage which reads text, and refused there."""
    given = {
        "source": "en", "target": "de", "source_language": "en", "target_language": "de", "prefix": "a: ",
        "clean": {"script": False},
    }  # fmt: skip
    assert given.keys() == spec_of("seq2seq").only_here.keys()
    tree = {
        "teacher": {"_target_": "a.B"}, "student": {"_target_": "a.B"}, "hardware": {"_target_": "a.B"},
        "loss": {"one": {"_target_": "a.B"}}, "dataset": {"path": "a.csv", **given},
        "stages": {"general": {"dataset": {"task": "masked_lm", "path": "b.csv"}}, "task": {}},
    }  # fmt: skip
    stage = Distill.model_validate(tree).stages["general"].dataset
    assert stage is not None
    assert (stage.kind, stage.source, stage.prefix, stage.clean) == ("masked_lm", None, "", Clean())


# ---- cleaning ----------------------------------------------------------------------------------------

LONG = "a sentence of more than forty characters, which is long enough"
WRONG = {
    "identical": [("Haus  Nummer", "Haus Nummer")],
    "length ratio": [(LONG, "kurz"), ("short", f"{LONG} und {LONG}")],
}


@pytest.mark.parametrize("reason", WRONG)
def test_pairs_that_teach_nothing_are_left_out(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, reason: str
) -> None:
    """A student that copies, or that stops after a word, because a tenth of its data does; rows that go without a word."""
    path = write(tmp_path / "a.jsonl", [*PAIRS, *WRONG[reason]])
    with caplog.at_level(logging.INFO):
        data = read(path)
    assert pairs(data) == set(PAIRS)
    assert data.dropped == {reason: len(WRONG[reason])}
    require_words(caplog.text, f"{path}:", f"{len(WRONG[reason])} rows", "dropped", reason)
    off = read(path, clean={"identical": False, "max_ratio": None, "script": False})
    assert off.dropped == {}
    assert len(pairs(off)) == 60 + len(WRONG[reason])


def test_summaries(tmp_path: Path) -> None:
    """Columns of other names that are not found; articles that go because their summaries are shorter than those of others."""
    path = tmp_path / "a.jsonl"
    texts = [
        ("a word of it, " * (5 + 9 * (number % 7)) + f"in {number}", f"Summary {number}")
        for number in range(70)
    ]
    path.write_text("".join(json.dumps({"article": text, "summary": short}) + "\n" for text, short in texts))
    columns = {"source": "article", "target": "summary"}
    assert read(path, **columns).dropped["length ratio"] > 9
    data = read(path, **columns, clean={"max_ratio": None})
    assert pairs(data) == set(texts)
    assert data.dropped == {}


def test_short_messages_and_other_ways_of_writing_may_be_of_any_length(tmp_path: Path) -> None:
    """A limit made for sentences that takes OK, and all of Chinese, for mistakes."""
    short = [("Quit", "Das Programm jetzt beenden"), ("Use the default setting of it", "Ja")]
    data = read(write(tmp_path / "a.jsonl", [*PAIRS, *short]))
    assert set(short) <= pairs(data)
    assert data.dropped == {}
    assert read(tmp_path / "a.jsonl", clean={"ratio_from": 20}).dropped == {"length ratio": 2}
    chinese = [(f"{LONG}, and number {number}", f"足够长的句子，第{number}") for number in range(60)]
    odd = ("A sentence that is about as long as the others, but not its target", "足够长的句子" * 9)
    data = read(write(tmp_path / "b.jsonl", [*chinese, odd]))
    assert pairs(data) == set(chinese)
    assert data.dropped == {"length ratio": 1}


RUSSIAN = [
    (f"the {color} house number {number}", f"{word} дом номер {number}")
    for number in range(15)
    for color, word in (("red", "красный"), ("white", "белый"), ("green", "зелёный"), ("blue", "синий"))
]


def test_wrong_script(tmp_path: Path) -> None:
    """Untranslated rows that teach a student to answer in English; names and placeholders that are taken for such rows."""
    good = [
        ("Download Firefox", "Скачать Firefox"),
        ("PostgreSQL extensions", "расширения PostgreSQL"),
        ("one more", "ещё %(verbose_name_plural)s"),
        ("12:30", "12.30"),
        ("bold", "<strong>жирный</strong>"),
    ]
    bad = [
        ("another house", "ein anderes Haus"),
        ("not translated", "not  translated!"),
        ("это дом", "что-то по-русски"),
        ("Greek", "ελληνικά"),
    ]
    data = read(write(tmp_path / "a.jsonl", [*RUSSIAN, *good, *bad]))
    assert pairs(data) == {*RUSSIAN, *good}
    assert data.dropped == {"wrong script": 4}
    assert read(tmp_path / "a.jsonl", clean={"script": False}).dropped == {}


@pytest.mark.parametrize(
    ("column", "good", "bad"),
    [
        ("これは赤い家です、番号", ["ビュー", "東京都", "はい", "ﾋﾞｭｰ"], ["красный дом", "빨간 집입니다", "red house"]),
        ("这是红色的房子，号码", ["东京", "使用Python"], ["これはひらがなです", "빨간 집입니다", "red house"]),
        ("이것은 빨간 집입니다 번호", ["집"], ["红色的房子", "これは", "red house"]),
        ("هذا بيت أحمر رقم", ["ﺑﻴﺖ"], ["красный дом", "בית אדום"]),
        ("यह एक लाल घर है", ["घर"], ["красный дом", "red house"]),
        ("kuća broj кућа број", ["kuća", "кућа"], ["σπίτι"]),
    ],
    ids=["Japanese", "Chinese", "Korean", "Arabic", "Hindi", "both Serbian"],
)  # fmt: skip
def test_scripts_that_belong_together(tmp_path: Path, column: str, good: list[str], bad: list[str]) -> None:
    """Kanji rows that are foreign in Japanese; Japanese ones that are at home in Chinese; a column of two scripts cut in half."""
    rows = [(f"House of number {number}", f"{column} {number}") for number in range(60)]
    kept = [(f"good, Python {number}", text) for number, text in enumerate(good)]
    wrong = [(f"bad {number}", text) for number, text in enumerate(bad)]
    data = read(write(tmp_path / "a.jsonl", [*rows, *kept, *wrong]))
    assert pairs(data) == {*rows, *kept}
    assert data.dropped == {"wrong script": len(bad)}


def test_splits_of_their_own_are_not_cleaned(tmp_path: Path) -> None:
    """A score that rises because what is hard was taken out of the test; and one on rows that cleaning was to keep out."""
    bad = [("Haus", "Haus"), *WRONG["length ratio"], ("the house", "дом")]
    train = write(tmp_path / "train.jsonl", [*PAIRS, *((f"{a} x", f"{b} x") for a, b in bad)])
    test, validation = (
        write(tmp_path / f"{name}.jsonl", bad[at]) for name, at in (("t", slice(2)), ("v", slice(2, 4)))
    )
    data = read(train, test=str(test), validation=str(validation))
    assert pairs(data, "test", "validation") == set(bad)
    assert pairs(data, "train") == set(PAIRS)
    carved = read(train, **ASIDE)
    assert pairs(carved) == set(PAIRS)
    assert sum(carved.dropped.values()) == 4


def test_cleaning_that_takes_much(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Summaries, or two near languages, of which a rule for translations leaves little, in silence."""
    copies = [(f"copy {number}", f"copy {number}") for number in range(20)]
    data = read(write(tmp_path / "a.jsonl", [*PAIRS, *copies]))
    assert data.dropped == {"identical": 20}
    [warning] = [record.message for record in caplog.records if record.levelno == logging.WARNING]
    require_words(
        warning, "a.jsonl", "dataset.clean", "25 %", "identical: 20", "dataset.clean.identical=false"
    )
    message = refused(write(tmp_path / "b.jsonl", copies))
    require_words(message, "b.jsonl", "dataset.clean", "none", "20 training rows", "identical: 20")


# ---- languages ---------------------------------------------------------------------------------------


SWAPPED = ("swapped", "exchange", "dataset.source", "dataset.target")


@pytest.mark.parametrize(
    ("languages", "words"),
    [
        (("en", "ru"), None),
        ((None, "ru_RU"), None),
        (("eng_Latn", "rus_Cyrl"), None),
        (("tlh", "sr"), None),
        (("ru", "en"), SWAPPED),
        (("rus_Cyrl", "eng_Latn"), SWAPPED),
        (("ru_RU", None), SWAPPED),
        ((None, "de_DE"), SWAPPED),
        (("sr-Cyrl", "sr-Latn"), SWAPPED),
        (("en", "ja"), ("the target", "Cyrillic", "dataset.target_language = ja", "Kana", "name the languages")),
    ],
    ids=str,
)  # fmt: skip
def test_swapped_columns_are_told(
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    languages: tuple[str | None, str | None],
    words: tuple[str, ...] | None,
) -> None:
    """Days of training in the wrong direction; a warning that comes with every good data set."""
    path = write(tmp_path / "a.jsonl", RUSSIAN)
    data = read(path, source_language=languages[0], target_language=languages[1])
    assert pairs(data) == set(RUSSIAN)
    if words is None:
        assert not [record for record in caplog.records if record.levelno >= logging.WARNING]
    else:
        require_words(caplog.text, *words)
        assert bool(naming("exchange").search(caplog.text)) == (words == SWAPPED)


def test_chinese_and_japanese_swapped(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Two languages with letters in common, which cannot be told apart by them."""
    rows = [(f"这是红色的房子，号码 {number}", f"これは赤い家です、番号 {number}") for number in range(60)]
    path = write(tmp_path / "a.jsonl", rows)
    read(path, source_language="zho_Hans", target_language="jpn_Jpan")
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]
    read(path, source_language="ja", target_language="zh")
    require_words(caplog.text, "the source", "Han", "dataset.source_language = ja", "Kana", *SWAPPED)
