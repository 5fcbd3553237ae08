"""Temperature scaling of a classifier (Guo et al. 2017, https://arxiv.org/abs/1706.04599, section 4.2): one temperature divides all logits.

It is fitted on the validation rows, and divided into the weights of the output layer, so that every program that loads or exports the model has
it. The predicted labels stay the same.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase
from typing_extensions import TypedDict

from kdcli.tasks.base import Predictions, Task
from kdcli.tasks.encoded import Encoded
from kdcli.tasks.rows import IGNORE

FEWEST = 50
"""Labelled positions of the validation split from which on a temperature is fitted."""
COLDEST, HOTTEST = 1 / 64, 64.0
"""The bounds of the temperature."""
BISECTIONS = 40
TOLERANCE = 1e-4
"""The largest difference between the scaled logits and those of the scaled layer, relative to their size."""


class Fitted(TypedDict):
    """The result of calibrating a model. A temperature of 1 changes nothing."""

    temperature: float
    skipped: str
    """Why no temperature was fitted; empty: one was."""


def fit_temperature(logits: np.ndarray, labels: np.ndarray) -> float:
    """Return the temperature that minimizes the negative log-likelihood of the labels.

    The label of each row has the probability 1 - 1/(N + 2), and the other classes share the rest, as Platt (1999, section 2.2) does for two
    classes: otherwise the best temperature of a model without an error on these rows would be 0.

    Args:
        logits: (N, C).
        labels: (N,).
    """
    rows, classes = logits.shape
    logits = logits.astype(np.float64)
    rest = 1 / (rows + 2)
    right = logits[np.arange(rows), labels]
    target = (1 - rest) * right + rest * (logits.sum(1) - right) / max(1, classes - 1)
    low, high = np.log(1 / HOTTEST), np.log(1 / COLDEST)
    for _ in range(BISECTIONS):  # the slope of the likelihood over the inverse temperature is monotonic
        middle = (low + high) / 2
        scaled = logits * np.exp(middle)
        probabilities = np.exp(scaled - scaled.max(1, keepdims=True))
        probabilities /= probabilities.sum(1, keepdims=True)
        if ((probabilities * logits).sum(1) - target).mean() < 0:
            low = middle
        else:
            high = middle
    return float(np.exp(-(low + high) / 2))


def calibrate(
    task: Task, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, validation: Encoded
) -> Fitted:
    """Fit a temperature on the validation split, and divide the weights and the bias of the output layer by it.

    Nothing is changed if there are fewer than `FEWEST` labelled positions, if the temperature does not improve the likelihood, or if the
    logits are not the output of a linear layer, or if the headline metric would change.
    """
    before = task.predict(model, tokenizer, validation)
    chosen = np.flatnonzero(before.labels != IGNORE)
    if len(chosen) < FEWEST:
        return _skipped(
            f"the validation split has {len(chosen)} labelled {'rows' if len(before.counts) == len(before.labels) else 'words'}, "
            f"and at least {FEWEST} are needed (a larger dataset.validation_size)"
        )
    logits, labels = before["logits"][chosen], before.labels[chosen]
    temperature = fit_temperature(logits, labels)
    if not _nll(logits / temperature, labels) < _nll(logits, labels):
        return _skipped("no temperature improves the likelihood of the validation labels")
    head = _output_layer(model, logits.shape[1])
    if head is None:
        return _skipped("its logits are not the output of a linear layer")
    parameters = [head.weight] if head.bias is None else [head.weight, head.bias]
    originals = [parameter.detach().clone() for parameter in parameters]
    with torch.no_grad():
        for parameter in parameters:
            parameter /= temperature
    after, reason = task.predict(model, tokenizer, validation), ""
    if not _is_scaled(before, after, temperature):
        reason = "its logits are not the output of its last linear layer"
    elif not np.isclose(*(task.scores(each)[task.metric] for each in (before, after))):
        reason = f"it would change its {task.metric}, which depends on the probabilities"
    if not reason:
        return Fitted(temperature=temperature, skipped="")
    with torch.no_grad():
        for parameter, original in zip(parameters, originals, strict=True):
            parameter.copy_(original)
    return _skipped(reason)


def _skipped(reason: str) -> Fitted:
    return Fitted(temperature=1.0, skipped=reason)


def _output_layer(model: PreTrainedModel, classes: int) -> nn.Linear | None:
    """Return the last linear layer with an output for each class."""
    layers = [
        module for module in model.modules() if type(module) is nn.Linear and module.out_features == classes
    ]
    return layers[-1] if layers else None


def _nll(logits: np.ndarray, labels: np.ndarray) -> float:
    logits = logits.astype(np.float64)
    return float((np.logaddexp.reduce(logits, axis=1) - logits[np.arange(len(labels)), labels]).mean())


def _is_scaled(before: Predictions, after: Predictions, temperature: float) -> bool:
    """Return whether the logits are divided by the temperature, and the predicted labels are the same."""
    expected, logits = before["logits"] / temperature, after["logits"]
    close = np.allclose(logits, expected, rtol=TOLERANCE, atol=TOLERANCE * float(np.abs(expected).max()))
    return close and np.array_equal(before["logits"].argmax(1), logits.argmax(1))
