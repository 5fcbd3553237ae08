"""Checks a run before anything is trained. Each refusal states what was expected, what came, and the key to change."""

from __future__ import annotations

import logging
from collections.abc import Sequence

import datasets
import numpy as np
import torch
from accelerate import PartialState
from transformers import PreTrainedConfig, PreTrainedTokenizerBase

from kdcli.config.components import build, locate
from kdcli.config.schema import Distill as Config
from kdcli.config.tasks import packaged_specs
from kdcli.data.dataset import require_batch
from kdcli.errors import ConfigError, ModelError, TeacherError, listed
from kdcli.evaluation.predict import size
from kdcli.models.checkpoint import (
    Checkpoint,
    has_head,
    label_order,
    load_config,
    max_input_tokens,
    model_labels,
    parameters,
    require_loadable,
    same_vocabulary,
)
from kdcli.models.weight_only import require_quantizable
from kdcli.pipeline.plan import OWN, STUDENT, Phase, Run
from kdcli.tasks import task_class
from kdcli.tasks.labels import without_names
from kdcli.tasks.rows import MANY
from kdcli.teachers.local import LocalTeacher
from kdcli.teachers.remote.protocol import RemoteTeacher
from kdcli.training.arguments import (
    require_attention,
    require_compiler,
    require_gradient_checkpointing,
    require_optimizer,
    require_trackers,
)
from kdcli.training.batches import micro_batches
from kdcli.training.deepspeed import require_deepspeed
from kdcli.training.length import planned_steps
from kdcli.training.sharding import require_processes, require_unquantized
from kdcli.training.vllm import executable, require_one_machine

logger = logging.getLogger(__name__)


def require_machine(cfg: Config, state: PartialState) -> None:
    """Check that every trainer that divides its model among processes, or compiles it, can do so here.

    Raises:
        ConfigError
    """
    trainers = {"trainer": cfg.trainer, "teacher.trainer": cfg.teacher.trainer}
    trainers |= {f"stages.{name}.trainer": stage.trainer for name, stage in cfg.stages.items()}
    for key, trainer in trainers.items():
        require_processes(trainer, key, state.num_processes)
        require_deepspeed(trainer, key, state.num_processes)
        require_compiler(trainer, key)


def require_trainers(cfg: Config, phases: Sequence[Phase], state: PartialState) -> None:
    """Check that the processes can share every trainer's batches, and that its trackers are installed.

    Raises:
        ConfigError
    """
    for trainer in (cfg.trainer, cfg.teacher.trainer, *(phase.trainer for phase in phases)):
        micro_batches(trainer, state.num_processes)
        require_trackers(trainer)
        require_optimizer(trainer)


def require_teacher_term(cfg: Config, phases: Sequence[Phase]) -> None:
    """Check that the student learns something from the teacher.

    Raises:
        ConfigError
    """
    uses_teacher = any(phase.uses_teacher for phase in phases if phase.trainee == STUDENT)
    if not uses_teacher and cfg.rollout.source != "teacher":
        raise ConfigError(
            "no loss term with a weight reads the teacher: there is nothing to distil; give one a weight"
        )


def require_control_rows(run: Run) -> None:
    """Check that the control has a batch of labelled rows.

    Raises:
        ConfigError
    """
    if run.cfg.control:
        require_batch(
            len(run.data.gold),
            run.cfg.trainer.batch_size,
            "labelled training rows, for the control",
            "trainer.batch_size",
        )


def remote_teacher(cfg: Config, phases: Sequence[Phase]) -> RemoteTeacher | None:
    """Return the teacher if it is a remote one, after a check that it has its API key, unless nothing is sent, and that the run needs nothing that it cannot do.

    Raises:
        ConfigError
    """
    if not issubclass(locate(cfg.teacher.target), RemoteTeacher):
        if cfg.rollout.expand:
            raise ConfigError(
                "rollout.expand: only a remote teacher supports it (teacher=openai); leave it out"
            )
        return None
    if cfg.teacher.quantization is not None:
        raise ConfigError(
            f"teacher.quantization = {cfg.teacher.quantization}: the teacher runs on a server, which holds its weights as it was started; leave the key out"
        )
    remote: RemoteTeacher = build(cfg.teacher, RemoteTeacher)
    if not cfg.dry_run:
        remote.client.require_ready()
    remote.require_supported(
        cfg,
        writes=cfg.dataset.spec.writes,
        outputs=any(phase.uses_teacher for phase in phases),
        features=any(phase.uses_features for phase in phases),
    )
    return remote


