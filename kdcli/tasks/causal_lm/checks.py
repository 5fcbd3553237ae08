"""What is checked of a decoder when it is loaded."""

from __future__ import annotations

import torch
from transformers import PreTrainedModel

from kdcli.errors import ModelError
from kdcli.tasks.language_model import CLOSE, before_head


@torch.no_grad()
def require_causal(model: PreTrainedModel) -> None:
    """Require that what is predicted at a token does not change with the tokens after it.

    Raises:
        ModelError
    """
    vocab_size = model.config.get_text_config().vocab_size
    ids = torch.arange(1, 9)[None] % vocab_size
    changed = torch.cat([ids[:, :-1], (ids[:, -1:] + 1) % vocab_size], 1)
    earlier = torch.zeros(7, dtype=torch.int64), torch.arange(7)
    before, after = (before_head(model, {"input_ids": each}, earlier).hidden for each in (ids, changed))
    if not torch.allclose(before, after, atol=CLOSE * float(before.abs().max().clamp(min=1))):
        raise ModelError(
            f"{type(model).__name__} reads the tokens after a token when it predicts it, so its probabilities are none of a text that is "
            "generated; use a decoder (GPT-2, Llama, Qwen …), or dataset.task=masked_lm for an encoder"
        )


@torch.no_grad()
def require_separation(model: PreTrainedModel) -> None:
    """Require that the outputs for a document do not depend on the documents before it in the row.

    Raises:
        ModelError: this architecture does not separate documents by `position_ids`.
    """
    position_ids = torch.arange(4).repeat(2)[None]
    ids = torch.arange(8)[None] % model.config.get_text_config().vocab_size
    alone = model(input_ids=ids[:, 4:], use_cache=False).logits
    try:
        packed = model(input_ids=ids, position_ids=position_ids, use_cache=False).logits[:, 4:]
    except TypeError:
        packed = None
    if packed is None or not torch.allclose(
        packed, alone, atol=CLOSE * float(alone.abs().max().clamp(min=1))
    ):
        raise ModelError(
            f"{type(model).__name__} does not separate the documents of a row by position_ids, which "
            "plain text needs; use another model, or data of prompts and completions"
        )
