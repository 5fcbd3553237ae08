"""Columns of labels as people have them: read as the classes that they mean, or refused with the key that takes them all the same."""

from __future__ import annotations

import csv
import datetime
import json
import re
from dataclasses import dataclass, field
from decimal import Decimal
from pathlib import Path
from typing import Any

import datasets
import pyarrow
import pyarrow.parquet
import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser
from support.commands import naming, require_words

from kdcli.config.dataset import Dataset
from kdcli.data.dataset import Data, load
from kdcli.data.splits import SPLITS
from kdcli.errors import DataError, TeacherError
from kdcli.tasks.labels import in_order, order_of, override
from kdcli.tasks.rows import IGNORE

DOCS = Path(__file__).parents[3] / "docs" / "labels.md"
ROWS = 120
TEXTS = [f"text number {number}" for number in range(ROWS)]


def write(path: Path, values: list[Any], texts: list[str] = TEXTS) -> Path:
    """The values as the labels of texts: those of a short list again and again."""
    rows = [(text, values[number % len(values)]) for number, text in enumerate(texts)]
    if path.suffix == ".csv":
        with path.open("w", newline="", encoding="utf-8") as stream:
            csv.writer(stream).writerows([("text", "label"), *rows])
    elif path.suffix == ".parquet":
        columns = {"text": texts, "label": [value for _, value in rows]}
        pyarrow.parquet.write_table(pyarrow.table(columns), path)
    else:
        path.write_text("".join(json.dumps({"text": text, "label": value}) + "\n" for text, value in rows))
    return path


def read(path: Path, **options: Any) -> Data:
    return load(Dataset.model_validate({"path": str(path), "format": path.suffix[1:], **options}))


def labels_of(data: Data) -> dict[str, str | None]:
    """The name of each text's gold label; None: it has none."""
    return {
        row["text"]: None if row["label"] == IGNORE else data.labels[row["label"]]
        for split in SPLITS
        for row in data[split]
    }


@dataclass
class Read:
    """A column that is read.

    Attributes:
        values: its values, again and again.
        names: the names of the classes.
        means: the name of each value; None: no label.
        told: words of the log.
    """

    values: list[Any]
    names: list[str]
    means: list[str | None]
    suffix: str = "csv"
    options: dict[str, Any] = field(default_factory=dict)
    told: tuple[str, ...] = ()


