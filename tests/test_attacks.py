"""L-infinity attacks: parity with independent implementations, and properties that hold for all."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from ebjdat.attacks.apgd import APGD, checkpoints
from ebjdat.attacks.batches import Batches, correct, logits_of
from ebjdat.attacks.linf import (
    EOTPGD,
    MIFGSM,
    PGD,
    VMIFGSM,
    VNIFGSM,
    NoisyModel,
    SignAttack,
    cross_entropy,
    label_energy,
    margin,
    towards,
)
from ebjdat.errors import UserError
from tests.small_models import SmallNet, generator, held_out, trained

EPS = 32 / 255
STEP = EPS / 4
Attack = SignAttack | APGD
KINDS: dict[str, Callable[..., Attack]] = {
    "pgd": partial(PGD, random_start=True),
    "mi-fgsm": MIFGSM,
    "vmi-fgsm": partial(VMIFGSM, neighbours=5),
    "vni-fgsm": partial(VNIFGSM, neighbours=5),
    "eot-pgd": partial(EOTPGD, random_start=True, samples=3),
    "apgd": lambda eps, step, steps, **options: APGD(eps=eps, steps=steps, **options),
}


@pytest.fixture
def double() -> Iterator[tuple[nn.Module, Tensor, Tensor]]:
    """Model and digits in float64, where the sign of a gradient does not hang on rounding."""
    x, y = held_out(40)
    yield trained(adversarial=True).double(), x.double(), y


class _WithGlobalNeighbours:
    """Draws neighbours as torchattacks does: from the global generator, one after the other."""

    neighbours: int
    beta: float
    eps: float

    def offsets(self, x: Tensor, generator: torch.Generator) -> Tensor:
        width = self.eps * self.beta
        return torch.stack([torch.randn_like(x).uniform_(-width, width) for _ in range(self.neighbours)])


class _VMI(_WithGlobalNeighbours, VMIFGSM):
    pass


class _VNI(_WithGlobalNeighbours, VNIFGSM):
    pass


def _global_start(x: Tensor) -> Tensor:
    return x + torch.empty_like(x).uniform_(-EPS, EPS)


@pytest.mark.parametrize(
    ("name", "ours", "options"),
    [
        ("PGD", PGD, {"steps": 10}),
        ("EOTPGD", partial(EOTPGD, samples=2), {"steps": 10, "eot_iter": 2}),
        ("MIFGSM", MIFGSM, {"steps": 10}),
        ("VMIFGSM", partial(_VMI, neighbours=5), {"steps": 10, "N": 5}),
        ("VNIFGSM", partial(_VNI, neighbours=5), {"steps": 10, "N": 5}),
    ],
)
def test_the_same_start_gives_the_same_result_as_torchattacks(
    double: tuple[nn.Module, Tensor, Tensor], name: str, ours: Callable[..., SignAttack], options: dict[str, Any]
) -> None:
    torchattacks = pytest.importorskip("torchattacks")
    model, x, y = double
    torch.manual_seed(3)
    expected = getattr(torchattacks, name)(model, eps=EPS, alpha=STEP, **options)(x, y)
    torch.manual_seed(3)
    start = _global_start(x) if name in ("PGD", "EOTPGD") else None
    x_adv = ours(eps=EPS, step=STEP, steps=10)(model, x, y, generator(), start)
    torch.testing.assert_close(x_adv, expected, rtol=0, atol=1e-12)
    assert not torch.equal(x_adv, x)


@pytest.mark.parametrize("name", KINDS)
@pytest.mark.parametrize("eps", [1 / 255, 32 / 255, 1.0])
def test_no_attack_leaves_the_ball_or_the_range(name: str, eps: float) -> None:
    x, y = held_out(20)
    x_adv = KINDS[name](eps=eps, step=eps, steps=4)(trained(), x, y, generator())
    assert float((x_adv - x).abs().max()) <= eps + 1e-7
    assert float(x_adv.min()) >= 0.0 and float(x_adv.max()) <= 1.0
    assert x_adv.dtype == x.dtype and not x_adv.requires_grad


@pytest.mark.parametrize("name", KINDS)
def test_every_attack_breaks_an_undefended_model(name: str) -> None:
    x, y = held_out(50)
    x_adv = KINDS[name](eps=2 * EPS, step=EPS / 2, steps=10)(trained(), x, y, generator())
    assert correct(trained(), x, y).float().mean() > 0.8
    assert correct(trained(), x_adv, y).float().mean() < 0.05


@pytest.mark.parametrize("name", KINDS)
def test_a_seed_decides_the_result(name: str) -> None:
    x, y = held_out(10)
    attack = KINDS[name](eps=EPS, step=STEP, steps=3)
    once = attack(trained(), x, y, generator(1))
    torch.manual_seed(123)
    assert torch.equal(once, attack(trained(), x, y, generator(1)))
    if name != "mi-fgsm":
        assert not torch.equal(once, attack(trained(), x, y, generator(2)))


@pytest.mark.parametrize("name", KINDS)
def test_the_batch_size_does_not_change_the_result(double: tuple[nn.Module, Tensor, Tensor], name: str) -> None:
    model, x, y = double
    results = [
        KINDS[name](eps=EPS, step=STEP, steps=4, batches=Batches(size))(model, x, y, generator()) for size in (7, 1000)
    ]
    torch.testing.assert_close(results[0], results[1], rtol=0, atol=1e-9)


@pytest.mark.parametrize("name", KINDS)
def test_parameters_keep_their_gradients_and_flags(name: str) -> None:
    model = trained()
    model.head.weight.requires_grad_(False)
    flags = [parameter.requires_grad for parameter in model.parameters()]
    x, y = held_out(5)
    KINDS[name](eps=EPS, step=STEP, steps=2)(model, x, y, generator())
    assert [parameter.requires_grad for parameter in model.parameters()] == flags
    assert all(parameter.grad is None for parameter in model.parameters())


def test_radii_per_image_give_what_each_radius_gives_alone(double: tuple[nn.Module, Tensor, Tensor]) -> None:
    model, x, y = double
    radii = torch.linspace(0.02, 0.3, len(x), dtype=x.dtype).view(-1, 1, 1, 1)
    together = MIFGSM(eps=radii, step=radii / 4, steps=5)(model, x, y, generator())
    alone = MIFGSM(eps=float(radii[7]), step=float(radii[7]) / 4, steps=5)(model, x[7:8], y[7:8], generator())
    torch.testing.assert_close(together[7:8], alone, rtol=0, atol=1e-9)


class _Flat(nn.Module):
    """Logits that do not depend on the image: every gradient is zero."""

    def forward(self, x: Tensor) -> Tensor:
        return x.flatten(1)[:, :10] * 0.0


@pytest.mark.parametrize("name", KINDS)
def test_a_zero_gradient_gives_no_nan(name: str) -> None:
    x, y = held_out(4)
    assert not KINDS[name](eps=EPS, step=STEP, steps=2)(_Flat(), x, y, generator()).isnan().any()


@pytest.mark.parametrize("samples", [2, 20])
@pytest.mark.parametrize(("plain", "averaged"), [("pgd", "eot-pgd"), ("apgd", "apgd")])
def test_eot_around_a_deterministic_model_changes_nothing(
    double: tuple[nn.Module, Tensor, Tensor], plain: str, averaged: str, samples: int
) -> None:
    model, x, y = double
    options: dict[str, Any] = {"eps": EPS, "step": STEP, "steps": 5}
    expected = KINDS[plain](**options)(model, x, y, generator())
    found = KINDS[averaged](**options, samples=samples)(model, x, y, generator())
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-9)


def test_noise_of_sigma_zero_inside_the_model_changes_nothing() -> None:
    x, _ = held_out(10)
    assert torch.equal(NoisyModel(trained(), 0.0, generator())(x), trained()(x))


def test_noise_inside_the_model_is_fresh_at_every_call_and_decided_by_its_generator() -> None:
    x, _ = held_out(10)
    noisy = NoisyModel(trained(), 0.1, generator(5))
    first, second = logits_of(noisy, x), logits_of(noisy, x)
    assert not torch.equal(first, second)
    assert torch.equal(first, logits_of(NoisyModel(trained(), 0.1, generator(5)), x))


def test_a_targeted_attack_reaches_its_target() -> None:
    x, y = held_out(40)
    model = trained()
    targets = (y + 1) % 10
    x_adv = PGD(eps=0.5, step=0.05, steps=30, loss=towards)(model, x, targets, generator())
    assert correct(model, x_adv, targets).float().mean() > 0.8


def test_raising_the_label_energy_lowers_the_labels_logit() -> None:
    x, y = held_out(20)
    model = trained()
    x_adv = PGD(eps=EPS, step=STEP, steps=5, loss=label_energy)(model, x, y, generator())
    index = torch.arange(len(y))
    assert (model(x_adv)[index, y] < model(x)[index, y]).all()


def test_losses_are_per_image_and_have_the_right_sign() -> None:
    logits, y = torch.tensor([[2.0, 1.0, 0.0], [0.0, 5.0, 1.0]]), torch.tensor([0, 2])
    torch.testing.assert_close(margin(logits, y), torch.tensor([-1.0, 4.0]))
    torch.testing.assert_close(label_energy(logits, y), torch.tensor([-2.0, -1.0]))
    torch.testing.assert_close(towards(logits, y), -cross_entropy(logits, y))


def test_out_of_memory_halves_the_batch_says_so_and_gives_the_same_result(capsys: pytest.CaptureFixture[str]) -> None:
    x, _ = held_out(40)
    model, sizes = trained(), []

    def small_memory(images: Tensor) -> tuple[Tensor]:
        sizes.append(len(images))
        if len(images) > 10:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return (model(images).detach(),)

    batches = Batches(40)
    (result,) = batches.map(small_memory, x)
    torch.testing.assert_close(result, model(x).detach())
    assert batches.size == 10 and sizes[0] == 40
    assert "batches of 10 images" in capsys.readouterr().err


def test_a_single_image_that_does_not_fit_is_told_in_one_sentence() -> None:
    def no_memory(images: Tensor) -> tuple[Tensor]:
        raise torch.OutOfMemoryError("CUDA out of memory")

    with pytest.raises(UserError, match="single image"):
        Batches(2).map(no_memory, held_out(2)[0])


def test_other_errors_of_a_batch_are_not_swallowed() -> None:
    def broken(images: Tensor) -> tuple[Tensor]:
        raise RuntimeError("shapes do not fit")

    with pytest.raises(RuntimeError, match="shapes do not fit"):
        Batches(2).map(broken, held_out(2)[0])


# APGD against the authors' code, and its own properties


def solved(model: SmallNet, n: int = 60) -> tuple[Tensor, Tensor]:
    """Held-out digits that the model classifies correctly: the official code attacks no others."""
    x, y = held_out(n)
    right = correct(model, x, y)
    return x[right], y[right]


def official(model: SmallNet, x: Tensor, y: Tensor, steps: int, seed: int = 0) -> Any:
    """(x_best, still right, best loss, x misclassified) of the authors' code."""
    package = pytest.importorskip("pyautoattack.autopgd_base")
    attack = package.APGDAttack(
        model, n_iter=steps, norm="Linf", n_restarts=1, eps=EPS, seed=seed, loss="ce", device="cpu"
    )
    attack.init_hyperparam(x)
    torch.manual_seed(seed)
    return attack.attack_single_run(x, y)


