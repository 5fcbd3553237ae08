"""The process that runs one model and measures it. Imports torch only for models in torch."""

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
from typing import TYPE_CHECKING, Any

import numpy as np

from kdcli.errors import ExportError, KDError
from kdcli.measure.spec import (
    PASSES,
    PATIENCE,
    ROUNDS,
    RUNS,
    WARM_UP,
    WARM_UP_TEXTS,
    MeasureSpec,
    arrivals,
    is_translator,
    model_kind,
    percentiles,
    runtime_class,
)

if TYPE_CHECKING:
    from kdcli.measure.runtime import Answers
    from kdcli.measure.spec import Encoded, Texts


def main() -> None:
    """Load the model that the first line tells of, and do what the others say; each is answered by one."""
    said = sys.stdout
    with contextlib.redirect_stdout(sys.stderr):  # stdout is for the answers alone
        first = json.loads(sys.stdin.readline())
        spec = MeasureSpec(**first["spec"])
        began = time.perf_counter()
        gc.disable()  # nothing that is imported is garbage: to look for some takes a sixth of the time
        kind = runtime_class(spec)
        for package in kind.packages:
            try:
                importlib.import_module(package)
            except ImportError as error:
                raise ExportError(f"{error}: install it with: pip install 'kdcli[{kind.extra}]'") from None
        held = _memory()
        model = kind(spec)
        gc.freeze()
        gc.enable()
        worker = _Worker(model, first["prompts"], spec, held)
        answer: Any = {
            "seconds": time.perf_counter() - began,
            "held": held if model.held is None else model.held,
        }
        while True:
            print(json.dumps(answer), file=said, flush=True)
            line = sys.stdin.readline()
            if not line:
                return
            told = json.loads(line)
            answer = getattr(worker, told.pop("do"))(**told)


class _Worker:
    """What the process does with its model."""

    def __init__(self, model: Any, prompts: Any, spec: MeasureSpec, held: int | None):
        self.model, self.spec, self.held = model, spec, held
        self.translates = is_translator(spec.auto)
        self.prompts = prompts
        self.rows: list[Any] = []
        self.batches: dict[int, list[Encoded]] = {}
        self.written = 0
        self.texts: Texts = ()

    def latency(self, places: Sequence[int]) -> dict[str, Any]:
        """Of rows at batch 1 milliseconds (`ms`), the seconds of computing in all (`cpu`), and `rates`: the tokens written a second."""
        if not self.rows:
            if self.translates:
                self.rows = [np.asarray(self._sized(ids)).tolist() for ids in self.prompts]
            else:
                self.rows = [_batch(self.model, [row]) for row in self._encoded()]
            for place in places[: WARM_UP_TEXTS if self.translates else WARM_UP]:
                self.model(self.rows[place])
        least, most = math.ceil(RUNS / ROUNDS), PATIENCE * self.spec.throughput_seconds / ROUNDS
        seconds: list[float] = []
        cpu, tokens = 0.0, 0
        for place in places:
            row = self.rows[place]
            computed, began = self.model.computed(), time.perf_counter()
            found = self.model(row)
            seconds.append(time.perf_counter() - began)
            cpu += self.model.computed() - computed
            tokens += len(found)
            if sum(seconds) >= most and len(seconds) >= least:
                break
        return {"ms": [1000 * each for each in seconds], "cpu": cpu, "rates": [tokens / sum(seconds)]}

    def throughput(self, size: int) -> float:
        """Rows a second in batches of so many rows of like length, in one turn."""
        if size not in self.batches:
            rows = self._encoded()
            self.batches[size] = [
                _batch(self.model, [rows[row] for row in numbers]) for numbers in _batches(rows, size)
            ]
            self.model(self.batches[size][-1])  # the largest: what it allocates is not timed
        batches = self.batches[size]
        times: list[list[float]] = [[] for _ in batches]
        seconds = self.spec.throughput_seconds / len(self.spec.batch_sizes) / PASSES
        began = time.perf_counter()
        while not times[-1] or time.perf_counter() - began < seconds:
            for batch, found in zip(batches, times, strict=True):
                found.append(_seconds(self.model, batch))
        return len(self.prompts) / sum(map(statistics.median, times))

    def _encoded(self) -> list[Encoded]:
        """The inputs of each prompt that is timed."""
        rows = self.model.encode(self.prompts)
        return [{name: self._sized(array) for name, array in row.items()} for row in rows]

    def _sized(self, row: Any) -> Any:
        """What is given of each token of a row, (L,), for `MeasureSpec.sequence_length` tokens."""
        size = self.spec.sequence_length
        return row if size is None else np.resize(row, size)

    def stream(self) -> dict[str, list[float]]:
        """Answers to the rows of `latency`, in one turn: `rates`, the tokens a second that the median one goes on with, and `gaps`,
        the milliseconds between what they tell."""
        rates: list[float] = []
        gaps: list[float] = []
        count, started = self.spec.new_tokens + 1, time.perf_counter()
        ended = started
        while not rates or ended - started < self.spec.throughput_seconds / PASSES:
            times: list[float] = []
            began = time.perf_counter()
            self.model.write(
                self.rows[self.written % len(self.rows)],
                count,
                lambda _, at=times: at.append(time.perf_counter()),
            )
            ended = time.perf_counter()
            self.written += 1
            rates.append((count - 1) / (ended - min(times, default=began)))
            gaps += [1000 * (later - sooner) for sooner, later in pairwise(times)]
        return {"rates": [statistics.median(rates)], "gaps": gaps}

    def serve(self, texts: Texts) -> list[float]:
        """Milliseconds of each raw text, one after the other, for `MeasureSpec.load_seconds`; keeps them for `request`."""
        self.texts = texts
        self._read = self._reader()
        for text in texts[:WARM_UP_TEXTS]:
            self._respond(text)
        milliseconds: list[float] = []
        while sum(milliseconds) < 1000 * self.spec.load_seconds or len(milliseconds) < RUNS:
            began = time.perf_counter()
            self._respond(texts[len(milliseconds) % len(texts)])
            milliseconds.append(1000 * (time.perf_counter() - began))
        return milliseconds

    def request(self, rate: float) -> dict[str, Any]:
        """Answer raw texts that arrive at random moments, so many a second."""
        due = arrivals(rate, self.spec.load_seconds)
        waited: list[float] = []
        worked = 0.0
        began = done = time.perf_counter()
        for number, moment in enumerate(due.tolist()):
            if (early := began + moment - time.perf_counter()) > 0:
                time.sleep(early)
            start = time.perf_counter()
            self._respond(self.texts[number % len(self.texts)])
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

    def _respond(self, text: Sequence[str]) -> None:
        """All that an application does between a text and its answer."""
        found = self._read(text)
        if self.translates:
            self.tokenizer.decode(self.model(found), skip_special_tokens=True)
        elif model_kind(self.spec.auto) == "Writer":
            self.model.write(_batch(self.model, [found]), self.spec.new_tokens, _unheard)
        else:
            self.model(_batch(self.model, [found]))

    def _reader(self) -> Any:
        """What makes a model's inputs of a raw text: of a translator, transformers' tokenizer."""
        if not self.translates:
            return self.model.read
        from transformers import AutoTokenizer

        self.tokenizer = AutoTokenizer.from_pretrained(
            self.spec.tokenizer, local_files_only=True, trust_remote_code=self.spec.code
        )
        return lambda text: self.tokenizer(*text, truncation=True, max_length=self.spec.max_length)[
            "input_ids"
        ]

    def memory(self) -> int | None:
        """The most that the process held so far less what it held before the model, or that the model held on a GPU, in bytes."""
        if (own := self.model.memory()) is not None:
            return int(own)
        peak = _peak_memory()
        return None if peak is None or self.held is None else max(0, peak - self.held)

    def answer(self, rows: Any) -> None:
        """Write what `MeasureSpec.answers` holds."""
        from safetensors.numpy import save_file

        model, spec = self.model, self.spec
        if self.translates:
            texts = [model(ids) for ids in rows]
            flat = [token for text in texts for token in text]
            found = {
                "written": np.asarray(flat, np.int64),
                "lengths": np.asarray(list(map(len, texts)), np.int64),
            }
        elif model_kind(spec.auto) == "Writer":
            found = model.score(rows) | {"same_tokens": model.same_tokens(self.prompts)}
        elif "TokenClassification" in spec.auto:
            found = {"logits": model.at(rows)}
        else:
            encoded = model.encode(rows)
            found = {
                "logits": _logits(model, encoded, spec),
                "input_ids": np.concatenate([np.zeros(0, np.int64), *(row["input_ids"] for row in encoded)]),
                "lengths": np.asarray([len(row["input_ids"]) for row in encoded], np.int64),
            }
        save_file(found, str(spec.answers))


