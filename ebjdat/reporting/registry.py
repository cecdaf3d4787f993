"""Trained models in MLflow: logged with their signature, registered under a name, found by an alias."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ebjdat.api import Classifier, load
from ebjdat.errors import UserError
from ebjdat.reporting import tracking
from ebjdat.subject import Subject


def registered_name(subject: Subject) -> str:
    """Name in the registry: one per profile and model, its versions are runs and seeds."""
    return f"ebjdat-{subject.profile}-{subject.name}"


def register(subject: Subject, folder: Path, alias: str) -> tuple[str, str]:
    """Log the best checkpoint in ``folder`` to its training run and register it.

    Args:
        alias: points to the new version from now on, such as ``champion``.

    Returns:
        Name and version in the registry; ``models:/<name>@<alias>`` opens it.

    Raises:
        UserError: the model or its description is missing, or the store fails.
    """
    model = load(folder)
    if model.description is None:
        raise UserError(f"{folder} has no model.json: train the model again with this version")
    found = (model.description.profile, model.description.name, model.description.seed)
    if found != (subject.profile, subject.name, subject.seed):
        raise UserError(
            f"{folder} holds {found[1]} of profile {found[0]} with seed {found[2]}, not {subject.run_name}: run "
            "`dvc repro` for the model of params.yaml first"
        )
    try:
        store = tracking.Store.open(subject.profile)
        run = store.parent(subject, model.description.identity, {})
        return registered_name(subject), _log(store, run.info.run_id, model, registered_name(subject), alias)
    except tracking.TrackingError as error:
        raise UserError(str(error)) from error


def _log(store: tracking.Store, run: str, model: Classifier, name: str, alias: str) -> str:
    import mlflow

    assert model.description is not None
    with store.translated():
        mlflow.set_tracking_uri(store.uri)
        logged = mlflow.pytorch.log_model(  # type: ignore[attr-defined]
            model,
            name="classifier",
            signature=signature(model),
            registered_model_name=name,
            serialization_format="pickle",  # the traced form would lose energies and samples
            pip_requirements=["torch", "numpy", "ebjdat"],
            run_id=run,
        )
        version = str(logged.registered_model_version)
        store.client.set_registered_model_alias(name, alias, version)
        note = tracking.describe_model(
            Subject(*(getattr(model.description, part) for part in ("profile", "method", "variant", "seed")))
        )
        store.client.update_registered_model(name, note)
        return version


def signature(model: Classifier) -> Any:
    """Images float32 (-1,C,H,W) in [0, 1] -> logits float32 (-1,classes), as MLflow writes it."""
    import numpy as np
    from mlflow.models import ModelSignature
    from mlflow.types import Schema, TensorSpec

    assert model.description is not None
    images = TensorSpec(np.dtype(np.float32), (-1, *model.description.shape))
    logits = TensorSpec(np.dtype(np.float32), (-1, model.description.classes))
    return ModelSignature(inputs=Schema([images]), outputs=Schema([logits]))