NEARLY = [0, 1] * 19
READ = {
    "integers": Read([10, 2, 9], ["2", "9", "10"], ["10", "2", "9"]),
    "floats": Read(["10.0", "2.0", "9.0"], ["2", "9", "10"], ["10", "2", "9"]),
    "JSON numbers": Read([10.0, 2, "9"], ["2", "9", "10"], ["10", "2", "9"], "jsonl"),
    "parquet floats": Read([4.0, 5.0, None], ["4", "5"], ["4", "5", None], "parquet", told=("40 of 120", "train", "no gold label", "(empty: 40)")),
    "leading zeros": Read(["007", "010"], ["007", "010"], ["007", "010"]),
    "numbers beside names": Read(["spam", "10", "9"], ["9", "10", "spam"], ["spam", "10", "9"]),
    "booleans": Read([True, False], ["False", "True"], ["True", "False"]),
    "JSON booleans": Read([True, False], ["False", "True"], ["True", "False"], "jsonl"),
    "spreadsheet booleans": Read(["TRUE", "FALSE"], ["FALSE", "TRUE"], ["TRUE", "FALSE"]),
    "booleans in two spellings": Read(["True", "false", "true"], ["True", "false"], ["True", "false", "True"], told=("'True' and 'true'", "one label")),
    "booleans and 0/1": Read([True, 0, "1", "false"], ["False", "True"], ["True", "False", "True", "False"], "jsonl", told=("0 and 1", "False and True")),
    "-1 beside classes": Read([0, 1, 2, -1], ["0", "1", "2"], ["0", "1", "2", None], told=("30 of 120", "train", "no gold label", "('-1': 30)")),
    "-1 as a float": Read(["0.0", "1.0", "2.0", "-1.0"], ["0", "1", "2"], ["0", "1", "2", None], told=("dataset.bad_rows=drop",)),
    "rare -1 beside 0 and 1": Read([*NEARLY, -1, 1], ["0", "1"], [*map(str, NEARLY), None, "1"], told=("no gold label",)),
    "-1, 0 and 1": Read([-1, 0, 1], ["-1", "0", "1"], ["-1", "0", "1"], told=("-1, 0 and 1", "dataset.no_label=[-1]")),
    "-1 and 1": Read([-1, "+1"], ["-1", "1"], ["-1", "1"]),
    "-2 to 2": Read([-2, -1, 0, 1, 2], ["-2", "-1", "0", "1", "2"], ["-2", "-1", "0", "1", "2"]),
    "-1 that is given": Read([-1, 0, 1], ["0", "1"], [None, "0", "1"], options={"no_label": -1}, told=("no gold label",)),
    "- beside classes": Read(["entailment", "neutral", "-"], ["entailment", "neutral"], ["entailment", "neutral", None], told=("('-': 40)",)),
    "- and +": Read(["-", "+"], ["+", "-"], ["-", "+"]),
    "empty cells": Read(["good", "bad", ""], ["bad", "good"], ["good", "bad", None], told=("(empty: 40)",)),
    "null": Read(["good", "bad", None], ["bad", "good"], ["good", "bad", None], "jsonl", told=("40 of 120", "only the teacher")),
    "null, dropped": Read(["good", "bad", None], ["bad", "good"], ["good", "bad", "dropped"], "jsonl", {"bad_rows": "drop"}, ("40 of 120", "dropped")),
    "nan": Read(["good", "bad", "nan"], ["bad", "good"], ["good", "bad", None], told=("('nan': 40)",)),
    "NULL of a database": Read(["good", "bad", r"\N"], ["bad", "good"], ["good", "bad", None], told=(r"('\\N': 40)",)),
    "composed characters": Read(["ne\u0301gatif", "n\u00e9gatif", "positif"], ["n\u00e9gatif", "positif"], ["n\u00e9gatif", "n\u00e9gatif", "positif"]),
    "quotes around some names": Read(["good", "'good'", "bad"], ["'good'", "bad", "good"], ["good", "'good'", "bad"], told=("quotes", "good")),
    "NA of R": Read(["good", "bad", "NA"], ["bad", "good"], ["good", "bad", None], told=("('NA': 40)", "dataset.labels=[…]")),
    "NA as a class": Read(["EU", "NA"], ["EU", "NA"], ["EU", "NA"]),
    "NA that is named": Read(["EU", "AS", "NA"], ["AS", "EU", "NA"], ["EU", "AS", "NA"], options={"labels": ["AS", "EU", "NA"]}),
    "-100": Read([0, 1, -100], ["0", "1"], ["0", "1", None]),
    "a name for none": Read(["good", "bad", "skip"], ["bad", "good"], ["good", "bad", None], options={"no_label": "skip"}),
    "lists of one": Read([["good"], ["bad"], []], ["bad", "good"], ["good", "bad", None], "jsonl"),
    "one-hot lists of numpy": Read(["[0. 0. 1.]", "[1. 0. 0.]"], ["0", "2"], ["2", "0"]),
    "numbers of torch": Read(["tensor(1)", "tensor(0)"], ["0", "1"], ["1", "0"]),
    "lists of one, as text": Read(["['good']", '["bad"]'], ["bad", "good"], ["good", "bad"]),
    "sets and tuples of one, as text": Read(["{'good'}", "('bad',)", "set()", "frozenset({'good'})"], ["bad", "good"], ["good", "bad", None, "good"]),
    "parentheses around a name": Read(["(good)", "(1)"], ["(1)", "(good)"], ["(good)", "(1)"]),
    "one-hot lists": Read([[0, 0, 1], [1, 0, 0], [0, 1, 0]], ["0", "1", "2"], ["2", "0", "1"], "jsonl"),
    "decimals of a database": Read([Decimal("1.00"), Decimal("2.00")], ["1", "2"], ["1", "2"], "parquet"),
    "integers with a decimal comma": Read(["1,0", "2,0", ""], ["1", "2"], ["1", "2", None]),
    "characters without width": Read(["\u200bgood", "bad\ufeff", "good\u00a0"], ["bad", "good"], ["good", "bad", "good"]),
    "choices of Label Studio": Read(['{"choices": ["good"]}', '{"choices": ["bad"]}'], ["bad", "good"], ["good", "bad"]),
    "annotations of Label Studio": Read([[{"result": [{"value": {"choices": [name]}} for name in names]}] for names in (["good"], ["bad"], [])], ["bad", "good"], ["good", "bad", None], "jsonl"),
    "spellings with other signs": Read(["not spam", "not-spam", "spam"], ["not spam", "not-spam", "spam"], ["not spam", "not-spam", "spam"], told=("hyphens", "'not spam' | 'not-spam'")),
    "characters of full width": Read(["1", "１", "2"], ["1", "１", "2"], ["1", "１", "2"], told=("'1' | '１'",)),
    "an emoji with and without its variation": Read(["❤", "❤\ufe0f", "😡"], ["❤", "❤\ufe0f", "😡"], ["❤", "❤\ufe0f", "😡"], told=("'❤' | '❤\ufe0f'",)),
    "-999 beside classes": Read([0, 1, -999], ["-999", "0", "1"], ["0", "1", "-999"], told=("-999", "'label'", "'dataset.no_label=[-1,\"-\",-999]'")),
    "99 beside a short scale": Read([1, 2, 3, 4, 5, 99], ["1", "2", "3", "4", "5", "99"], ["1", "2", "3", "4", "5", "99"], told=("99", "'dataset.no_label=[-1,\"-\",99]'")),
    ". beside classes": Read(["pos", "neg", "."], [".", "neg", "pos"], ["pos", "neg", "."], told=("'dataset.no_label=[-1,\"-\",\".\"]'",)),
    "None beside classes": Read(["favor", "against", "None"], ["None", "against", "favor"], ["favor", "against", "None"], told=("'dataset.no_label=[-1,\"-\",None]'",)),
    "more than twenty numbers": Read(list(range(30)), [str(number) for number in range(30)], [str(number) for number in range(30)], told=("30 numbers", "0 to 29", "regression", "dataset.as_classes=true")),
    "exclusive categories, as text": Read(['{"good": 1, "bad": 0}', '{"good": 0, "bad": 1}'], ["bad", "good"], ["good", "bad"]),
    "exclusive categories": Read([{"good": 1.0, "bad": 0.0}, {"good": 0.0, "bad": 1.0}], ["bad", "good"], ["good", "bad"], "jsonl"),
    "names and their numbers": Read([0, 1], ["good", "bad"], ["good", "bad"], options={"labels": ["good", "bad"]}, told=("labels 0, 1", "good, bad", "dataset.labels")),
    "names and numbers from 1": Read([1, 2, 3, 4], ["World", "Sports", "Business", "Sci/Tech"], ["World", "Sports", "Business", "Sci/Tech"], options={"labels": ["World", "Sports", "Business", "Sci/Tech"]}, told=("labels 1, 2, 3, 4", "World, Sports", "dataset.labels")),
    "names for -1, 0 and 1": Read([-1, 0, 1], ["neg", "neu", "pos"], ["neg", "neu", "pos"], options={"labels": ["neg", "neu", "pos"]}),
    "names in another case": Read(["Good", "BAD", " good "], ["bad", "good"], ["good", "bad", "good"], options={"labels": ["bad", "good"]}),
    "given numbers, other format": Read(["1.0", "0.0"], ["1", "0"], ["1", "0"], options={"labels": [1, 0]}),
    "names with signs": Read(["Sci/Tech & more", 'he said "x" <b>ü</b>, 你好', "C++"], ["C++", "Sci/Tech & more", 'he said "x" <b>ü</b>, 你好'], ["Sci/Tech & more", 'he said "x" <b>ü</b>, 你好', "C++"]),
    "towns": Read(["Paris, France", "Lyon, France", "Bonn, Germany"], ["Bonn, Germany", "Lyon, France", "Paris, France"], ["Paris, France", "Lyon, France", "Bonn, Germany"]),
    "names of several words": Read(["very good", "good", "bad", "very bad"], ["bad", "good", "very bad", "very good"], ["very good", "good", "bad", "very bad"]),
    "relations": Read(["Cause-Effect(e1,e2)", "Cause-Effect(e2,e1)", "Other"], ["Cause-Effect(e1,e2)", "Cause-Effect(e2,e1)", "Other"], ["Cause-Effect(e1,e2)", "Cause-Effect(e2,e1)", "Other"]),
    "two rows of each of sixty names": Read([f"intent {number}" for number in range(60)], sorted(f"intent {number}" for number in range(60)), [f"intent {number}" for number in range(60)]),
    "a hierarchy": Read(["Tech|Phones", "Tech|Cables", "Home|Kitchen"], ["Home|Kitchen", "Tech|Cables", "Tech|Phones"], ["Tech|Phones", "Tech|Cables", "Home|Kitchen"]),
    "scores, taken as classes": Read(["0.50", "1.25", "2.0"], ["0.5", "1.25", "2"], ["0.5", "1.25", "2"], options={"as_classes": True}),
    "several labels, taken as classes": Read([["film", "good"], ["bad"], ["good", "film"]], ["bad", "film|good"], ["film|good", "bad", "film|good"], "jsonl", {"as_classes": True}),
}  # fmt: skip


