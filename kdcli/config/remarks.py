"""Keys that the task does not read, and values that are legal but useless."""

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
    """What is wrong with keys that somebody wrote, and that have another value than their default: the task does not read them.

    Args:
        config: a checked config.
        keys: with dots.
    """
    for key in keys:
        stage = re.match(r"stages\.[^.]+\.", key)
        rest = key[stage.end() :] if stage else key
        value, default = value_at(config, key)
        if value is None or isinstance(value, BaseModel):  # of a mapping, each key is looked at by itself
            continue
        place, _ = value_at(config, f"{stage[0]}dataset" if stage else "dataset")
        readers = [name for name, spec in packaged_specs() if _reads(spec, rest)]
        if isinstance(place, Dataset) and readers and not _reads(place.spec, rest) and value != default:
            yield f"{key} = {shown(value)}: {place.kind} does not read it (only {', '.join(readers)}); leave it out"


def _reads(spec: TaskSpec, key: str) -> bool:
    """Whether a task declares that it reads a key of a run."""
    part, _, rest = key.partition(".")
    if part == "dataset":
        return rest.partition(".")[0] in spec.reads
    return any(f"{key}.".startswith(f"{each}.") for each in spec.reads_of_run)


def value_at(config: Any, key: str) -> tuple[Any, Any]:
    """The value at a key and its default; None where there is none."""
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
    """What is legal and of no use, with what it does: for warnings."""
    found = []
    trainers = {"trainer": config.trainer, "teacher.trainer": config.teacher.trainer}
    trainers |= {f"stages.{name}.trainer": stage.trainer for name, stage in config.stages.items()}
    for key, trainer in trainers.items():
        if trainer.learning_rate < 1e-10:
            found.append(
                f"{key}.learning_rate = {trainer.learning_rate:g}: fp32 weights do not change by so little; nothing is learnt"
            )
        if trainer.dropout == 1:
            found.append(
                f"{key}.dropout = 1: every value is dropped while the model is trained; it learns nothing from its input"
            )
        if 0 < trainer.max_grad_norm < 1e-6:
            found.append(
                f"{key}.max_grad_norm = {trainer.max_grad_norm:g}: gradients are scaled down to almost nothing; 0 turns this off"
            )
    datasets = {"dataset": config.dataset}
    datasets |= {
        f"stages.{name}.dataset": stage.dataset for name, stage in config.stages.items() if stage.dataset
    }
    for key, dataset in datasets.items():
        if dataset.max_length < 3 and not dataset.spec.refuses_short:
            found.append(
                f"{key}.max_length = {dataset.max_length}: beside the special tokens no token of a text is left"
            )
    losses = {f"loss.{name}": term for name, term in config.loss.items()}
    losses |= {
        f"stages.{stage}.loss.{name}": term
        for stage, step in config.stages.items()
        for name, term in step.loss.items()
    }
    for key, term in losses.items():
        temperature = term.arguments.get("temperature")
        if isinstance(temperature, int | float) and term.weight > 0 and temperature < 1e-2:
            found.append(
                f"{key}.temperature = {temperature:g}: of each distribution only the likeliest class is left; it has almost no gradient"
            )
        if isinstance(temperature, int | float) and term.weight > 0 and temperature > 1e3:
            found.append(
                f"{key}.temperature = {temperature:g}: every distribution becomes uniform; almost nothing is left to learn"
            )
    if config.rollout.source != "dataset" and config.rollout.sampling_temperature > 10:
        found.append(
            f"rollout.sampling_temperature = {config.rollout.sampling_temperature:g}: tokens are drawn almost at random"
        )
    return found
