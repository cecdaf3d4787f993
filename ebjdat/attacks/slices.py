"""Many AutoAttack jobs: each runs once, its outcome lies on disk, and a killed evaluation goes on.

An outcome carries the identity of everything that decided it. The official package's own resume file has
neither model nor data nor radius in it, so it is not used.
"""

from __future__ import annotations

import concurrent.futures
import hashlib
import multiprocessing
import os
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ebjdat import files
from ebjdat.attacks.autoattack import Job, Outcome, device_of, package_version, run_job
from ebjdat.errors import UserError
from ebjdat.progress import Progress

Loaders = Mapping[str, Callable[[], nn.Module]]
"""What makes a model, by the name of its checkpoint."""


def identity_of(job: Job, x: Tensor, y: Tensor, made_by: dict[str, str]) -> dict[str, str]:
    """Everything that decides a job's outcome, as text; ``made_by`` names the model and the code."""
    data = hashlib.sha256()
    for tensor in (x, y):
        data.update(f"{tensor.dtype} {tuple(tensor.shape)}\n".encode())
        data.update(tensor.detach().cpu().contiguous().numpy().tobytes())
    settings = {name: str(value) for name, value in asdict(job).items()}
    return made_by | settings | {"data slice": data.hexdigest(), "package": package_version()}


def save_outcome(path: Path, identity: dict[str, str], outcome: Outcome) -> None:
    """Write an outcome with its identity, atomically."""
    fields = {
        "right": _text(outcome.right),
        # Order matters in a cascade, and JSON files are written with sorted keys.
        "robust": [[name, _text(flags)] for name, flags in outcome.robust.items()],
        "audit": outcome.audit,
        "warnings": outcome.warnings,
    }
    files.write_json(path, {"identity": identity, "outcome": fields})


def load_outcome(path: Path, identity: dict[str, str]) -> Outcome | None:
    """The outcome of this very job, or None where there is none yet.

    Raises:
        UserError: the file is damaged or belongs to another model, data slice, attack, radius, seed or code.
    """
    if not path.is_file():
        return None
    stored = files.read_json(path)
    try:
        found, fields = stored["identity"], stored["outcome"]
        foreign = sorted(name for name in {*identity, *found} if identity.get(name) != found.get(name))
        outcome = Outcome(
            _flags(fields["right"]),
            {name: _flags(text) for name, text in fields["robust"]},
            fields["audit"],
            fields["warnings"],
        )
    except (KeyError, TypeError, ValueError, AttributeError):
        raise UserError(f"{path} is not a state of AutoAttack: delete it and run again") from None
    if foreign:
        details = "; ".join(f"{name}: expected {identity.get(name)}, found {found.get(name)}" for name in foreign)
        raise UserError(f"{path} is the state of another evaluation ({details}): delete it and run again")
    return outcome


def _text(flags: np.ndarray) -> str:
    return "".join("1" if flag else "0" for flag in flags)


def _flags(text: str) -> np.ndarray:
    if set(text) - {"0", "1"}:
        raise ValueError("flags are 0 and 1")
    return np.array([letter == "1" for letter in text], dtype=bool)


def run_jobs(
    jobs: Sequence[Job],
    load: Loaders,
    images: dict[Job, tuple[Tensor, Tensor]],
    *,
    folder: Path,
    made_by: dict[str, str],
    workers: int = 1,
) -> dict[Job, Outcome]:
    """Outcomes of all jobs; those already in ``folder`` are read, the others are written as they finish.

    Args:
        jobs: distinct jobs.
        load: makes the model of each checkpoint; picklable when there are several workers.
        images: slice (x, y) of each job.
        folder: for this evaluation alone.
        made_by: identity of models and code.
        workers: processes, on a CPU as many as it has cores, on GPUs one for each. On a CPU each uses
            one thread whatever their number, so outcomes do not depend on it; small batches gain
            nothing from a second thread.

    Raises:
        UserError: see :func:`load_outcome`. AuditError: see :func:`run_job`.
    """
    identities = {job: identity_of(job, *images[job], made_by) for job in jobs}
    paths = {job: folder / f"{job.label}.json" for job in jobs}
    outcomes = {job: load_outcome(paths[job], identities[job]) for job in jobs}
    waiting = sorted((job for job in jobs if outcomes[job] is None), key=_cost, reverse=True)
    with Progress(len(jobs), "autoattack", unit="attack") as progress:
        if len(waiting) < len(jobs):
            progress.advance(len(jobs) - len(waiting))
        for job, outcome in _run(waiting, load, images, workers):
            save_outcome(paths[job], identities[job], outcome)
            outcomes[job] = outcome
            progress.advance(robust=float(outcome.final.mean()))
    return {job: outcome for job, outcome in outcomes.items() if outcome is not None}


def _cost(job: Job) -> int:
    """Rough number of passes, to start long jobs first."""
    known = {"cascade": 11_000, "cascade-start": 2_000}
    return known.get(job.attack, job.steps * 2 * max(job.targets, 1))


def _run(
    jobs: Sequence[Job], load: Loaders, images: dict[Job, tuple[Tensor, Tensor]], workers: int
) -> Iterator[tuple[Job, Outcome]]:
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
    pool = concurrent.futures.ProcessPoolExecutor(min(workers, len(jobs)), context, _begin, (load, places))
    try:
        running = {pool.submit(_work, *_arrays(images[job]), job): job for job in jobs}
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


def _begin(load: Loaders, places: Any) -> None:
    """Once per worker process; ``places`` gives each a GPU of its own, or None on a CPU."""
    place = places.get()
    if place is not None:
        torch.cuda.set_device(place)  # where `cuda` without a number puts the model
    threading.Thread(target=_end_with_parent, daemon=True).start()
    torch.set_num_threads(1)
    _worker_load.update(load)


def _end_with_parent() -> None:
    """A worker whose parent was killed would wait for work for ever."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def _arrays(images: tuple[Tensor, Tensor]) -> tuple[np.ndarray, np.ndarray]:
    # Tensors would travel through shared memory, which containers keep small.
    return images[0].cpu().numpy(), images[1].cpu().numpy()


def _work(x: np.ndarray, y: np.ndarray, job: Job) -> Outcome:
    if job.checkpoint not in _worker_models:
        _worker_models[job.checkpoint] = _worker_load[job.checkpoint]()
    return run_job(_worker_models[job.checkpoint], torch.from_numpy(x), torch.from_numpy(y), job)
