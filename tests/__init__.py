"""Tests, and commands of theirs (`python -m tests.X`)."""

import os

# Small tensors gain nothing from threads; see stages/__init__.py for the second line.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("OMP_WAIT_POLICY", "passive")
