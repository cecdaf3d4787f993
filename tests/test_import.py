"""Checkpoints of the public repositories, imported: equal logits, or one sentence."""

from __future__ import annotations

import shutil
import sys
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor, nn

from ebjdat import files
from ebjdat.config import load_params, resolve
from ebjdat.data.digits import load_digits
from ebjdat.data.prepared import load_prepared, save_prepared
from ebjdat.errors import UserError
from ebjdat.evaluation import external, samples
from ebjdat.model import description
from ebjdat.model.released import Released, read, variant_of, write
from ebjdat.model.store import load_model
from ebjdat.run import Run
from tests import ROOT
from tests.small_models import Payload
from tests.small_runs import run_stage

SHAPE = (3, 32, 32)


def norm_of(kind: str | None, channels: int) -> nn.Module:
    """What the repositories' --norm choices make."""
    if kind == "batch":
        return nn.BatchNorm2d(channels, momentum=0.9)
    return nn.GroupNorm(1, channels) if kind == "layer" else nn.Identity()


class Basic(nn.Module):
    """Their residual block: the stride is on the second convolution."""

    def __init__(self, inputs: int, outputs: int, stride: int, norm: str | None) -> None:
        super().__init__()
        self.bn1, self.conv1 = norm_of(norm, inputs), nn.Conv2d(inputs, outputs, 3, 1, 1)
        self.bn2, self.conv2 = norm_of(norm, outputs), nn.Conv2d(outputs, outputs, 3, stride, 1)
        self.shortcut = nn.Sequential()
        if stride != 1 or inputs != outputs:
            self.shortcut.append(nn.Conv2d(inputs, outputs, 1, stride))

    def forward(self, u: Tensor) -> Tensor:
        """Block."""
        inner = self.conv1(F.leaky_relu(self.bn1(u), 0.2))
        return self.shortcut(u) + self.conv2(F.leaky_relu(self.bn2(inner), 0.2))


class Body(nn.Module):
    """``f``: pooled features of images in [-1, 1]."""

    def __init__(self, blocks: int, width: int, norm: str | None, layout: str, channels: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, 16, 3, 1, 1)
        before = 16
        for group, stride in ((1, 1), (2, 2), (3, 2)):
            after = 8 * width * 2**group
            rows = [Basic(after if row else before, after, 1 if row else stride, norm) for row in range(blocks)]
            self.add_module(f"layer{group}", nn.Sequential(*rows))
            before = after
        self.bn1 = norm_of(norm, before)
        if layout == "jem":
            self.linear = nn.Linear(before, 10)
        if layout == "yopo":
            self.layer_one = self.conv1
            self.other_layers = nn.ModuleList([self.layer1, self.layer2, self.layer3, self.bn1])

    def forward(self, u: Tensor) -> Tensor:
        """Features (N, 64 width)."""
        out = self.layer3(self.layer2(self.layer1(self.conv1(u))))
        return F.avg_pool2d(F.leaky_relu(self.bn1(out), 0.2), 8).flatten(1)


class Theirs(nn.Module):
    """Body, head, and the unused energy head."""

    def __init__(self, blocks: int, width: int, norm: str | None, layout: str, classes: int, channels: int) -> None:
        super().__init__()
        self.f = Body(blocks, width, norm, layout, channels)
        self.energy_output, self.class_output = nn.Linear(64 * width, 1), nn.Linear(64 * width, classes)

    def forward(self, u: Tensor) -> Tensor:
        """Logits."""
        return self.class_output(self.f(u))


def made(norm: str | None = None, layout: str = "wrn", *, blocks: int = 1, width: int = 1, **choice: int) -> Theirs:
    """A network in eval mode whose weights and statistics are all random."""
    torch.manual_seed(0)
    network = Theirs(blocks, width, norm, layout, choice.get("classes", 10), choice.get("channels", 3)).eval()
    for name, tensor in network.state_dict().items():
        if tensor.is_floating_point() and ("running" in name or ".bn" in name):
            tensor.uniform_(0.5, 1.5)
    return network


def checkpoint(network: nn.Module, buffer: Any = None, shape: tuple[int, ...] = SHAPE) -> dict[str, Any]:
    """What their training saves."""
    buffer = torch.rand(6, *shape) * 2 - 1 if buffer is None else buffer
    return {"model_state_dict": network.state_dict(), "replay_buffer": buffer}


def saved(path: Path, content: Any, **how: Any) -> Path:
    """The file."""
    torch.save(content, path, **how)
    return path


def difference(network: Theirs, found: Released, folder: Path) -> float:
    """The largest difference between their float64 logits and those of the model that the import writes."""
    write(folder, found, "jem", Path(__file__))
    x, ours = torch.rand(2, *SHAPE, dtype=torch.float64), load_model(folder / "best.pt").double()
    logits: list[Tensor] = []
    ours.network.head.register_forward_hook(lambda module, inputs, output: logits.append(output))  # before .float()
    with torch.no_grad():
        ours(x)
        return float((network.double()(2 * x - 1) - logits[0]).abs().max())


