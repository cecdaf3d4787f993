"""Auto-PGD (Croce & Hein, ICML 2020, arXiv:2003.01690) for L-infinity, with expectation over noise.

Momentum steps whose size starts at 2 eps and is halved at checkpoints, image by image, when the loss
rose in too few of the steps since the last one, or when neither size nor best loss has changed; the
image then goes on from its best point. One restart. Without noise it follows the authors' code step by
step (AutoAttack); their EOT judges success and loss by the last sample, this one by the mean.

Each image walks on its own, so images that are broken already may be dropped: that changes the time,
not which images break. One step from a random start is 2 eps long: with one iteration the result is a
corner of the ball around the image, not FGSM.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, fields, replace

import torch
from torch import Tensor, nn

from ebjdat.attacks.batches import Batches
from ebjdat.attacks.linf import Loss, Radius, cross_entropy, evaluation, nothing, uniform_like

MOMENTUM = 0.75
RHO = 0.75
"""Least share of rising steps between two checkpoints that keeps the step size."""


@dataclass(frozen=True)
class Found:
    """What APGD found, per image.

    Attributes:
        x_adv: (N,C,H,W): a misclassified iterate where there was one, otherwise the iterate of highest loss.
        broken: (N,) bool, whether some iterate was misclassified.
        loss: (N,) highest loss seen; with dropping, seen until the image broke.
    """

    x_adv: Tensor
    broken: Tensor
    loss: Tensor


def checkpoints(steps: int) -> dict[int, int]:
    """Iterations (counted from 1) after which the step size is judged, with the length of each period."""
    period, shortest, shrink = (max(int(share * steps), 1) for share in (0.22, 0.06, 0.03))
    periods, at = {}, period
    while at <= steps:
        periods[at] = period
        period = max(period - shrink, shortest)
        at += period
    return periods


@dataclass(frozen=True, kw_only=True, eq=False)
class _Walk:
    """State of the images still attacked; every tensor has them along the first axis."""

    place: Tensor
    y: Tensor
    low: Tensor
    high: Tensor
    x: Tensor
    x_before: Tensor
    gradient: Tensor
    loss: Tensor
    step: Tensor
    x_best: Tensor
    gradient_best: Tensor
    loss_best: Tensor
    loss_judged: Tensor
    halved: Tensor
    rises: Tensor

    def only(self, keep: Tensor) -> _Walk:
        return _Walk(**{f.name: getattr(self, f.name)[keep] for f in fields(self)})


@dataclass(frozen=True, kw_only=True, eq=False)
class APGD:
    """See the module.

    Args:
        eps: radius in pixel units, one number or (N,1,1,1).
        steps: iterations.
        samples: gradients per step (EOT); 1 for a model without randomness.
        loss: per-image loss that is raised.
        drop_broken: stop attacking an image once an iterate is misclassified.
        tick: called after every iteration.
    """

    eps: Radius
    steps: int
    samples: int = 1
    loss: Loss = cross_entropy
    drop_broken: bool = True
    batches: Batches = field(default_factory=Batches)
    tick: Callable[[], object] = nothing

    def start(self, x: Tensor, generator: torch.Generator) -> Tensor:
        """A random point whose largest pixel difference is exactly eps; not yet clipped to [0, 1]."""
        noise = uniform_like(x, generator)
        largest = noise.abs().amax((1, 2, 3), keepdim=True)
        return x + self.eps * (noise / (largest + 1e-12))

    def __call__(
        self, model: nn.Module, x: Tensor, y: Tensor, generator: torch.Generator, start: Tensor | None = None
    ) -> Tensor:
        """Adversarial images (N,C,H,W); see :class:`Found`."""
        return self.run(model, x, y, generator, start).x_adv

    def run(
        self, model: nn.Module, x: Tensor, y: Tensor, generator: torch.Generator, start: Tensor | None = None
    ) -> Found:
        """Attack images x (N,C,H,W) in [0, 1] with labels y (N,) from ``start`` or a random start."""
        low, high = (x - self.eps).clamp_min(0.0), (x + self.eps).clamp_max(1.0)
        begin = (self.start(x, generator) if start is None else start).clamp(low, high)
        gradient, loss, right = self._evaluate(model, begin, y)
        found = Found(begin.clone(), ~right, loss.clone())
        walk = _begin(y, low, high, begin, gradient, loss, self.eps)
        periods = checkpoints(self.steps)
        for iteration in range(1, self.steps + 1):
            if self.drop_broken and bool(found.broken[walk.place].any()):
                walk = walk.only(~found.broken[walk.place])
            if len(walk.place):
                walk = self._advance(model, walk, found, momentum=MOMENTUM if iteration > 1 else 1.0)
            if iteration in periods:
                walk = _judge(walk, periods[iteration])
            self.tick()
        return found

    def _advance(self, model: nn.Module, walk: _Walk, found: Found, momentum: float) -> _Walk:
        """One step; ``found`` is updated in place."""
        ahead = (walk.x + walk.step * walk.gradient.sign()).clamp(walk.low, walk.high)
        ahead = walk.x + (ahead - walk.x) * momentum + (walk.x - walk.x_before) * (1.0 - momentum)
        ahead = ahead.clamp(walk.low, walk.high)
        gradient, loss, right = self._evaluate(model, ahead, walk.y)
        better = loss > walk.loss_best
        _note(found, walk.place, ahead, ~right, better, loss)
        return replace(
            walk,
            x=ahead,
            x_before=walk.x,
            gradient=gradient,
            loss=loss,
            rises=walk.rises + (loss > walk.loss),
            x_best=_where(better, ahead, walk.x_best),
            gradient_best=_where(better, gradient, walk.gradient_best),
            loss_best=torch.where(better, loss, walk.loss_best),
        )

    def _evaluate(self, model: nn.Module, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Gradient (N,C,H,W), loss (N,) and whether the label wins (N,), over the mean of the samples."""
        copies = x.expand(self.samples, *x.shape).flatten(0, 1)
        parts = self.batches.map(evaluation(model, self.loss), copies, y.repeat(self.samples))
        gradient, loss, logits = (part.unflatten(0, (self.samples, -1)).mean(0) for part in parts)
        return gradient, loss, logits.argmax(1) == y