@pytest.mark.parametrize("case", READ)
def test_what_is_read(tmp_path: Path, caplog: pytest.LogCaptureFixture, case: str) -> None:
    """A class that nobody meant, two classes for one label, or labels in the order of their characters, without a word."""
    own = READ[case]
    with caplog.at_level("INFO"):
        data = read(write(tmp_path / f"a.{own.suffix}", own.values), **own.options)
    assert data.labels == own.names
    found = labels_of(data)
    for number, text in enumerate(TEXTS):
        assert found.get(text, "dropped") == own.means[number % len(own.means)], text
    require_words(caplog.text, *own.told)
    for split in "validation", "test":
        assert IGNORE not in data[split]["label"][:]


def test_a_label_that_train_lacks_is_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A class that nothing is learned of, in silence: all its test rows are wrong."""
    test = write(tmp_path / "test.csv", ["good", "bad", "ugly"], ["one", "two", "three"])
    read(write(tmp_path / "a.csv", ["good", "bad"]), test=str(test))
    require_words(caplog.text, "train", "labels ugly", "test")


def test_answers_of_prodigy(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """The label that an annotator rejected is learned as a gold label, or a column of other answers makes rows unreadable."""
    path = tmp_path / "a.jsonl"
    answers = ["accept", "reject", "ignore", "Paris"]
    rows = [
        {"text": text, "label": ["good", "bad"][number % 2 == number % 8 // 4], "answer": answers[number % 4]}
        for number, text in enumerate(TEXTS)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    kept = {row["text"]: row["label"] for row in rows if row["answer"] not in ("reject", "ignore")}
    assert labels_of(read(path)) == kept
    require_words(caplog.text, f"{len(TEXTS) // 2} rows", "answer", "reject or ignore", "dropped")


@dataclass
class Refused:
    """A column that is refused.

    Attributes:
        words: words of the message.
        remedy: the key that it names.
        accepted: the options that take it all the same; None: none do.
    """

    values: list[Any]
    words: tuple[str, ...]
    remedy: str = "dataset.as_classes=true"
    suffix: str = "csv"
    options: dict[str, Any] = field(default_factory=dict)
    accepted: dict[str, Any] | None = field(default_factory=lambda: {"as_classes": True})


REFUSED = {
    "scores": Refused([f"{number / 20:.2f}" for number in range(100)], ("'label'", "a score", "100 different values", "regression")),
    "half points": Refused([1.0, 1.5, 2.0, 2.5], ("a score", "4 different values", "regression")),
    "scores with a decimal comma": Refused(["0,5", "1,25", "3"], ("a score", "decimal comma", "regression")),
    "numbers with a comma before the thousands": Refused(["1,000", "2,000", "500"], ("3 different values", "a comma", "thousands", "'label'")),
    "numbers with a blank before the thousands": Refused(["1 000", "12\u202f500", "500"], ("3 different values", "a blank", "thousands")),
    "numbers with dots before the thousands": Refused(["1.234.567", "1.234,50", "500"], ("3 different values", "a dot", "thousands")),
    "dates": Refused(["2024-01-05", "2024-02-05T10:30:00Z", "2024-03-01 08:15"], ("dates or times", "3 different values"), "dataset.label="),
    "dates, the day first": Refused(["05/01/2024", "31.12.2023", "05/01/2024 10:30"], ("dates or times", "3 different values"), "dataset.label="),
    "dates with two digits of the year": Refused(["1/3/24", "31/12/23", "05.01.24"], ("dates or times", "3 different values"), "dataset.label="),
    "dates with the name of the month": Refused(["1 Jan 2024", "Mon, 12 Feb 2024 10:30:00", "March 3, 2024"], ("dates or times", "3 different values"), "dataset.label="),
    "dates of parquet": Refused([datetime.date(2024, 1, 5), datetime.date(2024, 2, 5)], ("dates or times", "2024-01-05"), "dataset.label=", "parquet"),
    "times": Refused(["10:30", "08:15:20"], ("dates or times", "2 different values"), "dataset.label="),
    "whole numbers, most once": Refused([number**2 for number in range(100)], ("a score, a count", "an identifier", "dataset.label=")),
    "labels joined by a bar": Refused(["good|film", "bad", "bad|film|song", "good", "bad|song"], ("several labels", "'|'", "72 of 120", "'good|film'")),
    "labels joined by a comma": Refused(["good", "bad", "good, bad"], ("several labels", "','")),
    "labels joined by ;": Refused(["a;b", "b;a", "a", "b;c"], ("several labels", "';'")),
    "numbers joined": Refused(["1,2", "1,2,3", "3"], ("several labels", "','")),
    "labels joined by #": Refused(["good#film", "bad", "bad#song", "good"], ("several labels", "'#'")),
    "labels joined by a space": Refused(["cs.CL", "cs.LG cs.CL", "stat.ML cs.LG", "cs.LG", "cs.CL cs.LG stat.ML"], ("several labels", "joined by ' '")),
    "labels joined by &": Refused(["joy", "fear", "joy & fear"], ("several labels", "'&'")),
    "lists": Refused([["good", "film"], ["bad"]], ("60 of 120", "a list", "['good', 'film']", "multi-label"), suffix="jsonl"),
    "votes in a list": Refused([["good", "good", "bad"], ["bad", "bad", "bad"]], ("60 of 120", "a list", "dataset.as_classes=true"), "dataset.duplicates=soft", "jsonl"),
    "lists as text": Refused(["['good', 'film']", "['bad']"], ("a list", "['good', 'film']", "multi-label")),
    "sets as text": Refused(["{'good', 'film'}", "{'bad'}", "frozenset({'film', 'bad'})"], ("80 of 120", "a list", "['film', 'good']", "multi-label")),
    "tuples as text": Refused(["('good', 'film')", "('bad',)"], ("60 of 120", "a list", "['good', 'film']", "multi-label")),
    "scores of numpy": Refused(["[0.1 0.9]", "[0.75 0.25]"], ("120 of 120", "['0.1', '0.9']", "scores")),
    "scores of torch": Refused(["tensor([0.1000, 0.9000])", "tensor([0.7500, 0.2500])"], ("['0.1', '0.9']", "scores")),
    "lists of scores": Refused([[0.1, 0.9], [0.75, 0.25]], ("['0.1', '0.9']", "scores"), suffix="jsonl"),
    "multi-hot lists": Refused([[1, 0, 1], [0, 1, 0]], ("a list", "multi-label"), suffix="jsonl"),
    "free text": Refused([f"what {text} says" for text in TEXTS], ("free text", "dataset.label=")),
    "identifiers": Refused([f"id-{number:05d}" for number in range(ROWS)], ("an identifier", "dataset.label=")),
    "percentages": Refused([f"{number}%" for number in range(60)], ("a score", "60 different values", "regression")),
    "several choices of Label Studio": Refused(['{"choices": ["good", "film"]}', "bad"], ("a list", "['good', 'film']", "multi-label")),
    "a prediction": Refused([{"label": "good", "score": 0.9}], ("line 1", "{'label': 'good', 'score': 0.9}"), "dataset.label=COLUMN.KEY", "jsonl", accepted=None),
    "a list of mappings with a name of lists of spans": Refused([[{"result": "good"}], [{"result": "bad"}]], ("line 1", "{'result': 'good'}"), "dataset.label=COLUMN.0.result", "jsonl", accepted={"label": "label.0.result"}),
    "a mapping of scores": Refused([{"good": 0.4, "bad": 0.6}], ("line 1", "{'good': 0.4, 'bad': 0.6}", "scores"), "dataset.duplicates=soft", "jsonl", accepted=None),
    "a mapping of scores, as text": Refused(["{'good': 3, 'bad': 2}"], ("line 2", "{'good': 3, 'bad': 2}", "scores"), "dataset.duplicates=soft", accepted=None),
    "no labels at all": Refused([None], ("120 rows", "train", "gold label"), "dataset.unlabelled=", "jsonl", accepted=None),
    "one label": Refused(["good", ""], ("all training rows", "label 'good'", "dataset.label"), "", accepted=None),
    "a label that is not given": Refused(["good", "bad", "meh"], ("label 'meh'", "bad, good", "dataset.labels"), "dataset.no_label", options={"labels": ["bad", "good"]}, accepted={"bad_rows": "drop"}),
    "a text as a label": Refused(["x" * 2000, "good"], ("2,000 characters",), "dataset.label", accepted=None),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_what_is_refused(tmp_path: Path, case: str) -> None:
    """A classifier of 261 scores, or of 16 combinations of four labels; and no word of the key that would take them."""
    own = REFUSED[case]
    path = write(tmp_path / f"a.{own.suffix}", own.values)
    with pytest.raises(DataError) as caught:
        read(path, **own.options)
    require_words(caught.value.message, *own.words)
    assert own.remedy in caught.value.message
    if own.accepted is not None:
        assert len(read(path, **own.options | own.accepted).labels) > 1


@pytest.mark.parametrize("values", [[-9, -8, 0, 8], [0, 50, 99], ["1.2.10", "1.3.10", "2.1.0"]])
def test_values_of_a_scale_are_no_codes(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, values: list[Any]
) -> None:
    """A warning of each scale that has a 9, and a refusal of numbers of versions as dates."""
    assert len(read(write(tmp_path / "a.csv", values)).labels) == len(values)
    assert "no_label" not in caplog.text


def test_labels_joined_by_a_word(tmp_path: Path) -> None:
    """Three classes of which one is two of them; or a name with "and" that is taken for two labels."""
    with pytest.raises(DataError, match=naming("several labels", "' and '", "'joy and fear'")):
        read(write(tmp_path / "a.csv", ["joy", "fear", "joy and fear"]))
    names = ["bed and breakfast", "hostel", "hotel"]
    assert read(write(tmp_path / "b.csv", names)).labels == names


@dataclass
class Files:
    """Training rows and test rows in files of their own; `words` of the refusal or the gold labels of the test rows."""

    train: list[Any]
    test: list[Any]
    gold: list[str | None] = field(default_factory=list)
    words: tuple[str, ...] = ()
    remedy: str = ""
    suffix: str = "jsonl"
    options: dict[str, Any] = field(default_factory=dict)


FILES = {
    "floats in train, integers in test": Files(["4.0", "5.0"], [5, 4], ["5", "4"]),
    "csv and JSON booleans": Files(["True", "False"], [True, False], ["True", "False"]),
    "booleans in another case": Files(["true", "false"], [True, False], ["true", "false"]),
    "booleans, then 0/1": Files(["True", "False"], [1, 0], ["True", "False"]),
    "labels in another case": Files(["Good", "Bad"], ["good", "BAD"], ["Good", "Bad"]),
    "some test rows without a label": Files(["good", "bad"], ["good", None, "bad"], ["good", "dropped", "bad"]),
    "-1 in test alone": Files([0, 1], [0, -1, 1, -1], ["0", "dropped", "1", "dropped"]),
    "no test row has a label": Files([0, 1], [-1], words=("20 rows", "test", "gold label"), remedy="dataset.test="),
    "numbers in test, names in train": Files(["bad", "good"], [0, 1], words=("labels of test", "(0, 1)", "train (bad, good)"), remedy="dataset.labels=[bad,good]"),
    "names in test, numbers in train": Files([0, 1], ["bad", "good"], words=("labels of test", "(bad, good)", "train (0, 1)"), remedy="dataset.labels=[bad,good]"),
    "numbers in test, named": Files(["bad", "good"], [0, 1], ["bad", "good"], options={"labels": ["bad", "good"]}),
    "other names in test": Files(["neg", "pos"], ["negative", "positive"], words=("labels of test", "(negative, positive)", "train (neg, pos)"), remedy="dataset.labels=[…]"),
}  # fmt: skip


@pytest.mark.parametrize("case", FILES)
def test_labels_of_two_files(tmp_path: Path, case: str) -> None:
    """The same label counted as two, because one file was written by pandas; a test split that nothing can be right on."""
    own = FILES[case]
    train = write(tmp_path / "train.csv", own.train)
    texts = [f"a test of number {number}" for number in range(20)]
    test = write(tmp_path / f"test.{own.suffix}", own.test, texts)
    rows = [json.loads(line) for line in test.read_text().splitlines()]
    both = tmp_path / "train.jsonl"
    both.write_text(
        "".join(
            json.dumps(dict(zip(("text", "label"), row, strict=True))) + "\n"
            for row in list(csv.reader(train.open()))[1:]
        )
    )
    options = {"test": str(test), **own.options}
    if own.words:
        with pytest.raises(DataError) as caught:
            read(both, **options)
        require_words(caught.value.message, *own.words)
        assert own.remedy in caught.value.message
        return
    data = read(both, **options)
    assert len(data.labels) == 2
    found = {row["text"]: data.labels[row["label"]] for row in data["test"]}
    for number, row in enumerate(rows):
        assert found.get(row["text"], "dropped") == own.gold[number % len(own.gold)]


def test_rows_of_the_hub_without_a_label(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """-1, which SNLI has where its annotators do not agree, ends the run or becomes the last class."""
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("kdcli.data.hub.snapshot", lambda *_, **__: (tmp_path / "hub", "c0ffee"))
    names = datasets.ClassLabel(names=["entailment", "neutral", "contradiction"])
    features = datasets.Features({"text": datasets.Value("string"), "label": names})
    (tmp_path / "hub" / "data").mkdir(parents=True)
    for split, texts in (("train", TEXTS), ("test", [f"a test of number {number}" for number in range(20)])):
        columns = {"text": texts, "label": [[0, 1, 2, -1][number % 4] for number in range(len(texts))]}
        table = datasets.Dataset.from_dict(columns, features=features)
        table.to_parquet(tmp_path / "hub" / "data" / f"{split}-00000-of-00001.parquet")
    data = load(Dataset(path="some/name", format="hub", test="test"))
    assert data.labels == names.names
    assert len(data.gold) == len(data["train"]) - 30
    assert len(data["test"]) == 15
    require_words(caplog.text, "30 of 120 rows of train", "empty: 30", "dataset.bad_rows=drop")
    require_words(caplog.text, "5 of 20 rows of test", "empty: 5", "dropped")


# ---- several annotators ------------------------------------------------------------------------------


def crowd(path: Path, votes: list[list[str]]) -> Path:
    """Each text with the labels of its annotators, a row each; the lists again and again."""
    with path.open("w", newline="", encoding="utf-8") as stream:
        writer = csv.writer(stream)
        writer.writerow(("text", "label"))
        for number, text in enumerate(TEXTS):
            writer.writerows((text, label) for label in votes[number % len(votes)])
    return path


VOTES = [["bad", "good", "good"], ["bad", "bad", "bad"], ["good", "good", "bad"], ["bad", "good"]]


def test_the_label_of_most_annotators(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """The first of five annotators is believed, and the four others are duplicates."""
    path = crowd(tmp_path / "a.csv", VOTES)
    data = read(path)
    found = labels_of(data)
    for number, text in enumerate(TEXTS):
        assert found.get(text) == ["good", "bad", "good", None][number % 4]
    warnings = [record.message for record in caplog.records if record.levelname == "WARNING"]
    require_words(" ".join(warnings), "90 of 120 texts", "30 have none", "dataset.duplicates=soft")
    assert all(IGNORE not in data[split]["label"][:] for split in ("validation", "test"))
    assert len(read(path, bad_rows="drop")["train"]) == len(data["train"]) - 30


def test_annotators_as_soft_gold(tmp_path: Path) -> None:
    """A share that is lost where two agree, or that reaches validation and test, whose score is of the majority."""
    data = read(crowd(tmp_path / "a.csv", VOTES), duplicates="soft")
    votes = {row["text"]: row["votes"] for split in SPLITS for row in data[split]}
    assert [votes[text] for text in TEXTS[:4]] == [[0, 1, 1], [0, 0, 0], [0, 1, 1], [0, 1]]
    assert set(data["train"]["label"][:]) == {0, 1}
    tied = set(TEXTS[3::4])
    assert tied <= set(data["train"]["text"])
    hidden = read(tmp_path / "a.csv", duplicates="soft", labelled=10)["train"]
    assert hidden["votes"][10:] == [[]] * (len(hidden) - 10)


def test_one_conflict_is_no_warning(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A warning for a single slip among thousands of rows is one that nobody reads."""
    path = write(tmp_path / "a.csv", ["good", "bad"])
    path.write_text(path.read_text() + f"{TEXTS[0]},bad\n")
    with caplog.at_level("INFO"):
        read(path)
    require_words(caplog.text, "1 of 120 texts")
    assert not [record for record in caplog.records if record.levelname == "WARNING"]


