"""Schemes of tags: entities are those of seqeval, whatever the tags are called."""

from __future__ import annotations

import importlib.util
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from seqeval.metrics import f1_score, precision_score, recall_score
from seqeval.metrics.sequence_labeling import get_entities
from support.commands import naming, require_words
from support.pages import table
from support.tiny import bert
from transformers import BertForTokenClassification

from kdcli.config.dataset import Dataset
from kdcli.errors import DataError, TeacherError
from kdcli.exporting import snippets
from kdcli.tasks.base import Predictions
from kdcli.tasks.labels import order_of
from kdcli.tasks.rows import RawSplit
from kdcli.tasks.token_classification.presentation import PRESENTATION
from kdcli.tasks.token_classification.rows import TokenClassificationRows
from kdcli.tasks.token_classification.scheme import scheme_of
from kdcli.tasks.token_classification.task import TokenClassification

TYPES = ("PER", "GENE-X")
STYLES: dict[str, tuple[Sequence[str], str, str]] = {
    # letters, a tag, the tag of no entity
    "IOB2": ("BI", "{letter}-{type}", "O"),
    "IOB1": ("BI", "{letter}-{type}", "O"),
    "IOE": ("IE", "{letter}-{type}", "O"),
    "BIOES (IOBES)": ("BIES", "{letter}-{type}", "O"),
    "BILOU": ("BILU", "{letter}-{type}", "O"),
    "BMES": ("BMES", "{letter}-{type}", "O"),
    "BMEWO": ("BMEW", "{letter}-{type}", "O"),
    "suffixes": ("BIES", "{type}-{letter}", "O"),
    "underscores": ("BI", "{letter}_{type}", "O"),
    "suffixes with underscores": ("BI", "{type}_{letter}", "O"),
    "points, colons, strokes": ("BI", "{letter}:{type}", "O"),
    "nothing between letter and type": ("BIES", "{letter}{type}", "O"),
    "letters spelled out": (("begin", "inside", "end"), "{letter}_{type}", "O"),
    "brackets around all tags": ("BI", "<{letter}-{type}>", "<O>"),
    "lower case": ("bi", "{letter}-{type}", "o"),
    "NONE, OUT, 0, _ and the like for O": ("BIES", "{letter}-{type}", "NONE"),
    "any other single tag without a prefix for O": ("BI", "{letter}-{type}", "Rest"),
}
STANDARD = {"B": "B", "I": "I", "M": "I", "E": "E", "L": "E", "S": "S", "U": "S", "W": "S", "BEGIN": "B", "INSIDE": "I", "END": "E"}  # fmt: skip


def tags_of(letters: Sequence[str], form: str, outside: str) -> dict[str, str]:
    """All tags of a style, and what seqeval calls them."""
    tags = {
        form.format(letter=letter, type=kind): f"{STANDARD[letter.upper()]}-{kind}"
        for letter in letters
        for kind in TYPES
    }
    return tags | {outside: "O"}


@pytest.mark.parametrize("name", STYLES)
def test_scores_are_those_of_seqeval(name: str) -> None:
    """A scheme that is not understood: types such as M-PER, entities of single words, or O counted as an entity."""
    letters, form, outside = STYLES[name]
    names = tags_of(letters, form, outside)
    labels = sorted(names)
    chance = random.Random(0)
    gold = [[chance.choice([outside, *labels]) for _ in range(chance.randint(1, 12))] for _ in range(200)]
    predicted = [[tag if chance.random() < 0.7 else chance.choice(labels) for tag in row] for row in gold]
    indices = {label: index for index, label in enumerate(labels)}
    logits = np.eye(len(labels), dtype=np.float32)[[indices[tag] for row in predicted for tag in row]]
    task = TokenClassification(labels)
    scores = task.scores(
        Predictions(
            {"logits": logits},
            np.asarray([indices[tag] for row in gold for tag in row]),
            np.asarray(list(map(len, gold))),
        )
    )
    y_true, y_pred = ([[names[tag] for tag in row] for row in rows] for rows in (gold, predicted))
    assert scores["f1"] == pytest.approx(f1_score(y_true, y_pred))
    assert scores["precision"] == pytest.approx(precision_score(y_true, y_pred))
    assert scores["recall"] == pytest.approx(recall_score(y_true, y_pred))
    assert set(scores["entities"]) == set(TYPES)
    assert task.scheme.outside == [outside]


