"""Configs and parts of runs without any command."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import datasets
import pytest
from accelerate import PartialState

from kdcli.config.check import check
from kdcli.config.schema import Distill
from kdcli.data.dataset import Data
from kdcli.models.checkpoint import Checkpoint
from kdcli.pipeline.plan import Run, plan_phases
from kdcli.students.pretrained import Pretrained
from kdcli.tasks import task_of

MakeConfig = Callable[..., Distill]
MakePart = Callable[..., Run]
NAMES = {"teacher": "teacher", "dataset": "reviews"}


@pytest.fixture
def make_config() -> MakeConfig:
    """Returns a checked config, some of its sections replaced."""

    def make(**own: Any) -> Distill:
        return check(
            Distill,
            {
                "teacher": {"_target_": "kdcli.teachers.local.LocalTeacher", "path": "teacher"},
                "student": {"_target_": "kdcli.students.pretrained.Pretrained", "path": "student"},
                "dataset": {"path": "reviews.csv"},
                "loss": {
                    "soft_label": {"_target_": "kdcli.losses.forward_kl.ForwardKL"},
                    "hard_label": {"_target_": "kdcli.losses.hard_label.HardLabel", "weight": 0.5},
                    "off": {"_target_": "kdcli.losses.forward_kl.ForwardKL", "weight": 0},
                },
                "hardware": {"_target_": "kdcli.exporting.targets.cpu.Cpu"},
                **own,
            },
        )

    return make


@pytest.fixture
def make_part(make_config: MakeConfig, tmp_path: Path, teacher: Path) -> MakePart:
    """Returns a part of a run over labelled rows; a label of -100 is none."""

    def make(labels: Sequence[int] = (0, 1, 0, 1), sources: Sequence[Path] = (), **own: Any) -> Run:
        cfg = make_config(**own)
        rows = datasets.Dataset.from_list(
            [
                {"id": f"{index}", "text": f"text {index}", "label": label}
                for index, label in enumerate(labels)
            ]
        )
        splits: Mapping[str, datasets.Dataset] = dict.fromkeys(("train", "validation", "test"), rows)
        data = Data(dict(splits), ["bad", "good"], "fingerprint")
        phases = plan_phases(cfg)
        checkpoints = [Checkpoint(source, "the teacher") for source in sources or [teacher]]
        state, task = PartialState(cpu=True), task_of(cfg.dataset, data.labels)
        return Run(cfg, tmp_path, NAMES, state, data, task, checkpoints, Pretrained(), phases, phases)

    return make