# ---- splits ------------------------------------------------------------------------------------------


def test_rare_labels_are_in_every_split(tmp_path: Path) -> None:
    """A validation split of one label, on which a perfect teacher is no better than chance."""
    texts = [f"text number {number}" for number in range(618)]
    values = ["bad"] * 103
    values[50] = values[51] = values[52] = "good"
    data = read(write(tmp_path / "a.csv", values, texts))
    for split in SPLITS:
        assert set(data[split]["label"][:]) == {0, 1}, split
    assert 45 <= len(data["validation"]) <= 80


# ---- labels of a model -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("own", "data", "order"),
    [
        (["0", "1", "2"], ["0", "1", "2"], [0, 1, 2]),
        (["2.0", "10.0"], ["2", "10"], [0, 1]),
        ([f"LABEL_{number}" for number in range(12)], [str(number) for number in range(12)], [*range(12)]),
        (["LABEL_1", "LABEL_0"], ["LABEL_0", "LABEL_1"], [1, 0]),
        (["True", "False"], ["false", "true"], [1, 0]),
        (["0", "1"], ["bad", "good"], [0, 1]),
        (["very  good", "BAD"], ["bad", "very good"], [1, 0]),
        (["SPAM", "NOT-SPAM"], ["not_spam", "spam"], [1, 0]),
        (["1", "-1"], ["-1", "1"], [1, 0]),
    ],
)
def test_labels_match_in_any_format(own: list[str], data: list[str], order: list[int]) -> None:
    """A teacher of 97 % that is right about no row, because pandas wrote 4.0."""
    assert order_of(own, data, "the model") == order


