"""`kdcli init`: from a data file to a config with which a run begins."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest
import yaml
from support.commands import require_words
from typer.testing import CliRunner, Result

from kdcli.cli import app
from kdcli.launch.check import CheckOptions
from kdcli.launch.run import launch

Init = Callable[..., Result]
WORDS = ["red", "green", "blue", "cat", "dog", "sun", "moon", "rain"]
ROWS = 120


@pytest.fixture
def init(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Init:
    """Types `kdcli init` with some words in a folder of its own."""
    monkeypatch.chdir(tmp_path)
    return lambda *words: CliRunner().invoke(app, ["init", *words])


def sentence(random_words: random.Random, length: int = 6) -> str:
    return " ".join(random_words.choice(WORDS) for _ in range(length))


def write(folder: Path, name: str) -> None:
    """One of the files of the tests."""
    drawn = random.Random(1)
    texts = [f"{sentence(drawn)} {number}" for number in range(2 * ROWS)]
    pairs = list(zip(texts[::2], texts[1::2], strict=True))
    content = {
        "tickets.csv": "id;body;category\n" + "".join(f"{n};{text}, ok;{'ab'[n % 2]}\n" for n, text in enumerate(texts)),
        "latin.csv": "text,label\n" + "".join(f"schöne Grüße {text},{'ab'[n % 2]}\n" for n, text in enumerate(texts)),
        "bare.csv": "".join(f"{n % 2},the long text of a row: {text}\n" for n, text in enumerate(texts)),
        "wrapped.json": json.dumps({"data": [{"text": text, "label": n % 3} for n, text in enumerate(texts)]}),
        "chat.jsonl": "".join(
            json.dumps({"messages": [{"role": "user", "content": one}, {"role": "assistant", "content": other}]}) + "\n"
            for one, other in pairs
        ),
        "alpaca.jsonl": "".join(
            json.dumps({"instruction": one, "input": "", "output": other}) + "\n" for one, other in pairs
        ),
        "task.jsonl": "".join(json.dumps({"instruction": "Classify", "input": text, "output": "It is " + "ab"[n % 2]}) + "\n"
                              for n, text in enumerate(texts)),
        "dpo.jsonl": "".join(json.dumps({"prompt": text, "chosen": "It is " + "ab"[n % 2], "rejected": "No idea at all"}) + "\n"
                             for n, text in enumerate(texts)),
        "orca.jsonl": "".join(json.dumps({"system_prompt": "Be brief.", "question": one, "response": other}) + "\n" for one, other in pairs),
        "legacy.jsonl": "".join(json.dumps({"prompt": f"{one}\n\n###\n\n", "completion": f" {other} END"}) + "\n" for one, other in pairs),
        "setfit.jsonl": "".join(json.dumps({"text": text, "label": n % 3, "label_text": ("card", "loan", "other")[n % 3]}) + "\n" for n, text in enumerate(texts)),
        "turk.csv": "HITId,Input.text,Answer.label\n" + "".join(f"H{n},{text},{'ab'[n % 2]}\n" for n, text in enumerate(texts)),
        "nul.csv": "\0\n",
        "nothing.json": "{}",
        "scalars.json": '[1, "a", {}]',
        "pairs.tsv": "en\tde\n" + "".join(f"{one}\t{other}\n" for one, other in pairs),
        "words.conll": "".join("\n".join(f"{word} {'O' if word.isdecimal() else 'B-X'}" for word in text.split()) + "\n\n" for text in texts),
        "plain.txt": "\n\n".join(f"{text}, and more. " * 40 for text in texts),
        "corpus.en": "".join(f"{one}\n" for one, _ in pairs),
        "corpus.de": "".join(f"{other}\n" for _, other in pairs),
        "kto.jsonl": "".join(json.dumps({"prompt": one, "completion": other, "label": bool(n % 2)}) + "\n" for n, (one, other) in enumerate(pairs)),
        "two.csv": "alpha,beta\n" + "".join(f"{one},{other}\n" for one, other in pairs),
        "scores.csv": "text,label\n" + "".join(f"{text},0.{n:03}\n" for n, text in enumerate(texts)),
        "array.json": json.dumps([{"id": n, "conversations": [{"from": "human", "value": one}, {"from": "gpt", "value": other}]}
                                  for n, (one, other) in enumerate(pairs)]),
        "survey.csv": "When,How satisfied are you with our service?,What could we do better next time?\n"
        + "".join(f"2024/05/{n % 28 + 1:02} 10:00,{('Satisfied', 'Very dissatisfied')[n % 2]},{text}\n" for n, text in enumerate(texts)),
        "export.csv": "# Exported by LabTool 4.2\n# project: feedback, owner: Ann\n\ncomment,mood\n"
        + "".join(f"{text},{'ab'[n % 2]}\n" for n, text in enumerate(texts)),
        "titled.csv": "Weekly report\n\ncomment,mood\n" + "".join(f"{text},{'ab'[n % 2]}\n" for n, text in enumerate(texts)),
        "nested.jsonl": "".join(json.dumps({"type": "event", "id": f"c{n}", "source": {"body": text}, "topic": "ab"[n % 2]}) + "\n"
                                for n, text in enumerate(texts)),
        "dated.csv": "created,message\n" + "".join(f"2024-05-{n % 28 + 1:02}T10:00:00Z,{text}\n" for n, text in enumerate(texts)),
        "system.csv": "system,user,assistant\n" + "".join(f"Be brief.,{one},{other}\n" for one, other in pairs),
        "jira.csv": "Summary,Comment,Kind,Comment,Comment\n" + "".join(f"{text},,{('bug', 'task')[n % 2]},,\n" for n, text in enumerate(texts)),
        "routing.csv": "message|team\n" + "".join(f"{text}|{('billing', 'support')[n % 2]}\n" for n, text in enumerate(texts)),
        "onehot.csv": "text,anger,joy,sad\n" + "".join(f"{text},{','.join('1' if n % 3 == at else '0' for at in range(3))}\n" for n, text in enumerate(texts)),
        "many.csv": "text,anger,joy,sad\n" + "".join(f"{text},{n % 2},{n % 3 % 2},{n % 5 % 2}\n" for n, text in enumerate(texts)),
        "slack.json": json.dumps([{"type": "message", "user": f"U0{n % 3}", "text": text} for n, text in enumerate(texts)]),
        "studio.json": json.dumps([
            {"id": n, "data": {"text": text}, "predictions": [], "annotations": [{"id": n, "was_cancelled": False, "result": [
                {"type": "labels", "value": {"start": 0, "end": len(text.split()[0]), "text": text.split()[0], "labels": ["X"]}}]}]}
            for n, text in enumerate(texts)]),
        "named.jsonl": "".join(
            json.dumps({"sentence": text, "mentions": [[0, len(text.split()[0]), "X"]] if n % 2 else [], "source": "web"}) + "\n"
            for n, text in enumerate(texts)),
        "cats.jsonl": "".join(json.dumps({"text": text, "cats": {"a": float(n % 2), "b": 1.0 - n % 2}}) + "\n" for n, text in enumerate(texts)),
        "choices.json": json.dumps([
            {"id": n, "data": {"text": text}, "annotations": [{"result": [{"type": "choices", "value": {"choices": ["ab"[n % 2]]}}]}]}
            for n, text in enumerate(texts)]),
        "arrays.json": json.dumps([[f"the long text of a row: {text}", "ab"[n % 2]] for n, text in enumerate(texts)]),
        "split.csv": "text,label,split\n" + "".join(
            f"{text},{'ab'[n % 2]},{('train', 'train', 'train', 'dev', 'test')[n % 5]}\n" for n, text in enumerate(texts)),
        "empty.csv": "",
        "short.csv": "text,label\n" + "".join(f"{text},{'ab'[n % 2]}\n" for n, text in enumerate(texts)) + "x,y,z,w\n",
    }  # fmt: skip
    if name == "words.parquet":
        table = {"tokens": [text.split() for text in texts], "ner_tags": [["B-X"] * 6 + ["O"] for _ in texts]}
        pyarrow.parquet.write_table(pyarrow.table(table), folder / name)
    elif name == "binary.csv":
        (folder / name).write_bytes(bytes(range(256)) * 40)
    else:
        (folder / name).write_text(content[name], encoding="cp1252" if name == "latin.csv" else "utf-8")


@pytest.mark.parametrize(
    ("name", "keys", "task"),
    [
        ("tickets.csv", {"text": "body", "label": "category"}, "classification"),
        ("latin.csv", {"text": "text", "label": "label", "encoding": "cp1252"}, "classification"),
        (
            "bare.csv",
            {"columns": ["column1", "column2"], "text": "column2", "label": "column1"},
            "classification",
        ),
        ("wrapped.json", {"field": "data", "label": "label"}, "classification"),
        ("short.csv", {"bad_rows": "drop"}, "classification"),
        (
            "survey.csv",
            {
                "text": "What could we do better next time?",
                "label": "How satisfied are you with our service?",
            },
            "classification",
        ),
        ("export.csv", {"text": "comment", "label": "mood"}, "classification"),
        ("titled.csv", {"text": "comment", "label": "mood"}, "classification"),
        ("nested.jsonl", {"text": "source.body", "label": "topic"}, "classification"),
        ("jira.csv", {"text": "Summary", "label": "Kind"}, "classification"),
        ("routing.csv", {"text": "message", "label": "team"}, "classification"),
        ("cats.jsonl", {"text": "text", "label": "cats"}, "classification"),
        ("choices.json", {"text": "data.text", "label": "annotations"}, "classification"),
        ("arrays.json", {"columns": ["column1", "column2"], "label": "column2"}, "classification"),
        ("split.csv", {"text": "text", "label": "label", "split": "split"}, "classification"),
        ("array.json", {"messages": "conversations"}, "causal_lm"),
        ("dated.csv", {"text": "message", "label": None}, "causal_lm"),
        ("chat.jsonl", {"messages": "messages"}, "causal_lm"),
        ("alpaca.jsonl", {"prompt": "instruction", "completion": "output", "chat": True}, "causal_lm"),
        ("task.jsonl", {"prompt": "instruction", "completion": "output", "chat": True}, "causal_lm"),
        ("dpo.jsonl", {"prompt": "prompt", "completion": "chosen", "chat": True}, "causal_lm"),
        ("orca.jsonl", {"prompt": "question", "completion": "response", "chat": True}, "causal_lm"),
        ("legacy.jsonl", {"prompt": "prompt", "completion": "completion", "chat": False}, "causal_lm"),
        ("setfit.jsonl", {"text": "text", "label": "label_text"}, "classification"),
        ("turk.csv", {"text": "Input.text", "label": "Answer.label"}, "classification"),
        ("plain.txt", {"format": "txt", "label": None}, "causal_lm"),
        ("pairs.tsv", {"source": "en", "target": "de", "truncation": "drop"}, "seq2seq"),
        ("corpus.en", {"path": "corpus", "source": "en", "target": "de", "format": "parallel"}, "seq2seq"),
        ("words.conll", {"format": "conll"}, "token_classification"),
        ("studio.json", {"words": "data.text", "tags": "annotations"}, "token_classification"),
        ("named.jsonl", {"words": "sentence", "tags": "mentions"}, "token_classification"),
        ("words.parquet", {"words": "tokens", "tags": "ner_tags"}, "token_classification"),
    ],
)
def test_a_config_for_a_file(
    name: str, keys: dict[str, object], task: str, init: Init, capsys: pytest.CaptureFixture[str]
) -> None:
    """A new user whose file is read otherwise than it was written, or whose config is refused by the next command."""
    write(Path(), name)
    if name == "corpus.en":
        write(Path(), "corpus.de")
    done = init(name)
    assert done.exit_code == 0, done.output
    require_words(done.output, task, "next: kdcli check kdcli.yaml")
    text = Path("kdcli.yaml").read_text()
    assert text.startswith("# yaml-language-server: $schema=kdcli.schema.json\n")
    assert max(map(len, text.splitlines())) < 200
    dataset = yaml.safe_load(text)["dataset"]
    assert {key: dataset[key] for key in keys} == keys
    assert launch("distill", ["kdcli.yaml"], check=CheckOptions(with_models=False, as_json=True)) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["rows"]["train"] > 40
    assert found["run_directory"] is None, "its name has the time at which the run starts"
    assert found["warnings"] == [] or "near-duplicate" in found["warnings"][0]


@pytest.mark.parametrize(
    ("name", "words", "named"),
    [
        ("binary.csv", [], ["binary.csv"]),
        ("empty.csv", [], ["empty.csv", "empty"]),
        ("nul.csv", [], ["nul.csv", "no column was found"]),
        ("nothing.json", [], ["nothing.json", "empty object"]),
        ("scalars.json", [], ["scalars.json", "row 1", "an object"]),
        ("nowhere.csv", [], ["nowhere.csv", "does not exist"]),
        ("folder", [], ["folder", "no files of data"]),
        ("kto.jsonl", [], ["classification", "causal_lm", "dataset.label=label", "dataset.prompt=prompt"]),
        ("two.csv", [], ["seq2seq", "causal_lm", "dataset.source=alpha", "dataset.completion=beta"]),
        ("onehot.csv", [], ["one-hot", "(axis=1)", "dataset.label=anger"]),
        ("many.csv", [], ["several labels a row", "dataset.label=anger"]),
        ("slack.json", [], ["dataset.text=", "dataset.label=null"]),
        ("tickets.csv", ["dataset.text=body", "dataset.delimiter=;", "dataset.label=nothing"], ["nothing"]),
        ("scores.csv", [], ["scores.csv", "regression", "dataset.as_classes=true"]),
        ("tickets.csv", ["dataset.labl=category"], ["dataset.labl", "label"]),
        ("tickets.csv", ["trainer.epochs=3"], ["trainer.epochs=3", "dataset.KEY=VALUE"]),
        ("tickets.csv", ["--out", "nowhere/kdcli.yaml"], ["nowhere", "--out"]),
        ("tickets.csv", ["--out", "there.yaml"], ["there.yaml", "--out"]),
    ],
)
def test_what_is_refused(name: str, words: list[str], named: list[str], init: Init) -> None:
    """A config that is guessed, or written over a user's own."""
    Path("folder").mkdir()
    Path("there.yaml").write_text("mine")
    if name not in ("folder", "nowhere.csv"):
        write(Path(), name)
    done = init(name, *words)
    assert done.exit_code == 2, done.output
    require_words(done.output, *named)
    assert not Path("kdcli.yaml").exists()
    assert Path("there.yaml").read_text() == "mine"


