"""Files with a word and its tag a line, as corpora and tools write them."""

from __future__ import annotations

import contextlib
import logging
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from support.commands import naming, require_words
from support.pages import table

from kdcli.config.dataset import Dataset
from kdcli.data.dataset import load
from kdcli.data.inspection import inspect
from kdcli.data.readers import read_file
from kdcli.data.splits import SPLITS
from kdcli.errors import DataError
from kdcli.tasks.token_classification.rows import TokenClassificationRows

Sentences = list[list[tuple[str, str]]]
SENTENCES: Sentences = [
    [("EU", "B-ORG"), ("rejects", "O"), ("German", "B-MISC"), ("call", "O")],
    [("Peter", "B-PER"), ("Blackburn", "I-PER")],
    [("In", "O"), ("BRUSSELS", "B-LOC"), ("#news", "O")],
]


def lines(cell: str, blank: str = "\n", sentences: Sentences = SENTENCES) -> str:
    """A file with a line for each word, from a template."""
    return blank.join(
        "".join(cell.format(i=i, word=word, tag=tag) + "\n" for i, (word, tag) in enumerate(sentence, 1))
        for sentence in sentences
    )


def read(path: Path, text: str | bytes, **keys: Any) -> Sentences:
    """The words and tags of a file."""
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    schema = TokenClassificationRows(Dataset(path=str(path), **{"format": "conll"} | keys))
    raw, _ = read_file(schema, path, str(path))
    schema.declare({"train": [raw]})
    return [list(zip(words, tags, strict=True)) for words, tags in raw.rows]


def tag_map(change: Callable[[str], str]) -> Sentences:
    return [[(word, change(tag)) for word, tag in sentence] for sentence in SENTENCES]


