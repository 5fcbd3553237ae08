"""What a task is: preprocessing, the collator, which positions count, and the scores."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar, Literal, Self

import datasets
import numpy as np
import torch
import transformers
from torch import Tensor
from transformers import PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

from kdcli.config.dataset import Dataset as DatasetConfig
from kdcli.config.schema import Distill, Measure
from kdcli.config.tasks import TaskSpec
from kdcli.features import capture_features
from kdcli.generation import Reply
from kdcli.model_files import require_layers
from kdcli.signals import PARTS, AnySignal, HiddenSignal, Part, Signal, TopKSignal, chunks
from kdcli.tasks.encoded import Encoded, SplitCache
from kdcli.tasks.presentation import Presentation
from kdcli.tasks.rows import RowSchema

ANY = 2**30
"""Tokens: more than any row has."""


@dataclass(frozen=True)
class Predictions:
    """What a model said of a split, at every counted position, in the rows' order.

    Attributes:
        answers: what the task keeps, by name: arrays of N positions.
        labels: int64, (N,).
        counts: positions of each row; they sum to N.
        texts: what it writes for each row, greedily, if the score needs it.
        pairs: then each row's source and reference.
    """

    answers: dict[str, np.ndarray]
    labels: np.ndarray
    counts: np.ndarray
    texts: Sequence[str] = ()
    pairs: Sequence[tuple[str, str]] = ()

    def __getitem__(self, name: str) -> np.ndarray:
        return self.answers[name]

    def means(self, values: np.ndarray) -> np.ndarray:
        """Each row's share in the mean of (N,) values over all positions: their mean over the rows is that mean.

        Where rows have several positions it is a ratio of two sums, linearised (Cochran 1977, section 6.3), so that
        resampling rows gives the interval of the ratio.
        """
        if len(self.counts) == len(values):
            return values
        rows = np.repeat(np.arange(len(self.counts)), self.counts)
        mean = values.mean()
        share = np.bincount(rows, values - mean, minlength=len(self.counts))
        return mean + share * len(self.counts) / len(values)


@dataclass(frozen=True)
class Split:
    """Rows in their raw form, and tokenized for the student; the row numbers are the same."""

    rows: datasets.Dataset
    encoded: Encoded


class Task(ABC):
    """What models are trained for: a subclass holds all that the rest of kdcli has to know of it.

    A packaged task is the one public class of `kdcli/tasks/<name>/task.py`. A user's own task is a subclass in the user's folder, named by
    `dataset.task=MODULE.CLASS`; it inherits most of what is here from a packaged one.

    Args:
        labels: the names of the classes, in the order of the logits; none where the classes are a vocabulary.
        chat: prompt and completion are turns of a conversation.
    """

    spec: ClassVar[TaskSpec]
    """What the config has to know of it."""
    row_schema: ClassVar[type[RowSchema]]
    """How its rows are read and checked."""
    presentation: ClassVar[Presentation]
    """How its results are shown."""
    model_kind: ClassVar[Literal["encoder", "causal_lm", "seq2seq"]]
    """What its models do when they are used: an encoder gives logits, a decoder and an encoder-decoder write text."""
    metric: ClassVar[str]
    """The headline metric: higher is better."""
    chance_is: ClassVar[str]
    """What `chance` is, in words."""
    head: ClassVar[tuple[str, ...]]
    """How the class names of models with a head for this task end (`architectures` in config.json)."""
    batch: ClassVar[int]
    """Rows that are scored at once."""
    auto: ClassVar[str]
    """The class of transformers that loads a model of the task."""
    vocabulary: ClassVar[bool] = False
    """The classes are the tokens of a vocabulary: teacher and student must share it, and signals are hidden, or their top k."""
    writes: ClassVar[bool] = False
    """Its models write text: either may write the completions."""
    quick: ClassVar[str] = ""
    """The metric that a model's answers alone tell, without what it writes; empty: the headline metric is one."""
    features: ClassVar[frozenset[Part]] = frozenset(PARTS)
    """What losses may read of its models' layers."""
    aligns: ClassVar[bool] = False
    """Teacher and student may have different tokenizers: `aligned` finds the positions that they share."""
    fits_rows: ClassVar[bool] = False
    """`prepare` cuts rows to what a tokenizer reads; `encode` refuses rows that another tokenizer cuts into too many tokens."""
    searches: ClassVar[bool] = False
    """Its models write by beam search as well, and several candidates for a row."""
    corpus: ClassVar[bool] = False
    """The metric is no mean over the rows, but made of sums over them (`sufficient_statistics`, `score_from_statistics`)."""

    def __init__(self, labels: Sequence[str] = (), chat: bool = False):
        self.labels = list(labels)
        self.chat = chat
        self._encoded = SplitCache()

    @classmethod
    def of(cls, cfg: DatasetConfig, labels: Sequence[str]) -> Self:
        """The task of a data set's rows."""
        return cls(labels, chat=cfg.chat or bool(cfg.messages))

    def shown(self, rows: datasets.Dataset) -> list[dict[str, str]]:
        """The `prompt` and the `reference` of each row, for a task that writes text."""
        return []

    @abstractmethod
    def configure(self, config: PreTrainedConfig) -> PreTrainedConfig:
        """Write what the task needs (number and names of labels) into a model's config."""

    def supports_architecture(self, kind: type[PreTrainedConfig]) -> bool:
        """Whether transformers has a model for this task of an architecture."""
        return kind in getattr(transformers, self.auto)._model_mapping

    def create(self, config: PreTrainedConfig) -> PreTrainedModel:
        """A model with random weights."""
        model: PreTrainedModel = getattr(transformers, self.auto).from_config(config)
        return model

    def load(self, path: Path, **kwargs: Any) -> tuple[PreTrainedModel, bool]:
        """The checkpoint as a model for this task, in eval mode, and whether its head is new (random).

        Raises:
            ModelError: its layers are not those of its weights.
        """
        model, info = getattr(transformers, self.auto).from_pretrained(
            path, output_loading_info=True, use_safetensors=True, dtype=torch.float32, **kwargs
        )
        require_layers(model, info)
        return model.eval(), bool(info["missing_keys"])

    @abstractmethod
    def encode(self, tokenizer: PreTrainedTokenizerBase, rows: Any, max_length: int) -> Encoded:
        """Tokenize a split's rows."""

    def encode_split(
        self, tokenizer: PreTrainedTokenizerBase, rows: datasets.Dataset, max_length: int
    ) -> Encoded:
        """`encode`, whose result is kept: the same rows are tokenized once by all tokenizers that do the same."""
        return self._encoded.get(tokenizer, rows, max_length, self.encode)

    def lengths(self, tokenizer: PreTrainedTokenizerBase, rows: Any) -> np.ndarray:
        """How many tokens each row has before anything is cut off, (N,); of pairs the longer side."""
        encoded = self.encode(tokenizer, rows, ANY)
        found = np.diff(encoded.offsets)
        return found if encoded.target_offsets is None else np.maximum(found, np.diff(encoded.target_offsets))

    @abstractmethod
    def collate(
        self, features: Sequence[dict[str, Any]], tokenizer: PreTrainedTokenizerBase
    ) -> dict[str, Tensor]:
        """Pad a batch to its longest row: the model's inputs, and `labels`."""

    @abstractmethod
    def positions(self, labels: Tensor) -> tuple[Any, Tensor]:
        """Which positions count.

        Returns:
            `pick`, an index into the model's positions, and the labels there, (N,); a batch's positions are in the
            order of its rows.
        """

    @abstractmethod
    def signal(
        self, model: PreTrainedModel, inputs: Mapping[str, Tensor], pick: Any
    ) -> Signal | HiddenSignal:
        """Run the model: what it says at the picked positions."""

    @abstractmethod
    def answers(
        self, said: Signal | TopKSignal, labels: Tensor, teacher: Signal | TopKSignal | None
    ) -> dict[str, Tensor]:
        """What is kept of a model's answers for the scores: tensors of N positions each."""

    @abstractmethod
    def scores(self, said: Predictions) -> dict[str, Any]:
        """All metrics; `scores[self.metric]` is the headline."""

    @abstractmethod
    def per_example_scores(self, said: Predictions) -> np.ndarray:
        """Each row's share of the headline metric, (rows,): its mean is the metric."""

    def sufficient_statistics(self, said: Predictions) -> np.ndarray:
        """What each row adds to the sums that the metric is made of, (rows, K); if `corpus`."""
        raise NotImplementedError

    def score_from_statistics(self, sums: np.ndarray) -> float:
        """The metric of such sums, (K,)."""
        raise NotImplementedError

    @abstractmethod
    def agreement(self, one: Predictions, other: Predictions) -> np.ndarray:
        """Where two models answer the same, bool (N,)."""

    @abstractmethod
    def divergence(self, teacher: Predictions, student: Predictions) -> np.ndarray:
        """KL(teacher ‖ student) in nats at temperature 1, (N,)."""

    def retention(self, student: float, teacher: float) -> float | None:
        """How much of the teacher's score a student keeps: the ratio."""
        return student / teacher if teacher else None

    @abstractmethod
    def chance(self, said: Predictions, classes: int) -> float:
        """The headline metric of a model that has learnt nothing from the text."""

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
        """The model's answers on every row, in the rows' order. Batches are made of rows of like length.

        Args:
            order: where the labels stand among the model's own.
            teacher: what the teacher says of rows by their numbers, where the answers compare with it.
        """
        parts: list[tuple[np.ndarray, dict[str, np.ndarray]]] = []
        counts = np.zeros(len(encoded), np.int64)
        for rows, said, labels in self.batches(model, tokenizer, encoded, self.batch, bf16, order):
            known = teacher(rows.tolist()).to(labels[0].device) if teacher is not None else None
            counts[rows] = [len(part) for part in labels]
            flat = torch.cat(labels)
            if known is not None:
                said = said.first(known.classes)
            kept: list[dict[str, Tensor]] = []
            for at in chunks(len(flat), said.classes):
                kept.append(
                    self.answers(said.rows(at), flat[at], known.rows(at) if known is not None else None)
                )
            found = {key: torch.cat([part[key] for part in kept]).cpu().numpy() for key in kept[0]}
            parts.append((rows, found | {"labels": flat.cpu().numpy()}))
        ends = np.cumsum(counts)
        out: dict[str, np.ndarray] = {}
        for rows, found in parts:
            places = np.concatenate([np.arange(ends[row] - counts[row], ends[row]) for row in rows])
            for key, values in found.items():
                whole = out.setdefault(key, np.empty((int(counts.sum()), *values.shape[1:]), values.dtype))
                whole[places] = values
        labels_ = out.pop("labels", np.empty(0, np.int64))
        return Predictions(out, labels_, counts)

    def completed(
        self,
        said: Predictions,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        encoded: Encoded,
        max_length: int,
    ) -> Predictions:
        """A model's answers with what it writes, where the score needs that."""
        return said

    def prepare_for_saving(  # noqa: B027
        self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, max_length: int
    ) -> None:
        """Write into a trained model what others need to use it as it was trained; before it is saved."""

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
        """Run a model over all rows: the rows' numbers, what it says at their positions, and each row's labels there."""
        model.eval()
        by_length = np.argsort(encoded.lengths, kind="stable")
        for start in range(0, len(by_length), batch_size):
            rows = by_length[start : start + batch_size]
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
        """One forward pass over rows as they come: what the model says at their positions, and each row's labels there.

        Args:
            order: where the labels stand among the model's own.
            parts: what is wanted of the model's inside.
        """
        batch = self.collate(features, tokenizer)
        batch.pop("rows")
        inputs = {name: tensor.to(model.device) for name, tensor in batch.items()}
        labels = inputs.pop("labels")
        pick, flat = self.positions(labels)
        with (
            torch.autocast(model.device.type, torch.bfloat16, enabled=bf16),
            capture_features(model, inputs, parts) as inside,
        ):
            said = replace(self.signal(model, inputs, pick), features=inside())
        if order is not None and isinstance(said, Signal):
            said = replace(said, logits=said.logits[:, order])
        return said, list(flat.split(self.counts(labels).tolist()))

    def counts(self, labels: Tensor) -> Tensor:
        """How many positions each row of a batch has: one."""
        return torch.ones(len(labels), dtype=torch.int64, device=labels.device)

    @abstractmethod
    def targets(self, encoded: Encoded) -> tuple[np.ndarray, np.ndarray]:
        """The labels at all counted positions, (N,), and how many each row has."""

    @abstractmethod
    def inputs(self, rows: datasets.Dataset, tokenizer: PreTrainedTokenizerBase) -> list[list[str]]:
        """What a model is given of each row when it is used: a text, or a text and its pair."""

    @torch.no_grad()
    def predictions_from_outputs(self, signal: AnySignal, encoded: Encoded) -> Predictions:
        """What signals at a split's positions amount to, as if their model had been run."""
        labels, counts = self.targets(encoded)
        flat = torch.from_numpy(labels)
        kept = []
        for at in chunks(len(flat), signal.classes):
            said = signal.rows(at)
            kept.append(self.answers(said, flat[at].to(said.device), None))
        return Predictions(
            {key: torch.cat([part[key] for part in kept]).cpu().numpy() for key in kept[0]}, labels, counts
        )

    def write(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        rows: datasets.Dataset,
        max_length: int,
        **options: Any,
    ) -> list[str]:
        """What a model answers to each row's prompt; as `replies`."""
        return [each.text for each in self.replies(model, tokenizer, rows, max_length, **options)]

    def replies(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        rows: datasets.Dataset,
        max_length: int,
        **options: Any,
    ) -> list[Reply]:
        """What a model answers to each row's prompt, and whether it came to its end; for tasks whose models write.

        Args:
            max_length: tokens of a prompt.
            options: as for `kdcli.generation.generate`.
        """
        raise NotImplementedError

    def nearest(self, candidates: Sequence[str], reference: str) -> str:
        """The candidate that is most like a reference; for tasks whose models search."""
        raise NotImplementedError

    def with_completion(self, row: Mapping[str, Any], text: str) -> dict[str, Any]:
        """The row with another answer to its prompt; for tasks whose models write."""
        raise NotImplementedError

    def require_same(self, rows: datasets.Dataset, teacher: Encoded, student: Encoded) -> None:
        """Refuse rows of which the teacher and the student count different tokens; for tasks over a vocabulary."""
        raise NotImplementedError

    def prepare(
        self, rows: datasets.Dataset, tokenizer: PreTrainedTokenizerBase, max_length: int
    ) -> datasets.Dataset:
        """A split's rows as they are trained on: as they are."""
        return rows

    # ---- what the task checks in a run ---------------------------------------------------------------------

    def check_rows(self, cfg: Distill, rows: int, gold: int) -> None:  # noqa: B027
        """Refuse settings of a run that do not suit its training rows.

        Args:
            rows, gold: how many training rows there are, and how many of them have gold labels or references.

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
        generate: Callable[[Sequence[Mapping[str, Any]]], list[str]],
        log_prob: Callable[[datasets.Dataset], float],
    ) -> Iterator[str]:
        """What is wrong with the texts that a teacher writes; looked at before all rows are written.

        Args:
            rows: some rows of the validation split.
            generate: the teacher's greedy text for each row.
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
        """Texts that a model writes for test rows beside those of its predictions; [] for tasks that score no such texts."""
        return []

    def sample_scores(
        self, samples: Sequence[str], predictions: Predictions, rows: datasets.Dataset
    ) -> dict[str, float]:
        """Further scores of a model, made of `generate_samples`; {} where there are none."""
        return {}

    def report_sections(
        self,
        rows: datasets.Dataset,
        predictions: Mapping[str, Predictions],
        samples: Mapping[str, Sequence[str]],
        cfg: Measure | None,
    ) -> dict[str, Any]:
        """The keys of report.json that only this task has.

        Args:
            rows: the test split.
            predictions, samples: by model; `generate_samples` of those that have some.
        """
        return {}

    def dataset_summary(self, cfg: DatasetConfig, dropped: Mapping[str, int]) -> dict[str, Any]:
        """What report.json says of the data set beside its sizes.

        Args:
            dropped: how many rows were dropped while it was loaded, by reason.
        """
        return {}

    # ---- what the task gives to other parts ----------------------------------------------------------------

    def snippet_constants(self, tokenizer: PreTrainedTokenizerBase, max_length: int) -> dict[str, Any]:
        """The constants of the scripts that run an exported model without kdcli."""
        return {"MAX_LENGTH": max_length, "CHAT": self.chat, "PREFIX": "", "GIVEN": []}

    def prompt(self, row: Mapping[str, Any]) -> str:
        """What a row asks of a model; for tasks whose models write."""
        raise NotImplementedError

    def with_prompt(self, row: Mapping[str, Any], text: str) -> dict[str, Any]:
        """A row like this one with another prompt and no answer; for tasks whose models write."""
        raise NotImplementedError

    def aligned(self, teacher: Encoded, student: Encoded) -> list[tuple[np.ndarray, np.ndarray]]:
        """Where two tokenizers begin a counted token at the same place of the text; if `aligns`.

        Returns:
            For each row the index of the teacher's token for each of the student's N counted tokens, (N,), and whether there is one,
            bool (N,).
        """
        raise NotImplementedError
