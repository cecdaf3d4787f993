"""Export a trained model for others: safetensors, configuration, a model card with its numbers."""

from pathlib import Path

from ebjdat import command
from stages.arguments import parser_of, setup_of


def main() -> None:
    """Write ``exports/<profile>/<model>/<seed>``, or the folder that ``--to`` names."""
    parser = parser_of(__doc__)
    parser.add_argument("--to", type=Path, help="folder to write; default: exports/<profile>/<model>/<seed>")
    arguments = parser.parse_args()

    from ebjdat.exporting import export

    run = setup_of(arguments)[1].run
    folder = export(run.model_dir, arguments.to or Path("exports") / str(run))
    print(f"{folder}: {', '.join(sorted(path.name for path in folder.iterdir()))}")


if __name__ == "__main__":
    command.run(main)
