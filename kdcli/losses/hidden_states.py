"""Hidden states of the teacher as hints for the student's."""

from __future__ import annotations

from typing import ClassVar, Literal

from torch import Tensor, nn
from torch.nn.functional import cosine_similarity
from transformers import PreTrainedConfig

from kdcli.losses.features import FeatureLoss, LayerMapping
from kdcli.signals import Features, Part


class HiddenStates(FeatureLoss):
    """How far the student's hidden states are from the teacher's, mean over the mapped layers.

    mse: (1 / H) |W h_s + b - h_t|² (Jiao et al. 2020, equation 8, https://arxiv.org/abs/1909.10351), range [0, ∞);
    cosine: 1 - cos(W h_s + b, h_t) (Sanh et al. 2019, https://arxiv.org/abs/1910.01108), range [0, 2].
    The projection W, b is learnt, one for each pair of layers, where the models' widths differ, and left out where
    they are the same. It is no part of the saved student.

    Args:
        layer_mapping: which layer learns from which; 0 is the embeddings.
        distance: mse, or cosine.
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
        ours, theirs = (each.get_text_config().hidden_size for each in (student, teacher))
        self.projections = nn.ModuleList(
            nn.Identity() if ours == theirs else nn.Linear(ours, theirs) for _ in self.pairs
        )

    def between(self, student: Features, teacher: Features, pair: int) -> Tensor:
        """(B, L, H), (B, L, H') -> (B, L)."""
        ours, theirs = self.pairs[pair]
        mine = self.projections[pair](student.hidden_states[ours].float())
        target = teacher.hidden_states[theirs].float()
        if self.distance == "cosine":
            return 1 - cosine_similarity(mine, target, dim=-1)
        return (mine - target).square().mean(-1)
