"""The training iteration twice more, for comparison: as the released code performs it, and lean.

Both are eager float32 and use nothing of ``ebjdat.training`` but the settings of the recipe and the
streams, so that they draw the same random numbers as the engine and must come to the same loss and
gradients. The reading of the adversarial term is ``cross_entropy``.

Released: the algorithm of the released code at 327ea16 as it is performed there, 63 forward-equivalents
per image for EB-JDAT-JEM++ and 62 for SADAJEM (an input-gradient backward counts 1, a full one 2):
adversarial images two at a time, each step with two forwards of x_adv and one of x; the energy term
forwards x_p and x_adv once more; Gaussians are drawn image by image; PYLD walks its inner steps.
Lean: 43, and for SADAJEM 39 where the p(x) batch is half of the labelled one (55 where they are
equal): every forward once, one adversarial batch, one product per class of Gaussians.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from ebjdat.config import Training, Variant
from ebjdat.data.gaussians import Mixture
from ebjdat.model.energy import EnergyModel
from ebjdat.model.wideresnet import SLOPE, BatchNorm, WideResNet
from ebjdat.training.streams import Streams

CHUNK = 2


@dataclass
class Batch:
    """Images (N,3,H,W) in [0, 1] with labels, and images of the p(x) term."""

    x: Tensor
    y: Tensor
    x_p: Tensor


class Plain:
    """One run of the plain iteration.

    Args:
        released: the released code's way, or lean.
    """

    def __init__(
        self,
        model: EnergyModel,
        variant: Variant,
        schedule: Training,
        mixture: Mixture | None,
        buffer_size: int,
        streams: Streams,
        *,
        released: bool,
    ) -> None:
        self.model = model.to(memory_format=torch.contiguous_format).train()  # type: ignore[call-overload]
        self.variant, self.eps, self.mixture = variant, schedule.train_eps, mixture
        self.streams, self.released = streams, released
        if schedule.optimiser == "adam":
            self.optimiser: torch.optim.Optimizer = torch.optim.Adam(
                model.parameters(), schedule.lr, weight_decay=schedule.weight_decay
            )
        else:
            self.optimiser = torch.optim.SGD(model.parameters(), schedule.lr, 0.9, weight_decay=schedule.weight_decay)
        self.shape = _shape_of(model, mixture)
        self.buffer = self.draw(buffer_size)
        self.loss = torch.zeros(())

    def draw(self, n: int) -> Tensor:
        """Chain starts (n,3,H,W) from the Gaussians, or uniform without them."""
        generator = self.streams.buffer
        if self.mixture is None:
            raise ValueError("the plain iteration starts its chains from Gaussians: jempp or sadajem")
        mean, chol = self.mixture.mean, self.mixture.chol
        y = torch.randint(len(mean), (n,), generator=generator, device=generator.device)
        noise = torch.randn(n, mean.shape[1], generator=generator, device=generator.device)
        if self.released:
            flat = torch.stack([mean[label] + chol[label] @ row for label, row in zip(y.tolist(), noise, strict=True)])
        else:
            flat = mean[y]
            for label in range(len(mean)):
                chosen = (y == label).nonzero().squeeze(1)
                flat[chosen] += noise[chosen] @ chol[label].T
        return flat.clamp(0.0, 1.0).view(n, *self.shape)

    def step(self, batch: Batch) -> None:
        """One iteration; its loss is kept, its gradients stay in the parameters."""
        x_gen = self.negatives(len(batch.x_p))
        x_adv = self.craft(batch)
        self.optimiser.zero_grad()
        total = self.objective(batch, x_gen, x_adv)
        total.backward()
        if self.variant.sharpness:
            self.second_pass(batch, x_gen, x_adv)
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), float("inf"))
        self.optimiser.step()
        self.loss = total.detach()

    def negatives(self, n: int) -> Tensor:
        """Walk n chains from the replay buffer, BatchNorm by the chains' own batch."""
        generator = self.streams.buffer
        places = torch.randperm(len(self.buffer), generator=generator, device=generator.device)[:n]
        fresh = self.draw(n)
        again = torch.rand(n, generator=generator, device=generator.device) < self.variant.reinit
        x = torch.where(again[:, None, None, None], fresh, self.buffer[places])
        norms = [module for module in self.model.modules() if isinstance(module, BatchNorm)]
        for norm in norms:
            norm.track = False
        for _ in range(self.variant.steps):
            x = self.pyld(x) if self.released and self.variant.inner_steps > 1 else self.langevin(x)
        for norm in norms:
            norm.track = True
        self.buffer[places] = x
        return x

    def langevin(self, x: Tensor) -> Tensor:
        """One clamped step down the energy."""
        x = x.detach().requires_grad_()
        (gradient,) = torch.autograd.grad(-torch.logsumexp(self.model(x), 1).sum(), x, retain_graph=self.released)
        length, bound = self.variant.inner_steps * self.variant.step_size, self.variant.gradient_clamp or float("inf")
        return (x.detach() - 0.5 * length * (0.5 * gradient).clamp(-bound, bound)).clamp(0.0, 1.0)

    def pyld(self, x: Tensor) -> Tensor:
        """One outer step: the gradient at the first layer's output once, then the inner steps through that layer."""
        network = self.model.network
        assert isinstance(network, WideResNet)
        first = network.stem(2.0 * x - 1.0).detach().requires_grad_()
        out = F.leaky_relu(network.norm(network.blocks(first)), SLOPE)
        energy = -torch.logsumexp(network.head(out.mean((2, 3))).float(), 1).sum()
        (upstream,) = torch.autograd.grad(energy, first, retain_graph=True)
        moved = torch.zeros_like(x)
        for _ in range(self.variant.inner_steps):
            u = (2.0 * x - 1.0).detach().requires_grad_()
            (gradient,) = torch.autograd.grad((network.stem(u) * upstream).sum(), u)
            moved = moved + self.variant.step_size * gradient
        bound = self.variant.inner_steps * self.variant.step_size * (self.variant.gradient_clamp or float("inf"))
        return (x - 0.5 * moved.clamp(-bound, bound)).clamp(0.0, 1.0).detach()

    def craft(self, batch: Batch) -> Tensor:
        """Adversarial images in eval mode: 0.5 CE + perceptual term per image, raised by sign steps."""
        x = batch.x.clamp(0.0, 1.0)
        noise = torch.rand(x.shape, generator=self.streams.attack, device=x.device)
        start = batch.x + self.eps * (2.0 * noise - 1.0)
        self.model.eval()
        size = CHUNK if self.released else len(x)
        parts = zip(x.split(size), start.split(size), batch.x.split(size), batch.y.split(size), strict=True)
        x_adv = torch.cat([self.ascend(*part) for part in parts])
        self.model.train()
        return x_adv

    def ascend(self, x: Tensor, start: Tensor, given: Tensor, y: Tensor) -> Tensor:
        """The sign steps of one chunk; ``given`` is x before it was clamped."""
        low, high = (x - self.eps).clamp_min(0.0), (x + self.eps).clamp_max(1.0)
        x_adv = start.clamp(low, high)
        if not self.released:
            with torch.no_grad():
                reference = self.model(given)
        for _ in range(self.variant.attack_steps):
            x_adv = x_adv.detach().requires_grad_()
            if self.released:
                # A mean over a chunk of two beside a sum: the weight 0.5 of the reading.
                cost = F.cross_entropy(self.model(x_adv), y, reduction="sum") / CHUNK
                reference = self.model(given).detach()
            else:
                cost = torch.zeros((), device=x.device)
            logits = self.model(x_adv)
            cost = cost + (F.normalize(logits, dim=1) - F.normalize(reference, dim=1)).square().sum()
            if not self.released:
                cost = cost + 0.5 * F.cross_entropy(logits, y, reduction="sum")
            (gradient,) = torch.autograd.grad(cost, x_adv, retain_graph=self.released)
            x_adv = (x_adv.detach() + self.variant.attack_step * self.eps * gradient.sign()).clamp(low, high)
        return x_adv.detach()

    def objective(self, batch: Batch, x_gen: Tensor, x_adv: Tensor) -> Tensor:
        """The weighted sum; x_p and x_gen see batch statistics and update nothing."""
        variant = self.variant
        data = self.energy_untracked(batch.x_p)
        px = data.mean() - self.energy_untracked(x_gen).mean()
        classify = F.cross_entropy(self.model(batch.x), batch.y)
        logits = self.model(x_adv)
        robust = F.cross_entropy(logits, batch.y)
        if self.released:
            adversarial, data = self.energy_untracked(x_adv), self.energy_untracked(batch.x_p)
        else:
            adversarial = -torch.logsumexp(logits, 1)
        outer = data.mean() - adversarial.mean()
        return (
            variant.w_px * px + variant.w_clean * classify + variant.w_adversarial * robust + variant.w_energy * outer
        )

    def energy_untracked(self, x: Tensor) -> Tensor:
        """E(x) (N,) by the batch's own statistics."""
        norms = [module for module in self.model.modules() if isinstance(module, BatchNorm)]
        before = [norm.track for norm in norms]
        for norm in norms:
            norm.track = False
        energy = -torch.logsumexp(self.model(x), 1)
        for norm, track in zip(norms, before, strict=True):
            norm.track = track
        return energy

    def second_pass(self, batch: Batch, x_gen: Tensor, x_adv: Tensor) -> None:
        """Adaptive SAM: the gradient at the worst neighbour, running statistics frozen."""
        parameters = list(self.model.parameters())
        before = [p.detach().clone() for p in parameters]
        with torch.no_grad():
            norms = [(p.abs() * p.grad).norm() for p in parameters if p.grad is not None]
            norm = torch.stack(norms).norm()
            for p in parameters:
                assert p.grad is not None
                p.add_(p.square() * p.grad * (self.variant.sharpness / (norm + 1e-12)))
        self.optimiser.zero_grad()
        layers = [module for module in self.model.modules() if isinstance(module, BatchNorm)]
        for layer in layers:
            layer.track = False
        self.objective(batch, x_gen, x_adv).backward()
        for layer in layers:
            layer.track = True
        with torch.no_grad():
            for p, w in zip(parameters, before, strict=True):
                p.copy_(w)


def _shape_of(model: EnergyModel, mixture: Mixture | None) -> tuple[int, ...]:
    return (3, 32, 32) if mixture is None else mixture.shape
