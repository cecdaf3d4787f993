"""A small convolutional network trained on real digits, for tests that need something worth attacking."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn


class SmallNet(nn.Module):
    """Images (N,1,8,8) in [0, 1] -> logits (N,10); maps to [-1, 1] itself."""

    def __init__(self, *, norm: bool = True) -> None:
        super().__init__()
        self.first = nn.Conv2d(1, 16, 3, padding=1)
        self.norm = nn.BatchNorm2d(16) if norm else nn.Identity()
        self.second = nn.Conv2d(16, 32, 3, stride=2, padding=1)
        self.head = nn.Linear(32, 10)

    def forward(self, x: Tensor) -> Tensor:
        """Logits."""
        out = F.leaky_relu(self.norm(self.first(2.0 * x - 1.0)), 0.2)
        return self.head(F.leaky_relu(self.second(out), 0.2).mean((2, 3)))


@lru_cache(maxsize=1)
def digits() -> tuple[Tensor, Tensor]:
    """The 1,797 real digits of scikit-learn: images (N,1,8,8) float32 in [0, 1], labels (N,)."""
    from sklearn.datasets import load_digits

    stored = load_digits()
    images = torch.from_numpy(stored.images.astype(np.float32) / 16.0)[:, None]
    return images, torch.from_numpy(stored.target.astype(np.int64))


@lru_cache(maxsize=4)
def _weights(adversarial: bool) -> dict[str, Tensor]:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return fit(SmallNet(), 12, 100, _step if adversarial else lambda model, x, y: x).state_dict()


def fit(
    model: nn.Module, passes: int, size: int = 50, change: Callable[..., Tensor] = lambda model, x, y: x
) -> nn.Module:
    """A network after passes over 1,400 digits in batches of a size; ``change`` makes the images that it sees."""
    images, labels = digits()
    optimiser = torch.optim.Adam(model.parameters(), 0.01)
    for _ in range(passes):
        for picked in torch.randperm(1400).split(size):
            x, y = images[picked], labels[picked]
            x = change(model, x, y)
            optimiser.zero_grad()
            F.cross_entropy(model(x), y).backward()
            optimiser.step()
    return model


def _step(model: nn.Module, x: Tensor, y: Tensor, eps: float = 0.12) -> Tensor:
    start = (x + eps * (2 * torch.rand_like(x) - 1)).clamp(0, 1).requires_grad_()
    (gradient,) = torch.autograd.grad(F.cross_entropy(model(start), y), start)
    return (start.detach() + eps * gradient.sign()).clamp(x - eps, x + eps).clamp(0, 1)


def trained(*, adversarial: bool = False) -> SmallNet:
    """A fresh copy of the trained network in eval mode: plain, or adversarially trained and partly robust."""
    model = SmallNet()
    model.load_state_dict(_weights(adversarial))
    return model.eval()


def saved(path: Path) -> SmallNet:
    """The network whose weights lie in ``path``; a worker process needs neither data nor training."""
    model = SmallNet()
    model.load_state_dict(torch.load(path, weights_only=True))
    return model.eval()


def shorten_autoattack(monkeypatch: pytest.MonkeyPatch) -> None:
    """The official package's version ``standard`` with a smaller budget, whoever calls it."""
    from pyautoattack import AutoAttack

    original = AutoAttack._set_version

    def shortened(self: Any, version: str = "standard") -> None:
        original(self, version)
        for attack in (self.apgd, self.apgd_targeted):
            attack.__init__(self.model, n_iter=5, eps=self.epsilon, seed=self.seed, device=self.device)
        self.apgd_targeted.n_target_classes = self.fab.n_target_classes = 2
        self.fab.n_iter, self.square.n_queries = 3, 30

    monkeypatch.setattr(AutoAttack, "_set_version", shortened)


class Payload:
    """Ends the test's process where a reader of pickles runs it."""

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return exec, ("raise SystemExit('executed')",)


def generator(seed: int = 0) -> torch.Generator:
    """A stream of random numbers."""
    return torch.Generator().manual_seed(seed)


def held_out(n: int = 50) -> tuple[Tensor, Tensor]:
    """The last n digits, which :func:`trained` has not seen."""
    images, labels = digits()
    return images[-n:], labels[-n:]
