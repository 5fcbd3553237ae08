"""Measures what the quantization of the teacher costs: its outputs on the validation rows, against its outputs without quantization."""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable, Sequence
from typing import Any

import datasets
import numpy as np
import torch
from accelerate.utils import broadcast_object_list
from torch import Tensor
from torch.nn.functional import log_softmax

from kdcli.losses.base import kl
from kdcli.models.checkpoint import Checkpoint
from kdcli.numbers import format_bytes
from kdcli.pipeline.cache import PART, exclusive, make_in_parts, progress_from
from kdcli.pipeline.keys import FidelityOfRows, cache_path
from kdcli.pipeline.placement import MARGIN, memory_of
from kdcli.pipeline.plan import FIDELITY, Run
from kdcli.pipeline.stages import Stages
from kdcli.signals import AnySignal, Signal
from kdcli.teachers.base import Teacher

logger = logging.getLogger(__name__)
BATCH = 16
"""The number of rows of which the outputs of both teachers are in memory."""
CHUNK = 256
"""The number of positions of which the logits are."""


def teacher_fidelity(
    run: Run,
    stages: Stages,
    teachers: Sequence[Checkpoint],
    load_teacher: Callable[[], Teacher],
    plain: Sequence[Checkpoint],
    open_teacher: Callable[[Run, Sequence[Checkpoint]], Teacher],
) -> dict[str, Any]:
    """Return the fields of `FidelityResult`, and log them. The values of each row are stored in the cache.

    Args:
        teachers: the checkpoints, quantized, which `load_teacher` loads.
        plain: the same without quantization.
        open_teacher: loads checkpoints.
    """
    kind, rows = run.cfg.teacher.quantization, run.data["validation"]
    needed, free = broadcast_object_list([memory_of(plain)])[0]
    if free is not None and needed * MARGIN > free:
        stages.skip(FIDELITY, "the teacher without quantization does not fit")
        logger.warning(
            "the loss of fidelity by teacher.quantization=%s is unknown: without it the weights take %s, and %s of memory are free",
            kind, format_bytes(needed), format_bytes(free),
        )  # fmt: skip
        return {"quantization": kind, "kl": None, "agreement": None, "positions": None}
    exact = functools.cache(lambda: open_teacher(run, plain))

    def measure(part: datasets.Dataset, _: int) -> list[list[float]]:
        measured: list[list[float]] = []
        for start in range(0, len(part), BATCH):
            examples = list(part.select(range(start, min(start + BATCH, len(part)))))
            pairs = zip(exact().outputs(examples), load_teacher().outputs(examples), strict=True)
            measured += [list(compare_outputs(*pair)) for pair in pairs]
        return measured

    folder = cache_path(FidelityOfRows.of(run, teachers))
    with stages.stage(FIDELITY, len(rows), "rows") as progress, exclusive(run, folder):
        of_rows = make_in_parts(run, folder, rows, PART, measure, progress_from(progress, 0))
    divergence, same, positions = np.asarray(of_rows, np.float64).sum(0).tolist()
    result = {"kl": divergence / positions, "agreement": same / positions, "positions": int(positions)}
    logger.info(
        "the teacher in %s against itself without quantization, on the validation rows: KL %.5f nats a %s, the same prediction at %.1f %% of %s",
        kind, result["kl"], "token" if run.task.vocabulary else "row", 100 * result["agreement"], f"{result['positions']:,}",
    )  # fmt: skip
    return {"quantization": kind, **result}


@torch.no_grad()
def compare_outputs(exact: AnySignal, other: AnySignal) -> tuple[float, int, int]:
    """Return the sum of KL(exact ‖ other) in nats over the positions of a row, the number of positions with the same most likely class, and
    their number.

    Args:
        exact, other: the dense outputs of two models at the same N positions.
    """
    divergence, same = 0.0, 0
    for start in range(0, len(exact), CHUNK):
        positions = slice(start, start + CHUNK)
        log_p, log_q = _log_probs(exact.rows(positions)), _log_probs(other.rows(positions))
        divergence += float(kl(log_p, log_q).double().sum())
        same += int((log_p.argmax(-1) == log_q.argmax(-1)).sum())
    return divergence, same, len(exact)


def _log_probs(signal: AnySignal) -> Tensor:
    """Return the log-probabilities of dense outputs, fp32 (N, C)."""
    assert isinstance(signal, Signal)
    return log_softmax(signal.logits.float(), -1)
