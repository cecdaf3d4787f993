"""Replay buffer of persistent chains (Du & Mordatch, NeurIPS 2019, arXiv:1903.08689)."""

from __future__ import annotations

import torch
from torch import Tensor

from ebjdat.training.samplers import Start


class ReplayBuffer:
    """Chain states (size,C,H,W) float32 on the training device."""

    def __init__(self, size: int, start: Start, reinit: float, generator: torch.Generator) -> None:
        self.start, self.reinit = start, reinit
        self.images, _ = start.sample(size, generator)

    def draw(self, n: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """n chain starts (n,C,H,W) and their places (n,), without repetition.

        Each is started afresh with probability ``reinit``.
        """
        size = len(self.images)
        places = torch.randperm(size, generator=generator, device=self.images.device)[:n]
        fresh, _ = self.start.sample(len(places), generator)
        restarted = torch.rand(len(places), generator=generator, device=self.images.device) < self.reinit
        return torch.where(restarted[:, None, None, None], fresh, self.images[places]), places

    def put(self, places: Tensor, images: Tensor) -> None:
        """Store the chains' new states at their places."""
        self.images[places] = images.detach()

    def mean(self) -> Tensor:
        """Mean of all states of this process, a scalar: finite where every value is."""
        return self.images.mean()
