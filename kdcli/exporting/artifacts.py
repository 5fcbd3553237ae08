"""What an exported file or folder says of a split's rows, asked by its own runtime in its own process."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import datasets
import numpy as np
from tokenizers import Tokenizer
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from kdcli.config.schema import Measure
from kdcli.errors import ConfigError, ExportError, ModelError
from kdcli.files import hash_file, inner_path, size_of, with_weights
from kdcli.generation import decoded, generate, max_prompt_tokens
from kdcli.measure.process import Process, measure_rows
from kdcli.measure.spec import Runtime, runtime_of
from kdcli.models.checkpoint import Checkpoint, label_order, load_config, load_tokenizer
from kdcli.tasks.base import Predictions, Task
from kdcli.tasks.encoded import Encoded
from kdcli.tasks.rows import IGNORE
from kdcli.tasks.seq2seq.task import Seq2Seq

Counted = tuple[list[int], list[int]]
"""Token ids, and the places of those that count."""
KINDS: dict[str, tuple[set[Runtime], str]] = {
    "classifier": (
        {"onnx", "openvino", "exported", "torch", "node", "litert", "executorch"},
        "an .onnx, .xml, .pt2, .tflite or .pte file, or a folder bf16",
    ),
    "language model": ({"llama", "onnx", "torch"}, "a .gguf or .onnx file, or a folder bf16"),
    "translator": ({"onnx", "ctranslate2", "torch"}, "a folder, onnx, ctranslate2 or bf16"),
}
"""What may run an artifact, and what it looks like, by what it was made of."""


def ask(
    cfg: Measure | None,
    path: Path,
    task: Task,
    rows: datasets.Dataset,
    tokenizer: PreTrainedTokenizerBase,
    max_length: int,
    written: Sequence[Counted] = (),
    beside: Process | None = None,
    limit: float | None = None,
    code: bool = False,
) -> tuple[dict[str, Any], Predictions, dict[str, float]]:
    """Run one artifact on a split's rows.

    Args:
        path: the file, with what its runtime needs beside it, or the folder.
        rows: as `task.prepare` gives them.
        written: what the torch student wrote, as `write` gives it.
        beside: the torch student, which takes turns with it.
        limit: milliseconds that requests may take, as `measure` takes it.
        code: Python files beside it may be run.

    Returns:
        What the artifact needs (the fields of `Measurement`); its answers, of a translator only its texts; and shares.
        Of all `same_tokens`: texts (of a language model: prompts) that its own tokenizer cuts into the student's token ids.
        Of a translator, if `written` is given, `agreement`: of the tokens that the torch student wrote, those that the
        artifact writes too before its text's first other one, and `same_texts`, of whole texts. Of a language model, if
        `written` is given, `generated`: of the tokens that the torch student wrote greedily, those that the artifact writes too before it
        first writes another one. Up to there both have read the same, so the artifact is asked for its likeliest token
        at each place of the torch student's text; after the first difference nothing counts, however alike it may be.

    Raises:
        ConfigError: the file's runtime is for other tasks.
        ExportError: the runtime could not load or run it.
    """
    runtime, folder = runtime_of(path), folder_of(path)
    kind = "classifier" if task.labels else "translator" if isinstance(task, Seq2Seq) else "language model"
    runtimes, looks = KINDS[kind]
    if runtime not in runtimes or (runtime != "torch" and path.is_dir() != (kind == "translator")):
        raise ConfigError(
            f"artifact: {path.name} is not what `kdcli export` makes of a {kind}: that is {looks}"
        )
    texts = task.inputs(rows, tokenizer)
    encoded = task.encode(tokenizer, rows, max_length)
    labels, counts = task.targets(encoded)
    how: dict[str, Any] = {"beside": beside, "requests": texts, "limit": limit, "code": code}
    if isinstance(task, Seq2Seq):
        found = measure_rows(cfg, runtime, path, folder, task, texts, max_length, **how)
        ends = found.pop("lengths").cumsum()[:-1]
        ours = [part.tolist() for part in np.split(found.pop("written"), ends)]
        said = task.written(Predictions({}, labels, counts), decoded(tokenizer, ours), encoded)
        theirs = [ids for ids, _ in written]
        own = _same(
            encoded,
            load_tokenizer(Checkpoint(folder, path.name, code=code))([text for (text,) in texts])[
                "input_ids"
            ],
        )
        return found, said, own | (_reproduced(tokenizer, theirs, ours) if theirs else {})
    if task.labels:
        tokens = None if encoded.labels is not None else list(_counted(encoded, first=0))
        found = measure_rows(cfg, runtime, path, folder, task, texts, max_length, **how, rows=tokens)
        order = label_order(load_config(Checkpoint(folder, path.name, code=code)), task.labels, path.name)
        logits = found.pop("logits")
        if logits.shape[1] != len(order):
            raise ExportError(
                f"{path} tells {logits.shape[1]} labels apart, and config.json beside it names {len(order)}: it is "
                "another student's file; export that student anew"
            )
        said = Predictions({"logits": logits[:, order]}, labels, counts)
        if tokens is not None:
            return (
                found,
                said,
                _same(encoded, _pieces(folder, rows["words"], max_length, tokenizer.truncation_side)),
            )
        ends = found.pop("lengths").cumsum()[:-1]
        return found, said, _same(encoded, np.split(found.pop("input_ids"), ends))
    prompts = [[text, ids] for (text,), ids in zip(texts, _ids(texts, task, tokenizer), strict=True)]
    asked = [*_counted(encoded, first=1), *written]
    found = measure_rows(cfg, runtime, path, folder, task, prompts, max_length, **how, rows=asked)
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
    """What a language model writes greedily after the first prompts of a split: prompt and answer, which counts; of a
    translator all translations of the split."""
    if isinstance(task, Seq2Seq):
        texts = task.greedy(model, tokenizer, task.encode(tokenizer, rows, max_length), max_length)
        return [(ids, list(range(len(ids)))) for ids in texts]
    some = rows.select(range(min(cfg.generations, len(rows))))
    room = max_prompt_tokens(model.config, cfg.new_tokens, "measure.new_tokens") or max_length
    prompts = [ids[: min(room, max_length)] for ids in _ids(task.inputs(some, tokenizer), task, tokenizer)]
    answers = generate(model, tokenizer, prompts, max_new_tokens=cfg.new_tokens, batch_size=1)
    return [
        (prompt + answer, list(range(len(prompt), len(prompt) + len(answer))))
        for prompt, answer in zip(prompts, answers, strict=True)
    ]


def folder_of(path: Path) -> Path:
    """The folder with an artifact's config and tokenizer."""
    if path.is_dir() and path.suffix != ".mlpackage":
        return path
    return path.parent.parent if runtime_of(path) == "node" else path.parent


