"""Does the harness work? Attacks that must succeed, run with the same code as every other number.

``self-test/planted``: two classes told apart by a plane, where the images with an adversarial example are
known exactly; the share of them that APGD-CE finds. ``self-test/undefended``: accuracy of the undefended
network at twice the nominal radius, where nothing should be left.
"""

import torch
from torch import Tensor, nn

from ebjdat.attacks.apgd import APGD
from ebjdat.attacks.batches import Batches
from ebjdat.evaluation.cases import attack_case, stream

STEPS = 100
WIDE = 2.0
"""Radius of ``undefended`` as a multiple of the nominal one."""


class Plane(nn.Module):
    """Logits +-s and eight that never win, s the side of a plane through ``centre`` on which x (N,C,H,W) lies."""

    centre: Tensor

    def __init__(self, centre: Tensor, generator: torch.Generator) -> None:
        super().__init__()
        self.register_buffer("centre", centre)
        self.normal = nn.Parameter(torch.randn(centre.shape, generator=generator).to(centre.device))

    def score(self, x: Tensor) -> Tensor:
        """s, (N,); positive on one side, negative on the other."""
        return ((x - self.centre) * self.normal).sum((1, 2, 3))

    def forward(self, x: Tensor) -> Tensor:
        """Logits (N,10)."""
        score = self.score(x)
        return torch.stack([score, -score, *[torch.full_like(score, -1e3)] * 8], dim=1)

    @torch.no_grad()
    def breakable(self, x: Tensor, eps: float) -> Tensor:
        """Whether a point of [0, 1] within eps of x lies on the other side, (N,) bool."""
        side = self.score(x).sign()[:, None, None, None]
        return self.score((x - eps * side * self.normal.sign()).clamp(0.0, 1.0)) * side.flatten() < 0


def planted(x: Tensor, radius: float, seed: int, batches: Batches) -> float | None:
    """Share of the existing adversarial examples that APGD-CE finds; None where none exists."""
    model = Plane(x.mean(0), stream(seed, "plane")).to(x.device)
    exists = model.breakable(x, radius)
    if not bool(exists.any()):
        return None
    robust = _apgd("self-test/planted", model, x, model(x).argmax(1), radius, seed, batches)
    return float((~robust[exists]).float().mean())


def undefended(model: nn.Module, x: Tensor, y: Tensor, nominal: float, seed: int, batches: Batches) -> float:
    """Accuracy under APGD-CE at :data:`WIDE` times the nominal radius (at most 1)."""
    radius = min(1.0, WIDE * nominal)
    return float(_apgd("self-test/undefended", model, x, y, radius, seed, batches).float().mean())


def _apgd(label: str, model: nn.Module, x: Tensor, y: Tensor, radius: float, seed: int, batches: Batches) -> Tensor:
    """Robust images, (N,) bool."""
    attack = APGD(eps=radius, steps=STEPS, batches=batches)
    return attack_case(label, model, x, y, attack, stream(seed, "self-test")).robust
