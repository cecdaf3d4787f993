"""Table 3, first half: APGD-CE over radius and iterations, and what the masking indicators need besides.

Metrics are ``<protocol>/apgd-ce/radius-<multiple>/steps-<N>`` with the radius as a multiple of the
protocol's, ``<protocol>/unbounded`` (a radius that holds every image), ``<protocol>/pgd-1`` (FGSM: one
step of the full radius from the image) and ``<protocol>/uniform-noise`` (no attack at all).
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from ebjdat.attacks.apgd import APGD
from ebjdat.attacks.audit import check_images, guarded
from ebjdat.attacks.batches import Batches, correct
from ebjdat.attacks.linf import PGD, uniform_like
from ebjdat.evaluation import selftest
from ebjdat.evaluation.cases import Case, arrays_of, attack_case, opened, rate, stream
from ebjdat.evaluation.outcomes import NOTHING, Outcome, Outcomes
from ebjdat.evaluation.statistics import Result


@dataclass(frozen=True)
class Cell:
    """One column of the table: images with a radius and a number of steps.

    Attributes:
        noise: input noise of the images, pixel units.
        radius: pixel units.
        steps: iterations.
    """

    noise: float
    radius: float
    steps: int


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
    """Everything of the stage ``sweep``; arguments as in :func:`ebjdat.evaluation.transfer.evaluate`.

    Raises:
        AuditError: an attack broke a property.
    """
    cases, batches = opened(x, y, nominal, variant, batches)
    names = {case.name: cells_of(case) for case in cases}
    images = {case.noise: case for case in cases}
    # Protocols meet in a cell when noise, radius and steps agree; then it is computed once.
    cells = list(dict.fromkeys(cell for named in names.values() for cell in named.values()))
    walked, audits = _attack_cells(model, cells, images, batches, done)
    flags = {name: walked[cell] for named in names.values() for name, cell in named.items()}
    measured = {name: audits[cell] for named in names.values() for name, cell in named.items()}
    for case in cases:
        flags[f"{case.name}/clean"] = correct(model, case.x, case.y, batches)
        flags[f"{case.name}/uniform-noise"] = correct(model, _uniform(case), case.y, batches)
        flags[f"{case.name}/pgd-1"], measured[f"{case.name}/pgd-1"] = _fgsm(model, case, batches)
    found = selftest.planted(x, cases[0].radius, cases[0].protocol.seed, batches)
    return Result(
        n=len(x),
        rates={name: rate(robust) for name, robust in flags.items()},
        values={} if found is None else {"self-test/planted": found},
        audits=measured,
        settings={case.name: case.settings("sweep") for case in cases},
        arrays=arrays_of(flags, y),
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
    model: nn.Module, cells: list[Cell], images: dict[float, Case], batches: Batches, done: Outcomes
) -> tuple[dict[Cell, Tensor], dict[Cell, dict[str, Any]]]:
    """Robust images and audit of every cell; cells of equal steps walk together in larger batches."""
    right = {noise: correct(model, case.x, case.y, batches) for noise, case in images.items()}
    robust: dict[Cell, Tensor] = {}
    audits: dict[Cell, dict[str, Any]] = {}
    for steps in sorted({cell.steps for cell in cells}):
        together = {str(cell): cell for cell in cells if cell.steps == steps}
        found, measured = done.once(
            f"apgd-ce, {steps} steps", partial(_attack_together, model, together, images, right, batches)
        )
        robust |= {cell: found[name] for name, cell in together.items()}
        audits |= {cell: measured[name] for name, cell in together.items()}
    return robust, audits


def _attack_together(
    model: nn.Module, cells: dict[str, Cell], images: dict[float, Case], right: dict[float, Tensor], batches: Batches
) -> Outcome:
    """Robust images and audit of cells of equal steps."""
    robust: dict[str, Tensor] = {}
    audits: dict[str, dict[str, Any]] = {}
    crafted = _walk(model, list(cells.values()), images, right, batches)
    for (name, cell), x_adv in zip(cells.items(), crafted, strict=True):
        case, chosen = images[cell.noise], right[cell.noise]
        label = f"apgd-ce at {cell.radius:.4g} with {cell.steps} steps"
        audits[name] = check_images(label, case.x[chosen], x_adv, cell.radius).plain()
        robust[name] = chosen.clone()
        if len(x_adv):
            robust[name][chosen] = correct(model, x_adv, case.y[chosen], batches)
    return robust, audits


def _walk(
    model: nn.Module, cells: list[Cell], images: dict[float, Case], right: dict[float, Tensor], batches: Batches
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
    sizes = [len(part) for part in x]
    x_adv = torch.cat(x)
    if len(x_adv):
        attack = APGD(eps=torch.cat(eps), steps=cells[0].steps, batches=batches)
        with guarded("apgd-ce", model):
            x_adv = attack(model, x_adv, torch.cat(y), torch.Generator(), torch.cat(start))
    return list(x_adv.split(sizes))


def _fgsm(model: nn.Module, case: Case, batches: Batches) -> tuple[Tensor, dict[str, Any]]:
    attack = PGD(eps=case.radius, step=case.radius, steps=1, batches=batches)
    generator = stream(case.protocol.seed, "fgsm")
    attacked = attack_case(
        f"{case.name}/pgd-1", model, case.x, case.y, case.radius,
        lambda x, y, begin: attack(model, x, y, generator, begin), batches=batches,
    )  # fmt: skip
    return attacked.robust, attacked.audit.plain()


def _uniform(case: Case) -> Tensor:
    """One draw of U(-radius, radius) per pixel, clipped."""
    offset = uniform_like(case.x, stream(case.protocol.seed, "uniform-offset"))
    return (case.x + case.radius * offset).clamp(0.0, 1.0)
