"""`kdcli distill`: a teacher, a student and its control, and an honest comparison.

`distill` is the recipe. Each stage leaves files and is skipped when they are there, so a run that was killed
is continued by the same command; between stages nothing is handed on but files.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import logging
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import datasets
import filelock
import numpy as np
import torch
from accelerate import PartialState
from accelerate.utils import broadcast_object_list
from transformers import PreTrainedTokenizerBase

import kdcli
from kdcli import console, report
from kdcli.config import Distill as Config
from kdcli.config import Step as StepConfig
from kdcli.config import Trainer as TrainerConfig
from kdcli.config import build
from kdcli.data import SPLITS, Data, load, require_batch, with_gold
from kdcli.distiller import Distiller
from kdcli.environment import environment
from kdcli.errors import ConfigError, DataError, ModelError, TeacherError
from kdcli.evaluate import by_number, examine, in_tokens_of, opened, save_predictions, score, size, verdict
from kdcli.files import cache_dir, digest, replaced, write_json, write_text
from kdcli.generate import SHOWN, generate, text_scores
from kdcli.losses.base import Loss
from kdcli.losses.hard_label import HardLabel
from kdcli.measure import measure_rows
from kdcli.models import (
    Source,
    fast_bf16,
    find,
    has_head,
    label_order,
    load_config,
    load_model,
    load_tokenizer,
    same_vocabulary,
    seed_everything,
    stage_seed,
    with_new_head,
)
from kdcli.preflight import preflight
from kdcli.rundir import REPORT
from kdcli.students.base import Birth
from kdcli.tasks import task_of
from kdcli.tasks.base import Predictions, Split, Task
from kdcli.tasks.causal_lm import CausalLM
from kdcli.teachers.aligned import AlignedTeacher
from kdcli.teachers.base import Teacher
from kdcli.teachers.cached import CachedTeacher, shares
from kdcli.trainer import Stage, micro_batches, planned_steps, require_trackers, train

logger = logging.getLogger(__name__)
PART = 64
"""Prompts that a teacher answers between two writes to the disk."""


def distill(cfg: Config, folder: Path, names: dict[str, str]) -> int:
    """One run into `folder`, from data to report. Under several processes all call it; the first one writes.

    Args:
        names: what the report calls teacher, student and data set.
    """
    run = prepare(cfg, folder, names)
    first = run.state.is_main_process
    parts = ["teacher", "rollouts", "signals", *(step.name for step in run.steps), "control", "evaluate"]
    left_out = {"rollouts": cfg.rollout.by != "teacher", "control": not cfg.control}
    with console.Stages([part for part in parts if not left_out.get(part)], quiet=not first) as stages:
        teacher = tuned_teacher(run, stages)
        ask = functools.cache(lambda: open_teacher(run, teacher))
        rows = rollouts(run, stages, teacher, ask)
        signals = teacher_signals(run, stages, teacher, ask, rows)
        born = birth(run, teacher)
        lessons = signals if run.shared else aligned(run, teacher, born, signals)
        require_same_pieces(run, teacher, born, rows)
        check_numbers(run, teacher, born, signals, lessons, ask, rows)
        steps = train_student(run, stages, born, lessons, ask, rows)
        if cfg.control:
            train_control(run, stages, born, steps)
        if first:
            with run.stage(stages, "evaluate", len(SPLITS)) as stage:
                result = evaluate(run, teacher, signals, stage)
    if first:
        finish(run, result)
        shutil.rmtree(run.folder / "stages", ignore_errors=True)
    run.state.wait_for_everyone()
    return 0


@dataclass
class Step:
    """A part of a model's training.

    Attributes:
        name: as the progress, metrics.jsonl and the report have it: student, or student/<name of the stage>.
        rows: of the training rows: all, labelled or unlabelled ones.
    """

    name: str
    losses: dict[str, Loss]
    weights: dict[str, float]
    trainer: TrainerConfig
    rows: str = "all"

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
    """The student's training as the config has it."""
    stages = {f"student/{name}": stage for name, stage in cfg.stages.items()}
    steps = []
    for name, stage in (stages or {"student": StepConfig(trainer=cfg.trainer)}).items():
        terms = {term: given for term, given in (stage.loss or cfg.loss).items() if given.weight > 0}
        losses: dict[str, Loss] = {term: build(given, Loss) for term, given in terms.items()}
        trainer = stage.trainer
        if losses and all(loss.inside for loss in losses.values()):  # its scores say nothing of it
            trainer = trainer.model_copy(update={"keep": "last"})
        weights = {term: given.weight for term, given in terms.items()}
        steps.append(Step(name, losses, weights, trainer, stage.rows))
    return steps


