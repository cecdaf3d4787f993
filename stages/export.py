"""Export a trained model for others: safetensors, configuration, a model card with its numbers."""

from __future__ import annotations

import argparse
from pathlib import Path

from ebjdat import command
from ebjdat.config import load_params
from ebjdat.exporting import export
from ebjdat.subject import Subject


def main() -> None:
    """Write the folder; without arguments, of the current model into ``exports/<profile>/<name>``."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", type=Path, help="folder of a model; default: the current one of params.yaml")
    parser.add_argument("--to", type=Path, help="folder to write; default: exports/<profile>/<name>")
    arguments = parser.parse_args()
    params = load_params()
    source = arguments.model or Subject.current(params).model_dir
    folder = export(source, arguments.to or Path("exports") / params.profile / source.name, params=params)
    print(f"{folder}: {', '.join(sorted(path.name for path in folder.iterdir()))}")


if __name__ == "__main__":
    command.run(main)
