"""`kdcli distill`: a teacher, a student and its control, and an honest comparison.

`distill` is the recipe. Each stage leaves files and is skipped when they are there, so a run that was killed
is continued by the same command; between stages nothing is handed on but files.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
import json
import logging
import shutil
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import datasets
import numpy as np
import torch
from accelerate import PartialState
from accelerate.utils import broadcast_object_list
from transformers import PreTrainedTokenizerBase
from typing_extensions import TypedDict

import kdcli
from kdcli import console, report
from kdcli.augment import Proposer, augmented, find_proposer
from kdcli.checkpoint import NOTE, require_unchanged, write_sums
from kdcli.commands.export import require_task
from kdcli.config import Component, Rollout, build, locate
from kdcli.config import Distill as Config
from kdcli.config import Step as StepConfig
from kdcli.config import Student as StudentConfig
from kdcli.config import Trainer as TrainerConfig
from kdcli.data import SPLITS, Data, load, loudness, require_batch, with_gold, without
from kdcli.distiller import Distiller
from kdcli.endpoint import Estimate, Usage
from kdcli.environment import environment
from kdcli.errors import ConfigError, DataError, ExportError, KDError, ModelError, TeacherError
from kdcli.evaluate import (
    by_number,
    examine,
    in_tokens_of,
    likelihoods,
    opened,
    prepared,
    require_device,
    save_predictions,
    score,
    size,
    together,
    told_by,
    verdict,
)
from kdcli.files import PARTIAL, cache_dir, digest, read_json, replaced, write_json, write_text
from kdcli.filters import kept, own_function
from kdcli.generate import SHOWN, generate, text_scores
from kdcli.hardware.base import Target
from kdcli.locks import Lock
from kdcli.losses.base import Loss
from kdcli.losses.hard_label import HardLabel
from kdcli.measure import UNKNOWN, Process, measured, require_room
from kdcli.models import (
    Source,
    fast_bf16,
    fewer_tokens,
    find,
    has_head,
    label_order,
    load_config,
    load_model,
    load_tokenizer,
    require_loadable,
    same_vocabulary,
    seed_everything,
    stage_seed,
    with_new_head,
)
from kdcli.preflight import beats_chance, preflight, translates
from kdcli.quantization import FakeQuantization
from kdcli.rollouts import room_for_prompts, seed_of
from kdcli.rundir import METRICS, REPORT, UNANSWERED, UNQUANTIZED, read_metrics, rewrite_metrics
from kdcli.students.base import Birth
from kdcli.students.encoder_decoder import EncoderDecoder, learn_vocabulary
from kdcli.tasks import task_of
from kdcli.tasks.base import Encoded, Predictions, Split, Task
from kdcli.tasks.causal_lm import CausalLM
from kdcli.tasks.seq2seq import Seq2Seq
from kdcli.tasks.token_classification import TokenClassification
from kdcli.teachers.aligned import AlignedTeacher
from kdcli.teachers.base import Teacher
from kdcli.teachers.cached import CachedTeacher, shares
from kdcli.teachers.ensemble import Ensemble
from kdcli.teachers.openai import OpenAITeacher
from kdcli.trainer import Stage, micro_batches, planned_steps, require_trackers, train

logger = logging.getLogger(__name__)
T = TypeVar("T")
AUGMENTED = 1024
"""Rows of which the copies are written to the disk at once."""
EXTREMES = 20
"""Translations that the report shows, the worst and the best."""
BETTER = "look at its prompt (teacher.prompt), show it examples (teacher.shots=6), or try another teacher.soft_labels"
"""What can be done about a teacher that one can only ask."""
BILLED = 100
"""Answers after which it is noted what they cost."""
CUT = "cut off by rollout.max_new_tokens"
"""Why an answer is not learnt that did not come to its end."""
PART_FORMAT = 2
"""Of the files that hold a part of what is made of rows: a new one whenever they come to mean something else."""
PART = 512
"""Prompts that a teacher answers between two writes to the disk."""
UNSEEN: dict[str, Any] = {"parameters": None, "bytes": None, "score": None, "scores": {}, **asdict(UNKNOWN)}
"""What can be said of a model that one can only ask, before it was asked."""


def distill(cfg: Config, folder: Path, names: dict[str, str]) -> int:
    """One run into `folder`, from data to report. Under several processes all call it; the first one writes.

    Args:
        names: what the report calls teacher, student, data set and device.
    """
    parts = prepare(cfg, folder, names)
    run = parts[-1]
    first = run.state.is_main_process
    if run.remote is not None and first:
        foretell(run, run.remote)
    if cfg.dry_run:
        return 0
    with console.Stages(_planned(parts), quiet=not first) as stages:
        lessons: dict[str, Lesson] = {}
        pupils: dict[str, Source] = {}
        steps: dict[str, int] = {}
        for part in parts:
            if part.course not in lessons:
                lessons[part.course] = prepare_lesson(part, stages)
                for other in parts if part.remote is not None else ():
                    other.data = part.data  # without what was not answered
            lesson = lessons[part.course]
            fresh = part.pupil not in pupils
            born = birth(part, lesson) if fresh else pupils[part.pupil]
            pupils[part.pupil], taken = teach(part, stages, lesson, born, fresh)
            steps |= taken if part.pupil == STUDENT else {}
        if cfg.control:
            train_control(run, stages, steps)
        if first:
            with run.stage(stages, "evaluate", len(SPLITS)) as stage:
                result = evaluate(run, lessons[OWN], stage)
    if first:
        finish(run, result)
        shutil.rmtree(run.folder / "stages", ignore_errors=True)
    run.state.wait_for_everyone()
    return 0


STUDENT = "student"
"""The pupil that is not an assistant."""
QUANTIZED = f"{STUDENT}/quantized"
"""The student's last step, if it has one with rounded weights."""
OWN = ""
"""The course that the run's own teacher gives on the run's own data."""


@dataclass
class Step:
    """A part of a model's training.

    Attributes:
        name: as the progress, metrics.jsonl and the report have it: student, student/<name of the stage>, or an assistant's.
        rows: of the training rows: all, labelled or unlabelled ones.
        pupil: who is trained: the student, or an assistant by its name.
        course: who teaches from which data: `OWN`, or the name of the first stage that is taught so.
    """

    name: str
    losses: dict[str, Loss]
    weights: dict[str, float]
    trainer: TrainerConfig
    rows: str = "all"
    pupil: str = STUDENT
    course: str = OWN
    last: bool = True
    """No other step of the pupil follows."""
    quantization: FakeQuantization | None = None
    """What rounds the weights in it."""

    @property
    def taught(self) -> bool:
        """Whether a loss term reads what the teacher says."""
        return any(loss.needs_teacher for loss in self.losses.values())

    @property
    def watched(self) -> bool:
        """Whether a loss term reads the models' inside."""
        return any(loss.inside for loss in self.losses.values())

    def select(self, rows: datasets.Dataset) -> datasets.Dataset:
        """Those of the training rows that it learns from."""
        return rows if self.rows == "all" else with_gold(rows, self.rows == "labelled")


def steps_of(cfg: Config) -> list[Step]:
    """All training but the control's, as the config has it."""
    steps: list[Step] = []
    for name, stage in (cfg.stages or {"": StepConfig(trainer=cfg.trainer)}).items():
        terms = {term: given for term, given in (stage.loss or cfg.loss).items() if given.weight > 0}
        losses: dict[str, Loss] = {term: build(given, Loss) for term, given in terms.items()}
        trainer = stage.trainer
        if losses and all(loss.inside for loss in losses.values()):  # its scores say nothing of it
            trainer = trainer.model_copy(update={"keep": "last"})
        weights = {term: given.weight for term, given in terms.items()}
        pupil = STUDENT if stage.student is None else name
        shown = name if stage.student is not None else f"{STUDENT}/{name}" if name else STUDENT
        last = pupil != STUDENT or len(steps) + 1 == max(1, len(cfg.stages))
        steps.append(
            Step(shown, losses, weights, trainer, stage.rows, pupil, _course(cfg, name, stage), last)
        )
    if cfg.student.quantization is not None:
        grid = FakeQuantization(cfg.student.quantization, writes=cfg.dataset.kind == "causal_lm")
        trainer = _quantizing(cfg, steps[-1].trainer)
        quantized = dataclasses.replace(steps[-1], name=QUANTIZED, trainer=trainer, quantization=grid)
        steps = [*steps[:-1], dataclasses.replace(steps[-1], last=False), quantized]
    return steps


def _quantizing(cfg: Config, trainer: TrainerConfig) -> TrainerConfig:
    """A trainer's settings for the stage with rounded weights."""
    return trainer.model_copy(
        update={
            "epochs": cfg.student.quantization_epochs,
            "learning_rate": cfg.student.quantization_learning_rate,
        }
    )


