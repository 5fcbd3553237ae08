"""Initialises a student of a given size with random weights, optionally with embeddings from the teacher."""

from __future__ import annotations

from typing import Any, Literal

import datasets
import numpy as np
import torch
from transformers import (
    CONFIG_MAPPING,
    AutoConfig,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from kdcli.config.types import Depth, Fraction, Width
from kdcli.errors import ConfigError, suggest
from kdcli.models.checkpoint import (
    Checkpoint,
    first_position,
    load_config,
    load_model,
    load_tokenizer,
    trainable,
)
from kdcli.models.vocabulary import count_ids, count_segments
from kdcli.students.base import LEARNING_RATE, StudentInitializer
from kdcli.students.pretrained import from_checkpoint
from kdcli.tasks.base import Task
from kdcli.tasks.encoded import Encoded

SPREAD = 0.05
"""The standard deviation of inherited embeddings, as in a trained BERT."""
DROPOUT = ("hidden_dropout_prob", "attention_probs_dropout_prob", "attention_dropout")
"""The config names of the dropout of hidden states and of attention."""
MOST_TOKENS = 512
"""The maximum number of tokens of a row whose frequency is counted."""


class FromConfig(StudentInitializer):
    """Creates a model of the given size over the teacher's vocabulary. With `student.path`, it loads that checkpoint.

    Args:
        hidden_size: the width of the hidden states; a multiple of num_attention_heads.
        num_hidden_layers: the number of transformer layers.
        num_attention_heads: the number of attention heads of each layer.
        intermediate_size: the width of the feed-forward layers.
        model_type: the architecture by its name in transformers.
        num_key_value_heads: for an architecture whose heads share keys and values; null: as many as heads.
        dropout: the dropout of hidden states and attention during training.
        embeddings: random, or those of the teacher: its word and position embeddings, projected to the student's
            width by the principal components with the most variance (tokens are weighted by their frequency in the
            training rows). A small student cannot learn thirty thousand vectors from a few thousand rows; inherited
            embeddings of related words are already near each other. If the student is wider than the teacher, the
            remaining columns are random.
    """

    learning_rate = 1e-3
    token_dropout = 0.15

    def __init__(
        self,
        hidden_size: Width,
        num_hidden_layers: Depth,
        num_attention_heads: Width,
        intermediate_size: Width,
        model_type: str = "bert",
        num_key_value_heads: Width | None = None,
        dropout: Fraction = 0.1,
        embeddings: Literal["random", "teacher"] = "random",
    ):
        if hidden_size % num_attention_heads:
            raise ConfigError(
                f"student.hidden_size = {hidden_size} is not a multiple of num_attention_heads = {num_attention_heads}"
            )
        if model_type not in CONFIG_MAPPING:
            raise ConfigError(
                f"student.model_type = {model_type} is not known{suggest(model_type, CONFIG_MAPPING)}"
            )
        self.model_type, self.embeddings = model_type, embeddings
        self.embedding_learning_rate_factor = 0.1 if embeddings == "teacher" else 1.0
        self.reads_teacher = embeddings == "teacher"
        self.shape: dict[str, Any] = {
            "hidden_size": hidden_size,
            "num_hidden_layers": num_hidden_layers,
            "num_attention_heads": num_attention_heads,
            "intermediate_size": intermediate_size,
        }
        if num_key_value_heads:
            self.shape["num_key_value_heads"] = num_key_value_heads
            if num_attention_heads % num_key_value_heads:
                raise ConfigError(
                    f"student.num_attention_heads = {num_attention_heads} is not a multiple of num_key_value_heads = "
                    f"{num_key_value_heads}"
                )
        keys = set(dir(CONFIG_MAPPING[model_type]))
        if lacking := [key for key in self.shape if key not in keys]:
            raise ConfigError(
                f"student.model_type = {model_type} has no {', '.join(lacking)}; take one like bert, roberta or llama"
            )
        self.shape |= {key: dropout for key in DROPOUT if key in keys}

    def start_from(self, source: Checkpoint) -> None:
        """Take a checkpoint, which is trained as other checkpoints are."""
        super().start_from(source)
        self.learning_rate, self.embedding_learning_rate_factor, self.token_dropout = LEARNING_RATE, 1.0, 0.0

    def architecture(self) -> type[PreTrainedConfig] | None:
        """Return the architecture of `model_type`, or that of the checkpoint."""
        return super().architecture() or CONFIG_MAPPING[self.model_type]

    def skeleton(self, task: Task, teacher: Checkpoint, model: PreTrainedModel) -> PreTrainedModel | None:
        """Return a model of this size, or the checkpoint's."""
        if self.source is not None:
            return model
        with torch.device("meta"):
            return self._create(task, teacher)

    def _create(self, task: Task, teacher: Checkpoint) -> PreTrainedModel:
        """Return the model with random weights."""
        tokenizer = load_tokenizer(teacher)
        special = {
            f"{name}_token_id": getattr(tokenizer, f"{name}_token_id") for name in ("pad", "bos", "eos")
        }
        if (segments := count_segments(tokenizer)) > 2:
            special["type_vocab_size"] = segments
        if task.vocabulary:  # the teacher's number of positions, and tied input and output embeddings
            inner = load_config(teacher).get_text_config()
            special |= {"tie_word_embeddings": True}
            if positions := getattr(inner, "max_position_embeddings", None):  # BLOOM has no limit
                special["max_position_embeddings"] = positions
        config = AutoConfig.for_model(
            self.model_type, vocab_size=count_ids(tokenizer.get_vocab()), **special, **self.shape
        )
        try:
            return task.create(task.configure(config))
        except ValueError as error:
            raise ConfigError(f"student.model_type = {self.model_type} has no model for this task") from error

    def initialize(
        self, task: Task, teacher: Checkpoint, rows: datasets.Dataset
    ) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
        """Create a model over the teacher's tokenizer."""
        if self.source is not None:
            return from_checkpoint(self.source, task)
        model = self._create(task, teacher)
        tokenizer = load_tokenizer(teacher, model)
        if self.embeddings == "teacher":
            _inherit_embeddings(
                model, load_model(trainable(teacher), task)[0], task.encode(tokenizer, rows, MOST_TOKENS)
            )
        return model, tokenizer


@torch.no_grad()
def _inherit_embeddings(student: PreTrainedModel, teacher: PreTrainedModel, rows: Encoded) -> None:
    """Write the projected embeddings of the teacher into the student; the embedding of the padding token remains 0."""
    own = torch.as_tensor(student.get_input_embeddings().weight)
    words = torch.as_tensor(teacher.get_input_embeddings().weight)[: len(own)].float()
    counts = torch.from_numpy(np.bincount(rows.columns["input_ids"], minlength=len(words))[: len(words)])
    weights = (counts + 0.1).sqrt()[:, None]  # between the frequency of a token and equal weights
    weights /= weights.sum()
    mean = (words * weights).sum(0)
    centred = words - mean
    _, components = torch.linalg.eigh((centred * weights).T @ centred)  # in ascending order of variance
    components = components[:, -own.shape[1] :]
    projected = centred @ components
    scale = SPREAD / (projected.square() * weights).sum(0).mean().sqrt()
    own[: len(words), : components.shape[1]] = projected * scale
    if (pad := student.config.pad_token_id) not in (None, student.config.eos_token_id):
        own[pad] = 0
    new, old = _positions(student), _positions(teacher)
    if (
        new is not None and old is not None and old.shape[1] == words.shape[1]
    ):  # MobileBERT's are wider than its words
        new, old = new[first_position(student.config) :], old[first_position(teacher.config) :]
        count = min(len(new), len(old))
        new[:count, : components.shape[1]] = (old[:count] - old.mean(0)) @ components * scale


def _positions(model: PreTrainedModel) -> torch.Tensor | None:
    """Return the learned position embeddings, where an architecture has them."""
    return next(
        (weight for name, weight in model.named_parameters() if name.endswith("position_embeddings.weight")),
        None,
    )
