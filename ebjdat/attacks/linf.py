"""Iterated L-infinity attacks over one shared loop of sign steps.

    x_0 = x or x + U(-eps, eps)
    x_t+1 = project( x_t + step * sign( direction(x_t) ) )

``project`` keeps the eps ball and [0, 1] after every step; the attacks differ in ``direction`` only.
Images are float (N,C,H,W) in [0, 1], labels int64 (N,); ``eps`` and ``step`` are in pixel units, one
number or one per image as a tensor (N,1,1,1). Gradients are taken with respect to the input alone, so
parameters and their ``requires_grad`` stay untouched. Every random number comes from ``generator``.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Generator, Tensor, nn

from ebjdat.attacks.batches import Batches

Loss = Callable[[Tensor, Tensor], Tensor]
"""(logits (N,classes), labels (N,)) -> what the attack raises, per image (N,)."""
Radius = float | Tensor
VANISHED = 1e-12
"""A gradient is zero below this: the cross-entropy of a confident model rounds to zero in float32."""


def nothing() -> None:
    """What happens after a step that nobody counts."""


def cross_entropy(logits: Tensor, y: Tensor) -> Tensor:
    """Raise the cross-entropy of the label: untargeted."""
    return F.cross_entropy(logits, y, reduction="none")


def towards(logits: Tensor, target: Tensor) -> Tensor:
    """Lower the cross-entropy of a target class: targeted; pass the targets as labels."""
    return -F.cross_entropy(logits, target, reduction="none")


def label_energy(logits: Tensor, y: Tensor) -> Tensor:
    """Raise E(x, y) = -f(x)[y]."""
    return -logits.gather(1, y[:, None]).squeeze(1)


def margin(logits: Tensor, y: Tensor) -> Tensor:
    """Largest other logit minus the label's (Carlini & Wagner 2017, arXiv:1608.04644); positive: misclassified."""
    others = logits.scatter(1, y[:, None], -torch.inf).amax(1)
    return others - logits.gather(1, y[:, None]).squeeze(1)


def uniform_like(x: Tensor, generator: Generator) -> Tensor:
    """Independent U(-1, 1) of the shape, type and device of x, drawn on the generator's device."""
    noise = torch.rand(x.shape, generator=generator, device=generator.device, dtype=x.dtype)
    return noise.to(x.device).mul_(2.0).sub_(1.0)


def evaluation(model: nn.Module, loss: Loss) -> Callable[..., tuple[Tensor, ...]]:
    """(images, labels) -> gradient (N,C,H,W) of each own loss by its image, losses (N,), logits (N,classes)."""

    def evaluate(images: Tensor, labels: Tensor) -> tuple[Tensor, ...]:
        images = images.detach().requires_grad_()
        with torch.enable_grad():
            logits = model(images)
            losses = loss(logits, labels)
        (gradient,) = torch.autograd.grad(losses.sum(), images)
        return gradient, losses.detach(), logits.detach()

    return evaluate


def input_gradient(model: nn.Module, x: Tensor, y: Tensor, loss: Loss, batches: Batches) -> Tensor:
    """Gradient (N,C,H,W) of each image's own loss with respect to that image."""
    return batches.map(evaluation(model, loss), x, y)[0]


def zero_share(gradients: Tensor) -> float:
    """Share of images whose gradient (N,C,H,W) is zero everywhere: no attack by gradients can move them."""
    return float((gradients.abs().flatten(1).amax(1) < VANISHED).float().mean())


@dataclass
class Memory:
    """What an attack carries from step to step; zero at the start, each (N,C,H,W)."""

    momentum: Tensor
    variance: Tensor


@dataclass(frozen=True, kw_only=True, eq=False)
class SignAttack(ABC):
    """The shared loop; a subclass says where to go. ``tick`` is called after every step."""

    eps: Radius
    step: Radius
    steps: int
    random_start: bool = False
    loss: Loss = cross_entropy
    batches: Batches = field(default_factory=Batches)
    tick: Callable[[], object] = nothing

    def start(self, x: Tensor, generator: Generator) -> Tensor:
        """x, or a uniform point of the ball around it; not yet clipped to [0, 1]."""
        return x + self.eps * uniform_like(x, generator) if self.random_start else x

    @abstractmethod
    def direction(self, model: nn.Module, x_adv: Tensor, y: Tensor, memory: Memory, generator: Generator) -> Tensor:
        """Whose sign is the next step, (N,C,H,W)."""

    def __call__(
        self, model: nn.Module, x: Tensor, y: Tensor, generator: Generator, start: Tensor | None = None
    ) -> Tensor:
        """Adversarial images: the last iterate, in the ball around x and in [0, 1].

        Args:
            y: labels, or targets where the loss is targeted.
            generator: random start and neighbours.
            start: first iterate instead of the attack's own; projected first.
        """
        low, high = (x - self.eps).clamp_min(0.0), (x + self.eps).clamp_max(1.0)
        x_adv = self.start(x, generator) if start is None else start
        x_adv = x_adv.clamp(low, high)
        memory = Memory(torch.zeros_like(x), torch.zeros_like(x))
        for _ in range(self.steps):
            direction = self.direction(model, x_adv, y, memory, generator)
            x_adv = (x_adv + self.step * direction.sign()).clamp(low, high)
            self.tick()
        return x_adv.detach()


