"""Measures checkpoints and exported files of a task, each in a process of its own."""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kdcli import console
from kdcli.config.types import Dtype, Quantization
from kdcli.files import writing
from kdcli.measure.process import Process
from kdcli.measure.runtime import CausalLMRuntime, Seq2SeqRuntime, runtime_class
from kdcli.measure.spec import UNKNOWN, Measurement, MeasureSpec, Texts

if TYPE_CHECKING:
    from kdcli.config.measure import Measure
    from kdcli.models.checkpoint import Checkpoint
    from kdcli.tasks.base import Task

TORCH_NAMES: dict[Dtype, str] = {"fp32": "float32", "bf16": "bfloat16", "fp16": "float16"}
"""The names of dtypes in torch."""
BUSY = 0.9
"""The least CPU share of a process that does not share the processor."""


@dataclass(frozen=True)
class Requests:
    """Raw texts that arrive at `MeasureSpec.request_rates`.

    Attributes:
        limit: milliseconds, as in `Process.load`.
    """

    texts: Texts = ()
    limit: float | None = None


def measure(
    spec: MeasureSpec,
    prompts: Sequence[Any],
    rows: Any = None,
    baseline: Process | None = None,
    requests: Requests = Requests(),
) -> Measurement:
    """Run one model in a process of its own: measure it if `spec.speed`, and write its predictions if `spec.predictions`.

    Args:
        prompts: as for `Process`.
        rows: as for `Process.predict`; None: the prompts.
        baseline: as for `Process.measure`.
        requests: sent if `spec.request_rates` are given.

    Raises:
        ExportError: the runtime cannot load or run the model; with the last lines of its stderr.
    """
    with Process(spec, prompts) as process:
        measurement = process.measure(baseline) if spec.speed else UNKNOWN
        if spec.speed and spec.request_rates and requests.texts:
            measurement = replace(measurement, load=process.load(requests.texts, requests.limit))
        if spec.predictions:
            process.predict(prompts if rows is None else rows)
    return measurement


def measure_file(
    cfg: Measure | None,
    runtime: str,
    path: Path,
    tokenizer: Path,
    task: Task,
    prompts: Sequence[Any],
    max_length: int,
    rows: Any = None,
    baseline: Process | None = None,
    requests: Requests = Requests(),
    trust_remote_code: bool = False,
) -> dict[str, Any]:
    """Measure an exported file or folder, and run it on rows.

    Args:
        cfg: how it is measured; None: speed is not measured.
        runtime: as `MeasureSpec.runtime`.
        tokenizer: the folder of its tokenizer and config.
        prompts, rows: as for `measure`; of an encoder-decoder the prompts are `Texts`, which are tokenized here.
        trust_remote_code: Python files in its folder may run.

    Returns:
        The fields of `Measurement`, and the arrays of `MeasureSpec.predictions`.

    Raises:
        ExportError: the runtime cannot load or run it.
    """
    from safetensors.numpy import load_file

    spec, prompts = make_spec(cfg, runtime, path, tokenizer, task, prompts, max_length, trust_remote_code)
    with tempfile.TemporaryDirectory() as folder, writing(Path(folder)):
        file = Path(folder) / "predictions.safetensors"
        spec = replace(spec, dtype="auto", predictions=str(file))
        result = asdict(measure(spec, prompts, rows, baseline, requests)) | load_file(file)
    warn_if_busy(path.name, result["cpu_share"])
    return result


