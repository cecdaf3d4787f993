"""AutoAttack `standard` by our stage against the official package called plainly, on the same slices of images.

    python -m benchmarks.autoattack                        # EB-JDAT-JEM++ on digits, which `dvc repro` trains
    python -m benchmarks.autoattack --profile cifar10-small --model pgd_at --images 1000 --slice 500

Plainly: one process with PyTorch's own number of threads, the model as a user would build it (contiguous
weights), the package's own loop per slice. Ours: the stage's code, that is one single-threaded process per
core on a CPU, weights in channels_last, audits and outcomes on disk included. Both start cold and run in
float32. Writes ``benchmarks/results/autoattack.json`` and ends with it as one line; ``differing`` are the
images whose flags differ, which the layout's rounding may cause.
"""

from __future__ import annotations

import argparse
import importlib
import os
import tempfile
import time
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from benchmarks import harness
from ebjdat import files
from ebjdat.attacks.autoattack import Job, package, package_version
from ebjdat.attacks.outcomes import Outcomes
from ebjdat.attacks.slices import run_jobs
from ebjdat.config import load_params
from ebjdat.data.prepared import load_prepared
from ebjdat.device import choose_device, processors
from ebjdat.model.store import load_model

RESULT = harness.RESULTS / "autoattack.json"
SEED = 0


def main() -> None:
    """Measure both and write the comparison."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--profile", help="default: that of params.yaml")
    parser.add_argument("--model", default="ebjdat-jempp", help="of seed 0")
    parser.add_argument("--images", type=int, default=128)
    parser.add_argument("--slice", type=int, default=64)
    parser.add_argument("--device", choices=["auto", "cpu", "cuda"], default="auto")
    arguments = parser.parse_args()
    params = load_params(profile=arguments.profile)
    profile = params.profile
    device = choose_device(arguments.device)
    path = Path("models") / profile / arguments.model / "0" / "best.pt"
    data = load_prepared(Path("data") / profile)
    x, y = data.x_test[: arguments.images].to(device), data.y_test[: arguments.images].to(device)
    eps = params.current.evaluation.radius
    found = compare(path, x, y, eps=eps, size=arguments.slice, device=device)
    settings = {"profile": profile, "model": arguments.model, "images": len(x), "slice": arguments.slice, "eps": eps}
    settings["weights"] = files.file_hash(path)[:16]
    result = settings | {"package": package_version(), "machine": harness.machine(device)} | found
    harness.finish(result, RESULT)


def compare(path: Path, x: Tensor, y: Tensor, *, eps: float, size: int, device: torch.device) -> dict[str, Any]:
    """Seconds of both (wall clock and processors), the ratio of the first, and the images whose flags differ."""
    slices = [(first, min(first + size, len(x))) for first in range(0, len(x), size)]
    start = clocks()
    plain = plainly(path, x, y, slices, eps=eps, device=device)
    middle = clocks()
    ours = by_stage(path, x, y, slices, eps=eps, device=device)
    end = clocks()
    differing = np.flatnonzero(plain != ours).tolist()
    return {
        "plain_s": round(middle[0] - start[0], 2),
        "ours_s": round(end[0] - middle[0], 2),
        "ratio": round((end[0] - middle[0]) / (middle[0] - start[0]), 3),
        "plain_cpu_s": round(middle[1] - start[1], 2),
        "ours_cpu_s": round(end[1] - middle[1], 2),
        "robust_plain": int(plain.sum()),
        "robust_ours": int(ours.sum()),
        "differing": differing,
        "differing_share": len(differing) / len(x),
    }


def clocks() -> tuple[float, float]:
    """Seconds of the wall clock, and of the processors for this process and its finished workers."""
    used = os.times()
    return time.perf_counter(), used.user + used.system + used.children_user + used.children_system


def plainly(
    path: Path, x: Tensor, y: Tensor, slices: list[tuple[int, int]], *, eps: float, device: torch.device
) -> np.ndarray:
    """Robust images (N,) bool by the official package alone."""
    official = importlib.import_module(package()).AutoAttack
    model: nn.Module = load_model(path, device).to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]
    robust = []
    for first, last in slices:
        adversary = official(model, norm="Linf", eps=eps, seed=SEED, version="standard", device=str(device))
        _, y_adv = adversary.run_standard_evaluation(x[first:last], y[first:last], batch_size=last - first)
        robust.append((y_adv == y[first:last]).cpu().numpy())
    return np.concatenate(robust)


def by_stage(
    path: Path, x: Tensor, y: Tensor, slices: list[tuple[int, int]], *, eps: float, device: torch.device
) -> np.ndarray:
    """Robust images (N,) bool by the code of the stage ``autoattack``."""
    cell = {"protocol": "standard", "attack": "cascade", "steps": 100, "targets": 0, "eps": eps, "seed": SEED}
    jobs = [Job(**cell, first=first, last=last) for first, last in slices]
    images = {job: (x[job.first : job.last], y[job.first : job.last]) for job in jobs}
    load = {"best": partial(load_model, path, device)}
    workers = processors() if device.type == "cpu" else 1
    with tempfile.TemporaryDirectory() as folder:
        found = run_jobs(jobs, load, images, done=Outcomes(Path(folder)), workers=workers)
    return np.concatenate([found[job].final for job in jobs])


if __name__ == "__main__":
    main()
