"""ONNX Runtime with files in ORT format."""

from __future__ import annotations

import numpy as np

from kdcli.measure.runtime import EncoderRuntime
from kdcli.measure.spec import Encoded, MeasureSpec


class OrtEncoder(EncoderRuntime):
    """A classifier in ORT format."""

    files = ("*.ort",)
    packages, extra = ("onnxruntime", "tokenizers"), "cpu"

    def __init__(self, spec: MeasureSpec):
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = spec.threads
        self.session = onnxruntime.InferenceSession(spec.path, options)
        super().__init__(spec, [entry.name for entry in self.session.get_inputs()])

    def __call__(self, inputs: Encoded) -> np.ndarray:
        logits: np.ndarray = self.session.run(["logits"], inputs)[0]
        return logits