LAYOUTS: dict[str, dict[str, Any]] = {
    "JEM, EB-JDAT-JEM": {"layout": "jem"},
    "JEM, norm batch": {"layout": "jem", "norm": "batch", "blocks": 2},
    "JEM++, EB-JDAT-JEM++ (yopo)": {"layout": "yopo", "norm": "batch"},
    "SADAJEM, EB-JDAT-SADAJEM, JEM++ (wrn)": {"norm": "batch", "width": 2},
    "SADAJEM, norm none": {"norm": "none", "blocks": 2},
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_an_imported_network_gives_the_logits_of_the_network_that_was_saved(layout: str, tmp_path: Path) -> None:
    choice = {"norm": None, "blocks": 1, "width": 1} | LAYOUTS[layout]
    network = made(**choice)
    content = checkpoint(network)
    found = read(saved(tmp_path / "theirs.pt", content), SHAPE)
    assert (found.architecture.depth, found.architecture.width) == (6 * choice["blocks"] + 4, choice["width"])
    assert found.architecture.norm == ("batch" if choice["norm"] == "batch" else "none")
    assert found.buffer is not None and torch.allclose(2 * found.buffer - 1, content["replay_buffer"], atol=1e-6)
    assert difference(network, found, tmp_path / "run") < 1e-10


def wrapped(network: Theirs) -> dict[str, Any]:
    """As a trainer saves a compiled network on several GPUs."""
    return {"model": {f"module._orig_mod.{name}": tensor for name, tensor in network.state_dict().items()}, "epoch": 3}


FILES: dict[str, Callable[[Theirs], Any]] = {
    "half precision": lambda network: checkpoint(network.half(), (torch.rand(4, *SHAPE) * 2 - 1).half()),
    "several GPUs": lambda network: checkpoint(nn.DataParallel(network)),
    "compiled": wrapped,
    "averaged": lambda network: {"ema": {"state_dict": torch.optim.swa_utils.AveragedModel(network).state_dict()}},
    "bare": lambda network: OrderedDict(network.state_dict()),
    "no buffer": lambda network: checkpoint(network, []),
    "safetensors": lambda network: {f"model.{k}": v for k, v in checkpoint(network)["model_state_dict"].items()},
}


@pytest.mark.parametrize("kind", FILES)
def test_wrappers_precision_and_format_of_the_file_make_no_difference(kind: str, tmp_path: Path) -> None:
    network = made("batch")
    content = FILES[kind](network)
    if kind == "safetensors":
        save_file(content | {"replay_buffer": torch.rand(4, *SHAPE) * 2 - 1}, tmp_path / "theirs")
    else:  # as PyTorch before 1.6 wrote files
        saved(tmp_path / "theirs", content, _use_new_zipfile_serialization=kind != "bare")
    found = read(tmp_path / "theirs", SHAPE)
    assert {tensor.dtype for tensor in found.state.values()} == {torch.float32, torch.int64}
    assert (found.buffer is not None) == (kind in ("half precision", "several GPUs", "safetensors"))
    assert difference(network, found, tmp_path / "run") < 1e-10


def changed(name: str, tensor: Tensor | None) -> dict[str, Any]:
    """A checkpoint with one weight changed, added or (None) removed."""
    content = checkpoint(made("batch"))
    content["model_state_dict"][name] = tensor
    if tensor is None:
        del content["model_state_dict"][name]
    return content


def both_sets() -> dict[str, Tensor]:
    """A model and its average in one flat dictionary."""
    state = made().state_dict()
    return {**state, **{f"ema.{name}": tensor for name, tensor in state.items()}}


WIDE, BYTES = torch.rand(4, 3, 64, 64), torch.arange(256).repeat(24).reshape(2, *SHAPE).byte()
LOST, LAYER4, HEAD, NORM = "f.layer2.0.conv2.bias", "f.layer4.0.conv1.weight", "class_output.weight", "f.bn1.bias"
ODD: dict[str, tuple[Callable[[], Any], str]] = {
    "code": (lambda: {"model_state_dict": {}, "x": Payload()}, r"needs the code of \S*exec.* torch\.save\("),
    "whole module": (made, r"needs the code of \S*Theirs, .* torch\.save\("),
    "list": (lambda: [1, 2], "holds a list, not weights by name"),
    "no weights": (lambda: {"model_state_dict": None, "epoch": 3}, "holds no weights, found epoch, model_state_dict"),
    "other architecture": (lambda: nn.Linear(3, 2).state_dict(), "is no WideResNet .* found bias, weight"),
    "missing": (lambda: changed(LOST, None), rf"WideResNet-10-1 with norm batch and lacks {LOST}"),
    "left over": (lambda: changed(LAYER4, torch.ones(1)), f"holds {LAYER4} besides"),
    "transposed": (lambda: changed(HEAD, torch.ones(64, 10)), rf"{HEAD} is \(64, 10\) .*, expected \(10, 64\)"),
    "int8": (lambda: changed(NORM, torch.ones(64).char()), rf"{NORM} is \(64,\) torch.int8, expected \(64,\)"),
    "not finite": (lambda: changed(NORM, torch.full((64,), torch.nan)), f"NaN or infinite values in {NORM}"),
    "100 classes": (lambda: checkpoint(made(classes=100)), "has 100 classes: data and protocols here have 10"),
    "layer norm": (lambda: checkpoint(made("layer")), r"other than batch and none: f\.bn1 holds bias, weight"),
    "grey": (lambda: checkpoint(made(channels=1)), "takes images of 1 channels, those of this profile have 3"),
    "two sets": (both_sets, "holds two sets of weights"),
    "large buffer": (lambda: checkpoint(made(), WIDE), r"replay_buffer of shape \(4, 3, 64, 64\), expected \(n, 3, 32"),
    "byte buffer": (lambda: checkpoint(made(), BYTES), "pixels from 0 to 255, expected about -1 to 1"),
}


@pytest.mark.parametrize("name", ODD)
def test_what_does_not_fit_is_refused_in_one_sentence(name: str, tmp_path: Path) -> None:
    content, sentence = ODD[name]
    with pytest.raises(UserError, match=rf"odd\.pt .*{sentence}") as refused:
        read(saved(tmp_path / "odd.pt", content()), SHAPE)
    assert "\n" not in str(refused.value)


def test_half_a_file_or_none_is_refused_in_one_sentence(tmp_path: Path) -> None:
    path = saved(tmp_path / "odd.pt", checkpoint(made()))
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(UserError, match=r"odd\.pt is damaged or holds more"):
        read(path, SHAPE)
    path.unlink()
    with pytest.raises(UserError, match=r"odd\.pt cannot be read: No such file"):
        read(path, SHAPE)


def test_the_variant_follows_from_the_norm_or_is_asked_for() -> None:
    variants = load_params(ROOT).variants
    assert (variant_of("none", None, variants), variant_of("batch", "sadajem", variants)) == ("jem", "sadajem")
    for norm, chosen in (("batch", None), ("batch", "jem"), ("batch", "jemp"), ("none", "jempp")):
        with pytest.raises(UserError, match=rf"norm {norm}: expected --variant .*jem.*, got {chosen or 'nothing'}"):
            variant_of(norm, chosen, variants)  # type: ignore[arg-type]


def test_an_imported_checkpoint_is_a_run_with_a_recipe(workspace: Path) -> None:
    shutil.copy(ROOT / "params.yaml", workspace)
    shutil.copytree(ROOT / "params", workspace / "params")
    params, run = load_params(), Run("digits", "external-small", 0)
    save_prepared(run.data_dir, load_digits(), params.current.data)
    saved(workspace / "theirs.pt", checkpoint(made("batch", channels=1), shape=(1, 8, 8)))
    run_stage("import_checkpoint", "theirs.pt", "--name", "small", "--variant", "sadajem")
    setup, data = resolve(params, run), load_prepared(run.data_dir)
    assert setup.recipe is not None and setup.training is None
    assert setup.input_noise == params.variants["sadajem"].labelled_noise
    assert description.read(run.model_dir).recipe == setup.recipe
    model = external.load(run.model_dir / "best.pt")  # as the stages open it
    assert len(external.fingerprint_of(run.model_dir)) == 16
    assert samples.read_buffer(run.model_dir / "buffer.npz", data.shape).shape == (6, 1, 8, 8)
    assert samples.fresh(model, setup.recipe, data, 4, 2, run.seed).shape == (4, 1, 8, 8)  # type: ignore[arg-type]
    saved(workspace / "theirs.pt", {"model_state_dict": made(channels=1).state_dict()})
    run_stage("import_checkpoint", "theirs.pt", "--name", "small")
    assert resolve(params, run).variant == "jem" and not (run.model_dir / "buffer.npz").exists()


def test_records_of_an_import_stay_current_without_its_folder(workspace: Path) -> None:
    params, run = load_params(ROOT), Run("digits", "external-small", 0)
    assert resolve(params, run).recipe is None
    files.write_json(run.model_dir / "external.json", {"variant": "jempp", "fingerprint": "ab"})
    recorded = resolve(params, run).recorded("clean")
    assert (
        recorded["variant"] == "jempp" and recorded["recipe"]["inner_steps"] == 5 and "w_px" not in recorded["recipe"]
    )
    shutil.rmtree("models")
    assert resolve(params, run, "jempp").recorded("clean") == recorded
    with pytest.raises(UserError, match="imported as dropped, which"):
        resolve(params, run, "dropped")


def test_an_entry_of_robustbench_is_a_factory(monkeypatch: pytest.MonkeyPatch) -> None:
    def load_model(**asked: str) -> nn.Module:
        assert (asked["model_name"], asked["dataset"], asked["threat_model"]) == ("Entry", "cifar10", "Linf")
        return nn.Linear(1, 1)

    monkeypatch.setitem(sys.modules, "robustbench", None)
    with pytest.raises(UserError, match=r"robustbench:Entry.* install robustbench"):
        external.find_factory("robustbench:Entry")
    monkeypatch.setitem(sys.modules, "robustbench", ModuleType("robustbench"))
    monkeypatch.setitem(sys.modules, "robustbench.utils", SimpleNamespace(load_model=load_model))
    assert isinstance(external.make("robustbench:Entry").model, nn.Linear)
