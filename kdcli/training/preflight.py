"""The numbers that must be right before a student is trained, looked at in seconds.

Each finding has one cause and one remedy. In a full run they refuse it (exit code 2); in a smoke run, or with
`trainer.max_steps`, they are warnings.
"""

from __future__ import annotations

import logging
from typing import Any

import datasets
import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from kdcli.config.schema import Rollout
from kdcli.errors import TeacherError
from kdcli.evaluation.predict import likelihoods
from kdcli.models.checkpoint import Checkpoint
from kdcli.signals import AnySignal, Signal
from kdcli.tasks.base import Predictions, Split, Task
from kdcli.teachers.base import Teacher
from kdcli.training.distiller import Distiller

logger = logging.getLogger(__name__)
ZERO = 1e-4
"""loss(x, x) above this is not zero (fp32, T² up to 100)."""
FEW = 32
"""Positions at which a perfect student is looked at."""
TRANSLATED = 32
"""Rows of which the translation is looked at."""
COPIED = 0.5
"""A teacher copies if more than this share of its translations is the source."""
NONE = np.empty(0)
FAR = 100.0
"""A weighted term so many times smaller than another does nothing."""


def preflight(
    distiller: Distiller,
    tokenizer: PreTrainedTokenizerBase,
    said: Predictions | None,
    classes: int,
    teacher: Teacher | None,
    train: Split,
    validation: Split | None,
    bf16: bool,
    lenient: bool,
    remedy: str = "",
) -> None:
    """Look at the teacher, the untrained student and the losses on real rows.

    Args:
        distiller: the untrained student with the run's losses.
        said: the teacher's answers on the validation split; None: they were looked at before.
        classes: of the teacher.
        teacher: who answers for the rows of `train`; None: no loss reads it.
        validation: where the untrained student is compared with the teacher; None: it is not, as they count other positions, or
            it is made of the teacher and may be as good.
        lenient: findings are warnings.
        remedy: against a teacher that is not good enough; "": it can be tuned.

    Raises:
        TeacherError: with every finding; of what is not finite also if `lenient`.
    """
    findings = []
    if said is not None:
        findings += _teacher_is_better(distiller, tokenizer, said, classes, validation, bf16, remedy)
    findings += _losses_are_right(distiller, tokenizer, teacher, train)
    if findings and not lenient:
        raise TeacherError("the pre-flight stopped the run:\n  " + "\n  ".join(findings))
    for finding in findings:
        logger.warning("pre-flight: %s", finding)


def translates(
    teacher: Teacher, source: Checkpoint, task: Task, rows: datasets.Dataset, max_length: int, lenient: bool
) -> None:
    """The teacher translates, and in the direction of the data: looked at on a few rows before all are translated.

    Args:
        source: the teacher's checkpoint.

    Raises:
        TeacherError: more than half of what it writes is its source.
    """
    few = rows.select(range(min(TRANSLATED, len(rows))))
    some = list(few)
    written = teacher.write(some, Rollout(sampling_temperature=0.0, max_new_tokens=256), 0)
    texts = [text or "" for text in written]
    copied = task.scores(
        Predictions({}, NONE, NONE, texts, [(row["source"], row["target"]) for row in some])
    )["copied"]
    if copied > COPIED:
        finding = (
            f"the teacher copies its source: {copied:.0%} of {len(some)} texts are what it was given; is it for these languages (dataset.prefix, "
            "dataset.source_language, dataset.target_language), or was it trained long enough (teacher.trainer.epochs)?"
        )
        if not lenient:
            raise TeacherError(f"the pre-flight stopped the run:\n  {finding}")
        logger.warning("pre-flight: %s", finding)
    swapped = few.rename_columns({"source": "target", "target": "source"})
    right, wrong = (
        float(np.mean(likelihoods(teacher, source, task, each, max_length))) for each in (few, swapped)
    )
    if wrong > right:
        logger.warning(
            "pre-flight: the teacher finds the sources likelier as translations of the targets (%.2f nats a token) than the targets as "
            "those of the sources (%.2f): are dataset.source and dataset.target swapped?",
            wrong,
            right,
        )


