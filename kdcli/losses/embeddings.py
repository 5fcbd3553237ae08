"""Defines a loss on embeddings: the student imitates the token embeddings of the teacher."""

from __future__ import annotations

from typing import Literal

from kdcli.losses.hidden_states import HiddenStates


class Embeddings(HiddenStates):
    """The distance between the embedded tokens of student and teacher (Jiao et al. 2020, equation 9, https://arxiv.org/abs/1909.10351).

    It is `HiddenStates` on the input of the first layer.

    Args:
        distance: the distance of the features: mse, or cosine.
    """

    def __init__(self, distance: Literal["mse", "cosine"] = "mse"):
        super().__init__([(0, 0)], distance)
