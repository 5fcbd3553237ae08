"""Defines annotated types of config values. Every number has both bounds."""

from __future__ import annotations

import re
import shlex
from typing import Annotated, Any, ClassVar, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field


def refuse_boolean(value: Any) -> Any:
    """Refuse a boolean in place of a number: `trainer.max_steps=true` is a mistake, not 1."""
    if isinstance(value, bool):
        raise ValueError("expected a number, got a boolean")
    return value


def numbers_are_names(value: Any) -> Any:
    """Turn a number into a name, as in `dataset.labels=[0,1]`.

    Raises:
        ValueError: it is a boolean, which YAML's bare `no` is too.
    """
    if isinstance(value, bool):
        quoted = f'"{value}"'
        raise ValueError(
            "expected a name, got a boolean; a name that YAML or Hydra reads as one (True, no, off) stands in quotes, on a command line "
            f"in quotes of its own: {shlex.quote(quoted)}"
        )
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    return str(value) if isinstance(value, int | float) else value


def one_is_a_list(value: Any) -> Any:
    """Turn a string or an integer into a list of it, as in `dataset.outside=NONE`; also a boolean, which the list's names refuse with a remedy."""
    return [value] if isinstance(value, str | int) else value


def backslash_t_is_tab(value: Any) -> Any:
    """Turn backslash-t into a tab, which is hard to type on a command line."""
    return "\t" if value == r"\t" else value


UNITS = {
    "B": 1,
    "KB": 10**3,
    "MB": 10**6,
    "GB": 10**9,
    "TB": 10**12,
    "KIB": 2**10,
    "MIB": 2**20,
    "GIB": 2**30,
    "TIB": 2**40,
}
"""The bytes of each unit, in upper case."""


def with_unit(value: Any) -> Any:
    """Turn a number with a unit into bytes: 2GB, 500 MB, 1.5GiB.

    Raises:
        ValueError: the unit is unknown.
    """
    if not isinstance(value, str):
        return value
    match = re.fullmatch(r"\s*(\d{1,15}(?:\.\d{1,15})?)\s*([A-Za-z]*)\s*", value)
    if match is None or (unit := match[2].upper() or "B") not in UNITS:
        raise ValueError("expected bytes, such as 2GB, 500MB or 1.5GiB")
    return float(match[1]) * UNITS[unit]


