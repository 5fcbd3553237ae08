"""Defines the base class of tasks: preprocessing, collation, counted positions, scores, and all else that differs between tasks."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar, Self

import datasets
import numpy as np
import torch
import transformers
from torch import Tensor
from transformers import PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

from kdcli.config.dataset import Dataset as DatasetConfig
from kdcli.config.measure import Measure
from kdcli.config.schema import Distill
from kdcli.config.tasks import TaskSpec
from kdcli.errors import ConfigError, shown
from kdcli.features import capture_features
from kdcli.generation import Reply, unset_unused
from kdcli.model_files import require_body
from kdcli.signals import PARTS, AnySignal, HiddenSignal, Part, Signal, TopKSignal, chunks
from kdcli.tasks.encoded import Encoded, SplitCache
from kdcli.tasks.presentation import Presentation
from kdcli.tasks.rows import RowSchema
from kdcli.tasks.trivial import TrivialModel

ANY = 2**30
"""A number of tokens that no row exceeds."""


@dataclass(frozen=True)
class Predictions:
    """The predictions of a model on a split, at every counted position, in the order of the rows.

    Attributes:
        arrays: what `Task.reduce_outputs` returns, by name: arrays of N positions.
        labels: int64, (N,).
        counts: the positions of each row; they sum to N.
        texts: the text that it generates greedily for each row, if the score needs it.
        pairs: the source and the reference of each row, if there are texts.
    """

    arrays: dict[str, np.ndarray]
    labels: np.ndarray
    counts: np.ndarray
    texts: Sequence[str] = ()
    pairs: Sequence[tuple[str, str]] = ()

    def __getitem__(self, name: str) -> np.ndarray:
        return self.arrays[name]

    def means(self, values: np.ndarray) -> np.ndarray:
        """Return the share of each row in the mean of (N,) values over all positions, (rows,): the mean of the shares is that mean.

        If rows have several positions, the mean is a ratio of two sums over rows; it is linearised (Cochran 1977, section 6.3), so
        that resampling rows gives the interval of the ratio.
        """
        if len(self.counts) == len(values):
            return values
        rows = np.repeat(np.arange(len(self.counts)), self.counts)
        mean = values.mean()
        share = np.bincount(rows, values - mean, minlength=len(self.counts))
        return mean + share * len(self.counts) / len(values)


@dataclass(frozen=True)
class Split:
    """Raw rows, and the same rows tokenized for the student."""

    rows: datasets.Dataset
    encoded: Encoded


def batch_rows(encoded: Encoded, batch_size: int) -> Iterator[np.ndarray]:
    """Yield the indices of the rows of each batch: batches are made of rows of similar length."""
    by_length = np.argsort(encoded.lengths, kind="stable")
    for start in range(0, len(by_length), batch_size):
        yield by_length[start : start + batch_size]


def device_of(model: PreTrainedModel) -> torch.device:
    """Return the device of the weights of a model that are loaded."""
    devices = (weight.device for weight in model.parameters())
    return next((device for device in devices if device.type != "meta"), model.device)


class Task(ABC):
    """A kind of work that models are trained for. A subclass holds everything that the rest of kdcli knows about it.

    A packaged task is the one public class of `kdcli/tasks/<name>/task.py`. A user's own task is a subclass in the user's folder, named by
    `dataset.task=MODULE.CLASS`; it inherits most hooks from a packaged one.

    Args:
        labels: the names of the classes, in the order of the logits; empty if the classes are a vocabulary.
        chat: prompt and completion are turns of a conversation.
    """

    spec: ClassVar[TaskSpec]
    """The declarations that the config reads."""
    row_schema: ClassVar[type[RowSchema]]
    """The schema that reads and checks its rows."""
    presentation: ClassVar[Presentation]
    """The presentation of its results."""
    metric: str
    """The name of the headline metric; higher is better."""
    further_metrics: ClassVar[tuple[str, ...]] = ()
    """Other metrics that may be the headline metric (`choose_metric`)."""
    chance_is: str
    """A description of `chance`, for messages."""
    head: ClassVar[tuple[str, ...]]
    """The endings of the class names of models with a head for this task (`architectures` in config.json)."""
    batch: ClassVar[int]
    """The number of rows that are scored at once."""
    auto: ClassVar[str]
    """The class of transformers that loads a model of the task."""
    vocabulary: ClassVar[bool] = False
    """Whether the classes are the tokens of a vocabulary, which teacher and student must share. Signals then hold hidden states, or the top k."""
    writes: ClassVar[bool] = False
    """Whether its models generate text, so that teacher or student may write the completions."""
    metric_of_outputs: ClassVar[str] = ""
    """The metric that needs no generated text, for quick checks; empty: the headline metric needs none."""
    features: ClassVar[frozenset[Part]] = frozenset(PARTS)
    """The features that losses may read."""
    aligns: ClassVar[bool] = False
    """Whether teacher and student may have different tokenizers, whose shared positions `aligned` finds."""
    fits_rows: ClassVar[bool] = False
    """Whether `prepare` truncates rows for a tokenizer, and `encode` refuses rows that another tokenizer splits into too many tokens."""
    searches: ClassVar[bool] = False
    """Whether its models also generate by beam search, and several candidates for a row."""
    calibrates: ClassVar[bool] = False
    """Whether a temperature can be fitted: `reduce_outputs` returns `logits` over the labels, and the models have an output layer for them."""
    regularized: ClassVar[bool] = False
    """Whether students with new layers have token dropout and a lower learning rate of the embeddings by default, as measured on classifiers."""
    checked_tokens: ClassVar[int] = 256
    """The maximum length of the texts that `teacher_findings` checks."""
    scores_untrained: ClassVar[bool] = False
    """Whether the report also has the scores of the student's initialisation, before any training."""
    corpus: bool = False
    """Whether the metric is not a mean over rows, but a function of sums over rows (`sufficient_statistics`, `score_from_statistics`)."""

    def __init__(self, labels: Sequence[str] = (), chat: bool = False):
        self.labels = list(labels)
        self.chat = chat
        self._encoded = SplitCache()

    @classmethod
    def from_config(cls, cfg: DatasetConfig, labels: Sequence[str]) -> Self:
        """Return the task for a data set."""
        return cls(labels, chat=cfg.chat or bool(cfg.messages))

    def choose_metric(self, metric: str | None) -> Self:
        """This task with another headline metric; None: its own.

        Raises:
            ConfigError: it has no such metric.
        """
        if metric not in (None, self.metric, *self.further_metrics):
            names = ", ".join((self.metric, *self.further_metrics))
            raise ConfigError(
                f"metric = {shown(metric)}: the headline metric of this task is one of: {names}; choose one of them, or leave metric out"
            )
        self.metric = metric or self.metric
        return self

    def prompts_and_references(self, rows: datasets.Dataset) -> list[dict[str, str]]:
        """Return the `prompt` and the `reference` of each row, for a task that writes text."""
        return []

    @abstractmethod
    def configure(self, config: PreTrainedConfig) -> PreTrainedConfig:
        """Write the number and the names of the labels, or other settings of the task, into a model's config."""

    def supports_architecture(self, architecture: type[PreTrainedConfig]) -> bool:
        """Return whether transformers has a model for this task with this architecture."""
        return architecture in getattr(transformers, self.auto)._model_mapping

    def create(self, config: PreTrainedConfig) -> PreTrainedModel:
        """Return a model with random weights."""
        model: PreTrainedModel = getattr(transformers, self.auto).from_config(config)
        return model

    def load(self, path: Path, **kwargs: Any) -> tuple[PreTrainedModel, bool]:
        """Load the checkpoint as a model for this task, in eval mode; also return whether its head is new (random).

        Raises:
            ModelError: its body is not that of its weights.
        """
        model, info = self.from_pretrained(path, **kwargs)
        require_body(model, info)
        self.check_loaded(model.eval())
        return model, bool(info["missing_keys"])

    def check_loaded(self, model: PreTrainedModel) -> None:  # noqa: B027
        """Check that the outputs of a loaded model can be used for the task.

        Raises:
            ModelError
        """

    def from_pretrained(self, path: Path, **kwargs: Any) -> tuple[PreTrainedModel, dict[str, Any]]:
        """Return the checkpoint as a model for this task, which can be saved, and the report of transformers: which weights are missing or left over.

        Args:
            kwargs: arguments of transformers; without a dtype the weights are fp32.
        """
        options = {"output_loading_info": True, "use_safetensors": True, "dtype": torch.float32} | kwargs
        model, info = getattr(transformers, self.auto).from_pretrained(path, **options)
        unset_unused(getattr(model, "generation_config", None))
        return model, info

    @abstractmethod
    def encode(self, tokenizer: PreTrainedTokenizerBase, rows: Any, max_length: int) -> Encoded:
        """Tokenize a split's rows."""

    def encode_split(
        self, tokenizer: PreTrainedTokenizerBase, rows: datasets.Dataset, max_length: int
    ) -> Encoded:
        """`encode` with a cache: the same rows are tokenized once for all tokenizers that give the same tokens."""
        return self._encoded.get(tokenizer, rows, max_length, self.encode)

    def lengths(self, tokenizer: PreTrainedTokenizerBase, rows: Any) -> np.ndarray:
        """Return the number of tokens of each row before truncation, (N,); of a pair that of the longer side."""
        encoded = self.encode(tokenizer, rows, ANY)
        sides = [side for side in (encoded.offsets, encoded.target_offsets) if side is not None]
        return np.max([np.diff(side) for side in sides], axis=0)

    @abstractmethod
    def collate(
        self, features: Sequence[dict[str, Any]], tokenizer: PreTrainedTokenizerBase
    ) -> dict[str, Tensor]:
        """Pad a batch to its longest row, and return the model's inputs and `labels`."""

    def soft_gold(self, features: Sequence[dict[str, Any]]) -> dict[str, Tensor]:
        """Return what losses on gold labels take in place of `labels`: `votes`, the share of each label at the counted positions of a batch, fp32 (N, C);
        empty: each position has one label."""
        return {}

    @abstractmethod
    def positions(self, labels: Tensor) -> tuple[Any, Tensor]:
        """Select the positions that count.

        Returns:
            `pick`, an index into the model's positions, and the labels there, (N,); a batch's positions are in the
            order of its rows.
        """

    @abstractmethod
    def signal(
        self, model: PreTrainedModel, inputs: Mapping[str, Tensor], pick: Any
    ) -> Signal | HiddenSignal:
        """Run the model, and return its outputs at the picked positions."""

    @abstractmethod
    def reduce_outputs(
        self, outputs: Signal | TopKSignal, labels: Tensor, teacher: Signal | TopKSignal | None
    ) -> dict[str, Tensor]:
        """Reduce outputs at N positions to the tensors (N, …) that the scores need.

        Args:
            teacher: the teacher's outputs at these positions; None: the scores do not compare with them.
        """

    @abstractmethod
    def scores(self, predictions: Predictions) -> dict[str, Any]:
        """Compute all metrics; `scores[self.metric]` is the headline metric."""

    @abstractmethod
    def per_example_scores(self, predictions: Predictions) -> np.ndarray:
        """Return the share of each row in the headline metric, (rows,): the mean of the shares is the metric."""

    def sufficient_statistics(self, predictions: Predictions) -> np.ndarray:
        """Return the terms that each row adds to the sums from which the metric is computed, (rows, K); if `corpus`."""
        raise NotImplementedError

    def score_from_statistics(self, sums: np.ndarray) -> float:
        """Return the metric, computed from the sums (K,)."""
        raise NotImplementedError

    @abstractmethod
    def agreement(self, first: Predictions, second: Predictions) -> np.ndarray:
        """Return where two models predict the same, bool (N,)."""

    @abstractmethod
    def divergence(self, teacher: Predictions, student: Predictions) -> np.ndarray:
        """KL(teacher ‖ student) in nats at temperature 1, (N,)."""

    def retention(self, student: float, teacher: float) -> float | None:
        """Return the share of the teacher's score that a student retains: the ratio of their scores."""
        return student / teacher if teacher else None

    @abstractmethod
    def chance(self, predictions: Predictions, classes: int) -> float:
        """Return the headline metric of the best prediction that does not look at the text."""

    def chance_predictions(self, predictions: Predictions) -> Predictions | None:
        """Return the best predictions for the same rows that do not depend on their texts (seq2seq: copies of the texts). A model that has learned
        something scores more. None: there are none."""
        return None

    def balanced(self, predictions: Predictions) -> Task | None:
        """Return the task with a metric that counts all classes alike, if nearly all of these rows are of one class; else None."""
        return None

    @torch.no_grad()
    def predict(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        encoded: Encoded,
        bf16: bool = False,
        order: Sequence[int] | None = None,
        teacher: Callable[[Sequence[int]], AnySignal] | None = None,
    ) -> Predictions:
        """Run a model on every row. Batches are made of rows of similar length; the predictions are in the order of the rows.

        Args:
            order: the index of each label among the model's own labels.
            teacher: returns the teacher's outputs for rows by their indices, if the scores compare with them.
        """
        parts: list[tuple[np.ndarray, dict[str, np.ndarray]]] = []
        counts = np.zeros(len(encoded), np.int64)
        for rows, outputs, labels in self.batches(model, tokenizer, encoded, self.batch, bf16, order):
            reference = teacher(rows.tolist()).to(labels[0].device) if teacher is not None else None
            counts[rows] = [len(part) for part in labels]
            flat = torch.cat(labels)
            if reference is not None:
                outputs = outputs.first(reference.classes)
            reduced = [
                self.reduce_outputs(
                    outputs.rows(at), flat[at], reference.rows(at) if reference is not None else None
                )
                for at in chunks(len(flat), outputs.classes)
            ]
            arrays = {key: torch.cat([part[key] for part in reduced]).cpu().numpy() for key in reduced[0]}
            parts.append((rows, arrays | {"labels": flat.cpu().numpy()}))
        ends = np.cumsum(counts)
        joined: dict[str, np.ndarray] = {}
        for rows, arrays in parts:
            positions = np.concatenate([np.arange(ends[row] - counts[row], ends[row]) for row in rows])
            for key, values in arrays.items():
                shape = (int(counts.sum()), *values.shape[1:])
                joined.setdefault(key, np.empty(shape, values.dtype))[positions] = values
        flat_labels = joined.pop("labels", np.empty(0, np.int64))
        return Predictions(joined, flat_labels, counts)

    def add_texts(
        self,
        predictions: Predictions,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        encoded: Encoded,
        max_length: int,
    ) -> Predictions:
        """Add the texts that a model generates, if the score needs them."""
        return predictions

    def prepare_for_saving(  # noqa: B027
        self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, max_length: int
    ) -> None:
        """Write into a trained model, before it is saved, the settings that its users need."""

    @torch.no_grad()
    def batches(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        encoded: Encoded,
        batch_size: int,
        bf16: bool,
        order: Sequence[int] | None = None,
    ) -> Iterator[tuple[np.ndarray, Signal | HiddenSignal, list[Tensor]]]:
        """Run a model on all rows, and yield the indices of the rows of a batch, the outputs at their positions, and the labels of each row."""
        model.eval()
        for rows in batch_rows(encoded, batch_size):
            features = [encoded[int(row)] for row in rows]
            yield rows, *self.forward_rows(model, tokenizer, features, bf16, order)

    @torch.no_grad()
    def forward_rows(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        features: Sequence[dict[str, Any]],
        bf16: bool,
        order: Sequence[int] | None = None,
        parts: frozenset[Part] = frozenset(),
    ) -> tuple[Signal | HiddenSignal, list[Tensor]]:
        """Run one forward pass: return the outputs at the positions of the rows, and the labels of each row there.

        Args:
            order: the index of each label among the model's own labels.
            parts: the features that are captured.
        """
        batch = self.collate(features, tokenizer)
        batch.pop("rows")
        device = device_of(model)
        inputs = {name: tensor.to(device) for name, tensor in batch.items()}
        labels = inputs.pop("labels")
        pick, flat = self.positions(labels)
        with (
            torch.autocast(device.type, torch.bfloat16, enabled=bf16),
            capture_features(model, inputs, parts) as captured,
        ):
            outputs = replace(self.signal(model, inputs, pick), features=captured())
        if order is not None and isinstance(outputs, Signal):
            outputs = replace(outputs, logits=outputs.logits[:, order])
        return outputs, list(flat.split(self.counts(labels).tolist()))

    def counts(self, labels: Tensor) -> Tensor:
        """Return the number of positions of each row of a batch, which is 1 by default."""
        return torch.ones(len(labels), dtype=torch.int64, device=labels.device)

    @abstractmethod
    def targets(self, encoded: Encoded) -> tuple[np.ndarray, np.ndarray]:
        """Return the labels at all counted positions, (N,), and the number of positions of each row."""

    @abstractmethod
    def inputs(self, rows: datasets.Dataset, tokenizer: PreTrainedTokenizerBase) -> list[list[str]]:
        """Return the input of a deployed model for each row: a text, or a text and its pair."""

    @torch.no_grad()
    def predictions_from_outputs(self, signals: Iterable[AnySignal], encoded: Encoded) -> Predictions:
        """Return the predictions that the outputs of consecutive rows, all of the split, amount to, as if their model had been run."""
        labels, counts = self.targets(encoded)
        left, reduced = torch.from_numpy(labels), []
        for signal in signals:
            for outputs, at in ((signal.rows(at), at) for at in chunks(len(signal), signal.classes)):
                reduced.append(self.reduce_outputs(outputs, left[at].to(outputs.device), None))
            left = left[len(signal) :]
        arrays = {key: torch.cat([part[key] for part in reduced]).cpu().numpy() for key in reduced[0]}
        return Predictions(arrays, labels, counts)

    def write(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        rows: datasets.Dataset,
        max_length: int,
        **options: Any,
    ) -> list[str]:
        """Return the text that a model generates for each row; as `replies`."""
        return [each.text for each in self.replies(model, tokenizer, rows, max_length, **options)]

    def replies(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        rows: datasets.Dataset,
        max_length: int,
        **options: Any,
    ) -> list[Reply]:
        """Return the text that a model generates for each row, and whether it is complete; for tasks whose models write.

        Args:
            max_length: the maximum number of tokens of a prompt.
            options: as for `kdcli.generation.generate`.
        """
        raise NotImplementedError

    def nearest(self, candidates: Sequence[str], reference: str) -> str:
        """Return the candidate that is most similar to a reference; for tasks whose models search."""
        raise NotImplementedError

    def with_completion(self, row: Mapping[str, Any], text: str) -> dict[str, Any]:
        """Return the row with another completion; for tasks whose models write."""
        raise NotImplementedError

    def require_same(self, rows: datasets.Dataset, teacher: Encoded, student: Encoded) -> None:
        """Refuse rows in which teacher and student count different tokens; for tasks over a vocabulary."""
        raise NotImplementedError

    def prepare(
        self, rows: datasets.Dataset, tokenizer: PreTrainedTokenizerBase, max_length: int
    ) -> datasets.Dataset:
        """Prepare the rows of a split for a tokenizer: pack, cut or drop them. The default returns them unchanged."""
        return rows

    # ---- what the task checks in a run ---------------------------------------------------------------------

    def check_rows(self, cfg: Distill, rows: int, gold: int) -> None:  # noqa: B027
        """Refuse settings of a run that do not suit its training rows.

        Args:
            rows, gold: the number of training rows, and of those with gold labels or references.

        Raises:
            ConfigError
        """

    def check_models(  # noqa: B027
        self, cfg: Distill, models: Iterable[PreTrainedConfig], generate: bool
    ) -> None:
        """Refuse settings of a run that its models cannot follow.

        Args:
            models: the configs of the teachers and of the student's checkpoint.
            generate: these models write the completions, not a remote teacher.

        Raises:
            ConfigError
        """

    def warn_of_truncation(self, encoded: Encoded, max_length: int) -> None:  # noqa: B027
        """Warn if training rows are truncated in a way that changes what is learned."""

    def teacher_findings(
        self,
        rows: datasets.Dataset,
        generate: Callable[[datasets.Dataset], list[Reply]],
        log_prob: Callable[[datasets.Dataset], float],
    ) -> Iterator[str]:
        """Check the texts that a teacher generates, and yield what is wrong with them; called before it writes all rows.

        Args:
            rows: some rows of the validation split.
            generate: the teacher's greedy text for each row, of at most `checked_tokens` tokens; [] if it writes no text.
            log_prob: the mean log-probability that the teacher gives a counted token of rows, in nats.
        """
        yield from ()

    # ---- what the task reports -----------------------------------------------------------------------------

    def generate_samples(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        rows: datasets.Dataset,
        max_length: int,
        cfg: Measure | None,
    ) -> list[str]:
        """Generate texts for test rows in addition to those of `Predictions`; [] for tasks that score none."""
        return []

    def sample_scores(
        self, samples: Sequence[str], predictions: Predictions, rows: datasets.Dataset
    ) -> dict[str, float]:
        """Return the scores of `generate_samples`."""
        return {}

    def report_sections(
        self,
        rows: datasets.Dataset,
        predictions: Mapping[str, Predictions],
        samples: Mapping[str, Sequence[str]],
        cfg: Measure | None,
    ) -> dict[str, Any]:
        """Return the keys of report.json that only this task has.

        Args:
            rows: the test split.
            predictions, samples: by model; `generate_samples` of those that have some.
        """
        return {}

    def dataset_summary(self, cfg: DatasetConfig, dropped: Mapping[str, int]) -> dict[str, Any]:
        """Return what report.json holds about the data set besides its sizes.

        Args:
            dropped: the number of rows that were dropped while it was loaded, by reason.
        """
        return {}

    def trivial(self, tokenizer: PreTrainedTokenizerBase, seed: int) -> TrivialModel | None:
        """Return the model without a neural network with which the report compares the student, before it is trained; None: there is none.

        Args:
            tokenizer: the student's.
        """
        return None

    # ---- what the task gives to other parts ----------------------------------------------------------------

    def snippet_constants(self, tokenizer: PreTrainedTokenizerBase, max_length: int) -> dict[str, Any]:
        """Return the constants of the scripts that run an exported model without kdcli."""
        return {"MAX_LENGTH": max_length, "CHAT": self.chat, "PREFIX": "", "GIVEN": []}

    def prompt(self, row: Mapping[str, Any]) -> str:
        """Return the prompt of a row; for tasks whose models write."""
        raise NotImplementedError

    def with_prompt(self, row: Mapping[str, Any], text: str) -> dict[str, Any]:
        """Return a row like this one with another prompt and no completion; for tasks whose models write."""
        raise NotImplementedError

    def aligned(self, teacher: Encoded, student: Encoded) -> list[tuple[np.ndarray, np.ndarray]]:
        """Return where two tokenizers begin a counted token at the same character; if `aligns`.

        Returns:
            For each row the index of the teacher's token for each of the student's N counted tokens, (N,), and whether there is one,
            bool (N,).
        """
        raise NotImplementedError
