"""EB-JDAT variants as transfer surrogates: trained once, wherever they are needed first."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import yaml

from ebjdat import files
from ebjdat.config import parse_params
from ebjdat.errors import UserError
from ebjdat.model.store import Architecture, model_digest, new_model, save_model
from ebjdat.provenance import ROOT
from ebjdat.training.run import copy_trained
from stages import surrogate

ARCHITECTURE = Architecture(depth=10, width=1, channels=1, classes=10, norm="batch")


@pytest.fixture
def trained(tmp_path: Path) -> Path:
    """A finished model's folder, as training leaves it."""
    folder = tmp_path / "trained"
    models = {name: new_model(ARCHITECTURE, seed) for seed, name in enumerate(("best", "last"))}
    for name, model in models.items():
        save_model(folder / f"{name}.pt", model, ARCHITECTURE)
    digests = {f"{name}_sha256": model_digest(model) for name, model in models.items()}
    files.write_text(folder / "history.jsonl", "{}\n")
    files.write_json(folder / "summary.json", {"identity": "this", **digests})
    return folder


def test_a_finished_model_of_the_same_identity_is_copied_whole(trained: Path, tmp_path: Path) -> None:
    assert copy_trained(trained, tmp_path / "copy", "this") is True
    for path in trained.iterdir():
        assert (tmp_path / "copy" / path.name).read_bytes() == path.read_bytes()


@pytest.mark.parametrize("damage", ["identity", "missing", "weights", "summary"])
def test_anything_else_is_left_alone(trained: Path, tmp_path: Path, damage: str) -> None:
    if damage == "missing":
        (trained / "last.pt").unlink()
    elif damage == "weights":
        save_model(trained / "best.pt", new_model(ARCHITECTURE, 7), ARCHITECTURE)
    elif damage == "summary":
        files.write_text(trained / "summary.json", "[1]")
    assert copy_trained(trained, tmp_path / "copy", "other" if damage == "identity" else "this") is False
    assert not (tmp_path / "copy").exists()
    assert copy_trained(tmp_path / "nothing", tmp_path / "copy", "this") is False


def test_a_profile_without_that_surrogate_trains_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    plain = yaml.safe_load((ROOT / "params.yaml").read_text(encoding="utf-8"))
    plain["profiles"]["digits"]["evaluation"]["transfer"]["surrogates"] = ["jempp"]
    (tmp_path / "params.yaml").write_text(yaml.safe_dump(plain), encoding="utf-8")
    monkeypatch.setattr(sys, "argv", ["surrogate", "--variant", "sadajem"])
    surrogate.main()
    folder = tmp_path / "models" / "digits" / "surrogates" / "ebjdat-sadajem"
    assert "does not name sadajem" in (folder / "unused.txt").read_text()


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("transfer.surrogates", ["jem"], r"surrogates\[0\]: unknown value 'jem'; known: jempp, sadajem"),
        ("transfer.surrogates", ["jempp", "jempp"], "named twice"),
        ("autoattack.last_images", -1, "autoattack.last_images: expected"),
    ],
)
def test_impossible_choices_are_refused_by_name(key: str, value: object, message: str) -> None:
    plain = yaml.safe_load((ROOT / "params.yaml").read_text(encoding="utf-8"))
    section, name = key.split(".")
    plain["profiles"]["digits"]["evaluation"][section][name] = value
    with pytest.raises(UserError, match=message):
        parse_params(plain)
