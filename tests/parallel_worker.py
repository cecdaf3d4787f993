"""What two processes do in the tests of training on several devices; started by torchrun.

``python -m tests.parallel_worker <task> <folder>`` leaves ``<task>-<rank>.pt`` in the folder.
"""

from __future__ import annotations

import os
import signal
import sys
import time
from pathlib import Path
from typing import Any

import torch

from ebjdat.errors import Interrupted
from ebjdat.training import parallel
from ebjdat.training.loop import Trainer
from ebjdat.training.selection import renew_statistics
from tests.small_runs import small, tiny_data, trainer

CPU = torch.device("cpu")
CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "jempp": ("ebjdat-jempp", {}),
    "sadajem, SAM": ("ebjdat-sadajem", {}),
    "jem, gap of means": ("ebjdat-jem", {"reading": "energy", "gap": "mean_absolute"}),
    "trades": ("trades", {}),
    "dhat": ("dhat", {}),
    "parts of a batch": ("ebjdat-jempp", {"bn_parts": 2}),
}


def new_trainer(case: str, folder: Path | None = None, key: dict[str, Any] | None = None, **options: Any) -> Trainer:
    """A run of two epochs of three iterations; the splits do not divide evenly."""
    model, values = CASES[case]
    short = {"epochs": 2, "batch_size": 20, "px_batch_size": 20, "buffer_size": 45, "bn_images": 30, "attack_steps": 3}
    return trainer(tiny_data(validation=21), small(model, **{**short, **values}), folder, key=key or {}, **options)


def one_iteration(case: str, device: torch.device = CPU) -> dict[str, Any]:
    """Weights, running statistics, buffer and terms after one iteration, and statistics estimated afresh.

    In float64 up to the logits, so that sums in another order differ by less than a sign's worth.
    """
    torch.set_default_dtype(torch.float64)
    try:
        run = new_trainer(case, device=device)
        run.state.model.double()
        run._loss = parallel.with_averaged_gradients(run.state.model, run.objective.loss)
        run._iteration(run._batch(run._order("labelled"), run._order("px")))
        state = run.state.snapshot()
        renew_statistics(run.state.model, run.setup, run.x, run.y)
        estimated = {name: value.clone() for name, value in run.state.model.state_dict().items() if "running" in name}
        buffer = {} if state["buffer"] is None else {"buffer": state["buffer"]}
        return {"model": state["model"], "sums": state["sums"], "estimated": estimated, **buffer}
    finally:
        torch.set_default_dtype(torch.float32)


def whole_run(run: Trainer, stop_at: int = 0, nan_at: int = 0) -> dict[str, Any]:
    """Train; the last process alone gets SIGTERM or a NaN in its loss after so many iterations."""
    original, calls, last = run.objective.loss, [0], parallel.rank() == parallel.world() - 1

    def loss(model: Any, prepared: Any) -> Any:
        total, terms = original(model, prepared)
        calls[0] += 1
        if last and calls[0] == stop_at:
            os.kill(os.getpid(), signal.SIGTERM)
        if last and calls[0] == nan_at:
            total, terms = total * float("nan"), terms | {"loss": total.detach() * float("nan")}
        return total, terms

    run.objective.loss = loss  # type: ignore[method-assign]
    try:
        outcome = run.run()
    except Interrupted as stop:
        return {"code": stop.code}
    return {
        "best": outcome.best.state_dict(),
        "last": outcome.last.state_dict(),
        "buffer": outcome.buffer,
        "history": outcome.history,
        "events": outcome.events,
    }


def train(folder: Path) -> dict[str, Any]:
    """Iterations of every case; a whole run, one that is stopped and continued, one with a NaN."""
    found: dict[str, Any] = {case: one_iteration(case) for case in CASES}
    found["never stopped"] = whole_run(new_trainer("jempp"))
    found["diverged"] = whole_run(new_trainer("jempp"), nan_at=2)
    return found | resume(folder)


def resume(folder: Path) -> dict[str, Any]:
    """A run that is stopped and continued."""
    key = {"processes": parallel.world()}
    stopped = whole_run(new_trainer("jempp", folder / "run", key), stop_at=4)
    return {"stopped": stopped, "continued": whole_run(new_trainer("jempp", folder / "run", key))}


def steps(folder: Path) -> dict[str, Any]:
    """One iteration of every case on the devices that the group has."""
    return {case: one_iteration(case, DEVICE) for case in CASES}


def fail(folder: Path) -> dict[str, Any]:
    """The last process ends with 7; the others, which lose it, do not end before it has."""
    if parallel.rank():
        sys.exit(7)
    try:
        parallel.total(torch.zeros(1))
    except RuntimeError:
        time.sleep(5.0)
        raise
    return {}


if __name__ == "__main__":
    torch.set_num_threads(1)
    task, place = sys.argv[1], Path(sys.argv[2])
    with parallel.joined(torch.device(*sys.argv[3:] or ["cpu"])) as DEVICE:
        result = {"train": train, "resume": resume, "steps": steps, "fail": fail}[task](place)
        torch.save(result, place / f"{task}-{parallel.rank()}.pt")
