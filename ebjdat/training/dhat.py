"""DHAT, debiased high-confidence adversarial training (Zhang et al., ICCV 2025, arXiv:2408.06079; code at 52de6fe).

    CE(f(x_adv), y) + w_alignment * D + w_floe * FLOE

x_adv is that of PGD-AT. x_i is an inverse adversarial image, on which the network is more certain of y; x_b is x_i with
a black foreground. The foreground is where Grad-CAM of a helper network for the true class exceeds omega. With z_i and
z_b for the logits of x_i and x_b, the debiased logits are z = z_i - z_b, and p = softmax f(x_adv), q = softmax z:

    alignment  code           D = KL(p || q)
               paper          D = KL(q || p)
    floe       code           FLOE = |Z_i (I - G / |G|)| / N with G = Z_b^T Z_b, norms over the batch: it shrinks z_i
               paper_bounded  FLOE = mean cos^2(z_i, z_b), our form: the paper's is least at orthogonal logits, too, but
                              has no bound
    mask       helper         Grad-CAM
               random         a smooth random region of each image, of the same area
               none           no background: z = z_i and no FLOE

BatchNorm: crafting uses running statistics; in the loss x_adv, x_i and x_b are normalised each by its own batch, and
only x_adv updates running statistics. x_i and random masks draw from a stream that PGD-AT leaves alone, so x_adv is
that of PGD-AT with the same seed.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from ebjdat.config import Debiasing
from ebjdat.model.energy import EnergyModel, energy
from ebjdat.model.wideresnet import statistics
from ebjdat.training import parallel
from ebjdat.training.adversary import sign_ascent, uniform_start
from ebjdat.training.objective import PGDAT, Batch, Prepared, Terms, detached
from ebjdat.training.replay_buffer import ReplayBuffer
from ebjdat.training.streams import Streams, uniform

POSITIONS = 4
"""Least height and width of a Grad-CAM map; on a single position every map is constant."""
TINY = 1e-12


@dataclass(frozen=True, slots=True)
class Debiased(Prepared):
    """A batch with its inverse adversarial images and their foreground."""

    x_inverse: Tensor | None = None
    mask: Tensor | None = None
    """(N,1,H,W) in {0, 1}; None where no background is made."""


class DHAT(PGDAT):
    """See the module; ``helper`` is a trained network in eval mode, needed for masks only."""

    def __init__(self, eps: float, settings: Debiasing, helper: EnergyModel | None = None) -> None:
        super().__init__(eps)
        self.settings, self.helper = settings, helper

    def prepare(self, model: EnergyModel, batch: Batch, buffer: ReplayBuffer | None, streams: Streams) -> Debiased:
        """Adversarial images, inverse ones, and the foreground of the clean images."""
        x_adv = self.craft(model, batch.x, batch.y, streams.attack)
        x_inverse = self.invert(model, batch.x, x_adv, batch.y, streams.noise)
        return Debiased(batch, None, x_adv, x_inverse, self.foreground(batch.x, batch.y, streams.noise))

    def invert(self, model: EnergyModel, x: Tensor, x_adv: Tensor, y: Tensor, generator: torch.Generator) -> Tensor:
        """Lower CE(f(u), y) + KL(f(x) || f(u)) - KL(f(x_adv) || f(u)) over u around x; (N,C,H,W) in [0, 1]."""
        with torch.no_grad(), statistics(model, "running"):
            difference = model(x_adv).softmax(1) - model(x).softmax(1)

        def certainty(logits: Tensor) -> Tensor:
            # What is left of both divergences once terms without u are dropped.
            return -F.cross_entropy(logits, y, reduction="sum") - (difference * logits.log_softmax(1)).sum()

        eps = self.settings.eps_inverse * self.eps
        start = uniform_start(x, eps, generator)
        return sign_ascent(model, certainty, x, start, eps=eps, step=self.eps / 4, steps=self.steps)

    def foreground(self, x: Tensor, y: Tensor, generator: torch.Generator) -> Tensor | None:
        """Mask (N,1,H,W) in {0, 1} of images x (N,C,H,W) with labels y (N,)."""
        if self.settings.mask == "none":
            return None
        assert self.helper is not None, "masks need a helper network"
        cam = grad_cam(self.helper, x, y)
        mask = foreground(cam, x.shape[2:], self.settings.omega)
        if self.settings.mask == "helper":
            return mask
        drawn = F.interpolate(uniform(cam, generator), x.shape[2:], mode="bilinear").flatten(1)
        largest_first = drawn.argsort(1, descending=True).argsort(1)
        return (largest_first < mask.flatten(1).sum(1, keepdim=True)).to(x.dtype).view_as(mask)

    def loss(self, model: EnergyModel, prepared: Prepared) -> tuple[Tensor, Terms]:
        """The weighted sum of the module's formula."""
        assert isinstance(prepared, Debiased) and prepared.x_adv is not None and prepared.x_inverse is not None
        settings, mask, floe = self.settings, prepared.mask, torch.zeros(())
        logits = model(prepared.x_adv)
        classify = F.cross_entropy(logits, prepared.batch.y)
        terms = {"loss_adversarial": classify, "energy_adversarial": energy(logits).mean()}
        with statistics(model, "batch"):
            inverse = debiased = model(prepared.x_inverse)
            if mask is not None:
                background = model(prepared.x_inverse * (1.0 - mask))
                debiased, floe = inverse - background, orthogonality(settings.floe, inverse, background)
                empty = mask.flatten(1).amax(1) == 0
                terms |= {"loss_floe": floe, "mask_foreground": mask.mean(), "mask_empty": empty.float().mean()}
        align = alignment(settings.alignment, logits, debiased.detach() if settings.detach_target else debiased)
        total = classify + settings.w_alignment * align + settings.w_floe * floe
        return total, detached(total, terms | {"loss_alignment": align})


