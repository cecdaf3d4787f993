"""A finished training run in seconds: real digits, the profile's network, one short epoch."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from ebjdat.config import Params, load_params
from ebjdat.data.digits import load_digits
from ebjdat.data.prepared import save_prepared
from ebjdat.provenance import ROOT
from ebjdat.subject import Subject
from ebjdat.training.run import train_subject

SIZES = {"train": 300, "validation": 40, "test": 100}
IMAGES = {"clean": 64, "autoattack": 8, "transfer": 16, "sweep": 16, "eot": 16}


def write_params(folder: Path, **choice: Any) -> Params:
    """``params.yaml`` of the repository with a tiny profile digits, in ``folder``."""
    raw = yaml.safe_load((ROOT / "params.yaml").read_text(encoding="utf-8"))
    profile = raw["profiles"]["digits"]
    profile["data"] |= SIZES
    training = profile["training"]
    training["shared"] |= {"buffer_size": 60, "bn_images": 60, "validation_steps": 2}
    for schedule in (*training["ebjdat"].values(), *training["base"].values()):
        schedule["epochs"] = 1
    for name in ("pgd_at", "trades", "undefended"):
        training[name]["epochs"] = 1
    for stage, images in IMAGES.items():
        profile["evaluation"][stage]["images"] = images
    profile["evaluation"]["autoattack"]["slice"] = 8
    raw |= choice
    (folder / "params.yaml").write_text(yaml.safe_dump(raw, sort_keys=False), encoding="utf-8")
    return load_params(folder / "params.yaml")


def prepare(params: Params) -> None:
    """The profile's data in the current folder."""
    save_prepared(Subject.current(params).data_dir, load_digits(), params.current.data)


def train(params: Params, *names: str) -> None:
    """The current model, or the named baselines, in the current folder."""
    subjects = [Subject.baseline(params, name) for name in names] or [Subject.current(params)]
    for subject in subjects:
        train_subject(params, subject)