@dataclass
class Run:
    """What the stages of a run read."""

    cfg: Config
    folder: Path
    names: dict[str, str]
    state: PartialState
    data: Data
    task: Task
    source: Source
    """The teacher's checkpoint as it was found."""
    tune: bool
    birth_by: Birth
    steps: list[Step]
    """The student's training."""
    shared: bool
    """Teacher and student mean the same class by the same number."""

    @property
    def losses(self) -> list[Loss]:
        """The terms of all steps."""
        return [loss for step in self.steps for loss in step.losses.values()]

    @contextmanager
    def stage(self, stages: console.Stages, name: str, total: int | None = None) -> Iterator[console.Stage]:
        """Show a stage, and note in stages.json how long it took."""
        with stages.stage(name, total) as stage:
            yield stage
        if self.state.is_main_process:
            path = self.folder / "stages.json"
            noted = json.loads(path.read_text()) if path.is_file() else []
            noted.append({"name": name, "seconds": round(stage.seconds, 3), "steps": stage.step})
            write_json(path, noted)


def prepare(cfg: Config, folder: Path, names: dict[str, str]) -> Run:
    """Find and check everything that can be checked before anything is trained, and write env.json.

    Raises:
        ConfigError, DataError, ModelError, TeacherError
    """
    state = PartialState(cpu=not torch.cuda.is_available())
    folder = Path(broadcast_object_list([str(folder)])[0])
    data = load(cfg.dataset)
    task = task_of(cfg.dataset, data.labels)
    source = find(cfg.teacher, "teacher")
    head = has_head(source, task)
    tune = cfg.teacher.tune if cfg.teacher.tune is not None else not head
    if not tune and not head:
        raise TeacherError(
            f"{source.name} has no head for this task, and teacher.tune=false would leave it untrained; leave "
            "teacher.tune out (it is tuned first), or use a checkpoint of the task"
        )
    if not tune and not task.writes:
        label_order(load_config(source), data.labels, source.name)
    tokenizer = load_tokenizer(source, max_length=cfg.dataset.max_length)
    by: Birth = build(cfg.student, Birth)
    steps = steps_of(cfg)
    losses = [loss for step in steps for loss in step.losses.values()]
    taught = [loss for loss in losses if loss.needs_teacher]
    own = tokenizer
    if cfg.student.path:
        by.source = find(cfg.student, "student")
        own = load_tokenizer(by.source, max_length=cfg.dataset.max_length)
    splits = {
        name: task.prepare(rows, tokenizer, cfg.dataset.max_length) for name, rows in data.splits.items()
    }
    if own is not tokenizer:  # both read the same words
        splits = {name: task.prepare(rows, own, cfg.dataset.max_length) for name, rows in splits.items()}
    data = dataclasses.replace(data, splits=splits)
    shared = not isinstance(task, CausalLM) or _share_tokens(
        task,
        data,
        source,
        tokenizer,
        by.source,
        own,
        cfg.dataset.max_length,
        any(loss.by_class for loss in taught),
    )
    if not taught and cfg.rollout.by != "teacher":
        raise ConfigError(
            "no loss term with a weight reads the teacher: there is nothing to distil; give one a weight"
        )
    if cfg.rollout.by != "dataset":
        _require_prompts(cfg, task, data)
    if cfg.teacher.cache and task.writes:
        _temperature(losses)
    for trainer in (cfg.trainer, cfg.teacher.trainer, *(step.trainer for step in steps)):
        micro_batches(trainer, state.num_processes)
        require_trackers(trainer)
    gold = len(data.gold)
    for step in steps:
        place = f"stages.{step.name.removeprefix('student/')}." if cfg.stages else ""
        if not step.losses:
            raise ConfigError(f"{place}loss: every term has the weight 0; give one a weight")
        kind = "" if step.rows == "all" else f"{step.rows} "
        require_batch(
            len(step.select(data["train"])),
            step.trainer.batch_size,
            f"{kind}training rows",
            f"{place}trainer.batch_size",
        )
    if tune:
        require_batch(
            gold, cfg.teacher.trainer.batch_size, "labelled training rows", "teacher.trainer.batch_size"
        )
    if cfg.control:
        require_batch(
            gold, cfg.trainer.batch_size, "labelled training rows, for the control", "trainer.batch_size"
        )
    run = Run(cfg, folder, names, state, data, task, source, tune, by, steps, shared)
    if state.is_main_process:
        _write_environment(run)
    state.wait_for_everyone()
    return run


