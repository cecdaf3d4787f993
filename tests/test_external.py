"""A model that was not trained here, evaluated by the one command; what the door refuses, and why."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pyautoattack
import pytest
import torch

from ebjdat import files, tracking
from ebjdat.attacks.autoattack import Job, run_job
from ebjdat.config import resolve
from ebjdat.errors import UserError
from ebjdat.evaluation import external
from ebjdat.record import read_record
from ebjdat.run import Run
from stages import evaluate_model
from tests import ROOT, tiny, zoo
from tests.small_models import digits, fit, held_out, shorten_autoattack
from tests.synthetic import use_empty_store

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
    nn = torch.nn
    model = nn.Sequential(nn.Conv2d(1, 16, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(256, 10))
    torch.save(fit(model, passes=1).state_dict(), path)


@pytest.fixture(autouse=True)
def importable(workspace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Code of a checkout in which somebody's CNN may lie."""
    for name in ("ebjdat", "stages"):
        (workspace / name).symlink_to(ROOT / name)
    monkeypatch.syspath_prepend(str(workspace))


def test_one_command_evaluates_a_cnn_under_both_protocols_and_puts_it_into_the_tables(workspace: Path) -> None:
    tiny.prepare(tiny.write_params(workspace))
    use_empty_store()
    (workspace / "my_cnn.py").write_text(FACTORY)
    train_cnn(workspace / "cnn.pt")
    command = ["stages.evaluate_model", "--factory", "my_cnn:make_model", "--name", "my-cnn", "--stages", "clean"]
    run = subprocess.run(
        [sys.executable, "-m", *command], capture_output=True, text=True, env=os.environ | {"PYTHONPATH": ""}
    )
    assert run.returncode == 0, run.stderr
    record = read_record(Path("results/digits/records/external-my-cnn/0/clean.json"))
    assert {"standard/pgd-20", "released/pgd-20", "standard/clean"} <= set(record["rates"])
    assert record["rates"]["standard/clean"]["correct"] > 0.7 * record["n"]
    assert record["params"]["fingerprint"] == external.fingerprint_of(Path("models/digits/external-my-cnn/0"))
    row = next(line for line in Path("results/digits/tables/tradeoff.md").read_text().splitlines() if "my-cnn" in line)
    assert f"{100 * record['rates']['standard/pgd-20']['correct'] / record['n']:.1f}" in row
    assert tracking.search("digits")["tags.model"].tolist() == ["external-my-cnn"]
    assert (Run("digits", "external-my-cnn", 0).pictures / "attacked.png").is_file()


def test_missing_crafted_images_are_told_before_anything_runs(workspace: Path) -> None:
    params = tiny.write_params(workspace)
    tiny.prepare(params)
    (workspace / "my_cnn.py").write_text(FACTORY)
    setup = resolve(params, Run("digits", "external-cnn", 0))
    with pytest.raises(UserError, match=r"run `python -m stages\.craft --model pgd_at --seed 0`"):
        evaluate_model.take_in(setup, "my_cnn:make_model", transfer=True)
    assert not setup.run.model_dir.exists()
    with pytest.raises(UserError, match=r"take the model in with `.*evaluate_model .* --name cnn --seed 0`"):
        external.fingerprint_of(setup.run.model_dir)


def save(folder: str, spec: str) -> str:
    return external.save(Path(folder), spec, *held_out(40))


def test_the_fingerprint_follows_weights_and_source(workspace: Path) -> None:
    (workspace / "factory_one.py").write_text(FACTORY)
    train_cnn(workspace / "cnn.pt")
    first = save("one", "factory_one:make_model")
    assert save("two", "factory_one:make_model") == first == external.fingerprint_of(Path("one"))
    x = digits()[0][:5]
    assert torch.equal(external.load("one/best.pt")(x), external.make("factory_one:make_model")(x))
    (workspace / "factory_two.py").write_text(FACTORY + "\n# edited\n")
    assert save("two", "factory_two:make_model") != first
    state = torch.load("cnn.pt", weights_only=True)
    torch.save({name: tensor + 1e-3 for name, tensor in state.items()}, "cnn.pt")
    assert save("two", "factory_one:make_model") != first
    assert files.read_json("two/external.json")["factory"] == "factory_one:make_model"