def _course(cfg: Config, name: str, stage: StepConfig) -> str:
    """What the course is called that a stage follows."""
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
    sources: list[Source]
    """The teacher's checkpoints as they were found: one, or those of an ensemble."""
    birth_by: Birth
    steps: list[Step]
    """The training of the one model."""
    course: str
    taught: list[Step]
    """All steps, of any model, that this teacher teaches from these data."""
    shared: bool
    """Teacher and student mean the same class by the same number."""
    remote: OpenAITeacher | None = None
    """The teacher, if one can only ask it. `sources` is then what its students are born from."""
    classes: int | None = None
    """So many tokens they share, if the teacher has more than the student."""
    spent: dict[str, float] = field(default_factory=dict)
    """Seconds that earlier processes spent on each stage, as they noted them."""

    @property
    def pupil(self) -> str:
        """Who is trained."""
        return self.steps[0].pupil

    @property
    def out(self) -> Path:
        """Where the trained model is kept."""
        return self.folder / STUDENT if self.pupil == STUDENT else self.folder / "assistants" / self.pupil

    @property
    def quantized(self) -> FakeQuantization | None:
        """What rounds the weights of student and control in their last step."""
        return self.steps[-1].quantization

    @property
    def losses(self) -> list[Loss]:
        """The terms of all steps that the teacher teaches."""
        return [loss for step in self.taught for loss in step.losses.values()]

    def named(self, part: str) -> str:
        """What a part of this course is called."""
        return f"{self.course}/{part}" if self.course else part

    def tunes(self, source: Source) -> bool:
        """Whether a teacher's checkpoint is fine-tuned first: for a general stage before the task's it is as it was pretrained."""
        if self.remote is not None or (self.task.vocabulary and not self.task.writes):
            return False
        wanted = self.cfg.teacher.tune
        if self.cfg.teacher.born is not None and self.course not in self.cfg.stages:
            return True
        return wanted if wanted is not None else not has_head(source, self.task)

    @contextmanager
    def stage(self, stages: console.Stages, name: str, total: int | None = None) -> Iterator[console.Stage]:
        """Show a stage, and note in stages.json how long it took."""
        before = next((each["seconds"] for each in self.noted() if each["name"] == name), 0.0)
        self.spent[name] = before
        with stages.stage(name, total) as stage:
            yield stage
        self.note(stage)

    def note(self, stage: console.Stage) -> None:
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
        return _or_anew(self.folder / "stages.json", list[StageTime], [])


class StageTime(TypedDict):
    """An entry of stages.json."""

    name: str
    seconds: float
    steps: int


def _or_anew(path: Path, kind: type[T], empty: T) -> T:
    """The content of a JSON file of the run that only informs; a damaged one begins anew, with a warning."""
    if not path.exists():
        return empty
    try:
        return read_json(path, kind, "it begins anew, and what it held is missing from the report")
    except ConfigError as error:
        logger.warning("%s", error.message)
        path.unlink(missing_ok=True)
        return empty


def prepare(cfg: Config, folder: Path, names: dict[str, str]) -> list[Run]:
    """Find and check everything that can be checked before anything is trained, and write env.json.

    Returns:
        The parts of the run in their order: steps of one course and one pupil, that follow one another. The last one trains the
        student on the run's data.

    Raises:
        ConfigError, DataError, ModelError, TeacherError
    """
    require_device(cfg.measure)
    state = PartialState(cpu=not torch.cuda.is_available())
    folder = Path(broadcast_object_list([str(folder)])[0])
    steps = steps_of(cfg)
    remote = _remote(cfg, steps)
    loaded = {OWN: load(cfg.dataset)}
    for split in ("validation", "test"):
        if not cfg.smoke and (untaught := loaded[OWN].untaught(split)):
            logger.warning(
                "%s has labels that no training row has (%s), so they cannot be learnt from this data; are they misspelt, or too rare?",
                split,
                ", ".join(f"{label}: {count}" for label, count in untaught.most_common(5)),
            )
    if remote is not None:
        names = names | {"teacher": remote.name}
        sources = [_stand_in(cfg, loaded[OWN], state)]
    elif cfg.teacher.born is None:
        sources = [find(cfg.teacher, "teacher"), *(find(other, "teacher") for other in cfg.teacher.members)]
    else:
        sources = [_new_teacher(cfg, cfg.teacher.born, loaded[OWN], state)]
    birth_by: dict[str, Birth] = {}
    parts: list[Run] = []
    for (course, pupil), group in itertools.groupby(steps, lambda step: (step.course, step.pupil)):
        chosen = list(group)
        own = cfg.model_copy(update=_of_part(cfg, course, pupil))
        place = OWN if own.dataset == cfg.dataset else course
        if place not in loaded:
            loaded[place] = load(own.dataset)
        if pupil not in birth_by:
            birth_by[pupil] = _birth_by(own.student)
        taught = [step for step in steps if step.course == course]
        parts.append(
            _part(
                own,
                folder,
                names,
                state,
                loaded[place],
                sources,
                birth_by[pupil],
                chosen,
                course,
                taught,
                remote,
            )
        )
    for trainer in (cfg.trainer, cfg.teacher.trainer, *(step.trainer for step in steps)):
        micro_batches(trainer, state.num_processes)
        require_trackers(trainer)
    require_task(build(cfg.hardware, Target), names["hardware"], cfg.dataset.kind)
    run = parts[-1]
    reading = any(step.taught for step in steps if step.pupil == STUDENT)
    if not reading and cfg.rollout.by != "teacher":
        raise ConfigError(
            "no loss term with a weight reads the teacher: there is nothing to distil; give one a weight"
        )
    if cfg.control:
        require_batch(
            len(run.data.gold),
            cfg.trainer.batch_size,
            "labelled training rows, for the control",
            "trainer.batch_size",
        )
    if remote is not None:
        own_function(cfg.rollout.filter)
        remote.begin(run.task, cfg.dataset, run.data.gold)
    if state.is_main_process:
        _write_environment(parts)
        rewrite_metrics(folder / METRICS)
    state.wait_for_everyone()
    return [
        dataclasses.replace(part, sources=_assistant(part)) if part.course in birth_by else part
        for part in parts
    ]


def _remote(cfg: Config, steps: Sequence[Step]) -> OpenAITeacher | None:
    """The teacher, if one can only ask it: it has its key, and nothing is wanted of it that it cannot do.

    Raises:
        ConfigError
    """
    if not issubclass(locate(cfg.teacher.target), OpenAITeacher):
        for given, key in ((cfg.dry_run, "dry_run"), (cfg.rollout.expand, "rollout.expand")):
            if given:
                raise ConfigError(
                    f"{key}: it is for a teacher that one can only ask (teacher=openai); leave it out"
                )
        return None
    remote: OpenAITeacher = build(cfg.teacher, Teacher)
    teacher, how, writes = cfg.teacher, cfg.rollout, cfg.dataset.kind in ("causal_lm", "seq2seq")
    weights = "a model that one can only ask has no checkpoint here"
    for wrong, key, why in (
        (
            teacher.path or teacher.others or teacher.born,
            "teacher.path, teacher.others, teacher.born",
            weights,
        ),
        (teacher.tune, "teacher.tune", weights),
        (not teacher.cache, "teacher.cache", "every answer is paid for, and kept"),
        (any(step.watched for step in steps), "loss", f"a term reads the teacher's inside, and {weights}"),
        (
            any(stage.dataset for stage in cfg.stages.values()),
            "stages",
            f"one has a data set of its own, and {weights}",
        ),
        (how.by == "student", "rollout.by", "it would be asked about every token that a student writes"),
        (how.keep < 1, "rollout.keep", "it does not say how likely its answers are"),
        (how.num_beams > 1, "rollout.num_beams", "it does not search; give rollout=teacher"),
        (how.candidates > 1, "rollout.candidates", "give rollout.answers: all are learnt"),
        (
            writes and how.by == "dataset",
            "rollout.by",
            "it says nothing of tokens that it has not written; give rollout=teacher, and loss.soft_label.weight=0",
        ),
        (
            writes and any(step.taught for step in steps),
            "loss",
            "a term reads what the teacher says of each token, and one only gets its text; give loss.soft_label.weight=0",
        ),
    ):
        if wrong:
            raise ConfigError(f"{key}: with {remote.name} as the teacher this cannot be: {why}")
    return remote


def _stand_in(cfg: Config, data: Data, state: PartialState) -> Source:
    """What a student is born from whose teacher has no checkpoint: its own, or teacher.stand_in. A translator that has neither is born over
    a vocabulary that is learnt from the pairs.

    Raises:
        ConfigError, ModelError: there is none.
    """
    if cfg.student.path:
        return find(cfg.student, "student")
    task = task_of(cfg.dataset, data.labels)
    if cfg.teacher.stand_in:
        path = {"path": cfg.teacher.stand_in, "revision": None}
        found = find(cfg.teacher.model_copy(update=path), "teacher.stand_in")
        if not task.vocabulary or has_head(found, task):
            return found
    if isinstance(task, Seq2Seq):
        return _new_teacher(cfg, cfg.student, data, state)
    raise ConfigError(
        f"a student for {cfg.dataset.kind} needs a checkpoint of the kind to begin with, and the teacher has none here; give student.path "
        "(student=local), or teacher.stand_in"
    )


def _new_teacher(cfg: Config, born: Component, data: Data, state: PartialState) -> Source:
    """A translator of random weights over a vocabulary learnt from the training pairs, which is to be trained on them."""
    if cfg.dataset.kind != "seq2seq":
        raise ConfigError(
            f"teacher.born: a new model is trained on pairs (seq2seq), not for {cfg.dataset.kind}; give teacher.path"
        )
    by: EncoderDecoder = build(born, EncoderDecoder)
    made_of = (
        born.model_dump(by_alias=True),
        cfg.teacher.vocab_size,
        list(data["train"]["id"]),
        cfg.seed,
    )
    folder = cache_dir("born") / digest(made_of, torch.__version__)[:32]
    if state.is_main_process:
        with Lock(folder.with_suffix(".lock")):
            if not _saved(folder):
                tokenizer = learn_vocabulary(data["train"], cfg.teacher.vocab_size)
                seed_everything(stage_seed(cfg.seed, "teacher: birth"))
                with replaced(folder) as temporary:
                    by.over(tokenizer).save_pretrained(temporary)
                    tokenizer.save_pretrained(temporary)
                    write_sums(temporary)
    state.wait_for_everyone()
    return Source(folder, "the new teacher")


def _of_part(cfg: Config, course: str, pupil: str) -> dict[str, Any]:
    """What a part of a run has of its own in the run's config."""
    own: dict[str, Any] = {}
    if pupil != STUDENT:
        own["student"] = cfg.stages[pupil].student
    if course in cfg.stages and cfg.stages[course].dataset is not None:
        own["dataset"] = cfg.stages[course].dataset
        own["rollout"] = Rollout()
    return own


