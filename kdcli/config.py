"""The schema of a run: every key, its type, range, default and meaning. Never imports torch.

Hydra composes the YAML files of `conf/` over the defaults that this schema holds (`defaults`), and the
schema checks the result (`check`): unknown keys, wrong types and ranges, and the arguments of every
component that a `_target_` names, all problems in one message, before anything is loaded.

A *component* (student, teacher, loss, hardware) is a mapping with `_target_`, the dotted path of a class.
Keys that the schema knows belong to kdcli; all others are arguments of that class's constructor and are
checked against its annotations.
"""

from __future__ import annotations

import difflib
import importlib
import inspect
import itertools
import math
import os
import re
import sys
import types
import typing
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationError,
    create_model,
    model_validator,
)

from kdcli.errors import ConfigError, abbreviated, listed, looks_secret, shown
from kdcli.files import require_name, user_path


def _whole(value: Any) -> Any:
    """Booleans are not numbers here: `trainer.max_steps=true` is a mistake, not 1."""
    if isinstance(value, bool):
        raise ValueError("expected a number, got a boolean")
    return value


def _named(value: Any) -> Any:
    """Integers are names as well: `dataset.labels=[0,1]`. Booleans are not: YAML's bare `no` is a mistake."""
    return str(value) if isinstance(value, int) and not isinstance(value, bool) else value


def _tab(value: Any) -> Any:
    """A tab can hardly be typed on a command line; backslash-t can."""
    return "\t" if value == r"\t" else value


Int = Annotated[int, BeforeValidator(_whole)]
Float = Annotated[float, BeforeValidator(_whole), Field(allow_inf_nan=False)]
# Every number has both bounds. An upper bound lies far above what is useful, and below what makes arithmetic overflow,
# what no machine can allocate, and what does not end within years.
Count = Annotated[Int, Field(ge=1, le=10**9)]
"""How many of something; also for arguments of your own classes."""
Whole = Annotated[Int, Field(ge=0, le=10**9)]
Positive = Annotated[Float, Field(gt=0, le=1e12)]
NonNegative = Annotated[Float, Field(ge=0, le=1e12)]
Fraction = Annotated[Float, Field(ge=0, le=1)]
Seed = Annotated[Int, Field(ge=0, lt=2**32)]
"""What numpy's generator takes."""
Epochs = Annotated[Float, Field(gt=0, le=1e6)]
"""A tiny data set may need 10**5 passes."""
MOST_STEPS = 10**9
Steps = Annotated[Int, Field(ge=1, le=MOST_STEPS)]
"""At a thousand steps a second these are 11 days."""
Rows = Annotated[Int, Field(ge=1, le=10**10)]
"""The largest public text collections have 10**10 documents."""
BatchSize = Annotated[Int, Field(ge=1, le=10**6)]
"""The largest batches of language models have 10**5 rows."""
Tokens = Annotated[Int, Field(ge=1, le=10**7)]
"""Of one row or answer: the longest context of a published model is 10**7."""
Characters = Annotated[Int, Field(ge=1, le=10**8)]
"""Of one row or answer: about ten a token."""
LearningRate = Annotated[Float, Field(gt=0, le=1e30)]
"""AdamW moves a weight by about the learning rate in each step, and the sum must stay a finite fp32."""
WeightDecay = Annotated[Float, Field(ge=0, le=100)]
GradNorm = Annotated[Float, Field(ge=0, le=1e12)]
"""A bound that is never reached is a common way to log the norm without clipping it."""
Weight = Annotated[Float, Field(ge=0, le=1e6)]
"""Of a loss term: beyond that, fp32 loses the other terms of the sum."""
Temperature = Annotated[Float, Field(gt=0, le=1e6)]
"""The loss is multiplied by its square, which must stay a finite fp32."""
SamplingTemperature = Annotated[Float, Field(ge=0, le=1e6)]
Depth = Annotated[Int, Field(ge=1, le=10**4)]
"""Layers of a model: the deepest published transformer has a thousand."""
LayerIndex = Annotated[Int, Field(ge=-(10**4), le=10**4)]
"""-1 is the last layer."""
Width = Annotated[Int, Field(ge=1, le=2**20)]
"""Of a layer, or its heads: a square matrix of this width has 4 TB."""
VocabularySize = Annotated[Int, Field(ge=1, le=10**8)]
Beams = Annotated[Int, Field(ge=1, le=1000)]
"""All of them stand in one batch for each row."""
Copies = Annotated[Int, Field(ge=1, le=10**4)]
"""Of each row."""
Threads = Annotated[Int, Field(ge=1, le=4096)]
"""The largest machines have about two thousand hardware threads."""
Runs = Annotated[Int, Field(ge=1, le=10**6)]
"""Repetitions of one measurement."""
Seconds = Annotated[Float, Field(gt=0, le=86_400)]
"""At most a day."""
Rate = Annotated[Float, Field(gt=0, le=1e6)]
"""Requests a second: more than one process can send."""
Bytes = Annotated[Float, Field(gt=0, le=1e15)]
Milliseconds = Annotated[Float, Field(gt=0, le=1e9)]
Smoothing = Annotated[Float, Field(ge=0, lt=1)]
SplitSize = Annotated[Float, Field(gt=0, le=1e10)]
"""A share below 1, or rows."""
Name = Annotated[str, BeforeValidator(_named)]
Character = Annotated[str, Field(min_length=1, max_length=1), BeforeValidator(_tab)]


class Section(BaseModel):
    """A mapping of which every key is known."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class Component(BaseModel):
    """A mapping with a `_target_`; the keys beside the schema's own are arguments of that class."""

    model_config = ConfigDict(extra="allow", frozen=True)
    kind: ClassVar[str] = "builtins.object"
    """The class, as MODULE.NAME, of which `_target_` names a subclass."""

    target: str = Field(alias="_target_")

    @property
    def arguments(self) -> dict[str, Any]:
        """What the constructor of `_target_` is called with."""
        return dict(self.model_extra or {})


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


