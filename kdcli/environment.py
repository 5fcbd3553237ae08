"""What a result was made with: versions, hardware, code."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import subprocess
from pathlib import Path
from typing import Any

import torch

import kdcli

PACKAGES = ("torch", "transformers", "datasets", "accelerate", "tokenizers", "safetensors", "numpy")
RUNTIMES = (
    "onnx",
    "onnxruntime",
    "ctranslate2",
    "openvino",
    "nncf",
    "xllamacpp",
    "ai-edge-litert",
    "executorch",
    "torchao",
)
"""Packages that make or run files for devices, told where they are installed."""
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
"""What a processor may have, that quantized and half-precision products are quick by."""


def environment() -> dict[str, Any]:
    """Versions of what computes, the machine (without its name) and how busy it is, and the commit of the folder one works in."""
    has = torch.cpu.get_capabilities()
    return {
        "kdcli": kdcli.__version__,
        "python": platform.python_version(),
        **{name: importlib.metadata.version(name) for name in PACKAGES},
        **{name: version for name in RUNTIMES if (version := _version(name))},
        "platform": f"{platform.system()} {platform.machine()}",
        "processor": has.get("cpu_name") or platform.processor(),
        "processor_flags": [flag for flag in FLAGS if has.get(flag)],
        "load": round(os.getloadavg()[0], 2) if hasattr(os, "getloadavg") else None,
        "gpus": [torch.cuda.get_device_name(number) for number in range(torch.cuda.device_count())],
        "threads": torch.get_num_threads(),
        "git": _git_commit(),
    }


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _git_commit() -> str | None:
    try:
        found = subprocess.run(
            ["git", "rev-parse", "HEAD"],
            capture_output=True,
            text=True,
            cwd=Path.cwd(),
            timeout=10,
            check=False,
        )
    except OSError:
        return None
    return found.stdout.strip() or None if found.returncode == 0 else None
