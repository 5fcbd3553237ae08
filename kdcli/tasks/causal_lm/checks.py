"""Checks a decoder when it is loaded, and its texts before a student is trained."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from transformers import PreTrainedModel

from kdcli.errors import ModelError
from kdcli.generation import Reply
from kdcli.tasks.language_model import before_head, contradiction, tolerance
from kdcli.text_metrics import text_scores

CHECK_ENDS = "It does not write as it was trained: check eos_token_id in its config.json and generation_config.json, its tokenizer files, and its chat template"
FEWEST = 4
"""The number of references below which scores of texts are not compared with the perplexity."""
UNRELATED = 5.0
"""The ROUGE-L (0 to 100) below which texts share almost no words with their references."""


def contradicting_completions(log_prob: float, replies: Sequence[Reply], references: Sequence[str]) -> str:
    """Return how the completions that a model generates contradict the probability that it gives to the references; empty: they do not.

    Many completions may fit a prompt, so texts that differ from their references contradict nothing; texts with next to none of their words do. A
    truncated completion is compared with as many words of its reference. Prompts with an empty reference are left out.

    Args:
        log_prob: the mean log-probability of a token of the references, in nats.
        replies: what the model writes greedily.
    """
    pairs = [
        (text, reference if complete else " ".join(reference.split()[: len(text.split())]))
        for (text, complete), reference in zip(replies, references, strict=False)
        if reference.strip()
    ]
    if len(pairs) < FEWEST:
        return ""
    texts, expected = zip(*pairs, strict=True)
    rouge_l = 100 * text_scores(texts, expected)["rouge_l"]
    wrong = contradiction(log_prob, texts, "ROUGE-L", rouge_l, UNRELATED)
    return f"{wrong}. {CHECK_ENDS}" if wrong else ""


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
    if not torch.allclose(before, after, atol=tolerance(model) * float(before.abs().max().clamp(min=1))):
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
        packed, alone, atol=tolerance(model) * float(alone.abs().max().clamp(min=1))
    ):
        raise ModelError(
            f"{type(model).__name__} does not separate the documents of a row by position_ids, which "
            "plain text needs; use another model, or data of prompts and completions"
        )
