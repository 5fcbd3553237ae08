"""Describes the structure of a model, the units of each axis of each weight, and creates smaller models of some of them."""

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
from kdcli.students.pruning.families import FAMILIES, LISTED, OPTIONAL_AXES, TASK_HEADS, Stack


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
    """An axis of a weight, or a part of it, that consists of units of equal width.

    Attributes:
        units: the number of units.
        parts: how often the sequence of units is repeated.
        start, size: where it begins on the axis, and its length there.
    """

    group: Group
    units: int
    parts: int = 1
    start: int = 0
    size: int = 0

    def indices(self, selected: Tensor | None = None) -> Tensor:
        """Return the indices of the selected units (k,) on the axis; None: of all."""
        indices = torch.arange(self.start, self.start + self.size).view(self.parts, self.units, -1)
        return (indices if selected is None else indices[:, selected]).flatten()

    def sums(self, values: Tensor, dim: int) -> Tensor:
        """Sum a weight's values over all but this axis, whose dimension is `dim`: (units,)."""
        values = values.narrow(dim, self.start, self.size).movedim(dim, 0)
        return values.reshape(self.parts, self.units, -1).sum((0, 2))


class Anatomy:
    """The structure of a model.

    Attributes:
        stacks: the family's stacks that the model has.
        axes: the axes of each weight in its state_dict, each a sequence of parts; an axis that is never pruned has none.
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
        """Return the number of layers of a stack."""
        return int(getattr(self.config, stack.depth))

    def head_size(self, stack: Stack) -> int:
        """Return the width of a head."""
        own = getattr(self.config, self.family.head_size or "", None)
        return int(own or self.units[Group("hidden")] // getattr(self.config, stack.heads))

    def size_name(self, group: Group) -> str | None:
        """Return the config name of the number of a group's units; None if it cannot be chosen."""
        stack = next((stack for stack in self.stacks if stack.layers == group.stack), None)
        if stack is None:
            return self.family.hidden[0] if group.kind in ("hidden", "pooled") else None
        if group.kind in ("kv", "experts"):
            return self.family.key_value_heads if group.kind == "kv" else self.family.experts
        return stack.feed_forward if group.kind == "ffn" else stack.heads

    def locate(self, name: str) -> tuple[Stack, int, str] | None:
        """Return the stack, the layer's index and the rest of a name (empty for the layer itself); None for a name outside the layers."""
        name = name.removeprefix(self._prefix)
        for stack in self.stacks:
            if match := re.fullmatch(rf"{re.escape(stack.layers)}\.(\d+)\.?(.*)", name):
                return stack, int(match[1]), match[2]
        return None

    def side(self, name: str) -> int:
        """Return the index of the stack that a module belongs to: 1 in the decoder of an encoder-decoder model, else 0."""
        sides = [stack.layers.split(".")[0] for stack in self.stacks]
        return int(name.removeprefix(self._prefix).split(".")[0] == sides[-1]) if len(sides) > 1 else 0

    def is_shared(self, name: str) -> bool:
        """Return whether a weight of the first layer is used by all layers."""
        location = self.locate(name)
        shared = self.family.shared
        return bool(location and shared and re.fullmatch(shared, _module(location[2])))

    def _axes(self, name: str, weight: Tensor) -> tuple[tuple[Axis, ...], ...]:
        location = self.locate(name)
        rules = self.family.layer_axes if location else self.family.model_axes | TASK_HEADS
        own = _module(location[2] if location else name.removeprefix(self._prefix))
        roles = next((roles.split() for rule, roles in rules.items() if re.fullmatch(rule, own)), [])
        if name.endswith(".bias"):
            roles = roles[:1]
        elif isinstance(self._modules.get(_module(name).removeprefix(self._prefix)), Conv1D):
            roles.reverse()
        axes = [self._parts(role, location, size) for role, size in zip(roles, weight.shape, strict=False)]
        parts = [part for axis in axes for part in axis]
        if len(axes) != weight.dim() or any(part.size % (part.parts * part.units) for part in parts):
            raise ModelError(
                f"{type(self.model).__name__}: the meaning of the axes of {name} {tuple(weight.shape)} is not known, because "
                f"{self.config.model_type} models have no such weight; choose another student (student=tiny, lora)"
            )
        self.units |= {part.group: part.units for part in parts}
        return tuple(axes)

    def _parts(self, role: str, location: tuple[Stack, int, str] | None, size: int) -> tuple[Axis, ...]:
        """Return the parts of an axis of `size` with a role of `Family`."""
        if role == "-":
            return ()
        if location is None and role == "heads":  # a bias that the heads of all layers share
            location = self.stacks[0], -1, ""
        if location is None or role == "hidden":
            group = Group("hidden" if role in OPTIONAL_AXES and role not in self._own else role)
            return (Axis(group, size, size=size),)
        stack, layer, _ = location
        layer = -1 if role in ("heads", "qkv") and self.family.shared else layer
        heads = int(getattr(self.config, stack.heads))
        pairs = int(getattr(self.config, self.family.key_value_heads or stack.heads))
        match role:
            case "ffn" | "gated":
                parts = 2 if role == "gated" else 1
                return (Axis(Group("ffn", stack.layers, layer), size // parts, parts, size=size),)
            case "experts":
                return (Axis(Group(role, stack.layers, layer), size, size=size),)
            case "kv":
                return (Axis(Group(role, stack.layers, layer), pairs, size=size),)
            case "qkv" if self.family.key_value_heads:
                queries = size // (heads + 2 * pairs) * heads
                return (
                    Axis(Group("heads", stack.layers, layer), heads, size=queries),
                    Axis(Group("kv", stack.layers, layer), pairs, 2, queries, size - queries),
                )
            case "qkv":
                return (Axis(Group("heads", stack.layers, layer), heads, 3, size=size),)
            case _:
                return (Axis(Group(role, stack.layers, layer), heads, size=size),)


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
    if anatomy.family.first and any(0 in chosen[1:] or chosen[0] != 0 for chosen in layers):
        raise ConfigError(
            f"the first layer of {anatomy.config.model_type} models has a structure of its own and stays the first one; begin "
            "student.layers with 0"
        )
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
        for dim, parts in enumerate(anatomy.axes[source]):
            if any(part.group.kind == "derived" for part in parts):
                weight = new if Group("hidden") in selected else weight
            elif any(part.group in selected for part in parts):
                indices = torch.cat([part.indices(selected.get(part.group)) for part in parts])
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
    """Return the name of the module that a weight belongs to."""
    return name.removesuffix(".weight").removesuffix(".bias")