def _share_tokens(
    task: CausalLM,
    data: Data,
    teacher: Source,
    theirs: PreTrainedTokenizerBase,
    student: Source | None,
    ours: PreTrainedTokenizerBase,
    max_length: int,
    needed: bool,
) -> bool:
    """Whether teacher and student count the same tokens; and whatever is wrong with a row is found now.

    Args:
        student: its checkpoint; None: it is born from the teacher.
        needed: a loss compares what they say of the same token.

    Raises:
        DataError: of a row nothing counts.
        ModelError: they do not, and that is needed.
    """
    encoded = {name: task.encode(theirs, rows, max_length) for name, rows in data.splits.items()}
    if student is None:
        return True
    own = {name: task.encode(ours, rows, max_length) for name, rows in data.splits.items()}
    try:
        same_vocabulary(teacher.name, theirs, student.name, ours)
        for name, rows in data.splits.items():
            task.require_same(rows, encoded[name], own[name])
    except ModelError as error:
        if needed:
            raise ModelError(
                f"{error.message}; or let it learn what the teacher writes (rollout=teacher loss.soft_label.weight=0), or "
                "how sure the teacher is (loss=uld)"
            ) from None
        return False
    return True


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


def _temperature(losses: list[Loss]) -> float:
    """The temperature at which the teacher's top k are read.

    Raises:
        ConfigError: the terms have several.
    """
    found = {getattr(loss, "temperature", 1.0) for loss in losses if loss.needs_teacher} - {1.0}
    if len(found) > 1:
        raise ConfigError(
            f"the teacher's cache keeps its top tokens at one temperature, the loss terms have {sorted(found)}; give them "
            "one, or teacher.cache=false"
        )
    return found.pop() if found else 1.0


def _write_environment(run: Run) -> None:
    """env.json. A run that is continued must find the data and the models that it was begun with."""
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
        "teacher": _fingerprints(run.source),
        "student": _fingerprints(run.birth_by.source) if run.birth_by.source else None,
    }
    if not path.is_file():
        write_json(path, made_with)
        return
    before = json.loads(path.read_text(encoding="utf-8"))
    for part in ("dataset", "teacher", "student"):
        if before.get(part) != made_with[part]:
            raise DataError(f"the {part} is not the one that {run.folder} was begun with; start a new run")


def _fingerprints(source: Source) -> dict[str, Any]:
    return {
        "path": source.name,
        "commit": source.commit,
        "weights": source.weights_hash,
        "tokenizer": source.tokenizer_hash,
    }


# ---- the teacher -------------------------------------------------------------------------------------


