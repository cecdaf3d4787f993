"""Train the independent classifier and measure the real images that samples are compared with."""

from ebjdat import command
from ebjdat.config import load_params
from ebjdat.run import reference_dir


def main() -> None:
    """Write ``models/<profile>/reference/``."""
    command.no_arguments(__doc__)

    from ebjdat.data.prepared import load_prepared
    from ebjdat.device import choose_device, fix_threads
    from ebjdat.evaluation.reference import build_reference

    params = load_params()
    folder, data = reference_dir(params.profile), load_prepared(params.runs()[0].data_dir)
    device = choose_device(params.device, params.deterministic)
    fix_threads(device)
    manifest = build_reference(folder, data, params.current.evaluation.generation, device)
    right, n, floor = manifest["classifier"]["correct"], manifest["classifier"]["n"], manifest["floor"]
    distances = ", ".join(f"{name} {value:.4g}" for name, value in floor.items() if not name.endswith("-std"))
    print(f"{folder}: classifier {100 * right / n:.1f} % on test; test images: {distances}")


if __name__ == "__main__":
    command.run(main)
