"""A model that was not trained here, evaluated by the one command."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from ebjdat import files
from ebjdat.config import load_params
from ebjdat.errors import UserError
from ebjdat.evaluation import external
from ebjdat.provenance import ROOT
from ebjdat.reporting import records
from ebjdat.reporting.ledger import COMMITTED, WORKSPACE, Candidate, join, workspace_records
from ebjdat.reporting.lookup import load_numbers, with_recorded_code
from ebjdat.subject import Subject
from stages import evaluate_model
from tests import tiny
from tests.small_models import SmallNet, digits
from tests.synthetic import code, numbers_of, params_of_repository, records_of, use_empty_store, write_records

FACTORY = '''
import torch
from torch import nn


def make_model():
    """A small convolutional network, trained somewhere else."""
    model = nn.Sequential(
        nn.Conv2d(1, 16, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(256, 10)
    )
    model.load_state_dict(torch.load("cnn.pt", weights_only=True))
    return model
'''


def train_cnn(path: Path) -> None:
    """The network of FACTORY, trained on digits for a moment."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(1, 16, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(256, 10))
    optimiser = torch.optim.Adam(model.parameters(), 0.01)
    x, y = digits()
    for picked in torch.randperm(1400).split(50):
        optimiser.zero_grad()
        nn.functional.cross_entropy(model(x[picked]), y[picked]).backward()
        optimiser.step()
    torch.save(model.state_dict(), path)


@pytest.fixture(autouse=True)
def workspace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A checkout with tiny digits and somebody's CNN in it."""
    for name in ("ebjdat", "stages"):
        (tmp_path / name).symlink_to(ROOT / name)
    (tmp_path / ".dvc").mkdir()
    for name in ("DVC_ROOT", "MLFLOW_TRACKING_URI"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    return tmp_path


def test_one_command_evaluates_a_cnn_under_both_protocols_and_puts_it_into_the_tables(workspace: Path) -> None:
    params = tiny.write_params(workspace)
    tiny.prepare(params)
    use_empty_store()
    (workspace / "my_cnn.py").write_text(FACTORY)
    train_cnn(workspace / "cnn.pt")
    command = ["stages.evaluate_model", "--factory", "my_cnn:make_model", "--name", "my-cnn", "--stages", "clean"]
    run = subprocess.run(
        [sys.executable, "-m", *command], capture_output=True, text=True, env=os.environ | {"PYTHONPATH": ""}
    )
    assert run.returncode == 0, run.stderr
    record = records.read_record(Path("results/digits/external-my-cnn/clean.json"))
    assert {"standard/pgd-20", "released/pgd-20", "standard/clean"} <= set(record["rates"])
    assert record["rates"]["standard/clean"]["correct"] > 0.7 * record["n"]
    assert record["identity"] == Subject.external(params, "external-my-cnn").identity(params, "clean", record["data"])
    row = next(line for line in Path("results/digits/tables/tradeoff.md").read_text().splitlines() if "my-cnn" in line)
    assert f"{100 * record['rates']['standard/pgd-20']['correct'] / record['n']:.1f}" in row
    assert "my-cnn" in Path("results/digits/tables/energies.md").read_text()
    # The committed ledger alone knows the model: neither its weights nor its factory are needed.
    numbers = with_recorded_code(load_numbers(load_params()))
    assert [subject.name for subject in numbers.externals()] == ["external-my-cnn"]


def test_the_fingerprint_follows_weights_and_source(workspace: Path) -> None:
    (workspace / "factory_one.py").write_text(FACTORY)
    train_cnn(workspace / "cnn.pt")
    first = external.save(Path("one"), "factory_one:make_model", (1, 8, 8))
    assert external.save(Path("two"), "factory_one:make_model", (1, 8, 8)) == first
    x = digits()[0][:5]
    assert torch.equal(external.load("one/best.pt")(x), external.make("factory_one:make_model")(x))
    (workspace / "factory_two.py").write_text(FACTORY + "\n# edited\n")
    assert external.save(Path("two"), "factory_two:make_model", (1, 8, 8)) != first
    state = torch.load("cnn.pt", weights_only=True)
    torch.save({name: tensor + 1e-3 for name, tensor in state.items()}, "cnn.pt")
    assert external.save(Path("two"), "factory_one:make_model", (1, 8, 8)) != first
    assert files.read_json("two/external.json")["factory"] == "factory_one:make_model"


def make_wrong_number_of_logits() -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 3))


