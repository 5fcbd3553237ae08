"""Initialises a student with some of the teacher's layers."""

from __future__ import annotations

import datasets
import numpy as np
import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from kdcli.config.types import Depth, LayerIndex
from kdcli.errors import ConfigError
from kdcli.models.checkpoint import Checkpoint
from kdcli.students.pruning.anatomy import Anatomy, carve
from kdcli.students.pruning.base import PruningInitializer
from kdcli.tasks.base import Task


class Layers(PruningInitializer):
    """Copies the selected layers, the embeddings and the head of the teacher (Sanh et al. 2019,
    https://arxiv.org/abs/1910.01108, section 2), or of the checkpoint of `student.path`.

    Args:
        num_hidden_layers: the number of layers; for an encoder-decoder model, of each of the two. null: as many as `layers` names, or else
            half of the teacher's.
        layers: their indices; null: evenly spaced, with the first and the last layer.
        decoder_layers: the number of the decoder's layers in an encoder-decoder model, evenly spaced (a decoder runs once a
            token, so its layers determine the latency); null: as in the encoder.
    """

    def __init__(
        self,
        num_hidden_layers: Depth | None = None,
        layers: list[LayerIndex] | None = None,
        decoder_layers: Depth | None = None,
    ):
        if layers is not None and len(layers) != (num_hidden_layers or len(layers)):
            raise ConfigError(
                f"student.layers names {len(layers)} layers, student.num_hidden_layers is {num_hidden_layers}"
            )
        self.count = len(layers) if layers else num_hidden_layers
        self.layers, self.decoder_layers = layers, decoder_layers

    def cut(
        self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, task: Task, rows: datasets.Dataset
    ) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
        """Create a model of the same architecture and width."""
        anatomy = Anatomy(model)
        return carve(anatomy, self._select(anatomy)), tokenizer

    def require(self, task: Task, model: PreTrainedModel) -> None:
        """Check that the model has these layers."""
        self._select(Anatomy(model))

    def skeleton(self, task: Task, teacher: Checkpoint, model: PreTrainedModel) -> PreTrainedModel | None:
        """Return the model with these layers."""
        anatomy = Anatomy(model)
        with torch.device("meta"):
            return carve(anatomy, self._select(anatomy))

    def _select(self, anatomy: Anatomy) -> list[list[int]]:
        """Return the indices of the selected layers of each stack."""
        first, *decoders = (anatomy.depth(stack) for stack in anatomy.stacks)
        selected = [_layer_indices(first, self.count, self.layers, "num_hidden_layers")]
        if self.decoder_layers is not None and not decoders:
            raise ConfigError(
                f"student.decoder_layers = {self.decoder_layers}: a {type(anatomy.model).__name__} has one stack of layers; leave "
                "decoder_layers null"
            )
        for depth in decoders:
            if self.decoder_layers is None:
                selected.append(_layer_indices(depth, self.count, self.layers, "num_hidden_layers"))
            else:
                selected.append(_layer_indices(depth, self.decoder_layers, None, "decoder_layers"))
        return selected


def _layer_indices(depth: int, count: int | None, layers: list[int] | None, argument: str) -> list[int]:
    """Return the indices of `count` of `depth` layers; None: of half of them."""
    count = (depth + 1) // 2 if count is None else count
    if count > depth:
        raise ConfigError(f"student.{argument} = {count}: the teacher has {depth}")
    if bad := [layer for layer in layers or [] if not 0 <= layer < depth]:
        raise ConfigError(f"student.layers: the teacher has no layer {bad[0]}, only 0 to {depth - 1}")
    return layers or np.linspace(0, depth - 1, count).round().astype(int).tolist()
