"""Evaluation protocols as data: what every cell of Tables 1 to 3 runs.

``standard`` attacks images in [0, 1] at the profile's nominal radius r with the usual strength.
``released`` follows the released code of EB-JDAT at 327ea16, which attacks images that are already in
[-1, 1] with an eps of 8/255 in that scale, that is half of every radius in pixel units. Its PGD-20 steps
an eighth of that radius. Its AutoAttack takes 20 steps, and its FAB clamps those images to [0, 1], which
leaves all of them as they were; that Table 1 runs each attack alone is inferred from the supplement.

Radii and noises are in pixel units. A protocol is printed with every number that it produced.
"""

from dataclasses import dataclass
from typing import Literal

AutoAttackName = Literal["apgd-ce", "apgd-dlr", "apgd-t", "fab-t", "square"]
TransferName = Literal["pgd", "mi-fgsm", "vmi-fgsm", "vni-fgsm"]

REVISIONS = {
    "train": 2,
    "clean": 1,
    "autoattack": 1,
    "craft": 1,
    "transfer": 1,
    "sweep": 1,
    "eot": 1,
    "generate": 1,
    "masking": 1,
}
"""Raised by hand, in the commit that moves a stage's numbers: a record of an older revision is not shown any longer.

``tests/test_golden.py`` runs a tiny model through every stage and names the entry to raise when numbers move.
"""

CODE_NOISE = 0.015
"""Input noise of the released code in pixel units: sigma 0.03 of the network's [-1, 1] scale."""


@dataclass(frozen=True, slots=True, kw_only=True)
class AutoAttackCell:
    """One attack of AutoAttack, run alone (Table 1)."""

    attack: AutoAttackName
    steps: int
    """Iterations; queries for Square."""
    targets: int = 0
    """Target classes of a targeted attack; 0: untargeted."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Table1:
    """AutoAttack: each attack alone, and the ``standard`` cascade where asked for."""

    alone: tuple[AutoAttackCell, ...]
    cascade: bool
    without_effect: tuple[AutoAttackName, ...] = ()
    """Attacks that change no image in the code that the protocol follows: the union leaves them out."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Iterated:
    """Sign steps on the cross-entropy."""

    steps: int
    step: float
    """Size of a step as a fraction of the protocol's radius r * scale."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Transfer:
    """Attacks crafted on a surrogate (Table 2), all with the same number and size of steps."""

    attacks: tuple[TransferName, ...]
    steps: int
    step: float
    """Fraction of the protocol's radius."""
    neighbours: tuple[int, ...]
    """Images sampled around the iterate by VMI and VNI (the N of their paper)."""
    decay: float
    beta: float
    """Neighbours are uniform within +-beta * radius."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Sweep:
    """APGD-CE over radius and iterations (Table 3), one restart, one seed."""

    radii: tuple[float, ...]
    """Multiples of the protocol's radius."""
    radii_steps: tuple[int, ...]
    """Iterations at each of those radii."""
    iterations: tuple[int, ...]
    """Iterations at the protocol's radius."""
    unbounded: float
    """A radius that contains every image, pixel units."""


@dataclass(frozen=True, slots=True, kw_only=True)
class EotCell:
    """EOT-PGD (Table 3) with ``samples`` gradients per step, at every radius."""

    noise: Literal["plain", "noise"]
    """plain: the model as it is, which has no randomness; noise: Gaussian input noise inside the model."""
    samples: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Eot:
    """EOT-PGD from a random start (Table 3)."""

    radii: tuple[float, ...]
    """Multiples of the protocol's radius."""
    steps: int
    step: float
    """Fraction of the protocol's radius, the same at every radius."""
    cells: tuple[EotCell, ...]
    sigma: float
    """Noise inside the model, pixel units."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Protocol:
    """Everything that an adversarial evaluation depends on besides model, images and nominal radius."""

    name: str
    revision: int = 1
    """Raised by hand where its numbers move and those of the other protocol do not: its older cells are not shown."""
    scale: float
    """Radius of the protocol as a fraction of the profile's nominal radius."""
    seed: int
    """Of random starts, input noise and AutoAttack, whatever the seed of training."""
    noisy: bool
    """Whether images get one fixed draw of the noise that labelled images had in training, clipped to [0, 1]."""
    pgd: Iterated
    table1: Table1
    transfer: Transfer
    sweep: Sweep
    eot: Eot

    def radius(self, nominal: float) -> float:
        """The protocol's radius in pixel units."""
        return self.scale * nominal

    def input_noise(self, trained_with: float) -> float:
        """Standard deviation of the input noise, pixel units, for a model whose labelled images had ``trained_with`` in
        the network's [-1, 1] scale (0: none).
        """
        return trained_with / 2 if self.noisy else 0.0


def as_fraction(radius: float) -> str:
    """A radius in pixel units as people write it: ``8/255``, ``4.5/255``."""
    return f"{round(255 * radius, 3):g}/255"


_RADII = (0.5, 1.0, 2.0, 4.0)
_TRANSFER: tuple[TransferName, ...] = ("pgd", "mi-fgsm", "vmi-fgsm", "vni-fgsm")

STANDARD = Protocol(
    name="standard",
    scale=1.0,
    seed=0,
    noisy=False,
    pgd=Iterated(steps=20, step=1 / 4),
    table1=Table1(
        alone=(
            AutoAttackCell(attack="apgd-ce", steps=100),
            AutoAttackCell(attack="apgd-dlr", steps=100),
            AutoAttackCell(attack="apgd-t", steps=100, targets=9),
            AutoAttackCell(attack="fab-t", steps=100, targets=9),
            AutoAttackCell(attack="square", steps=5000),
        ),
        cascade=True,
    ),
    transfer=Transfer(attacks=_TRANSFER, steps=10, step=1 / 4, neighbours=(5, 20), decay=1.0, beta=1.5),
    sweep=Sweep(radii=_RADII, radii_steps=(20, 100), iterations=(1, 10, 20, 50), unbounded=1.0),
    eot=Eot(
        radii=_RADII,
        steps=20,
        step=1 / 8,
        cells=(
            EotCell(noise="plain", samples=2),
            EotCell(noise="noise", samples=2),
            EotCell(noise="noise", samples=20),
        ),
        sigma=CODE_NOISE,
    ),
)
"""Pixel units throughout, the usual strength; comparable with the literature."""

RELEASED = Protocol(
    name="released",
    revision=2,
    scale=0.5,
    seed=0,
    noisy=True,
    pgd=Iterated(steps=20, step=1 / 8),
    table1=Table1(
        alone=(
            AutoAttackCell(attack="apgd-ce", steps=20),
            AutoAttackCell(attack="apgd-dlr", steps=20),
            AutoAttackCell(attack="fab-t", steps=20, targets=9),
            AutoAttackCell(attack="square", steps=5000),
        ),
        cascade=False,
        without_effect=("fab-t",),
    ),
    transfer=Transfer(attacks=_TRANSFER, steps=10, step=1 / 4, neighbours=(5,), decay=1.0, beta=1.5),
    sweep=Sweep(radii=_RADII, radii_steps=(20,), iterations=(1, 10, 20, 50), unbounded=1.0),
    eot=Eot(radii=_RADII, steps=20, step=1 / 8, cells=(EotCell(noise="plain", samples=2),), sigma=CODE_NOISE),
)
"""Half of every radius, as the released code at 327ea16 computes it; see the module for what is inferred."""

PROTOCOLS: dict[str, Protocol] = {protocol.name: protocol for protocol in (STANDARD, RELEASED)}
