"""Scores the model without a neural network with which a report compares the student."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from typing import Any

import datasets
from transformers import PreTrainedTokenizerBase

from kdcli.config.measure import Measure
from kdcli.evaluation.models import Evaluator
from kdcli.measure.spec import UNKNOWN, percentiles, spaced
from kdcli.rundir import TRIVIAL
from kdcli.tasks.base import Predictions
from kdcli.tasks.trivial import TrivialModel

logger = logging.getLogger(__name__)
BATCH = 32
"""The number of rows in a batch whose throughput is measured."""


def score_trivial(
    evaluator: Evaluator, tokenizer: PreTrainedTokenizerBase, gold: datasets.Dataset, seed: int
) -> None:
    """Train the trivial model of the task, score it as `trivial`, and measure its speed. Nothing happens if the task has none.

    Args:
        tokenizer: the student's.
        gold: the training rows with gold labels.
    """
    from threadpoolctl import threadpool_limits

    task, rows, length = evaluator.task, evaluator.rows, evaluator.max_length
    model = task.trivial(tokenizer, seed)
    if model is None:
        return
    if not len(gold):
        logger.info("no training row has a gold label: there is no trivial baseline")
        return
    with threadpool_limits(1):
        model.fit(gold, task.encode_split(tokenizer, gold, length))
        encoded = task.encode_split(tokenizer, rows, length)
        texts = model.texts(rows)
        predictions = Predictions(
            model.predict(rows, encoded), *task.targets(encoded), texts, encoded.pairs if texts else ()
        )
        speed = _speed(model, rows, evaluator.config)
    size = {"method": model.method, "parameters": model.parameters, "bytes": model.nbytes}
    evaluator.score(TRIVIAL, size, predictions)
    evaluator.models[TRIVIAL] |= speed


def _speed(model: TrivialModel, rows: datasets.Dataset, cfg: Measure | None) -> dict[str, Any]:
    """Return the fields of `Measurement`. Latency and throughput are measured in this process, on one thread; memory is not measured."""
    inputs = model.inputs(rows)
    if cfg is None or not inputs:
        return asdict(UNKNOWN)
    inputs = [inputs[row] for row in spaced(len(inputs), cfg.settings["max_texts"])]
    model.respond(inputs[:BATCH])
    seconds = [_seconds(model.respond, [each]) for each in inputs]
    batches = [inputs[start : start + BATCH] for start in range(0, len(inputs), BATCH)]
    elapsed = sum(_seconds(model.respond, batch) for batch in batches)
    latency = percentiles([1000 * each for each in seconds])
    return asdict(UNKNOWN) | {
        "latency_ms": latency,
        "throughput_per_s": len(inputs) / elapsed,
        "batch_size": BATCH,
    }


def _seconds(respond: Callable[[Sequence[Any]], Any], inputs: Sequence[Any]) -> float:
    start = time.perf_counter()
    respond(inputs)
    return time.perf_counter() - start
