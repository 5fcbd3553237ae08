"""A student made of some of the teacher's layers."""

from __future__ import annotations

import copy
import re

import datasets
import numpy as np
from transformers import PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

from kdcli.config import Count
from kdcli.errors import ConfigError, ModelError
from kdcli.students.cut import Cut
from kdcli.tasks.base import Task


class Layers(Cut):
    """The teacher with fewer layers: the chosen ones, the embeddings and the head are copied (Sanh et al. 2019,
    https://arxiv.org/abs/1910.01108, section 2). With `student.path`, that checkpoint's.

    Args:
        num_hidden_layers: how many layers.
        layers: which ones, from 0; null: evenly spaced, the first and the last among them.
    """

    def __init__(self, num_hidden_layers: Count, layers: list[int] | None = None):
        if layers is not None and len(layers) != num_hidden_layers:
            raise ConfigError(
                f"student.layers names {len(layers)} layers, student.num_hidden_layers is {num_hidden_layers}"
            )
        self.count, self.layers = num_hidden_layers, layers

    def cut(
        self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, task: Task, rows: datasets.Dataset
    ) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
        """A model of the same architecture and width."""
        whole = model
        depth = whole.config.get_text_config().num_hidden_layers
        if self.count > depth:
            raise ConfigError(f"student.num_hidden_layers = {self.count}: the teacher has {depth}")
        chosen = self.layers or np.linspace(0, depth - 1, self.count).round().astype(int).tolist()
        if bad := [layer for layer in chosen if not 0 <= layer < depth]:
            raise ConfigError(f"student.layers: the teacher has no layer {bad[0]}, only 0 to {depth - 1}")
        stacks = [name for name, part in whole.named_modules() if _is_stack(part, depth)]
        if len(stacks) != 1:
            raise ModelError(
                f"{type(whole).__name__}: its layers cannot be told from its other parts ({stacks or 'none found'})"
            )
        model = type(whole)(shallower(whole.config, chosen, depth))
        place = {old: new for new, old in enumerate(chosen)}
        weights = {}
        for name, weight in whole.state_dict().items():
            if found := re.fullmatch(rf"{re.escape(stacks[0])}\.(\d+)\.(.+)", name):
                layer = int(found[1])
                if layer not in place:
                    continue
                name = f"{stacks[0]}.{place[layer]}.{found[2]}"
            weights[name] = weight
        model.load_state_dict(weights)
        model.generation_config = whole.generation_config  # where its text ends
        return model.eval(), tokenizer


def _is_stack(part: object, depth: int) -> bool:
    return type(part).__name__ == "ModuleList" and len(part) == depth  # type: ignore[arg-type]


def shallower(config: PreTrainedConfig, chosen: list[int], depth: int) -> PreTrainedConfig:
    """The config with the chosen layers only; what it lists for each layer (kinds of attention …) is chosen as well."""
    config = copy.deepcopy(config)
    inner = config.get_text_config()
    for name, value in list(vars(inner).items()):
        if isinstance(value, list) and len(value) == depth and not name.startswith("_"):
            setattr(inner, name, [value[layer] for layer in chosen])
    inner.num_hidden_layers = len(chosen)
    return config
