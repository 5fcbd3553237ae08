"""Losses on what goes on inside, and staged runs, through the real command."""

from __future__ import annotations

import json
import signal
from collections.abc import Callable
from pathlib import Path

import pytest
from support.commands import close_weights, require_one_message, require_words, same_weights, weights
from support.tiny import language_model_options, speaker, start, talk, wait_for

from kdcli.console import ProgressStage
from kdcli.launch.run import launch
from kdcli.pipeline.stages import Stages

Distil = Callable[..., Path]
INSIDE = [
    "loss=features",
    "+loss.soft_label._target_=kdcli.losses.forward_kl.ForwardKL",
    "student.dropout=0",
    "control=false",
]
TWO = [
    "+stages.features.loss.hidden._target_=kdcli.losses.hidden_states.HiddenStates",
    "+stages.features.trainer.learning_rate=0.003",
    "+stages.features.trainer.epochs=1",
    "+stages.answers.rows=labelled",
]


def test_batch_8x1_is_2x4_accumulated_also_of_tokens(distil: Distil) -> None:
    """Losses over tokens that are averaged in each micro-batch weigh tokens by their neighbours' lengths."""
    options = [*INSIDE, "trainer.batch_size=8", "trainer.max_steps=15"]
    options += [
        "trainer.freeze=[key.bias]"
    ]  # no softmax sees it: its gradient is rounding, which Adam makes steps of
    assert close_weights(distil("whole", *options), distil("parts", *options, "trainer.micro_batch_size=2"))


@pytest.mark.long
def test_projections_survive_a_kill_and_stay_out_of_the_student(
    distil: Distil, small: list[str], tmp_path: Path
) -> None:
    """Projections that begin anew after a resume pull the student somewhere else; in the saved student nobody can load them."""
    from transformers import AutoModelForSequenceClassification

    options = [*INSIDE, "loss=relations", "trainer.epochs=3", "trainer.eval_steps=10", "trainer.keep=last",
               "+loss.hidden._target_=kdcli.losses.hidden_states.HiddenStates"]  # fmt: skip
    options.remove("loss=features")
    options.remove(INSIDE[1])
    whole = distil("whole", *options)
    process = start(tmp_path / "killed", [*small, *options, "measure=null"])
    stage = tmp_path / "killed" / "stages" / "student"
    wait_for(lambda: any(stage.glob("checkpoint-2*/trainer_state.json")), process)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert same_weights(whole, distil("killed", *options))
    _, info = AutoModelForSequenceClassification.from_pretrained(whole / "student", output_loading_info=True)
    assert not any(info.values())
    assert not any("projection" in name for name in weights(whole))
    lines = [json.loads(line) for line in (whole / "metrics.jsonl").read_text().splitlines()]
    logged = {key for line in lines for key in line if key.startswith("loss/")}
    assert logged == {"loss/soft_label", "loss/hard_label", "loss/relations", "loss/hidden"}
    assert not any("hidden" in key for line in lines for key in line if key.startswith("eval"))


