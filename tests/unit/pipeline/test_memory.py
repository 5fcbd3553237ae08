"""The memory of a run before anything is loaded."""

from __future__ import annotations

import dataclasses
import json
import logging
import shutil
from pathlib import Path

import pytest
import torch
from support.commands import require_words
from unit.pipeline.conftest import MakePart

from kdcli.errors import ConfigError
from kdcli.memory import peak_memory, restart_peak
from kdcli.pipeline import memory
from kdcli.pipeline.memory import plan_memory, require_memory
from kdcli.pipeline.memory_plan import MemoryPlan, PhaseMemory
from kdcli.pipeline.plan import Run
from kdcli.students.from_config import FromConfig

TRAINER = {"batch_size": 8, "precision": "fp32", "epochs": 1}
LABELS = (0, 1, 0, 1, 0, 1, 0, 1)


def small_student(make_part: MakePart, **own: object) -> Run:
    """A part of a run whose student has more weights than its teacher."""
    part = make_part(labels=LABELS, trainer=TRAINER, **own)  # type: ignore[arg-type]
    return dataclasses.replace(part, initializer=FromConfig(128, 4, 2, 512))


def with_teacher(part: Run, **keys: object) -> Run:
    """The part with other keys of its teacher."""
    teacher = part.cfg.teacher.model_copy(update=keys)
    return dataclasses.replace(part, cfg=part.cfg.model_copy(update={"teacher": teacher}))


def free(monkeypatch: pytest.MonkeyPatch, size: int) -> None:
    """Let the machine have so much memory."""
    monkeypatch.setattr(memory, "device_free_memory", lambda: size)
    monkeypatch.setattr(memory, "free_swap", lambda: 0)


def phases(plan: MemoryPlan) -> dict[str, PhaseMemory]:
    return {phase.name: phase for phase in plan.phases}


def large_teacher(folder: Path, teacher: Path) -> int:
    """Make a checkpoint whose weights are a hole in a file; returns their number."""
    from transformers import AutoConfig, AutoModelForSequenceClassification

    shutil.copytree(teacher, folder)
    config = AutoConfig.from_pretrained(teacher)
    config.update(
        {"hidden_size": 2048, "num_hidden_layers": 3, "num_attention_heads": 32, "intermediate_size": 8192}
    )
    config.save_pretrained(folder)
    with torch.device("meta"):
        weights = AutoModelForSequenceClassification.from_config(config).state_dict()
    header, end = {}, 0
    for name, weight in weights.items():
        header[name] = {
            "dtype": "F32",
            "shape": list(weight.shape),
            "data_offsets": [end, end + 4 * weight.numel()],
        }
        end += 4 * weight.numel()
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with (folder / "model.safetensors").open("wb") as stream:
        stream.write(len(text).to_bytes(8, "little") + text)
        stream.truncate(8 + len(text) + end)
    return end // 4


def test_a_plan_has_the_phases_of_the_run_and_loads_no_weights(
    make_part: MakePart, tmp_path: Path, teacher: Path
) -> None:
    """The plan takes the memory that it is to estimate, or forgets what is in memory beside the student."""
    count = large_teacher(tmp_path / "large", teacher)
    assert count > 1.4e8
    before = restart_peak() or 0
    part = small_student(make_part, sources=[tmp_path / "large"], control=True)
    stored = phases(plan_memory([part]))
    online = phases(plan_memory([with_teacher(part, cache=False)]))
    assert (peak_memory() or 0) - before < 3e8, "its weights are not read"
    assert list(stored) == ["teacher outputs", "student", "control"]
    assert stored["teacher outputs"].teacher == 4 * count
    assert stored["teacher outputs"].peak > 4 * count
    student = stored["student"]
    assert student.weights == student.gradients == student.optimizer / 2 == 4 * student.parameters
    assert student.least == 16 * student.parameters < student.peak
    assert online["student"].teacher == 4 * count
    assert online["student"].least == student.least + 4 * count
    assert online["control"].teacher == 0
    bounded = dataclasses.replace(with_teacher(part, memory_bound=1e8), streamed=True)
    assert phases(plan_memory([bounded]))["teacher outputs"].peak == 1e8


