"""The evaluation that distill, eval and export share: predictions are scored, and speed is measured interleaved."""

from __future__ import annotations

import contextlib
import json
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
from support.commands import require_words
from support.tiny import bert, decoder, sentences, speller

from kdcli.config.measure import Measure
from kdcli.errors import ModelError
from kdcli.evaluation import models, predict
from kdcli.evaluation.models import Evaluator
from kdcli.evaluation.predict import open_checkpoint
from kdcli.measure.spec import UNKNOWN
from kdcli.models.checkpoint import Checkpoint
from kdcli.tasks.base import Predictions
from kdcli.tasks.causal_lm.task import CausalLM
from kdcli.tasks.classification.task import Classification
from kdcli.teachers.cached import CachedTeacher
from kdcli.teachers.local import LocalTeacher

TASK = Classification(["bad", "good"])
LENGTH = 16
NEEDS = {"latency_ms": {"p50": 1.0, "p95": 2.0, "p99": 3.0}, "throughput_per_s": 10.0, "load_seconds": 1.0}


@pytest.fixture
def rows() -> datasets.Dataset:
    labelled = sentences(20)
    return datasets.Dataset.from_dict(
        {
            "id": [str(index) for index in range(20)],
            "text": [text for text, _ in labelled],
            "label": [int(label == "good") for _, label in labelled],
        }
    )


@pytest.fixture
def source(tokenizer: Any, tmp_path: Path) -> Checkpoint:
    bert(tokenizer, ["bad", "good"]).save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    return Checkpoint(tmp_path, "student")


def test_predictions_are_scored_once_they_are_converted(rows: datasets.Dataset, source: Checkpoint) -> None:
    """A score of what the model predicts, beside predictions that are others."""
    evaluator = Evaluator(TASK, rows, LENGTH, None)
    model, tokenizer = open_checkpoint(source, TASK, LENGTH)
    plain = evaluator.predict("plain", source, model, tokenizer)
    turned = evaluator.predict(
        "turned",
        source,
        model,
        tokenizer,
        convert=lambda each: replace(each, arrays={"logits": each["logits"][:, ::-1]}),
    )
    np.testing.assert_array_equal(plain["logits"][:, ::-1], turned["logits"])
    scores = [evaluator.models[name]["score"] for name in ("plain", "turned")]
    assert sum(scores) == pytest.approx(1)
    assert evaluator.models["plain"]["parameters"] == sum(each.numel() for each in model.parameters())
    assert evaluator.predictions == {"plain": plain, "turned": turned}


