"""The checks before anything is trained: each names the key to change."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from accelerate import PartialState
from safetensors.torch import load_file, save_file
from support.checkpoints import changed, classifier, language_model, without
from support.commands import naming, require_words
from support.translators import lay_out
from unit.pipeline.conftest import MakeConfig, MakePart

from kdcli.data.suspicions import check_data
from kdcli.errors import ConfigError, ModelError, TeacherError
from kdcli.evaluation.predict import size as checkpoint_size
from kdcli.models.checkpoint import Checkpoint, load_ready, parameters
from kdcli.pipeline.plan import plan_phases
from kdcli.pipeline.validate import (
    remote_teacher,
    require_checkpoints,
    require_control_rows,
    require_one_vocabulary,
    require_rows,
    require_smaller,
    require_teacher_term,
    require_trainers,
    require_tuning_rows,
    require_writer,
    shares_tokens,
    storing_temperature,
)
from kdcli.students.pruning.layers import Layers
from kdcli.tasks.causal_lm.task import CausalLM

KL = {"_target_": "kdcli.losses.forward_kl.ForwardKL"}
HARD = {"_target_": "kdcli.losses.hard_label.HardLabel"}
LOCAL = {"_target_": "kdcli.teachers.local.LocalTeacher", "path": "teacher"}
PROMPTS = {"prompt": "prompt", "completion": "completion"}
PAIRS = {"source": "source", "target": "target"}
LABELLED = dict.fromkeys(("task",), "classification") | {"path": "reviews.csv"}


@pytest.mark.parametrize(
    ("own", "words"),
    [
        ({"trainer": {"batch_size": 8}}, ["trainer.batch_size", "8"]),
        ({"loss": {"soft_label": KL | {"weight": 0}}}, ["loss", "weight 0"]),
        (
            {"stages": {"first": {"trainer": {"batch_size": 8}}, "final": {"trainer": {"batch_size": 2}}}},
            ["stages.first.trainer.batch_size", "8"],
        ),
        (
            {"trainer": {"batch_size": 4}, "stages": {"first": {"rows": "unlabelled"}, "final": {}}},
            ["unlabelled", "stages.first.trainer.batch_size"],
        ),
        (
            {
                "trainer": {"batch_size": 1, "epochs": 1e6},
                "stages": {"final": {"loss": {"off": KL | {"weight": 0}}}},
            },
            ["stages.final.loss", "weight 0"],
        ),
    ],
)
def test_every_phase_has_a_loss_and_a_batch(
    own: dict[str, Any], words: list[str], make_part: MakePart
) -> None:
    """A phase without a batch trains for no step, and one without a loss ends in a traceback, after hours of others."""
    part = make_part(**own)
    with pytest.raises(ConfigError, match=naming(*words)):
        require_rows(part, part.data["train"])


def test_enough_rows_pass(make_part: MakePart) -> None:
    """A run that could be trained must not be refused."""
    part = make_part(trainer={"batch_size": 4})
    require_rows(part, part.data["train"])
    require_control_rows(part)


def test_the_control_needs_labelled_rows(make_part: MakePart) -> None:
    """Found after the student was trained, it would have cost the whole run."""
    own: dict[str, Any] = {"labels": (0, -100, -100, 1), "trainer": {"batch_size": 4}}
    with pytest.raises(ConfigError, match=naming("control", "trainer.batch_size")):
        require_control_rows(make_part(**own))
    require_control_rows(make_part(control=False, **own))


def test_tuning_needs_labelled_rows(make_part: MakePart) -> None:
    """A teacher that is tuned on fewer rows than a batch is tuned for no step."""
    teacher = LOCAL | {"tune": True, "trainer": {"batch_size": 8}}
    with pytest.raises(ConfigError, match=naming("teacher.trainer.batch_size")):
        require_tuning_rows(make_part(teacher=teacher))
    require_tuning_rows(make_part(teacher=teacher | {"tune": False}))


def test_a_student_learns_from_its_teacher(make_config: MakeConfig) -> None:
    """A run without a term that reads the teacher reports a gain of nothing."""
    cfg = make_config(loss={"hard_label": HARD})
    with pytest.raises(ConfigError, match=naming("loss", "teacher", "weight")):
        require_teacher_term(cfg, plan_phases(cfg))
    require_teacher_term(make_config(), plan_phases(make_config()))


def test_batches_must_divide_among_micro_batches_and_trackers_exist(make_config: MakeConfig) -> None:
    """The teacher is tuned first: what is wrong with the student's trainer must not be found after that."""
    state = PartialState(cpu=True)
    for trainer, key in (({"report_to": ["nothing"]}, "trainer.report_to"),):
        cfg = make_config(trainer=trainer)
        with pytest.raises(ConfigError, match=naming(key, "nothing")):
            require_trainers(cfg, plan_phases(cfg), state)
    cfg = make_config()
    require_trainers(cfg, plan_phases(cfg), state)


