"""Replay buffer of persistent chains (Du & Mordatch, NeurIPS 2019, arXiv:1903.08689).

Several processes hold the same buffer; each walks its share of the chains.
"""

import torch
from torch import Tensor

from ebjdat.training import parallel
from ebjdat.training.samplers import Start


class ReplayBuffer:
    """Chain states (size,C,H,W) float32 on the training device."""

    def __init__(self, size: int, start: Start, reinit: float, generator: torch.Generator) -> None:
        self.start, self.reinit, self.size = start, reinit, size
        self.images, _ = start.sample(size, generator)

    def draw(self, n: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """This process's n chain starts (n,C,H,W), and the places of those of all processes, without repetition.

        Each is started afresh with probability ``reinit``.
        """
        places = torch.randperm(self.size, generator=generator, device=generator.device)[: n * parallel.world()]
        fresh, _ = self.start.sample(len(places), generator)
        restarted = torch.rand(len(places), generator=generator, device=generator.device) < self.reinit
        starts = torch.where(restarted[:, None, None, None], fresh, self.images[places])
        return parallel.share(starts), places

    def put(self, places: Tensor, images: Tensor) -> None:
        """Store this process's new states, and those of the others, at their places."""
        self.images[places] = parallel.whole(images.detach(), len(places))