def make_nan() -> nn.Module:
    model = SmallNet()
    nn.init.constant_(model.head.bias, float("nan"))
    return model


def make_for_other_images() -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(3072, 10))


def make_a_number() -> float:
    return 0.5


@pytest.mark.parametrize(
    ("factory", "words"),
    [
        ("make_wrong_number_of_logits", r"logits \(N, 10\); two images gave \(2, 3\)"),
        ("make_nan", "not finite"),
        ("make_for_other_images", r"fails on images of shape \(1, 8, 8\)"),
        ("make_a_number", "expected a torch.nn.Module, got float"),
        ("make_nothing", "has no make_nothing"),
        ("EOF", "has no EOF"),
    ],
)
def test_a_factory_that_cannot_be_used_is_told_why(factory: str, words: str) -> None:
    with pytest.raises(UserError, match=words):
        external.save(Path("here"), f"{__name__}:{factory}", (1, 8, 8))


@pytest.mark.parametrize("spec", ["no_such_module:f", "my_module", ":f"])
def test_a_factory_that_is_not_there_is_named(spec: str) -> None:
    with pytest.raises(UserError, match="--factory"):
        external.find_factory(spec)


@pytest.mark.parametrize("name", ["", "My CNN", "../up", "a--b", "<b>", "x" * 41])
def test_names_are_plain(name: str) -> None:
    with pytest.raises(UserError, match="--name"):
        external.method_of(name)
    assert external.method_of("my-cnn") == external.method_of("external-my-cnn") == "external-my-cnn"


def test_a_model_replaces_the_earlier_one_of_its_name_in_the_ledger() -> None:
    params = params_of_repository()
    old, new = (Subject("digits", "external-cnn", None, 0, fingerprint) for fingerprint in ("old", "new"))
    other = Subject("digits", "external-mlp", None, 0, "old")
    found = [
        Candidate(record, source)
        for subject, source in ((old, COMMITTED), (new, WORKSPACE), (other, COMMITTED))
        for record in records_of(params, subject, hash_of=code)
        if record["stage"] != "generate"
    ]
    joined = join(found, code).records
    assert {record["params"]["fingerprint"] for record in joined if record["method"] == "external-cnn"} == {"new"}
    numbers = numbers_of(params, joined)
    assert numbers.externals() == [new, other]
    assert numbers.cell(new, "clean", "standard/clean").state == "value"
    assert numbers.record(old, "clean") is None and numbers.record(new, "clean") is not None


def test_of_two_models_of_a_name_in_the_workspace_the_one_whose_weights_are_there_counts(workspace: Path) -> None:
    params = params_of_repository()
    by_fingerprint = {mark: Subject("digits", "external-cnn", None, 0, mark) for mark in ("aaaa", "bbbb")}
    for meant, other in (("aaaa", "bbbb"), ("bbbb", "aaaa")):
        write_records(params, by_fingerprint[other], stages=["clean", "autoattack"])
        write_records(params, by_fingerprint[meant], stages=["clean"])
        files.write_json(Path("models/digits/external-cnn/external.json"), {"fingerprint": meant})
        found = [record["params"]["fingerprint"] for _, record in workspace_records("digits")]
        assert found == [meant], "its clean accuracy, and no longer the other's AutoAttack"


def test_other_weights_of_a_name_are_no_further_seed() -> None:
    params = params_of_repository()
    first, second = (Subject("digits", "external-cnn", None, seed, mark) for seed, mark in ((0, "aaaa"), (1, "bbbb")))
    found = [record for subject in (first, second) for record in records_of(params, subject, hash_of=code)]
    found = [record for record in found if record["stage"] == "clean"]
    assert len(join([Candidate(record, COMMITTED) for record in found], code).records) == 1
    cell = numbers_of(params, found).cell(first, "clean", "standard/clean")
    assert [reading.seed for reading in cell.readings] == [0]


def test_what_a_factory_raises_is_told_in_one_line(workspace: Path) -> None:
    params = tiny.write_params(workspace)
    tiny.prepare(params)
    (workspace / "failing.py").write_text("def make_model():\n    open('weights.pt')\n")
    subject = Subject("digits", "external-cnn", None, 0)
    with pytest.raises(UserError, match=r"--factory failing:make_model: raised FileNotFoundError.*weights\.pt"):
        evaluate_model.take_in(subject, "failing:make_model")
    assert not subject.model_dir.exists()
