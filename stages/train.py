"""Train a run: EB-JDAT, its control or the plain variant on a JEM variant, or a baseline."""

import sys
from typing import Any

from ebjdat import command, record
from ebjdat.config import Setup
from ebjdat.errors import DivergenceError, UserError
from ebjdat.tracking import Curves
from stages.arguments import setup_from_arguments

ABOUT_CHANCE = 0.15
"""Of ten classes."""


def main() -> None:
    """Write ``models/<profile>/<model>/<seed>``; for several devices the stage starts itself again, once for each."""
    setup = setup_from_arguments(__doc__)
    if setup.training is None:
        raise UserError(f"{setup.run.model} is not trained here: python -m stages.evaluate_model attacks it")

    from ebjdat.training import launch, parallel
    from ebjdat.training.run import train

    processes = launch.processes(setup)
    if processes > 1 and not parallel.launched():
        launch.start(processes, sys.argv[1:])
    elif parallel.rank():
        train(setup)
    else:
        say(setup, train_with_curves(setup))


def train_with_curves(setup: Setup) -> dict[str, Any]:
    """Train with live curves in MLflow, whose failure never ends the run; returns the summary."""
    from ebjdat.training.run import train

    with Curves(setup) as curves:
        try:
            summary = train(setup, curves.log, curves.note_rollback)
        except DivergenceError as error:
            curves.diverged(str(error))
            raise
    record.write_times(setup.run, "train")
    return summary


def say(setup: Setup, summary: dict[str, Any]) -> None:
    """What came out, in one line."""
    chosen = summary["selected"]
    print(
        f"{setup.run}: best epoch {summary['best_epoch']} of {summary['epochs']}, validation clean "
        f"{100 * chosen['val_clean']:.1f} %, PGD robust {100 * chosen['val_robust']:.1f} %, "
        f"{len(summary['events'])} rollbacks"
    )
    if chosen["val_clean"] <= ABOUT_CHANCE:
        print(
            f"warning: {setup.run} classifies about as well as chance, though nothing diverged: lower its learning "
            "rate, and look at history.jsonl beside the model",
            file=sys.stderr,
        )


if __name__ == "__main__":
    command.run(main)
