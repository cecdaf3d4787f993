"""Our APGD against the authors' code, and its own properties."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from ebjdat.attacks.apgd import APGD, checkpoints
from ebjdat.attacks.batches import Batches, correct
from ebjdat.attacks.linf import NoisyModel
from tests.small_models import SmallNet, held_out, trained

EPS = 24 / 255


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


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
def test_the_same_start_gives_the_same_result_as_the_official_code(steps: int) -> None:
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


def test_radii_per_image_give_what_each_radius_gives_alone() -> None:
    model = trained(adversarial=True).double()
    x, y = (part[:20] for part in solved(trained(adversarial=True)))
    x = x.double()
    radii = torch.tensor([0.02, 0.2], dtype=x.dtype).repeat_interleave(10).view(-1, 1, 1, 1)
    start = APGD(eps=radii, steps=1).start(x, generator())
    together = APGD(eps=radii, steps=15).run(model, x, y, generator(), start)
    alone = APGD(eps=0.2, steps=15).run(model, x[10:], y[10:], generator(), start[10:])
    torch.testing.assert_close(together.x_adv[10:], alone.x_adv, rtol=0, atol=1e-9)
    assert torch.equal(together.broken[10:], alone.broken)


@pytest.mark.parametrize("eps", [1 / 255, 64 / 255, 1.0])
def test_the_result_stays_in_the_ball_and_the_range(eps: float) -> None:
    model = trained()
    x, y = held_out(20)
    x_adv = APGD(eps=eps, steps=10)(model, x, y, generator())
    assert float((x_adv - x).abs().max()) <= eps + 1e-7
    assert float(x_adv.min()) >= 0.0 and float(x_adv.max()) <= 1.0


def test_a_start_outside_the_ball_is_projected() -> None:
    model = trained()
    x, y = held_out(10)
    x_adv = APGD(eps=0.01, steps=2)(model, x, y, generator(), torch.ones_like(x))
    assert float((x_adv - x).abs().max()) <= 0.01 + 1e-7


def test_eot_around_a_deterministic_model_changes_nothing() -> None:
    model = trained(adversarial=True).double()
    x, y = held_out(20)
    found = [APGD(eps=EPS, steps=10, samples=samples).run(model, x.double(), y, generator()) for samples in (1, 20)]
    torch.testing.assert_close(found[0].x_adv, found[1].x_adv, rtol=0, atol=1e-9)


def test_eot_finds_more_where_the_noise_inside_the_model_hides_the_gradient() -> None:
    x, y = held_out(50)
    plain = trained(adversarial=True)

    def broken(samples: int) -> int:
        noisy = NoisyModel(plain, 0.5, generator(1))
        attack = APGD(eps=EPS, steps=10, samples=samples, drop_broken=False)
        x_adv = attack.run(noisy, x, y, generator()).x_adv
        votes = sum(NoisyModel(plain, 0.5, generator(9 + k))(x_adv).softmax(1).detach() for k in range(30))
        return int((torch.as_tensor(votes).argmax(1) != y).sum())

    assert broken(20) > broken(1)


def test_the_batch_size_does_not_change_the_result() -> None:
    model = trained(adversarial=True).double()
    x, y = held_out(30)
    found = [
        APGD(eps=EPS, steps=10, batches=Batches(size)).run(model, x.double(), y, generator()) for size in (7, 1000)
    ]
    torch.testing.assert_close(found[0].x_adv, found[1].x_adv, rtol=0, atol=1e-9)
