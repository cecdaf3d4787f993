"""Evaluate a classifier of yours like the models trained here, under both protocols, and put it in the tables.

The factory is `module:function`; called without arguments it returns a torch module that maps images
(N,C,H,W) in [0, 1] to logits (N,10).
"""

from __future__ import annotations

import argparse
import functools
import subprocess
import sys

from ebjdat import command, provenance
from ebjdat.config import Params, load_params
from ebjdat.data.prepared import load_prepared
from ebjdat.errors import UserError
from ebjdat.evaluation import external
from ebjdat.reporting import claims, ledger, lookup, tables
from ebjdat.subject import EVALUATIONS, Subject

STAGES = tuple(stage for stage in EVALUATIONS if stage != "generate")


def run_stage(stage: str, method: str) -> None:
    """One evaluation stage of the pipeline, in a process of its own.

    Raises:
        UserError: it failed; it has said why.
    """
    code = subprocess.run([sys.executable, "-m", f"stages.{stage}", "--model", method], check=False).returncode
    if code:
        raise UserError(f"the stage {stage} ended with exit code {code}; mend its cause and run the same command again")


def take_in(subject: Subject, factory: str) -> str:
    """Keep the factory's model; returns its fingerprint.

    Raises:
        UserError: the factory cannot be found, fails, or gives no classifier of such images.
    """
    shape = load_prepared(subject.data_dir).shape
    try:
        return external.save(subject.model_dir, factory, shape)
    except UserError:
        raise
    except Exception as error:  # whatever the user's own code raises
        raise UserError(f"--factory {factory}: raised {type(error).__name__}: {error}") from error


def publish(params: Params) -> None:
    """Records into ledger, MLflow and tables."""
    ledger.update(params, functools.cache(provenance.closure_hash))
    numbers, checks = lookup.load_with_checks(params)
    tables.write_tables(numbers, checks)
    claims.write_claims(params, numbers)


def main() -> None:
    """Take the model in, run the stages, update ledger and tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--factory", required=True, help="module:function, for example my_module:make_model")
    parser.add_argument("--name", required=True, help="name in records and tables: a-z, 0-9 and hyphens")
    parser.add_argument("--stages", nargs="+", choices=STAGES, default=STAGES, help="default: all")
    arguments = parser.parse_args()
    params, method = load_params(), external.method_of(arguments.name)
    subject = Subject(params.profile, method, None, params.seed)
    fingerprint = take_in(subject, arguments.factory)
    print(f"{subject.model_dir}: {arguments.factory}, fingerprint {fingerprint}")
    for stage in [stage for stage in STAGES if stage in arguments.stages]:
        run_stage(stage, method)
    publish(params)
    print(f"{method} stands in {tables.tables_dir(params.profile)}; records in {subject.results_dir}")


if __name__ == "__main__":
    command.run(main)
