"""Faults in the parameters: one line with the full key, before any heavy work."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from typing import Any

import pytest
from ruamel.yaml import YAML

from ebjdat import command
from ebjdat.config import load_params
from ebjdat.errors import UserError
from tests import ROOT
from tests.test_config import params_with

FILES = {"params.yaml": "", "digits": "params/digits.yaml: "}


@pytest.mark.parametrize(
    ("file", "key", "value", "message"),
    [
        ("params.yaml", "variant", "jempp2", "variant: unknown variant 'jempp2' (did you mean jempp?); known: jem, "),
        ("params.yaml", "profile", None, "profile: expected the name of a profile, got null"),
        ("params.yaml", "method", "none", "method: unknown value 'none'; known: ebjdat, base, control"),
        ("params.yaml", "seeds", ["x"], "seeds[0]: expected a number or a fraction"),
        ("params.yaml", "seeds", [0, 1.5], "seeds[1]: expected a whole number, got 1.5"),
        ("params.yaml", "seeds", [-1], "seeds[0]: expected greater than or equal to 0, got -1"),
        ("params.yaml", "seeds", [None], "seeds[0]: expected a whole number, got null"),
        ("params.yaml", "seeds", [True], "seeds[0]: expected a number, got True"),
        ("params.yaml", "seeds", 3, "seeds: expected a list, got 3"),
        ("params.yaml", "seeds", [1, 1], "seeds: one of 1, 1 is named twice"),
        ("params.yaml", "baselines", ["pgd"], "baselines: unknown baseline 'pgd' (did you mean pgd_at?); known: "),
        ("params.yaml", "surrogates", ["trade"], "surrogates: unknown model 'trade' (did you mean trades?); known: "),
        ("params.yaml", "device", "gpu", "device: unknown value 'gpu'"),
        ("params.yaml", "variants.jem.steps", 0, "variants.jem.steps: expected greater than or equal to 1, got 0"),
        ("params.yaml", "variants.jem.reading", "pgd", "variants.jem.reading: unknown value 'pgd'; known: energy, "),
        ("params.yaml", "variants.jem.project", "yes please", "variants.jem.project: expected true or false"),
        ("params.yaml", "variants.jem", None, "variants.jem: expected a section with keys, got null"),
        ("params.yaml", "variants.new", {"like": "jemp"}, "variants.new.like: expected one of jem, jempp, sadajem, "),
        ("digits", "data.dataset", "cifar100", "data.dataset: unknown value 'cifar100' (did you mean cifar10?)"),
        ("digits", "network.depth", 11, "network.depth: expected 6 n + 4"),
        ("digits", "training.defaults.lr", "nan", "training.defaults.lr: expected a finite number"),
        ("digits", "training.defaults.milestones", 3, "training.defaults.milestones: expected a list, got 3"),
        (
            "digits",
            "training.defaults.milestones",
            [4, -1],
            "training.defaults.milestones[1]: expected ",
        ),
        (
            "digits",
            "training.dhat.debiasing.mask",
            "helpers",
            "training.dhat.debiasing.mask: unknown value 'helpers'",
        ),
        ("digits", "training.jempp.epochs", 0, "training.jempp.epochs: expected greater than or equal to 1, got 0"),
        ("digits", "evaluation.clean.images", 398, "evaluation.clean.images: 398 images asked for, but data.test has"),
    ],
)
def test_a_wrong_value_is_told_with_full_key_range_or_names(file: str, key: str, value: Any, message: str) -> None:
    with pytest.raises(UserError) as error:
        params_with(file, key, value)
    assert str(error.value).startswith(FILES[file] + message)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("file", "key", "message"),
    [
        ("params.yaml", "sedes", "sedes: unknown key (did you mean seeds?)"),
        ("params.yaml", "variants.jem.w_enregy", "variants.jem.w_enregy: unknown key (did you mean w_energy?)"),
        ("digits", "evaluation.radus", "evaluation.radus: unknown key (did you mean radius?)"),
        ("digits", "training.jemp.lr", "training.jemp: unknown key (did you mean jempp?)"),
        ("digits", "training.jempp.weight_deca", "jempp.weight_deca: unknown key (did you mean weight_decay?)"),
        ("digits", "training.dhat.debiasing.omga", "training.dhat.debiasing.omga: unknown key (did you mean omega?)"),
    ],
)
def test_an_unknown_key_is_told_with_the_nearest_known_one(file: str, key: str, message: str) -> None:
    with pytest.raises(UserError) as error:
        params_with(file, key, 1)
    assert message in str(error.value)


@pytest.mark.parametrize("value", [8, "8", 2.0])
@pytest.mark.parametrize("key", ["evaluation.radius", "training.defaults.train_eps"])
def test_a_radius_of_8_is_refused_with_the_hint_to_write_8_255(key: str, value: Any) -> None:
    with pytest.raises(UserError, match=rf"{key}: .*a radius is in pixel units of \[0, 1\]: write 8/255, not 8"):
        params_with("digits", key, value)


def write(folder: Path, **texts: str) -> None:
    """The repository's parameters in a folder, with text added at the end of files."""
    (folder / "params").mkdir()
    for path in (ROOT / "params.yaml", *(ROOT / "params").glob("*.yaml")):
        text = path.read_text(encoding="utf-8") + texts.get(path.stem, "")
        (folder / path.relative_to(ROOT)).write_text(text, encoding="utf-8")