def test_what_is_for_remote_teachers_alone(make_config: MakeConfig) -> None:
    """A key that is read nowhere would be ignored without a word."""
    own: dict[str, Any] = {"rollout": {"source": "teacher", "expand": 5}}
    cfg = make_config(**own, dataset={"path": "a", "task": "causal_lm"})
    with pytest.raises(ConfigError, match=naming("rollout.expand")):
        remote_teacher(cfg, plan_phases(cfg))
    assert remote_teacher(make_config(), plan_phases(make_config())) is None


def test_stored_outputs_have_one_temperature(make_part: MakePart) -> None:
    """A top k that was taken at one temperature has another mass of the rest at the other."""
    terms = {"one": KL | {"temperature": 2}, "two": KL | {"temperature": 4}}
    with pytest.raises(ConfigError, match=naming("[2.0, 4.0]", "teacher.cache=false")):
        storing_temperature(make_part(loss=terms))
    assert storing_temperature(make_part(loss=terms | {"two": KL | {"temperature": 1}})) == 2.0
    assert storing_temperature(make_part(loss={"one": KL | {"temperature": 1}})) == 1.0


def test_the_mean_of_an_ensemble_has_one_temperature(make_part: MakePart, teacher) -> None:
    """A mean at temperature 2 is no mean at temperature 1, which a top k would still give."""
    terms = {"one": KL | {"temperature": 2}, "two": KL | {"temperature": 1}}
    with pytest.raises(ConfigError, match=naming("averaged", "[1.0, 2.0]")):
        storing_temperature(make_part(sources=[teacher, teacher], loss=terms))


def test_an_ensemble_needs_labels(make_part: MakePart, teacher) -> None:
    """A mean over a vocabulary is not what the stored top k can give."""
    with pytest.raises(ConfigError, match=naming("teacher.others")):
        require_one_vocabulary(make_part(sources=[teacher, teacher]))
    require_one_vocabulary(make_part())


def test_classifiers_write_nothing(make_part: MakePart) -> None:
    """rollout=teacher over a classifier would end in a traceback after the teacher was tuned."""
    with pytest.raises(ConfigError, match=naming("rollout.source")):
        require_writer(make_part(rollout={"source": "teacher"}))


def test_labels_that_cannot_be_learnt_are_named(
    make_part: MakePart, caplog: pytest.LogCaptureFixture
) -> None:
    """A misspelt label in the test split lowers every score without a word."""
    part = make_part(labels=(0, 0, 0, 0))
    data = part.data
    data.splits["test"] = make_part(labels=(1, 1, 0, 0)).data["test"]
    with caplog.at_level(logging.WARNING):
        check_data(part.cfg, data)
    require_words(caplog.text, "test", "training", "good: 2")
    assert {"kind": "unseen_classes", "split": "test", "classes": {"good": 2}}.items() <= data.suspicions[
        0
    ].items()


