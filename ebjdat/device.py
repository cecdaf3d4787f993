"""Which device a stage runs on."""

from __future__ import annotations

import os

import torch

from ebjdat.errors import UserError


def processors() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def evaluators(device: torch.device, devices: str | int) -> int:
    """Processes that share one evaluation: one per core on a CPU, one per GPU, at most ``devices`` of them."""
    if device.type == "cpu":
        return processors()
    found = torch.cuda.device_count()
    return min(found, devices) if isinstance(devices, int) else found


def choose_device(wanted: str) -> torch.device:
    """``auto``: CUDA where there is one, else the CPU; ``cpu`` and ``cuda`` are taken at their word.

    Raises:
        UserError: CUDA is asked for and absent.
    """
    available = torch.cuda.is_available()
    if wanted == "cuda" and not available:
        raise UserError("device: cuda was asked for, but PyTorch sees no CUDA device; write device: cpu or auto")
    # float32 means float32: PyTorch would let convolutions on a GPU round their inputs to TF32.
    torch.backends.cuda.matmul.allow_tf32 = False
    torch.backends.cudnn.allow_tf32 = False
    return torch.device("cuda" if available and wanted != "cpu" else "cpu")


def out_of_memory(error: RuntimeError) -> bool:
    """Whether an error of PyTorch means that an allocation failed, on a device or on the host."""
    return isinstance(error, torch.OutOfMemoryError) or "can't allocate memory" in str(error)
