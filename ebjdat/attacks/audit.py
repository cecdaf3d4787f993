"""An attack is never trusted: what it did to the images and to the model is measured.

A broken property raises :class:`~ebjdat.errors.AuditError` with the count and the worst case; the
model is restored first, also when the attack itself raises. The habit is foolbox's (Rauber et al.,
arXiv:1707.04131).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ebjdat.attacks.batches import Batches, logits_of
from ebjdat.errors import AuditError

TOLERANCE = 1e-6
"""Rounding allowed on distances and ranges, pixel units."""
TIE = 1e-4
"""Two logits closer than this may swap places between batch sizes."""
IDLE_SHARE = 0.1
"""An attack that breaks less than this share of what its peer breaks is broken itself."""


@dataclass(frozen=True, slots=True)
class Audit:
    """Measured properties of one attack's images: how many, radius and largest |x_adv - x| (pixel units), range of
    x_adv, images with NaN, images that differ from the original.
    """

    images: int
    eps: float
    distance: float
    low: float
    high: float
    nan: int
    changed: int

    def plain(self) -> dict[str, Any]:
        """For a record."""
        return asdict(self)


def check_images(attack: str, x: Tensor, x_adv: Tensor, eps: float) -> Audit:
    """Measure adversarial images x_adv against x, both (N,C,H,W) in [0, 1], and the radius in pixel units.

    Raises:
        AuditError: x or x_adv leaves [0, 1], x_adv leaves the ball, has another shape or type, or holds NaN.
    """
    if x_adv.shape != x.shape or x_adv.dtype != x.dtype:
        raise AuditError(
            f"{attack}: expected images {tuple(x.shape)} of {x.dtype}, got {tuple(x_adv.shape)} of {x_adv.dtype}"
        )
    if not len(x):
        return Audit(0, eps, 0.0, 0.0, 0.0, 0, 0)
    _check_range(f"{attack}: original", x)
    nan = int(x_adv.isnan().flatten(1).any(1).sum())
    if nan:
        raise AuditError(
            f"{attack}: {nan} of {len(x)} adversarial images hold NaN, the attack divides by zero or overflows"
        )
    _check_range(f"{attack}: adversarial", x_adv)
    distance = (x_adv - x).abs().flatten(1).amax(1)
    outside = int((distance > eps + TOLERANCE).sum())
    worst = float(distance.max())
    if outside:
        raise AuditError(
            f"{attack}: {outside} of {len(x)} images leave the ball of radius {eps:.6g} (pixel units), "
            f"the worst is {worst:.6g} away: the attack does not project, or works in another scale"
        )
    changed = int((distance > 0).sum())
    return Audit(len(x), eps, worst, float(x_adv.min()), float(x_adv.max()), nan, changed)


def _check_range(what: str, x: Tensor) -> None:
    outside = int(((x < -TOLERANCE) | (x > 1.0 + TOLERANCE)).flatten(1).any(1).sum())
    if outside:
        raise AuditError(
            f"{what}: {outside} of {len(x)} images leave [0, 1], the range is [{x.min():.4g}, {x.max():.4g}]: "
            "images and attacks work in pixel units, the model maps to [-1, 1] itself"
        )


@contextmanager
def guarded(attack: str, model: nn.Module) -> Iterator[None]:
    """Run an attack inside: the model is in eval mode, without parameter gradients, and must stay so.

    On leaving, mode, ``requires_grad``, parameters and running statistics are as before the block.

    Raises:
        AuditError: the block changed one of them, or called the model in training mode; not raised over
            an exception of the block.
    """
    modes = [(module, module.training) for module in model.modules()]
    gradients = [(parameter, parameter.requires_grad) for parameter in model.parameters()]
    model.eval().requires_grad_(False)
    before = {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}
    passes: list[bool] = []  # per forward pass whether it ran in training mode, which mixes the images of a batch
    hook = model.register_forward_pre_hook(lambda module, _: passes.append(module.training))
    try:
        yield
        _check_model(attack, model, before, sum(passes))
    finally:
        hook.remove()
        _restore(model, before)
        for module, training in modes:
            module.training = training
        for parameter, wanted in gradients:
            parameter.requires_grad_(wanted)


def _check_model(attack: str, model: nn.Module, before: dict[str, Tensor], trained: int) -> None:
    """Name the first broken property; ``trained``: forward passes in training mode."""
    changed = {name: _difference(tensor, before[name]) for name, tensor in model.state_dict().items()}
    changed = {name: difference for name, difference in changed.items() if difference > 0}
    if changed:
        worst = max(changed, key=lambda name: changed[name])
        raise AuditError(
            f"{attack}: changed {len(changed)} parameters or running statistics of the model, "
            f"the worst is {worst} by {changed[worst]:.4g}: attack in eval mode"
        )
    training = sum(module.training for module in model.modules())
    if training or trained:
        raise AuditError(
            f"{attack}: {trained} forward passes ran in training mode, {training} modules were left in it: "
            "attack in eval mode"
        )
    learning = sum(parameter.requires_grad for parameter in model.parameters())
    if learning:
        raise AuditError(f"{attack}: switched gradients on for {learning} parameters: differentiate the input only")


def _difference(tensor: Tensor, before: Tensor) -> float:
    if torch.equal(tensor, before):
        return 0.0
    return float((tensor.double() - before.double()).abs().nan_to_num(torch.inf).max())


def _restore(model: nn.Module, before: dict[str, Tensor]) -> None:
    with torch.no_grad():
        for name, tensor in model.state_dict().items():
            if not torch.equal(tensor, before[name]):
                tensor.copy_(before[name])


def run_guarded(
    attack: str, model: nn.Module, x: Tensor, eps: float, craft: Callable[[], Tensor]
) -> tuple[Tensor, Audit]:
    """Adversarial images of ``craft()`` for x (N,C,H,W) with their audit.

    Raises:
        AuditError: see :func:`guarded` and :func:`check_images`.
    """
    with guarded(attack, model):
        x_adv = craft()
    return x_adv, check_images(attack, x, x_adv, eps)


def check_batch_independence(model: nn.Module, x: Tensor, sizes: Sequence[int] = (1, 7, 100)) -> float:
    """Predict images x (N,C,H,W) with several batch sizes; the largest difference of a logit.

    Raises:
        AuditError: a prediction depends on the batch size, as it does with batch statistics.
    """
    reference = logits_of(model, x, Batches(len(x)))
    top = reference.topk(2, dim=1).values
    clear = top[:, 0] - top[:, 1] > TIE
    largest = 0.0
    for size in sizes:
        logits = logits_of(model, x, Batches(size))
        difference = float((logits - reference).abs().max())
        largest = max(largest, difference)
        moved = int(((logits.argmax(1) != reference.argmax(1)) & clear).sum())
        if moved:
            raise AuditError(
                f"predictions of {moved} of {len(x)} images change with the batch size ({size} against {len(x)}), "
                f"the largest difference of a logit is {difference:.4g}: the model is not in eval mode, or is random"
            )
    return largest


def check_effect(attack: str, robust: Tensor, peer: str, peer_robust: Tensor, right: Tensor) -> None:
    """Compare two white-box attacks by the images that withstand each, and those that were right before; (N,) bool.

    This catches what the images cannot show: an attack whose failures are returned unchanged, such as FAB with the
    wrong clipping range.

    Raises:
        AuditError: the peer breaks 10 images or more and the attack less than a tenth of them.
    """
    broken, expected = int((right & ~robust).sum()), int((right & ~peer_robust).sum())
    if expected >= 10 and broken < IDLE_SHARE * expected:
        raise AuditError(
            f"{attack}: breaks {broken} of {int(right.sum())} images, {peer} breaks {expected} at the same radius: "
            "the attack finds almost nothing, check its clipping range and units"
        )
