"""The commands of the README and of each page but the quickstarts, typed as they stand, with models and data that a moment makes."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from support.documentation import (
    JOBS,
    PAGES,
    REPOSITORY,
    SECRET,
    Shown,
    all_commands,
    excused,
    type_command,
    write_parts,
)
from support.endpoint import Served, last, likely, said
from support.hub_server import HubServer
from support.laptop import random_speaker
from support.scoring import VLLM, SGLang
from support.tiny import BAD, GOOD, documents, exchanges, pairs, sentences, talk, write_csv, write_jsonl

pytestmark = pytest.mark.docs
SHOWN = [command for command in all_commands() if command.line not in excused()]
TYPED = [
    name
    for page in PAGES
    if (name := page.relative_to(REPOSITORY).as_posix()) in {command.page for command in SHOWN}
    and not (page.parent.name == "quickstart" and page.stem in JOBS)
]
"""The pages."""
REDUCED = [
    "debug=smoke", "dataset.limit=96", "dataset.eval_limit=32", "trainer.max_steps=3", "teacher.trainer.max_steps=2",
    "measure=null",
]  # fmt: skip
"""What is added to a training: the same code, few rows, three steps."""
TIMED = ["measure.latency_runs=3", "measure.throughput_seconds=0.05", "measure.max_texts=8"]
"""What is added to an export."""
CHANGES = {
    "teacher=smollm2-360m": "teacher.path=speaker",
    "teacher=opus-mt-en-de": "teacher.path=marian",
    "teacher=bart-large-cnn": "teacher.path=marian",
    "teacher.path=LARGE": "teacher.path=speaker",
    "student.path=SMALL": "student.path=small-speaker",
    "experiment=chat": "experiment=chat teacher.path=speaker",
    "experiment=translation": "experiment=translation teacher.trainer.max_steps=4 dataset.limit=256 rollout.max_new_tokens=64",
    "dataset=sst2": "dataset=csv dataset.path=reviews.csv teacher.path=body",
    "dataset.max_length=1024": "dataset.max_length=64",
    "rollout.max_new_tokens=1024": "rollout.max_new_tokens=64",
    "rollout.max_new_tokens=64": "rollout.max_new_tokens=16",
    "rollout.expand=1000": "rollout.expand=8",
}
"""Words that name what is not on this machine, or is large, and what stands for it here."""
TEACHERS = {"docs/conversations.md": "speaker", "docs/formats.md": "body", "docs/tags.md": "body"}
"""What stands for TEACHER."""
MESSAGES = {"docs/formats.md", "docs/using.md"}
"""The pages whose tickets.csv has the columns message and topic."""
BEFORE = {
    "docs/many-machines.md": ["init tickets.csv"],
    "docs/quantization.md": ["init tickets.csv"],
    "docs/using.md": [
        "init tickets.csv",
        "distill kdcli.yaml --out runs/tickets",
        "export runs/tickets hardware=cpu",
        "distill teacher.path=speaker student=layers loss=forward_kl dataset=jsonl dataset.path=chats.jsonl dataset.messages=messages --out runs/assistant",
        "export runs/assistant hardware=laptop",
    ],
}
"""What a reader of a page has typed before."""
done: set[str] = set()
"""What this process has typed: a training that reads no file of a page is typed once, other commands once on each page."""


@pytest.fixture(scope="session")
def speakers(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Random language models with SmolLM2's tokenizer: one of thirty layers, and one of two."""
    folder = tmp_path_factory.mktemp("speakers")
    random_speaker(folder / "speaker", layers=30)
    random_speaker(folder / "small-speaker")
    return folder


