"""Speed and memory of one model, in a process of its own and by its own runtime.

`measure` starts `python -m kdcli.measure` with a specification on stdin. That process loads and runs the model with
nothing else: an ONNX file without torch and transformers, so that its peak memory is what the model needs. This
module imports accordingly little.

What is timed is the model alone. Tokenization is left out: it is the same for all models that are compared, takes a
fraction of the time, and is done by other code on most devices.
"""

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
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from kdcli.errors import ExportError, KDError

if TYPE_CHECKING:
    from kdcli.config import Measure
    from kdcli.tasks.base import Task

Texts = Sequence[Sequence[str]]
"""Each row: one text, or a text and its pair."""
Encoded = dict[str, np.ndarray]
"""The model's inputs by name: of one row (L,), of a batch (B, L)."""
WARM_UP = 10
"""Rows that are run before latency is timed: first calls allocate and plan."""
PASSES = 3
"""Times that each batch is run for throughput, so that its median forgets a hiccup …"""
PATIENCE = 10
"""… unless that takes so many times `throughput_seconds`: the batches of a slow model are long enough by themselves."""


@dataclass(frozen=True)
class MeasureSpec:
    """What to run, and how.

    Attributes:
        path: a model directory (torch) or a file (onnx).
        tokenizer: the directory of its tokenizer.
        auto: the class of transformers that loads the model.
        special: the tokenizer adds its special tokens (a rendered chat has them already).
        new_tokens: a language model writes so many, for its speed.
        max_length: tokens a row; the rest is cut off.
        threads: of the runtime.
        batch_size: rows a batch, for throughput.
        latency_runs: at most so many rows are run at batch 1.
        throughput_seconds: throughput is measured for about so long, over whole passes.
        max_texts: speed is measured on at most so many rows, evenly spaced among all.
        speed: false: nothing is timed.
        logits: a safetensors file to write with the `logits` of all rows, float32 (N, C), in their order.
        code: the model directory's own Python files may be run.
    """

    runtime: Literal["torch", "onnx"]
    path: str
    tokenizer: str
    max_length: int
    auto: str = "AutoModelForSequenceClassification"
    special: bool = True
    threads: int = 1
    batch_size: int = 32
    latency_runs: int = 200
    throughput_seconds: float = 2.0
    max_texts: int = 256
    new_tokens: int = 32
    speed: bool = True
    logits: str | None = None
    code: bool = False


@dataclass(frozen=True)
class Measurement:
    """What one model needs. What was not measured is None.

    Attributes:
        latency_ms: p50 and p95 of single rows, unpadded, at batch 1; of a language model the time to the first token.
        throughput_per_s: rows a second, in batches of rows of like length, from each batch's median time; of a language
            model tokens a second at batch 1, from the median token's time.
        peak_memory_bytes: the most that the process held while it loaded and ran the model: Python, the runtime,
            the weights, and the activations of its largest batch.
        load_seconds: to import the runtime and to load the model, the files most likely being in the system's cache.
    """

    latency_ms: dict[str, float | None]
    throughput_per_s: float | None
    peak_memory_bytes: int | None
    load_seconds: float | None


UNKNOWN = Measurement({"p50": None, "p95": None}, None, None, None)


def measure(spec: MeasureSpec, texts: Texts) -> Measurement:
    """Run one model in its own process.

    Raises:
        ExportError: the runtime could not load or run the model; with the last lines of what it said.
    """
    said = [asdict(spec), [texts[at] for at in _spaced(len(texts), spec.max_texts)]]
    if spec.logits:
        said.append(texts)
    threads = str(spec.threads)
    paths = [str(Path(__file__).parents[1]), *filter(None, [os.environ.get("PYTHONPATH")])]
    environment = os.environ | {
        "OMP_NUM_THREADS": threads,
        "MKL_NUM_THREADS": threads,
        "OPENBLAS_NUM_THREADS": threads,
        "TOKENIZERS_PARALLELISM": "false",
        "HF_HUB_OFFLINE": "1",
        "PYTHONPATH": os.pathsep.join(paths),
    }
    done = subprocess.run(
        [sys.executable, "-P", "-m", "kdcli.measure"],  # -P: no module of the working directory
        input="\n".join(map(json.dumps, said)),
        env=environment,
        capture_output=True,
        encoding="utf-8",
        errors="replace",
        check=False,
    )
    if done.returncode != 0:
        last = "\n  ".join(done.stderr.strip().splitlines()[-5:]) or "it said nothing"
        raise ExportError(
            f"{spec.path} could not be run by {spec.runtime} in its own process (exit code {done.returncode}):\n  {last}"
        )
    return Measurement(**json.loads(done.stdout))