ONTONOTES = {
    "O": "*",
    "B-ORG": "(ORG)",
    "B-MISC": "(MISC)",
    "B-PER": "(PER*",
    "I-PER": "*)",
    "B-LOC": "(LOC)",
}
COLUMNS = ["id", "words", "lemma", "tags", "xpos", "feats", "head", "deprel", "deps", "misc"]
UD = "{i}\t{word}\t{word}\tNOUN\tNN\t_\t0\troot\t_\tSpaceAfter=No"
READ: dict[str, tuple[str | bytes, dict[str, Any], Sentences]] = {
    "spaces between word and tag": (lines("{word} {tag}"), {}, SENTENCES),
    "tabs": (lines("{word}\t{tag}"), {}, SENTENCES),
    "tabs in some lines, spaces in others": (
        lines("{word}\t{tag}").replace("Peter\t", "Peter "),
        {},
        SENTENCES,
    ),
    "several spaces or tabs that align the columns": (lines("{word}   {tag}"), {}, SENTENCES),
    "Windows line ends and a byte order mark": (
        b"\xef\xbb\xbf" + lines("{word}\t{tag}").replace("\n", "\r\n").encode(),
        {},
        SENTENCES,
    ),
    "no blank line, or several, at the end": (lines("{word} {tag}") + "\n\n\n", {}, SENTENCES),
    "sentences between lines of spaces or tabs": (
        lines("{word}\t{tag}", " \t\n"),
        {},
        SENTENCES,
    ),
    "-DOCSTART- lines": ("-DOCSTART- -X- -X- O\n\n" + lines("{word} NN B-NP {tag}"), {}, SENTENCES),
    "part of speech and chunk between word and tag (CoNLL-2003)": (
        lines("{word} NN I-NP {tag}"),
        {},
        SENTENCES,
    ),
    "tag first": (lines("{tag}\t{word}"), {}, SENTENCES),
    "type first (PER Peter)": (
        lines("{tag} {word}", sentences=tag_map(lambda tag: tag[2:] or "O")),
        {},
        tag_map(lambda tag: tag[2:] or "O"),
    ),
    "a word with a space, between tabs": (
        lines("{word}\t{tag}").replace("BRUSSELS", "NEW YORK"),
        {},
        [*SENTENCES[:2], [("In", "O"), ("NEW YORK", "B-LOC"), ("#news", "O")]],
    ),
    "a word with a space, between spaces": (
        lines("{word} {tag}").replace("BRUSSELS", "NEW YORK"),
        {},
        [*SENTENCES[:2], [("In", "O"), ("NEW YORK", "B-LOC"), ("#news", "O")]],
    ),
    "numbers of words first": (lines("{i}\t{word}\t{tag}"), {}, SENTENCES),
    "numbers of sentences and words first (2.7, d1-s2-w7)": (
        "\n".join(
            lines(f"d1-s{n}-w{{i}}\t{{word}}\t{{tag}}", sentences=[each]) for n, each in enumerate(SENTENCES)
        ),
        {},
        SENTENCES,
    ),
    "letters and types in two columns (spaCy: B PER)": (
        lines("{word}\t{tag}").replace("\tO", "\tO\t_").replace("\tB-", "\tB\t").replace("\tI-", "\tI\t"),
        {},
        SENTENCES,
    ),
    "comments (# id …, # text = …)": (
        "# id 0\tdomain=en\n" + lines("{word} _ _ {tag}", "\n# text = a b\n"),
        {},
        SENTENCES,
    ),
    "a word that begins with #": (
        lines("{word} {tag}") + "# O\n",
        {},
        [*SENTENCES[:2], [*SENTENCES[2], ("#", "O")]],
    ),
    "two columns of tags (GermEval)": (
        "#\thttp://example.org\n" + lines("{i}\t{word}\t{tag}\tO"),
        {},
        SENTENCES,
    ),
    "gold and predicted tags": (lines("{word} NN {tag} B-PER"), {}, SENTENCES),
    "chunks alone": (lines("{word} NN B-NP"), {}, tag_map(lambda tag: "B-NP")),
    "CoNLL-U with named columns": (
        "# sent_id = 1\n1-2\tdu\t_\t_\t_\t_\t_\t_\t_\t_\n" + lines(UD),
        {"columns": COLUMNS},
        tag_map(lambda tag: "NOUN"),
    ),
    "CoNLL-U Plus (# global.columns = …)": (
        "# global.columns = ID FORM NER\n" + lines("{i}\t{word}\t{tag}"),
        {},
        SENTENCES,
    ),
    "OntoNotes (CoNLL-2012): brackets, more columns in some sentences": (
        "#begin document (a); part 000\n"
        + "\n".join(
            "".join(
                f"a 0 {i} {word} NNP (TOP(S* - - - - {ONTONOTES[tag]} {'(V*) ' * more}-\n"
                for i, (word, tag) in enumerate(sentence)
            )
            for more, sentence in enumerate(SENTENCES)
        )
        + "\n#end document\n",
        {},
        SENTENCES,
    ),
    "vertical bars or semicolons between word and tag": (lines("{word}|{tag}"), {}, SENTENCES),
    "commas and quotes, with a header": (
        "word,tag\n" + lines('"{word}",{tag}').replace("call", ","),
        {},
        [[*SENTENCES[0][:3], (",", "O")], *SENTENCES[1:]],
    ),
    "empty rows of a spreadsheet (,) between sentences": (
        "word,tag\n" + lines("{word},{tag}", ",\n"),
        {},
        SENTENCES,
    ),
    "quotes doubled by a csv writer, between tabs": (
        lines("{word}\t{tag}").replace("call", '""""').replace("rejects", '"'),
        {},
        [[("EU", "B-ORG"), ('"', "O"), ("German", "B-MISC"), ('"', "O")], *SENTENCES[1:]],
    ),
    "a comma and a space between word and tag": (lines("{word}, {tag}"), {}, SENTENCES),
    "no tag at words outside of entities": (lines("{word}\t{tag}").replace("\tO", "\t"), {}, SENTENCES),
    "another separator": (lines("{word}={tag}"), {"delimiter": "="}, SENTENCES),
    "a header that names the columns": (
        "pos\ttoken\tner\n" + lines("NN\t{word}\t{tag}"),
        {"words": "token", "tags": "ner"},
        SENTENCES,
    ),
    "a header in capitals beside dataset.columns": (
        "WORD\tPOS\tTAG\n" + lines("{word}\tNN\tO"),
        {"columns": ["word", "pos", "tag"]},
        tag_map(lambda tag: "O"),
    ),
    "a sentence a line, words joined to tags (EU/B-ORG rejects/O)": (
        "\n".join(" ".join(f"{word}/{tag}" for word, tag in sentence) for sentence in SENTENCES),
        {},
        SENTENCES,
    ),
    "a word a line, joined to its tag (EU/B-ORG)": (lines("{word}/{tag}"), {}, SENTENCES),
    "a sentence a line, words and tags between a tab": (
        "\n".join(
            "\t".join(" ".join(each) for each in zip(*sentence, strict=True)) for sentence in SENTENCES
        ),
        {},
        SENTENCES,
    ),
    "a header with other names": ("pos_id\tsurface\tanswer\n" + lines("7\t{word}\t{tag}"), {}, SENTENCES),
    "a language before each word (WikiANN, en:Rick)": (lines("en:{word}\t{tag}"), {}, SENTENCES),
    "no-break spaces and invisible characters as words": (
        lines("{word}\t{tag}").replace("call\tO", "call\tO\n\u00a0\tO\n\u200b\tO\n\tO"),
        {},
        SENTENCES,
    ),
    "no blank lines, but numbers of words": (
        "# id 1\n" + lines("{i} {word} {tag}", "# id = 2\n"),
        {},
        SENTENCES,
    ),
    "no blank lines, but numbers of sentences": (
        "".join(f"{i}\t{word}\t{tag}\n" for i, each in enumerate(SENTENCES, 7) for word, tag in each),
        {},
        SENTENCES,
    ),
    "EOS, </s> or a row of hyphens between sentences": (
        "EOS\n".join(lines("{word}\t{tag}", sentences=[each]) for each in SENTENCES[:2])
        + "</s>\n"
        + lines("{word}\t{tag}", sentences=SENTENCES[2:])
        + "---\n",
        {},
        SENTENCES,
    ),
    "words that begin as comments (--, //)": (
        lines("{word} {tag}").replace("rejects", "--").replace("German", "//"),
        {},
        [[SENTENCES[0][0], ("--", "O"), ("//", "B-MISC"), SENTENCES[0][3]], *SENTENCES[1:]],
    ),
    "a column with the number of the sentence (sentence_id)": (
        "sentence_id\tword\ttag\n"
        + "".join(f"{i}\t{word}\t{tag}\n" for i, each in enumerate(SENTENCES) for word, tag in each),
        {},
        SENTENCES,
    ),
}


