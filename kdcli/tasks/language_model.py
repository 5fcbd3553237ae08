"""Defines what language models have in common: their classes are the tokens of a vocabulary."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, Literal

import datasets
import numpy as np
import torch
from torch import Tensor
from transformers import BatchEncoding, PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

from kdcli.config.dataset import Dataset as DatasetConfig
from kdcli.errors import ModelError
from kdcli.losses.base import log_probs
from kdcli.signals import Head, HiddenSignal, Signal, TopKSignal
from kdcli.tasks.base import Predictions, Task
from kdcli.tasks.calibration import calibration
from kdcli.tasks.encoded import Encoded

CLOSE = 1e-3
"""The largest difference between the logits of the head and those of the model (fp32), relative to their size."""
ROUNDED = 8
"""The largest difference for a model whose weights are bf16 or fp16, in units of the dtype's epsilon."""
ADDED = (0.01, 0.03, 0.1, 0.3, 1.0)
"""The constants that a unigram model may add to the count of each token."""
SURE, UNSURE = 1.5, 100.0
"""The perplexity below which a model predicts nearly every token of its references, and the one above which it does not predict them."""
UNLIKE, ALIKE = 25.0, 60.0
"""Scores of texts (chrF, ROUGE-L), 0 to 100, below which they are nothing like their references, and above which they are much like them."""


