"""Defines how the models of a task predict for inputs without gold labels, in the form in which people and files read it."""

from __future__ import annotations

import importlib
import logging
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, ClassVar

import datasets
from transformers import PreTrainedTokenizerBase

from kdcli.config.dataset import Dataset as DatasetConfig
from kdcli.generation import Reply
from kdcli.tasks.base import Predictions, Task
from kdcli.tasks.rows import Row, RowSchema, require_text

logger = logging.getLogger(__name__)
LONGEST_CONTEXT = 4096
"""The maximum number of tokens of a prompt and its completion together."""
Values = tuple[Any, ...]
"""The values of an input, in the order of `Inference.fields`: a text, or a text and its pair; a list of words; the turns of a conversation."""
Prediction = dict[str, Any]
"""The input by its fields, and its prediction, as plain data."""


class Model(ABC):
    """A loaded model, in torch or in another runtime.

    Attributes:
        tokenizer: it tokenizes the inputs.
        max_length: the maximum number of tokens of an input.
        context: the maximum number of tokens of a prompt and its completion together.
    """

    tokenizer: PreTrainedTokenizerBase
    max_length: int
    context: int

    @abstractmethod
    def predictions(self, rows: datasets.Dataset) -> Predictions:
        """Return the predictions at all positions of the rows, of a model that generates no text."""

    @abstractmethod
    def replies(self, rows: datasets.Dataset, max_new_tokens: int | None) -> list[Reply]:
        """Return the greedily generated text of each row.

        Args:
            max_new_tokens: the maximum length; None: that of the model.
        """

    @abstractmethod
    def complete(
        self,
        prompt: Sequence[int],
        max_new_tokens: int,
        temperature: float = 0.0,
        seed: int = 0,
        listener: Callable[[int], object] | None = None,
    ) -> list[int]:
        """Continue the token ids of a prompt; of a causal language model. The returned tokens include the end token, if there is one.

        Args:
            temperature, seed: 0: greedy; otherwise tokens are sampled from softmax(logits / temperature).
            listener: called with each token as soon as it is known.
        """


class Inference(ABC):
    """Turns inputs into rows of a task, and predictions into plain data. There is one subclass for each packaged task that can be the task of a run.

    Args:
        task: with the labels of the model.
        cfg: the data set of the run, whose keys name the columns and the replacements in texts.

    Attributes:
        writes: whether the predictions are generated texts.
        chats: whether the model continues texts, so that it can hold a conversation.
    """

    writes: ClassVar[bool] = False
    chats: ClassVar[bool] = False

    def __init__(self, task: Task, cfg: DatasetConfig):
        self.task, self.cfg = task, cfg
        self.schema = task.row_schema(cfg).unlabelled()

    @property
    @abstractmethod
    def fields(self) -> Mapping[str, str]:
        """The names of an input's values, each with its column in the data of the run."""

    def check(self, values: Values, where: str) -> Values:
        """Check the values of an input.

        Raises:
            DataError: with a message that begins with `where`.
        """
        return tuple(
            require_text(value, f"the {field}", where)
            for field, value in zip(self.fields, values, strict=True)
        )

    @abstractmethod
    def predict(
        self, inputs: Sequence[Values], model: Model, max_new_tokens: int | None = None
    ) -> list[Prediction]:
        """Return what a model predicts for each input.

        Args:
            max_new_tokens: of models that generate text: the maximum length; None: that of the model.
        """

    @abstractmethod
    def cells(self, prediction: Prediction) -> dict[str, str]:
        """Return what is predicted as text, by the names of columns."""

    @abstractmethod
    def details(self, prediction: Prediction) -> tuple[list[str], list[list[str]]]:
        """Return all of a single prediction, as the columns and rows of a table; without columns it is plain text."""

    def echo(self, values: Values) -> Prediction:
        """Return the input as a prediction repeats it."""
        return dict(zip(self.fields, values, strict=True))


def warn_of_long(lengths: Sequence[int], most: int) -> None:
    """Warn that inputs are truncated.

    Args:
        lengths: the tokens of each.
        most: those that the model reads.
    """
    if long := sum(length > most for length in lengths):
        logger.warning(
            "%d of %d inputs have more than the %d tokens that the model reads, and are cut; shorten them, or split them",
            long,
            len(lengths),
            most,
        )


class InputRows(RowSchema):
    """Rows of inputs alone, for the readers of data files."""

    keys = "text=COLUMN"
    has_gold = False

    def __init__(self, cfg: DatasetConfig, inference: Inference, columns: Iterable[str]):
        super().__init__(cfg)
        self.inference, self.columns = inference, list(columns)

    def check(self, values: Values, where: str) -> Values:
        return self.inference.check(values, where)

    def row(self, values: Values, where: str) -> Row | None:
        return self.inference.echo(values)

    def group(self, row: Row) -> str:
        return ""


def inference_of(task: Task, cfg: DatasetConfig) -> Inference:
    """Return the inference of a task: the subclass in `kdcli/tasks/<family>/inference.py`."""
    module = importlib.import_module(f"kdcli.tasks.{task.spec.family}.inference")
    own = [
        value
        for value in vars(module).values()
        if isinstance(value, type) and value.__module__ == module.__name__
    ]
    kind = next(value for value in own if issubclass(value, Inference))
    return kind(task, cfg)
