"""What is known of each architecture: where its layers stand, and what each axis of each weight means."""

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
    """Layers one upon the other; what the config calls their number, their heads and their feed-forward width."""

    layers: str
    depth: str
    heads: str
    feed_forward: str


@dataclass(frozen=True)
class Family:
    """Architectures of one layout.

    The axes of a weight are given by its module's name (a regular expression), in the order (out, in), or just (out) for
    a norm; a bias has the axis `out`. Each is one of

        -          whole: vocabulary, positions, labels, a single head
        hidden     the channels of the hidden states, one choice for the whole model
        ffn        the units of a layer's feed-forward part
        heads      the query heads of a layer's self-attention, each as wide as a head is; all heads, where keys and values
                   have as many
        kv         its key and value heads, where they are fewer
        qkv        queries, keys and values one after the other
        cross      the heads of a decoder layer's attention to the encoder
        pooled     what a task's head makes of the hidden states of one token before it classifies
        embedding  the width of embeddings that are projected to the hidden size
        made       hidden, but it follows from the width: no checkpoint holds it

    Attributes:
        hidden: what the config calls the hidden size; the first one always, others where they are equal to it.
        outside: the weights outside of the layers, but for the heads of tasks.
        inside: those of a layer.
        key_value_heads: what the config calls them; None: as many as heads.
        head_size: what the config calls it; None: the heads side by side are as wide as the hidden states.
        shared: a module that only the first layer has, and all use.
    """

    stacks: tuple[Stack, ...]
    hidden: tuple[str, ...]
    outside: dict[str, str]
    inside: dict[str, str]
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
OWN = {
    "pooled": r"pooler\.dense|pre_classifier|(classifier|classification_head)\.dense",
    "embedding": r"embeddings_project",
}
"""Axes that only models with such a module have; in others they are hidden channels."""
LISTED = ("layer_types", "no_rope_layers")
"""What configs list layer by layer."""
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
        r"(encoder|decoder)\.embed_positions": "- made",
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
"""The layout of each `model_type`."""


class Group(NamedTuple):
    """Units of one kind, of which some can be taken away.

    Attributes:
        kind: as in `Family`, or "layer".
        stack: the path of their stack; none: they are the whole model's.
        layer: the number of their layer; -1: they are the same in all.
    """

    kind: str
    stack: str = ""
    layer: int = -1


@dataclass(frozen=True)
class Axis:
    """An axis of a weight along which units stand, each as many numbers wide.

    Attributes:
        units: how many there are.
        parts: how often they stand there, one row of them after the other.
    """

    group: Group
    units: int
    parts: int = 1

    def places(self, kept: Tensor, size: int) -> Tensor:
        """Where the kept units (k,) stand on the axis, which is `size` long."""
        return torch.arange(size).view(self.parts, self.units, -1)[:, kept].flatten()

    def sums(self, values: Tensor, dim: int) -> Tensor:
        """Sums of a weight's values, of which the axis is number `dim`: (units,)."""
        return values.movedim(dim, 0).reshape(self.parts, self.units, -1).sum((0, 2))


