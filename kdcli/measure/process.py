"""Starts a process for each model and measures its speed and memory."""

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
from typing import TYPE_CHECKING, Any

import numpy as np

from kdcli import processes
from kdcli.errors import ExportError
from kdcli.measure.spec import (
    PASSES,
    PATIENCE,
    ROUNDS,
    UNKNOWN,
    Measurement,
    MeasureSpec,
    Runtime,
    arrivals,
    model_kind,
    percentiles,
    runtime_class,
    specified,
)
from kdcli.model_files import require_folder

if TYPE_CHECKING:
    from kdcli.config.schema import Measure
    from kdcli.measure.spec import Texts
    from kdcli.models.checkpoint import Checkpoint
    from kdcli.tasks.base import Task
NEAR = 0.8
"""Of the best throughput: a batch size that has less in the first turn has no other."""
TRIES = 8
"""Rates that are tried, each a fifth below the last, where the one found on paper does not keep the limit."""
BUSY = 0.9
"""The least share of the time that a process computes which has the processor to itself."""


class Process:
    """A model in a process of its own, loaded, which does what it is told; a context manager.

    Args:
        prompts: what it is given of each row, for its speed: `Texts`, of a language model's file pairs of a text and its token ids, of a
            translator the source's token ids.

    Raises:
        ExportError: from all methods: the runtime could not load or run the model; with the last lines of what it said.
        ModelError: when it is entered: the model would run code of its own, or its files cannot be read.
    """

    def __init__(self, spec: MeasureSpec, prompts: Sequence[Any]):
        self.spec = spec
        self.prompts = [prompts[at] for at in _spaced(len(prompts), spec.max_texts)]
        self.batch_sizes = list(spec.batch_sizes)

    def __enter__(self) -> Process:
        path = Path(self.spec.path)
        for folder in {Path(self.spec.tokenizer), *([path] if path.is_dir() else [])}:
            require_folder(folder, folder.name)
        runtime_class(self.spec).require_safe(path)
        threads = str(self.spec.threads)
        # the user's own folder is not among these: nothing that lies there may take the place of a module that is measured
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
        with contextlib.suppress(OSError, subprocess.TimeoutExpired):  # what was raised is what is told
            self._child.communicate(timeout=None if raised[0] is None else 0.1)
        self._child.kill()
        self._child.wait()
        self._errors.close()

    def measure(self, beside: Process | None = None) -> Measurement:
        """Time the model.

        Args:
            beside: a model that takes turns with it, on the same rows.
        """
        spec, loaded = self.spec, self._loaded()
        if not self.prompts:
            return UNKNOWN
        # in no order, so that each turn's rows are like the others'
        places = np.random.default_rng(0).permutation(len(self.prompts))
        runs = np.resize(places, spec.latency_runs)
        ours: list[dict[str, Any]] = []
        theirs: list[dict[str, Any]] = []
        for turn in np.array_split(runs, min(ROUNDS, len(runs))):
            if beside:
                theirs.append(beside.turn(turn.tolist()))
            ours.append(self.turn(turn.tolist()))
        spent = [ms for turn in ours for ms in turn["ms"]]
        latency = percentiles(spent)
        faster = [
            statistics.median(other["ms"]) / statistics.median(own["ms"])
            for own, other in zip(ours, theirs, strict=False)  # there are none, where nobody takes turns
        ]
        computed = sum(turn["cpu"] for turn in ours) / sum(spent) * 1000
        kind = model_kind(spec.auto)
        if kind != "Translator":  # whose whole texts the turns above timed
            ours, theirs = self._paces(beside)
        rates = np.median([turn["rates"] for turn in ours], 0)
        best = int(rates.argmax())
        speedups = [
            own["rates"][best] / max(other["rates"]) for own, other in zip(ours, theirs, strict=False)
        ]
        if kind == "Model":
            self.batch_sizes = [self.batch_sizes[best]]
        gaps = [gap for turn in ours for gap in turn.get("gaps", ())]
        peak = self.tell("memory")
        return Measurement(
            latency,
            float(rates[best]),
            self.batch_sizes[0] if kind == "Model" else None,
            {name: latency[name] for name in ("p50", "p95")} if kind == "Writer" else None,
            percentiles(gaps) if gaps else None,
            statistics.median(faster) if faster else None,
            statistics.median(speedups) if speedups else None,
            computed,
            peak,
            loaded["held"],
            loaded["seconds"],
        )

    def _paces(self, beside: Process | None) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
        """What `pace` tells of each turn, and what it tells of the model that takes turns with it."""
        ours: list[dict[str, Any]] = []
        theirs: list[dict[str, Any]] = []
        began = time.perf_counter()
        while len(ours) < PASSES and time.perf_counter() - began < PATIENCE * self.spec.throughput_seconds:
            if beside:
                theirs.append(beside.pace())
            ours.append(self.pace())
            if len(ours) == 1 and model_kind(self.spec.auto) == "Model":
                rates = ours[0]["rates"]
                near = [number for number, rate in enumerate(rates) if rate >= NEAR * max(rates)]
                ours[0]["rates"] = [rates[number] for number in near]
                self.batch_sizes = [self.batch_sizes[number] for number in near]
        return ours, theirs

    def turn(self, places: Sequence[int]) -> dict[str, Any]:
        """Time rows at batch 1, as `_Worker.latency` does."""
        self._loaded()
        return self.tell("latency", places=places)

    def pace(self) -> dict[str, Any]:
        """`rates`: rows or tokens a second, at each of `batch_sizes` (after a turn, at those that are near the best; once it is measured, at the best); `gaps` as `_Worker.stream`."""
        self._loaded()
        if model_kind(self.spec.auto) == "Writer":
            return self.tell("stream")
        return {"rates": [self.tell("throughput", size=size) for size in self.batch_sizes]}

    def load(self, texts: Texts, limit: float | None = None) -> dict[str, Any]:
        """Send raw texts to the model at random moments, as many users do, whether it has answered the last one or not.

        Args:
            texts: of which those are sent that speed is measured on, again and again.
            limit: milliseconds within which 95 % of the answers shall come.

        Returns:
            `rates`: of each of `MeasureSpec.request_rates`, in turn, `requests_per_s`, `latency_ms` (p50, p95 and p99 from the
            moment that a text arrives, waiting included), and `busy`, the share of the time that the model worked: about 1
            where it cannot keep up. `limit_ms`, and `most_requests_per_s`: the highest rate found at which the limit was
            kept for as long as at the others; None: no limit, or none found. It is sought among all rates on paper, with
            the time that each text took, and tried.
        """
        self._loaded()
        chosen = [texts[at] for at in _spaced(len(texts), self.spec.max_texts)]
        served = self.tell("serve", texts=chosen)
        rates = [self.tell("request", rate=rate) for rate in self.spec.request_rates]
        most = None
        if limit is not None:
            rate = _most(np.asarray(served), limit, self.spec.load_seconds)
            rates_below = [rate * 0.8**number for number in range(TRIES)] if rate else []
            kept = (r for r in rates_below if self.tell("request", rate=r)["latency_ms"]["p95"] <= limit)
            most = next(kept, None)
        return {"rates": rates, "limit_ms": limit, "most_requests_per_s": most}

    def answer(self, rows: Any) -> None:
        """Write `MeasureSpec.answers`.

        Args:
            rows: as prompts; where tokens are asked about (a language model's file, a token classifier) pairs of token ids and the places
                of those that count.
        """
        self._loaded()
        self.tell("answer", rows=rows)

    def tell(self, what: str, **how: Any) -> Any:
        """Have a `_Worker`'s method called."""
        return self._ask({"do": what} | how)

    def _loaded(self) -> dict[str, Any]:
        if not hasattr(self, "_load"):
            self._load: dict[str, Any] = self._ask({"spec": asdict(self.spec), "prompts": self.prompts})
        return self._load

    def _ask(self, line: dict[str, Any]) -> Any:
        assert self._child.stdin
        assert self._child.stdout
        said = ""
        with contextlib.suppress(BrokenPipeError):
            self._child.stdin.write(json.dumps(line) + "\n")
            self._child.stdin.flush()
            said = self._child.stdout.readline()
        if said:
            return json.loads(said)
        code = self._child.wait()
        self._errors.seek(0)
        last = "\n  ".join(self._errors.read().strip().splitlines()[-5:]) or "it said nothing"
        raise ExportError(
            f"{self.spec.path} could not be run by {self.spec.runtime} in its own process (exit code {code}):\n  {last}"
        )


