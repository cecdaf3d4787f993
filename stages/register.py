"""Log the current model with its signature to MLflow and register it under an alias."""

from __future__ import annotations

import argparse

from ebjdat import command
from ebjdat.config import load_params
from ebjdat.reporting.registry import register
from ebjdat.subject import Subject


def main() -> None:
    """Register the current model of params.yaml."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--alias", default="latest-run", help="alias that points to this version; default: latest-run")
    alias = parser.parse_args().alias
    subject = Subject.current(load_params())
    name, version = register(subject, subject.model_dir, alias)
    print(f"models:/{name}@{alias} is version {version}")


if __name__ == "__main__":
    command.run(main)