def bytes_of(path: Path) -> int:
    """Bytes of an artifact: of a folder those of its weights and graphs, as of a file."""
    if path.suffix == ".mlpackage":
        return sum(file.stat().st_size for file in path.rglob("*") if file.is_file())
    if path.is_dir():
        patterns = ("*.onnx", "*.onnx.data", "model.bin", "*.safetensors")
        return sum(size_of(file) for pattern in patterns for file in path.glob(pattern))
    return size_of(path)


def hashes_of(path: Path) -> dict[str, str]:
    """sha256 of an artifact's files, by their paths from where it lies: of a folder of all that are in it, else of the file and of
    the weights beside it."""
    files = (
        sorted(file for file in path.rglob("*") if file.is_file()) if path.is_dir() else with_weights(path)
    )
    return {file.relative_to(path.parent).as_posix(): hash_file(file) for file in files}


def require_whole(path: Path, told: Mapping[str, Any]) -> None:
    """Refuse an artifact that is not what `kdcli export` wrote.

    Args:
        told: what the export.json beside it holds; an artifact that it does not name is not checked.

    Raises:
        ModelError: a file of it is gone, or holds something else.
    """
    for name, expected in told["artifacts"].get(path.name, {}).get("sha256", {}).items():
        file = inner_path(path.parent, name, "export.json: artifacts")
        found = hash_file(file) if file.is_file() else None
        if found != expected:
            holds = (
                f"has {found[:12]}…: it was cut off, or another was copied over it" if found else "is gone"
            )
            raise ModelError(
                f"{file} is not the file that was exported: export.json says sha256 {expected[:12]}…, and it {holds}; export again: "
                f"kdcli export run=RUN hardware={told['hardware']}"
            )


def _same(encoded: Encoded, own: Sequence[Sequence[int] | np.ndarray]) -> dict[str, float]:
    """The share of the rows that an artifact's own tokenizer cuts as the student's does."""
    same = [np.array_equal(encoded[row]["input_ids"], ids) for row, ids in enumerate(own)]
    return {"same_tokens": float(np.mean(same))}


def _pieces(folder: Path, rows: Sequence[list[str]], max_length: int, side: str) -> list[list[int]]:
    """What the tokenizer.json in a folder makes of words, which are one text to it, as they are to the student."""
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.no_padding()
    tokenizer.enable_truncation(max_length, direction=side)
    return [each.ids for each in tokenizer.encode_batch([" ".join(words) for words in rows])]


def _reproduced(
    tokenizer: PreTrainedTokenizerBase, theirs: list[list[int]], ours: list[list[int]]
) -> dict[str, float]:
    """The share of their tokens that stand in ours too before the first other one, and of their texts that are ours."""
    same = 0
    for one, other in zip(theirs, ours, strict=True):
        shared = min(len(one), len(other))
        equal = np.asarray(one[:shared]) == np.asarray(other[:shared])
        same += int(np.logical_and.accumulate(equal).sum())
    texts = zip(decoded(tokenizer, theirs), decoded(tokenizer, ours), strict=True)
    return {
        "agreement": same / sum(map(len, theirs)),
        "same_texts": float(np.mean([one == other for one, other in texts])),
    }


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
