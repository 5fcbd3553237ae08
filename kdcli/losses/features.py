"""Defines the base class of losses on features, and the mapping between layers of student and teacher."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from typing import ClassVar, Literal

import torch
from torch import Tensor
from transformers import PreTrainedConfig

from kdcli.config.types import LayerIndex
from kdcli.errors import ConfigError
from kdcli.losses.base import Loss
from kdcli.signals import Features, Signal, TopKSignal

Rule = Literal["uniform", "last", "skip"]
LayerMapping = Rule | Sequence[tuple[LayerIndex, LayerIndex]]
"""Pairs (student layer, teacher layer), 0 being the embeddings, 1 the first layer and -1 the last one; or a rule, for S layers of the
student and T of the teacher:
uniform: s from ⌊s T / S⌋, all of them (Jiao et al. 2020, https://arxiv.org/abs/1909.10351);
last: s from T - S + s, all of them; skip: as uniform, but for the last (Sun et al. 2019, https://arxiv.org/abs/1908.09355)."""
SMALL = 1e-30
"""A lower bound of probabilities whose logarithm is taken."""


class FeatureLoss(Loss):
    """The mean over pairs of layers of `between`, which a subclass implements. It is computed in fp32, also under autocast.

    Args:
        layer_mapping: the pairs of student and teacher layers.
    """

    divergence = False
    over: Literal["targets", "gold", "tokens", "rows"] = "tokens"
    embeddings: ClassVar[bool] = False
    """Whether 0, the embeddings, may be mapped."""

    def __init__(self, layer_mapping: LayerMapping):
        super().__init__()
        self.layer_mapping = layer_mapping

    def attach(self, student: PreTrainedConfig, teacher: PreTrainedConfig) -> None:
        """Map the layers."""
        own, target = (config.get_text_config().num_hidden_layers for config in (student, teacher))
        self.pairs = pairs(self.layer_mapping, own, target, lowest=0 if self.embeddings else 1)

    @abstractmethod
    def between(self, student: Features, teacher: Features, pair: int) -> Tensor:
        """Return the distance of the layers `self.pairs[pair]` at each token, (B, L); at padding any value."""

    def forward(self, student: Signal, teacher: Signal | TopKSignal | None, labels: Tensor) -> Tensor:
        """Return (M,) for M tokens, or (B,)."""
        if teacher is None or student.features is None or teacher.features is None:
            raise ValueError("this loss needs the features of both models")
        tokens = student.features.tokens
        with torch.autocast(tokens.device.type, enabled=False):
            distances = [
                self.between(student.features, teacher.features, pair) for pair in range(len(self.pairs))
            ]
            mean = torch.stack(distances).mean(0)
        return mean[:, 0] if self.over == "rows" else mean[tokens]


def pairs(
    mapping: Rule | Sequence[tuple[LayerIndex, LayerIndex]], student: int, teacher: int, lowest: int
) -> list[tuple[int, int]]:
    """Return the pairs of layers of a mapping.

    Args:
        student, teacher: their numbers of layers.
        lowest: the first layer that may be mapped.

    Raises:
        ConfigError: there is no such layer, or the rule gives none.
    """
    if not isinstance(mapping, str):
        mapped = []
        for given in mapping:
            pair = []
            for index, count, whose in zip(given, (student, teacher), ("student", "teacher"), strict=True):
                layer = index if index >= 0 else count + 1 + index
                if not lowest <= layer <= count:
                    raise ConfigError(
                        f"layer_mapping = {mapping}: the {whose} has no layer {index}; give {lowest} to {count}, or -1 for "
                        "the last"
                    )
                pair.append(layer)
            mapped.append((pair[0], pair[1]))
    elif student > teacher:
        raise ConfigError(
            f"layer_mapping = {mapping}: the student has {student} layers and the teacher {teacher}; give pairs, "
            "[[student's, teacher's], …]"
        )
    elif mapping == "last":
        mapped = [(layer, teacher - student + layer) for layer in range(1, student + 1)]
    else:
        mapped = [(layer, layer * teacher // student) for layer in range(1, student + (mapping == "uniform"))]
    if not mapped:
        raise ConfigError(
            f"layer_mapping = {mapping}: no layer of the student learns from one of the teacher; give at least one pair"
        )
    return mapped
