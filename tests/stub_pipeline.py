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

from ruamel.yaml import YAML

from ebjdat.config import read_yaml
from tests import ROOT

STUB = """
import os, pathlib, sys, time
name, outs = sys.argv[1], sys.argv[2:]
def log(what):
    with open("ran.txt", "a") as file:
        file.write(f"{what} {name} {time.time()} {os.environ.get('OMP_NUM_THREADS')}\\n")
log("begin")
if name == os.environ.get("STUB_STOPS_AT"):
    print("stub: told to stop", file=sys.stderr)
    sys.exit(1)
try:
    time.sleep(float(os.environ.get("STUB_SECONDS", "0")))
except KeyboardInterrupt:
    log("checkpoint")
    sys.exit(130)
for out in map(pathlib.Path, outs):
    out.parent.mkdir(parents=True, exist_ok=True)
    if out.suffix:
        out.write_text(name)
    else:
        out.mkdir(exist_ok=True)
        (out / "manifest.json").write_text(name)
log("end")
"""


def pipeline() -> dict[str, Any]:
    """The stages of dvc.yaml, templates as they are."""
    stages: dict[str, Any] = read_yaml(ROOT / "dvc.yaml")["stages"]
    return stages


def outs_of(stage: dict[str, Any]) -> list[str]:
    """Paths of a stage's outs, metrics and plots, templates as they are."""
    entries = [entry for kind in ("outs", "metrics", "plots") for entry in stage.get(kind, [])]
    return [next(iter(entry)) if isinstance(entry, dict) else entry for entry in entries]


def make(folder: Path, kept: Collection[str]) -> None:
    """A checkout in ``folder`` whose stages ``kept`` of dvc.yaml leave files."""
    for name in ("ebjdat", "stages", "params"):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    text = (ROOT / "params.yaml").read_text(encoding="utf-8")
    text = text.replace(
        "baselines: [pgd_at, trades]\nsources: [undefended]", "baselines: [pgd_at, trades, undefended]\nsources: []"
    )
    (folder / "params.yaml").write_text(text, encoding="utf-8")
    shutil.copy(ROOT / ".dvcignore", folder / ".dvcignore")
    stages = {name: dict(stage) for name, stage in pipeline().items() if name in kept}
    missing = {out for name, stage in pipeline().items() if name not in kept for out in outs_of(stage)}
    missing -= {out for stage in stages.values() for out in outs_of(stage)}
    for name, stage in stages.items():
        stage["deps"] = [dep for dep in stage["deps"] if not _of_another(dep, missing)]
        item = "-".join(f"${{item.{key}}}" for key in stage.get("matrix", ()))
        label = f"{name}@{item}" if item else name
        if name == "recipes":  # the real one is as quick as a stub
            stage["cmd"] = f'"{sys.executable}" -m stages.recipes'
        else:
            stage["cmd"] = " ".join([f'"{sys.executable}" -S stub.py', label, *outs_of(stage)])
    with (folder / "dvc.yaml").open("w", encoding="utf-8") as file:
        YAML(typ="safe").dump({"stages": stages}, file)
    (folder / "stub.py").write_text(STUB)
    dvc(folder, "init", "--no-scm", "--quiet")
    dvc(folder, "config", "core.analytics", "false")


def _of_another(dep: str, outs: Iterable[str]) -> bool:
    """Whether a dependency is made by a stage that is left out, also where a matrix names its model."""
    patterns = [re.sub(r"\\\$\\\{item[^}]*\}", "[^/]+", re.escape(out)) for out in outs]
    return any(re.match(pattern + "(/|$)", dep) for pattern in patterns)


def dvc(folder: Path, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run DVC in ``folder``."""
    return python(folder, "dvc", *arguments, **environment)


def python(folder: Path, module: str, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run a module in ``folder``."""
    return subprocess.run(
        [sys.executable, "-m", module, *arguments],
        cwd=folder,
        env=environment_of(**environment),
        capture_output=True,
        text=True,
        check=False,
    )


def environment_of(**changes: str) -> dict[str, str]:
    """This process's environment, without a number of threads, and as after `. .venv/bin/activate`: a worker of DVC's
    queue is started as `dvc`."""
    kept = {name: value for name, value in os.environ.items() if name != "OMP_NUM_THREADS"}
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath)])
    return kept | {"PATH": path, "DVC_NO_ANALYTICS": "true"} | changes


def git(folder: Path, *words: str, check: bool = True) -> subprocess.CompletedProcess[str]:
    """Run git in ``folder`` as somebody."""
    line = ["git", "-c", "user.name=n", "-c", "user.email=e@localhost", *words]
    return subprocess.run(line, cwd=folder, check=check, capture_output=True, text=True, env=environment_of())


def commit(folder: Path, message: str) -> None:
    """Commit everything in ``folder``, a repository or to become one."""
    git(folder, "init", "--quiet", "--initial-branch", "main")
    git(folder, "add", ".")
    git(folder, "commit", "--quiet", "--message", message)


def ran(folder: Path) -> list[str]:
    """Stages that ran since the last call."""
    names = [words[1] for words in events(folder) if words[0] == "begin"]
    (folder / "ran.txt").unlink(missing_ok=True)
    return names


def events(folder: Path) -> list[list[str]]:
    """What stages did so far: (begin | end | checkpoint, stage, time, OMP_NUM_THREADS)."""
    log = folder / "ran.txt"
    return [line.split() for line in log.read_text().splitlines()] if log.is_file() else []


def stale(folder: Path) -> set[str]:
    """Stages that DVC would run."""
    return set(json.loads(dvc(folder, "status", "--json").stdout))
