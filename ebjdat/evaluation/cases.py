"""The images that a protocol attacks, and what all evaluations share: seeds, audited attacks, flags."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ebjdat.attacks.apgd import APGD
from ebjdat.attacks.audit import Audit, check_images, run_guarded
from ebjdat.attacks.batches import correct
from ebjdat.attacks.linf import SignAttack
from ebjdat.protocols import PROTOCOLS, Protocol
from ebjdat.seeds import derive
from ebjdat.statistics import Rate


@dataclass(frozen=True, eq=False)
class Case:
    """One protocol on one model's images.

    Attributes:
        x: (N,C,H,W) float32 in [0, 1], with the protocol's input noise: ball, audit and clean accuracy refer to them.
        y: (N,) int64.
        radius, noise: of the ball, and standard deviation of the noise in x; pixel units.
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


def make_cases(x: Tensor, y: Tensor, nominal: float, trained_with: float = 0.0) -> list[Case]:
    """Both protocols, ``standard`` first.

    Args:
        x, y: images (N,C,H,W) in [0, 1], labels (N,).
        nominal: the profile's radius, pixel units.
        trained_with: noise of the model's labelled images in training, network scale.
    """
    return [make_case(protocol, x, y, nominal, protocol.input_noise(trained_with)) for protocol in PROTOCOLS.values()]


def make_case(protocol: Protocol, x: Tensor, y: Tensor, nominal: float, noise: float) -> Case:
    """One protocol on images with input noise of standard deviation ``noise``, pixel units."""
    return Case(protocol, noisy(x, noise, protocol.seed) if noise else x, y, protocol.radius(nominal), noise)


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
    """Images (N,) bool correct before and after an attack; images (N,C,H,W), as they were where not attacked; the audit
    of those attacked.
    """

    robust: Tensor
    x_adv: Tensor
    audit: Audit


def attack_case(
    label: str,
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    attack: SignAttack | APGD,
    generator: torch.Generator,
    *,
    everyone: bool = False,
) -> Attacked:
    """Attack the images that the model classifies correctly; robust accuracy counts all of them.

    Args:
        label: for messages.
        x, y: images (N,C,H,W) in [0, 1], labels (N,).
        attack: with one radius for all images; its start is drawn for all, whichever are attacked.
        everyone: attack misclassified images too, where the images themselves are looked at.

    Raises:
        AuditError: see :mod:`ebjdat.attacks.audit`.
    """
    eps = float(attack.eps)
    start = attack.start(x, generator)
    robust = correct(model, x, y, attack.batches)
    chosen = torch.ones_like(robust) if everyone else robust.clone()
    wanted, labels, begin = x[chosen], y[chosen], start[chosen]
    if not len(wanted):
        return Attacked(robust, x, check_images(label, wanted, wanted, eps))
    crafted, audit = run_guarded(label, model, wanted, eps, lambda: attack(model, wanted, labels, generator, begin))
    x_adv = x.clone()
    x_adv[chosen] = crafted
    robust[chosen] &= correct(model, crafted, labels, attack.batches)
    return Attacked(robust, x_adv, audit)


def rate(flags: Tensor) -> Rate:
    """From (N,) bool."""
    return Rate.of(flags.cpu().numpy())
