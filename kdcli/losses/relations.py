"""Defines losses on the relations between tokens, those of MiniLM and MiniLMv2."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import ClassVar, Literal

from torch import Tensor
from transformers import PreTrainedConfig

from kdcli.config.types import Width
from kdcli.errors import ConfigError
from kdcli.losses.features import FeatureLoss, LayerMapping
from kdcli.signals import Features, Part


class Relations(FeatureLoss):
    """The distance between the token relations of student and teacher, summed over queries, keys and values.

    The queries (or keys, or values) of all heads are concatenated and split into R heads of d columns; the relation of a token to the
    tokens that it may attend to is softmax(x xᵀ / √d), and the loss is the mean over heads of KL(teacher ‖ student):
    equations 2 to 5 of Wang et al. 2021, https://arxiv.org/abs/2012.15828. The widths and the numbers of heads of the
    models may differ. Range: [0, ∞). In models with rotary position embeddings, queries and keys are captured before the rotation.

    Args:
        of: the related projections: queries, keys, values. Values alone are the value relation of MiniLM (Wang et al. 2020,
            https://arxiv.org/abs/2002.10957).
        relation_heads: R; null: the number of the student's attention heads. MiniLMv2 uses four times that of the teacher.
        layer_mapping: the pairs of student and teacher layers. MiniLM uses the last ones.
    """

    features: ClassVar[frozenset[Part]] = frozenset({"relations"})

    def __init__(
        self,
        of: Sequence[Literal["queries", "keys", "values"]] = ("queries", "keys", "values"),
        relation_heads: Width | None = None,
        layer_mapping: LayerMapping = ((-1, -1),),
    ):
        super().__init__(layer_mapping)
        if not of:
            raise ConfigError("of: name at least one of queries, keys, values")
        self.of, self.relation_heads = of, relation_heads

    def attach(self, student: PreTrainedConfig, teacher: PreTrainedConfig) -> None:
        """Map the layers. The number of heads must divide the widths of all related projections in both models."""
        super().attach(student, teacher)
        self.heads = self.relation_heads or int(student.get_text_config().num_attention_heads)
        widths = {
            f"the {whose}'s {name}": _width(config.get_text_config(), name)
            for config, whose in ((student, "student"), (teacher, "teacher"))
            for name in self.of
        }
        if wrong := next((what for what, width in widths.items() if width % self.heads), None):
            divisor = math.gcd(*widths.values())
            fits = max(heads for heads in range(1, self.heads) if divisor % heads == 0)
            raise ConfigError(
                f"relation_heads = {self.heads} does not divide the width of {wrong}, {widths[wrong]}; give relation_heads = {fits}, which "
                "divides all widths, or another such number"
            )

    def between(self, student: Features, teacher: Features, pair: int) -> Tensor:
        """Compare relations of (B, L, H) with those of (B, L, H'); return (B, L)."""
        student_layer, teacher_layer = self.pairs[pair]
        parts = []
        for name in self.of:
            log_q = self._relation(getattr(student, name)[student_layer - 1], student.pairs)
            log_p = self._relation(getattr(teacher, name)[teacher_layer - 1], student.pairs)
            allowed = student.pairs[:, None]
            parts.append((log_p.exp() * (log_p - log_q)).masked_fill(~allowed, 0).sum(-1).mean(1))
        return sum(parts[1:], parts[0])

    def _relation(self, x: Tensor, allowed: Tensor) -> Tensor:
        """Return the log softmax of the products between tokens, (B, R, L, L)."""
        heads = x.float().unflatten(-1, (self.heads, -1)).transpose(1, 2)
        scores = heads @ heads.transpose(-1, -2) / math.sqrt(heads.shape[-1])
        return scores.masked_fill(~allowed[:, None], -1e30).log_softmax(-1)


def _width(config: PreTrainedConfig, name: str) -> int:
    """Return columns of the queries, keys or values of all heads; several queries may share a head of keys and values."""
    heads = int(config.num_attention_heads)
    size = getattr(config, "head_dim", None) or config.hidden_size // heads
    groups = heads if name == "queries" else getattr(config, "num_key_value_heads", None) or heads
    return int(groups * size)
