"""A processor with ONNX Runtime: a server, a laptop, and outside Python (browser, C#, Java, mobile)."""

from __future__ import annotations

import contextlib
import io
import logging
import shutil
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor
from transformers import PreTrainedModel

from kdcli.config import Count
from kdcli.errors import ExportError
from kdcli.hardware.base import Target

BESIDE = (
    "config.json", "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "vocab.txt", "vocab.json",
    "merges.txt",
)  # fmt: skip
TWO_GB = 2**31 - 2**20
"""What a protobuf file can hold, less some room for the graph."""


class Cpu(Target):
    """ONNX files: `model.onnx` in fp32 and `model.int8.onnx` with dynamically quantized weights.

    Inputs are named as in transformers (input_ids, attention_mask, token_type_ids: int64, (batch, sequence), both
    axes free), the output is `logits` (batch, labels). Weights lie inside the file below 2 GB, beside it above.

    int8: the weights of matrix products a scale per output channel, and the embeddings, which are most of a small
    student; activations are quantized as they come. Weights take 7 bits: on x86 processors without VNNI 8 bits
    overflow the 16-bit sums of the int8 instructions, and labels change that way from machine to machine
    (https://onnxruntime.ai/docs/performance/model-optimizations/quantization.html).

    Args:
        precisions: which files to make; fp32 is made in any case to make int8 from.
        opset: of the graph. 18 is what torch's exporter writes natively and ONNX Runtime reads since 1.14, in the
            browser and on phones too.
        per_channel: one scale per output channel; false: one per matrix.
    """

    runtime = "onnx"

    def __init__(
        self,
        precisions: list[Literal["fp32", "int8"]],
        opset: Count = 18,
        per_channel: bool = True,
    ):
        self.precisions, self.opset, self.per_channel = precisions, opset, per_channel

    def export(self, student: Path, out: Path, model: PreTrainedModel, sample: Mapping[str, Tensor]) -> dict[str, Path]:
        """Write the files of all precisions.

        Raises:
            ExportError: onnx or onnxruntime is missing, or the model cannot be traced.
        """
        files = {"fp32": out / "model.onnx", "int8": out / "model.int8.onnx"}
        for name in BESIDE:
            if (student / name).is_file():
                shutil.copy2(student / name, out / name)
        try:
            with _quietly():
                self._trace(model, sample, files["fp32"])
                if "int8" in self.precisions:
                    self._quantize(files["fp32"], files["int8"])
        except ImportError as error:
            raise ExportError(f"{error}: hardware=cpu needs ONNX; install it with: pip install 'kdcli[cpu]'") from None
        except Exception as error:  # the exporter and the quantizer raise whatever they meet
            raise ExportError(f"{type(model).__name__} could not be exported to ONNX: {error}") from error
        if "fp32" not in self.precisions:
            for path in out.glob("model.onnx*"):
                path.unlink()
        return {precision: files[precision] for precision in self.precisions}

    def _trace(self, model: PreTrainedModel, sample: Mapping[str, Tensor], path: Path) -> None:
        names = list(sample)
        axes = {0: torch.export.Dim("batch"), 1: torch.export.Dim("sequence")}
        size = sum(parameter.nbytes for parameter in model.parameters())
        program = torch.onnx.export(
            _Logits(model, names).eval(),
            tuple(sample.values()),
            input_names=names,
            output_names=["logits"],
            opset_version=self.opset,
            dynamo=True,
            dynamic_shapes=(tuple(axes for _ in names),),
            verbose=False,
        )
        if program is None:
            raise ExportError("torch.onnx.export gave no program")
        program.save(path, external_data=size > TWO_GB)

    def _quantize(self, fp32: Path, int8: Path) -> None:
        from onnxruntime.quantization import QuantType, quantize_dynamic

        quantize_dynamic(
            fp32,
            int8,
            per_channel=self.per_channel,
            reduce_range=True,
            weight_type=QuantType.QInt8,
            use_external_data_format=fp32.with_name(f"{fp32.name}.data").exists(),
        )


class _Logits(torch.nn.Module):
    """Named inputs to logits alone: what the graph computes."""

    def __init__(self, model: PreTrainedModel, names: list[str]):
        super().__init__()
        self.model, self.names = model, names

    def forward(self, *inputs: Tensor) -> Tensor:
        """(B, L) each -> (B, C)."""
        return self.model(**dict(zip(self.names, inputs, strict=True))).logits


@contextlib.contextmanager
def _quietly() -> Iterator[None]:
    """The exporter and the quantizer print and warn about what they did; an error still comes through."""
    before = logging.root.manager.disable
    logging.disable(logging.ERROR)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)
