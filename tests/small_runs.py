"""Training runs of seconds: twelve iterations on 60 images, stopped and compared to the byte; stages, children."""

from __future__ import annotations

import functools
import importlib
import json
import math
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from ebjdat.config import Params, Setup
from ebjdat.data.gaussians import Mixture, fit_mixture
from ebjdat.data.prepared import Prepared
from ebjdat.errors import Interrupted
from ebjdat.model.energy import EnergyModel
from ebjdat.model.store import Architecture, model_digest, new_model
from ebjdat.training.loop import Outcome, Trainer
from ebjdat.training.state import Checkpoints
from tests.small_models import generator
from tests.synthetic import PARAMS, changed, setup_of

TINY = Architecture(depth=10, width=1, channels=1, classes=10, norm="batch")
SHORT = {
    "epochs": 3,
    "batch_size": 15,
    "px_batch_size": 15,
    "buffer_size": 40,
    "bn_images": 20,
    "validation_steps": 1,
    "steps": 2,
    "attack_steps": 2,
}
"""Three epochs of four iterations, with short chains and attacks."""


def tiny_data(validation: int = 20) -> Prepared:
    """60 images whose grey level is their class."""
    y = torch.arange(60) % 10
    x = (0.1 * y[:, None, None, None] + 0.05 * torch.rand(60, 1, 8, 8, generator=generator())).clamp(0, 1)
    held = x[:validation], y[:validation], x[:20], y[:20]
    mixture = fit_mixture(x, y)
    mixture = Mixture(mixture.mean.to(x.dtype), mixture.chol.to(x.dtype), mixture.shape)
    return Prepared(x, y, *held, "digest", mixture, 16)


def small(model: str = "ebjdat-jempp", params: Params = PARAMS, seed: int = 0, **values: Any) -> Setup:
    """A short run; ``values`` of its training, recipe or network."""
    return changed(setup_of(params, model, seed), **{**SHORT, **values})


def trainer(data: Prepared, setup: Setup | str, folder: Path | None = None, **options: Any) -> Trainer:
    """A trainer of a setup, or of the short run of a model, with a checkpoint in ``folder`` after every epoch."""
    setup = small(setup) if isinstance(setup, str) else setup
    key = options.pop("key", {"width": 1})
    checkpoints = None if folder is None else Checkpoints(folder, key, share=math.inf)
    options.setdefault("helper", helper() if setup.helper else None)
    return Trainer(setup, data, device=options.pop("device", torch.device("cpu")), checkpoints=checkpoints, **options)


_shared = functools.cache(tiny_data)


def short_run(setup: Setup | str, folder: Path | None = None, **options: Any) -> Trainer:
    """A trainer on :func:`tiny_data`, which is made once."""
    return trainer(_shared(), setup, folder, **options)


@functools.cache
def undisturbed(model: str = "ebjdat-jempp") -> tuple[Any, ...]:
    """The fingerprint of the short run of a model that nothing stops."""
    return fingerprint(short_run(model).run())


def run_stage(stage: str, *words: str) -> None:
    """``python -m stages.<stage>``, in this process."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", [stage, *words])
        importlib.import_module(f"stages.{stage}").main()


def in_child(action: Callable[[], object]) -> int:
    """Run ``action`` in a copy of this process; its exit code, negative for a signal."""
    child = os.fork()
    if child == 0:
        try:
            os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
            action()
        except SystemExit as ended:
            os._exit(int(ended.code or 0))
        except BaseException:
            os._exit(99)
        os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def helper() -> EnergyModel:
    """A network that masks can be made with; untrained."""
    return new_model(TINY, 1).eval().requires_grad_(False)


def stopped_at(run: Trainer, iterations: int) -> None:
    """Run until ``iterations`` are done, then be interrupted as SIGTERM would."""
    original, done = run._iteration, 0

    def counted(batch: Any) -> None:
        nonlocal done
        original(batch)
        done += 1
        if done == iterations:
            os.kill(os.getpid(), signal.SIGTERM)

    run._iteration = counted  # type: ignore[method-assign]
    with pytest.raises(Interrupted) as stop:
        run.run()
    assert stop.value.code == 128 + signal.SIGTERM


def fingerprint(outcome: Outcome) -> tuple[Any, ...]:
    """What two equal runs share to the byte."""
    buffer = None if outcome.buffer is None else outcome.buffer.numpy().tobytes()
    return model_digest(outcome.best), model_digest(outcome.last), buffer, json.dumps(outcome.history)


def break_at(run: Trainer, what: str, value: float, when: set[tuple[int, int]], *, retries: int = 0) -> list[int]:
    """Put ``value`` into ``what`` at iterations (epoch, step) of the first ``retries`` + 1 tries; steps taken."""
    original, prepare, steps = run.objective.loss, run.objective.prepare, [0]

    def due() -> bool:
        return (run.state.epoch, run.state.step) in when and run.state.retries <= retries

    def broken_prepare(model: Any, batch: Any, buffer: Any, streams: Any) -> Any:
        prepared = prepare(model, batch, buffer, streams)
        if due() and what == "buffer":
            buffer.images[-1, 0, 0, 0] = value
        if due() and what == "chain":
            prepared.x_gen[0, 0, 0, 0] = value
        return prepared

    def broken_loss(model: Any, prepared: Any) -> Any:
        total, terms = original(model, prepared)
        if due() and what == "loss":
            total = total * value
            terms = {**terms, "loss": total.detach()}
        if due() and what == "energy":
            terms = {**terms, "energy_clean": terms["energy_clean"] * value}
        if due() and what == "gradient":
            first = next(model.parameters())
            total = total + (first * value).sum() - (first * value).sum().detach()
        return total, terms

    run.objective.prepare, run.objective.loss = broken_prepare, broken_loss  # type: ignore[method-assign]
    step = run.state.optimiser.step

    def counted(*arguments: Any, **options: Any) -> Any:
        assert not due()
        steps[0] += 1
        return step(*arguments, **options)

    run.state.optimiser.step = counted  # type: ignore[method-assign]
    return steps