@pytest.mark.parametrize(
    ("own", "data", "remedy"),
    [
        (["a", "b", "c"], ["a", "b"], "dataset.labels=[a,b,c]"),
        (["Sci/Tech & more", "b", "it's"], ["b", "it's"], "dataset.labels=["),
        (["World", "Sports", "Business", "Sci/Tech"], ["1", "2", "3", "4"], "'dataset.labels=[World,Sports,Business,\"Sci/Tech\"]'"),
        (["negative", "positive"], ["0", "1"], "dataset.labels=[negative,positive]"),
        (["LABEL_0", "LABEL_1", "LABEL_2"], ["0", "2"], "dataset.labels=[0,1,2]"),
        (["LABEL_0", "LABEL_1", "LABEL_2"], ["bad", "good"], "dataset.labels=[…]"),
        (["bad", "good"], ["bad", "good", "meh"], "'dataset.no_label=[-1,\"-\",meh]' dataset.bad_rows=drop"),
        (["0", "1"], ["-1", "0", "1"], "dataset.no_label=[-1] dataset.bad_rows=drop"),
        (["neg", "pos"], ["ham", "spam"], "teacher.tune=true"),
        (["False", "True"], ["0", "1"], "'dataset.labels=[\"False\",\"True\"]'"),
    ],
)  # fmt: skip
def test_what_to_do_about_other_labels(own: list[str], data: list[str], remedy: str) -> None:
    """ "Use a model of this task", where one override would do."""
    with pytest.raises(TeacherError) as caught:
        order_of(own, data, "the model")
    assert remedy in caught.value.message
    assert "teacher.tune=true" in caught.value.message


