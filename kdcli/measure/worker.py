"""Loads one model in a process of its own, and measures it. It imports torch only for models in torch."""

from __future__ import annotations

import contextlib
import gc
import importlib
import json
import math
import statistics
import sys
import time
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

from kdcli.errors import ExportError, KDError
from kdcli.measure.runtime import (
    CausalLMRuntime,
    EncoderRuntime,
    Runtime,
    batches,
    install_hint,
    runtime_class,
)
from kdcli.measure.spec import (
    PASSES,
    PATIENCE,
    ROUNDS,
    RUNS,
    WARM_UP_TEXTS,
    Encoded,
    MeasureSpec,
    Texts,
    arrivals,
    percentiles,
)
from kdcli.memory import peak_memory, restart_peak


def main() -> None:
    """Load the model that the first line of stdin describes, and call the methods that the other lines name. Each line is answered by one
    line of JSON."""
    responses = sys.stdout
    with contextlib.redirect_stdout(sys.stderr):  # stdout carries only the responses
        first = json.loads(sys.stdin.readline())
        spec = MeasureSpec(**first["spec"])
        began = time.perf_counter()
        gc.disable()  # imports leave no garbage, and collecting takes a sixth of their time
        if spec.runtime.endswith(
            ".py"
        ):  # a user's own runtime may import what lies in the user's folder, after everything else
            sys.path.append(str(Path(spec.runtime).parents[1]))
        kind = runtime_class(spec.runtime, spec.auto)
        for package in kind.packages:
            try:
                importlib.import_module(package)
            except ImportError as error:
                raise ExportError(f"{error}: {install_hint(kind.packages, kind.extra)}") from None
        before = restart_peak()
        model = kind(spec)
        gc.freeze()
        gc.enable()
        worker = Worker(model, first["prompts"], spec, before)
        answer: Any = {
            "seconds": time.perf_counter() - began,
            "import_memory": before if model.import_memory is None else model.import_memory,
        }
        while True:
            print(json.dumps(answer), file=responses, flush=True)
            line = sys.stdin.readline()
            if not line:
                return
            call = json.loads(line)
            answer = getattr(worker, call.pop("method"))(**call)