def _unheard(token: int) -> None:
    """What a token is told to where nobody listens."""


def _batch(model: Answers, rows: Sequence[Encoded]) -> Encoded:
    """Rows padded on the right to the longest."""
    shape = len(rows), max(len(row["input_ids"]) for row in rows)
    batch = {name: np.full(shape, fill, np.int64) for name, fill in model.pad.items()}
    for name, array in batch.items():
        for line, row in zip(array, rows, strict=True):
            line[: len(row[name])] = row[name]
    return batch


def _batches(rows: Sequence[Encoded], size: int) -> list[np.ndarray]:
    """Numbers of rows of like length, so many at a time, short ones first."""
    order = np.argsort([len(row["input_ids"]) for row in rows], kind="stable")
    return [order[start : start + size] for start in range(0, len(order), size)]


def _logits(model: Answers, rows: Sequence[Encoded], spec: MeasureSpec) -> np.ndarray:
    """Logits of all rows, float32 (N, C).

    Files are asked row by row, which takes no longer on a CPU: dynamic int8 takes the range of its activations
    from the whole batch, so that a row's answer in a batch would depend on its neighbours and its padding.
    """
    out: np.ndarray | None = None
    for numbers in _batches(rows, max(spec.batch_sizes) if spec.runtime == "torch" else 1):
        logits = model(_batch(model, [rows[row] for row in numbers]))
        if out is None:
            out = np.empty((len(rows), logits.shape[1]), np.float32)
        out[numbers] = logits
    return np.empty((0, 0), np.float32) if out is None else out


def _seconds(model: Answers, batch: Encoded) -> float:
    began = time.perf_counter()
    model(batch)
    return time.perf_counter() - began


def _memory() -> int | None:
    """What this process holds, in bytes, from where its peak counts anew if the system lets it; None where it does not tell."""
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")
    return _status("VmRSS") or _peak_memory()


def _status(field: str) -> int | None:
    with contextlib.suppress(OSError):
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith(f"{field}:"):
                return int(line.split()[1]) * 1024
    return None


def _peak_memory() -> int | None:
    """The most memory that this process held, in bytes; None where the system does not tell.

    VmHWM and not getrusage where Linux offers it: after fork and exec the latter begins at the parent's peak.
    """
    if (found := _status("VmHWM")) is not None:
        return found
    try:
        import resource
    except ImportError:  # Windows
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


if __name__ == "__main__":
    try:
        main()
    except KDError as error:
        sys.exit(str(error))
