"""Table 3, second half: EOT-PGD on the model as it is and with noise inside the model.

Metrics are ``<protocol>/eot-pgd/<plain|noise>/samples-<S>/radius-<multiple>``. The model has no randomness
at test time, so on the plain model EOT-PGD is PGD up to rounding; with Gaussian input noise inside the
model it is an attack of its own. A random model's prediction is the class of largest mean probability
over a fixed number of draws.

Steps keep their size at every radius, so that 20 of them cannot cross the largest balls: there the figure
is an upper bound on robustness, and APGD-CE is the one to read.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from ebjdat.attacks.audit import check_images, guarded
from ebjdat.attacks.batches import Batches, correct, logits_of
from ebjdat.attacks.linf import EOTPGD, NoisyModel
from ebjdat.evaluation.cases import Case, arrays_of, opened, rate, stream
from ebjdat.evaluation.outcomes import NOTHING, Outcome, Outcomes
from ebjdat.evaluation.statistics import Result
from ebjdat.protocols import EotCell

VOTES = 20
"""Draws that make a prediction of a model with noise inside."""


class Judged:
    """A model as EOT sees it, with its predictions.

    Args:
        model: images in [0, 1] -> logits.
        cell: plain, or with noise inside.
        sigma: of the noise, pixel units.
        seed: of the noise.
    """

    def __init__(self, model: nn.Module, cell: EotCell, sigma: float, seed: int, batches: Batches) -> None:
        self.model, self.sigma, self.seed, self.batches = model, sigma, seed, batches
        self.random = cell.noise == "noise"
        self.attacked = NoisyModel(model, sigma, stream(seed, "noise-inside")) if self.random else model

    def correct(self, x: Tensor, y: Tensor) -> Tensor:
        """Per image (N,) whether the prediction is y; the draws are the same at every call."""
        if not self.random:
            return correct(self.model, x, y, self.batches)
        voter = NoisyModel(self.model, self.sigma, stream(self.seed, "votes"))
        shares = sum(logits_of(voter, x, self.batches).softmax(1) for _ in range(VOTES))
        return torch.as_tensor(shares).argmax(1) == y


def evaluate(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    *,
    nominal: float,
    variant: str | None,
    batches: Batches | None = None,
    done: Outcomes = NOTHING,
) -> Result:
    """Everything of the stage ``eot``; arguments as in :func:`ebjdat.evaluation.transfer.evaluate`.

    Raises:
        AuditError: an attack broke a property.
    """
    cases, batches = opened(x, y, nominal, variant, batches)
    flags: dict[str, Tensor] = {}
    audits: dict[str, dict[str, Any]] = {}
    for case in cases:
        for cell in case.protocol.eot.cells:
            found, measured = done.once(f"{case.name}/{cell}", partial(_radii, model, case, cell, batches))
            flags |= found
            audits |= measured
    return Result(
        n=len(x),
        rates={name: rate(found) for name, found in flags.items()},
        audits=audits,
        settings={case.name: case.settings("eot") | {"votes": VOTES} for case in cases},
        arrays=arrays_of(flags, y),
    )


def _radii(model: nn.Module, case: Case, cell: EotCell, batches: Batches) -> Outcome:
    """Robust images and audits of one cell at all radii, which walk together in larger batches."""
    recipe = case.protocol.eot
    prefix = f"{case.name}/eot-pgd/{cell.noise}"
    judged = Judged(model, cell, recipe.sigma, case.protocol.seed, batches)
    right = judged.correct(case.x, case.y)
    label = f"{prefix}/samples-{cell.samples}"
    radii = {f"{label}/radius-{multiple:g}": multiple * case.radius for multiple in recipe.radii}
    wanted, labels = case.x[right], case.y[right]
    flags, audits = {f"{prefix}/clean": right}, {}
    crafted = _walk(judged, case, cell, wanted, labels, right, list(radii.values()), batches)
    for (name, radius), x_adv in zip(radii.items(), crafted, strict=True):
        audits[name] = check_images(name, wanted, x_adv, radius).plain()
        flags[name] = right.clone()
        if len(wanted):
            flags[name][right] = judged.correct(x_adv, labels)
    return flags, audits


def _walk(
    judged: Judged, case: Case, cell: EotCell, x: Tensor, y: Tensor, right: Tensor, radii: list[float], batches: Batches
) -> list[Tensor]:
    """Adversarial images of x at every radius."""
    if not len(x):
        return [x for _ in radii]
    recipe = case.protocol.eot
    eps = torch.tensor(radii, dtype=x.dtype, device=x.device).repeat_interleave(len(x)).view(-1, 1, 1, 1)
    attack = EOTPGD(
        eps=eps,
        step=recipe.step * case.radius,
        steps=recipe.steps,
        random_start=True,
        samples=cell.samples,
        batches=batches,
    )
    start = [
        EOTPGD(eps=radius, step=1.0, steps=0, random_start=True).start(case.x, stream(case.protocol.seed, "eot"))[right]
        for radius in radii
    ]
    copies = x.repeat(len(radii), 1, 1, 1)
    with guarded(f"{case.name}/eot-pgd", judged.attacked):
        x_adv = attack(judged.attacked, copies, y.repeat(len(radii)), torch.Generator(), torch.cat(start))
    return list(x_adv.split(len(x)))
