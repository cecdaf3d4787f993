"""Audits: deliberately broken attacks are caught, each by name, and the model comes back as it was."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from ebjdat.attacks.apgd import APGD
from ebjdat.attacks.audit import check_batch_independence, check_effect, check_images, guarded, run_guarded
from ebjdat.attacks.batches import Batches, correct
from ebjdat.attacks.linf import PGD, input_gradient
from ebjdat.attacks.linf import cross_entropy as loss
from ebjdat.errors import AuditError
from tests.small_models import SmallNet, generator, held_out, trained

EPS = 32 / 255


Craft = Callable[[SmallNet, Tensor, Tensor], Tensor]


def run(craft: Craft, model: SmallNet | None = None) -> None:
    """Audit an attack on digits."""
    model = model or trained()
    x, y = held_out(20)
    run_guarded("attack", model, x, EPS, lambda: craft(model, x, y))


def snapshot(model: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def same(model: nn.Module, before: dict[str, Tensor]) -> bool:
    return all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


# Deliberately broken attacks


def ascent(model: SmallNet, x: Tensor, y: Tensor) -> Tensor:
    return EPS * input_gradient(model, x, y, loss, Batches()).sign()


def unprojected(model: SmallNet, x: Tensor, y: Tensor) -> Tensor:
    for _ in range(10):
        x = (x + ascent(model, x, y) / 4).clamp(0, 1)
    return x


def other_scale(model: SmallNet, x: Tensor, y: Tensor) -> Tensor:
    return (2 * x - 1 + ascent(model, x, y)).clamp(-1, 1)  # never mapped back


def wide_clamp(model: SmallNet, x: Tensor, y: Tensor) -> Tensor:
    return (x + ascent(model, x, y)).clamp(-1, 1)


def in_train_mode(model: SmallNet, x: Tensor, y: Tensor) -> Tensor:
    model.train()
    x_adv = PGD(eps=EPS, step=EPS, steps=2)(model, x, y, generator())
    model.eval()
    return x_adv


def with_nan(model: SmallNet, x: Tensor, y: Tensor) -> Tensor:
    x = x.clone()
    x[3:5, 0, 2, 2] = torch.nan
    return x


@pytest.mark.parametrize(
    ("broken", "words"),
    [
        (unprojected, r"attack: \d+ of 20 images leave the ball of radius 0.12549 .* worst is 0\.\d+"),
        (other_scale, r"adversarial: \d+ of 20 images leave \[0, 1\]"),
        (wide_clamp, r"adversarial: \d+ of 20 images leave \[0, 1\], the range is \[-0\.125"),
        (with_nan, "2 of 20 adversarial images hold NaN"),
        (lambda model, x, y: x[1:], r"expected images \(20, 1, 8, 8\) .* got \(19, 1, 8, 8\)"),
    ],
    ids=["no-projection", "minus-one-to-one", "range-wider-than-the-images", "nan", "lost-images"],
)
def test_a_broken_attack_is_caught_with_count_and_worst_case(broken: Craft, words: str) -> None:
    with pytest.raises(AuditError, match=words):
        run(broken)


def test_images_in_minus_one_to_one_are_caught() -> None:
    x = 2 * held_out(20)[0] - 1
    with pytest.raises(AuditError, match=r"original: 20 of 20 images leave \[0, 1\], the range is \[-1, 1\]"):
        check_images("attack", x, x, EPS)


class _Wide(nn.Module):
    """The network as the released code wraps it: images in [-1, 1]."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, z: Tensor) -> Tensor:
        return self.model((z + 1) / 2)


def test_fab_clamped_to_a_range_narrower_than_the_images_is_caught() -> None:
    package = pytest.importorskip("pyautoattack.fab_pt")
    model = trained().requires_grad_(False)
    x, y = held_out(40)
    right = correct(model, x, y)
    # Images in [-1, 1], while FAB clamps to [0, 1]: black pixels jump far out of the ball, all its
    # failures are returned unchanged, and nothing about the images themselves looks wrong.
    fab = package.FABAttack_PT(_Wide(model), n_iter=10, eps=2 * EPS, targeted=True, device="cpu")
    x_adv = (fab.perturb(2 * x - 1, y) + 1) / 2
    check_images("fab-t", x, x_adv, EPS)
    robust = right & correct(model, x_adv, y)
    peer = APGD(eps=EPS, steps=10)(model, x, y, generator())
    with pytest.raises(AuditError, match=r"fab-t: breaks \d of \d+ images, apgd breaks \d\d at the same radius"):
        check_effect("fab-t", robust, "apgd", right & correct(model, peer, y), right)