class Checkpoint(Component):
    """Where a model comes from."""

    path: str | None = None
    """A local directory, a Hugging Face hub id, or `package:DISTRIBUTION/FOLDER` of an installed package."""
    revision: str | None = None
    """Branch, tag or commit of a hub id."""
    trust_remote_code: bool = False
    """Run the Python code that a hub repository ships. Off unless you trust its author."""


class NewTranslator(Component):
    """A model of random weights over a vocabulary of its own."""

    kind = "kdcli.students.encoder_decoder.EncoderDecoder"


class BirthStep(Component):
    """One of the steps in which a student is made."""

    kind = "kdcli.students.base.Birth"


class Teacher(Checkpoint):
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
    born: NewTranslator | None = None
    """seq2seq: there is no checkpoint; the teacher is a new model of this birth, over a vocabulary that is learnt from the training
    pairs, and is trained on them first."""
    vocab_size: VocabularySize = 8000
    """Of that vocabulary, source and target together."""
    stand_in: str | None = None
    """A checkpoint, named as by `path`, from which a student without one is born where the teacher has none that can be read
    (teacher=openai): its tokenizer, its embeddings. It says nothing of any text."""

    @model_validator(mode="after")
    def _one_origin(self) -> Teacher:
        if self.born is not None and (self.path or self.others or self.tune is False):
            raise ValueError("born: a new model has no path, no others, and must be tuned; leave those out")
        return self

    @property
    def members(self) -> list[Teacher]:
        """The further checkpoints."""
        return [self.model_copy(update={"path": path, "revision": None}) for path in self.others]


class Student(Checkpoint):
    """The small model. With `path` it starts from that checkpoint, and its shape is the checkpoint's."""

    kind = "kdcli.students.base.Birth"

    quantization: Literal["int8", "int4"] | None = None
    """At last the student is taught once more with its weights rounded as `hardware=cpu` (a language model's: and `laptop`) will round
    them in this precision, and keeps the rounded ones; its control too. null: it is rounded when it is exported. (classification,
    token_classification, causal_lm)"""
    quantization_epochs: Epochs = 1.0
    """Passes over the training rows in that stage …"""
    quantization_learning_rate: LearningRate = 2e-4
    """… and its learning rate; all else is as in the stage before."""


class Augment(Section):
    """More text for the teacher alone: copies of the training texts in which a masked language model has replaced words (Jiao et al. 2020,
    https://arxiv.org/abs/1909.10351, Algorithm 1)."""

    path: str | None = None
    """A checkpoint with a masked-LM head, named as a teacher's; null: the teacher's own, as it is before it is tuned."""
    revision: str | None = None
    copies: Copies = 20
    """Of each text; those that are equal are left out."""
    probability: Fraction = 0.4
    """With which a word is replaced."""
    candidates: VocabularySize = 15
    """The likeliest words at a word's place, of which one is drawn."""
    batch_size: BatchSize = 32
    """Words that the model is asked for at once."""


class Clean(Section):
    """seq2seq: pairs that are left out of the training source, before validation and test are carved out of it. Those that have a
    source of their own are never cleaned. Of it `overlong` alone is for language models too."""

    identical: bool = True
    """Pairs whose target is their source."""
    max_ratio: Annotated[Float, Field(gt=1, le=1e6)] | None = 3.0
    """Pairs whose target is so many times longer or shorter, in characters, than is usual for its source (the median of the data
    set's ratios, so that Chinese may be short); null: any. Summaries want null."""
    ratio_from: Characters = 40
    """Of those alone whose longer side has so many characters: short messages vary more."""
    script: bool = True
    """Pairs of which a side has most of its letters in another script than that column."""
    overlong: Literal["refuse", "drop"] = "refuse"
    """What is done with pairs of more than max_length tokens in source or target; in all splits. Also of language models: drop leaves out
    conversations, and prompts with their completions, that are longer; refuse (the default) cuts their ends off, and refuses those
    of which nothing that is learnt would be left."""


