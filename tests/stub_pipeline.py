"""dvc.yaml with commands that only leave files: the real stages, deps and params, in seconds."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Collection, Iterable
from pathlib import Path
from typing import Any

import yaml

from ebjdat.provenance import ROOT

STUB = """
import os, pathlib, sys, time
name, outs = sys.argv[1], sys.argv[2:]
with open("ran.txt", "a") as log:
    log.write(name + "\\n")
if name == os.environ.get("STUB_STOPS_AT"):
    sys.exit(1)
for out in map(pathlib.Path, outs):
    out.parent.mkdir(parents=True, exist_ok=True)
    if out.suffix:
        out.write_text(name)
    else:
        out.mkdir(exist_ok=True)
        for file in ("manifest.json", "history.jsonl"):
            (out / file).write_text(name)
"""


def outs_of(stage: dict[str, Any]) -> list[str]:
    """Paths of a stage's outs, metrics and plots, templates as they are."""
    entries = [entry for kind in ("outs", "metrics", "plots") for entry in stage.get(kind, [])]
    return [next(iter(entry)) if isinstance(entry, dict) else entry for entry in entries]


def make(folder: Path, kept: Collection[str]) -> None:
    """A checkout in ``folder`` whose stages ``kept`` of dvc.yaml leave files."""
    for name in ("ebjdat", "stages"):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "params.yaml", folder / "params.yaml")
    pipeline = yaml.safe_load((ROOT / "dvc.yaml").read_text(encoding="utf-8"))
    left_out = [stage for name, stage in pipeline["stages"].items() if name not in kept]
    missing = {out for stage in left_out for out in outs_of(stage)}
    pipeline["stages"] = {name: stage for name, stage in pipeline["stages"].items() if name in kept}
    for name, stage in pipeline["stages"].items():
        stage["deps"] = [dep for dep in stage["deps"] if not _of_another(dep, missing)]
        item = "-".join(f"${{item.{key}}}" for key in stage.get("matrix", ()))
        label = f"{name}@{item}" if item else name
        stage["cmd"] = " ".join([f'"{sys.executable}" -S stub.py', label, *outs_of(stage)])
    for section in ("artifacts", "plots", "metrics"):
        pipeline.pop(section, None)
    (folder / "dvc.yaml").write_text(yaml.safe_dump(pipeline, sort_keys=False))
    (folder / "stub.py").write_text(STUB)
    dvc(folder, "init", "--no-scm", "--quiet")
    dvc(folder, "config", "core.analytics", "false")


def _of_another(dep: str, outs: Iterable[str]) -> bool:
    """Whether a dependency is made by a stage that is left out, also where a matrix names its model."""
    patterns = [re.sub(r"\\\$\\\{item[^}]*\}", "[^/]+", re.escape(out)) for out in outs]
    return any(re.match(pattern + "(/|$)", dep) for pattern in patterns)


def dvc(folder: Path, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run DVC in ``folder``."""
    return subprocess.run(
        [sys.executable, "-m", "dvc", *arguments],
        cwd=folder,
        env={**os.environ, "DVC_NO_ANALYTICS": "true", **environment},
        capture_output=True,
        text=True,
        check=False,
    )


def ran(folder: Path) -> list[str]:
    """Stages that ran since the last call."""
    log = folder / "ran.txt"
    names = log.read_text().split() if log.is_file() else []
    log.unlink(missing_ok=True)
    return names


def stale(folder: Path) -> set[str]:
    """Stages that DVC would run."""
    return set(json.loads(dvc(folder, "status", "--json").stdout))
