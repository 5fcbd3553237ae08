"""What an exported file says of a split's rows, asked by its own runtime in its own process."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import datasets
import numpy as np
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from kdcli.config import Measure
from kdcli.errors import ConfigError
from kdcli.measure import RUNTIMES, measure_rows
from kdcli.models import Source, label_order, load_config
from kdcli.rollouts import go_on
from kdcli.tasks.base import IGNORE, Encoded, Predictions, Task

Counted = tuple[list[int], list[int]]
"""Token ids, and the places of those that count."""


def ask(
    cfg: Measure | None,
    path: Path,
    task: Task,
    rows: datasets.Dataset,
    tokenizer: PreTrainedTokenizerBase,
    max_length: int,
    written: Sequence[Counted] = (),
) -> tuple[dict[str, Any], Predictions, dict[str, float]]:
    """Run one artifact on a split's rows.

    Args:
        path: the file; beside it lies what its runtime needs.
        rows: as `task.prepare` gives them.
        written: what the torch student wrote, as `write` gives it.

    Returns:
        What the artifact needs (the fields of `Measurement`); its answers; and of a language model two shares:
        `same_tokens`, prompts that its own tokenizer cuts into the student's token ids, and, if `written` is given,
        `generated`: of the tokens that the torch student wrote greedily, those that the artifact writes too before it
        first writes another one. Up to there both have read the same, so the artifact is asked for its likeliest token
        at each place of the torch student's text; after the first difference nothing counts, however alike it may be.

    Raises:
        ConfigError: the file's runtime is for other tasks.
        ExportError: the runtime could not load or run it.
    """
    runtime = RUNTIMES.get(path.suffix)
    if runtime is None or (runtime == "llama") == bool(task.labels):
        kind = "a classifier" if task.labels else "a language model"
        raise ConfigError(
            f"artifact: {path.name} is not what `kdcli export` makes of {kind}: that ends in "
            f"{'.onnx' if task.labels else '.gguf'}"
        )
    texts = task.inputs(rows, tokenizer)
    folder = path.parent
    encoded = task.encode(tokenizer, rows, max_length)
    labels, counts = task.targets(encoded)
    if task.labels:
        tokens = None if encoded.labels is not None else list(_counted(encoded, first=0))
        found = measure_rows(cfg, runtime, path, folder, task, texts, max_length, answers=True, rows=tokens)
        order = label_order(load_config(Source(folder, path.name)), task.labels, path.name)
        return found, Predictions({"logits": found.pop("logits")[:, order]}, labels, counts), {}
    prompts = [[text, ids] for (text,), ids in zip(texts, _ids(texts, task, tokenizer), strict=True)]
    asked = [*_counted(encoded, first=1), *written]
    found = measure_rows(cfg, runtime, path, folder, task, prompts, max_length, answers=True, rows=asked)
    log_prob, top = found.pop("log_prob"), found.pop("top")
    shares = {"same_tokens": float(found.pop("same_tokens").mean())}
    if written:
        shares["generated"] = _generated(written, top[len(labels) :])
    said = Predictions({"log_prob": log_prob[: len(labels)], "top": top[: len(labels)]}, labels, counts)
    return found, said, shares


def write(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    task: Task,
    rows: datasets.Dataset,
    cfg: Measure,
    max_length: int,
) -> list[Counted]:
    """What a language model writes greedily after the first prompts of a split: prompt and answer, which counts."""
    some = rows.select(range(min(cfg.generations, len(rows))))
    prompts = [ids[:max_length] for ids in _ids(task.inputs(some, tokenizer), task, tokenizer)]
    answers = go_on(model, tokenizer, prompts, max_new_tokens=cfg.new_tokens, batch_size=1)
    return [
        (prompt + answer, list(range(len(prompt), len(prompt) + len(answer))))
        for prompt, answer in zip(prompts, answers, strict=True)
    ]


def _ids(texts: Sequence[Sequence[str]], task: Task, tokenizer: PreTrainedTokenizerBase) -> list[list[int]]:
    return [tokenizer(text, add_special_tokens=not task.chat)["input_ids"] for (text,) in texts]


def _counted(encoded: Encoded, first: int) -> Iterator[Counted]:
    """Rows as a runtime reads them: pieces that share a row and do not see each other are apart.

    Args:
        first: the first token that can count: 1 where it is told from those before it.
    """
    for number in range(len(encoded)):
        row = encoded[number]
        ids, counted = row["input_ids"], row["labels"] != IGNORE
        starts = np.flatnonzero(row["position_ids"] == 0).tolist() if "position_ids" in row else [0]
        for start, end in pairwise([*starts, len(ids)]):
            places = np.flatnonzero(counted[start:end])
            yield ids[start:end].tolist(), places[places >= first].tolist()


def _generated(written: Sequence[Counted], top: np.ndarray) -> float:
    """The share of the written tokens that come before their text's first other likeliest token."""
    same = total = 0
    for ids, places in written:
        equal = top[total : total + len(places)] == np.asarray([ids[place] for place in places])
        same += int(np.logical_and.accumulate(equal).sum())
        total += len(places)
    return same / max(1, total)