@pytest.mark.parametrize(
    ("text", "value"),
    [("1e-4", 1e-4), ("1e3", 1000.0), ("010", 10.0), ("1_000", 1000.0), ("1/4", 0.25), ("1", 1.0)],
)
def test_numbers_are_read_as_people_and_dvc_write_them(text: str, value: float) -> None:
    raw = YAML(typ="safe", pure=True).load(f"value: {text}")["value"]
    params = params_with("params.yaml", "variants.jem.step_size", raw)
    assert params.variants["jem"].step_size == value
    if value >= 1:
        whole = params_with("digits", "training.defaults.epochs", raw)
        assert whole.training("pgd_at").epochs == value, "a float that is integral is a whole number"


def test_a_key_that_stands_twice_is_refused_with_its_line(tmp_path: Path) -> None:
    write(tmp_path, params="seeds: [1]\n")
    with pytest.raises(UserError, match=r'params\.yaml is not valid YAML: .*duplicate key "seeds".* line \d+'):
        load_params(tmp_path)


def test_another_profiles_broken_file_is_told_only_when_it_is_selected(tmp_path: Path) -> None:
    write(tmp_path, **{"cifar10-cpu": "oops: 1\n"})
    assert load_params(tmp_path).profile == "digits"
    with pytest.raises(UserError, match=r"params/cifar10-cpu\.yaml: oops: unknown key"):
        load_params(tmp_path, "cifar10-cpu")
    with pytest.raises(UserError, match=r"profile: unknown profile 'digit' \(did you mean digits\?\); known: "):
        load_params(tmp_path, "digit")


@pytest.mark.parametrize("name", ["../x", "digits/../../x", "/tmp/x"])
def test_a_profile_that_leaves_its_folder_is_refused(name: str) -> None:
    with pytest.raises(UserError, match="profile: unknown profile"):
        load_params(ROOT, name)


STAGES = ("prepare", "reference", "train", "clean", "autoattack", "craft", "transfer", "sweep", "eot", "generate",
          "masking", "log", "tables", "repro")  # fmt: skip


@pytest.mark.parametrize("stage", STAGES)
def test_every_stage_refuses_a_bad_parameter_before_it_looks_for_anything_else(
    stage: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    module = importlib.import_module(f"stages.{stage}")
    monkeypatch.chdir(tmp_path)  # without data and models: whoever opened one first would say so
    monkeypatch.setenv("DVC_ROOT", str(tmp_path))
    monkeypatch.setattr(sys, "argv", [stage])
    write(tmp_path, digits="oops: 1\n")
    with pytest.raises(SystemExit) as ended:
        command.run(module.main)
    assert ended.value.code == UserError.exit_code == 2
    assert capsys.readouterr().err.startswith("error: params/digits.yaml: oops: unknown key; known: data, network")
    assert {path.name for path in tmp_path.iterdir()} == {"params.yaml", "params"}
