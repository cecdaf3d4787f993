"""A trained model in other people's tools: what ``ebjdat.load`` gives."""

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

import ebjdat
from ebjdat import files
from ebjdat.data.prepared import load_prepared
from ebjdat.errors import UserError
from tests import tiny
from tests.small_models import held_out
from tests.synthetic import ROOT

MODEL = Path("models/digits/ebjdat-jempp/0")


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with prepared digits, a briefly trained EB-JDAT and an undefended network."""
    folder = tmp_path_factory.mktemp("workspace")
    params = tiny.write_params(folder)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.delenv("DVC_ROOT", raising=False)
        tiny.prepare(params)
        tiny.train(params, params.model, "undefended")
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


def test_the_readmes_example_runs_and_the_official_autoattack_takes_the_model_as_it_is() -> None:
    page = (ROOT / "README.md").read_text(encoding="utf-8")
    (block,) = re.findall(r"<!-- run: readme -->\n```python\n(.*?)```", page, re.DOTALL)
    found: dict[str, Any] = {}
    exec(compile(block, "README.md", "exec"), found)
    x, x_adv = found["x"], found["x_adv"]
    assert len(x) == 64 and float((x_adv - x).abs().max()) <= 32 / 255 + 1e-6
    assert found["samples"].shape == (16, 1, 8, 8)


def test_robustbenchs_accuracy_loop_takes_the_model_as_it_is() -> None:
    """``clean_accuracy`` of robustbench 1.1 (utils.py), whose package is not a requirement here."""
    model, (x, y), batch_size, device = ebjdat.load(MODEL), held_out(50), 16, torch.device("cpu")
    acc = 0.0
    for counter in range(-(-len(x) // batch_size)):
        x_curr = x[counter * batch_size : (counter + 1) * batch_size].to(device)
        y_curr = y[counter * batch_size : (counter + 1) * batch_size].to(device)
        acc += (model(x_curr).max(1)[1] == y_curr).float().sum().item()
    assert acc == float((model(x).argmax(1) == y).sum())


def test_torch_fidelity_takes_samples_as_a_dataset() -> None:
    from torch_fidelity import calculate_metrics
    from torch_fidelity.feature_extractor_base import FeatureExtractorBase

    class Pixels(FeatureExtractorBase):
        """The pixels themselves: Inception's weights are a download."""

        def __init__(self, name: str, features_list: list[str], **options: object) -> None:
            super().__init__(name, features_list)

        @staticmethod
        def get_provided_features_list() -> tuple[str, ...]:
            return ("pixels",)

        @staticmethod
        def get_default_feature_layer_for_metric(metric: str) -> str:
            return "pixels"

        def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, ...]:
            return (x.float().flatten(1)[:, :64],)

    from torch_fidelity import register_feature_extractor

    register_feature_extractor("pixels", Pixels)
    samples = ebjdat.load(MODEL).sample(80, generator=torch.Generator().manual_seed(0))
    real = held_out(80)[0]
    sets = [torch.utils.data.TensorDataset((x * 255).round().byte().repeat(1, 3, 1, 1)) for x in (samples, real)]

    class Images(torch.utils.data.Dataset):
        def __init__(self, of: torch.utils.data.TensorDataset) -> None:
            self.of = of

        def __len__(self) -> int:
            return len(self.of)

        def __getitem__(self, index: int) -> torch.Tensor:
            return self.of[index][0]

    found = calculate_metrics(
        input1=Images(sets[0]),
        input2=Images(sets[1]),
        fid=True,
        feature_extractor="pixels",
        feature_layer_fid="pixels",
        cuda=False,
        batch_size=40,
        verbose=False,
        cache=False,
    )
    assert np.isfinite(found["frechet_inception_distance"])


def test_gradients_with_respect_to_images_are_those_of_attribution_methods() -> None:
    x, y = held_out(4)
    x = x.clone().requires_grad_()
    ebjdat.load(MODEL)(x).gather(1, y[:, None]).sum().backward()
    assert x.grad is not None and float(x.grad.abs().sum()) > 0


def test_the_package_loads_no_pytorch_until_it_is_asked() -> None:
    source = "import sys, ebjdat; print('torch' in sys.modules, sorted(ebjdat.__all__), 'load' in dir(ebjdat))"
    run = subprocess.run([sys.executable, "-c", source], capture_output=True, text=True, cwd=ROOT, check=True)
    assert run.stdout.strip() == "False ['Classifier', 'export', 'load'] True"
    with pytest.raises(AttributeError, match="no attribute 'lode'"):
        ebjdat.lode  # noqa: B018


def test_training_leaves_what_sampling_needs(workspace: Path) -> None:
    described = files.read_json(MODEL / "model.json")
    assert described["gaussians"] == "data/digits/gaussians.npz"
    assert described["recipe"]["chain_start"] == "informative"
    assert described["params"]["training"]["epochs"] == 1 and described["revision"] >= 1
    assert files.read_json("models/digits/undefended/0/model.json")["recipe"] is None