@pytest.mark.parametrize("name", READ)
def test_habits_of_files(tmp_path: Path, name: str) -> None:
    """A habit that is not known gives other words, other tags or other sentences, or a comment that is learnt as an entity."""
    text, keys, expected = READ[name]
    assert read(tmp_path / "a.conll", text, **keys) == expected


REFUSED: dict[str, tuple[str, dict[str, Any], list[str]]] = {
    "a word without a tag": (
        lines("{word}\t{tag}") + "\n" + lines("{word}\t{tag}") + "\nEU\n",
        {},
        ["a.conll", "line 25", "2 columns", "'EU'", "dataset.bad_rows=drop"],
    ),
    "comments without # (// …)": (
        "// a comment\n\n" + lines("{word} {tag}") + "\n" + lines("{word} {tag}"),
        {},
        ["line 1", "2 columns", "'// a comment'", "dataset.bad_rows=drop"],
    ),
    "comments without # before each sentence (% …)": (
        "".join(
            "% a comment here\n" + lines("{word} {tag}", sentences=[each]) + "\n" for each in SENTENCES * 2
        ),
        {},
        ["line 1", "'% a comment here'", "dataset.bad_rows=drop"],
    ),
    "titles before each sentence": (
        "".join(
            f"Text number {i} of all\n" * (i % 2) + lines("{word} {tag}", sentences=[each]) + "\n"
            for i, each in enumerate(SENTENCES * 2)
        ),
        {},
        ["line 6", "2 columns", "'Text number 1 of all'", "dataset.bad_rows=drop"],
    ),
    "CoNLL-U without a column of entities": (lines(UD), {}, ["dataset.columns=[id,words,lemma,tags,xpos"]),
    "names of columns that are not those of the lines": (
        lines("{word} NN {tag}"),
        {"columns": ["words", "tags"]},
        ["2 columns", "words, tags", "line 1", "3 fields", "dataset.columns="],
    ),
    "named columns without words and tags": (
        lines("{word} {tag}"),
        {"columns": ["one", "two"]},
        ["one, two", "words", "dataset.words="],
    ),
    "dataset.words without a header": (
        lines("{word} {tag}"),
        {"words": "form", "tags": "ner"},
        ["header", "'form'", "dataset.columns="],
    ),
    "a TSV of WebAnno or INCEpTION": (
        "#FORMAT=WebAnno TSV 3.2\n\n\n#Text=EU rejects\n1-1\t0-2\tEU\tORG\n1-2\t3-10\trejects\t_\n",
        {},
        ["a.conll", "WebAnno", "CoNLL 2002", "dataset=conll"],
    ),
    "sentences of plain text": (
        "EU rejects German call\nPeter Blackburn\nIn BRUSSELS #news\n",
        {},
        ["line 1", "'EU rejects German call'", "dataset.delimiter="],
    ),
    "no blank lines between sentences": (
        lines("{word} {tag}", "") * 300,
        {},
        ["2700 words", "blank line", "dataset.columns=", "dataset.sentence="],
    ),
    "no column of tags": (
        "".join(f"word{i} lemma{i} x{i}\n\n" for i in range(400)),
        {},
        ["column 3", "400", "dataset.columns="],
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_files_that_are_refused(tmp_path: Path, name: str) -> None:
    """Words that are learnt as tags, silently; or a message without the key that mends it."""
    text, keys, words = REFUSED[name]
    with pytest.raises(DataError, match=naming(*words)):
        read(tmp_path / "a.conll", text, **keys)


def test_the_page_lists_these_files() -> None:
    """A page that promises a format which no test reads."""
    rows = table("tags.md", "A word a line")
    assert rows.keys() == READ.keys() | REFUSED.keys()
    for name, (_, _, words) in REFUSED.items():
        keys = re.findall(r"dataset\.[a-z]+", rows[name])
        assert all(key in " ".join(words) for key in keys), name
        assert rows[name].startswith("refused"), name
    assert all(rows[name].startswith("read") for name in READ)


@pytest.mark.parametrize("suffix", ["conll", "txt"])
@pytest.mark.parametrize("name", READ)
def test_init_reads_files_as_a_run_does(tmp_path: Path, name: str, suffix: str) -> None:
    """Words with tags in a file *.txt that `kdcli init` takes for documents of a language model, or for pairs of texts."""
    text, keys, expected = READ[name]
    path = tmp_path / f"a.{suffix}"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    if suffix == "txt" and name == "CoNLL-U with named columns":  # all of its tags are one part of speech
        with pytest.raises(DataError, match=naming("dataset.columns")):
            inspect(str(path), keys)
        return
    inspection = inspect(str(path), keys)
    assert inspection.task == "token_classification"
    own = {key: value for key, value in inspection.keys.items() if key != "path"}
    assert own["format"] == "conll"
    assert read(path, text, **own) == expected


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("a.txt", "One line.\nAnother line.\n\nA third line of text.\n\nO no.\n"),
        ("a.csv", "text,label\n\na film,good\n\na day,bad\n\n" * 9),
        ("a.tsv", "Sentence #\tword\ttag\n" + "".join(f"{n // 3 if n % 3 == 0 else ''}\tw{n}\t{'OB'[n % 3 == 1]}{'-X' * (n % 3 == 1)}\n" for n in range(60))),
    ],
    ids=["text", "table", "a word a row"],
)  # fmt: skip
def test_other_files_are_not_taken_for_words_with_tags(tmp_path: Path, name: str, text: str) -> None:
    """Lines of two words, or the rows of a table, that `kdcli init` reads as words with tags."""
    path = tmp_path / name
    path.write_text(text)
    with contextlib.suppress(DataError):
        assert inspect(str(path), {}).keys.get("format") != "conll"


