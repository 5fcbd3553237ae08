"""What language models have in common: their classes are the tokens of a vocabulary."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import datasets
import numpy as np
import torch
from torch import Tensor
from transformers import BatchEncoding, PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

from kdcli.config.dataset import Dataset as DatasetConfig
from kdcli.errors import ModelError
from kdcli.losses.base import log_probs
from kdcli.signals import Head, Signal, TopKSignal
from kdcli.tasks.base import Predictions, Task
from kdcli.tasks.encoded import Encoded

CLOSE = 1e-3
"""The most by which the head's logits may differ from the model's own (fp32), relative to their size."""


class LanguageModel(Task):
    """The headline metric is the mean log-probability of a counted token, in nats.

    Positions are picked by (row, column), and signals are hidden: the logits never exist whole.
    """

    metric = "log_prob"
    chance_is = "what all tokens alike would get,"
    vocabulary = True
    truncation: Literal["cut", "refuse", "drop"] = "cut"
    """What becomes of a row of more than `max_length` tokens: it is cut at its end, refused, or dropped."""
    dropped = 0
    """How many rows `prepare` has dropped."""

    def without_overlong(self, rows: datasets.Dataset, overlong: np.ndarray) -> datasets.Dataset:
        """The rows but for those that are marked, (N,), which are counted."""
        self.dropped += int(overlong.sum())
        return rows.select(np.flatnonzero(~overlong)) if overlong.any() else rows

    def dataset_summary(self, cfg: DatasetConfig, dropped: Mapping[str, int]) -> dict[str, Any]:
        """How many rows were dropped, by reason, also for their length."""
        return {"dropped": {**dropped, **({"too long": self.dropped} if self.dropped else {})}}

    def configure(self, config: PreTrainedConfig) -> PreTrainedConfig:
        """Nothing: the classes are the vocabulary."""
        return config

    def load(self, path: Path, **kwargs: Any) -> tuple[PreTrainedModel, bool]:
        """A model with its output head.

        Raises:
            ModelError: `signal` does not say what the model itself does: this architecture does something else after its
                body.
        """
        model, new = super().load(path, **kwargs)
        self._check_head(model)
        return model, new

    @torch.no_grad()
    def _check_head(self, model: PreTrainedModel) -> None:
        ids = torch.arange(4)[None] % model.config.get_text_config().vocab_size
        every = torch.zeros(4, dtype=torch.int64), torch.arange(4)
        own = self.own_logits(model, ids)
        ours = self.signal(model, self.probe(ids), every).rows(slice(0, 4)).logits
        if own.shape != ours.shape or not torch.allclose(
            own, ours, atol=CLOSE * float(own.abs().max().clamp(min=1))
        ):
            raise unknown_head(model)

    def probe(self, ids: Tensor) -> dict[str, Tensor]:
        """Inputs of `signal` that are made of these tokens alone, (1, L)."""
        return {"input_ids": ids}

    def own_logits(self, model: PreTrainedModel, ids: Tensor) -> Tensor:
        """What the model itself makes of `probe`'s inputs, fp32 (L, C)."""
        return model(input_ids=ids).logits[0].float()

    def targets(self, encoded: Encoded) -> tuple[np.ndarray, np.ndarray]:
        """All counted tokens."""
        return encoded.counted()

    def compared(self, encoded: Encoded) -> tuple[np.ndarray, np.ndarray]:
        """The tokens that two models must have in common to be compared, and how many each row has."""
        return self.targets(encoded)

    def require_same(self, rows: datasets.Dataset, teacher: Encoded, student: Encoded) -> None:
        """Refuse rows of which the teacher and the student count different tokens.

        Raises:
            ModelError: their tokenizers cut a text in different ways, or their chat templates differ.
        """
        (theirs, counts), (ours, own) = self.compared(teacher), self.compared(student)
        if np.array_equal(counts, own) and np.array_equal(theirs, ours):
            return
        parts = zip(np.split(theirs, counts.cumsum()), np.split(ours, own.cumsum()), strict=True)
        row = next(row for row, (one, other) in enumerate(parts) if not np.array_equal(one, other))
        raise ModelError(
            f"row {rows['id'][row]}: the teacher and the student count different tokens ({counts[row]} and {own[row]}), so "
            "their probabilities cannot be compared: their tokenizers cut a text in different ways, or their chat templates "
            "differ. Put the teacher's tokenizer files (tokenizer.json, chat_template.jinja …) beside the student"
        )

    # ---- scores ------------------------------------------------------------------------------------------

    def reduce_outputs(
        self, outputs: Signal | TopKSignal, labels: Tensor, teacher: Signal | TopKSignal | None
    ) -> dict[str, Tensor]:
        """The label's log-probability, the likeliest token, and the divergence from the teacher where one is given.

        Where only the top k are known, the mass of the rest is spread evenly over all other tokens.
        """
        if isinstance(outputs, TopKSignal):
            found = outputs.indices == labels[:, None]
            others = outputs.softened(1.0)[:, -1] - np.log(
                max(1, outputs.classes - outputs.indices.shape[-1])
            )
            known = torch.where(found, outputs.log_p, -torch.inf).amax(-1)
            best = outputs.indices.gather(-1, outputs.log_p.argmax(-1, keepdim=True))[:, 0]
            return {"log_prob": torch.where(found.any(-1), known, others), "top": best}
        log_q = outputs.logits.float().log_softmax(-1)
        kept = {"log_prob": log_q.gather(-1, labels[:, None])[:, 0], "top": log_q.argmax(-1)}
        if teacher is not None:
            ours, theirs = log_probs(outputs, teacher, 1.0)
            kept["kl"] = (theirs.exp() * (theirs - ours)).sum(-1)
        return kept

    def scores(self, predictions: Predictions) -> dict[str, Any]:
        """Mean log-probability, perplexity, share of tokens that are the likeliest."""
        mean = float(predictions["log_prob"].mean(dtype=np.float64))
        found = {
            "log_prob": mean,
            "perplexity": float(np.exp(-mean)),
            "token_accuracy": float((predictions["top"] == predictions.labels).mean()),
        }
        if "kl" in predictions.arrays:
            found["kl_to_teacher"] = float(predictions["kl"].mean(dtype=np.float64))
        return found

    def per_example_scores(self, predictions: Predictions) -> np.ndarray:
        """Each row's share in the mean over all tokens."""
        return predictions.means(predictions["log_prob"].astype(np.float64))

    def agreement(self, one: Predictions, other: Predictions) -> np.ndarray:
        """The same likeliest token."""
        return one["top"] == other["top"]

    def divergence(self, teacher: Predictions, student: Predictions) -> np.ndarray:
        """As it was computed beside the teacher."""
        return student["kl"].astype(np.float64)

    def retention(self, student: float, teacher: float) -> float:
        """The ratio of the probabilities of a token (geometric means)."""
        return float(np.exp(student - teacher))

    def chance(self, predictions: Predictions, classes: int) -> float:
        """All tokens alike."""
        return -float(np.log(classes))


