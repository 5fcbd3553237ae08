"""The config: its schema, how it is checked, and where its YAML files lie. Never imports torch."""

from __future__ import annotations

from typing import Any

from kdcli.config.renamed import attribute


def __getattr__(name: str) -> Any:
    """What `kdcli.config` held when it was one module: its types and sections."""
    if name[0].isupper():
        return attribute(__name__, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
