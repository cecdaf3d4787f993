"""Faults in params.yaml: one line with the full key, before any heavy work."""

from __future__ import annotations

import copy
import importlib
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from ebjdat import command
from ebjdat.config import parse_params
from ebjdat.errors import UserError
from ebjdat.provenance import ROOT

RAW = yaml.safe_load((ROOT / "params.yaml").read_text(encoding="utf-8"))


def changed(key: str, value: Any, name: str | None = None) -> dict[str, Any]:
    """params.yaml with one value changed, or its key renamed."""
    raw = copy.deepcopy(RAW)
    *path, last = key.split(".")
    node = raw
    for part in path:
        node = node[part]
    if name:
        node[name] = node.pop(last)
    else:
        node[last] = value
    return raw


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("variant", "jempp2", "variant: unknown value 'jempp2'; known: jem, jempp, sadajem (did you mean jempp?)"),
        ("profile", "digit", "profile: unknown profile 'digit'; known: "),
        ("method", "none", "method: unknown value 'none'; known: ebjdat, base, control"),
        ("seed", "x", "seed: expected a number"),
        ("seed", 1.5, "seed: expected a whole number, got 1.5"),
        ("seed", -1, "seed: expected a number at least 0"),
        ("seed", None, "seed: expected a number, got null"),
        ("seed", True, "seed: expected a number, got True"),
        ("device", "gpu", "device: unknown value 'gpu'; known: auto, cpu, cuda"),
        ("variants.jem.steps", 0, "variants.jem.steps: expected a number at least 1 and at most 1000, got 0"),
        ("variants.jem.reading", "pgd", "variants.jem.reading: unknown value 'pgd'; known: energy, "),
        ("variants.jem.project", "yes please", "variants.jem.project: expected true or false"),
        ("variants.jem", None, "variants.jem: expected a section with keys, got null"),
        ("profiles.digits.data.dataset", "cifar100", "profiles.digits.data.dataset: unknown value 'cifar100'; known: "),
        ("profiles.digits.network.depth", 11, "profiles.digits.network.depth: expected 6 n + 4"),
        ("profiles.digits.training.pgd_at.lr", "nan", "profiles.digits.training.pgd_at.lr: expected a number"),
        ("profiles.digits.training.pgd_at.milestones", 3, "training.pgd_at.milestones: expected a list, got 3"),
        ("profiles.digits.evaluation.clean.images", 398, "clean.images: 398 images asked for, but"),
    ],
)
def test_a_wrong_value_is_told_with_full_key_range_or_names(key: str, value: Any, message: str) -> None:
    with pytest.raises(UserError) as error:
        parse_params(changed(key, value))
    assert message in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("key", "name", "message"),
    [
        ("seed", "sed", "sed: unknown key (did you mean seed?)"),
        ("variants.jem.w_energy", "w_enregy", "variants.jem.w_enregy: unknown key (did you mean w_energy?)"),
        ("profiles.digits.evaluation.radius", "eps", "profiles.digits.evaluation.eps: unknown key; known: radius, "),
    ],
)
def test_an_unknown_key_is_told_with_the_nearest_known_one(key: str, name: str, message: str) -> None:
    with pytest.raises(UserError) as error:
        parse_params(changed(key, None, name))
    assert message in str(error.value)


@pytest.mark.parametrize("value", [8, "8", 2.0])
@pytest.mark.parametrize("key", ["profiles.digits.evaluation.radius", "profiles.cifar10.training.pgd_at.train_eps"])
def test_a_radius_of_8_is_refused_with_the_hint_to_write_8_255(key: str, value: Any) -> None:
    with pytest.raises(UserError, match=rf"{key}: .*a radius is in pixel units of \[0, 1\]: write 8/255, not 8"):
        parse_params(changed(key, value))


STAGES = {
    "prepare": [],
    "train": [],
    "baseline": ["--model", "pgd_at"],
    "clean": [],
    "autoattack": [],
    "transfer": [],
    "sweep": [],
    "eot": [],
    "generate": [],
    "reference": [],
    "masking": [],
    "record": [],
    "tables": [],
}


@pytest.mark.parametrize("stage", STAGES)
def test_every_stage_refuses_a_bad_parameter_of_any_profile_before_it_looks_for_anything_else(
    stage: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    module = importlib.import_module(f"stages.{stage}")
    monkeypatch.chdir(tmp_path)  # without data and models: whoever opened one first would say so
    monkeypatch.setenv("DVC_ROOT", str(tmp_path))
    monkeypatch.setattr(sys, "argv", [stage, *STAGES[stage]])
    raw = changed("profiles.cifar10.training.trades.epochs", 0)
    (tmp_path / "params.yaml").write_text(yaml.safe_dump(raw))
    with pytest.raises(SystemExit) as ended:
        command.run(module.main)
    assert ended.value.code == UserError.exit_code == 2
    assert capsys.readouterr().err.startswith("error: profiles.cifar10.training.trades.epochs: expected a number")
    assert [path.name for path in tmp_path.iterdir()] == ["params.yaml"]
