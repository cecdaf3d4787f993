"""Train the independent classifier and measure the real images that samples are compared with."""

from __future__ import annotations

from pathlib import Path

from ebjdat import command
from ebjdat.config import load_params
from ebjdat.data.prepared import load_prepared
from ebjdat.device import choose_device
from ebjdat.evaluation.reference import build_reference
from ebjdat.subject import Subject


def main() -> None:
    """Write ``models/<profile>/reference/``."""
    params = load_params()
    folder = Path("models") / params.profile / "reference"
    prepared = load_prepared(Subject.current(params).data_dir)
    manifest = build_reference(folder, prepared, params.current.evaluation.generation, choose_device(params.device))
    classifier, floor = manifest["classifier"], manifest["floor"]
    distances = ", ".join(f"{name} {value:.4g}" for name, value in floor.items() if not name.endswith("-std"))
    print(
        f"{folder}: classifier {100 * classifier['correct'] / classifier['n']:.1f} % on test; test images: {distances}"
    )


if __name__ == "__main__":
    command.run(main)
