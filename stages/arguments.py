"""The one argument that evaluation stages take."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from ebjdat.config import BASELINES, Params, load_params
from ebjdat.subject import Subject


def from_arguments(description: str | None, argv: Sequence[str] | None = None) -> tuple[Params, Subject]:
    """The validated parameters and the model that an evaluation stage was asked about.

    ``--model pgd_at`` names a baseline; without it, the current model of ``params.yaml``.
    The whole of ``params.yaml`` is validated before anything else.
    """
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--model", choices=BASELINES, help="a baseline; default: the current model of params.yaml")
    arguments = parser.parse_args(argv)
    params = load_params()
    if arguments.model is None:
        return params, Subject.current(params)
    return params, Subject.baseline(params, arguments.model)
