"""Describes the plan of a run: its parts and their phases. The plan is made once, before anything is trained, and does not change."""

from __future__ import annotations

import copy
import dataclasses
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import datasets
import torch
from accelerate import PartialState
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from kdcli.config.components import build
from kdcli.config.rollout import Rollout
from kdcli.config.schema import Distill as Config
from kdcli.config.schema import StageConfig
from kdcli.config.schema import Student as StudentConfig
from kdcli.config.seeds import with_seed
from kdcli.config.trainer import Trainer as TrainerConfig
from kdcli.data.dataset import Data, with_gold, without
from kdcli.errors import ConfigError
from kdcli.losses.base import Loss
from kdcli.models.checkpoint import Checkpoint, find, has_head, load_config
from kdcli.models.quantization import FakeQuantization
from kdcli.pipeline.memory_plan import MemoryPlan
from kdcli.rundir import HYDRA, SEEDS
from kdcli.students.base import StudentInitializer
from kdcli.tasks.base import Split, Task
from kdcli.tasks.encoded import Encoded
from kdcli.teachers.base import Teacher
from kdcli.teachers.remote.protocol import RemoteTeacher
from kdcli.teachers.remote.scorer import TokenScorer

STUDENT = "student"
"""The trainee that is not an assistant."""
INITIALIZATION = "birth"
"""The name that is hashed into the random seeds of initialisations. It is the first release's: another name would change the results of every seed."""
QUANTIZED = f"{STUDENT}/quantized"
"""The student's quantization-aware phase, if it has one."""
FEATURE_EPOCHS = 4.0
"""The number of epochs of a phase whose losses read features alone, if the config gives no length."""
FIDELITY = "teacher fidelity"
"""The stage that measures what the quantization of the teacher costs."""
OWN = ""
"""The teacher_key of the run's own teacher on the run's own data."""


@dataclass(frozen=True)
class Phase:
    """A part of a model's training: one set of losses, one trainer config, one selection of the rows.

    Attributes:
        name: in the progress, metrics.jsonl and the report: student, student/<stage>, or an assistant's stage.
        rows: which of the training rows are used: all, labelled or unlabelled.
        trainee: the model that is trained: the student, or the name of an assistant.
        teacher_key: which teacher on which data: `OWN`, or the name of the first stage that has the same.
        last: whether no other phase of the trainee follows.
        quantization: rounds the weights during the phase; None: they are not rounded.
    """

    name: str
    losses: Mapping[str, Loss]
    weights: Mapping[str, float]
    trainer: TrainerConfig
    rows: str = "all"
    trainee: str = STUDENT
    teacher_key: str = OWN
    last: bool = True
    quantization: FakeQuantization | None = None

    @property
    def uses_teacher(self) -> bool:
        """Whether a loss term reads the teacher's outputs."""
        return any(loss.needs_teacher for loss in self.losses.values())

    @property
    def uses_features(self) -> bool:
        """Whether a loss term reads hidden states or attentions of both models."""
        return any(loss.features for loss in self.losses.values())

    def select(self, rows: datasets.Dataset) -> datasets.Dataset:
        """Return the training rows of the phase."""
        return rows if self.rows == "all" else with_gold(rows, self.rows == "labelled")


def plan_phases(cfg: Config) -> list[Phase]:
    """Return all phases of a run in their order, except those of the control."""
    stages = cfg.stages or {"": StageConfig(trainer=cfg.trainer)}
    phases = [_phase(cfg, name, stage, name == list(stages)[-1]) for name, stage in stages.items()]
    if cfg.student.quantization is not None:
        quantization = FakeQuantization(cfg.student.quantization, writes=cfg.dataset.spec.writes)
        quantized = dataclasses.replace(
            phases[-1],
            name=QUANTIZED,
            trainer=quantization_trainer(cfg, phases[-1].trainer),
            quantization=quantization,
        )
        phases = [*phases[:-1], dataclasses.replace(phases[-1], last=False), quantized]
    return phases


