"""What the tests of targets and runtimes share."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from dataclasses import asdict
from typing import Any

import pytest

from kdcli.measure.spec import MeasureSpec

ENCODER_SIZES = {
    "vocab_size": 200,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 64,
    "max_position_embeddings": 66,
    "num_labels": 3,
}
"""The config of a tiny classifier."""
WORKER = "import sys; from kdcli.measure.worker import main; main(); print(*sys.modules, file=sys.stderr)"


def hide_packages(monkeypatch: pytest.MonkeyPatch, *names: str) -> None:
    """Let packages look as if they were not installed."""
    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *more: None if name in names else find(name, *more)
    )


def run_worker(spec: MeasureSpec, prompts: Any, *calls: dict[str, Any]) -> tuple[list[Any], set[str]]:
    """Call methods of the process that measures a model.

    Returns:
        The responses, of which the first is that of loading the model, and the modules that the process has imported.
    """
    lines = [{"spec": asdict(spec), "prompts": prompts}, *calls]
    done = subprocess.run(
        [sys.executable, "-c", WORKER],
        input="\n".join(map(json.dumps, lines)),
        capture_output=True,
        text=True,
        check=True,
    )
    return [*map(json.loads, done.stdout.splitlines())], set(done.stderr.split())
