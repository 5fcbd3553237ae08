"""OpenVINO on the CPU."""

from __future__ import annotations

import numpy as np

from kdcli.runtimes.base import Encoded, File, MeasureSpec


class Model(File):
    """A classifier's graph."""

    packages, extra = ("openvino", "tokenizers"), "intel"

    def __init__(self, spec: MeasureSpec):
        import openvino

        options = {
            "INFERENCE_NUM_THREADS": spec.threads,
            "NUM_STREAMS": 1,
            "PERFORMANCE_HINT": "LATENCY",
            "ENABLE_CPU_PINNING": False,  # else two processes that take turns are pinned to one core, and so is what else runs
        }
        self.model = openvino.Core().compile_model(spec.path, "CPU", options)
        super().__init__(spec, [entry.any_name for entry in self.model.inputs])

    def __call__(self, batch: Encoded) -> np.ndarray:
        # share_inputs: a call would write into the arrays of one that came before
        return self.model(batch, share_inputs=False)["logits"]
