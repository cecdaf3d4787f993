"""A model that was not trained here, evaluated by the one command; what the door refuses, and why."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from ebjdat import files
from ebjdat.config import resolve
from ebjdat.errors import UserError
from ebjdat.evaluation import external
from ebjdat.record import read_record
from ebjdat.run import Run
from stages import evaluate_model
from tests import tiny
from tests.small_models import SmallNet, digits, held_out, trained

ROOT = Path(__file__).resolve().parents[1]
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
    """A checkout with somebody's CNN in it."""
    for name in ("ebjdat", "stages"):
        (tmp_path / name).symlink_to(ROOT / name)
    (tmp_path / ".dvc").mkdir()
    for name in ("DVC_ROOT", "MLFLOW_TRACKING_URI"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    return tmp_path


def test_one_command_evaluates_a_cnn_under_both_protocols_and_puts_it_into_the_tables(workspace: Path) -> None:
    tiny.prepare(tiny.write_params(workspace))
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


class Around(nn.Module):
    """A trained network with something around its forward pass."""

    def __init__(self, forward: Callable[[nn.Module, Tensor], Any]) -> None:
        super().__init__()
        self.net, self.around = trained(), forward

    def forward(self, x: Tensor) -> Any:
        return self.around(self.net, x)


class InAList(nn.Module):
    """The weights of its last layer are in a Python list, and new at every call of the factory."""

    def __init__(self) -> None:
        super().__init__()
        self.net, self.hidden = trained(), [torch.randn(10, 10)]

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x) @ self.hidden[0]


def _inference(net: nn.Module, x: Tensor) -> Tensor:
    with torch.inference_mode():
        return net(x)


def _no_grad(net: nn.Module, x: Tensor) -> Tensor:
    with torch.no_grad():
        return net(x)


def _nan() -> nn.Module:
    model = SmallNet()
    nn.init.constant_(model.head.bias, float("nan"))
    return model


def _int8() -> nn.Module:
    return torch.ao.quantization.quantize_dynamic(nn.Sequential(nn.Flatten(), nn.Linear(64, 10)), {nn.Linear})


BROKEN: dict[str, tuple[Callable[[], Any], str]] = {
    "three_logits": (
        lambda: nn.Sequential(nn.Flatten(), nn.Linear(64, 3)),
        r"logits \(N, 10\); 8 images gave \(8, 3\)",
    ),
    "nan": (_nan, "not finite"),
    "other_images": (
        lambda: nn.Sequential(nn.Flatten(), nn.Linear(3072, 10)),
        r"fails on 8 images of shape \(1, 8, 8\) .*another shape",
    ),
    "number": (lambda: 0.5, "expected a torch.nn.Module, got float"),
    "a_tuple": (lambda: Around(lambda net, x: (net(x), x)), r"8 images gave tuple"),
    "probabilities": (lambda: Around(lambda net, x: net(x).softmax(1)), "probabilities .*: return logits"),
    "classes": (lambda: Around(lambda net, x: net(x).round().long()), r"torch\.int64: return logits, not classes"),
    "squeezed": (
        lambda: Around(lambda net, x: net(x).squeeze(0)),
        r"1 images gave \(10,\): it squeezes the batch",
    ),
    "in_place": (lambda: Around(lambda net, x: net(x.mul_(0.5))), r"writes into its input: work on a copy"),
    "detached": (lambda: Around(lambda net, x: net(x.detach())), "no gradient reaches .* it detaches"),
    "no_grad": (lambda: Around(_no_grad), "no gradient reaches .* no_grad or inference_mode"),
    "inference_mode": (lambda: Around(_inference), "no gradient reaches .* inference_mode"),
    "int8": (_int8, "no gradient reaches .* int8"),
    "random": (lambda: Around(lambda net, x: net(x) + torch.randn(10)), "answers differently .* asked again: noise"),
    "batch": (lambda: Around(lambda net, x: net(x - x.mean(0))), "answers differently .* another batch: statistics"),
    "half": (lambda: trained().half(), "fails on .*: its weights are not float32"),
    "in_a_list": (InAList, "kept weights answers differently .*outside of state_dict"),
    "raising": (lambda: Path("weights.pt").read_bytes(), r"raised FileNotFoundError.*weights\.pt"),
}


def __getattr__(name: str) -> Any:
    """Factories of this module: one per broken model."""
    if name in BROKEN:
        return BROKEN[name][0]
    raise AttributeError(name)


@pytest.mark.parametrize("factory", BROKEN)
def test_a_model_that_cannot_be_attacked_is_told_why(factory: str) -> None:
    with pytest.raises(UserError, match=BROKEN[factory][1]):
        save("here", f"{__name__}:{factory}")
    assert not Path("here").exists()


def make_bfloat16() -> nn.Module:
    return Around(lambda net, x: net(x).bfloat16())


def make_untrained() -> nn.Module:
    torch.manual_seed(0)
    return SmallNet()


def test_logits_of_half_precision_become_float32() -> None:
    save("here", f"{__name__}:make_bfloat16")
    assert external.load("here/best.pt")(held_out(3)[0]).dtype == torch.float32


def test_an_accuracy_about_chance_is_warned_of() -> None:
    x, y = digits()
    save("here", f"{__name__}:make_untrained")
    (warning,) = external.warnings_of(external.load("here/best.pt"), x, y)
    assert warning.endswith(
        "of 1797 test images are classified correctly, about chance: inputs in [0, 255], or weights not loaded?"
    )
    assert external.warnings_of(trained(), x, y) == []


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
