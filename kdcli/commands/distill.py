"""Implements `kdcli distill`, which trains a student with a teacher and without one, and compares them.

`distill` is the recipe. Each stage leaves files and is skipped if they exist, so that the same command continues a run that was killed.
"""

from __future__ import annotations

import itertools
import logging
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path

from kdcli import console
from kdcli.commands.check import check
from kdcli.config.schema import Distill as Config
from kdcli.device import restart_device_peak
from kdcli.distributed import peers
from kdcli.errors import ExitCode
from kdcli.hub import push, require_pushable
from kdcli.pipeline.build import plan_run
from kdcli.pipeline.compare import evaluate, write_results
from kdcli.pipeline.cost import plan_cost
from kdcli.pipeline.environment import record_peak
from kdcli.pipeline.plan import OWN, STUDENT, Run, TeacherData, parts_of_seed, stage_names
from kdcli.pipeline.stages import Stages
from kdcli.pipeline.student import Trainee, train_control, train_trainee
from kdcli.pipeline.teacher import prepare_teacher_data
from kdcli.training.length import Length

logger = logging.getLogger(__name__)


def distill(cfg: Config, folder: Path, names: dict[str, str], chose_hardware: bool = True) -> int:
    """Run `kdcli distill` into a folder. Under several processes all of them call it, and the main process writes.

    Args:
        names: how the report calls teacher, student, data set and device.
        chose_hardware: whether the user chose the device.

    Returns:
        The exit code.
    """
    if cfg.hub.push_to:
        require_pushable(cfg.hub.push_to)
    if cfg.dry_run:  # of a job of a sweep; of a single run, no run directory is made
        result = check(cfg, folder, names, chose_hardware)
        for line in result.lines() if result is not None else ():
            console.say(line)
        return ExitCode.DONE
    parts = plan_run(cfg, folder, names, chose_hardware)
    run = parts[-1]
    is_main = run.state.is_main_process
    plan = plan_cost(parts, False) if is_main else None
    for line in plan.lines() if plan is not None else ():
        logger.info("%s", line)
    teacher_data: dict[str, TeacherData] = {}
    before = restart_device_peak()
    with Stages(stage_names(parts), run.folder, is_main) as stages:
        stages.expect({} if plan is None else plan.seconds)
        for parts_of_one in [parts_of_seed(parts, seed) for seed in cfg.all_seeds]:
            lengths = _train(parts_of_one, stages, teacher_data)
        run = _answered(run, teacher_data)
        if is_main:
            record_peak(run, before)
            with stages.stage("evaluate", unit="models and measurements") as stage:
                results = evaluate(run, teacher_data[OWN], lengths, stage)
    if is_main:
        write_results(run, results)
        shutil.rmtree(run.folder / "stages", ignore_errors=True)
        if cfg.hub.push_to:
            address = push(run.folder / STUDENT, cfg.hub.push_to, cfg.hub.private)
            console.say(f"published: {address}")
    peers.finish(run.state)
    return ExitCode.DONE


def _train(
    parts: Sequence[Run], stages: Stages, teacher_data: dict[str, TeacherData]
) -> Mapping[str, Length]:
    """Train assistants, student and control under one seed.

    Args:
        parts: of the plan, with this seed.
        teacher_data: by teacher_key. What is missing is prepared and added.

    Returns:
        The lengths of the phases of student and control, by their names; they are those of every seed.
    """
    trainees: dict[str, Trainee] = {}
    for part in parts:
        key = part.teacher_key
        if key not in teacher_data:
            teacher_data[key] = prepare_teacher_data(_answered(part, teacher_data), stages)
        trainees[part.trainee] = train_trainee(
            _answered(part, teacher_data), stages, teacher_data[key], trainees.get(part.trainee)
        )
    run, lengths = _answered(parts[-1], teacher_data), dict(trainees[STUDENT].lengths)
    if run.cfg.control:
        lengths["control"] = train_control(run, stages, lengths)
    return lengths


def _answered(part: Run, teacher_data: Mapping[str, TeacherData]) -> Run:
    """Return a part without the rows that a remote teacher did not answer: no model is trained or scored on them."""
    return part.without_rows(
        frozenset(itertools.chain.from_iterable(data.unanswered for data in teacher_data.values()))
    )
