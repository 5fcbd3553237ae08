"""Estimates the cost of a run before it starts: rows, optimizer steps, time and disk of each phase."""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import datasets
import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from kdcli.config.seeds import with_seed
from kdcli.config.trainer import Trainer as TrainerConfig
from kdcli.data.splits import SPLITS
from kdcli.errors import KDError
from kdcli.measure.spec import PASSES
from kdcli.models.checkpoint import (
    Checkpoint,
    load_ready,
    load_tokenizer,
    trainable,
    with_new_head,
)
from kdcli.models.dtypes import TORCH, weight_count
from kdcli.pipeline.cost_plan import CostPlan, PhaseCost
from kdcli.pipeline.keys import TeacherOutputs, TunedTeacher, cache_path
from kdcli.pipeline.placement import FLOPS, pass_seconds
from kdcli.pipeline.plan import OWN, STUDENT, Run, is_online
from kdcli.pipeline.remote import estimated_queries
from kdcli.pipeline.validate import storing_temperature
from kdcli.teachers.cached import SHARD
from kdcli.training.batches import micro_batches
from kdcli.training.length import eval_steps, planned_steps
from kdcli.training.probe import BATCHES, Probe, probe, undisturbed

logger = logging.getLogger(__name__)
PROBED_ROWS = 256
"""The number of training rows from which the batches of a probe are taken."""
LARGE, SMALL = 32, 8
"""The maximum number of rows in a probe's batch: in a dry run, and before training."""
AFFORDABLE = 2.0
"""The number of seconds that the probe of a model may take before training, by a cautious estimate."""
LIMIT = 20.0
"""The number of seconds that the passes of a probe take in a dry run, and that a model is loaded in for it."""
LOADED = 1e8
"""The number of weights that are loaded in a second."""
WEIGHT = 4
"""The bytes of a weight in fp32."""
OPTIMIZER_BYTES = 8
"""The bytes of AdamW's state for each trained weight in fp32."""
START = 5.0
"""The seconds that a process takes to start and to load the model that it measures."""


@dataclass
class _Probes:
    """The probes of the models of a run, each made once.

    Attributes:
        dry: whether the probes may take long.
    """

    dry: bool
    of_teachers: dict[str, Probe | None] = field(default_factory=dict)
    of_trainees: dict[str, Probe | None] = field(default_factory=dict)

    def teacher(self, run: Run) -> Probe | None:
        """Return what the teacher of a part costs; None: not known."""
        if run.teacher_key not in self.of_teachers:
            self.of_teachers[run.teacher_key] = self._teacher(run)
        return self.of_teachers[run.teacher_key]

    def student(self, run: Run) -> Probe | None:
        """Return what the model of a part costs; None: not known."""
        if run.trainee not in self.of_trainees:
            self.of_trainees[run.trainee] = self._student(run)
        return self.of_trainees[run.trainee]

    def _teacher(self, run: Run) -> Probe | None:
        source, cfg = run.sources[0], run.cfg.teacher.trainer
        if run.remote is not None or run.streamed or not (batch := self._batch(run, source, cfg)):
            return None
        tunes = run.tunes(source)
        try:
            with undisturbed():
                model = with_new_head(trainable(source), run.task) if tunes else load_ready(source, run.task)
            rows = _few(run.data.gold if tunes else run.data["train"])
            tokenizer = load_tokenizer(source, model)
            return probe(model, tokenizer, run.task, rows, run.max_length, cfg, batch, tunes, LIMIT)
        except (KDError, OSError, RuntimeError, ValueError) as error:
            logger.debug("the teacher is not probed: %s", error)
            return None

    def _student(self, run: Run) -> Probe | None:
        cfg = run.phases[0].trainer
        batch = self._batch(run, run.initializer.source or run.sources[0], cfg)
        if not batch:
            return None
        try:
            rows = _few(run.data["train"])
            with undisturbed():
                model, tokenizer = _untrained(run, rows)
                torch.nn.Module.to(model, TORCH[run.cfg.student.dtype])
                run.initializer.prepare_for_training(model)
            return probe(model, tokenizer, run.task, rows, run.max_length, cfg, batch, True, LIMIT)
        except (KDError, OSError, RuntimeError, ValueError) as error:
            logger.debug("the student is not probed: %s", error)
            return None

    def _batch(self, run: Run, source: Checkpoint, cfg: TrainerConfig) -> int:
        """Return the number of rows in a batch of the probe of a checkpoint, or of a smaller model; 0: it takes too long, or the checkpoint does not
        exist yet."""
        if not source.path.is_dir() or source.code:
            return 0
        weights = _weights(source)
        lengths = run.encode(load_tokenizer(source), run.data["validation"]).lengths
        tokens = float(lengths.mean()) if len(lengths) else 0.0
        # 2 operations per weight and token in a forward pass, 6 in a training step
        passes = (BATCHES + 1) * 8
        loading = weights / LOADED
        seconds = passes * weights * SMALL * tokens / (FLOPS * torch.get_num_threads()) + loading
        if loading > LIMIT if self.dry else seconds >= AFFORDABLE:
            return 0
        return min(micro_batches(cfg, run.state.num_processes)[0], LARGE if self.dry else SMALL)


