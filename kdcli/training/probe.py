"""Measures on a few batches how long a training step and a forward pass of a model take."""

from __future__ import annotations

import logging
import random
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass

import datasets
import numpy as np
import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from kdcli.config.trainer import Trainer as TrainerConfig
from kdcli.device import default_device, synchronize
from kdcli.losses.hard_label import HardLabel
from kdcli.models.checkpoint import fast_bf16, parameters
from kdcli.tasks.base import Task
from kdcli.training.distiller import Distiller
from kdcli.training.trainer import training_attention

BATCHES = 3
"""Batches that are timed, of short, of middle and of long rows, after one that is not."""
STEP = 3
"""The number of forward passes that a training step takes as long as."""


@dataclass(frozen=True)
class Probe:
    """The time that a model takes.

    Attributes:
        parameters: its number of weights.
        forward: seconds of a row without gradients.
        step: seconds of a row in a training step; None: it is not trained.
    """

    parameters: int
    forward: float
    step: float | None = None


def probe(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    task: Task,
    rows: datasets.Dataset,
    max_length: int,
    cfg: TrainerConfig,
    batch: int,
    trains: bool,
    limit: float,
) -> Probe:
    """Run a few batches of real rows through a model. Random states are restored afterwards; the model is changed.

    Args:
        cfg: how it is trained.
        batch: rows of a batch; a step of `cfg` may have more.
        trains: also take training steps, with the loss of the gold labels.
        limit: seconds that all passes take at most; of a model that is too slow for that, one row of middle length is measured.
    """
    device = default_device()
    encoded = task.encode_split(tokenizer, rows, max_length)
    by_length = np.argsort(encoded.lengths, kind="stable")
    starts = np.linspace(0, max(0, len(by_length) - batch), BATCHES).astype(int)
    batches = [[encoded[int(row)] for row in by_length[start : start + batch]] for start in starts]
    distiller = Distiller(model, task, {"hard_label": HardLabel()}, {"hard_label": 1.0}).to(device)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.0) if trains else None
    bf16 = fast_bf16(cfg.precision)

    def run(features: list[dict[str, object]], with_gradients: bool) -> float:
        """Return the seconds of a batch."""
        began = time.perf_counter()
        inputs = task.collate(features, tokenizer) | task.soft_gold(features)
        inputs = {name: tensor.to(device) for name, tensor in inputs.items() if name != "rows"}
        distiller.train(with_gradients)
        with (
            torch.set_grad_enabled(with_gradients),
            torch.autocast(device.type, torch.bfloat16, enabled=bf16),
            training_attention(inputs["input_ids"]) if with_gradients else nullcontext(),
        ):
            loss = distiller(**inputs)["loss"]
            if with_gradients and optimizer is not None:
                loss.backward()
        if with_gradients and optimizer is not None:
            optimizer.step()
            optimizer.zero_grad()
        synchronize()
        return time.perf_counter() - began

    with undisturbed():
        passes = (BATCHES + 1) * (1 + STEP * trains)
        affordable = int(limit / (passes * run(batches[-1][:1], False)))
        batches = [each[:affordable] for each in batches] if affordable else [batches[BATCHES // 2][:1]]
        seconds: dict[bool, float] = {}
        for with_gradients in (False, True) if trains else (False,):
            run(batches[-1], with_gradients)  # the largest, so that its allocations are not timed
            seconds[with_gradients] = sum(run(each, with_gradients) for each in batches)
    count = sum(map(len, batches))
    step = seconds[True] / count if trains else None
    return Probe(parameters(model), seconds[False] / count, step)


@contextmanager
def undisturbed() -> Iterator[None]:
    """Restore the random states, and log nothing."""
    states = random.getstate(), np.random.get_state()
    disabled = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with torch.random.fork_rng():
            yield
    finally:
        logging.disable(disabled)
        random.setstate(states[0])
        np.random.set_state(states[1])
