"""`kdcli distill rollout=student rollout.engine=vllm`: a server generates the student's completions."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil
import pytest
from support.commands import largest_difference, refusal, require_one_message, require_words, runner
from support.tiny import language_model_options, speaker, talk
from test_sharded import in_processes

from kdcli.errors import ConfigError
from kdcli.launch.run import launch
from kdcli.training import vllm

SUPPORT = Path(__file__).parents[1]
SHORT = [
    "control=false",
    "measure=null",
    "trainer.max_steps=4",
    "rollout=student",
    "rollout.max_new_tokens=8",
]
Requests = Callable[[], list[dict[str, Any]]]


@pytest.fixture(scope="module")
def voice(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return speaker(tmp_path_factory.mktemp("models") / "speaker")


@pytest.fixture
def requests(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Requests:
    """Puts the tests' `vllm` on the PATH; returns what it was asked."""
    command = tmp_path / "bin" / "vllm"
    command.parent.mkdir()
    script = SUPPORT / "support" / "vllm_serve.py"
    command.write_text(f'#!/bin/sh\nPYTHONPATH={SUPPORT} exec {sys.executable} {script} "$@"\n')
    command.chmod(0o755)
    monkeypatch.setenv("PATH", f"{command.parent}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setenv("KDCLI_TEST_VLLM", str(tmp_path / "requests.jsonl"))
    return lambda: [json.loads(line) for line in (tmp_path / "requests.jsonl").read_text().splitlines()]


def options(voice: Path, folder: Path, form: str = "pairs") -> list[str]:
    return [*language_model_options(voice), *talk(folder, form), *SHORT]


def servers(folder: Path) -> list[psutil.Process]:
    """The servers that still run."""
    return [each for each in psutil.process_iter(["cmdline"]) if str(folder) in str(each.info["cmdline"])]


@pytest.mark.parametrize(("form", "buffer"), [("pairs", 1), ("messages", 2)])
def test_the_student_learns_what_it_learns_without_a_server(
    voice: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, requests: Requests, form: str, buffer: int
) -> None:
    """The server generates with weights of earlier steps, from other prompts, with other seeds, or to another end; or it runs on after the
    training."""
    monkeypatch.chdir(tmp_path)
    run = runner(tmp_path, lambda *more: [*options(voice, tmp_path, form), f"rollout.buffer={buffer}", *more])
    micro = "trainer.micro_batch_size=4"
    served = run("served", "rollout.engine=vllm", micro)
    assert not largest_difference(served, run("own", micro))
    pages = [each["page"] for each in requests()]
    assert pages.count("/collective_rpc") == 4 // buffer
    written = [each for each in requests() if each.get("return_token_ids")]
    assert len({each["seed"] for each in written}) == len(written) > 8
    assert not servers(tmp_path)
    assert not list(served.rglob("vllm"))


@pytest.mark.long
def test_processes_with_a_part_of_the_student_share_a_server(
    voice: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, requests: Requests
) -> None:
    """The server gets the weights of one process; or one process generates with those of the step before."""
    monkeypatch.chdir(tmp_path)
    words = [*options(voice, tmp_path), "trainer.eval_steps=2", "trainer.keep=last"]
    alone = runner(tmp_path, lambda *more: words)("alone")
    two = tmp_path / "two"
    more = ["rollout.engine=vllm", "trainer.fsdp=full_shard", f"hydra.run.dir={two}"]
    in_processes("sharded.py", str(tmp_path), *words, *more)  # it also resumes
    assert largest_difference(alone, two) < 1e-5
    assert len([each for each in requests() if each["page"] == "/collective_rpc"]) == 4
    assert not servers(tmp_path)


@pytest.mark.parametrize(
    ("fault", "words"),
    [
        ("stale", ["log-probabilities", "rollout.engine=transformers"]),
        ("dies", ["the server has ended", "same command"]),
        ("old", ["/collective_rpc", "404", "rollout.engine=transformers"]),
        ("refuses", ["are not supported for now", "vllm.log", "rollout.engine=transformers"]),
    ],
)
def test_a_server_that_fails_ends_the_run_with_a_message(
    voice: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    requests: Requests,
    capfd: Any,
    fault: str,
    words: list[str],
) -> None:
    """The student learns completions of weights that it had before its training; or a dead server is a traceback."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("KDCLI_TEST_VLLM", f"{tmp_path / 'requests.jsonl'},{fault}")
    words_of_run = [*options(voice, tmp_path), "rollout.engine=vllm", "hydra.run.dir=run"]
    assert launch("distill", words_of_run) == 1
    require_words(require_one_message(capfd.readouterr().err), *words)
    assert not servers(tmp_path)


def test_no_vllm_is_told_before_training(
    voice: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A teacher is tuned for hours before the command is looked for."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PATH", str(tmp_path))
    message = refusal(capsys, "distill", [*options(voice, tmp_path), "rollout.engine=vllm"])
    require_words(message, "rollout.engine", "PATH", "rollout.engine=transformers")


@pytest.mark.parametrize(
    ("more", "words"),
    [
        (["rollout=teacher"], ["rollout.source=student", "engine"]),
        (["student=lora"], ["rollout.engine", "adapters"]),
        (["student.quantization=int8"], ["rollout.engine", "fake-quantized"]),
    ],
)
def test_what_a_server_cannot_generate_is_refused(
    voice: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], requests: Requests, more: list[str],
    words: list[str],
) -> None:  # fmt: skip
    """The server gets weights without what is trained beside them."""
    monkeypatch.chdir(tmp_path)
    base = [word for word in options(voice, tmp_path) if "student=lora" not in more or word[:8] != "student."]
    student = ["student.allow_same_size=true", f"student.path={voice}"] if "student=lora" in more else []
    message = refusal(capsys, "distill", [*base, "rollout.engine=vllm", *more, *student])
    require_words(message, *words)


def test_processes_on_several_machines_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """The processes of the other machine look for a socket that is not there, after the teacher was tuned."""
    monkeypatch.setattr(vllm, "PartialState", lambda: SimpleNamespace(num_processes=2))
    monkeypatch.setattr(vllm, "gather_object", lambda hosts: [*hosts, "another"])
    with pytest.raises(ConfigError, match=r"rollout\.engine.*2 machines.*rollout\.engine=transformers"):
        vllm.require_one_machine()
    monkeypatch.setattr(vllm, "gather_object", lambda hosts: hosts * 2)
    vllm.require_one_machine()