def _birth_by(cfg: StudentConfig) -> Birth:
    by: Birth = build(cfg, Birth)
    if cfg.quantization is not None and by.adapts:
        raise ConfigError(
            f"student.quantization = {cfg.quantization} trains all weights of the student, and this student's adapters only a few: "
            "take another student, or leave it out (export rounds as well)"
        )
    if cfg.path:
        by.source = find(cfg, "student")
    return by


def _assistant(part: Run) -> list[Source]:
    """Where the assistant will be that teaches a part."""
    stage = part.cfg.stages[part.course]
    code = part.sources[0].code or (stage.student is not None and stage.student.trust_remote_code)
    return [Source(part.folder / "assistants" / part.course, part.course, code=code)]


def _part(
    cfg: Config,
    folder: Path,
    names: dict[str, str],
    state: PartialState,
    data: Data,
    sources: list[Source],
    by: Birth,
    steps: list[Step],
    course: str,
    taught: list[Step],
    remote: OpenAITeacher | None,
) -> Run:
    """A part of a run, its data made ready and checked for its teacher and its student. An assistant's is checked as the run's teacher."""
    task = task_of(cfg.dataset, data.labels)
    max_length = cfg.dataset.max_length
    run = Run(cfg, folder, names, state, data, task, sources, by, steps, course, taught, True, remote)
    _require_model(run)
    inside = [name for step in steps for name, loss in step.losses.items() if loss.inside]
    if inside and isinstance(task, Seq2Seq):
        raise ConfigError(
            f"loss: the inside of a model with an encoder and a decoder is not looked at, and {', '.join(dict.fromkeys(inside))} reads it; leave "
            "out what reads hidden states, attention or relations (translators learn from what the teacher says: loss=forward_kl, "
            "reverse_kl, jsd …)"
        )
    for source in sources if remote is None else ():
        _require_head(run, source)
    for source in dict.fromkeys([*sources, *filter(None, [by.source])]):
        if task.knows(type(load_config(source))):
            require_loadable(source, task)
    _require_birth(run)
    tokenizer = load_tokenizer(sources[0], max_length=max_length)
    own = load_tokenizer(by.source, max_length=max_length) if by.source is not None else tokenizer
    splits = {name: prepared(task, rows, (tokenizer, own), max_length) for name, rows in data.splits.items()}
    run.data = dataclasses.replace(data, splits=splits)
    losses = [loss for step in steps for loss in step.losses.values()]
    reading = [loss for loss in losses if loss.needs_teacher]
    if task.vocabulary:
        by_class = any(loss.by_class for loss in reading)
        run.shared = _share_tokens(run, tokenizer, own, by_class, bool(reading)) and remote is None
        run.classes = fewer_tokens(tokenizer, own) if run.shared else None
        if len(sources) > 1:
            raise ConfigError(
                f"teacher.others: the answers of several teachers are averaged over labels, and models of the task {cfg.dataset.kind} have a "
                "vocabulary; leave it empty"
            )
        if not run.shared and run.pupil != STUDENT and remote is None:
            raise ConfigError(
                f"stages.{run.pupil}.student: an assistant must have the teacher's vocabulary; choose one of the teacher's family"
            )
    if isinstance(task, Seq2Seq) and cfg.rollout.by != "teacher" and len(data.gold) < len(data["train"]):
        raise ConfigError(
            f"{len(data['train']) - len(data.gold)} training rows have no target (dataset.labelled, dataset.unlabelled): let the teacher "
            "translate them (rollout=beam), or leave those keys out"
        )
    if isinstance(task, Seq2Seq) and cfg.rollout.by != "dataset" and cfg.rollout.max_new_tokens < max_length:
        raise ConfigError(
            f"rollout.max_new_tokens = {cfg.rollout.max_new_tokens} is below dataset.max_length = {max_length}: translations would be cut off, and "
            f"the student learn to stop in the middle; give rollout.max_new_tokens={max_length}"
        )
    if cfg.rollout.by != "dataset":
        _require_prompts(cfg, task, run.data)
    if isinstance(task, CausalLM):
        _require_positions(cfg, [*sources, *filter(None, [by.source])], remote is None)
    if (cfg.teacher.cache and task.vocabulary) or len(sources) > 1:
        _temperature(run)
    if cfg.dataset.augment is None:
        require_rows(run, run.data["train"])
    else:
        find_proposer(cfg.dataset.augment, cfg.teacher)
    if any(map(run.tunes, sources)):
        require_batch(
            len(run.data.gold),
            cfg.teacher.trainer.batch_size,
            "labelled training rows",
            "teacher.trainer.batch_size",
        )
        planned_steps(cfg.teacher.trainer, len(run.data.gold))
    return run


def require_rows(run: Run, rows: datasets.Dataset) -> None:
    """Every step has a loss, and rows for a batch.

    Args:
        rows: what is learnt from.

    Raises:
        ConfigError
    """
    for step in run.steps:
        place = f"stages.{step.name.removeprefix('student/')}." if run.cfg.stages else ""
        if not step.losses:
            raise ConfigError(f"{place}loss: every term has the weight 0; give one a weight")
        kind = "" if step.rows == "all" else f"{step.rows} "
        require_batch(
            len(step.select(rows)),
            step.trainer.batch_size,
            f"{kind}training rows",
            f"{place}trainer.batch_size",
        )
        planned_steps(step.trainer, len(step.select(rows)))


def _require_model(run: Run) -> None:
    """What will be born can be a model for the task.

    Raises:
        ConfigError
    """
    by, task = run.birth_by, run.task
    kind = by.kind()
    if kind is None or task.knows(kind) or (by.source is not None and by.source.code):
        return
    new = {"seq2seq": "translator-tiny or translator-small", "causal_lm": "smollm2-30m or smollm2-60m"}.get(
        run.cfg.dataset.kind
    )
    raise ConfigError(
        f"student: {kind.model_type} has no model for the task {run.cfg.dataset.kind}; take {f'student={new}, ' if new else ''}"
        "student=layers or pruned (the teacher with less of it), or student=local with student.path (a checkpoint of the task)"
    )


def _require_birth(run: Run) -> None:
    """What is to be taken away of the teacher, or of the student's checkpoint, is there. Of an assistant it is not known yet.

    Raises:
        ConfigError, ModelError
    """
    by, assistants = run.birth_by, {stage.teacher for stage in run.cfg.stages.values()}
    source = by.source or run.sources[0]
    if not by.of_teacher or source.code or (by.source is None and run.course in assistants):
        return
    config = load_config(source)
    if run.task.knows(type(config)):
        with torch.device("meta"):
            model = run.task.create(run.task.configure(config))
        by.require(run.task, model)


def _require_head(run: Run, source: Source) -> None:
    """A teacher that is not tuned first must have what the task needs.

    Raises:
        TeacherError
    """
    if not has_head(source, run.task):
        if run.task.vocabulary:
            raise TeacherError(
                f"{source.name} has no head for the task {run.cfg.dataset.kind} (its config.json names no …{run.task.head[0]}), and one over a "
                "vocabulary is not made anew; use a checkpoint as it was pretrained"
            )
        if not run.tunes(source):
            raise TeacherError(
                f"{source.name} has no head for this task, and teacher.tune=false would leave it untrained; leave "
                "teacher.tune out (it is tuned first), or use a checkpoint of the task"
            )
    if run.task.labels and not run.tunes(source):
        label_order(load_config(source), run.task.labels, source.name)


def _share_tokens(
    run: Run, theirs: PreTrainedTokenizerBase, ours: PreTrainedTokenizerBase, needed: bool, reading: bool
) -> bool:
    """Whether teacher and student count the same tokens; and whatever is wrong with a row is found now.

    Args:
        theirs, ours: the teacher's and the student's tokenizer; one and the same if the student is born from the teacher.
        needed: a loss compares what they say of the same token.
        reading: a loss reads what the teacher says.

    Raises:
        DataError: of a row nothing counts.
        ModelError: they do not, and that is needed.
    """
    task, max_length = run.task, run.cfg.dataset.max_length
    encoded = {name: task.encode(theirs, rows, max_length) for name, rows in run.data.splits.items()}
    if isinstance(task, CausalLM) and not task.packs and (run.pupil, run.course) == (STUDENT, OWN):
        _tell_cut(encoded["train"], max_length)
    if ours is theirs:
        return True
    own = {name: task.encode(ours, rows, max_length) for name, rows in run.data.splits.items()}
    assert run.birth_by.source is not None
    try:
        same_vocabulary(run.sources[0].name, theirs, run.birth_by.source.name, ours)
        for name, rows in run.data.splits.items():
            task.require_same(rows, encoded[name], own[name])
    except ModelError as error:
        if needed or (not isinstance(task, CausalLM) and (reading or not task.writes)):
            remedy = "; or let it learn what the teacher writes (rollout=teacher loss.soft_label.weight=0)"
            remedy += ", or how sure the teacher is (loss=uld)" if isinstance(task, CausalLM) else ""
            raise ModelError(error.message + (remedy if task.writes else "")) from None
        return False
    return True


def _tell_cut(rows: Encoded, max_length: int) -> None:
    """Of an answer that is cut off the end is not learnt."""
    if full := int((np.diff(rows.offsets) >= max_length).sum()):
        logger.log(
            loudness(full, len(rows)),
            "%d of %d training rows fill dataset.max_length = %d tokens: what is longer is cut off, and the end of its answer is not "
            "learnt; raise it, or leave such rows out (dataset.clean.overlong=drop)",
            full, len(rows), max_length,
        )  # fmt: skip


