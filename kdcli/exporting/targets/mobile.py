"""Writes LiteRT (Android, iOS) and ExecuTorch files of classifiers for phones. The Python builds of both runtimes run them here."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field
from torch import Tensor
from transformers import PreTrainedConfig, PreTrainedModel

from kdcli.errors import ExportError
from kdcli.exporting.targets.base import CLASSIFIERS, Target, copy_tokenizer
from kdcli.exporting.writers import executorch, litert

PACKAGES = {"litert": ("ai_edge_litert",), "executorch": ("executorch", "torchao")}
FILES = {
    "litert_int8": "model.int8.tflite",
    "executorch_fp32": "model.fp32.pte",
    "executorch_int8": "model.int8.pte",
}
UNWRITTEN = ("fnet", "funnel", "longformer", "qwen3_5", "qwen3_5_text", "tapas")
"""The `model_type` of classifiers that both converters refuse, or whose files the runtimes cannot run (litert-torch 0.10, ExecuTorch 1.5): their
operations have no kernel, or depend on the values of a row or on its length."""
SHORTEST = 16
"""The number of tokens of the first signature of a LiteRT file; a signature of 8 tokens would hardly be faster."""


class Mobile(Target):
    """`model.int8.tflite`, for LiteRT; `model.fp32.pte` and `model.int8.pte`, for ExecuTorch with XNNPACK.

    Both have the same int8: weights have 8 bits and a scale per output channel, and activations are quantized dynamically, so no calibration
    data is needed.

    Shapes of LiteRT are fixed, so its file has a signature `tokens_16`, `tokens_32` … for rows padded to that many tokens. The signatures
    share their weights, and a short text runs at the speed of a short signature. Inputs are named as in
    transformers, int32 (1, tokens); the output is `logits`, (1, labels), of a token classifier (1, tokens, labels).

    ExecuTorch: `forward` takes input_ids, attention_mask, token_type_ids (if the student has them) in that order,
    int64 (1, tokens), of any number from 2 on, and gives the logits.

    A file that cannot be made is reported, and the others are made.

    Args:
        formats: which files to make.
    """

    serves = CLASSIFIERS
    packages, extra = tuple(name for names in PACKAGES.values() for name in names), "mobile"
    caveat = "run by the Python builds of LiteRT and ExecuTorch on this computer, not on a phone"

    def __init__(
        self,
        formats: Annotated[
            list[Literal["litert_int8", "executorch_fp32", "executorch_int8"]], Field(min_length=1)
        ],
    ):
        self.formats = formats

    def refusal(self, model_class: type[PreTrainedModel], config: PreTrainedConfig) -> str | None:
        """Refuse encoder-decoders, in which the number of end tokens is not known, and architectures that the converters refuse."""
        if config.is_encoder_decoder:
            return "torch.export does not write it; hardware=cpu does"
        if config.get_text_config().model_type not in UNWRITTEN:
            return None
        formats = " and ".join(self.formats)
        return f"{formats} cannot hold it; hardware=cuda writes it, with hardware.precisions=[bf16]"

    def export(
        self,
        student: Path,
        out: Path,
        model: PreTrainedModel,
        inputs: Sequence[Mapping[str, Tensor]],
        max_length: int,
    ) -> dict[str, Path]:
        """Write the files of all formats. Only the names of the inputs are used; the model is not changed.

        Raises:
            ExportError: a package is missing, or no file could be made.
        """
        needed = {name for each in self.formats for name in PACKAGES[each.partition("_")[0]]}
        self.require_packages(*sorted(needed))
        files: dict[str, Path] = {}
        failed: dict[str, str] = {}
        for each in self.formats:
            runtime, _, precision = each.partition("_")
            file = out / FILES[each]
            try:
                if runtime == "litert":
                    litert.write(student, type(model).__name__, list(inputs[0]), lengths(max_length), file)
                else:
                    executorch.write(model, precision, list(inputs[0]), max_length, file)
                files[each] = file
            except ExportError as error:
                failed[file.name] = str(error)
                file.unlink(missing_ok=True)
        if not files:
            raise ExportError("\n".join(dict.fromkeys(failed.values())))
        self.failed = failed
        copy_tokenizer(student, out, max_length)
        return files


def lengths(most: int) -> list[int]:
    """Return 16, 32, 64 … below the maximum number of tokens of a row, and that maximum."""
    doubled = [SHORTEST << times for times in range(most.bit_length())]
    return [*(length for length in doubled if length < most), most]
