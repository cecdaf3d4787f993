"""Accuracy, PGD-20 and energies of one model: what it knows about clean, attacked and generated images.

Energies test the paper's central claim, that clean, adversarial and generated images get equal E(x): per
kind of images mean and spread, the gap to the clean images with its sign, and the overlap of the
distributions. Energies are in nats, from the best checkpoint and images without input noise.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ebjdat.attacks.audit import check_batch_independence, run_guarded
from ebjdat.attacks.batches import Batches, correct, logits_of
from ebjdat.attacks.linf import PGD, Loss, cross_entropy, input_gradient, margin, towards, zero_share
from ebjdat.evaluation import distributions
from ebjdat.evaluation.cases import Attacked, Case, attack_case, rate, stream
from ebjdat.evaluation.outliers import outliers
from ebjdat.evaluation.unreliable import LARGEST_ZERO_SHARE
from ebjdat.model.energy import energy
from ebjdat.progress import Progress
from ebjdat.statistics import Rate, Result

GENERATED = "generated"
"""The replay buffer among the kinds of images, and the start of the name of other samples."""
PREDICTED = 100
"""Images whose predictions are compared between batch sizes."""
PICTURED = 2
"""Images per class, the first of the test order, that are kept with their attacked version to look at."""


@dataclass(frozen=True)
class Adversary:
    """The attack that the model was trained with, and how far it can get from x (pixel units; more than its radius when
    it does not project).
    """

    craft: Callable[[Any, Tensor, Tensor, torch.Generator], Tensor]
    bound: float


Seen = Mapping[str, np.ndarray]
"""Per image ``energy`` E(x); with labels also ``label-energy`` E(x, y) and ``margin``, the label's logit minus the
largest other one."""


def evaluate(
    models: Mapping[str, nn.Module],
    cases: list[Case],
    *,
    generated: Mapping[str, Tensor] | None = None,
    adversary: Adversary | None = None,
    batches: Batches,
    label: str = "clean",
) -> Result:
    """Everything of the stage ``clean``.

    Args:
        models: ``best`` and, if there is one, ``last`` checkpoint.
        generated: sets of samples (M,C,H,W) in [0, 1], named ``generated`` (the replay buffer) and ``generated-<how>``.
        adversary: None for a model trained without one.

    Raises:
        AuditError: an attack broke a property, or predictions depend on the batch size.
    """
    best, case = models["best"], cases[0]
    x, y = case.x, case.y
    values = {"audit/batch-difference": check_batch_independence(best, x[:PREDICTED])}
    steps = len(models) * sum(case.protocol.pgd.steps for case in cases) + case.protocol.pgd.steps
    with Progress(steps, label, unit="step") as progress:
        rates, attacks = _accuracies(models, cases, batches, progress)
        audits = {name: attacked.audit.plain() for name, attacked in attacks.items()}
        kinds: Kinds = {"clean": (x, y), "adversarial": (attacks[f"{case.name}/pgd-20"].x_adv, y)}
        crafts = {"targeted": (case.radius, _targeted(best, case, batches, progress))}
        if adversary is not None:
            crafts["training-adversary"] = adversary.bound, _trained_with(best, case, adversary, batches)
        for name, (bound, craft) in crafts.items():
            x_adv, audit = run_guarded(name, best, x, bound, craft)
            kinds[name], audits[name] = (x_adv, y), audit.plain()
    kinds |= {name: (images, None) for name, images in (generated or {}).items()}
    sets = outliers(x, case.protocol.seed)
    kinds |= {name: (images, None) for name, images in sets.items()}
    seen = {name: _look(best, images, labels, batches) for name, (images, labels) in kinds.items()}
    values |= _energies(seen) | _alignment({name: seen[name] for name in seen if name not in sets})
    for name in sets:  # how well a higher E(x) tells outliers from test images
        values[f"ood/{name}/auroc"] = distributions.auroc(seen[name]["energy"], seen["clean"]["energy"])
    table = _reliability(best, x, y, batches)
    values["calibration/ece"] = distributions.expected_calibration_error(table)
    zero = zero_share(input_gradient(best, x, y, cross_entropy, batches))
    values["gradient/zero-share"] = zero
    if zero > LARGEST_ZERO_SHARE:
        rates |= {f"{one.name}/pgd-{one.protocol.pgd.steps}-rescaled": _rescaled(best, one, batches) for one in cases}
    return Result(
        n=len(x),
        rates=rates,
        values=values,
        audits=audits,
        settings={case.name: case.settings("pgd") for case in cases},
        arrays={f"{kind}/{name}": column for kind, found in seen.items() for name, column in found.items()}
        | _pictures(best, case, kinds["adversarial"][0], batches)
        | {f"reliability/{name}": column for name, column in table.items()}
        | {"label": y.cpu().numpy()},
    )


def _accuracies(
    models: Mapping[str, nn.Module], cases: list[Case], batches: Batches, progress: Progress
) -> tuple[dict[str, Rate], dict[str, Attacked]]:
    """Clean and PGD-20 accuracy of every checkpoint under every protocol."""
    rates: dict[str, Rate] = {}
    attacks: dict[str, Attacked] = {}
    for checkpoint, model in models.items():
        suffix = "" if checkpoint == "best" else f"-{checkpoint}"
        for case in cases:
            rates[f"{case.name}/clean{suffix}"] = rate(correct(model, case.x, case.y, batches))
            attack, generator = _pgd(case, batches, progress), stream(case.protocol.seed, "pgd")
            name = f"{case.name}/pgd-{attack.steps}{suffix}"
            attacks[name] = attack_case(name, model, case.x, case.y, attack, generator, everyone=True)
            rates[name] = rate(attacks[name].robust)
            progress.advance(0, robust=rates[name].accuracy)
    return rates, attacks


def _rescaled(model: nn.Module, case: Case, batches: Batches) -> Rate:
    """PGD-20 on logits that are divided by their mean margin on clean images, whose cross-entropy cannot round to 0.

    The scale of the logits decides no prediction, so what it hides from the attack is no robustness.
    """
    scale = margin(logits_of(model, case.x, batches), case.y).abs().mean().clamp_min(1e-12)

    def loss(logits: Tensor, y: Tensor) -> Tensor:
        return cross_entropy(logits / scale, y)

    with Progress(case.protocol.pgd.steps, f"{case.name} rescaled", unit="step") as progress:
        attack, generator = _pgd(case, batches, progress, loss), stream(case.protocol.seed, "pgd")
        return rate(attack_case("pgd-rescaled", model, case.x, case.y, attack, generator, everyone=True).robust)


def _pgd(case: Case, batches: Batches, progress: Progress, loss: Loss = cross_entropy) -> PGD:
    recipe, radius = case.protocol.pgd, case.radius
    return PGD(
        eps=radius,
        step=recipe.step * radius,
        steps=recipe.steps,
        random_start=True,
        loss=loss,
        batches=batches,
        tick=progress.advance,
    )


Kinds = dict[str, tuple[Tensor, Tensor | None]]
"""Images and labels by kind."""


def _trained_with(model: nn.Module, case: Case, adversary: Adversary, batches: Batches) -> Callable[[], Tensor]:
    """The training adversary; it draws on the images' device, batch by batch."""
    generator = torch.Generator(case.x.device).manual_seed(case.protocol.seed)

    def craft(images: Tensor, labels: Tensor) -> tuple[Tensor, ...]:
        return (adversary.craft(model, images, labels, generator),)

    return lambda: batches.map(craft, case.x, case.y)[0]


