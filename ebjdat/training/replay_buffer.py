"""Replay buffer of persistent chains (Du & Mordatch, NeurIPS 2019, arXiv:1903.08689).

With several processes each keeps an equal share of the states and walks an equal share of the chains; which states are
drawn, and where they return to, is as in a single process.
"""

from __future__ import annotations

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
        """n chain starts (n,C,H,W) and their places (n,), without repetition.

        Each is started afresh with probability ``reinit``.
        """
        places = torch.randperm(self.size, generator=generator, device=generator.device)[:n]
        fresh, _ = self.start.sample(len(places), generator)
        restarted = torch.rand(len(places), generator=generator, device=generator.device) < self.reinit
        return torch.where(restarted[:, None, None, None], fresh, self._at(places)), places

    def put(self, places: Tensor, images: Tensor) -> None:
        """Store the chains' new states at their places."""
        self.images[places] = images.detach()

    def mean(self) -> Tensor:
        """Mean of all states of this process, a scalar: finite where every value is."""
        return self.images.mean()

    def _at(self, places: Tensor) -> Tensor:
        return self.images[places]


class ShardedBuffer(ReplayBuffer):
    """The buffer of several processes; ``images`` gathers it, so all of them must ask."""

    @property  # type: ignore[override]
    def images(self) -> Tensor:
        """All states (size,C,H,W)."""
        return parallel.whole(self._rows[:-1], self.size)

    @images.setter
    def images(self, images: Tensor) -> None:
        own = parallel.share(images)
        # The last row takes what belongs to other processes, so that shapes never depend on places.
        self._rows = torch.cat([own, torch.zeros_like(images[:1])])

    def draw(self, n: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """This process's n chain starts of a whole batch, and the places of all of them."""
        starts, places = super().draw(n * parallel.world(), generator)
        return parallel.share(starts), places

    def put(self, places: Tensor, images: Tensor) -> None:
        """Store this process's states among those of all, each where it belongs."""
        self._rows[self._row(places)] = parallel.whole(images.detach(), len(places))

    def mean(self) -> Tensor:
        """Mean of this process's states."""
        return self._rows[:-1].mean()

    def _at(self, places: Tensor) -> Tensor:
        row = self._row(places)
        mine = (row < len(self._rows) - 1)[:, None, None, None]
        return parallel.total(torch.where(mine, self._rows[row], 0.0))

    def _row(self, places: Tensor) -> Tensor:
        first, end = parallel.bounds(self.size)
        return torch.where((places >= first) & (places < end), places - first, end - first)
