"""A model for others: the exported folder and its card."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import ebjdat
from ebjdat import files
from ebjdat.data.prepared import load_prepared
from ebjdat.errors import UserError
from ebjdat.record import write_record
from ebjdat.statistics import Rate, Result
from tests import tiny
from tests.small_models import held_out
from tests.synthetic import setup_of

MODEL = Path("models/digits/ebjdat-jempp/0")
BASELINE = Path("models/digits/undefended/0")


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Prepared digits, a briefly trained EB-JDAT with a record, and a baseline with a record of other weights."""
    folder = tmp_path_factory.mktemp("workspace")
    params = tiny.write_params(folder)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.delenv("DVC_ROOT", raising=False)
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


def test_an_exported_model_is_the_model_wherever_it_lies(tmp_path: Path) -> None:
    folder = ebjdat.export(MODEL, tmp_path / "out")
    assert {path.name for path in folder.iterdir()} == {
        "README.md",
        "config.json",
        "gaussians.npz",
        "model.safetensors",
    }
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


@pytest.mark.parametrize("content", [b"", b"\xff" * 8, b"PK\x03\x04", b"\x02" + bytes(7) + b"{}1234"])
def test_damaged_weights_are_refused_by_name(content: bytes, tmp_path: Path) -> None:
    folder = ebjdat.export(BASELINE, tmp_path)
    (folder / "model.safetensors").write_bytes(content)
    with pytest.raises(UserError, match="is no exported model of this project"):
        ebjdat.load(folder)


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