@pytest.mark.parametrize("steps", [1, 10, 20, 50, 100])
def test_apgd_from_the_same_start_gives_the_result_of_the_official_code(steps: int) -> None:
    model = trained(adversarial=True)
    x, y = solved(model)
    best, right, loss, misclassified = official(model, x, y, steps)
    attack = APGD(eps=EPS, steps=steps, drop_broken=False)
    found = attack.run(model, x, y, generator())  # a CPU generator of this seed draws what the global one does
    assert torch.equal(found.broken, ~right.bool())
    torch.testing.assert_close(found.loss, loss, rtol=1e-5, atol=1e-5)
    expected = torch.where(found.broken[:, None, None, None], misclassified, best)
    torch.testing.assert_close(found.x_adv, expected.detach(), rtol=0, atol=1e-5)
    if steps > 1:
        assert 0 < int(found.broken.sum()) < len(x)


@pytest.mark.parametrize("steps", [1, 7, 10, 20, 50, 100])
def test_the_step_size_is_judged_when_the_official_code_judges_it(steps: int) -> None:
    package = pytest.importorskip("pyautoattack.autopgd_base")
    attack = package.APGDAttack(None, n_iter=steps, eps=EPS)
    period, waited, expected = attack.n_iter_2, 0, {}
    for iteration in range(1, steps + 1):
        waited += 1
        if waited == period:
            expected[iteration], waited = period, 0
            period = max(period - attack.size_decr, attack.n_iter_min)
    assert checkpoints(steps) == expected


