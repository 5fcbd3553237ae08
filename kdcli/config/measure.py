"""Defines the keys of `measure`: how speed and memory are measured."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from kdcli.config.types import BatchSizes, Beams, Rate, Rows, Runs, Seconds, Section, Threads, Tokens

MODES: Mapping[str, Mapping[str, Any]] = {
    "quick": {"batch_sizes": [1, 32], "latency_runs": 192, "throughput_seconds": 0.5, "max_texts": 64},
    "full": {"batch_sizes": [1, 8, 32], "latency_runs": 200, "throughput_seconds": 2.0, "max_texts": 256},
}
"""The values of `Measure` for keys that are null, by its mode."""


class Measure(Section):
    """Describes how speed and memory are measured, each model in its own process."""

    mode: Literal["quick", "full"] = "full"
    """quick (the default of `kdcli distill`): latency is timed in rounds over the same rows until the 95 % interval of its median is within
    3 %, throughput on fewer rows and batch sizes; a model whose work is the student's by its architecture (the control) gets the
    student's figures. full (of `kdcli eval` and `kdcli export`): fixed numbers of runs. A key with a value of its own takes precedence over the
    mode."""
    threads: Threads = 1
    """Threads of the process that is measured."""
    device: Literal["cpu", "cuda"] = "cpu"
    """The device of torch models; a target chooses that of its files (hardware=cuda: the GPU if there is one)."""
    batch_sizes: BatchSizes | None = None
    """Rows per batch; the reported throughput is the best of them. null: [1, 8, 32], with mode=quick [1, 32]."""
    sequence_length: Tokens | None = None
    """Tokens per row that is timed: longer rows are truncated, shorter ones repeated up to it. null: each row keeps its own length, as
    the raw texts of `request_rates` always do."""
    latency_runs: Runs | None = None
    """Rows whose latency is timed. null: 200, with mode=quick between 96 and 192."""
    throughput_seconds: Seconds | None = None
    """The approximate time in which throughput is measured. null: 2, with mode=quick 0.5."""
    request_rates: list[Rate] = []
    """Requests per second: raw texts arrive at random moments with these mean rates, and wait in a queue."""
    load_seconds: Seconds = 3.0
    """Seconds of load at each rate, or longer until 40 requests are answered."""
    max_texts: Rows | None = None
    """Rows on which speed is measured. null: 256, with mode=quick 64, of all lengths."""
    num_beams: Beams = 4
    """seq2seq: the beam width of a second evaluation of the test split; 1: greedy decoding alone."""
    new_tokens: Tokens = 32
    """causal_lm: tokens that are generated for each prompt."""
    generations: Rows = 32
    """causal_lm: prompts of the test split whose completions are generated and scored; the report shows ten of them."""

    @property
    def settings(self) -> dict[str, Any]:
        """The settings of a measurement, with the values of `mode` for the keys that are null, and `adaptive`: the number of latency runs
        depends on how stable their median is."""
        by_mode = {key: getattr(self, key) or value for key, value in MODES[self.mode].items()}
        adaptive = self.mode == "quick" and self.latency_runs is None
        return (
            self.model_dump(exclude={"mode", "generations", "num_beams"}) | by_mode | {"adaptive": adaptive}
        )


def require_length(measure: Measure | None, max_length: int) -> None:
    """Refuse a `sequence_length` that no row of the data set can have.

    Raises:
        ValueError: it is larger than `max_length`.
    """
    if measure is not None and (measure.sequence_length or 0) > max_length:
        raise ValueError(
            f"sequence_length = {measure.sequence_length}: a row has at most dataset.max_length = {max_length} tokens; measure with "
            "no more than that"
        )
