"""Quantization-aware training: fake quantization of weights on the grid of the exported file.

The weights are rounded in each forward pass, and the gradient of the rounding is that of the identity (Jacob et al.
2018, https://arxiv.org/abs/1712.05877; the straight-through estimator of Bengio et al. 2013, https://arxiv.org/abs/1308.3432).
"""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn.functional import pad
from torch.nn.utils import parametrize
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from kdcli.errors import ConfigError

BLOCK = 32
"""The block size: the number of weights of a row that share a scale, in int4 and in both precisions of a language model."""


class FakeQuantization:
    """Parametrizes a model's weights with the grids that the exporters write, so that the export rounds nothing that was not rounded in
    training.

    Classifiers have the grid of `hardware=cpu`. int8: matrices -64 … 64 with a scale per output channel, embeddings 0 … 255 with
    one scale and zero point, and the inputs of a matrix 0 … 255 with one scale and zero point a batch, as ONNX Runtime computes them
    at run time (so no calibration is needed). int4: matrices and embeddings 0 … 15 with a scale and a zero point for each 32
    weights of a row; activations remain floats.

    Language models have the grid of `hardware=cpu` and `laptop` (q4_0): -8 … 7, or -128 … 127, with a scale for each 32 weights of a
    row, in fp16 as in GGUF, that maps the largest of them to the low end. Embeddings and head have 8 bits in any case
    (q8_0's steps are wider than these by one part in 127).

    torchao rounds, and computes the scales where it supports the rule. Its `IntxFakeQuantizeConfig` and the layers of its `QATConfig`
    are not used (torchao 0.18): they support no range of -64 … 64, no scale for a full tensor and no width that 32 does not divide, and
    their int4 grid with zero points differs from ONNX Runtime's.

    Args:
        precision: of the exported file.
        writes: the model is a language model.

    Raises:
        ConfigError: torchao is not installed.
    """

    def __init__(self, precision: Literal["int8", "int4"], writes: bool = False):
        try:
            import torchao  # noqa: F401
        except ImportError as error:
            raise ConfigError(
                f"{error}: student.quantization needs it; pip install 'kdcli[quantization]'"
            ) from None
        self.precision, self.writes = precision, writes
        self.handles: list[Any] = []

    def prepare_for_training(self, model: PreTrainedModel) -> None:
        """Parametrize the weights of all linear layers and embeddings by their rounded values.

        Raises:
            ConfigError: the model has matrices in layers of another class, which only the exporter would round.
        """
        head = model.get_output_embeddings() if self.writes else None
        for name, module in list(model.named_modules()):
            if isinstance(module, Conv1D):
                raise ConfigError(
                    f"student.quantization rounds linear layers and embeddings; {name} of this {type(model).__name__} is a "
                    "Conv1D: choose another student, or leave it out (export rounds as well)"
                )
            if not isinstance(module, nn.Linear | nn.Embedding):
                continue
            if self.writes:
                is_int8 = self.precision == "int8" or isinstance(module, nn.Embedding) or module is head
                grid = Grid(-128, 127, block=BLOCK) if is_int8 else Grid(-8, 7, block=BLOCK)
            elif self.precision == "int4":
                grid = Grid(0, 15, block=BLOCK)
            elif isinstance(module, nn.Embedding):
                grid = Grid(0, 255)
            else:
                grid = Grid(-64, 64, block=module.in_features)
                self.handles.append(module.register_forward_pre_hook(_rounded_input))
            parametrize.register_parametrization(module, "weight", grid)

    def merge_and_unload(self, model: PreTrainedModel) -> None:
        """Replace the parametrizations by the rounded weights, in which an exporter finds the same grid again."""
        for module in list(model.modules()):
            if parametrize.is_parametrized(module, "weight"):
                parametrize.remove_parametrizations(module, "weight", leave_parametrized=True)
        for handle in self.handles:
            handle.remove()
        self.handles.clear()


class Grid(nn.Module):
    """Rounds a tensor to low … high times a scale, minus a zero point if low is 0; both are computed from the tensor itself.

    If the range has one number more below 0 than above, the sign of the scale maps the value farthest from 0 to the lowest number.

    Args:
        block: the values of a row that share a scale; the last block of a row may have fewer. None: all values share one.
    """

    def __init__(self, low: int, high: int, block: int | None = None):
        super().__init__()
        self.low, self.high, self.block = low, high, block

    def forward(self, values: Tensor) -> Tensor:
        """Round (…) or, in blocks, (N, K); the gradient is that of the identity."""
        return _StraightThrough.apply(values, self)

    def rounded(self, values: Tensor) -> Tensor:
        """Return the nearest values of the grid."""
        from torchao.quantization import (
            MappingType,
            choose_qparams_affine,
            dequantize_affine,
            quantize_affine,
        )

        width = values.shape[-1]
        padded = values.float()  # bf16 (autocast) has fewer levels than the grid
        padded = padded if self.block is None else pad(padded, (0, -width % self.block))
        size = tuple(padded.shape) if self.block is None else (1, self.block)
        mapping = MappingType.SYMMETRIC if self.low < 0 else MappingType.ASYMMETRIC
        kind = torch.int8 if self.low < 0 else torch.uint8
        if -self.low > self.high:
            blocks = padded.unflatten(-1, (-1, size[-1]))
            farthest = blocks.gather(-1, blocks.abs().argmax(-1, keepdim=True)).squeeze(-1)
            scale = (farthest / self.low).half().float()
            scale = torch.where(scale == 0, 1.0, scale)
            zero = torch.zeros_like(scale, dtype=torch.int32)
        else:
            scale, zero = choose_qparams_affine(
                padded, mapping, size, kind, self.low, self.high, scale_dtype=torch.float32, zero_point_dtype=torch.int32
            )  # fmt: skip
        levels = quantize_affine(padded, size, scale, zero, kind, self.low, self.high)
        back = dequantize_affine(levels, size, scale, zero, kind, self.low, self.high)
        return back[..., :width].to(values.dtype).contiguous()


class _StraightThrough(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, values: Tensor, grid: Grid) -> Tensor:
        return grid.rounded(values)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        return gradients[0], None


def _rounded_input(module: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    return (Grid(0, 255)(inputs[0]), *inputs[1:])
