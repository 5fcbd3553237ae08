"""Defines what is measured of a model, and the fields of a measurement."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from kdcli.config.types import Quantization

WARM_UP = 10
"""The number of rows that run before latency is timed, because first calls allocate and plan."""
WARM_UP_TEXTS = 5
"""The number of warm-up rows for translations, each of which takes many calls, and for raw texts."""
ROUNDS = 5
"""The number of rounds in which two models are timed interleaved, so that other load of the machine affects both."""
ROUND_ROWS = 32
"""The number of rows of each round of an adaptive measurement. All rounds have the same rows, so that they differ by noise alone."""
MOST_ROUNDS = 6
"""The maximum number of rounds of an adaptive measurement."""
STABLE = 0.03
"""The share of the median latency within which its 95 % interval must be for an adaptive measurement to end."""
RUNS = 40
"""The least number of rows whose latency is timed, however slow the model is."""
PATIENCE = 10
"""The multiple of `throughput_seconds` after which timing stops, once the least number of rows is timed."""
PASSES = 3
"""The number of passes in which throughput is measured, each over all rows at least once; there are fewer if passes take long."""


@dataclass(frozen=True)
class Measurement:
    """Speed and memory of one model. A field that was not measured is None.

    Attributes:
        latency_ms: p50, p95 and p99 of single rows, unpadded, at batch 1: for a causal language model the time to the first token, for an
            encoder-decoder the time of the complete greedy generation.
        latency_runs: the number of rows that were timed, repetitions included.
        latency_p50_ci95_ms: the 95 % interval of the mean of the rounds' medians, by Student's t; None: there was one round.
        throughput_per_s: rows per second, in batches of rows of similar length, from the median time of each batch, of the median pass. For
            a causal language model it is the number of tokens per second at batch 1 after the first token, of the median generation; of
            an encoder-decoder the number of generated tokens per second.
        batch_size: the one of `MeasureSpec.batch_sizes` that has this throughput; None for models that generate text.
        first_token_ms: of a causal language model p50 and p95 of `latency_ms`, under the name that is usual for streams.
        between_tokens_ms: of a causal language model p50, p95 and p99 of the time between two tokens, at batch 1 (llama.cpp: between two
            characters, where one character takes several tokens).
        times_faster: the baseline's p50 divided by this model's, on the same rows, interleaved: the median round.
        speedup: this model's throughput divided by the baseline's, each at its best batch size, interleaved: the median pass.
        cpu_share: CPU time of the process, in all its threads, divided by the elapsed time, while latency is timed. Below
            `BUSY` something else uses the processor, or the runtime waits.
        peak_memory_bytes: the peak memory of the process while it loads and runs the model, less `import_memory_bytes`: the weights,
            what the runtime makes of them, and the activations of the largest batch.
        import_memory_bytes: the memory of the process before it loads the model: Python and the packages of the runtime.
        load_seconds: the time to import the runtime and to load the model; its files are most likely in the system's cache.
        load: the result of `Process.load`; None if no request rates are given.
    """

    latency_ms: Mapping[str, float | None]
    latency_runs: int | None = None
    latency_p50_ci95_ms: list[float] | None = None
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


def percentiles(values: Sequence[float]) -> dict[str, float]:
    return {f"p{share}": float(np.percentile(values, share)) for share in (50, 95, 99)}


T_975 = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262)
"""The 97.5 % quantile of Student's t distribution with 1, 2, … degrees of freedom."""


def interval_of_mean(values: Sequence[float]) -> list[float] | None:
    """Return the 95 % interval of the mean of 2 to 10 values, by Student's t; None: there is one value."""
    if len(values) < 2:
        return None
    half = T_975[len(values) - 2] * float(np.std(values, ddof=1)) / math.sqrt(len(values))
    mean = float(np.mean(values))
    return [mean - half, mean + half]


def is_stable(medians: Sequence[float]) -> bool:
    """Return whether the median latencies of at least three rounds agree to within `STABLE`."""
    bounds = interval_of_mean(medians) if len(medians) > 2 else None
    return bounds is not None and bounds[1] - bounds[0] <= STABLE * (bounds[0] + bounds[1])


def spaced(count: int, most: int) -> list[int]:
    """Return at most this many of `count` indices, evenly spaced."""
    return [int(index) for index in np.linspace(0, count - 1, min(most, count))]


