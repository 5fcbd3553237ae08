"""Student and control under several seeds in one run, through the real command on models that train in seconds."""

from __future__ import annotations

import json
import signal
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file
from support.commands import read, require_one_message, require_words, same_weights
from support.tiny import language_model_options, speaker, start, talk, wait_for

from kdcli.launch.run import launch

Distil = Callable[..., Path]
OPTIONS = ["trainer.max_steps=20", "trainer.eval_steps=10", "trainer.keep=last", "student.dropout=0.1"]
MODELS = ("student", "control")


def stages_of(run: Path) -> list[str]:
    """The stages of a finished run in their order."""
    return [stage["name"] for stage in read(run / "report.json")["stages"]]


def test_a_seed_trains_what_a_run_of_that_seed_trains(distil: Distil) -> None:
    """A second seed that shares the initialisation, the data order or the dropout of the first, or a first one that the second changes, makes
    the interval one of something else than seeds."""
    run = distil("run", *OPTIONS, "seeds=2")
    report = read(run / "report.json")
    assert stages_of(run) == ["teacher outputs", "student", "control", "student@1", "control@1"]
    assert set(report["models"]) == {"teacher", "trivial", *MODELS}
    for seed, folder, suffix in ((0, run, ""), (1, run / "seeds" / "1", "@1")):
        alone = distil(f"alone{seed}", *OPTIONS, f"seed={seed}")
        shown = read(alone / "report.json")
        entry = {name: shown["models"][name]["score"] for name in MODELS}
        gain = shown["verdict"]["gain_over_control"]
        assert report["verdict"]["seeds"][seed] == {"seed": seed, **entry, "gain": pytest.approx(gain)}
        for model in MODELS:
            assert same_weights(alone, folder, model)
            saved = load_file(run / "predictions" / f"test.{model}{suffix}.safetensors")
            expected = load_file(alone / "predictions" / f"test.{model}.safetensors")
            assert all(np.array_equal(saved[name], expected[name]) for name in expected)
    gains = [each["gain"] for each in report["verdict"]["seeds"]]
    assert report["verdict"]["gain_over_control"] == pytest.approx(sum(gains) / 2)
    assert read(run / "env.json")["seeds"]["student@1"] == read(alone / "env.json")["seeds"]["student"]


@pytest.mark.long
def test_killed_in_the_second_seed_and_continued(distil: Distil, small: list[str], tmp_path: Path) -> None:
    """A run that was killed trains a finished seed again, or goes on with the random numbers of another one."""
    killed = tmp_path / "killed"
    process = start(killed, [*small, *OPTIONS, "seeds=[0,5]", "measure=null"])
    stage = killed / "stages" / "student@5"
    wait_for(lambda: any(stage.glob("checkpoint-1*/trainer_state.json")), process)
    process.send_signal(signal.SIGKILL)
    process.wait()
    files = [killed / name / "model.safetensors" for name in MODELS]
    finished = [file.stat().st_mtime_ns for file in files]
    assert not (killed / "seeds" / "5" / "student").exists()
    distil("killed", *OPTIONS, "seeds=[0,5]")
    assert [file.stat().st_mtime_ns for file in files] == finished
    assert not (killed / "stages").exists()
    alone = distil("alone", *OPTIONS, "seed=5")
    assert all(same_weights(alone, killed / "seeds" / "5", model) for model in MODELS)
    logs = [
        [
            {key: value for key, value in line.items() if key not in ("tokens_per_s", "stage")}
            for line in map(json.loads, (run / "metrics.jsonl").read_text().splitlines())
            if line["stage"] in stages
        ]
        for run, stages in ((alone, MODELS), (killed, [f"{model}@5" for model in MODELS]))
    ]
    assert logs[0] == logs[1]
    assert logs[0]


