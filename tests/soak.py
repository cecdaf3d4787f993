"""Kill the digits chain at random moments, start it again, and compare with an undisturbed run.

    python -m tests.soak [--minutes 10] [--kills 20] [--seed 0]

Both runs use a shortened budget in folders of their own. Moments are uniform over the time that the
undisturbed chain took, so long stages are killed more often; SIGKILL goes to the stage and its workers. Kills
stop after ``minutes``, but not before there were ``kills`` of them; a quarter more are planned, because a stage
that resumes may be done before its moment comes. All outputs must be equal to the byte.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from tests import short_chain


def run(command: list[str], folder: Path, seconds: float | None = None) -> bool:
    """Run a stage; after ``seconds`` it is killed. Whether it finished by itself."""
    with (folder / "log.txt").open("ab") as log:
        process = subprocess.Popen(
            command,
            cwd=folder,
            env=short_chain.environment(folder),
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
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
    short_chain.make(folder)
    taken = {}
    for name, command in short_chain.commands(folder).items():
        started = time.monotonic()
        run(command, folder)
        taken[name] = time.monotonic() - started
    return taken


def disturbed(folder: Path, taken: dict[str, float], kills: int, minutes: float, seed: int) -> dict[str, int]:
    """Run all stages, killed at random moments; kills by stage."""
    short_chain.make(folder)
    generator, started, total = random.Random(seed), time.monotonic(), sum(taken.values())
    moments = sorted(generator.uniform(0.0, total) for _ in range(round(1.25 * kills)))
    found: dict[str, int] = {}
    begin = 0.0
    for name, command in short_chain.commands(folder).items():
        waits = [moment - begin for moment in moments if begin <= moment < begin + taken[name]]
        begin += taken[name]
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
    found = {}
    for name in ("data", "models", "results"):
        for path in sorted((folder / name).rglob("*")):
            plain = path.is_file() and not path.name.startswith(".")
            if plain:
                found[path.relative_to(folder).as_posix()] = hashlib.sha256(path.read_bytes()).hexdigest()
    return found


def main() -> None:
    """Run both chains and compare."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    root = Path(tempfile.mkdtemp(prefix="soak-"))
    for name in ("undisturbed", "disturbed"):
        (root / name).mkdir()
    taken = undisturbed(root / "undisturbed")
    print(f"undisturbed: {len(taken)} stages in {sum(taken.values()):.0f} s", flush=True)
    found = disturbed(root / "disturbed", taken, options.kills, options.minutes, options.seed)
    first, second = outputs(root / "undisturbed"), outputs(root / "disturbed")
    differing = sorted(name for name in {*first, *second} if first.get(name) != second.get(name))
    leftovers = [path for path in (root / "disturbed" / ".scratch").rglob("*") if path.name.startswith("step-")]
    print(f"{sum(found.values())} kills in {len(found)} stages; {len(first)} outputs compared")
    for name in differing:
        print(f"differs: {name}")
    for path in leftovers:
        print(f"left over: {path}")
    print(f"folders: {root}")
    if sum(found.values()) < options.kills:
        sys.exit(f"too few kills: {sum(found.values())} of {options.kills}; try another --seed")
    sys.exit(bool(differing or leftovers))


if __name__ == "__main__":
    main()
