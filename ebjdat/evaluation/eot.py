"""Table 3, second half: EOT-PGD on the model as it is and with noise inside the model.

Metrics are ``<protocol>/eot-pgd/<plain|noise>/samples-<S>/radius-<multiple>``. The model has no randomness
at test time, so on the plain model EOT-PGD is PGD up to rounding; with Gaussian input noise inside the
model it is an attack of its own. A random model's prediction is the class of largest mean probability
over a fixed number of draws.

Steps keep their size at every radius, so that 20 of them cannot cross the largest balls: there the figure
is an upper bound on robustness, and APGD-CE is the one to read.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from ebjdat.attacks.audit import check_images, guarded
from ebjdat.attacks.batches import Batches, correct, logits_of
from ebjdat.attacks.linf import EOTPGD, NoisyModel
from ebjdat.attacks.outcomes import NOTHING, Outcomes
from ebjdat.evaluation.cases import Case, stream
from ebjdat.progress import Progress
from ebjdat.protocols import EotCell
from ebjdat.statistics import Rate, Result

VOTES = 20
"""Draws that make a prediction of a model with noise inside."""


class Judged:
    """A model as EOT sees it, plain or with noise of ``sigma`` (pixel units) inside, and its predictions."""

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
    model: nn.Module, cases: list[Case], *, batches: Batches, done: Outcomes = NOTHING, label: str = "eot"
) -> Result:
    """Everything of the stage ``eot``.

    Args:
        cases: both protocols on the model's images.
        done: outcomes of attacks that an earlier, killed evaluation has finished.
        label: of the progress.

    Raises:
        AuditError: an attack broke a property.
    """
    rates: dict[str, Rate] = {}
    audits: dict[str, dict[str, Any]] = {}
    cells = [(case, cell) for case in cases for cell in case.protocol.eot.cells]
    with Progress(sum(case.protocol.eot.steps * cell.samples for case, cell in cells), label, unit="pass") as progress:
        for case, cell in cells:
            attack = partial(_radii, model, case, cell, batches, partial(progress.advance, cell.samples))
            passes = case.protocol.eot.steps * cell.samples
            found, measured = done.once(f"{case.name}/{cell}", attack, progress, passes)
            rates |= {name: Rate.of(flags) for name, flags in found.items()}
            audits |= measured
            at_radius = next((flags for name, flags in found.items() if name.endswith("/radius-1")), None)
            progress.advance(0, **({} if at_radius is None else {"robust": float(at_radius.mean())}))
    settings = {case.name: case.settings("eot") | {"votes": VOTES} for case in cases}
    return Result(n=len(cases[0].x), rates=rates, audits=audits, settings=settings)


def _radii(
    model: nn.Module, case: Case, cell: EotCell, batches: Batches, tick: Callable[[], object]
) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Robust images and audits of one cell at all radii, which walk together in larger batches."""
    recipe = case.protocol.eot
    prefix = f"{case.name}/eot-pgd/{cell.noise}"
    judged = Judged(model, cell, recipe.sigma, case.protocol.seed, batches)
    right = judged.correct(case.x, case.y)
    label = f"{prefix}/samples-{cell.samples}"
    radii = {f"{label}/radius-{multiple:g}": multiple * case.radius for multiple in recipe.radii}
    wanted, labels = case.x[right], case.y[right]
    flags, audits = {f"{prefix}/clean": right}, {}
    crafted = _walk(judged, case, cell, right, list(radii.values()), batches, tick)
    for (name, radius), x_adv in zip(radii.items(), crafted, strict=True):
        audits[name] = check_images(name, wanted, x_adv, radius).plain()
        flags[name] = right.clone()
        if len(wanted):
            flags[name][right] = judged.correct(x_adv, labels)
    return flags, audits


def _walk(
    judged: Judged,
    case: Case,
    cell: EotCell,
    right: Tensor,
    radii: list[float],
    batches: Batches,
    tick: Callable[[], object],
) -> list[Tensor]:
    """Adversarial images of the correctly classified ones at every radius."""
    x, y, recipe = case.x[right], case.y[right], case.protocol.eot
    if not len(x):
        return [x for _ in radii]
    attack = EOTPGD(
        eps=torch.tensor(radii, dtype=x.dtype, device=x.device).repeat_interleave(len(x)).view(-1, 1, 1, 1),
        step=recipe.step * case.radius,
        steps=recipe.steps,
        random_start=True,
        samples=cell.samples,
        batches=batches,
        tick=tick,
    )
    start = [
        EOTPGD(eps=radius, step=1.0, steps=0, random_start=True).start(case.x, stream(case.protocol.seed, "eot"))[right]
        for radius in radii
    ]
    copies = x.repeat(len(radii), 1, 1, 1)
    with guarded(f"{case.name}/eot-pgd", judged.attacked):
        x_adv = attack(judged.attacked, copies, y.repeat(len(radii)), torch.Generator(), torch.cat(start))
    return list(x_adv.split(len(x)))