def test_columns_that_are_not_read(init: Init) -> None:
    """A column with a dot in its name is said not to be read, and to be the second text of a pair; or the input of an instruction is left out."""
    write(Path(), "turk.csv")
    write(Path(), "task.jsonl")
    told = init("turk.csv").output
    assert "columns that are not read: HITId\n" in told
    assert "text_pair" not in told
    assert "not read" not in init("task.jsonl", "--out", "task.yaml").output


def test_folders_that_name_the_label(init: Init) -> None:
    """A config for a language model, because one file of such a folder holds texts alone."""
    for label in "ab":
        (Path("parts") / f"label={label}").mkdir(parents=True)
        write(Path("parts") / f"label={label}", "plain.txt")
    done = init("parts")
    assert done.exit_code == 2, done.output
    require_words(done.output, "kdcli distill", "dataset.path=parts", "dataset.label=label")


def test_keys_choose_where_a_file_fits_several_tasks(init: Init) -> None:
    """The key that the refusal asks for must be one that is then taken."""
    write(Path(), "kto.jsonl")
    for words, task in (
        (["dataset.prompt=prompt", "dataset.completion=completion"], "causal_lm"),
        (["dataset.task=classification"], "classification"),
        (["dataset.text=prompt", "dataset.label=label"], "classification"),
    ):
        done = init("kto.jsonl", *words, "--out", f"{task}{len(words)}.yaml", "--no-schema")
        assert done.exit_code == 0, done.output
        require_words(done.output, task)
        assert "yaml-language-server" not in Path(f"{task}{len(words)}.yaml").read_text()
    assert yaml.safe_load(Path("classification2.yaml").read_text())["dataset"]["text"] == "prompt"


