"""What goes on in a model's layers while it answers: watched by hooks, so that neither model nor task knows of it."""

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
"""What architectures call the layers of self-attention that make queries, keys and values, and what each makes."""
RELATED = ("queries", "keys", "values")
CROSS = ("cross", "encoder_attn", "EncDecAttention")
"""Attention to another sequence."""


@contextmanager
def capture_features(
    model: PreTrainedModel, inputs: Mapping[str, Tensor], parts: frozenset[Part]
) -> Iterator[Callable[[], Features | None]]:
    """While it is open, a forward pass of the model leaves what goes on in its layers behind.

    Args:
        inputs: those of the forward pass, (B, L): they say which tokens are padding.
        parts: what is wanted of it; nothing: then nothing is capture_features, and None is left behind. With attentions, the model
            attends without dropout.

    Raises:
        ModelError: this architecture does not say it.
    """
    if not parts:
        yield lambda: None
        return
    if "attentions" in parts and model.config._attn_implementation != "eager":
        model.set_attn_implementation("eager")  # the others return no weights
    seen: dict[str, Any] = {name: [] for name in RELATED}

    def ask(module: Any, args: Any, kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        return args, kwargs | {f"output_{part}": True for part in parts if part != "relations"}

    def keep(module: Any, args: Any, output: Any) -> None:
        seen.update({part: getattr(output, part, None) for part in parts if part != "relations"})

    body = model.base_model
    attending = [
        module
        for module in body.modules()
        if "attentions" in parts
        and module.training
        and any(name in MAKERS for name, _ in module.named_children())
    ]
    for module in attending:
        module.training = False  # its dropout would thin the weights that are capture_features
    hooks = [body.register_forward_pre_hook(ask, with_kwargs=True), body.register_forward_hook(keep)]
    if "relations" in parts:
        hooks += _projections(body, seen)
    try:
        yield lambda: _inside(model, inputs, parts, seen)
    finally:
        for hook in hooks:
            hook.remove()
        for module in attending:
            module.training = True


def _projections(body: torch.nn.Module, seen: dict[str, Any]) -> list[Any]:
    """Hooks on all layers that make queries, keys and values."""

    def keep(made: tuple[str, ...]) -> Callable[[Any, Any, Tensor], None]:
        def hook(_: Any, __: Any, output: Tensor) -> None:
            for name, part in zip(made, output.chunk(len(made), -1), strict=True):
                seen[name].append(part)

        return hook

    makers = {
        module: MAKERS[name.rpartition(".")[2]]
        for name, module in body.named_modules()
        if name.rpartition(".")[2] in MAKERS and not any(word in name for word in CROSS)
    }
    return [module.register_forward_hook(keep(made)) for module, made in makers.items()]


def _inside(
    model: PreTrainedModel, inputs: Mapping[str, Tensor], parts: frozenset[Part], seen: dict[str, Any]
) -> Features:
    layers = model.config.get_text_config().num_hidden_layers
    found: dict[str, tuple[Tensor, ...]] = {}
    for part in parts:
        names = RELATED if part == "relations" else (part,)
        expected = layers + (part == "hidden_states")
        for name in names:
            values = tuple(seen.get(name) or ())
            if len(values) != expected or any(value is None for value in values):
                raise ModelError(
                    f"{type(model).__name__} does not say its {part.replace('_', ' ')} ({len(values)} layers of {expected}); "
                    "leave the loss terms out that read them, or use another architecture"
                )
            found[name] = values
    tokens, pairs = _mask(inputs)
    if any(getattr(module, "is_causal", False) for module in model.modules()):
        pairs = pairs.tril()
    return Features(tokens, pairs, **found)


def _mask(inputs: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
    """Which tokens are no padding, (B, L), and which may look at which, (B, L, L): those of one text.

    In packed rows a text begins where `position_ids` are 0; those that pad a row are 0 each.
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
