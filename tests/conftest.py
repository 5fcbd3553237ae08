"""Small real things for the tests: a tokenizer, a teacher, data with something to learn. No hub, no network."""

from __future__ import annotations

import gc
import os
import subprocess
import sys
from collections.abc import Callable, Generator, Iterator
from pathlib import Path
from typing import Any

import pytest
from support.commands import ColdCache, runner
from support.endpoint import Host, Pages, Reply, Served
from support.hub_server import TOKEN, HubServer
from support.tiny import BAD, FILLER, GOOD, SPECIAL, bert, sentences, write_csv

for name, value in {
    "OMP_NUM_THREADS": "1",
    "OMP_WAIT_POLICY": "passive",
    "TOKENIZERS_PARALLELISM": "false",
    "HF_HUB_OFFLINE": "1",
}.items():
    os.environ.setdefault(name, value)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Warnings are errors, but for those of the packages of devices, which pyproject.toml does not pin."""
    for item in items:
        if item.get_closest_marker("devices"):
            item.add_marker(pytest.mark.filterwarnings("ignore"))


def pytest_collection_finish() -> None:
    """What is imported by now stays: it need not be searched for garbage after each of hundreds of short trainings."""
    gc.freeze()


@pytest.hookimpl(wrapper=True)
def pytest_report_to_serializable() -> Generator[None, Any, Any]:
    """Lone surrogates, which some tests log and print, cannot be sent by the processes that run the tests: they end the session."""

    def sendable(value: Any) -> Any:
        if isinstance(value, str):
            return value.encode("utf-8", "backslashreplace").decode()
        if isinstance(value, dict):
            return {sendable(key): sendable(inner) for key, inner in value.items()}
        return type(value)(map(sendable, value)) if isinstance(value, list | tuple) else value

    return sendable((yield))


NEW_LAYERS = ["student.dropout=0", "trainer.token_dropout=0", "trainer.embedding_learning_rate_factor=1"]
"""Overrides of students that are made from a config: those of a test have no units to spare."""


@pytest.fixture(scope="session", autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The user's cache, one for the whole session: tuned teachers are shared as users share them."""
    folder = tmp_path_factory.mktemp("cache")
    if "PYTEST_XDIST_WORKER" in os.environ:  # what is read for half a minute, the workers read once
        converted = tmp_path_factory.getbasetemp().parent / "converted"
        converted.mkdir(exist_ok=True)
        (folder / "converted").symlink_to(converted)
    os.environ["KDCLI_CACHE_DIR"] = str(folder)
    return folder


@pytest.fixture(autouse=True)
def forgotten_modules(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Forgets the modules that a test wrote and imported: the next test may write another one of the same name."""
    before = set(sys.modules)
    yield
    written = tmp_path_factory.getbasetemp()
    for name in sys.modules.keys() - before:
        file = getattr(sys.modules[name], "__file__", None)
        if file and Path(file).is_relative_to(written):
            del sys.modules[name]


@pytest.fixture
def points_here(monkeypatch: pytest.MonkeyPatch) -> None:
    """Runs the points of a sweep in the test's process: one of their own takes seconds to import torch, and knows no patches."""
    monkeypatch.setattr("kdcli.processes.call_in_child", lambda function, *arguments: function(*arguments))


@pytest.fixture
def cold_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ColdCache:
    """Begins an empty cache for the rest of the test, in place of the one of the session."""

    def begin(name: str = "cold-cache") -> Path:
        monkeypatch.setenv("KDCLI_CACHE_DIR", str(tmp_path / name))
        return tmp_path / name

    return begin


@pytest.fixture(scope="session")
def tokenizer():
    """A WordPiece tokenizer over thirty words."""
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
    from transformers import BertTokenizerFast

    vocabulary = {word: number for number, word in enumerate(SPECIAL + GOOD + BAD + FILLER)}
    inner = Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]"))
    inner.normalizer = normalizers.BertNormalizer(lowercase=True)
    inner.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    inner.post_processor = processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    return BertTokenizerFast(tokenizer_object=inner)


@pytest.fixture(scope="session")
def body(tokenizer, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint without a head for the task, as bert-base is one."""
    from transformers import BertModel

    folder = tmp_path_factory.mktemp("models") / "body"
    model = BertModel(bert(tokenizer, ["bad", "good"]).config)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def teacher(tokenizer, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A classifier that is right about most sentences: trained for a moment."""
    import torch

    model = bert(tokenizer, ["bad", "good"], hidden=32)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    rows = sentences(512, seed=7)
    model.train()
    for start in [*range(0, 512, 32)] * 8:
        chunk = rows[start : start + 32]
        batch = tokenizer([text for text, _ in chunk], return_tensors="pt", padding=True)
        loss = model(**batch, labels=torch.tensor([int(label == "good") for _, label in chunk])).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    folder = tmp_path_factory.mktemp("models") / "teacher"
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def talker(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small Llama that answers prompts, trained for a moment."""
    from support.tiny import speaker

    return speaker(tmp_path_factory.mktemp("models") / "speaker", steps=40)


@pytest.fixture(scope="session")
def reviews(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """600 sentences with labels, as a csv file."""
    return write_csv(tmp_path_factory.mktemp("data") / "reviews.csv", sentences(600))


@pytest.fixture(scope="session")
def small(teacher: Path, reviews: Path) -> list[str]:
    """Overrides of a run of a few seconds: the trained teacher, a tiny student without dropout, fp32."""
    return [
        "teacher=local",
        f"teacher.path={teacher}",
        "teacher.trainer.precision=fp32",
        "student.hidden_size=16",
        "student.num_hidden_layers=1",
        "student.intermediate_size=32",
        *NEW_LAYERS,
        "dataset=csv",
        f"dataset.path={reviews}",
        "dataset.validation_size=64",
        "dataset.test_size=96",
        "dataset.max_length=32",
        "trainer.precision=fp32",
        "trainer.batch_size=16",
        "trainer.learning_rate=0.001",
        "trainer.epochs=2",
        "trainer.logging_steps=5",
        "measure.latency_runs=3",
        "measure.throughput_seconds=0.05",
    ]


Kdcli = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def kdcli(tmp_path: Path) -> Kdcli:
    """Runs the real entry point in an empty working directory."""

    def run(*arguments: str, cwd: Path = tmp_path, **environment: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "kdcli", *arguments],
            cwd=cwd,
            env=os.environ | environment,
            capture_output=True,
            text=True,
            timeout=600,
            check=False,
        )

    return run


@pytest.fixture
def distil(small: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Path]:
    """Runs `kdcli distill` in this process (quicker than the entry point) and returns the run directory."""
    monkeypatch.chdir(tmp_path)

    def options(*overrides: str) -> list[str]:
        other = any(override.startswith("student=") for override in overrides)
        return [*(word for word in small if not (other and word in NEW_LAYERS)), "measure=null", *overrides]

    return runner(tmp_path, options)


@pytest.fixture
def served() -> Iterator[Served]:
    """Starts servers that are stopped in the end."""
    hosts: list[Host] = []

    def serve(reply: Reply, pages: Pages | None = None) -> Host:
        hosts.append(Host(reply, pages))
        return hosts[-1]

    yield serve
    for host in hosts:
        host.close()


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[HubServer]:
    """The hub, on this machine."""
    from huggingface_hub import constants

    host = HubServer()
    monkeypatch.setattr(constants, "ENDPOINT", f"http://127.0.0.1:{host.server_address[1]}")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    monkeypatch.setenv("HF_HUB_OFFLINE", "0")
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    yield host
    host.shutdown()
    host.server_close()
