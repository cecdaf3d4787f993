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

from ebjdat.config import Params
from ebjdat.data.gaussians import Mixture, fit_mixture
from ebjdat.data.prepared import Prepared
from ebjdat.errors import Interrupted
from ebjdat.subject import Subject
from ebjdat.training import parallel
from ebjdat.training.loop import Trainer
from ebjdat.training.recipes import recipe
from ebjdat.training.state import Checkpoints
from tests.synthetic import params_of_repository
from tests.test_subject import changed

CASES = {
    "jempp": ("ebjdat", "jempp", {}),
    "sadajem, SAM": ("ebjdat", "sadajem", {}),
    "jem, gap of means": ("ebjdat", "jem", {"variants.jem.reading": "energy", "variants.jem.gap": "mean_absolute"}),
    "trades": ("trades", None, {}),
    "parts of a batch": ("ebjdat", "jempp", {"profiles.digits.training.shared.bn_parts": 2}),
}
EPOCHS = 2


def data() -> Prepared:
    """Sixty images of ten shades; the labels are the shades."""
    generator = torch.Generator().manual_seed(0)
    y = torch.arange(60) % 10
    x = (0.1 * y[:, None, None, None] + 0.05 * torch.rand(60, 1, 8, 8, generator=generator)).clamp(0, 1)
    mixture = fit_mixture(x, y)
    mixture = Mixture(mixture.mean.to(x.dtype), mixture.chol.to(x.dtype), mixture.shape)
    return Prepared(x, y, x[:21], y[:21], x[:20], y[:20], "digest", mixture, 16)


def trainer(case: str, folder: Path | None = None, key: dict[str, Any] | None = None) -> Trainer:
    """A run of three iterations an epoch."""
    method, variant, changes = CASES[case]
    params, subject = params_of_repository(), Subject("digits", method, variant, 0)
    short = {"epochs": EPOCHS, "batch_size": 20, "px_batch_size": 20}
    section = method if variant is None else f"{method}.{variant}"
    values = {f"profiles.digits.training.{section}.{name}": value for name, value in short.items()}
    values |= {
        f"profiles.digits.training.shared.{name}": value
        for name, value in {"buffer_size": 45, "bn_images": 30, "validation_steps": 2}.items()
    }
    if variant is not None:
        values |= {f"variants.{variant}.{name}": 3 for name in ("steps", "attack_steps")}
    for path, value in (values | changes).items():
        params = changed(params, path, value)
    return new_trainer(params, subject, None if folder is None else Checkpoints(folder, key or {}))


def new_trainer(params: Params, subject: Subject, checkpoints: Checkpoints | None) -> Trainer:
    """A trainer on :func:`data`."""
    profile = params.current
    return Trainer(
        recipe(params, subject),
        profile.training.shared,
        profile.network,
        data(),
        seed=0,
        device=torch.device("cpu"),
        checkpoints=checkpoints,
    )


def one_iteration(case: str) -> dict[str, Any]:
    """Weights, running statistics, buffer and terms after one iteration, and statistics estimated afresh.

    In float64 up to the logits, so that sums in another order differ by less than a sign's worth.
    """
    torch.set_default_dtype(torch.float64)
    try:
        run = trainer(case)
        run.state.model.double()
        run._loss = parallel.with_averaged_gradients(run.state.model, run.recipe.objective.loss)
        run._iteration(run._batch(run._order("labelled"), run._order("px")))
        state = run.state.snapshot()
        run._estimate_statistics()
        estimated = {name: value.clone() for name, value in run.state.model.state_dict().items() if "running" in name}
        buffer = {} if state["buffer"] is None else {"buffer": state["buffer"]}
        return {"model": state["model"], "sums": state["sums"], "estimated": estimated, **buffer}
    finally:
        torch.set_default_dtype(torch.float32)


def whole_run(run: Trainer, stop_at: int = 0, nan_at: int = 0) -> dict[str, Any]:
    """Train; the last process alone gets SIGTERM or a NaN in its loss after so many iterations."""
    original, calls, last = run.recipe.objective.loss, [0], parallel.rank() == parallel.world() - 1

    def loss(model: Any, prepared: Any) -> Any:
        total, terms = original(model, prepared)
        calls[0] += 1
        if last and calls[0] == stop_at:
            os.kill(os.getpid(), signal.SIGTERM)
        if last and calls[0] == nan_at:
            total, terms = total * float("nan"), terms | {"loss": total.detach() * float("nan")}
        return total, terms

    run.recipe.objective.loss = loss  # type: ignore[method-assign]
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
    key = {"devices": parallel.world()}
    found["never stopped"] = whole_run(trainer("jempp"))
    found["stopped"] = whole_run(trainer("jempp", folder / "run", key), stop_at=4)
    found["continued"] = whole_run(trainer("jempp", folder / "run", key))
    found["diverged"] = whole_run(trainer("jempp"), nan_at=2)
    return found


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
    with parallel.joined(torch.device("cpu")):
        result = {"train": train, "fail": fail}[task](place)
        torch.save(result, place / f"{task}-{parallel.rank()}.pt")