def _untrained(run: Run, rows: datasets.Dataset) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Return a model of the student's architecture and its tokenizer. Its weights are random where its size is known before it is initialised, since
    computing which of the teacher's weights it inherits may take long."""
    source = run.initializer.source or run.sources[0]
    skeleton = run.initializer.skeleton(run.task, run.sources[0], run.skeleton(source))
    if skeleton is None or run.initializer.quantization_base is not None:
        return run.initializer.initialize(run.task, run.sources[0], rows)
    model = run.task.create(skeleton.config)
    return model, load_tokenizer(source, model)


def _few(rows: datasets.Dataset) -> datasets.Dataset:
    """Return the rows of a probe."""
    return rows.select(range(min(PROBED_ROWS, len(rows))))


def plan_cost(parts: Sequence[Run], dry: bool) -> CostPlan:
    """Return the cost of a run. Time is measured on a few batches of each model, as far as that is quick, or in a dry run.

    Args:
        parts: the run's, in their order.
        dry: whether it may take as long as it needs.
    """
    run, probes = parts[-1], _Probes(dry)
    phases: list[PhaseCost] = []
    prepared: set[str] = set()
    again: list[PhaseCost] = []
    for part in parts:
        if part.teacher_key not in prepared:
            phases += _teacher_phases(part, probes.teacher(part))
        prepared.add(part.teacher_key)
        trained = [_student_phase(part, index, probes) for index in range(len(part.phases))]
        phases += trained
        again += trained if part.trainee == STUDENT else []
    control = _control_phases(parts, probes) if run.cfg.control else []
    phases += control
    for seed in run.cfg.all_seeds[1:]:
        phases += [replace(phase, name=with_seed(phase.name, seed)) for phase in [*again, *control]]
    phases.append(PhaseCost("evaluate", len(run.data["test"]), seconds=_evaluation_seconds(run, probes)))
    splits = {split: len(run.data[split]) for split in SPLITS} | {"labelled": len(run.data.gold)}
    endpoint, queries = (
        ("", {}) if run.remote is None else (run.remote.name, estimated_queries(run, run.remote))
    )
    return CostPlan(splits, phases, run.memory, _disk(run, probes), endpoint, queries)


def _teacher_phases(run: Run, teacher: Probe | None) -> list[PhaseCost]:
    """Estimate the phases that prepare the teacher's data."""
    phases, rows, gold = [], len(run.data["train"]), len(run.data.gold)
    is_remote = run.remote is not None and run.teacher_key == OWN
    if augment := run.cfg.dataset.augment:
        phases.append(PhaseCost(run.stage_name("augment"), gold * augment.copies, at_most=True))
    for member, source in enumerate(() if is_remote else run.sources):
        phases.append(_tuning(run, member, source, teacher))
    if run.cfg.rollout.source == "teacher":
        texts = (rows + run.cfg.rollout.expand) * run.cfg.rollout.answers
        phases.append(PhaseCost(run.stage_name("rollouts"), texts))
    if is_remote and run.task.writes and run.scorer is None:
        return phases
    name = run.stage_name("teacher outputs")
    if not is_remote and not run.cfg.teacher.cache:
        return [*phases, PhaseCost(name, 0, seconds=0.0, note="in every step")]
    total = _student_rows(run) + sum(len(run.data[split]) for split in SPLITS[1:])
    if (not is_remote or run.scorer) and are_stored(run):
        return [*phases, PhaseCost(name, total, seconds=0.0, note="stored before")]
    seconds = (
        None if teacher is None else len(run.sources) * total * teacher.forward / run.state.num_processes
    )
    if run.streamed:
        source, splits = run.sources[0], run.data.splits.values()
        tokenizer = load_tokenizer(source)
        tokens = sum(int(run.encode(tokenizer, rows).lengths.sum()) for rows in splits)
        seconds = pass_seconds(_weights(source), tokens, _weights(source) * WEIGHT)
    return [*phases, PhaseCost(name, total, at_most=run.streamed or _may_be_fewer(run), seconds=seconds)]


