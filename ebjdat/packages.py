"""Packages and data that were carried to a machine which lacks them, put where Python and the stages look.

Nothing here imports anything but the standard library: it runs before the packages are there.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

INPUTS = Path(".campaign") / "inputs"
"""Where ``python -m stages.pack unpack`` puts what was packed, relative to the checkout."""


def use(inputs: Path) -> None:
    """Let this process and its children import ``inputs/packages`` and read data from ``inputs/cache``.

    What was packed comes first: it has the pinned versions. Folders that are missing change nothing.
    """
    packages, cache = (inputs / "packages").resolve(), (inputs / "cache").resolve()
    if packages.is_dir() and str(packages) not in sys.path:
        sys.path.insert(1, str(packages))
        already = os.environ.get("PYTHONPATH")
        os.environ["PYTHONPATH"] = f"{packages}{os.pathsep}{already}" if already else str(packages)
    if cache.is_dir():
        os.environ.setdefault("EBJDAT_CACHE", str(cache))