def _require_prompts(cfg: Config, task: Task, data: Data) -> None:
    if not task.writes:
        raise ConfigError(
            f"rollout.by = {cfg.rollout.by}: models of the task {cfg.dataset.kind} write nothing; leave rollout out"
        )
    if "texts" in data["train"].column_names:
        raise ConfigError(
            f"rollout.by = {cfg.rollout.by}: plain text has no prompts to answer; name dataset.prompt and "
            "dataset.completion, or dataset.messages"
        )


def _require_positions(cfg: Config, sources: Sequence[Source], here: bool) -> None:
    """The models have positions for what they are to write in the run.

    Args:
        here: they write the completions.

    Raises:
        ConfigError
    """
    for config in map(load_config, sources):
        if here and cfg.rollout.by != "dataset":
            room_for_prompts(config, cfg.rollout.max_new_tokens, "rollout.max_new_tokens")
        if cfg.measure is not None:
            require_room(cfg.measure, config)


def _temperature(run: Run) -> float:
    """The temperature at which a teacher's top k, or the mean of several teachers, is taken.

    Raises:
        ConfigError: the terms have several. (Of a top k also 1 can be had.)
    """
    mean = len(run.sources) > 1
    found = {
        getattr(loss, "temperature", 1.0) for loss in run.losses if loss.needs_teacher and not loss.inside
    }
    found = found if mean else found - {1.0}
    if len(found) > 1:
        kept, remedy = ("averaged", "") if mean else ("kept", ", or teacher.cache=false")
        raise ConfigError(
            f"the teacher's answers are {kept} at one temperature, the loss terms have {sorted(found)}; give them one{remedy}"
        )
    return found.pop() if found else 1.0


def _write_environment(parts: Sequence[Run]) -> None:
    """env.json. A run that is continued must find the data and the models that it was begun with."""
    run = parts[-1]
    cfg, path = run.cfg, run.folder / "env.json"
    made_with = environment() | {
        "processes": run.state.num_processes,
        "seeds": {"run": cfg.seed}
        | {name: stage_seed(cfg.seed, name) for name in ("teacher", "birth", "student")},
        "bf16": {
            "teacher": fast_bf16(cfg.teacher.trainer.precision),
            "student": fast_bf16(cfg.trainer.precision),
        },
        "dataset": {"path": cfg.dataset.path, "commit": run.data.commit, "fingerprint": run.data.fingerprint},
        "teacher": _fingerprints(run.sources[0]) if run.remote is None else run.remote.fingerprint,
        "stand_in": None if run.remote is None else _fingerprints(run.sources[0]),
        "student": _fingerprints(run.birth_by.source) if run.birth_by.source else None,
        "others": [_fingerprints(source) for source in run.sources[1:]],
        "stages": {part.course: part.data.fingerprint for part in parts if part.cfg.dataset != cfg.dataset},
    }
    if not path.is_file():
        write_json(path, made_with)
        return
    before = read_json(
        path,
        dict,
        "restore it; or remove it, and the run goes on without the check that its data and models are the ones it was begun with",
    )
    for key, what in (
        ("dataset", "dataset"),
        ("stages", "dataset of a stage"),
        ("teacher", "teacher"),
        ("others", "ensemble of teachers"),
        ("student", "student"),
    ):
        if before.get(key) != made_with[key]:
            raise DataError(f"the {what} is not the one that {run.folder} was begun with; start a new run")


def _fingerprints(source: Source) -> dict[str, Any]:
    return {
        "path": source.name,
        "commit": source.commit,
        "weights": source.weights_hash,
        "tokenizer": source.tokenizer_hash,
    }


# ---- the teacher -------------------------------------------------------------------------------------


@dataclass
class Lesson:
    """A course that is ready to be followed.

    Attributes:
        teachers: the checkpoints, tuned: one, or an ensemble's.
        ask: loads the teacher, once.
        rows: what is learnt from.
        signals: who answers for each split.
        left_out: how many of the teacher's answers are not learnt, by reason.
    """

    teachers: list[Source]
    ask: Callable[[], Teacher]
    rows: datasets.Dataset
    signals: dict[str, Teacher]
    left_out: Mapping[str, int] = field(default_factory=dict)

    @property
    def teacher(self) -> Source:
        """The checkpoint, or an ensemble's first."""
        return self.teachers[0]


def prepare_lesson(run: Run, stages: console.Stages) -> Lesson:
    """Add text if it shall be added, tune the teacher, let it write if it shall, and fetch its answers."""
    rows = with_copies(run, stages) if run.cfg.dataset.augment else run.data["train"]
    if run.remote is not None and run.course == OWN:
        return asked_lesson(run, stages, run.remote, rows)
    teachers = [tuned_teacher(run, stages, number) for number in range(len(run.sources))]
    ask = functools.cache(lambda: open_teacher(run, teachers))
    if isinstance(run.task, Seq2Seq):
        lenient = _lenient(run, run.cfg.teacher.trainer)
        translates(ask(), teachers[0], run.task, run.data["validation"], run.cfg.dataset.max_length, lenient)
    rows, left_out = rollouts(run, stages, teachers, ask, rows)
    return Lesson(teachers, ask, rows, teacher_signals(run, stages, teachers, ask, rows), left_out)


def _planned(parts: Sequence[Run]) -> list[str]:
    """The stages of a run in their order, as the progress shows them."""
    planned: list[str] = []
    seen: set[str] = set()
    for part in parts:
        if part.course not in seen:
            planned += [part.named("augment")] if part.cfg.dataset.augment else []
            asked = part.remote is not None and part.course == OWN
            planned += [] if asked else [_tuning(part, number) for number in range(len(part.sources))]
            planned += [part.named("rollouts")] if part.cfg.rollout.by == "teacher" else []
            planned += [] if asked and part.task.writes else [part.named("signals")]
        seen.add(part.course)
        planned += [step.name for step in part.steps]
    if parts[-1].cfg.control:
        planned += ["control"] if parts[-1].quantized is None else ["control", "control/quantized"]
    return [*planned, "evaluate"]


def with_copies(run: Run, stages: console.Stages) -> datasets.Dataset:
    """The training rows, and copies of those with a gold label in which a masked language model has replaced words.

    The copies are kept in the cache, those of some rows at a time, and stand in the run directory for people to read.
    """
    cfg, gold = run.cfg.dataset, run.data.gold
    assert cfg.augment is not None
    source = find_proposer(cfg.augment, run.cfg.teacher)
    known = {key for split in SPLITS for key in run.data[split]["id"]}
    made_of = (
        source.weights_hash,
        source.tokenizer_hash,
        cfg.augment.model_dump(exclude={"batch_size"}),
        cfg.max_length,
        run.cfg.seed,
    )
    folder = cache_dir("augmented") / digest(made_of, sorted(known), _content(gold))[:32]
    proposer = functools.cache(lambda: Proposer(source, cfg.max_length))
    with run.stage(stages, run.named("augment"), len(gold)) as progress, _alone(run, folder):

        def make(part: datasets.Dataset, before: int) -> list[dict[str, Any]]:
            tell = functools.partial(_advance, progress, before)
            return list(augmented(part, proposer(), cfg, run.cfg.seed, known, tell))

        copies = {row["id"]: row for row in _kept(run, progress, folder, gold, AUGMENTED, make)}
    made = [copies[key] for key in sorted(copies)]
    _show(run, "augmented", made)
    own = run.data["train"]
    rows = datasets.concatenate_datasets([own, datasets.Dataset.from_list(made, features=own.features)])
    require_rows(run, rows)
    return rows


def _tuning(run: Run, number: int) -> str:
    return run.named(f"teacher {number + 1}" if number else "teacher")


def tuned_teacher(run: Run, stages: console.Stages, number: int) -> Source:
    """The teacher, or one of an ensemble, with a head for the task, fine-tuned on the gold labels if it needs to be, and then cached."""
    name, found = _tuning(run, number), run.sources[number]
    if run.course in run.cfg.stages and run.cfg.stages[run.course].student is not None:
        stages.skip(name, "trained before, as an assistant")
        return found
    if not run.tunes(found):
        stages.skip(name, "used as it is")
        return found
    cfg = run.cfg.teacher.trainer
    gold = run.data.gold
    made_of = {
        "what": "teacher tuned on gold labels",
        "task": run.cfg.dataset.kind,
        "weights": found.weights_hash,
        "tokenizer": found.tokenizer_hash,
        "labels": run.data.labels,
        "train": _content(gold),
        "validation": _content(run.data["validation"]),
        "max_length": run.cfg.dataset.max_length,
        "chat": run.task.chat,
        "languages": [
            run.cfg.dataset.source_language,
            run.cfg.dataset.target_language,
            run.cfg.dataset.prefix,
        ],
        "trainer": cfg.model_dump(exclude={"logging_steps", "report_to", "micro_batch_size"}),
        "label_smoothing": run.cfg.teacher.label_smoothing,
        "bf16": fast_bf16(cfg.precision),
        "seed": [run.cfg.seed, number] if number else run.cfg.seed,
        "torch": torch.__version__,
    }
    folder = cache_dir("teachers") / digest(made_of)[:32]
    source = Source(folder, found.name, found.commit, found.code)
    steps = planned_steps(cfg, len(gold))
    seed = stage_seed(run.cfg.seed, f"teacher {number + 1}" if number else "teacher")
    with _alone(run, folder):
        if _saved(folder):
            stages.skip(name, "tuned before, from the cache")
            return source
        with run.stage(stages, name, steps) as progress:
            seed_everything(seed)
            model = with_new_head(found, run.task)
            tokenizer = load_tokenizer(found, model)
            gold_loss = HardLabel(run.cfg.teacher.label_smoothing)
            train(
                Stage(
                    name=name,
                    folder=folder.with_suffix(PARTIAL),
                    out=folder,
                    distiller=Distiller(model, run.task, {"hard_label": gold_loss}, {"hard_label": 1.0}),
                    tokenizer=tokenizer,
                    train=_split(run, gold, tokenizer),
                    validation=_split(run, run.data["validation"], tokenizer),
                    cfg=cfg,
                    steps=steps,
                    eval_steps=_eval_steps(cfg, len(gold)),
                    seed=seed,
                    progress=progress,
                    max_length=run.cfg.dataset.max_length,
                    saved=functools.partial(run.note, progress),
                    metrics=run.folder / METRICS,
                )
            )
            if run.state.is_main_process:
                write_json(folder / NOTE, made_of)
            run.state.wait_for_everyone()
    return source