def _tuning(run: Run, member: int, source: Checkpoint, teacher: Probe | None) -> PhaseCost:
    name, gold = run.tuning_stage(member), len(run.data.gold)
    if run.teacher_key in run.cfg.stages and run.cfg.stages[run.teacher_key].student is not None:
        return PhaseCost(name, 0, seconds=0.0, note="an assistant")
    if not run.tunes(source):
        return PhaseCost(name, 0, seconds=0.0, note="used as it is")
    if cache_path(TunedTeacher.of(run, member)).is_dir():
        return PhaseCost(name, gold, seconds=0.0, note="tuned before")
    return _training(run, name, run.cfg.teacher.trainer, gold, teacher)


def are_stored(run: Run) -> bool:
    """Return whether the cache has the outputs of all splits; those of rows that are not written yet are not there."""
    if _may_be_fewer(run) or run.cfg.rollout.source == "student":
        return False
    if any(not source.path.is_dir() or run.tunes(source) for source in run.sources):
        return False
    stored = run.task.vocabulary or len(run.sources) > 1
    temperature = storing_temperature(run) if stored else 1.0
    for split in SPLITS if run.teacher_key == OWN else SPLITS[:2]:
        folder = cache_path(TeacherOutputs.of(run, run.sources, run.data[split], temperature))
        if len(list(folder.glob("*.safetensors"))) < math.ceil(len(run.data[split]) / SHARD):
            return False
    return True


def _may_be_fewer(run: Run) -> bool:
    """Return whether the number of the student's training rows is known only once they are written."""
    return run.cfg.dataset.augment is not None or run.cfg.rollout.source == "teacher"


def _student_rows(run: Run) -> int:
    """Return the training rows of a part's model, at most."""
    rows = len(run.data["train"])
    if run.cfg.dataset.augment is not None:
        rows += len(run.data.gold) * run.cfg.dataset.augment.copies
    if run.cfg.rollout.source == "teacher":
        rows = math.ceil(
            (rows + run.cfg.rollout.expand) * run.cfg.rollout.answers * run.cfg.rollout.keep_fraction
        )
    return rows


def _student_phase(run: Run, index: int, probes: _Probes) -> PhaseCost:
    phase, rows = run.phases[index], _student_rows(run)
    if phase.rows != "all":
        rows = len(phase.select(run.data["train"]))
    teacher = probes.teacher(run) if is_online(run, phase) and run.remote is None else None
    further = None if teacher is None else teacher.forward
    return _training(run, phase.name, phase.trainer, rows, probes.student(run), further, _may_be_fewer(run))


def _control_phases(parts: Sequence[Run], probes: _Probes) -> list[PhaseCost]:
    """Return the phases of the control, which take at most as many steps as all phases of the student together."""
    run, spec = parts[-1], parts[-1].cfg.dataset.spec
    gold, student = len(run.data.gold), probes.student(parts[-1])
    own = [part for part in parts if part.trainee == STUDENT]
    trained = [(part, phase) for part in own for phase in part.phases]
    steps = [
        planned_steps(phase.trainer, len(phase.select(part.data["train"])), spec)
        for part, phase in trained
        if phase.quantization is None
    ]
    is_fixed = all(phase.trainer.is_fixed for _, phase in trained)
    trainer = run.cfg.trainer.model_copy(
        update={"max_steps": sum(steps), "until": "steps" if is_fixed else "converged"}
    )
    costs = [_training(run, "control", trainer, gold, student)]
    if run.quantization is not None:
        costs.append(_training(run, "control/quantized", run.phases[-1].trainer, gold, student))
    return costs


