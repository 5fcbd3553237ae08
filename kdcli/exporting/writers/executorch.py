"""Writes a classifier as an ExecuTorch program (.pte) for XNNPACK, by transformers' exporter."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import embedding
from transformers import PreTrainedModel

from kdcli.exporting.runtimes.executorch import LEAST, NAMES
from kdcli.exporting.targets.base import exporting, quietly


def write(model: PreTrainedModel, precision: str, names: Sequence[str], max_length: int, out: Path) -> None:
    """Write the program, with a dynamic length, which costs less than padding to a fixed one.

    Args:
        precision: fp32, or int8: weights of matrix products and embeddings in 8 bits, with a scale per output channel
            (embeddings: per token); activations are quantized dynamically.
        names: the model's inputs.
        max_length: tokens of a row.

    Raises:
        ExportError: the exporter refused the architecture.
    """
    model = copy.deepcopy(model)  # the exporter changes it
    max_length = max(max_length, LEAST + 1)
    sample: dict[str, Any] = {
        name: torch.ones(1, max_length, dtype=torch.long) for name in NAMES if name in names
    }
    length = torch.export.Dim("length", min=LEAST, max=max_length)
    with exporting(model, "for ExecuTorch", out.parent), quietly():
        from transformers.exporters.configs import ExecutorchConfig
        from transformers.exporters.exporter_executorch import ExecutorchExporter

        options: dict[str, Any] = {"dynamic_shapes": {name: {1: length} for name in sample}}
        if precision == "int8":
            _round_embeddings(model)
            options["quantizer"] = _quantizer(sample)
        exported = ExecutorchExporter().export(
            model, sample, config=ExecutorchConfig(backend="xnnpack", **options)
        )
        ExecutorchExporter.save_program(exported.program, out)


def _quantizer(sample: dict[str, Tensor]) -> Any:
    from executorch.backends.xnnpack.quantizer.xnnpack_quantizer import (
        XNNPACKQuantizer,
        get_symmetric_quantization_config,
    )
    from transformers.exporters.quantizers.quantizer_pt2e import PT2EQuantizer

    class Matrices(XNNPACKQuantizer):
        def transform_for_annotation(self, model: torch.fx.GraphModule) -> torch.fx.GraphModule:
            """Do not change the graph: XNNPACK's transform converts constants to floats, also those that are added to indices."""
            return model

    config = get_symmetric_quantization_config(is_per_channel=True, is_dynamic=True)
    rows = [sample]  # the ranges of activations are dynamic, so the calibration rows have no effect
    return PT2EQuantizer(Matrices().set_operator_type(torch.ops.aten.linear.default, config), rows)


class _Rounded(nn.Module):
    """An embedding in 8 bits, with a scale for each token, of operators that every build of ExecuTorch has."""

    weight: Tensor
    scale: Tensor

    def __init__(self, weight: Tensor):
        super().__init__()
        scale = weight.abs().amax(1, keepdim=True).clamp(min=torch.finfo(weight.dtype).tiny) / 127
        self.register_buffer("weight", (weight / scale).round().to(torch.int8))
        self.register_buffer("scale", scale)

    def forward(self, ids: Tensor) -> Tensor:
        """Map token ids (…) to embeddings (…, D)."""
        return embedding(ids, self.weight).to(self.scale.dtype) * embedding(ids, self.scale)


def _round_embeddings(model: nn.Module) -> None:
    for name, module in list(model.named_modules()):
        if isinstance(module, nn.Embedding):
            model.set_submodule(name, _Rounded(module.weight.detach()))