def test_steps_of_a_stage_are_counted_after_two_kills(
    distil: Distil, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A process that is killed before it records the last checkpoint, and another one after the model is saved: the report says that the
    student had fewer steps than its control."""
    record = Stages.record

    def killed(stages: Stages, stage: ProgressStage) -> None:
        saved = (tmp_path / "run" / "student").exists()
        if stage.name == "student" and stage.step == 4 and saved >= bool(kills):
            kills.append(stage.name)
            raise KeyboardInterrupt
        record(stages, stage)

    options = ["control=false", "trainer.max_steps=4", "trainer.eval_steps=2"]
    kills: list[str] = []
    with monkeypatch.context() as patch:
        patch.setattr(Stages, "record", killed)
        distil("run", *options, code=130)
        distil("run", *options, code=130)
    report = json.loads((distil("run", *options) / "report.json").read_text())
    assert {stage["name"]: stage["steps"] for stage in report["stages"]}["student"] == 4


def test_stages_follow_one_another_and_resume(distil: Distil, small: list[str], tmp_path: Path) -> None:
    """A stage that begins from the initialized student, or is trained anew after a kill, is not the recipe that the paper describes."""
    options = [*TWO, "trainer.epochs=2", "trainer.eval_steps=10", "dataset.labelled=300"]
    whole = distil("whole", *options)
    report = json.loads((whole / "report.json").read_text())
    steps = {stage["name"]: stage["steps"] for stage in report["stages"]}
    assert list(steps) == ["teacher outputs", "student/features", "student/answers", "control"]
    assert steps["student/answers"] == 2 * (300 // 16)
    assert steps["control"] == steps["student/features"] + steps["student/answers"]
    assert set(report["loss"]) == {"features/hidden", "answers/soft_label", "answers/hard_label"}
    assert "student/features" in (whole / "report.html").read_text()
    rates = {}
    for line in map(json.loads, (whole / "metrics.jsonl").read_text().splitlines()):
        rates.setdefault(line["stage"], []).append(line.get("lr", 0))
    assert max(rates["student/features"]) > 2 * max(rates["student/answers"])
    process = start(tmp_path / "killed", [*small, *options, "measure=null"])
    stage = tmp_path / "killed" / "stages" / "student" / "answers"
    wait_for(lambda: any(stage.glob("checkpoint-2*/trainer_state.json")), process)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert same_weights(whole, distil("killed", *options))


def test_a_decoder_learns_from_the_inside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Hints that only a classifier's batch can carry leave language models without them."""
    monkeypatch.chdir(tmp_path)
    teacher = speaker(tmp_path / "teacher", steps=30)
    for form in ("pairs", "text"):
        run = tmp_path / form
        options = [
            *language_model_options(teacher),
            *talk(tmp_path, form),
            "loss=features",
            "control=false",
            "measure=null",
            "trainer.max_steps=30",
        ]
        assert launch("distill", [*options, "+loss.soft_label._target_=kdcli.losses.forward_kl.ForwardKL",
                                  f"hydra.run.dir={run}"]) == 0  # fmt: skip
        lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
        for term in ("hidden_states", "attention"):
            values = [line[f"loss/{term}"] for line in lines if f"loss/{term}" in line]
            assert values[-1] < 0.9 * values[0]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["loss.hidden_states.layer_mapping=[[5,1]]"], ["layer_mapping", "student", "5"]),
        (["loss.hidden_states.layer_mapping=skip"], ["layer_mapping", "skip", "student"]),
        (["student.num_hidden_layers=3"], ["student", "3 layers", "teacher", "2"]),
        (["loss.hidden_states.layer_mapping=sideways"], ["'sideways'", "'uniform'", "'last'", "'skip'"]),
        (["loss.attention.distance=kl"], ["distance", "of=probabilities"]),
        (["+loss.r._target_=kdcli.losses.relations.Relations", "+loss.r.relation_heads=3"], ["relation_heads", "3", "student's queries"]),
        (["+stages.student.rows=all"], ["student", "stage's name"]),
        (["+stages.one.trainer.epochs=none"], ["stages.one.trainer.epochs", "none"]),
        (["+stages.one.trainer.epoch=1"], ["stages.one.trainer.epoch", "epochs"]),
        (["+stages.one.rows=unlabelled"], ["unlabelled", "0", "stages.one.trainer.batch_size"]),
        (
            ["+stages.one.loss.soft._target_=kdcli.losses.forward_kl.ForwardKL", "+stages.one.loss.soft.temp=2"],
            ["stages.one.loss.soft.temp", "kdcli.losses.forward_kl.ForwardKL"],
        ),
    ],
)  # fmt: skip
def test_bad_input_is_refused(distil: Distil, capsys, options: list[str], words: list[str]) -> None:
    """A mapping to a layer that is not there is found after an hour, in a traceback."""
    distil("run", "loss=features", *options, code=2)
    require_words(require_one_message(capsys.readouterr().err), *words)


def test_other_tokens_than_the_teachers_are_refused(distil: Distil, capsys, tmp_path: Path) -> None:
    """Hidden states of different tokens are compared place by place, and nobody notices."""
    from support.tiny import bert
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import BertTokenizerFast

    vocabulary = {"[PAD]": 0, "[UNK]": 1, "[CLS]": 2, "[SEP]": 3, "[MASK]": 4}
    vocabulary |= {letter: len(vocabulary) + n for n, letter in enumerate("abcdefghijklmnopqrstuvwxyz")}
    vocabulary |= {
        f"##{letter}": len(vocabulary) + n for n, letter in enumerate("abcdefghijklmnopqrstuvwxyz")
    }
    inner = Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]"))
    inner.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    inner.post_processor = processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    other = BertTokenizerFast(tokenizer_object=inner)
    bert(other, ["bad", "good"]).save_pretrained(tmp_path / "other")
    other.save_pretrained(tmp_path / "other")
    same = "student.allow_same_size=true"
    distil("run", "loss=features", same, f"student.path={tmp_path / 'other'}", code=2)
    require_words(require_one_message(capsys.readouterr().err), "training rows", "different tokens")
