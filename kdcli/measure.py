"""Speed and memory of one model, in a process of its own and by its own runtime.

`Process` is `python -m kdcli.measure`: it loads and runs the model with nothing else (an ONNX or GGUF file without torch and
transformers), and does what it is told line by line, so that two models can take turns and what else runs slows both.
This module imports accordingly little; what runs a model stands in `kdcli.runtimes`.

What is timed is the model alone. Tokenization is left out: it is the same for all models that are compared, takes a
fraction of the time, and is done by other code on most devices. Only requests (`Process.load`) begin with raw text.
"""

from __future__ import annotations

import contextlib
import gc
import importlib
import json
import math
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from kdcli import processes
from kdcli.checkpoint import require_folder
from kdcli.errors import ConfigError, ExportError, KDError
from kdcli.runtimes.base import MeasureSpec, Runtime

if TYPE_CHECKING:
    from transformers import PreTrainedConfig

    from kdcli.config import Measure
    from kdcli.models import Source
    from kdcli.runtimes.base import Answers, Encoded, Texts
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
NEAR = 0.8
"""Of the best throughput: a batch size that has less in the first turn has no other."""
TRIES = 8
"""Rates that are tried, each a fifth below the last, where the one found on paper does not keep the limit."""
BUSY = 0.9
"""The least share of the time that a process computes which has the processor to itself."""


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
        _class(self.spec).require_safe(path)
        threads = str(self.spec.threads)
        # the user's own folder is not among these: nothing that lies there may take the place of a module that is measured
        paths = [str(Path(__file__).parents[1]), *filter(None, [os.environ.get("PYTHONPATH")])]
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
            processes.bound([sys.executable, "-P", "-m", "kdcli.measure"]),
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
        latency = _percentiles(spent)
        faster = [
            statistics.median(other["ms"]) / statistics.median(own["ms"])
            for own, other in zip(ours, theirs, strict=False)  # there are none, where nobody takes turns
        ]
        computed = sum(turn["cpu"] for turn in ours) / sum(spent) * 1000
        kind = _kind(spec.auto)
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
            _percentiles(gaps) if gaps else None,
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
            if len(ours) == 1 and _kind(self.spec.auto) == "Model":
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
        if _kind(self.spec.auto) == "Writer":
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
    source: Source,
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
    if cfg is not None and _kind(task.auto) == "Writer":
        from kdcli.models import Source, load_config

        config = load_config(Source(tokenizer, tokenizer.name, code=code))
        max_length = min(max_length, require_room(cfg, config) or max_length)
    if _translates(task.auto):
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


def require_room(cfg: Measure, config: PreTrainedConfig) -> int | None:
    """Tokens of a prompt that leave a language model positions for those that it writes; None: as many as you like.

    Raises:
        ConfigError: none, or not for prompts as long as those that are to be timed.
    """
    from kdcli.rollouts import room_for_prompts

    room = room_for_prompts(config, cfg.new_tokens, "measure.new_tokens")
    if room is not None and (cfg.sequence_length or 0) > room:
        raise ConfigError(
            f"measure.sequence_length = {cfg.sequence_length}: {config.model_type} has positions for {room + cfg.new_tokens} tokens, and "
            f"measure.new_tokens = {cfg.new_tokens} are written after them; give at most {room}"
        )
    return room


def _translates(auto: str) -> bool:
    return "Seq2Seq" in auto


def _percentiles(values: Sequence[float]) -> dict[str, float]:
    return {f"p{share}": float(np.percentile(values, share)) for share in (50, 95, 99)}


def _kind(auto: str) -> str:
    """What a runtime's module calls the model that a class of transformers loads."""
    return "Translator" if _translates(auto) else "Writer" if "CausalLM" in auto else "Model"


def _class(spec: MeasureSpec) -> Any:
    """The subclass of `Runs` that runs a model; its module imports little until it is made."""
    return getattr(importlib.import_module(f"kdcli.runtimes.{spec.runtime}"), _kind(spec.auto))


def _source_ids(task: Any, folder: Path, texts: Texts, code: bool) -> tuple[list[list[int]], list[int]]:
    """The token ids of each text, and those that each translation begins with."""
    from kdcli.models import Source, load_tokenizer

    tokenizer = load_tokenizer(Source(folder, folder.name, code=code))
    given = task.given(tokenizer)  # first: it tells the tokenizer its languages
    return tokenizer([text for (text,) in texts], verbose=False)["input_ids"] if texts else [], given


# ---- in the process of the model ---------------------------------------------------------------------


def main() -> None:
    """Load the model that the first line tells of, and do what the others say; each is answered by one."""
    said = sys.stdout
    with contextlib.redirect_stdout(sys.stderr):  # stdout is for the answers alone
        first = json.loads(sys.stdin.readline())
        spec = MeasureSpec(**first["spec"])
        began = time.perf_counter()
        gc.disable()  # nothing that is imported is garbage: to look for some takes a sixth of the time
        kind = _class(spec)
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
        self.translates = _translates(spec.auto)
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
        due = _arrivals(rate, self.spec.load_seconds)
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
            "latency_ms": _percentiles(waited),
            "busy": worked / (done - began),
        }

    def _respond(self, text: Sequence[str]) -> None:
        """All that an application does between a text and its answer."""
        found = self._read(text)
        if self.translates:
            self.tokenizer.decode(self.model(found), skip_special_tokens=True)
        elif _kind(self.spec.auto) == "Writer":
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
        elif _kind(spec.auto) == "Writer":
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


def _arrivals(rate: float, seconds: float) -> np.ndarray:
    """When requests arrive, in seconds: a Poisson process, `RUNS` of them at least, if they come in `PATIENCE` times as long."""
    count = max(round(rate * seconds), min(RUNS, math.ceil(rate * seconds * PATIENCE)))
    return np.random.default_rng(0).exponential(1 / rate, count).cumsum()


def _most(served: np.ndarray, limit: float, seconds: float) -> float | None:
    """The highest rate, requests a second, at which 95 % wait and are served within a limit; None: there is none.

    Args:
        served: milliseconds that each request takes by itself.
        limit: milliseconds.
    """

    def kept(rate: float) -> bool:
        due = 1000 * _arrivals(rate, seconds)
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
