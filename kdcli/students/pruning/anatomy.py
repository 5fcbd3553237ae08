"""The structure of architectures: the names of their layers, and the meaning of each axis of each weight."""

from __future__ import annotations

import copy
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from huggingface_hub.errors import StrictDataclassError
from torch import Tensor, nn
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.pytorch_utils import Conv1D

from kdcli.errors import ConfigError, ModelError


@dataclass(frozen=True)
class Stack:
    """A stack of layers, with the config names of its depth, its number of heads and its feed-forward width."""

    layers: str
    depth: str
    heads: str
    feed_forward: str


@dataclass(frozen=True)
class Family:
    """Architectures with the same structure.

    The axes of a weight are given for its module's name (a regular expression), in the order (out, in), or (out) for a norm;
    a bias has the axis `out`. Each axis is one of

        -          never pruned: vocabulary, positions, labels, a single head
        hidden     the channels of the hidden states, which are the same in all layers
        ffn        the units of a layer's feed-forward part
        heads      the query heads of a layer's self-attention, each of the width of a head; with as many keys and values, all
                   heads
        kv         its key and value heads, if they are fewer
        qkv        queries, keys and values, concatenated
        cross      the heads of a decoder layer's cross-attention
        pooled     the output of a task head's dense layer
        embedding  the width of embeddings that are projected to the hidden size
        derived    hidden, but the values follow from the width, and no checkpoint stores them

    Attributes:
        hidden: the config names of the hidden size: the first one always, the others where they are equal to it.
        model_axes: the axes of the weights outside the layers, except task heads.
        layer_axes: the axes of a layer's weights.
        key_value_heads: the config name of their number; None: as many as heads.
        head_size: the config name of a head's width; None: it is the hidden size divided by the number of heads.
        shared: a module that only the first layer has, and that all layers use.
    """

    stacks: tuple[Stack, ...]
    hidden: tuple[str, ...]
    model_axes: dict[str, str]
    layer_axes: dict[str, str]
    key_value_heads: str | None = None
    head_size: str | None = None
    shared: str | None = None


