"""Annotated types of config values: every number has both bounds."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field


def refuse_boolean(value: Any) -> Any:
    """Booleans are not numbers here: `trainer.max_steps=true` is a mistake, not 1."""
    if isinstance(value, bool):
        raise ValueError("expected a number, got a boolean")
    return value


def integers_are_names(value: Any) -> Any:
    """Integers are names as well: `dataset.labels=[0,1]`. Booleans are not: YAML's bare `no` is a mistake."""
    return str(value) if isinstance(value, int) and not isinstance(value, bool) else value


def backslash_t_is_tab(value: Any) -> Any:
    """A tab can hardly be typed on a command line; backslash-t can."""
    return "\t" if value == r"\t" else value


Int = Annotated[int, BeforeValidator(refuse_boolean)]
Float = Annotated[float, BeforeValidator(refuse_boolean), Field(allow_inf_nan=False)]
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
Name = Annotated[str, BeforeValidator(integers_are_names)]
Character = Annotated[str, Field(min_length=1, max_length=1), BeforeValidator(backslash_t_is_tab)]


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


class CheckpointConfig(Component):
    """Where a model comes from."""

    path: str | None = None
    """A local directory, a Hugging Face hub id, or `package:DISTRIBUTION/FOLDER` of an installed package."""
    revision: str | None = None
    """Branch, tag or commit of a hub id."""
    trust_remote_code: bool = False
    """Run the Python code that a hub repository ships. Off unless you trust its author."""


BatchSizes = Annotated[list[BatchSize], Field(min_length=1)]
