"""Table 3, first half: APGD-CE over radius and iterations, and what the masking indicators need besides.

Metrics are ``<protocol>/apgd-ce/radius-<multiple>/steps-<N>`` with the radius as a multiple of the
protocol's, ``<protocol>/unbounded`` (a radius that holds every image), ``<protocol>/pgd-1`` (FGSM: one
step of the full radius from the image) and ``<protocol>/uniform-noise`` (no attack at all).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ebjdat.attacks.apgd import APGD
from ebjdat.attacks.audit import check_images, guarded
from ebjdat.attacks.batches import Batches, correct
from ebjdat.attacks.linf import PGD, uniform_like
from ebjdat.attacks.outcomes import NOTHING, Outcomes
from ebjdat.evaluation import selftest
from ebjdat.evaluation.cases import Attacked, Case, attack_case, rate, stream
from ebjdat.progress import Progress
from ebjdat.statistics import Rate, Result


@dataclass(frozen=True)
class Cell:
    """One column of the table: images with input noise, attacked at a radius (both in pixel units), iterations."""

    noise: float
    radius: float
    steps: int


def evaluate(
    model: nn.Module, cases: list[Case], *, batches: Batches, done: Outcomes = NOTHING, label: str = "sweep"
) -> Result:
    """Everything of the stage ``sweep``; arguments as in :func:`ebjdat.evaluation.eot.evaluate`.

    Raises:
        AuditError: an attack broke a property.
    """
    names = {name: cell for case in cases for name, cell in cells_of(case).items()}
    walked, audits = _attack_cells(model, names, cases, batches, done, label)
    rates = {name: Rate.of(walked[cell]) for name, cell in names.items()}
    measured = {name: audits[cell] for name, cell in names.items()}
    for case in cases:
        rates[f"{case.name}/clean"] = rate(correct(model, case.x, case.y, batches))
        rates[f"{case.name}/uniform-noise"] = rate(correct(model, _uniform(case), case.y, batches))
        fgsm = _fgsm(model, case, batches)
        rates[f"{case.name}/pgd-1"], measured[f"{case.name}/pgd-1"] = rate(fgsm.robust), fgsm.audit.plain()
    found = selftest.planted(cases[0].x, cases[0].radius, cases[0].protocol.seed, batches)
    return Result(
        n=len(cases[0].x),
        rates=rates,
        values={} if found is None else {"self-test/planted": found},
        audits=measured,
        settings={case.name: case.settings("sweep") for case in cases},
    )


def cells_of(case: Case) -> dict[str, Cell]:
    """A protocol's APGD-CE cells by metric."""
    recipe = case.protocol.sweep
    wanted = [(multiple, steps) for multiple in recipe.radii for steps in recipe.radii_steps]
    wanted += [(1.0, steps) for steps in recipe.iterations]
    cells = {
        f"{case.name}/apgd-ce/radius-{multiple:g}/steps-{steps}": Cell(case.noise, multiple * case.radius, steps)
        for multiple, steps in wanted
    }
    longest = max((*recipe.radii_steps, *recipe.iterations))
    return cells | {f"{case.name}/unbounded": Cell(case.noise, recipe.unbounded, longest)}


def _attack_cells(
    model: nn.Module, names: dict[str, Cell], cases: list[Case], batches: Batches, done: Outcomes, label: str
) -> tuple[dict[Cell, np.ndarray], dict[Cell, dict[str, Any]]]:
    """Robust images and audit of every cell; cells of equal steps walk together in larger batches.

    Protocols meet in a cell when noise, radius and steps agree; then it is computed once.
    """
    cells = list(dict.fromkeys(names.values()))
    images = {case.noise: case for case in cases}
    right = {noise: correct(model, case.x, case.y, batches) for noise, case in images.items()}
    robust: dict[Cell, np.ndarray] = {}
    audits: dict[Cell, dict[str, Any]] = {}
    with Progress(sum(cell.steps for cell in cells), label, unit="step") as progress:
        for steps in sorted({cell.steps for cell in cells}):
            together = {str(cell): cell for cell in cells if cell.steps == steps}
            attack = partial(_attack_together, model, together, images, right, batches, progress)
            found, measured = done.once(f"apgd-ce, {steps} steps", attack, progress, steps * len(together))
            robust |= {cell: found[name] for name, cell in together.items()}
            audits |= {cell: measured[name] for name, cell in together.items()}
            shown = robust.get(Cell(cases[0].noise, cases[0].radius, steps))
            progress.advance(0, **({} if shown is None else {"robust": float(shown.mean())}))
    return robust, audits


def _attack_together(
    model: nn.Module,
    cells: dict[str, Cell],
    images: dict[float, Case],
    right: dict[float, Tensor],
    batches: Batches,
    progress: Progress,
) -> tuple[dict[str, Tensor], dict[str, dict[str, Any]]]:
    """Robust images and audit of cells of equal steps."""
    robust: dict[str, Tensor] = {}
    audits: dict[str, dict[str, Any]] = {}
    tick = partial(progress.advance, len(cells))
    crafted = _walk(model, list(cells.values()), images, right, batches, tick)
    for (name, cell), x_adv in zip(cells.items(), crafted, strict=True):
        case, chosen = images[cell.noise], right[cell.noise]
        label = f"apgd-ce at {cell.radius:.4g} with {cell.steps} steps"
        audits[name] = check_images(label, case.x[chosen], x_adv, cell.radius).plain()
        robust[name] = chosen.clone()
        if len(x_adv):
            robust[name][chosen] = correct(model, x_adv, case.y[chosen], batches)
    return robust, audits


def _walk(
    model: nn.Module,
    cells: list[Cell],
    images: dict[float, Case],
    right: dict[float, Tensor],
    batches: Batches,
    tick: Callable[[], object],
) -> list[Tensor]:
    """Adversarial images of each cell's correctly classified images."""
    x, y, eps, start = [], [], [], []
    for cell in cells:
        case, chosen = images[cell.noise], right[cell.noise]
        alone = APGD(eps=cell.radius, steps=cell.steps)
        start.append(alone.start(case.x, stream(case.protocol.seed, "apgd"))[chosen])
        x.append(case.x[chosen])
        y.append(case.y[chosen])
        eps.append(torch.full_like(x[-1][:, :1, :1, :1], cell.radius))
    x_adv = torch.cat(x)
    if len(x_adv):
        attack = APGD(eps=torch.cat(eps), steps=cells[0].steps, batches=batches, tick=tick)
        with guarded("apgd-ce", model):
            x_adv = attack(model, x_adv, torch.cat(y), torch.Generator(), torch.cat(start))
    return list(x_adv.split([len(part) for part in x]))


def _fgsm(model: nn.Module, case: Case, batches: Batches) -> Attacked:
    attack = PGD(eps=case.radius, step=case.radius, steps=1, batches=batches)
    return attack_case(f"{case.name}/pgd-1", model, case.x, case.y, attack, stream(case.protocol.seed, "fgsm"))


def _uniform(case: Case) -> Tensor:
    """One draw of U(-radius, radius) per pixel, clipped."""
    offset = uniform_like(case.x, stream(case.protocol.seed, "uniform-offset"))
    return (case.x + case.radius * offset).clamp(0.0, 1.0)