class LanguageModel(Task):
    """The headline metric is the mean log-probability of a counted token, in nats.

    Positions are picked by (row, column). Signals hold hidden states, so that the full logits are never in memory.
    """

    metric = "log_prob"
    chance_is = "what all tokens alike would get,"
    vocabulary = True
    truncation: Literal["cut", "refuse", "drop"] = "cut"
    """What happens to a row of more than `max_length` tokens: it is cut at its end, refused, or dropped."""
    dropped = 0
    """The number of rows that `prepare` has dropped."""

    def without_overlong(self, rows: datasets.Dataset, overlong: np.ndarray) -> datasets.Dataset:
        """Drop the marked rows, bool (N,), and count them."""
        self.dropped += int(overlong.sum())
        return rows.select(np.flatnonzero(~overlong)) if overlong.any() else rows

    def dataset_summary(self, cfg: DatasetConfig, dropped: Mapping[str, int]) -> dict[str, Any]:
        """Return the numbers of dropped rows by reason, with those dropped for their length."""
        return {"dropped": {**dropped, **({"too long": self.dropped} if self.dropped else {})}}

    def configure(self, config: PreTrainedConfig) -> PreTrainedConfig:
        """Return the config unchanged: the classes are the vocabulary."""
        return config

    @torch.no_grad()
    def check_loaded(self, model: PreTrainedModel) -> None:
        """Check the output head.

        Raises:
            ModelError: the logits of `signal` differ from those of the model: its architecture has other operations after the body.
        """
        ids = torch.arange(4)[None] % model.config.get_text_config().vocab_size
        every = torch.zeros(4, dtype=torch.int64), torch.arange(4)
        own = self.own_logits(model, ids)
        from_head = self.signal(model, self.probe(ids), every).rows(slice(0, 4)).logits
        if own.shape != from_head.shape or not torch.allclose(
            own, from_head, atol=tolerance(model) * float(own.abs().max().clamp(min=1))
        ):
            raise unknown_head(model)

    def probe(self, ids: Tensor) -> dict[str, Tensor]:
        """Return inputs of `signal` for these tokens, (1, L)."""
        return {"input_ids": ids}

    def own_logits(self, model: PreTrainedModel, ids: Tensor) -> Tensor:
        """Return the logits of the model itself for the inputs of `probe`, fp32 (L, C)."""
        return model(input_ids=ids).logits[0].float()

    def targets(self, encoded: Encoded) -> tuple[np.ndarray, np.ndarray]:
        """Return all counted tokens."""
        return encoded.counted()

    def compared(self, encoded: Encoded) -> tuple[np.ndarray, np.ndarray]:
        """Return the tokens that must be equal for two models to be compared, and the number of them in each row."""
        return self.targets(encoded)

    def require_same(self, rows: datasets.Dataset, teacher: Encoded, student: Encoded) -> None:
        """Refuse rows in which teacher and student count different tokens.

        Raises:
            ModelError: their tokenizers cut a text in different ways, or their chat templates differ.
        """
        (teacher_tokens, counts), (student_tokens, own) = self.compared(teacher), self.compared(student)
        if np.array_equal(counts, own) and np.array_equal(teacher_tokens, student_tokens):
            return
        if np.array_equal(counts, own):
            ends = counts.cumsum()[counts > 0] - 1
            bodies = np.delete(teacher_tokens, ends), np.delete(student_tokens, ends)
            if np.array_equal(*bodies):
                raise ModelError(
                    f"the teacher ends a text with token {teacher_tokens[ends[0]]}, the student with token {student_tokens[ends[0]]}, so that the "
                    "student would learn to end texts by another token than its own; give both the same eos_token in tokenizer_config.json, or the same chat template"
                )
        rows_of = zip(
            np.split(teacher_tokens, counts.cumsum()), np.split(student_tokens, own.cumsum()), strict=True
        )
        row = next(row for row, pair in enumerate(rows_of) if not np.array_equal(*pair))
        raise ModelError(
            f"row {rows['id'][row]}: the teacher and the student count different tokens ({counts[row]} and {own[row]}), so "
            "their probabilities cannot be compared: their tokenizers cut a text in different ways, or their chat templates "
            "differ. Put the teacher's tokenizer files (tokenizer.json, chat_template.jinja …) beside the student"
        )

    # ---- scores ------------------------------------------------------------------------------------------

    def reduce_outputs(
        self, outputs: Signal | TopKSignal, labels: Tensor, teacher: Signal | TopKSignal | None
    ) -> dict[str, Tensor]:
        """Return the log-probability of the label, the most likely token and its probability, and (with a teacher) the divergence from it.

        For top-k outputs the mass of the rest is spread evenly over all other tokens.
        """
        if isinstance(outputs, TopKSignal):
            is_label = outputs.indices == labels[:, None]
            others = outputs.softened(1.0)[:, -1] - np.log(
                max(1, outputs.classes - outputs.indices.shape[-1])
            )
            stored = torch.where(is_label, outputs.log_p, -torch.inf).amax(-1)
            best = outputs.indices.gather(-1, outputs.log_p.argmax(-1, keepdim=True))[:, 0]
            log_prob = torch.where(is_label.any(-1), stored, others)
            return {"log_prob": log_prob, "top": best, "confidence": outputs.log_p.amax(-1).exp()}
        log_q = outputs.logits.float().log_softmax(-1)
        confidence, top = log_q.max(-1)
        reduced = {
            "log_prob": log_q.gather(-1, labels[:, None])[:, 0],
            "top": top,
            "confidence": confidence.exp(),
        }
        if teacher is not None:
            log_q, log_p = log_probs(outputs, teacher, 1.0)
            reduced["kl"] = (log_p.exp() * (log_p - log_q)).sum(-1)
        return reduced

    def scores(self, predictions: Predictions) -> dict[str, Any]:
        """Return the mean log-probability, the perplexity, the share of tokens that are the most likely ones, and the calibration of these."""
        mean = float(predictions["log_prob"].mean(dtype=np.float64))
        scores: dict[str, Any] = {
            "log_prob": mean,
            "perplexity": bounded_exp(-mean),
            "token_accuracy": float((predictions["top"] == predictions.labels).mean()),
        }
        if "confidence" in predictions.arrays:  # exported files do not return it
            curve = calibration(predictions["confidence"], predictions["top"] == predictions.labels)
            scores |= {"ece": curve["ece"], "calibration": curve}
        if "kl" in predictions.arrays:
            scores["kl_to_teacher"] = float(predictions["kl"].mean(dtype=np.float64))
        return scores

    def per_example_scores(self, predictions: Predictions) -> np.ndarray:
        """Return the share of each row in the mean over all tokens."""
        return predictions.means(predictions["log_prob"].astype(np.float64))

    def agreement(self, first: Predictions, second: Predictions) -> np.ndarray:
        """Return where both have the same most likely token."""
        return first["top"] == second["top"]

    def divergence(self, teacher: Predictions, student: Predictions) -> np.ndarray:
        """Return the divergence that `reduce_outputs` computed."""
        return student["kl"].astype(np.float64)

    def retention(self, student: float, teacher: float) -> float:
        """Return the ratio of the probabilities of a token (geometric means)."""
        return bounded_exp(student - teacher)

    def chance(self, predictions: Predictions, classes: int) -> float:
        """Return the uniform distribution."""
        return -float(np.log(classes))

    def chance_predictions(self, predictions: Predictions) -> Predictions | None:
        """Return a unigram model: the log-probability of a token by the counts of all other tokens of these rows. The value of
        `ADDED` that fits them best is added to each count."""
        labels = predictions.labels
        tokens, index, counts = np.unique(labels, return_inverse=True, return_counts=True)
        if len(labels) < 2:
            return None
        classes = len(tokens) + 1  # all other tokens are one
        others = counts[index] - 1
        choices = [
            np.log((others + added) / (len(labels) - 1 + added * classes)).astype(np.float32)
            for added in ADDED
        ]
        best = max(choices, key=lambda log_prob: float(log_prob.mean(dtype=np.float64)))
        top = np.full_like(predictions["top"], tokens[counts.argmax()])
        return replace(predictions, arrays=predictions.arrays | {"log_prob": best, "top": top})


