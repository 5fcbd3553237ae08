"""Plans the memory of a run before anything is loaded, and refuses a run that does not fit, with the keys that make it fit."""

from __future__ import annotations

import copy
import dataclasses
import functools
import logging
import os
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
from accelerate import PartialState
from accelerate.utils import gather_object
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from kdcli.config.components import locate
from kdcli.config.trainer import SHARDED_OPTIMIZERS
from kdcli.config.trainer import Trainer as TrainerConfig
from kdcli.config.types import Dtype, Quantization
from kdcli.data.splits import SPLITS
from kdcli.device import device_free_memory, has_gpu
from kdcli.errors import ConfigError, listed
from kdcli.memory import free_swap
from kdcli.models.checkpoint import Checkpoint, fast_bf16, load_config, load_tokenizer
from kdcli.models.device_map import SHARE
from kdcli.models.dtypes import TORCH, is_supported, stored_dtype, weight_count
from kdcli.models.weight_only import divide, require_quantizable
from kdcli.numbers import format_bytes
from kdcli.pipeline.cost import are_stored
from kdcli.pipeline.keys import TunedTeacher, cache_path
from kdcli.pipeline.memory_plan import MemoryPlan, PhaseMemory, Remedy
from kdcli.pipeline.placement import obstacle, obstacle_to_dividing
from kdcli.pipeline.plan import OWN, STUDENT, Phase, Run, is_online
from kdcli.signals import Part
from kdcli.teachers.cached import SHARD
from kdcli.teachers.local import LocalTeacher
from kdcli.training.arguments import require_optimizer
from kdcli.training.batches import micro_batches
from kdcli.training.distiller import Distiller
from kdcli.training.memory import Activations, StepMemory, count_activations, step_memory
from kdcli.training.trainer import freeze, set_dropout

logger = logging.getLogger(__name__)
BATCH = 64
"""The rows of a batch of a teacher without the argument `batch_size`."""
QUANTIZED: dict[Quantization, float] = {"int8": 1.0, "int4": 0.5, "nf4": 0.5}
"""The bytes of a quantized weight, without scales. The type with the smallest error comes first."""
STORED = 12
"""The bytes of a stored token and its log-probability before they are packed."""
Parts = Sequence[Run]
Change = Callable[[Parts], list[Run]]


def plan_memory(parts: Parts) -> MemoryPlan:
    """Return the memory that a run takes. Shapes come from configs and the headers of weight files; no weights are loaded."""
    return _Planner(_free(parts[-1].state)).plan(parts)


def require_memory(parts: Parts, plan: MemoryPlan) -> None:
    """Refuse a run of which weights, gradients, optimizer state and teacher alone do not fit into what is free; warn of one that may not fit.

    Raises:
        ConfigError: with the keys that make it fit, in the order of what they cost.
    """
    if plan.free is None or not (exceeding := plan.exceeding(plan.free)):
        return
    worst = max(exceeding, key=lambda phase: phase.least)
    most = plan.free if plan.on_gpu else plan.free + free_swap() // _local_processes()
    remedies, fits = _Planner(plan.free).remedies(parts, plan)
    remedy = (
        f"{'these keys make it fit' if fits else 'these keys lower it'}: {listed(map(str, remedies), 500)}"
    )
    if not fits:
        more = f"; take a smaller model, or a machine with more {plan.kind}"
        remedy = remedy + more if remedies else f"no key lowers it{more}"
    if worst.least > most:
        raise ConfigError(
            f"the run does not fit: {worst.name} needs at least {format_bytes(worst.least)} of {plan.kind} ({worst.composition}), and "
            f"{format_bytes(plan.free)} are free; {remedy}"
        )
    worst = max(exceeding, key=lambda phase: phase.peak)
    logger.warning(
        "the run may not fit: %s takes about %s of %s, and %s are free; %s",
        worst.name, format_bytes(worst.peak), plan.kind, format_bytes(plan.free), remedy,
    )  # fmt: skip