def test_the_schema_for_editors(init: Init) -> None:
    """An editor that marks right keys as wrong, or knows no options of a group; a schema of the user's that is written over."""
    write(Path(), "tickets.csv")
    assert init("tickets.csv").exit_code == 0
    schema = json.loads(Path("kdcli.schema.json").read_text())
    properties = schema["properties"]
    assert {"tiny", "layers"} <= set(properties["student"]["anyOf"][0]["enum"])
    assert schema["$defs"]["Trainer"]["properties"]["epochs"]
    assert properties["trainer.epochs"] == schema["$defs"]["Trainer"]["properties"]["epochs"]
    assert "Passes over the training rows" in properties["trainer.epochs"]["description"]
    assert "required" not in schema["$defs"]["Teacher"]
    assert not schema["additionalProperties"]
    used = [key for key in yaml.safe_load(Path("kdcli.yaml").read_text()) if key not in properties]
    assert not used
    Path("kdcli.schema.json").write_text("mine")
    assert init("tickets.csv", "--out", "other.yaml").exit_code == 0
    assert Path("kdcli.schema.json").read_text() == "mine"


def test_two_parallel_files_beside_a_readme_are_pairs(init: Init) -> None:
    """A licence that is taken for the data set."""
    Path("opus").mkdir()
    write(Path("opus"), "corpus.en")
    write(Path("opus"), "corpus.de")
    for name in ("README", "LICENSE"):
        Path("opus", name).write_text("Free to use.\n")
    assert init("opus").exit_code == 0
    dataset = yaml.safe_load(Path("kdcli.yaml").read_text())["dataset"]
    assert (dataset["path"], dataset["format"], dataset["source"]) == ("opus/corpus", "parallel", "de")
    assert launch("distill", ["kdcli.yaml"], check=CheckOptions(with_models=False, as_json=True)) == 0