def measure_rows(
    cfg: Measure | None,
    runtime: Literal["torch", "onnx"],
    path: Path,
    tokenizer: Path,
    task: Task,
    texts: Texts,
    max_length: int,
    logits: bool = False,
    code: bool = False,
) -> dict[str, Any]:
    """What one model needs on a split's rows: the fields of `Measurement`, and with `logits` those, float32 (N, C).

    Args:
        cfg: how thoroughly; None: nothing is timed.
        texts: what the model is given of each row.

    Raises:
        ExportError: the runtime could not load or run the model.
    """
    if cfg is None and not logits:
        return asdict(UNKNOWN)
    with tempfile.TemporaryDirectory(prefix="kdcli-") as folder:
        file = Path(folder) / "logits.safetensors"
        spec = MeasureSpec(
            runtime,
            str(path),
            str(tokenizer),
            max_length,
            task.auto,
            special=not task.chat,
            **(cfg.model_dump(exclude={"generations"}) if cfg else {}),
            speed=cfg is not None,
            logits=str(file) if logits else None,
            code=code,
        )
        found = asdict(measure(spec, texts))
        if logits:
            from safetensors.numpy import load_file

            found["logits"] = load_file(file)["logits"]
    return found


# ---- in the process of the model ---------------------------------------------------------------------


class _Torch:
    """A model directory, run eagerly in fp32."""

    def __init__(self, spec: MeasureSpec):
        import inspect

        import torch
        import transformers

        torch.set_num_threads(spec.threads)
        options: dict[str, Any] = {"local_files_only": True, "trust_remote_code": spec.code}
        self.tokenizer = transformers.AutoTokenizer.from_pretrained(spec.tokenizer, **options)
        auto = getattr(transformers, spec.auto)
        self.model = auto.from_pretrained(
            spec.path, use_safetensors=True, dtype=torch.float32, **options
        ).eval()
        self.max_length, self.special = spec.max_length, spec.special
        self.writes = "CausalLM" in spec.auto
        taken = inspect.signature(self.model.forward).parameters
        fill = {"input_ids": self.tokenizer.pad_token_id, "token_type_ids": self.tokenizer.pad_token_type_id}
        self.pad = {name: fill.get(name, 0) for name in self.tokenizer.model_input_names if name in taken}

    def encode(self, texts: Texts) -> list[Encoded]:
        rows = [
            self.tokenizer(*row, truncation=True, max_length=self.max_length, add_special_tokens=self.special)
            for row in texts
        ]
        return [{name: np.asarray(row[name], np.int64) for name in self.pad} for row in rows]

    def __call__(self, batch: Encoded) -> np.ndarray:
        import torch

        last = {"logits_to_keep": 1} if self.writes else {}
        with torch.inference_mode():
            return self.model(
                **{name: torch.from_numpy(array) for name, array in batch.items()}, **last
            ).logits.numpy()

    def write(self, prompt: Encoded, count: int) -> list[float]:
        """Go on from a prompt, greedily and whatever the end of text says: the seconds of each token after the first."""
        import torch

        seconds = []
        with torch.inference_mode():
            ids = torch.from_numpy(prompt["input_ids"])
            out = self.model(input_ids=ids, use_cache=True, logits_to_keep=1)
            for _ in range(count):
                began = time.perf_counter()
                token = out.logits[:, -1:].argmax(-1)
                out = self.model(
                    input_ids=token, past_key_values=out.past_key_values, use_cache=True, logits_to_keep=1
                )
                seconds.append(time.perf_counter() - began)
        return seconds


class _Onnx:
    """An ONNX file, run by ONNX Runtime on the CPU; the tokenizer is tokenizer.json."""

    def __init__(self, spec: MeasureSpec):
        try:
            import onnxruntime
        except ImportError as error:
            raise ExportError(f"{error}: install it with: pip install 'kdcli[cpu]'") from None
        import tokenizers

        folder = Path(spec.tokenizer)
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads, options.inter_op_num_threads = spec.threads, 1
        self.session = onnxruntime.InferenceSession(spec.path, options, providers=["CPUExecutionProvider"])
        config = json.loads((folder / "tokenizer_config.json").read_text(encoding="utf-8"))
        self.tokenizer = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
        self.tokenizer.no_padding()
        self.tokenizer.enable_truncation(spec.max_length, direction=config.get("truncation_side", "right"))
        token = config.get("pad_token")
        pad_id = (
            self.tokenizer.token_to_id(token["content"] if isinstance(token, dict) else token) if token else 0
        )
        fill = {"input_ids": pad_id, "token_type_ids": config.get("pad_token_type_id", 0)}
        self.pad = {entry.name: fill.get(entry.name, 0) for entry in self.session.get_inputs()}

    def encode(self, texts: Texts) -> list[Encoded]:
        known = {"input_ids": "ids", "token_type_ids": "type_ids", "attention_mask": "attention_mask"}
        rows = self.tokenizer.encode_batch([row[0] if len(row) == 1 else tuple(row) for row in texts])
        return [{name: np.asarray(getattr(row, known[name]), np.int64) for name in self.pad} for row in rows]

    def __call__(self, batch: Encoded) -> np.ndarray:
        return self.session.run(["logits"], batch)[0]


