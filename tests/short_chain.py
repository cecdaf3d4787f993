"""The digits pipeline on a shortened budget in a folder of its own, for checks that run all of it."""

from __future__ import annotations

import itertools
import os
import shutil
import sys
from pathlib import Path
from typing import Any

import yaml

from ebjdat.provenance import ROOT

BUDGET: dict[str, Any] = {
    "data.train": 400,
    "data.validation": 60,
    "data.test": 80,
    "training.shared.buffer_size": 200,
    "training.shared.bn_images": 200,
    "evaluation.clean.images": 80,
    "evaluation.autoattack": {"images": 6, "slice": 3, "last_images": 3},
    "evaluation.transfer.images": 12,
    "evaluation.sweep.images": 12,
    "evaluation.eot.images": 8,
    "evaluation.generation.samples": 60,
}
EPOCHS = 4


def make(folder: Path) -> None:
    """Copy code, pipeline and shortened parameters into ``folder``."""
    for name in ("ebjdat", "stages"):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "dvc.yaml", folder / "dvc.yaml")
    raw = yaml.safe_load((ROOT / "params.yaml").read_text(encoding="utf-8"))
    profile = raw["profiles"]["digits"]
    for key, value in BUDGET.items():
        *path, last = key.split(".")
        node = profile
        for part in path:
            node = node[part]
        node[last] = value
    for schedule in _schedules(profile["training"]):
        schedule["epochs"] = EPOCHS
    (folder / "params.yaml").write_text(yaml.safe_dump(raw, sort_keys=False), encoding="utf-8")


def _schedules(node: Any) -> list[dict[str, Any]]:
    if not isinstance(node, dict):
        return []
    return [node] if "epochs" in node else [found for item in node.values() for found in _schedules(item)]


def commands(folder: Path) -> dict[str, list[str]]:
    """Commands of all stages by name, in the order of dvc.yaml, in which each finds its inputs."""
    stages = yaml.safe_load((folder / "dvc.yaml").read_text(encoding="utf-8"))["stages"]
    found = {}
    for name, stage in stages.items():
        matrix = stage.get("matrix", {})
        for values in itertools.product(*matrix.values()):
            command = stage["cmd"]
            for key, value in zip(matrix, values, strict=True):
                command = command.replace(f"${{item.{key}}}", str(value))
            label = f"{name}@{'-'.join(map(str, values))}" if values else name
            found[label] = [sys.executable, *command.split()[1:]]
    return found


def environment(folder: Path) -> dict[str, str]:
    """No store, scratch or repository but the folder's own."""
    named = ("DVC_ROOT", "EBJDAT_SCRATCH", "MLFLOW_TRACKING_URI")
    kept = {name: value for name, value in os.environ.items() if name not in named}
    return kept | {"DVC_ROOT": str(folder), "OMP_NUM_THREADS": "1", "DVC_NO_ANALYTICS": "true"}
