"""What losses on the models' inside have in common: which layer learns from which, and what they have a value of."""

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
"""Which of the student's layers learns from which of the teacher's: pairs (student's, teacher's), 0 being the embeddings, 1 the first
layer and -1 the last; or by rule, for S layers of the student and T of the teacher:
uniform: s from ⌊s T / S⌋, all of them (Jiao et al. 2020, https://arxiv.org/abs/1909.10351);
last: s from T - S + s, all of them; skip: as uniform, but for the last (Sun et al. 2019, https://arxiv.org/abs/1908.09355)."""
SMALL = 1e-30
"""A probability that counts as none, so that it has a logarithm."""


class FeatureLoss(Loss):
    """The mean over pairs of layers of what a subclass says of one pair. fp32, also under autocast.

    Args:
        layer_mapping: which layer learns from which.
    """

    divergence = False
    over: Literal["targets", "gold", "tokens", "rows"] = "tokens"
    embeddings: ClassVar[bool] = False
    """Whether 0, the embeddings, is a layer of it."""

    def __init__(self, layer_mapping: LayerMapping):
        super().__init__()
        self.layer_mapping = layer_mapping

    def attach(self, student: PreTrainedConfig, teacher: PreTrainedConfig) -> None:
        """Map the layers."""
        ours, theirs = (each.get_text_config().num_hidden_layers for each in (student, teacher))
        self.pairs = pairs(self.layer_mapping, ours, theirs, lowest=0 if self.embeddings else 1)

    @abstractmethod
    def between(self, student: Features, teacher: Features, pair: int) -> Tensor:
        """What a pair of layers, `self.pairs[pair]`, is apart at each token, (B, L); anything where there is none."""

    def forward(self, student: Signal, teacher: Signal | TopKSignal | None, labels: Tensor) -> Tensor:
        """-> (M,) for M tokens, or (B,)."""
        if teacher is None or student.features is None or teacher.features is None:
            raise ValueError("this loss needs both models' inside")
        ours, theirs = student.features, teacher.features
        with torch.autocast(ours.tokens.device.type, enabled=False):
            each = torch.stack([self.between(ours, theirs, pair) for pair in range(len(self.pairs))]).mean(0)
        return each[:, 0] if self.over == "rows" else each[ours.tokens]


def pairs(
    mapping: Rule | Sequence[tuple[LayerIndex, LayerIndex]], student: int, teacher: int, lowest: int
) -> list[tuple[int, int]]:
    """The pairs of layers that a mapping means for models of so many layers.

    Raises:
        ConfigError: there is no such layer, or the rule gives none.
    """
    if not isinstance(mapping, str):
        found = []
        for given in mapping:
            pair = []
            for number, count, whose in zip(given, (student, teacher), ("student", "teacher"), strict=True):
                place = number if number >= 0 else count + 1 + number
                if not lowest <= place <= count:
                    raise ConfigError(
                        f"layer_mapping = {mapping}: the {whose} has no layer {number} (it has {lowest} to {count}, or -1 for "
                        "the last)"
                    )
                pair.append(place)
            found.append((pair[0], pair[1]))
    elif student > teacher:
        raise ConfigError(
            f"layer_mapping = {mapping}: the student has {student} layers and the teacher {teacher}; give pairs, "
            "[[student's, teacher's], …]"
        )
    elif mapping == "last":
        found = [(layer, teacher - student + layer) for layer in range(1, student + 1)]
    else:
        found = [(layer, layer * teacher // student) for layer in range(1, student + (mapping == "uniform"))]
    if not found:
        raise ConfigError(
            f"layer_mapping = {mapping}: no layer of the student learns from one of the teacher"
        )
    return found
