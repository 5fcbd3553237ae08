"""Speed and memory of one model, in a process of its own and by its own runtime.

`measure_rows` starts `python -m kdcli.measure` with a specification on stdin. The process loads and runs the
model with nothing else: an ONNX file without torch and transformers, so that its peak memory is what a device
would need. Tokenization is not timed: it is the same for all models of a comparison, and done elsewhere on
most devices.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from kdcli.config import Measure
from kdcli.errors import ExportError

if TYPE_CHECKING:
    import datasets

Encoded = dict[str, np.ndarray]
"""One row: input ids (and segment ids), each (L,)."""
Run = Callable[[Encoded], np.ndarray]
"""A padded batch, each array (B, L), to logits (B, C)."""
WARM_UP = 5
PASSES = 3


def measure_rows(
    cfg: Measure | None,
    runtime: Literal["torch", "onnx"],
    path: Path,
    tokenizer: Path,
    rows: datasets.Dataset,
    max_length: int,
    logits: bool = False,
) -> dict[str, Any]:
    """What one model needs on rows of text.

    Args:
        cfg: how thoroughly; None: nothing is timed.
        path: a model directory (torch) or a file (onnx).
        tokenizer: the directory with its tokenizer.
        logits: run all rows and return their logits too.

    Returns:
        latency_ms: p50 and p95 of one row at batch 1; throughput_per_s: rows a second in batches of rows of
        like length, from the median time of each batch; peak_memory_bytes of the process; with `logits` the
        logits, float32 (N, C) in the rows' order. What was not measured is None.

    Raises:
        ExportError: the runtime could not load or run the model.
    """
    unknown = {"latency_ms": {"p50": None, "p95": None}, "throughput_per_s": None, "peak_memory_bytes": None}
    if cfg is None and not logits:
        return unknown
    texts = list(zip(rows["text"], rows["text_pair"], strict=True)) if "text_pair" in rows.column_names else list(rows["text"])
    with tempfile.TemporaryDirectory(prefix="kdcli-") as folder:
        spec = {
            "runtime": runtime,
            "path": str(path),
            "tokenizer": str(tokenizer),
            "texts": texts,
            "max_length": max_length,
            "measure": (cfg or Measure()).model_dump(),
            "timed": cfg is not None,
            "logits": f"{folder}/logits.npy" if logits else None,
            "result": f"{folder}/result.json",
        }
        threads = str(spec["measure"]["threads"])
        environment = os.environ | {
            "OMP_NUM_THREADS": threads,
            "OPENBLAS_NUM_THREADS": threads,
            "TOKENIZERS_PARALLELISM": "false",
            "HF_HUB_OFFLINE": "1",
        }
        done = subprocess.run(
            [sys.executable, "-m", "kdcli.measure"],
            input=json.dumps(spec),
            env=environment,
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode != 0:
            last = "\n  ".join(done.stderr.strip().splitlines()[-5:])
            raise ExportError(f"{path} could not be run by {runtime} in its own process:\n  {last}")
        result: dict[str, Any] = json.loads(Path(f"{folder}/result.json").read_text())
        if logits:
            result["logits"] = np.load(f"{folder}/logits.npy", allow_pickle=False)
        return result


# ---- in the process of the model ---------------------------------------------------------------------


def main() -> None:
    """Read the specification, run the model, write the result."""
    spec = json.load(sys.stdin)
    load = {"torch": _load_torch, "onnx": _load_onnx}[spec["runtime"]]
    rows, run, pad = load(spec)
    result: dict[str, Any] = {"latency_ms": {"p50": None, "p95": None}, "throughput_per_s": None}
    if spec["timed"]:
        result["latency_ms"] = _latency(rows, run, pad, spec["measure"]["latency_runs"])
        result["throughput_per_s"] = _throughput(rows, run, pad, spec["measure"])
    if spec["logits"]:
        np.save(spec["logits"], _logits(rows, run, pad, spec["measure"]["batch_size"]))
    result["peak_memory_bytes"] = _peak_memory() if spec["timed"] else None
    Path(spec["result"]).write_text(json.dumps(result))


def _load_torch(spec: dict[str, Any]) -> tuple[list[Encoded], Run, Encoded]:
    import inspect

    import torch
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    torch.set_num_threads(spec["measure"]["threads"])
    tokenizer = AutoTokenizer.from_pretrained(spec["tokenizer"], local_files_only=True)
    model = AutoModelForSequenceClassification.from_pretrained(
        spec["path"], local_files_only=True, use_safetensors=True, dtype=torch.float32
    ).eval()
    names = set(inspect.signature(model.forward).parameters) & set(tokenizer.model_input_names)

    def encode(text: Any) -> Encoded:
        pair = text if isinstance(text, list) else [text]
        found = tokenizer(*pair, truncation=True, max_length=spec["max_length"])
        return {name: np.asarray(found[name], np.int64) for name in names}

    @torch.inference_mode()
    def run(batch: Encoded) -> np.ndarray:
        return model(**{name: torch.from_numpy(array) for name, array in batch.items()}).logits.float().numpy()

    pad = {"input_ids": tokenizer.pad_token_id, "token_type_ids": tokenizer.pad_token_type_id, "attention_mask": 0}
    return [encode(text) for text in spec["texts"]], run, {name: np.asarray(pad[name]) for name in names}


def _load_onnx(spec: dict[str, Any]) -> tuple[list[Encoded], Run, Encoded]:
    import onnxruntime
    from tokenizers import Tokenizer

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = spec["measure"]["threads"]
    options.inter_op_num_threads = 1
    session = onnxruntime.InferenceSession(spec["path"], options, providers=["CPUExecutionProvider"])
    names = [entry.name for entry in session.get_inputs()]
    folder = Path(spec["tokenizer"])
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.no_padding()
    tokenizer.enable_truncation(spec["max_length"])
    pad_id = json.loads((folder / "config.json").read_text()).get("pad_token_id") or 0
    attributes = {"input_ids": "ids", "token_type_ids": "type_ids", "attention_mask": "attention_mask"}

    def encode(text: Any) -> Encoded:
        found = tokenizer.encode(*text) if isinstance(text, list) else tokenizer.encode(text)
        return {name: np.asarray(getattr(found, attributes[name]), np.int64) for name in names}

    def run(batch: Encoded) -> np.ndarray:
        return np.asarray(session.run(["logits"], batch)[0], np.float32)

    pad = {"input_ids": pad_id, "token_type_ids": 0, "attention_mask": 0}
    return [encode(text) for text in spec["texts"]], run, {name: np.asarray(pad[name]) for name in names}


def _batch(rows: Sequence[Encoded], pad: Encoded) -> Encoded:
    """Rows padded on the right to the longest, each array (B, L)."""
    length = max(len(row["input_ids"]) for row in rows)
    return {
        name: np.stack([np.pad(row[name], (0, length - len(row[name])), constant_values=int(fill)) for row in rows])
        for name, fill in pad.items()
    }


def _sample(rows: list[Encoded], most: int) -> list[Encoded]:
    """At most so many rows, evenly spaced."""
    return [rows[int(at)] for at in np.linspace(0, len(rows) - 1, min(most, len(rows)))]


def _latency(rows: list[Encoded], run: Run, pad: Encoded, runs: int) -> dict[str, float]:
    batches = [_batch([row], pad) for row in _sample(rows, runs)]
    for batch in batches[:WARM_UP]:
        run(batch)
    times = [_timed(run, batch) * 1000 for batch in batches]
    low, high = np.percentile(times, [50, 95])
    return {"p50": float(low), "p95": float(high)}


def _throughput(rows: list[Encoded], run: Run, pad: Encoded, cfg: dict[str, Any]) -> float:
    sample = sorted(_sample(rows, cfg["max_texts"]), key=lambda row: len(row["input_ids"]))
    size = cfg["batch_size"]
    batches = [_batch(sample[start : start + size], pad) for start in range(0, len(sample), size)]
    run(batches[-1])
    times: list[list[float]] = [[] for _ in batches]
    began = time.perf_counter()
    while len(times[0]) < PASSES or time.perf_counter() - began < cfg["throughput_seconds"]:
        for batch, found in zip(batches, times, strict=True):
            found.append(_timed(run, batch))
    return len(sample) / sum(statistics.median(found) for found in times)


def _logits(rows: list[Encoded], run: Run, pad: Encoded, size: int) -> np.ndarray:
    order = np.argsort([len(row["input_ids"]) for row in rows], kind="stable")
    parts = [run(_batch([rows[row] for row in order[start : start + size]], pad)) for start in range(0, len(order), size)]
    out = np.empty((len(rows), parts[0].shape[1]), np.float32)
    out[order] = np.concatenate(parts)
    return out


def _timed(run: Run, batch: Encoded) -> float:
    began = time.perf_counter()
    run(batch)
    return time.perf_counter() - began


def _peak_memory() -> int | None:
    """The most memory that this process held, in bytes; None where the system does not tell.

    VmHWM and not getrusage where Linux offers it: after fork and exec the latter begins at the parent's peak.
    """
    try:
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    except OSError:
        pass
    try:
        import resource
    except ImportError:  # Windows
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


if __name__ == "__main__":
    main()
