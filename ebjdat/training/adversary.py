"""The training adversary: sign steps in an L-infinity ball, in eval mode, without a graph.

The inner problem of EB-JDAT ("Your Classifier Can Do More", arXiv:2505.19459) under each reading of its adversarial
term. The perceptual term is the squared distance of the L2-normalised logits of x and x_adv, summed over samples.

    energy          climb E(x_adv, y), that is lower f(x_adv)[y], plus the perceptual term
    cross_entropy   raise CE(f(x_adv), y); per sample 0.5 CE + 1.0 perceptual, the weights that a mean over chunks of
                    two beside a sum give in the released code at 327ea16
    committed       raise f(x_adv)[y] plus the perceptual term, as committed at 327ea16
    none            as cross_entropy
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from ebjdat.model.compute import input_gradients_only
from ebjdat.model.energy import EnergyModel
from ebjdat.model.wideresnet import statistics
from ebjdat.training.streams import uniform


def perceptual(logits: Tensor, reference: Tensor) -> Tensor:
    """Sum over samples of || f(x)/|f(x)| - f(x_adv)/|f(x_adv)| ||^2; a scalar."""
    return (F.normalize(logits, dim=1) - F.normalize(reference, dim=1)).square().sum()


def inner_objective(reading: str, logits: Tensor, reference: Tensor, y: Tensor) -> Tensor:
    """What the adversary raises under ``reading``, summed over samples; see the module."""
    feature = perceptual(logits, reference)
    if reading == "energy":
        return feature - logits.gather(1, y[:, None]).sum()
    if reading == "committed":
        return feature + logits.gather(1, y[:, None]).sum()
    assert reading in ("cross_entropy", "none"), reading
    return feature + 0.5 * F.cross_entropy(logits, y, reduction="sum")


def project(x_adv: Tensor, x: Tensor, eps: float) -> Tensor:
    """The closest point to x_adv in the eps ball around x and in [0, 1]."""
    return torch.minimum(torch.maximum(x_adv, x - eps), x + eps).clamp(0.0, 1.0)


def sign_ascent(
    model: EnergyModel,
    objective: Callable[[Tensor], Tensor],
    x: Tensor,
    start: Tensor,
    *,
    eps: float,
    step: float,
    steps: int,
    project_to_ball: bool = True,
) -> Tensor:
    """Raise ``objective(logits)`` by ``steps`` sign steps of size ``step`` (pixel units).

    Running statistics are used and left untouched. Labelled images may carry noise that leaves [0, 1]; the result is in
    [0, 1], and in the ball around the clamped image.
    """
    x = x.clamp(0.0, 1.0)
    x_adv = project(start, x, eps) if project_to_ball else start.clamp(0.0, 1.0)
    with statistics(model, "running"), input_gradients_only(model):
        for _ in range(steps):
            x_adv = x_adv.detach().requires_grad_()
            (gradient,) = torch.autograd.grad(objective(model(x_adv)), x_adv)
            x_adv = x_adv.detach() + step * gradient.sign()
            x_adv = project(x_adv, x, eps) if project_to_ball else x_adv.clamp(0.0, 1.0)
    return x_adv.detach()


def pgd(model: EnergyModel, x: Tensor, y: Tensor, start: Tensor, eps: float, steps: int) -> Tensor:
    """Raise the cross-entropy from ``start`` by steps of eps / 4; images (N,C,H,W) in [0, 1]."""

    def loss(logits: Tensor) -> Tensor:
        return F.cross_entropy(logits, y, reduction="sum")

    return sign_ascent(model, loss, x, start, eps=eps, step=eps / 4, steps=steps)


def uniform_start(x: Tensor, eps: float, generator: torch.Generator) -> Tensor:
    """x + U(-eps, eps), not yet projected."""
    return x + eps * (2.0 * uniform(x, generator) - 1.0)
