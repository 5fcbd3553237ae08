"""A student made of some of the teacher's layers."""

from __future__ import annotations

import datasets
import numpy as np
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from kdcli.config.types import Depth, LayerIndex
from kdcli.errors import ConfigError
from kdcli.students.pruning.anatomy import Anatomy, carve
from kdcli.students.pruning.base import PruningInitializer
from kdcli.tasks.base import Task


class Layers(PruningInitializer):
    """The teacher with fewer layers: the chosen ones, the embeddings and the head are copied (Sanh et al. 2019,
    https://arxiv.org/abs/1910.01108, section 2). With `student.path`, that checkpoint's.

    Args:
        num_hidden_layers: how many layers; of a model with an encoder and a decoder, in each.
        layers: which ones, from 0; null: evenly spaced, the first and the last among them.
        decoder_layers: how many in a decoder that has an encoder beside it, evenly spaced (a decoder runs once a token,
            so its layers are what costs time); null: as in the encoder.
    """

    def __init__(
        self,
        num_hidden_layers: Depth,
        layers: list[LayerIndex] | None = None,
        decoder_layers: Depth | None = None,
    ):
        if layers is not None and len(layers) != num_hidden_layers:
            raise ConfigError(
                f"student.layers names {len(layers)} layers, student.num_hidden_layers is {num_hidden_layers}"
            )
        self.count, self.layers, self.decoder_layers = num_hidden_layers, layers, decoder_layers

    def cut(
        self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, task: Task, rows: datasets.Dataset
    ) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
        """A model of the same architecture and width."""
        anatomy = Anatomy(model)
        return carve(anatomy, self._of(anatomy)), tokenizer

    def require(self, task: Task, model: PreTrainedModel) -> None:
        """It has these layers."""
        self._of(Anatomy(model))

    def _of(self, anatomy: Anatomy) -> list[list[int]]:
        """The layers of each stack."""
        first, *decoders = (anatomy.depth(stack) for stack in anatomy.stacks)
        chosen = [_chosen(first, self.count, self.layers, "num_hidden_layers")]
        if self.decoder_layers is not None and not decoders:
            raise ConfigError(
                f"student.decoder_layers = {self.decoder_layers}: a {type(anatomy.model).__name__} has one stack of layers; leave "
                "decoder_layers null"
            )
        for depth in decoders:
            if self.decoder_layers is None:
                chosen.append(_chosen(depth, self.count, self.layers, "num_hidden_layers"))
            else:
                chosen.append(_chosen(depth, self.decoder_layers, None, "decoder_layers"))
        return chosen


def _chosen(depth: int, count: int, layers: list[int] | None, argument: str) -> list[int]:
    """Which of so many layers are kept."""
    if count > depth:
        raise ConfigError(f"student.{argument} = {count}: the teacher has {depth}")
    if bad := [layer for layer in layers or [] if not 0 <= layer < depth]:
        raise ConfigError(f"student.layers: the teacher has no layer {bad[0]}, only 0 to {depth - 1}")
    return layers or np.linspace(0, depth - 1, count).round().astype(int).tolist()
