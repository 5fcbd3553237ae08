"""The device that computes: a GPU if torch finds one, else the processor. No other module asks torch which of the two it is."""

from __future__ import annotations

import torch
from torch import nn

from kdcli.memory import free_memory, peak_memory, restart_peak


def has_gpu() -> bool:
    """Return whether models run on a GPU."""
    return torch.cuda.is_available()


def default_device() -> torch.device:
    """Return the device of this process's models; with several GPUs the current one, which Accelerate has set."""
    return torch.device("cuda" if has_gpu() else "cpu")


def to_default_device(model: nn.Module) -> None:
    """Move a model that was loaded on the processor to the device, in place. (The method of transformers refuses quantized models.)"""
    if has_gpu():
        nn.Module.to(model, default_device())


def synchronize() -> None:
    """Wait until the device has done what it was given, before a time is read."""
    if has_gpu():
        torch.cuda.synchronize()


def device_free_memory() -> int | None:
    """Return the bytes that this process can still take on the device: of the GPU, or of the system (None: it does not report it)."""
    return torch.cuda.mem_get_info()[0] if has_gpu() else free_memory()


def restart_device_peak() -> int | None:
    """Reset the peak memory of this process on the device, and return its present memory there; None if the system does not report it."""
    if not has_gpu():
        return restart_peak()
    torch.cuda.reset_peak_memory_stats()
    return torch.cuda.memory_allocated()


def device_peak() -> int | None:
    """Return the peak memory of this process on the device; None if the system does not report it."""
    return torch.cuda.max_memory_allocated() if has_gpu() else peak_memory()
