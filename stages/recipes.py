"""Each variant's recipe as training reads it, one file each: DVC trains a model again where its file changes."""

from pathlib import Path

from ebjdat import command, files
from ebjdat.config import load_params


def main() -> None:
    """Write ``data/recipes/<variant>.json``: what is taken over by ``like`` stands there, the label does not."""
    command.no_arguments(__doc__)
    for name, variant in load_params().variants.items():
        recipe = {key: value for key, value in variant.plain().items() if key != "label"}
        files.write_json(Path("data", "recipes", f"{name}.json"), recipe)


if __name__ == "__main__":
    command.run(main)
