"""A trained model in other people's hands: loaded, exported with a card, registered in MLflow."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

import ebjdat
from ebjdat import files, registry, tracking
from ebjdat.config import load_params
from ebjdat.data.prepared import load_prepared
from ebjdat.errors import UserError
from ebjdat.record import write_record
from ebjdat.run import Run
from ebjdat.statistics import Rate, Result
from tests import ROOT, tiny
from tests.small_models import held_out, shorten_autoattack
from tests.synthetic import setup_of, use_empty_store

MODEL, BASELINE = Path("models/digits/ebjdat-jempp/0"), Path("models/digits/undefended/0")


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Prepared digits, a briefly trained EB-JDAT with a record, and a baseline with a record of other weights."""
    folder = tmp_path_factory.mktemp("workspace")
    params = tiny.write_params(folder)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        tiny.prepare(params)
        tiny.train(params, params.model, "undefended")
        rate = Rate.of([True] * 48 + [False] * 16)
        result = Result(n=64, rates={"standard/clean": rate, "standard/pgd-20": rate, "released/pgd-20": rate})
        data = load_prepared(Path("data/digits")).digest
        for model in (params.model, "undefended"):
            record = write_record(setup_of(params, model), "clean", result, data=data)
        files.write_json(setup_of(params, "undefended").run.record("clean"), record | {"weights": "others"})
    return folder


@pytest.fixture(autouse=True)
def inside(workspace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(workspace)


def test_images_become_logits_and_energies_from_folder_and_file() -> None:
    x, y = held_out(20)
    model, same = ebjdat.load(MODEL), ebjdat.load(MODEL / "best.pt")
    assert isinstance(model, torch.nn.Module) and not model.training
    assert not any(parameter.requires_grad for parameter in model.parameters())
    logits = model(x)
    assert logits.shape == (20, 10) and torch.equal(logits, same(x))
    torch.testing.assert_close(model.energy(x), -logits.logsumexp(1))
    torch.testing.assert_close(model.energy(x, y), -logits[torch.arange(20), y])
    assert not torch.equal(ebjdat.load(MODEL / "last.pt").energy(x), torch.zeros(20))


def test_samples_are_images_of_the_variants_own_chains_and_follow_their_generator() -> None:
    model = ebjdat.load(MODEL)
    samples = model.sample(5, generator=torch.Generator().manual_seed(3))
    assert samples.shape == (5, 1, 8, 8) and samples.dtype == torch.float32
    assert float(samples.min()) >= 0 and float(samples.max()) <= 1
    assert torch.equal(samples, model.sample(5, generator=torch.Generator().manual_seed(3)))
    assert not torch.equal(samples, model.sample(5, generator=torch.Generator().manual_seed(4)))
    torch.manual_seed(7)
    first = model.sample(2, y=4)
    torch.manual_seed(7)
    assert torch.equal(first, model.sample(2, y=torch.tensor([4, 4])))
    assert model.description is not None and model.description.chain_steps > 0


def test_a_chain_of_no_length_is_the_start_of_its_class() -> None:
    model = ebjdat.load(MODEL)
    data = load_prepared(Path("data/digits"))
    mean = data.x_train[data.y_train == 0].mean(0)
    samples = model.sample(200, y=0, generator=torch.Generator().manual_seed(0), steps=1)
    assert float((samples.mean(0) - mean).abs().mean()) < 0.15


@pytest.mark.parametrize("y", [10, -1, torch.zeros(3, dtype=torch.long)])
def test_labels_that_do_not_fit_are_refused(y: int | torch.Tensor) -> None:
    with pytest.raises(ValueError, match="expected 2 labels of 0 to 9"):
        ebjdat.load(MODEL).sample(2, y=y)


def test_a_baseline_classifies_and_says_that_it_does_not_sample() -> None:
    model = ebjdat.load("models/digits/undefended/0")
    assert model(held_out(2)[0]).shape == (2, 10)
    with pytest.raises(UserError, match="undefended is a baseline: it was not trained to generate"):
        model.sample(1)


def test_what_a_model_lacks_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="holds no model"):
        ebjdat.load(tmp_path)
    shutil.copy(MODEL / "best.pt", tmp_path / "only.pt")
    with pytest.raises(UserError, match="only weights were loaded"):
        ebjdat.load(tmp_path / "only.pt").sample(1)
    shutil.copytree(MODEL, tmp_path / "a/b/c")
    with pytest.raises(UserError, match=r"gaussians\.npz is missing, where the chains of ebjdat-jempp start"):
        ebjdat.load(tmp_path / "a/b/c").sample(1)
    described = files.read_json(MODEL / "model.json")
    files.write_json(tmp_path / "a/b/c/model.json", described | {"gaussians": str(MODEL.resolve() / "best.pt")})
    with pytest.raises(UserError, match="is not the file that ebjdat-jempp was trained with"):
        ebjdat.load(tmp_path / "a/b/c").sample(1)
    files.write_json(tmp_path / "a/b/c/model.json", described | {"colour": "red"})
    with pytest.raises(UserError, match=r"model\.json: colour: unknown key.*describes no model of this project"):
        ebjdat.load(tmp_path / "a/b/c")