def tuned_teacher(run: Run, stages: console.Stages) -> Source:
    """The teacher with a head for the task, fine-tuned on the gold labels if it needs to be, and then cached."""
    if not run.tune:
        stages.skip("teacher", "used as it is")
        return run.source
    cfg = run.cfg.teacher.trainer
    gold = run.data.gold
    made_of = {
        "what": "teacher tuned on gold labels",
        "task": run.cfg.dataset.kind,
        "weights": run.source.weights_hash,
        "tokenizer": run.source.tokenizer_hash,
        "labels": run.data.labels,
        "train": _content(gold),
        "validation": _content(run.data["validation"]),
        "max_length": run.cfg.dataset.max_length,
        "trainer": cfg.model_dump(exclude={"logging_steps", "report_to", "micro_batch_size"}),
        "bf16": fast_bf16(cfg.precision),
        "seed": run.cfg.seed,
        "torch": torch.__version__,
    }
    folder = cache_dir("teachers") / digest(made_of)[:32]
    source = Source(folder, run.source.name, run.source.commit, run.source.code)
    steps = planned_steps(cfg, len(gold))
    with _alone(run, folder):
        if (folder / "config.json").is_file():
            stages.skip("teacher", "tuned before, from the cache")
            return source
        with run.stage(stages, "teacher", steps) as progress:
            seed_everything(stage_seed(run.cfg.seed, "teacher"))
            model = with_new_head(run.source, run.task)
            tokenizer = load_tokenizer(run.source, model)
            train(
                Stage(
                    name="teacher",
                    folder=folder.with_suffix(".partial"),
                    out=folder,
                    distiller=Distiller(model, run.task, {"hard_label": HardLabel()}, {"hard_label": 1.0}),
                    tokenizer=tokenizer,
                    train=_split(run, gold, tokenizer),
                    validation=_split(run, run.data["validation"], tokenizer),
                    cfg=cfg,
                    steps=steps,
                    eval_steps=_eval_steps(cfg, len(gold)),
                    seed=stage_seed(run.cfg.seed, "teacher"),
                    progress=progress,
                    max_length=run.cfg.dataset.max_length,
                    metrics=run.folder / "metrics.jsonl",
                )
            )
            if run.state.is_main_process:
                write_json(folder / "kdcli.json", made_of)
            run.state.wait_for_everyone()
    return source


def _content(rows: datasets.Dataset) -> str:
    """A digest of a split's rows and labels: an id is a hash of all but the label."""
    return digest(list(rows["id"]), list(rows["label"]) if "label" in rows.column_names else [])


def open_teacher(run: Run, source: Source) -> Teacher:
    """The teacher, ready to answer."""
    teacher: Teacher = build(run.cfg.teacher, Teacher)
    teacher.open(source, run.task, run.cfg.dataset.max_length, run.cfg.teacher.trainer.precision)
    return teacher


def _asked(run: Run, source: Source) -> tuple[Any, ...]:
    """What determines all that a teacher says of a row."""
    cfg = run.cfg.teacher
    return (
        source.weights_hash,
        source.tokenizer_hash,
        cfg.target,
        cfg.arguments,
        run.data.labels,
        run.cfg.dataset.max_length,
        fast_bf16(cfg.trainer.precision),
        torch.__version__,
        run.task.chat,
    )


