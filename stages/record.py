"""Join workspace, MLflow store and the committed ledger, and log to MLflow what is missing there."""

from __future__ import annotations

import functools

from ebjdat import command, provenance
from ebjdat.config import load_params
from ebjdat.reporting import ledger


def main() -> None:
    """Update the ledger of the selected profile."""
    params = load_params()
    summary = ledger.update(params, functools.cache(provenance.closure_hash))
    print(f"{ledger.ledger_path(params.profile)}: {summary.records} records, {summary.logged} newly logged to MLflow")
    accuracies = [check for check in summary.checks if check["inside"] is not None]
    if accuracies:
        inside = sum(bool(check["inside"]) for check in accuracies)
        print(f"reproduction check: {inside} of {len(accuracies)} accuracies inside the interval of another machine's")


if __name__ == "__main__":
    command.run(main)