def require_rows(run: Run, rows: datasets.Dataset) -> None:
    """Check that every phase of a part has a loss, and rows for a batch.

    Args:
        rows: the training rows.

    Raises:
        ConfigError
    """
    for phase in run.phases:
        prefix = f"stages.{phase.name.removeprefix('student/')}." if run.cfg.stages else ""
        if not phase.losses:
            raise ConfigError(f"{prefix}loss: every term has the weight 0; give one a weight")
        count = len(phase.select(rows))
        selected = "training rows" if phase.rows == "all" else f"{phase.rows} training rows"
        require_batch(count, phase.trainer.batch_size, selected, f"{prefix}trainer.batch_size")
        planned_steps(phase.trainer, count, run.cfg.dataset.spec)


def require_tuning_rows(run: Run) -> None:
    """Check that a teacher that is tuned has a batch of labelled rows.

    Raises:
        ConfigError
    """
    if any(map(run.tunes, run.sources)):
        trainer, count = run.cfg.teacher.trainer, len(run.data.gold)
        require_batch(count, trainer.batch_size, "labelled training rows", "teacher.trainer.batch_size")
        planned_steps(trainer, count, run.cfg.dataset.spec)


def require_architecture(run: Run) -> None:
    """Check that transformers has a model for the task with the student's architecture.

    Raises:
        ConfigError
    """
    initializer, task = run.initializer, run.task
    architecture = initializer.architecture()
    has_code = initializer.source is not None and initializer.source.code
    if architecture is None or task.supports_architecture(architecture) or has_code:
        return
    new = run.cfg.dataset.spec.new_students
    raise ConfigError(
        f"student: {architecture.model_type} has no model for the task {run.cfg.dataset.kind}; take {f'student={new}, ' if new else ''}"
        "student=layers or pruned (the teacher with less of it), or student=local with student.path (a checkpoint of the task)"
    )


def student_config(run: Run) -> PreTrainedConfig:
    """Return a config of the student's architecture."""
    architecture = run.initializer.architecture()
    if run.initializer.source is None and architecture is not None:
        return architecture()
    return load_config(run.initializer.source or run.sources[0])


def require_trainable(run: Run) -> None:
    """The architectures of student and tuned teacher can do what the config demands: shard its weights, compute activations again, and
    this kind of attention.

    Raises:
        ConfigError
    """
    cfg, task = run.cfg, run.task
    sharded = [phase.trainer.sharded_by for phase in run.phases if phase.trainer.sharded_by]
    if run.initializer.source is not None and sharded:
        base = run.initializer.quantization_base
        require_unquantized(student_config(run), f"trainer.{sharded[0]}", base)
    trained = [
        ("trainer", any(phase.trainer.gradient_checkpointing for phase in run.phases), student_config(run))
    ]
    if run.remote is None:
        again = cfg.teacher.trainer.gradient_checkpointing
        tuned = [source for source in run.sources if again and run.tunes(source)]
        trained += [("teacher.trainer", again, load_config(source)) for source in tuned]
    for key, again, config in trained:
        attention = cfg.student.attn_implementation if key == "trainer" else None
        if (again or attention) and task.supports_architecture(
            type(config)
        ):  # else the checkpoint has code of its own
            with torch.device("meta"):
                model = task.create(task.configure(config))
            if again:
                require_gradient_checkpointing(type(model), key)
            if attention:
                require_attention(model, attention)


