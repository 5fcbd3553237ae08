"""The plan of a run: its phases, its parts, and their names."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import datasets
from accelerate import PartialState
from typing_extensions import TypedDict

from kdcli import console
from kdcli.config.components import build
from kdcli.config.schema import Distill as Config
from kdcli.config.schema import Rollout
from kdcli.config.schema import StageConfig as StepConfig
from kdcli.config.schema import Student as StudentConfig
from kdcli.config.schema import Trainer as TrainerConfig
from kdcli.data.dataset import Data, with_gold
from kdcli.errors import ConfigError
from kdcli.files import read_json, write_json
from kdcli.losses.base import Loss
from kdcli.models.checkpoint import Checkpoint, find, has_head
from kdcli.models.quantization import FakeQuantization
from kdcli.students.base import StudentInitializer
from kdcli.tasks.base import Split, Task
from kdcli.teachers.base import Teacher
from kdcli.teachers.remote.protocol import RemoteTeacher

logger = logging.getLogger(__name__)
T = TypeVar("T")
STUDENT = "student"
"""The trainee that is not an assistant."""
QUANTIZED = f"{STUDENT}/quantized"
"""The student's last step, if it has one with rounded weights."""
OWN = ""
"""The teacher_key that the run's own teacher gives on the run's own data."""


@dataclass
class Phase:
    """A part of a model's training.

    Attributes:
        name: as the progress, metrics.jsonl and the report have it: student, student/<name of the stage>, or an assistant's.
        rows: of the training rows: all, labelled or unlabelled ones.
        trainee: who is trained: the student, or an assistant by its name.
        teacher_key: who teaches from which data: `OWN`, or the name of the first stage that is taught so.
    """

    name: str
    losses: dict[str, Loss]
    weights: dict[str, float]
    trainer: TrainerConfig
    rows: str = "all"
    trainee: str = STUDENT
    teacher_key: str = OWN
    last: bool = True
    """No other step of the trainee follows."""
    quantization: FakeQuantization | None = None
    """What rounds the weights in it."""

    @property
    def uses_teacher(self) -> bool:
        """Whether a loss term reads what the teacher says."""
        return any(loss.needs_teacher for loss in self.losses.values())

    @property
    def uses_features(self) -> bool:
        """Whether a loss term reads the models' inside."""
        return any(loss.features for loss in self.losses.values())

    def select(self, rows: datasets.Dataset) -> datasets.Dataset:
        """Those of the training rows that it learns from."""
        return rows if self.rows == "all" else with_gold(rows, self.rows == "labelled")


def plan_phases(cfg: Config) -> list[Phase]:
    """All training but the control's, as the config has it."""
    phases: list[Phase] = []
    for name, stage in (cfg.stages or {"": StepConfig(trainer=cfg.trainer)}).items():
        terms = {term: given for term, given in (stage.loss or cfg.loss).items() if given.weight > 0}
        losses: dict[str, Loss] = {term: build(given, Loss) for term, given in terms.items()}
        trainer = stage.trainer
        if losses and all(loss.features for loss in losses.values()):  # its scores say nothing of it
            trainer = trainer.model_copy(update={"keep": "last"})
        weights = {term: given.weight for term, given in terms.items()}
        trainee = STUDENT if stage.student is None else name
        shown = name if stage.student is not None else f"{STUDENT}/{name}" if name else STUDENT
        last = trainee != STUDENT or len(phases) + 1 == max(1, len(cfg.stages))
        phases.append(
            Phase(shown, losses, weights, trainer, stage.rows, trainee, _teacher_key(cfg, name, stage), last)
        )
    if cfg.student.quantization is not None:
        grid = FakeQuantization(cfg.student.quantization, writes=cfg.dataset.kind == "causal_lm")
        trainer = quantization_trainer(cfg, phases[-1].trainer)
        quantized = dataclasses.replace(phases[-1], name=QUANTIZED, trainer=trainer, quantization=grid)
        phases = [*phases[:-1], dataclasses.replace(phases[-1], last=False), quantized]
    return phases


