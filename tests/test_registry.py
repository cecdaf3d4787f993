"""A trained model in MLflow: signature, registry, alias."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

import ebjdat
from ebjdat import registry, tracking
from ebjdat.errors import UserError
from ebjdat.run import Run
from tests import tiny
from tests.small_models import held_out
from tests.synthetic import clean_environment, setup_of, use_empty_store


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
    setup = setup_of(params)
    name, version = registry.register(setup.run, "champion")
    assert (name, version) == ("ebjdat-digits-ebjdat-jempp", "1")
    assert registry.register(setup.run, "champion")[1] == "2"
    mlflow.set_tracking_uri(tracking.address())
    back = mlflow.pytorch.load_model(f"models:/{name}@champion")
    x = held_out(4)[0]
    assert torch.equal(back(x), ebjdat.load(setup.run.model_dir)(x))
    signature = mlflow.models.get_model_info(f"models:/{name}@champion").signature
    assert signature.inputs.inputs[0].shape == (-1, 1, 8, 8) and signature.inputs.inputs[0].type == np.float32
    assert signature.outputs.inputs[0].shape == (-1, 10)
    (run,) = tracking.Store.open("digits").runs()
    assert run.data.tags[tracking.KEY] == tracking.key_of(setup.run, tracking.trained_with(setup)), "that of its curves"
    assert "EB-JDAT" in run.data.tags["mlflow.note.content"]


def test_a_model_that_is_not_there_is_named() -> None:
    with pytest.raises(UserError, match="ebjdat-jem/0 does not exist"):
        registry.register(Run("digits", "ebjdat-jem", 0), "champion")


@pytest.mark.parametrize("alias", ["latest", "Latest", "v2", "", "a b", "x/y"])
def test_an_alias_that_mlflow_keeps_for_itself_is_refused_before_anything_is_made(workspace: Path, alias: str) -> None:
    with pytest.raises(UserError, match="--alias"):
        registry.register(Run("digits", "ebjdat-jem", 0), alias)
    assert not (workspace / "mlflow.db").exists()
