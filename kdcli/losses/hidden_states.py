"""Defines a loss on hidden states: the student imitates those of the teacher."""

from __future__ import annotations

from typing import ClassVar, Literal

from torch import Tensor, nn
from torch.nn.functional import cosine_similarity
from transformers import PreTrainedConfig

from kdcli.losses.features import FeatureLoss, LayerMapping
from kdcli.signals import Features, Part


class HiddenStates(FeatureLoss):
    """The distance between the hidden states of student and teacher, averaged over the mapped layers.

    mse: (1 / H) |W h_s + b - h_t|² (Jiao et al. 2020, equation 8, https://arxiv.org/abs/1909.10351), range [0, ∞);
    cosine: 1 - cos(W h_s + b, h_t) (Sanh et al. 2019, https://arxiv.org/abs/1910.01108), range [0, 2].
    The projection W, b is learned, one for each pair of layers, if the widths of the models differ; otherwise there is none. It
    is not a part of the saved student.

    Args:
        layer_mapping: the pairs of student and teacher layers; 0 is the embeddings.
        distance: the distance of the features: mse, or cosine.
        tokens: all, or the first of each row (Sun et al. 2019 take BERT's [CLS] alone).
    """

    features: ClassVar[frozenset[Part]] = frozenset({"hidden_states"})
    embeddings = True

    def __init__(
        self,
        layer_mapping: LayerMapping = "uniform",
        distance: Literal["mse", "cosine"] = "mse",
        tokens: Literal["all", "first"] = "all",
    ):
        super().__init__(layer_mapping)
        self.distance = distance
        self.over = "tokens" if tokens == "all" else "rows"

    def attach(self, student: PreTrainedConfig, teacher: PreTrainedConfig) -> None:
        """Map the layers, and make the projections."""
        super().attach(student, teacher)
        own, target = (config.get_text_config().hidden_size for config in (student, teacher))
        self.projections = nn.ModuleList(
            nn.Identity() if own == target else nn.Linear(own, target) for _ in self.pairs
        )

    def between(self, student: Features, teacher: Features, pair: int) -> Tensor:
        """Compare hidden states (B, L, H) with (B, L, H'); return (B, L)."""
        student_layer, teacher_layer = self.pairs[pair]
        projected = self.projections[pair](student.hidden_states[student_layer].float())
        target = teacher.hidden_states[teacher_layer].float()
        if self.distance == "cosine":
            return 1 - cosine_similarity(projected, target, dim=-1)
        return (projected - target).square().mean(-1)