def test_what_was_decided_is_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Columns that are chosen and words that are left out in silence: the user learns of it by the scores."""
    caplog.set_level(logging.INFO)
    read(tmp_path / "a.conll", "# a\n" + lines("{i}\t{word}\tI-NP\t{tag}").replace("4\tcall", "4\t\u00a0"))
    columns, blank = (record.getMessage() for record in caplog.records[:2])
    require_words(
        columns,
        "a.conll",
        "tabs",
        "4 columns",
        "words of column 2",
        "tags of column 4",
        "column 1",
        "column 3",
        "dataset.columns=",
    )
    require_words(blank, "1 words", "dropped", "line 5")


def test_predicted_letters_are_no_types(tmp_path: Path) -> None:
    """Letters that a model predicted are taken for the types of the gold ones (B-B)."""
    tags = tag_map(lambda tag: tag[0])
    text = lines("{word}\t{tag}\t{tag}", sentences=tags)
    assert read(tmp_path / "a.conll", text) == tags


def test_sentences_that_cannot_be_read_are_dropped(tmp_path: Path) -> None:
    """The rest of a sentence that is learnt without the word whose tag is missing, or a file of which nothing is read."""
    text = lines("{word}\t{tag}") + "\nThe\tO\nword\nlacks\tO\n\n" + lines("{word}\t{tag}")
    with pytest.raises(DataError, match=naming("line 14", "dataset.bad_rows=drop")):
        read(tmp_path / "a.conll", text)
    assert read(tmp_path / "a.conll", text, bad_rows="drop") == SENTENCES * 2


@pytest.mark.parametrize("mark", ["% a comment", "// so", "-- a comment here", "<!-- a -->"])
def test_a_comment_is_dropped_without_its_sentence(tmp_path: Path, mark: str) -> None:
    """A file of which no sentence is left, because each begins with a comment; or a comment that is learned as a word."""
    text = "".join(f"{mark}\n" + lines("{word} {tag}", sentences=[each]) + "\n" for each in SENTENCES)
    with pytest.raises(DataError, match=naming("line 1", mark, "dataset.bad_rows=drop")):
        read(tmp_path / "a.conll", text)
    assert read(tmp_path / "a.conll", text, bad_rows="drop") == SENTENCES


def test_an_empty_tag_beside_o_is_a_bad_row(tmp_path: Path) -> None:
    """Words whose tag was forgotten that are learnt as words in no entity."""
    text = lines("{word}\t{tag}") + "\nEU\tO\nlacks\t\n"
    with pytest.raises(DataError, match=naming("lines 13 to 14", "word 2", "dataset.bad_rows=drop")):
        read(tmp_path / "a.conll", text)
    assert read(tmp_path / "a.conll", text, bad_rows="drop") == SENTENCES


def test_later_files_are_read_as_the_first_one(tmp_path: Path) -> None:
    """A test file without entities, whose last column with letters is that of chunks."""
    schema = TokenClassificationRows(Dataset(path="a.conll", format="conll"))
    for name, text in (("a", lines("{word} I-NP {tag}")), ("b", lines("{word} I-NP O"))):
        path = tmp_path / f"{name}.conll"
        path.write_text(text)
        rows = read_file(schema, path, str(path))[0].rows
    assert rows[0] == (["EU", "rejects", "German", "call"], ["O"] * 4)


def test_a_folder_has_splits(tmp_path: Path) -> None:
    """The test file of a benchmark is a part of the training data."""
    for split, word in (("train", "EU"), ("valid", "UN"), ("test", "US")):
        text = "".join(f"{word}{number} B-ORG\ncalls O\n\n" for number in range(4))
        (tmp_path / f"{split}.txt").write_text(text)
    data = load(Dataset(path=str(tmp_path), format="conll"))
    assert {words[0][:2] for words in data["train"]["words"][:]} == {"EU"}
    assert {words[0][:2] for words in data["validation"]["words"][:]} == {"UN"}
    assert {words[0][:2] for words in data["test"]["words"][:]} == {"US"}


def test_a_folder_of_conll_2003(tmp_path: Path) -> None:
    """eng.train, eng.testa and eng.testb are no files of data, or the readme beside them is one."""
    for split, word in (("train", "EU"), ("testa", "UN"), ("testb", "US")):
        text = "".join(f"{word}{number} NNP B-NP B-ORG\ncalls VB O O\n\n" for number in range(4))
        (tmp_path / f"eng.{split}").write_text(text)
    (tmp_path / "README.txt").write_text("Sentences of Reuters.\n")
    data = load(Dataset(path=str(tmp_path), format="conll"))
    assert [{words[0][:2] for words in data[split]["words"][:]} for split in SPLITS] == [
        {"EU"},
        {"UN"},
        {"US"},
    ]


def test_text_without_tags(tmp_path: Path) -> None:
    """Unlabelled text that needs a tag, or whose last column is read as words."""
    path = tmp_path / "a.conll"
    for text in (lines("{word}"), lines("{word}\tO"), lines("{i}\t{word}\t_")):
        path.write_text(text)
        schema = TokenClassificationRows(Dataset(path=str(path), format="conll")).unlabelled()
        rows = read_file(schema, path, str(path))[0].rows
        assert [words for words, _ in rows] == [[word for word, _ in each] for each in SENTENCES]
    path.write_text("EU rejects German call\nPeter Blackburn\n")
    with pytest.raises(DataError, match=naming("a.conll", "several words")):
        read_file(schema, path, str(path))


def test_a_misspelt_tag_in_the_first_line_is_no_header(tmp_path: Path) -> None:
    """The first sentence is lost, and a tag that would be refused anywhere else is never seen."""
    path = tmp_path / "a.conll"
    path.write_text("Paris\tX-LOC\n\n" + "".join(f"word{row}\tB-LOC\nx\tO\n\n" for row in range(60)))
    cfg = {"path": str(path), "format": "conll", "labels": ["O", "B-LOC"]}
    with pytest.raises(DataError, match=naming("line 1", "'X-LOC'", "B-LOC")):
        load(Dataset.model_validate(cfg))