def test_a_student_is_smaller_than_its_teacher(make_part: MakePart, teacher: Path) -> None:
    """Six layers of a teacher of six: as large, slower to make, and praised for what it keeps."""
    part = make_part()
    size = checkpoint_size(Checkpoint(teacher, "the teacher"), part.task)["parameters"]
    require_smaller(part, size - 1)
    require_smaller(part, None)
    with pytest.raises(ModelError, match=naming(f"{size:,}", "student.allow_same_size=true")):
        require_smaller(part, size)
    whole = dataclasses.replace(part, initializer=Layers(2))
    with pytest.raises(ModelError, match=naming("student.allow_same_size=true")):
        require_checkpoints(whole)
    require_checkpoints(dataclasses.replace(part, initializer=Layers()))
    allowed = {"_target_": "kdcli.students.pretrained.Pretrained", "path": "s", "allow_same_size": True}
    require_smaller(make_part(student=allowed), size)
    require_smaller(make_part(smoke=True), size)  # a warning
    require_smaller(make_part(sources=[teacher, teacher]), size)  # an ensemble of two


def test_an_output_layer_of_its_own_counts(make_part: MakePart, tmp_path: Path) -> None:
    """A teacher whose weights have an output layer that its config.json ties is counted without it, and a student of one layer is called larger."""
    language_model(tmp_path)
    path = tmp_path / "model.safetensors"
    weights = load_file(path)
    words = weights["model.embed_tokens.weight"]
    tied = checkpoint_size(Checkpoint(tmp_path, "the teacher"), CausalLM())["parameters"]
    save_file(weights | {"lm_head.weight": words + 1}, path, {"format": "pt"})
    source = Checkpoint(tmp_path, "the teacher")
    size = checkpoint_size(source, CausalLM())["parameters"]
    assert size == tied + words.numel() == parameters(load_ready(source, CausalLM()))


@pytest.mark.parametrize(
    ("dataset", "make", "keys"),
    [
        (PROMPTS, lambda folder, _: lay_out(folder, "T5"), ["T5ForConditionalGeneration", "dataset.source=", "dataset.target="]),
        (PAIRS, language_model, ["LlamaForCausalLM", "dataset.prompt=", "dataset.completion="]),
        (PROMPTS, lambda folder, own: classifier(folder, own, "bert-masked"), ["BertForMaskedLM", "stages.NAME.dataset.task="]),
        (PROMPTS, lambda folder, own: classifier(folder, own, "llama-labels"), ["dataset.text=", "dataset.label="]),
    ],
    ids=["translator", "decoder", "masked", "classifier"],
)  # fmt: skip
def test_a_model_of_another_task_is_answered_with_the_keys_of_that_task(
    dataset: dict[str, str],
    make: Callable[[Path, Any], object],
    keys: list[str],
    make_part: MakePart,
    tokenizer: Any,
    tmp_path: Path,
) -> None:
    """A pretrained T5 beside prompts and completions is answered with: use a checkpoint as it was pretrained."""
    make(tmp_path, tokenizer)
    with pytest.raises(TeacherError, match=naming("config.json", *keys)):
        require_checkpoints(make_part(sources=[tmp_path], dataset={"path": "rows.jsonl"} | dataset))


def test_a_teacher_without_its_head_is_refused_before_the_run(
    make_part: MakePart, tokenizer: Any, tmp_path: Path
) -> None:
    """kdcli check passes for a classifier whose weights lack the head, and the run fails when it loads the teacher."""
    changed(classifier, without("classifier.weight"))(tmp_path, tokenizer)
    with pytest.raises(ModelError, match=naming("classifier.weight", "teacher.tune=true")):
        require_checkpoints(make_part(sources=[tmp_path]))


def test_a_trained_checkpoint_passes(make_part: MakePart) -> None:
    """The checks must not refuse what the rest of the program can use."""
    require_checkpoints(make_part())


def test_one_tokenizer_is_shared(make_part: MakePart, tokenizer) -> None:
    """A student that is initialised from the teacher has its tokenizer, and needs no comparison."""
    part = make_part()
    assert shares_tokens(part, tokenizer, tokenizer)
