"""`kdcli export hardware=cpu` and `kdcli eval artifact=…` of a language model as users type them, on a run that is made once."""

from __future__ import annotations

import io
import json
import re
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.numpy import load_file
from support.commands import require_one_message, require_words
from support.tiny import language_model_options, run_snippet, speaker, talk
from transformers import AutoModelForCausalLM, AutoTokenizer

from kdcli.evaluation.results import finished_report
from kdcli.launch.inference import chat, load
from kdcli.launch.run import launch

QUICK = [
    "measure.latency_runs=4",
    "measure.throughput_seconds=0.05",
    "measure.generations=4",
    "measure.new_tokens=6",
    "measure.load_seconds=0.05",
]
NAMES = ["model.onnx", "model.int8.onnx", "model.int4.onnx"]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run on conversations, whose student has learnt much of its task before, and is sure of less."""
    folder = tmp_path_factory.mktemp("language")
    teacher = speaker(folder / "teacher")
    model = AutoModelForCausalLM.from_pretrained(teacher)
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.1 * torch.randn_like(parameter)
    model.save_pretrained(teacher)
    options = [
        *language_model_options(teacher),
        *talk(folder, "messages"),
        "teacher.tune=false",
        "student.num_hidden_layers=2",
        "trainer.max_steps=3",
        "smoke=true",
        "control=false",
        "measure=null",
    ]
    assert launch("distill", [*options, f"hydra.run.dir={folder / 'run'}"]) == 0
    return folder / "run"


@pytest.fixture(scope="module")
def exported(run: Path) -> Path:
    """Of the three files only that of 4 bits is held to more than it can keep."""
    tight = "hardware.tolerances.causal_lm_int4.agreement=1"
    assert launch("export", [f"run={run}", "hardware=cpu", *QUICK, tight]) == 3
    return run / "export" / "cpu"


def result(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / "export.json").read_text())
    return found


def test_export_is_run_and_compared(run: Path, exported: Path) -> None:
    """A file that ONNX Runtime never ran, or figures that were taken of something else than it."""
    assert not finished_report(run).model_extra, "docs/report.schema.json has all entries"
    found = result(exported)
    assert (found["task"], found["metric"], list(found["artifacts"])) == ("causal_lm", "log_prob", NAMES)
    student = load_file(run / "predictions" / "test.student.safetensors")
    for name, entry in found["artifacts"].items():
        assert (exported / name).stat().st_size == entry["bytes"]
        assert 0 < entry["latency_ms"]["p50"] <= entry["latency_ms"]["p95"]
        assert entry["throughput_per_s"] > 0
        assert entry["first_token_ms"]["p95"] == entry["latency_ms"]["p95"]
        assert entry["between_tokens_ms"]["p95"] >= entry["between_tokens_ms"]["p50"] >= 0
        assert 1e6 < entry["peak_memory_bytes"] < found["torch"]["peak_memory_bytes"]
        assert entry["parity"]["same_tokens"] == 1
        said = load_file(exported / "predictions" / f"test.{name}.safetensors")
        assert (said["labels"] == student["labels"]).all()
        assert entry["score"] == pytest.approx(said["log_prob"].mean(dtype="float64"), abs=1e-6)
        assert entry["parity"]["agreement"] == pytest.approx((said["top"] == student["top"]).mean())
    whole = found["artifacts"]["model.onnx"]["parity"]
    assert whole["max_abs_difference"] < 1e-4
    assert (whole["agreement"], whole["generated"]) == (1, 1)
    assert found["artifacts"]["model.int4.onnx"]["parity"]["max_abs_difference"] > 1e-3


def greedy(student: Path, text: str) -> str:
    """What a student answers in a conversation, by transformers alone."""
    model, tokenizer = (kind.from_pretrained(student) for kind in (AutoModelForCausalLM, AutoTokenizer))
    turns = [{"role": "user", "content": text}]
    row = tokenizer.apply_chat_template(
        turns, add_generation_prompt=True, return_tensors="pt", return_dict=True
    )
    ids, mask = row["input_ids"], row["attention_mask"]
    written = model.generate(input_ids=ids, attention_mask=mask, max_new_tokens=64, do_sample=False)
    return str(tokenizer.decode(written[0, ids.shape[1] :], skip_special_tokens=True))


def test_what_runs_the_file_without_kdcli_writes_as_the_student_does(run: Path, exported: Path) -> None:
    """Lines that do not run, forget the conversation's template, or read the cache wrongly."""
    file = exported / "run_onnx.py"
    lines = file.read_text()
    assert 'MODEL = "model.int8.onnx"' in lines
    (whole := exported / "run_whole.py").write_text(lines.replace("model.int8.onnx", "model.onnx"))
    texts = ("say good and bad", "which film")
    expected = "\n".join(greedy(run / "student", text) for text in texts).strip()
    assert "\n".join(run_snippet(whole, *texts)) == expected
    assert result(exported)["artifacts"]["model.onnx"]["load"]["rates"][0]["latency_ms"]["p50"] > 0