def _begin(y: Tensor, low: Tensor, high: Tensor, x: Tensor, gradient: Tensor, loss: Tensor, eps: Radius) -> _Walk:
    return _Walk(
        place=torch.arange(len(x), device=x.device),
        y=y,
        low=low,
        high=high,
        x=x,
        x_before=x,
        gradient=gradient,
        # The authors' code compares the first loss with a row of zeros, not with the start's loss.
        loss=torch.zeros_like(loss),
        step=2.0 * eps * torch.ones_like(x[:, :1, :1, :1]),
        x_best=x,
        gradient_best=gradient,
        loss_best=loss,
        loss_judged=loss,
        halved=torch.ones_like(loss, dtype=torch.bool),
        rises=torch.zeros_like(loss),
    )


def _judge(walk: _Walk, period: int) -> _Walk:
    """Halve the step, and return to the best point, where the walk did not get on."""
    stuck = ~walk.halved & (walk.loss_judged >= walk.loss_best)
    halve = (walk.rises <= RHO * period) | stuck
    return replace(
        walk,
        x=_where(halve, walk.x_best, walk.x),
        gradient=_where(halve, walk.gradient_best, walk.gradient),
        step=_where(halve, walk.step / 2.0, walk.step),
        loss_judged=walk.loss_best,
        halved=halve,
        rises=torch.zeros_like(walk.rises),
    )


def _note(found: Found, place: Tensor, x: Tensor, broken: Tensor, better: Tensor, loss: Tensor) -> None:
    """Keep misclassified iterates, and the one of highest loss where there is none yet."""
    worth = broken | (better & ~found.broken[place])
    found.x_adv[place[worth]] = x[worth]
    found.broken[place[broken]] = True
    found.loss[place[better]] = loss[better]


def _where(chosen: Tensor, left: Tensor, right: Tensor) -> Tensor:
    return torch.where(chosen[:, None, None, None], left, right)
