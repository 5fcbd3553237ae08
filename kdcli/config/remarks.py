"""Finds keys that the task does not read, and values that are valid but useless."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from pydantic import BaseModel

from kdcli.config.dataset import Dataset
from kdcli.config.schema import Distill
from kdcli.config.tasks import TaskSpec, packaged_specs
from kdcli.errors import shown


def unread(config: Any, keys: Iterable[str]) -> Iterator[str]:
    """Yield problems with keys that the user set to another value than their default, although the task does not read them.

    Args:
        config: a checked config.
        keys: the keys that the user wrote, with dots.
    """
    for key in keys:
        stage = re.match(r"stages\.[^.]+\.", key)
        rest = key[stage.end() :] if stage else key
        value, default = value_at(config, key)
        if value is None or isinstance(value, BaseModel):  # the keys of a mapping are checked one by one
            continue
        section, _ = value_at(config, f"{stage[0]}dataset" if stage else "dataset")
        readers = [name for name, spec in packaged_specs() if _reads(spec, rest)]
        if isinstance(section, Dataset) and readers and not _reads(section.spec, rest) and value != default:
            yield f"{key} = {shown(value)}: {section.kind} does not read it (only {', '.join(readers)}); leave it out"


def _reads(spec: TaskSpec, key: str) -> bool:
    """Return whether a task declares that it reads a key of a run."""
    part, _, rest = key.partition(".")
    if part == "dataset":
        return rest.partition(".")[0] in spec.reads
    return any(f"{key}.".startswith(f"{each}.") for each in spec.reads_of_run)


def value_at(config: Any, key: str) -> tuple[Any, Any]:
    """Return the value at a key and its default, each None if there is none."""
    value, default = config, None
    for part in key.split("."):
        if isinstance(value, BaseModel):
            field = type(value).model_fields.get(part)
            default = field.get_default(call_default_factory=True) if field else None
            value = getattr(value, part, None)
        else:
            value, default = value.get(part) if isinstance(value, Mapping) else None, None
    return value, default


def remarks(config: Distill) -> list[str]:
    """Return warnings about valid but useless values, with their effect."""
    warnings = []
    trainers = {"trainer": config.trainer, "teacher.trainer": config.teacher.trainer}
    trainers |= {f"stages.{name}.trainer": stage.trainer for name, stage in config.stages.items()}
    for key, trainer in trainers.items():
        if trainer.learning_rate is not None and trainer.learning_rate < 1e-10:
            warnings.append(
                f"{key}.learning_rate = {trainer.learning_rate:g}: such a small step does not change fp32 weights; nothing is learned"
            )
        if trainer.dropout == 1:
            warnings.append(
                f"{key}.dropout = 1: every activation is dropped during training; the model learns nothing from its input"
            )
        if 0 < trainer.max_grad_norm < 1e-6:
            warnings.append(
                f"{key}.max_grad_norm = {trainer.max_grad_norm:g}: gradients are scaled down to almost nothing; 0 turns this off"
            )
    if config.student.arguments.get("dropout") == 1:
        warnings.append(
            "student.dropout = 1: every activation is dropped during training; the model learns nothing from its input"
        )
    datasets = {"dataset": config.dataset}
    datasets |= {
        f"stages.{name}.dataset": stage.dataset for name, stage in config.stages.items() if stage.dataset
    }
    for key, dataset in datasets.items():
        if dataset.max_length < 3 and not dataset.spec.refuses_short:
            warnings.append(f"{key}.max_length = {dataset.max_length}: only special tokens remain of a text")
    losses = {f"loss.{name}": term for name, term in config.loss.items()}
    losses |= {
        f"stages.{stage}.loss.{name}": term
        for stage, step in config.stages.items()
        for name, term in step.loss.items()
    }
    for key, term in losses.items():
        temperature = term.arguments.get("temperature")
        if 0 < term.weight < 1e-8:
            warnings.append(
                f"{key}.weight = {term.weight:g}: the gradient of this loss is scaled down to almost nothing; 0 turns it off"
            )
        if isinstance(temperature, int | float) and term.weight > 0 and temperature < 1e-2:
            warnings.append(
                f"{key}.temperature = {temperature:g}: each distribution is reduced to its most likely class; there is almost no gradient"
            )
        if isinstance(temperature, int | float) and term.weight > 0 and temperature > 1e3:
            warnings.append(
                f"{key}.temperature = {temperature:g}: every distribution becomes almost uniform; there is almost nothing to learn"
            )
    if config.rollout.source != "dataset" and config.rollout.sampling_temperature > 10:
        warnings.append(
            f"rollout.sampling_temperature = {config.rollout.sampling_temperature:g}: tokens are sampled almost uniformly"
        )
    return warnings
