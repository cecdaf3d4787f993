"""Which run a stage is asked about: ``--model`` and ``--seed``, resolved once into a :class:`Setup`."""

import argparse

from ebjdat.config import Params, Setup, load_params, resolve
from ebjdat.errors import UserError
from ebjdat.run import Run


def parser_of(description: str | None) -> argparse.ArgumentParser:
    """The parser of every stage about one run; a stage may add arguments of its own."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", help="<method>-<variant>, a baseline, external-<name>; default: that of params.yaml")
    parser.add_argument("--seed", type=int, help="of the training; default: the first of params.yaml")
    return parser


def setup_of(arguments: argparse.Namespace) -> tuple[Params, Setup]:
    """The whole of params.yaml and its profile, validated before anything else, and what it says about the run."""
    params = load_params()
    model = params.model if arguments.model is None else arguments.model
    seed = params.seeds[0] if arguments.seed is None else arguments.seed
    if not 0 <= seed < 2**31:
        raise UserError(f"--seed: expected a whole number from 0 to {2**31 - 1}, got {seed}")
    return params, resolve(params, Run(params.profile, model, seed))


def setup_from_arguments(description: str | None) -> Setup:
    """The same for a stage without other arguments."""
    return setup_of(parser_of(description).parse_args())[1]
