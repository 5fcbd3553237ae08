"""Implements `kdcli doctor`, which shows what kdcli finds on this machine."""

from __future__ import annotations

import importlib.metadata
import json
import os
import platform
import re
import shutil
import threading
import urllib.error
import urllib.request
from pathlib import Path
from time import monotonic
from typing import Any, get_args

import psutil

import kdcli
from kdcli import console
from kdcli.config.types import Dtype
from kdcli.errors import ExitCode
from kdcli.files import cache_folder
from kdcli.numbers import format_items

PACKAGES = (
    "torch", "transformers", "tokenizers", "datasets", "accelerate", "safetensors", "huggingface-hub", "hydra-core", "pydantic", "numpy",
)  # fmt: skip
"""The packages whose versions are shown."""
PATIENCE = 3.0
"""The number of seconds to wait for the hub."""
DEVELOPMENT = ("dev",)
"""Extras that a user does not need."""
OFFLINE = ("1", "ON", "YES", "TRUE")
"""The values of HF_HUB_OFFLINE that turn the hub off."""


def examine(as_json: bool) -> int:
    """Print what is found; returns the exit code, which is always 0."""
    findings = {
        "versions": versions(),
        "extras": extras(),
        **machine(),
        "cache": cache(),
        "hub": hub(),
    }
    if as_json:
        console.say(json.dumps(findings, ensure_ascii=False, indent=2))
    else:
        console.table("", ["what", "found"], _rows(findings))
        console.say("next: kdcli init FILE (for your data), or kdcli distill --out runs/demo")
    return ExitCode.DONE


