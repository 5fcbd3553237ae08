"""`kdcli distill`: a teacher, a student and its control, and an honest comparison.

`distill` is the recipe. Each stage leaves files and is skipped when they are there, so a run that was killed
is continued by the same command; between stages nothing is handed on but files.
"""

from __future__ import annotations

import shutil
from pathlib import Path

from kdcli import console
from kdcli.config.schema import Distill as Config
from kdcli.data.splits import SPLITS
from kdcli.errors import ExitCode
from kdcli.models.checkpoint import Checkpoint
from kdcli.pipeline.compare import evaluate, finish
from kdcli.pipeline.plan import OWN, STUDENT, TeacherData, stage_names
from kdcli.pipeline.remote import announce_cost
from kdcli.pipeline.student import initialize_student, train_control, train_trainee
from kdcli.pipeline.teacher import prepare_teacher_data
from kdcli.pipeline.validate import plan_run


def distill(cfg: Config, folder: Path, names: dict[str, str]) -> int:
    """One run into `folder`, from data to report. Under several processes all call it; the first one writes.

    Args:
        names: what the report calls teacher, student, data set and device.
    """
    parts = plan_run(cfg, folder, names)
    run = parts[-1]
    first = run.state.is_main_process
    if run.remote is not None and first:
        announce_cost(run, run.remote)
    if cfg.dry_run:
        return ExitCode.DONE
    with console.ProgressStages(stage_names(parts), quiet=not first) as stages:
        all_teacher_data: dict[str, TeacherData] = {}
        trainees: dict[str, Checkpoint] = {}
        steps: dict[str, int] = {}
        for part in parts:
            if part.teacher_key not in all_teacher_data:
                all_teacher_data[part.teacher_key] = prepare_teacher_data(part, stages)
                for other in parts if part.remote is not None else ():
                    other.data = part.data  # without what was not answered
            teacher_data = all_teacher_data[part.teacher_key]
            fresh = part.trainee not in trainees
            born = initialize_student(part, teacher_data) if fresh else trainees[part.trainee]
            trainees[part.trainee], taken = train_trainee(part, stages, teacher_data, born, fresh)
            steps |= taken if part.trainee == STUDENT else {}
        if cfg.control:
            train_control(run, stages, steps)
        if first:
            with run.stage(stages, "evaluate", len(SPLITS)) as stage:
                result = evaluate(run, all_teacher_data[OWN], stage)
    if first:
        finish(run, result)
        shutil.rmtree(run.folder / "stages", ignore_errors=True)
    run.state.wait_for_everyone()
    return ExitCode.DONE
