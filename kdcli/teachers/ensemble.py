"""Averages the outputs of several teachers."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import log_softmax

from kdcli.errors import TeacherError
from kdcli.signals import AnySignal, Part, Signal
from kdcli.teachers.base import Compress, Teacher, identity


class Ensemble(Teacher):
    """Averages the members' probabilities at one temperature T (Hinton et al. 2015, https://arxiv.org/abs/1503.02531).

    Its logits are T log((1 / M) Σ_m softmax(z_m / T)). Softened with T they give the mean, so a loss reads them as those of any
    teacher. Its features are those of the first member.

    Args:
        members: opened teachers over the same labels.
        temperature: the temperature of the losses; > 0.
    """

    def __init__(self, members: Sequence[Teacher], temperature: float):
        self.members, self.temperature = list(members), temperature

    def outputs(
        self, examples: Sequence[Mapping[str, Any]], compress: Compress = identity
    ) -> list[AnySignal]:
        """Return the mean at each row's positions.

        Raises:
            TeacherError: the members count different positions of a row.
        """
        members = [member.outputs(examples) for member in self.members]
        return [compress(self._mean(signals)) for signals in zip(*members, strict=True)]

    def outputs_with_features(
        self, examples: Sequence[Mapping[str, Any]], parts: frozenset[Part]
    ) -> AnySignal:
        """Return the mean, with the features of the first member."""
        if not parts:
            return self.signals(examples)
        first = self.members[0].outputs_with_features(examples, parts)
        others = [member.signals(examples) for member in self.members[1:]]
        return replace(self._mean([first, *others]), features=first.features)

    def _mean(self, signals: Sequence[AnySignal]) -> Signal:
        logits: list[Tensor] = []
        for signal in signals:
            assert isinstance(signal, Signal)
            logits.append(signal.logits.float())
        if len({each.shape for each in logits}) > 1:
            raise TeacherError(
                f"the teachers of the ensemble count {', '.join(str(len(each)) for each in logits)} positions of the same rows: their "
                "tokenizers truncate a long text at different characters; raise dataset.max_length"
            )
        softened = torch.stack([log_softmax(each / self.temperature, -1) for each in logits])
        return Signal(self.temperature * (softened.logsumexp(0) - math.log(len(logits))))