def test_keys_of_a_conversation_are_those_of_the_run(init: Init) -> None:
    """A remedy that init itself refuses: the key is for another task than the columns that were given."""
    write(Path(), "system.csv")
    words = ["dataset.prompt=user", "dataset.completion=assistant"]
    refused = init("system.csv", *words)
    assert refused.exit_code == 2
    require_words(refused.output, "dataset.chat=true")
    assert init("system.csv", *words, "dataset.chat=true").exit_code == 0


@pytest.mark.parametrize("given", ["parts", "parts/*.csv"])
def test_all_files_of_a_folder_are_counted(
    given: str, init: Init, capsys: pytest.CaptureFixture[str]
) -> None:
    """A label that only the second file has is missing among those that the config lists."""
    (folder := Path("parts")).mkdir()
    for label in ("bad", "good"):
        rows = "".join(f"{label} text number {number},{label}\n" for number in range(60))
        (folder / f"{label}.csv").write_text(f"text,label\n{rows}", encoding="utf-8")
    done = init(given)
    assert done.exit_code == 0, done.output
    require_words(done.output, "120 rows", "bad 60", "good 60")
    assert yaml.safe_load(Path("kdcli.yaml").read_text())["dataset"]["path"] == given
    assert launch("distill", ["kdcli.yaml"], check=CheckOptions(with_models=False)) == 0
    assert "120" in capsys.readouterr().out


