"""A last stage with rounded weights, through the real commands."""

from __future__ import annotations

import json
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from support.commands import require_one_message, require_words, same_weights, weights
from support.tiny import language_model_options, speaker, start, talk, wait_for
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from kdcli.config.check import check
from kdcli.config.schema import Distill
from kdcli.data.dataset import load
from kdcli.exporting.targets.cpu import Cpu
from kdcli.exporting.targets.laptop import Laptop
from kdcli.exporting.verify import warn_if_not_rounded
from kdcli.launch.run import launch
from kdcli.models.quantization import BLOCK, FakeQuantization, Grid
from kdcli.rundir import saved_config
from kdcli.tasks import task_of

Distil = Callable[..., Path]
QUICK = ["measure.latency_runs=3", "measure.throughput_seconds=0.05", "measure.request_rates=[]"]


def told(run: Path) -> dict[str, int]:
    return {
        stage["name"]: stage["steps"] for stage in json.loads((run / "report.json").read_text())["stages"]
    }


OPTIONS = [
    "student.dropout=0",
    "trainer.epochs=3",
    "trainer.eval_steps=10",
    "trainer.keep=last",
    "control=false",
]


def rounded(precision: str) -> list[str]:
    return [*OPTIONS, f"student.quantization={precision}", "student.quantization_epochs=2"]


def exported(run: Path, *precisions: str) -> dict[str, Any]:
    options = [f"run={run}", f"hardware.precisions=[{','.join(precisions)}]", *QUICK]
    assert launch("export", [*options, "hardware.tolerance.agreement=0.9"]) == 0
    assert not list((run / "export" / "cpu").glob(".before-*"))
    return json.loads((run / "export" / "cpu" / "export.json").read_text())


def after_training(run: Path) -> float:
    """What the student before the stage scores on the test rows, with its weights rounded at once."""
    model = AutoModelForSequenceClassification.from_pretrained(run / "unquantized").eval()
    grid = FakeQuantization("int4")
    grid.prepare_for_training(model)
    cfg = check(Distill, saved_config(run)).dataset
    data = load(cfg)
    task = task_of(cfg, data.labels)
    tokenizer = AutoTokenizer.from_pretrained(run / "unquantized")
    said = task.predict(model, tokenizer, task.encode(tokenizer, data["test"], cfg.max_length))
    return float(task.scores(said)[task.metric])