Model = _Torch | _Onnx


def main() -> None:
    """Read the specification and the rows, run the model, write the measurement."""
    with contextlib.redirect_stdout(sys.stderr):  # stdout is for the measurement alone
        spec = MeasureSpec(**json.loads(sys.stdin.readline()))
        began = time.perf_counter()
        model: Model = _Torch(spec) if spec.runtime == "torch" else _Onnx(spec)
        seconds = time.perf_counter() - began
        found = UNKNOWN
        if spec.speed:
            rows = model.encode(json.loads(sys.stdin.readline()))
            latency = _latency(model, rows, spec.latency_runs)
            throughput = (
                _generated(model, rows, spec)
                if isinstance(model, _Torch) and model.writes
                else _throughput(model, rows, spec)
            )
            found = Measurement(latency, throughput, _peak_memory(), seconds)
        else:
            sys.stdin.readline()
        if spec.logits:  # read only now: neither the texts nor the logits of all rows belong to the peak
            from safetensors.numpy import save_file

            save_file({"logits": _logits(model, json.loads(sys.stdin.readline()), spec)}, spec.logits)
    json.dump(asdict(found), sys.stdout)


def _batch(model: Model, rows: Sequence[Encoded]) -> Encoded:
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


def _spaced(count: int, most: int) -> list[int]:
    """At most so many of `count` numbers, evenly spaced."""
    return [int(at) for at in np.linspace(0, count - 1, min(most, count))]


def _latency(model: Model, rows: Sequence[Encoded], runs: int) -> dict[str, float | None]:
    batches = [_batch(model, [rows[at]]) for at in _spaced(len(rows), runs)]
    for batch in batches[:WARM_UP]:
        model(batch)
    p50, p95 = np.percentile([_seconds(model, batch) * 1000 for batch in batches], [50, 95])
    return {"p50": float(p50), "p95": float(p95)}


def _throughput(model: Model, rows: Sequence[Encoded], spec: MeasureSpec) -> float:
    batches = [_batch(model, [rows[row] for row in numbers]) for numbers in _batches(rows, spec.batch_size)]
    model(batches[-1])  # the largest: what it allocates is not timed
    times: list[list[float]] = [[] for _ in batches]
    began = time.perf_counter()
    while True:
        for batch, found in zip(batches, times, strict=True):
            found.append(_seconds(model, batch))
        spent = (time.perf_counter() - began) / spec.throughput_seconds
        if spent >= PATIENCE or (spent >= 1 and len(times[0]) >= PASSES):
            return len(rows) / sum(map(statistics.median, times))


def _generated(model: _Torch, rows: Sequence[Encoded], spec: MeasureSpec) -> float:
    """Tokens a second at batch 1, after the first one: greedily, with a cache of keys and values."""
    seconds: list[float] = []
    began = time.perf_counter()
    for row in rows:
        seconds += model.write({name: array[None] for name, array in row.items()}, spec.new_tokens)
        if (
            time.perf_counter() - began >= spec.throughput_seconds
            and len(seconds) >= PASSES * spec.new_tokens
        ):
            break
    return 1 / statistics.median(seconds)


def _logits(model: Model, texts: Texts, spec: MeasureSpec) -> np.ndarray:
    """Logits of all rows, float32 (N, C).

    ONNX files are asked row by row, which takes no longer on a CPU: dynamic int8 takes the range of its activations
    from the whole batch, so that a row's answer in a batch would depend on its neighbours and its padding.
    """
    rows = model.encode(texts)
    out: np.ndarray | None = None
    for numbers in _batches(rows, 1 if spec.runtime == "onnx" else spec.batch_size):
        logits = model(_batch(model, [rows[row] for row in numbers]))
        if out is None:
            out = np.empty((len(rows), logits.shape[1]), np.float32)
        out[numbers] = logits
    return np.empty((0, 0), np.float32) if out is None else out


def _seconds(model: Model, batch: Encoded) -> float:
    began = time.perf_counter()
    model(batch)
    return time.perf_counter() - began


def _peak_memory() -> int | None:
    """The most memory that this process held, in bytes; None where the system does not tell.

    VmHWM and not getrusage where Linux offers it: after fork and exec the latter begins at the parent's peak.
    """
    with contextlib.suppress(OSError):
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
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
