"""Runs with more than one teacher or data set: assistants, ensembles, and a general stage before the task's, through the real command."""

from __future__ import annotations

import json
import signal
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file
from support.commands import require_one_message, require_words, same_weights, weights
from support.tiny import bert, language_model_options, sentences, speaker, start, talk, wait_for, write_csv

from kdcli.config.dataset import Dataset
from kdcli.data.dataset import load
from kdcli.launch.run import launch

Distil = Callable[..., Path]
ASSISTANT = [
    "+student@stages.assistant.student=tiny",
    "stages.assistant.student.hidden_size=24",
    "stages.assistant.student.num_hidden_layers=2",
    "stages.assistant.student.intermediate_size=48",
    "stages.assistant.student.dropout=0",
    "+stages.answers.teacher=assistant",
    "trainer.learning_rate=0.005",
]


@pytest.fixture(scope="module")
def masked(tokenizer, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A masked language model of four layers, as bert-base is one."""
    from transformers import BertForMaskedLM

    torch.manual_seed(0)
    model = BertForMaskedLM(bert(tokenizer, ["bad", "good"], layers=4).config)
    folder = tmp_path_factory.mktemp("models") / "masked"
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def report_of(run: Path) -> dict:
    return json.loads((run / "report.json").read_text())


def steps_of(run: Path) -> dict[str, int]:
    return {stage["name"]: stage["steps"] for stage in report_of(run)["stages"]}


def test_what_was_trained_stays_where_what_follows_is_refused(distil: Distil, tmp_path: Path) -> None:
    """Exit code 2 says that nothing was trained, and takes the directory away: hours of the stages before would be lost."""
    lazy = ["+stages.assistant.trainer.learning_rate=1e-9", "trainer.epochs=1"]
    distil("run", *ASSISTANT, *lazy, "control=false", code=1)
    assert (tmp_path / "run" / "assistants" / "assistant" / "model.safetensors").is_file()


@pytest.mark.long
def test_an_assistant_teaches_the_student(distil: Distil, small: list[str], tmp_path: Path) -> None:
    """A student that learns from the teacher after all, or a control that is trained for the assistant's steps as well, would say nothing of
    assistants; and one that a kill makes train anew would give another student."""
    whole = distil("whole", *ASSISTANT, "trainer.eval_steps=10")
    report, steps = report_of(whole), steps_of(whole)
    assert list(steps) == [
        "teacher outputs",
        "assistant",
        "assistant/teacher outputs",
        "student/answers",
        "control",
    ]
    assert steps["control"] == steps["student/answers"]
    config = json.loads((whole / "assistants" / "assistant" / "config.json").read_text())
    assert config["hidden_size"] == 24
    assert weights(whole)["bert.embeddings.word_embeddings.weight"].shape[1] == 16
    assert report["assistants"]["assistant"]["parameters"] > report["models"]["student"]["parameters"]
    assert set(report["models"]) == {"teacher", "control", "student", "trivial"}
    assert not same_weights(whole, distil("plain", "trainer.eval_steps=10"))
    assert "assistant" in (whole / "report.html").read_text()
    process = start(tmp_path / "killed", [*small, *ASSISTANT, "trainer.eval_steps=10", "measure=null"])
    wait_for(
        lambda: any((tmp_path / "killed/stages/student/answers").glob("checkpoint-2*/trainer_state.json")),
        process,
    )
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert same_weights(whole, distil("killed", *ASSISTANT, "trainer.eval_steps=10"))


def test_an_assistant_among_decoders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An assistant whose stored answers are taken for the teacher's."""
    monkeypatch.chdir(tmp_path)
    run = tmp_path / "run"
    options = [
        *language_model_options(speaker(tmp_path / "teacher", steps=30)),
        *talk(tmp_path, "pairs"),
        "measure=null",
        "trainer.max_steps=10",
    ]
    options += [
        "+student@stages.middle.student=layers",
        "stages.middle.student.num_hidden_layers=1",
        "+stages.last.teacher=middle",
    ]
    assert launch("distill", [*options, f"hydra.run.dir={run}"]) == 0
    assert (
        list(steps_of(run))
        == ["teacher outputs", "middle", "middle/teacher outputs", "student/last", "control", "evaluate"][:5]
    )
    assert "kl_to_teacher" in report_of(run)["assistants"]["middle"]["scores"]


def test_an_ensemble_is_the_mean_of_its_members(
    distil: Distil, teacher: Path, reviews: Path, tokenizer, tmp_path: Path
) -> None:
    """Members of which only the first is heard, or that are averaged before the softmax, are no ensemble."""
    from transformers import AutoModelForSequenceClassification

    other = tmp_path / "other"
    torch.manual_seed(5)
    bert(tokenizer, ["good", "bad"], hidden=16, seed=3).save_pretrained(other)  # its labels in another order
    tokenizer.save_pretrained(other)
    run = distil(
        "run",
        f"teacher.others=[{other}]",
        "loss.soft_label.temperature=3",
        "teacher.tune=false",
        "trainer.max_steps=6",
    )
    report = report_of(run)
    assert report["models"]["teacher"]["members"] == [str(teacher), str(other)]
    said = load_file(run / "predictions" / "test.teacher.safetensors")
    data = load(Dataset(path=str(reviews), validation_size=64, test_size=96))
    batch = tokenizer(
        list(data["test"]["text"]), return_tensors="pt", padding=True, truncation=True, max_length=32
    )
    each = []
    with torch.no_grad():
        for path, order in ((teacher, [0, 1]), (other, [1, 0])):
            model = AutoModelForSequenceClassification.from_pretrained(path).eval()
            each.append((model(**batch).logits[:, order] / 3).softmax(-1))
    expected = (each[0] + each[1]).numpy() / 2
    logits = said["logits"] / 3
    found = np.exp(logits - logits.max(-1, keepdims=True))
    assert np.allclose(found / found.sum(-1, keepdims=True), expected, atol=1e-5)


def test_members_of_one_checkpoint_are_tuned_apart(distil: Distil, body: Path) -> None:
    """The same checkpoint twice with the same seed is one teacher at twice the price."""
    run = distil(
        "run", f"teacher.path={body}", f"teacher.others=[{body}]", "teacher.trainer.epochs=1", "debug=smoke"
    )
    one, two = report_of(run)["models"]["teacher"]["members"]
    assert one != two
    first, second = (load_file(Path(path) / "model.safetensors") for path in (one, two))
    assert any(not np.array_equal(first[name], second[name]) for name in first)


@pytest.mark.long
def test_distilbert(small: list[str], masked: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A general stage whose student is thrown away, or a task stage that cannot begin from a masked language model."""
    monkeypatch.chdir(tmp_path)
    run = tmp_path / "run"
    base = [item for item in small if not item.startswith(("student.", "teacher"))]
    command = [*base, "experiment=distilbert", f"teacher.path={masked}", "teacher.trainer.precision=fp32", "student.num_hidden_layers=2",
               "stages.general.dataset.max_length=32", "debug=smoke", "measure=null"]  # fmt: skip
    assert launch("distill", [*command, f"hydra.run.dir={run}"]) == 0
    steps = steps_of(run)
    assert (
        list(steps)
        == [
            "general/teacher outputs",
            "student/general",
            "teacher",
            "teacher outputs",
            "student/task",
            "control",
            "evaluate",
        ][: len(steps)]
    )
    assert steps["control"] == steps["student/general"] + steps["student/task"]
    config = json.loads((run / "student" / "config.json").read_text())
    assert config["architectures"] == ["BertForSequenceClassification"]
    assert config["num_hidden_layers"] == 2
    assert sorted(config["label2id"]) == ["bad", "good"]
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    logged = {
        key for line in lines if line["stage"] == "student/general" for key in line if key.startswith("loss/")
    }
    assert logged == {"loss/soft_label", "loss/hard_label", "loss/hidden_states"}
    assert any("eval/score" in line for line in lines if line["stage"] == "student/general")


def test_the_task_begins_where_the_general_stage_ended(
    small: list[str], masked: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With a task stage that learns nothing, the student's body must be the general student's."""
    monkeypatch.chdir(tmp_path)
    text = write_csv(tmp_path / "more.csv", [(text, "x") for text, _ in sentences(300, seed=9)])
    options = [f"teacher.path={masked}", "teacher.trainer.epochs=1", "student=layers", "student.num_hidden_layers=1",
               "+stages.general.dataset.task=masked_lm", f"+stages.general.dataset.path={text}", "+stages.general.trainer.learning_rate=0.01",
               "+stages.task.trainer.learning_rate=1e-30", "+stages.task.trainer.weight_decay=0", "control=false", "debug=smoke"]  # fmt: skip
    run = tmp_path / "run"
    base = [item for item in small if not item.startswith(("student.", "teacher.path"))]
    assert launch("distill", [*base, *options, "measure=null", f"hydra.run.dir={run}"]) == 0
    ours = weights(run)
    name = "bert.encoder.layer.0.attention.self.query.weight"
    theirs = load_file(masked / "model.safetensors")[name]
    assert not np.allclose(ours[name], theirs, atol=1e-3)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["dataset.task=masked_lm"], ["masked_lm", "stage"]),
        (["+stages.one.teacher=nobody"], ["stages.one.teacher", "nobody", "earlier stage"]),
        (["+stages.one.dataset.task=masked_lm"], ["stages", "last one", "neither student nor dataset"]),
        (["+student@stages.one.student=tiny"], ["stages", "last one", "neither student nor dataset"]),
        (["+stages.one.dataset.task=masked_lm", "+stages.two.rows=all"], ["head", "masked_lm"]),
        (
            ["teacher.others=[${teacher.path}]", "+loss.more._target_=kdcli.losses.reverse_kl.ReverseKL"],
            ["averaged", "[1.0, 2.0]"],
        ),
        (["teacher.others=[./nowhere]"], ["teacher", "./nowhere", "looked for"]),
        ([*ASSISTANT, "+stages.assistant.dataset.limit=100"], ["stages.assistant", "run's data"]),
    ],
)
def test_bad_input(
    options: list[str], words: list[str], distil: Distil, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """A recipe that cannot work is found after hours of training, or trains something else than it says."""
    run = distil("run", *options, code=2)
    require_words(require_one_message(capfd.readouterr().err), *words)
    assert not (run / "student").exists()


def test_an_ensemble_of_decoders_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """Only the first of several decoders would teach."""
    monkeypatch.chdir(tmp_path)
    folder = speaker(tmp_path / "teacher", steps=2)
    options = [*language_model_options(folder), *talk(tmp_path, "pairs"), f"teacher.others=[{folder}]"]
    assert launch("distill", [*options, f"hydra.run.dir={tmp_path / 'run'}"]) == 2
    require_words(require_one_message(capfd.readouterr().err), "teacher.others", "labels")


def test_copies_with_other_words(distil: Distil, masked: Path, tmp_path: Path) -> None:
    """Copies that keep a label, stand among the rows of the test, or are made again in every run."""
    options = [
        "+dataset.augment.copies=3",
        f"+dataset.augment.path={masked}",
        "dataset.labelled=200",
        "trainer.max_steps=20",
    ]
    run = distil("run", *options)
    report, steps = report_of(run), steps_of(run)
    copies = [json.loads(line) for line in (run / "augmented.jsonl").read_text().splitlines()]
    assert len(copies) == report["dataset"]["augmented"] > 300
    assert {row["label"] for row in copies} == {-100}
    held_out = load(
        Dataset(
            path=json.loads((run / "env.json").read_text())["dataset"]["path"],
            validation_size=64,
            test_size=96,
        )
    )
    assert not {row["id"] for row in copies} & {
        key for split in ("train", "validation", "test") for key in held_out[split]["id"]
    }
    assert steps["augment"] == 200
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    epochs = {line["stage"]: line["epoch"] for line in lines if "epoch" in line}
    assert epochs["student"] < epochs["control"]  # which learns from the labelled rows alone
    again = distil("again", *options)
    assert same_weights(run, again)
    seconds = [
        {stage["name"]: stage["seconds"] for stage in report_of(each)["stages"]}["augment"]
        for each in (run, again)
    ]
    assert seconds[1] < 0.5 * seconds[0]


def test_copies_with_the_words_that_are_near(distil: Distil) -> None:
    """A teacher without a masked-LM head, as most are, has no copies made; or its copies have words that are not near."""
    run = distil("run", "+dataset.augment.copies=2", "+dataset.augment.candidates=3", "dataset.labelled=100", "trainer.max_steps=5")  # fmt: skip
    copies = [json.loads(line) for line in (run / "augmented.jsonl").read_text().splitlines()]
    assert len(copies) == report_of(run)["dataset"]["augmented"] > 100
    assert {row["label"] for row in copies} == {-100}
    assert report_of(run)["dataset"]["train"] + len(copies) == len(
        {row["id"] for row in copies}
        | set(
            load(
                Dataset(
                    path=json.loads((run / "env.json").read_text())["dataset"]["path"],
                    validation_size=64,
                    test_size=96,
                )
            )["train"]["id"]
        )
    )


def test_augment_needs_a_masked_language_model(distil: Distil, capfd: pytest.CaptureFixture[str]) -> None:
    """A classifier's random head would propose random words."""
    run = distil("run", "+dataset.augment.method=mlm", code=2)
    require_words(require_one_message(capfd.readouterr().err), "dataset.augment", "masked-LM head")
    assert not (run / "student").exists()
