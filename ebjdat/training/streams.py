"""Explicit random streams, one torch.Generator per purpose; nothing draws from the global state."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from ebjdat.seeds import derive
from ebjdat.training import parallel

PURPOSES = ("augment", "noise", "chains", "buffer", "attack")


class Stream(torch.Generator):
    """A generator of numbers for whole batches, of which each process works on its share."""


def uniform(like: Tensor, generator: torch.Generator) -> Tensor:
    """Numbers of U(0, 1) in the shape and type of ``like`` (N,...), this process's share of a batch.

    A :class:`Stream` draws for the whole batch, so that it walks on as in a single process.
    """
    return _drawn(torch.rand, like, generator)


def normal(like: Tensor, generator: torch.Generator) -> Tensor:
    """The same for N(0, 1)."""
    return _drawn(torch.randn, like, generator)


def _drawn(kind: Callable[..., Tensor], like: Tensor, generator: torch.Generator) -> Tensor:
    shared = isinstance(generator, Stream)
    count = len(like) * (parallel.world() if shared else 1)
    numbers = kind((count, *like.shape[1:]), generator=generator, device=like.device)
    return parallel.share(numbers) if shared else numbers


class Streams:
    """The generators of one training run, an attribute per purpose: ``streams.chains`` and so on."""

    def __init__(self, seed: int, name: str, device: torch.device) -> None:
        self.seed, self.name = seed, name
        self.generators = {purpose: Stream(device).manual_seed(derive(seed, name, purpose)) for purpose in PURPOSES}
        self.augment, self.noise, self.chains, self.buffer, self.attack = self.generators.values()

    def restart(self, retry: int) -> None:
        """New, deterministic streams after a rollback, so that the same chain is not walked twice."""
        for purpose, generator in self.generators.items():
            generator.manual_seed(derive(self.seed, self.name, purpose, "retry", retry))

    def state(self) -> dict[str, Tensor]:
        """States of all generators."""
        return {purpose: generator.get_state() for purpose, generator in self.generators.items()}

    def load(self, state: dict[str, Tensor]) -> None:
        """Continue where :meth:`state` was taken."""
        for purpose, generator in self.generators.items():
            generator.set_state(state[purpose])
