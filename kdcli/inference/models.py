"""Loads a model once, which predicts for any number of inputs: a checkpoint in torch, or an exported file in its own runtime."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import datasets
import torch
from transformers import PreTrainedConfig

from kdcli.device import default_device
from kdcli.errors import ConfigError
from kdcli.evaluation.predict import open_checkpoint, require_finite
from kdcli.exporting.artifacts import Split, run_encoder, runtime_for
from kdcli.generation import Reply, continued, decoded, ends_of_config, generate, positions_of
from kdcli.measure.models import make_spec
from kdcli.measure.runtime import Runtime, install_hint, runtime_name
from kdcli.model_files import require_folder
from kdcli.models.checkpoint import Checkpoint, label_order, load_config, load_tokenizer
from kdcli.prompts import tokenize_prompts
from kdcli.tasks.base import Predictions, Task
from kdcli.tasks.inference import LONGEST_CONTEXT, Model


class TorchModel(Model):
    """A checkpoint in torch, on the GPU if there is one."""

    def __init__(self, source: Checkpoint, task: Task, max_length: int):
        self.name, self.task, self.max_length = source.name, task, max_length
        self.model, self.tokenizer = open_checkpoint(source, task, max_length)
        self.context = context_of(self.model.config)
        self.order = label_order(self.model.config, task.labels, source.name) if task.labels else None

    def predictions(self, rows: datasets.Dataset) -> Predictions:
        encoded = self.task.encode(self.tokenizer, rows, self.max_length)
        predictions = self.task.predict(self.model, self.tokenizer, encoded, order=self.order)
        require_finite(predictions, self.name)
        return predictions

    def replies(self, rows: datasets.Dataset, max_new_tokens: int | None) -> list[Reply]:
        options = {"max_new_tokens": max_new_tokens} if max_new_tokens else {}
        return self.task.replies(
            self.model, self.tokenizer, rows, self.max_length, batch_size=self.task.batch, **options
        )

    def complete(
        self,
        prompt: Sequence[int],
        max_new_tokens: int,
        temperature: float = 0.0,
        seed: int = 0,
        listener: Callable[[int], object] | None = None,
    ) -> list[int]:
        causal_lm: Any = self.task
        (tokens,) = generate(
            self.model,
            self.tokenizer,
            [prompt],
            max_new_tokens=max_new_tokens,
            batch_size=1,
            temperature=temperature,
            seeds=[seed],
            ends=causal_lm.end_tokens(self.tokenizer),
            listener=listener,
        )
        return tokens


class RuntimeModel(Model):
    """An exported file or folder in its own runtime, in this process.

    Args:
        path: the file, in a folder with what its runtime needs, or the folder.
        code: whether Python files in its folder may run.

    Raises:
        ConfigError: no runtime here runs it, or its packages are not installed.
        ModelError: loading it would run code of its own, or its files cannot be read.
        ExportError: the runtime cannot load it.
    """

    def __init__(self, path: Path, task: Task, max_length: int, code: bool = False):
        name, kind = runtime_for(path, task)
        _require_packages(path, name, kind)
        folder = kind.config_folder(path)
        require_folder(folder, path.name)
        kind.require_safe(path)
        self.task, self.max_length = task, max_length
        self.source = Checkpoint(folder, path.name, code=code)
        self.tokenizer = load_tokenizer(self.source)
        self.config = load_config(self.source)
        self.context = context_of(self.config)
        most = max(max_length, self.context) if kind.streams else max_length
        spec, _ = make_spec(None, name, path, folder, task, [], most, code)
        device = default_device().type
        self.spec = replace(spec, dtype="auto", device=device, threads=torch.get_num_threads(), new_tokens=0)
        self.runtime: Any = kind(self.spec)

    def predictions(self, rows: datasets.Dataset) -> Predictions:
        def run(prompts: Sequence[Any], rows: Any = None) -> dict[str, Any]:
            outputs: dict[str, Any] = self.runtime.predict(
                prompts if rows is None else rows, prompts, self.spec
            )
            return outputs

        split = Split(self.task, rows, self.tokenizer, self.max_length)
        return run_encoder(split, self.source, run).predictions

    def replies(self, rows: datasets.Dataset, max_new_tokens: int | None) -> list[Reply]:
        if self.runtime.streams:
            return self._completions(rows, max_new_tokens or self.max_length)
        encoded = self.task.encode(self.tokenizer, rows, self.max_length)
        if max_new_tokens:
            self.runtime.max_new_tokens = min(self.runtime.max_new_tokens, max_new_tokens)
        written = [self.runtime(encoded[row]["input_ids"].tolist()) for row in range(len(encoded))]
        return [Reply(text, True) for text in decoded(self.tokenizer, written)]

    def _completions(self, rows: datasets.Dataset, max_new_tokens: int) -> list[Reply]:
        prompts = [text for (text,) in self.task.inputs(rows, self.tokenizer)]
        ids = tokenize_prompts(self.tokenizer, prompts, special=not self.task.chat)
        ids = [row[-self.max_length :] for row in ids]
        completions = [self.complete(row, max_new_tokens) for row in ids]
        texts = continued(self.tokenizer, ids, completions)
        return [
            Reply(text, completion[-1:] != [] and completion[-1] in self._ends)
            for text, completion in zip(texts, completions, strict=True)
        ]

    def complete(
        self,
        prompt: Sequence[int],
        max_new_tokens: int,
        temperature: float = 0.0,
        seed: int = 0,
        listener: Callable[[int], object] | None = None,
    ) -> list[int]:
        tokens: list[int] = self.runtime.complete(
            prompt, max_new_tokens, self._ends, temperature, seed, listener
        )
        return tokens

    @property
    def _ends(self) -> list[int]:
        causal_lm: Any = self.task
        return ends_of_config(self.config, self.tokenizer, causal_lm.end_tokens(self.tokenizer))


def context_of(config: PreTrainedConfig) -> int:
    """Return the tokens of a prompt and its completion that a model is given: at most its positions."""
    return min(positions_of(config) or LONGEST_CONTEXT, LONGEST_CONTEXT)


def _require_packages(path: Path, name: str, kind: type[Runtime]) -> None:
    """Refuse a file whose runtime is not installed.

    Raises:
        ConfigError: with what installs it.
    """
    for package in kind.packages:
        try:
            importlib.import_module(package)
        except ImportError as error:
            raise ConfigError(
                f"{path.name} is run by {runtime_name(name)}, which is not installed ({error}); "
                f"{install_hint(kind.packages, kind.extra)}"
            ) from None
