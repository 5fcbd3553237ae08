"""Writes files for servers with a GPU: a checkpoint in bf16, and a program of torch.export."""

from __future__ import annotations

import copy
import io
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
from pydantic import Field
from torch import Tensor
from transformers import PreTrainedConfig, PreTrainedModel

from kdcli import console
from kdcli.device import has_gpu
from kdcli.exporting.targets.base import (
    CLASSIFIERS,
    GENERATORS,
    Target,
    copy_tokenizer,
    enable_truncation,
    exporting,
    quietly,
    sample_batch,
)
from kdcli.models.vocabulary import TOKENIZER_FILES

FILES = {"bf16": "bf16", "pt2": "model.pt2"}
UNWRITTEN = ("axk2", "fnet", "funnel", "longformer", "mobilebert", "qwen3_5", "qwen3_5_text", "qwen3_next")
"""The `model_type` of classifiers of which torch.export (torch 2.13) writes no program for any number of tokens, or none in bf16."""


class Cuda(Target):
    """`bf16`, a plain Hugging Face directory with weights in bf16, which vLLM, SGLang, TGI or transformers serve; and, of
    classifiers, `model.pt2`, a program of torch.export in bf16, which torch alone loads (`torch.export.load`; AOTInductor compiles it).

    The program's inputs are named as in transformers (input_ids, attention_mask, token_type_ids: int64, (batch, sequence), both
    axes free), its output is the logits, (batch, labels), of a token classifier (batch, sequence, labels).

    Both run on the GPU, and so does the torch student for comparison (fp32, eagerly); without a GPU on the processor, with a warning.

    Args:
        precisions: the files to make; None: bf16, and of classifiers pt2 as well.
    """

    serves = (*CLASSIFIERS, *GENERATORS)

    def __init__(
        self, precisions: Annotated[list[Literal["bf16", "pt2"]], Field(min_length=1)] | None = None
    ):
        self.precisions = precisions

    @property
    def device(self) -> Literal["cpu", "cuda"]:
        if has_gpu():
            return "cuda"
        console.warn("there is no GPU here: the files of hardware=cuda are run, and timed, on the processor")
        return "cpu"

    def refusal(self, model_class: type[PreTrainedModel], config: PreTrainedConfig) -> str | None:
        """Refuse programs of models that generate text, of encoder-decoders that classify, in which the number of end tokens is not known, and of
        classifiers that torch.export does not write."""
        generates = model_class.can_generate()
        if "pt2" not in (self.precisions or ([] if generates else ["pt2"])):
            return None
        if generates:
            return "pt2 is for classifiers; give hardware.precisions=[bf16]"
        if config.is_encoder_decoder or config.get_text_config().model_type in UNWRITTEN:
            return "torch.export does not write it; leave pt2 out with hardware.precisions=[bf16]"
        return None

    @property
    def reads_text(self) -> bool:
        return "pt2" in (self.precisions or ["pt2"])

    def export(
        self,
        student: Path,
        out: Path,
        model: PreTrainedModel,
        inputs: Sequence[Mapping[str, Tensor]],
        max_length: int,
    ) -> dict[str, Path]:
        """Write the files of all precisions. The model is not changed.

        Raises:
            ExportError: the architecture cannot be exported.
        """
        writes = model.can_generate()
        precisions = self.precisions or (["bf16"] if writes else ["bf16", "pt2"])
        files: dict[str, Path] = {precision: out / FILES[precision] for precision in precisions}
        half = copy.deepcopy(model).bfloat16()
        if "bf16" in files:
            with exporting(model, "in bf16", out):
                half.save_pretrained(files["bf16"])
            for name in TOKENIZER_FILES:
                if (student / name).is_file():
                    shutil.copyfile(student / name, files["bf16"] / name)
            if not writes:
                enable_truncation(files["bf16"], max_length)
        if "pt2" in files:
            with exporting(model, "by torch.export", out), quietly():
                archive = io.BytesIO()  # torch's own writer of files aborts the process if the disk is full
                torch.export.save(_program(half, list(inputs[0]), max_length), archive)
                files["pt2"].write_bytes(archive.getbuffer())
            copy_tokenizer(student, out, max_length)
        return files


def _program(model: PreTrainedModel, names: list[str], max_length: int) -> Any:
    """Return the exported program, whose batch size and sequence length are dynamic."""
    batch = sample_batch(model, names)
    free = {0: torch.export.Dim("batch"), 1: torch.export.Dim("sequence", max=max_length)}
    shapes = dict.fromkeys(batch, free)
    with torch.no_grad():
        return torch.export.export(_Logits(model), (), batch, dynamic_shapes=shapes)


class _Logits(torch.nn.Module):
    """Named inputs to logits alone, in fp32: what the program computes."""

    def __init__(self, model: PreTrainedModel):
        super().__init__()
        self.model = model.eval()

    def forward(
        self, input_ids: Tensor, attention_mask: Tensor, token_type_ids: Tensor | None = None
    ) -> Tensor:
        """Map inputs, (B, L) each, to logits (B, C), of a token classifier (B, L, C)."""
        segments = {} if token_type_ids is None else {"token_type_ids": token_type_ids}
        logits: Tensor = self.model(input_ids=input_ids, attention_mask=attention_mask, **segments).logits
        return logits.float()
