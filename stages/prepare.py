"""Fetch and verify the data set of the selected profile, split it, fit the class Gaussians."""

from ebjdat import command
from ebjdat.config import load_params


def main() -> None:
    """Write ``data/<profile>/``."""
    command.no_arguments(__doc__)
    params = load_params()
    settings, folder = params.current.data, params.runs()[0].data_dir

    from ebjdat.data.prepared import load_source, save_prepared

    manifest = save_prepared(folder, load_source(settings), settings)
    counts = ", ".join(f"{count:,} {name}" for name, count in manifest["counts"].items())
    print(f"{folder}: {settings.dataset}, {counts} images; digest {manifest['digest'][:16]}")


if __name__ == "__main__":
    command.run(main)
