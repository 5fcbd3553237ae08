"""Holds the weights of linear layers in fewer bits (weight-only quantization), by torchao.

A layer's weights are dequantized where it is computed. Activations, biases, embeddings, the output head (also where it is tied to the
embeddings) and the head of a classifier keep the model's dtype.
"""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass
from typing import Any, TypeGuard

import torch
import transformers
from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel, TorchAoConfig
from transformers.pytorch_utils import Conv1D

from kdcli.config.types import Quantization
from kdcli.device import has_gpu
from kdcli.errors import ConfigError

BLOCK = 64
"""The weights that share a scale in nf4 (Dettmers et al. 2023, section 3)."""
SCALES = 256
"""The scales that share a scale of their own there (double quantization), if so many divide those of a layer."""
GROUP = 32
"""The weights of a row that share a scale and a zero point in int4. In int8 these are all of a row."""
KERNEL_ROWS = 16
"""The number that divides the output features of a layer in int4."""
LEAST = 0.5
"""The least share of the weights that must be quantized. Below it most of the memory stays as it was."""


@dataclass(frozen=True)
class Division:
    """Which layers of an architecture are quantized.

    Attributes:
        unquantized: the names of the linear layers that are not.
        quantized: the number of weights that are.
        share: the share of the weights that are quantized, among the matrices that are no embeddings and no head.
        model: the class of the model.
    """

    unquantized: list[str]
    quantized: int
    share: float
    model: str


def divide(kind: Quantization, auto: str, config: PreTrainedConfig) -> Division:
    """Return which layers of an architecture are quantized, without its weights.

    Args:
        auto: the auto class of transformers that loads it.
    """
    with torch.device("meta"):
        model: PreTrainedModel = getattr(transformers, auto).from_config(config)
    head, body = model.get_output_embeddings(), model.base_model
    inner = {id(module) for module in body.modules()} - {id(head)}
    unquantized, quantized = [], 0
    for name, module in model.named_modules():
        if type(module) is nn.Linear and id(module) in inner and _fits(kind, module):
            quantized += module.weight.numel()
        elif isinstance(module, nn.Linear | Conv1D):
            unquantized.append(name)
    outer = {id(module.weight) for module in body.modules() if isinstance(module, nn.Embedding)}
    outer |= set() if head is None else {id(head.weight)}
    matrices = [weight for weight in body.parameters() if weight.dim() > 1 and id(weight) not in outer]
    share = quantized / max(1, sum(map(torch.numel, matrices)))
    return Division(unquantized, quantized, share, type(model).__name__)


def _fits(kind: Quantization, layer: nn.Linear) -> bool:
    if kind == "int4":
        return layer.out_features % KERNEL_ROWS == 0 and layer.in_features % GROUP == 0
    return kind == "int8" or layer.weight.numel() % BLOCK == 0


def require_quantizable(kind: Quantization, auto: str, config: PreTrainedConfig, key: str) -> None:
    """Refuse a model whose weights cannot be quantized here, before they are read.

    Args:
        auto: the auto class of transformers that loads it.
        key: the config key of `kind`, for messages.

    Raises:
        ConfigError: torchao is missing, the device has no kernel, the checkpoint is quantized already, or most weights are not in linear layers.
    """
    what = f"{key} = {kind}"
    try:
        _torchao_config(kind)
    except ImportError as error:
        raise ConfigError(f"{what}: {error}; pip install -U 'kdcli[quantization]'") from None
    if kind == "int4" and has_gpu():
        raise ConfigError(f"{what}: torchao computes it on a CPU, and there is a GPU; give {key}=nf4 or int8")
    if getattr(config, "quantization_config", None) is not None:
        raise ConfigError(
            f"{what}: the checkpoint is quantized already (quantization_config in its config.json); leave {key} out, or give the checkpoint "
            "before its quantization"
        )
    division = divide(kind, auto, config)
    if division.share < LEAST:
        raise ConfigError(
            f"{what}: it quantizes linear layers, and they hold {division.share:.0%} of the weights in the layers of {division.model} (the experts "
            f"of a mixture and the Conv1D of GPT-2 are none; int4 needs features that are multiples of {KERNEL_ROWS} and {GROUP}); leave {key} out"
        )


def quantization_options(kind: Quantization, auto: str, config: PreTrainedConfig) -> dict[str, Any]:
    """Return the arguments of `from_pretrained` with which weights are quantized one by one as they are loaded.

    Args:
        auto: the auto class of transformers that loads the model.
    """
    unquantized = divide(kind, auto, config).unquantized
    return {"quantization_config": TorchAoConfig(_torchao_config(kind), modules_to_not_convert=unquantized)}


def _torchao_config(kind: Quantization) -> Any:
    """Return how torchao quantizes a linear layer."""
    if kind == "int8":
        from torchao.quantization import Int8WeightOnlyConfig

        return Int8WeightOnlyConfig(set_inductor_config=False)
    if kind == "int4":
        from torchao.prototype.quantization.int4 import PrototypeInt4WeightOnlyConfig

        return PrototypeInt4WeightOnlyConfig(group_size=GROUP, set_inductor_config=False)
    return _nf4_config()


@functools.cache
def _nf4_config() -> Any:
    """Return how a layer becomes torchao's NF4Tensor. Its own config divides the scales of a layer by 256, which many layers are not a multiple of."""
    from torchao.core.config import AOBaseConfig
    from torchao.quantization import NF4Tensor
    from torchao.quantization.transform_module import register_quantize_module_handler

    class NF4Config(AOBaseConfig):
        pass

    @register_quantize_module_handler(NF4Config)
    def quantize(layer: nn.Linear, config: NF4Config) -> nn.Linear:
        scales = math.gcd(layer.weight.numel() // BLOCK, SCALES)
        weight = NF4Tensor.from_tensor(layer.weight.detach(), BLOCK, scales)
        layer.weight = nn.Parameter(weight, requires_grad=False)
        return layer

    return NF4Config()


def is_quantized(layer: nn.Module) -> TypeGuard[nn.Linear]:
    """Return whether a layer's weights are quantized."""
    return isinstance(layer, nn.Linear) and type(layer.weight) is not nn.Parameter


def dequantized(layer: nn.Linear, dtype: torch.dtype) -> nn.Linear:
    """Return a plain layer with the weights that a quantized one (int8 or nf4) computes with."""
    weight: Any = layer.weight
    values = weight.get_original_weight() if hasattr(weight, "get_original_weight") else weight.dequantize()
    plain = nn.Linear(layer.in_features, layer.out_features, layer.bias is not None, device="meta")
    plain.weight = nn.Parameter(values.to(dtype), requires_grad=False)
    plain.bias = layer.bias
    return plain


def mark_unquantized(model: PreTrainedModel) -> None:
    """Remove the marks of a quantized model, with which transformers refuses to save it, or names the quantization in config.json."""
    marked: Any = model
    marked.hf_quantizer = None
    marked.is_quantized = False
    vars(model).pop("quantization_method", None)
    vars(model.config).pop("quantization_config", None)