def _free(state: PartialState) -> int | None:
    """Return the memory that each process can take, the same in all of them, so that all decide the same."""
    free = device_free_memory()
    if free is not None and not has_gpu():
        free //= _local_processes()
    every = gather_object([free]) if state.num_processes > 1 else [free]
    return min((size for size in every if size is not None), default=None)


def _local_processes() -> int:
    """Return how many processes share the memory of this machine."""
    return int(os.environ.get("LOCAL_WORLD_SIZE", "1"))


@dataclasses.dataclass
class _Planner:
    """Computes plans. A model is built, and what it keeps for a batch is counted, once.

    Attributes:
        free: the memory that is free.
    """

    free: int | None
    counted: dict[tuple[Any, ...], Activations] = dataclasses.field(default_factory=dict)
    students: dict[tuple[Any, ...], PreTrainedModel | None] = dataclasses.field(default_factory=dict)

    def plan(self, parts: Parts) -> MemoryPlan:
        """Return the plan of a run. Phases whose memory cannot be told, such as those of a model with code of its own, are not in it."""
        phases: list[PhaseMemory] = []
        prepared: set[str] = set()
        trained: dict[str, int] = {}
        for part in parts:
            jobs: list[Callable[[], PhaseMemory | None]] = []
            if part.teacher_key not in prepared:
                jobs += self._teacher_phases(part, trained)
            prepared.add(part.teacher_key)
            jobs += self._student_phases(part, trained)
            for job in jobs:
                try:
                    phase = job()
                except Exception as error:  # code of a checkpoint or of the user may raise any
                    logger.debug("the memory of a phase is not known: %s", error)
                    continue
                if phase is not None:
                    phases.append(phase)
        run = parts[-1]
        return MemoryPlan(phases, self.free, has_gpu(), run.state.num_processes)

    # ---- phases ----------------------------------------------------------------------------------------

    def _teacher_phases(
        self, run: Run, trained: dict[str, int]
    ) -> Iterator[Callable[[], PhaseMemory | None]]:
        if _is_remote(run):
            return
        for member, source in enumerate(run.sources):
            if run.tunes(source):
                yield functools.partial(self._tuning, run, member, source)
        yield functools.partial(self._outputs, run, trained)

    def _tuning(self, run: Run, member: int, source: Checkpoint) -> PhaseMemory | None:
        cfg = run.cfg.teacher.trainer
        model = run.skeleton(source).train()
        step = self._step(run, model, cfg, (run.teacher_key, "tuned", member), source)
        planned = _phase(run.tuning_stage(member), step, cfg)
        return (
            None if self._exceeds(planned) and cache_path(TunedTeacher.of(run, member)).is_dir() else planned
        )

    def _outputs(self, run: Run, trained: dict[str, int]) -> PhaseMemory | None:
        """Return the phase in which the teacher's outputs are stored, or in which it writes texts."""
        name = run.stage_name("teacher outputs")
        if not run.cfg.teacher.cache:
            return None
        weights = _teacher_bytes(run, trained)
        work = self._forward(run, run.cfg.teacher.arguments.get("batch_size", BATCH), SPLITS)
        if run.task.vocabulary:  # the outputs of the rows that are written together
            _, counts = run.task.targets(run.encode(load_tokenizer(run.sources[0]), run.data["train"]))
            work += int(counts[:SHARD].sum()) * STORED * run.cfg.teacher.top_k
        planned = PhaseMemory(name, weights + work, weights, teacher=weights, activations=work)
        if run.streamed:
            planned = PhaseMemory(name, min(planned.peak, int(run.cfg.teacher.memory_bound)))
        return None if self._exceeds(planned) and not run.task.writes and are_stored(run) else planned

    def _exceeds(self, phase: PhaseMemory) -> bool:
        """Return whether a phase may not fit. Only then are its results looked up in the cache, since the keys are hashes of all weights."""
        return self.free is not None and phase.peak > self.free

    def _student_phases(
        self, run: Run, trained: dict[str, int]
    ) -> Iterator[Callable[[], PhaseMemory | None]]:
        if run.initializer.reads_teacher and run.initializer.source is None and not has_gpu():
            yield functools.partial(self._initialization, run)
        for phase in run.phases:
            yield functools.partial(self._training, run, phase, trained)
        if run.trainee == STUDENT and run.cfg.control and run.teacher_key == OWN:
            control = dataclasses.replace(run.phases[-1], name="control", losses={}, trainer=run.cfg.trainer)
            yield functools.partial(self._training, run, control, trained)

    def _initialization(self, run: Run) -> PhaseMemory | None:
        """Return the phase in which the student is made of the teacher's weights, which are read in fp32."""
        teacher = weight_count(run.sources[0].path) * torch.float32.itemsize
        student, _ = self._student(run, run.phases[0])
        if student is None or not teacher:
            return None
        own = sum(weight.numel() for weight in student.parameters())
        size = own * torch.float32.itemsize
        least = teacher if run.initializer.at_most else teacher + size
        name = f"initial {run.trainee}"
        return PhaseMemory(name, teacher + size, least, size, teacher=teacher, parameters=own)

    def _training(self, run: Run, phase: Phase, trained: dict[str, int]) -> PhaseMemory | None:
        student, key = self._student(run, phase)
        if student is None:
            return None
        cfg, source = phase.trainer, run.initializer.source or run.sources[0]
        parts = _features(phase)
        step = self._step(run, student, cfg, key, source)
        trained[run.trainee] = step.weights
        teacher, work = 0, 0
        if not _is_remote(run) and is_online(run, phase):
            teacher = _teacher_bytes(run, trained)
            rows = micro_batches(cfg, run.state.num_processes)[0]
            work = self._forward(run, rows, SPLITS[:1], ("relations" in parts) * 3 + bool(parts))
        base = run.initializer.quantization_base
        saved = _quantized_bytes(run, source, base, next(student.parameters()).element_size())
        planned = _phase(phase.name, step, cfg, teacher, work)
        planned = dataclasses.replace(
            planned,
            weights=planned.weights - saved,
            least=max(0, planned.least - saved),
            peak=planned.peak - saved,
        )
        inherits = run.teacher_key != OWN and run.initializer.reads_teacher  # an assistant may be smaller
        features = bool(parts) and all(
            loss.features for loss in phase.losses.values()
        )  # the head has no gradient
        if run.initializer.at_most or inherits or features:
            return dataclasses.replace(planned, least=0)
        return planned

    # ---- sizes -----------------------------------------------------------------------------------------

    def _student(self, run: Run, phase: Phase) -> tuple[PreTrainedModel | None, tuple[Any, ...]]:
        """Return the student without weights as it is trained in a phase, and what distinguishes it; None: its size is not known yet."""
        cfg, is_eager = phase.trainer, "attentions" in _features(phase)
        key = (
            run.trainee,
            is_eager,
            phase.quantization is not None,
            tuple(cfg.freeze),
            cfg.dropout,
            run.cfg.student.dtype,
        )
        if key not in self.students:
            source = run.initializer.source or run.sources[0]
            student = run.initializer.skeleton(run.task, run.sources[0], run.skeleton(source))
            if student is not None:
                torch.nn.Module.to(student, TORCH[run.cfg.student.dtype])
                _prepare(run, phase, student, is_eager)
            self.students[key] = student
        return self.students[key], key

    def _step(
        self, run: Run, model: PreTrainedModel, cfg: TrainerConfig, key: tuple[Any, ...], source: Checkpoint
    ) -> StepMemory:
        """Return the memory of a training step of a model.

        Args:
            key: distinguishes the model.
            source: the checkpoint with its tokenizer.
        """
        processes = run.state.num_processes
        micro, accumulated = micro_batches(cfg, processes)
        bf16 = fast_bf16(cfg.precision)
        activations = self._count(run, model, source, micro, SPLITS[:1], (*key, bf16), bf16)
        return step_memory(model, activations, cfg, processes, accumulated > 1)

    def _forward(self, run: Run, rows: int, splits: Sequence[str], states: int = 0) -> int:
        """Return what a forward pass of the teacher takes beyond its weights: one layer at a time, and the head.

        Args:
            states: how many hidden states of each layer are held for losses.
        """
        source = run.sources[0]
        model = torch.nn.Module.to(run.skeleton(source), TORCH[source.dtype]).eval()
        bf16 = source.dtype == "fp32" and fast_bf16(run.cfg.teacher.trainer.precision)
        activations = self._count(run, model, source, rows, splits, (run.teacher_key, "forward", bf16), bf16)
        return activations.work + activations.head + states * sum(activations.inputs)

    def _count(
        self,
        run: Run,
        model: PreTrainedModel,
        source: Checkpoint,
        rows: int,
        splits: Sequence[str],
        key: tuple[Any, ...],
        bf16: bool,
    ) -> Activations:
        key = (*key, rows, next(model.parameters()).dtype)
        if key not in self.counted:
            tokenizer = load_tokenizer(source, model)
            batch = [_longest_row(run, tokenizer, splits)] * rows
            self.counted[key] = count_activations(model, run.task, batch, tokenizer, bf16, has_gpu())
        return self.counted[key]

    # ---- remedies --------------------------------------------------------------------------------------

    def remedies(self, parts: Parts, plan: MemoryPlan) -> tuple[list[Remedy], bool]:
        """Return the keys that lower the memory, those that cost least first, and whether the run fits with them.

        The plan is computed again with each key, added to those before it, until the run fits. Then keys that are not needed are left out,
        those that cost most first.
        """
        assert plan.free is not None
        chosen: dict[str, tuple[str, Change]] = {}
        current = plan
        for key, value, change in _candidates(parts):
            if not current.exceeding(plan.free):
                break
            others = {name: given for name, given in chosen.items() if name != key}
            trial = others | {key: (value, change)}
            planned = self.plan(_changed(parts, trial))
            if _saved(current, planned, plan.free) > 0:
                chosen, current = trial, planned
        fits = not current.exceeding(plan.free)
        for key in reversed(list(chosen)) if fits else ():
            others = {name: given for name, given in chosen.items() if name != key}
            if not self.plan(_changed(parts, others)).exceeding(plan.free):
                chosen = others
        result, before = [], plan
        for count, (key, (value, _)) in enumerate(chosen.items(), 1):
            planned = self.plan(_changed(parts, dict(list(chosen.items())[:count])))
            result.append(Remedy(f"{key}={value}", _saved(before, planned, plan.free)))
            before = planned
        return result, fits


