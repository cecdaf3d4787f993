"""Which device a stage runs on."""

from __future__ import annotations

import functools
import os
import re
import shutil
import sys

import torch

from ebjdat.command import processors
from ebjdat.errors import UserError

THREADS = 2
"""Of every evaluation on a CPU but AutoAttack, whose workers take one each."""


def evaluators(device: torch.device, devices: str | int) -> int:
    """Processes that share one evaluation: one per core on a CPU, one per GPU, at most ``devices`` of them."""
    if device.type == "cpu":
        return processors()
    found = torch.cuda.device_count()
    return min(found, devices) if isinstance(devices, int) else found


def choose_device(wanted: str, deterministic: bool = False) -> torch.device:
    """``auto``: CUDA where there is one, else the CPU; ``cpu`` and ``cuda`` are taken at their word.

    Where ``auto`` passes over a GPU that this PyTorch cannot use, one warning says why.

    Args:
        deterministic: see :func:`set_kernels`.

    Raises:
        UserError: CUDA is asked for and absent.
    """
    unusable = "" if wanted == "cpu" else _unusable()
    if unusable and wanted == "cuda":
        raise UserError(f"device: cuda was asked for, but {unusable}; write device: cpu or auto")
    device = torch.device("cpu" if unusable or wanted == "cpu" else "cuda")
    set_kernels(deterministic and device.type == "cuda")
    hidden = os.environ.get("CUDA_VISIBLE_DEVICES") in ("", "-1")
    if unusable and torch.version.cuda and shutil.which("nvidia-smi") and not hidden:
        _warn(f"warning: the CPU computes, though this machine has a GPU: {unusable}")
    return device


def set_kernels(deterministic: bool) -> None:
    """Which kernels of CUDA this process uses; a worker process has to be told again.

    float32 means float32: PyTorch would let convolutions round their inputs to TF32. With ``deterministic`` the same
    call gives the same bits each time. A CPU does so anyway.
    """
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    torch.backends.cudnn.benchmark = False
    if deterministic != torch.are_deterministic_algorithms_enabled():  # the call imports a compiler, for seconds
        torch.use_deterministic_algorithms(deterministic)
    if deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # cuBLAS reads it when it starts


def fix_threads(device: torch.device) -> None:
    """On a CPU, evaluate with a fixed number of threads: batch statistics round otherwise with another number.

    So records do not depend on how many stages run at once, nor on the cores of a machine.
    """
    if device.type == "cpu":
        torch.set_num_threads(THREADS)


def _unusable() -> str:
    """Why PyTorch can use no CUDA device; empty where it can."""
    if torch.cuda.is_available():
        built = [int(digits[0]) for name in torch.cuda.get_arch_list() if (digits := re.findall(r"sm_(\d+)", name))]
        major, minor = torch.cuda.get_device_capability()
        if 10 * major + minor >= min(built, default=0):
            return ""
        return f"it has compute capability {major}.{minor}, and this PyTorch is built for {min(built) / 10} and newer"
    try:
        torch.cuda.init()
    except (RuntimeError, AssertionError) as error:
        return f"PyTorch sees no CUDA device ({str(error).splitlines()[0].rstrip('. ')})"
    return "PyTorch sees no CUDA device"


@functools.cache
def _warn(text: str) -> None:
    print(text, file=sys.stderr)


def out_of_memory(error: RuntimeError) -> bool:
    """Whether an error of PyTorch means that an allocation failed, on a device or on the host."""
    return isinstance(error, torch.OutOfMemoryError) or "can't allocate memory" in str(error)
