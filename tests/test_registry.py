"""A trained model in MLflow: signature, registry, alias."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

import ebjdat
from ebjdat.errors import UserError
from ebjdat.reporting import registry, tracking
from ebjdat.subject import Subject
from tests import tiny
from tests.small_models import held_out
from tests.synthetic import clean_environment, use_empty_store


@pytest.fixture(autouse=True)
def workspace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / ".dvc").mkdir()
    return clean_environment(monkeypatch, tmp_path)


def test_a_registered_model_is_found_by_its_alias_and_gives_the_same_logits(workspace: Path) -> None:
    import mlflow

    params = tiny.write_params(workspace)
    tiny.prepare(params)
    tiny.train(params)
    use_empty_store()
    subject = Subject.current(params)
    name, version = registry.register(subject, subject.model_dir, "champion")
    assert (name, version) == ("ebjdat-digits-ebjdat-jempp", "1")
    assert registry.register(subject, subject.model_dir, "champion")[1] == "2"
    mlflow.set_tracking_uri(tracking.store_uri())
    back = mlflow.pytorch.load_model(f"models:/{name}@champion")
    x = held_out(4)[0]
    assert torch.equal(back(x), ebjdat.load(subject.model_dir)(x))
    signature = mlflow.models.get_model_info(f"models:/{name}@champion").signature
    assert signature.inputs.inputs[0].shape == (-1, 1, 8, 8) and signature.inputs.inputs[0].type == np.float32
    assert signature.outputs.inputs[0].shape == (-1, 10)
    run = tracking.Store.open("digits").parent(subject, back.description.identity, {})
    assert "EB-JDAT" in run.data.tags["mlflow.note.content"]


def test_a_model_that_is_not_there_is_named(workspace: Path) -> None:
    with pytest.raises(UserError, match="ebjdat-jem does not exist"):
        registry.register(Subject("digits", "ebjdat", "jem", 0), Path("models/digits/ebjdat-jem"), "champion")
