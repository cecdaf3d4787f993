"""Square's memory: the logits and flags of the model itself, with fewer passes."""

from __future__ import annotations

import numpy as np
import pyautoattack
import pytest
import torch
from torch import Tensor, nn

from ebjdat.attacks import memory
from ebjdat.attacks.autoattack import Job, run_job
from ebjdat.attacks.memory import Memory, remembered
from ebjdat.model.energy import EnergyModel
from tests.small_models import held_out, trained


class _Inner(nn.Module):
    """The small network over images in [-1, 1]; the shift, if any, is the mean of the batch."""

    def __init__(self, shift: float) -> None:
        super().__init__()
        self.model, self.shift = trained(adversarial=True), shift

    def forward(self, u: Tensor) -> Tensor:
        logits = self.model((u + 1.0) / 2.0)
        return logits + self.shift * logits.mean() if self.shift else logits


def ours(shift: float = 0.0) -> EnergyModel:
    return EnergyModel(_Inner(shift)).eval().requires_grad_(False)


def test_answers_are_those_of_the_model_to_the_bit_and_no_image_is_computed_twice() -> None:
    model, (x, _) = ours(), held_out(40)
    predict = Memory(model, room=60)
    moved = (x + 0.1).clamp(0.0, 1.0)
    mixed = torch.cat([x[:20], moved[:20]])
    for images, computed in ((x, 40), (mixed, 60), (x[3:9], 60), (x[:1], 61), (x[:1], 61), (moved, 101), (moved, 101)):
        logits = predict(images)
        assert torch.equal(logits, model(images)) and predict.computed == computed
        logits.fill_(torch.nan)  # the attack writes into them
    assert torch.equal(predict(moved[[5, 5]]), model(moved[[5, 5]]))


def test_one_new_image_among_old_ones_is_rounded_as_in_a_batch() -> None:
    model, (x, _) = ours(), held_out(40)
    predict = Memory(model)
    predict(x[:39])
    assert torch.equal(predict(x), model(x))


def test_square_finds_what_the_official_package_finds_with_few_of_the_passes(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    job = Job(protocol="standard", attack="square", steps=2500, targets=0, eps=24 / 255, seed=0, first=0, last=16)
    made: list[Memory] = []

    class Kept(Memory):
        def __init__(self, model: nn.Module) -> None:
            super().__init__(model)
            made.append(self)

    monkeypatch.setattr(memory, "Memory", Kept)
    x, y = held_out(16)
    outcome = run_job(ours(), x, y, job)
    direct = pyautoattack.AutoAttack(ours(), norm="Linf", eps=job.eps, seed=0, version="standard")
    direct.attacks_to_run, direct.square.n_queries = ["square"], job.steps
    x_adv, y_adv = direct.run_standard_evaluation(x, y, batch_size=16)
    np.testing.assert_array_equal(outcome.final, (y_adv == y).numpy())
    assert 0 < outcome.final.sum() < outcome.right.sum()
    assert outcome.audit["distance"] == float((x_adv - x).abs().max())
    assert outcome.audit["changed"] == int((x_adv != x).flatten(1).any(1).sum())
    (used,) = made
    assert used.asked > 20_000 and used.computed < 0.3 * used.asked


def test_a_model_whose_answers_a_memory_could_change_is_asked_every_time() -> None:
    x, _ = held_out(16)
    assert isinstance(remembered(ours(), x), Memory)
    foreign, mixing = trained(adversarial=True), ours(shift=0.5)
    assert remembered(foreign, x) is foreign, "it may be random, or count its calls"
    assert remembered(mixing, x) is mixing, "its answers depend on the batch"
    alone = ours()
    assert remembered(alone, x[:1]) is alone
