"""Fake quantization: a model that is trained with the rounded weights that a device will compute with.

The weights are rounded in each forward pass, and gradients go through the rounding as if it were not there (Jacob et al.
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
"""Weights of a row that share a scale, in int4 and in both of a language model's."""


class FakeQuantization:
    """Dresses a model in the grids that the exporters write, so that its export rounds nothing that was not rounded in training.

    A classifier, as `hardware=cpu` does. int8: matrices -64 … 64 with a scale per output channel, embeddings 0 … 255 with
    one scale and zero point, and what goes into a matrix 0 … 255 with one of each a batch, as ONNX Runtime finds them when
    it runs (so no calibration is needed). int4: matrices and embeddings 0 … 15 with a scale and a zero point for each 32
    weights of a row; activations stay floats.

    A language model, as `hardware=cpu` and `laptop` (q4_0) do: -8 … 7, or -128 … 127, with a scale for each 32 weights of a
    row, in fp16 as GGUF has it, that puts the largest of them at the low end. Embeddings and head have 8 bits in any case
    (q8_0's steps are wider than these by one part in 127).

    torchao rounds, and finds the scales where it knows the rule. Its `IntxFakeQuantizeConfig` is not used, nor are the layers that its `QATConfig` puts
    in (torchao 0.18): they know no range of -64 … 64, no scale for a whole tensor and no width that 32 does not divide, and
    their int4 grid with zero points is another one than ONNX Runtime's.

    Args:
        precision: of the artifact.
        writes: the model is a language model.

    Raises:
        ConfigError: torchao is missing.
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
        """Let all linear layers and embeddings show their weights rounded.

        Raises:
            ConfigError: the model has matrices in layers of another kind, which the exporter would round and the training not.
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
                fine = self.precision == "int8" or isinstance(module, nn.Embedding) or module is head
                grid = Grid(-128, 127, block=BLOCK) if fine else Grid(-8, 7, block=BLOCK)
            elif self.precision == "int4":
                grid = Grid(0, 15, block=BLOCK)
            elif isinstance(module, nn.Embedding):
                grid = Grid(0, 255)
            else:
                grid = Grid(-64, 64, block=module.in_features)
                self.handles.append(module.register_forward_pre_hook(_rounded_input))
            parametrize.register_parametrization(module, "weight", grid)

    def merge_and_unload(self, model: PreTrainedModel) -> None:
        """Make the model a plain one, whose weights are the rounded ones: an exporter finds the same grid in them again."""
        for module in list(model.modules()):
            if parametrize.is_parametrized(module, "weight"):
                parametrize.remove_parametrizations(module, "weight", leave_parametrized=True)
        for handle in self.handles:
            handle.remove()
        self.handles.clear()


class Grid(nn.Module):
    """Rounds a tensor to low … high times a scale, less a zero point where low is 0; both come from the tensor itself.

    Where the range has one number more below 0 than above, a scale's sign is such that the value farthest from 0 is the lowest.

    Args:
        block: values of a row that share a scale, the last block of a row may have fewer; None: the whole tensor shares one.
    """

    def __init__(self, low: int, high: int, block: int | None = None):
        super().__init__()
        self.low, self.high, self.block = low, high, block

    def forward(self, values: Tensor) -> Tensor:
        """(…) or, in blocks, (N, K) -> the same shape, rounded; the gradient is that of the identity."""
        return _StraightThrough.apply(values, self)

    def rounded(self, values: Tensor) -> Tensor:
        """The values of the grid that are nearest."""
        from torchao.quantization import (
            MappingType,
            choose_qparams_affine,
            dequantize_affine,
            quantize_affine,
        )

        width = values.shape[-1]
        whole = values.float()  # under autocast bf16, which has not as many levels as the grid
        whole = whole if self.block is None else pad(whole, (0, -width % self.block))
        size = tuple(whole.shape) if self.block is None else (1, self.block)
        mapping = MappingType.SYMMETRIC if self.low < 0 else MappingType.ASYMMETRIC
        kind = torch.int8 if self.low < 0 else torch.uint8
        if -self.low > self.high:
            blocks = whole.unflatten(-1, (-1, size[-1]))
            far = blocks.gather(-1, blocks.abs().argmax(-1, keepdim=True)).squeeze(-1)
            scale = (far / self.low).half().float()
            scale = torch.where(scale == 0, 1.0, scale)
            zero = torch.zeros_like(scale, dtype=torch.int32)
        else:
            scale, zero = choose_qparams_affine(
                whole, mapping, size, kind, self.low, self.high, scale_dtype=torch.float32, zero_point_dtype=torch.int32
            )  # fmt: skip
        levels = quantize_affine(whole, size, scale, zero, kind, self.low, self.high)
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
