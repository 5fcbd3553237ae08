"""A program of torch.export."""

from __future__ import annotations

import numpy as np

from kdcli.runtimes.base import Encoded, File, MeasureSpec


class Model(File):
    """A classifier's program."""

    packages = ("torch", "tokenizers")

    def __init__(self, spec: MeasureSpec):
        import torch
        from torch.export.passes import move_to_device_pass

        torch.set_num_threads(spec.threads)
        program = torch.export.load(spec.path)
        if spec.device != "cpu":
            program = move_to_device_pass(program, spec.device)
        self.run, self.device = program.module(), spec.device
        super().__init__(spec, program.graph_signature.user_inputs)

    def __call__(self, batch: Encoded) -> np.ndarray:
        import torch

        inputs = {name: torch.from_numpy(array).to(self.device) for name, array in batch.items()}
        with torch.inference_mode():
            found: np.ndarray = self.run(**inputs).cpu().numpy()
        return found

    def memory(self) -> int | None:
        """Of the GPU, if it is there."""
        import torch

        return torch.cuda.max_memory_allocated() if self.device == "cuda" else None