def quantization_trainer(cfg: Config, trainer: TrainerConfig) -> TrainerConfig:
    """A trainer's settings for the stage with rounded weights."""
    return trainer.model_copy(
        update={
            "epochs": cfg.student.quantization_epochs,
            "learning_rate": cfg.student.quantization_learning_rate,
        }
    )


def _teacher_key(cfg: Config, name: str, stage: StepConfig) -> str:
    """What the teacher_key is called that a stage follows."""
    if stage.dataset is None or stage.dataset == cfg.dataset:
        return stage.teacher or OWN
    return next(other for other, given in cfg.stages.items() if given.dataset == stage.dataset)


@dataclass
class Run:
    """What the stages of a run read: one teacher, one data set and one model that is trained. Of most runs it is all; where stages have
    a data set, a student or a teacher of their own, it is some of them."""

    cfg: Config
    """The run's, with the data set and the student of these stages."""
    folder: Path
    names: dict[str, str]
    state: PartialState
    data: Data
    task: Task
    sources: list[Checkpoint]
    """The teacher's checkpoints as they were found: one, or those of an ensemble."""
    initializer: StudentInitializer
    phases: list[Phase]
    """The training of the one model."""
    teacher_key: str
    taught_phases: list[Phase]
    """All steps, of any model, that this teacher teaches from these data."""
    shared: bool
    """Teacher and student mean the same class by the same number."""
    remote: RemoteTeacher | None = None
    """The teacher if it is a remote one. `sources` then holds what its students are initialised from."""
    classes: int | None = None
    """So many tokens they share, if the teacher has more than the student."""
    spent: dict[str, float] = field(default_factory=dict)
    """Seconds that earlier processes spent on each stage, as they noted them."""

    @property
    def trainee(self) -> str:
        """Who is trained."""
        return self.phases[0].trainee

    @property
    def out(self) -> Path:
        """Where the trained model is kept."""
        return self.folder / STUDENT if self.trainee == STUDENT else self.folder / "assistants" / self.trainee

    @property
    def quantized(self) -> FakeQuantization | None:
        """What rounds the weights of student and control in their last step."""
        return self.phases[-1].quantization

    @property
    def losses(self) -> list[Loss]:
        """The terms of all steps that the teacher teaches."""
        return [loss for step in self.taught_phases for loss in step.losses.values()]

    def named(self, part: str) -> str:
        """What a part of this teacher_key is called."""
        return f"{self.teacher_key}/{part}" if self.teacher_key else part

    def tunes(self, source: Checkpoint) -> bool:
        """Whether a teacher's checkpoint is fine-tuned first: for a general stage before the task's it is as it was pretrained."""
        if self.remote is not None or (self.task.vocabulary and not self.task.writes):
            return False
        wanted = self.cfg.teacher.tune
        if self.cfg.teacher.from_scratch is not None and self.teacher_key not in self.cfg.stages:
            return True
        return wanted if wanted is not None else not has_head(source, self.task)

    @contextmanager
    def stage(
        self, stages: console.ProgressStages, name: str, total: int | None = None
    ) -> Iterator[console.ProgressStage]:
        """Show a stage, and note in stages.json how long it took."""
        before = next((each["seconds"] for each in self.noted() if each["name"] == name), 0.0)
        self.spent[name] = before
        with stages.stage(name, total) as stage:
            yield stage
        self.note(stage)

    def note(self, stage: console.ProgressStage) -> None:
        """Write into stages.json how many steps of a stage are done and the seconds that they took, in all processes that the run has had.
        What a killed process did since the last note is done again, and counts once."""
        if not self.state.is_main_process:
            return
        seconds = round(self.spent[stage.name] + stage.seconds, 3)
        own = StageTime(name=stage.name, seconds=seconds, steps=stage.step)
        noted = {each["name"]: each for each in self.noted()}
        write_json(self.folder / "stages.json", list((noted | {stage.name: own}).values()))

    def noted(self) -> list[StageTime]:
        """What stages.json holds: each stage once, in the order in which they began to be noted."""
        return read_or_restart(self.folder / "stages.json", list[StageTime], [])