class Dataset(Section):
    """Rows of text with labels, completions or translations, and how they are split."""

    task: str | None = None
    """null: inferred from the columns named (text + label: classification; words + tags: token_classification; prompt +
    completion, messages, or text with label=null: causal_lm; source + target: seq2seq). masked_lm is never inferred."""
    format: Literal["csv", "jsonl", "parquet", "txt", "conversations", "conll", "gettext", "hub"] = "csv"
    """txt: plain text (causal_lm, masked_lm); conversations: YAML files with a list of `conversations`, each a list of turns; conll: a
    word and its tag a line, a blank line between sentences (token_classification); gettext: .po and .mo catalogues (seq2seq)."""
    path: str
    """A file (`package:DISTRIBUTION/FILE` for one in an installed package), a folder of conversations, of txt files or with
    catalogues somewhere in it, or a Hugging Face hub id."""
    name: str | None = None
    """The configuration of a hub data set that has several."""
    revision: str | None = None
    train: str = "train"
    """hub: the split to train on."""
    validation: str | None = None
    """hub: a split's name; files: another file; null: carved out of the training rows by a hash of the text."""
    test: str | None = None
    validation_size: SplitSize = 0.1
    """If it is carved out: so many rows, or below 1 the share of all."""
    test_size: SplitSize = 0.1
    text: str = "text"
    """The text's column."""
    text_pair: str | None = None
    """A second text's column, for tasks on pairs."""
    label: str | None = "label"
    """The label's column: names, or integers. null: the text itself is what is learnt (causal_lm)."""
    words: str | None = None
    """token_classification: the column of words, a list a row …"""
    tags: str | None = None
    """… and of their tags, a list of names (B-PER, I-PER, O …) or integers of the same length."""
    prompt: str | None = None
    """causal_lm: the column of what the model is given …"""
    completion: str | None = None
    """… and of what it should answer. Only the completion's tokens count."""
    messages: str | None = None
    """causal_lm: the column of conversations, lists of {role, content}; what the assistant says counts."""
    chat: bool = False
    """Prompt and completion are a user's and an assistant's turn: they go through the model's chat template."""
    source: str | None = None
    """seq2seq: the column of what is translated …"""
    target: str | None = None
    """… and of its translation. jsonl, parquet, hub: `translation.de` is what a column `translation` holds of `de`."""
    source_language: str | None = None
    """seq2seq: the source's language, by the code that the model's tokenizer has for it (eng_Latn, en, en_XX), if it wants one. gettext:
    also the locale whose translations are the source; null: the text as it stands in the code."""
    target_language: str | None = None
    """The target's. gettext: the locale (de, pt_BR), or another code of its language."""
    prefix: str = ""
    """seq2seq: stands before each source ("translate English to German: ", ">>fra<< ")."""
    clean: Clean = Clean()
    labels: list[Name] | None = Field(default=None, min_length=2)
    """The label names in order; null: those that the data set declares, or all found, sorted."""
    encoding: str = "utf-8"
    delimiter: Character | None = None
    """csv: null is a comma, or a tab if the file's name ends in .tsv."""
    quote: Character | None = None
    """csv: null is a double quote, or none at all between tabs."""
    columns: list[Name] | None = Field(default=None, min_length=1)
    """csv: the names of all columns in their order, of a file that has no header."""
    replace: dict[str, str] = {}
    """Regular expressions and what replaces them in the text, in order. White space is folded after (classification)."""
    limit: Rows | None = None
    """At most so many training rows."""
    eval_limit: Rows | None = None
    """At most so many rows of validation and of test."""
    labelled: Rows | None = None
    """At most so many training rows keep their label (seq2seq: their target); the rest is text for the teacher alone."""
    unlabelled: str | None = None
    """More text for the teacher alone: a file (or a hub split) like the training one, whose labels are not asked for."""
    unlabelled_limit: Rows | None = None
    """At most so many of its rows."""
    augment: Augment | None = None
    """classification: further text of this kind for the teacher alone, made of the training texts; null: none."""
    max_length: Tokens = 128
    """Tokens a row; the rest is cut off."""
    mask_copies: Copies = 1
    """masked_lm: each training text stands there so often, every time with other tokens hidden (Liu et al. 2019,
    https://arxiv.org/abs/1907.11692, section 4.1: static masking)."""

    @property
    def kind(self) -> str:
        """The task: as given, or what the columns named mean."""
        if self.task:
            return self.task
        if self.tags or self.format == "conll":
            return "token_classification"
        if self.source or self.format == "gettext":
            return "seq2seq"
        unlabelled = self.format in ("txt", "conversations") or self.label is None
        return "causal_lm" if self.prompt or self.messages or unlabelled else "classification"

    @model_validator(mode="after")
    def _columns(self) -> Dataset:
        if bool(self.prompt) != bool(self.completion):
            raise ValueError("prompt and completion: give both columns, or neither")
        read = ("text", "text_pair", "label") if self.kind == "classification" else ()
        for one, other in [*itertools.combinations(read, 2), ("words", "tags"), ("prompt", "completion")]:
            if getattr(self, one) and getattr(self, one) == getattr(self, other):
                raise ValueError(
                    f"{one} and {other}: both are the column {shown(getattr(self, one))}; name two"
                )
        if self.prompt and self.messages:
            raise ValueError("prompt and messages: name the columns of one of them")
        if self.kind == "classification" and self.label is None:
            raise ValueError("label = null: classification needs the label's column")
        if self.chat and not self.prompt and self.format != "conversations":
            raise ValueError(
                "chat: it makes turns of a prompt and a completion; name dataset.prompt and dataset.completion"
            )
        if bool(self.words) != bool(self.tags):
            raise ValueError("words and tags: give both columns, or neither")
        if self.kind == "token_classification" and not self.tags and self.format != "conll":
            raise ValueError(
                "token_classification: name the columns of words and of their tags (dataset.words, dataset.tags)"
            )
        if self.kind in ("causal_lm", "masked_lm") and self.labelled:
            raise ValueError(f"labelled: {self.kind} has no labels to hide; use limit")
        if self.kind in ("causal_lm", "masked_lm") and self.unlabelled:
            raise ValueError(
                f"unlabelled: all text is without labels in {self.kind}; put it among the training rows"
            )
        others = [key for key in ("text_pair", "prompt", "messages", "words", "source") if getattr(self, key)]
        if self.kind == "masked_lm" and others:
            raise ValueError(
                f"{others[0]}: masked_lm reads plain text alone; name its column with dataset.text, and leave {others[0]} out"
            )
        if self.kind != "masked_lm" and self.mask_copies > 1:
            raise ValueError(
                f"mask_copies: {self.kind} hides no tokens; leave it out, or give task=masked_lm"
            )
        if self.augment and self.kind != "classification":
            raise ValueError(
                f"augment: words are replaced in whole texts (classification), not in {self.kind}; leave it out"
            )
        if self.unlabelled_limit and not self.unlabelled:
            raise ValueError("unlabelled_limit: there is nothing to limit; name the text with unlabelled")
        return self

    @model_validator(mode="after")
    def _pairs(self) -> Dataset:
        if bool(self.source) != bool(self.target):
            raise ValueError("source and target: give both columns, or neither")
        if self.source and self.source == self.target:
            raise ValueError(f"source and target: both are the column {shown(self.source)}; name two")
        if self.kind != "seq2seq":
            given = [key for key in OF_PAIRS if getattr(self, key) != type(self).model_fields[key].default]
            answers = self.prompt or self.messages or self.format == "conversations"
            if answers and self.clean.model_copy(update={"overlong": "refuse"}) == Clean():
                given = [key for key in given if key != "clean"]
            if given:
                raise ValueError(
                    f"{given[0]}: it is for pairs of source and target (seq2seq), not for {self.kind}; leave it out"
                )
            return self
        if self.format == "gettext":
            if self.source:
                raise ValueError("source and target: catalogues have no columns; leave them out")
            if not self.target_language:
                raise ValueError("gettext: name the locale to translate into (dataset.target_language=de)")
            if self.source_language == self.target_language:
                raise ValueError(f"source_language and target_language: both are {self.source_language}")
        elif not self.source:
            raise ValueError(
                "seq2seq: name the columns of the source and of its translation (dataset.source, dataset.target)"
            )
        if others := [key for key in ("text_pair", "prompt", "messages", "words") if getattr(self, key)]:
            raise ValueError(f"source and {others[0]}: name the columns of one of them")
        if self.unlabelled and self.format == "gettext":
            raise ValueError(
                "unlabelled: catalogues hold translations; name a csv or jsonl file of sources with format= of its kind"
            )
        return self

    @model_validator(mode="after")
    def _header(self) -> Dataset:
        if self.columns and self.format != "csv":
            raise ValueError(
                f"columns: {self.format} names its own columns; leave it out, or give format=csv"
            )
        if self.columns and (twice := [name for name in self.columns if self.columns.count(name) > 1]):
            raise ValueError(f"columns: {shown(twice[0])} stands there twice")
        return self

    @model_validator(mode="after")
    def _regular(self) -> Dataset:
        for pattern, put in self.replace.items():
            try:
                re.sub(pattern, put, "")
            except (re.error, IndexError) as error:
                raise ValueError(
                    f"replace: {shown(pattern)} by {shown(put)} is not a regular expression: {error}"
                ) from None
        if self.labels and (
            twice := [name for number, name in enumerate(self.labels) if name in self.labels[:number]]
        ):
            raise ValueError(f"labels: {shown(twice[0])} stands there twice")
        for key in ("validation_size", "test_size"):
            size = getattr(self, key)
            if size > 1 and size != math.floor(size):
                raise ValueError(f"{key} = {size}: expected a whole number of rows, or a share below 1")
        return self


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