Int = Annotated[int, BeforeValidator(refuse_boolean)]
Float = Annotated[float, BeforeValidator(refuse_boolean), Field(allow_inf_nan=False)]
# Every number has both bounds. An upper bound is far above any useful value, and below values that make arithmetic overflow,
# that no machine can allocate, and that take years to compute.
Count = Annotated[Int, Field(ge=1, le=10**9)]
"""A count of anything, also for arguments of a user's own classes."""
Positive = Annotated[Float, Field(gt=0, le=1e12)]
"""An amount of money, or requests or tokens per minute; no service costs or takes as much."""
NonNegative = Annotated[Float, Field(ge=0, le=1e12)]
"""As `Positive`, or 0."""
Fraction = Annotated[Float, Field(ge=0, le=1)]
Seed = Annotated[Int, Field(ge=0, lt=2**32)]
"""The range of numpy's generator."""
Epochs = Annotated[Float, Field(gt=0, le=1e6)]
"""Passes over the training rows; a tiny data set may need 10**5."""
MOST_STEPS = 10**9
Steps = Annotated[Int, Field(ge=1, le=MOST_STEPS)]
"""Optimizer steps; at a thousand per second the bound takes 11 days."""
Rows = Annotated[Int, Field(ge=1, le=10**10)]
"""Rows of a data set; the largest public text collections have 10**10 documents."""
BatchSize = Annotated[Int, Field(ge=1, le=10**6)]
"""Rows per batch; the largest batches of language models have 10**5."""
Tokens = Annotated[Int, Field(ge=1, le=10**7)]
"""Tokens of one row or completion; the longest context of a published model is 10**7."""
Characters = Annotated[Int, Field(ge=1, le=10**8)]
"""Characters of one row or completion, about ten per token."""
LearningRate = Annotated[Float, Field(gt=0, le=1e30)]
"""AdamW changes a weight by about the learning rate in each step, and the sum must stay finite in fp32."""
WeightDecay = Annotated[Float, Field(ge=0, le=100)]
"""AdamW shrinks weights by the learning rate times this in each step; with 0.01 and the bound, nothing is left of them."""
GradNorm = Annotated[Float, Field(ge=0, le=1e12)]
"""The norm at which gradients are clipped; a bound that is never reached is a common way to log the norm alone."""
Weight = Annotated[Float, Field(ge=0, le=1e6)]
"""The weight of a loss term; above the bound, fp32 loses the other terms of the sum."""
Temperature = Annotated[Float, Field(gt=0, le=1e6)]
"""A softmax temperature; the loss is multiplied by its square, which must stay finite in fp32."""
SamplingTemperature = Annotated[Float, Field(ge=0, le=1e6)]
"""The temperature of sampling; from 1e3 on, all tokens are equally likely."""
Depth = Annotated[Int, Field(ge=1, le=1000)]
"""Layers of a model; the deepest published transformer has a thousand."""
LayerIndex = Annotated[Int, Field(ge=-(10**4), le=10**4)]
"""The index of a layer; -1 is the last one."""
Width = Annotated[Int, Field(ge=1, le=2**20)]
"""The width of a layer, or a number of heads; a square matrix of the largest width has 4 TB."""
VocabularySize = Annotated[Int, Field(ge=1, le=10**8)]
"""Tokens of a vocabulary; the largest published ones have 10**6."""
Beams = Annotated[Int, Field(ge=1, le=1000)]
"""Beams or candidates per row, which are in one batch."""
Copies = Annotated[Int, Field(ge=1, le=10**4)]
"""Copies or samples per row."""
Threads = Annotated[Int, Field(ge=1, le=4096)]
"""Threads; the largest machines have about two thousand."""
Runs = Annotated[Int, Field(ge=1, le=10**6)]
"""Repetitions of a measurement."""
Seconds = Annotated[Float, Field(gt=0, le=86_400)]
"""Seconds, at most a day."""
Rate = Annotated[Float, Field(gt=0, le=1e6)]
"""Requests per second; one process cannot send as many as the bound."""
Bytes = Annotated[Float, Field(gt=0, le=1e15)]
"""Bytes; a petabyte is above the memory and the disk of any one machine."""
Size = Annotated[Float, BeforeValidator(with_unit), Field(gt=0, le=1e15)]
"""Bytes, also with a unit: 2GB, 500MB, 1.5GiB."""
Dtype = Literal["fp32", "bf16", "fp16"]
"""The precision of a model's weights."""
Quantization = Literal["int8", "int4", "nf4"]
"""The numbers that hold the weights of linear layers."""
Milliseconds = Annotated[Float, Field(gt=0, le=1e9)]
"""Milliseconds; the bound is 11 days."""
Smoothing = Annotated[Float, Field(ge=0, lt=1)]
"""The share of the probability that is spread over all classes; 1 would leave nothing of the label."""
SplitSize = Annotated[Float, Field(gt=0, le=1e10)]
"""The size of a split: below 1 a share, else a number of rows."""
Location = str
"""The path of a file or a folder, or what stands for one: a hub id, `package:DISTRIBUTION/PATH`."""
Name = Annotated[str, BeforeValidator(numbers_are_names)]
Character = Annotated[str, Field(min_length=1, max_length=1), BeforeValidator(backslash_t_is_tab)]


class Section(BaseModel):
    """A mapping that allows no unknown keys."""

    model_config = ConfigDict(extra="forbid", frozen=True, defer_build=True)


class Component(BaseModel):
    """A mapping with a `_target_`. Keys that the schema does not know are arguments of that class."""

    model_config = ConfigDict(extra="allow", frozen=True, defer_build=True)
    kind: ClassVar[str] = "builtins.object"
    """The base class of `_target_`, as MODULE.NAME."""

    target: str = Field(alias="_target_")
    """The class of the component, MODULE.CLASS; its arguments are the other keys of the same mapping."""

    @property
    def arguments(self) -> dict[str, Any]:
        """The arguments for the constructor of `_target_`."""
        return dict(self.model_extra or {})


class CheckpointConfig(Component):
    """The origin of a model."""

    path: Location | None = None
    """A local directory, a Hugging Face hub id, or `package:DISTRIBUTION/FOLDER` of an installed package."""
    revision: str | None = None
    """Branch, tag or commit of a hub id."""
    trust_remote_code: bool = False
    """Run the Python code that a hub repository ships. Off unless you trust its author."""
    merge_adapter: bool = False
    """If `path` is an adapter of PEFT (LoRA and others), merge it into its base model, once on this machine."""


BatchSizes = Annotated[list[BatchSize], Field(min_length=1)]