def test_predict_and_chat_write_as_the_student_does(
    run: Path, exported: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Prompts without the template of the conversation, texts without their first letters, or a cache that is read wrongly."""
    expected = greedy(run / "student", "which film")
    for path in (run, exported / "model.onnx"):
        turns = [{"role": "user", "content": "which film"}]
        first, second = load(str(path)).predict(["which film", turns], max_new_tokens=64)
        assert (first["prompt"], first["completion"]) == ("which film", expected)
        assert (second["messages"], second["completion"]) == (turns, expected)
    capsys.readouterr()
    monkeypatch.setattr(sys, "stdin", io.StringIO("which film\n\n/reset\nwhich film\n/exit\nnever read\n"))
    assert chat(str(run), max_new_tokens=64) == 0
    assert capsys.readouterr().out == f"{expected.strip()}\n" * 2
    monkeypatch.setattr(sys, "stdin", io.StringIO("which film\n"))
    assert chat(str(exported), max_new_tokens=8, temperature=1.0, seed=3, system="Be brief.") == 0
    once = capsys.readouterr().out
    monkeypatch.setattr(sys, "stdin", io.StringIO("which film\n" * 2))
    assert chat(str(run), teacher=True, max_new_tokens=8) == 0
    lines = capsys.readouterr().out.splitlines()
    assert once
    assert [line.split(":")[0] for line in lines if ": " in line] == ["student", "teacher"] * 2


def test_the_card_asks_as_the_student_was_taught(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Lines that give a student of conversations a bare prompt, which its template never wrote."""
    found = re.search(r"```python\n(.*?)```", (run / "student" / "README.md").read_text(), flags=re.DOTALL)
    assert found
    lines = found[1].replace("path/to/this/directory", str(run / "student")).replace("=128", "=64")
    exec(lines, {})
    said = greedy(run / "student", "A question like those it was trained on.")
    assert capsys.readouterr().out.strip() == said.strip()


@pytest.mark.long
def test_a_checkpoint_for_servers(run: Path, tmp_path: Path) -> None:
    """A folder in bf16 that is measured in fp32, or that nothing but kdcli can load."""
    assert launch("export", [f"run={run}", "hardware=cuda", *QUICK]) == 0
    found = result(run / "export" / "cuda")
    entry = found["artifacts"]["bf16"]
    assert list(found["artifacts"]) == ["bf16"]
    assert entry["bytes"] < 0.6 * found["torch"]["bytes"]
    assert entry["parity"]["same_tokens"] == 1
    assert 0 < entry["parity"]["max_abs_difference"] < 0.2
    assert AutoModelForCausalLM.from_pretrained(run / "export" / "cuda" / "bf16").dtype == torch.bfloat16
    assert run_snippet(run / "export" / "cuda" / "bf16" / "run_torch.py", "which film")
    assert launch("export", [f"run={run}", "hardware=cuda", "hardware.precisions=[pt2]", *QUICK]) == 2


def test_eval_of_a_file(run: Path, exported: Path, tmp_path: Path) -> None:
    """A file on a device must be scored as the export scored it."""
    options = [f"run={run}", "artifact=model.int4.onnx", "measure=null"]
    assert launch("eval", [*options, f"hydra.run.dir={tmp_path / 'e'}"]) == 0
    scored = json.loads((tmp_path / "e" / "eval.json").read_text())["models"]["model.int4.onnx"]
    assert scored["score"] == pytest.approx(
        result(exported)["artifacts"]["model.int4.onnx"]["score"], abs=1e-6
    )


def test_each_precision_is_held_to_its_own_tolerance(exported: Path) -> None:
    """A file of 4 bits that is held to nothing, or to what one of 8 may lose."""
    found = result(exported)
    within = {entry["precision"]: entry["parity"]["within"] for entry in found["artifacts"].values()}
    assert within == {"fp32": True, "int8": True, "int4": False}
    assert found["recommended"] == "model.int8.onnx"


def test_another_target_is_named_where_one_does_not_serve(
    run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """An exporter of classifiers that fails somewhere within."""
    assert launch("export", [f"run={run}", "hardware=intel"]) == 2
    require_words(require_one_message(capsys.readouterr().err), "hardware=intel", "hardware=cpu")