BatchSizes = Annotated[list[BatchSize], Field(min_length=1)]


class Hardware(Component):
    """Where the student will run."""

    kind = "kdcli.hardware.base.Target"

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

    by: Literal["dataset", "teacher", "student"] = "dataset"
    """dataset: its own completions; teacher: answers the training prompts once, before the student is trained
    (sequence-level distillation); student: answers while it is trained, and the teacher judges (on-policy distillation)."""
    on_policy_fraction: Fraction = 0.5
    """by=student: the share of the rows that it answers anew in each step."""
    max_new_tokens: Tokens = 64
    """Of an answer, at most."""
    sampling_temperature: SamplingTemperature = 1.0
    """Tokens are drawn from softmax(logits / sampling_temperature); 0: the likeliest one each time."""
    batch_size: BatchSize = 16
    """Prompts that are answered at once."""
    num_beams: Beams = 1
    """seq2seq, by=teacher: the likeliest translation is searched for with so many beams; with sampling_temperature=0."""
    length_penalty: Annotated[Float, Field(ge=-10, le=10)] = 1.0
    """Of beams: the sum of log-probabilities is divided by the length to this power."""
    candidates: Beams = 1
    """seq2seq, by=teacher: translations of each source, from the beams or drawn, of which one is learnt …"""
    pick: Literal["likeliest", "nearest"] = "likeliest"
    """… the likeliest, or the one nearest to the reference by sentence BLEU (Kim and Rush 2016, section 3.3)."""
    keep: Annotated[Float, Field(gt=0, le=1)] = 1.0
    """by=teacher: the share of the answers that are learnt: those of which the teacher itself finds a token likeliest, on average."""

    answers: Copies = 1
    """by=teacher: so many to each prompt, each of which is learnt; drawn with sampling_temperature > 0."""
    expand: Annotated[Int, Field(ge=0, le=10**8)] = 0
    """by=teacher: so many further prompts, which the teacher makes up after those of the training rows, and answers (teacher=openai)."""
    filter: Filter = Filter()
    """by=teacher: which of the answers are not learnt."""

    @model_validator(mode="after")
    def _several(self) -> Rollout:
        if self.by != "teacher" and (self.answers > 1 or self.expand or self.filter != Filter()):
            raise ValueError(f"answers, expand, filter: they are for by=teacher, not by={self.by}")
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
        if self.by != "teacher" and (self.num_beams > 1 or self.candidates > 1 or self.keep < 1):
            raise ValueError(
                f"num_beams, candidates, keep: with by={self.by} nothing is searched for; they are for by=teacher"
            )
        if self.num_beams > 1 and self.sampling_temperature > 0:
            raise ValueError(
                "num_beams: a search draws nothing; give sampling_temperature=0 (rollout=teacher has it)"
            )
        if self.sampling_temperature == 0 and self.candidates > self.num_beams:
            raise ValueError(
                f"candidates = {self.candidates}: a search with num_beams = {self.num_beams} finds no more than that; raise num_beams"
            )
        if (self.candidates > 1) != (self.pick == "nearest"):
            raise ValueError(
                "candidates and pick: several candidates are for pick=nearest, which needs several"
            )
        return self


class Step(Section):
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


