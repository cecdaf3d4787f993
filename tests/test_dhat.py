"""DHAT against closed forms, against PGD-AT, and as a run with a helper network of its own."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ebjdat import files
from ebjdat.config import Debiasing, resolve
from ebjdat.model.energy import EnergyModel
from ebjdat.model.store import load_model, model_digest
from ebjdat.run import Run
from ebjdat.training.dhat import DHAT, Debiased, alignment, foreground, grad_cam, orthogonality
from ebjdat.training.objective import Batch
from ebjdat.training.streams import Streams
from tests import tiny
from tests.small_models import generator
from tests.small_runs import fingerprint, helper, small, tiny_data, trainer
from tests.synthetic import PARAMS, changed, setup_of
from tests.test_config import params_with

EPS = 32 / 255
DATA = tiny_data()
BATCH = Batch(DATA.x_train[:30], DATA.y_train[:30], None)


def objective(**settings: Any) -> DHAT:
    return DHAT(EPS, Debiasing(**settings), helper())


def logits(rows: int, seed: int) -> Tensor:
    return torch.randn(rows, 10, generator=generator(seed), dtype=torch.float64)


def prepared(method: DHAT, model: EnergyModel, seed: int = 0) -> Debiased:
    return method.prepare(model, BATCH, None, Streams(seed, "run", torch.device("cpu")))


@pytest.fixture(scope="module")
def model() -> EnergyModel:
    """A network that has learnt something."""
    return trainer(DATA, small("pgd_at", epochs=2)).run().last


def test_without_its_two_terms_dhat_is_pgd_at_to_the_bit() -> None:
    bare = Debiasing(w_alignment=0.0, w_floe=0.0, mask="random")  # drawn from a stream of its own
    setups = small("dhat", epochs=1, debiasing=bare), small("pgd_at", epochs=1)
    first, second = (trainer(DATA, setup).run() for setup in setups)
    assert fingerprint(first)[:2] == fingerprint(second)[:2]
    for row, other in zip(first.history, second.history, strict=True):
        assert {name: row[name] for name in other} == other


def test_inverse_images_stay_near_and_are_easier(model: EnergyModel) -> None:
    found = prepared(objective(), model)
    assert found.x_inverse is not None and found.x_adv is not None
    assert float((found.x_inverse - BATCH.x).abs().max()) <= EPS / 2 + 1e-6
    assert float(found.x_inverse.min()) >= 0.0 and float(found.x_inverse.max()) <= 1.0
    clean, adversarial, inverse = (model(x).log_softmax(1).detach() for x in (BATCH.x, found.x_adv, found.x_inverse))

    def aim(at: Tensor) -> Tensor:
        nearer = F.kl_div(at, clean, reduction="batchmean", log_target=True)
        return F.nll_loss(at, BATCH.y) + nearer - F.kl_div(at, adversarial, reduction="batchmean", log_target=True)

    assert aim(inverse) < aim(clean) < aim(adversarial)
    assert F.nll_loss(inverse, BATCH.y) < F.nll_loss(clean, BATCH.y) < F.nll_loss(adversarial, BATCH.y)


def test_grad_cam_of_a_linear_head_after_pooling_is_the_heads_row() -> None:
    class Pooled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.blocks, self.head = nn.Sequential(nn.Conv2d(1, 6, 3, padding=1)), nn.Linear(6, 10)

        def forward(self, u: Tensor) -> Tensor:
            return self.head(self.blocks(u).mean((2, 3)))

    torch.manual_seed(0)
    network = Pooled()
    maps = network.blocks(2 * BATCH.x - 1)
    expected = (network.head.weight[BATCH.y][:, :, None, None] * maps).sum(1, keepdim=True).relu() / 64
    assert torch.allclose(grad_cam(EnergyModel(network), BATCH.x, BATCH.y), expected, atol=1e-7)


@pytest.mark.parametrize(("side", "positions"), [(8, 4), (32, 8)])
def test_the_map_is_of_the_last_block_with_enough_positions(side: int, positions: int) -> None:
    assert grad_cam(helper(), torch.rand(2, 1, side, side), torch.tensor([0, 1])).shape == (2, 1, positions, positions)


def test_a_mask_is_binary_at_image_size_and_empty_where_the_map_is_flat() -> None:
    cam = torch.zeros(3, 1, 4, 4)
    cam[0, 0, 1, 2], cam[1] = 5.0, 5.0
    mask = foreground(cam, (8, 8), 0.1)
    assert mask.shape == (3, 1, 8, 8) and set(mask.unique().tolist()) == {0.0, 1.0}
    assert [float(one.sum()) > 0 for one in mask] == [True, False, False]
    assert mask[0, 0, 2:4, 4:6].all() and not mask[0, 0, :, 0].any()


def test_a_random_mask_has_the_area_of_the_helpers_and_another_place() -> None:
    mask, other = (objective(mask=kind).foreground(BATCH.x, BATCH.y, generator()) for kind in ("helper", "random"))
    assert mask is not None and other is not None and mask.shape == other.shape
    assert mask.sum((1, 2, 3)).equal(other.sum((1, 2, 3))) and not mask.equal(other)
    assert 0.0 < float(mask.mean()) < 1.0


@pytest.mark.parametrize("value", [0.0, 1.0])
def test_a_mask_of_everything_or_nothing_leaves_no_background_or_no_difference(
    model: EnergyModel, value: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    method, seen = objective(), list[Tensor]()
    monkeypatch.setattr(method, "foreground", lambda x, *_: torch.full_like(x, value))
    with model.network.register_forward_hook(lambda _, __, out: seen.append(out)):
        found = prepared(method, model)
        seen.clear()
        _, terms = method.loss(model.train(), found)
    adversarial, inverse, background = seen
    if value:
        assert torch.allclose(background, background[:1].expand_as(background), atol=1e-5)
    else:
        assert background.equal(inverse)
        p = adversarial.detach().softmax(1)
        expected = float((p * p.log()).sum(1).mean()) + math.log(10)
        assert float(terms["loss_alignment"]) == pytest.approx(expected, abs=1e-5)
    assert (float(terms["mask_foreground"]), float(terms["mask_empty"])) == (value, 1 - value)
    parts = ("loss_adversarial", "loss_alignment", "loss_floe")
    assert float(terms["loss"]) == pytest.approx(sum(float(terms[name]) for name in parts))


def test_both_directions_of_the_alignment_are_divergences_of_their_name() -> None:
    first, second = logits(7, 0), logits(7, 1)
    for form, (p, q) in {"code": (first, second), "paper": (second, first)}.items():
        expected = F.kl_div(q.log_softmax(1), p.log_softmax(1), reduction="batchmean", log_target=True)
        assert float(alignment(form, first, second)) == pytest.approx(float(expected), rel=1e-9)


def test_the_released_floe_in_both_of_its_forms() -> None:
    inverse, background = logits(16, 0), logits(16, 1)
    spread = background @ background.T
    expected = (inverse - inverse @ background.T @ background / spread.norm()).norm() / 16
    assert float(orthogonality("code", inverse, background)) == pytest.approx(float(expected), rel=1e-12)


def test_on_one_image_the_released_floe_is_the_projections_rest() -> None:
    inverse, background = logits(1, 0), logits(1, 1)
    rest = inverse - (inverse * background).sum() / background.square().sum() * background
    assert float(orthogonality("code", inverse, background)) == pytest.approx(float(rest.norm()), rel=1e-12)


def test_the_bounded_floe_is_the_squared_cosine() -> None:
    inverse, background = logits(16, 0), logits(16, 1)
    cosine = F.cosine_similarity(inverse, background)
    assert float(orthogonality("paper_bounded", inverse, background)) == pytest.approx(float(cosine.square().mean()))
    assert float(orthogonality("paper_bounded", inverse, inverse)) == pytest.approx(1.0)


@pytest.mark.parametrize("form", ["code", "paper_bounded"])
def test_a_background_without_logits_is_no_division_by_zero(form: str) -> None:
    inverse = logits(4, 0).requires_grad_()
    value = orthogonality(form, inverse, torch.zeros_like(inverse))
    (gradient,) = torch.autograd.grad(value, inverse)
    assert value.isfinite() and gradient.isfinite().all()


@pytest.mark.parametrize("detach", [False, True])
def test_the_gradient_passes_through_the_target_unless_it_is_detached(model: EnergyModel, detach: bool) -> None:
    method, kept = objective(w_floe=0.0, detach_target=detach), list[Tensor]()
    found = prepared(method, model)

    def keep(_: nn.Module, __: Any, out: Tensor) -> None:
        out.retain_grad()
        kept.append(out)

    with model.network.register_forward_hook(keep):
        method.loss(model.train().requires_grad_(True), found)[0].backward()
    reached = [out.grad is not None and bool(out.grad.any()) for out in kept]
    assert reached == [True, not detach, not detach]


@pytest.mark.parametrize(
    "values", [{"alignment": "paper"}, {"floe": "paper_bounded"}, {"mask": "random"}, {"mask": "none"}, {"omega": 0.5}]
)
def test_every_switch_changes_the_loss_and_the_runs_identity(model: EnergyModel, values: dict[str, Any]) -> None:
    setup = small("dhat")
    assert setup.recorded("train") != changed(setup, debiasing=Debiasing(**values)).recorded("train")
    terms = [method.loss(model, prepared(method, model))[1] for method in (objective(), objective(**values))]
    assert not terms[0]["loss"].isclose(terms[1]["loss"], rtol=1e-4)


def test_the_helpers_training_is_part_of_the_identity_and_no_other_methods() -> None:
    run = Run("digits", "dhat", 0)
    plain, moved = params_with(), params_with("digits", "training.undefended.epochs", 3)
    assert resolve(plain, run).recorded("train") != resolve(moved, run).recorded("train")
    without = params_with("digits", "training.dhat.debiasing.mask", "none")
    assert resolve(without, run).helper is None and "helper" not in resolve(without, run).recorded("train")
    assert "debiasing" not in setup_of(PARAMS, "pgd_at").recorded("train")["training"]


def test_a_run_trains_its_helper_as_the_undefended_run_of_the_same_seed(workspace: Path) -> None:
    params = tiny.write_params(workspace)
    tiny.prepare(params)
    tiny.train(params, "dhat", "undefended")
    run = Run("digits", "dhat", 0)
    summary = files.read_json(run.model_dir / "summary.json")
    assert summary["helper_sha256"] == files.read_json(Path("models/digits/undefended/0/summary.json"))["best_sha256"]
    assert model_digest(load_model(run.model_dir / "helper.pt")) == summary["helper_sha256"]
    assert 0.0 < summary["selected"]["mask_foreground"] < 1.0 and 0.0 <= summary["selected"]["mask_empty"] <= 1.0
    assert not list(workspace.glob(".scratch/resume/*/*/*/step-*"))