def _saved(folder: Path) -> bool:
    """Whether a model was made and saved before. A damaged one is named, and does not count: it is made again."""
    if not folder.is_dir():
        return False
    try:
        require_unchanged(folder, "it is made again")
        return True
    except ModelError as error:
        logger.warning("%s", error.message)
        return False


def _content(rows: datasets.Dataset, labels: bool = True) -> str:
    """A digest of a split's rows: ids alone are the same for texts that differ in case.

    Args:
        labels: and of their labels.
    """
    return digest({name: list(rows[name]) for name in rows.column_names if labels or name != "label"})


def open_teacher(run: Run, sources: Sequence[Source]) -> Teacher:
    """The teacher, ready to answer."""
    opened = []
    for source in sources:
        teacher: Teacher = build(run.cfg.teacher, Teacher)
        teacher.open(source, run.task, run.cfg.dataset.max_length, run.cfg.teacher.trainer.precision)
        if run.classes is not None:
            teacher.narrow(run.classes)
        opened.append(teacher)
    return Ensemble(opened, _temperature(run)) if len(opened) > 1 else opened[0]


def _asked(run: Run, sources: Sequence[Source]) -> tuple[Any, ...]:
    """What determines all that a teacher says of a row."""
    cfg = run.cfg.teacher
    return (
        [(source.weights_hash, source.tokenizer_hash) for source in sources],
        cfg.target,
        cfg.arguments,
        run.data.labels,
        run.cfg.dataset.max_length,
        fast_bf16(cfg.trainer.precision),
        torch.__version__,
        run.task.chat,
        run.cfg.dataset.source_language,
        run.cfg.dataset.target_language,
        run.cfg.dataset.prefix,
        *([] if run.classes is None else [run.classes]),
    )


def rollouts(
    run: Run,
    stages: console.Stages,
    sources: Sequence[Source],
    ask: Callable[[], Teacher],
    rows: datasets.Dataset,
) -> tuple[datasets.Dataset, Mapping[str, int]]:
    """The rows that the student learns from: as they are, or (rollout=teacher) their prompts with the teacher's answers.

    The answers are kept in the cache, a few at a time, and stand in the run directory for people to read.

    Returns:
        The rows, and how many answers are not among them, by reason.
    """
    how = run.cfg.rollout
    if how.by != "teacher":
        return rows, {}
    judge, dropped = own_function(how.filter), Counter[str]()
    made_by = _asked(run, sources), how.model_dump(exclude={"answers", "expand", "filter"}), "whole or none"
    folder = cache_dir("rollouts") / digest(*made_by, run.cfg.seed)[:32]
    texts: list[list[str | None]] = []
    with run.stage(stages, run.named("rollouts"), how.answers * len(rows)) as progress:
        for number in range(how.answers):
            seed = seed_of(run.cfg.seed, number) if number else run.cfg.seed
            place = cache_dir("rollouts") / digest(*made_by, seed)[:32]

            def write(part: datasets.Dataset, _: int, seed: int = seed) -> list[str | None]:
                return ask().write(list(part), how, seed)

            with _alone(run, place):
                texts.append(_kept(run, progress, place, rows, PART, write, number * len(rows)))
    found: list[dict[str, Any]] = []
    for row, answers in zip(rows, zip(*texts, strict=True), strict=True):
        whole = [text for text in answers if text is not None]
        dropped[CUT] += len(answers) - len(whole)
        found += [run.task.answered(row, text) for text in kept(row, whole, how.filter, judge, dropped)]
    _log_dropped(+dropped, how.answers * len(rows))
    answered = datasets.Dataset.from_list(found) if found else rows.select([])
    try:
        require_rows(run, answered)
    except ConfigError as error:
        if not dropped[CUT]:
            raise
        raise ConfigError(
            f"rollout.max_new_tokens = {how.max_new_tokens}: {dropped[CUT]} of the teacher's {how.answers * len(rows)} answers do not come "
            f"to their end in so many tokens, and are left out; raise it ({error})"
        ) from None
    if how.keep < 1:
        answered = _likeliest(run, folder, ask, sources[0], answered, how.keep)
    _show(run, "rollouts", answered)
    return answered, +dropped


def _log_dropped(dropped: Mapping[str, int], answers: int) -> None:
    """Tell how many of so many answers are not learnt; where a tenth and more were too long, that only short ones are."""
    for why, count in dropped.items():
        level = loudness(count, answers) if why == CUT else logging.INFO
        remedy = "; the student learns from the short ones alone: raise it" if level > logging.INFO else ""
        logger.log(level, "rollouts: %d of %d answers left out (%s%s)", count, answers, why, remedy)


def _likeliest(
    run: Run,
    folder: Path,
    ask: Callable[[], Teacher],
    source: Source,
    rows: datasets.Dataset,
    share: float,
) -> datasets.Dataset:
    """The rows, in their order, of which the teacher itself finds a token likeliest on average."""

    def judge(part: datasets.Dataset, _: int) -> list[float]:
        return likelihoods(ask(), source, run.task, part, run.cfg.dataset.max_length)

    with _alone(run, folder):
        scores = np.asarray(_kept(run, None, folder / "scores", rows, PART, judge))
    best = np.argsort(-scores, kind="stable")[: max(1, round(share * len(rows)))]
    logger.info(
        "rollouts: %d of %d answers are kept, those that the teacher finds likeliest", len(best), len(rows)
    )
    return rows.select(np.sort(best))


def _kept(
    run: Run,
    progress: console.Stage | None,
    folder: Path,
    rows: datasets.Dataset,
    size: int,
    make: Callable[[datasets.Dataset, int], list[Any]],
    before: int = 0,
) -> list[Any]:
    """What is made of rows, so many at a time, each part kept in a folder; several processes share the work.

    Args:
        make: called with some of the rows, and how many this process has done before.
        before: what the progress counts before the first of them.
    """
    found: dict[int, list[Any]] = {}
    done = 0
    for starts in shares(range(0, len(rows), size), run.state):
        for start in starts:
            part = rows.select(range(start, min(start + size, len(rows))))
            path = folder / f"{digest(PART_FORMAT, list(part['id']))[:32]}.json"
            if not _whole(path):
                made = make(part, done)
                write_json(path, Part(sha256=digest(made), made=made), sync=False)
            found[start] = _read_part(path)
            done += len(part)
            if progress is not None:
                progress.update(before + done)
    return [each for start in sorted(found) for each in found[start]]


class Part(TypedDict):
    """A part of what is made of rows, with its `digest`: it need not be on the disk before it is renamed."""

    sha256: str
    made: list[Any]


def _whole(path: Path) -> bool:
    """Whether a part was made before. A damaged one is named, and does not count: it is made again."""
    try:
        return path.exists() and _read_part(path) is not None
    except ConfigError as error:
        logger.warning("%s", error.message)
        return False


def _read_part(path: Path) -> list[Any]:
    """Raises ConfigError if the part is damaged."""
    part = read_json(path, Part, "it is made again")
    if part["sha256"] != digest(part["made"]):
        raise ConfigError(f"{path} is damaged (its checksum is another); it is made again")
    return part["made"]


def _show(run: Run, what: str, rows: Iterable[dict[str, Any]]) -> None:
    """Rows that were made here, in the run directory, for people to read."""
    if run.state.is_main_process:
        lines = [json.dumps(row, ensure_ascii=False) + "\n" for row in rows]
        write_text(run.folder / f"{run.named(what).replace('/', '-')}.jsonl", "".join(lines))


def teacher_signals(
    run: Run,
    stages: console.Stages,
    sources: Sequence[Source],
    ask: Callable[[], Teacher],
    train: datasets.Dataset,
) -> dict[str, Teacher]:
    """Who answers for each split: the teacher's stored answers, fetched here, or (teacher.cache=false) itself.

    What the student writes while it is trained nobody can have asked about before: then the teacher itself answers for
    the training rows.

    Args:
        train: the rows that the student learns from.

    Returns:
        By split; of train nobody, if no loss term reads it, or only such that read the teacher's inside as well.
    """
    cfg = run.cfg.teacher
    taught = any(step.taught and not step.watched for step in run.taught)
    if not cfg.cache:
        stages.skip(run.named("signals"), "asked for in every step")
        return dict.fromkeys(SPLITS if taught else SPLITS[1:], ask())
    mean = len(sources) > 1
    temperature = _temperature(run) if run.task.vocabulary or mean else 1.0
    kept = (cfg.top_k, temperature) if run.task.vocabulary else (temperature,) if mean else ()
    made_by = _asked(run, sources), kept
    splits = run.data.splits | {"train": train}
    if run.course != OWN:  # the run is judged by its own teacher
        del splits["test"]
    teachers: dict[str, Teacher] = {}
    if run.cfg.rollout.by == "student":
        teachers["train"] = ask()
    if not taught or run.cfg.rollout.by == "student":
        del splits["train"]
    before = 0
    with run.stage(stages, run.named("signals"), sum(map(len, splits.values()))) as progress:
        for split, rows in splits.items():
            folder = cache_dir("signals") / digest(made_by, _content(rows, labels=False))[:32]
            teachers[split] = cached = CachedTeacher(folder, cfg.top_k, temperature)
            with _alone(run, folder):
                cached.fetch(rows, ask, functools.partial(_advance, progress, before), run.state)
            before += len(rows)
    return teachers