def test_a_student_that_does_not_fit_is_refused_with_the_cheapest_keys(
    make_part: MakePart, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The process is killed after an hour; keys that cost quality come before those that cost time, or keys that are not needed; a run that fits is refused."""
    part = small_student(make_part)
    least, peak = phases(plan_memory([part]))["student"].least, plan_memory([part]).peak
    free(monkeypatch, peak)
    require_memory([part], plan_memory([part]))
    assert not caplog.records
    free(monkeypatch, peak - 1000)
    with caplog.at_level(logging.WARNING):
        require_memory([part], plan_memory([part]))
    (record,) = caplog.records
    require_words(record.getMessage(), "may not fit", "student", "trainer.micro_batch_size=4", "saves")
    assert "optimizer" not in record.getMessage(), "rows are enough"
    free(monkeypatch, least - 1)
    with pytest.raises(ConfigError) as error:
        require_memory([part], plan_memory([part]))
    message = error.value.message
    require_words(
        message, "student", "gradients", "optimizer", "trainer.optimizer=adamw_torch_8bit", "make it fit"
    )
    assert "student.dtype" not in message, "the optimizer is enough"
    free(monkeypatch, 1000)
    with pytest.raises(ConfigError) as error:
        require_memory([part], plan_memory([part]))
    message = error.value.message
    keys = [
        "trainer.micro_batch_size=1",
        "teacher.batch_size",
        "trainer.gradient_checkpointing=true",
        "teacher.dtype=bf16",
    ]
    positions = [message.find(key) for key in [*keys, "student.dtype=bf16", "trainer.optimizer=adafactor"]]
    assert -1 not in positions, message
    assert positions == sorted(positions), message
    require_words(message, "these keys lower it", "smaller model")


def test_a_teacher_that_does_not_fit_is_refused_with_its_own_keys(
    make_part: MakePart, tmp_path: Path, teacher: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Keys of the student for a teacher that is too large."""
    large_teacher(tmp_path / "large", teacher)
    part = with_teacher(small_student(make_part, sources=[tmp_path / "large"]), memory_bound=3e8)
    free(monkeypatch, 400_000_000)
    with pytest.raises(ConfigError) as error:
        require_memory([part], plan_memory([part]))
    require_words(error.value.message, "teacher outputs", "teacher.placement=streamed", "make it fit")
    assert "trainer." not in error.value.message
    online = with_teacher(part, cache=False)
    free(monkeypatch, 200_000_000)
    with pytest.raises(ConfigError) as error:
        require_memory([online], plan_memory([online]))
    require_words(error.value.message, "student", "teacher.quantization=int8", "make it fit")
    monkeypatch.setattr(memory, "_is_quantizable", lambda run, kind: False)
    with pytest.raises(ConfigError) as error:
        require_memory([online], plan_memory([online]))
    require_words(error.value.message, "student", "teacher.placement=device_map", "make it fit")
    divided = dataclasses.replace(online, sources=[dataclasses.replace(online.sources[0], divided=True)])
    plan = plan_memory([divided])
    require_memory([divided], plan)
    assert phases(plan)["student"].teacher < 200_000_000


def test_processes_share_the_memory_of_a_machine_and_the_table_is_narrow(
    make_part: MakePart, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each of two processes plans with all of the memory; a table that a terminal of 80 columns breaks."""
    free(monkeypatch, 10**10)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "4")
    plan = plan_memory([small_student(make_part)])
    assert plan.free == 10**10 // 4
    assert max(map(len, plan.lines())) <= 80
    assert len(plan.lines()) == 1 + len(plan.phases)
    assert plan.as_json()["peak_bytes"] == plan.peak == max(phase.peak for phase in plan.phases)
