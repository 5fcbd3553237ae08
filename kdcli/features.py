"""Captures features of a model (hidden states, attention, queries, keys, values) by hooks, independently of its task."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from kdcli.errors import ModelError
from kdcli.signals import Features, Part

MAKERS = {
    **dict.fromkeys(("query", "q_lin", "q_proj", "q"), ("queries",)),
    **dict.fromkeys(("key", "k_lin", "k_proj", "k"), ("keys",)),
    **dict.fromkeys(("value", "v_lin", "v_proj", "v"), ("values",)),
    "c_attn": ("queries", "keys", "values"),
}
"""The names of the projection layers of self-attention in different architectures, and what each computes."""
RELATED = ("queries", "keys", "values")
CROSS = ("cross", "encoder_attn", "EncDecAttention")
"""Parts of the names of layers that attend to another sequence."""


@contextmanager
def capture_features(
    model: PreTrainedModel, inputs: Mapping[str, Tensor], parts: frozenset[Part]
) -> Iterator[Callable[[], Features | None]]:
    """Capture the features of a forward pass in the block. The yielded function returns them; those of a model in bf16 or fp16 are returned in fp32.

    Args:
        inputs: the inputs of the forward pass, (B, L), which mark the padding.
        parts: the features that are captured; if empty, the yielded function returns None. While attentions are captured, attention has no
            dropout.

    Raises:
        ModelError: the features of this architecture cannot be captured.
    """
    if not parts:
        yield lambda: None
        return
    if "attentions" in parts and model.config._attn_implementation != "eager":
        model.set_attn_implementation("eager")  # other implementations return no weights
    outputs: dict[str, Any] = {name: [] for name in RELATED}

    def request(module: Any, args: Any, kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        return args, kwargs | {f"output_{part}": True for part in parts if part != "relations"}

    def capture(module: Any, args: Any, output: Any) -> None:
        outputs.update({part: getattr(output, part, None) for part in parts if part != "relations"})

    body = model.base_model
    attending = [
        module
        for module in body.modules()
        if "attentions" in parts
        and module.training
        and any(name in MAKERS for name, _ in module.named_children())
    ]
    for module in attending:
        module.training = False  # dropout would zero some of the captured weights
    hooks = [body.register_forward_pre_hook(request, with_kwargs=True), body.register_forward_hook(capture)]
    if "relations" in parts:
        hooks += _projections(body, outputs)
    try:
        yield lambda: _features(model, inputs, parts, outputs)
    finally:
        for hook in hooks:
            hook.remove()
        for module in attending:
            module.training = True


def _projections(body: torch.nn.Module, outputs: dict[str, Any]) -> list[Any]:
    """Return hooks on all layers that compute queries, keys and values."""

    def capture(made: tuple[str, ...]) -> Callable[[Any, Any, Tensor], None]:
        def hook(_: Any, __: Any, output: Tensor) -> None:
            for name, part in zip(made, output.chunk(len(made), -1), strict=True):
                outputs[name].append(part)

        return hook

    makers = {
        module: MAKERS[name.rpartition(".")[2]]
        for name, module in body.named_modules()
        if name.rpartition(".")[2] in MAKERS and not any(word in name for word in CROSS)
    }
    return [module.register_forward_hook(capture(made)) for module, made in makers.items()]


def _features(
    model: PreTrainedModel, inputs: Mapping[str, Tensor], parts: frozenset[Part], outputs: dict[str, Any]
) -> Features:
    layers = model.config.get_text_config().num_hidden_layers
    captured: dict[str, tuple[Tensor, ...]] = {}
    for part in parts:
        names = RELATED if part == "relations" else (part,)
        expected = layers + (part == "hidden_states")
        for name in names:
            values = tuple(outputs.get(name) or ())
            if len(values) != expected or any(value is None for value in values):
                raise ModelError(
                    f"{type(model).__name__} does not return its {part.replace('_', ' ')} ({len(values)} layers of {expected}); "
                    "remove the loss terms that read them, or use another architecture"
                )
            captured[name] = values
    tokens, pairs = _mask(inputs)
    if any(getattr(module, "is_causal", False) for module in model.modules()):
        pairs = pairs.tril()
    features = Features(tokens, pairs, **captured)
    return features if model.dtype == torch.float32 else features.float()


def _mask(inputs: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
    """Return the tokens that are not padding, bool (B, L), and the pairs of tokens in the same text, bool (B, L, L).

    In packed rows a text begins where `position_ids` is 0; padding has position 0 at each token.
    """
    if "position_ids" in inputs:
        starts = inputs["position_ids"] == 0
        text = starts.cumsum(1)
        alone = starts & torch.cat([starts[:, 1:], torch.ones_like(starts[:, :1])], 1)
        tokens = ~alone
        same = text[:, :, None] == text[:, None, :]
        return tokens, same & tokens[:, None, :] & tokens[:, :, None]
    tokens = inputs["attention_mask"].bool()
    return tokens, tokens[:, None, :] & tokens[:, :, None]