def _advance(progress: console.Stage, before: int, done: int) -> None:
    progress.update(before + done)


@contextmanager
def _alone(run: Run, folder: Path) -> Iterator[None]:
    """Hold a shared folder of the cache, so that runs side by side make what it holds once."""
    with Lock(folder.with_suffix(".lock")) if run.state.is_main_process else nullcontext():
        run.state.wait_for_everyone()
        yield


# ---- a teacher that one can only ask -------------------------------------------------------------------


def foretell(run: Run, remote: OpenAITeacher) -> None:
    """Say what asking it will take, before it is asked."""
    how, train = run.cfg.rollout, run.data["train"]
    splits = [train] if run.task.writes else [run.data[split] for split in SPLITS]
    more = itertools.islice(itertools.cycle(train), how.expand)
    found = remote.estimate(itertools.chain(*splits, more), how)
    text = _estimate_text(found, remote.name)
    if run.cfg.dry_run:
        console.say(text)
    else:
        logger.info("%s", text)


def _estimate_text(found: Estimate, name: str) -> str:
    before = f", of which {found.in_ledger:,} were answered before" if found.in_ledger else ""
    written = "any number of" if found.completion_tokens is None else f"at most {found.completion_tokens:,}"
    cost = "what they cost is not known (teacher.prices.prompt and .completion, of a million tokens)"
    if found.cost is not None:
        cost = f"they cost about {found.cost:.2f}" if found.cost >= 0.005 else "they cost less than 0.01"
    return (
        f"{name} will be asked {found.questions:,} questions{before}: about {found.prompt_tokens:,} prompt tokens and {written} completion "
        f"tokens; {cost}"
    )


def asked_lesson(run: Run, stages: console.Stages, remote: OpenAITeacher, rows: datasets.Dataset) -> Lesson:
    """What a teacher says, or writes, that one can only ask. Rows that it does not answer are left out, also of the comparison.

    Every process hears everything: the first one asks, and the others find its answers in the ledger.
    """
    source, task = run.sources[0], run.task

    def ask() -> Teacher:
        return remote

    if task.writes:
        return Lesson([source], ask, asked_rollouts(run, stages, remote, rows), {})
    asked = {"validation": run.data["validation"], "train": rows, "test": run.data["test"]}
    done = 0
    with (
        run.stage(stages, run.named("signals"), sum(map(len, asked.values()))) as progress,
        run.state.main_process_first(),
        _billed(run, remote) as bill,
    ):
        for split, table in asked.items():

            def tell(number: int, usage: Usage, before: int = done) -> None:
                bill()
                progress.update(before + number, extra=_extra(usage))

            remote.fetch(list(table), tell)
            done += len(table)
            if split == "validation":
                _require_better(run, remote)
    _show_unanswered(run, remote, asked.values())
    if remote.unanswered:
        logger.warning(
            "%s did not answer %d of %d rows, which are left out everywhere (%s)",
            remote.name, len(remote.unanswered), done, run.folder / UNANSWERED,
        )  # fmt: skip
    splits = {split: without(table, remote.unanswered) for split, table in run.data.splits.items()}
    run.data, rows = dataclasses.replace(run.data, splits=splits), without(rows, remote.unanswered)
    require_rows(run, rows)
    return Lesson([source], ask, rows, dict.fromkeys(SPLITS, remote))


def _show_unanswered(run: Run, remote: OpenAITeacher, tables: Iterable[Iterable[Mapping[str, Any]]]) -> None:
    """The rows that were not answered, and why, in the run directory."""
    rows = (row for table in tables for row in table if row["id"] in remote.unanswered)
    if run.state.is_main_process:
        lines = [
            json.dumps({**row, **remote.unanswered[row["id"]]}, ensure_ascii=False) + "\n" for row in rows
        ]
        write_text(run.folder / UNANSWERED, "".join(lines))


def _require_better(run: Run, remote: OpenAITeacher) -> None:
    """A teacher that is no better than chance is found before most of it is paid for.

    Raises:
        TeacherError
    """
    table = without(run.data["validation"], remote.unanswered)
    if not len(table):
        raise TeacherError(
            f"{remote.name} answers none of the {len(run.data['validation'])} validation rows with a label; {BETTER}"
        )
    said, classes = told_by(remote, run.sources[0], run.task, table, run.cfg.dataset.max_length)
    for finding in beats_chance(run.task, said, classes, BETTER):
        if not _lenient(run, run.cfg.trainer):
            raise TeacherError(f"the pre-flight stopped the run:\n  {finding}")
        logger.warning("pre-flight: %s", finding)


def asked_rollouts(
    run: Run, stages: console.Stages, remote: OpenAITeacher, rows: datasets.Dataset
) -> datasets.Dataset:
    """The training prompts, and those that the teacher makes up, each with its answers that are worth learning."""
    how, dropped = run.cfg.rollout, Counter[str]()
    judge = own_function(how.filter)
    found: list[dict[str, Any]] = []
    total = how.expand + len(rows)
    with (
        run.stage(stages, run.named("rollouts"), total) as progress,
        run.state.main_process_first(),
        _billed(run, remote) as bill,
    ):

        def tell(number: int, usage: Usage) -> None:
            bill()
            progress.update(number, extra=_extra(usage))

        asked = list(rows)
        if how.expand:
            known = [_prompt(row) for split in SPLITS for row in run.data[split]]
            texts = remote.expand([_prompt(row) for row in rows], known, how.expand, run.cfg.seed, tell)
            asked += [_with_prompt(asked[0], text) for text in texts]
        for row, answers, cut in remote.answers(asked, how, tell):
            dropped[CUT] += cut
            found += [run.task.answered(row, text) for text in kept(row, answers, how.filter, judge, dropped)]
    table = datasets.Dataset.from_list(found) if found else rows.select([])
    tokenizer, room = load_tokenizer(run.sources[0]), run.cfg.dataset.max_length
    if found:
        lengths = run.task.lengths(tokenizer, table)
        dropped["longer than dataset.max_length"] += int((lengths > room).sum())
        table = table.select(np.flatnonzero(lengths <= room))
    remote.dropped = +dropped
    _log_dropped(remote.dropped, how.answers * len(asked))
    _show_unanswered(run, remote, [asked])
    _show(run, "rollouts", table)
    require_rows(run, table)
    return table


def _prompt(row: Mapping[str, Any]) -> str:
    """What a row asks: what the user says first, the prompt, or the source."""
    if "messages" in row:
        return next((turn["content"] for turn in row["messages"] if turn["role"] == "user"), "")
    return str(row["prompt"] if "prompt" in row else row["source"])


def _with_prompt(row: Mapping[str, Any], text: str) -> dict[str, Any]:
    """A row of the same kind that asks something else, not answered yet."""
    if "messages" in row:
        own: dict[str, Any] = {
            "messages": [{"role": "user", "content": text}, {"role": "assistant", "content": ""}]
        }
    else:
        own = {"prompt": text, "completion": ""} if "prompt" in row else {"source": text, "target": None}
    return {**row, **own, "id": digest("expanded", text)[:32]}


def _extra(usage: Usage) -> str:
    cost = "" if usage.cost is None else f", {usage.cost:.2f} spent"
    return f"{usage.requests:,} requests{cost}"


@contextmanager
def _billed(run: Run, remote: OpenAITeacher) -> Iterator[Callable[[], None]]:
    """Note in asked.json what was asked and paid for, by all processes that the run has had: every `BILLED` calls, and at the end."""
    path = run.folder / "asked.json"
    before = _or_anew(path, dict[str, float], {})
    calls = itertools.count(1)

    def note() -> None:
        if run.state.is_main_process:
            used = asdict(remote.endpoint.usage)
            keys = ("requests", "retries", "prompt_tokens", "completion_tokens", "cost")
            known = {key: used[key] for key in keys if used[key] is not None}
            write_json(path, {key: value + before.get(key, 0) for key, value in known.items()})

    def call() -> None:
        if next(calls) % BILLED == 0:
            note()

    try:
        yield call
    finally:
        note()


def _endpoint(run: Run, remote: OpenAITeacher, lesson: Lesson) -> dict[str, Any]:
    """What the report says of a teacher that was asked."""
    bill = _or_anew(run.folder / "asked.json", dict[str, float], {})
    found = remote.about()
    gold = {row["id"]: row for row in run.data.gold}
    agreement: dict[str, Any] = {}
    if run.task.labels:
        right = [
            int(remote.said[key].argmax()) == row["label"]
            for key, row in gold.items()
            if key not in {example["id"] for example in remote.examples}
        ]
        agreement = {"gold": len(right), "accuracy": float(np.mean(right)) if right else None}
    elif isinstance(run.task, CausalLM | Seq2Seq):
        answers = [
            (remote.told[row["id"]], shown["reference"])
            for row, shown in zip(run.data.gold, run.task.shown(run.data.gold), strict=True)
            if row["id"] in remote.told
        ]
        scores = text_scores([own for own, _ in answers], [other for _, other in answers])
        agreement = {"gold": len(answers), "rouge_l": scores["rouge_l"] if answers else None}
    return found | {
        "requests": bill["requests"],
        "retries": bill["retries"],
        "from_ledger": max(0, found["questions"] - (bill["requests"] - bill["retries"])),
        "prompt_tokens": bill["prompt_tokens"],
        "completion_tokens": bill["completion_tokens"],
        "cost": bill.get("cost"),
        "dropped": dict(remote.dropped),
        "learnt": len(lesson.rows),
        "agreement": agreement,
        "answers": remote.shown(),
    }


# ---- the student and its control ---------------------------------------------------------------------


