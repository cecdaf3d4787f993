"""A model for others: the exported folder, its card, and the file format."""

from __future__ import annotations

import importlib.util
import json
import struct
from pathlib import Path

import pytest
import torch

import ebjdat
from ebjdat import files, provenance
from ebjdat.errors import UserError
from ebjdat.evaluation.statistics import Rate, Result
from ebjdat.model import exported
from ebjdat.reporting.records import build_record
from ebjdat.subject import Subject
from tests import tiny
from tests.small_models import held_out
from tests.synthetic import write_ledger

MODEL = Path("models/digits/ebjdat-jempp")


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Prepared digits and a briefly trained EB-JDAT with two records in the ledger."""
    folder = tmp_path_factory.mktemp("workspace")
    params = tiny.write_params(folder)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.delenv("DVC_ROOT", raising=False)
        tiny.prepare(params)
        tiny.train(params)
        tiny.train(params, "undefended")
        subject = Subject.current(params)
        rate = Rate.of([True] * 48 + [False] * 16)
        result = Result(n=64, rates={"standard/clean": rate, "standard/pgd-20": rate, "released/pgd-20": rate})
        write_ledger(params, [build_record(subject, params, "clean", result)])
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
    names = set(exported.read_safetensors(folder / "model.safetensors"))
    assert names == set(theirs.state_dict()), "the mixin loads weights by the names of the module"
    assert files.read_json(folder / "config.json")["architecture"]["depth"] == 10


def test_the_card_has_numbers_with_protocol_interval_and_count_from_the_ledger(tmp_path: Path) -> None:
    card = (ebjdat.export(MODEL, tmp_path) / "README.md").read_text(encoding="utf-8")
    assert card.startswith("---\nlicense: mit\n")
    assert "| PGD-20 | standard | 32/255 | 75.0 [63, 84], n = 64 |" in card
    assert "| PGD-20 | released | 16/255 | 75.0 [63, 84], n = 64 |" in card
    assert provenance.file_hash(MODEL / "best.pt") in card
    assert "model.sample" in card and "## Limits" in card and "nothing here speaks for or against" in card


def test_a_card_shows_no_number_of_another_checkpoint(tmp_path: Path) -> None:
    card = (ebjdat.export("models/digits/undefended", tmp_path) / "README.md").read_text(encoding="utf-8")
    assert "None recorded for this checkpoint" in card and "this model does not sample" in card
    assert not (tmp_path / "gaussians.npz").exists()
    with pytest.raises(UserError, match="undefended is a baseline"):
        ebjdat.load(tmp_path).sample(1)


def test_tensors_of_every_kind_survive_and_equal_tensors_give_equal_bytes(tmp_path: Path) -> None:
    kinds = (torch.float32, torch.float64, torch.float16, torch.bfloat16, torch.int64, torch.uint8, torch.bool)
    tensors = {str(kind): torch.arange(6).reshape(2, 3).to(kind) for kind in kinds}
    tensors |= {"scalar": torch.tensor(3), "empty": torch.zeros(0, 4), "strided": torch.arange(6.0).reshape(2, 3).T}
    for name in ("a", "b"):
        exported.write_safetensors(tmp_path / name, dict(reversed(tensors.items())), {"format": "pt"})
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
    back = exported.read_safetensors(tmp_path / "a")
    assert set(back) == set(tensors)
    for name, tensor in tensors.items():
        assert back[name].dtype == tensor.dtype and torch.equal(back[name], tensor)
    with pytest.raises(ValueError, match="no type for torch"):
        exported.write_safetensors(tmp_path / "c", {"x": torch.zeros(1, dtype=torch.complex64)}, {})


@pytest.mark.skipif(importlib.util.find_spec("safetensors") is None, reason="safetensors is not installed")
def test_the_library_reads_what_is_written_and_writes_what_is_read(tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    tensors = {"w": torch.randn(3, 4), "n": torch.tensor([1, 2])}
    exported.write_safetensors(tmp_path / "ours", tensors, {"format": "pt"})
    save_file(tensors, tmp_path / "theirs")
    for back in (load_file(tmp_path / "ours"), exported.read_safetensors(tmp_path / "theirs")):
        assert all(torch.equal(back[name], tensor) for name, tensor in tensors.items())


def _file(header: object, data: bytes = b"") -> bytes:
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + data


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\xff" * 8,
        struct.pack("<Q", 1 << 40) + b"{}",
        _file([1, 2]),
        _file({"x": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}}),
        _file({"x": {"dtype": "F99", "shape": [1], "data_offsets": [0, 4]}}, b"1234"),
        _file({"x": {"dtype": "F32", "shape": [3], "data_offsets": [0, 4]}}, b"1234"),
        _file({"x": {"dtype": "F32", "shape": [1], "data_offsets": [4, 0]}}, b"1234"),
    ],
)
def test_a_damaged_file_is_refused_by_name(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    path.write_bytes(content)
    with pytest.raises(UserError, match=r"model\.safetensors is no safetensors file"):
        exported.read_safetensors(path)


def test_a_folder_without_its_weights_or_with_another_configuration_is_refused(tmp_path: Path) -> None:
    folder = ebjdat.export("models/digits/undefended", tmp_path)
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