def test_a_plain_student_is_left_compared_and_a_kill_in_the_stage_loses_nothing(
    distil: Distil, small: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A kill that loses the stage, or a student that nobody else can load, makes it worthless; what it is worth must be told where
    the file is made."""
    whole = distil("whole", *rounded("int4"))
    before = load_file(whole / "unquantized" / "model.safetensors")
    configs = [(whole / name / "config.json").read_text() for name in ("unquantized", "student")]
    assert configs[0] == configs[1]
    _, info = AutoModelForSequenceClassification.from_pretrained(whole / "student", output_loading_info=True)
    assert not any(info.values())
    matrix = weights(whole)["classifier.weight"]
    assert not torch.equal(matrix, before["classifier.weight"])
    assert torch.allclose(Grid(0, 15, BLOCK)(matrix), matrix, atol=1e-7)
    rates = [
        line for line in map(json.loads, (whole / "metrics.jsonl").read_text().splitlines()) if "lr" in line
    ]
    assert max(line["lr"] for line in rates if line["stage"] == "student/quantized") <= 2e-4

    process = start(tmp_path / "killed", [*small, *rounded("int4"), "measure=null"])
    stage = tmp_path / "killed" / "stages" / "student" / "quantized"
    wait_for(lambda: any(stage.glob("checkpoint-2*/trainer_state.json")), process)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert same_weights(whole, distil("killed", *rounded("int4")))

    capsys.readouterr()
    result = exported(whole, "int4")
    report = json.loads((whole / "report.json").read_text())
    artifact, found = result["artifacts"]["model.int4.onnx"], result["quantization"]
    assert artifact["parity"]["agreement"] == 1  # it rounds nothing that was not rounded
    assert artifact["parity"]["max_abs_difference"] < 1e-4
    assert (found["precision"], set(found["artifacts"])) == ("int4", {"model.int4.onnx"})
    assert found["score"] == report["models"]["unquantized"]["score"]
    pair = found["artifacts"]["model.int4.onnx"]
    assert pair["post_training"]["score"] == after_training(whole)
    for each in pair.values():
        assert each["kept"] == pytest.approx(each["score"] / found["score"])
        assert each["retention"] == pytest.approx(each["score"] / report["models"]["teacher"]["score"])
    assert pair["quantization_aware"]["score"] == artifact["score"]
    require_words(capsys.readouterr().out, "trained in int4", "rounded after training")


def test_an_export_without_the_precision_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    """Files of other precisions, of a student whose weights are rounded for nothing."""
    warn_if_not_rounded("int4", Cpu(), {"fp32": Path("model.onnx"), "int4": Path("model.int4.onnx")})
    gguf = {"f16": Path("model.f16.gguf"), "q4_0": Path("model.q4_0.gguf")}
    warn_if_not_rounded("int4", Laptop(["f16", "q4_0"]), gguf)
    assert not capsys.readouterr().err
    warn_if_not_rounded("int4", Cpu(), {"fp32": Path("model.onnx")})
    require_words(capsys.readouterr().err, "weights in int4", "none of these files")


def test_the_control_is_rounded_too_and_what_went_before_is_as_without_the_stage(distil: Distil) -> None:
    """A control without the stage makes the comparison one of apples with pears; a stage that changes what went before it cannot be
    told from luck."""
    plain, run = (
        distil("plain", *OPTIONS, "student.calibrate=false"),
        distil("run", *rounded("int8"), "control=true"),
    )
    before = load_file(run / "unquantized" / "model.safetensors")
    assert all(torch.equal(each, before[name]) for name, each in weights(plain).items())
    steps = told(run)
    assert list(steps) == ["teacher outputs", "student", "student/quantized", "control", "control/quantized"]
    assert steps["student"] == steps["control"] == told(plain)["student"]
    assert steps["student/quantized"] == steps["control/quantized"] == 2 * (440 // 16)
    for name in ("student", "control"):
        matrix = load_file(run / name / "model.safetensors")["classifier.weight"]
        assert torch.allclose(Grid(-64, 64, matrix.shape[1])(matrix), matrix, atol=1e-7)
    report = json.loads((run / "report.json").read_text())
    assert set(report["models"]) == {"teacher", "unquantized", "control", "student", "trivial"}
    assert "unquantized" in (run / "report.html").read_text()


def test_it_comes_after_the_stages(distil: Distil) -> None:
    """A stage that takes the place of the last one, or has another loss, is another training."""
    run = distil(
        "run",
        "student.quantization=int4",
        "control=false",
        "+stages.one.trainer.epochs=1",
        "+stages.two.trainer.epochs=1",
        "+stages.two.loss.soft_label._target_=kdcli.losses.forward_kl.ForwardKL",
    )
    steps = told(run)
    assert list(steps)[1:] == ["student/one", "student/two", "student/quantized"]
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    terms = {
        key
        for line in lines
        if line["stage"] == "student/quantized"
        for key in line
        if key.startswith("loss/")
    }
    assert terms == {"loss/soft_label"}


@pytest.mark.long
def test_a_decoder_is_rounded_as_its_files_are_and_a_kill_loses_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Head and embeddings that are one matrix come apart, or are stored twice; a grid that no file has."""
    monkeypatch.chdir(tmp_path)
    options = [
        *language_model_options(speaker(tmp_path / "teacher")),
        *talk(tmp_path, "pairs"),
        *rounded("int4"),
    ]
    options.remove("student.dropout=0")
    process = start(tmp_path / "killed", options)
    stage = tmp_path / "killed" / "stages" / "student" / "quantized"
    wait_for(lambda: any(stage.glob("checkpoint-1*/trainer_state.json")), process)
    process.send_signal(signal.SIGKILL)
    process.wait()
    for name in ("whole", "killed"):
        assert launch("distill", [*options, f"hydra.run.dir={name}"]) == 0, capsys.readouterr().err
    whole = Path("whole")
    assert same_weights(whole, Path("killed"))
    before, after = (load_file(whole / name / "model.safetensors") for name in ("unquantized", "student"))
    assert set(before) == set(after)
    for name, matrix in after.items():
        if matrix.dim() == 2:
            grid = Grid(-128, 127, BLOCK) if "embed" in name else Grid(-8, 7, BLOCK)
            assert torch.allclose(grid(matrix), matrix, atol=1e-7), name
            assert not torch.allclose(grid(before[name]), before[name], atol=1e-4)

    capsys.readouterr()
    result = exported(whole, "int4")
    require_words(capsys.readouterr().out, "trained in int4", "rounded after training")
    pair = result["quantization"]["artifacts"]["model.int4.onnx"]
    assert pair["quantization_aware"]["score"] == pytest.approx(result["torch"]["score"], abs=0.02)
    assert pair["quantization_aware"]["score"] > pair["post_training"]["score"]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["student.quantization=int3"], ["student.quantization", "'int3'"]),
        (["student.quantization_epochs=0"], ["student.quantization_epochs", "0"]),
        (["student.quantisation=int4"], ["student.quantisation", "student.quantization"]),
        (["student.quantization=int4", "+stages.quantized.rows=all"], ["quantized", "stage's name"]),
        (["student.quantization=int4", "dataset.task=masked_lm"], ["student.quantization", "masked_lm"]),
    ],
)
def test_bad_input_is_refused(distil: Distil, capsys, options: list[str], words: list[str]) -> None:
    """A precision that no file has is found after an hour, at the export."""
    distil("run", *options, code=2)
    require_words(require_one_message(capsys.readouterr().err), *words)


def test_adapters_and_a_missing_package_are_refused(
    distil: Distil, small: list[str], teacher: Path, monkeypatch: pytest.MonkeyPatch, capsys
) -> None:
    """A student of which all weights change, though its adapters alone were to be trained; an ImportError at the last stage."""
    options = [option for option in small if not option.startswith("student.")]
    lora = ["student=lora", f"student.path={teacher}", "student.quantization=int8", "measure=null"]
    assert launch("distill", [*options, *lora]) == 2
    require_words(require_one_message(capsys.readouterr().err), "student.quantization", "adapters")
    monkeypatch.setitem(sys.modules, "torchao", None)
    for name in [name for name in sys.modules if name.startswith("torchao.")]:
        monkeypatch.setitem(sys.modules, name, None)
    run = distil("run", "student.quantization=int8", code=2)
    message = require_one_message(capsys.readouterr().err)
    require_words(message, "torchao", "pip install 'kdcli[quantization]'")
    assert not (run / "stages").exists()