class PGD(SignAttack):
    """Projected gradient descent (Madry et al., ICLR 2018, arXiv:1706.06083).

    One step of size eps without a random start is FGSM (Goodfellow et al., ICLR 2015, arXiv:1412.6572).
    """

    def direction(self, model: nn.Module, x_adv: Tensor, y: Tensor, memory: Memory, generator: Generator) -> Tensor:
        """The gradient."""
        return input_gradient(model, x_adv, y, self.loss, self.batches)


@dataclass(frozen=True, kw_only=True, eq=False)
class MIFGSM(SignAttack):
    """Momentum iterative FGSM (Dong et al., CVPR 2018, arXiv:1710.06081)."""

    decay: float = 1.0

    def direction(self, model: nn.Module, x_adv: Tensor, y: Tensor, memory: Memory, generator: Generator) -> Tensor:
        """The momentum of gradients, each divided by its mean absolute value."""
        gradient = input_gradient(model, x_adv, y, self.loss, self.batches)
        memory.momentum = self.decay * memory.momentum + _normalised(gradient)
        return memory.momentum


@dataclass(frozen=True, kw_only=True, eq=False)
class VMIFGSM(MIFGSM):
    """Variance-tuned MI-FGSM (Wang & He, CVPR 2021, arXiv:2103.15571).

    The variance is the mean gradient at ``neighbours`` points around the last iterate minus the gradient there.
    """

    neighbours: int = 20
    beta: float = 1.5

    def direction(self, model: nn.Module, x_adv: Tensor, y: Tensor, memory: Memory, generator: Generator) -> Tensor:
        """The momentum of variance-tuned gradients."""
        gradient = input_gradient(model, self.look_ahead(x_adv, memory), y, self.loss, self.batches)
        memory.momentum = self.decay * memory.momentum + _normalised(gradient + memory.variance)
        around = (x_adv + self.offsets(x_adv, generator)).flatten(0, 1)
        neighbours = input_gradient(model, around, y.repeat(self.neighbours), self.loss, self.batches)
        memory.variance = neighbours.unflatten(0, (self.neighbours, -1)).mean(0) - gradient
        return memory.momentum

    def look_ahead(self, x_adv: Tensor, memory: Memory) -> Tensor:
        """Where the gradient is taken: at the iterate."""
        return x_adv

    def offsets(self, x: Tensor, generator: Generator) -> Tensor:
        """Offsets of the neighbours, (neighbours,N,C,H,W), uniform within +-beta * eps."""
        shape = x.expand(self.neighbours, *x.shape)
        return self.beta * self.eps * uniform_like(shape, generator)


@dataclass(frozen=True, kw_only=True, eq=False)
class VNIFGSM(VMIFGSM):
    """Variance-tuned Nesterov FGSM (Wang & He, CVPR 2021; Nesterov step of Lin et al., arXiv:1908.06281)."""

    def look_ahead(self, x_adv: Tensor, memory: Memory) -> Tensor:
        """One momentum step ahead of the iterate."""
        return x_adv + self.decay * self.step * memory.momentum


@dataclass(frozen=True, kw_only=True, eq=False)
class EOTPGD(SignAttack):
    """PGD on the mean of ``samples`` gradients (Athalye et al., arXiv:1707.07397; Zimmermann, arXiv:1907.00895).

    It differs from PGD only where the model is random; each of the ``samples`` copies of an image meets its own noise.
    """

    samples: int = 2

    def direction(self, model: nn.Module, x_adv: Tensor, y: Tensor, memory: Memory, generator: Generator) -> Tensor:
        """The mean gradient over the model's randomness."""
        copies = x_adv.expand(self.samples, *x_adv.shape).flatten(0, 1)
        gradients = input_gradient(model, copies, y.repeat(self.samples), self.loss, self.batches)
        return gradients.unflatten(0, (self.samples, -1)).mean(0)


class NoisyModel(nn.Module):
    """A model with Gaussian input noise of ``sigma`` (pixel units) inside: every forward pass draws anew.

    The noise is not clipped, because clipping would hide the gradient of black and white pixels.
    """

    def __init__(self, model: nn.Module, sigma: float, generator: Generator) -> None:
        super().__init__()
        self.model, self.sigma, self.generator = model, sigma, generator

    def forward(self, x: Tensor) -> Tensor:
        """Logits (N,classes) of x plus a fresh draw."""
        noise = torch.randn(x.shape, generator=self.generator, device=self.generator.device, dtype=x.dtype)
        return self.model(x + self.sigma * noise.to(x.device))


def _normalised(gradient: Tensor) -> Tensor:
    """Divided by the mean absolute value per image; an all-zero gradient stays zero."""
    scale = gradient.abs().mean((1, 2, 3), keepdim=True)
    return gradient / scale.clamp_min(torch.finfo(gradient.dtype).tiny)
