"""Log a trained model with its signature to MLflow and register it under an alias."""

from ebjdat import command
from stages.arguments import parser_of, setup_of


def main() -> None:
    """Register the best checkpoint of a run as the next version of ``ebjdat-<profile>-<model>``."""
    parser = parser_of(__doc__)
    parser.add_argument("--alias", default="latest-run", help="alias that points to this version; default: latest-run")
    arguments = parser.parse_args()

    from ebjdat.registry import register

    name, version = register(setup_of(arguments)[1].run, arguments.alias)
    print(f"models:/{name}@{arguments.alias} is version {version}")


if __name__ == "__main__":
    command.run(main)
