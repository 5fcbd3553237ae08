"""The cost of a run before it is paid."""

from __future__ import annotations

import dataclasses
import random
from typing import NoReturn

import numpy as np
import pytest
import torch
from support.commands import require_words
from unit.pipeline.conftest import MakePart

from kdcli.pipeline import cost
from kdcli.pipeline.cost import plan_cost
from kdcli.pipeline.cost_plan import CostPlan, PhaseCost
from kdcli.pipeline.memory_plan import MemoryPlan, PhaseMemory
from kdcli.students.from_config import FromConfig
from kdcli.training.distiller import Distiller

TRAINER = {"batch_size": 2, "precision": "fp32"}


def planned(make_part: MakePart, dry: bool = True, **own: object) -> CostPlan:
    """The plan of a run with a small student."""
    part = make_part(labels=(0, 1, 0, 1, 0, -100, -100, 1), **own)  # type: ignore[arg-type]
    return plan_cost([dataclasses.replace(part, initializer=FromConfig(16, 1, 2, 32))], dry)


def test_steps_and_rows_are_those_of_the_training(make_part: MakePart) -> None:
    """A plan of other steps than are taken, or a bound that passes for the number."""
    plan = planned(make_part, trainer=TRAINER | {"epochs": 3})
    phases = {phase.name: phase for phase in plan.phases}
    assert list(phases) == ["teacher", "teacher outputs", "student", "control", "evaluate"]
    assert (phases["student"].rows, phases["student"].steps) == (8, 12)
    assert (phases["control"].rows, phases["control"].steps) == (6, 12), "the student's maximum"
    assert (phases["teacher"].steps, phases["teacher"].note) == (None, "used as it is")
    assert phases["teacher outputs"].rows == 3 * 8
    assert not any(phase.at_most for phase in plan.phases)
    converged = planned(make_part, trainer=TRAINER | {"max_epochs": 2, "min_steps": 5})
    assert [phase.at_most for phase in converged.phases if phase.steps] == [True, True]
    assert "up to 8" in "\n".join(converged.lines())


def test_time_and_disk_are_measured_and_nothing_is_changed(make_part: MakePart) -> None:
    """A guess of time, or a measurement after which the same seed trains another model."""
    torch.manual_seed(5)
    np.random.seed(5)
    random.seed(5)
    plan = planned(make_part, trainer=TRAINER | {"epochs": 100})
    drawn = torch.rand(3).tolist(), np.random.rand(3).tolist(), random.random()
    torch.manual_seed(5)
    np.random.seed(5)
    random.seed(5)
    assert drawn == (torch.rand(3).tolist(), np.random.rand(3).tolist(), random.random())
    seconds = plan.seconds
    assert set(seconds) == {phase.name for phase in plan.phases}
    assert seconds["student"] > seconds["teacher outputs"] > 0
    assert seconds["control"] > seconds["student"] / 2, "as many steps, and validations more often"
    assert plan.disk is not None
    assert 1e3 < plan.disk < 10e6


@pytest.mark.parametrize("limit", [0.0, 20.0])
def test_the_measurement_is_short(make_part: MakePart, monkeypatch: pytest.MonkeyPatch, limit: float) -> None:
    """A dry run computes for minutes which units the student inherits; or a large model passes through all batches, at a minute each."""

    def initialize(*_: object) -> NoReturn:
        raise AssertionError("the student is initialised")

    rows: list[int] = []
    forward = Distiller.forward
    monkeypatch.setattr(FromConfig, "initialize", initialize)
    monkeypatch.setattr(cost, "LIMIT", limit)
    monkeypatch.setattr(cost, "_weights", lambda source: 0)
    monkeypatch.setattr(
        Distiller,
        "forward",
        lambda self, **batch: rows.append(len(batch["labels"])) or forward(self, **batch),
    )
    seconds = planned(make_part, trainer=TRAINER).seconds
    assert seconds["student"] > 0
    assert seconds["teacher outputs"] > 0
    assert (max(rows) == 1) == (limit == 0.0)


def test_a_plan_is_a_few_short_lines() -> None:
    """Lines that a terminal of 80 columns breaks, or a sum that leaves phases out without a word."""
    phases = [
        PhaseCost("teacher outputs", 12_000_000, seconds=3700.0),
        PhaseCost("student", 9_600_000, 2_400_000, True, 500_000.0),
        PhaseCost("evaluate", 1_200_000),
    ]
    splits = {"train": 9_600_000, "labelled": 9_600_000, "validation": 1_200_000, "test": 1_200_000}
    lines = CostPlan(splits, phases, MemoryPlan([PhaseMemory("student", 10**9)], 10**10), 10**9).lines()
    assert len(lines) == 7
    require_words(lines[-1], "1.0 GB of memory", "10.0 GB free", "disk")
    assert max(map(len, lines)) <= 80
    assert "up to" in lines[-2]
    assert "1 phase of unknown time" in lines[-2]
    assert lines[4].rstrip().endswith("?")
