"""The network and the energy model, their precision, compilation and input gradients."""

from __future__ import annotations

import functools
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from benchmarks.harness import forward_flops
from ebjdat.errors import UserError
from ebjdat.model.compute import compile_blocks, compute_dtype, has_native_bfloat16, input_gradients_only
from ebjdat.model.store import Architecture, load_model, model_digest, new_model, save_model
from ebjdat.model.wideresnet import Norm, WideResNet, statistics
from ebjdat.training.objective import EBJDAT, Batch, Plain, Prepared
from tests.small_models import Payload, generator
from tests.small_runs import PARAMS, TINY


def test_wideresnet_28_10_has_the_published_size() -> None:
    with torch.device("meta"):
        network = WideResNet(Architecture(depth=28, width=10, channels=3, classes=10, norm="batch"))
        flops = forward_flops(network, torch.empty(1, 3, 32, 32))
    assert round(sum(p.numel() for p in network.parameters()) / 1e6, 1) == 36.5
    assert round(flops / 2e9, 2) == 5.95


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


# Precision, compilation and input gradients: what stays float32, and what is left as it was


CPU = torch.device("cpu")


def images(seed: int = 0) -> Tensor:
    return torch.rand(16, 1, 8, 8, generator=generator(seed))


def prepared() -> Prepared:
    return Prepared(Batch(images(seed=1), torch.arange(16) % 10, images(seed=2)), images(seed=3), images(seed=4))


@pytest.mark.parametrize("norm", ["batch", "none"])
def test_in_bfloat16_logits_gradients_and_statistics_are_float32_and_near_those_of_float32(norm: Norm) -> None:
    architecture = replace(TINY, norm=norm)
    exact, rough = new_model(architecture, 0).train(), new_model(architecture, 0).train()
    rough.dtype = compute_dtype("bfloat16", CPU)
    assert compute_dtype("auto", CPU) == (torch.bfloat16 if has_native_bfloat16(CPU) else torch.float32)
    seen = []
    rough.network.blocks[0].conv1.register_forward_hook(lambda module, inputs, output: seen.append(output.dtype))
    results = []
    for model in (exact, rough):
        x = images().requires_grad_()
        logits = model(x)
        gradients = torch.autograd.grad(model.energy(x).sum(), [x, *model.parameters()])
        assert all(tensor.dtype == torch.float32 for tensor in [logits, *gradients, *model.parameters()])
        results.append((logits, torch.cat([gradient.flatten() for gradient in gradients])))
    assert seen == [torch.bfloat16] * 2
    assert all(tensor.dtype == torch.float32 for name, tensor in rough.named_buffers() if "running" in name)
    for expected, found in zip(*results, strict=True):
        assert float(((found - expected).norm() / expected.norm()).detach()) < 0.1


def test_without_normalisation_one_pass_gives_what_four_give() -> None:
    model, sets = new_model(replace(TINY, norm="none"), 0).train(), prepared()
    found, terms = EBJDAT(0.1, PARAMS.variants["jem"]).loss(model, sets)
    single = Prepared(Batch(sets.batch.x, sets.batch.y, sets.batch.x_p), sets.x_gen)
    assert float(terms["loss_px"]) == pytest.approx(
        float((model.energy(images(seed=2)).mean() - model.energy(images(seed=3)).mean()).detach()), abs=1e-5
    )
    assert "energy_adversarial" in terms
    assert "energy_adversarial" not in Plain(0.1, PARAMS.variants["jem"]).loss(model, single)[1]
    found.backward()
    assert all(p.grad is not None for p in model.parameters())


def test_inside_input_gradients_only_no_parameter_gets_a_gradient_and_outside_all_is_as_before() -> None:
    model = new_model(TINY, 0)
    model.network.head.bias.requires_grad_(False)
    x = images().requires_grad_()
    with input_gradients_only(model):
        model.energy(x).sum().backward()
        assert not any(p.requires_grad for p in model.parameters())
    assert x.grad is not None and all(p.grad is None for p in model.parameters())
    assert [name for name, p in model.named_parameters() if not p.requires_grad] == ["network.head.bias"]


@pytest.mark.parametrize("which", ["batch", "running"])
def test_weights_rounded_once_give_the_bits_of_weights_rounded_in_each_forward(which: str) -> None:
    model = new_model(TINY, 0).train()
    model.dtype, before = torch.bfloat16, list(new_model(TINY, 0).parameters())
    kinds = []
    model.network.blocks[0].conv1.register_forward_hook(lambda layer, *_: kinds.append(layer.weight.dtype))
    with statistics(model, which):  # type: ignore[arg-type]
        x = images().requires_grad_()
        expected = torch.autograd.grad(model.energy(x).sum(), x)[0]
        with input_gradients_only(model), input_gradients_only(model):
            found = torch.autograd.grad(model.energy(x).sum(), x)[0]
    assert torch.equal(found, expected) and kinds == [torch.float32, torch.bfloat16]
    for parameter, original in zip(model.parameters(), before, strict=True):
        assert parameter.requires_grad and parameter.dtype == torch.float32 and torch.equal(parameter, original)


def test_a_network_that_cannot_be_compiled_runs_eagerly_and_says_so_once(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def refuse(*arguments: object, **options: object) -> object:
        def fail(x: Tensor) -> Tensor:
            raise RuntimeError("no compiler here\nmore")

        return fail

    model = new_model(TINY, 0).train()
    before, expected = model_digest(model), model(images()).detach()
    model.load_state_dict(new_model(TINY, 0).state_dict())
    monkeypatch.setattr(torch, "compile", refuse)
    assert compile_blocks(model, images()) is False
    assert capsys.readouterr().err == (
        "warning: the network could not be compiled and runs eagerly: no compiler here\n"
    )
    assert model_digest(model) == before and torch.equal(model(images()), expected)


def test_a_compiled_network_gives_the_same_logits_and_keeps_its_names_in_files_and_its_mode(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model = new_model(TINY, 0).train()
    names, before = list(model.state_dict()), model_digest(model)
    with statistics(model, "running"):
        expected = model(images())
    monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend="eager"))  # graphs, no compiler
    assert compile_blocks(model, images()) is True
    assert list(model.state_dict()) == names and model_digest(model) == before and model.training
    with statistics(model, "running"):
        assert torch.equal(model(images()), expected)
