"""Trained models in MLflow: logged with their signature, registered under a name, found by an alias."""

import re

import numpy as np

from ebjdat.api import load
from ebjdat.errors import UserError
from ebjdat.evaluation import external
from ebjdat.run import Run
from ebjdat.tracking import Store, describe, find_or_create


def register(run: Run, alias: str) -> tuple[str, str]:
    """Log the best checkpoint of a run to its MLflow run and register it.

    Args:
        alias: points to the new version from now on, such as ``champion``.

    Returns:
        Name and version in the registry; ``models:/<name>@<alias>`` opens it. There is one name per profile and model;
        seeds and trainings are its versions.

    Raises:
        UserError: the alias is not one that MLflow takes, the model or its description is missing, or the store fails.
    """
    # MLflow would refuse it only after the model is logged.
    if not re.fullmatch(r"[A-Za-z0-9_-]{1,255}", alias) or re.fullmatch(r"latest|v\d+", alias, re.IGNORECASE):
        raise UserError(
            f"--alias {alias}: expected letters, digits, _ and - only, and neither `latest` nor `v` with a number, "
            "which MLflow keeps for itself"
        )
    model = load(run.model_dir)
    described = model.description
    if described is None or described.run != run:
        raise UserError(f"{run.model_dir} does not describe the model {run}: run `dvc repro` to make it again")
    name, store = f"ebjdat-{run.profile}-{run.model}", Store.open(run.profile)
    trained = described.params | {"revision": described.revision}
    if run.is_external:
        trained["fingerprint"] = external.fingerprint_of(run.model_dir)
    run_id = find_or_create(store, run, trained)
    # float32 images (-1,C,H,W) -> logits (-1,classes): MLflow leaves the first axis open
    images, logits = (np.zeros((1, *sides), np.float32) for sides in (described.shape, (described.classes,)))
    with store.default() as mlflow:
        logged = mlflow.pytorch.log_model(
            model,
            name="classifier",
            signature=mlflow.models.infer_signature(images, logits),
            registered_model_name=name,
            serialization_format="pickle",  # the traced form would lose energies and samples
            pip_requirements=["torch", "numpy", "ebjdat"],
            run_id=run_id,
        )
        version = str(logged.registered_model_version)
        store.client.set_registered_model_alias(name, alias, version)
        store.client.update_registered_model(name, describe(run))
        return name, version