TASK_HEADS = {
    r"pooler\.dense|pre_classifier|(classifier|classification_head)\.dense": "pooled hidden",
    r"classifier|(classifier|classification_head)\.out_proj": "- pooled",
    r"score|lm_head|cls\.predictions|vocab_projector|(lm_head|cls\.predictions)\.decoder": "- hidden",
    r"(lm_head|cls\.predictions\.transform)\.dense|vocab_transform": "hidden hidden",
    r"lm_head\.layer_norm|cls\.predictions\.transform\.LayerNorm|vocab_layer_norm": "hidden",
    r"generator_predictions\.dense": "embedding hidden",
    r"generator_predictions\.LayerNorm": "embedding",
    r"generator_lm_head": "- embedding",
    r"final_logits_bias": "- -",
}
OPTIONAL_AXES = {
    "pooled": r"pooler\.dense|pre_classifier|(classifier|classification_head)\.dense",
    "embedding": r"embeddings_project",
}
"""Axes that only models with such a module have; in other models they are hidden channels."""
LISTED = ("layer_types", "no_rope_layers")
"""Config values that are lists over the layers."""
BERT = Family(
    (Stack("encoder.layer", "num_hidden_layers", "num_attention_heads", "intermediate_size"),),
    ("hidden_size", "embedding_size"),
    {
        r"embeddings\.(word|position|token_type)_embeddings": "- embedding",
        r"embeddings\.LayerNorm": "embedding",
        r"embeddings_project": "hidden embedding",
    },
    {
        r"attention\.self\.(query|key|value)": "heads hidden",
        r"attention\.output\.dense": "hidden heads",
        r"intermediate\.dense": "ffn hidden",
        r"output\.dense": "hidden ffn",
        r"(attention\.)?output\.LayerNorm": "hidden",
    },
)
DISTILBERT = Family(
    (Stack("transformer.layer", "n_layers", "n_heads", "hidden_dim"),),
    ("dim",),
    {r"embeddings\.(word|position)_embeddings": "- hidden", r"embeddings\.LayerNorm": "hidden"},
    {
        r"attention\.(q|k|v)_lin": "heads hidden",
        r"attention\.out_lin": "hidden heads",
        r"ffn\.lin1": "ffn hidden",
        r"ffn\.lin2": "hidden ffn",
        r"(sa|output)_layer_norm": "hidden",
    },
)
GPT2 = Family(
    (Stack("h", "n_layer", "n_head", "n_inner"),),
    ("n_embd",),
    {r"wte|wpe": "- hidden", r"ln_f": "hidden"},
    {
        r"attn\.c_attn": "qkv hidden",
        r"attn\.c_proj": "hidden heads",
        r"mlp\.c_fc": "ffn hidden",
        r"mlp\.c_proj": "hidden ffn",
        r"ln_(1|2)": "hidden",
    },
)
LLAMA = Family(
    (Stack("layers", "num_hidden_layers", "num_attention_heads", "intermediate_size"),),
    ("hidden_size",),
    {r"embed_tokens": "- hidden", r"norm": "hidden"},
    {
        r"self_attn\.q_proj": "heads hidden",
        r"self_attn\.(k|v)_proj": "kv hidden",
        r"self_attn\.o_proj": "hidden heads",
        r"self_attn\.(q|k)_norm": "-",
        r"mlp\.(gate|up)_proj": "ffn hidden",
        r"mlp\.down_proj": "hidden ffn",
        r"(input|post_attention|pre_feedforward|post_feedforward)_layernorm": "hidden",
    },
    key_value_heads="num_key_value_heads",
    head_size="head_dim",
)
_BART_STACKS = tuple(
    Stack(f"{side}.layers", f"{side}_layers", f"{side}_attention_heads", f"{side}_ffn_dim")
    for side in ("encoder", "decoder")
)
_BART_LAYER = {
    r"self_attn\.(q|k|v)_proj": "heads hidden",
    r"self_attn\.out_proj": "hidden heads",
    r"encoder_attn\.(q|k|v)_proj": "cross hidden",
    r"encoder_attn\.out_proj": "hidden cross",
    r"fc1": "ffn hidden",
    r"fc2": "hidden ffn",
    r"(self_attn|encoder_attn|final)_layer_norm": "hidden",
}
_BART_WORDS = r"shared|(encoder|decoder)\.embed_tokens"
BART = Family(
    _BART_STACKS,
    ("d_model",),
    {
        _BART_WORDS: "- hidden",
        r"(encoder|decoder)\.embed_positions": "- hidden",
        r"(encoder|decoder)\.(layernorm_embedding|layer_norm)": "hidden",
    },
    _BART_LAYER,
)
MARIAN = Family(
    _BART_STACKS,
    ("d_model",),
    {
        _BART_WORDS: "- hidden",
        r"(encoder|decoder)\.embed_positions": "- derived",
        r"(encoder|decoder)\.layer_norm": "hidden",
    },
    _BART_LAYER,
)
T5 = Family(
    (
        Stack("encoder.block", "num_layers", "num_heads", "d_ff"),
        Stack("decoder.block", "num_decoder_layers", "num_heads", "d_ff"),
    ),
    ("d_model",),
    {_BART_WORDS: "- hidden", r"(encoder|decoder)\.final_layer_norm": "hidden"},
    {
        r"layer\.0\.SelfAttention\.(q|k|v)": "heads hidden",
        r"layer\.0\.SelfAttention\.o": "hidden heads",
        r"layer\.0\.SelfAttention\.relative_attention_bias": "- heads",
        r"layer\.1\.EncDecAttention\.(q|k|v)": "cross hidden",
        r"layer\.1\.EncDecAttention\.o": "hidden cross",
        r"layer\.\d\.DenseReluDense\.wi(_0|_1)?": "ffn hidden",
        r"layer\.\d\.DenseReluDense\.wo": "hidden ffn",
        r"layer\.\d\.layer_norm": "hidden",
    },
    head_size="d_kv",
    shared=r"layer\.0\.SelfAttention\.relative_attention_bias",
)
FAMILIES = {
    **dict.fromkeys(("bert", "roberta", "xlm-roberta", "electra"), BERT),
    "distilbert": DISTILBERT,
    "gpt2": GPT2,
    **dict.fromkeys(
        ("llama", "mistral", "smollm3", "qwen2", "qwen3", "gemma", "gemma2", "gemma3_text"), LLAMA
    ),
    **dict.fromkeys(("bart", "mbart"), BART),
    **dict.fromkeys(("marian", "m2m_100"), MARIAN),
    **dict.fromkeys(("t5", "mt5"), T5),
}
"""The structure of each `model_type`."""


class Group(NamedTuple):
    """Units of one kind that are pruned together.

    Attributes:
        kind: an axis of `Family`, or "layer".
        stack: the name of their stack; empty: they belong to the model.
        layer: the index of their layer; -1: they are the same in all layers.
    """

    kind: str
    stack: str = ""
    layer: int = -1


