"""Corrects output layers of loaded models that are not what their config.json or their architecture promises."""

from __future__ import annotations

import functools
import logging
from pathlib import Path

import torch
from transformers import PreTrainedModel

from kdcli.model_files import weight_files
from kdcli.models.converted import weight_names

logger = logging.getLogger(__name__)


def keep_untied(model: PreTrainedModel, name: str) -> None:
    """Correct `tie_word_embeddings` of a loaded model whose weights hold an output layer that differs from the embeddings: transformers reads both, and
    every other reader of a saved copy would take the embeddings for the output layer.

    Args:
        name: of the checkpoint, for the warning.
    """
    config = model.config.get_text_config(decoder=True)
    if not getattr(config, "tie_word_embeddings", False) or model.device.type == "meta":
        return
    if not model.all_tied_weights_keys and model.get_expanded_tied_weights_keys(all_submodels=True):
        config.tie_word_embeddings = False
        _warn_of_tie(name)


@functools.cache
def _warn_of_tie(name: str) -> None:
    logger.warning(
        "%s: tie_word_embeddings is true in its config.json, and its weights hold an output layer that differs from the embeddings: "
        "this output layer is used, and tie_word_embeddings=false is written beside it",
        name,
    )


def reinitialize_head(model: PreTrainedModel, folder: Path, every: bool) -> list[str]:
    """Initialise the linear layers of a model's head anew.

    Args:
        folder: the directory of its weights.
        every: also those that are not in the weights; transformers has initialised these.

    Returns:
        The names of the weights that are replaced.
    """
    stored = {key for file in weight_files(folder) for key in weight_names(file)}
    replaced = []
    for name, part in model.named_children():
        if name == model.base_model_prefix:
            continue
        for inner, layer in part.named_modules(prefix=name):
            if isinstance(layer, torch.nn.Linear) and (every or f"{inner}.weight" in stored):
                layer.reset_parameters()
                replaced.append(f"{inner}.weight")
    return replaced