def test_a_first_row_that_is_no_header_is_no_measure_of_the_others(
    init: Init, caplog: pytest.LogCaptureFixture
) -> None:
    """A warning that nearly all rows are dropped, from a reading that took the first one for the header."""
    drawn = random.Random(1)
    lines = [
        f"the long text {number} of {sentence(drawn)}\tder lange Text {number}" for number in range(ROWS)
    ]
    Path("pairs.tsv").write_text(
        "\n".join([lines[0], *(f"{line}\tCC-BY" for line in lines[1:])]), encoding="utf-8"
    )
    done = init("pairs.tsv", "dataset.source=column1", "dataset.target=column2")
    assert done.exit_code == 0, done.output
    require_words(done.output, f"{ROWS} rows", "seq2seq")
    assert not [record for record in caplog.records if record.levelname == "WARNING"]


def test_a_column_of_scores_beside_two_texts_is_named(init: Init) -> None:
    """Pairs of sentences with their similarity become a translator, without a word of what the scores are."""
    drawn = random.Random(1)
    rows = "".join(f"{sentence(drawn)},{sentence(drawn)},{number % 50 / 10}\n" for number in range(ROWS))
    Path("sts.csv").write_text(f"a,b,score\n{rows}", encoding="utf-8")
    done = init("sts.csv")
    assert done.exit_code == 2
    require_words(done.output, "'score'", "regression", "dataset.source=a")


@pytest.mark.parametrize("given", ["nowhere.csv", "nowhere*.csv", "nowhere/here.txt"])
def test_a_file_that_is_not_there(given: str, init: Init) -> None:
    """A pattern that is taken for the name of a file, whose message names keys that the user has not typed."""
    done = init(given)
    assert done.exit_code == 2
    assert given in done.output
    assert "dataset.unlabelled" not in done.output


def rows_of(texts: list[str], labels: list[object], between: str = ",") -> str:
    """Lines of texts with labels."""
    return "".join(f"{text}{between}{label}\n" for text, label in zip(texts, labels, strict=True))


def some_texts(count: int = 60) -> list[str]:
    """Different texts of a few words."""
    drawn = random.Random(2)
    return [f"{sentence(drawn)} {number}" for number in range(count)]


