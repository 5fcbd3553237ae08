"""`kdcli distill` with a language model behind a server that scores tokens."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.torch import load_file
from support.commands import ColdCache, close_weights, read, refusal, require_words, runner
from support.endpoint import Served
from support.scoring import NAME, VLLM
from support.tiny import decoder, language_model_options, speller, talk


def served_options(talker: Path, url: str) -> list[str]:
    """The overrides that name a server in place of a local teacher."""
    own = ("teacher=", "teacher.path", "teacher.batch_size")
    options = [word for word in language_model_options(talker) if not word.startswith(own)]
    options += [f"student.path={talker}", "measure=null", "control=false", "smoke=true", "teacher=vllm"]
    return [
        *options,
        f"teacher.base_url={url}",
        f"teacher.model={NAME}",
        "teacher.soft_labels=prompt_logprobs",
    ]


def outputs(cache: Path) -> dict[str, Any]:
    """The stored outputs of each split, by the name of their file, which is a hash of the rows."""
    return {path.name: load_file(path) for path in cache.glob("teacher_outputs/*/*.safetensors")}


def no_chat(body: dict[str, Any]) -> int:
    return 404


def test_a_served_teacher_is_the_local_one(
    talker: Path, served: Served, tmp_path: Path, cold_cache: ColdCache, capfd: pytest.CaptureFixture[str]
) -> None:
    """Soft targets of other positions, of other tokens or at another temperature than those of the same model here; a server that is asked
    again for what it has answered, or that must run while the student is trained."""
    data = talk(tmp_path, "pairs", 60)
    server = VLLM(talker)
    host = served(no_chat, server)
    run = runner(tmp_path, lambda *more: [*more, *data])
    cache = cold_cache("served")
    options = [*served_options(talker, host.url), f"teacher.verify={talker}"]
    first = run("first", *options)
    require_words(capfd.readouterr().err, "60 queries", NAME, "teacher.verify")
    assert len(server.scored) == 60
    of_server = outputs(cache)
    host.close()
    run("again", *options)  # from the store
    local_cache = cold_cache("other")
    own = [f"student.path={talker}", "measure=null", "control=false", "smoke=true"]
    local = run("local", *language_model_options(talker), *own)
    of_local = outputs(local_cache)
    assert of_server.keys() == of_local.keys()
    for rows, tensors in of_server.items():
        ids = [each["indices"].int().sort().values for each in (tensors, of_local[rows])]
        assert (ids[0] == ids[1]).all(-1).float().mean() >= 0.999
        gaps = (tensors["gaps"].int() - of_local[rows]["gaps"].int()).abs()
        assert gaps.float().mean() < 1
        assert np.allclose(tensors["log_rest"].exp(), of_local[rows]["log_rest"].exp(), atol=1e-3)
    assert close_weights(first, local)
    report = read(first / "report.json")
    assert report["models"]["teacher"]["score"] == pytest.approx(
        read(local / "report.json")["models"]["teacher"]["score"], abs=1e-2
    )
    assert report["endpoint"]["requests"] == 60


def test_a_completion_brings_its_soft_targets(
    talker: Path, served: Served, tmp_path: Path, cold_cache: ColdCache
) -> None:
    """Each text that the teacher writes is paid for twice: once to be written, once to be scored."""
    cold_cache()
    server = VLLM(talker)
    host = served(server.chat, server)
    data = talk(tmp_path, "messages", 60)
    run = runner(tmp_path, lambda *more: [*served_options(talker, host.url), *data, *more])
    written = run("written", "rollout=teacher", "rollout.max_new_tokens=24")
    rows = (written / "rollouts.jsonl").read_text().splitlines()
    of_data = 16 + 16  # validation and test
    one_answer = sum(row.count("assistant") == 1 for row in rows)
    assert one_answer > 10
    assert len(server.scored) <= of_data + 1 + len(rows) - one_answer
    assert read(written / "report.json")["endpoint"]["requests"] == len(server.scored) + 28


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["teacher.base_url=http://127.0.0.1:9/v1"], ["teacher.base_url", "vllm serve", "no server answers"]),
        (["loss.soft_label.temperature=2"], ["temperature = 2", "loss.soft_label.temperature=1"]),
        (["teacher.verify={other}"], ["teacher.verify", "teacher.base_url", "another model"]),
        (["teacher.tokenizer={tmp}"], ["teacher.tokenizer", "config.json"]),
        (["teacher.soft_labels=logprobs"], ["rollout.source", "teacher.soft_labels=prompt_logprobs"]),
    ],
)
def test_what_cannot_be_is_refused(
    overrides: list[str],
    words: list[str],
    talker: Path,
    served: Served,
    tmp_path: Path,
    cold_cache: ColdCache,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """A night of requests whose answers are worth nothing, or a traceback."""
    cold_cache()
    other = tmp_path / "other"
    decoder(speller(), seed=3).save_pretrained(other)
    speller().save_pretrained(other)
    host = served(no_chat, VLLM(talker))
    given = [override.format(tmp=tmp_path, other=other) for override in overrides]
    options = [*served_options(talker, host.url), *talk(tmp_path, "pairs", 60), *given]
    require_words(refusal(capsys, "distill", [*options, f"hydra.run.dir={tmp_path / 'run'}"]), *words)
    assert not (tmp_path / "run").exists()


def test_labels_are_not_scored(reviews: Path, body: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A classifier is no decoder: its rows have no tokens to score."""
    options = ["teacher=vllm", "teacher.model=m", "teacher.soft_labels=prompt_logprobs", "dataset=csv"]
    options += [
        f"dataset.path={reviews}",
        f"student.init_from={body}",
        "smoke=true",
        "teacher.base_url=http://127.0.0.1:9/v1",
        "dataset.max_length=32",
    ]
    require_words(
        refusal(capsys, "distill", options), "dataset.task=causal_lm", "teacher.soft_labels=logprobs"
    )
