"""Checkpoints of teachers and students: loading, conversion, quantization."""

from __future__ import annotations

from typing import Any

from kdcli.config.renamed import attribute


def __getattr__(name: str) -> Any:
    """What `kdcli.models` held when it was one module."""
    if name[0].isupper():
        return attribute(__name__, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
