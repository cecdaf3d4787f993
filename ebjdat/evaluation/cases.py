"""The images that a protocol attacks, and what all evaluations share: seeds, audited attacks, flags."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ebjdat.attacks.audit import Audit, check_images, run_guarded
from ebjdat.attacks.batches import Batches, correct
from ebjdat.evaluation.statistics import Rate
from ebjdat.protocols import PROTOCOLS, Protocol
from ebjdat.training.streams import derive


@dataclass(frozen=True, eq=False)
class Case:
    """One protocol on one model's images.

    Attributes:
        protocol: what is run.
        x: (N,C,H,W) float32 in [0, 1], the images that ball, audit and clean accuracy refer to: with the
            protocol's input noise already in them.
        y: (N,) int64.
        radius: pixel units.
        noise: standard deviation of the noise in x, pixel units.
    """

    protocol: Protocol
    x: Tensor
    y: Tensor
    radius: float
    noise: float

    @property
    def name(self) -> str:
        """The protocol's name, first part of every metric."""
        return self.protocol.name

    def settings(self, *tables: str) -> dict[str, Any]:
        """The protocol's resolved cells for a record; ``tables`` are names of its parts."""
        cells = {name: asdict(getattr(self.protocol, name)) for name in tables}
        return {"radius": self.radius, "input_noise": self.noise, "seed": self.protocol.seed} | cells


def make_cases(x: Tensor, y: Tensor, nominal: float, variant: str | None) -> list[Case]:
    """Both protocols on images x (N,C,H,W) in [0, 1], labels y; ``nominal`` is the profile's radius."""
    cases = []
    for protocol in PROTOCOLS.values():
        noise = protocol.input_noise(variant)
        images = noisy(x, noise, protocol.seed) if noise else x
        cases.append(Case(protocol, images, y, protocol.radius(nominal), noise))
    return cases


def opened(
    x: Tensor, y: Tensor, nominal: float, variant: str | None, batches: Batches | None
) -> tuple[list[Case], Batches]:
    """What every evaluation of attacks of our own begins with: the cases, and how images are batched.

    Args:
        x, y: images (N,C,H,W) in [0, 1], labels (N,).
        nominal: the profile's radius, pixel units.
        variant: JEM variant of the model, for the protocol's input noise; None for a baseline.
        batches: the default size if None.
    """
    return make_cases(x, y, nominal, variant), batches or Batches()


def noisy(x: Tensor, sigma: float, seed: int) -> Tensor:
    """x plus Gaussian noise of sigma (pixel units), clipped to [0, 1].

    Image i gets the same noise whatever the number of images, so stages agree about their first n.
    """
    generator = stream(seed, "input-noise")
    noise = torch.stack([torch.randn(x.shape[1:], generator=generator) for _ in range(len(x))])
    return (x + sigma * noise.to(x.device)).clamp(0.0, 1.0)


def stream(seed: int, *parts: object) -> torch.Generator:
    """A generator of its own for one purpose, on the CPU so that every device sees the same numbers."""
    return torch.Generator().manual_seed(derive(seed, "evaluation", *parts))


@dataclass(frozen=True)
class Attacked:
    """Outcome of one attack.

    Attributes:
        robust: (N,) bool, correct before and after.
        x_adv: (N,C,H,W); images that were not attacked are left as they are.
        audit: of the images that were attacked.
    """

    robust: Tensor
    x_adv: Tensor
    audit: Audit


def attack_case(
    label: str,
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    eps: float,
    craft: Callable[[Tensor, Tensor, Tensor], Tensor],
    *,
    start: Tensor | None = None,
    judge: nn.Module | None = None,
    everyone: bool = False,
    batches: Batches | None = None,
) -> Attacked:
    """Attack the images that ``judge`` classifies correctly; robust accuracy counts all of them.

    Args:
        label: for messages.
        model: what is attacked, audited for side effects.
        x, y: images (N,C,H,W) in [0, 1], labels (N,).
        eps: radius of the audit, pixel units.
        craft: (x, y, start) -> adversarial images.
        start: first iterates for all images, so that they do not depend on which are attacked; x if None.
        judge: whose predictions count; the attacked model if None.
        everyone: attack misclassified images too, where the images themselves are looked at.

    Raises:
        AuditError: see :mod:`ebjdat.attacks.audit`.
    """
    judge = judge or model
    right = correct(judge, x, y, batches)
    chosen = torch.ones_like(right) if everyone else right
    x_adv, robust = x.clone(), right.clone()
    if not bool(chosen.any()):
        return Attacked(robust, x_adv, check_images(label, x[chosen], x[chosen], eps))
    wanted, labels, begin = x[chosen], y[chosen], (x if start is None else start)[chosen]
    crafted, audit = run_guarded(label, model, wanted, eps, lambda: craft(wanted, labels, begin))
    x_adv[chosen] = crafted
    robust[chosen] &= correct(judge, crafted, labels, batches)
    return Attacked(robust, x_adv, audit)


def arrays_of(flags: Mapping[str, Tensor], y: Tensor) -> dict[str, np.ndarray]:
    """Per-image results (N,) by metric, and the labels, for the file beside the record."""
    return {name: found.cpu().numpy() for name, found in flags.items()} | {"label": y.cpu().numpy()}


def rate(flags: Tensor) -> Rate:
    """A rate from (N,) bool."""
    return Rate.of(flags.cpu().numpy())
