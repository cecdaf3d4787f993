"""Langevin samplers of the JEM variants: negative samples x_gen from p(x) or p(x, y).

JEM: SGLD (Grathwohl et al., ICLR 2020, arXiv:1912.03263). JEM++: proximal YOPO-SGLD (Yang & Ji, ICCV 2021,
arXiv:2109.09032). SADAJEM: a few clamped steps from an informative start (Yang, Su & Ji, CVPR 2023, arXiv:2209.07959).

In the network's scale u = 2 x - 1 one outer step is

    u <- u - N * alpha * clamp(dE/du, -c, c) + sigma * noise

where N is the number of PYLD's inner steps. PYLD refreshes the gradient with respect to the output of the first layer
once per outer step and re-uses it N times; the first layer is affine, so its Jacobian is constant, all N inner
gradients are equal and their sum is exactly N times one. The chain rule for x in [0, 1] is applied here once: dE/du =
(dE/dx) / 2 and dx = du / 2.
"""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor

from ebjdat.config import Variant
from ebjdat.model.compute import input_gradients_only
from ebjdat.model.energy import EnergyModel
from ebjdat.model.wideresnet import statistics
from ebjdat.progress import Progress
from ebjdat.training.streams import normal


class Start(Protocol):
    """Where chains begin: draws (images (n,C,H,W) in [0, 1], labels (n,)) for optional labels."""

    def sample(self, n: int, generator: torch.Generator, labels: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """n start points and their labels."""


class UniformStart:
    """Independent uniform pixels, JEM's random initialisation."""

    def __init__(self, shape: tuple[int, ...], classes: int = 10) -> None:
        self.shape, self.classes = shape, classes

    def sample(self, n: int, generator: torch.Generator, labels: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Uniform images (n,C,H,W) in [0, 1]; labels are drawn uniformly unless given."""
        images = torch.rand(n, *self.shape, generator=generator, device=generator.device)
        if labels is None:
            labels = torch.randint(0, self.classes, (n,), generator=generator, device=generator.device)
        return images, labels


def chain_start(recipe: Variant, mixture: Start | None, shape: tuple[int, ...]) -> Start:
    """The recipe's own initialisation: uniform pixels, or the Gaussian mixture, which only then is needed."""
    if recipe.chain_start == "uniform":
        return UniformStart(shape)
    assert mixture is not None
    return mixture


def chain(
    model: EnergyModel,
    x: Tensor,
    variant: Variant,
    steps: int,
    generator: torch.Generator,
    labels: Tensor | None = None,
) -> Tensor:
    """Run ``steps`` outer steps from x (N,C,H,W); down E(x), or down E(x, y) where labels are given.

    Running statistics of the model are never updated. The result is detached; it is in [0, 1] when the variant clamps
    pixels.
    """
    length = 0.5 * variant.inner_steps * variant.step_size
    with statistics(model, variant.chain_statistics), input_gradients_only(model):
        for _ in range(steps):
            x = x.detach().requires_grad_()
            (gradient,) = torch.autograd.grad(model.energy(x, labels).sum(), x)
            gradient = 0.5 * gradient
            if variant.gradient_clamp is not None:
                gradient = gradient.clamp(-variant.gradient_clamp, variant.gradient_clamp)
            x = x.detach() - length * gradient
            if variant.chain_noise:
                x = x + 0.5 * variant.chain_noise * normal(x, generator)
            if variant.clamp_pixels:
                x = x.clamp(0.0, 1.0)
    return x.detach()


def generate(
    model: EnergyModel,
    variant: Variant,
    start: Start,
    n: int,
    steps: int,
    generator: torch.Generator,
    labels: Tensor | None = None,
    batch_size: int = 500,
    progress: Progress | None = None,
) -> Tensor:
    """n fresh samples (n,C,H,W) clamped to [0, 1]; class-conditional where labels (n,) are given."""
    parts = []
    # Equal batches: where chains see batch statistics, a batch of a few leftovers would differ.
    for places in torch.arange(n).tensor_split(-(-n // batch_size)):
        wanted = None if labels is None else labels[places.to(labels.device)]
        x, _ = start.sample(len(places), generator, wanted)
        parts.append(chain(model, x, variant, steps, generator, wanted).clamp(0.0, 1.0))
        if progress is not None:
            progress.advance(len(places))
    return torch.cat(parts)
