"""`kdcli export hardware=laptop` as users type it, on a small language model that is made once."""

from __future__ import annotations

import io
import json
import sys
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file
from support.laptop import run_for_gguf
from support.tiny import run_snippet

from kdcli.exporting.runtimes.llama import LlamaCausalLM
from kdcli.launch.inference import chat, load
from kdcli.launch.run import launch
from kdcli.measure.spec import MeasureSpec

QUICK = [
    "measure.latency_runs=2",
    "measure.throughput_seconds=0.05",
    "measure.generations=3",
    "measure.new_tokens=6",
    "measure.load_seconds=0.05",
]
NAMES = ["model.f16.gguf", "model.q8_0.gguf", "model.q4_0.gguf"]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return run_for_gguf(tmp_path_factory.mktemp("laptop"))


@pytest.fixture(scope="module")
def exported(run: Path) -> Path:
    """Of the three files only that of 8 bits is held to more than it can keep."""
    held = {"f16": (0.9, 0.1, 0), "q8_0": (1, 0, 1), "q4_0": (0, 1, 0)}
    keys = [f"hardware.tolerances.{name}" for name in ("q8_0", "q4_0")]
    options = [
        f"{key}.{what}={value}"
        for key, values in zip(["hardware.tolerance", *keys], held.values(), strict=True)
        for what, value in zip(("agreement", "score_drop", "generated"), values, strict=True)
    ]
    assert launch("export", [f"run={run}", "hardware=laptop", *QUICK, *options]) == 3
    return run / "export" / "laptop"


@pytest.mark.real
def test_export_is_run_and_compared(run: Path, exported: Path) -> None:
    """A file that llama.cpp never ran, or figures that were taken of something else than it."""
    result = json.loads((exported / "export.json").read_text())
    assert (result["task"], result["metric"]) == ("causal_lm", "log_prob")
    assert list(result["artifacts"]) == NAMES
    student = load_file(run / "predictions" / "test.student.safetensors")
    for name, entry in result["artifacts"].items():
        assert (exported / name).stat().st_size == entry["bytes"]
        assert entry["latency_ms"]["p50"] > 0
        assert entry["throughput_per_s"] > 0
        assert entry["first_token_ms"]["p95"] == entry["latency_ms"]["p95"]
        assert entry["between_tokens_ms"]["p95"] >= entry["between_tokens_ms"]["p50"] >= 0
        assert 1e7 < entry["peak_memory_bytes"] < result["torch"]["peak_memory_bytes"]
        assert entry["parity"]["same_tokens"] == 1
        said = load_file(exported / "predictions" / f"test.{name}.safetensors")
        assert (said["labels"] == student["labels"]).all()
        assert entry["score"] == pytest.approx(said["log_prob"].mean(dtype="float64"), abs=1e-6)
        assert entry["parity"]["agreement"] == pytest.approx((said["top"] == student["top"]).mean())
    f16 = result["artifacts"]["model.f16.gguf"]["parity"]
    assert f16["max_abs_difference"] < 0.01
    assert abs(f16["score_drop"]) < 1e-3
    assert f16["agreement"] > 0.95


@pytest.mark.real
def test_what_runs_the_file_without_kdcli_writes_what_was_measured(run: Path, exported: Path) -> None:
    """Lines that do not run, that forget the conversation's template, or that draw tokens: another text than the file was checked for."""
    from transformers import AutoTokenizer

    script = (exported / "run_llama.py").read_text()
    assert f'MODEL = "{NAMES[2]}"' in script
    assert "CHAT = True" in script
    lines = run_snippet(exported / "run_llama.py", *["What is a film?"] * 2)
    tokenizer = AutoTokenizer.from_pretrained(run / "student")
    asked = [{"role": "user", "content": "What is a film?"}]
    prompt = tokenizer.apply_chat_template(asked, add_generation_prompt=True)["input_ids"]
    writer = LlamaCausalLM(MeasureSpec("llama", str(exported / NAMES[2]), "", 128, new_tokens=64))
    told: list[int] = []
    writer.generate({"input_ids": np.asarray([prompt])}, 64, told.append)
    assert lines == f"{tokenizer.decode(told)}\n{tokenizer.decode(told)}".strip().splitlines()


@pytest.mark.real
def test_predict_and_chat_with_a_gguf_file(
    run: Path, exported: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """llama.cpp continues another prompt than the student, draws tokens, or is given fewer positions than a conversation has."""
    file = str(exported / "model.f16.gguf")
    (student,), (answer,) = (load(path).predict(["What is a film?"], 16) for path in (str(run), file))
    assert answer == student
    capsys.readouterr()
    monkeypatch.setattr(sys, "stdin", io.StringIO("What is a film?\n"))
    assert chat(file, max_new_tokens=16) == 0
    assert capsys.readouterr().out.strip() == answer["completion"].strip()
    sampled = set()
    for seed in (0, 0, 1):
        monkeypatch.setattr(sys, "stdin", io.StringIO("What is a film?\n"))
        assert chat(file, max_new_tokens=16, temperature=2.0, seed=seed) == 0
        sampled.add(capsys.readouterr().out)
    assert len(sampled) == 2, "a seed gives one text"


@pytest.mark.real
def test_eval_of_a_gguf_file(run: Path, exported: Path, tmp_path: Path, capsys) -> None:
    """A file on a device must be scored as the export scored it; a classifier's data is not for it."""
    options = [f"run={run}", "artifact=model.q4_0.gguf", "measure=null"]
    assert launch("eval", [*options, f"hydra.run.dir={tmp_path / 'e'}"]) == 0
    scored = json.loads((tmp_path / "e" / "eval.json").read_text())["models"]["model.q4_0.gguf"]
    result = json.loads((exported / "export.json").read_text())["artifacts"]["model.q4_0.gguf"]
    assert scored["score"] == pytest.approx(result["score"], abs=1e-6)
    assert scored["bytes"] == result["bytes"]


@pytest.mark.real
def test_each_precision_is_held_to_its_own_tolerance(exported: Path) -> None:
    """A file that answers otherwise than the student must not pass in a pipeline because 4 bits may lose as much."""
    result = json.loads((exported / "export.json").read_text())
    within = {entry["precision"]: entry["parity"]["within"] for entry in result["artifacts"].values()}
    assert within == {"f16": True, "q8_0": False, "q4_0": True}
    assert result["recommended"] == "model.q4_0.gguf"