def _teacher_is_better(
    distiller: Distiller,
    tokenizer: PreTrainedTokenizerBase,
    said: Predictions,
    classes: int,
    validation: Split | None,
    bf16: bool,
    remedy: str,
) -> list[str]:
    """The teacher beats chance and, where they can be compared, the untrained student, on the validation split."""
    task: Task = distiller.task
    if worse := beats_chance(task, said, classes, remedy):
        return worse
    if validation is None:
        return []
    own = task.predict(distiller.student, tokenizer, validation.encoded, bf16=bf16)
    metric = _metric(task)
    score, untrained = (task.scores(each)[metric] for each in (said, own))
    if score <= untrained:
        return [
            f"the teacher's {metric} {score:.3f} is not above the untrained student's {untrained:.3f}: {remedy or _remedy(task)}"
        ]
    return []


def beats_chance(task: Task, said: Predictions, classes: int, remedy: str = "") -> list[str]:
    """What is wrong with the teacher's answers on some rows, looked at by themselves.

    Args:
        classes: of the teacher.
        remedy: against one that is no better than chance; "": it can be tuned.

    Raises:
        TeacherError: they are not finite, so that nothing can be learnt, not even in a rehearsal.
    """
    if not all(np.isfinite(values).all() for values in said.answers.values()):
        raise TeacherError(
            "the pre-flight stopped the run:\n  the teacher's logits are not finite; load it in fp32 (teacher.trainer.precision=fp32), or check "
            "its weights"
        )
    score, chance = task.scores(said)[_metric(task)], task.chance(said, classes)
    if score > chance:
        return []
    return [
        f"the teacher's {_metric(task)} {score:.3f} is not above {task.chance_is} {chance:.3f}: {remedy or _remedy(task)}"
    ]


def _metric(task: Task) -> str:
    return task.quick or task.metric


def _remedy(task: Task) -> str:
    return "tune it on this task (teacher.tune=true, or more teacher.trainer.epochs)" + (
        ", or check the order of dataset.labels" if task.labels else ""
    )


def _losses_are_right(
    distiller: Distiller, tokenizer: PreTrainedTokenizerBase, teacher: Teacher | None, train: Split
) -> list[str]:
    """Positions are counted, loss(x, x) = 0, every term is finite, and none is drowned by another."""
    task = distiller.task
    few = task.batch
    gold = train.encoded.gold.nonzero()[0][: few // 2].tolist()
    rows = (
        gold + [row for row in range(min(few, len(train.encoded))) if row not in set(gold)][: few - len(gold)]
    )
    batch = task.collate([train.encoded[row] for row in rows], tokenizer)
    batch.pop("rows")
    asked = list(train.rows.select(rows))
    signal = (
        teacher.outputs_with_features(asked, distiller.parts).to(torch.device("cpu"))
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
                same = _perfect(loss, signal, labels)
                if float(same.abs().max()) > ZERO:
                    findings.append(
                        f"the loss term {name} is {float(same.abs().max()):.4g} where student and teacher are the same: "
                        "it is no divergence (a class of yours that is none says so with divergence = False)"
                    )
    largest = max(weighted.values(), default=0.0)
    for name, value in weighted.items():
        if abs(value) * FAR < largest:
            logger.warning(
                "pre-flight: the weighted loss term %s is %.3g beside %.3g: it does next to nothing (loss.%s.weight)",
                name, value, largest, name,
            )  # fmt: skip
    return findings


def _perfect(loss: torch.nn.Module, teacher: AnySignal, labels: Tensor) -> Any:
    """The loss of a student that says what the teacher says, at the first few positions."""
    few = slice(0, FEW)
    said = teacher.rows(few)
    if isinstance(said, Signal):
        return loss(Signal(said.logits), said, labels[few])
    rest = said.softened(said.temperature)[:, -1:] - np.log(max(1, said.classes - said.indices.shape[-1]))
    logits = (rest * said.temperature).expand(-1, said.classes).clone()
    top = said.softened(said.temperature)[:, :-1] * said.temperature
    return loss(Signal(logits.scatter(-1, said.indices, top)), said, labels[few])
