"""The digits pipeline on a shortened budget in a folder of its own, for checks that run all of it."""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML

from ebjdat.config import read_yaml
from tests.stage_deps import ROOT

BUDGET: dict[str, Any] = {
    "data.train": 400,
    "data.validation": 60,
    "data.test": 80,
    "training.defaults.epochs": 4,
    "training.defaults.buffer_size": 200,
    "training.defaults.bn_images": 200,
    "evaluation.clean.images": 80,
    "evaluation.autoattack.images": 6,
    "evaluation.autoattack.slice": 3,
    "evaluation.transfer.images": 12,
    "evaluation.sweep.images": 12,
    "evaluation.eot.images": 8,
    "evaluation.generation.samples": 60,
}


def make(folder: Path) -> None:
    """Copy code, pipeline and shortened parameters into ``folder``."""
    for name in ("ebjdat", "stages", "params"):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("dvc.yaml", "params.yaml", ".dvcignore"):
        shutil.copy(ROOT / name, folder / name)
    profile = read_yaml(ROOT / "params/digits.yaml")
    for key, value in BUDGET.items():
        *path, last = key.split(".")
        node = profile
        for part in path:
            node = node[part]
        node[last] = value
    YAML(typ="safe").dump(profile, folder / "params/digits.yaml")


def commands(folder: Path) -> dict[str, list[str]]:
    """Commands of all stages by name, each after those that it needs."""
    from dvc.repo import Repo
    from networkx import topological_sort

    with Repo(str(folder), uninitialized=True) as repo:
        ordered = reversed(list(topological_sort(repo.index.graph)))
        return {stage.addressing.split(":")[-1]: [sys.executable, *stage.cmd.split()[1:]] for stage in ordered}


def environment(folder: Path) -> dict[str, str]:
    """No store, scratch or repository but the folder's own."""
    named = ("DVC_ROOT", "EBJDAT_SCRATCH", "MLFLOW_TRACKING_URI")
    kept = {name: value for name, value in os.environ.items() if name not in named}
    return kept | {"DVC_ROOT": str(folder), "OMP_NUM_THREADS": "1", "DVC_NO_ANALYTICS": "true"}
