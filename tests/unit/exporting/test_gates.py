"""The gates of an export: which tolerance holds for a file, and what an artifact is compared by."""

from __future__ import annotations

import numpy as np
import pytest

from kdcli.config.schema import Hardware, Tolerance
from kdcli.exporting.artifacts import ArtifactRun
from kdcli.exporting.gates import LEAST, parity, tolerance_of, within
from kdcli.tasks.base import Predictions
from kdcli.tasks.causal_lm.task import CausalLM
from kdcli.tasks.classification.task import Classification

GOOD = {"score_drop": 0.0, "agreement": 1.0, "generated": 1.0, "same_tokens": 1.0, "same_texts": 1.0}


def predictions(**arrays: list[float]) -> Predictions:
    return Predictions(
        {name: np.asarray(array) for name, array in arrays.items()},
        np.zeros(2, np.int64),
        np.ones(2, np.int64),
    )


def test_the_most_specific_tolerance_holds() -> None:
    """A file of 4 bits that is held to the tolerance of all files, or one that loses as much as another may."""
    tolerances = {
        name: {"score_drop": drop}
        for name, drop in (("model.onnx", 1.0), ("int8", 2.0), ("causal_lm_int4", 3.0))
    }
    hardware = Hardware.model_validate(
        {"_target_": "x.Y", "tolerance": {"score_drop": 4.0}, "tolerances": tolerances}
    )
    drops = [
        tolerance_of(hardware, *names).score_drop
        for names in (
            ("model.onnx", "int8", "causal_lm"),
            ("model.int8.onnx", "int8", "causal_lm"),
            ("model.int4.onnx", "int4", "causal_lm"),
            ("model.int4.onnx", "int4", "classification"),
        )
    ]
    assert drops == [1.0, 2.0, 3.0, 4.0]


@pytest.mark.parametrize("key", [*LEAST, "score_drop"])
def test_each_figure_is_held_against_its_own_tolerance(key: str) -> None:
    """A share that is read nowhere, or bounded from the wrong side."""
    tolerance = Tolerance(agreement=0.9, generated=0.9, same_tokens=0.9, same_texts=0.9, score_drop=0.1)
    assert within(tolerance, GOOD)
    assert not within(tolerance, GOOD | {key: 0.2 if key == "score_drop" else 0.8})
    assert within(tolerance, {"score_drop": -5.0}), (
        "of a task without these shares, and a file that is better than the student"
    )


def test_an_artifact_is_compared_by_what_its_task_keeps() -> None:
    """A difference of logits that is called one of probabilities, or of texts that have neither."""
    student = predictions(logits=[[0.0, 2.0], [0.0, -2.0]])
    own = predictions(logits=[[0.0, 1.5], [0.0, 2.0]])
    apart = parity(Classification(["a", "b"]), student, 0.9, ArtifactRun({}, own, {"same_tokens": 1.0}), 0.8)
    assert apart["score_drop"] == pytest.approx(0.1)
    assert (apart["agreement"], apart["max_abs_difference"], apart["same_tokens"]) == (0.5, 4.0, 1.0)
    assert apart["max_abs_difference_of_probabilities"] == pytest.approx(
        1 / (1 + np.exp(-2)) - 1 / (1 + np.exp(2))
    )
    words = [predictions(log_prob=log_prob, top=[1, 2]) for log_prob in ([-1.0, -2.0], [-1.5, -2.0])]
    apart = parity(CausalLM(), words[0], 0.0, ArtifactRun({}, words[1], {}), 0.0)
    assert apart == {"score_drop": 0.0, "agreement": 1.0, "max_abs_difference": 0.5}
    texts = ArtifactRun({}, Predictions({}, np.zeros(2, np.int64), np.ones(2, np.int64)), {"agreement": 0.7})
    assert parity(CausalLM(), words[0], 20.0, texts, 19.5) == {"score_drop": 0.5, "agreement": 0.7}