class Anatomy:
    """A model and what the table knows of it.

    Attributes:
        stacks: those of the family's that it has.
        axes: of each name in its state_dict the weight's axes; None: whole.
        units: how many there are of each group, layers aside.

    Raises:
        ModelError: it is of no architecture in the table, or has a weight that no rule there names.
    """

    def __init__(self, model: PreTrainedModel):
        kind = model.config.model_type
        if kind not in FAMILIES:
            raise ModelError(
                f"{type(model).__name__}: where the layers of {kind} models stand, and what their weights mean, is not "
                f"known; use one of {', '.join(FAMILIES)}, or a student that is no part of its teacher (student=local with "
                "student.path, or one of a size: kdcli list student)"
            )
        self.model, self.config, self.family = model, model.config, FAMILIES[kind]
        self._prefix = f"{model.base_model_prefix}."
        self._modules = {name.removeprefix(self._prefix): part for name, part in model.named_modules()}
        self.stacks = [stack for stack in self.family.stacks if stack.layers in self._modules]
        self._own = {
            role for role, module in OWN.items() if any(re.fullmatch(module, name) for name in self._modules)
        }
        self.units: dict[Group, int] = {}
        self.axes = {name: self._axes(name, weight) for name, weight in model.state_dict().items()}

    def depth(self, stack: Stack) -> int:
        """Number of layers."""
        return int(getattr(self.config, stack.depth))

    def head_size(self, stack: Stack) -> int:
        """Width of a head."""
        own = getattr(self.config, self.family.head_size or "", None)
        return int(own or self.units[Group("hidden")] // getattr(self.config, stack.heads))

    def size_name(self, group: Group) -> str | None:
        """What the config calls the number of a group's units; None: nothing that can be chosen."""
        stack = next((stack for stack in self.stacks if stack.layers == group.stack), None)
        if stack is None:
            return self.family.hidden[0] if group.kind in ("hidden", "pooled") else None
        if group.kind == "kv":
            return self.family.key_value_heads
        return stack.feed_forward if group.kind == "ffn" else stack.heads

    def place(self, name: str) -> tuple[Stack, int, str] | None:
        """The stack, the number of the layer and what follows in a name (of the layer itself: nothing); None: it stands
        outside of the layers."""
        name = name.removeprefix(self._prefix)
        for stack in self.stacks:
            if found := re.fullmatch(rf"{re.escape(stack.layers)}\.(\d+)\.?(.*)", name):
                return stack, int(found[1]), found[2]
        return None

    def side(self, name: str) -> int:
        """The number of the stack that a module works for: 1 in a decoder that has an encoder beside it, else 0."""
        sides = [stack.layers.split(".")[0] for stack in self.stacks]
        return int(name.removeprefix(self._prefix).split(".")[0] == sides[-1]) if len(sides) > 1 else 0

    def common(self, name: str) -> bool:
        """Whether a weight stands in the first layer and belongs to all of them."""
        place = self.place(name)
        return bool(place and self.family.shared and re.fullmatch(self.family.shared, _module(place[2])))

    def _axes(self, name: str, weight: Tensor) -> tuple[Axis | None, ...]:
        place = self.place(name)
        rules = self.family.inside if place else self.family.outside | TASK_HEADS
        own = _module(place[2] if place else name.removeprefix(self._prefix))
        roles = next((roles.split() for rule, roles in rules.items() if re.fullmatch(rule, own)), [])
        if name.endswith(".bias"):
            roles = roles[:1]
        elif isinstance(self._modules.get(_module(name).removeprefix(self._prefix)), Conv1D):
            roles.reverse()
        axes = [self._axis(role, place, size) for role, size in zip(roles, weight.shape, strict=False)]
        if len(axes) != weight.dim() or any(
            axis and size % (axis.parts * axis.units) for axis, size in zip(axes, weight.shape, strict=True)
        ):
            raise ModelError(
                f"{type(self.model).__name__}: what the axes of {name} {tuple(weight.shape)} mean is not known; "
                f"{self.config.model_type} models have no such weight, so nothing can be taken away from this one"
            )
        self.units |= {axis.group: axis.units for axis in axes if axis}
        return tuple(axes)

    def _axis(self, role: str, place: tuple[Stack, int, str] | None, size: int) -> Axis | None:
        if role == "-":
            return None
        if place is None or role == "hidden":
            return Axis(Group("hidden" if role in OWN and role not in self._own else role), size)
        stack, layer, _ = place
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
    kept: Mapping[Group, Tensor] | None = None,
) -> PreTrainedModel:
    """A smaller model of the same class, in eval mode.

    Args:
        layers: which layers of each stack, in their new order.
        sizes: what its config says besides their numbers.
        kept: which units of a group, (k,); all where a group is not named.

    Raises:
        ConfigError: transformers does not have this architecture in such a size.
    """
    kept = kept or {}
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
            f"transformers has no {config.model_type} of such a size: {error.__cause__ or error}"
        ) from None
    model = _like(anatomy.model, config)
    whole, weights = anatomy.model.state_dict(), {}
    order = {stack.layers: chosen for stack, chosen in zip(anatomy.stacks, layers, strict=True)}
    used = set()
    for name, new in model.state_dict().items():
        place = anatomy.place(name)
        source = name
        if place and not anatomy.common(name):
            stack, layer, rest = place
            source = f"{name.removesuffix(f'{layer}.{rest}')}{order[stack.layers][layer]}.{rest}"
        used.add(source)
        weight = whole[source]
        for dim, axis in enumerate(anatomy.axes[source]):
            if axis and axis.group.kind == "made":
                weight = new if Group("hidden") in kept else weight
            elif axis and axis.group in kept:
                places = axis.places(kept[axis.group], weight.shape[dim])
                weight = weight.index_select(dim, places.to(weight.device))
        weights[name] = weight
    for name in whole.keys() - used:
        if anatomy.place(name) is None:
            raise ConfigError(
                f"a {type(model).__name__} of such a size has no {name}: take another student.hidden_size"
            )
    model.load_state_dict(weights)
    if model.can_generate():
        model.generation_config = anatomy.model.generation_config  # where its text ends
    return model.eval()


def _like(model: PreTrainedModel, config: PreTrainedConfig) -> PreTrainedModel:
    """A new model of the same class, whose head is a matrix of its own where the other's is: a config does not say it of T5 1.1,
    Flan-T5 and mT5, only their weights do."""
    new = type(model)(config)
    ours, theirs = new.get_output_embeddings(), model.get_output_embeddings()
    if ours is not None and theirs is not None and theirs.weight is not model.get_input_embeddings().weight:
        ours.weight = nn.Parameter(ours.weight.detach().clone())
    return new


def _module(name: str) -> str:
    """The module that a weight is of."""
    return name.removesuffix(".weight").removesuffix(".bias")
