"""Chooses the precision in which the weights of a model are loaded, by what a checkpoint stores and what this device computes."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Literal, get_args

import torch
from safetensors import safe_open

from kdcli.config.types import Dtype
from kdcli.device import default_device, has_gpu
from kdcli.errors import ConfigError
from kdcli.model_files import tensor_sizes, weight_files

logger = logging.getLogger(__name__)
TORCH: dict[Dtype, torch.dtype] = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
STORED: dict[str, Dtype] = {"F64": "fp32", "F32": "fp32", "BF16": "bf16", "F16": "fp16"}
"""The dtype of weights by its name in safetensors files. Others are quantized, and transformers decides."""
FEATURES: dict[Dtype, tuple[str, ...]] = {
    "fp32": (),
    "bf16": ("amx_bf16", "avx512_bf16"),
    "fp16": ("amx_fp16", "avx512_fp16"),
}
"""The features of a processor with fast instructions, any of which is enough."""


def is_fast(dtype: Dtype) -> bool:
    """Return whether this device has instructions for a dtype.

    The decision depends on the device's capabilities and on no timing, so that a rerun decides the same.
    """
    if dtype == "fp32":
        return True
    if has_gpu():
        return dtype == "fp16" or torch.cuda.is_bf16_supported(including_emulation=False)
    capabilities = torch.cpu.get_capabilities()
    return any(capabilities.get(feature) for feature in FEATURES[dtype])


def stored_dtype(folder: Path) -> Dtype:
    """Return the dtype of most weights of a checkpoint, by the headers of its files; fp32 if they are quantized."""
    counts: Counter[str] = Counter()
    for kind, elements in _tensors(folder):
        counts[kind] += elements
    most = counts.most_common(1)
    return STORED.get(most[0][0], "fp32") if most else "fp32"


def weight_count(folder: Path) -> int:
    """Return the number of stored weights of a checkpoint; 0: there are none yet."""
    return sum(elements for _, elements in _tensors(folder))


def chosen_dtype(given: Dtype | Literal["auto"], folder: Path, precision: str, key: str) -> Dtype:
    """Return the dtype in which a model's weights are loaded for inference.

    Args:
        given: the dtype in the config. auto is the stored dtype if this device has fast instructions for it and `precision` allows it, else fp32.
        precision: the precision of the computations, as `trainer.precision`. With fp32, auto is fp32.
        key: the config key, for messages.

    Raises:
        ConfigError: this device cannot compute in it.
    """
    if given == "auto":
        stored = stored_dtype(folder)
        return stored if precision != "fp32" and is_fast(stored) else "fp32"
    if not is_supported(given):
        others = ", ".join(name for name in get_args(Dtype) if is_supported(name))
        raise ConfigError(f"{key} = {given}: this device does not compute in it; give one of: {others}")
    if not is_fast(given):
        logger.warning(
            "%s = %s: this device has no instructions for it, so that it halves the memory of the weights and is slower than fp32",
            key, given,
        )  # fmt: skip
    return given


def is_supported(dtype: Dtype) -> bool:
    """Return whether this device can multiply matrices of a dtype."""
    device = default_device().type
    try:
        part = torch.ones(2, 2, dtype=TORCH[dtype], device=device)
        return bool((part @ part).sum() == 8)
    except RuntimeError:
        return False


def _tensors(folder: Path) -> Iterator[tuple[str, int]]:
    """Yield the dtype and the number of elements of each stored tensor."""
    for path in weight_files(folder):
        with safe_open(path, "np") as file:
            yield from tensor_sizes(file)