def measure(
    spec: MeasureSpec,
    prompts: Sequence[Any],
    rows: Any = None,
    beside: Process | None = None,
    requests: Texts = (),
    limit: float | None = None,
) -> Measurement:
    """Run one model in its own process: what it needs if `spec.speed`, and its answers into `spec.answers`.

    Args:
        prompts: as `Process` takes them.
        rows: as `Process.answer` takes them; None: the prompts.
        beside: a model that takes turns with it.
        requests, limit: as `Process.load` takes them, which is asked if `spec.request_rates` are given.

    Raises:
        ExportError: the runtime could not load or run the model; with the last lines of what it said.
    """
    with Process(spec, prompts) as process:
        found = process.measure(beside) if spec.speed else UNKNOWN
        if spec.speed and spec.request_rates and requests:
            found = replace(found, load=process.load(requests, limit))
        if spec.answers:
            process.answer(prompts if rows is None else rows)
    return found


def measure_rows(
    cfg: Measure | None,
    runtime: Runtime,
    path: Path,
    tokenizer: Path,
    task: Task,
    prompts: Sequence[Any],
    max_length: int,
    rows: Any = None,
    beside: Process | None = None,
    requests: Texts = (),
    limit: float | None = None,
    code: bool = False,
) -> dict[str, Any]:
    """What an artifact needs on a split's rows, and what it says of them: the fields of `Measurement`, and those of `MeasureSpec.answers`.

    Args:
        cfg: how thoroughly; None: nothing is timed.
        prompts, rows: as `measure` takes them; of a translator `Texts`, which are cut into tokens here, where its tokenizer
            is told its languages.
        beside, requests, limit: as `measure` takes them.
        code: Python files beside it may be run.

    Raises:
        ExportError: the runtime could not load or run the model.
    """
    from safetensors.numpy import load_file

    from kdcli.files import writing  # not in the process that measures, which imports as little as it can

    spec, prompts = specified(cfg, runtime, path, tokenizer, task, prompts, max_length, code)
    with tempfile.TemporaryDirectory() as folder, writing(Path(folder)):
        file = Path(folder) / "answers.safetensors"
        spec = replace(spec, dtype="auto", answers=str(file))
        found = asdict(measure(spec, prompts, rows, beside, requests, limit)) | load_file(file)
    warn_if_busy(path.name, found["cpu_share"])
    return found