def test_labels_that_are_one_for_the_model() -> None:
    """Two labels of the data that are taught by the same logits."""
    with pytest.raises(TeacherError, match=naming("the model", "a-b, a_b", "dataset.labels=[…]")):
        order_of(["a b", "c"], ["a-b", "a_b"], "the model")


@pytest.mark.parametrize(
    "names",
    [["bad", "good"], ["Sci/Tech & more", 'he said "x" <b>ü</b>, 你好'], ["true", "null", "1.0", "07"], ["a\\", "it's", 'b\\"'], ["-1", "-", "x y", "é"]],
)  # fmt: skip
def test_overrides_can_be_pasted(names: list[str]) -> None:
    """A remedy that the shell or Hydra cuts into other words."""
    import shlex

    (word,) = shlex.split(override("dataset.labels", names))
    value = OverridesParser.create().parse_override(word).value()
    assert Dataset(path="a.csv", labels=value).labels == [str(each) for each in names]


def test_the_order_of_labels() -> None:
    """10 before 2, or names between numbers."""
    assert in_order({"10", "9", "-1", "2.5", "b", "a", "007"}) == ["-1", "2.5", "007", "9", "10", "a", "b"]


# ---- the documentation -------------------------------------------------------------------------------


def test_the_documentation_has_every_case() -> None:
    """A table of what is read that says what no test holds, or is silent about what one does."""
    rows = documented()
    assert sorted(rows) == sorted([*READ, *REFUSED, *FILES])


