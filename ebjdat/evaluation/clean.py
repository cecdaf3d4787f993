"""Accuracy, PGD-20 and energies of one model: what it knows about clean, attacked and generated images.

Energies test the paper's central claim, that clean, adversarial and generated images get equal E(x): per
kind of images mean and spread, the gap to the clean images with its sign, and the overlap of the
distributions. Energies are in nats, from the best checkpoint and images without input noise.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ebjdat.attacks.audit import check_batch_independence, run_guarded
from ebjdat.attacks.batches import Batches, correct, logits_of
from ebjdat.attacks.linf import PGD, margin, towards
from ebjdat.evaluation import distributions
from ebjdat.evaluation.cases import Attacked, Case, attack_case, opened, rate, stream
from ebjdat.evaluation.outliers import outliers
from ebjdat.evaluation.statistics import Rate, Result
from ebjdat.model.energy import energy

GENERATED = "generated"
"""The replay buffer among the kinds of images, and the start of the name of other samples."""
PREDICTED = 100
"""Images whose predictions are compared between batch sizes."""
PICTURED = 2
"""Images per class, the first of the test order, that are kept with their attacked version to look at."""


@dataclass(frozen=True)
class Adversary:
    """The attack that the model was trained with.

    Attributes:
        craft: (model, x, y, generator) -> x_adv, images in [0, 1].
        bound: how far it can get from x, pixel units (more than its radius when it does not project).
    """

    craft: Callable[[Any, Tensor, Tensor, torch.Generator], Tensor]
    bound: float


@dataclass(frozen=True)
class Seen:
    """What the model says about a set of images; NumPy, one row per image.

    Attributes:
        energy: E(x).
        label_energy: E(x, y), or None without labels.
        margin: logit of the label minus the largest other one, or None without labels.
    """

    energy: np.ndarray
    label_energy: np.ndarray | None
    margin: np.ndarray | None


def evaluate(
    models: Mapping[str, nn.Module],
    x: Tensor,
    y: Tensor,
    *,
    nominal: float,
    variant: str | None,
    generated: Mapping[str, Tensor] | None = None,
    adversary: Adversary | None = None,
    batches: Batches | None = None,
) -> Result:
    """Everything of the stage ``clean``.

    Args:
        models: ``best`` and ``last`` checkpoint.
        x, y: images (N,C,H,W) in [0, 1], labels (N,).
        nominal: the profile's radius, pixel units.
        variant: JEM variant, for the protocol's input noise; None for a baseline.
        generated: sets of samples (M,C,H,W) in [0, 1], named ``generated`` (the replay buffer) and
            ``generated-<how>``; None for a model that does not generate.
        adversary: None for a model trained without one.

    Raises:
        AuditError: an attack broke a property, or predictions depend on the batch size.
    """
    cases, batches = opened(x, y, nominal, variant, batches)
    best = models["best"]
    values = {"audit/batch-difference": check_batch_independence(best, x[:PREDICTED])}
    rates, attacks = _accuracies(models, cases, batches)
    audits = {name: attacked.audit.plain() for name, attacked in attacks.items()}
    kinds, more = _kinds(best, cases[0], attacks[f"{cases[0].name}/pgd-20"].x_adv, adversary, batches)
    kinds |= {name: (images, None) for name, images in (generated or {}).items()}
    sets = outliers(x, cases[0].protocol.seed)
    kinds |= {name: (images, None) for name, images in sets.items()}
    seen = {name: _look(best, images, labels, batches) for name, (images, labels) in kinds.items()}
    values |= _energies(seen) | _alignment({name: seen[name] for name in seen if name not in sets})
    values |= _detection(seen, sets)
    table = _reliability(best, x, y, batches)
    values["calibration/ece"] = distributions.expected_calibration_error(table)
    return Result(
        n=len(x),
        rates=rates,
        values=values,
        audits=audits | more,
        settings={case.name: case.settings("pgd") for case in cases},
        arrays=_arrays(seen)
        | _pictures(best, cases[0], kinds["adversarial"][0], batches)
        | {f"reliability/{name}": column for name, column in table.items()}
        | {"label": y.cpu().numpy()},
    )


def _accuracies(
    models: Mapping[str, nn.Module], cases: list[Case], batches: Batches
) -> tuple[dict[str, Rate], dict[str, Attacked]]:
    """Clean and PGD-20 accuracy of every checkpoint under every protocol."""
    rates: dict[str, Rate] = {}
    attacks: dict[str, Attacked] = {}
    for checkpoint, model in models.items():
        suffix = "" if checkpoint == "best" else f"-{checkpoint}"
        for case in cases:
            steps = case.protocol.pgd.steps
            rates[f"{case.name}/clean{suffix}"] = rate(correct(model, case.x, case.y, batches))
            name = f"{case.name}/pgd-{steps}{suffix}"
            attacks[name] = _pgd(name, model, case, batches)
            rates[name] = rate(attacks[name].robust)
    return rates, attacks


def _pgd(name: str, model: nn.Module, case: Case, batches: Batches) -> Attacked:
    recipe, radius = case.protocol.pgd, case.radius
    attack = PGD(eps=radius, step=recipe.step * radius, steps=recipe.steps, random_start=True, batches=batches)
    generator = stream(case.protocol.seed, "pgd")
    start = attack.start(case.x, generator)
    return attack_case(
        name,
        model,
        case.x,
        case.y,
        radius,
        lambda x, y, begin: attack(model, x, y, generator, begin),
        start=start,
        everyone=True,
        batches=batches,
    )


Kinds = dict[str, tuple[Tensor, Tensor | None]]
"""Images and labels by kind."""


def _kinds(
    model: nn.Module, case: Case, pgd: Tensor, adversary: Adversary | None, batches: Batches
) -> tuple[Kinds, dict[str, dict[str, Any]]]:
    """Clean and attacked images, and the audits of the attacks made here."""
    kinds: Kinds = {"clean": (case.x, case.y), "adversarial": (pgd, case.y)}
    audits: dict[str, dict[str, Any]] = {}
    kinds["targeted"], audits["targeted"] = _targeted(model, case, batches)
    if adversary is not None:
        kinds["training-adversary"], audits["training-adversary"] = _trained_with(model, case, adversary, batches)
    return kinds, audits


def _trained_with(
    model: nn.Module, case: Case, adversary: Adversary, batches: Batches
) -> tuple[tuple[Tensor, Tensor], dict[str, Any]]:
    """What the training adversary makes of the images; it draws on their device, batch by batch."""
    generator = torch.Generator(case.x.device).manual_seed(case.protocol.seed)

    def craft(images: Tensor, labels: Tensor) -> tuple[Tensor, ...]:
        return (adversary.craft(model, images, labels, generator),)

    x_adv, audit = run_guarded(
        "training-adversary", model, case.x, adversary.bound, lambda: batches.map(craft, case.x, case.y)[0]
    )
    return (x_adv, case.y), audit.plain()


def _targeted(model: nn.Module, case: Case, batches: Batches) -> tuple[tuple[Tensor, Tensor], dict[str, Any]]:
    """PGD towards the likeliest wrong class."""
    recipe, radius = case.protocol.pgd, case.radius
    logits = logits_of(model, case.x, batches)
    targets = logits.scatter(1, case.y[:, None], -torch.inf).argmax(1)
    attack = PGD(
        eps=radius, step=recipe.step * radius, steps=recipe.steps, random_start=True, loss=towards, batches=batches
    )
    generator = stream(case.protocol.seed, "targeted")
    x_adv, audit = run_guarded("targeted", model, case.x, radius, lambda: attack(model, case.x, targets, generator))
    return (x_adv, case.y), audit.plain()


def _look(model: nn.Module, x: Tensor, y: Tensor | None, batches: Batches) -> Seen:
    logits = logits_of(model, x, batches)
    if y is None:
        return Seen(energy(logits).cpu().numpy(), None, None)
    return Seen(energy(logits).cpu().numpy(), energy(logits, y).cpu().numpy(), (-margin(logits, y)).cpu().numpy())


def _energies(seen: Mapping[str, Seen]) -> dict[str, float]:
    """``energy/<kind>/mean``, ``/std`` and ``/label-mean``, ``energy/gap-<kind>``, ``margin/<kind>/mean``."""
    values: dict[str, float] = {}
    for kind, found in seen.items():
        values |= {f"energy/{kind}/mean": float(found.energy.mean()), f"energy/{kind}/std": float(found.energy.std())}
        if found.label_energy is not None and found.margin is not None:
            values[f"energy/{kind}/label-mean"] = float(found.label_energy.mean())
            values[f"margin/{kind}/mean"] = float(found.margin.mean())
        if kind != "clean":
            values[f"energy/gap-{kind}"] = distributions.gap(found.energy, seen["clean"].energy)
    return values


def _alignment(seen: Mapping[str, Seen]) -> dict[str, float]:
    """``energy/overlap-<kind>`` with the clean images, ``-adversarial-<samples>`` and ``-all`` three.

    ``-all`` takes the replay buffer as samples, ``-all-<how>`` the other ones.

    Bins span the compared sets only: generated images far away must not widen the bins in which clean
    and adversarial ones are told apart, or a poor generator would look better aligned.
    """
    energies = {kind: found.energy for kind, found in seen.items()}
    clean = energies.pop("clean")
    values = {f"energy/overlap-{kind}": distributions.overlap(found, clean) for kind, found in energies.items()}
    for kind in (kind for kind in energies if kind.startswith(GENERATED)):
        both = (energies["adversarial"], energies[kind])
        values[f"energy/overlap-adversarial-{kind}"] = distributions.overlap(*both)
        values[f"energy/overlap-all{kind.removeprefix(GENERATED)}"] = distributions.overlap(clean, *both)
    return values


def _detection(seen: Mapping[str, Seen], sets: Mapping[str, Tensor]) -> dict[str, float]:
    """``ood/<set>/auroc``: how well a higher E(x) tells outliers from test images."""
    return {f"ood/{name}/auroc": distributions.auroc(seen[name].energy, seen["clean"].energy) for name in sets}


def _reliability(model: nn.Module, x: Tensor, y: Tensor, batches: Batches) -> dict[str, np.ndarray]:
    confidence, predicted = logits_of(model, x, batches).softmax(1).max(1)
    return distributions.reliability(confidence.cpu().numpy(), (predicted == y).cpu().numpy())


def _pictures(model: nn.Module, case: Case, x_adv: Tensor, batches: Batches) -> dict[str, np.ndarray]:
    """``pictures/clean`` and ``-/adversarial`` uint8 (n,C,H,W) in 0..255, labels and predictions (n,)."""
    found = [(case.y == label).nonzero().squeeze(1)[:PICTURED] for label in case.y.unique()]
    chosen = torch.cat(found)
    images = {"clean": case.x[chosen], "adversarial": x_adv[chosen]}
    arrays = {f"pictures/{name}": (x * 255.0).round().to(torch.uint8).cpu().numpy() for name, x in images.items()}
    arrays |= {
        f"pictures/{name}-prediction": logits_of(model, x, batches).argmax(1).cpu().numpy()
        for name, x in images.items()
    }
    return arrays | {"pictures/label": case.y[chosen].cpu().numpy()}


def _arrays(seen: Mapping[str, Seen]) -> dict[str, np.ndarray]:
    arrays: dict[str, np.ndarray] = {}
    for kind, found in seen.items():
        columns = {"energy": found.energy, "label-energy": found.label_energy, "margin": found.margin}
        arrays |= {f"{kind}/{name}": column for name, column in columns.items() if column is not None}
    return arrays