def test_an_attack_in_train_mode_is_caught_and_the_running_statistics_come_back() -> None:
    model = trained()
    before = snapshot(model)
    with pytest.raises(AuditError, match=r"changed 3 parameters or running statistics .* worst is norm\.\w+ by"):
        run(in_train_mode, model)
    assert same(model, before) and not model.training


def test_train_mode_is_caught_also_where_no_statistics_show_it() -> None:
    with pytest.raises(AuditError, match="2 forward passes ran in training mode, 0 modules were left in it"):
        run(in_train_mode, SmallNet(norm=False).eval())


def test_an_attack_that_raises_leaves_the_model_as_it_was() -> None:
    model = trained().train()
    model.head.weight.requires_grad_(False)
    flags = [parameter.requires_grad for parameter in model.parameters()]
    before = snapshot(model)
    x, _ = held_out(20)

    def failing() -> Tensor:
        model.train().requires_grad_(True)
        model(x)
        raise RuntimeError("the attack's own error")

    with pytest.raises(RuntimeError, match="the attack's own error"):
        run_guarded("attack", model, x, EPS, failing)
    assert same(model, before)
    assert all(module.training for module in model.modules())
    assert [parameter.requires_grad for parameter in model.parameters()] == flags
    assert not model._forward_pre_hooks


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (lambda model: model.norm.train(), "0 forward passes ran in training mode, 1 modules"),
        (lambda model: model.head.bias.data.add_(0.5), r"changed 1 parameters .* worst is head.bias by 0\.5"),
        (lambda model: model.head.requires_grad_(True), "switched gradients on for 2 parameters"),
    ],
    ids=["mode", "weights", "gradients"],
)
def test_whatever_an_attack_leaves_in_the_model_is_caught_and_undone(
    spoil: Callable[[SmallNet], object], words: str
) -> None:
    model = trained()
    before = snapshot(model)
    with pytest.raises(AuditError, match=words), guarded("attack", model):
        spoil(model)
    assert same(model, before) and not any(module.training for module in model.modules())


# Sound attacks


def test_a_sound_attack_passes_with_its_measurements() -> None:
    model = trained()
    x, y = held_out(20)
    attack = PGD(eps=EPS, step=EPS / 4, steps=5)
    x_adv, audit = run_guarded("attack", model, x, EPS, lambda: attack(model, x, y, generator()))
    assert audit.images == audit.changed == 20 and audit.nan == 0
    assert audit.distance == pytest.approx(float((x_adv - x).abs().max()))
    assert audit.distance <= EPS + 1e-6 and 0.0 <= audit.low <= audit.high <= 1.0
    assert audit.plain()["eps"] == EPS


def test_unchanged_images_are_counted_as_unchanged_and_no_images_are_no_reason_to_fail() -> None:
    x, _ = held_out(20)
    x_adv = x.clone()
    x_adv[4] = (x_adv[4] + 0.01).clamp(0, 1)
    assert check_images("attack", x, x_adv, EPS).changed == 1
    assert check_images("attack", x[:0], x[:0], EPS).images == 0


def test_the_model_is_in_eval_mode_without_parameter_gradients_inside_and_as_before_outside() -> None:
    model = trained().train()
    with guarded("attack", model):
        assert not model.training and not any(parameter.requires_grad for parameter in model.parameters())
    assert model.training and all(parameter.requires_grad for parameter in model.parameters())


# Predictions and effect


def test_predictions_do_not_depend_on_batches_of_1_7_and_100() -> None:
    assert check_batch_independence(trained(), held_out(100)[0], (1, 7, 100)) < 1e-4


def test_predictions_with_batch_statistics_are_caught() -> None:
    model = trained()
    with pytest.raises(
        AuditError, match=r"predictions of \d+ of 100 images change with the batch size \(1 against 100\)"
    ):
        check_batch_independence(model.train(), held_out(100)[0], (1, 7, 100))


def test_a_weaker_but_working_attack_and_two_that_find_nothing_pass_the_comparison() -> None:
    right = torch.ones(50, dtype=torch.bool)
    robust, peer = right.clone(), right.clone()
    robust[:5], peer[:20] = False, False
    check_effect("fab-t", robust, "apgd-t", peer, right)
    check_effect("fab-t", right, "apgd-t", right, right)
