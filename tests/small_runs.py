"""Training runs of seconds: twelve iterations on 60 images, stopped and compared to the byte."""

from __future__ import annotations

import dataclasses
import json
import math
import os
import signal
from pathlib import Path
from typing import Any

import pytest
import torch

from ebjdat.config import Network, Params, Shared, load_params
from ebjdat.data.gaussians import fit_mixture
from ebjdat.data.prepared import Prepared
from ebjdat.errors import Interrupted
from ebjdat.model.store import model_digest
from ebjdat.provenance import ROOT
from ebjdat.subject import Subject
from ebjdat.training.loop import Outcome, Trainer
from ebjdat.training.recipes import recipe
from ebjdat.training.state import Checkpoints

PARAMS = load_params(ROOT / "params.yaml")


def tiny_data() -> Prepared:
    """60 images whose grey level is their class."""
    generator = torch.Generator().manual_seed(0)
    y = torch.arange(60) % 10
    x = (0.1 * y[:, None, None, None] + 0.05 * torch.rand(60, 1, 8, 8, generator=generator)).clamp(0, 1)
    return Prepared(x, y, x[:20], y[:20], x[:20], y[:20], "digest", fit_mixture(x, y), 16)


def small(params: Params = PARAMS, precision: Any = "float32", **schedule: Any) -> Params:
    """Three epochs of four iterations, with short chains and attacks."""
    profile = params.current
    values = {"epochs": 3, "batch_size": 15, "px_batch_size": 15, **schedule}

    def shorten(value: Any) -> Any:
        if dataclasses.is_dataclass(value) and hasattr(value, "epochs"):
            return dataclasses.replace(value, **values)
        names = [f.name for f in dataclasses.fields(value)]
        return dataclasses.replace(value, **{n: shorten(getattr(value, n)) for n in names if n != "shared"})

    training = dataclasses.replace(
        shorten(profile.training),
        shared=dataclasses.replace(
            profile.training.shared, buffer_size=40, bn_images=20, validation_steps=2, precision=precision
        ),
    )
    changed = dataclasses.replace(profile, training=training)
    variants = {
        name: dataclasses.replace(variant, steps=3, base_steps=3, attack_steps=2)
        for name, variant in params.variants.items()
    }
    return dataclasses.replace(params, variants=variants, profiles={**params.profiles, params.profile: changed})


def trainer(data: Prepared, subject: tuple[str, str | None], folder: Path | None, **options: Any) -> Trainer:
    params = options.pop("params", small())
    key = options.pop("key", {"width": 1})
    shared: Shared = params.current.training.shared
    network: Network = params.current.network
    checkpoints = None if folder is None else Checkpoints(folder, key, share=math.inf)
    chosen = recipe(params, Subject("digits", *subject, 0))
    device = options.pop("device", torch.device("cpu"))
    return Trainer(chosen, shared, network, data, seed=0, device=device, checkpoints=checkpoints, **options)


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
    buffer = None if outcome.buffer is None else outcome.buffer.numpy().tobytes()
    return model_digest(outcome.best), model_digest(outcome.last), buffer, json.dumps(outcome.history)
