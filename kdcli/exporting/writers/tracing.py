"""What the tracing exporter needs of a model."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from transformers import PreTrainedModel


@contextlib.contextmanager
def traceable(model: PreTrainedModel) -> Iterator[None]:
    """A context in which a model has operations that ONNX has as well: attention without the NaN checks that the fused one adds to each layer,
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
