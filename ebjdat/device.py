"""Which device a stage runs on."""

from __future__ import annotations

import functools
import os
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


def choose_device(wanted: str) -> torch.device:
    """``auto``: CUDA where there is one, else the CPU; ``cpu`` and ``cuda`` are taken at their word.

    Where ``auto`` passes over a GPU that this PyTorch cannot use, one warning says why.

    Raises:
        UserError: CUDA is asked for and absent.
    """
    # float32 means float32: PyTorch would let convolutions on a GPU round their inputs to TF32.
    torch.backends.cuda.matmul.allow_tf32 = False
    torch.backends.cudnn.allow_tf32 = False
    if wanted == "cpu":
        return torch.device("cpu")
    if torch.cuda.is_available():
        return torch.device("cuda")
    if wanted == "cuda":
        raise UserError(f"device: cuda was asked for, but {_no_cuda()}; write device: cpu or auto")
    hidden = os.environ.get("CUDA_VISIBLE_DEVICES") in ("", "-1")
    if torch.version.cuda and shutil.which("nvidia-smi") and not hidden:
        _warn(f"warning: the CPU computes, though this machine has a GPU: {_no_cuda()}")
    return torch.device("cpu")


def fix_threads(device: torch.device) -> None:
    """On a CPU, evaluate with a fixed number of threads: batch statistics round otherwise with another number.

    So records do not depend on how many stages run at once, nor on the cores of a machine.
    """
    if device.type == "cpu":
        torch.set_num_threads(THREADS)


def _no_cuda() -> str:
    """Why PyTorch sees no CUDA device."""
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
