"""Many AutoAttack jobs: each runs once, its outcome lies on disk, and a killed evaluation goes on."""

from __future__ import annotations

import concurrent.futures
import multiprocessing
import os
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ebjdat.attacks.autoattack import Job, Outcome, device_of, package_version, run_job
from ebjdat.attacks.outcomes import NOTHING, Found, Outcomes, slice_hash
from ebjdat.device import set_kernels
from ebjdat.progress import Progress

Loaders = Mapping[str, Callable[[], nn.Module]]
"""What makes a model, by the name of its checkpoint."""
Images = Mapping[Job, tuple[Tensor, Tensor]]
"""Slice (x, y) of each job."""


def run_jobs(
    jobs: Sequence[Job],
    load: Loaders,
    images: Images,
    *,
    done: Outcomes = NOTHING,
    workers: int = 1,
    label: str = "autoattack",
) -> dict[Job, Outcome]:
    """Outcomes of all jobs; those in ``done`` are read, the others are written there as they finish.

    Args:
        jobs: distinct jobs.
        load: makes the model of each checkpoint; picklable when there are several workers.
        workers: processes, on a CPU as many as it has cores, on GPUs one for each. On a CPU each uses
            one thread whatever their number, so outcomes do not depend on it; small batches gain
            nothing from a second thread.
        label: of the progress.

    Raises:
        UserError: see :meth:`Outcomes.read`. AuditError: see :func:`run_job`.
    """
    decided_by = {job: _decided_by(job, *images[job]) for job in jobs}
    outcomes = {job: _outcome(found) for job in jobs if (found := done.read(job.label, **decided_by[job]))}
    waiting = sorted((job for job in jobs if job not in outcomes), key=_passes, reverse=True)
    with Progress(sum(map(_passes, jobs)), label, unit="pass") as progress:
        progress.skip(sum(map(_passes, outcomes)))
        for job, outcome in _run(waiting, load, images, workers):
            flags = {"right": outcome.right, **outcome.robust}
            done.write(job.label, flags, {"audit": outcome.audit, "warnings": outcome.warnings}, **decided_by[job])
            outcomes[job] = outcome
            progress.advance(_passes(job), **_robust(outcomes))
    return {job: outcomes[job] for job in jobs}


def _decided_by(job: Job, x: Tensor, y: Tensor) -> dict[str, str]:
    settings = {name: str(value) for name, value in asdict(job).items()}
    return settings | {"data slice": slice_hash(x, y), "package": package_version()}


def _outcome(found: Found) -> Outcome:
    flags, plain = found
    robust = {name: flag for name, flag in flags.items() if name != "right"}
    return Outcome(flags["right"], robust, plain["audit"], plain["warnings"])


def _robust(outcomes: Mapping[Job, Outcome]) -> dict[str, float]:
    """Accuracy after the cascade on the slices that are through; nothing before the first."""
    found = [outcome.final for job, outcome in outcomes.items() if job.attack == "cascade"]
    return {"robust": float(np.concatenate(found).mean())} if found else {}


def _passes(job: Job) -> int:
    """Rough number of passes, to start long jobs first."""
    known = {"cascade": 11_000, "cascade-start": 2_000}
    return known.get(job.attack, job.steps * 2 * max(job.targets, 1))


def _run(jobs: Sequence[Job], load: Loaders, images: Images, workers: int) -> Iterator[tuple[Job, Outcome]]:
    if workers == 1 or len(jobs) < 2:
        models: dict[str, nn.Module] = {}
        for job in jobs:
            if job.checkpoint not in models:
                models[job.checkpoint] = load[job.checkpoint]()
            model = models[job.checkpoint]
            with _one_thread(device_of(model)):
                outcome = run_job(model, *images[job], job)
            yield job, outcome
        return
    context = multiprocessing.get_context("spawn")
    places = context.SimpleQueue()
    on_gpus = images[jobs[0]][0].device.type == "cuda"
    for place in range(min(workers, len(jobs))):
        places.put(place if on_gpus else None)
    exact = torch.are_deterministic_algorithms_enabled()
    pool = concurrent.futures.ProcessPoolExecutor(min(workers, len(jobs)), context, _begin, (load, places, exact))
    try:
        # Tensors would travel through shared memory, which containers keep small.
        arrays = {job: (images[job][0].cpu().numpy(), images[job][1].cpu().numpy()) for job in jobs}
        running = {pool.submit(_work, *arrays[job], job): job for job in jobs}
        for future in concurrent.futures.as_completed(running):
            yield running[future], future.result()
    finally:
        pool.shutdown(cancel_futures=True)


@contextmanager
def _one_thread(device: torch.device) -> Iterator[None]:
    threads = torch.get_num_threads()
    if device.type == "cpu":
        torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


_worker_load: dict[str, Callable[[], nn.Module]] = {}
_worker_models: dict[str, nn.Module] = {}


def _begin(load: Loaders, places: Any, deterministic: bool = False) -> None:
    """Once per worker process; ``places`` gives each a GPU of its own, or None on a CPU."""
    place = places.get()
    if place is not None:
        torch.cuda.set_device(place)  # where `cuda` without a number puts the model
    threading.Thread(target=_end_with_parent, daemon=True).start()
    set_kernels(deterministic)
    torch.set_num_threads(1)
    _worker_load.update(load)


def _end_with_parent() -> None:
    """A worker whose parent was killed would wait for work for ever."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def _work(x: np.ndarray, y: np.ndarray, job: Job) -> Outcome:
    if job.checkpoint not in _worker_models:
        _worker_models[job.checkpoint] = _worker_load[job.checkpoint]()
    return run_job(_worker_models[job.checkpoint], torch.from_numpy(x), torch.from_numpy(y), job)
