"""Sanity checks of the teacher, the untrained student and the losses, which take seconds before training.

Each finding has one cause and one remedy. Findings stop a run (exit code 2); in a smoke run, or with `trainer.max_steps`, they are warnings.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

import datasets
import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from kdcli.errors import TeacherError
from kdcli.generation import Reply
from kdcli.signals import AnySignal, Signal
from kdcli.tasks.base import Predictions, Split, Task
from kdcli.teachers.base import Teacher
from kdcli.training.distiller import Distiller

logger = logging.getLogger(__name__)
ZERO = 1e-4
"""The largest loss(x, x) that counts as zero (fp32, T² up to 100)."""
FEW = 32
"""Positions at which the loss of a perfect student is computed."""
CHECKED_TEXTS = 32
"""Rows for which the teacher writes a text that is checked."""
FAR = 100.0
"""The ratio of two weighted terms beyond which the smaller one has no effect."""


def preflight(
    distiller: Distiller,
    tokenizer: PreTrainedTokenizerBase,
    predictions: Predictions | None,
    classes: int,
    teacher: Teacher | None,
    train: Split,
    validation: Split | None,
    bf16: bool,
    lenient: bool,
    remedy: str = "",
) -> None:
    """Check the teacher, the untrained student and the losses on real rows.

    Args:
        distiller: the untrained student with the run's losses.
        predictions: the teacher's on the validation split; None: they were checked before.
        classes: the teacher's number of classes.
        teacher: the teacher of the rows of `train`; None: no loss reads it.
        validation: the rows on which the untrained student is compared with the teacher; None: they count other positions, or the student
            is initialised from the teacher and may be as good.
        lenient: findings are warnings.
        remedy: what improves a teacher that is not good enough; "": it can be tuned.

    Raises:
        TeacherError: with every finding. Values that are not finite raise it also if `lenient`.
    """
    findings = []
    if predictions is not None:
        findings += _check_teacher(distiller, tokenizer, predictions, classes, validation, bf16, remedy)
    findings += _check_losses(distiller, tokenizer, teacher, train)
    if findings and not lenient:
        raise TeacherError("the pre-flight stopped the run:\n  " + "\n  ".join(findings))
    for finding in findings:
        logger.warning("pre-flight: %s", finding)


def check_texts(
    task: Task,
    rows: datasets.Dataset,
    generate: Callable[[datasets.Dataset], list[Reply]],
    log_prob: Callable[[datasets.Dataset], float],
    lenient: bool,
) -> None:
    """Check the texts that a teacher writes, as far as the task checks them, on a few rows before it writes all.

    Args:
        generate, log_prob: as for `Task.teacher_findings`.
        lenient: findings are warnings.

    Raises:
        TeacherError
    """
    few = rows.select(range(min(CHECKED_TEXTS, len(rows))))
    for finding in task.teacher_findings(few, generate, log_prob):
        if not lenient:
            raise TeacherError(f"the pre-flight stopped the run:\n  {finding}")
        logger.warning("pre-flight: %s", finding)


def _check_teacher(
    distiller: Distiller,
    tokenizer: PreTrainedTokenizerBase,
    predictions: Predictions,
    classes: int,
    validation: Split | None,
    bf16: bool,
    remedy: str,
) -> list[str]:
    """Return findings if the teacher does not beat chance on the validation split or, where they can be compared, the untrained student."""
    task: Task = distiller.task
    if worse := beats_chance(task, predictions, classes, remedy):
        return worse
    if validation is None or is_one_class(task, predictions, classes):
        return []
    own = task.predict(distiller.student, tokenizer, validation.encoded, bf16=bf16)
    metric = _metric(task)
    score, untrained = (task.scores(each)[metric] for each in (predictions, own))
    if score <= untrained:
        return [
            f"the teacher's {metric} {score:.3f} is not above the untrained student's {untrained:.3f}: {remedy or _remedy(task)}"
        ]
    return []


def beats_chance(task: Task, predictions: Predictions, classes: int, remedy: str = "") -> list[str]:
    """Return findings about a teacher's predictions, without those of a student.

    Args:
        classes: the teacher's number of classes.
        remedy: what improves a teacher that is no better than chance; "": it can be tuned.

    Raises:
        TeacherError: they are not finite, so that nothing can be learned, not even in a rehearsal.
    """
    if not all(np.isfinite(values).all() for values in predictions.arrays.values()):
        raise TeacherError(
            "the pre-flight stopped the run:\n  the teacher's logits are not finite; load it in fp32 (teacher.trainer.precision=fp32), or check "
            "its weights"
        )
    score, chance = task.scores(predictions)[_metric(task)], task.chance(predictions, classes)
    if is_one_class(task, predictions, classes):
        logger.warning(
            "pre-flight: all rows of the validation split have one label, so that the teacher cannot be compared with chance; give "
            "dataset.validation=, or a larger dataset.validation_size"
        )
        return []
    if score > chance:
        return []
    return [
        f"the teacher's {_metric(task)} {score:.3f} is not above {task.chance_is} {chance:.3f}: {remedy or _remedy(task)}"
    ]


def is_one_class(task: Task, predictions: Predictions, classes: int) -> bool:
    """Return whether a prediction that does not look at the text is right everywhere."""
    return bool(task.labels) and task.chance(predictions, classes) >= 1


def _metric(task: Task) -> str:
    return task.metric_of_outputs or task.metric


def _remedy(task: Task) -> str:
    return "tune it on this task (teacher.tune=true, or more teacher.trainer.epochs)" + (
        ", or check the order of dataset.labels" if task.labels else ""
    )


def _check_losses(
    distiller: Distiller, tokenizer: PreTrainedTokenizerBase, teacher: Teacher | None, train: Split
) -> list[str]:
    """Check that every term counts positions, is finite and is 0 for a perfect student; warn of a term that is much smaller than another."""
    task = distiller.task
    few = task.batch
    gold = train.encoded.gold.nonzero()[0][: few // 2].tolist()
    rows = (
        gold + [row for row in range(min(few, len(train.encoded))) if row not in set(gold)][: few - len(gold)]
    )
    features = [train.encoded[row] for row in rows]
    batch = task.collate(features, tokenizer) | task.soft_gold(features)
    batch.pop("rows")
    raw = list(train.rows.select(rows))
    signal = (
        teacher.outputs_with_features(raw, distiller.parts).to(torch.device("cpu"))
        if teacher is not None
        else None
    )
    distiller.eval()
    findings, weighted = [], {}
    with torch.no_grad():
        _, labels = task.positions(batch["labels"])
        distiller.cpu()(**batch, teacher=signal)
        masks = distiller.masks(labels, teacher=signal)
        for (name, loss), mask in zip(distiller.losses.items(), masks, strict=True):
            values = distiller.values[name][mask]
            if not mask.any():
                findings.append(f"the loss term {name} counts no position: no row has what it runs over")
                continue
            if not torch.isfinite(values).all():
                raise TeacherError(
                    f"the pre-flight stopped the run:\n  the loss term {name} is not finite before any training: check its arguments, and the "
                    "weights of teacher and student"
                )
            weighted[name] = distiller.weights[name] * float(values.mean())
            if signal is not None and loss.needs_teacher and loss.divergence:
                same = float(_perfect(loss, signal, labels).abs().max())
                if same > ZERO:
                    findings.append(
                        f"the loss term {name} is {same:.4g} where student and teacher are the same: "
                        "it is not a divergence (a class of your own that is none declares divergence = False)"
                    )
    largest = max(weighted.values(), default=0.0)
    for name, value in weighted.items():
        if abs(value) * FAR < largest:
            logger.warning(
                "pre-flight: the weighted loss term %s is %.3g, the largest one %.3g: it has almost no effect (loss.%s.weight)",
                name, value, largest, name,
            )  # fmt: skip
    return findings


def _perfect(loss: torch.nn.Module, teacher: AnySignal, labels: Tensor) -> Any:
    """Return the loss of a student with the teacher's outputs, at the first few positions."""
    few = slice(0, FEW)
    outputs = teacher.rows(few)
    if isinstance(outputs, Signal):
        return loss(Signal(outputs.logits), outputs, labels[few])
    rest = outputs.softened(outputs.temperature)[:, -1:] - np.log(
        max(1, outputs.classes - outputs.indices.shape[-1])
    )
    logits = (rest * outputs.temperature).expand(-1, outputs.classes).clone()
    top = outputs.softened(outputs.temperature)[:, :-1] * outputs.temperature
    return loss(Signal(logits.scatter(-1, outputs.indices, top)), outputs, labels[few])