def prompt_length(prompt: Any) -> int:
    """Return the length of an input whose speed is measured: token ids, a pair of a text and its token ids, or one or two texts."""
    last = prompt[-1] if len(prompt) else 0
    if isinstance(last, str):
        return sum(map(len, prompt))
    return len(prompt) if isinstance(last, int) else len(last)


def arrivals(rate: float, seconds: float) -> np.ndarray:
    """Return arrival times of requests, in seconds, as a Poisson process. There are at least `RUNS` of them, if they arrive within
    `PATIENCE` times `seconds`."""
    count = max(round(rate * seconds), min(RUNS, math.ceil(rate * seconds * PATIENCE)))
    return np.random.default_rng(0).exponential(1 / rate, count).cumsum()


@dataclass(frozen=True)
class MeasureSpec:
    """Describes the model that a process loads, and how it is measured.

    Attributes:
        runtime: the name of a module of `kdcli.exporting.runtimes`, or the Python file of a user's own runtime.
        path: the model: a file, or a folder.
        tokenizer: the folder of its tokenizer. llama.cpp has its own; encoder-decoders get token ids.
        auto: the auto class of transformers that loads such a model.
        add_special_tokens: the tokenizer adds its special tokens; a rendered chat has them already.
        new_tokens: tokens that a causal language model generates when its speed is measured.
        max_length: tokens of a row; the rest is truncated.
        threads: threads of the runtime.
        device: of torch: "cpu" or "cuda".
        dtype: of torch: "float32", or "auto": as the weights are stored.
        quantization: of torch: in which the weights of linear layers are held; None: in `dtype`.
        batch_sizes: rows in a batch; throughput is that of the best of them.
        sequence_length: tokens of each row that is timed: a longer row is truncated, a shorter one repeated; None: each row's own length.
        latency_runs: rows that run at batch 1; if there are fewer rows, some run again.
        adaptive: whether rounds of `ROUND_ROWS` rows run at batch 1 until their medians agree (`is_stable`), in place of `latency_runs` rows.
        throughput_seconds: the approximate time of all throughput measurements, over complete passes.
        request_rates: requests per second, of raw texts (`Process.load`).
        load_seconds: the approximate time at each rate.
        max_texts: speed is measured on at most this many rows, evenly spaced.
        speed: whether speed is measured.
        predictions: a safetensors file to write with the outputs for all rows, in their order. A sequence classifier writes `logits`,
            float32 (N, C), `input_ids`, int64, the tokens of all rows, and `lengths`, int64 (N,), their number in each row. A token
            classifier writes `logits` at its counted tokens. A causal language model writes, for its counted tokens, `log_prob`,
            float32 (N,), and `top`, int64 (N,), the most likely token, and `same_tokens`, bool (prompts,): whether its own
            tokenizer gives the token ids of the prompt. An encoder-decoder writes `written`, int64, the tokens of all texts, and
            `lengths`, int64 (N,).
        decoder_start: the first input of the decoder of an encoder-decoder; None: that of the model's config.
        decoder_prefix: token ids that follow the decoder's start token in each text, such as a language code.
        trust_remote_code: Python files in the model's folder may run.
    """

    runtime: str
    path: str
    tokenizer: str
    max_length: int
    auto: str = "AutoModelForSequenceClassification"
    add_special_tokens: bool = True
    threads: int = 1
    device: str = "cpu"
    dtype: str = "float32"
    quantization: Quantization | None = None
    batch_sizes: Sequence[int] = (1, 8, 32)
    sequence_length: int | None = None
    latency_runs: int = 200
    adaptive: bool = False
    throughput_seconds: float = 2.0
    request_rates: Sequence[float] = ()
    load_seconds: float = 3.0
    max_texts: int = 256
    new_tokens: int = 32
    speed: bool = True
    predictions: str | None = None
    decoder_start: int | None = None
    decoder_prefix: Sequence[int] = ()
    trust_remote_code: bool = False


Texts = Sequence[Sequence[str]]
"""Each row: one text, or a text and its pair."""


Encoded = dict[str, np.ndarray]
"""The inputs of a model by name: of one row (L,), of a batch (B, L)."""


Counted = tuple[list[int], list[int]]
"""The token ids of a row, and the positions of those that count."""