def documented() -> dict[str, tuple[str, list[str]]]:
    """The section and the cells of each row of the page's tables; `the same` stands for the cell above."""
    rows: dict[str, tuple[str, list[str]]] = {}
    section, above = "", [""]
    for line in DOCS.read_text(encoding="utf-8").splitlines():
        section = line.removeprefix("## ") if line.startswith("## ") else section
        if match := re.match(r"\| `([^`]+)` \|(.*)\|$", line):
            cells = [cell.strip() for cell in re.split(r"(?<!\\)\|", match[2])]
            if cells[-1].startswith("the same"):
                cells[-1] = above[-1] + cells[-1].removeprefix("the same")
            rows[match[1]] = section, cells
            above = cells
    return rows


NO_CLASSES = "Columns that hold no classes"
"""The section of what is refused."""


@pytest.mark.parametrize("case", [*READ, *REFUSED, *FILES])
def test_the_documentation_says_what_becomes_of_a_case(case: str) -> None:
    """A page that promises classes for a column which is refused, or a remedy that the message does not name."""
    section, cells = documented()[case]
    own = REFUSED.get(case) or FILES.get(case)
    is_read = own is None or (isinstance(own, Files) and not own.words)
    if case in FILES:
        assert cells[-1].startswith("refused") == (not is_read)
    elif section == NO_CLASSES:
        assert cells[-1].startswith("read as") == is_read
    else:
        assert is_read
    for key in re.findall(r"dataset\.[a-z_]+", own.remedy if own and not is_read else ""):
        assert key in cells[-1]
