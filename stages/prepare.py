"""Fetch and verify the data set of the selected profile, split it, fit the class Gaussians."""

from __future__ import annotations

from ebjdat import command
from ebjdat.config import Data, load_params
from ebjdat.data.prepared import save_prepared
from ebjdat.data.source import Source
from ebjdat.subject import Subject


def read_source(settings: Data) -> Source:
    """The data set that the parameters name."""
    if settings.dataset == "digits":
        from ebjdat.data.digits import load_digits

        return load_digits()
    from ebjdat.data.cifar10 import load_cifar10

    return load_cifar10(settings.folder)


def main() -> None:
    """Write ``data/<profile>/``."""
    params = load_params()
    settings = params.current.data
    folder = Subject.current(params).data_dir
    manifest = save_prepared(folder, read_source(settings), settings)
    counts = ", ".join(f"{count:,} {name}" for name, count in manifest["counts"].items())
    print(f"{folder}: {settings.dataset}, {counts} images; digest {manifest['digest'][:16]}")


if __name__ == "__main__":
    command.run(main)