def test_a_misspelt_folder_is_told_with_the_models_beside_it_and_a_page_is_no_model() -> None:
    with pytest.raises(UserError, match=r"does not exist; models near models/digits: .*undefended/0"):
        ebjdat.load("models/digits/undefendet/0")
    with pytest.raises(UserError, match=r"digit/undefended/0 does not exist; models near models: .*undefended/0"):
        ebjdat.load("models/digit/undefended/0")
    with pytest.raises(UserError, match=r"models/digits/undefended holds no model; models near .*: .*undefended/0"):
        ebjdat.load("models/digits/undefended")
    Path("page.md").write_text("no model")
    for path in ("page.md", MODEL / "model.json"):
        with pytest.raises(UserError, match="is no checkpoint: give a model's folder"):
            ebjdat.load(path)


def test_the_readmes_example_runs_and_the_official_autoattack_takes_the_model_as_it_is(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    shorten_autoattack(monkeypatch)
    page = (ROOT / "README.md").read_text(encoding="utf-8")
    (block,) = re.findall(r"<!-- run: readme -->\n```python\n(.*?)```", page, re.DOTALL)
    found: dict[str, Any] = {}
    exec(compile(block, "README.md", "exec"), found)
    x, x_adv = found["x"], found["x_adv"]
    assert len(x) == 64 and float((x_adv - x).abs().max()) <= 32 / 255 + 1e-6
    assert found["samples"].shape == (16, 1, 8, 8)


def test_the_package_loads_no_pytorch_until_it_is_asked() -> None:
    source = "import sys, ebjdat; print('torch' in sys.modules, sorted(ebjdat.__all__), 'load' in dir(ebjdat))"
    run = subprocess.run([sys.executable, "-c", source], capture_output=True, text=True, cwd=ROOT, check=True)
    assert run.stdout.strip() == "False ['Classifier', 'export', 'load'] True"
    with pytest.raises(AttributeError, match="no attribute 'lode'"):
        ebjdat.lode  # noqa: B018


# Export


def test_an_exported_model_is_the_model_wherever_it_lies(tmp_path: Path) -> None:
    folder = ebjdat.export(MODEL, tmp_path / "out")
    names = {"README.md", "config.json", "gaussians.npz", "model.safetensors"}
    assert {path.name for path in folder.iterdir()} == names
    x, _ = held_out(10)
    ours, theirs = ebjdat.load(MODEL), ebjdat.load(folder)
    assert torch.equal(ours(x), theirs(x))
    samples = [m.sample(3, y=1, generator=torch.Generator().manual_seed(0)) for m in (ours, theirs)]
    assert torch.equal(*samples)
    names = set(load_file(folder / "model.safetensors"))
    assert names == set(theirs.state_dict()), "the mixin loads weights by the names of the module"
    assert files.read_json(folder / "config.json")["architecture"]["depth"] == 10
    again = ebjdat.export(MODEL, tmp_path / "again")
    for name in ("model.safetensors", "config.json", "README.md"):
        assert (again / name).read_bytes() == (folder / name).read_bytes()


def test_the_card_has_numbers_with_protocol_interval_and_count_from_the_records(tmp_path: Path) -> None:
    card = (ebjdat.export(MODEL, tmp_path) / "README.md").read_text(encoding="utf-8")
    assert card.startswith("---\nlicense: mit\n")
    assert "| PGD-20 | standard | 32/255 | 75.0 [63.2, 84.0], n = 64 |" in card
    assert "| PGD-20 | released | 16/255 | 75.0 [63.2, 84.0], n = 64 |" in card
    assert files.file_hash(MODEL / "best.pt") in card
    assert "model.sample" in card and "## Limits" in card and "nothing here speaks for or against" in card


def test_a_card_shows_no_number_of_another_checkpoint(tmp_path: Path) -> None:
    card = (ebjdat.export(BASELINE, tmp_path) / "README.md").read_text(encoding="utf-8")
    assert "None recorded for this checkpoint" in card and "this model does not sample" in card
    assert not (tmp_path / "gaussians.npz").exists()
    with pytest.raises(UserError, match="undefended is a baseline"):
        ebjdat.load(tmp_path).sample(1)


def test_a_folder_without_its_weights_or_with_another_configuration_is_refused(tmp_path: Path) -> None:
    folder = ebjdat.export(BASELINE, tmp_path)
    config = files.read_json(folder / "config.json")
    files.write_json(folder / "config.json", config | {"architecture": config["architecture"] | {"width": 2}})
    with pytest.raises(UserError, match="is no exported model of this project"):
        ebjdat.load(folder)
    files.write_json(folder / "config.json", {"architecture": {}})
    with pytest.raises(UserError, match="is no exported model of this project"):
        ebjdat.load(folder)
    files.write_json(folder / "config.json", config)
    (folder / "model.safetensors").unlink()
    with pytest.raises(UserError, match=r"model\.safetensors is missing"):
        ebjdat.load(folder)


# The registry


def test_a_registered_model_is_found_by_its_alias_and_gives_the_same_logits(workspace: Path) -> None:
    import mlflow

    use_empty_store()
    setup = setup_of(load_params())
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
def test_an_alias_that_mlflow_keeps_for_itself_is_refused_before_anything_is_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, alias: str
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match="--alias"):
        registry.register(Run("digits", "ebjdat-jem", 0), alias)
    assert not list(tmp_path.iterdir())