def measure_checkpoint(
    cfg: Measure | None,
    source: Checkpoint,
    task: Task,
    prompts: Sequence[Any],
    max_length: int,
    baseline: Process | None = None,
    keep_alive: contextlib.ExitStack | None = None,
) -> tuple[Process | None, dict[str, Any]]:
    """Measure a checkpoint in torch.

    Args:
        cfg, prompts, baseline: as for `measure_file`.
        keep_alive: the process stays loaded as long as this stack, so that other models can be measured interleaved with it; None: it ends.

    Returns:
        Its process, if that is kept alive, and the fields of `Measurement`.

    Raises:
        ExportError: torch cannot load or run it.
    """
    if cfg is None:
        return None, asdict(UNKNOWN)
    path = source.path
    with contextlib.ExitStack() as own:
        process = Process(*make_spec(cfg, "torch", path, path, task, prompts, max_length, **loading(source)))
        (own if keep_alive is None else keep_alive).enter_context(process)
        needs = asdict(process.measure(baseline))
    warn_if_busy(source.name, needs["cpu_share"])
    return None if keep_alive is None else process, needs


def measure_pair(
    cfg: Measure,
    source: Checkpoint,
    task: Task,
    prompts: Sequence[Any],
    max_length: int,
    baseline: Process,
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Measure a checkpoint in torch and a baseline that is loaded already, interleaved.

    Args:
        cfg, prompts: as for `measure_file`.

    Returns:
        The fields of `Measurement` of both.

    Raises:
        ExportError: torch cannot load or run one of them.
    """
    path = source.path
    spec = make_spec(cfg, "torch", path, path, task, prompts, max_length, **loading(source))
    with Process(*spec) as process:
        own, of_baseline = process.measure_both(baseline)
    warn_if_busy(source.name, own.cpu_share)
    return asdict(own), asdict(of_baseline)


def loading(source: Checkpoint) -> dict[str, Any]:
    """Return the arguments of `make_spec` by which torch loads a checkpoint."""
    return {
        "trust_remote_code": source.code,
        "dtype": source.dtype,
        "quantization": source.quantization,
    }


def make_spec(
    cfg: Measure | None,
    runtime: str,
    path: Path,
    tokenizer: Path,
    task: Task,
    prompts: Sequence[Any],
    max_length: int,
    trust_remote_code: bool = False,
    dtype: Dtype = "fp32",
    quantization: Quantization | None = None,
) -> tuple[MeasureSpec, Sequence[Any]]:
    """Return the spec and the prompts of a `Process`, from the arguments of `measure_file`.

    Args:
        dtype, quantization: of the weights in torch.
    """
    from kdcli.generation import require_room
    from kdcli.models.checkpoint import Checkpoint, load_config, load_tokenizer

    checkpoint = Checkpoint(tokenizer, tokenizer.name, code=trust_remote_code)
    kind = runtime_class(runtime, task.auto)
    decoder_start: int | None = None
    decoder_prefix: list[int] = []
    if cfg is not None and issubclass(kind, CausalLMRuntime):
        max_length = min(max_length, require_room(cfg, load_config(checkpoint)) or max_length)
    if issubclass(kind, Seq2SeqRuntime):
        sources = load_tokenizer(checkpoint)
        encoder_decoder: Any = task
        decoder_prefix = encoder_decoder.given(sources)  # first: it sets the languages of the tokenizer
        decoder_start = encoder_decoder.start(sources)
        prompts = sources([text for (text,) in prompts], verbose=False)["input_ids"] if prompts else []
    spec = MeasureSpec(
        runtime,
        str(path),
        str(tokenizer),
        max_length,
        task.auto,
        add_special_tokens=not task.chat,
        **(cfg.settings if cfg else {}),
        speed=cfg is not None,
        decoder_start=decoder_start,
        decoder_prefix=decoder_prefix,
        trust_remote_code=trust_remote_code,
        dtype=TORCH_NAMES[dtype],
        quantization=quantization,
    )
    return spec, prompts


def warn_if_busy(name: str, share: float | None) -> None:
    """Warn that something else used the processor while a model was timed.

    Args:
        share: `Measurement.cpu_share`.
    """
    if share is not None and share < BUSY:
        console.warn(
            f"{name} had the processor for {share:.0%} of the time that its latency was timed: something else ran, and "
            "it may be faster than measured"
        )
