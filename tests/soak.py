"""Disturb the digits chain, on a shortened budget and in folders of its own; see docs/faults.md.

    python -m tests.soak [--minutes 10] [--kills 20] [--seed 0]
    python -m tests.soak --interrupts [--seed 0]

The first kills it at random moments, starts it again, and compares with an undisturbed run: all outputs must be equal
to the byte. Moments are uniform over the time that the undisturbed chain took, so long stages are killed more often;
SIGKILL goes to the stage and its workers. Kills stop after ``minutes``, but not before there were ``kills`` of them; a
quarter more are planned, because a stage that resumes may be done before its moment comes.

The second sends Ctrl-C to ``dvc repro`` in one stage of each script (of the baselines the first; quick ones mostly
while they import), each time repeated: the next ``dvc repro`` begins with it, and nothing runs twice.
"""

from __future__ import annotations

import argparse
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML

from ebjdat import files
from ebjdat.config import read_yaml
from tests import ROOT
from tests.stub_pipeline import environment_of

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
    "evaluation.autoattack.last_images": 3,
    "evaluation.transfer.images": 12,
    "evaluation.sweep.images": 12,
    "evaluation.eot.images": 8,
    "evaluation.generation.samples": 60,
}
QUICK = ("prepare", "masking", "log", "tables")
"""Scripts that are done after two or three seconds, most of which they import modules."""
RUNNING = re.compile(r"Running stage '([^']+)'")


def make(folder: Path) -> Path:
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
    return folder


def commands(folder: Path) -> dict[str, list[str]]:
    """Commands of all stages by name, each after those that it needs."""
    from dvc.repo import Repo
    from networkx import topological_sort

    with Repo(str(folder), uninitialized=True) as repo:
        ordered = reversed(list(topological_sort(repo.index.graph)))
        return {stage.addressing.split(":")[-1]: [sys.executable, *stage.cmd.split()[1:]] for stage in ordered}


def begin(command: list[str], folder: Path, **output: Any) -> subprocess.Popen[str]:
    """Start a command in a group of its own, with no store, scratch or repository but the folder's own."""
    environment = environment_of(DVC_ROOT=str(folder), OMP_NUM_THREADS="1", PYTHONUNBUFFERED="1")
    return subprocess.Popen(
        command, cwd=folder, env=environment, stderr=subprocess.STDOUT, text=True, start_new_session=True, **output
    )


def run(command: list[str], folder: Path, seconds: float | None = None) -> bool:
    """Run a stage; after ``seconds`` it is killed. Whether it finished by itself."""
    with (folder / "log.txt").open("a") as log:
        process = begin(command, folder, stdout=log)
        try:
            code = process.wait(seconds)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            return False
    if code:
        tail = (folder / "log.txt").read_text(errors="replace")[-2000:]
        sys.exit(f"{' '.join(command[1:])} ended with {code}, see {folder / 'log.txt'}:\n{tail}")
    return True


def undisturbed(folder: Path) -> dict[str, float]:
    """Run all stages; seconds of each."""
    taken = {}
    for name, command in commands(folder).items():
        started = time.monotonic()
        run(command, folder)
        taken[name] = time.monotonic() - started
    return taken


def disturbed(folder: Path, taken: dict[str, float], kills: int, minutes: float, seed: int) -> dict[str, int]:
    """Run all stages, killed at random moments; kills by stage."""
    generator, started, total = random.Random(seed), time.monotonic(), sum(taken.values())
    moments = sorted(generator.uniform(0.0, total) for _ in range(round(1.25 * kills)))
    found: dict[str, int] = {}
    before = 0.0
    for name, command in commands(folder).items():
        waits = [moment - before for moment in moments if before <= moment < before + taken[name]]
        before += taken[name]
        generator.shuffle(waits)
        while True:
            more = not waits and sum(found.values()) >= kills and time.monotonic() - started < 60 * minutes
            if more and generator.random() < 0.5:
                waits = [generator.uniform(0.0, taken[name])]
            if run(command, folder, waits.pop() if waits else None):
                if not waits:
                    break
                continue
            found[name] = found.get(name, 0) + 1
            print(f"killed {name} ({sum(found.values())} kills)", flush=True)
    return found


def outputs(folder: Path) -> dict[str, str]:
    """Hash of every output by its path."""
    paths = [path for name in ("data", "models", "results") for path in sorted((folder / name).rglob("*"))]
    plain = [path for path in paths if path.is_file() and not path.name.startswith(".")]
    return {path.relative_to(folder).as_posix(): files.file_hash(path) for path in plain}


def kill(root: Path, kills: int, minutes: float, seed: int) -> bool:
    """Run both chains and compare; whether something differs, or lies about."""
    folders = [make(root / name) for name in ("undisturbed", "disturbed")]
    taken = undisturbed(folders[0])
    print(f"undisturbed: {len(taken)} stages in {sum(taken.values()):.0f} s", flush=True)
    found = disturbed(folders[1], taken, kills, minutes, seed)
    first, second = map(outputs, folders)
    differing = sorted(name for name in {*first, *second} if first.get(name) != second.get(name))
    leftovers = [path for path in (folders[1] / ".scratch").rglob("*") if path.name.startswith("step-")]
    print(f"{sum(found.values())} kills in {len(found)} stages; {len(first)} outputs compared")
    for name in (*differing, *leftovers):
        print(f"differs or is left over: {name}")
    if sum(found.values()) < kills:
        sys.exit(f"too few kills: {sum(found.values())} of {kills}; try another --seed")
    return bool(differing or leftovers)


def repro(folder: Path, target: str | None, wait: float) -> tuple[int, list[str]]:
    """``dvc repro``; Ctrl-C comes ``wait`` seconds after the stage began. Exit code and stages that began."""
    begun = []
    process = begin([sys.executable, "-m", "dvc", "repro"], folder, stdout=subprocess.PIPE)
    assert process.stdout is not None
    with (folder / "log.txt").open("a") as log:
        for line in process.stdout:
            log.write(line)
            if found := RUNNING.search(line):
                begun.append(found[1])
                if found[1] == target:
                    time.sleep(wait)
                    os.killpg(process.pid, signal.SIGINT)
    return process.wait(), begun


def interrupt(root: Path, seed: int) -> bool:
    """Interrupt every script once, then let the pipeline end."""
    generator, folder = random.Random(seed), make(root / "interrupted")
    subprocess.run([sys.executable, "-m", "dvc", "init", "--no-scm", "--quiet"], cwd=folder, check=True)
    targets: dict[str, str] = {}
    for name in commands(folder):
        targets.setdefault(name.split("@")[0].removesuffix("-baseline").removesuffix("-source"), name)
    finished: set[str] = set()
    for target in [*targets.values(), None]:
        code, begun = repro(folder, target, generator.uniform(0.0, 1.8 if target in QUICK else 6.0))
        twice = finished & set(begun)
        print(f"{target or 'last repro'}: exit code {code}, ran {', '.join(begun)}, of these again {twice}", flush=True)
        if twice or (code == 0) is bool(target) or (target and begun[-1] != target):
            return True
        finished |= set(begun) - {target}
    return False


def main() -> None:
    """Disturb one way or the other."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--interrupts", action="store_true")
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    root = Path(tempfile.mkdtemp(prefix="soak-"))
    print(f"folder: {root}")
    if options.interrupts:
        wrong = interrupt(root, options.seed)
    else:
        wrong = kill(root, options.kills, options.minutes, options.seed)
    print("something is wrong" if wrong else "as expected")
    sys.exit(wrong)


if __name__ == "__main__":
    main()
