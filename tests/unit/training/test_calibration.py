"""Temperature scaling: the temperature that is fitted, the layer that it is written into, and when nothing is changed."""

from __future__ import annotations

import copy
from typing import Any

import datasets
import numpy as np
import pytest
import torch
from support.commands import require_words
from support.tiny import bert, sentences
from torch import nn

from kdcli.tasks.classification.task import Classification
from kdcli.tasks.token_classification.task import TokenClassification
from kdcli.training.calibration import COLDEST, HOTTEST, calibrate, fit_temperature

LABELS = ["bad", "good", "other"]


def drawn(temperature: float, rows: int = 20_000) -> tuple[np.ndarray, np.ndarray]:
    """Logits, and labels that are drawn from their softmax at a temperature."""
    random = np.random.default_rng(0)
    logits = random.normal(0, 2, (rows, 4)).astype(np.float32)
    noise = random.gumbel(size=logits.shape)
    return logits, (logits / temperature + noise).argmax(1)


@pytest.mark.parametrize("temperature", [0.3, 1.0, 2.5])
def test_a_known_temperature_is_recovered(temperature: float) -> None:
    """A fit in the wrong direction doubles the error that it is to remove."""
    assert fit_temperature(*drawn(temperature)) == pytest.approx(temperature, rel=0.03)


def test_rows_without_an_error_do_not_make_a_model_certain() -> None:
    """The likelihood of labels that are all right grows without end as the temperature falls: the model would be certain of everything."""
    logits = np.tile([[1.0, 0.0], [0.0, 1.0]], (50, 1))
    temperature = fit_temperature(logits, logits.argmax(1))
    confidence = 1 / (1 + np.exp(-1 / temperature))
    assert confidence == pytest.approx(1 - 1 / 102, abs=1e-3)


def test_labels_without_a_relation_to_the_logits_stay_within_bounds() -> None:
    """An infinite temperature writes zeros into the weights, and the predicted labels are lost."""
    logits, labels = drawn(1.0, 400)
    for shuffled in ((logits.argmin(1)), np.roll(labels, 1)):
        assert COLDEST <= fit_temperature(logits, shuffled) <= HOTTEST


def rows(count: int, seed: int = 3) -> datasets.Dataset:
    return datasets.Dataset.from_list(
        [
            {"id": str(i), "text": text, "label": LABELS.index(label)}
            for i, (text, label) in enumerate(sentences(count, seed=seed))
        ]
    )


@pytest.mark.parametrize("kind", [Classification, TokenClassification])
def test_the_output_layer_has_the_temperature_and_predicts_the_same(kind: Any, tokenizer: Any) -> None:
    """Logits are divided by the temperature for every program that loads the weights; no predicted label changes."""
    table = rows(120)
    task: Classification = kind(LABELS)
    model = bert(tokenizer, LABELS, hidden=32)
    if kind is TokenClassification:
        from transformers import BertForTokenClassification

        model = BertForTokenClassification(model.config).eval()
        words = [{"id": row["id"], "words": row["text"].split(), "label": [row["label"]] * len(row["text"].split())} for row in table]  # fmt: skip
        table = datasets.Dataset.from_list(words)
    with torch.no_grad():
        model.classifier.weight *= 20
        model.classifier.bias.copy_(torch.tensor([0.3, -0.2, 0.1]))
    original = copy.deepcopy(model)
    encoded = task.encode(tokenizer, table, 32)
    fitted = calibrate(task, model, tokenizer, encoded)
    assert not fitted["skipped"]
    before, after = (task.predict(each, tokenizer, encoded) for each in (original, model))
    np.testing.assert_allclose(
        after["logits"] * fitted["temperature"], before["logits"], rtol=1e-4, atol=1e-4
    )
    assert np.array_equal(before["logits"].argmax(1), after["logits"].argmax(1))
    assert task.scores(after)["nll"] < task.scores(before)["nll"]
    for name, parameter in model.named_parameters():
        assert torch.equal(parameter, original.get_parameter(name)) != name.startswith("classifier."), name
    again = copy.deepcopy(original)
    assert calibrate(task, again, tokenizer, encoded) == fitted
    assert torch.equal(again.classifier.weight, model.classifier.weight)


def test_few_validation_rows_are_not_fitted(tokenizer: Any) -> None:
    """A temperature of ten rows is noise; the user must learn which key gives more."""
    task, model = Classification(LABELS), bert(tokenizer, LABELS)
    weight = model.classifier.weight.detach().clone()
    fitted = calibrate(task, model, tokenizer, task.encode(tokenizer, rows(49), 32))
    require_words(fitted["skipped"], "49", "50", "dataset.validation_size")
    assert fitted["temperature"] == 1
    assert torch.equal(model.classifier.weight, weight)


class Squared(nn.Linear):
    """A layer whose outputs do not scale with its weights."""

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        return super().forward(inputs) ** 3


class Shifted(nn.Sequential):
    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        return super().forward(inputs) ** 3


@pytest.mark.parametrize("wrapped", [False, True])
def test_a_head_that_is_no_linear_layer_is_left_alone(tokenizer: Any, wrapped: bool) -> None:
    """Weights that are divided where the logits do not follow change the predictions."""
    task, model = Classification(LABELS), bert(tokenizer, LABELS, hidden=32)
    model.classifier = Shifted(nn.Linear(32, 3)) if wrapped else Squared(32, 3)
    weights = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    with torch.no_grad():
        before = task.predict(model, tokenizer, task.encode(tokenizer, rows(80), 32))
    fitted = calibrate(task, model, tokenizer, task.encode(tokenizer, rows(80), 32))
    require_words(fitted["skipped"], "linear layer")
    assert all(torch.equal(parameter, weights[name]) for name, parameter in model.named_parameters())
    after = task.predict(model, tokenizer, task.encode(tokenizer, rows(80), 32))
    assert np.array_equal(before["logits"], after["logits"])