def test_speed_is_measured_interleaved_with_the_model_that_is_kept_alive(
    rows: datasets.Dataset, source: Checkpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A student that is timed while nothing else runs, a control that waits for its turn for nothing, or an ensemble of which one
    member stays in memory."""
    calls: list[tuple[str, Any, bool]] = []

    def measured(
        cfg: Any, source: Checkpoint, task: Any, prompts: Any, length: int, baseline: Any, keep: Any
    ) -> Any:
        calls.append((source.name, baseline, keep is not None))
        assert prompts == TASK.inputs(rows, None)  # type: ignore[arg-type]
        if keep is None:
            return None, dict(NEEDS)
        process = contextlib.nullcontext(source.name)
        return keep.enter_context(process), dict(NEEDS)

    monkeypatch.setattr(models, "measure_checkpoint", measured)
    named = {name: Checkpoint(source.path, name) for name in ("teacher", "control", "student", "a", "b")}
    with Evaluator(TASK, rows, LENGTH, Measure()) as evaluator:
        evaluator.models["teacher"] = {"score": 0.9}
        evaluator.measure("teacher", [named["teacher"]], keep_alive=True)
        evaluator.measure("control", [named["control"]])
        evaluator.measure("student", [named["student"]], interleaved=True)
        evaluator.measure("ensemble", [named["a"], named["b"]], keep_alive=True)
    assert calls == [
        ("teacher", None, True),
        ("control", None, False),
        ("student", "teacher", False),
        ("a", None, False),
        ("b", None, False),
    ]
    assert evaluator.models["teacher"] == {"score": 0.9} | NEEDS
    assert evaluator.models["ensemble"]["latency_ms"]["p50"] == 2.0
    assert evaluator.models["ensemble"]["throughput_per_s"] == 5.0


def test_quick_timing_takes_the_same_rows_of_all_lengths(rows: datasets.Dataset, source: Checkpoint) -> None:
    """Models that are compared on rows of different lengths; or the rows of a file whose first ones are short."""
    with Evaluator(TASK, rows, LENGTH, Measure(mode="quick", max_texts=5)) as evaluator:
        first, second = evaluator._prompts(source), evaluator._prompts(source)
    lengths = [len(text) for (text,) in first]
    every = sorted(len(text) for text in rows["text"])
    assert first == second
    assert lengths == sorted(lengths)
    assert (len(lengths), lengths[0], lengths[-1]) == (5, every[0], every[-1])


def test_figures_of_another_model_are_marked(rows: datasets.Dataset) -> None:
    """A copy that passes for a measurement, or that takes the score along."""
    with Evaluator(TASK, rows, LENGTH, Measure(mode="quick")) as evaluator:
        evaluator.models = {"student": asdict(UNKNOWN) | NEEDS | {"score": 0.9}, "control": {"score": 0.5}}
        evaluator.copy_measurement("control", "student")
    control = evaluator.models["control"]
    assert (control["score"], control["measured_as"]) == (0.5, "student")
    assert control["latency_ms"] == NEEDS["latency_ms"]


@pytest.mark.parametrize(
    "record",
    ["", "[1]", '{"dataset": 1}', '{"dataset": {"reading": [{"file": 1}]}}', '{"dataset": {"reading": 7}}'],
)
def test_a_damaged_env_json_is_told(tmp_path: Path, caplog: pytest.LogCaptureFixture, record: str) -> None:
    """A run is scored on rows that are read in another way than it read them, in silence."""
    assert models.recorded_readings(tmp_path) == []
    assert not caplog.records
    (tmp_path / "env.json").write_text(record)
    assert models.recorded_readings(tmp_path) == []
    [message] = [each.getMessage() for each in caplog.records]
    require_words(message, str(tmp_path / "env.json"), "restore")


def test_an_env_json_of_an_earlier_version_is_no_damage(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """A warning for each run of a release that did not record how it read files."""
    (tmp_path / "env.json").write_text('{"dataset": {"path": "a.csv"}}')
    assert models.recorded_readings(tmp_path) == []
    assert not caplog.records


def test_outputs_of_a_teacher_are_reduced_block_by_block(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The stored outputs of a validation split of 10,000 rows of a language model, unpacked at once: gigabytes."""
    tokenizer, task = speller(), CausalLM()
    decoder(tokenizer).save_pretrained(tmp_path / "teacher")
    tokenizer.save_pretrained(tmp_path / "teacher")
    source = Checkpoint(tmp_path / "teacher", "teacher")
    texts = [text * (1 + index % 3) for index, (text, _) in enumerate(sentences(50))]
    columns = {"id": [str(index) for index in range(50)], "prompt": [""] * 50, "completion": texts}
    rows = datasets.Dataset.from_dict(columns)
    local = LocalTeacher(8)
    local.open(source, task, 64, "fp32")
    stored = CachedTeacher(tmp_path / "store", k=4)
    stored.fetch(rows, lambda: local, lambda done: None)
    expected, classes = predict.predictions_from_teacher(stored, source, task, rows, 64)

    held: list[int] = []
    signals = stored.signals
    monkeypatch.setattr(stored, "signals", lambda examples: held.append(len(examples)) or signals(examples))
    monkeypatch.setattr(predict, "BLOCK", 16)
    found, same = predict.predictions_from_teacher(stored, source, task, rows, 64)
    assert held == [16, 16, 16, 2]
    assert same == classes == len(tokenizer)
    assert found.arrays.keys() == expected.arrays.keys()
    assert len(found.labels) > 50
    for name, values in expected.arrays.items():
        np.testing.assert_array_equal(found[name], values)
    np.testing.assert_array_equal(found.labels, expected.labels)


@pytest.mark.parametrize(("value", "refused"), [(np.nan, True), (np.inf, True), (3e38, True), (1e4, False)])
def test_outputs_that_overflow_are_refused(value: float, refused: bool) -> None:
    """A flipped bit of an exponent: scores are NaN or infinite, which the report cannot hold."""
    logits = np.zeros((4, 2), np.float32)
    logits[1] = value, -value
    predictions = Predictions({"logits": logits}, np.zeros(4, np.int64), np.ones(4, np.int64))
    with pytest.raises(ModelError) if refused else contextlib.nullcontext() as caught:
        predict.require_finite(predictions, "model.onnx")
    if caught is not None:
        require_words(caught.value.message, "model.onnx", "1 of 4", "fp32")
    else:
        json.dumps(TASK.scores(predictions), allow_nan=False)


def test_the_worst_log_probabilities_have_scores() -> None:
    """A flipped bit of a decoder: its perplexity is infinite, and no report can be written."""
    arrays = {"log_prob": np.array([-5000.0, -1e29], np.float32), "top": np.zeros(2, np.int64)}
    scores = CausalLM([]).scores(Predictions(arrays, np.ones(2, np.int64), np.ones(2, np.int64)))
    json.dumps(scores, allow_nan=False)
    assert scores["perplexity"] > 1e300
    assert CausalLM([]).retention(-1.0, -5000.0) > 1e300
