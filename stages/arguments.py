"""The one argument that evaluation stages take."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from ebjdat.config import BASELINES, Params, load_params
from ebjdat.subject import EXTERNAL, Subject


def from_arguments(description: str | None, argv: Sequence[str] | None = None) -> tuple[Params, Subject]:
    """The validated parameters and the model that an evaluation stage was asked about.

    ``--model pgd_at`` names a baseline, ``--model external-<name>`` a model that ``stages.evaluate_model``
    took in; without it, the current model of ``params.yaml``.
    The whole of ``params.yaml`` is validated before anything else.
    """
    parser = argparse.ArgumentParser(description=description)
    known = f"{', '.join(BASELINES)} or {EXTERNAL}<name>"
    parser.add_argument("--model", help=f"{known}; default: the current model of params.yaml")
    arguments = parser.parse_args(argv)
    params = load_params()
    if arguments.model is None:
        return params, Subject.current(params)
    if arguments.model.startswith(EXTERNAL):
        return params, Subject.external(params, arguments.model)
    if arguments.model not in BASELINES:
        parser.error(f"argument --model: unknown model {arguments.model!r}; known: {known}")
    return params, Subject.baseline(params, arguments.model)