def tokenize(tokenizer: PreTrainedTokenizerBase, texts: list[str], special: bool) -> BatchEncoding:
    """Texts' tokens, and where they stand in them.

    Args:
        special: with the special tokens that a model reads around a text.

    Raises:
        ModelError: the tokenizer does not say where.
    """
    if not tokenizer.is_fast:
        raise ModelError(
            f"{type(tokenizer).__name__} does not return character offsets; a fast tokenizer "
            "(tokenizer.json) is needed"
        )
    return tokenizer(
        texts, add_special_tokens=special, return_offsets_mapping=True, return_attention_mask=False
    )


def head_of(model: PreTrainedModel) -> Head:
    """A language model's output head.

    Raises:
        ModelError: it has none.
    """
    layer = model.get_output_embeddings()
    if layer is None:
        raise ModelError(f"{type(model).__name__} has no output head")
    config = model.config.get_text_config()
    scale = getattr(config, "logit_scale", None) or 1 / (getattr(config, "logits_scaling", None) or 1)
    if getattr(config, "scale_decoder_outputs", False):  # T5
        scale = config.d_model**-0.5
    cap = getattr(config, "final_logit_softcapping", None)
    bias = getattr(layer, "bias", None)
    if bias is None and (shift := getattr(model, "final_logits_bias", None)) is not None:  # Marian, BART
        bias = shift[0]
    return Head(layer.weight, bias, float(scale), cap)


def unknown_head(model: PreTrainedModel) -> ModelError:
    """Of a model whose logits are not what its head makes of its hidden states."""
    return ModelError(
        f"{type(model).__name__} computes its logits in a way that kdcli does not know (not the last hidden state "
        "through its output head)"
    )
