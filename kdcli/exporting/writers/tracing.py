"""Exports models by torch's tracing exporter, after preparing them for it."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

import torch
from torch import Tensor
from transformers import PreTrainedModel


@contextlib.contextmanager
def traceable(model: PreTrainedModel) -> Iterator[None]:
    """Give a model operations that ONNX has as well, until the block ends: attention without the NaN checks that the fused one adds to each layer,
    and mixtures of experts as batched products, without a loop over the experts that the tokens of the sample were routed to."""
    attention = model.config._attn_implementation
    experts = getattr(model.config, "_experts_implementation", None)
    model.set_attn_implementation("eager")
    if experts is not None:
        model.set_experts_implementation("batched_mm")
    try:
        yield
    finally:
        model.set_attn_implementation(attention)
        if experts is not None:
            model.set_experts_implementation(experts)


def trace_onnx(
    graph: torch.nn.Module,
    inputs: Mapping[str, Tensor],
    outputs: Iterable[str],
    axes: Mapping[str, Mapping[int, str]],
    file: Path,
    opset: int,
    fold: bool = False,
) -> None:
    """Write a module as an ONNX graph.

    Args:
        inputs: a sample of each input, by the names in the graph and in the order of the arguments of `forward`.
        axes: the axes of inputs and outputs whose size varies, with their names.
        fold: compute what depends on constants alone.
    """
    torch.onnx.export(
        graph.eval(),
        tuple(inputs.values()),
        str(file),
        dynamo=False,
        opset_version=opset,
        do_constant_folding=fold,
        input_names=list(inputs),
        output_names=list(outputs),
        dynamic_axes=axes,
    )
