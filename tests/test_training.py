"""Samplers, replay buffer, adversary, objectives and optimisers against closed forms."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ebjdat.config import Variant
from ebjdat.model.energy import EnergyModel
from ebjdat.model.store import model_digest, new_model
from ebjdat.model.wideresnet import statistics
from ebjdat.seeds import derive
from ebjdat.training import selection
from ebjdat.training.adversary import inner_objective, sign_ascent
from ebjdat.training.augmentation import add_noise, augment
from ebjdat.training.objective import EBJDAT, Batch, Prepared, energy_gap, energy_term
from ebjdat.training.optimisers import learning_rate, sharpest_neighbour
from ebjdat.training.recipes import objective_of, stream_of
from ebjdat.training.replay_buffer import ReplayBuffer
from ebjdat.training.samplers import UniformStart, chain, generate
from ebjdat.training.selection import estimate_statistics
from ebjdat.training.streams import Streams
from tests.small_models import generator
from tests.small_runs import TINY, small
from tests.synthetic import PARAMS, setup_of

EPS = 32 / 255


def variant(name: str = "jempp", **changes: object) -> Variant:
    return PARAMS.variants[name].model_copy(update=changes)


class Quadratic(nn.Module):
    """Logits whose logsumexp is -sum(u^2) * curvature / 2, so that dE/du = curvature * u."""

    def __init__(self, curvature: float) -> None:
        super().__init__()
        self.curvature = curvature

    def forward(self, u: Tensor) -> Tensor:
        value = -0.5 * self.curvature * u.square().flatten(1).sum(1, keepdim=True)
        return value - math.log(10.0) + torch.zeros(1, 10)


def test_a_chain_step_follows_the_formula_in_the_network_scale() -> None:
    x = torch.rand(4, 1, 8, 8, generator=generator())
    u = 2 * x - 1
    recipe_ = variant("jempp", steps=1, gradient_clamp=0.7)
    step = recipe_.inner_steps * recipe_.step_size
    expected = (u - step * (0.9 * u).clamp(-0.7, 0.7)).clamp(-1, 1)
    moved = chain(EnergyModel(Quadratic(0.9)), x, recipe_, 1, generator())
    assert torch.allclose(2 * moved - 1, expected, atol=1e-6)


def test_pyld_inner_steps_are_one_long_step_because_the_first_layer_is_affine() -> None:
    x = torch.rand(4, 1, 8, 8, generator=generator())
    model = EnergyModel(Quadratic(0.3))
    many = chain(model, x, variant("jempp", inner_steps=5, step_size=0.2), 3, generator())
    one = chain(model, x, variant("jempp", inner_steps=1, step_size=1.0), 3, generator())
    assert torch.allclose(many, one)


def test_sgld_noise_has_the_variants_scale() -> None:
    x = torch.full((50, 1, 8, 8), 0.5)
    moved = chain(EnergyModel(Quadratic(0.0)), x, variant("jem", chain_noise=0.01), 1, generator())
    assert float((2 * (moved - x)).std()) == pytest.approx(0.01, rel=0.05)


def test_chains_lower_the_energy_and_touch_neither_mode_nor_statistics() -> None:
    model = new_model(TINY, 0).train()
    before = model_digest(model)
    x = torch.rand(16, 1, 8, 8, generator=generator())
    out = chain(model, x, variant("jempp"), 10, generator())
    with statistics(model, "batch"):
        assert model.energy(out).mean() < model.energy(x).mean()
    assert model_digest(model) == before and model.training
    assert float(out.min()) >= 0.0 and float(out.max()) <= 1.0 and not out.requires_grad


def test_a_buffer_draw_has_no_repetition_and_restarts_the_right_share() -> None:
    buffer = ReplayBuffer(4000, UniformStart((1, 2, 2)), 0.05, generator())
    buffer.images = torch.full_like(buffer.images, -1.0)
    images, places = buffer.draw(4000, generator(1))
    assert len(places.unique()) == 4000
    fresh = (images.flatten(1) >= 0).all(1)
    assert float(fresh.float().mean()) == pytest.approx(0.05, abs=0.015)
    buffer.put(places[:3], torch.full((3, 1, 2, 2), 7.0))
    assert int((buffer.images == 7.0).all(3).sum()) == 6


def test_with_projection_the_adversary_stays_in_the_ball_and_always_in_the_range() -> None:
    model = new_model(TINY, 0).eval()
    x = torch.rand(4, 1, 8, 8, generator=generator())
    y = torch.zeros(4, dtype=torch.long)

    def attack(inside: bool) -> Tensor:
        return sign_ascent(
            model, lambda f: F.cross_entropy(f, y), x, x, eps=0.1, step=0.05, steps=5, project_to_ball=inside
        )

    near, free = attack(True), attack(False)
    assert float((near - x).abs().max()) <= 0.1 + 1e-6 < float((free - x).abs().max())
    for found in (near, free):
        assert float(found.min()) == 0.0 and float(found.max()) == 1.0, "images with black and white are clamped"


@pytest.mark.parametrize(("reading", "rises"), [("energy", False), ("committed", True), ("cross_entropy", False)])
def test_the_inner_step_moves_the_true_class_logit_as_the_reading_says(reading: str, rises: bool) -> None:
    logits = torch.randn(6, 10, generator=generator(), requires_grad=True)
    reference, y = logits.detach(), torch.arange(6)
    (gradient,) = torch.autograd.grad(inner_objective(reading, logits, reference, y), logits)
    own = gradient[torch.arange(6), y]
    assert bool((own > 0).all()) is rises and bool((own != 0).all())


@pytest.mark.parametrize(("reading", "falls"), [("energy", True), ("cross_entropy", False), ("committed", False)])
def test_one_small_step_on_the_energy_term_moves_the_gap_the_readings_way(reading: str, falls: bool) -> None:
    """mean E(x_adv) - mean E(reference), x_adv fixed, BatchNorm in eval mode."""
    model = new_model(TINY, 0).eval()
    x, x_p = torch.rand(32, 1, 8, 8, generator=generator()), torch.rand(32, 1, 8, 8, generator=generator(1))
    x_adv = (x + EPS * torch.rand(x.shape, generator=generator(2)).sub(0.5).sign()).clamp(0, 1)
    reference = x if reading == "energy" else x_p

    def gap() -> Tensor:
        return model.energy(x_adv).mean() - model.energy(reference).mean()

    before = float(gap())
    form = "mean" if reading == "energy" else "mean_hinge"
    energy_term(reading, form, model.energy(x_adv), model.energy(x), model.energy(x_p)).backward()
    slope = sum(float(p.grad.square().sum()) for p in model.parameters() if p.grad is not None)
    with torch.no_grad():
        for p in model.parameters():
            if p.grad is not None:
                p -= 1e-4 / slope * p.grad  # so long that float32 sees the change, so short that it is linear
    assert float(gap()) - before == pytest.approx(-1e-4 if falls else 1e-4, rel=0.3)


def test_gap_forms_follow_their_definitions() -> None:
    adversarial, clean = torch.tensor([1.0, -3.0, 0.5]), torch.tensor([0.0, 0.0, 1.0])
    values = {f: float(energy_gap(adversarial, clean, f)) for f in ("mean", "mean_hinge", "sample_hinge")}
    assert values == pytest.approx({"mean": -2.5 / 3, "mean_hinge": 0.0, "sample_hinge": 1 / 3})
    assert float(energy_gap(adversarial, clean, "sample_absolute")) == pytest.approx(4.5 / 3)
    assert float(energy_gap(adversarial, clean, "mean_absolute")) == pytest.approx(2.5 / 3)
    assert float(energy_term("none", "mean", adversarial, clean, clean)) == 0.0


def _prepared() -> Prepared:
    x, x_p, x_gen, x_adv = torch.rand(4, 16, 1, 8, 8, generator=generator())
    return Prepared(Batch(x, torch.arange(16) % 10, x_p), x_gen, x_adv)


def test_the_loss_is_the_weighted_sum_of_its_terms_in_float64() -> None:
    model = new_model(TINY, 0).double().train()
    x, x_p, x_gen, x_adv = torch.rand(4, 16, 1, 8, 8, generator=generator()).double()
    double = Prepared(Batch(x, torch.arange(16) % 10, x_p), x_gen, x_adv)
    chosen = variant("jempp", reading="energy", w_px=0.45, w_clean=0.3, w_energy=0.2, w_adversarial=0.7, gap="mean")
    total, _ = EBJDAT(EPS, chosen).loss(model, double)

    def f(x: Tensor) -> Tensor:
        with statistics(model, "batch"):
            return model.network(2 * x - 1)

    def lse(x: Tensor) -> Tensor:
        return f(x).exp().sum(1).log().mean()

    y = double.batch.y
    expected = 0.45 * (-lse(x_p) + lse(x_gen)) + 0.3 * F.cross_entropy(f(x), y)
    expected = expected + 0.7 * F.cross_entropy(f(x_adv), y) + 0.2 * (-lse(x_adv) + lse(x))
    assert float(total) == pytest.approx(float(expected), abs=1e-5)  # logits are float32


def test_only_labelled_images_update_running_statistics() -> None:
    model, prepared = new_model(TINY, 0).train(), _prepared()
    mean = model.network.blocks[0].norm1.running_mean
    EBJDAT(EPS, variant()).loss(model, prepared)
    expected = torch.zeros_like(mean)
    for x in (prepared.batch.x, prepared.x_adv):
        expected = 0.9 * expected + 0.1 * model.network.stem(2 * x - 1).mean((0, 2, 3))
    assert torch.allclose(mean, expected, atol=1e-6)


def test_crafting_and_chains_leave_the_model_untouched() -> None:
    model, batch = new_model(TINY, 0).train(), _prepared().batch
    before = model_digest(model)
    buffer = ReplayBuffer(64, UniformStart((1, 8, 8)), 0.05, generator())
    prepared = EBJDAT(EPS, variant()).prepare(model, batch, buffer, Streams(0, "t", torch.device("cpu")))
    assert model_digest(model) == before and model.training
    assert all(p.grad is None for p in model.parameters())
    assert prepared.x_adv is not None
    assert float((prepared.x_adv - batch.x).abs().max()) <= EPS + 1e-6


def test_statistics_are_the_cumulative_average_over_equal_batches() -> None:
    model = new_model(TINY, 0).eval()
    x = torch.rand(40, 1, 8, 8, generator=generator())
    estimate_statistics(model, x, 10)
    first = model.network.blocks[0].norm1
    features = model.network.stem(2 * x - 1)
    assert torch.allclose(first.running_mean, features.mean((0, 2, 3)), atol=1e-5)
    variance = torch.stack([part.var((0, 2, 3)) for part in features.split(10)]).mean(0)
    assert torch.allclose(first.running_var, variance, atol=1e-5)
    assert first.momentum == 0.1 and not model.training


def test_adaptive_sharpness_moves_to_the_formulas_neighbour_and_back() -> None:
    layer = nn.Linear(3, 2).double()
    before = [p.detach().clone() for p in layer.parameters()]
    layer(torch.ones(1, 3).double()).square().sum().backward()
    gradients = [p.grad.clone() for p in layer.parameters()]
    norm = math.sqrt(sum(float((w * g).square().sum()) for w, g in zip(before, gradients, strict=True)))
    with sharpest_neighbour(layer, 2.0):
        for p, w, g in zip(layer.parameters(), before, gradients, strict=True):
            assert torch.allclose(p, w + 2.0 * w * w * g / norm)
            assert p.grad is None
    assert all(torch.equal(p, w) for p, w in zip(layer.parameters(), before, strict=True))


def test_schedules_follow_their_definitions() -> None:
    training = small(lr=0.1, epochs=10, policy="step", milestones=(4, 8), gamma=0.2, warmup=0).training
    assert training is not None
    rates = [learning_rate(training, step, 10) for step in (0, 39, 40, 80)]
    assert rates == pytest.approx([0.1, 0.1, 0.02, 0.004])
    assert learning_rate(training.model_copy(update={"warmup": 10}), 4, 10) == pytest.approx(0.05)
    cycle = training.model_copy(update={"policy": "one_cycle"})
    rates = [learning_rate(cycle, step, 10) for step in range(100)]
    assert max(rates) == pytest.approx(0.1) and rates.index(max(rates)) == 30
    assert rates[0] == pytest.approx(0.004) and rates[-1] < 1e-4


def test_augmentation_crops_within_the_padding_and_flips_half() -> None:
    x = torch.arange(64.0).reshape(1, 1, 8, 8).repeat(200, 1, 1, 1) / 64
    out = augment(x, 2, True, generator())
    padded = F.pad(x[:1], (2, 2, 2, 2), mode="reflect")
    crops = [padded[:, :, i : i + 8, j : j + 8] for i in range(5) for j in range(5)]
    allowed = torch.cat([*crops, *[crop.flip(3) for crop in crops]])
    matches = (out[:, None] == allowed[None]).flatten(2).all(2)
    assert bool(matches.any(1).all())
    flipped = matches[:, 25:].any(1).float().mean()
    assert 0.35 < float(flipped) < 0.65
    assert torch.equal(augment(x, 0, False, generator()), x)


def test_noise_is_given_in_the_network_scale() -> None:
    x = torch.zeros(100, 1, 8, 8)
    assert float((2 * add_noise(x, 0.03, generator())).std()) == pytest.approx(0.03, rel=0.05)


def test_streams_are_independent_repeatable_and_resumable() -> None:
    streams = Streams(3, "run", torch.device("cpu"))
    state = streams.state()
    first = torch.rand(4, generator=streams.chains)
    assert not torch.equal(first, torch.rand(4, generator=streams.attack))
    streams.load(state)
    assert torch.equal(torch.rand(4, generator=streams.chains), first)
    streams.restart(1)
    assert not torch.equal(torch.rand(4, generator=streams.chains), first)
    assert derive(0, "a") == derive(0, "a") != derive(0, "b")


@pytest.mark.parametrize("method", ["ebjdat", "base", "control"])
@pytest.mark.parametrize("name", ["jem", "jempp", "sadajem"])
def test_a_method_over_a_variant_is_data(method: str, name: str) -> None:
    setup, published = setup_of(PARAMS, f"{method}-{name}"), PARAMS.variants[name]
    objective = objective_of(setup)
    assert isinstance(objective, EBJDAT) and setup.training is not None
    assert (objective.sees, objective.selected_by) == ("clean" if method == "base" else "both", "robust")
    assert objective.eps == objective.reach == setup.training.train_eps
    assert objective.recipe.w_energy == (published.w_energy if method == "ebjdat" else 0.0)
    assert objective.recipe.steps == (published.base_steps if method == "base" else published.steps)
    assert stream_of(setup.run) == f"{'ebjdat' if method == 'control' else method}-{name}"


@pytest.mark.parametrize("model", ["pgd_at", "trades", "ebjdat-jempp", "base-jempp"])
def test_statistics_come_from_the_same_images_for_all_that_train_on_adversarial_ones(
    model: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[Tensor] = []
    monkeypatch.setattr(selection, "_attacked", lambda model, x, *_: 1.0 - x)
    monkeypatch.setattr(selection, "estimate_statistics", lambda model, x, size: seen.append(x))
    x, y = torch.rand(20, 1, 4, 4, generator=generator()), torch.zeros(20, dtype=torch.long)
    selection.renew_statistics(EnergyModel(Quadratic(0.9)), setup_of(PARAMS, model), x, y)
    both = torch.stack([x[:10], 1.0 - x[10:]], 1).flatten(0, 1)
    assert torch.equal(seen[0], x if model == "base-jempp" else both)


def test_without_projection_the_adversary_reaches_as_far_as_its_steps() -> None:
    assert EBJDAT(0.1, variant(project=False, attack_steps=5, attack_step=0.4)).reach == pytest.approx(0.3)


def test_samples_are_drawn_in_equal_batches() -> None:
    sizes = []

    class Start(UniformStart):
        def sample(self, n: int, *arguments: object, **options: object) -> tuple[Tensor, Tensor]:
            sizes.append(n)
            return super().sample(n, *arguments, **options)

    images = generate(EnergyModel(Quadratic(0.1)), variant(), Start((1, 2, 2)), 501, 1, generator(), batch_size=500)
    assert (len(images), sizes) == (501, [251, 250])
