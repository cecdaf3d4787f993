"""The network and the energy model."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from ebjdat.errors import UserError
from ebjdat.model.store import Architecture, load_model, model_digest, new_model, save_model
from ebjdat.model.wideresnet import WideResNet, statistics
from tests.small_models import Payload
from tests.small_runs import TINY


def _macs(model: nn.Module, x: Tensor) -> int:
    """Multiply-accumulates of convolutions and linear layers, counted by hooks."""
    total = 0

    def count(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        nonlocal total
        weight = module.weight
        assert isinstance(weight, Tensor)
        places = output[0].numel() // weight.shape[0]
        total += weight.numel() * places

    for module in model.modules():
        if isinstance(module, (nn.Conv2d, nn.Linear)):
            module.register_forward_hook(count)
    model(x)
    return total


def test_wideresnet_28_10_has_the_published_size() -> None:
    with torch.device("meta"):
        network = WideResNet(Architecture(depth=28, width=10, channels=3, classes=10, norm="batch"))
        macs = _macs(network, torch.empty(1, 3, 32, 32))
    assert round(sum(p.numel() for p in network.parameters()) / 1e6, 1) == 36.5
    assert round(macs / 1e9, 2) == 5.95


def test_energies_follow_the_definition_in_float64() -> None:
    model = new_model(TINY, 0).eval()
    x, y = torch.rand(5, 1, 8, 8), torch.arange(5)
    logits = model(x).double()
    assert torch.allclose(model.energy(x).double(), -logits.exp().sum(1).log(), atol=1e-5)
    assert torch.equal(model.energy(x, y), -model(x)[torch.arange(5), y])


def test_batch_statistics_leave_running_ones_alone_and_the_mode_returns_also_after_an_exception() -> None:
    model = new_model(TINY, 0).train()
    before = model_digest(model)
    x = torch.rand(16, 1, 8, 8)
    with statistics(model, "batch"):
        batch = model(x)
    with statistics(model, "running"):
        running = model(x)
    assert model_digest(model) == before and model.training
    assert not torch.allclose(batch, running)
    assert torch.equal(batch, model(x))
    assert model_digest(model) != before
    with pytest.raises(ZeroDivisionError), statistics(model.eval(), "batch"):
        _ = 1 / 0
    assert not any(module.training for module in model.modules())


def test_equal_seeds_give_equal_weights_and_leave_the_global_stream_alone() -> None:
    torch.manual_seed(5)
    expected = torch.rand(1)
    torch.manual_seed(5)
    first, second, other = new_model(TINY, 1), new_model(TINY, 1), new_model(TINY, 2)
    assert model_digest(first) == model_digest(second) != model_digest(other)
    assert torch.equal(torch.rand(1), expected)


def test_a_saved_model_returns_and_equal_models_are_equal_files(tmp_path: Path) -> None:
    model = new_model(TINY, 3)
    save_model(tmp_path / "a" / "best.pt", model)
    save_model(tmp_path / "b" / "best.pt", model)
    loaded = load_model(tmp_path / "a" / "best.pt")
    assert model_digest(loaded) == model_digest(model)
    assert not loaded.training and not any(p.requires_grad for p in loaded.parameters())
    assert (tmp_path / "a" / "best.pt").read_bytes() == (tmp_path / "b" / "best.pt").read_bytes()


def test_a_checkpoint_that_carries_code_is_refused_unexecuted(tmp_path: Path) -> None:
    torch.save({"state": Payload()}, tmp_path / "bad.pt")
    with pytest.raises(UserError, match=r"bad\.pt cannot be read as a checkpoint"):
        load_model(tmp_path / "bad.pt")