def _changed(parts: Parts, chosen: dict[str, tuple[str, Change]]) -> list[Run]:
    for _, change in chosen.values():
        parts = change(parts)
    return list(parts)


def _saved(before: MemoryPlan, after: MemoryPlan, free: int) -> int:
    """Return the most bytes that a change of the plan saves in a phase that takes more than is free. The later plan may lack the phase."""
    peaks = {phase.name: phase.peak for phase in after.phases}
    return max((phase.peak - peaks.get(phase.name, 0) for phase in before.exceeding(free)), default=0)


def _candidates(parts: Parts) -> Iterator[tuple[str, str, Change]]:
    """Yield keys that may lower the memory, with their values: first those that change no result, then those that change the teacher's outputs, then those
    that change how the student learns."""
    run, processes = parts[-1], parts[-1].state.num_processes
    teacher, is_local = run.cfg.teacher, run.remote is None
    trainers: list[tuple[str, TrainerConfig, Callable[..., Change]]] = [
        ("trainer", run.phases[-1].trainer, _trainer)
    ]
    if any(map(run.tunes, run.sources)):
        trainers.append(("teacher.trainer", teacher.trainer, _tuner))
    stored: Dtype = stored_dtype(run.sources[0].path) if is_local else "fp32"
    half: Dtype = "bf16" if stored == "fp32" else stored
    is_quantized = teacher.quantization is not None
    has_dtype = is_local and not is_quantized and run.sources[0].dtype == "fp32" and is_supported(half)
    if has_dtype and stored != "fp32":
        yield "teacher.dtype", half, _teacher_dtype(half)
    for key, cfg, change in trainers:
        for rows in _halves(cfg.batch_size // processes, micro_batches(cfg, processes)[0]):
            yield f"{key}.micro_batch_size", str(rows), change(micro_batch_size=rows)
    if is_local and issubclass(locate(teacher.target), LocalTeacher):
        for rows in (rows for rows in (16, 4, 1) if rows < teacher.arguments.get("batch_size", BATCH)):
            yield "teacher.batch_size", str(rows), _teacher(batch_size=rows)
    for key, cfg, change in trainers:
        if not cfg.gradient_checkpointing:
            yield f"{key}.gradient_checkpointing", "true", change(gradient_checkpointing=True)
        if processes > 1 and not cfg.fsdp and cfg.optimizer in SHARDED_OPTIMIZERS:
            yield f"{key}.fsdp", "full_shard", change(fsdp="full_shard")
    if is_local and not teacher.cache:
        yield "teacher.cache", "true", _teacher(cache=True)
    is_cut = run.initializer.reads_teacher and run.initializer.source is None
    can_stream = is_local and not run.streamed and not is_quantized and not is_cut and not obstacle(run)
    if can_stream:
        yield "teacher.placement", "streamed", _streamed
    if has_dtype and stored == "fp32":
        yield "teacher.dtype", half, _teacher_dtype(half)
    if is_local and not run.streamed and not is_quantized and not can_stream:
        kinds = [kind for kind in QUANTIZED if _is_quantizable(run, kind)]
        for kind in kinds:
            yield "teacher.quantization", kind, _teacher(quantization=kind)
        if not kinds and not run.sources[0].divided and not obstacle_to_dividing(run):
            yield "teacher.placement", "device_map", _divided  # it reads weights in each step
    replaced = [each for each in trainers if not each[1].fsdp and each[1].optimizer.startswith("adamw_torch")]
    for optimizer in ("adamw_torch_8bit", "adafactor"):
        for key, cfg, change in replaced:
            if _is_installed(cfg, optimizer):
                yield f"{key}.optimizer", optimizer, change(optimizer=optimizer)
        if optimizer == "adamw_torch_8bit" and run.cfg.student.dtype == "fp32":
            yield "student.dtype", "bf16", _student_dtype


def _is_installed(cfg: TrainerConfig, optimizer: str) -> bool:
    try:
        require_optimizer(cfg.model_copy(update={"optimizer": optimizer}))
    except ConfigError:
        return False
    return True


def _is_quantizable(run: Run, kind: Quantization) -> bool:
    if any(map(run.tunes, run.sources)):
        return False  # it is tuned without quantization
    try:
        for source in run.sources:
            require_quantizable(kind, run.task.auto, load_config(source), "teacher.quantization")
    except ConfigError:
        return False
    return True


def _halves(rows: int, size: int) -> list[int]:
    """Return the sizes of micro-batches into which the rows of a process divide, each at most half of the one before, below the present size."""
    sizes = [size]
    for fewer in range(size // 2, 0, -1):
        if rows % fewer == 0 and 2 * fewer <= sizes[-1]:
            sizes.append(fewer)
    return sizes[1:]


def _with_config(run: Run, section: str, **update: Any) -> Run:
    """Return a part with other keys in a section of its config."""
    own = getattr(run.cfg, section).model_copy(update=update)
    return dataclasses.replace(run, cfg=run.cfg.model_copy(update={section: own}))


def _trainer(**update: Any) -> Change:
    def change(parts: Parts) -> list[Run]:
        changed = [_with_config(part, "trainer", **update) for part in parts]
        return [
            dataclasses.replace(
                part,
                phases=[
                    dataclasses.replace(phase, trainer=phase.trainer.model_copy(update=update))
                    for phase in part.phases
                ],
            )
            for part in changed
        ]

    return change


def _tuner(**update: Any) -> Change:
    return lambda parts: [
        _with_config(part, "teacher", trainer=part.cfg.teacher.trainer.model_copy(update=update))
        for part in parts
    ]


def _teacher(**update: Any) -> Change:
    return lambda parts: [_with_config(part, "teacher", **update) for part in parts]


def _teacher_dtype(dtype: Dtype) -> Change:
    return lambda parts: [
        dataclasses.replace(
            _with_config(part, "teacher", dtype=dtype),
            sources=[dataclasses.replace(source, dtype=dtype) for source in part.sources],
        )
        for part in parts
    ]


def _student_dtype(parts: Parts) -> list[Run]:
    return [_with_config(part, "student", dtype="bf16") for part in parts]


def _divided(parts: Parts) -> list[Run]:
    return [
        dataclasses.replace(part, sources=[dataclasses.replace(each, divided=True) for each in part.sources])
        for part in parts
    ]


def _streamed(parts: Parts) -> list[Run]:
    return [dataclasses.replace(part, streamed=True) for part in parts]


# ---- models without weights ------------------------------------------------------------------------------


def _features(phase: Phase) -> frozenset[Part]:
    """Return the features that the losses of a phase read."""
    return frozenset(part for loss in phase.losses.values() for part in loss.features)


def _prepare(run: Run, phase: Phase, student: PreTrainedModel, eager: bool) -> None:
    """Prepare a student for training, as in the phase."""
    attention = "eager" if eager else run.cfg.student.attn_implementation
    if attention is not None:
        student.set_attn_implementation(attention)
    with torch.device("meta"):
        (copy.deepcopy(phase.quantization) or run.initializer).prepare_for_training(student)
    freeze(Distiller(student, run.task, {}, {}), phase.trainer.freeze)
    if phase.trainer.dropout is not None:
        set_dropout(student, phase.trainer.dropout)
    student.train()


def _longest_row(run: Run, tokenizer: PreTrainedTokenizerBase, splits: Sequence[str]) -> dict[str, Any]:
    """Return the longest row, tokenized; one of the maximum length if texts are still to be written."""
    best: dict[str, Any] = {}
    longest = 0
    for split in splits:
        encoded = run.encode(tokenizer, run.data[split])
        row = int(np.argmax(encoded.lengths))
        if encoded.lengths[row] > longest:
            longest, best = int(encoded.lengths[row]), encoded[row]
    if run.cfg.rollout.source == "dataset":
        return best
    return {
        name: np.resize(value, run.max_length) if isinstance(value, np.ndarray) and value.ndim else value
        for name, value in best.items()
    }


def _phase(name: str, step: StepMemory, cfg: TrainerConfig, teacher: int = 0, work: int = 0) -> PhaseMemory:
    """Return a phase of training."""
    least = step.weights + min(step.gradients, step.weights) + step.optimizer + teacher
    if cfg.fsdp == "offload" or cfg.optimizer.startswith("paged"):  # a GPU need not hold it
        least = 0
    return PhaseMemory(
        name,
        step.peak + teacher + work,
        least,
        step.weights,
        step.gradients,
        step.optimizer,
        step.activations + work,
        teacher,
        step.parameters,
    )


def _teacher_bytes(run: Run, trained: dict[str, int]) -> int:
    """Return the bytes of the weights of a part's teacher, all members of an ensemble together.

    Args:
        trained: the bytes of the models that are trained before, which are assistants.
    """
    if run.teacher_key in trained:
        return trained[run.teacher_key]
    total = 0
    for source in run.sources:
        tuned = run.cfg.teacher.dtype == "auto" and run.tunes(source)
        size = TORCH["fp32" if tuned else source.dtype].itemsize
        total += weight_count(source.path) * size - _quantized_bytes(
            run, source, run.cfg.teacher.quantization, size
        )
    if run.sources[0].divided and (free := device_free_memory()) is not None:
        return min(total, int(SHARE * free))  # the rest stays on the disk
    return total


def _quantized_bytes(run: Run, source: Checkpoint, kind: Quantization | None, size: int) -> int:
    """Return the bytes that the quantization of the linear layers of a checkpoint saves.

    Args:
        kind: None: they are not quantized.
        size: the bytes of a weight that is not quantized.
    """
    if kind is None:
        return 0
    quantized = divide(kind, run.task.auto, load_config(source)).quantized
    return int(quantized * (size - QUANTIZED[kind]))


def _is_remote(run: Run) -> bool:
    return run.remote is not None and run.teacher_key == OWN
