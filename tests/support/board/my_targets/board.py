"""A board that has ONNX Runtime's minimal build, which reads files in ORT format alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from torch import Tensor
from transformers import PreTrainedModel

from kdcli.exporting.targets.base import CLASSIFIERS, Target, exporting
from kdcli.exporting.targets.cpu import Cpu


class Board(Target):
    """`model.ort`, in fp32.

    Args:
        optimize: optimize the graph before it is written.
    """

    serves = CLASSIFIERS
    packages, extra = ("onnx", "onnxruntime"), "cpu"
    caveat = "run by ONNX Runtime on this computer, not on a board"

    def __init__(self, optimize: bool = True):
        self.optimize = optimize

    def export(
        self,
        student: Path,
        out: Path,
        model: PreTrainedModel,
        inputs: Sequence[Mapping[str, Tensor]],
        max_length: int,
    ) -> dict[str, Path]:
        """Write the file, from the ONNX file of `hardware=cpu`."""
        self.require_packages()
        import onnxruntime

        (graph,) = Cpu(["fp32"]).export(student, out, model, inputs, max_length).values()
        file = out / "model.ort"
        options = onnxruntime.SessionOptions()
        options.optimized_model_filepath = str(file)
        options.add_session_config_entry("session.save_model_format", "ORT")
        if not self.optimize:
            options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
        with exporting(model, "in ORT format", out):
            onnxruntime.InferenceSession(graph, options)
        graph.unlink()
        return {"fp32": file}