@pytest.fixture(scope="session")
def marian(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random translator of six layers and three."""
    import datasets
    import torch

    from kdcli.students.encoder_decoder import EncoderDecoder, learn_vocabulary

    rows = [
        {"id": str(index), "source": source, "target": target}
        for index, (source, target) in enumerate(pairs(200))
    ]
    tokenizer = learn_vocabulary(datasets.Dataset.from_list(rows), 330)
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("models") / "marian"
    EncoderDecoder(32, 6, 3, 2, 64).over(tokenizer).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def write_data(folder: Path, page: str) -> None:
    """Write the files that the pages name."""
    rows = sentences(400)
    own = ("message", "topic") if page in MESSAGES else ("text", "label")
    write_csv(folder / "tickets.csv", rows, own)
    write_csv(folder / "new-tickets.csv", sentences(5, seed=3), own)
    (folder / "new-tickets.txt").write_text("".join(f"{text}\n" for text, _ in sentences(5, seed=4)))
    write_csv(folder / "reviews.csv", rows)
    write_csv(folder / "more.csv", [(text, "") for text, _ in sentences(80, seed=5)])
    write_csv(
        folder / "levels.csv",
        [(text, str(5 - 4 * (label == "bad") - index % 2)) for index, (text, label) in enumerate(rows)],
    )
    (folder / "data").mkdir()
    for number, split in enumerate(("train", "validation", "test")):
        write_csv(folder / "data" / f"{split}.csv", sentences(200 if not number else 60, seed=number))
    _write_texts(folder)
    _write_tags(folder)


def _write_texts(folder: Path) -> None:
    talk(folder, "messages", 160)
    turns = [json.loads(line)["messages"] for line in (folder / "messages.jsonl").read_text().splitlines()]
    for name in ("chats", "train", "prompts"):
        write_jsonl(folder / f"{name}.jsonl", [{"messages": each} for each in turns])
    names = {"user": "human", "assistant": "gpt"}
    write_jsonl(
        folder / "sharegpt.jsonl",
        [
            {"conversations": [{"from": names[turn["role"]], "value": turn["content"]} for turn in each]}
            for each in turns
        ],
    )
    write_jsonl(
        folder / "alpaca.jsonl",
        [{"instruction": prompt, "output": answer} for prompt, answer in exchanges(160)],
    )
    (folder / "corpus.txt").write_text("\n".join(documents(24)))
    translated = pairs(240, longest=4)
    for index, suffix in enumerate(("en", "de")):
        (folder / f"corpus.{suffix}").write_text("".join(f"{pair[index]}\n" for pair in translated))
    (folder / "pairs.tsv").write_text(
        "".join(f"{source}\t{target}\n" for source, target in [("en", "de"), *translated])
    )
    write_jsonl(
        folder / "articles.jsonl", [{"article": source, "summary": target} for source, target in translated]
    )


def _write_tags(folder: Path) -> None:
    def entity(word: str) -> str:
        return "PRAISE" if word in GOOD else "BLAME" if word in BAD else ""

    split = [text.split() for text, _ in sentences(240)]
    tags = [[f"B-{entity(word)}" if entity(word) else "O" for word in words] for words in split]
    blocks = (
        "\n".join(f"{word} {tag}" for word, tag in zip(*row, strict=True))
        for row in zip(split, tags, strict=True)
    )
    (folder / "train.conll").write_text("\n\n".join(blocks) + "\n")
    spans = []
    for words in split:
        starts = [sum(len(before) + 1 for before in words[:index]) for index in range(len(words))]
        spans.append(
            [
                [start, start + len(word), entity(word)]
                for start, word in zip(starts, words, strict=True)
                if entity(word)
            ]
        )
    write_jsonl(
        folder / "doccano.jsonl",
        [{"text": " ".join(words), "label": each} for words, each in zip(split, spans, strict=True)],
    )
    (folder / "tagged").mkdir()
    write_jsonl(
        folder / "tagged" / "train.jsonl",
        [{"tokens": words, "ner_tags": each} for words, each in zip(split, tags, strict=True)],
    )


def label(body: dict[str, Any]) -> list[dict[str, Any]]:
    """What a model behind an endpoint says of a sentence."""
    words = last(body).split()
    good = sum(word in GOOD for word in words) > sum(word in BAD for word in words)
    return [likely({"good": 0.9 if good else 0.1, "bad": 0.1 if good else 0.9})]


def write(body: dict[str, Any]) -> list[dict[str, Any]]:
    """What it writes to a prompt, and as new prompts."""
    words = [word for word in last(body).split() if word.isalpha()] or ["it"]
    return [said(f"- it was {words[number % len(words)]} {number}") for number in range(body.get("n", 1))]


Words = Callable[[Sequence[str]], list[str]]
MODELS = {
    "body": "body",
    "my-other-classifier": "body",
    "marian": "marian",
    "speaker": "speakers",
    "small-speaker": "speakers",
}
"""The models that stand for larger ones in the working directory, and the fixtures that make them."""


@pytest.fixture
def model(request: pytest.FixtureRequest) -> Callable[[str], Path]:
    """Returns the folder of one of `MODELS`, which is made when it is needed first."""

    def folder(name: str) -> Path:
        made: Path = request.getfixturevalue(MODELS[name])
        return made / name if (made / name).is_dir() else made

    return folder


@pytest.fixture
def endpoint(served: Served, model: Callable[[str], Path]) -> Words:
    """Returns the words that put a server on this machine into the place of the endpoint of a command."""
    urls: dict[str, str] = {}

    def words_for(words: Sequence[str]) -> list[str]:
        kinds = {"teacher=openai": None, "teacher=vllm": VLLM, "teacher=sglang": SGLang}
        name = next((word for word in words if word in kinds), None)
        if name is None:
            return []
        kind, is_writer = kinds[name], "rollout=answers" in words
        key = f"{name} {is_writer}"
        if key not in urls and (kind is None or is_writer):
            urls[key] = served(write if is_writer else label).url
        elif key not in urls:
            urls[key] = served(refuse, kind(model("speaker"), name="MODEL", max_length=512)).url
        return [f"teacher.base_url={urls[key]}"]

    return words_for


def refuse(body: dict[str, Any]) -> int:
    """A server that only scores."""
    return 404


@pytest.mark.parametrize("page", TYPED)
def test_the_commands_of_a_page(
    page: str,
    tmp_path: Path,
    hub: HubServer,
    model: Callable[[str], Path],
    endpoint: Words,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A reader types what a page shows, and it is refused, fails, or leaves no report."""
    monkeypatch.chdir(tmp_path)
    write_data(tmp_path, page)
    write_parts(tmp_path)
    before = [Shown(page, f"kdcli {line}", (), tuple(shlex.split(line))) for line in BEFORE.get(page, ())]
    for command in [*before, *(command for command in SHOWN if command.page == page)]:
        monkeypatch.setenv("KDCLI_CONFIG_DIR", "")  # which --config-dir sets
        monkeypatch.delenv("KDCLI_CONFIG_DIR")
        if command.before[:1] == ("export",):
            monkeypatch.setenv(command.before[1].partition("=")[0], SECRET)
            continue
        teacher = "marian" if "dataset=parallel" in command.words else TEACHERS.get(page)
        changes = CHANGES | {"teacher.path=TEACHER": f"teacher.path={teacher}"}
        if page == "docs/tags.md":
            changes["dataset.path=train.jsonl"] = "dataset.path=tagged/train.jsonl"
        alone = command.words[0] == "distill" and not {"--out", "kdcli.yaml", "teacher.path=TEACHER"} & {
            *command.words
        }
        key = command.line if alone else f"{command}"
        if key in done:
            continue
        done.add(key)
        for name in MODELS:
            needed = any(re.search(rf"(=|/){name}\b", changes.get(word, word)) for word in command.words)
            if needed and not (tmp_path / name).exists():
                (tmp_path / name).symlink_to(model(name))
        reports = set(tmp_path.rglob("report.json"))
        served_at = endpoint(command.words)
        name, printed = type_command(
            command, changes, lambda words, served_at=served_at: more(words, served_at), "hello\n/exit\n"
        )
        if name == "distill":
            assert set(tmp_path.rglob("report.json")) > reports, command
        else:
            assert printed.strip() or "--out" in command.words, command


def more(words: Sequence[str], served: Sequence[str]) -> list[str]:
    """Return the words that reduce a command."""
    if words[0] in ("distill", "check"):
        return [*REDUCED, *served]
    return TIMED if words[0] == "export" else []
