"""Tags of words through the real command: from a body without a head to a report, as users type it."""

from __future__ import annotations

import json
import random
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import pytest
import torch
import yaml
from safetensors.torch import load_file
from support.commands import read, require_words, runner
from support.tiny import BAD, FILLER, GOOD, bert, run_snippet, speller, write_jsonl
from transformers import (
    AutoModelForTokenClassification,
    AutoTokenizer,
    BertModel,
    RobertaConfig,
    RobertaForTokenClassification,
    pipeline,
)

from kdcli.evaluation.results import finished_report
from kdcli.exporting import snippets
from kdcli.exporting.artifacts import _tokenize_words, folder_of
from kdcli.exporting.runtimes import runtime_of
from kdcli.exporting.targets.cuda import Cuda
from kdcli.exporting.targets.intel import Intel
from kdcli.launch.inference import load as load_model
from kdcli.launch.inference import predict
from kdcli.launch.run import launch
from kdcli.tasks.rows import IGNORE
from kdcli.tasks.token_classification.task import TokenClassification

Run = Callable[..., Path]


def tagged(count: int, seed: int = 0) -> list[dict[str, Any]]:
    """Distinct sentences with good and bad entities of one to three words: half of those words begin one, half go on. One in
    twenty is tagged as the other type."""
    chance = random.Random(seed)
    rows: dict[str, dict[str, Any]] = {}
    while len(rows) < count:
        words, tags = [], []
        for _ in range(chance.randint(1, 4)):
            some = chance.choices(FILLER, k=chance.randint(1, 3))
            words, tags = words + some, tags + ["O"] * len(some)
            kind, pool = chance.choice([("good", GOOD), ("bad", BAD)])
            if chance.random() < 0.7:
                more = chance.randint(0, 2)
                words += [chance.choice(pool[:3]), *chance.choices(pool[3:], k=more)]
                kind = kind if chance.random() > 0.05 else "bad"
                tags += [f"B-{kind}"] + [f"I-{kind}"] * more
        rows[" ".join(words)] = {"tokens": words, "ner": tags}
    return list(rows.values())