@dataclass(frozen=True)
class Axis:
    """An axis of a weight that consists of units of equal width.

    Attributes:
        units: the number of units.
        parts: how often the sequence of units is repeated along the axis.
    """

    group: Group
    units: int
    parts: int = 1

    def indices(self, selected: Tensor, size: int) -> Tensor:
        """The indices of the selected units (k,) on the axis, whose length is `size`."""
        return torch.arange(size).view(self.parts, self.units, -1)[:, selected].flatten()

    def sums(self, values: Tensor, dim: int) -> Tensor:
        """Sum a weight's values over all but this axis, whose dimension is `dim`: (units,)."""
        return values.movedim(dim, 0).reshape(self.parts, self.units, -1).sum((0, 2))


class Anatomy:
    """The structure of a model.

    Attributes:
        stacks: the family's stacks that the model has.
        axes: the axes of each weight in its state_dict; None for an axis that is never pruned.
        units: the number of units of each group except layers.

    Raises:
        ModelError: its architecture is not in `FAMILIES`, or it has a weight that no rule of its family matches.
    """

    def __init__(self, model: PreTrainedModel):
        kind = model.config.model_type
        if kind not in FAMILIES:
            raise ModelError(
                f"{type(model).__name__}: the structure of {kind} models is not known, so they cannot be pruned; use one of "
                f"{', '.join(FAMILIES)}, or a student that is no part of its teacher (student=local with student.path, or one of a "
                "size: kdcli list student)"
            )
        self.model, self.config, self.family = model, model.config, FAMILIES[kind]
        self._prefix = f"{model.base_model_prefix}."
        self._modules = {name.removeprefix(self._prefix): part for name, part in model.named_modules()}
        self.stacks = [stack for stack in self.family.stacks if stack.layers in self._modules]
        self._own = {
            role
            for role, module in OPTIONAL_AXES.items()
            if any(re.fullmatch(module, name) for name in self._modules)
        }
        self.units: dict[Group, int] = {}
        self.axes = {name: self._axes(name, weight) for name, weight in model.state_dict().items()}

    def depth(self, stack: Stack) -> int:
        """The number of layers of a stack."""
        return int(getattr(self.config, stack.depth))

    def head_size(self, stack: Stack) -> int:
        """The width of a head."""
        own = getattr(self.config, self.family.head_size or "", None)
        return int(own or self.units[Group("hidden")] // getattr(self.config, stack.heads))

    def size_name(self, group: Group) -> str | None:
        """The config name of the number of a group's units; None if it cannot be chosen."""
        stack = next((stack for stack in self.stacks if stack.layers == group.stack), None)
        if stack is None:
            return self.family.hidden[0] if group.kind in ("hidden", "pooled") else None
        if group.kind == "kv":
            return self.family.key_value_heads
        return stack.feed_forward if group.kind == "ffn" else stack.heads

    def locate(self, name: str) -> tuple[Stack, int, str] | None:
        """The stack, the layer's index and the rest of a name (empty for the layer itself); None for a name outside the layers."""
        name = name.removeprefix(self._prefix)
        for stack in self.stacks:
            if match := re.fullmatch(rf"{re.escape(stack.layers)}\.(\d+)\.?(.*)", name):
                return stack, int(match[1]), match[2]
        return None

    def side(self, name: str) -> int:
        """The index of the stack that a module belongs to: 1 in the decoder of an encoder-decoder model, else 0."""
        sides = [stack.layers.split(".")[0] for stack in self.stacks]
        return int(name.removeprefix(self._prefix).split(".")[0] == sides[-1]) if len(sides) > 1 else 0

    def is_shared(self, name: str) -> bool:
        """Whether a weight of the first layer is used by all layers."""
        location = self.locate(name)
        shared = self.family.shared
        return bool(location and shared and re.fullmatch(shared, _module(location[2])))

    def _axes(self, name: str, weight: Tensor) -> tuple[Axis | None, ...]:
        location = self.locate(name)
        rules = self.family.layer_axes if location else self.family.model_axes | TASK_HEADS
        own = _module(location[2] if location else name.removeprefix(self._prefix))
        roles = next((roles.split() for rule, roles in rules.items() if re.fullmatch(rule, own)), [])
        if name.endswith(".bias"):
            roles = roles[:1]
        elif isinstance(self._modules.get(_module(name).removeprefix(self._prefix)), Conv1D):
            roles.reverse()
        axes = [self._axis(role, location, size) for role, size in zip(roles, weight.shape, strict=False)]
        if len(axes) != weight.dim() or any(
            axis and size % (axis.parts * axis.units) for axis, size in zip(axes, weight.shape, strict=True)
        ):
            raise ModelError(
                f"{type(self.model).__name__}: the meaning of the axes of {name} {tuple(weight.shape)} is not known, because "
                f"{self.config.model_type} models have no such weight; choose another student (student=tiny, lora)"
            )
        self.units |= {axis.group: axis.units for axis in axes if axis}
        return tuple(axes)

    def _axis(self, role: str, location: tuple[Stack, int, str] | None, size: int) -> Axis | None:
        if role == "-":
            return None
        if location is None or role == "hidden":
            return Axis(Group("hidden" if role in OPTIONAL_AXES and role not in self._own else role), size)
        stack, layer, _ = location
        if role == "ffn":
            return Axis(Group(role, stack.layers, layer), size)
        if role == "kv":
            return Axis(
                Group(role, stack.layers, layer), getattr(self.config, str(self.family.key_value_heads))
            )
        kind, parts = ("heads", 3) if role == "qkv" else (role, 1)
        layer = -1 if kind == "heads" and self.family.shared else layer
        return Axis(Group(kind, stack.layers, layer), getattr(self.config, stack.heads), parts)


def carve(
    anatomy: Anatomy,
    layers: Sequence[list[int]],
    sizes: Mapping[str, int] | None = None,
    selected: Mapping[Group, Tensor] | None = None,
) -> PreTrainedModel:
    """Create a smaller model of the same class, in eval mode.

    Args:
        layers: the indices of the selected layers of each stack, in their new order.
        sizes: further values of its config.
        selected: the selected units of each group, (k,); all units of a group that is not named.

    Raises:
        ConfigError: transformers does not have this architecture in such a size.
    """
    selected = selected or {}
    config = copy.deepcopy(anatomy.config)
    for stack, chosen in zip(anatomy.stacks, layers, strict=True):
        for name in LISTED:
            if getattr(config, name, None):
                setattr(config, name, [getattr(config, name)[layer] for layer in chosen])
        setattr(config, stack.depth, len(chosen))
    for name, size in (sizes or {}).items():
        setattr(config, name, size)
    try:
        config.validate()
    except StrictDataclassError as error:
        raise ConfigError(
            f"transformers does not support {config.model_type} models of this size: {error.__cause__ or error}; give other sizes (student.hidden_size …)"
        ) from None
    model = _like(anatomy.model, config)
    original, weights = anatomy.model.state_dict(), {}
    order = {stack.layers: chosen for stack, chosen in zip(anatomy.stacks, layers, strict=True)}
    used = set()
    for name, new in model.state_dict().items():
        location = anatomy.locate(name)
        source = name
        if location and not anatomy.is_shared(name):
            stack, layer, rest = location
            source = f"{name.removesuffix(f'{layer}.{rest}')}{order[stack.layers][layer]}.{rest}"
        used.add(source)
        weight = original[source]
        for dim, axis in enumerate(anatomy.axes[source]):
            if axis and axis.group.kind == "derived":
                weight = new if Group("hidden") in selected else weight
            elif axis and axis.group in selected:
                indices = axis.indices(selected[axis.group], weight.shape[dim])
                weight = weight.index_select(dim, indices.to(weight.device))
        weights[name] = weight
    for name in original:
        if name not in used and anatomy.locate(name) is None:
            raise ConfigError(
                f"{type(model).__name__} of this size has no {name}: give another student.hidden_size"
            )
    model.load_state_dict(weights)
    if model.can_generate():
        model.generation_config = anatomy.model.generation_config  # its end-of-text token
    return model.eval()


def _like(model: PreTrainedModel, config: PreTrainedConfig) -> PreTrainedModel:
    """Create a model of the same class, with an untied head if the model's head is untied: the configs of T5 1.1, Flan-T5 and mT5 do not
    specify it, only their weights do."""
    new = type(model)(config)
    new_head, head = new.get_output_embeddings(), model.get_output_embeddings()
    if new_head is not None and head is not None and head.weight is not model.get_input_embeddings().weight:
        new_head.weight = nn.Parameter(new_head.weight.detach().clone())
    return new


def _module(name: str) -> str:
    """The name of the module that a weight belongs to."""
    return name.removesuffix(".weight").removesuffix(".bias")
