"""`kdcli distill teacher=openai` as users type it, against a server of the tests."""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from endpoint import Host, Reply, likely, said
from tiny import BAD, GOOD, pairs, speaker, talk, translation, write_pairs

from kdcli.launch import launch

KEY = "sk-never-write-this-down"
Served = Callable[[Reply], Host]


@pytest.fixture
def served() -> Iterator[Served]:
    """Starts servers that are stopped in the end."""
    hosts: list[Host] = []

    def serve(reply: Reply) -> Host:
        hosts.append(Host(reply))
        return hosts[-1]

    yield serve
    for host in hosts:
        host.close()


@pytest.fixture
def ask(
    body: Path, reviews: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[..., tuple[int, Path]]:
    """Runs a distillation of a second from a server; the cache of answers is the test's own."""
    monkeypatch.setenv("KDCLI_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setenv("TEST_KEY", KEY)
    monkeypatch.chdir(tmp_path)

    def run(host: Host, *overrides: str, folder: str = "run") -> tuple[int, Path]:
        options = [
            "teacher=openai",
            f"teacher.base_url={host.url}",
            "teacher.model=parrot",
            "teacher.api_key_env=TEST_KEY",
            f"teacher.stand_in={body}",
            "student.hidden_size=16",
            "student.num_hidden_layers=1",
            "student.intermediate_size=32",
            "dataset=csv",
            f"dataset.path={reviews}",
            "dataset.validation_size=64",
            "dataset.test_size=96",
            "dataset.max_length=32",
            "trainer.precision=fp32",
            "trainer.batch_size=16",
            "trainer.epochs=2",
            "measure=null",
            f"hydra.run.dir={tmp_path / folder}",
        ]
        return launch("distill", [*options, *overrides]), tmp_path / folder

    return run


def last(body: dict[str, Any]) -> str:
    return body["messages"][-1]["content"]


def is_good(text: str) -> bool:
    words = set(re.findall(r"\w+", text.casefold()))
    return len(words & set(GOOD)) >= len(words & set(BAD))


def opinion(body: dict[str, Any]) -> list[dict[str, Any]]:
    """A teacher that is right, and tells how sure it is."""
    good = is_good(last(body).split("Text:")[-1])
    return [likely({"good": 0.7, "bad": 0.1, "hm": 0.15} if good else {" Bad": 0.6, "Good": 0.2, "\n": 0.1})]


def report_of(run: Path) -> dict[str, Any]:
    return json.loads((run / "report.json").read_text())


def test_from_an_endpoint_to_a_student(ask: Any, served: Served, capsys: pytest.CaptureFixture[str]) -> None:
    """The whole way, with soft labels from the tokens; and the key stands in no file of the run, and in no message."""
    host = served(opinion)
    status, run = ask(host, "teacher.prices.prompt=1", "teacher.prices.completion=10")
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
    assert 0.15 < asked["missing_mass"] < 0.25
    assert asked["agreement"]["accuracy"] > 0.9
    assert len(asked["answers"]) == 20
    assert sum(asked["answers"][0]["labels"].values()) == pytest.approx(1)
    assert "will be asked" in err
    assert "cost" in out
    assert host.keys == {f"Bearer {KEY}"}
    files = [path for path in [*run.rglob("*"), *run.parent.glob("cache/**/*")] if path.is_file()]
    assert not [path for path in files if KEY.encode() in path.read_bytes()]
    assert KEY not in out + err
    before = len(host.bodies)
    status, again = ask(host, folder="again")
    assert (status, len(host.bodies)) == (0, before)
    assert report_of(again)["endpoint"]["from_ledger"] == before
    assert report_of(again)["models"]["student"]["scores"] == report["models"]["student"]["scores"]


def test_no_key(
    ask: Any, served: Served, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Without a key one line says which variable is meant, and nothing is left behind."""
    monkeypatch.delenv("TEST_KEY")
    status, run = ask(served(opinion))
    assert status == 2
    err = capsys.readouterr().err
    assert "TEST_KEY" in err
    assert len(err.strip().splitlines()) == 1
    assert not run.exists()