@pytest.fixture(scope="module")
def options(body: Path, tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """A run of a few seconds: a body without a head, that is tuned first."""
    path = write_jsonl(tmp_path_factory.mktemp("data") / "tags.jsonl", tagged(400))
    return [
        "teacher=local",
        f"teacher.path={body}",
        "teacher.trainer.precision=fp32",
        "teacher.trainer.learning_rate=3e-3",
        "teacher.trainer.epochs=6",
        "student.hidden_size=16",
        "student.num_hidden_layers=1",
        "student.dropout=0",
        "student.intermediate_size=32",
        "dataset=jsonl",
        f"dataset.path={path}",
        "dataset.words=tokens",
        "dataset.tags=ner",
        "dataset.validation_size=60",
        "dataset.test_size=80",
        "dataset.max_length=32",
        "trainer.precision=fp32",
        "trainer.batch_size=16",
        "trainer.learning_rate=3e-3",
        "trainer.epochs=2",
        "measure=null",
    ]


@pytest.fixture(scope="module")
def run(options: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run: some rows have lost their tags, others never had any."""
    folder = tmp_path_factory.mktemp("runs")
    bare = [{"tokens": row["tokens"]} for row in tagged(60, seed=5)]
    more = write_jsonl(folder / "bare.jsonl", [*bare, *bare])
    hidden = ["dataset.labelled=200", f"dataset.unlabelled={more}", "dataset.unlabelled_limit=40"]
    assert launch("distill", [*options, *hidden, f"hydra.run.dir={folder / 'run'}"]) == 0
    return folder / "run"


@pytest.fixture
def distil(options: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    monkeypatch.chdir(tmp_path)

    def all_options(*overrides: str) -> list[str]:
        shaped = not any(option.startswith("student=") for option in overrides)
        return [*(option for option in options if shaped or not option.startswith("student.")), *overrides]

    return runner(tmp_path, all_options)


def said_by(student: Path) -> tuple[list[str], list[str], Any]:
    """Words, a tagger's tag and each of them, and what it reads."""
    model = AutoModelForTokenClassification.from_pretrained(student).eval()
    tokenizer = AutoTokenizer.from_pretrained(student)
    words = next(row["tokens"] for row in tagged(400) if {"B-good", "B-bad", "O"} <= set(row["ner"]))
    row = tokenizer(" ".join(words), return_tensors="pt")
    rows = datasets.Dataset.from_list([{"words": words, "label": [0] * len(words)}])
    firsts = TokenClassification(["O"]).encode(tokenizer, rows, 64)[0]["labels"] != IGNORE
    with torch.inference_mode():
        tags = model(**row).logits[0, firsts].argmax(-1).tolist()
    return words, [f"{model.config.id2label[tag]} {word}" for tag, word in zip(tags, words, strict=True)], row


def test_a_run_tells_what_became_of_the_entities(run: Path) -> None:
    """A report of single words: nine of ten are O, and a student that finds no name has 90 %."""
    assert not finished_report(run).model_extra, "docs/report.schema.json has all entries"
    report = read(run / "report.json")
    assert (report["task"], report["metric"], report["test_examples"]) == ("token_classification", "f1", 80)
    assert report["labels"] == ["B-bad", "B-good", "I-bad", "I-good", "O"]
    assert (report["dataset"]["train"], report["dataset"]["labelled"]) == (300, 200)
    for name in ("teacher", "control", "student"):
        model = report["models"][name]
        scores = model["scores"]
        assert model["score"] == scores["f1"]
        low, high = scores["f1_ci95"]
        assert low < scores["f1"] < high
        assert set(scores["per_type_f1"]) == set(scores["entities"]) == {"good", "bad"}
        assert scores["f1"] == pytest.approx(2 / (1 / scores["precision"] + 1 / scores["recall"])), (
            "the harmonic mean"
        )
        assert 0 < scores["token_accuracy"] <= 1
    assert report["models"]["teacher"]["score"] > 0.9
    assert 0.5 < report["models"]["student"]["score"] < report["models"]["teacher"]["score"]
    verdict = report["verdict"]
    gain = report["models"]["student"]["score"] - report["models"]["control"]["score"]
    assert verdict["gain_over_control"] == pytest.approx(gain)
    assert verdict["gain_ci95"][0] <= gain <= verdict["gain_ci95"][1]
    assert 0 < verdict["agreement"] <= 1
    assert verdict["kl_to_teacher"] > 0
    require_words(verdict["text"], "teacher's entity F1")


def test_the_page_and_the_card_speak_of_entities(run: Path) -> None:
    """A card of a text classifier, with code that fails; a table of classes that is empty, or one of tags."""
    page = (run / "report.html").read_text()
    assert "entity F1" in page
    assert "test entities" in page
    for kind, count in read(run / "report.json")["models"]["student"]["scores"]["entities"].items():
        assert re.search(rf'title="{kind}">{kind}</th><td>{count}</td>', page)
    _, front, text = (run / "student" / "README.md").read_text().split("---\n", 2)
    head = yaml.safe_load(front)
    assert head["pipeline_tag"] == "token-classification"
    assert head["metrics"] == ["f1", "precision", "recall"]
    assert 'pipeline("token-classification"' in text
    assert "| entity F1 |" in text
    assert "| precision | recall |" in text


def test_the_student_is_a_plain_tagger(run: Path) -> None:
    """A student that only kdcli can use, or that has its tags under other numbers than it says."""
    tag = pipeline("token-classification", model=str(run / "student"), aggregation_strategy="first")
    row = next(row for row in tagged(400) if "B-good" in row["ner"] and "B-bad" in row["ner"])
    found = tag(" ".join(row["tokens"]))
    gold = sum(name.startswith("B-") for name in row["ner"])
    assert len(found) == gold, (found, row)
    assert {entity["entity_group"] for entity in found} <= {"good", "bad"}


@pytest.mark.parametrize("split", ["test", "train"])
def test_eval_of_a_run(run: Path, tmp_path: Path, split: str) -> None:
    """Scores that differ from the report's, or that count words whose tags are hidden."""
    into = tmp_path / "eval"
    assert launch("eval", [f"run={run}", f"split={split}", "measure=null", f"hydra.run.dir={into}"]) == 0
    scored, report = json.loads((into / "eval.json").read_text()), read(run / "report.json")
    assert scored["examples"] == {"test": 80, "train": 200}[split]
    if split == "test":
        assert set(scored["models"]) == {"teacher", "control", "student"}
        for name, model in scored["models"].items():
            for key in ("f1", "ece"):
                assert model["scores"][key] == pytest.approx(report["models"][name]["scores"][key])
        assert scored["verdict"]["gain_ci95"] == report["verdict"]["gain_ci95"]


def test_eval_of_a_checkpoint_is_measured(
    run: Path, options: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A process of its own that loads the tagger as a classifier of texts times another model."""
    data = [option for option in options if option.startswith("dataset")]
    fast = ["measure.latency_runs=3", "measure.throughput_seconds=0.05"]
    into = tmp_path / "eval"
    assert launch("eval", [f"model={run / 'student'}", *data, *fast, f"hydra.run.dir={into}"]) == 0
    model = json.loads((into / "eval.json").read_text())["models"]["model"]
    assert model["latency_ms"]["p50"] > 0
    assert model["throughput_per_s"] > 0
    out = capsys.readouterr().out
    assert "entity F1" in out
    assert max(map(len, out.splitlines()[:3])) <= 80


def test_export_to_onnx(run: Path, tmp_path: Path) -> None:
    """Logits of the padding or of the wrong tokens beside the torch student's, or a target that refuses taggers."""
    fast = ["measure.latency_runs=3", "measure.throughput_seconds=0.05", "measure.request_rates=[]"]
    fast.append("hardware.tolerance.agreement=0.9")
    assert launch("export", [f"run={run}", "hardware=cpu", "hardware.tolerance.score_drop=0.1", *fast]) == 0
    made = json.loads((run / "export" / "cpu" / "export.json").read_text())
    whole = made["artifacts"]["model.onnx"]
    assert whole["parity"]["agreement"] == 1
    assert whole["parity"]["same_tokens"] == 1
    assert whole["parity"]["max_abs_difference"] < 1e-4
    assert whole["score"] == pytest.approx(read(run / "report.json")["models"]["student"]["score"])
    words, expected, _ = said_by(run / "student")
    assert "\nPARTS = {'B-bad': ('B', 'bad')," in (run / "export" / "cpu" / "student.py").read_text()
    name = {"MODEL": "model.onnx"}
    (script,) = snippets.write(run / "export" / "cpu", "onnx", "token_classification", name)
    assert run_snippet(script, " ".join(words)) == expected
    bare = subprocess.run([sys.executable, str(script)], capture_output=True, text=True, check=False)
    assert (bare.returncode, bare.stdout) == (1, "")
    assert bare.stderr.startswith('usage: python run_onnx.py "A sentence."')
    into = tmp_path / "eval"
    assert launch("eval", [f"run={run}", "artifact=model.onnx", "measure=null", f"hydra.run.dir={into}"]) == 0
    assert json.loads((into / "eval.json").read_text())["models"]["model.onnx"]["score"] == whole["score"]
    text = " ".join(words)
    of_student, of_export = (
        load_model(str(path)).predict([text])[0] for path in (run, run / "export" / "cpu" / "model.onnx")
    )
    assert of_export["entities"] == [
        each | {"probability": pytest.approx(each["probability"], abs=1e-4)}
        for each in of_student["entities"]
    ]


def test_predict_finds_entities_and_where_they_stand(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Offsets beside the entity, entities of single pieces, or other ones than the tags of the student say."""
    words, expected, _ = said_by(run / "student")
    assert predict(str(run), [" ".join(words)], as_json=True) == 0
    (answer,) = map(json.loads, capsys.readouterr().out.splitlines())
    groups: list[tuple[str, list[str]]] = []
    last = "O"
    for tag, word in (line.split() for line in expected):
        if tag[0] == "B" or (tag[0] == "I" and tag[2:] != last[2:]):
            groups.append((tag[2:], [word]))
        elif tag[0] == "I":
            groups[-1][1].append(word)
        last = tag
    entities = answer["entities"]
    assert [(each["type"], each["text"]) for each in entities] == [
        (kind, " ".join(of)) for kind, of in groups
    ]
    for each in entities:
        assert answer["text"][each["start"] : each["end"]] == each["text"]
        assert 0 < each["probability"] <= 1
    predictor = load_model(str(run))
    assert predictor.predict([words])[0]["entities"] == entities, "a list of words is the same text"
    sentence = f"  {words[0]},   {' '.join(words[1:])}"
    for each in predictor.predict([sentence, ",", "word " * 400])[0]["entities"]:
        assert sentence[each["start"] : each["end"]] == each["text"]


@pytest.fixture
def glued(tmp_path: Path) -> Path:
    """A tagger over a byte-level tokenizer that puts no space before a text's first word, as RoBERTa's and GPT-2's do not."""
    tokenizer = speller(template=None, size=300)
    tokenizer.model_input_names = ["input_ids", "attention_mask"]
    torch.manual_seed(4)
    config = RobertaConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=32,
        max_position_embeddings=80,
        num_labels=4,
        initializer_range=0.5,
        pad_token_id=tokenizer.pad_token_id,
    )
    RobertaForTokenClassification(config).save_pretrained(tmp_path / "glued")
    tokenizer.save_pretrained(tmp_path / "glued")
    return tmp_path / "glued"


@pytest.mark.long
def test_what_runs_the_other_files_without_kdcli_tags_as_the_student_does(
    glued: Path, tmp_path: Path
) -> None:
    """Lines that do not run, that tag padding, that give a word its neighbour's tag, or that read words as the student does not:
    without the spaces between them."""
    words, expected, row = said_by(glued)
    assert len({line.split()[0] for line in expected}) > 2
    out = tmp_path / "out"
    out.mkdir()
    model = AutoModelForTokenClassification.from_pretrained(glued).eval()
    files = Intel(["fp16"]).export(glued, out, model, [row], 64)
    files |= Cuda().export(glued, out, model, [row], 64)
    scripts, cut, entities = {}, {}, {}
    for file in files.values():
        runtime = runtime_of(file)
        values = {"MAX_LENGTH": 64, "MODEL": file.name}
        (script,) = snippets.write(folder_of(file), runtime, "token_classification", values)
        scripts[runtime] = run_snippet(script, *words)
        cut[runtime] = run_snippet(script, *(words * 20))
        answer = load_model(str(file)).predict([" ".join(words)])[0]
        entities[runtime] = [(each["type"], each["start"], each["end"]) for each in answer["entities"]]
    assert scripts == dict.fromkeys(["openvino", "torch", "exported"], expected)
    assert entities["openvino"]
    assert entities["openvino"] == entities["torch"] == entities["exported"]
    assert cut["openvino"] == cut["torch"] == cut["exported"]
    assert len(words) < len(cut["torch"]) < 64, "words that no longer fit have no tag"
    assert _tokenize_words(out, [words], 64, "right") == row["input_ids"].tolist()


def test_conll_files_smoke_and_a_cut_student(distil: Run, tmp_path: Path) -> None:
    """A rehearsal, a format or an initialization that works for texts with one label alone."""
    sizes = {"B-good": "good_B", "I-good": "good_M", "B-bad": "bad_B", "I-bad": "bad_M", "O": "none"}
    lines = [
        f"# text = {' '.join(row['tokens'])}\n"
        + "".join(f"{i}\t{a}\t_\t{sizes[b]}\n" for i, (a, b) in enumerate(zip(*row.values(), strict=True), 1))
        for row in tagged(300, seed=2)
    ]
    (tmp_path / "a.conll").write_text("\n".join(lines))
    data = [
        "dataset=conll",
        f"dataset.path={tmp_path / 'a.conll'}",
        "dataset.words=null",
        "dataset.tags=null",
    ]
    made = distil(
        "smoke", *data, "student=layers", "student.num_hidden_layers=1", "debug=smoke", "measure=null"
    )
    report = read(made / "report.json")
    assert report["smoke"]
    assert report["task"] == "token_classification"
    assert report["tags"] == {
        "form": "suffixes",
        "letters": ["B", "M"],
        "outside": ["none"],
        "types": ["bad", "good"],
    }
    assert "class Tagger(TokenClassificationPipeline)" in (made / "student" / "README.md").read_text()
    student = AutoModelForTokenClassification.from_pretrained(made / "student")
    assert student.config.num_hidden_layers == 1
    assert student.config.hidden_size == 32
    assert student.config.id2label == dict(enumerate(report["labels"]))
    assert launch("eval", [f"run={made}", "measure=null", f"hydra.run.dir={tmp_path / 'eval'}"]) == 0
    verdict = json.loads((tmp_path / "eval" / "eval.json").read_text())["verdict"]
    require_words(verdict["text"], "smoke run")


def test_micro_batches_do_not_change_the_student(distil: Run) -> None:
    """Means over micro-batches of unlike numbers of words give the words of short rows another weight."""
    brief = [
        "trainer.max_steps=6",
        "control=false",
        "smoke=true",
        "trainer.keep=last",
        "trainer.batch_size=8",
    ]
    whole = distil("whole", *brief)
    parts = distil("parts", *brief, "trainer.micro_batch_size=2")
    ours, theirs = (load_file(made / "student" / "model.safetensors") for made in (whole, parts))
    for name, weight in ours.items():
        torch.testing.assert_close(weight, theirs[name], atol=2e-5, rtol=1e-3)


@pytest.fixture
def letters(tmp_path: Path) -> Path:
    """A checkpoint whose tokenizer cuts words into other pieces than the teacher's."""
    tokenizer = speller(template=None, size=300)
    config = bert(tokenizer, ["bad", "good"], hidden=16, layers=1).config
    config.pad_token_id = tokenizer.pad_token_id
    BertModel(config).save_pretrained(tmp_path / "letters")
    tokenizer.save_pretrained(tmp_path / "letters")
    return tmp_path / "letters"


def test_a_student_with_another_tokenizer(distil: Run, letters: Path) -> None:
    """A comparison token by token, or a refusal: words are the same to both, whatever their pieces."""
    own = [
        "student=local",
        f"student.path={letters}",
        "control=false",
        "smoke=true",
        "trainer.max_steps=4",
    ]
    report = read(distil("run", *own, "dataset.max_length=64") / "report.json")
    assert report["verdict"]["kl_to_teacher"] > 0
    models = report["models"]
    assert models["student"]["scores"]["entities"] == models["teacher"]["scores"]["entities"]
    distil("cut", *own, "dataset.max_length=16")  # each cuts off other words


def test_a_trimmed_tokenizer_that_needs_more_tokens(
    distil: Run, letters: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Words of the test rows that the student has to spell go beyond a row's end, which is found when they are read: after all training."""
    rows = tagged(300)
    seen = [row for row in rows if not {"very", "quite"} & set(row["tokens"])]
    new = [row for row in rows if {"very", "quite"} <= set(row["tokens"])]
    path = write_jsonl(tmp_path / "seen.jsonl", seen)
    own = [f"dataset.path={path}", f"dataset.test={write_jsonl(tmp_path / 'new.jsonl', new)}"]
    own += ["student=vocabulary", f"student.path={letters}", "teacher.trainer.epochs=1", "smoke=true"]
    run = distil(
        "run", *own, "dataset.max_length=16", "dataset.validation_size=16", "dataset.test_size=8", code=2
    )
    message = " ".join(capsys.readouterr().err.split())
    require_words(message, "test: row", "no token", "dataset.max_length = 16", "min_count", "max_tokens")
    assert "Traceback" not in message
    assert not (run / "student").exists()


@pytest.mark.parametrize(
    ("rows", "more", "words"),
    [
        ([{"tokens": ["a", "b"], "ner": ["O"]}], [], ("line 1", "2 words", "1 tags")),
        ([{"tokens": ["", "\u200b"], "ner": ["O", "O"]}], [], ("line 1", "no words")),
        ([{"tokens": [], "ner": []}], [], ("line 1", "no words")),
        ([{"tokens": ["a"], "ner": ["X-1"]}], ["dataset.labels=[O,B-good,I-good,B-bad,I-bad]"], ("line 1", "'X-1'", "O, B-good, I-good, B-bad, I-bad")),
        ([], ["dataset.tags=null"], ("words and tags", "both columns")),
        ([], ["dataset.tags=tags"], ("column 'tags'", "tokens, ner")),
        ([], ["dataset.format=csv"], ("a.jsonl", "csv", "dataset.format=auto")),
        ([], ["rollout=teacher"], ("rollout.source", "token_classification", "write nothing")),
        ([], ["dataset.max_length=2"], ("no token", "dataset.max_length = 2")),
        ([], ["teacher.tune=false"], ("no head", "teacher.tune=false")),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)  # fmt: skip
def test_bad_input(
    distil: Run,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    rows: list[dict[str, Any]],
    more: list[str],
    words: tuple[str, ...],
) -> None:
    """A traceback, or a run that begins: what is wrong is known before anything is trained."""
    path = write_jsonl(tmp_path / "a.jsonl", [*rows, *tagged(100)])
    distil("run", f"dataset.path={path}", "dataset.validation_size=10", "dataset.test_size=10", *more, code=2)
    message = capsys.readouterr().err
    require_words(message, *words)
    assert "Traceback" not in message
    assert not (tmp_path / "run" / "student").exists()