def rollouts(
    run: Run, stages: console.Stages, source: Source, ask: Callable[[], Teacher]
) -> datasets.Dataset:
    """The rows that the student learns from: the data's own, or (rollout=teacher) their prompts with the teacher's answers.

    The answers are kept in the cache, a few at a time, and stand in the run directory for people to read.
    """
    rows, how = run.data["train"], run.cfg.rollout
    if how.by != "teacher":
        return rows
    folder = cache_dir("rollouts") / digest(_asked(run, source), how.model_dump(), run.cfg.seed)[:32]
    answers: dict[int, list[str]] = {}
    with run.stage(stages, "rollouts", len(rows)) as progress, _alone(run, folder):
        for parts in shares(range(0, len(rows), PART), run.state):
            for start in parts:
                part = rows.select(range(start, min(start + PART, len(rows))))
                path = folder / f"{digest(list(part['id']))[:32]}.json"
                if not path.is_file():
                    write_json(path, ask().write(list(part), how, run.cfg.seed))
                answers[start] = json.loads(path.read_text(encoding="utf-8"))
                progress.update(sum(map(len, answers.values())))
    texts = [text for start in sorted(answers) for text in answers[start]]
    answered = datasets.Dataset.from_list(
        [run.task.answered(row, text) for row, text in zip(rows, texts, strict=True)]
    )
    if run.state.is_main_process:
        lines = [json.dumps(row, ensure_ascii=False) + "\n" for row in answered]
        write_text(run.folder / "rollouts.jsonl", "".join(lines))
    return answered


def teacher_signals(
    run: Run, stages: console.Stages, source: Source, ask: Callable[[], Teacher], train: datasets.Dataset
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
    taught = any(step.taught and not step.watched for step in run.steps)
    if not cfg.cache:
        stages.skip("signals", "asked for in every step")
        return dict.fromkeys(SPLITS if taught else SPLITS[1:], ask())
    temperature = _temperature(run.losses) if run.task.writes else 1.0
    made_by = _asked(run, source), (cfg.top_k, temperature) if run.task.writes else ()
    splits = run.data.splits | {"train": train}
    teachers: dict[str, Teacher] = {}
    if run.cfg.rollout.by == "student":
        teachers["train"] = ask()
    if not taught or run.cfg.rollout.by == "student":
        del splits["train"]
    before = 0
    with run.stage(stages, "signals", sum(map(len, splits.values()))) as progress:
        for split, rows in splits.items():
            folder = cache_dir("signals") / digest(made_by, list(rows["id"]))[:32]
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
    with filelock.FileLock(f"{folder}.lock") if run.state.is_main_process else nullcontext():
        run.state.wait_for_everyone()
        yield


# ---- the student and its control ---------------------------------------------------------------------


def birth(run: Run, teacher: Source) -> Source:
    """The untrained student, the same for student and control, as a directory."""
    folder = run.folder / "stages" / "born"
    if run.state.is_main_process and not folder.is_dir():
        seed_everything(stage_seed(run.cfg.seed, "birth"))
        model, tokenizer = run.birth_by.born(run.task, teacher, run.data["train"])
        with replaced(folder) as temporary:
            model.save_pretrained(temporary)
            tokenizer.save_pretrained(temporary)
    run.state.wait_for_everyone()
    return Source(folder, "the student", code=run.cfg.student.trust_remote_code)


def aligned(run: Run, teacher: Source, born: Source, signals: dict[str, Teacher]) -> dict[str, Teacher]:
    """The teacher at the student's positions, where their tokens are not the same."""
    assert isinstance(run.task, CausalLM)
    theirs, ours = load_tokenizer(teacher), load_tokenizer(born)
    max_length = run.cfg.dataset.max_length
    return {
        split: AlignedTeacher(inner, run.task, theirs, ours, max_length) for split, inner in signals.items()
    }


def require_same_pieces(run: Run, teacher: Source, born: Source, rows: datasets.Dataset) -> None:
    """Where a loss compares the models' inside token by token, both must cut every row into the same tokens.

    Raises:
        ModelError: they do not.
    """
    if not any(loss.inside for loss in run.losses):
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


def check_numbers(
    run: Run,
    teacher: Source,
    born: Source,
    signals: dict[str, Teacher],
    lessons: dict[str, Teacher],
    ask: Callable[[], Teacher],
    rows: datasets.Dataset,
) -> None:
    """The pre-flight, with the losses of every step."""
    validation = run.data["validation"]
    said, classes = _teacher_said(run, load_tokenizer(teacher), signals["validation"], validation)
    for step in run.steps:
        distiller, tokenizer = _distiller(run, born, step)
        chosen = step.select(rows)
        first = step is run.steps[0]
        comparable = first and run.shared and not run.birth_by.of_teacher
        preflight(
            distiller,
            tokenizer,
            said if first else None,
            classes,
            _lessons(step, lessons, ask),
            _split(run, chosen.select(range(min(1000, len(chosen)))), tokenizer),
            _split(run, validation, tokenizer) if comparable else None,
            bf16=fast_bf16(step.trainer.precision),
            lenient=run.cfg.smoke or step.trainer.max_steps is not None,
        )


def _lessons(step: Step, lessons: dict[str, Teacher], ask: Callable[[], Teacher]) -> Teacher | None:
    """Who answers for the training rows of a step: what is stored says nothing of the inside."""
    if step.watched:
        return ask()
    return lessons.get("train") if step.taught else None


def train_student(
    run: Run,
    stages: console.Stages,
    born: Source,
    lessons: dict[str, Teacher],
    ask: Callable[[], Teacher],
    rows: datasets.Dataset,
) -> int:
    """The student, taught by the teacher, step after step; returns its number of optimizer steps."""
    total = 0
    for step in run.steps:
        chosen = step.select(rows)
        steps = planned_steps(step.trainer, len(chosen))
        last = step is run.steps[-1]
        out = run.folder / "student" if last else run.folder / "stages" / "after" / step.name
        _train(
            run, stages, step, born, out, chosen, steps, _lessons(step, lessons, ask), lessons["validation"]
        )
        born = Source(out, "the student", code=born.code)
        total += steps
    return total


def train_control(run: Run, stages: console.Stages, born: Source, steps: int) -> None:
    """The same student with the gold labels alone: the same birth, seed and steps; rows without gold are left out."""
    step = Step("control", {"hard_label": HardLabel()}, {"hard_label": 1.0}, run.cfg.trainer)
    _train(run, stages, step, born, run.folder / "control", run.data.gold, steps)


def _train(
    run: Run,
    stages: console.Stages,
    step: Step,
    born: Source,
    out: Path,
    rows: datasets.Dataset,
    steps: int,
    teacher: Teacher | None = None,
    validation_teacher: Teacher | None = None,
) -> None:
    if out.is_dir():
        stages.skip(step.name, "trained before")
        return
    with run.stage(stages, step.name, steps) as progress:
        distiller, tokenizer = _distiller(run, born, step)
        seed = stage_seed(run.cfg.seed, "student" if step.name == "control" else step.name)
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
                teacher=teacher,
                rollout=run.cfg.rollout if step.taught and run.cfg.rollout.by == "student" else None,
                validation_teacher=validation_teacher if step.taught else None,
                metrics=run.folder / "metrics.jsonl",
                finish=run.birth_by.undress,
            )
        )
        run.state.wait_for_everyone()


