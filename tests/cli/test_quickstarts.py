"""A new user's six jobs: the commands of each quickstart, typed as they stand, with models and data that a moment makes."""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from support.documentation import SECRET, shown_commands, type_command
from support.endpoint import Served, last, likely
from support.laptop import random_speaker
from support.tiny import BAD, GOOD, pairs, sentences, talk, translator, write_csv

pytestmark = pytest.mark.docs
REDUCED = ["debug=smoke"]
"""What is added to a training: the same code, few rows."""
COMMANDS = 3
"""The most that a job needs before its student is there in a file."""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The user's working directory."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def type_page(
    page: str, changes: Mapping[str, str] | None = None, more: tuple[str, ...] = (), stdin: str = ""
) -> dict[str, list[str]]:
    """Types the commands of a quickstart one after the other; each must do what it says.

    Args:
        changes: words that name what is not on this machine, and what stands for it here.
        more: added to a training.

    Returns:
        What each command printed, by its first word.
    """
    printed: dict[str, list[str]] = {}
    for command in shown_commands():
        if command.page == f"docs/quickstart/{page}.md":
            name, text = type_command(
                command,
                changes or {},
                lambda words: [*REDUCED, *more] if words[0] in ("distill", "check") else [],
                stdin,
            )
            printed.setdefault(name, []).append(text)
    jobs = [text for name in ("init", "check", "distill", "export") for text in printed.get(name, [])]
    assert 1 <= len(jobs) <= COMMANDS
    return printed


def test_tickets(folder: Path) -> None:
    """A csv file and nothing else."""
    write_csv(folder / "tickets.csv", sentences(400))
    write_csv(folder / "new-tickets.csv", sentences(5, seed=3))
    printed = type_page("classifier")
    assert "kdcli check kdcli.yaml" in printed["init"][0]
    assert any(label in printed["predict"][0] for label in ("good", "bad"))
    with (folder / "labelled.csv").open(newline="") as file:
        assert len(list(csv.DictReader(file))) == 5
    assert (folder / "runs/tickets/report.html").is_file()


def test_a_teacher_of_ones_own(folder: Path, teacher: Path) -> None:
    """A checkpoint on disk, and the file that it was not trained on."""
    (folder / "my-classifier").symlink_to(teacher)
    write_csv(folder / "tickets.csv", sentences(400))
    type_page("own-teacher")
    assert list((folder / "runs/own/export/cpu").glob("*.onnx"))


def test_conversations_to_gguf(folder: Path) -> None:
    """A file of conversations and a chat model."""
    talk(folder, "messages")
    (folder / "messages.jsonl").rename(folder / "chats.jsonl")
    random_speaker(folder / "speaker")
    printed = type_page(
        "language-model", {"teacher=smollm2-360m": "teacher.path=speaker"}, ("teacher.trainer.precision=fp32",), "hello\n/exit\n"
    )  # fmt: skip
    assert list((folder / "runs/chat/export/laptop").glob("*.gguf"))
    assert printed["chat"][0].strip()


def test_sentence_pairs(folder: Path) -> None:
    """A table of two columns."""
    lines = ["en\tde", *("\t".join(pair) for pair in pairs(400, longest=4))]
    (folder / "pairs.tsv").write_text("\n".join(lines) + "\n")
    translator(folder / "marian")
    printed = type_page("translator", {"teacher=opus-mt-en-de": "teacher.path=marian"})
    assert len(printed["predict"]) == 1


def test_entities(folder: Path) -> None:
    """A file of words and tags."""
    rows = []
    for text, _ in sentences(300):
        rows += [
            f"{word} {'B-PRAISE' if word in GOOD else 'B-BLAME' if word in BAD else 'O'}"
            for word in text.split()
        ]
        rows.append("")
    (folder / "train.conll").write_text("\n".join(rows) + "\n")
    type_page("entities")
    report = json.loads((folder / "runs/entities/report.json").read_text())
    assert report["task"] == "token_classification"


def test_an_endpoint(folder: Path, served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    """Texts, two labels and a key."""
    monkeypatch.setenv("OPENAI_API_KEY", SECRET)
    monkeypatch.setenv("KDCLI_CACHE_DIR", str(folder / "cache"))
    names = {"good": "positive", "bad": "negative"}
    rows = [(text, names[label] if number % 2 else "") for number, (text, label) in enumerate(sentences(600))]
    write_csv(folder / "texts.csv", rows)

    def reply(body: dict[str, Any]) -> list[dict[str, Any]]:
        words = last(body).split()
        good = sum(word in GOOD for word in words) > sum(word in BAD for word in words)
        return [likely({"positive": 0.9 if good else 0.1, "negative": 0.1 if good else 0.9})]

    host = served(reply)
    printed = type_page("api-teacher", more=(f"teacher.base_url={host.url}",))
    assert re.search(r"cost about \d", printed["check"][0]), "the page says that check counts it"
    assert "positive" in "".join(printed["distill"]) or (folder / "runs/api/report.json").is_file()
    leaked = [
        path
        for path in (folder / "runs").rglob("*")
        if path.is_file() and SECRET.encode() in path.read_bytes()
    ]
    assert not leaked
