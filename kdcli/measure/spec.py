"""What is measured, and what a measurement holds."""

from __future__ import annotations

import importlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

if TYPE_CHECKING:
    from kdcli.config.schema import Measure
    from kdcli.tasks.base import Task
RUNTIMES: dict[str, Runtime] = {
    ".onnx": "onnx",
    ".gguf": "llama",
    ".xml": "openvino",
    ".pt2": "exported",
    ".tflite": "litert",
    ".pte": "executorch",
}
"""What runs a file, by how its name ends."""
FOLDERS: dict[str, Runtime] = {
    "encoder_model.onnx": "onnx",
    "model.bin": "ctranslate2",
    "model.safetensors": "torch",
    "model.safetensors.index.json": "torch",
}
"""What runs a folder, by a file in it."""
WARM_UP = 10
"""Rows that are run before latency is timed: first calls allocate and plan."""
WARM_UP_TEXTS = 5
"""Translations that are made before: each of them is many calls."""
ROUNDS = 5
"""Two models take so many turns each, so that what else the machine does meets both."""
RUNS = 40
"""Rows whose latency is timed at least, however slow the model is …"""
PATIENCE = 10
"""… and no more once they took so many times `throughput_seconds`."""
PASSES = 3
"""Turns in which throughput is measured, each over all rows once or more, unless fewer take as long."""


@dataclass(frozen=True)
class Measurement:
    """What one model needs. What was not measured is None.

    Attributes:
        latency_ms: p50, p95 and p99 of single rows, unpadded, at batch 1; of a language model the time to the first token,
            of a translator that of the whole translation, greedy.
        throughput_per_s: rows a second, in batches of rows of like length, from each batch's median time, of the median turn; of a
            language model tokens a second at batch 1 after an answer's first, of the median answer, of a translator over a turn's translations.
        batch_size: the one of `MeasureSpec.batch_sizes` whose throughput that is; of what writes text None.
        first_token_ms: of a language model p50 and p95 of `latency_ms`, under the name by which a stream is judged.
        between_tokens_ms: of a language model p50, p95 and p99 of what passes between two tokens of an answer, at batch 1 (llama.cpp:
            between two characters, where one is of several tokens).
        times_faster: the p50 of another model over this one's, of the same rows in turns: the median turn.
        speedup: its `throughput_per_s` over another model's, each at its best batch, in turns: the median turn.
        cpu_share: time that the process computed, in all its threads, over the time that passed, while latency was timed:
            below `BUSY` something else had the processor, or the runtime waits.
        peak_memory_bytes: the most that the process held while it loaded and ran the model, less what it held before:
            the weights, what the runtime makes of them, and the activations of its largest batch.
        import_memory_bytes: what it held before: Python, and the runtime's packages.
        load_seconds: to import the runtime and to load the model, the files most likely being in the system's cache.
        load: what `Process.load` gives; None: nobody asked at a stated rate.
    """

    latency_ms: Mapping[str, float | None]
    throughput_per_s: float | None = None
    batch_size: int | None = None
    first_token_ms: dict[str, float] | None = None
    between_tokens_ms: dict[str, float] | None = None
    times_faster: float | None = None
    speedup: float | None = None
    cpu_share: float | None = None
    peak_memory_bytes: int | None = None
    import_memory_bytes: int | None = None
    load_seconds: float | None = None
    load: dict[str, Any] | None = None


UNKNOWN = Measurement({"p50": None, "p95": None, "p99": None})


def runtime_of(path: Path) -> Runtime | None:
    """What runs an artifact; None: nothing that is known here."""
    if path.is_dir():
        return next((runtime for name, runtime in FOLDERS.items() if (path / name).is_file()), None)
    if path.suffix == ".onnx" and path.parent.name == "onnx":  # the layout of transformers.js
        return "node"
    return RUNTIMES.get(path.suffix)


def specified(
    cfg: Measure | None,
    runtime: Runtime,
    path: Path,
    tokenizer: Path,
    task: Task,
    prompts: Sequence[Any],
    max_length: int,
    code: bool = False,
) -> tuple[MeasureSpec, Sequence[Any]]:
    """What a `Process` takes, of what `measure_rows` takes."""
    given: list[int] = []
    if cfg is not None and model_kind(task.auto) == "Writer":
        from kdcli.generation import require_room
        from kdcli.models.checkpoint import Checkpoint, load_config

        config = load_config(Checkpoint(tokenizer, tokenizer.name, code=code))
        max_length = min(max_length, require_room(cfg, config) or max_length)
    if is_translator(task.auto):
        prompts, given = _source_ids(task, tokenizer, prompts, code)
    spec = MeasureSpec(
        runtime,
        str(path),
        str(tokenizer),
        max_length,
        task.auto,
        special=not task.chat,
        **(cfg.model_dump(exclude={"generations", "num_beams"}) if cfg else {}),
        speed=cfg is not None,
        given=given,
        code=code,
    )
    return spec, prompts