@pytest.mark.parametrize("beside", ["reviews.bak", "reviews.md", "notes.txt", "reviews.tmx", "reviews.old"])
def test_a_file_beside_another_one_is_no_translation_of_it(beside: str, init: Init) -> None:
    """A table beside its backup or a readme becomes a translator, because the two names differ in three letters."""
    name = "raw.txt" if beside == "notes.txt" else "reviews.txt"
    table = "text\tlabel\n" + rows_of(some_texts(), ["bad", "good"] * 30, "\t")
    Path(name).write_text(table, encoding="utf-8")
    Path("tag.txt" if beside == "notes.txt" else beside).write_text(table, encoding="utf-8")
    done = init(name)
    assert done.exit_code == 0, done.output
    require_words(done.output, "classification", "bad 30", "good 30")


@pytest.mark.parametrize("given", ["texts", "texts/polarity.neg"])
@pytest.mark.parametrize("names", ["polarity.neg polarity.pos", "ham.txt spam.txt"])
def test_two_files_of_a_class_each_are_no_pairs(names: str, given: str, init: Init) -> None:
    """A translator from bad reviews into good ones."""
    Path("texts").mkdir()
    for name in names.split():
        Path("texts", name).write_text("\n".join(some_texts()), encoding="utf-8")
    done = init(given if Path(given).exists() else "texts/ham.txt")
    assert done.exit_code == 2, done.output
    require_words(done.output, "csv or jsonl", "dataset.path", *names.split())


def test_a_file_of_brat_is_refused_by_its_converter(init: Init) -> None:
    """Annotations that stand apart from their texts are called a translation of these, or a file without rows."""
    Path("one.ann").write_text("T1\tPER 0 4\tAnna\n", encoding="utf-8")
    Path("one.txt").write_text("Anna left.\n", encoding="utf-8")
    done = init("one.ann")
    assert done.exit_code == 2, done.output
    require_words(done.output, "one.ann", "brat", "anntoconll.py", "dataset=conll")


@pytest.mark.parametrize(
    ("header", "pair"),
    [
        ("premise,hypothesis,gold_label", ("premise", "hypothesis")),
        ("id,question1,question2,is_duplicate", ("question1", "question2")),
        ("sentence_A,sentence_B,label", ("sentence_A", "sentence_B")),
        ("title,body,label", ("body", None)),
        ("option1,option2,option3,label", ("option2", None)),
    ],
)
def test_the_two_texts_of_a_pair_are_read(header: str, pair: tuple[str, str | None], init: Init) -> None:
    """A classifier of pairs that is trained on one of their texts, without a word of the other one."""
    count = len(header.split(",")) - 1 - header.startswith("id")
    texts = [some_texts(120)[60 * (at % 2) : 60 + 60 * (at % 2)] for at in range(count)]
    rows = [
        f"{index}," * header.startswith("id") + ",".join(own)
        for index, own in enumerate(zip(*texts, strict=True))
    ]
    Path("pairs.csv").write_text(f"{header}\n{rows_of(rows, ['yes', 'no', 'maybe'] * 20)}", encoding="utf-8")
    done = init("pairs.csv")
    assert done.exit_code == 0, done.output
    dataset = yaml.safe_load(Path("kdcli.yaml").read_text())["dataset"]
    assert (dataset["text"], dataset.get("text_pair")) == pair
    if pair[1] is None:
        require_words(done.output, "dataset.text_pair=")


def test_the_second_text_can_be_given(init: Init) -> None:
    """A given key of the second text that leaves the first one to be the same column."""
    first, second = some_texts(120)[:60], some_texts(120)[60:]
    rows = [f"{one},{other}" for one, other in zip(first, second, strict=True)]
    Path("pairs.csv").write_text(f"title,body,label\n{rows_of(rows, ['yes', 'no'] * 30)}", encoding="utf-8")
    done = init("pairs.csv", "dataset.text_pair=body")
    assert done.exit_code == 0, done.output
    dataset = yaml.safe_load(Path("kdcli.yaml").read_text())["dataset"]
    assert (dataset["text"], dataset["text_pair"], dataset["label"]) == ("title", "body", "label")


def words_and_tags(between: str) -> list[tuple[str, str]]:
    """Sentences with a tag for each word, in one text."""
    drawn = random.Random(3)
    lengths = [drawn.randint(3, 6) for _ in range(40)]
    return [
        (f"Anna saw {sentence(drawn, length)}", between.join(["B-PER", "O", *["O"] * length]))
        for length in lengths
    ]