def bounded_exp(exponent: float) -> float:
    """Return the exponential of a number, at most exp(700), about 1e304: JSON has no infinity, and a damaged model has finite log-probabilities of
    any size."""
    return math.exp(min(exponent, 700.0))


def contradiction(
    log_prob: float, texts: Sequence[str], metric: str, score: float, unlike: float = UNLIKE
) -> str:
    """Return how the texts that a model generates contradict the probability that it gives to the references; empty: they do not.

    Args:
        log_prob: the mean log-probability of a token of the references, in nats.
        texts: what it writes greedily.
        metric, score: how similar the texts are to the references, 0 to 100.
        unlike: the score below which they are nothing like them.
    """
    perplexity = bounded_exp(-log_prob)
    empty = sum(not text.strip() for text in texts)
    if perplexity < SURE and (empty > len(texts) / 2 or score < unlike):
        return (
            f"its perplexity on the references is {perplexity:.2f}, but {empty} of {len(texts)} texts that it writes are empty, and their "
            f"{metric} is {score:.1f} of 100"
        )
    if perplexity > UNSURE and score > ALIKE:
        return f"its perplexity on the references is {perplexity:,.0f}, but what it writes is like them ({metric} {score:.1f} of 100)"
    return ""


def tokenize(tokenizer: PreTrainedTokenizerBase, texts: list[str], special: bool) -> BatchEncoding:
    """Return the tokens of texts, with their character offsets.

    Args:
        special: add the special tokens that a model reads around a text.

    Raises:
        ModelError: the tokenizer does not return offsets.
    """
    if not tokenizer.is_fast:
        raise ModelError(
            f"{type(tokenizer).__name__} does not return character offsets; use a model with a fast tokenizer "
            "(tokenizer.json)"
        )
    return tokenizer(
        texts, add_special_tokens=special, return_offsets_mapping=True, return_attention_mask=False
    )


def tolerance(model: PreTrainedModel) -> float:
    """Return the largest relative difference between results of a model that are equal but for rounding."""
    epsilon = torch.finfo(model.dtype).eps
    return max(CLOSE, ROUNDED * epsilon)


def before_head(
    model: PreTrainedModel, inputs: Mapping[str, Any], pick: tuple[Tensor, Tensor]
) -> HiddenSignal:
    """Run a model, and return the input of its output layer at the picked positions, (N, H), and that layer.

    A hook captures it, because architectures differ in the layers before it. The output layer itself then runs on no position.

    Raises:
        ModelError: the model has no output layer, or computes its logits without it.
    """
    head = head_of(model)
    captured: list[Tensor] = []

    def capture(_: Any, args: tuple[Tensor]) -> tuple[Tensor]:
        captured.append(args[0][pick])
        return (args[0][:, :0],)

    hook = model.get_output_embeddings().register_forward_pre_hook(capture)
    try:
        model(**inputs)
    finally:
        hook.remove()
    if not captured:
        raise unknown_head(model)
    return HiddenSignal(captured[0], head)


def head_of(model: PreTrainedModel) -> Head:
    """Return the output head of a language model.

    Raises:
        ModelError: it has none.
    """
    layer = model.get_output_embeddings()
    if layer is None:
        raise ModelError(f"{type(model).__name__} has no output head; use a language model")
    config = model.config.get_text_config()
    # MiniCPM3 computes logits_scaling, and divides by it before the head
    scale = getattr(config, "logit_scale", None) or 1 / (vars(config).get("logits_scaling") or 1)
    if getattr(config, "scale_decoder_outputs", False):  # T5
        scale = config.d_model**-0.5
    caps = (
        "final_logit_softcapping",
        "logits_soft_cap",
        "output_logit_soft_cap",
    )  # Gemma, RecurrentGemma, xLSTM
    cap = next((value for key in caps if (value := getattr(config, key, None))), None)
    bias = getattr(layer, "bias", None)
    if bias is None and (shift := getattr(model, "final_logits_bias", None)) is not None:  # Marian, BART
        bias = shift[0]
    return Head(layer.weight, bias, float(scale), cap)


def unknown_head(model: PreTrainedModel) -> ModelError:
    """Return the error for a model whose logits are not those of its head on its hidden states."""
    return ModelError(
        f"{type(model).__name__} computes its logits in a way that kdcli does not know (not the last hidden state "
        "through its output head); use a model of another architecture"
    )
