"""The plan of a run: its phases, its parts and the names of its stages."""

from __future__ import annotations

import dataclasses

import pytest
from unit.pipeline.conftest import MakeConfig, MakePart

from kdcli.pipeline.plan import (
    OWN,
    QUANTIZED,
    STUDENT,
    TeacherData,
    parts_of_seed,
    plan_phases,
    seed_name,
    stage_names,
)

STUDENT_CONFIG = {"_target_": "kdcli.students.pretrained.Pretrained", "path": "student"}


def test_a_run_without_stages_has_one_phase(make_config: MakeConfig) -> None:
    """A term of weight 0 that is computed, or drawn into the pre-flight, costs time and refuses runs."""
    [phase] = plan_phases(make_config())
    assert (phase.name, phase.trainee, phase.teacher_key, phase.last) == (STUDENT, STUDENT, OWN, True)
    assert list(phase.losses) == ["soft_label", "hard_label"]
    assert phase.weights == {"soft_label": 1.0, "hard_label": 0.5}
    assert phase.uses_teacher
    assert not phase.uses_features


def test_stages_are_phases_of_the_student_or_of_an_assistant(make_config: MakeConfig) -> None:
    """An assistant that is saved over the student, or a student that is saved before its last phase, is the wrong model."""
    assistant = {"student": STUDENT_CONFIG}
    phases = plan_phases(
        make_config(stages={"middle": assistant, "first": {"teacher": "middle"}, "final": {}})
    )
    assert [phase.name for phase in phases] == ["middle", "student/first", "student/final"]
    assert [phase.trainee for phase in phases] == ["middle", STUDENT, STUDENT]
    assert [phase.teacher_key for phase in phases] == [OWN, "middle", OWN]
    assert [phase.last for phase in phases] == [True, False, True]


def test_stages_with_one_data_set_share_a_teacher_key(make_config: MakeConfig) -> None:
    """The teacher's outputs on the same text would be computed once for each stage."""
    general = {"task": "masked_lm", "path": "text.csv"}
    phases = plan_phases(
        make_config(stages={"one": {"dataset": general}, "two": {"dataset": general}, "own": {}})
    )
    assert [phase.teacher_key for phase in phases] == ["one", "one", OWN]


def test_quantization_adds_a_phase(make_config: MakeConfig) -> None:
    """The phase before it must not be taken for the last one: its model would be saved as the student."""
    quantized = STUDENT_CONFIG | {"quantization": "int8", "quantization_epochs": 3}
    before, after = plan_phases(make_config(student=quantized))
    assert (before.name, before.last, before.quantization) == (STUDENT, False, None)
    assert (after.name, after.last, after.trainer.epochs) == (QUANTIZED, True, 3)
    assert after.quantization is not None


def test_a_phase_of_features_alone_keeps_its_last_weights(make_config: MakeConfig) -> None:
    """The validation score says nothing about features: the best checkpoint by it is an accident."""
    hidden = {"_target_": "kdcli.losses.hidden_states.HiddenStates"}
    [phase] = plan_phases(make_config(loss={"hidden": hidden}))
    assert phase.uses_features
    assert phase.trainer.keep == "last"


def test_a_plan_does_not_change(make_part: MakePart) -> None:
    """A phase that writes what it finds into the plan makes the next one depend on which ran before."""
    run = make_part()
    for frozen, field in (
        (run, "data"),
        (run.phases[0], "name"),
        (run.data, "splits"),
        (run.sources[0], "path"),
    ):
        with pytest.raises(dataclasses.FrozenInstanceError):
            setattr(frozen, field, None)
    assert dataclasses.is_dataclass(TeacherData)
    fewer = run.without_rows({"1"})
    assert fewer.data["train"]["id"][:] == ["0", "2", "3"]
    assert run.data["train"]["id"][:] == ["0", "1", "2", "3"]
    assert run.without_rows(()) is run


def test_the_stages_of_a_run(make_part: MakePart) -> None:
    """A stage that was not announced ends the run with a KeyError when it begins."""
    run = make_part()
    assert stage_names([run]) == ["teacher", "teacher outputs", "student", "control", "evaluate"]
    alone = make_part(control=False, dataset={"path": "reviews.csv", "augment": {}})
    assert stage_names([alone]) == ["augment", "teacher", "teacher outputs", "student", "evaluate"]


def test_the_stages_of_further_seeds(make_part: MakePart) -> None:
    """Two stages of one name are one line of the progress, and one of them writes over the checkpoints of the other."""
    quantized = STUDENT_CONFIG | {"quantization": "int8"}
    run = make_part(seeds=[4, 7], student=quantized, stages={"one": {}, "two": {}})
    assert stage_names([run])[2:] == [
        *("student/one", "student/two", "student/quantized", "control", "control/quantized"),
        *("student@7/one", "student@7/two", "student@7/quantized", "control@7", "control@7/quantized"),
        "evaluate",
    ]
    alone = make_part(seeds=2, control=False)
    assert stage_names([alone])[2:] == ["student", "student@1", "evaluate"]


def test_a_further_seed_changes_the_student_alone(make_part: MakePart) -> None:
    """A loss whose projections were trained under the first seed; an assistant that is trained again; a model that is saved over another."""
    hidden = {"_target_": "kdcli.losses.hidden_states.HiddenStates"}
    run = make_part(seeds=[4, 7], loss={"hidden": hidden})
    assistant = dataclasses.replace(
        run, phases=[dataclasses.replace(run.phases[0], trainee="middle", name="middle")]
    )
    parts = [assistant, run]
    assert parts_of_seed(parts, 4) == parts
    [again] = parts_of_seed(parts, 7)
    assert (again.cfg.seed, again.further_seed) == (7, 7)
    assert again.phases[0].losses["hidden"] is not run.phases[0].losses["hidden"]
    assert again.phases[0].name == run.phases[0].name
    assert again.data is run.data
    assert again.model_folder == run.folder / "seeds" / "7" / "student"
    assert [again.seeded_name(name) for name in ("student/one", "control")] == ["student@7/one", "control@7"]
    assert [run.seeded_name(name) for name in ("student/one", "control")] == ["student/one", "control"]


def test_student_and_control_have_one_seed() -> None:
    """Other random numbers would make a gain of what is luck."""
    assert seed_name("control") == seed_name("student")
    assert seed_name("control/quantized") == seed_name("student/quantized")
    assert seed_name("student/first") == "student/first"
