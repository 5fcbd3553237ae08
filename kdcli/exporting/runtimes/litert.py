"""Runs models in LiteRT (TensorFlow Lite) on the CPU, with XNNPACK, by its Python build."""

from __future__ import annotations

import numpy as np

from kdcli.errors import ExportError
from kdcli.measure.runtime import EncoderRuntime
from kdcli.measure.spec import Encoded, MeasureSpec


class LiteRTEncoder(EncoderRuntime):
    """A file with one signature for each of several row lengths. A row runs in the shortest signature that fits it."""

    files = ("*.tflite",)
    packages, extra = ("ai_edge_litert.interpreter", "tokenizers"), "mobile"

    def __init__(self, spec: MeasureSpec):
        from ai_edge_litert.interpreter import Interpreter

        self.interpreter = Interpreter(model_path=spec.path, num_threads=spec.threads)
        runners = map(self.interpreter.get_signature_runner, self.interpreter.get_signature_list())
        self.runners = {runner.get_input_details()["input_ids"]["shape"][1]: runner for runner in runners}
        self.lengths = sorted(self.runners)
        super().__init__(spec, list(self.runners[self.lengths[0]].get_input_details()))

    def __call__(self, inputs: Encoded) -> np.ndarray:
        rows, length = inputs["input_ids"].shape
        size = next((size for size in self.lengths if size >= length), None)
        if size is None:
            raise ExportError(
                f"the file takes rows of at most {self.lengths[-1]} tokens, and one has {length}: set dataset.max_length"
            )
        arrays = self.padded(inputs, size, np.int32)
        outputs = [
            self.runners[size](**{name: array[row : row + 1] for name, array in arrays.items()})["logits"]
            for row in range(rows)
        ]
        logits = np.concatenate(outputs)
        return logits[:, :length] if logits.ndim == 3 else logits
