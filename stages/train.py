"""Train EB-JDAT, its control or the plain variant, on the variant that params.yaml selects."""

from __future__ import annotations

from ebjdat import command
from ebjdat.config import load_params
from ebjdat.subject import Subject
from stages.training import train_with_curves


def main() -> None:
    """Train the current model of params.yaml."""
    params = load_params()
    train_with_curves(params, Subject.current(params))


if __name__ == "__main__":
    command.run(main)
