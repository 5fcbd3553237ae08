"""A phone: LiteRT (Android, iOS) and ExecuTorch files of classifiers, run here by the Python builds of both."""

from __future__ import annotations

import copy
import importlib.util
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor
from transformers import PreTrainedModel

from kdcli.errors import ExportError
from kdcli.files import write_text
from kdcli.hardware import litert
from kdcli.hardware.base import Target, copy_beside, quietly
from kdcli.runtimes.executorch import LEAST, NAMES

PACKAGES = {"litert": ("ai_edge_litert",), "executorch": ("executorch", "torchao")}
FILES = {"litert": ("int8", "model.int8.tflite"), "executorch": ("fp32", "model.pte")}
"""What each is called: its precision, and its name."""
SNIPPETS = Path(__file__).parents[1] / "snippets"
"""By runtime and task, for some program's language each."""
SHORTEST = 16
"""Tokens of a LiteRT file's first signature; of 8 (0.05 ms) it would save 0.03 ms."""


class Mobile(Target):
    """`model.int8.tflite`, for LiteRT, and `model.pte`, for ExecuTorch with XNNPACK.

    LiteRT, int8: weights in 8 bits with a scale per output channel, activations quantized as they come, so no
    calibration data is needed. Its shapes are fixed, so the file has a signature `tokens_16`, `tokens_32` … for rows
    padded to so many tokens, which share their weights: a short text takes the time of a short one. Inputs are named as in
    transformers, int32 (1, tokens); the output is `logits`, (1, labels), of a token classifier (1, tokens, labels).

    ExecuTorch, fp32: `forward` takes input_ids, attention_mask, token_type_ids (if the student has them) in that order,
    int64 (1, tokens), of any number from 2 on, and gives the logits.

    Beside them lies what runs them without kdcli, in Python and in Kotlin.

    Args:
        formats: which files to make.
    """

    serves = ("classification", "token_classification")
    note = "run by the Python builds of LiteRT and ExecuTorch on this machine, not on a phone"

    def __init__(self, formats: Annotated[list[Literal["litert", "executorch"]], Field(min_length=1)]):
        self.formats = formats

    def export(
        self,
        student: Path,
        out: Path,
        model: PreTrainedModel,
        inputs: Sequence[Mapping[str, Tensor]],
        max_length: int,
    ) -> dict[str, Path]:
        """Write the files of all formats. Of the inputs only the names are used; the model is left as it was.

        Raises:
            ExportError: a package is missing and cannot be had, or an exporter refused the architecture.
        """
        needed = [name for each in self.formats for name in PACKAGES[each]]
        if missing := [name for name in needed if importlib.util.find_spec(name) is None]:
            raise ExportError(
                f"no module {', '.join(missing)}: hardware=mobile needs it; install it with: pip install 'kdcli[mobile]'"
            )
        names = [name for name in NAMES if name in inputs[0]]
        files = {}
        for each in self.formats:
            precision, name = FILES[each]
            files[precision] = out / name
            try:
                if each == "litert":
                    litert.write(student, type(model).__name__, names, lengths(max_length), out / name)
                else:
                    _write_executorch(model, names, max_length, out / name)
            except ExportError as error:
                others = [other for other in self.formats if other != each]
                raise ExportError(
                    str(error)
                    + (f"; leave it out with hardware.formats=[{','.join(others)}]" if others else "")
                ) from error
        copy_beside(student, out)
        _write_snippets(out, type(model).__name__, self.formats, max_length)
        return files


def lengths(most: int) -> list[int]:
    """16, 32, 64 … below the most tokens that a row may have, and that."""
    doubled = [SHORTEST << times for times in range(most.bit_length())]
    return [*(length for length in doubled if length < most), most]


def _write_executorch(model: PreTrainedModel, names: Sequence[str], max_length: int, path: Path) -> None:
    """The program in fp32, by transformers' exporter, with the fused attention and an open length.

    An open length costs nothing (128 tokens: 4.5 ms, and 10.9 with a fixed one).
    """
    from transformers.exporters import ExecutorchConfig, ExecutorchExporter

    most = max(max_length, LEAST + 1)
    sample = {name: torch.ones(1, most, dtype=torch.long) for name in names}
    length = torch.export.Dim("length", min=LEAST, max=most)
    config = ExecutorchConfig(backend="xnnpack", dynamic_shapes={name: {1: length} for name in names})
    try:
        with quietly():
            made = ExecutorchExporter().export(copy.deepcopy(model), sample, config=config)
            ExecutorchExporter.save_program(made.program, path)
    except Exception as error:  # the exporter lets through whatever the model's code raises under it
        first = next(iter(str(error).strip().splitlines()), type(error).__name__)
        raise ExportError(f"{type(model).__name__} cannot be written for ExecuTorch: {first}") from error


def _write_snippets(out: Path, kind: str, formats: Sequence[str], max_length: int) -> None:
    """Write what runs the files without kdcli."""
    task = "token_classification" if kind.endswith("TokenClassification") else "classification"
    side = json.loads((out / "tokenizer_config.json").read_text(encoding="utf-8")).get(
        "truncation_side", "right"
    )
    for each in formats:
        for snippet in SNIPPETS.glob(f"{each}_{task}.*"):
            text = snippet.read_text(encoding="utf-8")
            for name, value in (("MAX_LENGTH", str(max_length)), ("SIDE", json.dumps(side))):
                text = re.sub(rf"^((?:val )?{name} = ).*", rf"\g<1>{value}", text, flags=re.MULTILINE)
            write_text(out / f"run_{each}{snippet.suffix}", text)
