"""Scores checkpoints on a split and measures their speed: the steps that `distill`, `eval` and `export` share."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, fields, replace
from pathlib import Path
from typing import Any, TypeVar

import datasets
from pydantic import TypeAdapter, ValidationError
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from kdcli import console
from kdcli.config.measure import Measure
from kdcli.config.types import Dtype, Quantization
from kdcli.data.reading import Reading
from kdcli.errors import ConfigError, abbreviated
from kdcli.evaluation.compare import score
from kdcli.evaluation.predict import (
    combine_members,
    examine,
    require_finite,
    require_trained,
)
from kdcli.evaluation.results import ENVIRONMENT, read_report
from kdcli.files import named_path, read_json
from kdcli.measure.models import loading, make_spec, measure_checkpoint, measure_pair
from kdcli.measure.process import Process
from kdcli.measure.spec import UNKNOWN, Measurement, prompt_length, spaced
from kdcli.models.checkpoint import Checkpoint, load_tokenizer
from kdcli.rundir import REPORT
from kdcli.signals import AnySignal
from kdcli.tasks.base import Predictions, Task

logger = logging.getLogger(__name__)
T = TypeVar("T")


class Evaluator:
    """Scores the models of one task on one split, and measures their speed and memory. It is a context manager: processes that it keeps
    alive end with it.

    Args:
        rows: the split, as `Task.prepare` returns it.
        measure: how speed and memory are measured; None: they are not measured.

    Attributes:
        models: the entry of each model: `parameters`, `bytes`, `score`, `scores`, and the fields of `Measurement`.
        predictions: the predictions of each model on the split.
    """

    def __init__(self, task: Task, rows: datasets.Dataset, max_length: int, measure: Measure | None):
        self.task, self.rows, self.max_length, self.config = task, rows, max_length, measure
        self.models: dict[str, dict[str, Any]] = {}
        self.predictions: dict[str, Predictions] = {}
        self.process: Process | None = None
        self.timed_rows: list[int] | None = None
        self._processes = ExitStack()

    def __enter__(self) -> Evaluator:
        return self

    def __exit__(self, *raised: Any) -> None:
        self._processes.__exit__(*raised)

    def predict(
        self,
        name: str,
        source: Checkpoint,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        teacher: Callable[[Sequence[int]], AnySignal] | None = None,
        convert: Callable[[Predictions], Predictions] | None = None,
    ) -> Predictions:
        """Run an opened checkpoint on the split, and score its predictions.

        Args:
            teacher: returns the teacher outputs of rows by their indices, with which the predictions are compared.
            convert: applied to the predictions before they are scored.
        """
        sizes, predictions = examine(source, model, tokenizer, self.task, self.rows, self.max_length, teacher)
        return self.score(name, sizes, convert(predictions) if convert else predictions)

    def score(self, name: str, entry: Mapping[str, Any], predictions: Predictions) -> Predictions:
        """Score predictions that are known already.

        Args:
            entry: what is known of the model, such as its size.

        Raises:
            ModelError: they are not finite.
        """
        require_finite(predictions, name)
        self.models[name] = {**entry, **score(self.task, predictions)}
        self.predictions[name] = predictions
        return predictions

    @property
    def is_quick(self) -> bool:
        """Speed is measured with `measure.mode=quick`."""
        return self.config is not None and self.config.mode == "quick"

    def measure(
        self, name: str, sources: Sequence[Checkpoint], keep_alive: bool = False, interleaved: bool = False
    ) -> None:
        """Measure speed and memory of a model, and add them to its entry. Those of a model whose weights are divided are unknown.

        Args:
            sources: its checkpoint, or those of the members of an ensemble, which are measured one after the other.
            keep_alive: its process stays loaded, so that later models can be measured interleaved with it; not for an ensemble.
            interleaved: with the model that is kept alive, on the same rows.

        Raises:
            ExportError: torch cannot load or run it.
        """
        entries = []
        for source in sources:
            if source.divided:  # its weights do not fit into the process that is measured
                entries.append(asdict(UNKNOWN))
                continue
            process, needs = measure_checkpoint(
                self.config,
                source,
                self.task,
                self._prompts(source),
                self.max_length,
                self.process if interleaved else None,
                self._processes if keep_alive and len(sources) == 1 else None,
            )
            self.process = process or self.process
            entries.append(needs)
        self.models[name] = self.models.get(name, {}) | combine_members(entries)

    def measure_both(self, name: str, source: Checkpoint, baseline: str, baseline_source: Checkpoint) -> None:
        """Measure speed and memory of a model and of a baseline, interleaved, and add them to their entries. Each is timed once.

        Raises:
            ExportError: torch cannot load or run one of them.
        """
        self.keep_alive(baseline_source)
        if self.config is None or self.process is None:
            pair = asdict(UNKNOWN), asdict(UNKNOWN)
        else:
            prompts = self._prompts(source)
            pair = measure_pair(self.config, source, self.task, prompts, self.max_length, self.process)
        for key, needs in zip((name, baseline), pair, strict=True):
            self.models[key] = self.models.get(key, {}) | needs

    def copy_measurement(self, name: str, measured: str) -> None:
        """Give a model the speed and memory of another one with the same architecture, which does the same work. `measured_as` names it."""
        needs = {field.name: self.models[measured][field.name] for field in fields(Measurement)}
        self.models[name] = self.models.get(name, {}) | needs | {"measured_as": measured}

    def _prompts(self, source: Checkpoint) -> Sequence[Any]:
        """Return the inputs whose speed is measured: all rows, or with `measure.mode=quick` rows of all lengths, the same ones for each model."""
        prompts = self.task.inputs(self.rows, load_tokenizer(source))
        if not self.is_quick or self.config is None:
            return prompts
        if self.timed_rows is None:
            by_length = sorted(range(len(prompts)), key=lambda row: prompt_length(prompts[row]))
            self.timed_rows = [
                by_length[index] for index in spaced(len(prompts), self.config.settings["max_texts"])
            ]
        return [prompts[row] for row in self.timed_rows]

    def keep_alive(self, source: Checkpoint) -> None:
        """Load a checkpoint in a process of its own that is not measured itself, for artifacts that are measured interleaved with it."""
        if self.config is None:
            return
        prompts = self._prompts(source)
        arguments = (self.config, "torch", source.path, source.path, self.task, prompts, self.max_length)
        self.process = self._processes.enter_context(Process(*make_spec(*arguments, **loading(source))))


def recorded_models(run: Path, trust_remote_code: bool) -> dict[str, Checkpoint]:
    """Return the checkpoints of a finished run, by name. A model that is not there any more, or is no single checkpoint, is left out with a warning.

    Raises:
        ModelError: one was changed since it was trained.
    """
    sources: dict[str, Checkpoint] = {}
    dtypes = _recorded(run, "dtypes", dict[str, Dtype])
    quantization = _recorded(run, "quantization", dict[str, Quantization])
    placement = _recorded(run, "placement", dict[str, str])
    for name, entry in read_report(run).models.items():
        if entry.method is not None:  # a baseline, which is not saved
            continue
        if entry.members:
            console.warn(f"the {name} of {run} is an ensemble, which eval does not run, and is skipped")
            continue
        if name == "teacher" and not entry.path:
            console.warn(f"the teacher of {run} is an API teacher, which eval does not query, and is skipped")
            continue
        elsewhere = entry.path if name == "teacher" else None
        path = Path(elsewhere) if elsewhere else named_path(run, name, what=f"{run / REPORT}: models")
        if path.is_dir():
            if elsewhere and not path.is_relative_to(run.absolute()):
                logger.info("the teacher is read from %s, which %s names", path, run / REPORT)
            sources[name] = Checkpoint(path.absolute(), name, code=trust_remote_code)
            if name == "teacher":
                sources[name] = replace(
                    sources[name],
                    dtype=dtypes.get(name, "fp32"),
                    quantization=quantization.get(name),
                    divided=placement.get(name) == "device_map",
                )
            require_trained(sources[name], run)
        else:
            console.warn(f"the {name} of {run} is no longer in {path} and is skipped")
    return sources


def _recorded(run: Path, key: str, kind: type[dict[str, T]]) -> dict[str, T]:
    """Return what a run's env.json says of each model under a key; empty if it does not say so or is damaged."""
    try:
        record = read_json(run / ENVIRONMENT, dict[str, Any], "restore it from a copy")
        return TypeAdapter(kind).validate_python(record.get(key, {}))
    except (ConfigError, OSError, ValidationError):
        return {}


def recorded_readings(run: Path) -> list[Reading]:
    """Return how a run read its data files, by its env.json, so that a later guess cannot differ; empty if it does not say so.

    If env.json is damaged, it is detected again, with a warning.
    """
    path = run / ENVIRONMENT
    if not os.path.lexists(path):
        return []
    try:
        record = read_json(path, dict[str, Any], "restore it from a copy")
        return [Reading.of_record(each) for each in record.get("dataset", {}).get("reading", [])]
    except (ConfigError, ValueError, TypeError, AttributeError, RecursionError) as error:
        logger.warning(
            "%s does not record how the run read its data files (%s); kdcli detects it again: compare the lines 'read …' with those of the run, or restore the "
            "file from a copy",
            path,
            abbreviated(str(error).partition("\n")[0]),
        )
        return []