def alignment(form: str, adversarial: Tensor, debiased: Tensor) -> Tensor:
    """Mean divergence between the predictions of logits (N,C); a scalar. See the module."""
    p, q = adversarial.softmax(1), debiased.softmax(1)
    if form == "paper":
        p, q = q, p
    return (p * ((p + TINY).log() - (q + TINY).log())).sum(1).mean()


def orthogonality(form: str, inverse: Tensor, background: Tensor) -> Tensor:
    """FLOE of the logits (N,C) of inverse images and their backgrounds; a scalar. See the module."""
    if form == "paper_bounded":
        scale = inverse.square().sum(1) * background.square().sum(1)
        return ((inverse * background).sum(1).square() / (scale + TINY)).mean()
    # Norms of the whole batch, of which this process may have a share.
    gram = parallel.summed(background.T @ background)
    rest = inverse - inverse @ gram / (gram.norm() + TINY)
    return (parallel.summed(rest.square().sum()) + TINY**2).sqrt() / (len(inverse) * parallel.world())


def grad_cam(helper: EnergyModel, x: Tensor, y: Tensor) -> Tensor:
    """ReLU(sum_k a_k A_k) for the true class (N,1,h,w), at the last block with at least 4x4 positions.

    A is what the block gives, a_k the mean over positions of d f(x)[y] / dA_k (Selvaraju et al., ICCV 2017).
    """
    found, blocks = list[Tensor](), helper.network.get_submodule("blocks").children()
    hooks = [block.register_forward_hook(lambda _, __, out: found.append(out)) for block in blocks]
    try:
        logits = helper(x.detach().requires_grad_())
    finally:
        for hook in hooks:
            hook.remove()
    maps = next(out for out in reversed(found) if min(out.shape[2:]) >= POSITIONS)
    (gradient,) = torch.autograd.grad(logits.gather(1, y[:, None]).sum(), maps)
    return (gradient.mean((2, 3), keepdim=True) * maps).sum(1, keepdim=True).relu().detach()


def foreground(cam: Tensor, size: tuple[int, ...], omega: float) -> Tensor:
    """Mask (N,1,H,W) in {0, 1} of Grad-CAM maps (N,1,h,w): above omega on a scale from each map's least to its largest.

    A map without a positive value has no foreground.
    """
    scaled = _spread(F.interpolate(_spread(cam), size, mode="bilinear"))
    return (scaled > omega).to(cam.dtype)


def _spread(maps: Tensor) -> Tensor:
    maps = maps - maps.amin((2, 3), keepdim=True)
    return maps / (maps.amax((2, 3), keepdim=True) + 1e-7)
