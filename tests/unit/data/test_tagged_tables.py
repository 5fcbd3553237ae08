"""Tables of words with tags, and of texts with spans of characters, as tools and corpora write them."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import pytest
from support.commands import naming, require_words
from support.pages import table

from kdcli.config.dataset import Dataset
from kdcli.data.readers import read_file
from kdcli.errors import DataError
from kdcli.tasks.classification.rows import ClassificationRows
from kdcli.tasks.labels import read_label
from kdcli.tasks.rows import IGNORE
from kdcli.tasks.token_classification.rows import TokenClassificationRows

Sentences = list[list[tuple[str, str]]]
SENTENCES: Sentences = [
    [("EU", "B-ORG"), ("rejects", "O"), ("German", "B-MISC"), ("call", "O")],
    [("Peter", "B-PER"), ("Blackburn", "I-PER")],
]
WORDS, TAGS = ([[each[place] for each in sentence] for sentence in SENTENCES] for place in (0, 1))


def read(folder: Path, rows: Any, words: str, tags: str, **keys: Any) -> Sentences:
    """The words and tags of a file: jsonl if the rows are a list, else csv."""
    named = "csv" if isinstance(rows, str) else "jsonl"
    path = folder / f"a.{named}"
    path.write_text(rows if isinstance(rows, str) else "\n".join(map(json.dumps, rows)))
    schema = TokenClassificationRows(Dataset(path=str(path), format=named, words=words, tags=tags, **keys))
    raw, _ = read_file(schema, path, str(path))
    schema.declare({"train": [raw]})
    made = [schema.row(values, "a") for values in raw.rows]
    names = dict(enumerate(schema.labels)) | {IGNORE: "?"}
    return [
        [(word, names[tag]) for word, tag in zip(row["words"], row["label"], strict=True)]
        for row in made
        if row
    ]


def csv_of(write: Any) -> str:
    cells = zip(map(write, WORDS), map(write, TAGS), strict=True)
    return "words,tags\n" + "".join(f'"{words}","{tags}"\n' for words, tags in cells)


KAGGLE = "Sentence #,Word,POS,Tag\nSentence: 1,EU,NNP,B-ORG\n,rejects,VBZ,O\n,German,JJ,B-MISC\n,call,NN,O\nSentence: 2,Peter,NNP,B-PER\n,Blackburn,NNP,I-PER\n"
A_WORD_A_ROW = [
    {"tweet": number, "word": word, "tag": tag}
    for number, sentence in enumerate(SENTENCES)
    for word, tag in sentence
]
READ_TABLES: dict[str, tuple[Any, dict[str, Any]]] = {
    "lists of words and tags": ([{"words": w, "tags": t} for w, t in zip(WORDS, TAGS, strict=True)], {}),
    "lists of integers with dataset.labels": (
        [{"words": w, "tags": [["O", "B-ORG", "B-MISC", "B-PER", "I-PER"].index(tag) for tag in t]} for w, t in zip(WORDS, TAGS, strict=True)],
        {"labels": ["O", "B-ORG", "B-MISC", "B-PER", "I-PER"]},
    ),
    "lists that a csv holds as text (['O', 'B-PER'])": (csv_of(repr), {}),
    "printed numpy arrays (['O' 'B-PER'])": (csv_of(lambda values: repr(values).replace(",", "")), {}),
    "words and tags between spaces": (csv_of(" ".join), {}),
    "words and tags between spaces, and the sentence (twice)": (
        [{"sentence": " ".join(w), "words": " ".join(w), "tags": " ".join(t)} for w, t in zip([*WORDS, WORDS[1]], [*TAGS, TAGS[1]], strict=True)],
        {},
    ),
    "tags between commas": (csv_of(" ".join).replace("B-ORG O B-MISC O", "B-ORG,O,B-MISC,O").replace("B-PER I", "B-PER,I"), {}),
    "a word a row, with a column such as Sentence #": (KAGGLE, {"words": "Word", "tags": "Tag"}),
    "a word a row, with another column of numbers": (A_WORD_A_ROW, {"words": "word", "tags": "tag", "sentence": "tweet"}),
    "integers among the words": (
        [{"words": [1996, *w], "tags": ["O", *t]} for w, t in zip(WORDS, TAGS, strict=True)],
        {"replace": {"1996": ""}},
    ),
    "lists of mappings of a word and its tag": (
        [{"tokens": [{"form": word, "ner": tag} for word, tag in sentence]} for sentence in SENTENCES],
        {"words": "tokens.form", "tags": "tokens.ner"},
    ),
    "lists of pairs of a word and its tag": (
        [{"data": sentence} for sentence in SENTENCES], {"words": "data.0", "tags": "data.1"}
    ),
    "-100 as a tag": ([{"words": [*w, "x"], "tags": [*t, -100]} for w, t in zip(WORDS, TAGS, strict=True)], {}),
    "words that are empty, white space or invisible": (
        [{"words": ["", *w, "\u200b", " "], "tags": ["O", *t, "O", "O"]} for w, t in zip(WORDS, TAGS, strict=True)],
        {},
    ),
}  # fmt: skip
REFUSED_TABLES: dict[str, tuple[Any, dict[str, Any], list[str]]] = {
    "a word a row, without numbers of sentences": (
        "words,tags\nEU,B-ORG\nrejects,O\nPeter,B-PER\n",
        {},
        ["3 rows", "single word", "dataset.sentence=", "dataset=conll"],
    ),
    "integers without names": (
        [{"words": ["a", "b"], "tags": [0, 1]}],
        {},
        ["integers", "(0, 1)", "dataset.labels=[O,B-PER"],
    ),
    "a word without a tag (null)": (
        [{"words": ["a", "b"], "tags": ["B-X", None]}, {"words": ["c"], "tags": ["O"]}],
        {},
        ["line 1", "word 2", "-100"],
    ),
    "more or fewer tags than words": (
        [{"words": "one two three", "tags": "positive"}],
        {},
        ["line 1", "3 words", "1 tags"],
    ),
    "lists of sentences in a row": (
        [{"words": [["a", "b"], ["c"]], "tags": [["O", "O"], ["B-X"]]}],
        {},
        ["line 1", "word 1", "['a', 'b']"],
    ),
    "a word a row of csv, with empty rows between sentences": (
        "words,tags\n" + ",\n".join("".join(f"{word},{tag}\n" for word, tag in each) for each in SENTENCES),
        {},
        ["6 rows", "single word", "dataset=conll"],
    ),
    "a word a row, not in the order of sentences": (
        [{"sentence_id": i % 2, "words": f"w{i}", "tags": "O"} for i in range(4)]
        + [{"sentence_id": 1, "words": "x", "tags": "B-X"}],
        {},
        ["2 sentences", "4 pieces", "dataset.sentence="],
    ),
    "a column of numbers that does not exist": (
        KAGGLE,
        {"words": "Word", "tags": "Tag", "sentence": "Sentence"},
        ["'Sentence'", "did you mean Sentence #?", "dataset.sentence="],
    ),
}

TEXT = "Anna Lee moved to São Paulo."
TAGGED = [
    ("Anna", "B-PER"), ("Lee", "I-PER"), ("moved", "O"), ("to", "O"), ("São", "B-LOC"), ("Paulo", "I-LOC"), (".", "O"),
]  # fmt: skip


def spans(start: str, end: str, kind: str, **more: Any) -> list[dict[str, Any]]:
    return [{start: 0, end: 8, kind: "PER"} | more, {start: 18, end: 27, kind: "LOC"} | more]


def quoted(labels: str = "labels", shift: int = 0) -> list[dict[str, Any]]:
    return [
        {"start": 0 + shift, "end": 8 + shift, "text": "Anna Lee", labels: ["PER"]},
        {"start": 18 + shift, "end": 27 + shift, "text": "São Paulo", labels: ["LOC"]},
    ]


def studio(values: list[dict[str, Any]]) -> list[dict[str, Any]]:
    results = [
        {"value": value, "from_name": "label", "to_name": "text", "type": "labels"} for value in values
    ]
    return [
        {
            "id": 1,
            "was_cancelled": False,
            "result": [*results, {"value": {"choices": ["news"]}, "type": "choices"}],
        }
    ]


TOKENS = [
    {"text": word, "start": TEXT.index(word), "end": TEXT.index(word) + len(word)} for word, _ in TAGGED
]
READ_SPANS: dict[str, tuple[dict[str, Any], str, str, Sentences]] = {
    "doccano: [start, end, type]": ({"text": TEXT, "label": [[0, 8, "PER"], [18, 27, "LOC"]]}, "text", "label", [TAGGED]),
    "doccano: entities with start_offset and end_offset": (
        {"id": 1, "text": TEXT, "entities": spans("start_offset", "end_offset", "label", id=1), "relations": []},
        "text", "entities", [TAGGED],
    ),
    "doccano, old: the id of a label": (
        {"text": TEXT, "annotations": [
            {"label": 1, "start_offset": 0, "end_offset": 8, "user": 1}, {"label": 2, "start_offset": 18, "end_offset": 27, "user": 1},
        ]},
        "text", "annotations", [[(word, tag.replace("PER", "1").replace("LOC", "2")) for word, tag in TAGGED]],
    ),
    "spans with an inclusive end": ({"text": TEXT, "label": [[0, 7, "PER"], [18, 26, "LOC"]]}, "text", "label", [TAGGED]),
    "Prodigy and spaCy: spans with start, end and label": (
        {"text": TEXT, "spans": spans("start", "end", "label", token_start=0)}, "text", "spans", [TAGGED],
    ),
    "Prodigy: tokens with spans": ({"tokens": TOKENS, "spans": spans("start", "end", "label")}, "tokens", "spans", [TAGGED]),
    "spaCy: {entities: [[start, end, type]]}": (
        {"text": TEXT, "label": {"entities": [[0, 8, "PER"], [18, 27, "LOC"]]}}, "text", "label", [TAGGED],
    ),
    "Label Studio: annotations with results": (
        {"data": {"text": TEXT}, "annotations": studio(quoted())}, "data.text", "annotations", [TAGGED],
    ),
    "Label Studio, JSON_MIN: value in the row": ({"text": TEXT, "label": quoted()}, "text", "label", [TAGGED]),
    "places in UTF-16 units, with the text of the span": (
        {"text": "😀" + TEXT, "label": quoted(shift=2)}, "text", "label", [[("😀", "O"), *TAGGED]],
    ),
    "Dataturks: points whose end is inclusive": (
        {"content": TEXT, "annotation": [
            {"label": ["PER"], "points": [{"start": 0, "end": 7, "text": "Anna Lee"}]},
            {"label": ["LOC"], "points": [{"start": 18, "end": 26, "text": "São Paulo"}]},
        ]},
        "content", "annotation", [TAGGED],
    ),
    "pipelines of transformers: entity_group": (
        {"text": TEXT, "found": spans("start", "end", "entity_group", score=0.9)}, "text", "found", [TAGGED],
    ),
    "Azure, AWS, RASA: offset and length, BeginOffset, startOffset, entity": (
        {"text": TEXT, "label": {"annotations": {"entities": [
            {"offset": 0, "length": 8, "category": "PER"}, {"BeginOffset": 18, "EndOffset": 27, "Type": "LOC"},
        ]}}},
        "text", "label", [TAGGED],
    ),
    "Presidio and other code: start_position, char_start, exclusive_end": (
        {"full_text": TEXT, "spans": [
            {"entity_type": "PER", "entity_value": "Anna Lee", "start_position": 0, "end_position": 8},
            {"char_start": 18, "exclusive_end": 27, "type": "LOC"},
        ]},
        "full_text", "spans", [TAGGED],
    ),
    "spans with white space at their ends": (
        {"text": TEXT, "label": [[0, 9, "PER"], [17, 27, "LOC"]]}, "text", "label", [TAGGED],
    ),
    "spans that cut a word": ({"text": TEXT, "label": [[0, 6, "PER"], [19, 27, "LOC"]]}, "text", "label", [TAGGED]),
    "Prodigy: answers": (
        {"text": TEXT, "spans": spans("start", "end", "label"), "answer": "accept"}, "text", "spans", [TAGGED],
    ),
    "the same span twice": (
        {"text": TEXT, "label": [[0, 8, "PER"], [0, 8, "PER"], [18, 27, "LOC"]]}, "text", "label", [TAGGED],
    ),
    "scripts without spaces between words": (
        {"text": "我在北京。", "label": [[2, 4, "LOC"]]}, "text", "label",
        [[("我", "O"), ("在", "O"), ("北", "B-LOC"), ("京", "I-LOC"), ("。", "O")]],
    ),
    "letters with marks (Devanagari)": (
        {"text": "दिल्ली में", "label": [[0, 6, "LOC"]]}, "text", "label", [[("दिल्ली", "B-LOC"), ("में", "O")]],
    ),
}  # fmt: skip
REFUSED_SPANS: dict[str, tuple[dict[str, Any], list[str]]] = {
    "spans that overlap": (
        {"text": TEXT, "label": [[0, 8, "PER"], [5, 8, "NAME"]]},
        ["line 1", "[0, 8, 'PER']", "[5, 8, 'NAME']", "overlap"],
    ),
    "spans that do not lie in the text": (
        {"text": TEXT, "label": [[18, 60, "LOC"]]},
        ["line 1", "[18, 60, 'LOC']", "28 characters"],
    ),
    "spans that quote another text": (
        {"text": TEXT, "label": [{"start": 0, "end": 4, "text": "Otto", "label": "PER"}]},
        ["line 1", "'Otto'", "'Anna'"],
    ),
    "places that count bytes": (
        {"text": f"Señor ü {TEXT} There.", "label": [[10, 18, "PER"], [28, 38, "LOC"]]},
        ["line 1", "2 of 2 spans", "UTF-8", "dataset.tags"],
    ),
    "places that count units of UTF-16": (
        {"text": f"😀 {TEXT}", "label": [[3, 11, "PER"], [21, 30, "LOC"]]},
        ["line 1", "2 of 2 spans", "UTF-16", "dataset.tags"],
    ),
    "places that count from 1": (
        {"text": TEXT, "label": [[1, 9, "PER"], [19, 28, "LOC"]]},
        ["line 1", "2 of 2 spans", "from 1", "dataset.tags"],
    ),
    "spans of words": (
        {"text": TEXT.split(), "label": [[0, 1, "PER"]]},
        ["line 1", "spans of characters", "dataset.words="],
    ),
    "no spans at all (null)": (
        {"text": TEXT, "label": None},
        ["line 1", "the tags are missing", "[]"],
    ),
    "other mappings (CLUENER)": (
        {"text": TEXT, "label": {"PER": {"Anna Lee": [[0, 7]]}}},
        ["line 1", "[start, end, type]", "label"],
    ),
}


@pytest.mark.parametrize("name", READ_TABLES)
def test_tables_of_words(tmp_path: Path, name: str) -> None:
    """A list in a cell that is read as one word, or each word of a table as a sentence."""
    rows, keys = READ_TABLES[name]
    found = read(tmp_path, rows, **({"words": "words", "tags": "tags"} | keys))
    distinct = [sentence for number, sentence in enumerate(found) if sentence not in found[:number]]
    assert [[pair for pair in sentence if pair != ("x", "?")] for sentence in distinct] == SENTENCES
    assert ("x", "?") in found[0] or name != "-100 as a tag"


@pytest.mark.parametrize("name", REFUSED_TABLES)
def test_tables_that_are_refused(tmp_path: Path, name: str) -> None:
    """Rows of one word each that are learnt as sentences; a message without a remedy."""
    rows, keys, words = REFUSED_TABLES[name]
    with pytest.raises(DataError, match=naming(*words)):
        read(tmp_path, rows, **({"words": "words", "tags": "tags"} | keys))


@pytest.mark.parametrize("name", READ_SPANS)
def test_spans_become_tags(tmp_path: Path, name: str) -> None:
    """Spans of a labelling tool that are refused, or whose entities shift by a character."""
    row, words, tags, expected = READ_SPANS[name]
    assert read(tmp_path, [row], words, tags) == expected


@pytest.mark.parametrize("name", REFUSED_SPANS)
def test_spans_that_are_refused(tmp_path: Path, name: str) -> None:
    """Half of an annotation that is learnt, or tags at the wrong words."""
    row, words = REFUSED_SPANS[name]
    with pytest.raises(DataError, match=naming(*words)):
        read(tmp_path, [row], "text", "label")


def test_the_page_lists_these_tables() -> None:
    """A page that promises a format which no test reads."""
    for heading, good, bad in (
        ("Tables", READ_TABLES, REFUSED_TABLES),
        ("Spans of characters", READ_SPANS, REFUSED_SPANS),
    ):
        rows = table("tags.md", heading)
        assert rows.keys() == good.keys() | bad.keys()
        assert all(rows[name].startswith("read") for name in good)
        assert all(rows[name].startswith("refused") for name in bad)


@pytest.mark.parametrize(
    "label", [[[0, 8, "PER"]], [{"start": 0, "end": 8, "label": "PER"}], {"entities": []}]
)
def test_spans_as_labels_of_texts(label: Any) -> None:
    """An export with spans that is taken for a data set of classes, and a refusal that does not say how it is read."""
    with pytest.raises(
        DataError, match=naming("row 1", "spans of characters", "dataset.words=", "dataset.tags=")
    ):
        read_label(label, "a.jsonl, row 1")


def test_words_with_tags_for_another_task(tmp_path: Path) -> None:
    """A refusal that names the columns of texts alone, where the file has words with tags."""
    path = tmp_path / "a.jsonl"
    path.write_text(json.dumps({"id": 0, "tokens": WORDS[0], "ner_tags": TAGS[0]}))
    cfg = Dataset(path=str(path), format="jsonl")
    with pytest.raises(DataError, match=naming("a.jsonl", "dataset.words=tokens", "dataset.tags=ner_tags")):
        read_file(ClassificationRows(cfg), path, str(path))


def test_a_text_without_spans_has_no_entity(tmp_path: Path) -> None:
    """Texts without entities that are dropped or refused: a tagger that finds some everywhere."""
    rows = [{"text": TEXT, "label": [[0, 4, "PER"]]}, {"text": "Nothing here.", "label": []}]
    assert read(tmp_path, rows, "text", "label")[1] == [("Nothing", "O"), ("here", "O"), (".", "O")]


def test_unlabelled_texts_are_cut_as_those_with_spans(tmp_path: Path) -> None:
    """Text that only the teacher labels, with other words than the text with gold spans."""
    path = tmp_path / "a.jsonl"
    path.write_text(json.dumps({"text": TEXT, "label": [[0, 4, "PER"]]}))
    schema = TokenClassificationRows(Dataset(path=str(path), format="jsonl", words="text", tags="label"))
    read_file(schema, path, str(path))
    assert read_file(schema.unlabelled(), path, str(path))[0].rows[0][0] == [word for word, _ in TAGGED]


def test_what_was_decided_about_spans_is_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Words that are tagged although half of them is in a span, and annotations that are not read, in silence."""
    caplog.set_level(logging.INFO)
    twice = {"data": {"text": TEXT}, "annotations": [*studio(quoted()), *studio(quoted()[:1])]}
    read(tmp_path, [twice], "data.text", "annotations")
    require_words(caplog.text, "1 texts", "several annotators")
    read(tmp_path, [{"text": TEXT, "label": [[0, 6, "PER"]]}], "text", "label")
    require_words(caplog.text, "1 spans", "inside of a word")
    answers = [
        {"text": f"{answer} {TEXT}", "spans": [], "answer": answer}
        for answer in ("accept", "reject", "ignore")
    ]
    rows = [*answers, {"text": TEXT, "spans": spans("start", "end", "label"), "answer": "accept"}]
    assert [sentence[0][0] for sentence in read(tmp_path, rows, "text", "spans")] == ["accept", "Anna"]
    require_words(caplog.text, "2 rows", "reject", "ignore")
    read(tmp_path, KAGGLE, "Word", "Tag")
    require_words(caplog.text, "6 rows", "2 sentences")
