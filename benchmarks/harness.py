"""What the benchmarks share: networks by name, random data, clocks, memory, ceilings, the last line."""

from __future__ import annotations

import argparse
import json
import platform
import re
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from ebjdat import files
from ebjdat.config import Setup, load_params, resolve
from ebjdat.data.gaussians import CLASSES, Mixture
from ebjdat.device import processors
from ebjdat.run import Run

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks" / "results"


def setup_of(profile: str, model: str, seed: int = 0, **values: object) -> Setup:
    """What the parameters say about a run, with ``values`` as :func:`changed` takes them."""
    return changed(resolve(load_params(ROOT, profile), Run(profile, model, seed)), **values)


def changed(setup: Setup, **values: object) -> Setup:
    """A setup with values of its training, recipe or network replaced, by name."""
    sections = {}
    for name in ("training", "recipe", "network"):
        section = getattr(setup, name)
        own = {key: value for key, value in values.items() if section is not None and key in type(section).model_fields}
        sections[name] = section.model_copy(update=own) if own else section
    return replace(setup, **sections)


def options(description: str) -> argparse.ArgumentParser:
    """A parser with the options that every benchmark has."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--network", default="10-1", help="depth-width of the WideResNet, such as 16-2")
    parser.add_argument("--size", type=int, default=32, help="height and width of the images")
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--variant", default="jempp", choices=("jem", "jempp", "sadajem"))
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--device", default="auto", choices=("auto", "cpu", "cuda"))
    parser.add_argument("--threads", type=int, default=None, help="CPU threads; all if left out")
    parser.add_argument("--compile", action="store_true", help="compile the engine's residual blocks")
    parser.add_argument("--out", type=Path, default=None, help="also write the last line to this file")
    return parser


def depth_and_width(network: str) -> tuple[int, int]:
    """``16-2`` as (16, 2)."""
    found = re.fullmatch(r"(\d+)-(\d+)", network)
    if found is None:
        raise SystemExit(f"--network: expected depth-width such as 16-2, got {network}")
    return int(found[1]), int(found[2])


def random_mixture(shape: tuple[int, int, int], device: torch.device) -> Mixture:
    """Gaussians as dense as fitted ones, over images of ``shape``, around grey."""
    dimension = shape[0] * shape[1] * shape[2]
    generator = torch.Generator(device).manual_seed(0)
    chol = torch.randn(CLASSES, dimension, dimension, generator=generator, device=device).tril_()
    chol.mul_(0.2 / dimension**0.5)
    return Mixture(torch.full((CLASSES, dimension), 0.5, device=device), chol, shape)


def synchronise(device: torch.device) -> None:
    """Wait for what the device has been given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def seconds(call: Callable[[], Any], device: torch.device) -> tuple[float, float]:
    """Wall-clock time and this process's CPU time of one call, the device's work included."""
    synchronise(device)
    started, used = time.perf_counter(), time.process_time()
    call()
    synchronise(device)
    return time.perf_counter() - started, time.process_time() - used


def medians(
    calls: Mapping[str, Callable[[], Any]], repeats: int, device: torch.device
) -> dict[str, tuple[float, float]]:
    """Median wall-clock and CPU seconds of each call after one to warm up.

    The calls take turns, so that all meet the same load of the machine. CPU seconds hardly depend on it.
    """
    for call in calls.values():
        call()
    taken: dict[str, list[tuple[float, float]]] = {name: [] for name in calls}
    for _ in range(repeats):
        for name, call in calls.items():
            taken[name].append(seconds(call, device))
    return {
        name: (statistics.median(wall for wall, _ in values), statistics.median(used for _, used in values))
        for name, values in taken.items()
    }


def forward_flops(model: torch.nn.Module, x: Tensor) -> int:
    """Floating-point operations of the convolutions and matrix products of one forward of x."""
    counter = FlopCounterMode(display=False)
    with torch.no_grad(), counter:
        model(x)
    return counter.get_total_flops()


def resident_mb(field: str) -> float:
    """``VmRSS`` (now) or ``VmHWM`` (peak) of this process in MiB, on Linux."""
    status = Path("/proc/self/status").read_text(encoding="utf-8")
    found = re.search(rf"^{field}:\s+(\d+) kB", status, re.MULTILINE)
    return float("nan") if found is None else int(found[1]) / 1024


def peak_of(call: Callable[[], Any], device: torch.device, before_mb: float) -> float:
    """Peak MiB while ``call`` runs: allocated on the GPU, or resident on the CPU above ``before_mb``."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        call()
        synchronise(device)
        return torch.cuda.max_memory_allocated(device) / 2**20
    Path("/proc/self/clear_refs").write_text("5", encoding="utf-8")  # the peak starts again from here
    call()
    return resident_mb("VmHWM") - before_mb


def in_child(module: str, arguments: list[str]) -> dict[str, Any]:
    """The last line, read as JSON, of ``python -m module arguments`` in a process of its own."""
    command = [sys.executable, "-m", module, *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return json.loads(done.stdout.strip().splitlines()[-1])


def machine(device: torch.device) -> dict[str, Any]:
    """What ran: device name, threads, versions."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else cpu_name()
    return {
        "device": name,
        "cores": processors(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "python": platform.python_version(),
    }


def cpu_name() -> str:
    """The processor's name, as Linux has it."""
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8")
    except OSError:
        return platform.processor() or "CPU"
    found = re.search(r"^model name\s*:\s*(.+)$", text, re.MULTILINE)
    return found[1].strip() if found else "CPU"


def finish(result: dict[str, Any], out: Path | None) -> None:
    """Print the result as the last line, and write it where asked."""
    rounded = json.loads(json.dumps(result), parse_float=lambda text: float(f"{float(text):.5g}"))
    print(json.dumps(rounded))
    if out is not None:
        files.write_json(out, rounded)


def images(n: int, size: int, seed: int, device: torch.device) -> Tensor:
    """Random images (n,3,size,size) in [0, 1], channels last."""
    generator = torch.Generator(device).manual_seed(seed)
    x = torch.rand(n, 3, size, size, generator=generator, device=device)
    return x.contiguous(memory_format=torch.channels_last)
