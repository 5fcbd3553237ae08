"""A quantized teacher, and a student whose adapters are trained on a quantized base, through the real command."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from support.commands import naming, read, refusal, require_words, runner, same_weights, weights
from support.tiny import decoder, language_model_options, speller, talk

from kdcli.console import ProgressStage
from kdcli.errors import ConfigError
from kdcli.evaluation.models import recorded_models
from kdcli.pipeline.stages import Stages
from kdcli.training.sharding import require_unquantized


@pytest.fixture
def options(talker: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Overrides of a run whose teacher is quantized."""
    monkeypatch.chdir(tmp_path)
    usual = [
        word for word in language_model_options(talker) if not word.startswith(("student", "trainer.epochs"))
    ]
    return [*usual, *talk(tmp_path, "pairs", 80), "measure=null", "teacher.quantization=nf4"]


@pytest.fixture
def qlora(options: list[str], tmp_path: Path) -> Callable[..., Path]:
    """Runs `kdcli distill` with adapters on another decoder in 4 bits."""
    tokenizer, base = speller(), tmp_path / "base"
    decoder(tokenizer, seed=3).save_pretrained(base)
    tokenizer.save_pretrained(base)
    student = ["student=lora", f"student.path={base}", "student.r=4", "student.quantization_base=nf4"]
    length = ["trainer.max_steps=4", "trainer.eval_steps=2", "trainer.learning_rate=0.01"]
    more = [*options, *student, *length, "student.allow_same_size=true"]
    return runner(tmp_path, lambda *words: [*more, *words])


def test_a_killed_training_of_adapters_on_a_quantized_base_is_continued_and_the_cost_of_quantization_is_told(
    qlora: Callable[..., Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    """Packed weights that no checkpoint can hold, a resumed student that is another one, or a student that nobody else can load; and a teacher that lost its skill with
    nobody knowing."""
    record, checkpoints = Stages.record, []

    def killed(stages: Stages, stage: ProgressStage) -> None:
        record(stages, stage)
        if stage.name == "student" and stage.step == 2:
            path = tmp_path / "run" / "stages" / "student" / "checkpoint-2" / "model.safetensors"
            checkpoints.append(load_file(path))
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Stages, "record", killed)
        qlora("run", code=130)
    assert checkpoints
    assert all("lora_" in name for name in checkpoints[0])
    run = qlora("run")
    whole = qlora("whole")
    for model in ("student", "control"):
        assert same_weights(run, whole, model)
        assert {weight.dtype for weight in weights(run, model).values()} == {torch.float32}
        assert "quantization_config" not in read(run / model / "config.json")
    fidelity = read(run / "report.json")["fidelity"]
    assert fidelity.pop("quantization") == "nf4"
    assert fidelity == {key: read(whole / "report.json")["fidelity"][key] for key in fidelity}
    assert 0 < fidelity["kl"] < 0.5
    assert 0.5 < fidelity["agreement"] <= 1
    assert fidelity["positions"] > 16
    assert read(run / "env.json")["quantization"] == {"teacher": "nf4", "student": "nf4"}
    assert recorded_models(run, False)["teacher"].quantization == "nf4"
    require_words(capfd.readouterr().err, "nf4", "KL", "nats a token", f"{fidelity['kl']:.5f}")


LOCAL = ["student=local", "student.path=base"]


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        ([*LOCAL, "teacher.placement=streamed"], ["teacher.placement", "teacher.quantization=nf4"]),
        ([*LOCAL, "teacher=vllm", "teacher.model=m"], ["teacher.quantization", "server"]),
        (["student=lora", "student.path=base", "student.quantization_base=int4"], ["student.quantization_base", "int8"]),
    ],
)  # fmt: skip
def test_what_cannot_be_quantized_is_refused(
    overrides: list[str],
    words: list[str],
    talker: Path,
    options: list[str],
    capsys: pytest.CaptureFixture[str],
) -> None:
    """A key without an effect, or an error after hours."""
    Path("base").symlink_to(talker)
    if "teacher=vllm" in overrides:
        local = ("teacher=", "teacher.path", "teacher.batch_size", "teacher.trainer")
        options = [word for word in options if not word.startswith(local)]
    require_words(refusal(capsys, "distill", [*options, *overrides]), *words)


def test_a_quantized_base_is_not_sharded() -> None:
    """Parts of packed integers cannot be gathered: all processes would end with an error of torch."""
    config = decoder(speller()).config
    require_unquantized(config, "trainer.fsdp")
    with pytest.raises(ConfigError, match=naming("trainer.fsdp", "student.quantization_base=nf4")):
        require_unquantized(config, "trainer.fsdp", "nf4")