def is_translator(auto: str) -> bool:
    return "Seq2Seq" in auto


def percentiles(values: Sequence[float]) -> dict[str, float]:
    return {f"p{share}": float(np.percentile(values, share)) for share in (50, 95, 99)}


def model_kind(auto: str) -> str:
    """What a runtime's module calls the model that a class of transformers loads."""
    return "Translator" if is_translator(auto) else "Writer" if "CausalLM" in auto else "Model"


def runtime_class(spec: MeasureSpec) -> Any:
    """The subclass of `Runs` that runs a model; its module imports little until it is made."""
    return getattr(importlib.import_module(f"kdcli.exporting.runtimes.{spec.runtime}"), model_kind(spec.auto))


def _source_ids(task: Any, folder: Path, texts: Texts, code: bool) -> tuple[list[list[int]], list[int]]:
    """The token ids of each text, and those that each translation begins with."""
    from kdcli.models.checkpoint import Checkpoint, load_tokenizer

    tokenizer = load_tokenizer(Checkpoint(folder, folder.name, code=code))
    given = task.given(tokenizer)  # first: it tells the tokenizer its languages
    return tokenizer([text for (text,) in texts], verbose=False)["input_ids"] if texts else [], given


def arrivals(rate: float, seconds: float) -> np.ndarray:
    """When requests arrive, in seconds: a Poisson process, `RUNS` of them at least, if they come in `PATIENCE` times as long."""
    count = max(round(rate * seconds), min(RUNS, math.ceil(rate * seconds * PATIENCE)))
    return np.random.default_rng(0).exponential(1 / rate, count).cumsum()


@dataclass(frozen=True)
class MeasureSpec:
    """What to run, and how.

    Attributes:
        path: a model directory (torch; of a translator also onnx, ctranslate2) or a file.
        tokenizer: the directory of its tokenizer (llama: it has its own; translators get token ids).
        auto: the class of transformers that loads the model.
        special: the tokenizer adds its special tokens (a rendered chat has them already).
        new_tokens: a language model writes so many, for its speed.
        max_length: tokens a row; the rest is cut off.
        threads: of the runtime.
        device: of torch: "cpu" or "cuda".
        dtype: of torch: "float32", or "auto": as the weights are stored.
        batch_sizes: rows a batch: throughput is that of the best of them.
        sequence_length: tokens of each row that is timed, cut or begun again; None: its own.
        latency_runs: so many rows are run at batch 1, some of them anew where there are fewer.
        throughput_seconds: throughput is measured for about so long in all, over whole passes.
        request_rates: requests a second, of raw texts (`Process.load`).
        load_seconds: for about so long each.
        max_texts: speed is measured on at most so many rows, evenly spaced among all.
        speed: false: nothing is timed.
        answers: a safetensors file to write with what the model says of all rows, in their order: `logits`, float32
            (N, C), and `input_ids`, int64, its tokens of all rows, and `lengths`, int64 (N,), how many each has; of a token
            classifier the logits alone, at its counted tokens, or of a language model's counted tokens `log_prob`, float32
            (N,), and `top`, int64 (N,), the likeliest token, and `same_tokens`, bool (prompts,): its own tokenizer cuts
            the prompt into the ids given; of a translator `written`, int64, the tokens of all texts, and `lengths`,
            int64 (N,), how many each has.
        given: tokens that each translation begins with after the model's start token (a language code).
        code: the model directory's own Python files may be run.
    """

    runtime: Runtime
    path: str
    tokenizer: str
    max_length: int
    auto: str = "AutoModelForSequenceClassification"
    special: bool = True
    threads: int = 1
    device: str = "cpu"
    dtype: str = "float32"
    batch_sizes: Sequence[int] = (1, 8, 32)
    sequence_length: int | None = None
    latency_runs: int = 200
    throughput_seconds: float = 2.0
    request_rates: Sequence[float] = ()
    load_seconds: float = 3.0
    max_texts: int = 256
    new_tokens: int = 32
    speed: bool = True
    answers: str | None = None
    given: Sequence[int] = ()
    code: bool = False


Texts = Sequence[Sequence[str]]
"""Each row: one text, or a text and its pair."""


Encoded = dict[str, np.ndarray]
"""The model's inputs by name: of one row (L,), of a batch (B, L)."""


Counted = tuple[list[int], list[int]]
"""Token ids, and the places of those that count."""


Runtime = Literal[
    "torch", "onnx", "llama", "ctranslate2", "openvino", "exported", "node", "litert", "executorch"
]
"""The modules of this package."""
