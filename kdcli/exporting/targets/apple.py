"""Writes Core ML packages of encoders for Apple's phones, tablets and computers. They are made here, and run on the device alone."""

from __future__ import annotations

import contextlib
import importlib.metadata
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
from pydantic import Field
from torch import Tensor
from transformers import PreTrainedConfig, PreTrainedModel

from kdcli.exporting.targets.base import CLASSIFIERS, Target, copy_tokenizer, exporting, quietly

FAR = -1e4
"""The value that is added to attention scores of masked tokens: far below all others, and within fp16."""

UNWRITTEN = (
    "axk1", "axk2", "diffllama", "fnet", "funnel", "jetmoe", "longformer", "mobilebert", "qwen3_5", "qwen3_5_text", "qwen3_next",
    "tapas",
)  # fmt: skip
"""The `model_type` of classifiers that coremltools 9 does not convert: it lacks their operations, or torch.export writes no program for any
number of tokens."""


class Apple(Target):
    """Core ML packages (ML programs, iOS 16 or macOS 13 and later): `model.fp16.mlpackage`, and `model.int8.mlpackage`, whose
    weights have 8 bits and a scale per output channel.

    Inputs are named as in transformers (input_ids, attention_mask, token_type_ids: int32, (1, sequence), from 2 tokens to
    `max_length`), the output is `logits`, (1, classes), of a token classifier (1, sequence, classes).

    Core ML runs on Apple's systems alone, so the files do not run here: neither speed nor agreement is known, no file is
    recommended, and the export says so. Compare on the device with the files in `predictions/`.

    Args:
        precisions: which files to make.
    """

    serves = CLASSIFIERS
    packages, extra = ("coremltools",), "apple"

    def __init__(self, precisions: Annotated[list[Literal["fp16", "int8"]], Field(min_length=1)]):
        self.precisions = precisions

    def refusal(self, model_class: type[PreTrainedModel], config: PreTrainedConfig) -> str | None:
        """Refuse encoder-decoders, in which the number of end tokens is not known, and what coremltools does not convert."""
        if config.is_encoder_decoder:
            return "torch.export does not write it; hardware=cpu does"
        if config.get_text_config().model_type in UNWRITTEN:
            return "coremltools does not convert it; hardware=cuda writes it, with hardware.precisions=[bf16]"
        return None

    def export(
        self,
        student: Path,
        out: Path,
        model: PreTrainedModel,
        inputs: Sequence[Mapping[str, Tensor]],
        max_length: int,
    ) -> dict[str, Path]:
        """Write the packages of all precisions. The model is not changed.

        Raises:
            ExportError: coremltools is missing, or the architecture cannot be converted.
        """
        self.require_packages()
        files: dict[str, Path] = {
            precision: out / f"model.{precision}.mlpackage" for precision in self.precisions
        }
        version = importlib.metadata.version("coremltools")
        with (
            exporting(model, f"for Core ML by coremltools {version}", out),
            quietly(),
            contextlib.redirect_stderr(
                io.StringIO()
            ),  # progress bars, and a warning that it cannot run anything here
        ):
            package = _converted(model, list(inputs[0]), max_length)
            for precision, file in files.items():
                _quantized(package, precision).save(str(file))
        copy_tokenizer(student, out, max_length)
        return files


def _converted(model: PreTrainedModel, names: list[str], max_length: int) -> Any:
    """Return the program with weights and activations in fp16, of any length."""
    import coremltools

    row = {name: torch.ones(1, 5, dtype=torch.int32) for name in names}
    lengths = {1: torch.export.Dim("sequence", min=2, max=max_length)}
    attention = model.config._attn_implementation
    model.set_attn_implementation("eager")
    try:
        with torch.no_grad():
            graph = torch.export.export(_Rows(model), (), row, dynamic_shapes=dict.fromkeys(row, lengths))
    finally:
        model.set_attn_implementation(attention)
    return coremltools.convert(
        graph.run_decompositions({}),
        convert_to="mlprogram",
        minimum_deployment_target=coremltools.target.iOS16,
        outputs=[coremltools.TensorType(name="logits")],
    )


def _quantized(package: Any, precision: str) -> Any:
    from coremltools.optimize import coreml

    if precision == "fp16":
        return package
    config = coreml.OpLinearQuantizerConfig(mode="linear_symmetric", weight_threshold=512)
    return coreml.linear_quantize_weights(package, coreml.OptimizationConfig(global_config=config))


class _Rows(torch.nn.Module):
    """The model with an additive attention mask, because the converter has no operators for a boolean one."""

    def __init__(self, model: PreTrainedModel):
        super().__init__()
        self.model = model.eval()

    def forward(
        self, input_ids: Tensor, attention_mask: Tensor, token_type_ids: Tensor | None = None
    ) -> Tensor:
        """Map inputs, (1, L) each, to logits (1, C), of a token classifier (1, L, C)."""
        segments = {} if token_type_ids is None else {"token_type_ids": token_type_ids.long()}
        mask = (1.0 - attention_mask[:, None, None, :].float()) * FAR
        logits: Tensor = self.model(input_ids=input_ids.long(), attention_mask=mask, **segments).logits
        return logits