@pytest.mark.parametrize(
    ("tags", "outside", "expected", "none"),
    [
        ("PER LOC O", (), ["LOC", "PER"], ["O"]),
        ("PER LOC OTHER", (), ["LOC", "PER"], ["OTHER"]),
        ("PER LOC OTHER O", (), ["LOC", "OTHER", "PER"], ["O"]),
        ("PER LOC rest", ("rest",), ["LOC", "PER"], ["rest"]),
        ("NOUN VERB ADJ", (), ["ADJ", "NOUN", "VERB"], []),
        ("B I O", (), ["entity"], ["O"]),
        ("B M E S", (), ["entity"], []),
        ("B-PER I-PER O o 0", (), ["PER"], ["O", "o", "0"]),
        ("B-PER I-PER O X [CLS]", (), ["PER", "X", "[CLS]"], ["O"]),
        ("B-PER I-PER O X [CLS]", ("O", "X", "[CLS]"), ["PER"], ["O", "X", "[CLS]"]),
        ("BED ITEM O", (), ["BED", "ITEM"], ["O"]),
        ("BPER IPER BLOC O", (), ["BLOC", "BPER", "IPER"], ["O"]),
        ("T-cell B-cell O", (), ["B-cell", "T-cell"], ["O"]),
        ("start_time end_time O", (), ["end_time", "start_time"], ["O"]),
        ("B-S I-S E-S S-S O", (), ["S"], ["O"]),
        ("S-B S-I O", (), ["S"], ["O"]),
        ("B-VIT-B I-VIT-B O", (), ["VIT-B"], ["O"]),
        ("BEGIN IN LAST UNIT OUT", (), ["entity"], ["OUT"]),
        ("PER-start PER-cont LOC-start O", (), ["LOC", "PER"], ["O"]),
        ("begin_date end_date inside O", (), ["begin_date", "end_date", "inside"], ["O"]),
        ("[PER] [O]", (), ["PER"], ["[O]"]),
        ("I-PER I-LOC O", (), ["LOC", "PER"], ["O"]),
        ("B-PER O", (), ["PER"], ["O"]),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_types_are_found_by_the_names_of_tags(
    tags: str, outside: tuple[str, ...], expected: list[str], none: list[str]
) -> None:
    """A type with a letter and a hyphen that is taken for a prefix; a class for no entity that is taken for a type."""
    scheme = scheme_of(tags.split(), outside)
    assert scheme.types == expected
    assert scheme.outside == none
    assert scheme_of(tags.split(), scheme.outside) == scheme, "what a report records gives the same scheme"


def test_a_teacher_that_writes_tags_in_another_way() -> None:
    """A tagger that is refused for its underscores; classes that are taken for tags."""
    own = ["O", "B-PER", "I-PER", "B-LOC", "I-LOC"]
    data = ["LOC_B", "LOC_M", "NONE", "PER_B", "PER_M"]
    assert order_of(own, data, "teacher") == [3, 4, 0, 1, 2]
    for names, labels, unknown in (
        (own, [*data[:4], "PER_E"], "'LOC_B'"),
        (["none", "spam"], ["other", "spam"], "'other'"),
    ):
        with pytest.raises(TeacherError, match=naming("teacher", "not know", unknown, names[-1])):
            order_of(names, labels, "teacher")


def declared(rows: list[list[str]], **keys: Any) -> TokenClassificationRows:
    """The schema after it has read rows of tags."""
    schema = TokenClassificationRows(Dataset(path="a.jsonl", format="jsonl", words="w", tags="t", **keys))
    values = [schema.check((["x"] * len(tags), tags), "a") for tags in rows]
    schema.declare({"train": [RawSplit("a.jsonl", values)]})
    return schema


def test_what_is_no_scheme_is_said(caplog: pytest.LogCaptureFixture) -> None:
    """Parts of speech, a tag of no entity with a name of its own, or a misspelt tag: figures about other entities, in silence."""
    caplog.set_level("INFO")
    declared([["B_PER", "I_PER", "o"]])
    require_words(caplog.text, "a.jsonl", "prefixes B, I", "PER", "outside: o")
    declared([["NOUN", "VERB", "NOUN"]])
    require_words(caplog.text, "NOUN, VERB", "dataset.outside=NOUN")
    declared([["B-PER", "I-PER", "O", "PRE"]])
    require_words(caplog.text, "PRE", "(B, I)", "'dataset.outside=[O,PRE]'")
    declared([["B-PER|B-ORG", "I-PER", "O"]])
    require_words(caplog.text, "PER|B-ORG", "several tags")
    for joined in ("B-ORG|O", "I-ORG;O"):
        declared([[joined, "B-PER", "I-PER", "O"]])
        require_words(caplog.text, joined[2:], "several tags")
    declared([["B-PER", "I-PER", "B-LOC"]])
    require_words(caplog.text, "LOC, PER", "every word", "write O")
    caplog.clear()
    declared([["B", "M", "E", "S"]])
    assert not [record for record in caplog.records if record.levelname == "WARNING"], "segmented words"
    declared([["B-PER", "B-LOC", "O", "PRE"]])
    require_words(caplog.text, "(B-LOC, B-PER)", "(PRE)", "'dataset.outside=[O,PRE]'")
    with pytest.raises(DataError, match=naming("BAR, FOO", "dataset.outside=FOO")):
        declared([["B-PER", "I-PER", "FOO", "FOO", "BAR"]])
    declared([["B-PER", "I-PER", "FOO", "FOO", "BAR"]], outside=["FOO", "BAR"])
    with pytest.raises(DataError, match=naming("dataset.outside", "'OO'", "O?")):
        declared([["B-PER", "I-PER", "O"]], outside="OO")


@pytest.mark.parametrize(
    ("tags", "parts"),
    [
        ("BEG-PER INS-PER BEG-ORG INS-ORG O", "BEG, INS with ORG, PER"),
        ("F-PER C-PER F-ORG C-ORG F-LOC O", "C, F"),
        ("PER_1st PER_next ORG_1st ORG_next LOC_1st O", "1st, next"),
        ("person-actor person-other product-car product-other event-other event-war O", ""),
        ("T-cell B-cell O", ""),
        ("PER LOC ORG O", ""),
    ],
)
def test_unknown_letters_are_a_warning(tags: str, parts: str, caplog: pytest.LogCaptureFixture) -> None:
    """Entities of two words that count as two entities of the types BEG-PER and INS-PER, with no more than a line of what was decided."""
    declared([tags.split()])
    warnings = " ".join(record.getMessage() for record in caplog.records if record.levelname == "WARNING")
    require_words(warnings, *([parts, "B-PER, I-PER"] if parts else []))
    assert ("combine" in warnings) == bool(parts)


def test_the_page_lists_these_schemes() -> None:
    """A page that promises a scheme which no test scores."""
    rows = table("tags.md", "Schemes of tags")
    assert rows.keys() == {*STYLES, "types alone", "letters alone", "integers"}
    for name, (letters, form, outside) in STYLES.items():
        tags = [tag.strip("`") for tag in rows[name].split(" ") if tag.startswith("`")]
        scheme = scheme_of(tags)
        assert scheme.outside == [outside], name
        assert {tag for tag in tags if tag != outside} <= {
            form.format(letter=letter, type="PER") for letter in letters
        }, name
    assert scheme_of(["PER", "LOC", "O"]).form == "types"
    assert scheme_of(["B", "I", "O"]).types == ["entity"]


# ---- what users run ------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["IOB2", "BIOES (IOBES)", "suffixes", "lower case"])
def test_scripts_group_words_as_the_scores_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """A script beside an exported model that groups the words of IOB2 alone."""
    letters, form, outside = STYLES[name]
    names = tags_of(letters, form, outside)
    task = TokenClassification(sorted(names))
    snippets._fill(
        snippets.HERE / "student_token_classification.py",
        tmp_path / "student.py",
        "token_classification",
        {"PARTS": dict(task.scheme.parts)},
    )
    text = (
        (tmp_path / "student.py")
        .read_text()
        .replace("from row import HERE, LABELS, Row", "Row = object; HERE = None")
    )
    (tmp_path / "student.py").write_text(text)
    spec = importlib.util.spec_from_file_location("student", tmp_path / "student.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    chance = random.Random(1)
    for _ in range(50):
        tags = chance.choices(task.labels, k=chance.randint(1, 9))
        words = [f"w{number}" for number in range(len(tags))]
        expected = [
            (kind, " ".join(words[first : last + 1]))
            for kind, first, last in get_entities([names[tag] for tag in tags])
        ]
        assert module.entities(list(zip(tags, words, strict=True))) == expected


@pytest.mark.parametrize(
    "name", ["IOB2", "BMES", "suffixes with underscores", "NONE, OUT, 0, _ and the like for O"]
)
def test_the_code_of_the_card_groups_words(tokenizer, tmp_path: Path, name: str) -> None:
    """A card whose pipeline calls M-PER a type, or prints the words outside of entities."""
    letters, form, outside = STYLES[name]
    names = tags_of(letters, form, outside)
    labels = sorted(names)
    config = bert(tokenizer, labels, hidden=32, layers=1).config
    BertForTokenClassification(config).save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    report = {"labels": labels, "tags": TokenClassification(labels).scheme.as_json()}
    code = PRESENTATION.card.usage(report, False, "").replace("path/to/this/directory", str(tmp_path))
    scope: dict[str, Any] = {"print": lambda *_: None}
    exec(code, scope)
    chance = random.Random(2)
    words = ["good", "bad", "day", "film", "this", "sad"]
    for _ in range(20):
        tags = chance.choices(labels, k=len(words))
        tokens = [
            {
                "entity": tag,
                "word": word,
                "score": np.float32(1),
                "start": 10 * i,
                "end": 10 * i + 5,
                "index": i,
            }
            for i, (tag, word) in enumerate(zip(tags, words, strict=True))
        ]
        groups = [group for group in scope["tag"].group_entities(tokens) if group.get("entity_group") != "O"]
        assert [(group["entity_group"], group["start"] // 10, group["end"] // 10) for group in groups] == [
            tuple(each) for each in get_entities([names[tag] for tag in tags])
        ]