def test_dropping_broken_images_does_not_change_which_break() -> None:
    model = trained(adversarial=True)
    x, y = solved(model)
    found = [APGD(eps=EPS, steps=30, drop_broken=drop).run(model, x, y, generator()) for drop in (True, False)]
    assert torch.equal(found[0].broken, found[1].broken)
    assert torch.equal(correct(model, found[0].x_adv, y), ~found[0].broken)


def test_apgd_with_radii_per_image_gives_what_each_radius_gives_alone() -> None:
    model = trained(adversarial=True).double()
    x, y = (part[:20] for part in solved(trained(adversarial=True)))
    x = x.double()
    radii = torch.tensor([0.02, 0.2], dtype=x.dtype).repeat_interleave(10).view(-1, 1, 1, 1)
    start = APGD(eps=radii, steps=1).start(x, generator())
    together = APGD(eps=radii, steps=15).run(model, x, y, generator(), start)
    alone = APGD(eps=0.2, steps=15).run(model, x[10:], y[10:], generator(), start[10:])
    torch.testing.assert_close(together.x_adv[10:], alone.x_adv, rtol=0, atol=1e-9)
    assert torch.equal(together.broken[10:], alone.broken)


def test_a_start_outside_the_ball_is_projected() -> None:
    model = trained()
    x, y = held_out(10)
    x_adv = APGD(eps=0.01, steps=2)(model, x, y, generator(), torch.ones_like(x))
    assert float((x_adv - x).abs().max()) <= 0.01 + 1e-7


@pytest.mark.parametrize(
    "attack", [partial(APGD, steps=10, drop_broken=False), partial(EOTPGD, step=STEP, steps=10, random_start=True)]
)
def test_eot_finds_more_where_the_noise_inside_the_model_hides_the_gradient(attack: Callable[..., Attack]) -> None:
    x, y = held_out(50)
    plain = trained(adversarial=True)

    def broken(samples: int) -> int:
        noisy = NoisyModel(plain, 0.5, generator(1))
        x_adv = attack(eps=EPS, samples=samples)(noisy, x, y, generator())
        votes = sum(NoisyModel(plain, 0.5, generator(9 + k))(x_adv).softmax(1).detach() for k in range(30))
        return int((torch.as_tensor(votes).argmax(1) != y).sum())

    assert broken(20) > broken(1)