def birth(run: Run, lesson: Lesson) -> Source:
    """The untrained student, the same for student and control, as a directory."""
    folder = run.folder / "stages" / "born" / run.pupil
    if run.state.is_main_process and not _saved(folder):
        seed_everything(stage_seed(run.cfg.seed, "birth"))
        model, tokenizer = run.birth_by.born(run.task, lesson.teacher, lesson.rows)
        with replaced(folder) as temporary:
            model.save_pretrained(temporary)
            tokenizer.save_pretrained(temporary)
            write_sums(temporary)
    run.state.wait_for_everyone()
    return Source(folder, f"the {run.pupil}", code=run.cfg.student.trust_remote_code)


def teach(
    run: Run, stages: console.Stages, lesson: Lesson, born: Source, fresh: bool
) -> tuple[Source, dict[str, int]]:
    """A model trained in the steps of a part, and how many optimizer steps each was.

    Args:
        born: the model as it is before.
        fresh: it has learnt nothing yet.
    """
    lessons = lesson.signals
    if lessons and not run.shared:  # a translator learns from the texts alone
        lessons = aligned(run, lesson.teacher, born, lessons) if isinstance(run.task, CausalLM) else {}
    require_fit(run, born)
    require_same_pieces(run, lesson.teacher, born, lesson.rows)
    check_numbers(run, lesson, born, lessons, fresh)
    return train_steps(run, stages, lesson, born, lessons)


def aligned(run: Run, teacher: Source, born: Source, signals: dict[str, Teacher]) -> dict[str, Teacher]:
    """The teacher at the student's positions, where their tokens are not the same."""
    assert isinstance(run.task, CausalLM)
    theirs, ours = load_tokenizer(teacher), load_tokenizer(born)
    max_length = run.cfg.dataset.max_length
    return {
        split: AlignedTeacher(inner, run.task, theirs, ours, max_length) for split, inner in signals.items()
    }


def require_fit(run: Run, born: Source) -> None:
    """The born student's tokenizer cuts no row into more tokens than a row may have: one that was trimmed spells words, and the
    teacher answers for each of them.

    Raises:
        DataError
    """
    if not isinstance(run.task, TokenClassification):
        return
    tokenizer = load_tokenizer(born)
    if tokenizer.get_vocab() == load_tokenizer(run.birth_by.source or run.sources[0]).get_vocab():
        return  # the rows were cut for it
    for name, rows in run.data.splits.items():
        try:
            run.task.encode(tokenizer, rows, run.cfg.dataset.max_length)
        except DataError as error:
            raise DataError(
                f"{name}: {error.message}. A student whose vocabulary was trimmed spells the words that its tokens lack: it can also keep more "
                "of them (a smaller min_count or a larger max_tokens of its vocabulary), or all (student=tiny, layers, pruned)"
            ) from None


def require_same_pieces(run: Run, teacher: Source, born: Source, rows: datasets.Dataset) -> None:
    """Where a loss compares the models' inside token by token, both must cut every row into the same tokens.

    Raises:
        ModelError: they do not.
    """
    if not any(step.watched for step in run.steps):
        return
    tokenizers = load_tokenizer(teacher), load_tokenizer(born)
    theirs, ours = (run.task.encode(each, rows, run.cfg.dataset.max_length) for each in tokenizers)
    pieces = [
        each.convert_ids_to_tokens(encoded.columns["input_ids"].tolist())
        for each, encoded in zip(tokenizers, (theirs, ours), strict=True)
    ]
    if not np.array_equal(theirs.offsets, ours.offsets) or pieces[0] != pieces[1]:
        raise ModelError(
            "the student and the teacher cut the training rows into different tokens, so what goes on inside them cannot be compared "
            "token by token; use a student over the teacher's vocabulary (student=layers, student=tiny …), or leave out the loss "
            "terms that read the inside (hidden states, attention, relations)"
        )


def check_numbers(run: Run, lesson: Lesson, born: Source, lessons: dict[str, Teacher], fresh: bool) -> None:
    """The pre-flight, with the losses of every step."""
    validation = run.data["validation"]
    said, classes = _teacher_said(run, lesson, "validation") if lesson.signals else (None, 0)
    for step in run.steps:
        distiller, tokenizer = _distiller(run, born, step, lesson.teacher)
        chosen = step.select(lesson.rows)
        first = step is run.steps[0]
        comparable = first and fresh and run.shared and not run.birth_by.of_teacher
        preflight(
            distiller,
            tokenizer,
            said if first else None,
            classes,
            _lessons(step, lessons, lesson.ask),
            _split(run, chosen.select(range(min(1000, len(chosen)))), tokenizer),
            _split(run, validation, tokenizer) if comparable else None,
            bf16=fast_bf16(step.trainer.precision),
            lenient=_lenient(run, step.trainer),
            remedy="" if run.remote is None else BETTER,
        )


def _lenient(run: Run, trainer: TrainerConfig) -> bool:
    """What the pre-flight finds is a warning: a rehearsal."""
    return run.cfg.smoke or trainer.max_steps is not None


def _lessons(step: Step, lessons: dict[str, Teacher], ask: Callable[[], Teacher]) -> Teacher | None:
    """Who answers for the training rows of a step: what is stored says nothing of the inside."""
    if step.watched:
        return ask()
    return lessons.get("train") if step.taught else None


def train_steps(
    run: Run, stages: console.Stages, lesson: Lesson, born: Source, lessons: dict[str, Teacher]
) -> tuple[Source, dict[str, int]]:
    """A model, taught by the teacher, step after step, and the number of optimizer steps of each."""
    taken: dict[str, int] = {}
    for number, step in enumerate(run.steps, start=1):
        chosen = step.select(lesson.rows)
        steps = planned_steps(step.trainer, len(chosen))
        out = run.out if step.last else run.folder / "stages" / "after" / step.name
        if number < len(run.steps) and run.steps[number].quantization:
            out = run.folder / UNQUANTIZED  # it is kept: what the last step is worth is told by it
        _train(
            run,
            stages,
            step,
            born,
            out,
            chosen,
            steps,
            lesson.teacher,
            _lessons(step, lessons, lesson.ask),
            lessons.get("validation"),
        )
        born = Source(out, born.name, code=born.code)
        taken[step.name] = steps
    return born, taken


def train_control(run: Run, stages: console.Stages, steps: dict[str, int]) -> None:
    """The same student with the gold labels alone: the same birth, seed and steps; rows without gold are left out.

    Args:
        steps: the student's optimizer steps, by the names of its steps; those with rounded weights the control takes so too.
    """
    own = next((loss for loss in run.steps[-1].losses.values() if isinstance(loss, HardLabel)), HardLabel())
    step = Step("control", {"hard_label": own}, {"hard_label": 1.0}, run.cfg.trainer)
    out, source = run.folder / "control", run.sources[0]
    last = steps.pop(QUANTIZED, 0)
    before = run.folder / "stages" / "after" / "control" if last else out
    born = Source(
        run.folder / "stages" / "born" / STUDENT, "the control", code=run.cfg.student.trust_remote_code
    )
    _train(run, stages, step, born, before, run.data.gold, sum(steps.values()), source)
    if last:
        trainer = _quantizing(run.cfg, run.cfg.trainer)
        step = dataclasses.replace(
            step, name="control/quantized", trainer=trainer, quantization=run.quantized
        )
        born = Source(before, born.name, code=born.code)
        _train(run, stages, step, born, out, run.data.gold, last, source)


def _train(
    run: Run,
    stages: console.Stages,
    step: Step,
    born: Source,
    out: Path,
    rows: datasets.Dataset,
    steps: int,
    source: Source,
    teacher: Teacher | None = None,
    validation_teacher: Teacher | None = None,
) -> None:
    if _saved(out):
        stages.skip(step.name, "trained before")
        return
    with run.stage(stages, step.name, steps) as progress:
        distiller, tokenizer = _distiller(run, born, step, source)
        seed = stage_seed(run.cfg.seed, _as_student(step.name))
        seed_everything(seed)
        train(
            Stage(
                name=step.name,
                folder=run.folder / "stages" / step.name,
                out=out,
                distiller=distiller,
                tokenizer=tokenizer,
                train=_split(run, rows, tokenizer),
                validation=_split(run, run.data["validation"], tokenizer),
                cfg=step.trainer,
                steps=steps,
                eval_steps=_eval_steps(step.trainer, len(rows)),
                seed=seed,
                progress=progress,
                max_length=run.cfg.dataset.max_length,
                saved=functools.partial(run.note, progress),
                teacher=teacher,
                rollout=run.cfg.rollout if step.taught and run.cfg.rollout.by == "student" else None,
                validation_teacher=validation_teacher if step.taught else None,
                metrics=run.folder / METRICS,
                finish=(step.quantization or run.birth_by).undress,
            )
        )
        run.state.wait_for_everyone()


def _distiller(run: Run, born: Source, step: Step, teacher: Source) -> tuple[Distiller, Any]:
    seed_everything(stage_seed(run.cfg.seed, f"{_as_student(step.name)}: what is new"))
    # a stage before may have been of another task
    model = load_model(born, run.task)[0] if has_head(born, run.task) else with_new_head(born, run.task)
    (step.quantization or run.birth_by).dress(model)
    for loss in step.losses.values():
        loss.attach(model.config, load_config(teacher))
    return Distiller(model, run.task, step.losses, step.weights), load_tokenizer(
        born, model, run.cfg.dataset.max_length
    )


def _as_student(name: str) -> str:
    """By what name a step is seeded: student and control begin with the same random numbers."""
    return STUDENT + name.removeprefix("control") if name.startswith("control") else name


def _split(run: Run, rows: datasets.Dataset, tokenizer: Any) -> Split:
    return Split(rows, run.task.encode(tokenizer, rows, run.cfg.dataset.max_length))