def test_kept_weights_count_whatever_the_factory_reads_today(workspace: Path) -> None:
    (workspace / "factory_one.py").write_text(FACTORY)
    train_cnn(workspace / "cnn.pt")
    save("one", "factory_one:make_model")
    x = digits()[0][:5]
    before = external.load("one/best.pt")(x)
    torch.save({name: 0 * tensor for name, tensor in torch.load("cnn.pt").items()}, "cnn.pt")
    assert torch.equal(external.load("one/best.pt")(x), before)


# The door


@pytest.mark.filterwarnings("ignore")  # PyTorch's, about TorchScript and int8
def test_the_page_shows_what_becomes_of_every_model_of_the_zoo(workspace: Path) -> None:
    found = {name: zoo.at_the_door(name, workspace / name) for name in zoo.ZOO}
    taken = {name: taken for name, (taken, _) in found.items()}
    assert taken == dict.fromkeys(zoo.SOUND | zoo.TAKEN, True) | dict.fromkeys(zoo.REFUSED, False)
    assert not [name for name in zoo.REFUSED if (workspace / name).exists()]
    shown = zoo.PAGE.read_text(encoding="utf-8").split(zoo.BEGIN)[1].split(zoo.END)[0].strip()
    assert shown == zoo.table(found), "run `python -m tests.zoo`"
    assert external.load(workspace / "bfloat16_answers/best.pt")(held_out(3)[0]).dtype == torch.float32


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", zoo.SOUND)
def test_a_sound_model_gives_the_flags_of_the_official_package_called_directly(
    name: str, workspace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shorten_autoattack(monkeypatch)
    x, y = held_out(12)
    job = Job(protocol="standard", attack="cascade", steps=100, targets=0, eps=16 / 255, seed=0, first=0, last=len(x))
    external.save(workspace / name, zoo.spec(name), *held_out(40))
    outcome = run_job(external.load(workspace / name / "best.pt"), x, y, job)
    direct = pyautoattack.AutoAttack(zoo.SOUND[name][1]().eval(), norm="Linf", eps=16 / 255, device="cpu", seed=0)
    _, y_adv = direct.run_standard_evaluation(x, y, batch_size=len(x))
    assert outcome.final.tolist() == (y_adv == y).tolist()
    assert outcome.final.sum() < outcome.right.sum(), "something was found"
    assert list(outcome.robust) == ["apgd-ce", "apgd-t", "fab-t", "square"]


@pytest.mark.parametrize(
    ("spec", "words"),
    [
        ("no_such_module:f", "No module named 'no_such_module'; run from its folder, or set PYTHONPATH"),
        ("my_module", "expected module:function"),
        (":f", "expected module:function"),
        (f"{__name__}:make_nothing", "has no make_nothing"),
        (f"{__name__}:FACTORY", "is no function"),
        ("needs_something:f", "needs_something needs the package not_installed: install it"),
        ("does_not_parse:f", "importing does_not_parse raised SyntaxError"),
    ],
)
def test_a_factory_that_is_not_there_is_named(workspace: Path, spec: str, words: str) -> None:
    (workspace / "needs_something.py").write_text("import not_installed\n")
    (workspace / "does_not_parse.py").write_text("def f(:\n")
    with pytest.raises(UserError, match=f"--factory .*{words}"):
        external.find_factory(spec)


@pytest.mark.parametrize("name", ["", "My CNN", "../up", "a--b", "<b>", "x" * 41])
def test_names_are_plain(name: str) -> None:
    with pytest.raises(UserError, match="--name"):
        external.model_of(name)
    assert external.model_of("my-cnn") == external.model_of("external-my-cnn") == "external-my-cnn"
