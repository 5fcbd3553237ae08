"""Several teachers as one."""

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
from kdcli.teachers.base import Keep, Teacher, identity


class Ensemble(Teacher):
    """The mean of the members' probabilities at one temperature T (Hinton et al. 2015, https://arxiv.org/abs/1503.02531).

    Its logits are T log((1 / M) Σ_m softmax(z_m / T)): softened with T they give that mean, and a loss reads them as any
    teacher's. What goes on inside it is what goes on inside the first member.

    Args:
        members: ready to answer, over the same labels.
        temperature: of the losses that read it; > 0.
    """

    def __init__(self, members: Sequence[Teacher], temperature: float):
        self.members, self.temperature = list(members), temperature

    def rows(self, examples: Sequence[Mapping[str, Any]], keep: Keep = identity) -> list[AnySignal]:
        """The mean at each row's positions.

        Raises:
            TeacherError: the members count other positions of a row.
        """
        each = [member.rows(examples) for member in self.members]
        return [keep(self._mean(said)) for said in zip(*each, strict=True)]

    def outputs_with_features(
        self, examples: Sequence[Mapping[str, Any]], parts: frozenset[Part]
    ) -> AnySignal:
        """The mean, and the first member's inside."""
        if not parts:
            return self.signals(examples)
        first = self.members[0].outputs_with_features(examples, parts)
        others = [member.signals(examples) for member in self.members[1:]]
        return replace(self._mean([first, *others]), features=first.features)

    def _mean(self, said: Sequence[AnySignal]) -> Signal:
        logits: list[Tensor] = []
        for signal in said:
            assert isinstance(signal, Signal)
            logits.append(signal.logits.float())
        if len({each.shape for each in logits}) > 1:
            raise TeacherError(
                f"the teachers of the ensemble count {', '.join(str(len(each)) for each in logits)} positions of the same rows: a longer "
                "text is cut off at other places; raise dataset.max_length"
            )
        softened = torch.stack([log_softmax(each / self.temperature, -1) for each in logits])
        return Signal(self.temperature * (softened.logsumexp(0) - math.log(len(logits))))
