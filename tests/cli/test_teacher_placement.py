"""Where a teacher's weights are and in which precision, through the real command."""

from __future__ import annotations

import gc
import re
import tempfile
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from support.commands import ColdCache, read, refusal, require_words, runner, same_weights, some, weights
from support.tiny import language_model_options, speaker, talk
from transformers import PreTrainedModel

from kdcli import memory
from kdcli.launch.run import launch
from kdcli.models import device_map
from kdcli.pipeline import memory as pipeline_memory
from kdcli.pipeline import placement
from kdcli.teachers.base import Teacher
from kdcli.teachers.local import LocalTeacher

Distil = Callable[..., Path]


@pytest.fixture
def options(talker: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Overrides of a language model's run that measures nothing."""
    monkeypatch.chdir(tmp_path)
    data = talk(tmp_path, "pairs", 60)
    return [*language_model_options(talker), *data, "measure=null", "control=false", "smoke=true"]


def stored(cache: Path) -> dict[str, int]:
    """The stored outputs, and when they were written."""
    return {path.name: path.stat().st_mtime_ns for path in cache.glob("teacher_outputs/*/*.safetensors")}


def test_a_streamed_run_is_the_resident_run_and_shares_its_store(
    options: list[str], tmp_path: Path, cold_cache: ColdCache, capfd: pytest.CaptureFixture[str]
) -> None:
    """Other soft targets than those of the whole teacher, or a store that only a streamed run reads: the night would be paid twice."""
    run = runner(tmp_path, lambda *more: [*options, *more])
    cache = cold_cache("one")
    streamed = run("streamed", "teacher.placement=streamed", "teacher.memory_bound=400MB")
    require_words(capfd.readouterr().err, "layer by layer", "scratch space")
    files = stored(cache)
    assert files
    assert not list(cache.glob("streamed/*partial*"))
    run("after", "teacher.placement=resident")
    assert stored(cache) == files
    cold_cache("other")
    resident = run("resident", "teacher.placement=resident")
    assert same_weights(streamed, resident)
    reports = [read(folder / "report.json") for folder in (streamed, resident)]
    agreement = [report["verdict"]["kl_to_teacher"] for report in reports]
    assert agreement[0] == agreement[1]
    assert reports[0]["models"]["teacher"]["latency_ms"] == dict.fromkeys(("p50", "p95", "p99"))


def test_auto_streams_a_teacher_that_does_not_fit_and_says_so(
    distil: Distil, cold_cache: ColdCache, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """The process would be killed without a message, or stream without being asked to."""
    cold_cache()
    monkeypatch.setattr(placement, "device_free_memory", lambda: 1000)
    run = distil("auto", "teacher.memory_bound=400MB", "student.embeddings=random", "control=false")
    require_words(capfd.readouterr().err, "does not fit", "teacher.placement=streamed", "1.0 kB")
    assert read(run / "report.json")["models"]["teacher"]["score"] > 0.7


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["teacher.placement=device_map", "teacher.quantization=int8"], ["teacher.quantization=int8"]),
        (["teacher.cache=false"], ["teacher.cache=true"]),
        (["teacher.tune=true", "teacher.trainer.batch_size=8"], ["teacher.tune=false", "fine-tuned"]),
        (["rollout=student"], ["rollout.source=student", "rollout=dataset"]),
        (["teacher.memory_bound=1MB"], ["teacher.memory_bound", "1.0 MB", "raise it"]),
        (["teacher.memory_bound=lots"], ["teacher.memory_bound", "2GB"]),
    ],
)
def test_what_a_placement_cannot_do_is_refused(
    overrides: list[str], words: list[str], options: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    """The run would load the whole teacher in spite of the key, fail after hours, or end in an exception of Accelerate."""
    message = refusal(capsys, "distill", [*options, "teacher.placement=streamed", *overrides])
    require_words(message, *words)


class Own(Teacher):
    """Loads its models itself, by means of its own."""

    __init__ = LocalTeacher.__init__
    outputs = LocalTeacher.outputs


@pytest.mark.parametrize("placed", ["device_map", "streamed"])
def test_a_class_that_loads_its_models_itself_is_not_placed(
    placed: str, options: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    """The key would be read by nothing, and the whole model loaded."""
    own = [f"teacher._target_={__name__}.Own", f"teacher.placement={placed}"]
    message = refusal(capsys, "distill", [*options, *own])
    require_words(message, "teacher.placement", f"{__name__}.Own", "kdcli.teachers.local.LocalTeacher")


@pytest.mark.parametrize("writes", some([False, True], True), ids=["stored", "rollouts and online"])
def test_a_divided_run_is_the_resident_run(
    writes: bool,
    options: list[str],
    tmp_path: Path,
    cold_cache: ColdCache,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Other outputs than those of the whole teacher; a head that is on the device "meta" where a loss or a rollout reads it; a teacher whose
    speed is measured whole, which it does not fit."""
    places: list[dict[str, int | str]] = []
    divide = device_map.divide

    def recorded(model: PreTrainedModel, name: str) -> device_map.DeviceMap:
        size = sum(weight.nbytes for weight in model.parameters())
        monkeypatch.setattr(device_map, "free_memory", lambda: int(0.7 * size / device_map.SHARE))
        places.append(divide(model, name))
        return places[-1]

    monkeypatch.setattr(device_map, "divide", recorded)
    more = []
    if writes:
        more = [
            f"teacher.path={speaker(tmp_path / 'speaker')}",
            "rollout=teacher",
            "rollout.max_new_tokens=8",
            "rollout.sampling_temperature=1",
            "teacher.cache=false",
        ]
    measure = ["measure.mode=quick", "measure.latency_runs=3", "measure.throughput_seconds=0.05"]
    usual = [word for word in options if word != "measure=null"]
    run = runner(tmp_path, lambda *own: [*usual, *more, *measure, *own])
    scratch = tmp_path / "tmp"
    scratch.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(scratch))
    cold_cache("divided")
    divided = run("divided", "teacher.placement=device_map")
    assert {"cpu", "disk"} == set(places[-1].values())
    assert not [path for path, place in places[-1].items() if place == "disk" and "layers" not in path]
    gc.collect()
    assert not list(scratch.glob("kdcli-weights-*"))
    cold_cache("resident")
    resident = run("resident", "teacher.placement=resident")
    assert same_weights(divided, resident)
    of_divided, of_resident = (read(folder / "report.json") for folder in (divided, resident))
    assert of_divided["models"]["teacher"]["score"] == of_resident["models"]["teacher"]["score"]
    assert of_divided["verdict"]["kl_to_teacher"] == of_resident["verdict"]["kl_to_teacher"]
    assert of_divided["models"]["teacher"]["throughput_per_s"] is None
    assert read(divided / "env.json")["placement"] == {"teacher": "device_map"}
    assert read(resident / "env.json")["placement"] == {"teacher": "resident"}
    assert of_divided["models"]["student"]["throughput_per_s"] > 0
    assert of_resident["models"]["teacher"]["throughput_per_s"] > 0
    seen = len(places)
    words = [f"run={divided}", *measure, f"hydra.run.dir={tmp_path / 'eval'}"]
    assert launch("eval", words) == 0
    assert len(places) > seen
    assert read(tmp_path / "eval" / "eval.json")["models"]["teacher"]["throughput_per_s"] is None


def test_a_divided_teacher_whose_head_does_not_fit_is_refused_before_training(
    options: list[str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A refusal after the data were prepared and another model was trained."""
    monkeypatch.setattr(device_map, "free_memory", lambda: 1000)
    message = refusal(capsys, "distill", [*options, "teacher.placement=device_map"])
    require_words(message, "output head", "teacher.placement=streamed")


def test_a_run_that_does_not_fit_is_refused_before_anything_is_loaded(
    options: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The process is killed after the teacher's phases, or a run directory is left."""
    monkeypatch.setattr(pipeline_memory, "device_free_memory", lambda: 1000)
    monkeypatch.setattr(pipeline_memory, "free_swap", lambda: 0)
    folder = tmp_path / "run"
    message = refusal(capsys, "distill", [*options, f"hydra.run.dir={folder}"])
    require_words(message, "does not fit", "1.0 kB", "trainer.optimizer=adafactor", "student.dtype=bf16")
    assert not folder.exists()


def test_a_student_that_is_cut_from_a_teacher_that_does_not_fit_is_refused(
    options: list[str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its initialisation would load the whole teacher after the pass."""
    monkeypatch.setattr(placement, "device_free_memory", lambda: 1000)
    message = refusal(capsys, "distill", [*options, "teacher.placement=streamed"])
    require_words(message, "student.path", "student=tiny")


def test_dtypes_are_those_of_the_config_and_recorded(
    options: list[str], tmp_path: Path, cold_cache: ColdCache
) -> None:
    """A student that is trained in another precision than its config says; a run whose precision nobody can tell later."""
    cold_cache()
    run = runner(tmp_path, lambda *more: [*options, *more])
    half = run("half", "teacher.dtype=bf16", "student.dtype=bf16")
    taken = read(half / "env.json")["memory"]
    assert taken["planned_bytes"] == max(taken["phases"].values()) > 0
    assert taken["measured_bytes"] > 0
    assert read(half / "env.json")["dtypes"] == {"teacher": "bf16", "student": "bf16"}
    assert {weight.dtype for weight in weights(half).values()} == {torch.bfloat16}
    assert re.search('"log_prob": -[0-9.]+', (half / "report.json").read_text())


def test_free_memory_is_less_than_all_memory() -> None:
    """A wrong unit would stream every teacher, or none."""
    free = memory.free_memory()
    assert free is None or 2**20 < free < 2**50
