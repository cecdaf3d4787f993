"""What `train` and `baseline` share: a run with live curves in MLflow, and a side file."""

from __future__ import annotations

import sys
from pathlib import Path

from ebjdat.config import Params
from ebjdat.errors import DivergenceError
from ebjdat.reporting.tracking import Curves
from ebjdat.subject import Subject, data_digest
from ebjdat.training import launch, parallel
from ebjdat.training.run import copy_trained, train_subject


def train_with_curves(params: Params, subject: Subject, folder: Path | None = None) -> None:
    """Train ``subject`` on its devices, logging every epoch; the tracking store can never end the run.

    The current model may also be a transfer surrogate: whichever of the two stages comes second
    copies what the first has trained. For several devices the stage starts itself again, once for each.

    Args:
        folder: where the model goes; ``subject.model_dir`` if None.
    """
    folder = folder or subject.model_dir
    identity = subject.identity(params, "train", data_digest(subject.profile))
    for other in {subject.model_dir, subject.surrogate_dir} - {folder}:
        if copy_trained(other, folder, identity):
            print(f"{subject.run_name}: copied from {other}, which has the same identity {identity}")
            return
    count = launch.processes(params, subject)
    if count > 1 and not parallel.launched():
        launch.start(count, sys.argv[1:])
        return
    if parallel.rank():
        train_subject(params, subject, folder=folder)
        return
    with Curves(subject, identity, subject.resolved(params, "train")) as curves:
        try:
            summary = train_subject(
                params, subject, lambda row: curves.log(row["epoch"], row), folder, curves.note_rollback
            )
        except DivergenceError as error:
            curves.note("diverged", str(error))
            raise
    chosen = summary["selected"]
    print(
        f"{subject.run_name}: best epoch {summary['best_epoch']} of {summary['epochs']}, validation clean "
        f"{100 * chosen['val_clean']:.1f} %, PGD robust {100 * chosen['val_robust']:.1f} %, "
        f"{len(summary['events'])} rollbacks"
    )
