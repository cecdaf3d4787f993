"""Tests, and commands of theirs (`python -m tests.X`)."""

import os
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
"""The repository."""

# Small tensors gain nothing from threads; see stages/__init__.py for the second line.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("OMP_WAIT_POLICY", "passive")
# Nor is any checkout, store or scratch folder of the user's touched.
for _name in ("DVC_ROOT", "MLFLOW_TRACKING_URI", "EBJDAT_SCRATCH", "EBJDAT_STRICT_TRACKING"):
    os.environ.pop(_name, None)