class Worker:
    """The methods that `Process` calls in the process of the model."""

    def __init__(self, model: Any, prompts: Any, spec: MeasureSpec, import_memory: int | None):
        self.model, self.spec, self.import_memory = model, spec, import_memory
        self.prompts = prompts
        self.rows: list[Any] = []
        self.batches: dict[int, list[Encoded]] = {}
        self.generated = 0
        self.texts: Texts = ()

    def latency(self, indices: Sequence[int]) -> dict[str, Any]:
        """Run rows at batch 1.

        Returns:
            `ms`, the milliseconds of each row; `cpu`, CPU seconds in all; and `rates`: rows or generated tokens per second.
        """
        model: Runtime = self.model
        if not self.rows:
            self.rows = model.single_rows(self.prompts, self.spec.sequence_length)
            for index in indices[: model.warm_up]:
                model(self.rows[index])
        least, most = math.ceil(RUNS / ROUNDS), PATIENCE * self.spec.throughput_seconds / ROUNDS
        seconds: list[float] = []
        cpu, count = 0.0, 0
        for index in indices:
            row = self.rows[index]
            cpu_before, began = model.compute_seconds(), time.perf_counter()
            out = model(row)
            seconds.append(time.perf_counter() - began)
            cpu += model.compute_seconds() - cpu_before
            count += len(out)
            if sum(seconds) >= most and len(seconds) >= least:
                break
        return {"ms": [1000 * each for each in seconds], "cpu": cpu, "rates": [count / sum(seconds)]}

    def throughput(self, size: int) -> float:
        """Measure rows per second, in one pass over batches of this many rows of similar length."""
        model: EncoderRuntime = self.model
        if size not in self.batches:
            rows = model.timed_rows(self.prompts, self.spec.sequence_length)
            self.batches[size] = [
                model.batch([rows[index] for index in indices]) for indices in batches(rows, size)
            ]
            model(self.batches[size][-1])  # the largest batch, so that its allocations are not timed
        timed = self.batches[size]
        times: list[list[float]] = [[] for _ in timed]
        seconds = self.spec.throughput_seconds / len(self.spec.batch_sizes) / PASSES
        began = time.perf_counter()
        while not times[-1] or time.perf_counter() - began < seconds:
            for batch, of_batch in zip(timed, times, strict=True):
                of_batch.append(_seconds(model, batch))
        return len(self.prompts) / sum(map(statistics.median, times))

    def stream(self) -> dict[str, list[float]]:
        """Continue the prompts of `latency`, in one pass.

        Returns:
            `rates`: tokens per second after the first token, of the median generation; `gaps`: milliseconds between two tokens.
        """
        model: CausalLMRuntime = self.model
        rates: list[float] = []
        gaps: list[float] = []
        count, started = self.spec.new_tokens + 1, time.perf_counter()
        ended = started
        while not rates or ended - started < self.spec.throughput_seconds / PASSES:
            times: list[float] = []
            began = time.perf_counter()
            model.generate(
                self.rows[self.generated % len(self.rows)],
                count,
                lambda _, at=times: at.append(time.perf_counter()),  # type: ignore[misc]
            )
            ended = time.perf_counter()
            self.generated += 1
            rates.append((count - 1) / (ended - min(times, default=began)))
            gaps += [1000 * (later - sooner) for sooner, later in pairwise(times)]
        return {"rates": [statistics.median(rates)], "gaps": gaps}

    def serve(self, texts: Texts) -> list[float]:
        """Measure the milliseconds of each raw text, one after the other, for `MeasureSpec.load_seconds`. The texts are stored for `request`."""
        self.texts = texts
        self.model.start_serving(self.spec)
        for text in texts[:WARM_UP_TEXTS]:
            self.model.respond(text, self.spec)
        milliseconds: list[float] = []
        while sum(milliseconds) < 1000 * self.spec.load_seconds or len(milliseconds) < RUNS:
            began = time.perf_counter()
            self.model.respond(texts[len(milliseconds) % len(texts)], self.spec)
            milliseconds.append(1000 * (time.perf_counter() - began))
        return milliseconds

    def request(self, rate: float) -> dict[str, Any]:
        """Respond to raw texts that arrive at random times, at this many per second."""
        due = arrivals(rate, self.spec.load_seconds)
        waited: list[float] = []
        worked = 0.0
        began = done = time.perf_counter()
        for index, moment in enumerate(due.tolist()):
            if (early := began + moment - time.perf_counter()) > 0:
                time.sleep(early)
            start = time.perf_counter()
            self.model.respond(self.texts[index % len(self.texts)], self.spec)
            done = time.perf_counter()
            worked += done - start
            waited.append(1000 * (done - began - moment))
            if done - began > PATIENCE * self.spec.load_seconds and len(waited) >= RUNS:
                break
        return {
            "requests_per_s": rate,
            "latency_ms": percentiles(waited),
            "busy": worked / (done - began),
        }

    def memory(self) -> int | None:
        """Return peak memory of the process so far, less what it held before the model was loaded, or peak memory on a GPU, in bytes."""
        if (own := self.model.memory()) is not None:
            return int(own)
        peak = peak_memory()
        return None if peak is None or self.import_memory is None else max(0, peak - self.import_memory)

    def predict(self, rows: Any) -> None:
        """Write the file `MeasureSpec.predictions`."""
        from safetensors.numpy import save_file

        save_file(self.model.predict(rows, self.prompts, self.spec), str(self.spec.predictions))


def _seconds(model: EncoderRuntime, batch: Encoded) -> float:
    began = time.perf_counter()
    model(batch)
    return time.perf_counter() - began


if __name__ == "__main__":
    try:
        main()
    except KDError as error:
        sys.exit(str(error))
