"""Carry a campaign to a machine that lacks data and packages, and its results back, in small pieces."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from ebjdat import packages

packages.use(packages.INPUTS)

from ebjdat import command, packing  # noqa: E402  # after the path is complete


def main() -> None:
    """Pack inputs or results, or unpack either."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("what", choices=("inputs", "results", "unpack"))
    parser.add_argument("folder", type=Path, help="of the pack: manifest.json and pieces")
    parser.add_argument("--profile", help="whose inputs; default: the one of params.yaml")
    parser.add_argument("--root", type=Path, default=Path(".campaign"), help="folder of the campaign")
    parser.add_argument("--piece-mb", type=float, default=packing.PIECE_BYTES / 1e6, help="largest size of a piece")
    parser.add_argument("--leave-out", nargs="*", default=[], help="results: patterns such as */buffer.npz")
    arguments = parser.parse_args()
    size = packing.piece_size(arguments.piece_mb)
    if arguments.what == "inputs":
        manifest = _inputs(arguments.folder, arguments.profile, size)
    elif arguments.what == "results":
        entries = packing.campaign_entries(arguments.root, tuple(arguments.leave_out))
        manifest = packing.pack(entries, arguments.folder, size)
    else:
        manifest = packing.read_manifest(arguments.folder)
        inputs = any(name.startswith(("cache/", "packages/")) for name in manifest["files"])
        packing.unpack(arguments.folder, arguments.root / "inputs" if inputs else arguments.root)
    print(f"{arguments.folder}: {len(manifest['files'])} files in {len(manifest['pieces'])} pieces")


def _inputs(folder: Path, profile: str | None, size: int) -> dict[str, Any]:
    from ebjdat.config import load_params

    params = load_params()
    chosen = params.profiles[profile or params.profile]
    with packing.data_entries(chosen.data.dataset, chosen.data.folder, chosen.evaluation.generation.features) as data:
        return packing.pack(packing.package_entries() | data, folder, size)


if __name__ == "__main__":
    command.run(main)