def version_of(package: str) -> str | None:
    """Return the version of a package; None: it is not installed."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def versions() -> dict[str, str | None]:
    """Return the versions of kdcli, Python and the main packages."""
    return {
        "kdcli": kdcli.__version__,
        "python": platform.python_version(),
        **{name: version_of(name) for name in PACKAGES},
    }


def extras() -> dict[str, list[str]]:
    """Return the extras of kdcli, each with its packages that are not installed."""
    required: dict[str, list[str]] = {}
    try:
        requirements = importlib.metadata.requires("kdcli") or []
    except importlib.metadata.PackageNotFoundError:
        return {}
    for requirement in requirements:
        if match := re.match(r"([\w.-]+)(?:\[(\w+)\])?.*extra == ['\"](\w+)['\"]", requirement):
            name = f"kdcli[{match[2]}]" if match[1] == "kdcli" else match[1]
            required.setdefault(match[3], []).append(name)
    missing = {
        extra: [name for name in names if not name.startswith("kdcli[") and version_of(name) is None]
        for extra, names in required.items()
        if extra not in DEVELOPMENT
    }
    inner = {
        extra: [name[6:-1] for name in required[extra] if name.startswith("kdcli[")] for extra in missing
    }
    return {
        extra: sorted({*names, *(each for other in inner[extra] for each in missing.get(other, []))})
        for extra, names in missing.items()
    }


def machine() -> dict[str, Any]:
    """Describe devices, fast precisions, threads and memory. Only this function imports torch."""
    memory = psutil.virtual_memory()
    findings: dict[str, Any] = {
        "platform": f"{platform.system()} {platform.machine()}",
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "memory": {"bytes": memory.total, "free_bytes": memory.available},
    }
    try:
        import torch

        from kdcli.models.dtypes import is_fast
    except Exception as error:  # a broken installation fails in any way
        return findings | {"torch_error": f"{type(error).__name__}: {error}"}
    gpus = [torch.cuda.get_device_properties(index) for index in range(torch.cuda.device_count())]
    return findings | {
        "processor": torch.cpu.get_capabilities().get("cpu_name") or platform.processor(),
        "threads": torch.get_num_threads(),
        "gpus": [{"name": gpu.name, "bytes": gpu.total_memory} for gpu in gpus],
        "fast_dtypes": [dtype for dtype in get_args(Dtype) if is_fast(dtype)],
    }


def cache() -> dict[str, Any]:
    """Return the folder of the cache, its size, and the free disk there."""
    folder = cache_folder()
    try:
        there = next(path for path in (folder, *folder.parents) if path.exists())
        free = shutil.disk_usage(there).free
    except OSError as error:  # the folder cannot be read
        return {"folder": str(folder), "bytes": 0, "free_bytes": None, "problem": str(error)}
    return {"folder": str(folder), "bytes": _size(folder), "free_bytes": free}


def _size(folder: Path) -> int:
    total = 0
    for above, _, names in os.walk(folder):
        for name in names:
            try:
                total += os.lstat(os.path.join(above, name)).st_size
            except OSError:  # another process removed it
                continue
    return total


def hub() -> dict[str, Any]:
    """Return whether the Hugging Face hub can be reached, within `PATIENCE` seconds; no request is sent if HF_HUB_OFFLINE is set."""
    address = os.environ.get("HF_ENDPOINT", "https://huggingface.co").rstrip("/")
    findings: dict[str, Any] = {"address": address, "token": bool(os.environ.get("HF_TOKEN"))}
    if os.environ.get("HF_HUB_OFFLINE", "").upper() in OFFLINE:
        return findings | {"reachable": False, "reason": "HF_HUB_OFFLINE is set"}
    result: dict[str, Any] = {"reachable": False, "reason": f"no answer in {PATIENCE:g} s"}
    # name resolution has no time-out of its own
    thread = threading.Thread(target=_request, args=(address, result), daemon=True)
    thread.start()
    thread.join(PATIENCE)
    return findings | dict(result)


def _request(address: str, result: dict[str, Any]) -> None:
    began = monotonic()
    try:
        request = urllib.request.Request(f"{address}/api/models?limit=1", method="HEAD")
        urllib.request.urlopen(request, timeout=PATIENCE).close()
        result |= {"reachable": True, "reason": "", "seconds": round(monotonic() - began, 2)}
    except urllib.error.HTTPError as error:  # it answers, if not to this request
        result |= {"reachable": error.code < 500, "reason": f"it answers with the status {error.code}"}
    except Exception as error:  # a wrong address fails in any way
        result["reason"] = str(getattr(error, "reason", "") or error)


def _gigabytes(count: int) -> str:
    return f"{count / 1e9:,.1f} GB" if count >= 1e8 else f"{count / 1e6:,.1f} MB"


def _rows(findings: dict[str, Any]) -> list[list[str]]:
    """Return what is found, for people."""
    rows = [[name, version or "not installed"] for name, version in findings["versions"].items()]
    for extra, missing in findings["extras"].items():
        text = f"lacks {', '.join(missing)}: pip install 'kdcli[{extra}]'" if missing else "installed"
        rows.append([f"extra {extra}", text])
    memory, stored, hub = findings["memory"], findings["cache"], findings["hub"]
    rows.append(["platform", f"{findings['platform']}, {format_items(findings['cores'], 'core')}"])
    rows.append(
        ["memory", f"{_gigabytes(memory['bytes'])}, of which {_gigabytes(memory['free_bytes'])} are free"]
    )
    if "torch_error" in findings:
        rows.append(["devices", f"torch cannot be imported ({findings['torch_error']}); install it again"])
    else:
        gpus = [f"{gpu['name']} ({_gigabytes(gpu['bytes'])})" for gpu in findings["gpus"]]
        rows.append(["processor", f"{findings['processor']}, {format_items(findings['threads'], 'thread')}"])
        rows.append(["GPUs", ", ".join(gpus) or "none; models are trained on the processor"])
        rows.append(["fast precisions", ", ".join(findings["fast_dtypes"])])
    rows.append(
        ["cache", f"{stored['folder']}, {_gigabytes(stored['bytes'])} (another folder: KDCLI_CACHE_DIR)"]
    )
    free = stored["free_bytes"]
    rows.append(["free disk there", stored["problem"] if free is None else _gigabytes(free)])
    offline = f"not reachable ({hub['reason']}); models and data come from local folders and the local cache"
    rows.append(["hub", f"{hub['address']} is {'reachable' if hub['reachable'] else offline}"])
    rows.append(["HF_TOKEN", "set" if hub["token"] else "not set; gated and private repositories need it"])
    return rows