def _training(
    run: Run,
    name: str,
    trainer: TrainerConfig,
    rows: int,
    model: Probe | None,
    further: float | None = None,
    fewer: bool = False,
) -> PhaseCost:
    """Estimate the training of a model.

    Args:
        further: the seconds that the teacher takes for a row in each step.
        fewer: whether the number of rows is an upper bound.
    """
    steps = planned_steps(trainer, rows, run.cfg.dataset.spec)
    at_most = fewer or not trainer.is_fixed
    if model is None or model.step is None:
        return PhaseCost(name, rows, steps, at_most)
    of_row = (model.step + (further or 0.0)) / run.state.num_processes
    validations = math.ceil(steps / eval_steps(trainer, rows))
    seconds = steps * trainer.batch_size * of_row
    seconds += validations * len(run.data["validation"]) * model.forward / run.state.num_processes
    return PhaseCost(name, rows, steps, at_most, seconds)


def _evaluation_seconds(run: Run, probes: _Probes) -> float | None:
    """Estimate the seconds of the evaluation; None: they are not known. Models that write texts are never estimated."""
    teacher, student = probes.teacher(run), probes.student(run)
    if student is None or run.task.writes or (teacher is None and run.remote is None):
        return None
    rows, models = len(run.data["test"]), 2 if run.cfg.control else 1
    seconds = models * rows * student.forward
    if (measure := run.cfg.measure) is None:
        return seconds
    settings, alone = measure.settings, models > 1 and measure.mode == "full"
    timed = [student, *([student] if alone else []), *([teacher] * len(run.sources) if teacher else [])]
    for model in timed:
        texts = min(settings["max_texts"], rows)
        passes = PASSES * len(settings["batch_sizes"]) * texts * model.forward
        latency = settings["latency_runs"] * model.forward
        seconds += START + latency + max(passes, settings["throughput_seconds"])
    return seconds


def _weights(source: Checkpoint) -> int:
    """Return the number of weights of a checkpoint, by its files; 0: it does not exist yet."""
    return weight_count(source.path)


def _tuned(run: Run) -> list[Checkpoint]:
    """Return the checkpoints that are tuned before the student is trained. An assistant, which is made in the run, is not."""
    return [source for source in run.sources if source.path.is_dir() and run.tunes(source)]


def _disk(run: Run, probes: _Probes) -> int | None:
    """Estimate the maximum number of bytes on disk at one time: the tuned teacher, its outputs, two checkpoints with optimizer states, student and
    control. None: the student's size is not known yet."""
    if (student := probes.student(run)) is None:
        return None
    checkpoints = 2 * (WEIGHT + OPTIMIZER_BYTES)
    of_teacher = sum(map(_weights, _tuned(run)))
    models = (1 + run.cfg.control + (run.quantization is not None)) * len(run.cfg.all_seeds)
    results = of_teacher * WEIGHT + _output_bytes(run) + models * student.parameters * WEIGHT
    return results + max(checkpoints * student.parameters, checkpoints * of_teacher)


def _output_bytes(run: Run) -> int:
    """Estimate the bytes of the teacher's stored outputs; 0: none are stored, or the teacher is an assistant, which does not exist yet."""
    if (
        (run.remote is not None and run.scorer is None)
        or not run.cfg.teacher.cache
        or not run.sources[0].path.is_dir()
    ):
        return 0
    tokenizer = load_tokenizer(run.sources[0])
    train, *others = (len(run.task.targets(run.encode(tokenizer, run.data[split]))[0]) for split in SPLITS)
    positions = math.ceil(train * _student_rows(run) / max(1, len(run.data["train"]))) + sum(others)
    if not run.task.vocabulary:
        return positions * len(run.task.labels) * WEIGHT
    of_token = 3.5 if len(tokenizer) <= 2**16 else 4.0
    return positions * math.ceil(of_token * run.cfg.teacher.top_k + 2)
