"""Ctrl-C to ``dvc repro`` in every stage script, each time repeated: it completes, and nothing runs twice.

    python -m tests.check_interrupts [--seed 0]

In a folder of its own, on a shortened budget. One stage of each script is interrupted after it began (of the
baselines the first; quick ones mostly while they import); the next ``dvc repro`` must begin with it.
"""

from __future__ import annotations

import argparse
import os
import random
import re
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from tests import short_chain

QUICK = ("prepare", "masking", "tables", "report")
"""Scripts that are done after two or three seconds, most of which they import modules."""
RUNNING = re.compile(r"Running stage '([^']+)'")


def targets(names: list[str]) -> list[str]:
    """One stage of each script."""
    first: dict[str, str] = {}
    for name in names:
        first.setdefault(name.split("@")[0].removesuffix("-baseline").removesuffix("-source"), name)
    return list(first.values())


def repro(folder: Path, interrupt: str | None, wait: float) -> tuple[int, list[str]]:
    """``dvc repro``; Ctrl-C comes ``wait`` seconds after the stage began. Exit code and stages that began."""
    command = [sys.executable, "-m", "dvc", "repro"]
    begun = []
    process = subprocess.Popen(
        command,
        cwd=folder,
        env=short_chain.environment(folder) | {"PYTHONUNBUFFERED": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    assert process.stdout is not None
    with (folder / "log.txt").open("a") as log:
        for line in process.stdout:
            log.write(line)
            if found := RUNNING.search(line):
                begun.append(found[1])
                if found[1] == interrupt:
                    time.sleep(wait)
                    os.killpg(process.pid, signal.SIGINT)
    return process.wait(), begun


def main() -> None:
    """Interrupt every script once, then let the pipeline end."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seed", type=int, default=0)
    generator = random.Random(parser.parse_args().seed)
    folder = Path(tempfile.mkdtemp(prefix="interrupts-"))
    short_chain.make(folder)
    subprocess.run([sys.executable, "-m", "dvc", "init", "--no-scm", "--quiet"], cwd=folder, check=True)
    finished: set[str] = set()
    for target in [*targets(list(short_chain.commands(folder))), None]:
        latest = 1.8 if target in QUICK else 6.0
        code, begun = repro(folder, target, generator.uniform(0.0, latest))
        twice = finished & set(begun)
        ended_early = code == 0 if target else code != 0
        if twice or ended_early or (target and begun[-1] != target):
            sys.exit(f"interrupting {target}: exit code {code}, ran {begun}, of these again {twice}, see {folder}")
        finished |= set(begun) - {target}
        print(f"{target or 'last repro'}: exit code {code}, ran {', '.join(begun)}", flush=True)
    print(f"every script was interrupted and completed; folder: {folder}")


if __name__ == "__main__":
    main()