def _eval_steps(cfg: TrainerConfig, rows: int) -> int:
    return cfg.eval_steps or max(1, rows // cfg.batch_size)


# ---- the comparison ----------------------------------------------------------------------------------


def evaluate(run: Run, lesson: Lesson, stage: console.Stage) -> dict[str, Any]:
    """Score all models on the test split, measure them, and compare: report.json without its sentence.

    Args:
        lesson: of the run's own teacher.
    """
    task, max_length, teacher, signals = run.task, run.cfg.dataset.max_length, lesson.teacher, lesson.signals
    test = run.data["test"]
    folders = {"teacher": teacher.path} if signals else {}
    own = (UNQUANTIZED, "control", STUDENT)
    folders |= {name: run.folder / name for name in own if (run.folder / name).is_dir()}
    models: dict[str, dict[str, Any]] = {}
    loaded: dict[str, Sequence[Source]] = {}
    said: dict[str, Predictions] = {}
    written: dict[str, list[str]] = {}
    searched: dict[str, list[str]] = {}
    assistants = {
        name: run.folder / "assistants" / name for name, stage in run.cfg.stages.items() if stage.student
    }
    folders |= assistants
    pupils = (run.cfg.student, *(stage.student for stage in run.cfg.stages.values() if stage.student))
    code = teacher.code or any(each.trust_remote_code for each in pupils)
    beams = run.cfg.measure.num_beams if isinstance(task, Seq2Seq) and run.cfg.measure else 1
    trained = {STUDENT: run.steps[-1].name}
    if run.quantized is not None:
        trained |= {UNQUANTIZED: run.steps[-2].name, "control": "control/quantized"}
    validation = {name: _best_validation(run, trained.get(name, name)) for name in folders}
    for done, (name, folder) in enumerate(folders.items()):
        stage.update(done, extra=name, total=len(folders))
        source = Source(folder, name, code=code)
        if name == "teacher" and not task.writes:  # its answers are there already
            said[name], _ = _teacher_said(run, lesson, "test")
            before, _ = _teacher_said(run, lesson, "validation")
            known = {"parameters": None, "bytes": None}
            models[name] = (
                known if run.remote is not None else together([size(each, task) for each in lesson.teachers])
            )
        else:
            model, tokenizer = opened(source, task, max_length)
            told = by_number(signals["test"], test) if name != "teacher" and run.shared else None
            models[name], said[name] = examine(source, model, tokenizer, task, test, max_length, told)
            if name == "teacher":  # it is run, as what was stored of it lacks rare tokens
                _, before = examine(source, model, tokenizer, task, run.data["validation"], max_length)
            if isinstance(task, CausalLM) and run.cfg.measure is not None:
                written[name] = generate(model, tokenizer, task, test, max_length, run.cfg.measure)
            if isinstance(task, Seq2Seq) and beams > 1:
                searched[name] = task.write(model, tokenizer, test, max_length, num_beams=beams)
            if not run.shared and name == "teacher":
                student = Source(run.folder / "student", "student")
                said[name] = in_tokens_of(task, said[name], student, test, max_length)
            del model  # before the next one is loaded
        if name == "teacher":
            validation[name] = float(task.scores(before)[task.metric])
        save_predictions(run.folder / "predictions" / f"test.{name}.safetensors", said[name])
        models[name] |= score(task, said[name])
        if isinstance(task, Seq2Seq) and name in searched:
            best = task.text_scores(searched[name], said[name].pairs)
            models[name]["scores"] |= {"bleu_beam": best["bleu"], "chrf_beam": best["chrf"]}
        if isinstance(task, CausalLM) and name in written:
            references = [row["reference"] for row in task.shown(test)]
            models[name]["scores"] |= text_scores(written[name], references)
        if name != "teacher" or run.remote is None:
            loaded[name] = lesson.teachers if name == "teacher" else [source]
    for name, needs in _needs(run, loaded, test).items():
        models[name] |= needs
    if run.remote is not None:
        models["teacher"] = UNSEEN | models.get("teacher", {})
    models["teacher"]["path"] = None if run.remote is not None else str(teacher.path)
    if lesson.teachers[1:]:
        models["teacher"] |= {"path": None, "members": [str(each.path) for each in lesson.teachers]}
    shown: dict[str, Any] = {}
    if run.remote is not None:
        shown = {"endpoint": _endpoint(run, run.remote, lesson)}
    if isinstance(task, CausalLM):
        shown |= {
            "test_tokens": len(said["student"].labels),
            "generations": _generations(task, test, written),
        }
    if isinstance(task, Seq2Seq):
        shown |= {"signature": task.signatures(), "beams": beams, "translations": _translations(task, said)}
    return shown | {
        "schema": 1,
        "task": run.cfg.dataset.kind,
        "metric": run.task.metric,
        "test_examples": len(test),
        "smoke": run.cfg.smoke,
        "seed": run.cfg.seed,
        "labels": run.data.labels,
        "dataset": {
            "name": run.names["dataset"],
            "train": len(run.data["train"]),
            "labelled": len(run.data.gold),
            "augmented": len(lesson.rows) - len(run.data["train"]) if run.cfg.dataset.augment else 0,
            "validation": len(run.data["validation"]),
            "test": len(test),
            "fingerprint": run.data.fingerprint,
        }
        | ({"answers_left_out": dict(lesson.left_out)} if lesson.left_out else {})
        | (_of_texts(run, task) if isinstance(task, CausalLM | Seq2Seq) else {}),
        "loss": _terms(run.cfg),
        "stages": [each for each in run.noted() if each["name"] != stage.name],  # this one has not ended
        "validation_score": validation,
        "models": {name: entry for name, entry in models.items() if name not in assistants},
        "assistants": {name: models[name] for name in assistants},
        "verdict": verdict(run.task, models, said, run.shared),
    }


def _needs(
    run: Run, models: Mapping[str, Sequence[Source]], rows: datasets.Dataset
) -> dict[str, dict[str, Any]]:
    """Speed and memory of models, of several checkpoints each if they are ensembles; the student in turns with the teacher, if it is one."""
    found: dict[str, dict[str, Any]] = {}
    teacher: Process | None = None
    try:
        with ExitStack() as stack:
            for name, members in models.items():
                entries = []
                for source in members:
                    inputs = run.task.inputs(rows, load_tokenizer(source))
                    stays = stack if name == "teacher" and len(members) == 1 else None
                    beside = teacher if name == "student" else None
                    process, needs = measured(
                        run.cfg.measure, source, run.task, inputs, run.cfg.dataset.max_length, beside, stays
                    )
                    teacher = process or teacher
                    entries.append(needs)
                found[name] = together(entries)
    except ExportError as error:  # the run was trained: it failed, and is kept
        raise KDError(error.message) from error
    return found


def _terms(cfg: Config) -> dict[str, dict[str, Any]]:
    """The loss terms and their arguments; of stages as stage/term."""
    sets = {f"{name}/": stage.loss or cfg.loss for name, stage in cfg.stages.items()} or {"": cfg.loss}
    return {
        f"{stage}{name}": {"weight": term.weight} | term.arguments
        for stage, terms in sets.items()
        for name, term in terms.items()
    }


def finish(run: Run, result: dict[str, Any]) -> None:
    """Write the report for people and for machines, the model card, and print the table. report.json is the last."""
    result["verdict"]["text"] = report.verdict_text(result)
    begun = run.birth_by.source
    base = begun.name if begun and begun.commit else None
    extra = run.names | {"base_model": base, "kdcli_version": kdcli.__version__, "chat": run.task.chat}
    write_text(run.folder / "student" / "README.md", report.model_card(result, extra))
    report.write_html(run.folder, result)
    write_json(run.folder / REPORT, result)
    report.final_table(result)
    console.say(f"report: {run.folder / 'report.html'}   student: {run.folder / 'student'}")


def _generations(
    task: CausalLM, rows: datasets.Dataset, written: dict[str, list[str]]
) -> list[dict[str, str]]:
    """Some prompts, their references, and what each model wrote."""
    count = min([SHOWN, *map(len, written.values())]) if written else 0
    return [
        row | {name: texts[number] for name, texts in written.items()}
        for number, row in enumerate(task.shown(rows.select(range(count))))
    ]


def _of_texts(run: Run, task: CausalLM | Seq2Seq) -> dict[str, Any]:
    """What the report says of a data set of texts to be written: what was left out, and of pairs what they are."""
    cfg, dropped = run.cfg.dataset, run.data.dropped | ({"too long": task.dropped} if task.dropped else {})
    if isinstance(task, CausalLM):
        return {"dropped": dropped}
    return {
        "dropped": dropped,
        "source_language": cfg.source_language,
        "target_language": cfg.target_language,
        "prefix": cfg.prefix,
    }


def _translations(task: Seq2Seq, said: dict[str, Predictions]) -> dict[str, list[dict[str, Any]]]:
    """The texts in which the student is furthest from the references and nearest to them, by chrF, with the other models' texts."""
    scores = task.each(said["student"])
    order = np.argsort(scores, kind="stable")
    best = order[::-1][:EXTREMES]

    def shown(row: int) -> dict[str, Any]:
        source, reference = said["student"].pairs[row]
        texts = {name: each.texts[row] for name, each in said.items()}
        return {"source": source, "reference": reference, **texts, "score": float(scores[row])}

    return {"worst": [shown(row) for row in order[:EXTREMES]], "best": [shown(row) for row in best]}


def _teacher_said(run: Run, lesson: Lesson, split: str) -> tuple[Predictions, int]:
    """The teacher's answers on a split, at its own positions, and its number of classes."""
    return told_by(
        lesson.signals[split], lesson.teacher, run.task, run.data[split], run.cfg.dataset.max_length
    )


def _best_validation(run: Run, name: str) -> float | None:
    """The best validation score that metrics.jsonl holds of a stage."""
    lines = read_metrics(run.folder / METRICS)
    return max(
        (line["eval/score"] for line in lines if line["stage"] == name and "eval/score" in line), default=None
    )
