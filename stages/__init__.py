"""The stages of the pipeline, one thin script each."""

import os

# Threads that wait for each other by spinning bring a busy machine to a crawl: beside one other
# process, training on two cores is ten times slower than with waiting threads asleep. The setting
# is read when PyTorch loads its thread library, so it must come before any import of it.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")
