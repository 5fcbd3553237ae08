"""Shows the stages of a run, and times them over all processes that the run has had."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import TypeVar

from kdcli import console
from kdcli.distributed import peers
from kdcli.errors import ConfigError
from kdcli.evaluation.results import StageTime
from kdcli.files import read_json, write_json

logger = logging.getLogger(__name__)
STAGE_TIMES = "stages.json"
"""The file of a run directory that holds how long each stage has taken so far."""
T = TypeVar("T")


DOES = {
    "teacher": "tune teacher",
    "augment": "augment texts",
    "rollouts": "write completions",
    "teacher outputs": "teacher outputs",
    "teacher fidelity": "compare the quantized teacher",
}
"""What the stages that prepare a teacher's data do."""
TRAINED = "student", "control"
"""How the names of the stages that train begin."""


def described(name: str) -> str:
    """Return what a stage does, for the terminal: `tune teacher` of the stage `teacher`, `tune teacher (first)` of `first/teacher`."""
    part, _, last = name.rpartition("/")
    if last in DOES and not part.startswith(TRAINED):
        return DOES[last] + (f" ({part})" if part else "")
    return f"train {name}" if name.startswith(TRAINED) else name


class Stages:
    """The progress of a run, and its times in `STAGE_TIMES`.

    Args:
        names: of all stages, in their order.
        folder: the run directory.
        is_main: whether this process shows the progress and writes the times.
    """

    def __init__(self, names: Sequence[str], folder: Path, is_main: bool):
        self._progress = console.ProgressStages(
            names, quiet=not is_main, labels={name: described(name) for name in names}
        )
        self._folder, self._is_main = folder, is_main
        self._earlier: dict[str, float] = {}

    def __enter__(self) -> Stages:
        self._progress.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._progress.__exit__(kind, error, trace)

    @contextmanager
    def stage(self, name: str, total: int | None = None, unit: str = "") -> Iterator[console.ProgressStage]:
        """Show a stage with a number of steps, and record its time."""
        times = {time["name"]: time["seconds"] for time in read_stage_times(self._folder)}
        self._earlier[name] = times.get(name, 0.0)
        peers.phase = name
        with self._progress.stage(name, total, unit) as stage:
            yield stage
        self.record(stage)

    def expect(self, seconds: Mapping[str, float]) -> None:
        """Set how long stages are expected to take, by their names."""
        self._progress.expect(seconds)

    def skip(self, name: str, reason: str) -> None:
        """Show that a stage is not needed."""
        self._progress.skip(name, reason)

    def record(self, stage: console.ProgressStage) -> None:
        """Write the steps of a stage, and its seconds in all processes that the run has had. Work of a killed process after its last record is
        repeated, and counts once."""
        if not self._is_main:
            return
        seconds = round(self._earlier[stage.name] + stage.seconds, 3)
        time = StageTime(name=stage.name, seconds=seconds, steps=stage.step)
        times = {other["name"]: other for other in read_stage_times(self._folder)}
        write_json(self._folder / STAGE_TIMES, list((times | {stage.name: time}).values()))


def read_stage_times(folder: Path) -> list[StageTime]:
    """Return the stages of a run in the order in which they were first recorded."""
    return read_or_restart(folder / STAGE_TIMES, list[StageTime], [])


def read_or_restart(path: Path, kind: type[T], empty: T) -> T:
    """Return the content of a JSON file that is used in reports alone. A damaged file is removed with a warning, and `empty` is returned."""
    if not path.exists():
        return empty
    try:
        return read_json(path, kind, "it starts empty, and its former content is missing from the report")
    except ConfigError as error:
        logger.warning("%s", error.message)
        path.unlink(missing_ok=True)
        return empty