ROUNDED = ("classification", "token_classification", "causal_lm")
"""Tasks whose students can be trained with rounded weights."""
TAKEN = (
    "teacher",
    "augment",
    "rollouts",
    "signals",
    "born",
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
    stages: dict[str, Step] = {}
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
        if self.student.quantization and self.dataset.kind not in ROUNDED:
            raise ValueError(
                f"student.quantization = {self.student.quantization}: the rounding is known for {', '.join(ROUNDED)}, "
                f"not for {self.dataset.kind}; leave it out (export rounds as well)"
            )
        for name, stage in self.stages.items():
            if stage.student is not None and stage.student.quantization:
                raise ValueError(
                    f"stages.{name}.student.quantization: an assistant is not exported; give student.quantization"
                )
        return self

    @model_validator(mode="after")
    def _taught_by(self) -> Distill:
        assistants: list[str] = []
        if self.dataset.kind == "masked_lm":
            raise ValueError(
                "dataset.task = masked_lm: it makes a general student, in a stage before the task's (stages.NAME.dataset.task=masked_lm, as "
                "experiment=distilbert does)"
            )
        for name, stage in self.stages.items():
            if stage.rows != "all" and self.dataset.kind == "seq2seq":
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
    if own and own.get("task") == "masked_lm":
        whole = {name: value for name, value in whole.items() if name not in OF_LABELS}
    return {**stage, key: {**whole, **(own or {})}}


TASKS = ("classification", "token_classification", "causal_lm", "seq2seq", "masked_lm")
_CLASSES, _LABELS, _WRITING = TASKS[:1], TASKS[:2], ("causal_lm", "seq2seq")
READ_BY: dict[str, tuple[str, ...]] = {
    **dict.fromkeys(
        (
            "task", "format", "path", "name", "revision", "train", "validation", "test", "validation_size", "test_size", "encoding", "delimiter",
            "quote", "columns", "replace", "limit", "eval_limit", "max_length",
        ),
        TASKS,
    ),
    "text": ("classification", "causal_lm", "masked_lm"),
    **dict.fromkeys(("text_pair", "label", "augment"), _CLASSES),
    "labels": _LABELS,
    **dict.fromkeys(("words", "tags"), ("token_classification",)),
    **dict.fromkeys(("prompt", "completion", "messages", "chat"), ("causal_lm",)),
    **dict.fromkeys(("source", "target", "source_language", "target_language", "prefix"), ("seq2seq",)),
    "clean": _WRITING,
    **dict.fromkeys(("labelled", "unlabelled", "unlabelled_limit"), (*_LABELS, "seq2seq")),
    "mask_copies": ("masked_lm",),
}  # fmt: skip
"""The tasks that read each key of a data set."""
OTHERS_READ_BY: dict[str, tuple[str, ...]] = {
    "rollout": _WRITING,
    "teacher.top_k": ("causal_lm", "seq2seq", "masked_lm"),
    **dict.fromkeys(("teacher.born", "teacher.vocab_size", "measure.num_beams"), ("seq2seq",)),
    **dict.fromkeys(("measure.new_tokens", "measure.generations"), _WRITING),
    "hardware.tolerance.same_texts": ("seq2seq",),
    "hardware.tolerance.generated": ("causal_lm",),
}
"""The tasks that read other keys, if not all do."""
OF_PAIRS = tuple(
    key for key, tasks in READ_BY.items() if "seq2seq" in tasks and "classification" not in tasks
)
"""What only pairs of source and target have (of `clean`, language models read `overlong`)."""
OF_LABELS = tuple(key for key, tasks in READ_BY.items() if "masked_lm" not in tasks)
"""What text alone has no use for."""


def unread(config: Any, keys: Iterable[str]) -> Iterator[str]:
    """What is wrong with keys that somebody wrote, and that have another value than their default: the task does not read them.

    Args:
        config: a checked config.
        keys: with dots.
    """
    for key in keys:
        stage = re.match(r"stages\.[^.]+\.", key)
        rest = key[stage.end() :] if stage else key
        tasks = next(
            (OTHERS_READ_BY[each] for each in OTHERS_READ_BY if f"{rest}.".startswith(f"{each}.")), None
        )
        if rest.startswith("dataset."):
            tasks = READ_BY.get(rest.split(".")[1])
        value, default = _value_at(config, key)
        if value is None or isinstance(value, BaseModel):  # of a mapping, each key is looked at by itself
            continue
        place, _ = _value_at(config, f"{stage[0]}dataset" if stage else "dataset")
        kind = place.kind if isinstance(place, Dataset) else None
        if tasks and kind in TASKS and kind not in tasks and value != default:
            yield f"{key} = {shown(value)}: {kind} does not read it (only {', '.join(tasks)}); leave it out"


def _value_at(config: Any, key: str) -> tuple[Any, Any]:
    """The value at a key and its default; None where there is none."""
    value, default = config, None
    for part in key.split("."):
        if isinstance(value, BaseModel):
            field = type(value).model_fields.get(part)
            default = field.get_default(call_default_factory=True) if field else None
            value = getattr(value, part, None)
        else:
            value, default = value.get(part) if isinstance(value, Mapping) else None, None
    return value, default


def remarks(config: Distill) -> list[str]:
    """What is legal and of no use, with what it does: for warnings."""
    found = []
    trainers = {"trainer": config.trainer, "teacher.trainer": config.teacher.trainer}
    trainers |= {f"stages.{name}.trainer": stage.trainer for name, stage in config.stages.items()}
    for key, trainer in trainers.items():
        if trainer.learning_rate < 1e-10:
            found.append(
                f"{key}.learning_rate = {trainer.learning_rate:g}: fp32 weights do not change by so little; nothing is learnt"
            )
        if trainer.dropout == 1:
            found.append(
                f"{key}.dropout = 1: every value is dropped while the model is trained; it learns nothing from its input"
            )
        if 0 < trainer.max_grad_norm < 1e-6:
            found.append(
                f"{key}.max_grad_norm = {trainer.max_grad_norm:g}: gradients are scaled down to almost nothing; 0 turns this off"
            )
    datasets = {"dataset": config.dataset}
    datasets |= {
        f"stages.{name}.dataset": stage.dataset for name, stage in config.stages.items() if stage.dataset
    }
    for key, dataset in datasets.items():
        if dataset.max_length < 3 and dataset.kind not in ("causal_lm", "masked_lm"):  # which refuse it
            found.append(
                f"{key}.max_length = {dataset.max_length}: beside the special tokens no token of a text is left"
            )
    losses = {f"loss.{name}": term for name, term in config.loss.items()}
    losses |= {
        f"stages.{stage}.loss.{name}": term
        for stage, step in config.stages.items()
        for name, term in step.loss.items()
    }
    for key, term in losses.items():
        temperature = term.arguments.get("temperature")
        if isinstance(temperature, int | float) and term.weight > 0 and temperature < 1e-2:
            found.append(
                f"{key}.temperature = {temperature:g}: of each distribution only the likeliest class is left; it has almost no gradient"
            )
        if isinstance(temperature, int | float) and term.weight > 0 and temperature > 1e3:
            found.append(
                f"{key}.temperature = {temperature:g}: every distribution becomes uniform; almost nothing is left to learn"
            )
    if config.rollout.by != "dataset" and config.rollout.sampling_temperature > 10:
        found.append(
            f"rollout.sampling_temperature = {config.rollout.sampling_temperature:g}: tokens are drawn almost at random"
        )
    return found


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


def conf_dir() -> Path:
    """The packaged YAML files: inside the package in a wheel, beside it in a checkout."""
    inside = Path(__file__).parent / "conf"
    return inside if inside.is_dir() else Path(__file__).parent.parent / "conf"


def user_conf_dir() -> Path | None:
    """The user's own YAML files, from KDCLI_CONFIG_DIR.

    Raises:
        ConfigError: it is not a folder, or a file in it has the name of a packaged one.
    """
    given = os.environ.get("KDCLI_CONFIG_DIR")
    if not given:
        return None
    folder = user_path(given).absolute()
    if not folder.is_dir():
        raise ConfigError(f"the config folder {given} does not exist (--config-dir or KDCLI_CONFIG_DIR)")
    for packaged in sorted(conf_dir().rglob("*.yaml")):
        name = packaged.relative_to(conf_dir())
        if (folder / name).exists():
            raise ConfigError(
                f"{folder / name} has the name of a packaged config ({name}); give it another name"
            )
    return folder


def defaults(model: type[BaseModel]) -> dict[str, Any]:
    """The defaults of a schema as plain data for Hydra; keys without a default are missing ("???") there."""
    tree: dict[str, Any] = {}
    for name, field in model.model_fields.items():
        key = field.alias or name
        inner = _section(field.annotation)
        if field.is_required():
            tree[key] = defaults(inner) if inner else {} if _is_mapping(field.annotation) else "???"
        else:
            value = field.get_default(call_default_factory=True)
            tree[key] = value.model_dump(by_alias=True) if isinstance(value, BaseModel) else value
    return tree


def _section(annotation: Any) -> type[BaseModel] | None:
    """The model that an annotation names, also as `Model | None`."""
    models = (each for each in _options(annotation) if inspect.isclass(each) and issubclass(each, BaseModel))
    return next(models, None)


def _is_mapping(annotation: Any) -> bool:
    return typing.get_origin(annotation) is dict


LONGEST_NAME = 100
"""Characters of a name that somebody may have typed wrongly."""


def suggest(word: str, known: Iterable[str]) -> str:
    """`; did you mean X?` when something known is close, else an empty string; names too long to be typed are not compared."""
    if len(word) > LONGEST_NAME:
        return ""
    close = difflib.get_close_matches(word, [name for name in known if len(name) <= LONGEST_NAME], n=1)
    return f"; did you mean {close[0]}?" if close else ""


def check(
    schema: type[Section], tree: Mapping[str, Any], tell: Callable[[str], str] = lambda problem: problem
) -> Any:
    """The composed config as a checked instance of `schema`.

    Args:
        tell: what a message says of a problem, which begins with the key.

    Raises:
        ConfigError: with every problem found, one a line.
    """
    if secrets := list(_secrets(tree)):
        raise ConfigError("\n  ".join(["the config holds what must not be written down:", *secrets]))
    problems = [f"{key}: a value is needed; give {key}=…" for key in _missing(tree)]
    config = None
    try:
        config = schema.model_validate(tree)
    except ValidationError as error:
        problems += [_describe(schema, tree, item) for item in error.errors()]
    problems += _check_classes(schema, tree, "")
    if problems:
        head = "the config is wrong" if len(problems) == 1 else f"the config has {len(problems)} problems"
        raise ConfigError("\n  ".join([head + ":", *dict.fromkeys(map(tell, problems))]))
    return config


SENSITIVE = re.compile(
    r"(?:.*[-_])?(?:api[-_]?key|(?:access|secret|private|auth)[-_]?(?:key|token)|secret|authorization|passw(?:or)?d|passphrase|credentials?|"
    r"cookie|token)|key",
    re.IGNORECASE,
)
"""Names of parameters and headers whose value is a secret."""
KEY_PREFIX = re.compile(
    r"(?:sk|rk|pk|hf|ghp|gho|ghs|github_pat|glpat|xox[abeoprs]|gsk|nvapi|r8)[-_]\S|AKIA|ASIA|AIza|bearer\s",
    re.IGNORECASE,
)
"""How keys begin, where no ordinary value begins so."""


def secret_in(key: str, value: Any) -> str | None:
    """Why a value must not be written into a config, without the value; None: it may be.

    Args:
        key: where it stands, such as `teacher.parameters.api_key`.
    """
    name, text = key.rpartition(".")[2], str(value)
    remedy = "keep it in an environment variable and give that variable's name: teacher.api_key_env=NAME"
    if value is None or isinstance(value, bool) or text in ("", "null", "???"):
        return None
    if name == "api_key_env":
        words = text.split("_")
        if (
            not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", text)
            or KEY_PREFIX.match(text)
            or any(map(_random, words))
        ):
            return f"{key}: expected the name of an environment variable, such as OPENAI_API_KEY, and this looks like a key; {remedy}"
        return None
    if key.startswith("teacher.") and SENSITIVE.fullmatch(name):
        return f"{key}: a value of that name is a secret, which the run directory would keep; {remedy}"
    if looks_secret(text) or (key.startswith("teacher.parameters") and KEY_PREFIX.match(text)):
        return (
            f"{key}: its value looks like a key or a password, which the run directory would keep; {remedy}"
        )
    return None


def _random(word: str) -> bool:
    """Whether a word is more like the output of a random generator than like a part of a name."""
    return len(word) >= 28 or (
        len(word) >= 12 and bool(re.search(r"\d", word)) and bool(re.search("[A-Za-z]{2}", word))
    )


def _secrets(tree: Any, path: str = "") -> Iterator[str]:
    if isinstance(tree, Mapping):
        for key, value in tree.items():
            yield from _secrets(value, _below(path, key))
    elif isinstance(tree, list | tuple):
        for value in tree:
            yield from _secrets(value, path)
    elif problem := secret_in(path, tree):
        yield problem


def _missing(tree: Any, path: str = "") -> Iterable[str]:
    """The keys whose value nobody gave ("???" to Hydra)."""
    if isinstance(tree, Mapping):
        for key, value in tree.items():
            yield from _missing(value, f"{path}.{key}".lstrip("."))
    elif tree == "???":
        yield path


def _schema_at(schema: Any, path: str) -> type[BaseModel] | None:
    """The model that governs the mapping at `path`."""
    return _section(_annotation_at(schema, [part for part in path.split(".") if part]))


def _annotation_at(schema: Any, key: Sequence[str]) -> Any:
    """What the schema has at a key; None: nothing."""
    for part in key:
        if _is_mapping(schema):
            schema = typing.get_args(schema)[1]
        elif (model := _section(schema)) and part in model.model_fields:
            schema = model.model_fields[part].annotation
        else:
            return None
    return schema


def holds_mapping(schema: type[Section], key: Sequence[str]) -> bool:
    """Whether the schema has a mapping at a key."""
    annotation = _annotation_at(schema, key)
    return _section(annotation) is not None or _is_mapping(annotation)


def _keys(model: type[BaseModel] | None) -> list[str]:
    return [field.alias or name for name, field in model.model_fields.items()] if model else []


def _check_classes(annotation: Any, value: Any, path: str) -> Iterator[str]:
    """What is wrong with the components in a value, at any depth: a class is taken only where the annotation asks for one.

    Args:
        annotation: of the key or of the constructor's parameter that gets the value; None: nothing is known of it.
    """
    if isinstance(value, Mapping):
        model = _section(annotation)
        if model and issubclass(model, Component):
            yield from _check_component(model, [], value, path)
        elif model:  # it refuses the keys that it does not know
            for name, field in model.model_fields.items():
                yield from _check_classes(
                    field.annotation, value.get(field.alias or name), _below(path, name)
                )
        elif "_target_" in value and (kinds := _kinds(annotation)):
            yield from _check_component(Component, kinds, value, path)
        elif "_target_" in value:
            yield (
                f"{path}._target_: a class is built only where a component is expected, and {path} takes a plain value; "
                "leave _target_ out"
            )
        else:
            for key, inner in value.items():
                yield from _check_classes(_inner(annotation), inner, _below(path, key))
    elif isinstance(value, list | tuple):
        for number, inner in enumerate(value):
            yield from _check_classes(_inner(annotation), inner, _below(path, number))


def _check_component(
    model: type[Component], kinds: Sequence[type], node: Mapping[str, Any], path: str
) -> Iterator[str]:
    """What is wrong with one component.

    Args:
        model: the schema's part of it, and its kind …
        kinds: … unless these classes are given, of one of which it must be a subclass.
    """
    target = node.get("_target_")
    if not isinstance(target, str) or target == "???":
        if kinds:  # else the schema refuses it
            yield f"{path}._target_ = {shown(target)}: expected the name of a class, MODULE.NAME"
        return
    try:
        found = locate(target)
        require_kind(found, kinds or [locate(model.kind)])
    except ConfigError as error:
        yield f"{path}._target_ = {target}: {error}"
        return
    own, hints = {field.alias or name: field for name, field in model.model_fields.items()}, _hints(found)
    arguments = {key: value for key, value in node.items() if key not in own}
    signature = _signature(
        found,
        [key for key, value in arguments.items() if _mentions_class(value) and not _models(hints.get(key))],
    )
    try:
        signature.model_validate(arguments)
    except ValidationError as error:
        known = [*own, *signature.model_fields]
        for item in error.errors():
            yield _line(path, item, arguments, known, f"an argument of {target}")
    for key, value in node.items():
        annotation = own[key].annotation if key in own else hints.get(key)
        yield from _check_classes(annotation, value, _below(path, key))


def _below(path: str, key: Any) -> str:
    return f"{path}.{key}".lstrip(".")


def _options(annotation: Any) -> list[Any]:
    """The alternatives of a union, or the annotation itself."""
    if typing.get_origin(annotation) is Annotated:
        return _options(typing.get_args(annotation)[0])
    if typing.get_origin(annotation) in (types.UnionType, typing.Union):
        return [option for each in typing.get_args(annotation) for option in _options(each)]
    return [annotation]


def _kinds(annotation: Any) -> list[type]:
    """The classes of which an annotation asks for an instance. `object` and abstract types such as Mapping ask for none."""
    return [
        option
        for option in _options(annotation)
        if inspect.isclass(option)
        and option.__module__ not in ("builtins", "typing", "collections.abc")
        and not issubclass(option, BaseModel)
    ]


def _inner(annotation: Any) -> Any:
    """What the values of a mapping, or the items of a list, are; None: nothing is known of them."""
    for option in _options(annotation):
        if arguments := [each for each in typing.get_args(option) if each is not Ellipsis]:
            return arguments[-1]
    return None


def _models(annotation: Any) -> bool:
    """Whether pydantic checks values of this annotation by a model of the schema, also inside a list or a mapping."""
    return _section(annotation) is not None or any(map(_models, typing.get_args(annotation)))


def _mentions_class(value: Any) -> bool:
    if isinstance(value, Mapping):
        return "_target_" in value or any(map(_mentions_class, value.values()))
    return isinstance(value, list | tuple) and any(map(_mentions_class, value))


def require_kind(found: type, kinds: Sequence[type]) -> None:
    """Refuse a class that does not inherit from one of some classes (to be registered with an abstract one is not enough).

    Raises:
        ConfigError: it does not, or nothing can be built of it.
    """
    if not any(kind in found.__mro__ for kind in kinds):
        names = " or ".join(f"{kind.__module__}.{kind.__qualname__}" for kind in kinds)
        raise ConfigError(f"expected a subclass of {names}")
    if inspect.isabstract(found):
        raise ConfigError("it is abstract; name a class that can be built")


def import_named(module: str) -> types.ModuleType:
    """Import a module that a config names. With a folder of the user's own it may also lie in the working directory, which is
    looked through last, and for this import alone."""
    here = str(Path.cwd())
    added = bool(os.environ.get("KDCLI_CONFIG_DIR")) and here not in sys.path
    if added:
        sys.path.append(here)
    try:
        return importlib.import_module(module)
    finally:
        if added:
            sys.path.remove(here)


def locate(target: str) -> type:
    """The class that a dotted path names.

    Raises:
        ConfigError: there is no such module, or no such class in it.
    """
    module, _, name = target.rpartition(".")
    try:
        found = getattr(import_named(module), name, None)
    except (Exception, SystemExit) as error:  # the user's own module may fail in any way
        raise ConfigError(f"cannot be imported ({type(error).__name__}: {error})") from None
    if found is None:
        raise ConfigError(f"the module {module} has no {name}")
    if not inspect.isclass(found):
        raise ConfigError("it is no class")
    return found


def _hints(target: type) -> dict[str, Any]:
    """The annotations of the constructor's parameters."""
    try:
        return typing.get_type_hints(target.__init__, include_extras=True)  # type: ignore[misc]
    except (
        NameError,
        AttributeError,
        TypeError,
    ):  # only a type checker can read them: names are checked, types are not
        return {}


def _signature(target: type, components: Sequence[str] = ()) -> type[BaseModel]:
    """A pydantic model of the constructor's parameters, so that arguments are checked by the same means.

    Args:
        components: parameters whose values are still mappings with a `_target_`; those are checked by themselves.
    """
    hints = _hints(target)
    fields: dict[str, Any] = {}
    for name, parameter in inspect.signature(target).parameters.items():
        if parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD):
            continue
        default = ... if parameter.default is parameter.empty else parameter.default
        annotation = Any if name in components else hints.get(name, Any)
        if annotation in (int, float):
            annotation = Annotated[annotation, BeforeValidator(_whole)]
        fields[name] = (annotation, default)
    return create_model(
        "Arguments",
        __config__=ConfigDict(extra="forbid", arbitrary_types_allowed=True, protected_namespaces=()),
        **fields,
    )