@pytest.mark.parametrize(
    ("names", "between"),
    [(("sentence", "word_labels"), ","), (("text", "labels"), " "), (("tokens", "tags"), " ")],
)
def test_words_and_tags_that_are_joined(names: tuple[str, str], between: str, init: Init) -> None:
    """A language model of sentences whose tags are left out, because one text holds the tags of all words."""
    rows = [dict(zip(names, row, strict=True)) for row in words_and_tags(between)]
    Path("joined.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    done = init("joined.jsonl")
    assert done.exit_code == 0, done.output
    dataset = yaml.safe_load(Path("kdcli.yaml").read_text())["dataset"]
    assert (dataset["words"], dataset["tags"]) == names


@pytest.mark.parametrize(
    ("label", "named"),
    [
        ("id-{:08x}-4abc", ["'label'", "identifier", "dataset.label="]),
        ("one more long text of row {}", ["'label'", "free text", "dataset.label="]),
    ],
)
def test_a_column_called_label_is_not_left_out(label: str, named: list[str], init: Init) -> None:
    """A language model of the texts alone, because the column that is called label holds no classes."""
    labels: list[object] = [label.format(number) for number in range(60)]
    Path("ids.csv").write_text(f"text,label\n{rows_of(some_texts(), labels)}", encoding="utf-8")
    done = init("ids.csv")
    assert done.exit_code == 2, done.output
    require_words(done.output, *named)


@pytest.mark.parametrize("score", [0.9, None])
@pytest.mark.parametrize("column", ["label", "prediction"])
def test_a_label_in_a_mapping_is_no_span(column: str, score: float | None, init: Init) -> None:
    """A prediction with its score is called a broken span, or is left out of a language model."""
    rows = [
        {"text": text, column: {"label": "ab"[n % 2], "score": score or (n + 1) / 64}}
        for n, text in enumerate(some_texts())
    ]
    Path("predictions.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    done = init("predictions.jsonl")
    assert done.exit_code == 0, done.output
    assert yaml.safe_load(Path("kdcli.yaml").read_text())["dataset"]["label"] == f"{column}.label"


def test_one_number_among_texts(init: Init) -> None:
    """A file that fits no task, because one text of 60 is a number."""
    rows = [{"text": text, "label": "ab"[n % 2]} for n, text in enumerate([*some_texts(59), 7])]
    Path("texts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    done = init("texts.jsonl")
    assert done.exit_code == 0, done.output
    require_words(done.output, "classification", "line 60", "dataset.bad_rows")


def test_texts_without_spaces_that_hold_numbers(init: Init) -> None:
    """A sentence in Chinese with a number in it is taken for an identifier, and the file for one without texts."""
    rows = "".join(f"{n},这家餐厅的服务非常好，订单{n}号,{'好差'[n % 2]}评\n" for n in range(ROWS))
    Path("reviews.csv").write_text("编号,评论,类别\n" + rows, encoding="utf-8")
    require_words(init("reviews.csv").stdout, "text = 评论", "label = 类别", "好评 60")


def test_what_repeats_and_is_no_class(init: Init) -> None:
    """Confidences, shares of labels and the roles of messages are proposed as classes, and worse answers as what is to be learned."""
    texts = [f"{sentence(random.Random(n))} {n}" for n in range(ROWS)]
    with_shares = [
        {"text": text, "label": {"pos": n % 9 / 10, "neg": 1 - n % 9 / 10}} for n, text in enumerate(texts)
    ]
    messages = [{"text": text, "role": ("user", "assistant")[n % 2]} for n, text in enumerate(texts)]
    sure = [{"text": text, "topic_": "abc"[n % 3], "confidence": n % 7 / 10} for n, text in enumerate(texts)]
    pairs = [{"chosen": text, "rejected": f"no, {text}"} for text in texts]
    for name, rows in {"shares": with_shares, "roles": messages, "sure": sure, "pairs": pairs}.items():
        Path(f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    refused = init("shares.jsonl")
    assert refused.exit_code == 2
    assert "label.pos" not in refused.stderr
    assert "classification" not in init("roles.jsonl", "--out", "roles.yaml").stdout
    require_words(init("sure.jsonl", "--out", "sure.yaml").stdout, "label = topic_", "confidence")
    require_words(init("pairs.jsonl", "--out", "pairs.yaml").stdout, "text = chosen", "rejected")