class StageTime(TypedDict):
    """An entry of stages.json."""

    name: str
    seconds: float
    steps: int


def read_or_restart(path: Path, kind: type[T], empty: T) -> T:
    """The content of a JSON file of the run that only informs; a damaged one begins anew, with a warning."""
    if not path.exists():
        return empty
    try:
        return read_json(path, kind, "it begins anew, and what it held is missing from the report")
    except ConfigError as error:
        logger.warning("%s", error.message)
        path.unlink(missing_ok=True)
        return empty


def config_of_part(cfg: Config, teacher_key: str, trainee: str) -> dict[str, Any]:
    """What a part of a run has of its own in the run's config."""
    own: dict[str, Any] = {}
    if trainee != STUDENT:
        own["student"] = cfg.stages[trainee].student
    if teacher_key in cfg.stages and cfg.stages[teacher_key].dataset is not None:
        own["dataset"] = cfg.stages[teacher_key].dataset
        own["rollout"] = Rollout()
    return own


def build_initializer(cfg: StudentConfig) -> StudentInitializer:
    by: StudentInitializer = build(cfg, StudentInitializer)
    if cfg.quantization is not None and by.trains_adapters:
        raise ConfigError(
            f"student.quantization = {cfg.quantization} trains all weights of the student, and this student's adapters only a few: "
            "take another student, or leave it out (export rounds as well)"
        )
    if cfg.path:
        by.source = find(cfg, "student")
    return by


def assistant_checkpoint(part: Run) -> list[Checkpoint]:
    """Where the assistant will be that teaches a part."""
    stage = part.cfg.stages[part.teacher_key]
    code = part.sources[0].code or (stage.student is not None and stage.student.trust_remote_code)
    return [Checkpoint(part.folder / "assistants" / part.teacher_key, part.teacher_key, code=code)]


@dataclass
class TeacherData:
    """What a teacher gives for training: its outputs on each split, and the rows that are learnt from.

    Attributes:
        teachers: the checkpoints, tuned: one, or an ensemble's.
        load_teacher: loads the teacher, once.
        rows: what is learnt from.
        outputs: who answers for each split.
        dropped: how many of the teacher's answers are not learnt, by reason.
    """

    teachers: list[Checkpoint]
    load_teacher: Callable[[], Teacher]
    rows: datasets.Dataset
    outputs: dict[str, Teacher]
    dropped: Mapping[str, int] = field(default_factory=dict)

    @property
    def teacher(self) -> Checkpoint:
        """The checkpoint, or an ensemble's first."""
        return self.teachers[0]


def stage_names(parts: Sequence[Run]) -> list[str]:
    """The stages of a run in their order, as the progress shows them."""
    planned: list[str] = []
    seen: set[str] = set()
    for part in parts:
        if part.teacher_key not in seen:
            planned += [part.named("augment")] if part.cfg.dataset.augment else []
            asked = part.remote is not None and part.teacher_key == OWN
            planned += [] if asked else [tuning_stage(part, number) for number in range(len(part.sources))]
            planned += [part.named("rollouts")] if part.cfg.rollout.source == "teacher" else []
            planned += [] if asked and part.task.writes else [part.named("signals")]
        seen.add(part.teacher_key)
        planned += [step.name for step in part.phases]
    if parts[-1].cfg.control:
        planned += ["control"] if parts[-1].quantized is None else ["control", "control/quantized"]
    return [*planned, "evaluate"]


def tuning_stage(run: Run, number: int) -> str:
    return run.named(f"teacher {number + 1}" if number else "teacher")


def seed_name(name: str) -> str:
    """By what name a step is seeded: student and control begin with the same random numbers."""
    return STUDENT + name.removeprefix("control") if name.startswith("control") else name


def encode_split(run: Run, rows: datasets.Dataset, tokenizer: Any) -> Split:
    return Split(rows, run.task.encode(tokenizer, rows, run.cfg.dataset.max_length))


def eval_steps(cfg: TrainerConfig, rows: int) -> int:
    return cfg.eval_steps or max(1, rows // cfg.batch_size)