def _distiller(run: Run, born: Source, step: Step) -> tuple[Distiller, Any]:
    seed_everything(stage_seed(run.cfg.seed, f"{step.name}: what is new"))
    model, _ = load_model(born, run.task)
    run.birth_by.dress(model)
    for loss in step.losses.values():
        loss.attach(model.config, load_config(run.source))
    return Distiller(model, run.task, step.losses, step.weights), load_tokenizer(
        born, model, run.cfg.dataset.max_length
    )


def _split(run: Run, rows: datasets.Dataset, tokenizer: Any) -> Split:
    return Split(rows, run.task.encode(tokenizer, rows, run.cfg.dataset.max_length))


def _eval_steps(cfg: TrainerConfig, rows: int) -> int:
    return cfg.eval_steps or max(1, rows // cfg.batch_size)


# ---- the comparison ----------------------------------------------------------------------------------


def evaluate(run: Run, teacher: Source, signals: dict[str, Teacher], stage: console.Stage) -> dict[str, Any]:
    """Score all models on the test split, measure them, and compare: report.json without its sentence."""
    task, max_length = run.task, run.cfg.dataset.max_length
    test = run.data["test"]
    folders = {"teacher": teacher.path}
    folders |= {name: run.folder / name for name in ("control", "student") if (run.folder / name).is_dir()}
    models: dict[str, dict[str, Any]] = {}
    said: dict[str, Predictions] = {}
    written: dict[str, list[str]] = {}
    trained = {"student": run.steps[-1].name}
    validation = {name: _best_validation(run, trained.get(name, name)) for name in folders}
    for done, (name, folder) in enumerate(folders.items()):
        stage.update(done, extra=name, total=len(folders))
        source = Source(folder, name, code=teacher.code)
        if name == "teacher" and not task.writes:  # its answers are there already
            tokenizer = load_tokenizer(source)
            said[name], _ = _teacher_said(run, tokenizer, signals["test"], test)
            before, _ = _teacher_said(run, tokenizer, signals["validation"], run.data["validation"])
            models[name] = size(source, task)
        else:
            model, tokenizer = opened(source, task, max_length)
            told = by_number(signals["test"], test) if name != "teacher" and run.shared else None
            models[name], said[name] = examine(source, model, tokenizer, task, test, max_length, told)
            if name == "teacher":  # it is run, as what was stored of it lacks rare tokens
                _, before = examine(source, model, tokenizer, task, run.data["validation"], max_length)
            if task.writes and run.cfg.measure is not None:
                written[name] = generate(model, tokenizer, task, test, max_length, run.cfg.measure)
            if not run.shared and name == "teacher":
                student = Source(run.folder / "student", "student")
                said[name] = in_tokens_of(task, said[name], student, test, max_length)
            del model  # before the next one is loaded
        if name == "teacher":
            validation[name] = float(task.scores(before)[task.metric])
        save_predictions(run.folder / "predictions" / f"test.{name}.safetensors", said[name])
        models[name] |= score(task, said[name])
        if isinstance(task, CausalLM) and name in written:
            references = [row["reference"] for row in task.shown(test)]
            models[name]["scores"] |= text_scores(written[name], references)
        models[name] |= measure_rows(
            run.cfg.measure, "torch", folder, folder, task, task.inputs(test, tokenizer), max_length,
            code=teacher.code,
        )  # fmt: skip
    models["teacher"]["path"] = str(teacher.path)
    shown = (
        {"test_tokens": len(said["student"].labels), "generations": _generations(task, test, written)}
        if isinstance(task, CausalLM)
        else {}
    )
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
            "validation": len(run.data["validation"]),
            "test": len(test),
            "fingerprint": run.data.fingerprint,
        },
        "loss": _terms(run.cfg),
        "stages": json.loads((run.folder / "stages.json").read_text()),
        "validation_score": validation,
        "models": models,
        "verdict": verdict(run.task, models, said, run.shared),
    }


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
    extra = run.names | {"base_model": base, "kdcli_version": kdcli.__version__}
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


def _teacher_said(
    run: Run, tokenizer: PreTrainedTokenizerBase, teacher: Teacher, rows: datasets.Dataset
) -> tuple[Predictions, int]:
    """The teacher's answers on rows, at its own positions, and its number of classes.

    Args:
        tokenizer: the teacher's.
    """
    encoded = run.task.encode(tokenizer, rows, run.cfg.dataset.max_length)
    signal = teacher.signals(list(rows))
    return run.task.told(signal, encoded), signal.classes


def _best_validation(run: Run, name: str) -> float | None:
    """The best validation score that metrics.jsonl holds of a stage."""
    path = run.folder / "metrics.jsonl"
    lines = (
        [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()] if path.is_file() else []
    )
    return max(
        (line["eval/score"] for line in lines if line["stage"] == name and "eval/score" in line), default=None
    )