def require_quantized(run: Run) -> None:
    """Check that the weights of a quantized teacher, and of the checkpoint of adapters with a quantized base, can be quantized here.

    Raises:
        ConfigError
    """
    teacher, base = run.cfg.teacher.quantization, run.initializer.quantization_base
    if teacher is not None and not issubclass(locate(run.cfg.teacher.target), LocalTeacher):
        name = f"{LocalTeacher.__module__}.{LocalTeacher.__name__}"
        raise ConfigError(
            f"teacher.quantization = {teacher}: teacher._target_ = {run.cfg.teacher.target} loads its models itself; use {name}, or a subclass"
        )
    models = [(source, teacher, "teacher.quantization") for source in run.sources]
    models.append((run.initializer.source or run.sources[0], base, "student.quantization_base"))
    for source, kind, key in models:
        if kind is None:
            continue
        config = load_config(source)
        if source.code or not run.task.supports_architecture(type(config)):
            raise ConfigError(
                f"{key} = {kind}: {source.name} has code of its own, whose layers are not known here; leave {key} out"
            )
        require_quantizable(kind, run.task.auto, config, key)


def require_features(run: Run) -> None:
    """Check that features can be captured from models of the task, if a loss term reads them.

    Raises:
        ConfigError
    """
    losses = [item for phase in run.phases for item in phase.losses.items()]
    terms = [name for name, loss in losses if not loss.features <= run.task.features]
    if terms:
        raise ConfigError(
            f"loss: {', '.join(dict.fromkeys(terms))} reads features (hidden states, attention or relations) that are not captured from models of "
            f"the task {run.cfg.dataset.kind}; take a loss of the teacher's outputs (loss=forward_kl, reverse_kl, jsd …)"
        )


def require_checkpoints(run: Run) -> None:
    """Check that the checkpoints of teacher and student can be loaded, the teacher has a head or gets one, and the initialiser finds what it copies.

    Raises:
        ConfigError, ModelError, TeacherError
    """
    for source in run.sources if run.remote is None else ():
        _require_head(run, source)
    sources = (
        run.sources if run.scorer is None or not run.scorer.tokenizer_path else []
    )  # that one has no weights
    for source in dict.fromkeys([*sources, *filter(None, [run.initializer.source])]):
        if run.task.supports_architecture(type(load_config(source))):
            taught = run.remote is None and source in run.sources and not run.tunes(source)
            require_loadable(source, run.task, complete=taught or run.task.vocabulary)
    _require_initialization(run)


def require_smaller(run: Run, student: int | None) -> None:
    """Check that the student is smaller than its teacher, unless `student.allow_same_size` is set. An assistant may have any size. In a smoke run,
    whose teacher may be a placeholder, a larger student is a warning.

    Args:
        student: its parameters; None: they are not known yet.

    Raises:
        ModelError
    """
    if student is None or run.remote is not None or run.trainee != STUDENT or run.cfg.student.allow_same_size:
        return
    if any(source.code for source in run.sources) or run.teacher_key != OWN:
        return
    teacher = sum(size(source, run.task)["parameters"] for source in run.sources)
    if student < teacher:
        return
    message = (
        f"the student has {student:,} parameters and its teacher {teacher:,}: a student is smaller than its teacher; take a smaller "
        "one (student=tiny, or fewer layers: student.num_hidden_layers=), or set student.allow_same_size=true"
    )
    if not run.cfg.smoke:
        raise ModelError(message)
    logger.warning("%s", message)


def _require_initialization(run: Run) -> None:
    """Check that the teacher, or the student's checkpoint, has what the initialiser copies. An assistant's config is not known yet.

    Raises:
        ConfigError, ModelError
    """
    initializer = run.initializer
    assistants = {stage.teacher for stage in run.cfg.stages.values()}
    source = initializer.source or run.sources[0]
    from_assistant = initializer.source is None and run.teacher_key in assistants
    if source.code or from_assistant:
        return
    config = load_config(source)
    if run.task.supports_architecture(type(config)):
        with torch.device("meta"):
            model = run.task.create(run.task.configure(config))
        if initializer.inherits_teacher:
            initializer.require(run.task, model)
        if initializer.source is not None and not initializer.inherits_teacher:
            return  # a checkpoint is compared when it is loaded
        student = initializer.skeleton(run.task, run.sources[0], model)
        require_smaller(run, None if student is None or initializer.at_most else parameters(student))


