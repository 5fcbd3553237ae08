"""The teacher's embeddings as hints for the student's."""

from __future__ import annotations

from typing import Literal

from kdcli.losses.hidden_states import HiddenStates


class Embeddings(HiddenStates):
    """How far the student's embedded tokens are from the teacher's (Jiao et al. 2020, equation 9, https://arxiv.org/abs/1909.10351).

    As `HiddenStates`, of what goes into the first layer.

    Args:
        distance: mse, or cosine.
    """

    def __init__(self, distance: Literal["mse", "cosine"] = "mse"):
        super().__init__([(0, 0)], distance)
