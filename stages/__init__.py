"""The stages of the pipeline, one thin script each."""

import importlib.util
import os
import sys


def require(*packages: str) -> None:
    """End with one sentence where the environment lacks packages."""
    missing = [name for name in packages if importlib.util.find_spec(name) is None]
    if missing:
        print(
            f"error: {sys.executable} has not the packages of this project ({', '.join(missing)}): activate its "
            "environment (`make env && . .venv/bin/activate`) and run the same command again",
            file=sys.stderr,
        )
        sys.exit(2)


# A stage also runs where DVC and MLflow are absent: its record then lacks nothing but its place in MLflow.
require("pydantic", "ruamel", "torch")

# Threads that wait for each other by spinning bring a busy machine to a crawl: beside one other
# process, training on two cores is ten times slower than with waiting threads asleep. The setting
# is read when PyTorch loads its thread library, so it must come before any import of it.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")
