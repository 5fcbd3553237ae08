"""A remote teacher from the user's own folder, through the real command."""

from __future__ import annotations

import json
import re
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from support.commands import ColdCache, require_words
from support.tiny import BAD, GOOD, start, wait_for

from kdcli.launch.run import launch

FOLDER = Path(__file__).parent.parent / "support" / "classifier"
"""A user's folder: `http_classifier.py` and `teacher/classifier.yaml`."""
ROWS = 120 + 32 + 48
"""Of the data set."""


class Service(ThreadingHTTPServer):
    """A classifier that counts the texts it was sent, waits `seconds`, and rejects texts about a song."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.sent: Counter[str] = Counter()
        self.seconds = 0.0
        self.lock = threading.Lock()
        self.url = f"http://127.0.0.1:{self.server_port}/classify"


class Handler(BaseHTTPRequestHandler):
    server: Service

    def do_POST(self) -> None:
        text = json.loads(self.rfile.read(int(self.headers["Content-Length"])))["text"]
        with self.server.lock:
            self.server.sent[text] += 1
        time.sleep(self.server.seconds)
        if "song" in text:
            self.send_error(400, "no songs")
            return
        words = set(re.findall(r"\w+", text.casefold()))
        good = 0.8 if len(words & set(GOOD)) >= len(words & set(BAD)) else 0.1
        data = json.dumps({"probabilities": {"good": good, "bad": 1 - good}}).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture
def service() -> Iterator[Service]:
    with Service() as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield server
        server.shutdown()
        thread.join()


@pytest.fixture
def options(
    service: Service, body: Path, reviews: Path, tmp_path: Path, cold_cache: ColdCache
) -> Callable[..., list[str]]:
    """The overrides of a run of a second; the cache of answers is the test's own."""
    cold_cache("cache")

    def words(folder: str, *more: str) -> list[str]:
        return [
            "teacher=classifier",
            f"teacher.url={service.url}",
            f"student.init_from={body}",
            "student.hidden_size=16",
            "student.num_hidden_layers=1",
            "student.dropout=0",
            "trainer.token_dropout=0",
            "trainer.embedding_learning_rate_factor=1",
            "student.intermediate_size=32",
            "dataset=csv",
            f"dataset.path={reviews}",
            "dataset.limit=120",
            "dataset.validation_size=32",
            "dataset.test_size=48",
            "dataset.max_length=32",
            "trainer.precision=fp32",
            "trainer.batch_size=16",
            "trainer.max_steps=8",
            "measure=null",
            f"hydra.run.dir={tmp_path / folder}",
            *more,
        ]

    return words


def distill(words: list[str]) -> int:
    return launch("distill", words, config_dir=FOLDER)


def test_a_remote_teacher_of_the_users_own(
    service: Service, options: Callable[..., list[str]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A class of the package is named where any remote teacher could be: another one is not estimated, billed or reported."""
    assert distill(options("dry", "dry_run=true")) == 0
    host = service.url.split("/")[2]
    assert f"\n{ROWS} queries to classifier at {host}\n" in capsys.readouterr().out
    assert not service.sent
    assert distill(options("run")) == 0, capsys.readouterr().err
    report = json.loads((tmp_path / "run" / "report.json").read_text())
    endpoint, teacher = report["endpoint"], report["models"]["teacher"]
    unanswered = [
        json.loads(line) for line in (tmp_path / "run" / "unanswered.jsonl").read_text().splitlines()
    ]
    assert teacher["score"] > 0.9
    assert (teacher["parameters"], teacher["path"]) == (None, None)
    assert endpoint["base_url"] == service.url
    assert endpoint["requests"] == endpoint["questions"] == sum(service.sent.values()) == ROWS
    assert endpoint["refused"] == len(unanswered) > 0
    assert {(row["status"], row["why"], "song" in row["text"]) for row in unanswered} == {
        ("refused", "no songs", True)
    }
    assert endpoint["agreement"]["accuracy"] > 0.9
    assert report["dataset"]["train"] + report["dataset"]["validation"] + report["dataset"]["test"] == (
        ROWS - len(unanswered)
    )
    assert service.url in (tmp_path / "run" / "report.html").read_text()
    assert distill(options("again", "dry_run=true")) == 0
    require_words(capsys.readouterr().out, f"{ROWS} queries", str(host), f"of which {ROWS}")


@pytest.mark.long
def test_killed_and_continued(
    service: Service, options: Callable[..., list[str]], tmp_path: Path, cold_cache: ColdCache
) -> None:
    """What was paid for is paid for again; or the student is another than one of a run that was left alone."""
    service.seconds = 0.05
    process = start(tmp_path / "killed", [*options("killed"), "--config-dir", str(FOLDER)])
    wait_for(lambda: service.sent.total() > 60, process)
    process.kill()
    process.communicate()
    assert service.sent.total() < ROWS
    service.seconds = 0.0
    assert distill(options("killed")) == 0
    assert len(service.sent) == ROWS
    assert service.sent.total() <= ROWS + 4  # those that were in flight
    cold_cache("other")
    assert distill(options("calm")) == 0
    weights = [(tmp_path / run / "student" / "model.safetensors").read_bytes() for run in ("killed", "calm")]
    assert weights[0] == weights[1]


@pytest.mark.parametrize(
    ("wrong", "key"),
    [
        ("teacher.tune=true", "teacher.tune"),
        ("teacher.cache=false", "teacher.cache"),
        ("loss=attention", "loss"),
        ("teacher.url=null", "teacher.url"),
        ("+teacher.concurency=2", "teacher.concurency"),
    ],
)
def test_what_it_does_not_support(
    service: Service,
    options: Callable[..., list[str]],
    capsys: pytest.CaptureFixture[str],
    wrong: str,
    key: str,
) -> None:
    """It is found after the answers were paid for."""
    assert distill(options("run", wrong)) == 2
    assert key in capsys.readouterr().err
    assert not service.sent


def test_a_class_that_lacks_a_method(
    options: Callable[..., list[str]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """A class that cannot be built ends in a traceback, or its author is not told what it must return."""
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "half_a_teacher.py").write_text(
        "from http_classifier import HttpClassifier, RemoteTeacher\n\n"
        "class Half(RemoteTeacher):\n    __init__, outputs = HttpClassifier.__init__, HttpClassifier.outputs\n"
    )
    assert distill(options("run", "teacher._target_=half_a_teacher.Half")) == 2
    error = capsys.readouterr().err
    require_words(error, "teacher._target_", "estimate -> Estimate", "fetch -> None")
    assert "outputs ->" not in error
