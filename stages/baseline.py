"""Train a baseline: pgd_at (also the transfer surrogate), trades, or the undefended network."""

from __future__ import annotations

import argparse

from ebjdat import command
from ebjdat.config import BASELINES, load_params
from ebjdat.subject import Subject
from stages.training import train_with_curves


def main() -> None:
    """Train the baseline that ``--model`` names."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", choices=BASELINES, required=True)
    name = parser.parse_args().model
    params = load_params()
    train_with_curves(params, Subject.baseline(params, name))


if __name__ == "__main__":
    command.run(main)
