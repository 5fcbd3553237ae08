"""Writes files for processors: for ONNX Runtime (on servers and laptops, and outside Python: browser, node, C#, Java, mobile) or CTranslate2."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
from pydantic import Field
from torch import Tensor
from transformers import PreTrainedConfig, PreTrainedModel

from kdcli.config.types import Int
from kdcli.exporting.targets.base import (
    CLASSIFIERS,
    GENERATORS,
    Target,
    copy_tokenizer,
    exporting,
    quietly,
    sample_batch,
)
from kdcli.exporting.writers import causal_lm as language
from kdcli.exporting.writers.causal_lm import TWO_GB
from kdcli.exporting.writers.seq2seq import LOADERS, copy_files, write_ctranslate2, write_onnx
from kdcli.exporting.writers.tracing import trace_onnx, traceable
from kdcli.files import abandonable
from kdcli.models.checkpoint import Checkpoint, load_tokenizer
from kdcli.models.quantization import BLOCK

FILES = {"fp32": "model.onnx", "int8": "model.int8.onnx", "int4": "model.int4.onnx"}
FOLDERS = {"fp32": "onnx", "int8": "ctranslate2"}
"""The folders of an encoder-decoder."""


WITHOUT_INT8 = "leave it out with hardware.precisions=[fp32]"
UNTRACED = (
    "diffllama", "fnet", "funnel", "glm", "glm4", "helium", "jetmoe", "longformer", "qwen3_5", "qwen3_5_text", "qwen3_next", "tapas",
)  # fmt: skip
"""The `model_type` of classifiers that cannot be written as ONNX (torch 2.13), or not for every number of tokens."""
UNTRACED_DECODERS = (
    "apertus", "axk2", "bamba", "cohere", "cohere2", "cohere2_moe", "deepseek_v2", "deepseek_v32", "deepseek_v4", "diffllama",
    "ernie4_5", "ernie4_5_moe", "falcon_h1", "falcon_mamba", "glm", "glm4", "glm_moe_dsa", "granitemoehybrid", "helium", "hy_v4",
    "inkling2_text", "inkling_text", "jamba", "lfm3", "llama4_text", "mamba", "minimax", "nemotron_h", "olmo_hybrid", "openai-gpt",
    "qwen3_5", "qwen3_5_moe", "qwen3_5_moe_text", "qwen3_5_text", "qwen3_next", "recurrent_gemma",
)  # fmt: skip
"""The `model_type` of language models that cannot be written as ONNX with a key/value cache: they have a state, another cache, or operations
that the exporter does not know."""


class Cpu(Target):
    """ONNX files: `model.onnx` in fp32, `model.int8.onnx` with dynamically quantized weights, and `model.int4.onnx`.

    Inputs are named as in transformers (input_ids, attention_mask, token_type_ids: int64, (batch, sequence), both
    axes free), the output is `logits` (batch, labels), of a token classifier (batch, sequence, labels). Only standard
    ONNX operators are used, except in int4. Weights are inside the file below 2 GB, and in a second file above.

    int8: the weights of matrix products with a scale per output channel, and the embeddings, which are most of a
    small student; activations are quantized dynamically, so no calibration data is needed. Matrices use 7 of
    the 8 bits (-64 … 64): x86 processors without VNNI add pairs of uint8 x int8 products in 16 bits, where
    2 · 255 · 127 saturates and 2 · 255 · 64 does not, and labels would change from machine to machine
    (https://onnxruntime.ai/docs/performance/model-optimizations/quantization.html). Unsigned weights of 8 bits
    avoid that as well, but are a fifth to two thirds slower.

    int4: the weights of matrix products and the embeddings, each 32 of a row (of an output channel) with a scale and a zero
    point, by ONNX Runtime's own operators MatMulNBits and GatherBlockQuantized; activations stay floats. There is no int4 file of an
    encoder-decoder.

    Of an encoder-decoder it writes folders: `onnx`, fp32, and `ctranslate2`, int8, each with the tokenizer's files
    and generation_config.json; `write_onnx` and `write_ctranslate2` describe them.

    Of a causal language model each file has one graph, for the prompt and each further token, with a key/value cache
    (`language.trace`); `model.int8.onnx` and `model.int4.onnx` have quantized weights in blocks (`language.blockwise`).

    Args:
        precisions: the files to make; null: fp32 and int8, of a causal language model int4 as well.
        opset: version of the ONNX operators. 17 is the first with LayerNormalization as one operator, and ONNX Runtime reads it
            since 1.12, also in browsers and on phones; 14 is for older versions.
        per_channel: one scale per output channel; false: one per matrix. Matrices of CTranslate2 have one per row.
    """

    serves = (*CLASSIFIERS, *GENERATORS)
    packages, extra = ("onnx", "onnxruntime", "onnx_ir", "ctranslate2"), "cpu"

    def __init__(
        self,
        precisions: Annotated[list[Literal["fp32", "int8", "int4"]], Field(min_length=1)] | None = None,
        opset: Annotated[Int, Field(ge=14, le=20)] = 17,
        per_channel: bool = True,
    ):
        self.precisions, self.opset, self.per_channel = precisions, opset, per_channel

    def refusal(self, model_class: type[PreTrainedModel], config: PreTrainedConfig) -> str | None:
        """Refuse architectures that the exporter to ONNX, or CTranslate2, does not write."""
        kind, writes = config.get_text_config().model_type, model_class.can_generate()
        if writes and config.is_encoder_decoder:
            if "int4" in (self.precisions or ()):
                return "int4 is for classifiers and language models; give hardware.precisions=[fp32,int8]"
            needs_loader = "int8" in (self.precisions or ["int8"]) and kind not in LOADERS
            return f"CTranslate2 does not convert it; {WITHOUT_INT8}" if needs_loader else None
        if kind in (UNTRACED_DECODERS if writes else UNTRACED):
            remedy = "hardware=cuda writes it" + ("" if writes else ", with hardware.precisions=[bf16]")
            return f"it has operations that ONNX has not; {remedy}"
        return None

    def export(
        self,
        student: Path,
        out: Path,
        model: PreTrainedModel,
        inputs: Sequence[Mapping[str, Tensor]],
        max_length: int,
    ) -> dict[str, Path]:
        """Write the files of all precisions.

        Only the names of the inputs are used, so that neither their shapes nor their values become constants of the graph. The model is not changed.

        Raises:
            ExportError: onnx, onnxruntime or ctranslate2 is missing, or the architecture cannot be written as ONNX, or
                CTranslate2 does not support it.
        """
        generates = model.can_generate() and not model.config.is_encoder_decoder
        precisions = self.precisions or (["fp32", "int8", "int4"] if generates else ["fp32", "int8"])
        if model.config.is_encoder_decoder and model.can_generate():
            return self._encoder_decoder(student, out, model, precisions)
        # the quantizer of int4 needs onnx_ir
        self.require_packages(
            "onnx", "onnxruntime", *(["onnx_ir"] if "int4" in precisions and not generates else [])
        )
        files: dict[str, Path] = {precision: out / FILES[precision] for precision in precisions}
        if generates:
            self._language_model(student, out, model, files)
            return files
        self._classifier(out, model, list(inputs[0]), files)
        copy_tokenizer(student, out, max_length)
        return files

    def _classifier(
        self, out: Path, model: PreTrainedModel, names: list[str], files: Mapping[str, Path]
    ) -> None:
        import onnx
        from onnxruntime.quantization import quantize_dynamic

        size = sum(parameter.nbytes for parameter in model.parameters())
        with self._exporting(model, out) as temporary:
            traced = temporary / "traced.onnx"
            self._trace(model, names, traced)
            if (
                "fp32" in files
            ):  # loaded and saved, because above 2 GB the exporter leaves one file for each tensor
                data = f"{FILES['fp32']}.data"
                onnx.save_model(
                    onnx.load(traced), files["fp32"], save_as_external_data=size > TWO_GB, location=data
                )
            if "int8" in files:
                quantize_dynamic(
                    traced,
                    files["int8"],
                    op_types_to_quantize=["MatMul", "Gather"],
                    per_channel=self.per_channel,
                    reduce_range=True,
                    use_external_data_format=size / 4 > TWO_GB,
                )
            if "int4" in files:
                self._int4(onnx.load(traced), files["int4"], size / 6 > TWO_GB)

    def _int4(self, graph: Any, path: Path, external_data: bool) -> None:
        """Write matrices and embeddings in blocks of 4-bit weights. The opset is kept, because both operators are ONNX Runtime's."""
        from onnxruntime.quantization.matmul_nbits_quantizer import MatMulNBitsQuantizer
        from onnxruntime.quantization.onnx_model import ONNXModel

        full = ONNXModel(graph)
        full.replace_gemm_with_matmul()
        quantizer = MatMulNBitsQuantizer(
            full.model, block_size=BLOCK, op_types_to_quantize=("MatMul", "Gather")
        )
        quantizer.process()
        quantizer.model.set_opset_import("", self.opset)
        quantizer.model.save_model_to_file(str(path), use_external_data_format=external_data)

    def _language_model(
        self, student: Path, out: Path, model: PreTrainedModel, files: Mapping[str, Path]
    ) -> None:
        with self._exporting(model, out) as temporary:
            full = language.trace(model, temporary / "traced.onnx", self.opset)
            for precision, bits in ("int8", 8), ("int4", 4):
                if precision in files:
                    language.save(language.blockwise(full, bits), files[precision])
            if "fp32" in files:  # last, because above 2 GB the weights are moved out of the graph
                language.save(full, files["fp32"])
        language.copy_files(student, out)

    def _encoder_decoder(
        self, student: Path, out: Path, model: PreTrainedModel, precisions: Sequence[str]
    ) -> dict[str, Path]:
        folders: dict[str, Path] = {precision: out / FOLDERS[precision] for precision in precisions}
        needs = {"fp32": ("onnx", "onnxruntime"), "int8": ("ctranslate2",)}
        self.require_packages(*(name for precision in folders for name in needs[precision]))
        if "int8" in folders:  # first, because it is fast and supports fewer architectures
            tokenizer = load_tokenizer(Checkpoint(student, "student"), model)
            with exporting(model, "as CTranslate2", out), quietly():
                write_ctranslate2(model, tokenizer, folders["int8"], "int8")
        if "fp32" in folders:
            folders["fp32"].mkdir()
            with self._exporting(model, out) as temporary:
                write_onnx(model, folders["fp32"], self.opset, temporary)
        for folder in folders.values():
            copy_files(student, folder, model)
        return folders

    @contextlib.contextmanager
    def _exporting(self, model: PreTrainedModel, out: Path) -> Iterator[Path]:
        """Yield a temporary folder in `out`, and turn errors of the exporter to ONNX into `ExportError`."""
        with (
            exporting(model, f"as ONNX (opset {self.opset})", out),
            abandonable("onnx", out) as temporary,
            quietly(),
        ):
            yield temporary

    def _trace(self, model: PreTrainedModel, names: list[str], path: Path) -> None:
        """Write the graph in fp32, by the tracing exporter.

        Measured on BERTs of 2 and 6 layers (torch 2.13, ONNX Runtime 1.32), the newer exporter (dynamo=True) gives
        the same logits, takes 6 to 25 times as long, and its graph is 1 % larger and about 5 % slower.
        """
        batch = sample_batch(model, names)
        with traceable(model):
            graph, inputs = _Logits(model, names).eval(), {name: batch[name] for name in names}
            axes = {name: {0: "batch", 1: "sequence"} for name in names}
            logits = graph(*inputs.values())
            axes["logits"] = {0: "batch"} if logits.ndim == 2 else {0: "batch", 1: "sequence"}
            trace_onnx(graph, inputs, ["logits"], axes, path, self.opset, fold=True)


class _Logits(torch.nn.Module):
    """The computation of the graph: named inputs to logits alone."""

    def __init__(self, model: PreTrainedModel, names: list[str]):
        super().__init__()
        self.model, self.names = model, names

    def forward(self, *inputs: Tensor) -> Tensor:
        """Map inputs, (B, L) each, to logits (B, C), of a token classifier (B, L, C)."""
        return self.model(**dict(zip(self.names, inputs, strict=True))).logits
