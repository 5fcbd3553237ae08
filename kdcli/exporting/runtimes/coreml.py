"""Declares Core ML on Apple's devices. Its packages are made here and cannot run here."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from kdcli.errors import ExportError
from kdcli.measure.runtime import EncoderRuntime
from kdcli.measure.spec import Encoded, MeasureSpec


class CoreMLEncoder(EncoderRuntime):
    """A Core ML package, which is a folder."""

    markers, weights = ("Manifest.json",), ("**/*",)
    runs_here = False

    @classmethod
    def config_folder(cls, path: Path) -> Path:
        return path.parent

    def __init__(self, spec: MeasureSpec):
        raise ExportError(
            f"nothing here runs {spec.path}: Core ML runs on Apple's devices alone; measure it there"
        )

    def __call__(self, inputs: Encoded) -> np.ndarray:
        raise NotImplementedError