def _require_head(run: Run, source: Checkpoint) -> None:
    """Check that a teacher that is not tuned first has a head for the task, with the labels of the data.

    Raises:
        TeacherError
    """
    if not has_head(source, run.task):
        if run.task.vocabulary:
            raise TeacherError(
                f"{source.name} has no head for the task {run.cfg.dataset.kind} (its config.json names {listed(_architectures(source)) or 'none'}, and "
                f"…{run.task.head[0]} is expected), and one over a vocabulary is not made anew; {_other_task(source)}"
            )
        if not run.tunes(source):
            raise TeacherError(
                f"{source.name} has no head for this task, and teacher.tune=false would leave it untrained; leave "
                "teacher.tune out (it is tuned first), or use a checkpoint of the task"
            )
    if run.task.labels and not run.tunes(source):
        config, labels = load_config(source), run.task.labels
        label_order(config, labels, source.name)
        own = model_labels(config)
        names_and_indices = {*own, *map(str, range(len(own)))}
        if without_names(own) and run.cfg.dataset.labels is None and not names_and_indices >= {*labels}:
            logger.warning(
                "%s does not name its labels (%s): they are taken for the data's in this order: %s; if it has another one, give it with "
                "dataset.labels=[…]",
                source.name, listed(own, 200), listed(labels, 400),
            )  # fmt: skip


def _architectures(source: Checkpoint) -> list[str]:
    return load_config(source).architectures or []


def _other_task(source: Checkpoint) -> str:
    """Return what to do with a checkpoint whose head is for another task: the keys of that task, or another checkpoint."""
    for name, spec in packaged_specs():
        if any(each.endswith(task_class(name).head) for each in _architectures(source)):
            use = (
                "which can teach in a stage before the task's:"
                if spec.general
                else "whose columns are named with"
            )
            return f"take it as a {name} model, {use} {spec.column_keys}; or give teacher.path= a checkpoint with the head"
    return "give teacher.path= a checkpoint as it was pretrained"


def truncation(run: Run, tokenizer: PreTrainedTokenizerBase, split: str) -> tuple[float, str]:
    """Return the share of a split's rows that a classifier reads truncated, and a sentence about them with the remedy."""
    rows = run.data[split]
    full = np.flatnonzero(run.encode(tokenizer, rows).lengths >= run.max_length)
    if run.task.vocabulary or not len(full):
        return 0.0, ""
    lengths = run.task.lengths(tokenizer, rows.select(full))
    cut, longest = int((lengths > run.max_length).sum()), int(lengths.max())
    most = max_input_tokens(tokenizer, load_config(run.sources[0]))
    if most >= longest:
        remedy = f"dataset.max_length={longest} reads all of it"
    elif most > run.max_length:
        remedy = f"dataset.max_length={most} is the most that the teacher reads"
    else:
        remedy = "the teacher reads no more: shorten the texts, or take one that reads more (teacher.path=)"
    return cut / len(rows), (
        f"{cut} of {len(rows)} rows of {split} ({cut / len(rows):.0%}) are cut at dataset.max_length = {run.max_length} tokens, and the longest has {longest}; {remedy}"
    )


def warn_of_truncation(run: Run, tokenizer: PreTrainedTokenizerBase) -> None:
    """Warn of training rows that a classifier reads truncated; many such rows are a suspicion."""
    share, message = truncation(run, tokenizer, "train")
    if share > MANY:
        logger.warning("%s", message)
        figures = {"share": share, "rows": round(share * len(run.data["train"]))}
        run.data.suspicions.append(
            {"kind": "truncated_rows", "text": message, "key": "dataset.max_length", **figures}
        )
    elif share:
        logger.info("%s", message)