def _phase(cfg: Config, name: str, stage: StageConfig, is_final: bool) -> Phase:
    terms = {term: given for term, given in (stage.loss or cfg.loss).items() if given.weight > 0}
    losses: dict[str, Loss] = {term: build(given, Loss) for term, given in terms.items()}
    trainer = stage.trainer
    if losses and all(loss.features for loss in losses.values()):
        # validation does not measure them
        length = {} if trainer.is_fixed else {"until": "steps", "epochs": trainer.epochs or FEATURE_EPOCHS}
        trainer = trainer.model_copy(update={"keep": "last"} | length)
    is_assistant = stage.student is not None
    return Phase(
        name=name if is_assistant else f"{STUDENT}/{name}" if name else STUDENT,
        losses=losses,
        weights={term: given.weight for term, given in terms.items()},
        trainer=trainer,
        rows=stage.rows,
        trainee=name if is_assistant else STUDENT,
        teacher_key=_teacher_key(cfg, name, stage),
        last=is_assistant or is_final,
    )


def _teacher_key(cfg: Config, name: str, stage: StageConfig) -> str:
    if stage.dataset is None or stage.dataset == cfg.dataset:
        return stage.teacher or OWN
    return next(other for other, given in cfg.stages.items() if given.dataset == stage.dataset)


def quantization_trainer(cfg: Config, trainer: TrainerConfig) -> TrainerConfig:
    """Return the trainer config of the quantization-aware phase that follows a phase with this one."""
    return trainer.model_copy(
        update={
            "until": "steps",
            "epochs": cfg.student.quantization_epochs,
            "learning_rate": cfg.student.quantization_learning_rate,
        }
    )


