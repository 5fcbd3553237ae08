"""`python -m kdcli.exporting.writers.litert`: writes a LiteRT file, in a process of its own whose path begins with `packages`.

litert-torch 0.10 works with the torch, transformers and numpy of kdcli, but cannot be installed beside them, because its
dependencies require old versions of small packages (xdsl 0.28: typing_extensions below 4.13). So it is installed into a folder
of the cache, without the dependencies that it shares with kdcli, and only its own process imports it.
"""

from __future__ import annotations

import importlib.metadata
import json
import logging
import os
import re
import shlex
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from kdcli import processes
from kdcli.errors import ExportError
from kdcli.files import cache_dir, digest, replaced, writing

logger = logging.getLogger(__name__)
PINS = (
    "litert-torch==0.10.0", "litert-converter==0.5.0", "ai-edge-quantizer==0.10.0", "litert-lm-builder==0.18.1",
    "xdsl==0.28.0", "ordered-set==4.1.0", "immutabledict==4.2.1", "lark==1.3.1", "absl-py==2.3.1", "fire==0.7.1",
    "termcolor==3.3.0", "jaxtyping==0.3.11", "wadler-lindig==0.1.8", "multipledispatch==1.0.0",
    "backports.strenum==1.2.8", "tabulate==0.10.0", "jax==0.10.2", "jaxlib==0.10.2", "opt_einsum==3.4.0",
    "scipy==1.17.1", "ml_dtypes==0.6.0",
)  # fmt: skip
"""litert-torch and its dependencies, without torch, transformers, numpy, ai-edge-litert and theirs."""
ALIGNED = 64
"""The alignment of weights in a file, in bytes."""


def packages_folder() -> Path:
    """Return the folder into which `packages` installs `PINS`."""
    return cache_dir("litert") / digest(PINS, sys.version_info[:2])[:32]


def packages() -> Path:
    """Return the folder of the cache with `PINS`, about 0.8 GB, which is filled by the first call.

    Raises:
        ExportError: pip could not install them; with the command to type.
    """
    folder = packages_folder()
    if {_name(pin.partition("==")[0]) for pin in PINS} <= {
        _name(each.name) for each in importlib.metadata.distributions(path=[str(folder)])
    }:
        return folder
    logger.info("litert-torch, which writes LiteRT files, is installed once into %s (0.8 GB)", folder)
    pip = [sys.executable, "-P", "-m", "pip", "install", "--no-deps", "--target"]
    with replaced(folder) as new, writing(new.parent):
        done = processes.run([*pip, str(new), *PINS])
        if done.returncode:
            errors = [line for line in done.stderr.splitlines() if line.startswith("ERROR")] or [
                done.stderr.strip()
            ]
            raise ExportError(
                f"hardware=mobile needs litert-torch for a LiteRT file, and it could not be installed "
                f"({errors[-1].removeprefix('ERROR: ')}); connect once, or install it with: "
                f"{shlex.join([*pip, str(folder), *PINS])}"
            )
    return folder


def _name(package: str) -> str:
    return re.sub(r"[-_.]+", "-", package).lower()


def write(student: Path, kind: str, names: Sequence[str], lengths: Sequence[int], out: Path) -> None:
    """Write a student as a LiteRT file, in a process of its own.

    Args:
        kind: the student's class in transformers.
        names: its inputs.
        lengths: row lengths in tokens; the file gets a signature for each, which takes one row.

    Raises:
        ExportError: the packages cannot be installed, or the converter failed.
    """
    folder = packages()
    arguments = {
        "student": str(student),
        "kind": kind,
        "names": list(names),
        "lengths": list(lengths),
        "out": str(out),
    }
    root = str(Path(__file__).parents[3])
    done = processes.run(
        [sys.executable, "-P", "-m", "kdcli.exporting.writers.litert", json.dumps(arguments)],
        env=os.environ | {"PYTHONPATH": os.pathsep.join([str(folder), root]), "HF_HUB_OFFLINE": "1"},
    )
    with writing(out.parent):
        if done.returncode < 0:
            raise ExportError(
                f"{kind} cannot be written as LiteRT: its converter crashed (signal {-done.returncode}); choose another hardware"
            )
        if done.returncode:
            last = next(reversed(done.stderr.strip().splitlines()), f"exit code {done.returncode}")
            raise ExportError(f"{kind} cannot be written as LiteRT: {last}; choose another hardware")


def main(student: str, kind: str, names: list[str], lengths: list[int], out: str) -> None:
    """Convert in fp32, quantize, and write `out`."""
    import litert_torch
    import torch
    import transformers
    from ai_edge_quantizer import quantizer, recipe

    class Logits(torch.nn.Module):
        """Named inputs, (1, L) each, to logits alone."""

        def __init__(self) -> None:
            super().__init__()
            # eager: the fused attention gives slower graphs (128 tokens in fp32: 3.3 ms against 1.4 ms)
            self.model = getattr(transformers, kind).from_pretrained(
                student, local_files_only=True, dtype=torch.float32, attn_implementation="eager"
            )

        def forward(self, **inputs: torch.Tensor) -> dict[str, torch.Tensor]:
            return {"logits": self.model(**inputs).logits}

    module, converter = Logits().eval(), litert_torch.Converter()
    for length in lengths:
        sample = {name: torch.ones(1, length, dtype=torch.long) for name in names}
        converter.signature(f"tokens_{length}", module, sample_kwargs=sample)
    with tempfile.TemporaryDirectory(prefix="kdcli-") as temporary:
        full = str(Path(temporary) / "full.tflite")
        converter.convert().export(full)
        quantizing = quantizer.Quantizer(full)
        quantizing.load_quantization_recipe(recipe.dynamic_wi8_afp32())
        Path(out).write_bytes(shared(bytes(quantizing.quantize().quantized_model)))


def shared(model: bytes) -> bytes:
    """Return the same LiteRT file with equal weights stored once (the quantizer writes them for each signature), and without names of inner tensors.

    Weights are stored after the flatbuffer, whose buffers hold their offsets.
    """
    import flatbuffers
    from ai_edge_litert import schema_py_generated as schema

    tree: Any = schema.ModelT.InitFromPackedBuf(model, 0)
    for graph in tree.subgraphs:
        for index in set(range(len(graph.tensors))) - {*graph.inputs, *graph.outputs}:
            graph.tensors[index].name = b""  # the names take 80 KB per signature in a student of two layers
    weights = [
        (buffer, model[buffer.offset : buffer.offset + buffer.size]) for buffer in tree.buffers if buffer.size
    ]

    def head() -> bytes:
        builder = flatbuffers.Builder(len(model))
        builder.Finish(tree.Pack(builder), b"TFL3")
        packed = bytes(builder.Output())
        return packed + bytes(-len(packed) % ALIGNED)

    rest, offsets = bytearray(), dict[bytes, int]()
    begin = len(head())
    for buffer, data in weights:
        if data not in offsets:
            offsets[data] = begin + len(rest)
            rest += data + bytes(-len(data) % ALIGNED)
        buffer.offset = offsets[data]
    return head() + rest


if __name__ == "__main__":
    try:
        main(**json.loads(sys.argv[1]))
    except Exception as error:  # the converter does not catch what the model's code raises
        sys.exit(next(iter(str(error).strip().splitlines()), type(error).__name__))