def shares_tokens(
    run: Run, teacher_tokenizer: PreTrainedTokenizerBase, student_tokenizer: PreTrainedTokenizerBase
) -> bool:
    """Return whether teacher and student count the same tokens. All rows are tokenized here, so that a row without a target is refused now.

    Args:
        teacher_tokenizer, student_tokenizer: one object if the student is initialised from the teacher.

    Raises:
        DataError: a row has no token that counts.
        ModelError: they count different tokens, and a loss compares them token by token.
    """
    task, splits = run.task, run.data.splits
    of_teacher = {name: run.encode(teacher_tokenizer, rows) for name, rows in splits.items()}
    if (run.trainee, run.teacher_key) == (STUDENT, OWN):
        task.warn_of_truncation(of_teacher["train"], run.max_length)
    if student_tokenizer is teacher_tokenizer:
        return True
    of_student = {name: run.encode(student_tokenizer, rows) for name, rows in splits.items()}
    assert run.initializer.source is not None
    try:
        same_vocabulary(
            run.sources[0].name, teacher_tokenizer, run.initializer.source.name, student_tokenizer
        )
        for name, rows in splits.items():
            task.require_same(rows, of_teacher[name], of_student[name])
    except ModelError as error:
        reading = [loss for phase in run.phases for loss in phase.losses.values() if loss.needs_teacher]
        compares = any(loss.by_class for loss in reading)
        if compares or (not task.aligns and (reading or not task.writes)):
            remedy = "; or let it learn what the teacher writes (rollout=teacher loss.soft_label.weight=0)"
            remedy += ", or how sure the teacher is (loss=uld)" if task.aligns else ""
            raise ModelError(error.message + (remedy if task.writes else "")) from None
        return False
    return True


def require_one_vocabulary(run: Run) -> None:
    """Check that losses and rollouts that need a shared vocabulary, or no vocabulary, fit the models.

    Raises:
        ConfigError
    """
    if len(run.sources) > 1:
        raise ConfigError(
            f"teacher.others: the answers of several teachers are averaged over labels, and models of the task {run.cfg.dataset.kind} have a "
            "vocabulary; leave it empty"
        )
    if not run.shared and run.trainee != STUDENT and run.remote is None:
        raise ConfigError(
            f"stages.{run.trainee}.student: an assistant must have the teacher's vocabulary; choose one of the teacher's family"
        )


def require_writer(run: Run) -> None:
    """Check that models of the task write texts, if the run has rollouts.

    Raises:
        ConfigError
    """
    if not run.task.writes:
        raise ConfigError(
            f"rollout.source = {run.cfg.rollout.source}: models of the task {run.cfg.dataset.kind} write nothing; leave rollout out"
        )


def require_engine(run: Run) -> None:
    """Check that vLLM can generate with the student, if `rollout.engine` asks for it.

    Raises:
        ConfigError
    """
    if run.cfg.rollout.engine != "vllm":
        return
    remedy = "give rollout.engine=transformers"
    if run.task.auto != "AutoModelForCausalLM":
        raise ConfigError(
            f"rollout.engine = vllm: vLLM serves decoders, and the models of the task {run.cfg.dataset.kind} are not decoders; {remedy}"
        )
    if run.initializer.trains_adapters or run.cfg.student.quantization is not None:
        what = "adapters beside its weights" if run.initializer.trains_adapters else "fake-quantized weights"
        raise ConfigError(
            f"rollout.engine = vllm: the student is trained with {what}, and vLLM gets plain weights; {remedy}"
        )
    executable()
    require_one_machine()


def storing_temperature(run: Run) -> float:
    """Return the temperature at which a teacher's top k, or the mean of an ensemble, is taken.

    Raises:
        ConfigError: the terms have several. (Outputs at temperature 1 can also be computed from a stored top k.)
    """
    mean = len(run.sources) > 1
    temperatures = {
        getattr(loss, "temperature", 1.0) for loss in run.losses if loss.needs_teacher and not loss.features
    }
    temperatures = temperatures if mean else temperatures - {1.0}
    if len(temperatures) > 1:
        verb, remedy = ("averaged", "") if mean else ("stored", ", or teacher.cache=false")
        raise ConfigError(
            f"the teacher's outputs are {verb} at one temperature, the loss terms have {sorted(temperatures)}; give them one{remedy}"
        )
    return temperatures.pop() if temperatures else 1.0