@dataclass(frozen=True)
class Run:
    """A part of a run: the phases that train one model with one teacher on one data set. Most runs have one part; where stages have a data
    set, a student or a teacher of their own, a run has several.

    Attributes:
        cfg: the run's config, with the data set and the student of this part.
        folder: the run directory.
        names: how the report calls teacher, student, data set and device.
        state: the processes of the run.
        data: the splits, prepared for the tokenizers of teacher and student.
        sources: the teacher's checkpoints before they are tuned: one, or an ensemble's. For a remote teacher it is the checkpoint that has its
            tokenizer, or from which its students are initialised.
        phases: the training of the one model.
        taught_phases: all phases, of any model, that use this teacher on this data set.
        shared: whether an index means the same class for teacher and student.
        classes: the number of tokens that teacher and student share, if the teacher has more than the student.
        remote: the teacher, if it is a remote one.
        streamed: whether the teacher's outputs are computed layer by layer.
        memory: what the run takes; in its last part.
        further_seed: the seed of the config, if it is not the run's first one.
    """

    cfg: Config
    folder: Path
    names: Mapping[str, str]
    state: PartialState
    data: Data
    task: Task
    sources: Sequence[Checkpoint]
    initializer: StudentInitializer
    phases: Sequence[Phase]
    taught_phases: Sequence[Phase]
    shared: bool = True
    classes: int | None = None
    remote: RemoteTeacher | None = None
    streamed: bool = False
    memory: MemoryPlan | None = None
    further_seed: int | None = None

    @property
    def scorer(self) -> TokenScorer | None:
        """What gives the outputs of a remote teacher at given tokens; None: nothing does, or the teacher is no remote one."""
        return None if self.remote is None or self.teacher_key != OWN else self.remote.scorer

    @property
    def teacher_key(self) -> str:
        """Which teacher on which data; see `Phase`."""
        return self.phases[0].teacher_key

    @property
    def trainee(self) -> str:
        """The model that is trained; see `Phase`."""
        return self.phases[0].trainee

    @property
    def measures_fidelity(self) -> bool:
        """Whether the run's own teacher is quantized, and is compared with itself without quantization."""
        return self.cfg.teacher.quantization is not None and self.teacher_key == OWN

    @property
    def models_folder(self) -> Path:
        """Where student and control are saved."""
        return self.folder if self.further_seed is None else self.folder / SEEDS / str(self.further_seed)

    @property
    def model_folder(self) -> Path:
        """Where the trained model is saved."""
        assistants = self.folder / "assistants"
        return self.models_folder / STUDENT if self.trainee == STUDENT else assistants / self.trainee

    def seeded_name(self, name: str) -> str:
        """Return a phase or a model in the progress, in metrics.jsonl and in the names of files."""
        return with_seed(name, self.further_seed)

    @property
    def quantization(self) -> FakeQuantization | None:
        """What rounds the weights of student and control in their last phase."""
        return self.phases[-1].quantization

    @property
    def losses(self) -> list[Loss]:
        """The terms of all phases that use the teacher on this data set."""
        return [loss for phase in self.taught_phases for loss in phase.losses.values()]

    @property
    def max_length(self) -> int:
        """Tokens a row, at most."""
        return self.cfg.dataset.max_length

    @property
    def fresh_since(self) -> float | None:
        """The time before which answers and outputs of the teacher were stored that do not count (teacher.fresh), in seconds since the epoch: when
        the run began, also for a run that is continued. None: all count."""
        if not self.cfg.teacher.fresh:
            return None
        record = self.folder / HYDRA.parent / "config.yaml"
        return record.stat().st_mtime if record.is_file() else time.time()

    def stage_name(self, stage: str) -> str:
        """Return the name of a stage that prepares the teacher's data."""
        return f"{self.teacher_key}/{stage}" if self.teacher_key else stage

    def tuning_stage(self, member: int) -> str:
        """Return the name of the stage that tunes a member of the ensemble, or the one teacher (0)."""
        return self.stage_name(f"teacher {member + 1}" if member else "teacher")

    def tunes(self, source: Checkpoint) -> bool:
        """Return whether a teacher's checkpoint is fine-tuned first. In a general stage before the task's it is used as it was pretrained."""
        if self.remote is not None or (self.task.vocabulary and not self.task.writes):
            return False
        if self.cfg.teacher.from_scratch is not None and self.teacher_key not in self.cfg.stages:
            return True
        tune = self.cfg.teacher.tune
        return tune if tune is not None else not has_head(source, self.task)

    def is_lenient(self, trainer: TrainerConfig) -> bool:
        """Return whether findings of the pre-flight are warnings: the run is a rehearsal."""
        return self.cfg.smoke or trainer.max_steps is not None

    def skeleton(self, source: Checkpoint) -> PreTrainedModel:
        """Return the model of a checkpoint for the task, on the device "meta"."""
        with torch.device("meta"):
            return self.task.create(self.task.configure(load_config(source)))

    def encode(self, tokenizer: PreTrainedTokenizerBase, rows: datasets.Dataset) -> Encoded:
        """Tokenize rows. The same rows are tokenized once."""
        return self.task.encode_split(tokenizer, rows, self.max_length)

    def split(self, tokenizer: PreTrainedTokenizerBase, rows: datasets.Dataset) -> Split:
        """Return rows together with their tokens."""
        return Split(rows, self.encode(tokenizer, rows))

    def without_rows(self, ids: Collection[str]) -> Run:
        """Return the same part without some rows of its data, which the teacher did not answer."""
        if not ids:
            return self
        splits = {split: without(rows, ids) for split, rows in self.data.splits.items()}
        return dataclasses.replace(self, data=dataclasses.replace(self.data, splits=splits))


def parts_of_seed(parts: Sequence[Run], seed: int) -> list[Run]:
    """Return the parts of a run under one of its seeds. Under the first these are all; a further one trains the student again, with the outputs of
    the same teachers and assistants."""
    if seed == parts[-1].cfg.seed:
        return list(parts)
    return [
        dataclasses.replace(
            part,
            cfg=part.cfg.model_copy(update={"seed": seed, "seeds": None}),
            phases=copy.deepcopy(list(part.phases)),  # losses may have parameters, which are trained
            further_seed=seed,
        )
        for part in parts
        if part.trainee == STUDENT
    ]


def is_online(run: Run, phase: Phase) -> bool:
    """Return whether the teacher itself, not its stored outputs, answers in the training steps of a phase."""
    return phase.uses_teacher and (
        phase.uses_features or not run.cfg.teacher.cache or run.cfg.rollout.source == "student"
    )