def measured(
    cfg: Measure | None,
    source: Checkpoint,
    task: Task,
    prompts: Sequence[Any],
    max_length: int,
    beside: Process | None = None,
    stays: contextlib.ExitStack | None = None,
) -> tuple[Process | None, dict[str, Any]]:
    """What a checkpoint needs in torch: the fields of `Measurement`; and before them its process, if that stays.

    Args:
        cfg, prompts, beside: as `measure_rows` takes them.
        stays: it stays loaded as long as this does, for others to be measured beside it; None: until it is measured.

    Raises:
        ExportError: torch could not load or run it.
    """
    if cfg is None:
        return None, asdict(UNKNOWN)
    path = source.path
    with contextlib.ExitStack() as own:
        process = Process(*specified(cfg, "torch", path, path, task, prompts, max_length, source.code))
        (own if stays is None else stays).enter_context(process)
        found = asdict(process.measure(beside))
    warn_if_busy(source.name, found["cpu_share"])
    return None if stays is None else process, found


def warn_if_busy(name: str, share: float | None) -> None:
    """Tell that something else had the processor while a model was timed.

    Args:
        share: `Measurement.cpu_share`.
    """
    if share is not None and share < BUSY:
        from kdcli import console

        console.warn(
            f"{name} had the processor for {share:.0%} of the time that its latency was timed: something else ran, and "
            "it may be faster than measured"
        )


def _most(served: np.ndarray, limit: float, seconds: float) -> float | None:
    """The highest rate, requests a second, at which 95 % wait and are served within a limit; None: there is none.

    Args:
        served: milliseconds that each request takes by itself.
        limit: milliseconds.
    """

    def kept(rate: float) -> bool:
        due = 1000 * arrivals(rate, seconds)
        free, waited = 0.0, []
        for moment, spent in zip(due, np.resize(served, len(due)), strict=True):
            free = max(free, moment) + spent
            waited.append(free - moment)
        return bool(np.percentile(waited, 95) <= limit)

    least, most = 1 / limit, 1000 / float(served.mean())
    if not kept(least):
        return None
    for _ in range(20):
        middle = (least + most) / 2
        least, most = (middle, most) if kept(middle) else (least, middle)
    return least


def _spaced(count: int, most: int) -> list[int]:
    """At most so many of `count` numbers, evenly spaced."""
    return [int(at) for at in np.linspace(0, count - 1, min(most, count))]
