"""A finished training run in seconds: real digits, the profile's network, one short epoch."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import yaml

from ebjdat.config import Params, load_params
from ebjdat.data.digits import load_digits
from ebjdat.data.prepared import save_prepared
from ebjdat.training.run import train as train_run
from tests import ROOT
from tests.synthetic import setup_of

IMAGES = {"clean": 64, "autoattack": 8, "transfer": 16, "sweep": 16, "eot": 16}


def write_params(folder: Path, **choice: Any) -> Params:
    """``params.yaml`` of the repository with a tiny profile digits, in ``folder``; ``choice``: top-level values."""
    raw = yaml.safe_load((ROOT / "params.yaml").read_text(encoding="utf-8")) | choice
    profile = yaml.safe_load((ROOT / "params/digits.yaml").read_text(encoding="utf-8"))
    profile["data"] |= {"train": 300, "validation": 40, "test": 100}
    profile["training"]["defaults"] |= {"epochs": 1, "buffer_size": 60, "bn_images": 60, "validation_steps": 2}
    for stage, images in IMAGES.items():
        profile["evaluation"][stage]["images"] = images
    profile["evaluation"]["autoattack"] |= {"slice": 8, "last_images": 8}
    shutil.copytree(ROOT / "params", folder / "params", dirs_exist_ok=True)
    (folder / "params.yaml").write_text(yaml.safe_dump(raw, sort_keys=False), encoding="utf-8")
    (folder / "params/digits.yaml").write_text(yaml.safe_dump(profile, sort_keys=False), encoding="utf-8")
    return load_params(folder)


def prepare(params: Params) -> None:
    """The profile's data in the current folder."""
    save_prepared(params.runs()[0].data_dir, load_digits(), params.current.data)


def train(params: Params, *models: str) -> None:
    """The model that the parameters select, or those named, in the current folder."""
    for model in models or (params.model,):
        train_run(setup_of(params, model))