@dataclass(frozen=True)
class TeacherData:
    """The results of the teacher's stages, which training reads.

    Attributes:
        teachers: the checkpoints, tuned: one, or an ensemble's.
        load_teacher: loads the teacher at its first call.
        rows: the training rows.
        outputs: the teacher of each split: stored outputs, or the model itself.
        dropped: the number of completions of the teacher that are not among the rows, by reason.
        fidelity: the fields of `FidelityResult`; None: the teacher is not quantized.
        unanswered: the ids of rows that a remote teacher did not answer. They are dropped from all splits.
    """

    teachers: Sequence[Checkpoint]
    load_teacher: Callable[[], Teacher]
    rows: datasets.Dataset
    outputs: Mapping[str, Teacher]
    dropped: Mapping[str, int] = field(default_factory=dict)
    fidelity: Mapping[str, Any] | None = None
    unanswered: frozenset[str] = frozenset()

    @property
    def teacher(self) -> Checkpoint:
        """The checkpoint, or an ensemble's first."""
        return self.teachers[0]


def config_of_part(cfg: Config, teacher_key: str, trainee: str) -> Config:
    """Return the run's config with the student and the data set of a part."""
    own: dict[str, Any] = {}
    if trainee != STUDENT:
        own["student"] = cfg.stages[trainee].student
    if teacher_key in cfg.stages and cfg.stages[teacher_key].dataset is not None:
        own["dataset"] = cfg.stages[teacher_key].dataset
        own["rollout"] = Rollout()
    return cfg.model_copy(update=own)


def build_initializer(cfg: StudentConfig) -> StudentInitializer:
    """Return the student's initialiser, with the checkpoint of `student.path`.

    Raises:
        ConfigError, ModelError
    """
    initializer: StudentInitializer = build(cfg, StudentInitializer)
    if cfg.quantization is not None and initializer.trains_adapters:
        raise ConfigError(
            f"student.quantization = {cfg.quantization} trains all weights of the student, and this student's adapters only a few: "
            "take another student, or leave it out (export rounds as well)"
        )
    if cfg.path:
        initializer.start_from(find(cfg, "student"))
    return initializer


def assistant_checkpoint(part: Run) -> Checkpoint:
    """Return where the assistant will be that teaches a part."""
    stage = part.cfg.stages[part.teacher_key]
    code = part.sources[0].code or (stage.student is not None and stage.student.trust_remote_code)
    return Checkpoint(part.folder / "assistants" / part.teacher_key, part.teacher_key, code=code)


def stage_names(parts: Sequence[Run]) -> list[str]:
    """Return the stages of a run in their order."""
    planned: list[str] = []
    prepared: set[str] = set()
    for part in parts:
        if part.teacher_key not in prepared:
            planned += _teacher_stages(part)
        prepared.add(part.teacher_key)
        planned += [phase.name for phase in part.phases]
    control: list[str] = []
    if parts[-1].cfg.control:
        control = ["control"] if parts[-1].quantization is None else ["control", "control/quantized"]
    again = [phase.name for part in parts for phase in part.phases if part.trainee == STUDENT] + control
    further = [with_seed(name, seed) for seed in parts[-1].cfg.all_seeds[1:] for name in again]
    return [*planned, *control, *further, "evaluate"]


def _teacher_stages(part: Run) -> list[str]:
    is_remote = part.remote is not None and part.teacher_key == OWN
    return [
        *([part.stage_name("augment")] if part.cfg.dataset.augment else []),
        *([] if is_remote else map(part.tuning_stage, range(len(part.sources)))),
        *([part.stage_name("rollouts")] if part.cfg.rollout.source == "teacher" else []),
        *([] if is_remote and part.task.writes and not part.scorer else [part.stage_name("teacher outputs")]),
        *([FIDELITY] if part.measures_fidelity else []),
    ]


def seed_name(phase: str) -> str:
    """Return the name by which a phase is seeded: student and control begin with the same random numbers."""
    return STUDENT + phase.removeprefix("control") if phase.startswith("control") else phase
