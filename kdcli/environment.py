"""Describes the environment of a result: versions, hardware, code."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import subprocess
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch

import kdcli

PACKAGES = ("torch", "transformers", "datasets", "accelerate", "tokenizers", "safetensors", "numpy")
FLAGS = (
    "avx2",
    "avx_vnni",
    "avx512_f",
    "avx512_bf16",
    "avx512_vnni",
    "amx_bf16",
    "amx_int8",
    "neon",
    "dotprod",
    "i8mm",
    "bf16",
    "sve",
)
"""Features of a processor that speed up products of quantized and half-precision numbers."""


def environment(packages: Iterable[str] = ()) -> dict[str, Any]:
    """Return versions of packages, the machine (without its name) and its load, and the git commit of the working directory.

    Args:
        packages: further packages, such as those that make and run exported files; those that are not installed are left out.
    """
    load: Callable[[], tuple[float, ...]] | None = getattr(os, "getloadavg", None)  # Windows has none
    capabilities = torch.cpu.get_capabilities()
    return {
        "kdcli": kdcli.__version__,
        "python": platform.python_version(),
        **{name: importlib.metadata.version(name) for name in PACKAGES},
        **dict(filter(None, map(_version, packages))),
        "platform": f"{platform.system()} {platform.machine()}",
        "processor": capabilities.get("cpu_name") or platform.processor(),
        "processor_flags": [flag for flag in FLAGS if capabilities.get(flag)],
        "load": round(load()[0], 2) if load else None,
        "gpus": [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())],
        "threads": torch.get_num_threads(),
        "git": _git_commit(),
    }


def _version(package: str) -> tuple[str, str] | None:
    """Return the name and the version of a package; None: it is not installed."""
    try:
        metadata = importlib.metadata.metadata(package)
        return str(metadata["Name"]), str(metadata["Version"])
    except importlib.metadata.PackageNotFoundError:
        return None


def _git_commit() -> str | None:
    try:
        done = subprocess.run(
            ["git", "rev-parse", "HEAD"],
            capture_output=True,
            text=True,
            cwd=Path.cwd(),
            timeout=10,
            check=False,
        )
    except OSError:
        return None
    return done.stdout.strip() or None if done.returncode == 0 else None