def test_the_teacher_is_tuned_once(distil: Distil, body: Path) -> None:
    """Three teachers cost three times as much, and their spread is not that of the students."""
    options = [f"teacher.path={body}", "teacher.trainer.max_steps=2", "trainer.max_steps=2", "smoke=true"]
    run = distil("run", *options, "seeds=[3,1]", "control=false")
    assert [name for name in stages_of(run) if "@" not in name] == ["teacher", "teacher outputs", "student"]
    assert not (run / "seeds" / "1" / "control").exists()
    report = read(run / "report.json")
    assert report["seed"] == 3
    assert [(each["seed"], each["control"]) for each in report["verdict"]["seeds"]] == [(3, None), (1, None)]


@pytest.mark.long
def test_stages_and_rounded_weights_under_several_seeds(distil: Distil) -> None:
    """A stage of a further seed that begins from the model of the first one, or writes over it."""
    hidden = "kdcli.losses.hidden_states.HiddenStates"
    options = [
        *(f"+stages.features.loss.hidden._target_={hidden}", "+stages.features.trainer.epochs=1"),
        *("+stages.answers.trainer.epochs=1", "student.quantization=int8", "student.dropout=0.1"),
    ]
    run, alone = distil("run", *options, "seeds=[0,5]"), distil("alone", *options, "seed=5")
    own = ["student/features", "student/answers", "student/quantized", "control", "control/quantized"]
    further = [name.replace("student", "student@5").replace("control", "control@5") for name in own]
    assert stages_of(run) == ["teacher outputs", *own, *further]
    for model in (*MODELS, "unquantized"):
        assert same_weights(alone, run / "seeds" / "5", model)
        assert not same_weights(alone, run, model)


def test_assistants_are_those_of_the_first_seed(distil: Distil) -> None:
    """An assistant is a teacher: its spread is not that of the students, and a second one would be saved over the first."""
    run = distil(
        "run",
        "+stages.middle.student={_target_: kdcli.students.from_config.FromConfig, hidden_size: 24, num_hidden_layers: 1, "
        "num_attention_heads: 2, intermediate_size: 32}",
        *("+stages.last.teacher=middle", "trainer.max_steps=4", "seeds=2", "smoke=true"),
    )
    trained = ["middle", "student/last", "control", "student@1/last", "control@1"]
    assert [name for name in stages_of(run) if "outputs" not in name] == trained
    assert not same_weights(run, run / "seeds" / "1")


def test_language_models_under_several_seeds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A decoder of a further seed that is scored on other tokens than the first, or as a classifier."""
    monkeypatch.chdir(tmp_path)
    options = [*language_model_options(speaker(tmp_path / "teacher", steps=10)), *talk(tmp_path, "pairs")]
    options += ["trainer.max_steps=2", "measure=null", "smoke=true", "seeds=2", "hydra.run.dir=run"]
    assert launch("distill", options) == 0
    report = read(tmp_path / "run" / "report.json")
    first, second = report["verdict"]["seeds"]
    assert first["student"] == report["models"]["student"]["score"]
    assert second["student"] == pytest.approx(first["student"], abs=2)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["seeds=[]"], ["seeds", "[]", "[0,5,9]"]),
        (["seeds=0"], ["seeds", "0"]),
        (["seeds=-1"], ["seeds", "-1"]),
        (["seeds=[4,4]"], ["seeds", "4", "different"]),
        (["seed=4", "seeds=[5,4]"], ["seed", "4", "[5, 4]", "leave seed out"]),
        (["seed=0", "seeds=[5,4]"], ["seed", "0", "[5, 4]", "leave seed out"]),
    ],
)
def test_bad_seeds_are_refused(
    distil: Distil, capsys: pytest.CaptureFixture[str], options: list[str], words: list[str]
) -> None:
    """An interval over one seed that is counted twice, or a typed seed that is ignored without a word."""
    run = distil("run", *options, code=2)
    require_words(require_one_message(capsys.readouterr().err), *words)
    assert not run.exists()
