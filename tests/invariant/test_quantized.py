"""A last stage with rounded weights, through the real commands."""

from __future__ import annotations

import json
import signal
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from test_training import same, weights
from tiny import lessons, speaker, start, talk, wait_for

from kdcli.launch import launch
from kdcli.quantization import BLOCK, Grid

Distil = Callable[..., Path]
QUICK = ["measure.latency_runs=3", "measure.throughput_seconds=0.05"]


def told(run: Path) -> dict[str, int]:
    return {
        stage["name"]: stage["steps"] for stage in json.loads((run / "report.json").read_text())["stages"]
    }


@pytest.mark.parametrize("precision", ["int8", "int4"])
def test_student_and_control_are_rounded_compared_and_resumed(
    distil: Distil, small: list[str], tmp_path: Path, precision: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """A control without the stage makes the comparison one of apples with pears; a kill that loses the stage, or a student that nobody
    else can load, makes it worthless; a stage that changes what went before it cannot be told from luck."""
    from transformers import AutoModelForSequenceClassification

    options = ["student.dropout=0", "trainer.epochs=3", "trainer.eval_steps=10", "trainer.keep=last"]
    plain = distil("plain", *options)
    options += [f"student.quantization={precision}", "student.quantization_epochs=2"]
    whole = distil("whole", *options)
    steps = told(whole)
    assert list(steps) == ["signals", "student", "student/quantized", "control", "control/quantized"]
    assert steps["student"] == steps["control"] == told(plain)["student"]
    assert steps["student/quantized"] == steps["control/quantized"] == 2 * (440 // 16)
    before = load_file(whole / "unquantized" / "model.safetensors")
    assert all(torch.equal(each, before[name]) for name, each in weights(plain).items())
    for name in ("student", "control"):
        _, info = AutoModelForSequenceClassification.from_pretrained(whole / name, output_loading_info=True)
        assert not any(info.values())
        matrix = load_file(whole / name / "model.safetensors")["classifier.weight"]
        grid = Grid(0, 15, BLOCK) if precision == "int4" else Grid(-64, 64, matrix.shape[1])
        assert torch.allclose(grid(matrix), matrix, atol=1e-7)
    report = json.loads((whole / "report.json").read_text())
    assert set(report["models"]) == {"teacher", "unquantized", "control", "student"}
    rates = [
        line for line in map(json.loads, (whole / "metrics.jsonl").read_text().splitlines()) if "lr" in line
    ]
    assert max(line["lr"] for line in rates if line["stage"] == "student/quantized") <= 2e-4
    assert "unquantized" in (whole / "report.html").read_text()

    process = start(tmp_path / "killed", [*small, *options, "measure=null"])
    stage = tmp_path / "killed" / "stages" / "student" / "quantized"
    wait_for(lambda: any(stage.glob("checkpoint-2*/trainer_state.json")), process)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert same(whole, distil("killed", *options))

    capsys.readouterr()
    launch(
        "export",
        [f"run={whole}", "hardware.precisions=[fp32,int8,int4]", "hardware.tolerance.agreement=0", *QUICK],
    )
    out = capsys.readouterr().out
    result = json.loads((whole / "export" / "cpu" / "export.json").read_text())
    after, name = result["post_training"], f"model.{precision}.onnx"
    assert (
        set(after["artifacts"])
        == set(result["artifacts"])
        == {"model.onnx", "model.int8.onnx", "model.int4.onnx"}
    )
    assert after["quantization"] == precision
    assert (
        after["score"]
        == after["artifacts"]["model.onnx"]["score"]
        == report["models"]["unquantized"]["score"]
    )
    assert f"of the student before its stage in {precision}" in out
    if precision == "int4":  # it rounds nothing that was not rounded: the artifact is the student
        assert result["artifacts"][name]["parity"]["agreement"] == 1
        assert result["artifacts"][name]["parity"]["max_abs_difference"] < 1e-4
    assert not list((whole / "export" / "cpu").glob(".before-*"))


def test_it_comes_after_the_stages(distil: Distil) -> None:
    """A stage that takes the place of the last one, or has another loss, is another training."""
    run = distil(
        "run",
        "student.quantization=int4",
        "+stages.one.trainer.epochs=1",
        "+stages.two.trainer.epochs=1",
        "+stages.two.loss.soft_label._target_=kdcli.losses.forward_kl.ForwardKL",
    )
    steps = told(run)
    assert list(steps)[1:] == [
        "student/one",
        "student/two",
        "student/quantized",
        "control",
        "control/quantized",
    ]
    assert steps["control"] == steps["student/one"] + steps["student/two"]
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    terms = {
        key
        for line in lines
        if line["stage"] == "student/quantized"
        for key in line
        if key.startswith("loss/")
    }
    assert terms == {"loss/soft_label"}


def test_a_decoder_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    """Its files have other grids (GGUF): the stage would round to one that no exporter writes."""
    monkeypatch.chdir(tmp_path)
    teacher = speaker(tmp_path / "teacher", steps=1)
    options = [*lessons(teacher), *talk(tmp_path, "pairs"), "student.quantization=int4"]
    assert launch("distill", options) == 2
    assert "classification and token_classification, not for causal_lm" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["student.quantization=int3"], "student.quantization = 'int3'"),
        (["student.quantization_epochs=0"], "student.quantization_epochs"),
        (["student.quantisation=int4"], "did you mean quantization"),
        (["student.quantization=int4", "+stages.quantized.rows=all"], "cannot be a stage's name"),
    ],
)
def test_bad_input_is_refused(distil: Distil, capsys, options: list[str], said: str) -> None:
    """A precision that no file has is found after an hour, at the export."""
    distil("run", *options, expect=2)
    assert said in capsys.readouterr().err
