"""Runs models in ExecuTorch on the CPU, with XNNPACK, by its Python build. It needs torch for its tensors; torch computes nothing."""

from __future__ import annotations

import numpy as np

from kdcli.measure.runtime import EncoderRuntime
from kdcli.measure.spec import Encoded, MeasureSpec

NAMES = ("input_ids", "attention_mask", "token_type_ids")
"""The names of a program's inputs, which the program itself does not name. A program has the first of these, in this order."""
LEAST = 2
"""The least number of tokens of a row, because torch.export treats a length of 1 as a constant."""


class ExecuTorchEncoder(EncoderRuntime):
    """A file that takes one row of any length up to the one that it was made for."""

    files = ("*.pte",)
    packages = ("torch", "executorch.extension.pybindings.portable_lib", "executorch.runtime", "tokenizers")
    extra = "mobile"

    def __init__(self, spec: MeasureSpec):
        from executorch.extension.pybindings.portable_lib import _unsafe_reset_threadpool
        from executorch.runtime import Runtime

        _unsafe_reset_threadpool(spec.threads)
        self.program = Runtime.get().load_program(spec.path)
        self.method = self.program.load_method("forward")
        super().__init__(spec, NAMES[: self.method.metadata.num_inputs()])

    def __call__(self, inputs: Encoded) -> np.ndarray:
        import torch

        rows, length = inputs["input_ids"].shape
        tensors = [torch.from_numpy(array) for array in self.padded(inputs, max(length, LEAST)).values()]
        outputs = [self.method.execute([each[row : row + 1] for each in tensors])[0] for row in range(rows)]
        logits = torch.cat(outputs).numpy()
        return logits[:, :length] if logits.ndim == 3 else logits
