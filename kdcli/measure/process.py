"""Measures a model in a process of its own."""

from __future__ import annotations

import contextlib
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np

from kdcli import processes
from kdcli.errors import ExportError
from kdcli.measure.runtime import runtime_class, runtime_name
from kdcli.measure.spec import (
    MOST_ROUNDS,
    PASSES,
    PATIENCE,
    ROUND_ROWS,
    ROUNDS,
    UNKNOWN,
    Measurement,
    MeasureSpec,
    Texts,
    arrivals,
    interval_of_mean,
    is_stable,
    percentiles,
    spaced,
)
from kdcli.model_files import require_folder

NEAR = 0.8
"""The share of the best throughput below which a batch size is not timed again after the first pass."""
TRIES = 8
"""The number of request rates that are tried, each a fifth below the last, if the computed rate exceeds the latency limit."""


class Process:
    """A process that loads one model and measures it. It is a context manager.

    Args:
        prompts: the inputs whose speed is measured: `Texts`, of a causal language model pairs of a text and its token ids, of an
            encoder-decoder the token ids of the sources.

    Raises:
        ExportError: by all methods: the runtime cannot load or run the model; with the last lines of its stderr.
        ModelError: on entering: the model would run code of its own, or its files cannot be read.
        ConfigError: the runtime does not run such a model.
    """

    def __init__(self, spec: MeasureSpec, prompts: Sequence[Any]):
        self.spec = spec
        self.runtime = runtime_class(spec.runtime, spec.auto)
        self.prompts = [prompts[index] for index in spaced(len(prompts), spec.max_texts)]
        self.batch_sizes = list(spec.batch_sizes)

    def __enter__(self) -> Process:
        path = Path(self.spec.path)
        for folder in {Path(self.spec.tokenizer), *([path] if path.is_dir() else [])}:
            require_folder(folder, folder.name)
        self.runtime.require_safe(path)
        threads = str(self.spec.threads)
        # without the user's own folder: no file in it may replace a module that is measured
        paths = [str(Path(__file__).parents[2]), *filter(None, [os.environ.get("PYTHONPATH")])]
        environment = os.environ | {
            "OMP_NUM_THREADS": threads,
            "OMP_WAIT_POLICY": "passive",
            "MKL_NUM_THREADS": threads,
            "OPENBLAS_NUM_THREADS": threads,
            "TOKENIZERS_PARALLELISM": "false",
            "HF_HUB_OFFLINE": "1",
            "PYTHONPATH": os.pathsep.join(paths),
        }
        self._errors = tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace")
        self._child = subprocess.Popen(
            # -P: no module of the working directory
            processes.bound([sys.executable, "-P", "-m", "kdcli.measure.worker"]),
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            encoding="utf-8",
        )
        return self

    def __exit__(self, *raised: Any) -> None:
        with contextlib.suppress(
            OSError, subprocess.TimeoutExpired
        ):  # the exception that was raised before is the one to report
            self._child.communicate(timeout=None if raised[0] is None else 0.1)
        self._child.kill()
        self._child.wait()
        self._errors.close()

    def measure(self, baseline: Process | None = None) -> Measurement:
        """Measure speed and memory.

        Args:
            baseline: another model, which is timed interleaved with this one, on the same rows.
        """
        return self._measure(baseline)[0]

    def measure_both(self, baseline: Process) -> tuple[Measurement, Measurement]:
        """Measure speed and memory of this model and of another one, interleaved, on the same rows."""
        own, rounds, passes = self._measure(baseline)
        return own, baseline._measurement(rounds, passes) if rounds else UNKNOWN

    def _measure(
        self, baseline: Process | None
    ) -> tuple[Measurement, list[dict[str, Any]], list[dict[str, Any]]]:
        """Return the measurement of this model, and the rounds and passes of the baseline."""
        self._load()
        if not self.prompts:
            return UNKNOWN, [], []
        rounds, baseline_rounds = self._rounds(baseline)
        passes, baseline_passes = rounds, baseline_rounds
        if self.runtime.batched or self.runtime.streams:  # else the rounds timed complete generations
            passes, baseline_passes = self._passes(baseline)
        best = _best(passes)
        faster = [
            statistics.median(other["ms"]) / statistics.median(each["ms"])
            for each, other in zip(rounds, baseline_rounds, strict=False)  # there are none without a baseline
        ]
        speedups = [
            each["rates"][best] / max(other["rates"])
            for each, other in zip(passes, baseline_passes, strict=False)
        ]
        own = replace(
            self._measurement(rounds, passes),
            times_faster=statistics.median(faster) if faster else None,
            speedup=statistics.median(speedups) if speedups else None,
        )
        return own, baseline_rounds, baseline_passes

    def _measurement(self, rounds: list[dict[str, Any]], passes: list[dict[str, Any]]) -> Measurement:
        """Return the measurement of this model, from its rounds and passes."""
        loaded = self._load()
        milliseconds = [ms for each in rounds for ms in each["ms"]]
        latency = percentiles(milliseconds)
        best = _best(passes)
        if self.runtime.batched:
            self.batch_sizes = [self.batch_sizes[best]]
        gaps = [gap for each in passes for gap in each.get("gaps", ())]
        return Measurement(
            latency_ms=latency,
            latency_runs=len(milliseconds),
            latency_p50_ci95_ms=interval_of_mean(_medians(rounds)),
            throughput_per_s=float(np.median([each["rates"][best] for each in passes])),
            batch_size=self.batch_sizes[0] if self.runtime.batched else None,
            first_token_ms={name: latency[name] for name in ("p50", "p95")} if self.runtime.streams else None,
            between_tokens_ms=percentiles(gaps) if gaps else None,
            cpu_share=sum(each["cpu"] for each in rounds) / sum(milliseconds) * 1000,
            peak_memory_bytes=self.call("memory"),
            import_memory_bytes=loaded["import_memory"],
            load_seconds=loaded["seconds"],
        )

    def _rounds(self, baseline: Process | None) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
        """Return the results of `round` of this model, and of the baseline. Rows are shuffled, so that those of all rounds are alike."""
        random, spec = np.random.default_rng(0), self.spec
        own: list[dict[str, Any]] = []
        of_baseline: list[dict[str, Any]] = []
        parts: list[np.ndarray]
        if spec.adaptive:
            parts = [random.permutation(spaced(len(self.prompts), ROUND_ROWS))] * MOST_ROUNDS
        else:
            runs = np.resize(random.permutation(len(self.prompts)), spec.latency_runs)
            parts = np.array_split(runs, min(ROUNDS, len(runs)))
        for part in parts:
            if baseline:
                of_baseline.append(baseline.round(part.tolist()))
            own.append(self.round(part.tolist()))
            if spec.adaptive and all(is_stable(_medians(each)) for each in (own, of_baseline) if each):
                break
        return own, of_baseline

    def _passes(self, baseline: Process | None) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
        """Return the results of `throughput` of this model, and of the baseline."""
        own: list[dict[str, Any]] = []
        of_baseline: list[dict[str, Any]] = []
        began = time.perf_counter()
        while len(own) < PASSES and time.perf_counter() - began < PATIENCE * self.spec.throughput_seconds:
            if baseline:
                of_baseline.append(baseline.throughput())
            own.append(self.throughput())
            if len(own) == 1:
                self._leave_out_slow_batches(own[0])
                if baseline:
                    baseline._leave_out_slow_batches(of_baseline[0])
        return own, of_baseline

    def _leave_out_slow_batches(self, first: dict[str, Any]) -> None:
        """Drop the batch sizes that are far from the best from all passes."""
        if self.runtime.batched:
            rates = first["rates"]
            near = [index for index, rate in enumerate(rates) if rate >= NEAR * max(rates)]
            first["rates"] = [rates[index] for index in near]
            self.batch_sizes = [self.batch_sizes[index] for index in near]

    def round(self, indices: Sequence[int]) -> dict[str, Any]:
        """Time rows at batch 1, as `Worker.latency` does."""
        self._load()
        return self.call("latency", indices=indices)

    def throughput(self) -> dict[str, Any]:
        """`rates`: rows per second at each of `batch_sizes` (after the first pass, at those near the best; once measured, at the best), or
        tokens per second with `gaps`, as `Worker.stream` does."""
        self._load()
        if self.runtime.streams:
            return self.call("stream")
        return {"rates": [self.call("throughput", size=size) for size in self.batch_sizes]}

    def load(self, texts: Texts, limit: float | None = None) -> dict[str, Any]:
        """Send raw texts to the model at random times, independently of its responses, as many users do.

        Args:
            texts: the texts; those that are sent are evenly spaced among them, and sent again and again.
            limit: milliseconds within which 95 % of the responses must come.

        Returns:
            `rates`: for each of `MeasureSpec.request_rates` `requests_per_s`, `latency_ms` (p50, p95 and p99 from the
            arrival of a text, waiting included), and `busy`, the share of the time that the model works: about 1
            if it cannot keep up. `limit_ms`, and `most_requests_per_s`: the highest rate at which the limit is
            kept for `MeasureSpec.load_seconds`; None: no limit is given, or no rate keeps it. Candidates are computed from the
            time that each text takes, and then tried.
        """
        self._load()
        chosen = [texts[index] for index in spaced(len(texts), self.spec.max_texts)]
        served = self.call("serve", texts=chosen)
        rates = [self.call("request", rate=rate) for rate in self.spec.request_rates]
        most = None
        if limit is not None:
            highest = _highest_rate(np.asarray(served), limit, self.spec.load_seconds)
            candidates = [highest * 0.8**power for power in range(TRIES)] if highest else []
            sustained = (r for r in candidates if self.call("request", rate=r)["latency_ms"]["p95"] <= limit)
            most = next(sustained, None)
        return {"rates": rates, "limit_ms": limit, "most_requests_per_s": most}

    def predict(self, rows: Any) -> None:
        """Write the file `MeasureSpec.predictions`.

        Args:
            rows: as `prompts`; for a causal language model and a token classifier pairs of token ids and the positions of those that count.
        """
        self._load()
        self.call("predict", rows=rows)

    def call(self, method: str, **arguments: Any) -> Any:
        """Call a method of `Worker` in the process."""
        return self._send({"method": method} | arguments)

    def _load(self) -> dict[str, Any]:
        """Return the time and memory that loading takes; the model is loaded by the first call."""
        if "_loaded" not in vars(self):
            self._loaded: dict[str, Any] = self._send({"spec": asdict(self.spec), "prompts": self.prompts})
        return self._loaded

    def _send(self, line: dict[str, Any]) -> Any:
        assert self._child.stdin
        assert self._child.stdout
        answer = ""
        with contextlib.suppress(BrokenPipeError):
            self._child.stdin.write(json.dumps(line) + "\n")
            self._child.stdin.flush()
            answer = self._child.stdout.readline()
        if answer:
            return json.loads(answer)
        code = self._child.wait()
        self._errors.seek(0)
        last = "\n  ".join(self._errors.read().strip().splitlines()[-5:]) or "it wrote nothing to stderr"
        name = runtime_name(self.spec.runtime)
        raise ExportError(
            f"{self.spec.path} could not be run by {name} in its own process (exit code {code}):\n  {last}\nExport it again, or leave it out (hardware.precisions)"
        )


def _highest_rate(served: np.ndarray, limit: float, seconds: float) -> float | None:
    """Return the highest rate, in requests per second, at which 95 % of the requests are served within a limit; None: there is none.

    Args:
        served: milliseconds that each request takes by itself.
        limit: milliseconds.
    """

    def sustains(rate: float) -> bool:
        due = 1000 * arrivals(rate, seconds)
        free, waited = 0.0, []
        for moment, spent in zip(due, np.resize(served, len(due)), strict=True):
            free = max(free, moment) + spent
            waited.append(free - moment)
        return bool(np.percentile(waited, 95) <= limit)

    least, most = 1 / limit, 1000 / float(served.mean())
    if not sustains(least):
        return None
    for _ in range(20):
        middle = (least + most) / 2
        least, most = (middle, most) if sustains(middle) else (least, middle)
    return least


def _best(passes: list[dict[str, Any]]) -> int:
    """Return the index of the highest median rate."""
    return int(np.median([each["rates"] for each in passes], 0).argmax())


def _medians(rounds: list[dict[str, Any]]) -> list[float]:
    """Return the median latency of each round, in milliseconds."""
    return [statistics.median(each["ms"]) for each in rounds]