def _targeted(model: nn.Module, case: Case, batches: Batches, progress: Progress) -> Callable[[], Tensor]:
    """PGD towards the likeliest wrong class."""
    logits = logits_of(model, case.x, batches)
    targets = logits.scatter(1, case.y[:, None], -torch.inf).argmax(1)
    attack = _pgd(case, batches, progress, towards)
    return partial(attack, model, case.x, targets, stream(case.protocol.seed, "targeted"))


def _look(model: nn.Module, x: Tensor, y: Tensor | None, batches: Batches) -> Seen:
    logits = logits_of(model, x, batches)
    found = {"energy": energy(logits)}
    if y is not None:
        found |= {"label-energy": energy(logits, y), "margin": -margin(logits, y)}
    return {name: column.cpu().numpy() for name, column in found.items()}


def _energies(seen: Mapping[str, Seen]) -> dict[str, float]:
    """``energy/<kind>/mean``, ``/std`` and ``/label-mean``, ``energy/gap-<kind>``, ``margin/<kind>/mean``."""
    values: dict[str, float] = {}
    for kind, found in seen.items():
        energies = found["energy"]
        values |= {f"energy/{kind}/mean": float(energies.mean()), f"energy/{kind}/std": float(energies.std())}
        if "margin" in found:
            values[f"energy/{kind}/label-mean"] = float(found["label-energy"].mean())
            values[f"margin/{kind}/mean"] = float(found["margin"].mean())
        if kind != "clean":
            values[f"energy/gap-{kind}"] = distributions.gap(energies, seen["clean"]["energy"])
    return values


def _alignment(seen: Mapping[str, Seen]) -> dict[str, float]:
    """``energy/overlap-<kind>`` with the clean images, ``-adversarial-<samples>`` and ``-all`` three.

    ``-all`` takes the replay buffer as samples, ``-all-<how>`` the other ones.

    Bins span the compared sets only: generated images far away must not widen the bins in which clean
    and adversarial ones are told apart, or a poor generator would look better aligned.
    """
    energies = {kind: found["energy"] for kind, found in seen.items()}
    clean = energies.pop("clean")
    values = {f"energy/overlap-{kind}": distributions.overlap(found, clean) for kind, found in energies.items()}
    for kind in (kind for kind in energies if kind.startswith(GENERATED)):
        both = (energies["adversarial"], energies[kind])
        values[f"energy/overlap-adversarial-{kind}"] = distributions.overlap(*both)
        values[f"energy/overlap-all{kind.removeprefix(GENERATED)}"] = distributions.overlap(clean, *both)
    return values


def _reliability(model: nn.Module, x: Tensor, y: Tensor, batches: Batches) -> dict[str, np.ndarray]:
    confidence, predicted = logits_of(model, x, batches).softmax(1).max(1)
    return distributions.reliability(confidence.cpu().numpy(), (predicted == y).cpu().numpy())


def _pictures(model: nn.Module, case: Case, x_adv: Tensor, batches: Batches) -> dict[str, np.ndarray]:
    """``pictures/clean`` and ``-/adversarial`` uint8 (n,C,H,W) in 0..255, labels and predictions (n,)."""
    found = [(case.y == label).nonzero().squeeze(1)[:PICTURED] for label in case.y.unique()]
    chosen = torch.cat(found)
    images = {"clean": case.x[chosen], "adversarial": x_adv[chosen]}
    arrays = {f"pictures/{name}": (x * 255.0).round().to(torch.uint8).cpu().numpy() for name, x in images.items()}
    for name, x in images.items():
        arrays[f"pictures/{name}-prediction"] = logits_of(model, x, batches).argmax(1).cpu().numpy()
    return arrays | {"pictures/label": case.y[chosen].cpu().numpy()}
