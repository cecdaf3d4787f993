"""Independent stages side by side on a CPU, before `dvc repro` runs whatever is left.

`dvc repro` runs one stage after the other, and on small images a stage keeps one core busy. Here two
lanes of `dvc repro --single-item` run at once, wave by wave; DVC's own locks keep them apart. A stage
that fails here fails again, with its message, in the `dvc repro` that `make repro` runs afterwards.
With a GPU, or on one core, nothing is done.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Sequence

from ebjdat import command
from ebjdat.config import load_params

WAVES = (
    (("prepare",),),
    (("baseline", "reference"), ("surrogate@jempp", "surrogate@sadajem", "train")),
    (
        ("clean", "autoattack", "transfer", "sweep", "eot", "generate", "masking"),
        (
            "clean-baseline", "transfer-baseline", "sweep-baseline", "eot-baseline", "autoattack-baseline",
            "masking-baseline",
        ),
    ),
)  # fmt: skip
"""Stages of each lane, in order; what a stage needs lies in an earlier wave or earlier in its lane."""

HEAP = {
    "MALLOC_MMAP_THRESHOLD_": str(32 << 20),
    "MALLOC_TRIM_THRESHOLD_": str(1 << 30),
    "MALLOC_TOP_PAD_": str(64 << 20),
}
"""glibc, for every lane: keep freed memory. Its default gives every tensor above 128 KiB back to the system
and fetches it page by page again, a tenth to a quarter of a stage's time at these sizes. No number changes."""


def side_by_side(lanes: Sequence[Sequence[str]]) -> bool:
    """Run one wave and wait for all of its lanes; returns whether every stage succeeded."""
    repro = ["dvc", "--wait-for-lock", "repro", "--quiet", "--single-item"]
    running = [subprocess.Popen([*repro, *lane], env=HEAP | os.environ) for lane in lanes]
    try:
        codes = [lane.wait() for lane in running]
    except KeyboardInterrupt:  # the lanes have got it too, and write their checkpoints
        for lane in running:
            lane.wait()
        raise
    return not any(codes)


def announced(place: int, lanes: Sequence[Sequence[str]]) -> bool:
    """Run a wave and say which; returns whether it succeeded."""
    print(f"wave {place} of {len(WAVES)}: {', '.join(name for lane in lanes for name in lane)}", flush=True)
    return side_by_side(lanes)


def main() -> None:
    """Run the waves until one fails; the exit status is 0 whatever became of the stages."""
    if load_params().device == "cuda" or shutil.which("nvidia-smi") or (os.cpu_count() or 1) < 2:
        return
    print("Independent stages first, side by side; then `dvc repro` confirms each and runs what is left.", flush=True)
    all(announced(place, lanes) for place, lanes in enumerate(WAVES, 1))


if __name__ == "__main__":
    command.run(main)
