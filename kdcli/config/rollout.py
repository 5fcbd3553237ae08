"""Defines the keys of `rollout`: who generates the texts that the student learns from, and which of them it learns."""

from __future__ import annotations

import re
from typing import Annotated, Literal

from pydantic import Field, model_validator

from kdcli.config.types import (
    BatchSize,
    Beams,
    Characters,
    Copies,
    Float,
    Fraction,
    Int,
    SamplingTemperature,
    Section,
    Tokens,
)
from kdcli.errors import shown


class Filter(Section):
    """States which of the teacher's completions are dropped, besides empty ones. The report counts them by reason."""

    min_length: Annotated[Int, Field(ge=0, le=10**8)] = 0
    """The fewest characters of an answer."""
    max_length: Characters | None = None
    """The most characters of an answer; null: no limit."""
    refusals: list[str] = []
    """Regular expressions, matched at the beginning of an answer and ignoring case, of answers to drop."""
    duplicates: bool = True
    """Drop an answer that equals an earlier answer to the same prompt, ignoring case and white space."""
    function: str | None = None
    """MODULE.FUNCTION of your own, called with the row and the answer: answers for which it returns a false value are dropped."""

    @model_validator(mode="after")
    def _regular(self) -> Filter:
        for pattern in self.refusals:
            try:
                re.compile(pattern)
            except re.error as error:
                raise ValueError(
                    f"refusals: {shown(pattern)} is not a regular expression: {error}; correct it"
                ) from None
        return self


class Rollout(Section):
    """States who generates the texts that the student learns from: the completions (causal_lm) or the targets (seq2seq)."""

    source: Literal["dataset", "teacher", "student"] = "dataset"
    """dataset: nobody, its own texts are used; teacher: the teacher, once for each training prompt and before the student is trained
    (sequence-level distillation); student: the student during training, and the teacher scores each token (on-policy distillation)."""
    on_policy_fraction: Fraction = 0.5
    """source=student: the share of each batch's rows for which it generates the completion in the step."""
    buffer: Annotated[Int, Field(ge=1, le=64)] = 1
    """source=student: the number of optimizer steps whose completions the student generates together, in larger batches, before the first of these
    steps. The weights that generate a completion are up to buffer - 1 steps older than those that are trained on it."""
    engine: Literal["transformers", "vllm"] = "transformers"
    """source=student: what generates the student's completions: transformers, in the processes that train; vllm: a vLLM server, which kdcli starts
    on this machine and which gets the student's weights before each round of generation."""
    gpu_memory_fraction: Annotated[Float, Field(gt=0, le=1)] = 0.3
    """engine=vllm: the share of a GPU's memory for the server, with its weights and its cache. Training takes the rest."""
    max_new_tokens: Tokens = 64
    """The most tokens of a generated text."""
    sampling_temperature: SamplingTemperature = 1.0
    """Tokens are sampled from softmax(logits / sampling_temperature); 0: greedy decoding."""
    batch_size: BatchSize = 16
    """Prompts per generated batch."""
    num_beams: Beams = 1
    """seq2seq, source=teacher: the beam width of the search; it needs sampling_temperature=0."""
    length_penalty: Annotated[Float, Field(ge=-10, le=10)] = 1.0
    """Beam search divides the sum of log-probabilities by the length to this power."""
    candidates: Beams = 1
    """seq2seq, source=teacher: translations of each source, from the beams or sampled. The student learns the one that is nearest to the
    reference by sentence BLEU (Kim and Rush 2016, section 3.3); with 1 the likeliest."""
    keep_fraction: Annotated[Float, Field(gt=0, le=1)] = 1.0
    """source=teacher: the share of the generated texts that the student learns: those with the highest mean log-probability per token under
    the teacher."""

    answers: Copies = 1
    """source=teacher: sampled texts per prompt, each of which is learned; more than 1 needs sampling_temperature > 0."""
    expand: Annotated[Int, Field(ge=0, le=10**8)] = 0
    """source=teacher: further prompts that a remote teacher (teacher=openai) makes up after the example of the training rows, and answers."""
    filter: Filter = Filter()
    """source=teacher: which of the generated texts are dropped."""

    @model_validator(mode="after")
    def _several(self) -> Rollout:
        if self.source != "student" and self.buffer > 1:
            raise ValueError(
                f"buffer = {self.buffer}: it is for source=student, not source={self.source}; leave it out, or give rollout.source=student"
            )
        if self.source != "student" and self.engine != "transformers":
            raise ValueError(
                f"engine = {self.engine}: it is for source=student, not source={self.source}; leave it out, or give rollout.source=student"
            )
        if self.source != "teacher" and (self.answers > 1 or self.expand or self.filter != Filter()):
            raise ValueError(
                f"answers, expand, filter: they are for source=teacher, not source={self.source}; leave them out, or give rollout.source=teacher"
            )
        if self.answers > 1 and self.sampling_temperature == 0:
            raise ValueError(
                f"answers = {self.answers}: greedy decoding gives the same text each time; give sampling_temperature > 0"
            )
        if self.answers > 1 and self.candidates > 1:
            raise ValueError(
                "answers and candidates: all answers are learned, but of several candidates only one; give one of the two"
            )
        return self

    @model_validator(mode="after")
    def _beams(self) -> Rollout:
        if self.source != "teacher" and (self.num_beams > 1 or self.candidates > 1 or self.keep_fraction < 1):
            raise ValueError(
                f"num_beams, candidates, keep_fraction: they are for source=teacher, not source={self.source}; leave them out, or give rollout.source=teacher"
            )
        if self.num_beams > 1 and self.sampling_temperature > 0:
            raise ValueError(
                "num_beams: beam search does not sample; give sampling_temperature=0 (rollout=teacher has it)"
            )
        if self.sampling_temperature == 0 and self.candidates > self.num_beams:
            raise ValueError(
                f"candidates = {self.candidates}: a search with num_beams = {self.num_beams} finds no more than that; raise num_beams"
            )
        return self
