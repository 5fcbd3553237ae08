"""Runs models in OpenVINO on the CPU."""

from __future__ import annotations

import numpy as np

from kdcli.measure.runtime import EncoderRuntime
from kdcli.measure.spec import Encoded, MeasureSpec

LENGTHS = (16, 24, 32, 48, 64, 96, 128)
"""The lengths that single rows are padded to. A fixed shape saves little time for longer rows."""


class OpenVINOEncoder(EncoderRuntime):
    """A graph, compiled for batches of any shape, and once for each of `LENGTHS` for single rows. A call whose shape differs from the
    previous one sets the kernels up again, which takes longer than a small model's computation. The memory that this costs is measured.
    """

    files = ("*.xml",)

    packages, extra = ("openvino", "tokenizers"), "intel"

    def __init__(self, spec: MeasureSpec):
        import openvino

        options = {
            "INFERENCE_NUM_THREADS": spec.threads,
            "NUM_STREAMS": 1,
            "PERFORMANCE_HINT": "LATENCY",
            "ENABLE_CPU_PINNING": False,  # otherwise two interleaved processes, and other load, are pinned to one core
        }
        core = openvino.Core()
        graph = core.read_model(spec.path)
        names = [entry.any_name for entry in graph.inputs]
        self.model = core.compile_model(graph, "CPU", options)
        self.fixed = {}
        for length in sorted({min(length, spec.max_length) for length in LENGTHS}):
            graph.reshape({name: [1, length] for name in names})
            self.fixed[length] = core.compile_model(graph, "CPU", options)
        super().__init__(spec, names)

    def __call__(self, inputs: Encoded) -> np.ndarray:
        # with share_inputs a call would write into the arrays of the previous one
        rows, length = inputs["input_ids"].shape
        size = next((size for size in self.fixed if size >= length), None)
        if rows > 1 or size is None:
            return self.model(inputs, share_inputs=False)["logits"]
        logits = self.fixed[size](self.padded(inputs, size), share_inputs=False)["logits"]
        return logits[:, :length] if logits.ndim == 3 else logits