def build(component: Component, kind: type) -> Any:
    """An instance of the component's class, called with its arguments; components among those are built first, where the
    constructor's annotation asks for one.

    Raises:
        ConfigError: it is not of this kind.
    """
    target = locate(component.target)
    try:
        require_kind(target, [kind])
    except ConfigError as error:
        raise ConfigError(f"_target_ = {component.target}: {error}") from None
    hints = _hints(target)
    arguments = {name: _built(hints.get(name), value) for name, value in component.arguments.items()}
    checked = _signature(target).model_validate(arguments)
    return target(**{name: getattr(checked, name) for name in arguments})


def _built(annotation: Any, value: Any) -> Any:
    """A value with the components in it built, as far as the annotation asks for them."""
    if _models(annotation):
        return value
    if isinstance(value, Mapping):
        if "_target_" in value and (kinds := _kinds(annotation)):
            inner = Component.model_validate(value)
            bases = locate(inner.target).__mro__
            return build(inner, next((kind for kind in kinds if kind in bases), kinds[0]))
        return {key: _built(_inner(annotation), inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [_built(_inner(annotation), inner) for inner in value]
    return value


def _describe(schema: type[Section], tree: Mapping[str, Any], item: Any) -> str:
    loc = [str(part) for part in item["loc"]]
    parent = _schema_at(schema, ".".join(loc[:-1]))
    return _line("", item, tree, _keys(parent), "a key")


def _line(path: str, item: Any, tree: Any, known: list[str], what: str) -> str:
    loc = [str(part) for part in item["loc"]]
    where = abbreviated(".".join(filter(None, [path, *loc]))) or "the config"
    if item["type"] == "extra_forbidden":
        return f"{where}: not {what}{suggest(loc[-1], known)} (known: {listed(sorted(known))})"
    if item["type"] == "missing":
        return f"{where}: a value is needed; give {where}=…"
    value = item.get("input")
    given = "" if isinstance(value, Mapping | BaseModel) else f" = {shown(value)}"
    message = item["msg"].removeprefix("Value error, ").replace("Input should be", "expected")
    message = re.sub(r"valid dictionary( or instance of \w+)?", "mapping of keys to values", message)
    return f"{where}{given}: {message}"
