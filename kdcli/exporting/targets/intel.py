"""Writes files of OpenVINO for Intel processors (and others of x86 and ARM)."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
from pydantic import Field
from torch import Tensor
from transformers import PreTrainedConfig, PreTrainedModel

from kdcli.exporting.targets.base import CLASSIFIERS, Target, copy_tokenizer, exporting, quietly, sample_batch

FILES = {"fp16": "model.fp16.xml", "int8_weights": "model.int8_weights.xml", "int8": "model.int8.xml"}
UNWRITTEN = ("funnel", "longformer")
"""The `model_type` of classifiers that OpenVINO 2026.4 does not convert, or not for any number of tokens."""


class Intel(Target):
    """OpenVINO files, a graph (.xml) and its weights (.bin): `model.fp16.xml`, `model.int8_weights.xml`, `model.int8.xml`.

    Inputs are named as in transformers (input_ids, attention_mask, token_type_ids: int64, (batch, sequence), both axes
    free), the output is `logits`. Values that remain floats are stored in fp16. The runtime computes them in bf16 where the
    processor has products for it, else in fp32, so predictions can differ a little from machine to machine.

    fp16: the weights are stored in half precision. int8_weights: the weights of matrix products and embeddings have 8 bits, symmetric, with a
    scale per output channel; no data is needed. int8: post-training quantization by NNCF, which also fixes the ranges of
    activations on rows of the training split (`hardware.calibration_rows`). Unlike with the dynamic int8 of
    `hardware=cpu`, the logits of a row then depend on that row alone. The head after the pooling remains in floats.

    Args:
        precisions: which files to make.
    """

    serves = CLASSIFIERS
    packages, extra = ("openvino", "nncf"), "intel"

    def __init__(
        self, precisions: Annotated[list[Literal["fp16", "int8_weights", "int8"]], Field(min_length=1)]
    ):
        self.precisions = precisions

    def refusal(self, model_class: type[PreTrainedModel], config: PreTrainedConfig) -> str | None:
        """Refuse what OpenVINO does not convert."""
        if config.get_text_config().model_type in UNWRITTEN:
            return "OpenVINO does not convert it; hardware=cuda writes it, with hardware.precisions=[bf16]"
        return None

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
            ExportError: openvino or nncf is missing, or the architecture cannot be converted.
        """
        self.require_packages()
        rows = [{name: tensor.numpy() for name, tensor in row.items()} for row in inputs]
        files: dict[str, Path] = {precision: out / FILES[precision] for precision in self.precisions}
        with exporting(model, "for OpenVINO", out), quietly(), _without_telemetry():
            import openvino

            graph = _converted(model, list(inputs[0]))
            for precision, file in files.items():
                openvino.save_model(_quantized(graph.clone(), precision, rows), file, compress_to_fp16=True)
        copy_tokenizer(student, out, max_length)
        return files


def _converted(model: PreTrainedModel, names: list[str]) -> Any:
    """Return the graph in fp32, by transformers' exporter, from a batch of two, or the batch's axis would be fixed."""
    from transformers.exporters.configs import OpenVINOConfig
    from transformers.exporters.exporter_openvino import OpenVINOExporter

    batch: Any = sample_batch(model, names)
    free = {0: torch.export.Dim.AUTO, 1: torch.export.Dim.AUTO}
    config = OpenVINOConfig(dynamic=True, dynamic_shapes=dict.fromkeys(names, free), stateful=False)
    graph = OpenVINOExporter().export(model, batch, config=config).program
    # the exporter pins the precision of what computes to fp32
    del graph.rt_info["runtime_options"]
    return graph


def _quantized(graph: Any, precision: str, rows: list[dict[str, Any]]) -> Any:
    import nncf

    if precision == "int8_weights":
        return nncf.compress_weights(graph, mode=nncf.CompressWeightsMode.INT8_SYM)
    if precision == "int8":
        return nncf.quantize(
            graph,
            nncf.Dataset(rows),
            model_type=nncf.ModelType.TRANSFORMER,
            subset_size=len(rows),
            ignored_scope=nncf.IgnoredScope(names=_head(graph)),
        )
    return graph


def _head(graph: Any) -> list[str]:
    """Return the matrix products that a row goes through as one vector. They take little time and few bytes, and OpenVINO 2026.4
    computes them wrongly in int8 where the batch of one is fixed, they are narrow and their input is not negative
    (DistilBERT's, after its ReLU).
    """
    return [
        node.get_friendly_name()
        for node in graph.get_ops()
        if node.get_type_name() == "MatMul" and node.input(0).get_partial_shape().rank == 2
    ]


@contextlib.contextmanager
def _without_telemetry() -> Iterator[None]:
    """Both packages send usage data to their makers, unless they run in CI."""
    before = dict(os.environ)
    os.environ |= {"CI": "true", "NNCF_CI": "1"}
    try:
        yield
    finally:
        for name in ("CI", "NNCF_CI"):
            os.environ.pop(name)
            os.environ |= {name: before[name]} if name in before else {}
