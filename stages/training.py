"""What `train` and `baseline` share: a run with live curves in MLflow, and a side file."""

from __future__ import annotations

from ebjdat.config import Params
from ebjdat.reporting.tracking import Curves
from ebjdat.subject import Subject, data_digest
from ebjdat.training.run import train_subject


def train_with_curves(params: Params, subject: Subject) -> None:
    """Train ``subject``, logging every epoch; the tracking store can never end the run."""
    identity = subject.identity(params, "train", data_digest(subject.profile))
    with Curves(subject, identity, subject.resolved(params, "train")) as curves:
        summary = train_subject(params, subject, lambda row: curves.log(row["epoch"], row))
    chosen = summary["selected"]
    print(
        f"{subject.run_name}: best epoch {summary['best_epoch']} of {summary['epochs']}, validation clean "
        f"{100 * chosen['val_clean']:.1f} %, PGD robust {100 * chosen['val_robust']:.1f} %, "
        f"{len(summary['events'])} rollbacks"
    )
